r"""How many documents can be distinguished by single vectors: vectors that are free to be anything.

Every set of k of n documents is a query. Queries and documents are unit vectors in d dimensions; a
query is answered where its k documents have the k largest dot products, and the problem is solved
where all C(n, k) queries are. No model is in between: what free vectors cannot do, no encoder can.

Optimised as published (Weller et al. 2025, arXiv 2508.21038): vectors N(0, 1), scaled to length 1;
full-batch InfoNCE averaged over positive pairs,

.. math:: L = -\frac{1}{|P|} \sum_{(q, p) \in P} \log
          \frac{\exp(q \cdot p / T)}{\sum_j \exp(q \cdot v_j / T)},

Adam, vectors scaled to length 1 after each step; success is the best accuracy ever seen equal to 1.
The critical n is the largest that is solved: doubling, then bisection, then every n near it.

Two constructions stand beside the optimisation, since its failure is no proof:

- :func:`circle_curve`: 2k dimensions solve **every** n (points of the trigonometric moment curve,
  whose polytope is neighbourly; arXiv 2601.20844 and 2603.29519 argue alike). The price is the margin.
- :func:`simplex`: n − 1 dimensions, at the largest margin that is possible, :func:`margin_ceiling`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

#: The cubic that the source fits to its critical n, for k = 2.
PUBLISHED_FIT = (-10.5322, 4.0309, 0.0520, 0.0037)
_BETA, _SECOND_BETA, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Optimiser:
    """How free vectors are fitted; the defaults are the published ones.

    Attributes
    ----------
    steps
        At most.
    learning_rate, temperature
        Of Adam, and of the loss.
    evaluate_every
        Steps between two looks at the accuracy.
    patience, min_delta
        Stop where the loss has not fallen by `min_delta` in so many steps.
    """

    steps: int = 100_000
    learning_rate: float = 0.01
    temperature: float = 0.1
    evaluate_every: int = 50
    patience: int = 1_000
    min_delta: float = 1e-5


@dataclass(frozen=True)
class Fit:
    """Vectors that were fitted to one problem.

    Attributes
    ----------
    accuracy
        Largest share of a query's documents among its top k, ever seen.
    steps
        That were made.
    queries, documents
        [C(n, k), d] and [n, d] float32, those with the best accuracy.
    """

    accuracy: float
    steps: int
    queries: Floats
    documents: Floats

    @property
    def solved(self) -> bool:
        """Whether every query was answered."""
        return self.accuracy == 1.0


def all_subsets(n: int, k: int) -> Ints:
    """The k documents of every query: [C(n, k), k].

    Examples
    --------
    >>> all_subsets(3, 2).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    return np.array(list(combinations(range(n), k)), dtype=np.int64).reshape(-1, k)


def relevance(subsets: Ints, n: int) -> NDArray[np.bool_]:
    """Which document each query asks for: [queries, n]."""
    found = np.zeros((len(subsets), n), bool)
    np.put_along_axis(found, subsets, True, axis=1)
    return found


def margins(queries: Floats, documents: Floats, relevant: NDArray[np.bool_]) -> Floats:
    """Of each query, the least product with a document it asks for minus the largest with another.

    Computed in the precision of the vectors. A query is answered where it is above 0.

    Parameters
    ----------
    queries, documents
        [q, d] and [n, d].
    relevant
        [q, n].

    Returns
    -------
    ndarray
        [q].

    Examples
    --------
    >>> eye = np.eye(3)
    >>> subsets = all_subsets(3, 2)
    >>> centroids = eye[subsets].sum(axis=1) / 2**0.5
    >>> margins(centroids, eye, relevance(subsets, 3)).round(4).tolist()
    [0.7071, 0.7071, 0.7071]
    """
    products = queries @ documents.T
    least = np.where(relevant, products, np.inf).min(axis=1)
    most = np.where(relevant, -np.inf, products).max(axis=1)
    found: Floats = least - most
    return found


def top_k_accuracy(products: Floats, relevant: NDArray[np.bool_], k: int) -> float:
    """Share of the documents asked for that are among the k largest products; ties count against."""
    products = np.where(relevant, products, products + np.finfo(products.dtype).eps)
    kth = np.partition(products, -k, axis=1)[:, -k, None]
    others = (products >= kth) & ~relevant
    return 1.0 - float(np.minimum(others.sum(axis=1), k).sum()) / (k * len(products))


def fit(n: int, d: int, k: int, how: Optimiser, seed: int) -> Fit:
    """Fit free vectors to the problem of all k-subsets of n documents.

    Parameters
    ----------
    n, d, k
        Documents, dimensions, documents of a query.
    how
        The optimisation.
    seed
        Of the first vectors.
    """
    subsets = all_subsets(n, k)
    relevant = relevance(subsets, n)
    wanted = relevant / np.float32(k)
    generator = np.random.default_rng(seed)
    start = generator.standard_normal((len(subsets) + n, d)).astype(np.float32)
    # Queries and documents lie in one array, so that a step of Adam is one.
    vectors = _unit(start)
    first, second = np.zeros_like(vectors), np.zeros_like(vectors)
    gradient = np.empty_like(vectors)
    q = len(subsets)
    scale = np.float32(1 / (q * how.temperature))
    best = (-1.0, vectors)
    lowest, since, step = np.inf, 0, 0
    while step < how.steps:
        step += 1
        queries, documents = vectors[:q], vectors[q:]
        logits = queries @ documents.T
        logits *= np.float32(1 / how.temperature)
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        totals = shares.sum(axis=1, keepdims=True)
        loss = float(np.log(totals).mean() - np.einsum("ij,ij->", logits, wanted) / q)
        shares /= totals
        shares -= wanted
        shares *= scale
        np.matmul(shares, documents, out=gradient[:q])
        np.matmul(shares.T, queries, out=gradient[q:])
        vectors = _unit(vectors - _adam(first, second, gradient, step, how.learning_rate))
        if step % how.evaluate_every == 0 or step == how.steps:
            accuracy = top_k_accuracy(vectors[:q] @ vectors[q:].T, relevant, k)
            if accuracy > best[0]:
                best = accuracy, vectors
            if accuracy == 1.0:
                break
        since = 0 if loss < lowest - how.min_delta else since + 1
        lowest = loss if since == 0 else lowest
        if since >= how.patience:
            break
    return Fit(best[0], step, best[1][:q], best[1][q:])


def critical_n(solves: Callable[[int], bool], start: int, window: int = 4, most: int = 4096) -> int:
    """Largest n that is solved: doubling from `start`, bisection, then every n near the edge.

    The edge is not sharp, since one run may fail where the next succeeds: from `window` below it to
    one more above it every n is tried, as published.

    Parameters
    ----------
    solves
        Whether n documents are solved; asked once for each n.
    start
        An n that is solved surely, such as d + 1.
    window
        See above.
    most
        Where doubling ends.

    Examples
    --------
    >>> critical_n(lambda n: n <= 13, 5)
    13
    """
    known: dict[int, bool] = {}

    def asked(n: int) -> bool:
        if n not in known:
            known[n] = solves(n)
        return known[n]

    low, high = start, min(2 * start, most)
    while asked(high):
        if high == most:
            return most
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if asked(middle) else (low, middle)
    for n in range(max(start + 1, low - window), min(most, low + window + 1) + 1):
        asked(n)
    return max([start, *(n for n, solved in known.items() if solved)])


def published_critical_n(d: float) -> float:
    """The source's cubic fit of the critical n for pairs of documents.

    Examples
    --------
    >>> [round(published_critical_n(d)) for d in (512, 1024, 4096)]
    [512290, 4031488, 255150979]
    """
    return float(np.polynomial.polynomial.polyval(d, PUBLISHED_FIT))


def margin_ceiling(n: int, k: int) -> float:
    """Largest margin with which unit vectors can solve all k-subsets of n documents, any dimension.

    n / √(k (n − 1) (n − k)) (arXiv 2601.20844); :func:`simplex` reaches it.

    Examples
    --------
    >>> queries, documents = simplex(9, 2)
    >>> reached = margins(queries, documents, relevance(all_subsets(9, 2), 9)).min()
    >>> abs(float(reached) - margin_ceiling(9, 2)) < 1e-12
    True
    """
    return float(n / np.sqrt(k * (n - 1) * (n - k)))


def simplex(n: int, k: int) -> tuple[Floats, Floats]:
    """Queries and documents of the regular simplex, which spans n − 1 dimensions: float64 of length 1.

    Documents are its corners, queries the centroids of their documents.
    """
    corners = _unit(np.eye(n) - 1 / n)
    return _unit(corners[all_subsets(n, k)].sum(axis=1)), corners


def circle_curve(n: int, k: int) -> tuple[Floats, Floats]:
    r"""Queries and documents in 2k dimensions that solve every n: float64 of length 1.

    Document i is (cos θ, sin θ, cos 2θ, sin 2θ, …, cos kθ, sin kθ)/√k at θ = 2πi/n. The query of a set
    S holds the coefficients of −∏(1 − cos(θ − θ_s)), s in S, without its constant: the product is 0 on
    S and above 0 elsewhere, so that the documents of S have the k largest products, all equal.

    Examples
    --------
    >>> queries, documents = circle_curve(40, 2)
    >>> queries.shape, bool((margins(queries, documents, relevance(all_subsets(40, 2), 40)) > 0).all())
    ((780, 4), True)
    """
    angles = 2 * np.pi * np.arange(n) / n
    orders = np.arange(1, k + 1)
    documents = _interleaved(np.exp(1j * angles[:, None] * orders)) / np.sqrt(k)
    return _unit(_circle_queries(angles[all_subsets(n, k)])), documents


def circle_curve_margin(n: int, precision: type[np.floating]) -> float:
    """Least margin of :func:`circle_curve` for pairs, computed in a precision, without all pairs.

    Rotating the circle changes no product, so that the pairs of one document stand for all; what
    rounding does to the others is taken to be alike.
    """
    angles = 2 * np.pi * np.arange(n) / n
    pairs = np.stack([np.zeros(n - 1, np.int64), np.arange(1, n)], axis=1)
    documents = _interleaved(np.exp(1j * angles[:, None] * np.arange(1, 3))) / np.sqrt(2)
    queries = _unit(_circle_queries(angles[pairs]))
    least = np.inf
    for block in np.array_split(np.arange(n - 1), max(1, n // 512)):
        own = relevance(pairs[block], n)
        found = margins(queries[block].astype(precision), documents.astype(precision), own)
        least = min(least, float(found.min()))
    return least


def dimension_bound(n: int, k: int) -> float:
    """Give k log₂(n/k), the order of dimensions that suffice at a margin that stays as n grows."""
    return float(k * np.log2(n / k))


def _circle_queries(angles: Floats) -> Floats:
    """Coefficients of −∏(1 − cos(θ − a)) for angles a [q, k], without the constant: [q, 2k]."""
    q, k = angles.shape
    # Of e^{imθ}, m = −k … k, factor by factor: 1 − (e^{i(θ−a)} + e^{−i(θ−a)})/2.
    series = np.zeros((q, 2 * k + 1), complex)
    series[:, k] = 1
    for factor in angles.T:
        turn = np.exp(-1j * factor)[:, None]
        up = np.roll(series, 1, axis=1) * turn
        down = np.roll(series, -1, axis=1) * turn.conj()
        series = series - (up + down) / 2
    # c e^{imθ} + conj = 2 Re c cos mθ − 2 Im c sin mθ, negated.
    return _interleaved(-2 * series[:, k + 1 :].conj())


def _interleaved(values: NDArray[np.complexfloating]) -> Floats:
    """Real and imaginary parts in turns: [n, 2m] of [n, m]."""
    return np.stack([values.real, values.imag], axis=2).reshape(len(values), -1)


def _unit(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _adam(first: Floats, second: Floats, gradient: Floats, step: int, rate: float) -> Floats:
    """The step of Adam; both moments are updated in place."""
    first *= np.float32(_BETA)
    first += np.float32(1 - _BETA) * gradient
    second *= np.float32(_SECOND_BETA)
    second += np.float32(1 - _SECOND_BETA) * gradient * gradient
    size = np.float32(rate * np.sqrt(1 - _SECOND_BETA**step) / (1 - _BETA**step))
    move: Floats = size * first / (np.sqrt(second) + np.float32(_EPSILON))
    return move
