"""Jackknife over groups of patients, for figures that the repeated rows of a bootstrap change."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def patient_groups(patients: Ints, n_groups: int) -> Ints:
    """Group of each row: whole patients in groups of nearly equally many rows.

    Examples
    --------
    >>> patient_groups(np.array([0, 0, 0, 1, 2, 3]), 2).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    sizes = np.bincount(patients)
    filled = np.zeros(min(n_groups, len(sizes)), np.int64)
    group = np.zeros(len(sizes), np.int64)
    for patient in np.argsort(-sizes, kind="stable"):  # the largest first, into the emptiest group
        group[patient] = filled.argmin()
        filled[group[patient]] += sizes[patient]
    return group[patients]


def jackknife_interval(value: float, without_group: Floats) -> tuple[float | None, float | None]:
    """95% interval ``value ± t · SE`` with ``SE² = (G − 1)/G · Σ (θ₋g − mean)²``.

    Parameters
    ----------
    value
        Figure on all rows.
    without_group
        [G] figure without each group.

    Examples
    --------
    >>> jackknife_interval(1.0, np.array([1.0]))
    (None, None)
    """
    from scipy.stats import t

    groups = len(without_group)
    if groups < 2:
        return None, None
    squares = ((without_group - without_group.mean()) ** 2).sum()
    half = float(t.ppf(0.975, groups - 1) * np.sqrt((groups - 1) / groups * squares))
    return value - half, value + half
