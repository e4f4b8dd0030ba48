"""Exact nearest neighbours that do not depend on threads, block size or BLAS library."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Floats64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Literal["cosine", "euclidean"]

#: Scores in memory at once by one thread: large enough for BLAS, small beside a laptop's memory.
BLOCK_BYTES = 32 * 2**20

#: Pairs scored at once in float64: both sides stay in the processor's cache.
_PAIRS = 64

#: Rows compared at once in the search for equal ones.
_COMPARED = 1024

#: More threads than this wait for each other: the matrix product has its own.
_MAX_WORKERS = 4

#: Unit roundoff of float32.
_ROUNDOFF = 2.0**-24


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


@dataclass(frozen=True)
class _Search:
    """What every block of queries needs; columns are the rows searched, sorted by group."""

    vectors: Floats32
    norms: Floats64
    codes: Ints
    metric: Metric
    k: int
    columns: Ints
    column_codes: Ints
    centred: Floats32
    bias: Floats32 | None
    offset: Floats64
    reach: float


@dataclass(frozen=True)
class _Pairs:
    """Queries of a block and rows found for them, sorted by query; all arrays are [m]."""

    asking: Ints
    found: Ints


@dataclass(frozen=True)
class _Workspace:
    """Buffers of one thread: fresh memory for every block costs more than the arithmetic."""

    scores: Floats32
    part: Floats32
    chosen: NDArray[np.bool_]
    left: Floats64
    right: Floats64

    @classmethod
    def of(cls, search: _Search, block: int) -> _Workspace:
        n, d = len(search.columns), search.vectors.shape[1]
        return cls(
            np.empty((block, n), np.float32),
            np.empty(block * n, np.float32),
            np.empty(block * n, np.bool_),
            np.empty((_PAIRS, d)),
            np.empty((_PAIRS, d)),
        )


def nearest_neighbours(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic] | None,
    k: int,
    metric: Metric = "cosine",
    queries: Ints | None = None,
    block_rows: int | None = None,
) -> Neighbours:
    """Exact k nearest rows of each query outside the query's own group.

    Candidates come from a blocked float32 matrix product whose rounding error is at most
    ε = (d + 8)·2⁻²⁴·|x|·|y| (Higham 2002, §3.1). Every row within 2ε of a lower bound of the k-th
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
        Queries per block; by default as many as :data:`BLOCK_BYTES` of scores allow.

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
    search, asking = _started(vectors, groups, k, metric, queries)
    out = _nothing_found(len(asking), k)

    def keep(space: _Workspace, place: Ints) -> None:
        rows = asking[place]
        found = _search_block(search, space, rows)
        out.indices[place] = found
        out.similarity[place] = _similarities(search, space, rows, found)

    _each_block(search, asking, block_rows, keep)
    return out


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
    search, asking = _started(vectors, groups, k, metric, queries)
    indices = np.full((len(asking), k), -1, dtype=np.int64)

    def keep(space: _Workspace, place: Ints) -> None:
        indices[place] = _search_block(search, space, asking[place])

    _each_block(search, asking, block_rows, keep)
    return indices


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
    for name, codes in (("labels", labels), ("centers", centers)):
        if len(codes) != len(vectors):
            raise ValueError(
                f"{len(codes)} {name} for {len(vectors)} vectors: one per row is needed"
            )
    rows = _checked(vectors, groups, min(k, m), metric)
    kinds = np.unique(np.stack([labels, centers]), axis=1, return_inverse=True)[1].astype(np.int64)
    search = _prepare(rows, _in_order_of(kinds, groups), k, metric, kinds, max(k, m))
    asking = np.arange(len(rows))
    nearest, same_label, same_center = (_nothing_found(len(rows), size) for size in (k, m, m))
    label, center = labels[search.columns], centers[search.columns]

    def keep(space: _Workspace, place: Ints) -> None:
        scores, error = _masked_scores(search, space, place)
        first = place[0]
        of_label, of_center = label == labels[first], center == centers[first]
        for out, kept in (
            (nearest, None),
            (same_label, of_label & ~of_center),
            (same_center, of_center & ~of_label),
        ):
            found = _best(search, space, place, scores, error, out.indices.shape[1], kept)
            out.indices[place] = found
            out.similarity[place] = _similarities(search, space, place, found)

    _each_block(search, asking, block_rows, keep, kinds)
    return TypedNeighbours(nearest, same_label, same_center)


def _in_order_of(kinds: Ints, groups: NDArray[np.generic]) -> Ints:
    """Codes of groups, ordered by the kind of their first row.

    Queries of a block share a kind, so that their groups stand next to each other.
    """
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(kinds[first], kind="stable")] = np.arange(len(first))
    return rank[codes]


def _nothing_found(n: int, k: int) -> Neighbours:
    return Neighbours(np.full((n, k), -1, dtype=np.int64), np.full((n, k), -np.inf))


def _similarities(search: _Search, space: _Workspace, rows: Ints, found: Ints) -> Floats64:
    """[b, k] float64 similarities of the neighbours found; −inf where there is none."""
    there = found >= 0
    scores = np.full(found.shape, -np.inf)
    scores[there] = _exact(search, space, np.repeat(rows, there.sum(axis=1)), found[there])
    return scores


def _started(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic] | None,
    k: int,
    metric: Metric,
    queries: Ints | None,
) -> tuple[_Search, Ints]:
    vectors = _checked(vectors, groups, k, metric)
    asking = np.arange(len(vectors)) if queries is None else np.asarray(queries, dtype=np.int64)
    return _prepare(vectors, groups, k, metric), asking


def _each_block(
    search: _Search,
    asking: Ints,
    block_rows: int | None,
    work: Callable[[_Workspace, Ints], None],
    kinds: Ints | None = None,
) -> None:
    """Give `work` the places of each block's queries among `asking`.

    Queries are taken by group, so that those of a block share a narrow band of own columns; with
    `kinds` those of a block are of one kind.
    """
    block = block_rows or int(np.clip(BLOCK_BYTES // (4 * max(len(search.columns), 1)), 16, 1024))
    codes = search.codes[asking]
    kind = np.zeros_like(codes) if kinds is None else kinds[asking]
    order = np.lexsort((codes, kind))
    edges = [0, *(np.flatnonzero(np.diff(kind[order])) + 1), len(order)]
    parts = [
        order[start : min(start + block, end)]
        for begin, end in itertools.pairwise(edges)
        for start in range(begin, end, block)
    ]

    def share(mine: Sequence[Ints]) -> None:
        space = _Workspace.of(search, min(block, max(map(len, mine), default=0)))
        for place in mine:
            work(space, place)

    _share_out(share, parts)


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


def _prepare(
    vectors: Floats32,
    groups: NDArray[np.generic] | None,
    k: int,
    metric: Metric,
    kinds: Ints | None = None,
    most: int = 0,
) -> _Search:
    """Columns sorted by group, so that a query's own group is one contiguous band.

    With `kinds`, columns are kept that are among the `most` nearest of their kind.
    """
    codes = (
        np.arange(len(vectors))
        if groups is None
        else np.unique(groups, return_inverse=True)[1].astype(np.int64)
    )
    columns = np.flatnonzero(_reachable(vectors, codes, max(k, most), kinds))
    columns = columns[np.argsort(codes[columns], kind="stable")]
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    # The mean adds the same amount to every score of a query; without it scores are smaller, and so
    # is their rounding error. It matters for encoders whose embeddings share a direction.
    if metric == "cosine":
        unit = vectors / norms[:, None].astype(np.float32)
        offset = np.zeros(vectors.shape[1])
        centred = unit[columns] - unit.mean(axis=0)
        bias = None
    else:
        offset = vectors.mean(axis=0, dtype=np.float64)
        centred = (vectors[columns] - offset).astype(np.float32)
        bias = (0.5 * np.einsum("ij,ij->i", centred, centred, dtype=np.float64)).astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred, dtype=np.float64))
    reach = float(lengths.max(initial=0.0))
    return _Search(
        vectors, norms, codes, metric, k, columns, codes[columns], centred, bias, offset, reach
    )


def _reachable(
    vectors: Floats32, codes: Ints, k: int, kinds: Ints | None = None
) -> NDArray[np.bool_]:
    """[n] whether a row can be among the k nearest of any query.

    Equal rows are tied for every query and the smaller index goes first. A row is hence out of reach if
    k equal rows stand before it in its own group (who may be given it may be given them), or if
    k stand before it whichever group is left out. Rows of different `kinds` do not compete.
    """
    kind = _equal_rows(vectors)
    if kinds is not None:
        kind = kind * (int(kinds.max(initial=0)) + 1) + kinds
    order = np.argsort(kind, kind="stable")
    before = _count_before(kind[order])
    if before.max(initial=0) < k:
        return np.ones(len(vectors), dtype=np.bool_)
    _, pair = np.unique(np.stack([kind, codes])[:, order], axis=1, return_inverse=True)
    within = np.argsort(pair, kind="stable")
    before_in_group = np.empty(len(order), dtype=np.int64)
    before_in_group[within] = _count_before(pair[within])
    # Largest number of a group's copies so far, started anew for every kind.
    base = kind[order] * (len(order) + 1)
    most = np.maximum.accumulate(base + before_in_group + 1) - base
    # The row itself is counted too: at most, a few rows more than needed are searched.
    reachable = np.empty(len(order), dtype=np.bool_)
    reachable[order] = (before_in_group < k) & (before - most < k)
    return reachable


def _equal_rows(vectors: Floats32) -> Ints:
    """[n] codes that are equal only for equal rows (rows with −0 for 0 count as different)."""
    factors = _hash_factors(vectors.shape[1])
    hashes = np.einsum("ij,j->i", vectors.view(np.uint32), factors, dtype=np.uint64)
    _, first, kind, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    repeated = np.flatnonzero(counts[kind] > 1)
    equal = np.ones(len(repeated), dtype=np.bool_)
    for start in range(0, len(repeated), _COMPARED):
        rows = repeated[start : start + _COMPARED]
        same = vectors[rows] == vectors[first[kind[rows]]]
        equal[start : start + _COMPARED] = same.all(axis=1)
    collided = repeated[~equal]
    kind[collided] = len(first) + np.arange(len(collided))
    return kind.astype(np.int64)


def _hash_factors(d: int) -> NDArray[np.uint64]:
    """[d] odd numbers that make a hash of a row's bits."""
    return np.random.default_rng(0).integers(2**63, size=d, dtype=np.uint64) | np.uint64(1)


def _count_before(keys: Ints) -> Ints:
    """How many equal keys stand before each; the keys are sorted."""
    new = np.ones(len(keys), dtype=np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(new)
    places = np.arange(len(keys), dtype=np.int64)
    return places - np.repeat(starts, np.diff([*starts, len(keys)]))


def _share_out(work: Callable[[Sequence[Ints]], None], blocks: Sequence[Ints]) -> None:
    """Blocks given to a few threads: one is in the matrix product while another re-scores."""
    workers = min(_MAX_WORKERS, os.cpu_count() or 1, max(len(blocks), 1))
    if workers == 1:
        work(blocks)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, [blocks[i::workers] for i in range(workers)]))


def _search_block(search: _Search, space: _Workspace, rows: Ints) -> Ints:
    """[b, k] neighbours of a block of queries, which are sorted by group."""
    scores, error = _masked_scores(search, space, rows)
    return _best(search, space, rows, scores, error, search.k)


def _masked_scores(search: _Search, space: _Workspace, rows: Ints) -> tuple[Floats32, Floats64]:
    """Scores of a block of queries, sorted by group, and their error bound; −inf for own groups."""
    scores, error = _scores(search, rows, space)
    _mask_own_group(scores, search.column_codes, search.codes[rows])
    return scores, error


def _best(
    search: _Search,
    space: _Workspace,
    rows: Ints,
    scores: Floats32,
    error: Floats64,
    k: int,
    kept: NDArray[np.bool_] | None = None,
) -> Ints:
    """[b, k] best columns of each query, of all or of the kept ones."""
    columns = search.columns
    if kept is not None:
        columns = columns[kept]
        part = space.part[: len(rows) * len(columns)].reshape(len(rows), len(columns))
        scores = np.take(scores, np.flatnonzero(kept), axis=1, out=part, mode="clip")
    floor = np.maximum(_kth_best_bound(scores, k) - 2 * error, np.finfo(np.float32).min)
    chosen = space.chosen[: scores.size].reshape(scores.shape)
    np.greater_equal(scores, floor.astype(np.float32)[:, None], out=chosen)
    flat = np.flatnonzero(chosen)
    asking, column = np.divmod(flat, max(scores.shape[1], 1))
    pairs = _Pairs(asking, columns[column])
    ranked, rank = _ranked(search, space, rows, pairs, scores.ravel()[flat], 2 * error, k)
    indices = np.full((len(rows), k), -1, dtype=np.int64)
    within = rank < k
    indices[asking[within], rank[within]] = ranked[within]
    return indices


def _scores(search: _Search, rows: Ints, space: _Workspace) -> tuple[Floats32, Floats64]:
    """[b, m] float32 scores that rank the columns of each query, and their error bound [b]."""
    out = space.scores[: len(rows)]
    if search.metric == "cosine":
        asked = search.vectors[rows] / search.norms[rows, None].astype(np.float32)
        scores = np.matmul(asked, search.centred.T, out=out)
        size = np.ones(len(rows)) * search.reach
        # Rounding of the unit vectors and of the centring is relative to 1, not to `reach`.
        own = 8 * _ROUNDOFF * np.ones(len(rows))
    else:
        asked = (search.vectors[rows] - search.offset).astype(np.float32)
        scores = np.matmul(asked, search.centred.T, out=out)
        scores -= search.bias
        length = np.sqrt(np.einsum("ij,ij->i", asked, asked, dtype=np.float64))
        size = (length + search.reach) * search.reach
        norm = search.norms[rows] + float(search.norms.max(initial=0.0))
        own = 8 * _ROUNDOFF * norm * (length + search.reach)
    dimension = search.vectors.shape[1]
    return scores, (dimension + 8) * _ROUNDOFF * size + own


def _mask_own_group(scores: Floats32, columns: Ints, asked: Ints) -> None:
    """−inf in the band of columns that share a group with a query of the block (in place)."""
    low = np.searchsorted(columns, asked[0], side="left")
    high = np.searchsorted(columns, asked[-1], side="right")
    band = scores[:, low:high]
    band[asked[:, None] == columns[None, low:high]] = -np.inf


def _kth_best_bound(scores: Floats32, k: int) -> Floats64:
    """[b] lower bound of the k-th best score; −inf where fewer than k columns are eligible.

    Columns fall into c interleaved sets; the k-th largest of the sets' maxima is reached by k
    different columns at least. It costs one pass instead of a partition of whole rows.
    """
    rows, n = scores.shape
    folds = int(np.clip(n // (16 * k), 1, 64))
    width = n // folds
    if width < k:
        return np.full(rows, -np.inf)
    maxima = scores[:, : folds * width].reshape(rows, folds, width).max(axis=1)
    return np.partition(maxima, width - k, axis=1)[:, width - k].astype(np.float64)


def _exact(search: _Search, space: _Workspace, left: Ints, right: Ints) -> Floats64:
    """Float64 similarity of pairs of rows, each summed in the same order wherever it stands."""
    out = np.empty(len(left))
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        a, b = space.left[: len(left[part])], space.right[: len(left[part])]
        a[...] = search.vectors[left[part]]
        b[...] = search.vectors[right[part]]
        if search.metric == "euclidean":
            a -= b
            b = a
        np.einsum("ij,ij->i", a, b, out=out[part])
    if search.metric == "euclidean":
        return -np.sqrt(out)
    return np.clip(out / (search.norms[left] * search.norms[right]), -1.0, 1.0)


def _ranked(
    search: _Search,
    space: _Workspace,
    rows: Ints,
    pairs: _Pairs,
    scores: Floats32,
    margin: Floats64,
    k: int,
) -> tuple[Ints, Ints]:
    """Rows found by (−similarity, index) within each query, and their rank from 0.

    Scores of one query further apart than its margin are in the right order. Runs of closer ones
    are compared in float64, unless they begin beyond the k-th.
    """
    order = np.lexsort((-scores, pairs.asking))
    found, scores = pairs.found[order], scores[order]
    rank = _count_before(pairs.asking)
    close = np.zeros(len(order) + 1, dtype=np.bool_)
    gap = scores[:-1].astype(np.float64) - scores[1:]
    close[1:-1] = (rank[1:] > 0) & (gap <= margin[pairs.asking[1:]])
    run = np.cumsum(~close[:-1], dtype=np.int64)
    first = rank - _count_before(run)
    doubtful = np.flatnonzero((close[:-1] | close[1:]) & (first < k))
    left, right = rows[pairs.asking[doubtful]], found[doubtful]
    exact = _exact(search, space, left, right)
    found[doubtful] = right[np.lexsort((right, -exact, run[doubtful]))]
    return found, rank
