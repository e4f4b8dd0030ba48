"""Findings: judged measurements, after correction for many checks and after the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.report.controls import roles
from pathfm_kedro.pipelines.report.text import number
from pathfm_kedro.pipelines.report.words import Words
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA

#: Findings table: measurements, the encoder's role, and what correcting for many checks says.
FINDING_SCHEMA: dict[str, pl.DataType] = {
    **MEASUREMENT_SCHEMA,
    "role": pl.String(),
    "p_value": pl.Float64(),
    "q_value": pl.Float64(),
    "measured_verdict": pl.String(),
}
#: Share of wrong discoveries accepted among all findings of an audit.
ALPHA = 0.05
_TWO_SIDED_95 = 1.959964


def collect_findings(
    measurements: pl.DataFrame,
    controls: pl.DataFrame,
    provenance: Mapping[str, Any],
    parameters: Mapping[str, Any],
    words: Mapping[str, Any],
) -> pl.DataFrame:
    """The failure signatures with their verdicts after correction and after the controls.

    A pass or a fail needs three things: the interval lies on one side of the threshold, the
    Benjamini-Hochberg q-value over all signatures of all audited encoders is below alpha, and the
    controls of the experiment behaved. Otherwise the finding is inconclusive and says why.
    Controls are judged by their intervals alone.

    Parameters
    ----------
    measurements
        Measurements of all experiments and encoders; rows with a threshold are the signatures.
    controls
        From :func:`~pathfm_kedro.pipelines.report.controls.check_controls`.
    provenance
        ``encoders`` with their roles.
    parameters
        ``alpha``.
    words
        Gives the order of experiments.

    Returns
    -------
    DataFrame
        :data:`FINDING_SCHEMA`; `verdict` and `reason` are final, `measured_verdict` is what the
        interval alone said, `p_value` is two-sided.
    """
    signatures = measurements.filter(pl.col("threshold").is_not_null())
    role = roles(provenance, signatures["encoder"].unique().sort().to_list())
    p_values = _p_values(signatures)
    findings = signatures.with_columns(
        pl.col("encoder")
        .replace_strict(role, default="encoder", return_dtype=pl.String())
        .alias("role"),
        pl.Series("p_value", p_values, dtype=pl.Float64(), nan_to_null=True),
        pl.col("verdict").alias("measured_verdict"),
    )
    findings = _after_correction(findings, float(parameters.get("alpha", ALPHA)))
    return _in_order(_after_controls(findings, controls), Words.read(words))


def _p_values(rows: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Two-sided p-values of "the figure equals its threshold".

    NaN where there is no interval, and where the experiment withheld the verdict that its interval
    alone would give: no question was decided there, and a small p-value that is none of the family
    would make the others look rarer than they are.

    The half of the interval that faces the threshold is 1.96 standard errors: p < 0.05 exactly
    where the 95% interval excludes the threshold, also for a skewed interval.
    """
    from scipy.stats import norm

    columns = ("value", "ci_low", "ci_high", "threshold")
    value, low, high, threshold = (rows[c].cast(pl.Float64).to_numpy() for c in columns)
    facing = np.where(value > threshold, value - low, high - value)
    half = np.where(facing > 0, facing, (high - low) / 2)
    distance = np.abs(value - threshold)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(distance > 0, _TWO_SIDED_95 * distance / half, 0.0)
    verdict = rows["verdict"].to_numpy()
    open_question = (verdict == "inconclusive") & (low <= threshold) & (threshold <= high)
    asked = np.isin(verdict, ("pass", "fail")) | open_question
    z[~np.isfinite(low + high + value) | ~asked] = np.nan
    return np.asarray(2 * norm.sf(z))


def _after_correction(findings: pl.DataFrame, alpha: float) -> pl.DataFrame:
    """Benjamini-Hochberg over the real encoders' signatures; what does not hold is inconclusive."""
    from scipy.stats import false_discovery_control

    tested = (findings["role"] == "encoder") & findings["p_value"].is_not_null()
    q_values = np.full(findings.height, np.nan)
    mask = tested.to_numpy()
    if mask.any():
        q_values[mask] = false_discovery_control(findings["p_value"].to_numpy()[mask])
    findings = findings.with_columns(pl.Series("q_value", q_values, nan_to_null=True))
    lost = pl.col("verdict").is_in(["pass", "fail"]) & (pl.col("q_value") >= alpha)
    reason = pl.format(
        "the interval alone says {}, but among {} checks it could be chance: q = {}, not below {}",
        "verdict",
        pl.lit(str(int(mask.sum()))),
        pl.col("q_value").map_elements(number, return_dtype=pl.String()),
        pl.lit(f"{alpha:g}"),
    )
    return findings.with_columns(
        pl.when(lost).then(reason).otherwise("reason").alias("reason"),
        pl.when(lost).then(pl.lit("inconclusive")).otherwise("verdict").alias("verdict"),
    )


def _after_controls(findings: pl.DataFrame, controls: pl.DataFrame) -> pl.DataFrame:
    """What the controls of its experiment do not vouch for is inconclusive.

    Where a check was not shown to be able to fail, a pass says nothing, but a fail is its own
    proof. Where a control did not behave or is missing, neither can be trusted.
    """
    findings = _taken_back(findings, controls.filter("blocks_pass"), ["pass"])
    return _taken_back(findings, controls.filter("blocks"), ["pass", "fail", "inconclusive"])


def _taken_back(
    findings: pl.DataFrame, controls: pl.DataFrame, verdicts: list[str]
) -> pl.DataFrame:
    """Real encoders' findings of the controls' experiments that have one of the verdicts.

    What was inconclusive before keeps its reason and gets the control's after it.
    """
    blocked = controls.group_by("experiment", maintain_order=True).agg(
        pl.format("control {}: {}", "control", "reason").str.join("; ").alias("_control")
    )
    joined = findings.join(blocked, on="experiment", how="left", maintain_order="left")
    hit = pl.col("_control").is_not_null() & (pl.col("role") == "encoder")
    hit &= pl.col("verdict").is_in(verdicts)
    open_before = pl.col("verdict") == "inconclusive"
    return joined.with_columns(
        pl.when(hit & open_before)
        .then(pl.concat_str("reason", "_control", separator="; "))
        .when(hit)
        .then("_control")
        .otherwise("reason")
        .alias("reason"),
        pl.when(hit).then(pl.lit("inconclusive")).otherwise("verdict").alias("verdict"),
    ).drop("_control")


def _in_order(findings: pl.DataFrame, words: Words) -> pl.DataFrame:
    """By experiment as told, figure by figure, encoders before controls: no input order remains."""
    order = {name: i for i, name in enumerate(words.order(findings["experiment"].to_list()))}
    rank = pl.col("experiment").replace_strict(order, default=0, return_dtype=pl.Int64())
    return findings.sort(
        rank, "metric", "stratum", "setting", pl.col("role") == "control", "encoder"
    ).select(list(FINDING_SCHEMA))
