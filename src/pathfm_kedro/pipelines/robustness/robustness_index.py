r"""Robustness index: whether neighbours share biology rather than the center.

Each neighbour of a query is typed by biology × center: SS (same label, same center), SO (same
label, other center), OS (other label, same center), OO. Over all queries and ranks ≤ k,

- ``ri = SO / (SO + OS)`` (Kömen et al. 2025, PathoROB),
- ``ri_ratio = (SS + SO) / (SS + OS)`` (de Jong et al. 2025).

The work is split in two. :func:`count_neighbours` reads the embeddings once and leaves counts per
query unit and neighbour unit, a *unit* being the tiles of one patient with one label from one
center (usually: a patient). :func:`choose_k` and :func:`robustness_index` work on these counts.

The interval
------------
A patient counts as query and as neighbour: patients are resampled in both roles, and the second-
order excess of that is taken off, see :mod:`pathfm_kedro.statistics.pair_bootstrap`. Tiles of the
same patient neighbour each other only with ``exclude: slide`` or ``none``.

It is the interval for another cohort of such patients, from whichever centers they come. Labels
permuted within fixed centers spread less, so that the interval is wider than that null's.

The null of a vote
------------------
The query's own patient is no candidate, so that its label is a little rarer among the candidates
than the others, and a majority of many neighbours makes more of a small difference. Chance is hence
not 1 / number of classes: without knowledge, 4 labels at 3 centers with 4 patients each give a
majority of 31 about 0.19. :func:`count_neighbours` lets the neighbours vote again with labels
permuted over the units of each center (centers: over those of each label).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    percentile_interval,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.permutation import permuted_within
from pathfm_kedro.statistics.tables import Embeddings, tile_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "robustness_index"

#: Types of a neighbour, in the order of the arrays below: label first, then center.
TYPES = ("ss", "so", "os", "oo")
SS, SO, OS, OO = range(4)

#: Figures measured at every design and k.
METRICS = (
    "ri",
    "ri_ratio",
    "ri_minus_null",
    "ri_design_null",
    "support",
    "knn_accuracy_label",
    "knn_accuracy_center",
)

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

#: Beyond this many patients a dense patient × patient matrix costs more than it saves.
_DENSE_PATIENTS = 2000

#: Pairs of units compared at once under all permutations: they stay in the processor's cache.
_PERMUTED_PAIRS = 256

#: Scores of votes (query × class × permutation) held at once: 2 MB.
_VOTE_SCORES = 2**18

#: Up to this rank a sum of 1 + 2⁻ʳ has no more than the 53 bits of float64.
_EXACT_RANKS = 46


@dataclass(frozen=True)
class _Cohort:
    """Tiles that can ask or answer, as codes; all arrays are [n] and follow the embeddings."""

    patients: Ints
    labels: Ints
    centers: Ints
    groups: Ints
    units: Ints
    unit_table: pl.DataFrame

    @property
    def n_labels(self) -> int:
        return int(self.labels.max(initial=-1)) + 1

    @property
    def n_centers(self) -> int:
        return int(self.centers.max(initial=-1)) + 1

    @property
    def cells(self) -> Ints:
        return self.labels * self.n_centers + self.centers


@dataclass(frozen=True)
class _Scope:
    """Tiles among which neighbours are sought: one balanced draw, or one 2 × 2 pair."""

    design: str
    draw: int
    rows: Ints


@dataclass(frozen=True)
class _Dealt:
    """Labels and centers of a scope's units, dealt anew over them; codes, [units, permutations]."""

    units: Ints
    label: Ints
    center: Ints


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
    table = tile_rows(slides, tiles, embeddings.slide_ids).with_columns(
        pl.int_range(pl.len()).over("slide_id").alias("place"),
        pl.len().over("slide_id").alias("height"),
    )
    table = table.drop_nulls(["patient_id", "label", "center"])
    if table.is_empty():
        reason = "no embedded tile has a patient, a label and a center: complete the manifest"
        return _counts_frame([_unused(design, reason) for design in parameters["designs"]])
    cohort = _cohort(table, parameters["exclude"])
    scopes, unused = _scopes(cohort, parameters)
    if not scopes:
        return _counts_frame(unused)
    wanted = np.unique(np.concatenate([scope.rows for scope in scopes]))
    vectors = _vectors(embeddings, table[wanted])
    frames: list[pl.DataFrame] = []
    previous: tuple[Ints, Ints] | None = None
    dealt = _dealt(cohort, scopes, parameters["n_permutations"], parameters["seed"])
    for scope, tags in zip(scopes, dealt, strict=True):
        found = (
            previous[1]
            if previous is not None and np.array_equal(previous[0], scope.rows)
            else _found(cohort, scope, vectors[np.searchsorted(wanted, scope.rows)], parameters)
        )
        previous = (scope.rows, found)
        frames.append(_scope_counts(cohort, scope, found, parameters["k_grid"]))
        frames.append(_scope_nulls(cohort, scope, found, parameters["k_grid"], tags))
    return pl.concat([*frames, _counts_frame(unused)])


def _cohort(table: pl.DataFrame, exclude: str) -> _Cohort:
    unit_key = ["patient_id", "label", "center"]
    units = table.select(unit_key).unique().sort(unit_key).with_row_index("unit")
    codes = table.join(units, on=unit_key, how="left", maintain_order="left")["unit"]
    groups = {"patient": table["patient_id"], "slide": table["slide_id"], "none": table["tile_id"]}
    if exclude not in groups:
        raise ValueError(f"exclude is {exclude!r}: use one of {', '.join(groups)}")
    return _Cohort(
        patients=_codes(table["patient_id"]),
        labels=_codes(table["label"]),
        centers=_codes(table["center"]),
        groups=_codes(groups[exclude]),
        units=codes.to_numpy().astype(np.int64),
        unit_table=units,
    )


def _codes(names: pl.Series) -> Ints:
    """Names as integers 0, 1, … in sorted order."""
    return names.rank("dense").to_numpy().astype(np.int64) - 1


def _vectors(embeddings: Embeddings, rows: pl.DataFrame) -> NDArray[np.float32]:
    """Vectors of the given rows of the table.

    Slides are read one at a time: the stack of a whole cohort may not fit in memory.
    """
    chosen = rows.group_by("slide_id", "height", maintain_order=True).agg("place")
    parts = []
    for slide_id, height, places in chosen.iter_rows():
        shard = embeddings.stack([slide_id])
        if len(shard) != height:
            raise ValueError(
                f"slide {slide_id!r} has {height} tiles and {len(shard)} vectors: embed it again"
            )
        parts.append(shard[places])
    return np.concatenate(parts)


def _scopes(
    cohort: _Cohort, parameters: Mapping[str, Any]
) -> tuple[list[_Scope], list[dict[str, Any]]]:
    """Scopes of every design asked for, and why designs and cells are not used."""
    usable, unused_cells = _usable_cells(cohort, parameters)
    scopes: list[_Scope] = []
    unused: list[dict[str, Any]] = []
    builders = {"all": _balanced_draws, "paired_2x2": _pairs}
    for design in parameters["designs"]:
        if design not in builders:
            raise ValueError(f"unknown design {design!r}: use one of {', '.join(builders)}")
        reason = _obstacle(cohort, usable, design)
        if reason:
            unused.append(_unused(design, reason))
            continue
        scopes += builders[design](cohort, usable, parameters)
        unused += [_unused(design, why, label, center) for label, center, why in unused_cells]
    return scopes, unused


def _usable_cells(
    cohort: _Cohort, parameters: Mapping[str, Any]
) -> tuple[NDArray[np.bool_], list[tuple[str, str, str]]]:
    """[labels, centers] cells with enough patients and tiles, and the others with the reason."""
    shape = (cohort.n_labels, cohort.n_centers)
    size = shape[0] * shape[1]
    tiles = np.bincount(cohort.cells, minlength=size).reshape(shape)
    cell_of_patient = np.unique(np.stack([cohort.cells, cohort.patients]), axis=1)[0]
    patients = np.bincount(cell_of_patient, minlength=size).reshape(shape)
    fewest = (parameters["min_patients_per_cell"], parameters["min_tiles_per_cell"])
    usable = (patients >= max(fewest[0], 1)) & (tiles >= max(fewest[1], 1))
    labels = cohort.unit_table["label"].unique().sort()
    centers = cohort.unit_table["center"].unique().sort()
    left_out = [
        (
            labels[int(i)],
            centers[int(j)],
            f"{patients[i, j]} patients with {tiles[i, j]} tiles: a cell needs {fewest[0]} "
            f"patients and {fewest[1]} tiles",
        )
        for i, j in np.argwhere(~usable & (tiles > 0))
    ]
    return usable, left_out


def _obstacle(cohort: _Cohort, usable: NDArray[np.bool_], design: str) -> str:
    """Why a design cannot be measured, with the mend; empty if it can."""
    if cohort.n_centers < 2:
        return "one center: add slides from a second center with the same labels"
    if cohort.n_labels < 2:
        return "one label: add slides of a second label from the same centers"
    per_label, per_center = usable.sum(axis=1), usable.sum(axis=0)
    if not usable.any():
        return "no label × center cell has enough patients and tiles: see min_*_per_cell"
    if per_label.max() < 2:
        return (
            "label and center are confounded: no label stands at two centers with enough patients "
            "and tiles, so no neighbour can share biology across centers"
        )
    if per_center.max() < 2:
        return (
            "no center has two labels with enough patients and tiles, so no neighbour can share "
            "the center across labels: add labels to a center"
        )
    if design == "paired_2x2" and next(_complete_pairs(usable), None) is None:
        return "no two labels stand at the same two centers with enough patients and tiles"
    return ""


def _complete_pairs(usable: NDArray[np.bool_]) -> Iterator[Ints]:
    """Cells of every 2 labels × 2 centers that are all usable."""
    n_centers = usable.shape[1]
    for a, b in itertools.combinations(range(usable.shape[0]), 2):
        shared = np.flatnonzero(usable[a] & usable[b])
        for c, d in itertools.combinations(shared, 2):
            yield np.array(
                [a * n_centers + c, a * n_centers + d, b * n_centers + c, b * n_centers + d]
            )


def _balanced_draws(
    cohort: _Cohort, usable: NDArray[np.bool_], parameters: Mapping[str, Any]
) -> list[_Scope]:
    cells = np.flatnonzero(usable)
    first = _balanced(cohort, cells, parameters["max_tiles"], parameters["seed"])
    everything = int(np.isin(cohort.cells, cells).sum())
    draws = 1 if len(first) == everything else int(parameters["draws"])
    rest = (
        _balanced(cohort, cells, parameters["max_tiles"], [parameters["seed"], draw])
        for draw in range(1, draws)
    )
    return [_Scope("all", draw, rows) for draw, rows in enumerate([first, *rest])]


def _pairs(
    cohort: _Cohort, usable: NDArray[np.bool_], parameters: Mapping[str, Any]
) -> list[_Scope]:
    pairs = list(_complete_pairs(usable))
    limit = parameters["max_pairs"]
    if limit is not None and len(pairs) > limit:
        generator = np.random.default_rng(parameters["seed"])
        kept = np.sort(generator.choice(len(pairs), limit, replace=False))
        pairs = [pairs[i] for i in kept]
    most = parameters["max_tiles_per_pair"]
    return [
        _Scope("paired_2x2", i, _balanced(cohort, cells, most, [parameters["seed"], 0, i]))
        for i, cells in enumerate(pairs)
    ]


def _balanced(cohort: _Cohort, cells: Ints, most: int, seed: int | Sequence[int]) -> Ints:
    """Rows with as many tiles from each cell, dealt round its patients; sorted.

    Parameters
    ----------
    cells
        Codes of the cells to fill.
    most
        Tiles in all, at most.
    seed
        Seed of the draw.
    """
    rows = np.flatnonzero(np.isin(cohort.cells, cells))
    cell, patient = cohort.cells[rows], cohort.patients[rows]
    luck, patient_luck = np.random.default_rng(seed).random((2, len(rows)))
    turn = _rank_within(np.stack([cell, patient]), luck)
    place = _rank_within(cell[None, :], turn + patient_luck)
    size = min(int(np.bincount(cell)[cells].min()), max(most // len(cells), 1))
    return rows[place < size]


def _rank_within(keys: Ints, values: Floats) -> Ints:
    """Rank of each value among those with the same keys, from 0."""
    order = np.lexsort((values, *keys))
    new = np.ones(len(values), dtype=bool)
    new[1:] = (np.diff(keys[:, order], axis=1) != 0).any(axis=0)
    starts = np.flatnonzero(new)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(starts, np.diff([*starts, len(values)]))
    return ranks


def _found(
    cohort: _Cohort, scope: _Scope, vectors: NDArray[np.float32], parameters: Mapping[str, Any]
) -> Ints:
    """[n, k] neighbours as positions within the scope."""
    groups = cohort.groups[scope.rows]
    k = max(parameters["k_grid"])
    return nearest_indices(vectors, groups, k, metric=parameters["metric"])


def _scope_counts(
    cohort: _Cohort, scope: _Scope, found: Ints, k_grid: Sequence[int]
) -> pl.DataFrame:
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
    return _counts_frame(
        frame.join(_pair_lists(units, found, grid), on=["unit", "k"], how="left")
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


def _dealt(
    cohort: _Cohort, scopes: Sequence[_Scope], permutations: int, seed: int
) -> Iterator[_Dealt]:
    """Labels dealt anew within centers and centers within labels, for each scope.

    The draws of design ``all`` share one dealing; in the pairs a unit keeps its place in the order
    of all its pairs, so that they depend on each other as the measured ones do.
    """
    first = np.unique(cohort.units, return_index=True)[1]
    labels, centers = cohort.labels[first], cohort.centers[first]
    members = [np.unique(cohort.units[scope.rows]) for scope in scopes]
    for design, group in itertools.groupby(range(len(scopes)), lambda i: scopes[i].design):
        chosen = list(group)
        stratum = [0 if design == "all" else i for i in chosen]
        keys = [part * len(first) + members[i] for part, i in zip(stratum, chosen, strict=True)]
        nodes = np.unique(np.concatenate(keys))
        part, unit = np.divmod(nodes, len(first))
        label, center = (
            permuted_within(
                own[unit], part * (int(other.max()) + 1) + other[unit], permutations, seed, unit
            )
            for own, other in ((labels, centers), (centers, labels))
        )
        for key, i in zip(keys, chosen, strict=True):
            place = np.searchsorted(nodes, key)
            yield _Dealt(members[i], label[place], center[place])


def _scope_nulls(
    cohort: _Cohort, scope: _Scope, found: Ints, k_grid: Sequence[int], dealt: _Dealt
) -> pl.DataFrame:
    """Balanced accuracy of the vote for dealt labels and centers: one row for each k."""
    grid = np.unique(np.asarray(k_grid))
    units = np.searchsorted(dealt.units, cohort.units[scope.rows])
    label, center = (
        _dealt_accuracies(units, found, grid, tags) for tags in (dealt.label, dealt.center)
    )
    return _counts_frame(
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


def _expected(cohort: _Cohort, scope: _Scope, grid: Ints) -> Floats:
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


def _pair_lists(units: Ints, found: Ints, grid: Ints) -> pl.DataFrame:
    """Units met by each unit in each band of ranks, as lists."""
    band = np.searchsorted(grid, np.arange(1, found.shape[1] + 1))
    base = int(units.max()) + 1
    there = found >= 0
    key = (band * base + units[:, None]) * base + units[found]
    codes, counts = np.unique(key[there], return_counts=True)
    rest, neighbour = np.divmod(codes, base)
    which, query = np.divmod(rest, base)
    return (
        pl.DataFrame(
            {"k": grid[which], "unit": query, "neighbour_unit": neighbour, "neighbours": counts}
        )
        .with_columns(pl.col("k", "unit", "neighbour_unit").cast(pl.Int32))
        .group_by("k", "unit", maintain_order=True)
        .agg("neighbour_unit", "neighbours")
    )


def _unused(
    design: str, reason: str, label: str | None = None, center: str | None = None
) -> dict[str, Any]:
    return {"design": design, "reason": reason, "label": label, "center": center}


def _counts_frame(rows: pl.DataFrame | list[dict[str, Any]]) -> pl.DataFrame:
    """Rows in the order and types of the counts' schema."""
    if isinstance(rows, pl.DataFrame):
        return rows.select(pl.col(name).cast(kind) for name, kind in COUNTS_SCHEMA.items())
    return pl.DataFrame(rows, schema=COUNTS_SCHEMA)


@dataclass(frozen=True)
class _Pairs:
    """Who is whose neighbour how often, in one design; arrays are [m] unless said otherwise."""

    band: Ints
    query: Ints
    neighbour: Ints
    count: Floats


@dataclass(frozen=True)
class _Design:
    """Counts of one design as arrays.

    A *node* is a unit in one scope within which labels may be exchanged: a unit, and in
    ``paired_2x2`` a unit in one pair. unit … center are codes per node; pairs are of nodes.
    """

    rows: pl.DataFrame
    k_grid: tuple[int, ...]
    n: int
    n_patients: int
    unit: Ints
    scope: Ints
    patient: Ints
    label: Ints
    center: Ints
    pairs: _Pairs
    vote_nulls: Mapping[tuple[str, int], Null]


@dataclass(frozen=True)
class _Figure:
    estimate: Estimate
    null: Null
    reason: str | None = None


def choose_k(
    parameters: Mapping[str, Any],
    *,
    controls: Sequence[str] = (),
    **counts_by_encoder: pl.DataFrame,
) -> dict[str, Any]:
    """Number of neighbours whose vote names the label best, per encoder and for the cohort.

    Per encoder the first maximum of balanced accuracy over the grid, in the design named by
    ``k_design``; for the cohort the lower median over encoders, so that it is on the grid.

    Parameters
    ----------
    parameters
        ``robustness_index``: k_design.
    controls
        Encoders that have no say in the cohort's k, unless there are no others.
    counts_by_encoder
        Output of :func:`count_neighbours` per encoder.

    Returns
    -------
    dict
        ``{"k": int or None, "per_encoder": {encoder: int}}``; encoders whose design cannot be
        measured are missing.
    """
    per_encoder: dict[str, int] = {}
    for encoder in sorted(counts_by_encoder):
        rows = _used(counts_by_encoder[encoder], parameters["k_design"])
        if rows.height:
            accuracy = _accuracies(rows, "label", np.ones((1, rows["patient_id"].n_unique())))
            per_encoder[encoder] = int(rows["k"].unique().sort()[int(accuracy[:, 0].argmax())])
    voters = [k for name, k in per_encoder.items() if name not in controls]
    voters = voters or list(per_encoder.values())
    return {"k": median_low(voters) if voters else None, "per_encoder": per_encoder}


def robustness_index(
    counts: pl.DataFrame,
    chosen_k: Mapping[str, Any],
    parameters: Mapping[str, Any],
    encoder: str,
) -> pl.DataFrame:
    """Robustness index of one encoder with interval, design null and permutation null.

    Parameters
    ----------
    counts
        Output of :func:`count_neighbours`.
    chosen_k
        Output of :func:`choose_k`.
    parameters
        ``robustness_index``: designs, bootstrap_draws, n_permutations, seed, thresholds.
    encoder
        Name of the encoder.

    Returns
    -------
    DataFrame
        Measurements of :data:`METRICS` per design for the cohort's k (role ``cohort_k``), the
        encoder's own (``encoder_k``) and every k of the grid (``curve``). Only ``cohort_k`` in the
        design ``all`` is held against thresholds. Null of ri, ri_ratio and ri_minus_null: 95% of
        label permutations over units within centers; of the accuracies: 95% of the same
        permutations, for the center of permutations of centers over units within labels.
    """
    ks = {"cohort_k": chosen_k["k"], "encoder_k": chosen_k["per_encoder"].get(encoder)}
    rows: list[dict[str, Any]] = []
    for design in parameters["designs"]:
        used = _used(counts, design)
        rows += _left_out(counts, design, encoder)
        if used.is_empty():
            rows += _impossible(counts, design, parameters, encoder)
            continue
        figures = _figures(_arrays(used, design, _vote_nulls(counts, design)), parameters)
        rows += [
            _row(figure, encoder, metric, design, k, role, parameters)
            for role, k in [*ks.items(), *(("curve", k) for k in figures)]
            if k in figures
            for metric, figure in figures[k].items()
        ]
    return measurement_table(rows)


def _used(counts: pl.DataFrame, design: str) -> pl.DataFrame:
    return counts.filter(pl.col("design") == design, pl.col("n").is_not_null())


def _vote_nulls(counts: pl.DataFrame, design: str) -> dict[tuple[str, int], Null]:
    """95% of the permutations of each accuracy at each k, averaged over draws or pairs."""
    rows = counts.filter(pl.col("design") == design, pl.col("null_label").is_not_null())
    return {
        (target, k): Null(*percentile_interval(np.mean(drawn, axis=0)))
        for target in ("label", "center")
        for k, drawn in rows.group_by("k", maintain_order=True).agg(f"null_{target}").iter_rows()
    }


def _row(
    figure: _Figure,
    encoder: str,
    metric: str,
    design: str,
    k: int,
    role: str,
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    return measurement(
        experiment=EXPERIMENT,
        encoder=encoder,
        metric=metric,
        estimate=figure.estimate,
        setting={"design": design, "k": k, "role": role},
        null=figure.null,
        reason=figure.reason,
        **_threshold(metric, design, role, parameters),
    )


def _threshold(
    metric: str, design: str, role: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Threshold and direction of a failure signature; nothing for a figure that is none."""
    if design != "all" or role != "cohort_k":
        return {}
    return dict(parameters["thresholds"].get(metric, {}))


def _left_out(counts: pl.DataFrame, design: str, encoder: str) -> list[dict[str, Any]]:
    """One row per cell with too few patients or tiles: what the figures do not speak of."""
    cells = counts.filter(
        pl.col("design") == design, pl.col("draw").is_null(), pl.col("label").is_not_null()
    )
    return [
        row
        for label, center, reason in cells.select("label", "center", "reason").iter_rows()
        for row in not_applicable(
            experiment=EXPERIMENT,
            encoder=encoder,
            metrics=["ri"],
            reason=reason,
            stratum=f"{label} × {center}",
            setting={"design": design, "role": "left_out"},
        )
    ]


def _impossible(
    counts: pl.DataFrame, design: str, parameters: Mapping[str, Any], encoder: str
) -> list[dict[str, Any]]:
    why = counts.filter(pl.col("design") == design, pl.col("label").is_null())["reason"]
    reason = why[0] if len(why) else f"design {design!r} was not counted: add it to designs"
    return [
        row
        for metric in METRICS
        for row in not_applicable(
            experiment=EXPERIMENT,
            encoder=encoder,
            metrics=[metric],
            reason=reason,
            setting={"design": design, "k": None, "role": "cohort_k"},
            **_threshold(metric, design, "cohort_k", parameters),
        )
    ]


def _arrays(rows: pl.DataFrame, design: str, vote_nulls: Mapping[tuple[str, int], Null]) -> _Design:
    """Counts of one design with nodes numbered from 0; draws of design ``all`` are pooled."""
    scope = pl.col("draw") if design == "paired_2x2" else pl.lit(0, pl.Int32())
    rows = rows.with_columns(scope.alias("scope"))
    nodes = (
        rows.select("scope", "unit", "patient_id", "label", "center")
        .unique()
        .sort("scope", "unit")
        .with_row_index("node")
    )
    k_grid = tuple(rows["k"].unique().sort())
    queries = int(rows.filter(pl.col("k") == k_grid[0])["n"].sum())
    return _Design(
        rows=rows,
        k_grid=k_grid,
        n=queries // rows["draw"].n_unique() if design == "all" else queries,
        n_patients=rows["patient_id"].n_unique(),
        unit=_codes(nodes["unit"]),
        scope=_codes(nodes["scope"]),
        patient=_codes(nodes["patient_id"]),
        label=_codes(nodes["label"]),
        center=_codes(nodes["center"]),
        pairs=_pooled_pairs(rows, nodes, k_grid),
        vote_nulls=vote_nulls,
    )


def _pooled_pairs(rows: pl.DataFrame, nodes: pl.DataFrame, k_grid: Sequence[int]) -> _Pairs:
    """Pairs of nodes in each band of ranks, summed over the draws of a scope; sorted."""
    met = rows.filter(pl.col("neighbours").is_not_null())
    sizes = met["neighbours"].list.len().to_numpy()
    unit = nodes["unit"].to_numpy()
    base = int(unit.max(initial=0)) + 1
    keys = nodes["scope"].cast(pl.Int64).to_numpy() * base + unit
    scope = met["scope"].cast(pl.Int64).to_numpy() * base
    query = np.searchsorted(keys, scope + met["unit"].to_numpy())
    neighbour = np.searchsorted(
        keys, np.repeat(scope, sizes) + met["neighbour_unit"].explode().to_numpy()
    )
    band = np.searchsorted(k_grid, met["k"].to_numpy())
    code = np.repeat((band * len(keys) + query) * len(keys), sizes) + neighbour
    codes, where = np.unique(code, return_inverse=True)
    rest, neighbour = np.divmod(codes, len(keys))
    band, query = np.divmod(rest, len(keys))
    count = np.bincount(where, met["neighbours"].explode().to_numpy()).astype(np.float64)
    return _Pairs(band, query, neighbour, count)


def _figures(design: _Design, parameters: Mapping[str, Any]) -> dict[int, dict[str, _Figure]]:
    """Every metric at every k of the grid."""
    weights = bootstrap_weights(
        design.n_patients, parameters["bootstrap_draws"], parameters["seed"]
    )
    nulls = _permutation_nulls(design, parameters["n_permutations"], parameters["seed"])
    votes = _vote_figures(design, weights)
    return {
        k: _index_figures(design, k, estimates, null) | votes[k]
        for k, estimates, null in zip(
            design.k_grid, _index_estimates(design, weights), nulls, strict=True
        )
    }


def _index_figures(
    design: _Design,
    k: int,
    estimates: Mapping[str, Estimate],
    null: Mapping[str, Null],
) -> dict[str, _Figure]:
    expected = design.rows.filter(pl.col("k") == k).select(pl.col("^expected_.*$").sum()).row(0)
    chance = expected[SO] / (expected[SO] + expected[OS])
    ri = estimates["ri"]
    reasons = {name: _undefined(estimate, k) for name, estimate in estimates.items()}
    return {
        "ri": _Figure(ri, null["ri"], reasons["ri"]),
        "ri_ratio": _Figure(estimates["ri_ratio"], null["ri_ratio"], reasons["ri_ratio"]),
        "ri_minus_null": _Figure(
            Estimate(
                _minus(ri.value, chance),
                _minus(ri.ci_low, chance),
                _minus(ri.ci_high, chance),
                ri.n,
                ri.n_patients,
            ),
            Null(_minus(null["ri"].low, chance), _minus(null["ri"].high, chance)),
            reasons["ri"],
        ),
        "ri_design_null": _Figure(
            Estimate(chance, chance, chance, design.n, design.n_patients), Null(chance, chance)
        ),
    }


def _undefined(estimate: Estimate, k: int) -> str | None:
    """Why an index has no value or no interval, with the mend; None if it has both."""
    if estimate.value is None:
        return f"among {k} neighbours none is of a kind that this index counts: take a larger k"
    if estimate.ci_low is None:
        return (
            "no interval: in more than 5% of the resampled cohorts no neighbour is of a kind that "
            f"this index counts, among {k}: add patients, or take a larger k"
        )
    return None


def _minus(value: float | None, chance: float) -> float | None:
    return None if value is None else value - chance


def _vote_figures(design: _Design, weights: Floats) -> dict[int, dict[str, _Figure]]:
    """Support and kNN accuracy at each k; patients are resampled as queries."""
    n, size = design.n, design.n_patients
    ones = np.ones((1, size))
    figures: dict[int, dict[str, _Figure]] = {}
    points, drawn = (_supports(design, each) for each in (ones, weights))
    for k, point, draws in zip(design.k_grid, points[:, 0], drawn, strict=True):
        estimate = Estimate(float(point), *percentile_interval(draws), n, size)
        figures[k] = {"support": _Figure(estimate, Null())}
    for target in ("label", "center"):
        draws = _accuracies(design.rows, target, weights)
        points = _accuracies(design.rows, target, ones)[:, 0]
        for k, point, drawn in zip(design.k_grid, points, draws, strict=True):
            figures[k][f"knn_accuracy_{target}"] = _Figure(
                Estimate(float(point), *percentile_interval(drawn), n, size),
                design.vote_nulls[target, k],
            )
    return figures


def _supports(design: _Design, weights: Floats) -> Floats:
    """[k, draws] share of queries with SO or OS among their k neighbours."""
    rows, shape = design.rows, (design.n_patients, len(design.k_grid))
    cell = np.ravel_multi_index((_codes(rows["patient_id"]), _codes(rows["k"])), shape)
    supported, asked = (
        weights @ np.bincount(cell, rows[name], int(np.prod(shape))).reshape(shape)
        for name in ("supported", "n")
    )
    with np.errstate(invalid="ignore"):
        return (supported / asked).T


def _accuracies(rows: pl.DataFrame, target: str, weights: Floats) -> Floats:
    """[k, draws] balanced accuracy of the vote: mean over classes of recall, then over scopes."""
    names = ("patient_id", "k", "draw", target)
    codes = [_codes(rows[name]) for name in names]
    shape = (weights.shape[1], *(int(code.max()) + 1 for code in codes[1:]))
    cell = np.ravel_multi_index(codes, shape)
    hits, asked = (
        (weights @ np.bincount(cell, rows[name], int(np.prod(shape))).reshape(shape[0], -1))
        for name in (f"hits_{target}", "n")
    )
    recalls = np.where(asked > 0, hits / np.maximum(asked, 1), 0.0).reshape(-1, *shape[1:])
    present = (asked > 0).reshape(recalls.shape).sum(axis=3)
    by_scope = recalls.sum(axis=3) / np.maximum(present, 1)
    filled = (present > 0).sum(axis=2)
    mean = by_scope.sum(axis=2) / np.maximum(filled, 1)
    return np.where(filled > 0, mean, np.nan).T


def _index_estimates(design: _Design, weights: Floats) -> Iterator[dict[str, Estimate]]:
    """Estimates of ri and ri_ratio at each k of the grid, from counts added band by band."""
    pairs, size, node_patient = design.pairs, design.n_patients, design.patient
    same_label = design.label[pairs.query] == design.label[pairs.neighbour]
    same_center = design.center[pairs.query] == design.center[pairs.neighbour]
    kind = 2 * ~same_label + ~same_center
    drawn = _resampled_counts(design, weights)
    counts = [_matrix(pairs, kind < 0, node_patient, size)] * 3
    for band in range(len(design.k_grid)):
        for i in (SS, SO, OS):
            added = _matrix(pairs, (pairs.band == band) & (kind == i), node_patient, size)
            counts[i] = counts[i] + added
        ss, so, os = drawn[band]
        yield {
            "ri": pair_ratio(
                counts[SO], counts[SO] + counts[OS], np.stack([so, so + os]), design.n, 1.0
            ),
            "ri_ratio": pair_ratio(
                counts[SS] + counts[SO],
                counts[SS] + counts[OS],
                np.stack([ss + so, ss + os]),
                design.n,
            ),
        }


def _resampled_counts(design: _Design, weights: Floats) -> Floats:
    """[k, 3, draws] SS, SO and OS among the k neighbours in each bootstrap draw.

    Neighbours with the same label are counted within each label, and so on: small matrices of the
    patients concerned take less time than three of all patients.
    """
    cell = design.label * (int(design.center.max()) + 1) + design.center
    drawn = weights.astype(np.float32)
    label, center, both = (
        _resampled_within(design, key, drawn) for key in (design.label, design.center, cell)
    )
    # Sums of integers: the differences are exact.
    return np.stack([both, label - both, center - both], axis=1).cumsum(axis=0)


def _resampled_within(design: _Design, key: Ints, weights: NDArray[np.float32]) -> Floats:
    """[bands, draws] resampled number of neighbours with the query's key."""
    pairs, patient = design.pairs, design.patient
    total = np.zeros((len(design.k_grid), len(weights)))
    met = np.where(key[pairs.query] == key[pairs.neighbour], key[pairs.query], -1)
    for code in np.unique(key):
        members = np.unique(patient[key == code])
        place = np.searchsorted(members, patient)
        here = np.ascontiguousarray(weights[:, members])
        for band in range(len(total)):
            chosen = np.flatnonzero((met == code) & (pairs.band == band))
            total[band] += resampled_total(_matrix(pairs, chosen, place, len(members)), here)
    return total


def _matrix(pairs: _Pairs, chosen: NDArray[Any], patient: Ints, size: int) -> Any:
    """Patient × patient counts of the chosen pairs; sparse for many patients."""
    rows, columns = patient[pairs.query[chosen]], patient[pairs.neighbour[chosen]]
    if size > _DENSE_PATIENTS:
        from scipy.sparse import csr_array

        return csr_array((pairs.count[chosen], (rows, columns)), shape=(size, size))
    cells = np.bincount(rows * size + columns, pairs.count[chosen], minlength=size * size)
    return cells.reshape(size, size).astype(np.float64, copy=False)


def _permutation_nulls(design: _Design, draws: int, seed: int) -> list[dict[str, Null]]:
    """95% range of ri and ri_ratio at each k when labels are permuted within centers."""
    strata = design.scope * (int(design.center.max()) + 1) + design.center
    labels = permuted_within(design.label, strata, draws, seed, design.unit)
    pairs = design.pairs
    same_center = design.center[pairs.query] == design.center[pairs.neighbour]
    nulls = []
    ss, so, near = np.zeros(draws), np.zeros(draws), 0.0
    for band in range(len(design.k_grid)):
        ss = ss + _agreeing(pairs, (pairs.band == band) & same_center, labels)
        so = so + _agreeing(pairs, (pairs.band == band) & ~same_center, labels)
        near += float(pairs.count[(pairs.band == band) & same_center].sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            ri, ratio = so / (so + near - ss), (ss + so) / near
        nulls.append(
            {"ri": Null(*percentile_interval(ri)), "ri_ratio": Null(*percentile_interval(ratio))}
        )
    return nulls


def _agreeing(pairs: _Pairs, chosen: NDArray[np.bool_], labels: Ints) -> Floats:
    """[draws] how many of the chosen neighbours have the query's label in each permutation."""
    few = labels.astype(np.min_scalar_type(int(labels.max(initial=0))))
    total = np.zeros(labels.shape[1])
    index = np.flatnonzero(chosen)
    for start in range(0, len(index), _PERMUTED_PAIRS):
        part = index[start : start + _PERMUTED_PAIRS]
        agree = few[pairs.query[part]] == few[pairs.neighbour[part]]
        total += pairs.count[part].astype(np.float32) @ agree.astype(np.float32)
    return total
