"""Change of geometry: what differs between two versions of one encoder, on the same tiles.

Each figure of ``geometry`` of the newer version minus that of the version before, from the sums that
``geometry`` has taken of both: the same tiles, the same groups of patients. A harmonised variant is
held against its base; which other entries are versions of one encoder stands in
``geometry_change.before``.

Intervals: of moments, bootstrap over patients, of the difference in each resampled cohort and centred
on it; of the others, jackknife over groups of patients, of the difference without each group. Null: 0.
Described, not judged.

Pitfalls
--------
- All figures depend on the number of dimensions: where it differs the row says so, and a change may be
  that alone.
- The coverage of these intervals was not simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.inheritance.geometry import (
    GEOMETRY_SCHEMA,
    MOMENTS,
    SHAPE,
    known_value,
    moment_estimates,
    shape_estimates,
)
from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.jackknife import jackknife_interval
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics

Floats = NDArray[np.float64]
Estimates = Mapping[str, Estimate]

AFTER, BEFORE = "after", "before"
SUFFIX = "_change"
#: What both must have in common to be compared.
_TILES = ("patient_id", "n_tiles", "n_slides")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GeometryChange(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    before
        Of an encoder of the cohort the one that is its version before, in addition to harmonised
        variants and their bases.
    """

    before: Mapping[str, str] = Field(default_factory=dict)


def geometry_change_statistics(
    after: pl.DataFrame, before: pl.DataFrame, p: GeometryChange
) -> pl.DataFrame:
    """Both tables of ``geometry``, one below the other.

    Parameters
    ----------
    after, before
        Statistics of the newer version and of the one before.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns of ``GEOMETRY_SCHEMA``, and ``version``.
    """
    names = list(GEOMETRY_SCHEMA)
    return pl.concat(
        [
            table.select(names).with_columns(version=pl.lit(version))
            for version, table in ((AFTER, after), (BEFORE, before))
        ]
    )


def geometry_change_figures(statistics: pl.DataFrame, p: GeometryChange) -> Iterator[Figure]:
    """Change of every figure of ``geometry``, in its order.

    Parameters
    ----------
    statistics
        From :func:`geometry_change_statistics`.
    p
        The parameters.
    """
    whole = PatientStatistics(statistics, p)
    after, before = (whole.where(pl.col("version") == name) for name in (AFTER, BEFORE))
    estimates = cache(partial(_estimates, after, before))
    for metric in (*MOMENTS, *SHAPE):
        compute = partial(_change, before=before, metric=metric, estimates=estimates)
        yield after.figure(f"{metric}{SUFFIX}", compute, n_tiles=after.n)


def _estimates(after: PatientStatistics, before: PatientStatistics) -> tuple[Estimates, Estimates]:
    """Figures of both."""
    tiles = [of.table.select(_TILES).sort("patient_id") for of in (after, before)]
    if not tiles[0].equals(tiles[1]):
        raise Undefined(
            "the two versions have vectors of different slides: embed the same slides with both"
        )
    found = []
    for of in (after, before):
        known = not of.table["n_dimensions"].drop_nulls().is_empty()
        found.append({**moment_estimates(of), **shape_estimates(of)} if known else {})
    return found[0], found[1]


def _change(
    after: PatientStatistics,
    before: PatientStatistics,
    metric: str,
    estimates: Callable[[], tuple[Estimates, Estimates]],
) -> Value:
    found = estimates()
    new, old = (
        known_value(of, metric, {name: Value(e) for name, e in own.items()}).estimate
        for of, own in zip((after, before), found, strict=True)
    )
    assert new.value is not None
    assert old.value is not None
    value = new.value - old.value
    interval: tuple[float | None, float | None] = (None, None)
    draws = None
    if new.draws is not None and old.draws is not None:
        draws = new.draws - old.draws
        if after.n_patients > 1:
            interval = percentile_interval(draws - np.nanmean(draws) + value)
    elif metric in SHAPE:
        interval = jackknife_interval(value, _without(after, before, metric))
    sizes = [int(of.table["n_dimensions"][0]) for of in (after, before)]
    remark = "" if sizes[0] == sizes[1] else f"of {sizes[0]} dimensions in place of {sizes[1]}"
    estimate = Estimate(value, *interval, after.n, after.n_patients, draws)
    return Value(estimate, Null(0.0, 0.0), remark=remark)


def _without(after: PatientStatistics, before: PatientStatistics, metric: str) -> Floats:
    """[groups] change without each group of patients; groups without a figure are left out."""
    name = f"{metric}_without"
    sides = [of.table.select("group", name).unique("group") for of in (after, before)]
    both = sides[0].join(sides[1], on="group", suffix="_before").drop_nulls().sort("group")
    return (both[name] - both[f"{name}_before"]).to_numpy()
