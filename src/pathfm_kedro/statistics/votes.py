"""Votes of neighbours and the F1 of what they name."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Code of a label that is not there.
_NONE = -1


def majority_vote(labels: Ints) -> Ints:
    """Most frequent label of each row; among equally frequent ones the nearest.

    Parameters
    ----------
    labels
        [..., k] label codes, nearest first; negative where there is no match.

    Returns
    -------
    ndarray
        [...] codes; −1 where a row holds no match.

    Examples
    --------
    >>> majority_vote(np.array([[2, 1, 1], [2, 1, 0], [3, -1, -1]])).tolist()
    [1, 2, 3]
    """
    if labels.shape[-1] == 0:
        return np.full(labels.shape[:-1], _NONE)
    votes = (labels[..., :, None] == labels[..., None, :]).sum(axis=-1)
    votes[labels < 0] = 0
    first = votes.argmax(axis=-1)  # the first maximum is the nearest
    return np.take_along_axis(labels, first[..., None], axis=-1)[..., 0]


def label_counts(truth: Ints, predicted: Ints, group: Ints, shape: tuple[int, int]) -> Floats:
    """Right, true and predicted queries per group and label: all that F1 needs.

    Parameters
    ----------
    truth, predicted
        Label codes of equal shape; queries with truth −1 are not counted, a prediction −1 is
        counted as a miss.
    group
        Group of each query (patient, permutation), of the same shape.
    shape
        Number of groups, number of labels.

    Returns
    -------
    ndarray
        [n_groups, 3, n_labels] float64.

    Examples
    --------
    >>> label_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), np.zeros(3, int), (1, 2)).tolist()
    [[[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]]]
    """
    counted = truth >= 0
    kept = (counted & (truth == predicted), counted, counted & (predicted >= 0))
    counts = [
        np.bincount((group * shape[1] + codes)[keep], minlength=shape[0] * shape[1])
        for codes, keep in zip((truth, truth, predicted), kept, strict=True)
    ]
    return np.stack([count.reshape(shape) for count in counts], axis=1).astype(np.float64)


def f1_by_label(counts: Floats) -> Floats:
    """F1 = 2 right / (true + predicted) per label; NaN for a label without queries.

    Parameters
    ----------
    counts
        [..., 3, n_labels] from :func:`label_counts`.

    Examples
    --------
    >>> f1_by_label(np.array([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])).round(3).tolist()
    [0.667, 0.667]
    """
    right, true, predicted = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, 2 * right / (true + predicted), np.nan)


def macro_f1(counts: Floats) -> Floats:
    """Mean of F1 over the labels that have queries; NaN where none has."""
    scores = f1_by_label(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cast(Floats, np.nansum(scores, axis=-1) / np.isfinite(scores).sum(axis=-1))
