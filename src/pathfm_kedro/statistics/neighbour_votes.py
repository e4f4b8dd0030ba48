"""Votes of the k nearest tiles on a tile's class, at several k at once, and under permuted classes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.balanced_designs import codes_of
from pathfm_kedro.statistics.cross_validation import balanced_accuracy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Scores of votes (query × class × permutation) in memory at once: 2 MB.
_VOTE_SCORES = 2**18

#: Up to this rank a sum of 1 + 2⁻ʳ has no more than the 53 bits of float64.
_EXACT_RANKS = 46


def votes_at(classes: Ints, found: Ints, grid: Ints) -> Ints:
    """Class with most of the k neighbours at each k; a tie goes to the class met first.

    Parameters
    ----------
    classes
        [n] class of each tile.
    found
        [n, k] neighbours as positions, nearest first; −1 where there is none.
    grid
        Numbers of neighbours, ascending.

    Returns
    -------
    ndarray
        [n, grid]; −1 where there is no neighbour.

    Examples
    --------
    >>> found = np.array([[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 0, 1]])
    >>> votes_at(np.array([0, 0, 1, 1]), found, np.array([1, 3])).tolist()
    [[0, 1], [0, 1], [1, 0], [1, 0]]
    """
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


def vote_accuracy(rows: pl.DataFrame, target: str, weights: Floats) -> Floats:
    """Balanced accuracy of the neighbours' vote at one k, averaged over scopes.

    Parameters
    ----------
    rows
        Columns patient_id, scope, the target, n (queries) and n_correct_<target>.
    target
        ``label`` or ``center``.
    weights
        [draws, patients] how often each patient stands as query.

    Returns
    -------
    ndarray
        [draws]; NaN where no patient of any scope is resampled.
    """
    codes = [codes_of(rows[name]) for name in ("patient_id", "scope", target)]
    shape = (weights.shape[1], *(int(code.max()) + 1 for code in codes[1:]))
    cell = np.ravel_multi_index(codes, shape)
    correct, asked = (
        (
            weights @ np.bincount(cell, rows[name], int(np.prod(shape))).reshape(shape[0], -1)
        ).reshape(-1, *shape[1:])
        for name in (f"n_correct_{target}", "n")
    )
    filled = (asked > 0).any(axis=2).sum(axis=1)
    mean = balanced_accuracy(correct, asked).sum(axis=1) / np.maximum(filled, 1)
    return np.where(filled > 0, mean, np.nan)


def permuted_accuracies(units: Ints, found: Ints, grid: Ints, tags: Ints) -> Floats:
    """Balanced accuracy of the neighbours' vote at each k in each permutation.

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

    Returns
    -------
    ndarray
        [grid, permutations].
    """
    n_units, n_permutations = tags.shape
    if not n_permutations:
        return np.zeros((len(grid), 0))
    classes, codes = np.unique(tags, return_inverse=True)
    is_member = codes[:, None, :] == np.arange(len(classes))[:, None]
    member = is_member.reshape(n_units, -1).astype(np.float64)
    asked = np.einsum("u,ucd->cd", np.bincount(units, minlength=n_units), is_member)
    correct = np.zeros((len(grid), *asked.shape))
    # A few queries under all permutations at once: their scores stay in the processor's cache.
    step = max(_VOTE_SCORES // (len(classes) * n_permutations), 1)
    for start in range(0, len(units), step):
        part = slice(start, start + step)
        own = is_member[units[part]]
        scores = np.zeros(own.shape)
        for i, votes in enumerate(_votes_of_units(units, found[part], grid, n_units)):
            scores += (votes @ member).reshape(own.shape)
            best = scores.max(axis=1, keepdims=True)
            correct[i] += np.count_nonzero(own & (scores == best) & (best > 0), axis=0)
    return balanced_accuracy(np.moveaxis(correct, 1, 2), asked.T.astype(np.float64))


def _votes_of_units(units: Ints, found: Ints, grid: Ints, n_units: int) -> list[Any]:
    """Sparse [n, units] votes that each unit's tiles give a query, for each band of ranks.

    The neighbour at rank r counts 1 + 2⁻ʳ. Of two classes with equally many votes the one that is
    met first has then more, as in :func:`votes_at`, since 2⁻ʳ exceeds the sum of all that follow.
    float64 holds such sums exactly up to rank 46; later ranks count 1.
    """
    from scipy.sparse import csr_array

    n, k = found.shape
    rank = np.arange(1, k + 1)
    weight = np.where(rank <= _EXACT_RANKS, 1 + 0.5**rank, 1.0)
    votes = []
    for low, high in itertools.pairwise([0, *grid]):
        query, place = np.nonzero(found[:, low:high] >= 0)
        met = units[found[query, low + place]]
        votes.append(csr_array((weight[low + place], (query, met)), shape=(n, n_units)))
    return votes
