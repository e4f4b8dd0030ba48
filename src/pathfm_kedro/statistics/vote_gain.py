"""How much one way to find neighbours gains over another, by the votes of the same queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pathfm_kedro.statistics.bootstrap import binomial_interval, percentile_interval
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.resampled_figure import widened
from pathfm_kedro.statistics.votes import PatientVotes, design_effect, macro_f1


@dataclass(frozen=True)
class Gain:
    """A difference of two macro-F1.

    Attributes
    ----------
    estimate
        Value and interval.
    null
        95% of its values under permuted labels.
    equivalence_p
        Of two one-sided tests that it lies within the margin.
    informed
        Whether either macro-F1 lies above its null.
    """

    estimate: Estimate
    null: Null
    equivalence_p: float
    informed: bool


def macro_f1_gain(votes: PatientVotes, over: PatientVotes, margin: float) -> Gain:
    """How much macro-F1 one way gains over another.

    ``gain = macro-F1(votes) − macro-F1(over)``. Patients are resampled as queries, the same for both;
    draws are centred on the gain and widened by the root of its design effect.

    Where both find the same matches for every query the gain is zero by construction. Else the
    interval is at least as wide as the exact binomial one of the patients who gain beyond those who
    lose (:func:`exact_reach`): resampling sees no spread where few patients differ.

    Parameters
    ----------
    votes, over
        Of the same queries and permutations.
    margin
        Gains within ± this count as none.

    Returns
    -------
    Gain
        Its p comes from two one-sided tests at ± margin (:func:`tost_p`), never below the exact
        binomial one, that as few of P patients differ on balance where a share of the margin does.
    """
    from scipy.stats import binom

    figures = votes.macro_f1, over.macro_f1
    permuted = figures[0].permuted - figures[1].permuted
    null = Null(*percentile_interval(permuted))
    informed = any(f.null.high is None or f.value > f.null.high for f in figures)
    n, n_patients = votes.n, votes.n_patients
    if np.array_equal(votes.matches, over.matches):
        return Gain(Estimate(0.0, 0.0, 0.0, n, n_patients), null, 0.0, informed)
    value = figures[0].value - figures[1].value
    effect = design_effect(permuted, votes.influence - over.influence)
    draws = widened(value, macro_f1(votes.resampled) - macro_f1(over.resampled), effect)
    more = (votes.counts - over.counts)[:, 0].sum(axis=-1)  # correctly classified, per patient
    net = int((more > 0).sum()) - int((more < 0).sum())
    p = max(
        tost_p(value, float(np.nanstd(draws, ddof=1)), n_patients - 1, margin),
        float(binom.cdf(abs(net), n_patients, margin)),
    )
    low, high = percentile_interval(draws)
    if low is not None and high is not None:
        least, most = exact_reach(net, n_patients)
        low, high = min(low, least), max(high, most)
    return Gain(Estimate(value, low, high, n, n_patients, draws), null, p, informed)


def exact_reach(net: int, n_patients: int) -> tuple[float, float]:
    """Ends that an interval of a gain must reach, from the patients who gain less those who lose.

    The upper end is the exact binomial one of a share of net > 0 of P patients, and where none gain
    1 − 0.025^(1/P), however many lose: P patients can exclude no less, so that a loss never makes a
    pass easier. The lower end is that of the share: negative, unless more gain than lose.

    Examples
    --------
    >>> [[round(end, 3) for end in exact_reach(net, 24)] for net in (-1, 0, 1)]
    [[-0.211, 0.142], [-0.142, 0.142], [0.001, 0.211]]
    """
    _, high = binomial_interval(max(net, 0), n_patients)
    if net > 0:
        return binomial_interval(net, n_patients)[0], high
    return -binomial_interval(-net, n_patients)[1], high


def tost_p(value: float, standard_error: float, freedom: int, margin: float) -> float:
    """Larger p of two one-sided t-tests that a figure lies outside ± margin (Schuirmann 1987).

    Examples
    --------
    >>> round(tost_p(0.0, 0.02, 30, 0.05), 3), tost_p(0.05, 0.02, 30, 0.05)
    (0.009, 0.5)
    """
    from scipy.stats import t

    if standard_error == 0:
        return float(abs(value) >= margin)
    below = t.sf((value + margin) / standard_error, freedom)
    above = t.cdf((value - margin) / standard_error, freedom)
    return float(max(below, above))
