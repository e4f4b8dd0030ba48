"""Several differences at once: intervals that hold simultaneously."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Simultaneous:
    """Intervals of m differences that hold together in 95% of cohorts; every array is [m].

    Attributes
    ----------
    low, high
        Bounds; NaN where a difference has no spread.
    p_value
        Of "the difference is 0", adjusted for all m.
    """

    low: Floats
    high: Floats
    p_value: Floats


def simultaneous_intervals(values: Floats, draws: Floats, level: float = 0.95) -> Simultaneous:
    """Intervals and p-values by the largest standardised difference of each draw (max-t).

    With standard errors s_j of the draws and t* the draws' deviation from their mean over s_j,
    intervals are v_j ± c·s_j with c the `level` quantile of max_j |t*_j|, and the adjusted p-value is
    the share of draws in which max_j |t*_j| ≥ |v_j| / s_j (Westfall & Young 1993, single step).
    Differences that move together, as those with one encoder in common do, hence cost less than a
    correction that counts them.

    Parameters
    ----------
    values
        [m] differences.
    draws
        [m, draws] the same in resampled cohorts, each column one cohort.
    level
        Share of cohorts in which all intervals hold.

    Examples
    --------
    >>> draws = np.random.default_rng(0).standard_normal((3, 4000))
    >>> found = simultaneous_intervals(np.array([0.0, 0.0, 9.0]), draws)
    >>> bool(found.high[0] > 2.3), bool(found.p_value[2] < 0.001)  # 1.96 for one alone
    (True, True)
    """
    spread = np.nanstd(draws, axis=1)
    varies = spread > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.abs(draws - np.nanmean(draws, axis=1, keepdims=True)) / spread[:, None]
        size = np.abs(values) / spread
    known = deviation[varies]
    known = known[:, np.isfinite(known).all(axis=0)]
    if not known.size:
        nothing = np.full(len(values), np.nan)
        return Simultaneous(nothing, nothing, nothing)
    largest = known.max(axis=0)
    reach = float(np.quantile(largest, level)) * spread
    # The cohort itself is one of the draws: no p-value is 0.
    beyond = (1 + (largest[None] >= size[:, None]).sum(axis=1)) / (1 + len(largest))
    low, high, p_value = (
        np.where(varies, figure, np.nan) for figure in (values - reach, values + reach, beyond)
    )
    return Simultaneous(low, high, p_value)
