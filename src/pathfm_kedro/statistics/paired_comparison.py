r"""Encoders compared two by two on every judged figure.

Bootstrap draws of the same patients are the same for all encoders, so that what makes a cohort easy or
hard for both cancels. With figures a and b, their intervals, and r the correlation of their draws, the
interval of the difference is that of Donner & Zou (2012), which needs no spread of draws and so keeps
whatever an interval was widened or floored by:

    down² = (a − low_a)² + (high_b − b)² − 2 r (a − low_a)(high_b − b)
    up²   = (high_a − a)² + (b − low_b)² − 2 r (high_a − a)(b − low_b)

Where an encoder's draws have no spread, as where it makes no error, r is 0. Intervals and p-values of
one figure allow for all pairs at once: both ends are stretched by c / 1.96, c being the 95% quantile of
the largest standardised difference of each draw (max-t, Westfall & Young 1993, single step).
Differences that have an encoder in common move together, and hence cost less than a correction that
counts them.

The null of a figure that asks for the label is the difference with labels permuted within centers,
alike for both: a variant without the means of its centers has a higher robustness index than its base
whatever the labels are, and what it gains in labels is only what exceeds that null.

Pitfalls
--------
- Encoders measured on other patients are refused; where they lost different slides of the same patients
  they are compared all the same.
- Many figures are compared, each on its own: one pair in twenty that are alike differs on some.
- Of two robustness indices that are alike the interval held 0 in 0.86 to 1.00 of 50 simulated cohorts;
  where both follow little but the center, or the stain, in 0.90 to 1.00.
- The more encoders a cohort has, the wider all intervals. Two controls are not compared.
- A difference is described, not judged: which of two encoders is better depends on what is asked.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.figures import Criterion, Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
)
from pathfm_kedro.statistics.permutation import null_range
from pathfm_kedro.statistics.readable_numbers import p_value_text

Floats = NDArray[np.float64]
#: Metric, stratum and setting of a figure.
Key = tuple[str, str, str]

EXPERIMENT = "comparison"
#: What is put behind the name of a figure.
SUFFIX = "_difference"

#: Two encoders are distinguished below this adjusted p-value.
_ALPHA = 0.05
_Z = NormalDist().inv_cdf(1 - _ALPHA / 2)
#: Figures and widths below this are rounding.
_SAME = 1e-9


@dataclass(frozen=True)
class Judged:
    """The judged figures of one encoder in one experiment.

    Attributes
    ----------
    values
        By figure, or the reason why it has none.
    patients
        Whom its statistics speak of.
    """

    values: Mapping[Key, Value | str]
    patients: frozenset[str]

    @classmethod
    def of(
        cls, figures: Iterable[Figure], criteria: Sequence[Criterion], statistics: pl.DataFrame
    ) -> Judged:
        """Compute those figures that a criterion asks for."""
        values: dict[Key, Value | str] = {}
        for figure in figures:
            if not any(criterion.asks(figure) for criterion in criteria):
                continue
            setting = json.dumps(dict(figure.setting), sort_keys=True)
            try:
                found = figure.compute()
            except Undefined as problem:
                found = str(problem)  # type: ignore[assignment]
            value = Value(found) if isinstance(found, Estimate) else found
            values[figure.metric, figure.stratum, setting] = value
        return cls(values, patients_of(statistics))


def patients_of(statistics: pl.DataFrame) -> frozenset[str]:
    """Patients that a table of statistics speaks of.

    Examples
    --------
    >>> sorted(patients_of(pl.DataFrame({"query_patient": ["p", "q"], "match_patient": ["q", "p"]})))
    ['p', 'q']
    """
    names = [name for name in ("patient_id", "query_patient") if name in statistics.columns]
    return frozenset(p for name in names for p in statistics[name].drop_nulls().unique())


_OTHER_TILES = (
    "{} and {} have vectors of different tiles of the same patients, so that the field of a tile "
    "differs as well as the encoder"
)


def compare_encoders(
    judged: Mapping[str, Judged],
    experiment: str,
    controls: Collection[str] = (),
    grids: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Differences between every two encoders on each judged figure of an experiment.

    Parameters
    ----------
    judged
        Of each encoder.
    experiment
        Its name.
    controls
        Encoders that are compared with others only.
    grids
        Which tiles each encoder has vectors of: where they are others, the reason says so.

    Returns
    -------
    DataFrame
        Rows of the measurements table, experiment ``comparison``: of each encoder its figure less the
        other's (entry ``compared_with`` of the setting; ``of`` is the experiment). Of an encoder and a
        control the encoder's alone. All descriptive; the reason says whether they are distinguished.
    """
    pairs = [p for p in itertools.combinations(sorted(judged), 2) if not set(p) <= set(controls)]
    rows = (
        difference_row(EXPERIMENT, key, experiment, name, other, found, grids)
        for key in judged_keys(judged)
        for name, other, found in differences(key, pairs, judged)
        if name not in controls
    )
    return measurement_table(rows)


def judged_keys(judged: Mapping[str, Judged]) -> list[Key]:
    """Figures that any encoder was asked for, in reading order."""
    return list(dict.fromkeys(key for each in judged.values() for key in each.values))


def difference_row(
    table: str,
    key: Key,
    experiment: str,
    name: str,
    other: str,
    found: Value,
    grids: Mapping[str, str] | None,
    mitigation: str = "",
) -> dict[str, Any]:
    """The difference of an encoder's figure and another's as a row."""
    metric, stratum, setting = key
    same = grids is None or grids.get(name) == grids.get(other)
    remark = "" if same else _OTHER_TILES.format(name, other)
    return measurement(
        experiment=table,
        encoder=name,
        metric=f"{metric}{SUFFIX}",
        stratum=stratum,
        setting={**json.loads(setting), "of": experiment, "compared_with": other}
        | ({"mitigation": mitigation} if mitigation else {}),
        estimate=found.estimate,
        null=found.null,
        reason="; ".join(filter(None, [found.reason, found.remark, remark])),
    )


def differences(
    key: Key, pairs: Sequence[tuple[str, str]], judged: Mapping[str, Judged]
) -> Iterator[tuple[str, str, Value]]:
    """Encoder, other and the difference, in both directions."""
    problems = {pair: _problem(pair, key, judged) for pair in pairs}
    both = [pair for pair in pairs if not problems[pair]]
    values = {name: _value(judged[name], key) for pair in both for name in pair}
    found = simultaneous_differences([(values[a].estimate, values[b].estimate) for a, b in both])
    for pair in pairs:
        if problems[pair]:
            for name, other in (pair, pair[::-1]):
                nothing = Estimate(None, None, None, 0, 0)
                yield name, other, Value(nothing, reason=problems[pair])
    for (name, other), difference in zip(both, found, strict=True):
        null = _null_of(values[name], values[other])
        yield name, other, _described(difference, null, other, len(both))
        mirrored = Null(_minus(null.high), _minus(null.low))
        yield other, name, _described(difference.mirrored(), mirrored, name, len(both))


def _value(judged: Judged, key: Key) -> Value:
    value = judged.values[key]
    assert isinstance(value, Value)
    return value


def _problem(pair: tuple[str, str], key: Key, judged: Mapping[str, Judged]) -> str:
    """Why two encoders cannot be compared; empty if they can."""
    for name in pair:
        value = judged[name].values.get(key)
        if not isinstance(value, Value) or value.estimate.ci_low is None:
            return f"{name} has no such figure: see its own rows for the reason"
    first, second = (judged[name] for name in pair)
    if first.patients != second.patients:
        return (
            f"{pair[0]} and {pair[1]} were measured on other patients, so that draws are not shared: "
            "embed the same slides with both"
        )
    return ""


@dataclass(frozen=True)
class Difference:
    """A figure less another.

    Attributes
    ----------
    value, low, high
        The difference and its interval.
    p_value
        Of "it is 0", adjusted for all pairs; NaN where it is 0 in every resampled cohort.
    n, n_patients
        What it rests on.
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int
    n_patients: int

    def mirrored(self) -> Difference:
        """The second figure less the first."""
        ends = -self.value, -self.high, -self.low
        return Difference(*ends, self.p_value, self.n, self.n_patients)


def simultaneous_differences(
    pairs: Sequence[tuple[Estimate, Estimate]],
) -> list[Difference]:
    """Differences of pairs of figures with intervals that hold together in 95% of cohorts.

    Parameters
    ----------
    pairs
        Figures with intervals; draws, where they have them, are of the same resampled cohorts.

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal(size=(2, 4000))
    >>> a, b = (Estimate(v, v - 2, v + 2, 9, 9, d) for v, d in zip((1.0, 0.0), draws))
    >>> (found,) = simultaneous_differences([(a, b)])
    >>> round(found.low), round(found.high)  # ± √(2² + 2²)
    (-2, 4)
    """
    if not pairs:
        return []
    largest = _largest_standardised(pairs)
    quantile = float(np.quantile(largest, 1 - _ALPHA)) if len(largest) else _Z
    stretch = max(quantile / _Z, 1.0)
    return [_difference(a, b, stretch, largest, len(pairs)) for a, b in pairs]


def _largest_standardised(pairs: Sequence[tuple[Estimate, Estimate]]) -> Floats:
    """[draws] largest deviation of any difference, in standard errors; empty where none varies."""
    found = []
    for a, b in pairs:
        if a.draws is None or b.draws is None or len(a.draws) != len(b.draws):
            continue
        difference = _to_interval(a) - _to_interval(b)
        spread = np.nanstd(difference)
        if spread > _SAME:
            found.append(np.abs(difference - np.nanmean(difference)) / spread)
    if not found:
        return np.zeros(0)
    stacked = np.stack(found)
    return np.asarray(stacked[:, np.isfinite(stacked).all(axis=0)].max(axis=0))


def _to_interval(estimate: Estimate) -> Floats:
    """[draws] with the spread that the interval has."""
    draws = np.asarray(estimate.draws, np.float64)
    spread = np.nanstd(draws)
    if not spread > _SAME:
        return np.zeros_like(draws)
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    return np.asarray((estimate.ci_high - estimate.ci_low) / (2 * _Z) / spread * draws)


def _difference(a: Estimate, b: Estimate, stretch: float, largest: Floats, m: int) -> Difference:
    value = float(a.value) - float(b.value)  # type: ignore[arg-type]
    n, n_patients = min(a.n, b.n), min(a.n_patients, b.n_patients)
    if abs(value) <= _SAME and _move_alike(a, b):
        return Difference(0.0, np.nan, np.nan, np.nan, n, n_patients)
    r = _correlation(a.draws, b.draws)
    down = _reach(_below(a), _above(b), r)
    up = _reach(_above(a), _below(b), r)
    facing = down if value > 0 else up
    size = _Z * abs(value) / facing if facing > _SAME else np.inf
    alone = min(1.0, 2 * m * NormalDist().cdf(-size)) if np.isfinite(size) else 0.0
    # The cohort itself is one of the draws: no p-value is 0.
    p_value = (1 + int((largest >= size).sum())) / (1 + len(largest)) if len(largest) else alone
    ends = value - stretch * down, value + stretch * up
    return Difference(value, *ends, p_value, n, n_patients)


def _move_alike(a: Estimate, b: Estimate) -> bool:
    """Whether two figures are the same in every resampled cohort, and vary there or never do."""
    if a.draws is None or b.draws is None or len(a.draws) != len(b.draws):
        return False
    same = np.allclose(a.draws, b.draws, rtol=0, atol=_SAME, equal_nan=True)
    return same and bool(np.nanstd(a.draws) > _SAME or _below(a) + _above(a) <= _SAME)


def _below(estimate: Estimate) -> float:
    return max(float(estimate.value) - float(estimate.ci_low), 0.0)  # type: ignore[arg-type]


def _above(estimate: Estimate) -> float:
    return max(float(estimate.ci_high) - float(estimate.value), 0.0)  # type: ignore[arg-type]


def _reach(own: float, other: float, together: float) -> float:
    square = own**2 + other**2 - 2 * together * own * other
    return float(np.sqrt(max(square, 0.0)))


def _correlation(a: Floats | None, b: Floats | None) -> float:
    """Of the draws where both are finite; 0 where either has no spread."""
    if a is None or b is None or len(a) != len(b):
        return 0.0
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2 or min(np.std(a[known]), np.std(b[known])) <= _SAME:
        return 0.0
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _null_of(first: Value, second: Value) -> Null:
    """95% of the difference with labels permuted within centers, alike for both."""
    a, b = first.permuted, second.permuted
    if a is None or b is None or not len(a) or len(a) != len(b):
        return Null(0.0, 0.0)
    return null_range(a - b)


def _minus(end: float | None) -> float | None:
    return None if end is None else -end


def _described(difference: Difference, null: Null, other: str, pairs: int) -> Value:
    """The difference as a row tells it."""
    low, high = (end if np.isfinite(end) else None for end in (difference.low, difference.high))
    estimate = Estimate(difference.value, low, high, difference.n, difference.n_patients)
    remark = _from_centers(difference, null) if difference.p_value < _ALPHA else ""
    return Value(estimate, null, reason=_distinguished(difference, other, pairs), remark=remark)


def _distinguished(difference: Difference, other: str, pairs: int) -> str:
    p_value = difference.p_value
    if not np.isfinite(p_value):
        return f"the same as {other} in every resampled cohort"
    among = p_value_text(p_value) + (f" allowing for {pairs} pairs" if pairs > 1 else "")
    if p_value >= _ALPHA:
        return f"not distinguished from {other}: {among}"
    return f"{'higher' if difference.value > 0 else 'lower'} than {other}: {among}"


def _from_centers(difference: Difference, null: Null) -> str:
    """That a difference is there whatever the labels are; empty where it is not."""
    if null.low is None or null.high is None or not null.low <= difference.value <= null.high:
        return ""
    return (
        "as large with labels permuted within centers: it comes of how centers lie to each other, not "
        "of the labels"
    )
