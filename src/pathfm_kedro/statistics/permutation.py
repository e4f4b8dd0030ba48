"""Label permutation within strata: what a figure would be if labels meant nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Of a two-sided 95% interval.
_Z = NormalDist().inv_cdf(0.975)


def permuted_within(
    labels: Ints, strata: Ints, draws: int, seed: int, owners: Ints | None = None
) -> Ints:
    """Labels shuffled among the units of each stratum, once per draw.

    Each owner (patient) gets one random number per draw; in every stratum the labels, sorted, go
    to the units in the order of their owners' numbers. A patient that stands in several strata
    hence keeps its place in all of them, and strata that share patients stay dependent.

    Parameters
    ----------
    labels
        [u] label code of each unit.
    strata
        [u] stratum code of each unit.
    draws
        Number of permutations.
    seed
        Seed; the same seed gives the same permutations.
    owners
        [u] code of the patient of each unit; every unit for itself if not given.

    Returns
    -------
    ndarray
        [u, draws] label codes; each column holds, within each stratum, the same labels as
        `labels`.

    Examples
    --------
    >>> out = permuted_within(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1]), draws=3, seed=0)
    >>> out.shape, sorted(out[:3, 0].tolist()), out[3].tolist()
    ((4, 3), [0, 0, 1], [2, 2, 2])
    """
    owned = np.arange(len(labels)) if owners is None else owners
    numbers = np.random.default_rng(seed).random((draws, int(owned.max(initial=-1)) + 1))
    chosen = np.argsort(strata + numbers[:, owned], axis=1, kind="stable")
    out = np.empty((draws, len(labels)), dtype=np.int64)
    np.put_along_axis(out, chosen, labels[np.lexsort((labels, strata))][None, :], axis=1)
    return cast(Ints, np.ascontiguousarray(out.T))


def permuted_blocks(patients: Ints, draws: int, seed: int) -> Ints:
    """Rows whose targets each row takes, patients changing places as blocks.

    Rows lie side by side by patient, once in the patients' order and once in a random one, and each
    takes the target that lies beside it. Where all patients have equally many rows a patient's rows
    take those of one other patient.

    Parameters
    ----------
    patients
        [n] codes.
    draws
        Number of permutations.
    seed
        Of the permutations.

    Returns
    -------
    ndarray
        [draws, n] permutations of the rows.

    Examples
    --------
    >>> permuted_blocks(np.array([0, 0, 1, 1]), draws=1, seed=0).tolist()
    [[2, 3, 0, 1]]
    """
    n_patients = int(patients.max()) + 1
    numbers = np.random.default_rng(seed).random((draws, n_patients))
    # Stable sorts keep the rows of a patient in their order.
    source = np.argsort(patients, kind="stable")
    place = np.argsort(numbers[:, patients], axis=1, kind="stable")
    out = np.empty((draws, len(patients)), np.int64)
    np.put_along_axis(out, place, np.broadcast_to(source, out.shape), axis=1)
    return out


def permuted_together(patients: Ints, draws: int, seed: int, strata: Ints | None = None) -> Ints:
    """Rows whose label *and* center each row takes: patients exchange both together.

    Rows lie side by side by patient, once in the patients' order and once in a random one, and each
    takes the tags that lie beside it: a patient's rows take those of one other patient where all
    have equally many. The order within a patient is random too, or patients that show every label
    would give each label to itself.

    Parameters
    ----------
    patients
        [u] code of the patient of each row (unit).
    draws
        Number of permutations.
    seed
        Of the permutations.
    strata
        [u] within which rows are exchanged; all of them if not given. A patient keeps its place in
        the random order in every stratum.

    Returns
    -------
    ndarray
        [u, draws] rows.

    Examples
    --------
    >>> permuted_together(np.array([0, 0, 1, 1]), draws=1, seed=4)[:, 0].tolist()
    [3, 2, 1, 0]
    """
    stratum = np.zeros_like(patients) if strata is None else strata
    generator, n_patients = np.random.default_rng(seed), int(patients.max(initial=-1)) + 1
    beside = np.lexsort((patients, stratum))
    out = np.empty((len(patients), draws), dtype=np.int64)
    for draw in range(draws):
        patient, row = generator.random(n_patients), generator.random(len(patients))
        out[beside, draw] = np.lexsort((row, patient[patients], stratum))
    return out


def chosen_anew(permuted: Mapping[int, Floats], k: int, chosen: Sequence[int]) -> Floats:
    """Permutations of a figure at k, with k chosen anew in each of them.

    A k that is chosen on the tiles that are judged is the one at which chance favours the label. Each
    permutation is read at the k that its own votes choose, as deviation from the mean there, about the
    mean at k: the level, which may depend on k, is that of k, and what choosing adds is in the mean.

    Parameters
    ----------
    permuted
        [permutations] at each k of the grid.
    k
        The k that was chosen.
    chosen
        The k of each permutation; empty where k was given beforehand.

    Returns
    -------
    ndarray
        [permutations]; those at k where nothing is chosen anew.

    Examples
    --------
    >>> chosen_anew({1: np.array([0.0, 2.0]), 3: np.array([7.0, 5.0])}, 1, [3, 1]).tolist()
    [2.0, 2.0]
    """
    own = permuted[k]
    if not len(chosen) or not len(own):
        return own
    means = {each: mean_known(values) for each, values in permuted.items()}
    found = [permuted[each][i] - means[each] for i, each in enumerate(chosen[: len(own)])]
    return np.array(found) + means[k]


def added_by_choice(permuted: Mapping[int, Floats], k: int, chosen: Sequence[int]) -> float:
    """What choosing k on the tiles that are judged adds to a figure's mean; see `chosen_anew`."""
    added = mean_known(chosen_anew(permuted, k, chosen)) - mean_known(permuted[k])
    return 0.0 if np.isnan(added) else added


def mean_known(values: Floats) -> float:
    """Mean of what is finite; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def null_range(permuted: Floats) -> Null:
    """95% of a figure's permutations; unknown where there are none."""
    return Null(*percentile_interval(permuted)) if len(permuted) else Null()


def less_chance(value: Value, chance: float) -> Value:
    """A figure, its interval and its nulls, each minus what chance gives."""

    def less(figure: float | None) -> float | None:
        return None if figure is None else figure - chance

    def shifted(null: Null) -> Null:
        return Null(less(null.low), less(null.high))

    whole = value.estimate
    ends = less(whole.value), less(whole.ci_low), less(whole.ci_high)
    return replace(
        value,
        estimate=Estimate(*ends, whole.n, whole.n_patients, whole.draws),
        null=shifted(value.null),
        label_null=None if value.label_null is None else shifted(value.label_null),
        permuted=None if value.permuted is None else value.permuted - chance,
    )


def with_error_of_mean(value: Value, permuted: Floats) -> Value:
    """A figure from which the mean of so few permutations is subtracted: that mean has an error too.

    It is s/√n for n permutations, and is added as independent errors are: each end of the interval lies
    √(e² + (z·s/√n)²) from the figure in place of e.

    Examples
    --------
    >>> figure = Value(Estimate(0.5, 0.25, 0.75, 9, 9))
    >>> round(with_error_of_mean(figure, np.array([0.0, 0.5])).estimate.ci_low, 3)
    0.073
    """
    figure, low, high = value.estimate.value, value.estimate.ci_low, value.estimate.ci_high
    known = permuted[np.isfinite(permuted)]
    if figure is None or low is None or high is None or not len(known):
        return value
    error = _Z * float(np.std(known)) / np.sqrt(len(known))
    low = float(figure - np.hypot(figure - low, error))
    high = float(figure + np.hypot(high - figure, error))
    return replace(value, estimate=replace(value.estimate, ci_low=low, ci_high=high))


def _no_permutation(asked: int) -> str:
    """Why there is nothing to compare with."""
    if not asked:
        return "no permutation to compare with: set n_permutations to 200"
    return (
        f"in none of {asked} permutations is the figure defined, so that there is nothing to compare "
        "with: add patients, so that each cell of label and center has several"
    )


def minus_null(value: Value, permuted: Floats) -> Value:
    """A figure with its nulls, minus the mean of its permutations.

    Raises
    ------
    Undefined
        If there is no permutation.

    Examples
    --------
    >>> figure = Value(Estimate(0.5, 0.25, 0.75, 9, 9))
    >>> minus_null(figure, np.array([0.25, 0.25])).estimate.value
    0.25
    """
    chance = mean_known(permuted)
    if np.isnan(chance):
        estimate = value.estimate
        raise Undefined(_no_permutation(len(permuted)), estimate.n, estimate.n_patients)
    return less_chance(value, chance)
