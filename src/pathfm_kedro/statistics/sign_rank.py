r"""Between which bounds the sign rank of a relevance matrix lies.

The sign rank of M (+1 relevant, −1 not) is the smallest rank of a real matrix with the same signs:
the number of dimensions in which some vectors give every relevant pair a product above 0 and every
other one below. Where it is small, no dimension is an excuse.

- From below, Forster (2002): √(mn)/‖M‖, ‖M‖ the largest singular value of the m × n matrix.
- From above, by construction: order the columns and let s be the most changes of sign in a row; points
  of the moment curve and one polynomial of degree s for each row have the signs, so that s + 1
  dimensions suffice (Alon, Frankl, Rödl 1985).
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

Signs = NDArray[np.int8]


def forster_bound(signs: Signs) -> float:
    """√(mn)/‖M‖ of a matrix of +1 and −1 [m, n]: the sign rank is no smaller.

    Examples
    --------
    >>> from scipy.linalg import hadamard
    >>> round(forster_bound(hadamard(16).astype(np.int8)), 6)
    4.0
    """
    m, n = signs.shape
    wide = signs.astype(np.float64)
    gram = wide @ wide.T if m < n else wide.T @ wide
    return float(np.sqrt(m * n / np.linalg.eigvalsh(gram)[-1]))


def forster_bound_of_labels(counts: NDArray[np.int64]) -> float:
    """:func:`forster_bound` of "has the same label", from the number of rows of each label.

    M = 2ZZᵀ − 11ᵀ with Z the labels one-hot has the nonzero eigenvalues of √D(2I − 11ᵀ)√D, D the
    counts.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 1, 1, 2])
    >>> same = np.where(labels[:, None] == labels, 1, -1).astype(np.int8)
    >>> abs(forster_bound(same) - forster_bound_of_labels(np.bincount(labels))) < 1e-12
    True
    """
    root = np.sqrt(counts.astype(np.float64))
    small = np.diag(2.0 * counts) - np.outer(root, root)
    return float(counts.sum() / np.abs(np.linalg.eigvalsh(small)).max())


def sign_change_bound(signs: Signs) -> int:
    """Most changes of sign in a row, in the order of the columns, plus 1: the sign rank is no larger.

    Examples
    --------
    >>> sign_change_bound(np.array([[1, 1, -1, -1], [-1, 1, 1, -1]], np.int8))
    3
    """
    return int((signs[:, 1:] != signs[:, :-1]).sum(axis=1).max(initial=0)) + 1


def sign_change_bound_of_labels(n_labels: int) -> int:
    """:func:`sign_change_bound` of "has the same label", columns sorted by label: at most 3."""
    return min(n_labels, 3)


def forster_bound_of_subsets(m: int, t: int, a: int) -> float:
    """:func:`forster_bound` of "holds all of", all sets of t of m things against all sets of a.

    W, 1 where a set of t lies in a set of a, has the singular values √(C(a−i, t−i) C(m−t−i, a−t)),
    i = 0 … t (Johnson scheme). That of i = 0 is of constant vectors; M = 2W − 11ᵀ changes it alone.

    Examples
    --------
    >>> forster_bound_of_subsets(4, 1, 1), round(forster_bound_of_subsets(9, 1, 2), 4)
    (2.0, 1.8)
    """
    rows, columns = comb(m, t), comb(m, a)
    of_sums = abs(2 * (comb(m - t, a - t) * comb(a, t)) ** 0.5 - (rows * columns) ** 0.5)
    others = [
        2 * (comb(a - i, t - i) * comb(m - t - i, a - t)) ** 0.5
        for i in range(1, min(t, m - t) + 1)
    ]
    return float((rows * columns) ** 0.5 / max([of_sums, *others]))


def subset_bound(m: int, t: int, a: int) -> int:
    """Dimensions that hold "holds all of", all sets of t of m things against all sets of a.

    For things at places x of a line, f(x) = ∏(x − s)², s in the set of a, is 0 on the set and above 0
    elsewhere. Its sum over a set of t is linear in the power sums 0 … 2a: 2a + 1 dimensions. Indicators
    and a threshold do it in m + 1, where t = a every set is its own and :func:`sign_change_bound` in 3.

    Examples
    --------
    >>> subset_bound(40, 1, 2), subset_bound(40, 2, 2), subset_bound(40, 2, 3)
    (5, 3, 7)
    """
    most = sign_change_bound_of_labels(comb(m, t)) if t == a else min(2 * a + 1, m + 1)
    return min(most, comb(m, t), comb(m, a))
