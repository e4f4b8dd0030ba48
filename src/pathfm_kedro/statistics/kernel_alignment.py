"""Centred kernel alignment: how alike two sets of vectors of the same rows are spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def debiased_cka(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """Linear centred kernel alignment by unbiased estimates of the Hilbert-Schmidt criterion.

    ``HSIC(x, y) / √(HSIC(x, x) HSIC(y, y))`` of the Gram matrices. 1 where one is the other turned and
    scaled, about 0 where they have nothing in common; the biased estimate is near 1 there too as soon
    as there are more dimensions than rows.

    Parameters
    ----------
    x, y
        [n, d] and [n, e] vectors of the same rows, at least four.

    Returns
    -------
    float
        NaN where one of them does not vary.

    References
    ----------
    Song et al. 2012, "Feature Selection via Dependence Maximization", JMLR 13. Kornblith et al. 2019,
    "Similarity of Neural Network Representations Revisited", arXiv 1905.00414.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(40, 3))
    >>> round(debiased_cka(x, 2 * x[:, ::-1] + 1), 6)
    1.0
    """
    grams = [_centred_gram(values) for values in (x, y)]
    cross, own_x, own_y = (_unbiased(grams[i], grams[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    scale = own_x * own_y
    return float(cross / np.sqrt(scale)) if scale > 0 else float("nan")


def _centred_gram(values: NDArray[np.floating[Any]]) -> Floats:
    """Gram matrix without its diagonal; centring first changes nothing but the size of the numbers."""
    wide = np.asarray(values, np.float64)
    wide = wide - wide.mean(axis=0)
    gram = wide @ wide.T
    np.fill_diagonal(gram, 0.0)
    return np.asarray(gram)


def _unbiased(k: Floats, m: Floats) -> float:
    """Unbiased Hilbert-Schmidt criterion of two Gram matrices with an empty diagonal."""
    n = len(k)
    if n < 4:
        return float("nan")
    sums_k, sums_m = k.sum(axis=0), m.sum(axis=0)
    pairs = float((k * m).sum())
    whole = float(sums_k.sum() * sums_m.sum()) / ((n - 1) * (n - 2))
    mixed = 2 * float(sums_k @ sums_m) / (n - 2)
    return (pairs + whole - mixed) / (n * (n - 3))
