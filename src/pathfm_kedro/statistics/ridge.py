"""Ridge regression in its dual form: many targets, few rows, any number of dimensions."""

from __future__ import annotations

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
