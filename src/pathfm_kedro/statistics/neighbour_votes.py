"""Votes of the k nearest tiles on a tile's class, at several k at once, and under permuted classes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.balanced_designs import codes_of
from pathfm_kedro.statistics.blocked_search import share_out
from pathfm_kedro.statistics.cross_validation import balanced_accuracy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Classes met (rank × query × permutation) in memory at once: 2 MB, which the processor's cache holds.
_CLASSES_MET = 2**21

#: So many ones are summed exactly in one byte.
_MOST_SUMMED = 255


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
    k = found.shape[1]
    classes, codes = np.unique(tags, return_inverse=True)
    few = np.min_scalar_type(max(len(classes), k)).type
    each_class = [few(code) for code in range(len(classes))]
    # The last row, of no class, stands for a neighbour that is not there.
    class_of = np.full((n_units + 1, n_permutations), len(classes), dtype=few)
    class_of[:-1] = codes.reshape(tags.shape)
    met_unit = np.where(found >= 0, units[found], n_units).T
    size = np.bincount(units, minlength=n_units + 1)
    asked = np.stack([size @ (class_of == code) for code in each_class])
    correct = np.zeros((len(grid), *asked.shape))
    step = max(min(_CLASSES_MET // (k * n_permutations), _MOST_SUMMED), 1)
    lock = Lock()

    def count(starts: Iterator[int]) -> None:
        for start in starts:
            part = slice(start, start + step)
            more = _correct(grid, each_class, class_of[units[part]], class_of[met_unit[:, part]])
            with lock:
                np.add(correct, more, out=correct)

    share_out(count, range(0, len(units), step))
    return balanced_accuracy(np.moveaxis(correct, 1, 2), asked.T.astype(np.float64))


def _correct(
    grid: Ints, each_class: Sequence[Any], own: NDArray[Any], met: NDArray[Any]
) -> NDArray[np.uint8]:
    """[grid, classes, permutations] queries [n, permutations] whose neighbours name their own class."""
    correct = np.empty((len(grid), len(each_class), own.shape[1]), dtype=np.uint8)
    of_classes = zip(*(_scores_at(grid, met, code) for code in each_class), strict=True)
    for i, (scores, mine) in enumerate(zip(of_classes, _scores_at(grid, met, own), strict=True)):
        right = (mine > 0) & (mine == functools.reduce(np.maximum, scores))
        for code in each_class:
            hits = (right & (own == code)).view(np.uint8)
            hits.sum(axis=0, dtype=np.uint8, out=correct[i, code])
    return correct


def _scores_at(grid: Ints, met: NDArray[Any], code: Any) -> Iterator[NDArray[Any]]:
    """At each k, (k + 1) · votes for a class, and the more the nearer its first neighbour is.

    The class with most votes has the highest score, and of several the one that is met first, as in
    :func:`votes_at`.

    Parameters
    ----------
    met
        [k, n, permutations] classes of the neighbours, nearest first.
    code
        The class, or [n, permutations] one for each query.
    """
    k = len(met)
    score = np.min_scalar_type(k * (k + 2)).type
    votes, first = np.zeros((2, *met.shape[1:]), dtype=met.dtype)
    for low, high in itertools.pairwise([0, *grid]):
        for rank in range(low, high):
            same = (met[rank] == code).astype(met.dtype, copy=False)
            votes += same
            same *= met.dtype.type(k - rank)
            np.maximum(first, same, out=first)
        yield votes * score(k + 1) + first
