"""Ridge regression in its dual form: many targets, few rows, any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def standardised(vectors: NDArray[np.floating], rows: NDArray[np.integer] | None = None) -> Floats:
    """Columns less their mean, over their spread, both taken from the given rows.

    Columns that do not vary there become 0.

    Parameters
    ----------
    vectors
        [n, d].
    rows
        Rows that give mean and spread; all if not given.

    Examples
    --------
    >>> standardised(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    known = vectors if rows is None else vectors[rows]
    mean = known.mean(axis=0, dtype=np.float64)
    spread = known.std(axis=0, dtype=np.float64)
    # Less than the rounding of float32 is no variation.
    varies = spread > np.finfo(np.float32).eps * np.maximum(np.abs(mean), 1e-30)
    return np.asarray((vectors - mean) * np.where(varies, 1 / np.where(varies, spread, 1), 0))


def dual_ridge(gram: Floats, cross: Floats, targets: Floats, ridge: float) -> Floats:
    """Predictions of ridge regression with an intercept, from products of rows.

    With centred products K and k, predictions are k (K + λI)⁻¹ (y − ȳ) + ȳ with λ = ridge · trace(K)/n:
    directions whose sum of squares is less than `ridge` average rows' are damped.

    Parameters
    ----------
    gram
        [n, n] products of training rows.
    cross
        [q, n] products of tested rows and training rows.
    targets
        [n, t] one column a target.
    ridge
        Strength of the penalty, > 0.

    Returns
    -------
    ndarray
        [q, t].

    Raises
    ------
    ValueError
        If ridge is not positive.

    Examples
    --------
    >>> rows, tested = np.array([[0.0], [1.0], [2.0]]), np.array([[3.0]])
    >>> found = dual_ridge(rows @ rows.T, tested @ rows.T, 2 * rows, 1e-9)
    >>> round(float(found[0, 0]), 6)
    6.0
    """
    if ridge <= 0:
        raise ValueError(f"ridge is {ridge}: the penalty must be positive")
    of_row, whole = gram.mean(axis=0), gram.mean()
    centred = gram - of_row - of_row[:, None] + whole
    tested = cross - cross.mean(axis=1, keepdims=True) - of_row + whole
    mean = targets.mean(axis=0)
    penalty = max(ridge * np.trace(centred) / len(gram), np.finfo(np.float64).tiny)
    centred[np.diag_indices_from(centred)] += penalty
    # Rows that are all equal leave nothing but the penalty: every prediction is the mean.
    return np.asarray(tested @ np.linalg.solve(centred, targets - mean) + mean)


def ridge_scores(rows: Floats, targets: Floats, train: Ints, test: Ints, ridge: float) -> Floats:
    """Predictions [tests, t] for rows [n, d] by :func:`dual_ridge` of the training rows' targets."""
    known = rows[train]
    return dual_ridge(known @ known.T, rows[test] @ known.T, targets[train], ridge)


def cross_validated_ridge(
    vectors: NDArray[np.floating], targets: Floats, folds: Ints, ridges: Sequence[float]
) -> Floats:
    """Predict every row by :func:`dual_ridge` on the rows of other folds.

    Vectors are standardised on the training rows. Of the penalties offered each target takes the one
    that predicts best from fold to fold within its training rows; with one fixed penalty the model
    would fit noise wherever there is nothing to learn.

    Parameters
    ----------
    vectors
        [n, d].
    targets
        [n, t].
    folds
        [n] codes; at least three folds where several penalties are offered.
    ridges
        Penalties, > 0; of equally good ones the larger is taken.

    Returns
    -------
    ndarray
        [2, n, t]: predictions, and the training mean that stands for knowing nothing.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 21)[:, None]
    >>> predicted, mean = cross_validated_ridge(x, 3 * x, np.arange(21) % 3, [1e-6, 1.0])
    >>> bool(np.allclose(predicted, 3 * x, atol=1e-4))
    True
    """
    from threadpoolctl import threadpool_limits

    offered = sorted(ridges, reverse=True)
    out = np.empty((2, *targets.shape))
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for fold in np.unique(folds):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            best = _best_ridge(vectors[train], targets[train], folds[train], offered)
            predicted = _ridge_path(vectors, targets, train, test, offered)
            out[0, test] = np.take_along_axis(predicted, best[None, None], axis=0)[0]
            out[1, test] = targets[train].mean(axis=0)
    return out


def _best_ridge(
    vectors: NDArray[np.floating], targets: Floats, folds: Ints, offered: Sequence[float]
) -> Ints:
    """[t] position of the penalty that predicts each target best from fold to fold."""
    errors = np.zeros((len(offered), targets.shape[1]))
    for fold in np.unique(folds) if len(offered) > 1 else []:
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        predicted = _ridge_path(vectors, targets, train, test, offered)
        errors += ((predicted - targets[test]) ** 2).sum(axis=1)
    return np.asarray(errors.argmin(axis=0))


def _ridge_path(
    vectors: NDArray[np.floating],
    targets: Floats,
    train: Ints,
    test: Ints,
    offered: Sequence[float],
) -> Floats:
    """[penalties, tests, t] predictions at each penalty."""
    rows = standardised(vectors, train)
    return np.stack([ridge_scores(rows, targets, train, test, ridge) for ridge in offered])
