"""Exact nearest neighbours that do not depend on threads, block size or BLAS library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.blocked_search import Metric, Relation, Search, Space, Tags
from pathfm_kedro.statistics.equal_rows import reachable

Floats32 = NDArray[np.float32]
Floats64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of each query, nearest first.

    Attributes
    ----------
    indices
        [q, k] int64 rows of the searched vectors; −1 where fewer than k are eligible.
    similarity
        [q, k] float64: cosine in [−1, 1], or the negative Euclidean distance in the vectors' own
        unit; −inf where there is no neighbour.
    """

    indices: Ints
    similarity: Floats64

    def distance(self, metric: str) -> Floats64:
        """[q, k] 1 − cosine, or the Euclidean distance; infinite where there is no neighbour."""
        return 1 - self.similarity if metric == "cosine" else -self.similarity


@dataclass(frozen=True)
class TypedNeighbours:
    """The nearest rows of each query of any type, and of the two types that tell biology from center.

    Attributes
    ----------
    nearest
        The k nearest of any type.
    same_label
        The m nearest with the query's label and another center (SO).
    same_center
        The m nearest with the query's center and another label (OS).
    """

    nearest: Neighbours
    same_label: Neighbours
    same_center: Neighbours


def nearest_neighbours(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic] | None,
    k: int,
    metric: Metric = "cosine",
    queries: Ints | None = None,
    block_rows: int | None = None,
) -> Neighbours:
    """Exact k nearest rows of each query outside the query's own group.

    Candidates come from blocked float32 matrix products whose rounding error is bounded by ε
    (:mod:`~pathfm_kedro.statistics.blocked_search`). Every row within 2ε of a lower bound of the k-th
    best score is a candidate, so none that belongs among the k can be missed. Candidates whose
    scores differ by more than 2ε are in their true order; the others are compared by similarities
    in float64, summed in a fixed order. Ties go to the smaller row index; similarities closer than
    float64 roundoff (10⁻¹⁵) may count as tied or not. Hence the result is the same for any number
    of threads, any block size and any BLAS. Of rows that are equal only those are searched that a
    query could be given, so that copies cost nothing.

    Parameters
    ----------
    vectors
        [n, d] finite numbers; read as float32.
    groups
        [n] group of each row (its patient): rows of the query's group are never its neighbours.
        None excludes the query itself only.
    k
        Neighbours per query, at least 1.
    metric
        ``cosine`` or ``euclidean``.
    queries
        [q] rows that ask; all rows if not given. Their neighbours may be any row.
    block_rows
        Rows per block; by default as many as the processor's cache holds products of.

    Returns
    -------
    Neighbours
        [q, k] indices and similarities, in the order of `queries`.

    Raises
    ------
    ValueError
        If a row holds NaN or infinity, if a row is zero under cosine, or if shapes or k are wrong.

    Examples
    --------
    >>> rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    >>> nearest_neighbours(rows, np.array(["p", "p", "q", "r"]), k=2).indices.tolist()
    [[3, 2], [3, 2], [3, 1], [2, 1]]
    """
    asked, where = _asked(vectors, queries)
    search = _search(vectors, groups, k, metric, asked)
    (out,) = _found(search, asked, [(k, None)], block_rows)
    return Neighbours(out.indices[where], out.similarity[where])


def nearest_indices(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic] | None,
    k: int,
    metric: Metric = "cosine",
    queries: Ints | None = None,
    block_rows: int | None = None,
) -> Ints:
    """[q, k] indices of :func:`nearest_neighbours`, without re-scoring for similarities.

    Parameters, ties and errors are those of :func:`nearest_neighbours`.

    Examples
    --------
    >>> rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    >>> nearest_indices(rows, None, k=1).tolist()
    [[1], [0], [3], [2]]
    """
    asked, where = _asked(vectors, queries)
    search = _search(vectors, groups, k, metric, asked)
    indices = np.empty((len(asked), k), dtype=np.int64)

    def keep(_: int, rows: Ints, found: Ints) -> None:
        indices[np.searchsorted(asked, rows)] = found

    search.run([(k, None)], keep, block_rows)
    return indices[where]


def nearest_by_type(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic],
    labels: Ints,
    centers: Ints,
    k: int,
    m: int,
    metric: Metric = "cosine",
    block_rows: int | None = None,
) -> TypedNeighbours:
    """Exact nearest rows of every row: k of any type, m with its label from elsewhere, m of its center.

    One pass of matrix products serves the three searches, each as :func:`nearest_neighbours`: rows
    of the query's group are never found, and ties go to the smaller index.

    Parameters
    ----------
    vectors
        [n, d] finite numbers; read as float32.
    groups
        [n] group of each row (its patient).
    labels, centers
        [n] codes.
    k
        Neighbours of any type, at least 1.
    m
        Neighbours of each of the two types, at least 1.
    metric, block_rows
        As in :func:`nearest_neighbours`.

    Raises
    ------
    ValueError
        As :func:`nearest_neighbours`, and if labels or centers are not one per row.

    Examples
    --------
    >>> rows = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]], dtype=np.float32)
    >>> found = nearest_by_type(rows, np.arange(4), np.array([0, 0, 1, 0]), np.array([0, 1, 0, 0]),
    ...                         k=1, m=1)
    >>> found.nearest.indices.ravel().tolist()
    [1, 2, 1, 2]
    >>> found.same_label.indices.ravel().tolist(), found.same_center.indices.ravel().tolist()
    ([1, 0, -1, 1], [2, -1, 0, 2])
    """
    search = _typed_search(vectors, groups, labels, centers, (k, m), metric)
    rows = np.arange(len(vectors))
    wanted = [(k, None), (m, same_label_elsewhere), (m, other_label_at_home)]
    return TypedNeighbours(*_found(search, rows, wanted, block_rows))


def nearest_of_types(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic],
    labels: Ints,
    centers: Ints,
    m: int,
    metric: Metric = "cosine",
    block_rows: int | None = None,
) -> tuple[Neighbours, Neighbours]:
    """The two types of :func:`nearest_by_type` alone: m with the label from elsewhere, m of the center.

    Products are made only of rows that share a label or a center, but not both: for 2 labels at 2
    centers a quarter of a whole product, since each serves either side.

    Parameters, ties and errors are those of :func:`nearest_by_type`.

    Examples
    --------
    >>> rows = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]], dtype=np.float32)
    >>> near, far = nearest_of_types(rows, np.arange(4), np.array([0, 0, 1, 0]),
    ...                              np.array([0, 1, 0, 0]), m=1)
    >>> near.indices.ravel().tolist(), far.indices.ravel().tolist()
    ([1, 0, -1, 1], [2, -1, 0, 2])
    """
    search = _typed_search(vectors, groups, labels, centers, (m,), metric)
    wanted = [(m, same_label_elsewhere), (m, other_label_at_home)]
    same_label, same_center = _found(search, np.arange(len(vectors)), wanted, block_rows)
    return same_label, same_center


def same_label_elsewhere(same_label: Bools, same_center: Bools) -> Bools:
    """SO: the query's label at another center."""
    return same_label & ~same_center


def other_label_at_home(same_label: Bools, same_center: Bools) -> Bools:
    """OS: another label at the query's center."""
    return ~same_label & same_center


def _asked(vectors: NDArray[np.floating], queries: Ints | None) -> tuple[Ints, Ints]:
    """Rows that ask, sorted, and the place of each query among them."""
    asked = np.arange(len(vectors)) if queries is None else np.asarray(queries, dtype=np.int64)
    rows, where = np.unique(asked, return_inverse=True)
    return rows, where


def _search(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic] | None,
    k: int,
    metric: Metric,
    asked: Ints,
) -> Search:
    rows = _checked(vectors, groups, k, metric)
    codes = np.arange(len(rows)) if groups is None else _codes(groups)
    met = np.flatnonzero(reachable(rows, codes, k))
    one = np.zeros(len(rows), dtype=np.int64)
    return Search.of(Space.of(rows, metric), Tags(codes, one, one), asked, met)


def _typed_search(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic],
    labels: Ints,
    centers: Ints,
    sizes: tuple[int, ...],
    metric: Metric,
) -> Search:
    """All rows ask; copies of a row are searched as far as they differ in label or center."""
    for name, codes in (("labels", labels), ("centers", centers)):
        if len(codes) != len(vectors):
            raise ValueError(
                f"{len(codes)} {name} for {len(vectors)} vectors: one per row is needed"
            )
    rows, codes = _checked(vectors, groups, min(sizes), metric), _codes(groups)
    kinds = np.unique(np.stack([labels, centers]), axis=1, return_inverse=True)[1].astype(np.int64)
    met = np.flatnonzero(reachable(rows, codes, max(sizes), kinds))
    return Search.of(
        Space.of(rows, metric), Tags(codes, labels, centers), np.arange(len(rows)), met
    )


def _codes(groups: NDArray[np.generic]) -> Ints:
    return np.asarray(np.unique(groups, return_inverse=True)[1], dtype=np.int64)


def _found(
    search: Search,
    asked: Ints,
    wanted: Sequence[tuple[int, Relation | None]],
    block_rows: int | None,
) -> list[Neighbours]:
    """What is wanted of each row that asks, sorted, with similarities."""
    out = [
        Neighbours(np.empty((len(asked), k), dtype=np.int64), np.empty((len(asked), k)))
        for k, _ in wanted
    ]

    def keep(number: int, rows: Ints, found: Ints) -> None:
        place = np.searchsorted(asked, rows)
        out[number].indices[place] = found
        out[number].similarity[place] = search.space.similarity(rows, found)

    search.run(wanted, keep, block_rows)
    return out


def _checked(
    vectors: NDArray[np.floating], groups: NDArray[np.generic] | None, k: int, metric: str
) -> Floats32:
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be [n, d], got shape {vectors.shape}")
    if groups is not None and len(groups) != len(vectors):
        raise ValueError(f"{len(groups)} groups for {len(vectors)} vectors: one per row is needed")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"unknown metric {metric!r}: use 'cosine' or 'euclidean'")
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    _refuse(np.isfinite(rows).all(axis=1), "hold NaN or infinity: embed these rows again")
    if metric == "cosine":
        _refuse(rows.any(axis=1), "are zero: cosine has no direction for them, leave them out")
    return rows


def _refuse(good: NDArray[np.generic] | np.generic, what: str) -> None:
    """Raise naming the first rows that are not good."""
    rows = np.flatnonzero(np.logical_not(good))
    if len(rows):
        shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        raise ValueError(f"{len(rows)} vectors {what} (rows {shown})")
