"""Who is compared with whom: balanced subsamples of tiles, and every two labels × two centers.

A *cell* is one label at one center; a *unit* is the tiles of one patient with one label from one
center (usually: a patient). Design ``all`` takes equally many tiles from every cell that has enough
patients and tiles, the cell's patients taking turns; ``paired_2x2`` does the same for every two
labels × two centers whose four cells are filled. A *scope* is one such subsample or pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as parameters

from pathfm_kedro.statistics.equal_rows import count_before
from pathfm_kedro.statistics.mutual_knn import NO_SPREAD, without_spread
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.permutation import permuted_together, permuted_within
from pathfm_kedro.statistics.tables import Embeddings, tile_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]
DesignName = Literal["all", "paired_2x2"]

Found = TypeVar("Found")

#: A balanced subsample loses at most nine of ten tiles to one small cell.
MIN_SHARE_OF_MEDIAN_CELL = 0.1

#: A cell with less than this share of the median cell's tiles is named where it sets the others' size.
_TELLING_SHARE = 0.5

#: Cells named in one sentence.
_NAMED_CELLS = 3
#: Vectors that are compared first: where these differ, not all are the same.
_FIRST = 64


@parameters(frozen=True, config=STRICT, kw_only=True)
class Subsampling:
    """What tiles are compared.

    Attributes
    ----------
    designs
        ``all``, ``paired_2x2``.
    exclude
        Whose tiles are no neighbours of a query: those of its patient, of its slide, or none.
    min_patients_per_cell, min_tiles_per_cell
        Cells with fewer are left out.
    min_share_of_median_cell
        Cells with fewer tiles than this share of the median cell's are left out: every cell gives as
        many tiles as the smallest.
    max_tiles, subsamples
        Tiles of a subsample of design ``all`` at most, and how many are taken where it is not the
        whole cohort.
    max_tiles_per_pair, max_pairs
        The same for ``paired_2x2``; None for every pair.
    """

    designs: Annotated[tuple[DesignName, ...], Field(min_length=1)] = ("all",)
    exclude: Literal["patient", "slide", "none"] = "patient"
    min_patients_per_cell: Annotated[int, Field(ge=0)]
    min_tiles_per_cell: Annotated[int, Field(ge=0)]
    min_share_of_median_cell: Annotated[float, Field(ge=0, le=1)] = MIN_SHARE_OF_MEDIAN_CELL
    max_tiles: Count
    subsamples: Count = 1
    max_tiles_per_pair: Count = 2000
    max_pairs: Count | None = None


@dataclass(frozen=True)
class Cohort:
    """Tiles that can ask or answer, as codes; all arrays are [n] and follow the embeddings."""

    patients: Ints
    labels: Ints
    centers: Ints
    groups: Ints
    units: Ints
    unit_table: pl.DataFrame

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return int(self.labels.max(initial=-1)) + 1

    @property
    def n_centers(self) -> int:
        """Number of centers."""
        return int(self.centers.max(initial=-1)) + 1

    @property
    def cells(self) -> Ints:
        """[n] label × center cell of each tile."""
        return self.labels * self.n_centers + self.centers


@dataclass(frozen=True)
class Scope:
    """Tiles among which neighbours are sought: one balanced subsample, or one 2 × 2 pair.

    Attributes
    ----------
    design
        ``all`` or ``paired_2x2``.
    number
        Of the subsample, or of the pair.
    rows
        [n] rows of the cohort, sorted.
    """

    design: str
    number: int
    rows: Ints


@dataclass(frozen=True)
class PermutedTags:
    """Labels and centers of a scope's units, permuted over them; codes, [units, permutations].

    Attributes
    ----------
    units
        [units] codes.
    label
        Labels permuted within centers.
    center
        Centers permuted within labels.
    label_together, center_together
        Both permuted together: who knows neither.
    """

    units: Ints
    label: Ints
    center: Ints
    label_together: Ints
    center_together: Ints


@dataclass(frozen=True)
class Subsamples:
    """Scopes of a cohort with the vectors of their tiles.

    Attributes
    ----------
    cohort
        Labels, centers, patients of all embedded tiles that have all three.
    scopes
        Subsamples and pairs, in the order of the designs asked for.
    unused
        Why designs and cells are not used, with the mend; and which cell sets the size of a design
        (remark).
    rows
        [m] rows of the cohort that stand in any scope, sorted.
    vectors
        [m, d] their vectors.
    """

    cohort: Cohort
    scopes: list[Scope]
    unused: list[dict[str, Any]]
    rows: Ints
    vectors: NDArray[np.float32]

    def vectors_of(self, scope: Scope) -> NDArray[np.float32]:
        """[n, d] vectors of a scope's tiles."""
        return self.vectors[np.searchsorted(self.rows, scope.rows)]

    def obstacle(self, design: str) -> str:
        """Why a design cannot be measured, with the mend; empty if it can."""
        rows = (r for r in self.unused if r["design"] == design and r["label"] is None)
        reasons = (r["reason"] for r in rows if r["reason"])
        return str(next(reasons, ""))

    def of_design(self, design: str) -> list[dict[str, Any]]:
        """Remarks on a design: cells left out, and which cell sets the others' size."""
        return [row for row in self.unused if row["design"] == design]


def balanced_subsamples(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    asked: Subsampling,
    seed: int,
) -> Subsamples:
    """Scopes of every design asked for, and the vectors of the tiles in them.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    asked
        What is compared.
    seed
        Of the subsamples, and of the pairs where there are more than ``max_pairs``.

    Returns
    -------
    Subsamples
        Without scopes where no design can be measured, or all vectors are the same; `unused` says why.
    """
    table = tagged_rows(slides, tiles, embeddings.slide_ids)
    cohort = cohort_of(table, asked.exclude)
    scopes, unused = scopes_of(cohort, asked, seed)
    nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 1), dtype=np.float32)
    if not scopes:
        return Subsamples(cohort, [], unused, *nothing)
    wanted = np.unique(np.concatenate([scope.rows for scope in scopes]))
    vectors = read_rows(embeddings, table[wanted])
    # A look at the first few spares a copy of all wherever vectors differ.
    if without_spread(vectors[:_FIRST], "cosine") and without_spread(vectors, "cosine"):
        alike = [unused_row(design, NO_SPREAD) for design in asked.designs]
        return Subsamples(cohort, [], alike, *nothing)
    return Subsamples(cohort, scopes, unused, wanted, vectors)


def each_searched(
    scopes: Sequence[Scope], search: Callable[[Scope], Found]
) -> Iterator[tuple[Scope, Found]]:
    """Every scope with what is found in it; one with the same tiles as the last is not searched."""
    previous: tuple[Ints, Found] | None = None
    for scope in scopes:
        if previous is None or not np.array_equal(previous[0], scope.rows):
            previous = (scope.rows, search(scope))
        yield scope, previous[1]


def tagged_rows(
    slides: pl.DataFrame, tiles: pl.DataFrame, slide_ids: Sequence[str]
) -> pl.DataFrame:
    """Embedded tiles that have a patient, a label and a center.

    Returns
    -------
    DataFrame
        As ``tile_rows``, with `place` (row of the tile in its slide's shard) and `height` (rows
        that the shard must have).
    """
    table = tile_rows(slides, tiles, slide_ids).with_columns(
        pl.int_range(pl.len()).over("slide_id").alias("place"),
        pl.len().over("slide_id").alias("height"),
    )
    return table.drop_nulls(["patient_id", "label", "center"])


def cohort_of(table: pl.DataFrame, exclude: str) -> Cohort:
    """Codes of the table's patients, labels, centers and units."""
    unit_key = ["patient_id", "label", "center"]
    units = table.select(unit_key).unique().sort(unit_key).with_row_index("unit")
    codes = table.join(units, on=unit_key, how="left", maintain_order="left")["unit"]
    groups = {"patient": table["patient_id"], "slide": table["slide_id"], "none": table["tile_id"]}
    return Cohort(
        patients=codes_of(table["patient_id"]),
        labels=codes_of(table["label"]),
        centers=codes_of(table["center"]),
        groups=codes_of(groups[exclude]),
        units=codes.to_numpy().astype(np.int64),
        unit_table=units,
    )


def codes_of(names: pl.Series) -> Ints:
    """Names as integers 0, 1, … in sorted order.

    Examples
    --------
    >>> codes_of(pl.Series(["b", "a", "b"])).tolist()
    [1, 0, 1]
    """
    return names.rank("dense").to_numpy().astype(np.int64) - 1


def read_rows(embeddings: Embeddings, rows: pl.DataFrame) -> NDArray[np.float32]:
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


def scopes_of(
    cohort: Cohort, asked: Subsampling, seed: int
) -> tuple[list[Scope], list[dict[str, Any]]]:
    """Scopes of every design asked for, and why designs and cells are not used."""
    if not len(cohort.units):
        reason = "no embedded tile has a patient, a label and a center: complete the manifest"
        return [], [unused_row(design, reason) for design in asked.designs]
    usable, unused_cells = _usable_cells(cohort, asked)
    scopes: list[Scope] = []
    unused: list[dict[str, Any]] = []
    builders = {"all": _whole_subsamples, "paired_2x2": _pairs}
    for design in asked.designs:
        reason = _obstacle(cohort, usable, design)
        if reason:
            unused.append(unused_row(design, f"{reason}{_named(unused_cells)}"))
            continue
        built = builders[design](cohort, usable, asked, seed)
        scopes += built
        unused += [unused_row(design, why, label, center) for label, center, why in unused_cells]
        if design == "all":
            unused += _size_of_cells(cohort, built[0])
    return scopes, unused


def _named(cells: Sequence[tuple[str, str, str]]) -> str:
    """Cells that are left out, each with the reason, as the end of a sentence."""
    if not cells:
        return ""
    named = [f"{label} × {center} ({why})" for label, center, why in cells[:_NAMED_CELLS]]
    more = len(cells) - len(named)
    return f"; left out: {'; '.join(named)}{f'; and {more} more' if more else ''}"


def _size_of_cells(cohort: Cohort, scope: Scope) -> list[dict[str, Any]]:
    """A remark where one small cell decides how many tiles every cell gives."""
    used, taken = np.unique(cohort.cells[scope.rows], return_counts=True)
    tiles = np.bincount(cohort.cells)[used]
    smallest, median = int(tiles.argmin()), float(np.median(tiles))
    if taken[0] < tiles[smallest] or tiles[smallest] >= _TELLING_SHARE * median:
        return []
    label, center = divmod(int(used[smallest]), cohort.n_centers)
    names = (cohort.unit_table[name].unique().sort() for name in ("label", "center"))
    cell = " × ".join(name[code] for name, code in zip(names, (label, center), strict=True))
    remark = (
        f"every cell gives {taken[0]} tiles, as many as the smallest, {cell}, has (the median cell has "
        f"{median:g}): add tiles there"
    )
    return [unused_row(scope.design, None) | {"remark": remark}]


def left_out_cells(statistics: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Each cell that is not used, as a stratum, with the reason.

    Parameters
    ----------
    statistics
        Rows of :func:`unused_row` among others.
    """
    rows = statistics.select("label", "center", "reason").drop_nulls()
    for label, center, reason in rows.iter_rows():
        yield f"{label} × {center}", reason


def remark_on_size(statistics: pl.DataFrame) -> str:
    """Which cell decides how many tiles every cell gives; empty where none stands out."""
    return next(iter(statistics["remark"].drop_nulls()), "")


def _usable_cells(
    cohort: Cohort, asked: Subsampling
) -> tuple[NDArray[np.bool_], list[tuple[str, str, str]]]:
    """[labels, centers] cells with enough patients and tiles, and the others with the reason."""
    shape = (cohort.n_labels, cohort.n_centers)
    size = shape[0] * shape[1]
    tiles = np.bincount(cohort.cells, minlength=size).reshape(shape)
    cell_of_patient = np.unique(np.stack([cohort.cells, cohort.patients]), axis=1)[0]
    patients = np.bincount(cell_of_patient, minlength=size).reshape(shape)
    fewest = (asked.min_patients_per_cell, asked.min_tiles_per_cell)
    enough = (patients >= max(fewest[0], 1)) & (tiles >= max(fewest[1], 1))
    median = float(np.median(tiles[enough])) if enough.any() else 0.0
    usable = enough & (tiles >= asked.min_share_of_median_cell * median)
    labels = cohort.unit_table["label"].unique().sort()
    centers = cohort.unit_table["center"].unique().sort()

    def why(i: int, j: int) -> str:
        found = f"{patients[i, j]} patients with {tiles[i, j]} tiles"
        if not enough[i, j]:
            return f"{found}: a cell needs {fewest[0]} patients and {fewest[1]} tiles"
        return (
            f"{found}: fewer than {asked.min_share_of_median_cell:.0%} of the median cell's "
            f"{median:g} tiles; every cell would shrink to as many: add tiles"
        )

    left_out = [
        (labels[int(i)], centers[int(j)], why(i, j)) for i, j in np.argwhere(~usable & (tiles > 0))
    ]
    return usable, left_out


def _obstacle(cohort: Cohort, usable: NDArray[np.bool_], design: str) -> str:
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


def _whole_subsamples(
    cohort: Cohort, usable: NDArray[np.bool_], asked: Subsampling, seed: int
) -> list[Scope]:
    cells = np.flatnonzero(usable)
    first = _balanced(cohort, cells, asked.max_tiles, seed)
    everything = int(np.isin(cohort.cells, cells).sum())
    size = 1 if len(first) == everything else asked.subsamples
    rest = (_balanced(cohort, cells, asked.max_tiles, [seed, i]) for i in range(1, size))
    return [Scope("all", i, rows) for i, rows in enumerate([first, *rest])]


def _pairs(cohort: Cohort, usable: NDArray[np.bool_], asked: Subsampling, seed: int) -> list[Scope]:
    pairs = list(_complete_pairs(usable))
    if asked.max_pairs is not None and len(pairs) > asked.max_pairs:
        generator = np.random.default_rng(seed)
        kept = np.sort(generator.choice(len(pairs), asked.max_pairs, replace=False))
        pairs = [pairs[i] for i in kept]
    return [
        Scope("paired_2x2", i, _balanced(cohort, cells, asked.max_tiles_per_pair, [seed, 0, i]))
        for i, cells in enumerate(pairs)
    ]


def _balanced(cohort: Cohort, cells: Ints, most: int, seed: int | Sequence[int]) -> Ints:
    """Rows with as many tiles from each cell, its patients taking turns; sorted.

    Parameters
    ----------
    cells
        Codes of the cells to fill.
    most
        Tiles in all, at most.
    seed
        Of the subsample.
    """
    rows = np.flatnonzero(np.isin(cohort.cells, cells))
    cell, patient = cohort.cells[rows], cohort.patients[rows]
    random_key, patient_key = np.random.default_rng(seed).random((2, len(rows)))
    turn = rank_within(np.stack([cell, patient]), random_key)
    place = rank_within(cell[None, :], turn + patient_key)
    size = min(int(np.bincount(cell)[cells].min()), max(most // len(cells), 1))
    return rows[place < size]


def rank_within(keys: Ints, values: Floats) -> Ints:
    """Rank of each value among those with the same keys, from 0.

    Parameters
    ----------
    keys
        [keys, n].
    values
        [n].

    Examples
    --------
    >>> rank_within(np.array([[0, 1, 0]]), np.array([0.5, 0.1, 0.2])).tolist()
    [1, 0, 0]
    """
    order = np.lexsort((values, *keys))
    new = np.ones(len(values), dtype=bool)
    new[1:] = (np.diff(keys[:, order], axis=1) != 0).any(axis=0)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = count_before(np.cumsum(new))
    return ranks


def permuted_tags(
    cohort: Cohort, scopes: Sequence[Scope], n_permutations: int, seed: int
) -> Iterator[PermutedTags]:
    """Labels permuted within centers, centers within labels, and both together, for each scope.

    The subsamples of design ``all`` share their permutations; in the pairs a unit keeps its place in
    the order of all its pairs, so that they depend on each other as the measured ones do.
    """
    first = np.unique(cohort.units, return_index=True)[1]
    labels, centers, patients = (
        codes[first] for codes in (cohort.labels, cohort.centers, cohort.patients)
    )
    members = [np.unique(cohort.units[scope.rows]) for scope in scopes]
    for design, group in itertools.groupby(range(len(scopes)), lambda i: scopes[i].design):
        chosen = list(group)
        stratum = [0 if design == "all" else i for i in chosen]
        keys = [part * len(first) + members[i] for part, i in zip(stratum, chosen, strict=True)]
        nodes = np.unique(np.concatenate(keys))
        part, unit = np.divmod(nodes, len(first))
        # Codes of the units of this design, so that the permutations are those of its neighbours.
        owner = np.unique(unit, return_inverse=True)[1]
        label, center = (
            permuted_within(
                own[unit], part * (int(other.max()) + 1) + other[unit], n_permutations, seed, owner
            )
            for own, other in ((labels, centers), (centers, labels))
        )
        other = permuted_together(patients[unit], n_permutations, seed, part)
        tags = label, center, labels[unit][other], centers[unit][other]
        for key, i in zip(keys, chosen, strict=True):
            place = np.searchsorted(nodes, key)
            yield PermutedTags(members[i], *(permuted[place] for permuted in tags))


def unused_row(
    design: str, reason: str | None, label: str | None = None, center: str | None = None
) -> dict[str, Any]:
    """Why a design, or a cell of it, is not used."""
    return {
        "design": design,
        "reason": reason,
        "label": label,
        "center": center,
        "remark": None,
    }
