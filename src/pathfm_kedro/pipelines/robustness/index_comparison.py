"""Encoders compared two by two: difference of the robustness index and of the median margin.

Both encoders are resampled on the same draws of patients, so that what makes a cohort easy or hard
for both cancels. All encoders stand in the same design, whose null is the same for all. The null of a
difference is what it is with labels permuted within centers, alike for both: a variant without the
means of its centers has a higher index than its base whatever the labels are, and what it gains in
labels is only what exceeds that null. The spread of each difference is corrected as that of the
figures themselves: for the index by the bias-corrected jackknife over pairs of patients, for the
margin by the jackknife of patients in both roles. Intervals and p-values allow for all pairs at once.

Pitfalls
--------
- Differences of the margin are those of the margins themselves; two encoders may have different
  permutation nulls.
- Encoders measured on other patients are refused; where they lost different slides of the same patients
  they are compared all the same.
- The more encoders a cohort has, the wider all intervals.
- Encoders may have vectors of different tiles (another size, or a file's places): the reason says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.margins import MeasuredMargins, RobustnessMargins
from pathfm_kedro.pipelines.robustness.robustness_index import RobustnessIndex, counted
from pathfm_kedro.statistics.figures import Figure, Value, measure, undefined
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.pair_bootstrap import (
    jackknife_variance,
    pair_variance,
    resampled_total,
)
from pathfm_kedro.statistics.paired_comparison import simultaneous_intervals
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.permutation import null_range
from pathfm_kedro.statistics.tables import digests_by_slide
from pathfm_kedro.statistics.unit_neighbours import OS, SO, UnitNeighbours

Floats = NDArray[np.float64]

EXPERIMENT = "robustness_index_comparison"

#: The design in which encoders are compared.
_DESIGN = "all"

#: Two encoders are distinguished below this adjusted p-value.
_ALPHA = 0.05


@dataclass(frozen=True)
class Compared:
    """A figure of one encoder with what its difference from another's needs.

    Attributes
    ----------
    value
        The figure.
    draws
        [draws] in each resampled cohort.
    influence
        What patients add to it: [P, P] influence of each two of them for the index, [2, P] change
        without each of them for the margin.
    weight
        [P, P] part of each two patients in the index's denominator; None for the margin.
    patients
        Names, in order.
    n
        Queries behind the figure.
    permuted
        [permutations] with labels permuted within centers, the same for every encoder.
    """

    value: float
    draws: Floats
    influence: Any
    weight: Any
    patients: tuple[str, ...]
    n: int
    permuted: Floats


def compare_encoders(
    chosen_k: Mapping[str, Any],
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
    *,
    encoders: Sequence[str],
    **statistics: pl.DataFrame,
) -> dict[str, pl.DataFrame]:
    """Differences between every two encoders, in the design ``all``.

    Parameters
    ----------
    chosen_k
        Output of ``choose_k``; the cohort's k is used.
    parameters, margin_parameters
        The blocks ``robustness_index`` and ``robustness_margins``; of the latter's m the first is
        used.
    encoders
        Names of the encoders.
    statistics
        ``index_<encoder>`` and ``margins_<encoder>``: both outputs of
        ``index_and_margin_statistics``; where encoders may have vectors of different tiles,
        ``tiles_<encoder>``: the tables of these.

    Returns
    -------
    dict
        Measurements ri_difference and croma_difference for each encoder, one row for each other
        (setting other): its figure less the other's. All descriptive; the reason says whether they
        are distinguished.
    """
    index = read_parameters(RobustnessIndex, "robustness_index", parameters)
    margins = read_parameters(RobustnessMargins, "robustness_margins", margin_parameters)
    k, m = chosen_k["k"], margins.m[0]
    indices = {e: compared_index(statistics[f"index_{e}"], k, index) for e in encoders}
    medians = {e: compared_margin(statistics[f"margins_{e}"], m, margins) for e in encoders}
    other_tiles = _of_other_tiles({e: statistics.get(f"tiles_{e}") for e in encoders})
    figures = [
        *_figures("ri_difference", indices, _index_variance, {"design": _DESIGN, "k": k}),
        *_figures("croma_difference", medians, _margin_variance, {"design": _DESIGN, "m": m}),
    ]
    figures = [(own, _remarked(figure, own, other_tiles)) for own, figure in figures]
    return {e: measure((f for own, f in figures if own == e), EXPERIMENT, e) for e in encoders}


def _of_other_tiles(tiles: Mapping[str, pl.DataFrame | None]) -> set[frozenset[str]]:
    """Pairs of encoders that have vectors of different tiles."""
    digests = {e: digests_by_slide(table) for e, table in tiles.items() if table is not None}
    pairs = itertools.combinations(sorted(digests), 2)
    return {frozenset(pair) for pair in pairs if digests[pair[0]] != digests[pair[1]]}


def _remarked(figure: Figure, encoder: str, other_tiles: set[frozenset[str]]) -> Figure:
    """The figure with a remark where the two encoders were not shown the same tiles."""
    other = str(figure.setting["other"])
    if frozenset((encoder, other)) not in other_tiles:
        return figure

    def compute() -> Value:
        value = figure.compute()
        assert isinstance(value, Value)
        remark = (
            f"{encoder} and {other} have vectors of different tiles of the same patients, so that the "
            "field of a tile differs as well as the encoder"
        )
        return replace(value, remark="; ".join(filter(None, [value.remark, remark])))

    return replace(figure, compute=compute)


def compared_index(statistics: pl.DataFrame, k: int | None, p: RobustnessIndex) -> Compared | None:
    """Index of an encoder at k in every resampled cohort; None if it is undefined."""
    rows = counted(statistics, _DESIGN)
    if k is None or rows.is_empty() or k not in rows["k"]:
        return None
    found = UnitNeighbours.of(rows, _DESIGN)
    near = found.band <= found.k_grid.index(k)
    matching = found.matrix(near & (found.kind == SO))
    typed = found.matrix(near & ((found.kind == SO) | (found.kind == OS)))
    below = float(typed.sum())
    if below == 0:
        return None
    weights = p.weights(found.n_patients)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = resampled_total(matching, weights) / resampled_total(typed, weights)
    value = float(matching.sum()) / below
    patients = tuple(rows["patient_id"].unique().sort())
    influence = (matching - value * typed) / below
    permuted = dict(
        zip(found.k_grid, found.permuted_labels(p.n_permutations, p.seed), strict=True)
    )[k][0]
    return Compared(value, draws, influence, typed / below, patients, found.n, permuted)


def compared_margin(statistics: pl.DataFrame, m: int, p: RobustnessMargins) -> Compared | None:
    """Median margin of an encoder in every resampled cohort; None if it has none."""
    margins = MeasuredMargins(statistics, _DESIGN, m, p)
    if not margins.patients or not margins.answered.sum():
        return None
    return Compared(
        float(margins.point.median[0]),
        margins.resampled.median,
        margins.changes["median"],
        None,
        tuple(margins.patients),
        margins.n,
        margins.permuted_labels["median"],
    )


def _figures(
    metric: str,
    of: Mapping[str, Compared | None],
    variance: Callable[[Compared, Compared, Floats], float],
    setting: Mapping[str, Any],
) -> Iterator[tuple[str, Figure]]:
    """Every two encoders in both directions: the encoder that a figure belongs to, and the figure."""
    pairs = list(itertools.combinations(sorted(of), 2))
    problems = {pair: _problem(*pair, of) for pair in pairs}
    both = {pair: (of[pair[0]], of[pair[1]]) for pair in pairs if not problems[pair]}
    values = _simultaneous(both, variance)
    for pair in pairs:
        for name, other in (pair, pair[::-1]):
            problem = problems[pair]
            compute = undefined(problem) if problem else partial(values.__getitem__, (name, other))
            yield name, Figure(metric, compute, {**setting, "other": other})


def _simultaneous(
    both: Mapping[tuple[str, str], tuple[Any, Any]],
    variance: Callable[[Compared, Compared, Floats], float],
) -> dict[tuple[str, str], Value]:
    """Differences, in both directions, with intervals that hold together."""
    if not both:
        return {}
    differences = [_difference(first, second, variance) for first, second in both.values()]
    values = np.array([value for value, _ in differences])
    found = simultaneous_intervals(values, np.array([draws for _, draws in differences]))
    out = {}
    bounds = zip(both.items(), values.tolist(), found.low, found.high, found.p_value, strict=True)
    for ((first, second), (measured, against)), value, low, high, p_value in bounds:
        null = _null_of(measured, against)
        for name, other, figure, bottom, top, chance in (
            (first, second, value, low, high, null),
            (second, first, -value, -high, -low, Null(_minus(null.high), _minus(null.low))),
        ):
            estimate = Estimate(
                figure, _known(bottom), _known(top), measured.n, len(measured.patients)
            )
            reason = _told_apart(figure, other, float(p_value), len(both))
            remark = _from_centers(figure, chance) if p_value < _ALPHA else ""
            out[name, other] = Value(estimate, chance, reason=reason, remark=remark)
    return out


def _null_of(first: Compared, second: Compared) -> Null:
    """95% of the difference with labels permuted within centers, alike for both."""
    if not len(first.permuted) or len(first.permuted) != len(second.permuted):
        return Null(0.0, 0.0)
    return null_range(first.permuted - second.permuted)


def _minus(end: float | None) -> float | None:
    return None if end is None else -end


def _from_centers(value: float, null: Null) -> str:
    """That a difference is there whatever the labels are; empty where it is not."""
    if null.low is None or null.high is None or not null.low <= value <= null.high:
        return ""
    return (
        "as large with labels permuted within centers: it comes of how centers lie to each other, not "
        "of the labels"
    )


def _known(bound: float) -> float | None:
    return float(bound) if np.isfinite(bound) else None


def _told_apart(value: float, other: str, p_value: float, pairs: int) -> str:
    among = f"p = {p_value:.2g} allowing for {pairs} pairs" if pairs > 1 else f"p = {p_value:.2g}"
    if not np.isfinite(p_value):
        return f"the same as {other} in every resampled cohort"
    if p_value >= _ALPHA:
        return f"not distinguished from {other}: {among}"
    return f"{'higher' if value > 0 else 'lower'} than {other}: {among}"


def _problem(first: str, second: str, of: Mapping[str, Any]) -> str:
    """Why two encoders cannot be compared; empty if they can."""
    for name in (first, second):
        if of[name] is None:
            return f"{name} has no such figure: see its own rows for the reason"
    if of[first].patients != of[second].patients:
        return (
            f"{first} and {second} were measured on other patients, so that draws are not shared: "
            "embed the same slides with both"
        )
    return ""


def _difference(
    first: Any, second: Any, variance_of: Callable[[Any, Any, Floats], float]
) -> tuple[float, Floats]:
    """Difference, and its draws about it with the corrected variance."""
    value, draws = first.value - second.value, first.draws - second.draws
    spread = float(np.nanvar(draws))
    if spread <= np.finfo(np.float64).eps ** 2:
        return value, np.full_like(draws, value)
    scale = np.sqrt(variance_of(first, second, draws) / spread)
    return value, np.asarray(value + scale * (draws - np.nanmean(draws)))


def _index_variance(first: Compared, second: Compared, draws: Floats) -> float:
    return pair_variance(first.influence - second.influence, 0.5 * (first.weight + second.weight))


def _margin_variance(first: Compared, second: Compared, draws: Floats) -> float:
    return max(jackknife_variance(first.influence - second.influence), float(np.nanvar(draws)))
