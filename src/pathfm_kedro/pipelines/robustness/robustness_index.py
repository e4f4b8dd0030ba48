r"""Robustness index: do neighbours share biology rather than the center that stained them?

Each neighbour of a query is typed by biology × center: SS (same label, same center), SO (same
label, other center), OS (other label, same center), OO. Over all queries and ranks ≤ k,

- ``ri = SO / (SO + OS)`` (Kömen et al. 2025, PathoROB),
- ``ri_ratio = (SS + SO) / (SS + OS)`` (de Jong et al. 2025).

The work is split in two. :func:`count_neighbours` reads the embeddings once and leaves counts per
query unit and neighbour unit, a *unit* being the tiles of one patient with one label from one
center (usually: a patient). :func:`choose_k` and :func:`robustness_index` work on these counts.

The interval
------------
A patient counts as query and as neighbour. Let A and D be patient × patient counts of numerator
and denominator, r = ΣA/ΣD, and resampled weights w: r*(w) = w'Aw / w'Dw. With the influence of a
pair e_pq = (A_pq − r·D_pq)/ΣD and h_pq = e_pq + e_qp, write r̂ − r ≈ Σ_{p<q} h_pq as a U-statistic:
h_pq = g_p + g_q + ψ_pq. Its variance is P(P−1)²σ_g² + ½P(P−1)σ_ψ². The two-way bootstrap has
Σ_p H_p² + Σ_{p<q} h_pq² with H_p = Σ_q h_pq; where σ_g = 0 (an encoder that knows nothing) that is
three times too much, and resampling queries alone is too little. The bias-corrected jackknife
(Efron & Stein 1981) subtracts the second-order term:

    V = P/(P−1)·Σ_p H_p² − T,   T = (P−1)/(P−3)·(Σ_{p<q} h_pq² − Σ_p H_p²/(P−2)),

T estimating ½P(P−1)σ_ψ² from what a sum of patient effects leaves of h. V is not let fall below
½Σ_p H_p², its smallest expectation (σ_g = 0). The percentile interval of the two-way draws is
shrunk about the point by √(V/Var r*), which keeps its skewness. Tiles of the same patient that
neighbour each other (only with ``exclude: slide`` or ``none``) weigh w_p, not w_p².
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.neighbours import nearest_neighbours
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
    "reason": pl.String(),
}

#: Beyond this many patients a dense patient × patient matrix costs more than it saves.
_DENSE_PATIENTS = 2000

#: Pairs of units compared at once under all permutations.
_PERMUTED_PAIRS = 4096

#: Integers up to here are exact in float32.
_EXACT_FLOAT32 = 2**24


# What was measured: from embeddings to counts ----------------------------------------------------


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
        max_tiles_per_pair, max_pairs, min_patients_per_cell, min_tiles_per_cell, seed.

    Returns
    -------
    DataFrame
        Counts, see :data:`COUNTS_SCHEMA`.
    """
    table = tile_rows(slides, tiles, embeddings.slide_ids).with_row_index("_row")
    table = table.drop_nulls(["patient_id", "label", "center"])
    if table.is_empty():
        reason = "no embedded tile has a patient, a label and a center: complete the manifest"
        return _counts_frame([_unused(design, reason) for design in parameters["designs"]])
    cohort = _cohort(table, parameters["exclude"])
    scopes, unused = _scopes(cohort, parameters)
    if not scopes:
        return _counts_frame(unused)
    wanted = np.unique(np.concatenate([scope.rows for scope in scopes]))
    vectors = _vectors(embeddings, table["slide_id"].gather(wanted), table["_row"].gather(wanted))
    frames: list[pl.DataFrame] = []
    previous: tuple[Ints, Ints] | None = None
    for scope in scopes:
        found = (
            previous[1]
            if previous is not None and np.array_equal(previous[0], scope.rows)
            else _found(cohort, scope, vectors[np.searchsorted(wanted, scope.rows)], parameters)
        )
        previous = (scope.rows, found)
        frames.append(_scope_counts(cohort, scope, found, parameters["k_grid"]))
    return pl.concat([*frames, _counts_frame(unused)])


def _cohort(table: pl.DataFrame, exclude: str) -> _Cohort:
    unit_key = ["patient_id", "label", "center"]
    units = table.select(unit_key).unique().sort(unit_key).with_row_index("unit")
    codes = table.join(units, on=unit_key, how="left", maintain_order="left")["unit"]
    groups = {
        "patient": lambda: _codes(table["patient_id"]),
        "slide": lambda: _codes(table["slide_id"]),
        "none": lambda: np.arange(table.height),
    }
    if exclude not in groups:
        raise ValueError(f"exclude is {exclude!r}: use one of {', '.join(groups)}")
    return _Cohort(
        patients=_codes(table["patient_id"]),
        labels=_codes(table["label"]),
        centers=_codes(table["center"]),
        groups=groups[exclude](),
        units=codes.to_numpy().astype(np.int64),
        unit_table=units,
    )


def _codes(names: pl.Series) -> Ints:
    return np.unique(names.to_numpy(), return_inverse=True)[1].astype(np.int64)


def _vectors(
    embeddings: Embeddings, slide_ids: pl.Series, rows: pl.Series
) -> NDArray[np.float32]:
    """Chosen rows of the stack of all slides, read slide by slide to bound memory."""
    chosen = pl.DataFrame({"slide_id": slide_ids, "row": rows})
    counts = chosen.group_by("slide_id", maintain_order=True).agg("row")
    del counts
    return embeddings.stack(embeddings.slide_ids)[rows.to_numpy()]


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
            f"{patients[i, j]} patients with {tiles[i, j]} tiles: a cell needs {fewest[0]} patients "
            f"and {fewest[1]} tiles",
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
    if design == "paired_2x2" and not any(_complete_pairs(usable)):
        return "no two labels stand at the same two centers with enough patients and tiles"
    return ""


def _complete_pairs(usable: NDArray[np.bool_]) -> Iterator[Ints]:
    """Cells of every 2 labels × 2 centers that are all usable."""
    n_centers = usable.shape[1]
    for a, b in itertools.combinations(range(usable.shape[0]), 2):
        shared = np.flatnonzero(usable[a] & usable[b])
        for c, d in itertools.combinations(shared, 2):
            yield np.array([a * n_centers + c, a * n_centers + d, b * n_centers + c,
                            b * n_centers + d])


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
    return nearest_neighbours(vectors, groups, k, metric=parameters["metric"]).indices


def _scope_counts(cohort: _Cohort, scope: _Scope, found: Ints, k_grid: Sequence[int]) -> pl.DataFrame:
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
            **{
                f"expected_{kind}": expected[:, :, i].ravel() for i, kind in enumerate(TYPES)
            },
        }
    ).with_columns(pl.col("unit", "k").cast(pl.Int32))
    return _counts_frame(
        frame.join(_pair_lists(units, found, grid), on=["unit", "k"], how="left")
        .join(cohort.unit_table.with_columns(pl.col("unit").cast(pl.Int32)), on="unit", how="left")
        .with_columns(
            pl.lit(scope.design).alias("design"),
            pl.lit(scope.draw).alias("draw"),
            pl.lit(None, pl.String()).alias("reason"),
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
    return np.minimum(grid, every[:, None])[:, :, None] * shares[:, None, :]


def _eligible(groups: Ints, key: Ints) -> Ints:
    """Rows with the query's key that are not of its group."""
    _, own, size = np.unique(
        groups * (int(key.max()) + 1) + key, return_inverse=True, return_counts=True
    )
    return np.bincount(key)[key] - size[own]


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
