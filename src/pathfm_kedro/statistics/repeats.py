"""Repeated measurements of one positive quantity: their mean and the ratio of two, with intervals.

What takes time or energy varies by a share, so intervals are Student's on logarithms. Repeats are those
of one machine on one day: the interval says how well that is known and nothing of other machines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Half the interval's tail.
_TAIL = 0.975
Interval = tuple[float, float | None, float | None]


def mean_of_repeats(values: Sequence[float]) -> Interval:
    """Geometric mean and its 95% interval; no interval of a single one.

    Parameters
    ----------
    values
        [n] positive.

    Raises
    ------
    ValueError
        If there is none, or one is not positive.

    Examples
    --------
    >>> [round(end, 2) for end in mean_of_repeats([1.0, 1.1, 0.9, 1.05, 0.95])]
    [1.0, 0.9, 1.1]
    """
    logs = _logs(values)
    if len(logs) < 2:
        return float(values[0]), None, None
    variance = float(logs.var(ddof=1)) / len(logs)
    return _interval(float(logs.mean()), variance, len(logs) - 1)


def ratio_of_repeats(values: Sequence[float], over: Sequence[float]) -> Interval:
    """Ratio of two geometric means; its 95% interval is Welch's on the log ratio.

    Parameters
    ----------
    values, over
        [n] and [m] positive.

    Raises
    ------
    ValueError
        If there is none, or one is not positive.

    Examples
    --------
    >>> [round(end, 2) for end in ratio_of_repeats([2.0, 2.2, 1.8], [1.0, 1.1, 0.9])]
    [2.0, 1.59, 2.51]
    """
    a, b = _logs(values), _logs(over)
    ratio = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2:
        return float(np.exp(ratio)), None, None
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    spread = float(parts.sum())
    each = parts**2 / np.array([len(a) - 1, len(b) - 1])
    freedom = spread**2 / float(each.sum()) if spread > 0 else 1.0
    return _interval(ratio, spread, freedom)


def _logs(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    numbers = np.asarray(values, np.float64)
    if not len(numbers) or not (numbers > 0).all():
        raise ValueError("repeats must be positive, and there must be one")
    return np.log(numbers)


def _interval(log: float, variance: float, freedom: float) -> Interval:
    from scipy.stats import t

    reach = float(t.ppf(_TAIL, freedom)) * variance**0.5
    low, value, high = np.exp([log - reach, log, log + reach])
    return float(value), float(low), float(high)
