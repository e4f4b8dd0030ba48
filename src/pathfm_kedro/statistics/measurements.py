"""The one result table: every experiment ends in rows of this schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.readable_numbers import number

Direction = Literal["above", "below"]
Verdict = Literal["pass", "fail", "inconclusive", "undecidable", "not_applicable"]

#: Columns of the measurements table, in order.
MEASUREMENT_SCHEMA: dict[str, pl.DataType] = {
    "experiment": pl.String(),
    "subject": pl.String(),
    "encoder": pl.String(),
    "metric": pl.String(),
    "stratum": pl.String(),
    "setting": pl.String(),
    "value": pl.Float64(),
    "ci_low": pl.Float64(),
    "ci_high": pl.Float64(),
    "n": pl.Int64(),
    "n_patients": pl.Int64(),
    "null_low": pl.Float64(),
    "null_high": pl.Float64(),
    "threshold": pl.Float64(),
    "direction": pl.String(),
    "verdict": pl.String(),
    "caveat": pl.String(),
    "reason": pl.String(),
}

#: A percentile interval over fewer patients is too narrow to decide anything: over five its coverage is
#: about 85% instead of 95%.
MIN_PATIENTS = 8
#: Normal quantiles for a two-sided 5% test with 80% power: 1.960 + 0.842.
_POWER_80 = 2.802
_TWO_SIDED_95 = 1.960


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval and what it rests on.

    Attributes
    ----------
    value, ci_low, ci_high
        The figure and its interval, in the metric's own unit; None where it is undefined.
    n, n_patients
        Rows (tiles, slides, queries) and patients that carry it.
    draws
        [draws] of it in resampled cohorts, which are the same for all encoders of the same patients: by
        them two encoders are compared. Their spread need not be that of the interval. None without.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_patients: int
    draws: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Null:
    """The range of a figure if the encoder knew nothing; a closed form has low == high."""

    low: float | None = None
    high: float | None = None


def judge(
    estimate: Estimate,
    threshold: float | None,
    direction: Direction | None,
    null: Null | None = None,
    caveat: str = "",
) -> tuple[Verdict, str]:
    """Hold an estimate against its threshold.

    `pass` and `fail` need the whole interval on one side of the threshold; otherwise `inconclusive`,
    with the smallest difference from the threshold that a cohort of this size would detect
    (two-sided 5%, power 80%). `undecidable` is what no figure could decide here: fewer than
    :data:`MIN_PATIENTS` patients, or chance alone above a threshold that must be exceeded.

    Parameters
    ----------
    estimate
        The figure with its interval.
    threshold
        The boundary, in the metric's unit; None for a figure without one.
    direction
        ``above``: a trustworthy encoder lies above the threshold; ``below``: below it.
    null
        Where the figure of an encoder that knows nothing lies.
    caveat
        Why no verdict may rest on the figure; empty where one may.

    Returns
    -------
    tuple
        Verdict and the reason (empty for pass and fail).

    Examples
    --------
    >>> judge(Estimate(0.9, 0.85, 0.95, 100, 20), 0.5, "above")
    ('pass', '')
    >>> judge(Estimate(0.9, 0.4, 0.95, 100, 20), 0.5, "above")[0]
    'inconclusive'
    """
    if estimate.value is None:
        return "not_applicable", "the cohort does not support this figure"
    if threshold is None or direction is None:
        return "not_applicable", "descriptive: no threshold is set for this figure"
    low, high = estimate.ci_low, estimate.ci_high
    if low is None or high is None:
        return "not_applicable", "no interval could be computed for this figure"
    if caveat and estimate.n_patients >= MIN_PATIENTS:
        return "inconclusive", caveat
    chance = None if null is None else null.low
    if direction == "above" and chance is not None and chance > threshold:
        return (
            "undecidable",
            f"chance alone is {number(chance)}, which reaches the threshold {threshold:g}: there are "
            "too few tiles of other patients; add patients or sample more tiles",
        )
    if estimate.n_patients < MIN_PATIENTS:
        return (
            "undecidable",
            f"rests on {estimate.n_patients} patients: an interval over fewer than {MIN_PATIENTS} "
            "decides nothing; add patients",
        )
    if low > threshold:
        return ("pass" if direction == "above" else "fail"), ""
    if high < threshold:
        return ("fail" if direction == "above" else "pass"), ""
    detectable = (high - low) / 2 / _TWO_SIDED_95 * _POWER_80
    return (
        "inconclusive",
        f"the interval contains the threshold {threshold:g}; a cohort of this size detects a "
        f"difference of {number(detectable)} from it",
    )


def short_of_null(
    estimate: Estimate,
    threshold: float | None,
    direction: Direction | None,
    label_null: Null,
) -> str:
    """Why a figure that exceeds its threshold says nothing of labels; empty where it does.

    Vectors that are pushed apart by center, as centring them does, exceed what chance gives whatever
    the labels are. To say something of labels the value must lie above the permutations, and its
    interval above their middle: the value alone would exceed 97.5% of them in 2.5% of cohorts, and the
    whole interval above all of them asks for twice the evidence.

    Parameters
    ----------
    estimate, threshold, direction
        As in :func:`judge`.
    label_null
        Range of the figure of the same vectors with labels permuted within centers.

    Examples
    --------
    >>> short_of_null(Estimate(0.1, 0.05, 0.15, 100, 20), 0.0, "above", Null(0.04, 0.12))[:52]
    'with labels permuted within centers the same vectors'
    >>> short_of_null(Estimate(0.2, 0.15, 0.25, 100, 20), 0.0, "above", Null(0.04, 0.12))
    ''
    """
    value, low = estimate.value, estimate.ci_low
    if value is None or low is None or threshold is None or direction != "above":
        return ""
    if low <= threshold:
        return ""
    if label_null.low is None or label_null.high is None:
        return (
            "no permutation of labels within centers says what these vectors reach whatever the labels "
            "are: set n_permutations to 200"
        )
    middle = (label_null.low + label_null.high) / 2
    if value > label_null.high and low > middle:
        return ""
    return (
        f"with labels permuted within centers the same vectors give {number(label_null.low)} to "
        f"{number(label_null.high)}: what lies above the threshold may come of how centers lie to each "
        "other, not of the labels"
    )


def measurement(
    *,
    experiment: str,
    encoder: str,
    metric: str,
    estimate: Estimate,
    subject: str = "encoder",
    stratum: str = "all",
    setting: Mapping[str, Any] | None = None,
    null: Null | None = None,
    threshold: float | None = None,
    direction: Direction | None = None,
    label_null: Null | None = None,
    caveat: str = "",
    reason: str | None = None,
) -> dict[str, Any]:
    """One row of the measurements table, judged against its threshold.

    A given `reason` replaces the judge's; with an undefined value it says why. Where a `label_null` is
    given, a figure that would pass without clearing it gets a caveat in place of a verdict.

    Examples
    --------
    >>> row = measurement(experiment="rotation", encoder="uni", metric="mknn",
    ...                   estimate=Estimate(0.9, 0.85, 0.95, 64, 8), setting={"k": 10, "angle": 90},
    ...                   threshold=0.8, direction="above")
    >>> row["verdict"], row["setting"]
    ('pass', '{"angle": 90, "k": 10}')
    """
    estimate = _defined(estimate)
    null = null or Null()
    chance = null
    if label_null is not None:
        chance = Null()
        caveat = caveat or short_of_null(estimate, threshold, direction, label_null)
    verdict, why = judge(estimate, threshold, direction, chance, caveat)
    return {
        "experiment": experiment,
        "subject": subject,
        "encoder": encoder,
        "metric": metric,
        "stratum": stratum,
        "setting": json.dumps(dict(setting or {}), sort_keys=True),
        "value": estimate.value,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "n": estimate.n,
        "n_patients": estimate.n_patients,
        "null_low": _finite(null.low),
        "null_high": _finite(null.high),
        "threshold": threshold,
        "direction": direction,
        "verdict": verdict,
        "caveat": caveat,
        "reason": reason if reason is not None else why,
    }


def not_applicable(
    *,
    experiment: str,
    encoder: str,
    metrics: Sequence[str],
    reason: str,
    n: int = 0,
    n_patients: int = 0,
    stratum: str = "all",
    setting: Mapping[str, Any] | None = None,
    threshold: float | None = None,
    direction: Direction | None = None,
) -> list[dict[str, Any]]:
    """Rows for figures that the design cannot support, each with the reason.

    A signature keeps its threshold, so that the report lists it among the findings.
    """
    nothing = Estimate(None, None, None, n, n_patients)
    return [
        measurement(
            experiment=experiment,
            encoder=encoder,
            metric=metric,
            estimate=nothing,
            stratum=stratum,
            setting=setting,
            threshold=threshold,
            direction=direction,
            reason=reason,
        )
        for metric in metrics
    ]


def measurement_table(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as the measurements table, in the order given.

    Raises
    ------
    ValueError
        If two rows measure the same thing (experiment, encoder, metric, stratum, setting).
    """
    table = pl.DataFrame(list(rows), schema=MEASUREMENT_SCHEMA)
    key = ["experiment", "encoder", "metric", "stratum", "setting"]
    twice = table.filter(table.select(key).is_duplicated())
    if twice.height:
        raise ValueError(f"measured twice: {twice.select(key).row(0, named=True)}")
    return table


def combine_measurements(*tables: pl.DataFrame) -> pl.DataFrame:
    """Measurements tables one below the other, in the order given."""
    if not tables:
        return pl.DataFrame(schema=MEASUREMENT_SCHEMA)
    return pl.concat(tables)


def _defined(estimate: Estimate) -> Estimate:
    """With None in place of what is not finite, before it is judged; no interval without a value."""
    value = _finite(estimate.value)
    low, high = (_finite(end) for end in (estimate.ci_low, estimate.ci_high))
    if value is None:
        low = high = None
    return replace(estimate, value=value, ci_low=low, ci_high=high)


def _finite(value: float | None) -> float | None:
    """None in place of NaN: an undefined figure is never a silent NaN."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)
