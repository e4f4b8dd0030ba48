"""How strongly two categories go together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cramers_v(counts: NDArray[np.integer]) -> float | None:
    """Cramér's V of a contingency table: √(χ² / (n (min(rows, columns) − 1))), 0 … 1.

    Rows and columns without a count are left out. None where fewer than two rows or columns remain:
    with one center nothing can be confounded with it, nor told apart from it.

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
