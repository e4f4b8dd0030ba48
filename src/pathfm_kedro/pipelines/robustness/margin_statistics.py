"""Margins of every tile, and weighted neighbours, from the one search that also gives the index.

See :mod:`pathfm_kedro.pipelines.robustness.margins` for what they are for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.margins import (
    ROBUSTNESS_MARGINS_SCHEMA,
    TAIL,
    RobustnessMargins,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    ROBUSTNESS_INDEX_SCHEMA,
    RobustnessIndex,
    best_k,
    scope_statistics,
)
from pathfm_kedro.statistics.balanced_designs import (
    Cohort,
    PermutedTags,
    Scope,
    Subsamples,
    balanced_subsamples,
    each_searched,
    permuted_tags,
)
from pathfm_kedro.statistics.neighbours import TypedNeighbours, nearest_by_type
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.resampled_tail import SUMMARIES, summaries
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.statistics.typed_distances import (
    Sample,
    margin_of,
    margins_under,
    margins_under_both,
    margins_without,
    nearest_of_units,
    sampled_queries,
    split_by_center,
)
from pathfm_kedro.statistics.unit_neighbours import neighbour_lists

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Temperature where half of the neighbours that count are copies of the query: any is as good, since
#: exp(−0 / τ) = 1.
_TAU_OF_COPIES = 0.2

#: Queries sampled in each 2 × 2 pair at least.
_FEWEST_SAMPLED = 64

#: Distances kept of the sampled queries at most: 32 MB.
_KEPT_DISTANCES = 2**23


def index_and_margin_statistics(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Statistics of the robustness index and of the margins of one encoder, from one search.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    parameters, margin_parameters
        The blocks ``robustness_index`` and ``robustness_margins``. The design ``k_design`` of the
        index chooses the k at which MaRI's temperature is set.

    Returns
    -------
    tuple
        What ``robustness_index_statistics`` gives, and
        :data:`~pathfm_kedro.pipelines.robustness.margins.ROBUSTNESS_MARGINS_SCHEMA`.
    """
    index = read_parameters(RobustnessIndex, "robustness_index", parameters)
    p = read_parameters(RobustnessMargins, "robustness_margins", margin_parameters)
    return searched_statistics(slides, tiles, embeddings, index, p)


def robustness_margins_statistics(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
    p: RobustnessMargins,
) -> pl.DataFrame:
    """Statistics of the margins alone; the arguments of :func:`index_and_margin_statistics`."""
    index = read_parameters(RobustnessIndex, "robustness_index", parameters)
    designs = tuple(d for d in index.designs if d == index.k_design or p.measures(d))
    quick = replace(index, designs=designs, n_permutations=0)
    return searched_statistics(slides, tiles, embeddings, quick, p)[1]


def searched_statistics(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    index: RobustnessIndex,
    p: RobustnessMargins,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """As :func:`index_and_margin_statistics`, of parameters that were read.

    Margins are measured in the designs that they are asked for in.
    """
    sampled = balanced_subsamples(slides, tiles, embeddings, index, index.seed)
    cohort, scopes = sampled.cohort, sampled.scopes

    def search(scope: Scope) -> TypedNeighbours:
        rows = scope.rows
        tags = cohort.groups[rows], cohort.labels[rows], cohort.centers[rows]
        depth = max(index.k_grid), max(p.m)
        return nearest_by_type(sampled.vectors_of(scope), *tags, *depth, index.distance)

    unused = [{"kind": "unused", **row} for row in sampled.unused if p.measures(row["design"])]
    counts = [to_schema(sampled.unused, ROBUSTNESS_INDEX_SCHEMA)]
    margins = [to_schema(unused, ROBUSTNESS_MARGINS_SCHEMA)]
    found = []
    sizes = Counter(scope.design for scope in scopes)
    votes, labels = (permuted_tags(cohort, scopes, q.n_permutations, q.seed) for q in (index, p))
    searches = each_searched(scopes, search)
    for (scope, typed), own, other in zip(searches, votes, labels, strict=True):
        nearest = typed.nearest
        counts.append(scope_statistics(cohort, scope, nearest.indices, own, index.k_grid))
        if not p.measures(scope.design):
            continue
        size = max(p.sampled_queries // sizes[scope.design], _FEWEST_SAMPLED)
        sample = _sample(sampled, scope, other.units, size, index.distance, p)
        margins += _scope_margins(cohort, scope, typed, sample, other, index.distance, p)
        distance = nearest.distance(index.distance)
        found.append(_Weighted(scope, nearest.indices.astype(np.int32), distance))
    table = pl.concat([*counts[1:], counts[0]])
    k = best_k(table, index.k_design)
    if k is not None:
        margins += _weighted_neighbours(cohort, found, k, index.k_grid)
    return table, pl.concat([*margins[1:], margins[0]])


def _scope_margins(
    cohort: Cohort,
    scope: Scope,
    typed: TypedNeighbours,
    sample: Sample,
    tags: PermutedTags,
    distance: str,
    p: RobustnessMargins,
) -> list[pl.DataFrame]:
    """Rows of the kinds margins, without_patient and permuted_… of one scope."""
    near, far = (found.distance(distance) for found in (typed.same_label, typed.same_center))
    frames = []
    for m in p.m:
        margins = margin_of(near[:, :m].mean(axis=1), far[:, :m].mean(axis=1))
        rows = _without_patients(cohort, tags.units, sample, m)
        if m == p.m[0]:
            rows += _permuted(sample, tags, m)
        frames += [
            frame.with_columns(
                design=pl.lit(scope.design), scope=pl.lit(scope.number, pl.Int32()), m=pl.lit(m)
            )
            for frame in (
                _unit_margins(cohort, cohort.units[scope.rows], margins),
                to_schema(rows, ROBUSTNESS_MARGINS_SCHEMA),
            )
        ]
    return [to_schema(frame, ROBUSTNESS_MARGINS_SCHEMA) for frame in frames]


def _unit_margins(cohort: Cohort, units: Ints, margins: Floats) -> pl.DataFrame:
    table = pl.DataFrame({"unit": units, "margin": margins}, nan_to_null=True)
    lists = (
        table.sort("unit", "margin")
        .group_by("unit", maintain_order=True)
        .agg(n=pl.len(), margins=pl.col("margin").drop_nulls())
    )
    return lists.join(cohort.unit_table, on="unit", how="left").with_columns(kind=pl.lit("margins"))


def _sample(
    sampled: Subsamples, scope: Scope, members: Ints, size: int, distance: str, p: RobustnessMargins
) -> Sample:
    """Sampled queries of a scope with the nearest tiles of every unit (codes: rows of members)."""
    cohort, rows, m = sampled.cohort, scope.rows, max(p.m)
    units = np.searchsorted(members, cohort.units[rows])
    first = np.unique(units, return_index=True)[1]
    size = max(min(size, _KEPT_DISTANCES // (m * len(members))), 1)
    queries = sampled_queries(units, size, p.seed)
    vectors, groups = sampled.vectors_of(scope), cohort.groups[rows]
    entries = nearest_of_units(vectors, groups, units, queries, m, distance)
    label, center = cohort.labels[rows][first], cohort.centers[rows][first]
    return split_by_center(entries, units[queries], label, center, m)


def _without_patients(
    cohort: Cohort, members: Ints, sample: Sample, m: int
) -> list[dict[str, Any]]:
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
        # The first row is the sample as it is, the others lack one patient each.
        lacking = np.repeat(margins[None, part], len(names) + 1, axis=0)
        query, place = np.nonzero(met[part] >= 0)
        lacking[1 + met[part][query, place], query] = left[part][query, place]
        changes = {
            name: _without_nan(values[1:] - values[0])
            for name, values in summaries(lacking, TAIL).items()
        }
        rows.append(
            {"kind": "without_patient", "half": half, "patients": names.tolist(), **changes}
        )
    return rows


def _permuted(sample: Sample, tags: PermutedTags, m: int) -> list[dict[str, Any]]:
    """Summaries of the sample's margins in each permutation of both kinds."""
    together = tags.label_together, tags.center_together
    margins = {
        "permuted_together": margins_under_both(sample, *together, m),
        "permuted_labels": margins_under(sample, tags.label, m),
    }
    rows, none = [], np.zeros(0)
    for kind, each in margins.items():
        found = summaries(each, TAIL) if len(each) else {}
        listed = {name: _without_nan(found.get(name, none)) for name in SUMMARIES}
        rows.append({"kind": kind, **listed})
    return rows


def _without_nan(values: Floats) -> list[float | None]:
    listed: list[float | None] = values.astype(object).tolist()
    return [listed[i] if known else None for i, known in enumerate(np.isfinite(values))]


@dataclass(frozen=True)
class _Weighted:
    """Neighbours of a scope's tiles, and the distances that weigh them; [n, k]."""

    scope: Scope
    found: NDArray[np.int32]
    distance: Floats


def _weighted_neighbours(
    cohort: Cohort, searched: Sequence[_Weighted], k: int, k_grid: Sequence[int]
) -> list[pl.DataFrame]:
    """Weighted neighbours of every scope, at one temperature for each design."""
    frames = []
    for design in dict.fromkeys(each.scope.design for each in searched):
        own = [each for each in searched if each.scope.design == design]
        tau = _temperature(cohort, own, k)
        if tau is not None:
            frames += [_of_scope(cohort, each, tau, k, k_grid) for each in own]
    return frames


def _temperature(cohort: Cohort, searched: Sequence[_Weighted], k: int) -> float | None:
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


def _of_scope(
    cohort: Cohort, searched: _Weighted, tau: float, k: int, k_grid: Sequence[int]
) -> pl.DataFrame:
    units, found = cohort.units[searched.scope.rows], searched.found.astype(np.int64)
    lists = neighbour_lists(units, found, np.array(k_grid), np.exp(-searched.distance / tau))
    return to_schema(
        lists.join(cohort.unit_table, on="unit", how="left", maintain_order="left").with_columns(
            kind=pl.lit("weighted_neighbours"),
            design=pl.lit(searched.scope.design),
            scope=pl.lit(searched.scope.number),
            tau=pl.lit(tau),
            own_k=pl.lit(k),
        ),
        ROBUSTNESS_MARGINS_SCHEMA,
    )
