"""Neighbours of every tile, reduced to counts per query unit and neighbour unit.

See :mod:`pathfm_kedro.pipelines.robustness.robustness_index` for what the counts are for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

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
from pathfm_kedro.statistics.bootstrap import sum_by_patient
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Types of a neighbour, in the order of the arrays below: label first, then center.
TYPES = ("ss", "so", "os", "oo")
SS, SO, OS, OO = range(4)


#: Schema of the counts: one row per design, draw, k and unit.
#:
#: - draw: balanced draw (design ``all``) or number of the 2 × 2 pair (``paired_2x2``);
#: - unit: code of (patient_id, label, center), the same in every design and draw;
#: - n: queries (tiles) of the unit; supported: those with SO or OS among ranks ≤ k;
#: - hits_label, hits_center: queries whose k neighbours vote for the right label, center;
#: - expected_ss … expected_oo: neighbours of each type at ranks ≤ k if every eligible tile were
#:   equally likely to be one: the design null;
#: - neighbour_unit, neighbours: units met at ranks above the previous k of the grid and ≤ k, and
#:   how often (summing the rows up to k gives the counts at k);
#: - null_label, null_center: balanced accuracy of the vote in each permutation; in one row for each
#:   design, draw and k, whose unit is null;
#: - reason: why a design (unit, draw null) or a cell of it (label and center given) is not used.
COUNTS_SCHEMA: dict[str, pl.DataType] = {
    "design": pl.String(),
    "draw": pl.Int32(),
    "k": pl.Int32(),
    "unit": pl.Int32(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "n": pl.Int64(),
    "supported": pl.Int64(),
    "hits_label": pl.Int64(),
    "hits_center": pl.Int64(),
    **{f"expected_{kind}": pl.Float64() for kind in TYPES},
    "neighbour_unit": pl.List(pl.Int32()),
    "neighbours": pl.List(pl.Int64()),
    "null_label": pl.List(pl.Float64()),
    "null_center": pl.List(pl.Float64()),
    "reason": pl.String(),
}


#: Scores of votes (query × class × permutation) held at once: 2 MB.
_VOTE_SCORES = 2**18

#: Up to this rank a sum of 1 + 2⁻ʳ has no more than the 53 bits of float64.
_EXACT_RANKS = 46


def count_neighbours(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Neighbours of each unit (patient, label, center) by unit and k, in both designs.

    Design ``all``: the same number of tiles from every class × center cell, spread over the cell's
    patients as evenly as they allow, in several seeded draws (one, if every draw is the same).
    Design ``paired_2x2``: every two labels × two centers whose four cells are filled, balanced in
    the same manner. Neighbours are exact and exclude the query's patient.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    parameters
        ``robustness_index``: k_grid, designs, metric, exclude, draws, max_tiles,
        max_tiles_per_pair, max_pairs, min_patients_per_cell, min_tiles_per_cell, n_permutations,
        seed.

    Returns
    -------
    DataFrame
        Counts, see :data:`COUNTS_SCHEMA`.
    """
    drawn = draw_subsamples(slides, tiles, embeddings, parameters)
    frames = [
        frame
        for scope, found, tags in _searched(drawn, parameters)
        for frame in scope_counts(drawn, scope, found, parameters["k_grid"], tags)
    ]
    return pl.concat([*frames, counts_frame(drawn.unused)])


def scope_counts(
    drawn: Subsamples, scope: Scope, found: Ints, k_grid: Sequence[int], tags: Dealt
) -> list[pl.DataFrame]:
    """Counts of one scope and the nulls of its votes, from [n, k] neighbours as positions."""
    if drawn.cohort is None:
        return []
    return [
        _scope_counts(drawn.cohort, scope, found, k_grid),
        _scope_nulls(scope, drawn.cohort.units[scope.rows], found, k_grid, tags),
    ]


def _searched(
    drawn: Subsamples, parameters: Mapping[str, Any]
) -> Iterator[tuple[Scope, Ints, Dealt]]:
    """Neighbours of each scope's tiles; the search is not repeated for the same tiles."""
    if drawn.cohort is None:
        return
    previous: tuple[Ints, Ints] | None = None
    dealt = deal_tags(drawn.cohort, drawn.scopes, parameters["n_permutations"], parameters["seed"])
    for scope, tags in zip(drawn.scopes, dealt, strict=True):
        found = (
            previous[1]
            if previous is not None and np.array_equal(previous[0], scope.rows)
            else _found(drawn.cohort, scope, drawn.vectors_of(scope), parameters)
        )
        previous = (scope.rows, found)
        yield scope, found, tags


def _found(
    cohort: Cohort, scope: Scope, vectors: NDArray[np.float32], parameters: Mapping[str, Any]
) -> Ints:
    """[n, k] neighbours as positions within the scope."""
    groups = cohort.groups[scope.rows]
    k = max(parameters["k_grid"])
    return nearest_indices(vectors, groups, k, metric=parameters["metric"])


def _scope_counts(cohort: Cohort, scope: Scope, found: Ints, k_grid: Sequence[int]) -> pl.DataFrame:
    grid = np.unique(np.asarray(k_grid))
    units = cohort.units[scope.rows]
    labels, centers = cohort.labels[scope.rows], cohort.centers[scope.rows]
    there = found >= 0
    same_label = there & (labels[found] == labels[:, None])
    same_center = there & (centers[found] == centers[:, None])
    typed = same_label ^ same_center
    per_query = {
        "supported": np.logical_or.accumulate(typed, axis=1)[:, grid - 1],
        "hits_label": _votes(labels, found, grid) == labels[:, None],
        "hits_center": _votes(centers, found, grid) == centers[:, None],
    }
    present, where = np.unique(units, return_inverse=True)
    sums = {
        name: sum_by_patient(values, where, len(present)).astype(np.int64).ravel()
        for name, values in per_query.items()
    }
    expected = sum_by_patient(_expected(cohort, scope, grid), where, len(present))
    frame = pl.DataFrame(
        {
            "unit": np.repeat(present, len(grid)),
            "k": np.tile(grid, len(present)),
            "n": np.repeat(np.bincount(where), len(grid)),
            **sums,
            **{f"expected_{kind}": expected[:, :, i].ravel() for i, kind in enumerate(TYPES)},
        }
    ).with_columns(pl.col("unit", "k").cast(pl.Int32))
    return counts_frame(
        frame.join(pair_lists(units, found, grid), on=["unit", "k"], how="left")
        .join(cohort.unit_table.with_columns(pl.col("unit").cast(pl.Int32)), on="unit", how="left")
        .with_columns(
            pl.lit(scope.design).alias("design"),
            pl.lit(scope.draw).alias("draw"),
            *(pl.lit(None).alias(name) for name in ("null_label", "null_center", "reason")),
        )
        .sort("k", "unit")
    )


def _votes(classes: Ints, found: Ints, grid: Ints) -> Ints:
    """[n, grid] class with most of the k neighbours; a tie goes to the class met first."""
    n, k = found.shape
    n_classes = int(classes.max()) + 1
    met = np.where(found >= 0, classes[found], n_classes)
    cells = met + np.arange(n)[:, None] * (n_classes + 1)
    nearest = np.full(n * (n_classes + 1), k, dtype=np.int64)
    # Ranks are written from the last to the first, so that the first stays.
    nearest[cells[:, ::-1].T.ravel()] = np.repeat(np.arange(k)[::-1], n)
    late = nearest.reshape(n, -1)[:, :n_classes] / (k + 1)
    votes = np.empty((n, len(grid)), dtype=np.int64)
    counts = np.zeros((n, n_classes + 1))
    for i, (low, high) in enumerate(itertools.pairwise([0, *grid])):
        band = np.bincount(cells[:, low:high].ravel(), minlength=counts.size)
        counts += band.reshape(counts.shape)
        votes[:, i] = np.where(
            counts[:, :n_classes].any(axis=1), (counts[:, :n_classes] - late).argmax(axis=1), -1
        )
    return votes


def _scope_nulls(
    scope: Scope, own: Ints, found: Ints, k_grid: Sequence[int], dealt: Dealt
) -> pl.DataFrame:
    """Balanced accuracy of the vote for dealt labels and centers: one row for each k."""
    grid = np.unique(np.asarray(k_grid))
    units = np.searchsorted(dealt.units, own)
    label, center = (
        _dealt_accuracies(units, found, grid, tags) for tags in (dealt.label, dealt.center)
    )
    return counts_frame(
        [
            {
                "design": scope.design,
                "draw": scope.draw,
                "k": int(k),
                "null_label": of_label,
                "null_center": of_center,
            }
            for k, of_label, of_center in zip(grid, label.tolist(), center.tolist(), strict=True)
        ]
    )


def _dealt_accuracies(units: Ints, found: Ints, grid: Ints, tags: Ints) -> Floats:
    """[k, permutations] balanced accuracy of the neighbours' vote under each dealing.

    Parameters
    ----------
    units
        [n] unit of each tile, as row of `tags`.
    found
        [n, k] neighbours as positions; −1 where there is none.
    grid
        Numbers of neighbours, ascending.
    tags
        [units, permutations] class of each unit.
    """
    n_units, n_permutations = tags.shape
    if not n_permutations:
        return np.zeros((len(grid), 0))
    classes, codes = np.unique(tags, return_inverse=True)
    is_member = codes[:, None, :] == np.arange(len(classes))[:, None]
    member = is_member.reshape(n_units, -1).astype(np.float64)
    asked = np.einsum("u,ucd->cd", np.bincount(units, minlength=n_units), is_member)
    right = np.zeros((len(grid), *asked.shape), dtype=np.int64)
    # A few queries under all permutations at once: their scores stay in the processor's cache.
    step = max(_VOTE_SCORES // (len(classes) * n_permutations), 1)
    for start in range(0, len(units), step):
        part = slice(start, start + step)
        own = is_member[units[part]]
        scores = np.zeros(own.shape)
        for i, ballots in enumerate(_ballots(units, found[part], grid, n_units)):
            scores += (ballots @ member).reshape(own.shape)
            best = scores.max(axis=1, keepdims=True)
            right[i] += np.count_nonzero(own & (scores == best) & (best > 0), axis=0)
    recalls = right / np.maximum(asked, 1)
    return cast(Floats, recalls.sum(axis=1) / (asked > 0).sum(axis=0))


def _ballots(units: Ints, found: Ints, grid: Ints, n_units: int) -> list[Any]:
    """Sparse [n, units] votes that each unit's tiles give a query, for each band of ranks.

    The neighbour at rank r counts 1 + 2⁻ʳ. Of two classes with equally many votes the one that is
    met first has then more, as in :func:`_votes`, since 2⁻ʳ exceeds the sum of all that follow.
    float64 holds such sums exactly up to rank 46; later ranks count 1.
    """
    from scipy.sparse import csr_array

    n, k = found.shape
    rank = np.arange(1, k + 1)
    weight = np.where(rank <= _EXACT_RANKS, 1 + 0.5**rank, 1.0)
    ballots = []
    for low, high in itertools.pairwise([0, *grid]):
        query, place = np.nonzero(found[:, low:high] >= 0)
        met = units[found[query, low + place]]
        ballots.append(csr_array((weight[low + place], (query, met)), shape=(n, n_units)))
    return ballots


def _expected(cohort: Cohort, scope: Scope, grid: Ints) -> Floats:
    """[n, grid, type] neighbours of each type if every eligible tile were equally likely."""
    labels, centers = cohort.labels[scope.rows], cohort.centers[scope.rows]
    groups = np.unique(cohort.groups[scope.rows], return_inverse=True)[1]
    label, center, both, every = (
        _eligible(groups, key) for key in (labels, centers, cohort.cells[scope.rows], 0 * labels)
    )
    shares = np.stack([both, label - both, center - both, every - label - center + both], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.nan_to_num(shares / every[:, None])
    met = np.minimum(grid, every[:, None])
    return cast(Floats, met[:, :, None] * shares[:, None, :])


def _eligible(groups: Ints, key: Ints) -> Ints:
    """Rows with the query's key that are not of its group."""
    _, own, size = np.unique(
        groups * (int(key.max()) + 1) + key, return_inverse=True, return_counts=True
    )
    return cast(Ints, np.bincount(key)[key] - size[own])


def pair_lists(units: Ints, found: Ints, grid: Ints, weights: Floats | None = None) -> pl.DataFrame:
    """Units met by each unit in each band of ranks, as lists.

    Parameters
    ----------
    units
        [n] unit of each tile.
    found
        [n, k] neighbours as positions; −1 where there is none.
    grid
        Last rank of each band, ascending.
    weights
        [n, k] what each neighbour counts; 1 if not given.

    Returns
    -------
    DataFrame
        Columns k, unit, neighbour_unit, neighbours (the sums of weights).
    """
    band = np.searchsorted(grid, np.arange(1, found.shape[1] + 1))
    base = int(units.max()) + 1
    there = found >= 0
    key = (band * base + units[:, None]) * base + units[found]
    if weights is None:
        codes, sums = np.unique(key[there], return_counts=True)
    else:
        codes, where = np.unique(key[there], return_inverse=True)
        sums = np.bincount(where, weights[there])
    rest, neighbour = np.divmod(codes, base)
    which, query = np.divmod(rest, base)
    return (
        pl.DataFrame(
            {"k": grid[which], "unit": query, "neighbour_unit": neighbour, "neighbours": sums}
        )
        .with_columns(pl.col("k", "unit", "neighbour_unit").cast(pl.Int32))
        .group_by("k", "unit", maintain_order=True)
        .agg("neighbour_unit", "neighbours")
    )


def counts_frame(rows: pl.DataFrame | list[dict[str, Any]]) -> pl.DataFrame:
    """Rows in the order and types of the counts' schema."""
    if isinstance(rows, pl.DataFrame):
        return rows.select(pl.col(name).cast(kind) for name, kind in COUNTS_SCHEMA.items())
    return pl.DataFrame(rows, schema=COUNTS_SCHEMA)
