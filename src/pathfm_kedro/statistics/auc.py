"""AUC over pairs of rows of one fold: what scores of a cross-validated model say about a class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.pair_bootstrap import resampled_total

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def ordered_pairs(
    scores: Floats, own: NDArray[np.bool_], patients: Ints, folds: Ints
) -> tuple[Floats, Floats]:
    """[patients, patients] pairs of an own and another row of one fold, by their patients.

    Parameters
    ----------
    scores
        [n].
    own
        [n] whether a row is of the class.
    patients, folds
        [n] codes.

    Returns
    -------
    tuple
        Pairs in which the own row has the higher score (ties count one half), and all pairs.
    """
    size = int(patients.max()) + 1
    correct, pairs = np.zeros((2, size, size))
    for fold in np.unique(folds):
        mine, others = (np.flatnonzero((folds == fold) & part) for part in (own, ~own))
        place = patients[mine][:, None], patients[others]
        np.add.at(correct, place, np.sign(scores[mine][:, None] - scores[others]) / 2 + 0.5)
        np.add.at(pairs, place, 1.0)
    return correct, pairs


def rank_auc(scores: Floats, own: NDArray[np.bool_], folds: Ints) -> Floats:
    """AUC over pairs of the same fold, from ranks; NaN without pairs.

    Parameters
    ----------
    scores, own
        [n, m] for m targets.
    folds
        [n].

    Examples
    --------
    >>> rank_auc(np.array([[0.1], [0.3], [0.2]]), np.array([[False], [True], [True]]), np.zeros(3))
    array([1.])
    """
    from scipy.stats import rankdata

    correct, pairs = np.zeros((2, scores.shape[1]))
    for fold in np.unique(folds):
        part, mine = scores[folds == fold], own[folds == fold]
        n = mine.sum(axis=0)
        correct += (rankdata(part, axis=0) * mine).sum(axis=0) - n * (n + 1) / 2
        pairs += n * (len(mine) - n)
    with np.errstate(invalid="ignore"):
        return np.asarray(correct / pairs)


def resampled_macro_auc(
    scores: Floats, targets: Ints, patients: Ints, models: Ints, weights: Floats
) -> Floats:
    """Mean over classes of the AUC of each against the rest, in every resampled cohort.

    Pairs are of rows that one model scored. Classes without pairs are left out.

    Parameters
    ----------
    scores
        [n, classes].
    targets, patients, models
        [n] codes.
    weights
        [draws, patients] how often each patient is resampled.

    Returns
    -------
    ndarray
        [draws]; NaN without any pair.

    Examples
    --------
    >>> scores, codes = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.arange(3)
    >>> resampled_macro_auc(scores, np.array([0, 1, 1]), codes, 0 * codes, np.ones((1, 3)))
    array([1.])
    """
    total, known = np.zeros((2, len(weights)))
    for target in range(scores.shape[1]):
        correct, pairs = ordered_pairs(scores[:, target], targets == target, patients, models)
        # A tie is half a pair: twice the numbers are whole.
        above, below = resampled_total(2 * correct, weights), resampled_total(2 * pairs, weights)
        total += np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        known += below > 0
    mean: Floats = np.divide(total, known, out=np.full(len(weights), np.nan), where=known > 0)
    return mean
