"""Encoders compared two by two: difference of the robustness index and of the median margin.

Both encoders are resampled on the same draws of patients, so that what makes a cohort easy or hard
for both cancels. All encoders stand in the same design, whose null is the same for all: the difference
of indices is that of indices minus null. The spread of each difference is corrected as that of the
figures themselves: for the index by the bias-corrected jackknife over pairs of patients, for the
margin by the jackknife of patients in both roles. Intervals and p-values allow for all pairs at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.margins import CromaDraws, croma_draws, jackknife_variance
from pathfm_kedro.pipelines.robustness.robustness_index import IndexDraws, index_draws
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.pair_bootstrap import pair_variance
from pathfm_kedro.statistics.paired_comparison import simultaneous_intervals

Floats = NDArray[np.float64]

EXPERIMENT = "robustness_index_comparison"

#: Two encoders are told apart below this adjusted p-value.
_ALPHA = 0.05


@dataclass(frozen=True)
class _Difference:
    first: str
    second: str
    value: float
    draws: Floats
    n: int
    n_patients: int


def compare_encoders(
    chosen_k: Mapping[str, Any],
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
    *,
    encoders: Sequence[str],
    **tables: pl.DataFrame,
) -> dict[str, pl.DataFrame]:
    """Differences between every two encoders, in the design ``all``.

    Parameters
    ----------
    chosen_k
        Output of ``choose_k``; the cohort's k is used.
    parameters
        ``robustness_index``: bootstrap_draws, seed.
    margin_parameters
        ``robustness_margins``: m, of which the first is used.
    encoders
        Names of the encoders.
    tables
        ``counts_<encoder>`` and ``margins_<encoder>``: both outputs of
        ``count_neighbours_and_margins``.

    Returns
    -------
    dict
        Measurements ri_difference and croma_difference for each encoder, one row for each other
        (setting other): its figure less the other's. All descriptive; the reason says whether they
        are told apart.
    """
    m, k = margin_parameters["m"][0], chosen_k["k"]
    indices = {
        name: None
        if k is None
        else index_draws(tables[f"counts_{name}"], "all", int(k), parameters)
        for name in encoders
    }
    margins = {
        name: croma_draws(tables[f"margins_{name}"], "all", m, parameters) for name in encoders
    }
    rows = [
        *_rows("ri_difference", indices, _index_difference, {"design": "all", "k": k}),
        *_rows("croma_difference", margins, _margin_difference, {"design": "all", "m": m}),
    ]
    return {
        name: measurement_table(row for row in rows if row["encoder"] == name) for name in encoders
    }


def _rows(
    metric: str,
    figures: Mapping[str, Any],
    difference: Callable[[Any, Any], tuple[float, Floats]],
    setting: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Rows of every two encoders in both directions."""
    told, rows = [], []
    for first, second in itertools.combinations(sorted(figures), 2):
        reason = _obstacle(first, second, figures)
        if reason:
            for name, other in ((first, second), (second, first)):
                rows += not_applicable(
                    experiment=EXPERIMENT,
                    encoder=name,
                    metrics=[metric],
                    reason=reason,
                    setting={**setting, "other": other},
                )
            continue
        value, draws = difference(figures[first], figures[second])
        held = figures[first]
        told.append(_Difference(first, second, value, draws, held.n, len(held.patients)))
    if not told:
        return rows
    values = np.array([each.value for each in told])
    found = simultaneous_intervals(values, np.array([each.draws for each in told]))
    bounds = zip(told, found.low, found.high, found.p_value, strict=True)
    for each, low, high, p_value in bounds:
        directions = (
            (each.first, each.second, each.value, low, high),
            (each.second, each.first, -each.value, -high, -low),
        )
        for name, other, value, bottom, top in directions:
            rows.append(
                measurement(
                    experiment=EXPERIMENT,
                    encoder=name,
                    metric=metric,
                    setting={**setting, "other": other},
                    estimate=Estimate(value, _known(bottom), _known(top), each.n, each.n_patients),
                    null=Null(0.0, 0.0),
                    reason=_told_apart(value, other, float(p_value), len(told)),
                )
            )
    return rows


def _known(bound: float) -> float | None:
    return float(bound) if np.isfinite(bound) else None


def _told_apart(value: float, other: str, p_value: float, pairs: int) -> str:
    among = f"p = {p_value:.2g} allowing for {pairs} pairs" if pairs > 1 else f"p = {p_value:.2g}"
    if not np.isfinite(p_value):
        return f"the same as {other} in every resampled cohort"
    if p_value >= _ALPHA:
        return f"not told apart from {other}: {among}"
    return f"{'higher' if value > 0 else 'lower'} than {other}: {among}"


def _obstacle(first: str, second: str, figures: Mapping[str, Any]) -> str:
    """Why two encoders cannot be compared; empty if they can."""
    for name in (first, second):
        if figures[name] is None:
            return f"{name} has no such figure: see its own rows for the reason"
    if figures[first].patients != figures[second].patients:
        return (
            f"{first} and {second} were measured on other patients, so that draws are not shared: "
            "embed the same slides with both"
        )
    return ""


def _index_difference(first: IndexDraws, second: IndexDraws) -> tuple[float, Floats]:
    value, draws = first.value - second.value, first.draws - second.draws
    variance = pair_variance(
        first.influence - second.influence, 0.5 * (first.weight + second.weight)
    )
    return value, _rescaled(value, draws, variance)


def _margin_difference(first: CromaDraws, second: CromaDraws) -> tuple[float, Floats]:
    value, draws = first.value - second.value, first.draws - second.draws
    variance = jackknife_variance(first.left_out - second.left_out)
    return value, _rescaled(value, draws, max(variance, float(np.nanvar(draws))))


def _rescaled(value: float, draws: Floats, variance: float) -> Floats:
    """Draws about the value with the given variance."""
    spread = float(np.nanvar(draws))
    if spread <= np.finfo(np.float64).eps ** 2:
        return np.full_like(draws, value)
    return np.asarray(value + np.sqrt(variance / spread) * (draws - np.nanmean(draws)))
