"""Margins of every tile, and weighted neighbours, reduced to one small table.

See :mod:`pathfm_kedro.pipelines.robustness.margins` for what they are for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.designs import (
    Cohort,
    Dealt,
    Scope,
    Subsamples,
    deal_tags,
    draw_subsamples,
)
from pathfm_kedro.pipelines.robustness.neighbour_counts import (
    counts_frame,
    pair_lists,
    scope_counts,
)
from pathfm_kedro.pipelines.robustness.robustness_index import choose_k
from pathfm_kedro.pipelines.robustness.typed_distances import (
    Sample,
    first_mean,
    margin_of,
    margins_under,
    margins_without,
    nearest_of_units,
    sampled_queries,
    split_by_center,
)
from pathfm_kedro.statistics.neighbours import Neighbours, TypedNeighbours, nearest_by_type
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Share of the queries that makes the lower tail, as in Grisi et al. 2026.
TAIL = 0.10

#: What is told of a set of margins: their median, mean, lower tail's mean, share ≤ 0.
SUMMARIES = ("median", "mean", "tail", "below")

#: Temperature where half of the neighbours that count are copies of the query: any is as good, since
#: exp(−0 / τ) = 1.
_TAU_OF_COPIES = 0.2

#: Queries sampled in each 2 × 2 pair at least.
_FEWEST_SAMPLED = 64

#: Distances kept of the sampled queries at most: 32 MB.
_KEPT_DISTANCES = 2**23

#: Schema of the table: one row of a *kind* for each design and draw (or pair) and
#:
#: - margins: unit and m. `margins` of its queries, ascending, of those that have one; n: queries;
#: - without: m, half. How the summaries of half of the sampled margins change if each of `patients`
#:   is no neighbour any more (it still asks);
#: - null: m. The summaries of the sample's margins in each permutation of labels over the units of
#:   each center;
#: - evidence: unit and k. Units met at ranks above the previous k and ≤ k, and the sum of
#:   exp(−distance / tau) over those neighbours;
#: - unused: why a design, or a cell of it, is not used.
MARGINS_SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),
    "design": pl.String(),
    "draw": pl.Int32(),
    "m": pl.Int32(),
    "half": pl.Int32(),
    "k": pl.Int32(),
    "tau": pl.Float64(),
    "unit": pl.Int32(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "n": pl.Int64(),
    "margins": pl.List(pl.Float64()),
    "neighbour_unit": pl.List(pl.Int32()),
    "neighbours": pl.List(pl.Float64()),
    "patients": pl.List(pl.String()),
    **{name: pl.List(pl.Float64()) for name in SUMMARIES},
    "reason": pl.String(),
}


@dataclass(frozen=True)
class _Searched:
    """A scope, its neighbours, and what its queries weigh them by."""

    scope: Scope
    found: NDArray[np.int32]
    distance: Floats


def count_neighbours_and_margins(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Neighbour counts and margins of one encoder from one search.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    parameters
        ``robustness_index``, as for ``count_neighbours``, and its k_design: the design whose
        accuracy chooses the k at which MaRI's temperature is set.
    margin_parameters
        ``robustness_margins``: m (nearest tiles of each type, the first for the headline),
        sampled_queries.

    Returns
    -------
    tuple
        Counts as ``count_neighbours`` gives them, and margins, see :data:`MARGINS_SCHEMA`.
    """
    drawn = draw_subsamples(slides, tiles, embeddings, parameters)
    reasons = [{"kind": "unused", **row} for row in drawn.unused]
    if drawn.cohort is None or not drawn.scopes:
        return counts_frame(drawn.unused), margins_frame(reasons)
    counts, margins, searched = [], [], []
    sizes = Counter(scope.design for scope in drawn.scopes)
    for scope, typed, tags in _searches(drawn, drawn.cohort, parameters, margin_parameters):
        found = typed.nearest.indices
        counts += scope_counts(drawn, scope, found, parameters["k_grid"], tags)
        size = max(
            int(margin_parameters["sampled_queries"]) // sizes[scope.design], _FEWEST_SAMPLED
        )
        margins += _scope_margins(drawn, scope, typed, tags, parameters, margin_parameters, size)
        distance = _distances(typed.nearest, parameters["metric"])
        searched.append(_Searched(scope, found.astype(np.int32), distance))
    table = pl.concat([*counts, counts_frame(drawn.unused)])
    k = choose_k(parameters, encoder=table)["per_encoder"].get("encoder")
    if k is not None:
        margins += _evidence(drawn.cohort, searched, k, parameters["k_grid"])
    return table, pl.concat([*margins, margins_frame(reasons)])


def margins_frame(rows: pl.DataFrame | list[dict[str, Any]]) -> pl.DataFrame:
    """Rows in the order and types of the margins' schema; columns that are not given are null."""
    if isinstance(rows, pl.DataFrame):
        absent = [pl.lit(None).alias(name) for name in MARGINS_SCHEMA if name not in rows.columns]
        rows = rows.with_columns(absent)
        return rows.select(pl.col(name).cast(kind) for name, kind in MARGINS_SCHEMA.items())
    return pl.DataFrame(rows, schema=MARGINS_SCHEMA)


def summaries(margins: Floats) -> dict[str, Floats]:
    """Median, mean, lower tail's mean and share ≤ 0 along the last axis, without NaN.

    Examples
    --------
    >>> found = summaries(np.array([-1.0, 0.5, np.nan, 1.0]))
    >>> float(found["median"]), float(found["tail"])
    (0.5, -1.0)
    """
    values = np.sort(margins, axis=-1)
    size = np.isfinite(values).sum(axis=-1, keepdims=True)
    some = np.maximum(size, 1)

    def at(rank: Ints) -> Floats:
        return np.take_along_axis(values, rank, axis=-1)

    place = (some - 1) * TAIL
    low = np.floor(place).astype(np.int64)
    bound = at(low) + (at(np.minimum(low + 1, some - 1)) - at(low)) * (place - low)
    inside = values <= bound
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "median": 0.5 * (at((some - 1) // 2) + at(some // 2))[..., 0],
            "mean": np.nansum(values, axis=-1) / size[..., 0],
            "tail": np.where(inside, values, 0).sum(axis=-1) / inside.sum(axis=-1),
            "below": (values <= 0).sum(axis=-1) / size[..., 0],
        }


def _searches(
    drawn: Subsamples,
    cohort: Cohort,
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
) -> Iterator[tuple[Scope, TypedNeighbours, Dealt]]:
    """Neighbours of each scope's tiles; the search is not repeated for the same tiles."""
    previous: tuple[Ints, TypedNeighbours] | None = None
    dealt = deal_tags(cohort, drawn.scopes, parameters["n_permutations"], parameters["seed"])
    for scope, tags in zip(drawn.scopes, dealt, strict=True):
        if previous is None or not np.array_equal(previous[0], scope.rows):
            found = nearest_by_type(
                drawn.vectors_of(scope),
                cohort.groups[scope.rows],
                cohort.labels[scope.rows],
                cohort.centers[scope.rows],
                max(parameters["k_grid"]),
                max(margin_parameters["m"]),
                parameters["metric"],
            )
            previous = (scope.rows, found)
        yield scope, previous[1], tags


def _distances(found: Neighbours, metric: str) -> Floats:
    """Distances in the metric's unit; infinite where there is no neighbour."""
    return 1 - found.similarity if metric == "cosine" else -found.similarity


def _scope_margins(
    drawn: Subsamples,
    scope: Scope,
    typed: TypedNeighbours,
    tags: Dealt,
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
    size: int,
) -> list[pl.DataFrame]:
    """Rows of the kinds margins, without and null of one scope."""
    cohort, metric = drawn.cohort, parameters["metric"]
    assert cohort is not None  # there is a scope
    near, far = (_distances(found, metric) for found in (typed.same_label, typed.same_center))
    every = np.ones(near.shape, dtype=np.bool_)
    units = cohort.units[scope.rows]
    frames = []
    deepest = max(margin_parameters["m"])
    sample = _sample(drawn, cohort, scope, tags.units, deepest, size, parameters)
    for m in margin_parameters["m"]:
        margins = margin_of(first_mean(near, every, m), first_mean(far, every, m))
        frames.append(_unit_margins(cohort, units, margins).with_columns(pl.lit(m).alias("m")))
        rows = _without(cohort, tags.units, sample, m)
        if m == margin_parameters["m"][0]:
            rows.append(_permuted(sample, tags, m))
        frames.append(margins_frame([{**row, "m": m} for row in rows]))
    place = pl.lit(scope.design).alias("design"), pl.lit(scope.draw).alias("draw")
    return [margins_frame(frame.with_columns(place)) for frame in frames]


def _unit_margins(cohort: Cohort, units: Ints, margins: Floats) -> pl.DataFrame:
    table = pl.DataFrame({"unit": units, "margin": margins}, nan_to_null=True)
    lists = (
        table.sort("unit", "margin")
        .group_by("unit", maintain_order=True)
        .agg(n=pl.len(), margins=pl.col("margin").drop_nulls())
    )
    return lists.join(
        cohort.unit_table.with_columns(pl.col("unit").cast(pl.Int64)), on="unit", how="left"
    ).with_columns(pl.lit("margins").alias("kind"))


def _sample(
    drawn: Subsamples,
    cohort: Cohort,
    scope: Scope,
    members: Ints,
    m: int,
    size: int,
    parameters: Mapping[str, Any],
) -> Sample:
    """Sampled queries of a scope with the nearest tiles of every unit (codes: rows of members)."""
    units = np.searchsorted(members, cohort.units[scope.rows])
    first = np.unique(units, return_index=True)[1]
    size = max(min(size, _KEPT_DISTANCES // (m * len(members))), 1)
    queries = sampled_queries(units, size, parameters["seed"])
    groups = cohort.groups[scope.rows]
    entries = nearest_of_units(
        drawn.vectors_of(scope), groups, units, queries, m, parameters["metric"]
    )
    labels = np.unique(cohort.labels[scope.rows])
    center = cohort.centers[scope.rows][first]
    return split_by_center(entries, units[queries], center, m, len(labels))


def _without(cohort: Cohort, members: Ints, sample: Sample, m: int) -> list[dict[str, Any]]:
    """Change of the summaries of both halves of a sample without each patient as neighbour."""
    table = cohort.unit_table[members]
    names, patients = np.unique(table["patient_id"].to_numpy(), return_inverse=True)
    labels = np.unique(table["label"].to_numpy(), return_inverse=True)[1]
    margins, met, left = margins_without(sample, labels, patients, m)
    # A patient's own queries lose nothing with it, and neither does who never met it.
    met = np.where(met == patients[sample.unit][:, None], -1, met)
    rows = []
    for half in range(2):
        part = slice(half, None, 2)
        world = np.repeat(margins[None, part], len(names) + 1, axis=0)
        query, place = np.nonzero(met[part] >= 0)
        world[1 + met[part][query, place], query] = left[part][query, place]
        changes = {
            name: _no_nan(values[1:] - values[0]) for name, values in summaries(world).items()
        }
        rows.append({"kind": "without", "half": half, "patients": names.tolist(), **changes})
    return rows


def _permuted(sample: Sample, tags: Dealt, m: int) -> dict[str, Any]:
    """Summaries of the sample's margins in each permutation."""
    worlds = [margins_under(sample, labels, m) for labels in tags.label.T]
    told = summaries(np.array(worlds).reshape(len(worlds), -1)) if worlds else {}
    return {"kind": "null", **{name: _no_nan(told.get(name, np.zeros(0))) for name in SUMMARIES}}


def _no_nan(values: Floats) -> list[float | None]:
    told: list[float | None] = values.astype(object).tolist()
    return [told[i] if known else None for i, known in enumerate(np.isfinite(values))]


def _evidence(
    cohort: Cohort, searched: Sequence[_Searched], k: int, k_grid: Sequence[int]
) -> list[pl.DataFrame]:
    """Weighted neighbours of every scope, at one temperature for each design."""
    grid = np.unique(np.asarray(k_grid))
    frames = []
    for design in dict.fromkeys(each.scope.design for each in searched):
        own = [each for each in searched if each.scope.design == design]
        tau = _temperature(cohort, own, k)
        if tau is not None:
            frames += [_scope_evidence(cohort, each, tau, grid) for each in own]
    return frames


def _temperature(cohort: Cohort, searched: Sequence[_Searched], k: int) -> float | None:
    """Median distance of the SO and OS neighbours among the k nearest; None if there are none."""
    near = []
    for each in searched:
        rows, found = each.scope.rows, each.found[:, :k]
        labels, centers = cohort.labels[rows], cohort.centers[rows]
        typed = (labels[found] == labels[:, None]) ^ (centers[found] == centers[:, None])
        near.append(each.distance[:, :k][typed & (found >= 0)])
    distances = np.concatenate(near)
    if not len(distances):
        return None
    return float(np.median(distances)) or _TAU_OF_COPIES


def _scope_evidence(cohort: Cohort, searched: _Searched, tau: float, grid: Ints) -> pl.DataFrame:
    units = cohort.units[searched.scope.rows]
    weights = np.exp(-searched.distance / tau)
    met = pair_lists(units, searched.found.astype(np.int64), grid, weights)
    present, counts = np.unique(units, return_counts=True)
    every = pl.DataFrame(
        {
            "unit": np.repeat(present, len(grid)),
            "k": np.tile(grid, len(present)),
            "n": np.repeat(counts, len(grid)),
        }
    ).with_columns(pl.col("unit", "k").cast(pl.Int32))
    return margins_frame(
        every.join(met, on=["unit", "k"], how="left")
        .join(cohort.unit_table.with_columns(pl.col("unit").cast(pl.Int32)), on="unit", how="left")
        .with_columns(
            pl.lit("evidence").alias("kind"),
            pl.lit(searched.scope.design).alias("design"),
            pl.lit(searched.scope.draw).alias("draw"),
            pl.lit(tau).alias("tau"),
        )
        .sort("k", "unit")
    )
