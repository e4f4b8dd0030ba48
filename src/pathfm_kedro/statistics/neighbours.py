"""Exact nearest neighbours that do not depend on threads, block size or BLAS library."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Floats64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Literal["cosine", "euclidean"]

#: Scores held at once by one thread: large enough for BLAS, small beside a laptop's memory.
BLOCK_BYTES = 32 * 2**20

#: Pairs scored at once in float64: both sides stay in the processor's cache.
_PAIRS = 64

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
class _Search:
    """What every block of queries needs; columns are sorted by group."""

    vectors: Floats32
    norms: Floats64
    metric: Metric
    k: int
    order: Ints
    groups: Ints
    centred: Floats32
    bias: Floats32 | None
    offset: Floats64
    reach: float


@dataclass(frozen=True)
class _Workspace:
    """Buffers of one thread: fresh memory for every block costs more than the arithmetic."""

    scores: Floats32
    chosen: NDArray[np.bool_]
    left: Floats64
    right: Floats64

    @classmethod
    def of(cls, search: _Search, block: int) -> _Workspace:
        n, d = search.vectors.shape
        return cls(
            np.empty((block, n), np.float32),
            np.empty((block, n), np.bool_),
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

    Candidates come from a blocked float32 matrix product and are re-scored in float64 in a fixed
    order. The product's rounding error is at most ε = (d + 8)·2⁻²⁴·|x|·|y| (Higham 2002, §3.1),
    so every row within 2ε of a lower bound of the k-th best score is re-scored, and none that
    belongs among the k can be missed. Ties go to the smaller row index; similarities closer than
    float64 roundoff (10⁻¹⁵) may count as tied or not. Hence the result is the
    same for any number of threads, any block size and any BLAS.

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
    vectors = _checked(vectors, groups, k, metric)
    asking = np.arange(len(vectors)) if queries is None else np.asarray(queries, dtype=np.int64)
    search = _prepare(vectors, groups, k, metric)
    place = np.empty(len(vectors), dtype=np.int64)
    place[search.order] = np.arange(len(vectors))
    rank = np.argsort(place[asking], kind="stable")
    asked_in_order = asking[rank]
    block = block_rows or int(np.clip(BLOCK_BYTES // (4 * max(len(vectors), 1)), 16, 1024))
    indices = np.full((len(asking), k), -1, dtype=np.int64)
    similarity = np.full((len(asking), k), -np.inf)
    rank = np.argsort(place[asking], kind="stable")

    def fill(share: range) -> None:
        space = _Workspace.of(search, block)
        for start in share:
            rows = asked_in_order[start : start + block]
            found, scores = _search_block(search, space, rows, place[rows])
            indices[rank[start : start + block]] = found
            similarity[rank[start : start + block]] = scores

    _share_out(fill, range(0, len(asking), block))
    return Neighbours(indices, similarity)


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
    vectors: Floats32, groups: NDArray[np.generic] | None, k: int, metric: Metric
) -> _Search:
    """Columns sorted by group, so that a query's own group is one contiguous band."""
    n = len(vectors)
    codes = (
        np.arange(n)
        if groups is None
        else np.unique(groups, return_inverse=True)[1].astype(np.int64)
    )
    order = np.argsort(codes, kind="stable")
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    # The mean adds the same amount to every score of a query; without it scores are smaller, and so
    # is their rounding error. It matters for encoders whose embeddings share a direction.
    if metric == "cosine":
        unit = vectors / norms[:, None].astype(np.float32)
        offset = np.zeros(vectors.shape[1])
        centred = (unit - unit.mean(axis=0))[order]
        bias = None
    else:
        offset = vectors.mean(axis=0, dtype=np.float64)
        centred = (vectors - offset).astype(np.float32)[order]
        bias = (0.5 * np.einsum("ij,ij->i", centred, centred, dtype=np.float64)).astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred, dtype=np.float64))
    reach = float(lengths.max(initial=0.0))
    return _Search(vectors, norms, metric, k, order, codes[order], centred, bias, offset, reach)


def _share_out(work: Callable[[range], None], starts: range) -> None:
    """Blocks dealt to a few threads: one is in the matrix product while another re-scores."""
    workers = min(_MAX_WORKERS, os.cpu_count() or 1, max(len(starts), 1))
    if workers == 1:
        work(starts)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, [starts[i::workers] for i in range(workers)]))


def _search_block(
    search: _Search, space: _Workspace, rows: Ints, places: Ints
) -> tuple[Ints, Floats64]:
    """Neighbours of a block of queries given by row and by place in the sorted columns."""
    scores, error = _scores(search, rows, space.scores[: len(rows)])
    _mask_own_group(scores, search.groups, search.groups[places])
    floor = np.maximum(_kth_best_bound(scores, search.k) - 2 * error, np.finfo(np.float32).min)
    chosen = space.chosen[: len(rows)]
    np.greater_equal(scores, floor.astype(np.float32)[:, None], out=chosen)
    flat = np.flatnonzero(chosen)
    asking, column = np.divmod(flat, scores.shape[1])
    found = search.order[column]
    exact = _exact(search, space, rows[asking], found)
    return _top(asking, found, exact, len(rows), search.k)


def _scores(search: _Search, rows: Ints, out: Floats32) -> tuple[Floats32, Floats64]:
    """[b, n] float32 scores that rank the columns of each query, and their error bound [b]."""
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


def _top(
    asking: Ints, found: Ints, exact: Floats64, n_queries: int, k: int
) -> tuple[Ints, Floats64]:
    """The k best candidates of each query by (−similarity, index)."""
    indices = np.full((n_queries, k), -1, dtype=np.int64)
    similarity = np.full((n_queries, k), -np.inf)
    best = np.lexsort((found, -exact, asking))
    counts = np.bincount(asking, minlength=n_queries)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(best)) - np.repeat(first, counts)
    kept = rank < k
    where = (asking[best][kept], rank[kept])
    indices[where] = found[best][kept]
    similarity[where] = exact[best][kept]
    return indices, similarity
