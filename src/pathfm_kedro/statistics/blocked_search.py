"""The nearest rows of every query, from blocks of products: found in float32, ordered in float64.

Rows are centred (under cosine after they were scaled to length 1), so that minus half of their
squared distance, ``x·y − ‖x‖²/2 − ‖y‖²/2``, ranks them by either metric. It is as good for y's query
as for x's: where all rows ask and are asked, each product serves both, and half of them is left out.
Products of blocks that nobody asks for are not made.

Every score is known to an error bound (Higham 2002, §3.1). A row within twice the bound of the k-th
best is kept as a candidate, and candidates that lie as close to each other are ordered by float64.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.equal_rows import count_before

Floats32 = NDArray[np.float32]
Floats64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Metric = Literal["cosine", "euclidean"]
#: Which rows may be found, from whether they share the query's label and its center; symmetric.
Relation = Callable[[Bools, Bools], Bools]
Part = TypeVar("Part")

#: Rows of a block: the product of two blocks stays in the processor's cache.
BLOCK_ROWS = 1024

#: Pairs scored at once in float64: both sides stay in the processor's cache.
_PAIRS = 64

#: Threads, each with the products of its own blocks: what they do beside is no work for more.
_MAX_WORKERS = 16

#: Unit roundoff of float32.
_ROUNDOFF = 2.0**-24

#: From this many candidates per neighbour wanted, a sharper bound is sought first.
_MANY = 4

_LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True)
class Space:
    """Rows in which neighbours are sought.

    Attributes
    ----------
    vectors
        [n, d] as given.
    norms
        [n] their lengths.
    metric
        ``cosine`` or ``euclidean``.
    centred
        [n, d] less their mean, under cosine of length 1 before.
    halves
        [n] half of the squared length of each centred row.
    error
        [n] bound of the error of any score of a query.
    """

    vectors: Floats32
    norms: Floats64
    metric: Metric
    centred: Floats32
    halves: Floats32
    error: Floats64

    @classmethod
    def of(cls, vectors: Floats32, metric: Metric) -> Space:
        """Rows [n, d], finite; not zero under cosine."""
        norms = np.sqrt(_squares(vectors))
        centred: Floats32
        if metric == "cosine":
            centred = np.asarray(vectors / norms[:, None].astype(np.float32), dtype=np.float32)
            scale = np.ones(len(vectors))
        else:
            centred, scale = vectors.copy(), norms
        centred -= centred.mean(axis=0, dtype=np.float64).astype(np.float32)
        halves = 0.5 * _squares(centred)
        length = np.sqrt(2 * halves)
        span = length + length.max(initial=0.0)
        # Of the product and the two sums; and of the rows, rounded relative to their own lengths.
        rounding = (vectors.shape[1] / 4 + 5) * span**2
        own = 8 * (scale + scale.max(initial=0.0)) * span
        return cls(
            vectors, norms, metric, centred, halves.astype(np.float32), _ROUNDOFF * (rounding + own)
        )

    def similarity(self, queries: Ints, found: Ints) -> Floats64:
        """[q, k] float64 cosine, or negative distance, of queries and rows found; −inf for a row of −1.

        Each is summed in the same order wherever it stands.
        """
        out = np.empty(found.shape)
        step = max(_PAIRS // max(found.shape[1], 1), 1)
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            query = self.vectors[queries[part]].astype(np.float64)
            near = np.take(self.vectors, found[part], axis=0).astype(np.float64)
            if self.metric == "euclidean":
                near -= query[:, None]
                np.einsum("qkd,qkd->qk", near, near, out=out[part])
            else:
                np.einsum("qkd,qd->qk", near, query, out=out[part])
        if self.metric == "euclidean":
            similarity = -np.sqrt(out)
        else:
            similarity = np.clip(out / (self.norms[queries, None] * self.norms[found]), -1.0, 1.0)
        return np.where(found < 0, -np.inf, similarity)


def _squares(rows: Floats32) -> Floats64:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


@dataclass(frozen=True)
class Tags:
    """What decides who may be whose neighbour; all arrays are [n].

    Attributes
    ----------
    groups
        Rows of a query's group are never its neighbours.
    labels, centers
        Codes; a relation compares them.
    """

    groups: Ints
    labels: Ints
    centers: Ints

    def order(self, rows: Ints) -> Ints:
        """The rows, those of a label and center together, and of a group among them."""
        return rows[np.lexsort((rows, self.groups[rows], self.centers[rows], self.labels[rows]))]


@dataclass(frozen=True)
class Block:
    """Neighbouring rows in the order of a search.

    Attributes
    ----------
    place
        Where they stand.
    groups
        [b].
    labels, centers
        [b], or [1] if all are the same.
    """

    place: slice
    groups: Ints
    labels: Ints
    centers: Ints


def blocks_of(tags: Tags, rows: Ints, size: int) -> list[Block]:
    """Blocks of at most `size` ordered rows, of one label and center where these have many."""
    labels, centers, groups = tags.labels[rows], tags.centers[rows], tags.groups[rows]
    new = np.flatnonzero((np.diff(labels) != 0) | (np.diff(centers) != 0)) + 1
    edges = [0]
    for start, end in itertools.pairwise([0, *new.tolist(), len(rows)]):
        if end - start >= size // 2:
            edges += [start, end]
    edges = sorted({*edges, len(rows)})
    places = [
        slice(low, min(low + size, end))
        for start, end in itertools.pairwise(edges)
        for low in range(start, end, size)
    ]
    return [Block(p, groups[p], _common(labels[p]), _common(centers[p])) for p in places]


def _common(codes: Ints) -> Ints:
    return codes[:1] if (codes == codes[0]).all() else codes


@dataclass
class Nearest:
    """The k best rows of every query under one relation, as far as blocks were searched.

    Attributes
    ----------
    k
        How many are sought.
    relation
        Which rows may be found; None for any.
    margin
        [q] scores of a query that lie closer may stand in either order.
    n_blocks
        Blocks of queries.
    """

    k: int
    relation: Relation | None
    margin: Floats64
    n_blocks: int
    _best: Floats32 = field(init=False, repr=False)
    _floor: Floats32 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Nothing was found yet."""
        self._best = np.full((len(self.margin), self.k), -np.inf, dtype=np.float32)
        self._floor = np.full(len(self.margin), _LOWEST)
        self._found: list[list[tuple[Ints, Ints, Floats32]]] = [[] for _ in range(self.n_blocks)]
        self._locks = [Lock() for _ in range(self.n_blocks)]

    def allowed(self, asking: Block, met: Block) -> Bools:
        """Whether rows of a block may be found by those of another: as small as the blocks allow."""
        if self.relation is None:
            return np.ones((1, 1), dtype=np.bool_)
        return self.relation(
            asking.labels[:, None] == met.labels, asking.centers[:, None] == met.centers
        )

    def add(self, scores: Floats32, chosen: Bools, number: int, asking: Block, met: Block) -> None:
        """Candidates among scores [queries, rows] of two blocks."""
        self._choose(scores, chosen, asking)
        flat = np.flatnonzero(chosen)
        query, row = np.divmod(flat, scores.shape[1])
        self._merge(number, asking, query, row + met.place.start, scores.ravel()[flat])

    def add_transposed(
        self, scores: Floats32, chosen: Bools, number: int, asking: Block, met: Block
    ) -> None:
        """Candidates among scores [rows, queries] of two blocks."""
        self._choose(scores.T, chosen.T, asking)
        flat = np.flatnonzero(chosen)
        row, query = np.divmod(flat, scores.shape[1])
        order = _by_query(query)
        found = row[order] + met.place.start
        self._merge(number, asking, query[order], found, scores.ravel()[flat[order]])

    def _choose(self, scores: Floats32, chosen: Bools, asking: Block) -> None:
        """Mark which of the scores [queries, rows] may be among the best."""
        floor = self._floor[asking.place]
        np.greater_equal(scores, floor[:, None], out=chosen)
        if np.count_nonzero(chosen) > _MANY * self.k * len(scores):
            floor = np.maximum(floor, self._below(_kth_best(scores, self.k), asking))
            np.greater_equal(scores, floor[:, None], out=chosen)

    def _below(self, bound: Floats32, asking: Block) -> Floats32:
        """What no candidate lies below, where the k-th best is at least `bound`."""
        floor = (bound - self.margin[asking.place]).astype(np.float32)
        return np.maximum(floor, _LOWEST)

    def _merge(self, number: int, asking: Block, query: Ints, row: Ints, scores: Floats32) -> None:
        """Note candidates, sorted by query, and raise the floor of their queries."""
        if not len(query):
            return
        new = np.concatenate([[True], query[1:] != query[:-1]])
        touched, which, rank = query[new], np.cumsum(new) - 1, count_before(query)
        width = int(rank.max()) + 1
        padded = np.full((len(touched), width + self.k), -np.inf, dtype=np.float32)
        padded[which, rank] = scores
        at = asking.place.start + touched
        with self._locks[number]:
            padded[:, width:] = self._best[at]
            padded.partition(width, axis=1)
            self._best[at] = padded[:, width:]
            floor = padded[:, width] - self.margin[at]
            self._floor[at] = np.maximum(floor, _LOWEST).astype(np.float32)
            kept = scores >= self._floor[at][which]
            self._found[number].append((query[kept], row[kept], scores[kept]))

    def candidates(self, number: int, asking: Block) -> tuple[Ints, Ints, Floats32]:
        """Queries of a block, rows found for them and their scores, best first within a query."""
        if not self._found[number]:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, np.zeros(0, dtype=np.float32)
        query, row, scores = map(np.concatenate, zip(*self._found[number], strict=True))
        kept = np.flatnonzero(scores >= self._floor[asking.place][query])
        kept = kept[np.argsort(-scores[kept])]
        kept = kept[_by_query(query[kept])]
        return query[kept], row[kept], scores[kept]


def _by_query(query: Ints) -> Ints:
    """Order by query, those of a query as they stand: integers of two bytes are sorted by counting."""
    few = np.min_scalar_type(int(query.max(initial=0)))
    return np.argsort(query.astype(few), kind="stable")


def _kth_best(scores: Floats32, k: int) -> Floats32:
    """[b] lower bound of the k-th best of each row; −inf where fewer than k are eligible.

    Columns fall into interleaved sets; the k-th largest of the sets' maxima is reached by k
    different columns at least. It costs one pass instead of a partition of whole rows.
    """
    rows, n = scores.shape
    folds = int(np.clip(n // (16 * k), 1, 64))
    width = n // folds
    if width < k:
        return np.full(rows, -np.inf, dtype=np.float32)
    maxima = np.ascontiguousarray(
        scores[:, : folds * width].reshape(rows, folds, width).max(axis=1)
    )
    maxima.partition(width - k, axis=1)
    return np.ascontiguousarray(maxima[:, width - k])


@dataclass(frozen=True)
class Search:
    """Who asks among which rows, in blocks.

    Attributes
    ----------
    space, tags
        The rows.
    asking, met
        [q], [m] rows in the order of the search; the same where all rows ask and are asked.
    mutual
        Whether they are.
    """

    space: Space
    tags: Tags
    asking: Ints
    met: Ints
    mutual: bool

    @classmethod
    def of(cls, space: Space, tags: Tags, asking: Ints, met: Ints) -> Search:
        """Of rows that ask, and rows that may be found, in any order."""
        asking, met = tags.order(asking), tags.order(met)
        return cls(space, tags, asking, met, np.array_equal(asking, met))

    def run(
        self,
        wanted: Sequence[tuple[int, Relation | None]],
        keep: Callable[[int, Ints, Ints], None],
        size: int | None = None,
    ) -> None:
        """Find the k nearest under each relation.

        Parameters
        ----------
        wanted
            How many, and which rows may be found.
        keep
            Is given the number of what was wanted, [b] rows that ask, and [b, k] rows found; −1
            where there are fewer. Several threads call it.
        size
            Rows of a block.
        """
        size = size or BLOCK_ROWS
        queries = blocks_of(self.tags, self.asking, size)
        rows = queries if self.mutual else blocks_of(self.tags, self.met, size)
        margin = 2 * self.space.error[self.asking]
        sought = [Nearest(k, relation, margin, len(queries)) for k, relation in wanted]
        self._each_pair(sought, queries, rows, size)

        def ordered(numbers: Iterator[int]) -> None:
            for number in numbers:
                asking = self.asking[queries[number].place]
                for i, nearest in enumerate(sought):
                    keep(i, asking, self._ordered(nearest, number, queries[number]))

        share_out(ordered, range(len(queries)))

    def _each_pair(
        self, sought: Sequence[Nearest], queries: list[Block], rows: list[Block], size: int
    ) -> None:
        pairs = list(self._pairs(sought, queries, rows))
        asked = self._sorted(self.asking)
        met = asked if self.mutual else self._sorted(self.met)

        def scored(mine: Iterator[tuple[int, int]]) -> None:
            space = np.empty(size * size, np.float32), np.empty(size * size, np.bool_)
            for i, j in mine:
                scores = _scores(asked, met, queries[i], rows[j], space[0])
                chosen = space[1][: scores.size].reshape(scores.shape)
                for nearest in sought:
                    allowed = nearest.allowed(queries[i], rows[j])
                    if not allowed.any():
                        continue
                    seen = scores if allowed.all() else np.where(allowed, scores, -np.inf)
                    nearest.add(seen, chosen, i, queries[i], rows[j])
                    if self.mutual and i != j:
                        nearest.add_transposed(seen, chosen, j, queries[j], rows[i])

        share_out(scored, pairs)

    def _sorted(self, rows: Ints) -> tuple[Floats32, Floats32]:
        return self.space.centred[rows], self.space.halves[rows]

    def _pairs(
        self, sought: Sequence[Nearest], queries: list[Block], rows: list[Block]
    ) -> Iterator[tuple[int, int]]:
        """Pairs of blocks that somebody asks for; those near each other in the order first."""
        pairs = sorted(
            itertools.product(range(len(queries)), range(len(rows))),
            key=lambda ij: abs(ij[0] - ij[1]),
        )
        for i, j in pairs:
            if self.mutual and j < i:
                continue
            if any(nearest.allowed(queries[i], rows[j]).any() for nearest in sought):
                yield i, j

    def _ordered(self, nearest: Nearest, number: int, block: Block) -> Ints:
        """[b, k] rows by (−similarity, row) within each query.

        Scores of one query further apart than its margin are in the right order. Runs of closer
        ones are compared in float64, unless they begin beyond the k-th.
        """
        query, row, scores = nearest.candidates(number, block)
        asking, found = self.asking[block.place][query], self.met[row]
        rank = count_before(query)
        close = np.zeros(len(query) + 1, dtype=np.bool_)
        gap = scores[:-1].astype(np.float64) - scores[1:]
        close[1:-1] = (rank[1:] > 0) & (gap <= nearest.margin[block.place][query[1:]])
        run = np.cumsum(~close[:-1], dtype=np.int64)
        first = rank - count_before(run)
        doubtful = np.flatnonzero((close[:-1] | close[1:]) & (first < nearest.k))
        right = found[doubtful]
        exact = self.space.similarity(asking[doubtful], right[:, None])[:, 0]
        found[doubtful] = right[np.lexsort((right, -exact, run[doubtful]))]
        best = np.full((block.place.stop - block.place.start, nearest.k), -1, dtype=np.int64)
        within = rank < nearest.k
        best[query[within], rank[within]] = found[within]
        return best


def _scores(
    asked: tuple[Floats32, Floats32],
    met: tuple[Floats32, Floats32],
    queries: Block,
    rows: Block,
    space: Floats32,
) -> Floats32:
    """[b, w] minus half of the squared distances; −inf for rows of the query's group."""
    left, right = asked[0][queries.place], met[0][rows.place]
    scores = space[: len(left) * len(right)].reshape(len(left), len(right))
    np.matmul(left, right.T, out=scores)
    scores -= met[1][rows.place]
    scores -= asked[1][queries.place, None]
    shared = np.flatnonzero(np.isin(rows.groups, queries.groups))
    if len(shared):
        band = slice(int(shared[0]), int(shared[-1]) + 1)
        scores[:, band][queries.groups[:, None] == rows.groups[band]] = -np.inf
    return scores


def share_out(work: Callable[[Iterator[Part]], None], parts: Sequence[Part]) -> None:
    """Parts taken by a few threads in turn, each with one thread of BLAS: more would wait."""
    from threadpoolctl import threadpool_limits

    workers = min(_MAX_WORKERS, os.cpu_count() or 1, max(len(parts), 1))
    left = iter(parts)
    if workers == 1:
        work(left)
        return
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, [left] * workers))
