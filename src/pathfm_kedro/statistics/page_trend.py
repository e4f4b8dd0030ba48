"""Page's test for a trend over ordered conditions, each measured in every repeat.

Reference: Page, Ordered hypotheses for multiple treatments (JASA 1963), by SciPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.readable_numbers import number, p_value_text

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trend:
    """Page's test.

    Attributes
    ----------
    correlation
        Mean over seeds of Spearman's correlation with the rate.
    p
        Two-sided.
    statistic
        Page's L.
    seeds, rates
        Rows and columns.
    """

    correlation: float
    p: float
    statistic: float
    seeds: int
    rates: int

    @property
    def described(self) -> str:
        """For the reader."""
        p = p_value_text(self.p)
        return f"Page's L = {self.statistic:g}, two-sided {p}, over {self.seeds} seeds"


def page_trend(values: Floats, mend: str) -> Trend:
    """Page's test for a trend over columns, rows being seeds.

    Parameters
    ----------
    values
        [seeds, rates], rates rising.
    mend
        How to get more of them, for the message.

    Raises
    ------
    Undefined
        With fewer than two seeds or three rates, telling what they could have shown.

    Examples
    --------
    >>> page_trend(np.array([[3.0, 2.0, 1.0], [0.3, 0.2, 0.1]]), "").correlation
    -1.0
    """
    from scipy.stats import page_trend_test

    seeds, rates = values.shape if values.ndim == 2 else (0, 0)
    if seeds < 2 or rates < 3:
        least = min(1.0, 2.0 / factorial(rates) ** seeds)
        raise Undefined(
            f"a trend test needs two seeds and three rates, and there are {seeds} and {rates}: even a "
            f"perfect order of these would have a two-sided p of {number(least)}"
            f"{', so that nothing could be found' if least > 0.05 else ''}; {mend}"
        )
    rising, falling = page_trend_test(values), page_trend_test(values[:, ::-1])
    statistic = float(rising.statistic)
    correlation = 12 * statistic / (seeds * rates * (rates**2 - 1)) - 3 * (rates + 1) / (rates - 1)
    p = min(1.0, 2 * min(float(rising.pvalue), float(falling.pvalue)))
    return Trend(correlation, p, statistic, seeds, rates)
