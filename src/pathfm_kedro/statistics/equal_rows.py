"""Rows that are equal, so that of many copies only those are searched that a query could be given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Rows compared at once in the search for equal ones.
_COMPARED = 1024


def reachable(
    vectors: Floats32, codes: Ints, k: int, kinds: Ints | None = None
) -> NDArray[np.bool_]:
    """[n] whether a row can be among the k nearest of any query.

    Equal rows are tied for every query and the smaller index goes first. A row is hence out of reach if
    k equal rows stand before it in its own group (who may be given it may be given them), or if
    k stand before it whichever group is left out. Rows of different `kinds` do not compete.

    Parameters
    ----------
    vectors
        [n, d].
    codes
        [n] group of each row; rows of the query's group are never its neighbours.
    k
        Neighbours per query.
    kinds
        [n] code of each row's kind; one kind if not given.

    Examples
    --------
    >>> reachable(np.ones((4, 2), np.float32), np.arange(4), k=1).tolist()
    [True, True, False, False]
    """
    kind = _equal_rows(vectors)
    if kinds is not None:
        kind = kind * (int(kinds.max(initial=0)) + 1) + kinds
    order = np.argsort(kind, kind="stable")
    before = count_before(kind[order])
    if before.max(initial=0) < k:
        return np.ones(len(vectors), dtype=np.bool_)
    _, pair = np.unique(np.stack([kind, codes])[:, order], axis=1, return_inverse=True)
    within = np.argsort(pair, kind="stable")
    before_in_group = np.empty(len(order), dtype=np.int64)
    before_in_group[within] = count_before(pair[within])
    # Largest number of a group's copies so far, started anew for every kind.
    base = kind[order] * (len(order) + 1)
    most = np.maximum.accumulate(base + before_in_group + 1) - base
    # The row itself is counted too: at most, a few rows more than needed are searched.
    within_reach = np.empty(len(order), dtype=np.bool_)
    within_reach[order] = (before_in_group < k) & (before - most < k)
    return within_reach


def count_before(keys: NDArray[np.integer]) -> Ints:
    """How many equal keys stand before each; the keys are sorted.

    Examples
    --------
    >>> count_before(np.array([2, 2, 5, 5, 5])).tolist()
    [0, 1, 0, 1, 2]
    """
    new = np.ones(len(keys), dtype=np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(new)
    places = np.arange(len(keys), dtype=np.int64)
    return places - np.repeat(starts, np.diff([*starts, len(keys)]))


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
