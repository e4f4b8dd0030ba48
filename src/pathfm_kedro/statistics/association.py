"""How strongly two categories, or two rankings, go together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cramers_v(counts: NDArray[np.integer]) -> float | None:
    """Cramér's V of a contingency table: √(χ² / (n (min(rows, columns) − 1))), 0 … 1.

    Rows and columns without a count are left out. None where fewer than two rows or columns remain:
    with one center nothing can be confounded with it, nor distinguished from it.

    Parameters
    ----------
    counts
        [rows, columns] non-negative integers.

    Examples
    --------
    >>> cramers_v(np.array([[5, 0], [0, 5]]))
    1.0
    >>> cramers_v(np.array([[5, 5], [5, 5]]))
    0.0
    """
    table = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0].astype(np.float64)
    if min(table.shape) < 2:
        return None
    n = table.sum()
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / n
    chi_squared = ((table - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi_squared / (n * (min(table.shape) - 1))))


def rank_moments(quantities: Floats) -> Floats:
    """Sums of products of (1, rank of each quantity) per row: what rank correlations are made of.

    Ranks are those of all entries together, centred and over their number: scaled so, they lose no
    digits when squared and added.

    Parameters
    ----------
    quantities
        [m, n, pairs].

    Returns
    -------
    ndarray
        [n, 1 + m, 1 + m] sums over the pairs of a row.
    """
    from scipy.stats import rankdata

    ranks = rankdata(quantities.reshape(len(quantities), -1), axis=1).reshape(quantities.shape)
    centred = (ranks - ranks.mean(axis=(1, 2), keepdims=True)) / ranks[0].size
    factors = np.concatenate([np.ones_like(centred[:1]), centred])
    return np.asarray(np.einsum("aip,bip->iab", factors, factors))


def partial_correlation(moments: Floats, first: int, second: int, given: int) -> Floats:
    """Correlation of two quantities given a third, from sums of products.

    r_xy·z = (r_xy − r_xz r_yz) / √((1 − r_xz²)(1 − r_yz²)); of ranks this is Spearman's.

    Parameters
    ----------
    moments
        […, 1 + m, 1 + m] sums of products of (1, each quantity).
    first, second, given
        Which quantities, 0 … m − 1.

    Returns
    -------
    ndarray
        […]; NaN where a quantity does not vary or two are the same.

    Examples
    --------
    >>> x = np.array([[[1.0, 2, 3, 4, 5]], [[2.0, 1, 4, 3, 5]], [[1.0, 3, 2, 3, 1]]])
    >>> round(float(partial_correlation(rank_moments(x)[0], 0, 1, 2)), 3)
    0.909
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        means = moments[..., 1:, 0] / moments[..., :1, 0]
        covariance = moments[..., 1:, 1:] / moments[..., :1, :1]
        covariance = covariance - means[..., :, None] * means[..., None, :]
        size = np.sqrt(np.maximum(np.diagonal(covariance, axis1=-2, axis2=-1), 0))
        r = covariance / (size[..., :, None] * size[..., None, :])
        xy, xz, yz = r[..., first, second], r[..., first, given], r[..., second, given]
        return np.asarray((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))
