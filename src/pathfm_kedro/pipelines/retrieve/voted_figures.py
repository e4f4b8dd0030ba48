"""Macro-F1 of the votes, and how it differs between organs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.readable_numbers import number
from pathfm_kedro.statistics.resampled_figure import (
    ResampledFigure,
    deviation_bounds,
    range_interval,
    without_null_spread,
)
from pathfm_kedro.statistics.votes import PatientVotes

Floats = NDArray[np.float64]


def share(figure: ResampledFigure, n: int, n_patients: int) -> Value:
    """A share with its interval and its null."""
    return Value(
        Estimate(figure.value, *figure.interval(), n, n_patients, figure.draws), figure.null
    )


def judged_macro_f1(votes: PatientVotes, threshold: float | None) -> Value:
    """Macro-F1; where chance reaches it as well, no threshold below it is passed."""
    figure = votes.macro_f1
    value = share(figure, votes.n, votes.n_patients)
    low, caveat = value.estimate.ci_low, ""
    if without_null_spread(figure.value, figure.null):
        caveat = _any_encoder(figure.value)
    elif threshold is not None and low is not None and low > threshold and not figure.above_null():
        caveat = (
            f"above the threshold, but {_not_above_null(figure)}: an encoder that knows nothing may "
            "reach the threshold; raise it or add patients"
        )
    return Value(value.estimate, value.null, caveat=caveat)


@dataclass(frozen=True)
class OrganSpread:
    """How macro-F1 differs between organs.

    Attributes
    ----------
    organs
        Votes of the queries of each, at least two.
    pooled
        Macro-F1 of all queries.
    """

    organs: Sequence[PatientVotes]
    pooled: ResampledFigure

    def mean(self) -> Value:
        """Mean, with the bootstrap of the same resampled cohorts."""
        figures = [organ.macro_f1 for organ in self.organs]
        figure = ResampledFigure(
            float(self._values.mean()),
            np.mean([f.draws for f in figures], axis=0),
            self._permuted.mean(axis=1),
            sum(f.n_patients for f in figures),
        )
        n = sum(organ.n for organ in self.organs)
        return share(figure, n, sum(organ.n_patients for organ in self.organs))

    def range(self) -> Value:
        """Largest minus smallest; no verdict where the search finds no labels."""
        caveat = (
            "organs may be equally bad, or differ by chance alone, and neither is a verdict: "
            f"{_not_above_null(self.pooled)}"
        )
        bounds = (None if end is None else min(1.0, max(0.0, end)) for end in self._bounds)
        draws = np.ptp([organ.macro_f1.draws for organ in self.organs], axis=0)
        estimate = replace(self._estimate(self._range, *bounds), draws=draws)
        return Value(estimate, self._null, caveat="" if self.pooled.above_null() else caveat)

    def deviation(self) -> Value:
        """Standard deviation."""
        estimate = self._estimate(self._deviation, *self._deviation_bounds)
        return Value(estimate, Null(*percentile_interval(self._permuted.std(axis=1, ddof=1))))

    def between(self) -> Estimate:
        """Standard deviation less what the sampling of patients adds: √(sd² − mean variance).

        Both estimate the spread of the expected figures, so both have its interval.
        """
        noise = float(np.mean([organ.macro_f1.sampling_variance() for organ in self.organs]))
        value = float(np.sqrt(max(0.0, self._deviation**2 - noise)))
        return self._estimate(value, *self._deviation_bounds)

    @property
    def _values(self) -> Floats:
        return np.array([organ.macro_f1.value for organ in self.organs])

    @property
    def _permuted(self) -> Floats:
        return np.stack([organ.macro_f1.permuted for organ in self.organs], axis=1)

    @property
    def _range(self) -> float:
        return float(np.ptp(self._values))

    @property
    def _deviation(self) -> float:
        return float(self._values.std(ddof=1))

    @property
    def _null(self) -> Null:
        return Null(*percentile_interval(np.ptp(self._permuted, axis=1)))

    @property
    def _bounds(self) -> tuple[float | None, float | None]:
        return range_interval([organ.macro_f1 for organ in self.organs])

    @property
    def _deviation_bounds(self) -> tuple[float | None, float | None]:
        return deviation_bounds(*self._bounds, len(self.organs))

    def _estimate(self, value: float, low: float | None, high: float | None) -> Estimate:
        n = sum(organ.n for organ in self.organs)
        n_patients = sum(organ.n_patients for organ in self.organs)
        if without_null_spread(self._range, self._null):
            raise Undefined(_any_encoder(self._range), n, n_patients)
        return Estimate(value, low, high, n, n_patients)


def _not_above_null(pooled: ResampledFigure) -> str:
    bounds, chance = pooled.interval(), pooled.null
    return (
        f"macro-F1 is not above its null ({_span(*bounds)} against {_span(chance.low, chance.high)}"
        " from permuted labels)"
    )


def _span(low: float | None, high: float | None) -> str:
    return "n/a" if low is None or high is None else f"{number(low)} to {number(high)}"


def _any_encoder(value: float) -> str:
    return (
        f"any encoder gives this figure here ({number(value)}): the vote is the same however labels "
        "are permuted; use a smaller vote or add patients"
    )
