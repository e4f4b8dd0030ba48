"""Shares that were resampled over patients and under permuted labels: intervals, and their range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import binomial_interval, percentile_interval
from pathfm_kedro.statistics.measurements import Null

Floats = NDArray[np.float64]
Bounds = tuple[float | None, float | None]

#: Figures closer than this are one figure: far above rounding, far below one vote's weight.
_SAME = 1e-9
#: Chance of an error on one side of a 95% interval, and its normal quantile.
_ONE_SIDE = 0.025
_Z = NormalDist().inv_cdf(1 - _ONE_SIDE)


@dataclass(frozen=True)
class ResampledFigure:
    """A share in 0 … 1 with its resampled values.

    Attributes
    ----------
    value
        The figure on the cohort.
    draws
        [draws] under the bootstrap over patients, centred and :func:`widened`.
    permuted
        [n_permutations] under permuted labels.
    n_patients
        Equally weighted patients that carry the figure; the interval rests on them where all draws
        are the same.
    """

    value: float
    draws: Floats
    permuted: Floats
    n_patients: float

    @property
    def null(self) -> Null:
        """95% of the figure's values under permuted labels."""
        return Null(*percentile_interval(self.permuted))

    def sampling_interval(self) -> Bounds:
        """95% interval from the sampling of patients alone; it may reach past 0 and 1.

        Percentiles of the draws. Where every draw is the same, as where all queries are correctly
        classified, the bootstrap sees no spread whatever the number of patients: then
        :func:`exact_interval` over the patients. It is not widened by the design effect, which is
        measured at chance: in simulations of 12 and 24 patients per organ whose expected macro-F1
        lies at its lower end, all votes were correct in 4 to 6% (majority of 5) and 7 to 12%
        (top 1), instead of 2.5%.

        Examples
        --------
        >>> figure = ResampledFigure(1.0, np.ones(100), np.full(100, 0.5), 24)
        >>> low, high = figure.sampling_interval()
        >>> round(low, 2), high
        (0.86, 1.0)
        """
        finite = self.draws[np.isfinite(self.draws)]
        if len(finite) and np.ptp(finite) < _SAME:
            return self._exact
        low, high = percentile_interval(self.draws)
        if low is not None and high is not None and not low <= self.value <= high:
            return self._exact
        return low, high

    @property
    def _exact(self) -> Bounds:
        return exact_interval(min(1.0, max(0.0, self.value)), self.n_patients)

    def interval(self) -> Bounds:
        """95% interval in 0 … 1.

        :meth:`sampling_interval`, reaching past the null's mean, by the Monte Carlo error of that
        mean, wherever the permutations cannot tell the figure from chance: an interval around a rare
        label that is never found would exclude chance without evidence.

        Examples
        --------
        >>> never_found = ResampledFigure(0.0, np.zeros(100), np.tile([0.0, 0.0, 0.0, 0.2], 25), 100)
        >>> low, high = never_found.interval()
        >>> low, round(high, 3)
        (0.0, 0.067)
        """
        low, high = self.sampling_interval()
        if low is None or high is None:
            return None, None
        null = self.null
        if null.low is not None and null.high is not None and null.low <= self.value <= null.high:
            mean = float(np.nanmean(self.permuted))
            error = 2 * float(np.nanstd(self.permuted) / np.sqrt(len(self.permuted)))
            low, high = min(low, mean - error), max(high, mean + error)
        return max(0.0, low), min(1.0, high)

    def above_null(self) -> bool:
        """Whether the whole interval lies above the null."""
        low, chance = self.interval()[0], self.null.high
        return low is not None and chance is not None and low > chance

    def sampling_variance(self) -> float:
        """Squared standard error from the sampling of patients."""
        low, high = self.sampling_interval()
        if low is None or high is None:
            return float(np.nanvar(self.draws, ddof=1))
        return ((high - low) / (2 * _Z)) ** 2


def without_null_spread(value: float, null: Null) -> bool:
    """Whether a figure stays what it is however labels are permuted.

    Examples
    --------
    >>> without_null_spread(0.4, Null(0.4, 0.4)), without_null_spread(0.4, Null(0.2, 0.4))
    (True, False)
    """
    if null.low is None or null.high is None:
        return False
    return max(abs(null.low - value), abs(null.high - value)) < _SAME


def widened(value: float, draws: Floats, effect: float) -> Floats:
    """Bootstrap draws centred on the figure and stretched by the root of a design effect.

    Centred, because resampled macro-F1 is biased: draws repeat patients and drop labels.

    Examples
    --------
    >>> widened(0.5, np.array([0.3, 0.5]), 4.0).round(2).tolist()
    [0.3, 0.7]
    """
    finite = draws[np.isfinite(draws)]
    centre = finite.mean() if len(finite) else 0.0
    return cast(Floats, value + np.sqrt(effect) * (draws - centre))


def exact_interval(share: float, n: float) -> tuple[float, float]:
    """95% interval of a share over n independent patients, from the binomial distribution.

    Parameters
    ----------
    share
        In 0 … 1.
    n
        Patients, not necessarily a whole number.

    Examples
    --------
    >>> low, high = exact_interval(1.0, 12)
    >>> round(low, 2), high
    (0.74, 1.0)
    """
    return binomial_interval(share * n, n)


def range_interval(figures: Sequence[ResampledFigure], ranges: int = 1) -> Bounds:
    """95% interval of the largest figure minus the smallest, of figures between 0 and 1.

    The range is the largest of the signed contrasts d = F_a − F_b over ordered pairs. Each contrast
    reaches as far as its two figures do (low, high: their sampling intervals; r: correlation of the
    pair's draws):

        down² = (F_a − low_a)² + (high_b − F_b)² − 2 r (F_a − low_a)(high_b − F_b)
        up²   = (high_a − F_a)² + (F_b − low_b)² − 2 r (high_a − F_a)(F_b − low_b)

    Upper end: the largest d + up. It lies above that of the pair that truly differs most, so it
    holds at the level of one contrast; 1 at most. Lower end: the largest d − down, at least 0; any
    pair could overshoot there, so it is stretched to Bonferroni's quantile over the ordered pairs. A
    small observed range thus bounds the true one only as well as the patients allow.

    Parameters
    ----------
    figures
        At least two, with draws of the same resampled cohorts.
    ranges
        How many ranges are looked at together: 95% holds for all of them (Bonferroni).

    References
    ----------
    Donner & Zou, Statistical Methods in Medical Research 21 (2012); for independent shares it is
    Newcombe's hybrid score interval, Statistics in Medicine 17 (1998).

    Examples
    --------
    >>> all_correct = ResampledFigure(1.0, np.ones(100), np.full(100, 0.5), 24)
    >>> low, high = range_interval([all_correct, all_correct])
    >>> low, round(high, 2)
    (0.0, 0.14)
    """
    bounds = [figure.sampling_interval() for figure in figures]
    if any(low is None or high is None for low, high in bounds):
        return None, None
    values = np.array([figure.value for figure in figures])
    low, high = np.array(bounds, dtype=np.float64).T
    below, above = np.maximum(values - low, 0), np.maximum(high - values, 0)
    together = _correlation(np.stack([figure.draws for figure in figures]))
    down, up = _reach(below, above, together), _reach(above, below, together)
    pairs = len(figures) * (len(figures) - 1)
    stretch, reach = (
        NormalDist().inv_cdf(1 - _ONE_SIDE / (times * ranges)) / _Z for times in (pairs, 1)
    )
    contrasts = values[:, None] - values
    apart = ~np.eye(len(figures), dtype=bool)
    lowest = (contrasts - stretch * down)[apart].max()
    highest = (contrasts + reach * up)[apart].max()
    return max(0.0, float(lowest)), min(1.0, float(highest))


def deviation_bounds(low: float | None, high: float | None, n: int) -> Bounds:
    """Smallest and largest standard deviation of n figures whose range lies within the bounds.

    Smallest where all but two lie in the middle, largest where they lie at the two ends.

    Examples
    --------
    >>> [round(end, 3) for end in deviation_bounds(0.0, 0.2, 2)]
    [0.0, 0.141]
    """
    if low is None or high is None:
        return None, None
    half = n // 2 * ((n + 1) // 2)
    largest = high * np.sqrt(half / (n * (n - 1)))
    return float(low / np.sqrt(2 * (n - 1))), min(1.0, max(0.0, float(largest)))


def _correlation(draws: Floats) -> Floats:
    """Correlation of the rows where both are finite; 0 for a row without spread."""
    finite = draws[:, np.isfinite(draws).all(axis=0)]
    deviation = finite - finite.mean(axis=1, keepdims=True) if finite.size else finite
    norm = np.sqrt((deviation**2).sum(axis=1, keepdims=True))
    unit = np.divide(deviation, norm, out=np.zeros_like(deviation), where=norm > _SAME)
    return cast(Floats, unit @ unit.T)


def _reach(own: Floats, other: Floats, together: Floats) -> Floats:
    """Half-width of each contrast a − b from the half-widths of its ends."""
    squares = own[:, None] ** 2 + other**2 - 2 * together * own[:, None] * other
    return cast(Floats, np.sqrt(np.maximum(squares, 0)))
