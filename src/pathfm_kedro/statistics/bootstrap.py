"""Resampling over patients: the unit that is independent, unlike its tiles and slides."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.measurements import Estimate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Percentiles of the two-sided 95% interval.
PERCENTILES = (2.5, 97.5)
#: An interval narrower than this has no width: far above rounding, far below one patient's weight.
_NO_WIDTH = 1e-9


def patient_codes(patients: NDArray[np.generic]) -> tuple[Ints, int]:
    """Patients as integers 0 … P−1 in sorted order, and P.

    Examples
    --------
    >>> codes, n = patient_codes(np.array(["b", "a", "b"]))
    >>> codes.tolist(), n
    ([1, 0, 1], 2)
    """
    names, codes = np.unique(patients, return_inverse=True)
    return codes.astype(np.int64), len(names)


def sum_by_patient(values: NDArray[np.generic], codes: Ints, n_patients: int) -> Floats:
    """Sums of rows within each patient.

    Parameters
    ----------
    values
        [n] or [n, m] numbers.
    codes
        [n] patient of each row, 0 … n_patients − 1.
    n_patients
        Number of patients.

    Returns
    -------
    ndarray
        [n_patients] or [n_patients, m] float64.

    Examples
    --------
    >>> sum_by_patient(np.array([1.0, 2.0, 4.0]), np.array([0, 1, 0]), 2).tolist()
    [5.0, 2.0]
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    sums = np.zeros((n_patients, flat.shape[1]))
    np.add.at(sums, codes, flat)
    return sums.reshape((n_patients, *values.shape[1:]))


@lru_cache(maxsize=4)
def bootstrap_weights(n_patients: int, draws: int, seed: int) -> Floats:
    """How often each patient is resampled, with replacement, in each bootstrap draw.

    Returns
    -------
    ndarray
        [draws, n_patients] float64; every row sums to n_patients. The same seed gives the same
        draws, so that two encoders are compared on the same resampled cohorts. Read-only: those
        asked for last are kept, since each figure asks for them again.

    Examples
    --------
    >>> bootstrap_weights(5, 3, seed=0).sum(axis=1).tolist()
    [5.0, 5.0, 5.0]
    """
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(n_patients, np.full(n_patients, 1 / n_patients), draws)
    weights = counts.astype(np.float64)
    weights.setflags(write=False)
    return weights


def percentile_interval(draws: Floats) -> tuple[float | None, float | None]:
    """95% percentile interval of finite draws; None where more than 5% are undefined."""
    finite = draws[np.isfinite(draws)]
    if len(finite) < 0.95 * len(draws) or not len(finite):
        return None, None
    low, high = np.percentile(finite, PERCENTILES)
    return float(low), float(high)


def ratio_estimate(
    numerators: Floats, denominators: Floats, weights: Floats, n: int | None = None
) -> Estimate:
    """Ratio of sums over patients with its bootstrap interval: Σ_p a_p / Σ_p b_p.

    A mean over rows is the ratio with b_p = rows of patient p.

    Parameters
    ----------
    numerators, denominators
        [n_patients] sums per patient.
    weights
        [draws, n_patients] from :func:`bootstrap_weights`.
    n
        Rows behind the figure; the sum of denominators if not given.

    Examples
    --------
    >>> weights = bootstrap_weights(4, 200, seed=0)
    >>> estimate = ratio_estimate(np.array([2., 3, 2, 3]), np.full(4, 5.0), weights)
    >>> estimate.value, estimate.n_patients
    (0.5, 4)
    """
    total = float(denominators.sum())
    support = int((denominators > 0).sum())
    rows = round(total) if n is None else n
    if total == 0:
        return Estimate(None, None, None, rows, support)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights @ numerators) / (weights @ denominators)
    low, high = percentile_interval(draws)
    return Estimate(float(numerators.sum() / total), low, high, rows, support, draws)


def binomial_interval(successes: float, n: float) -> tuple[float, float]:
    """95% interval of a share of n independent units, exact where resampling sees no spread.

    Parameters
    ----------
    successes
        Units that count, 0 … n; a part of one may count.
    n
        Units, at least one; not necessarily a whole number.

    References
    ----------
    Clopper & Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26.

    Examples
    --------
    >>> low, high = binomial_interval(0, 24)
    >>> low, round(high, 3), round(1 - 0.025 ** (1 / 24), 3)
    (0.0, 0.142, 0.142)
    """
    from scipy.special import betaincinv

    missed, tail = n - successes, PERCENTILES[0] / 100
    low = float(betaincinv(successes, missed + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, missed, 1 - tail)) if missed > 0 else 1.0
    return low, high


def odds_interval(
    value: float, variance: float, size: int, most: float = np.inf, units: float | None = None
) -> tuple[float, float]:
    r"""95% interval of a ratio in 0 … m that is symmetric in the logarithm of its odds.

    A ratio r near an end of its range is skewed: a cohort that meets half as many of what is counted
    lies nearer than one that meets twice as many. The logarithm of the odds o = r/(1 − r/m) has no
    end. The interval is symmetric there and carried back; its error is the delta method's, t the
    quantile of P − 1 degrees of freedom:

        log o ± t·√V / (r·(1 − r/m)).

    Of a ratio without a largest value it is the interval of log r. At an end log o is infinite, and no
    resampled cohort differs: there it is the exact binomial one (:func:`binomial_interval`).

    Parameters
    ----------
    value
        The ratio r.
    variance
        That it has, V.
    size
        Patients P behind the variance.
    most
        Largest value m that it can have; the smallest is 0.
    units
        Patients that an interval at an end of the range rests on; `size` if not given.

    References
    ----------
    Agresti, Categorical Data Analysis, 3rd edition 2013, chapters 3 and 16 (the log odds, their error
    by the delta method, exact intervals). Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
    chapters 12 and 13 (intervals made on another scale and carried back).

    Examples
    --------
    >>> [round(end, 3) for end in odds_interval(0.1, 0.0009, 10**6, most=1.0)]
    [0.055, 0.176]
    >>> [round(end, 3) for end in odds_interval(2.0, 0.04, 10**6)]
    [1.644, 2.433]
    >>> [round(end, 3) for end in odds_interval(0.0, 0.0, 24, most=1.0)]
    [0.0, 0.142]
    """
    from scipy.special import expit, logit, stdtrit

    unbounded = bool(np.isinf(most))
    share = value / (1 + value) if unbounded else value / most
    if 0 < share < 1:
        error = np.sqrt(variance) / (value * (1 - value / most))
        reach = stdtrit(max(size - 1, 1), PERCENTILES[1] / 100) * error
        ends = logit(share) + np.array([-reach, reach])
    else:
        n = size if units is None else units
        ends = logit(np.array(binomial_interval(share * n, n)))
    with np.errstate(over="ignore"):
        low, high = np.exp(ends) if unbounded else most * expit(ends)
    return float(low), float(high)


def at_least_binomial(estimate: Estimate) -> Estimate:
    """Widen an interval to what so few patients can exclude: at least the exact binomial one.

    Where hardly a patient differs resampling gives too little width, and where none does none. The
    binomial's units are patients. Of a value below 0 the upper end is at least that of 0.

    Parameters
    ----------
    estimate
        A share, or a difference of shares, in −1 … 1.

    Examples
    --------
    >>> round(at_least_binomial(Estimate(0.0, 0.0, 0.0, 24, 24)).ci_high, 3)
    0.142
    """
    value, low, high, n = estimate.value, estimate.ci_low, estimate.ci_high, estimate.n_patients
    if value is None or low is None or high is None or n < 1:
        return estimate
    least, most = binomial_interval(min(max(value, 0.0), 1.0) * n, n)
    if value < 0:
        least = -binomial_interval(min(-value, 1.0) * n, n)[1]
    return replace(estimate, ci_low=min(low, least), ci_high=max(high, most))


def exact_without_spread(estimate: Estimate) -> Estimate:
    """:func:`at_least_binomial` where no resampled cohort differs, as where no patient is missed.

    Parameters
    ----------
    estimate
        A share of patients' rows that are right, in 0 … 1.

    Examples
    --------
    >>> round(exact_without_spread(Estimate(1.0, 1.0, 1.0, 96, 24)).ci_low, 3)
    0.858
    >>> exact_without_spread(Estimate(0.9, 0.8, 0.95, 96, 24)).ci_low
    0.8
    """
    low, high = estimate.ci_low, estimate.ci_high
    if low is None or high is None or high - low > _NO_WIDTH:
        return estimate
    return at_least_binomial(estimate)
