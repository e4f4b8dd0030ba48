"""Findings: judged measurements, after correction for many checks and after the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.report.controls import roles
from pathfm_kedro.pipelines.report.words import Words, select
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA
from pathfm_kedro.statistics.readable_numbers import number, percent

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
#: Standard errors on either side that hold 95% of a normal distribution.
TWO_SIDED_95 = 1.959964
#: Share of cohorts in which a difference that is called detectable is found.
_POWER = 0.8


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
    role = roles(provenance, measurements["encoder"].unique().sort().to_list())
    p_values = _p_values(signatures)
    findings = signatures.with_columns(
        pl.col("encoder")
        .replace_strict(role, default="encoder", return_dtype=pl.String())
        .alias("role"),
        pl.Series("p_value", p_values, dtype=pl.Float64(), nan_to_null=True),
        pl.col("verdict").alias("measured_verdict"),
    )
    wording = Words.read(words)
    alpha = float(parameters.get("alpha", ALPHA))
    findings = _detectable(_after_correction(findings, alpha), alpha)
    findings = _after_controls(findings, controls)
    if label_is_read(measurements, role, wording) is False:
        findings = _without_label(findings, wording)
    return _in_order(_inherited(findings, provenance), wording)


def label_is_read(measurements: pl.DataFrame, role: Mapping[str, str], words: Words) -> bool | None:
    """Whether any audited encoder's vectors tell the label better than chance; None if unmeasured.

    Where none does, checks of labels favour nobody and decide nothing.
    """
    check = words.report.label_check
    if check is None:
        return None
    rows = select(measurements, check.experiment, check.metric, check.at)
    audited = pl.col("encoder").replace_strict(role, default="control") == "encoder"
    known = rows.filter(audited, stratum="all").drop_nulls(["ci_low", "null_high"])
    return None if known.is_empty() else bool((known["ci_low"] > known["null_high"]).any())


def _without_label(findings: pl.DataFrame, words: Words) -> pl.DataFrame:
    """Checks that need the label are open where nobody reads it."""
    check = words.report.label_check
    assert check is not None
    needs = [x for x in set(findings["experiment"]) if words.needs_label(x)]
    hit = pl.col("experiment").is_in(sorted(needs)) & (pl.col("role") == "encoder")
    hit &= pl.col("verdict").is_in(["pass", "fail"])
    return findings.with_columns(
        reason=pl.when(hit).then(pl.lit(check.reason)).otherwise("reason"),
        verdict=pl.when(hit).then(pl.lit("inconclusive")).otherwise("verdict"),
    )


def _inherited(findings: pl.DataFrame, provenance: Mapping[str, Any]) -> pl.DataFrame:
    """What cannot be measured on a harmonised variant is as it is for the encoder it comes from."""
    cards = provenance.get("encoders", {})
    base_of = {
        name: base
        for name, card in cards.items()
        if (base := str(card.get("model", "")).removeprefix("harmonised:")) in cards
    }
    key = ["experiment", "metric", "stratum", "setting"]
    bases = findings.select(
        *key, _base="encoder", _verdict="verdict", _value="value", _reason="reason"
    )
    joined = findings.with_columns(
        _base=pl.col("encoder").replace_strict(base_of, default=None, return_dtype=pl.String())
    ).join(bases, on=[*key, "_base"], how="left", maintain_order="left")
    hit = (pl.col("verdict") == "not_applicable") & pl.col("_verdict").is_in(
        ["fail", "inconclusive"]
    )
    reason = pl.format("as for {}, whose vectors it takes; {}", "_base", "reason")
    return joined.with_columns(
        reason=pl.when(hit).then(reason).otherwise("reason"),
        verdict=pl.when(hit).then("_verdict").otherwise("verdict"),
    ).drop("_base", "_verdict", "_value", "_reason")


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
        z = np.where(distance > 0, TWO_SIDED_95 * distance / half, 0.0)
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
        "the interval alone says {}, but among {} checks it could be chance: its false discovery "
        "rate is {}, not below {}%",
        "verdict",
        pl.lit(str(int(mask.sum()))),
        pl.col("q_value").map_elements(percent, return_dtype=pl.String()),
        pl.lit(f"{100 * alpha:g}"),
    )
    return findings.with_columns(
        pl.when(lost).then(reason).otherwise("reason").alias("reason"),
        pl.when(lost).then(pl.lit("inconclusive")).otherwise("verdict").alias("verdict"),
    )


def critical_distance(findings: pl.DataFrame, alpha: float) -> float:
    """Standard errors from the threshold at which a check is decided in 80 of 100 such cohorts.

    Among m checks a difference has to clear level alpha / m at worst: at the size reported for one
    check alone, about half of such cohorts would stay open.
    """
    from scipy.stats import norm

    m = max(int(findings["q_value"].is_not_null().sum()), 1)
    return float(norm.isf(alpha / m / 2) + norm.ppf(_POWER))


def _detectable(findings: pl.DataFrame, alpha: float) -> pl.DataFrame:
    """Beside an open check, the difference that would be found in 80 of 100 cohorts of this size."""
    tested = findings["q_value"].is_not_null()
    m = max(int(tested.sum()), 1)
    needed = critical_distance(findings, alpha)
    half = (pl.col("ci_high") - pl.col("ci_low")) / 2 / TWO_SIDED_95
    effect = (half * needed).map_elements(number, return_dtype=pl.String())
    open_by_interval = (pl.col("verdict") == "inconclusive") & (
        pl.col("caveat").fill_null("") == ""
    )
    open_by_interval &= pl.col("ci_low").le(pl.col("threshold")) & pl.col("ci_high").ge(
        pl.col("threshold")
    )
    text = pl.format(
        "the interval contains the threshold {}; among {} checks a cohort of this size detects a "
        "difference of {} from it",
        pl.col("threshold").map_elements(lambda x: f"{x:g}", return_dtype=pl.String()),
        pl.lit(str(m)),
        effect,
    )
    return findings.with_columns(
        reason=pl.when(open_by_interval & tested).then(text).otherwise("reason")
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
    """In the order of the words, figure by figure, encoders before controls: no input order remains."""
    order = {name: i for i, name in enumerate(words.order(findings["experiment"].to_list()))}
    rank = pl.col("experiment").replace_strict(order, default=0, return_dtype=pl.Int64())
    return findings.sort(
        rank, "metric", "stratum", "setting", pl.col("role") == "control", "encoder"
    ).select(list(FINDING_SCHEMA))
