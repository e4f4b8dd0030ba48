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
