"""Findings: measurements held against the failure signatures, and controls that vouch for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.report.summary import (
    Row,
    check_name,
    check_title,
    experiment_name,
    experiment_order,
    failure_text,
    held_against,
    interval_text,
    null_text,
    number,
    threshold_text,
)
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA

#: Findings table: measurements, the encoder's role, and what correcting for many checks says.
FINDING_SCHEMA: dict[str, pl.DataType] = {
    **MEASUREMENT_SCHEMA,
    "role": pl.String(),
    "p_value": pl.Float64(),
    "q_value": pl.Float64(),
    "measured_verdict": pl.String(),
}
CONTROL_SCHEMA: dict[str, pl.DataType] = {
    "control": pl.String(),
    "experiment": pl.String(),
    "expectation": pl.String(),
    "observed": pl.String(),
    "behaves": pl.Boolean(),
    "blocks": pl.Boolean(),
    "blocks_pass": pl.Boolean(),
    "reason": pl.String(),
}
VERDICT_SCHEMA: dict[str, pl.DataType] = {
    "encoder": pl.String(),
    "role": pl.String(),
    "verdict": pl.String(),
    "n_pass": pl.Int64(),
    "n_fail": pl.Int64(),
    "n_inconclusive": pl.Int64(),
    "n_not_applicable": pl.Int64(),
    "sentence": pl.String(),
}
CONTROLS = ("phantom_truth", "random_projection", "stain_statistics", "tile_corner")

#: Share of wrong discoveries accepted among all findings of an audit.
ALPHA = 0.05
#: How far above chance a control that knows nothing may keep its neighbours at 90°: in a small pool
#: the share of neighbours kept by accident is itself uncertain.
CHANCE_MARGIN = 0.2
_TWO_SIDED_95 = 1.959964
#: Numerical slack where an interval touches a closed-form null.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class ControlCheck:
    """Whether a control answered as it must in one experiment.

    Attributes
    ----------
    control, experiment
        Who was asked, in which experiment.
    expectation, observed
        What must be seen if the instrument works, and what was.
    behaves
        None where it could not be told or does not apply.
    blocks
        Whether the experiment's findings cannot be trusted for that reason.
    blocks_pass
        Whether a pass cannot be trusted, although a fail can: nothing shows that the check can fail.
    reason
        Why it misbehaves, could not be told, or does not apply.
    """

    control: str
    experiment: str
    expectation: str
    observed: str = "n/a"
    behaves: bool | None = None
    blocks: bool = False
    blocks_pass: bool = False
    reason: str = ""


def roles(provenance: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    """Role of each encoder, ``encoder`` or ``control``; the known controls need no entry.

    Examples
    --------
    >>> roles({"encoders": {"uni": {"role": "encoder"}}}, ["uni", "random_projection"])
    {'uni': 'encoder', 'random_projection': 'control'}
    """
    known = provenance.get("encoders", {})
    default = {name: "control" if name in CONTROLS else "encoder" for name in names}
    return {name: known.get(name, {}).get("role", default[name]) for name in names}


def select(
    measurements: pl.DataFrame, experiment: str, metric: str, /, **setting: Any
) -> pl.DataFrame:
    """Rows of one metric whose setting has the given entries.

    Examples
    --------
    >>> table = pl.DataFrame({"experiment": ["rotation"] * 2, "metric": ["mknn"] * 2,
    ...                       "setting": ['{"angle": 90}', '{"angle": 45}'], "value": [0.8, 0.9]})
    >>> select(table, "rotation", "mknn", angle=90)["value"].to_list()
    [0.8]
    """
    rows = measurements.filter(experiment=experiment, metric=metric)
    parsed = [json.loads(text) for text in rows["setting"]]
    keep = [all(entry.get(key) == value for key, value in setting.items()) for entry in parsed]
    return rows.filter(pl.Series(keep, dtype=pl.Boolean()))


def collect_findings(
    measurements: pl.DataFrame,
    provenance: Mapping[str, Any],
    parameters: Mapping[str, Any],
    design: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The failure signatures with their verdicts after correction and after the controls.

    A pass or a fail needs three things: the interval lies on one side of the threshold, the
    Benjamini-Hochberg q-value over all signatures of all real encoders is below alpha, and the
    controls of the experiment behaved. Otherwise the finding is inconclusive and says why.
    Controls are judged by their intervals alone.

    Parameters
    ----------
    measurements
        Measurements of all experiments and encoders; rows with a threshold are the signatures.
    provenance
        ``encoders`` with their roles, ``is_phantom``.
    parameters
        ``alpha`` and ``chance_margin``.
    design
        Patients and slides per label and center; see :func:`check_controls`.

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
    controls = check_controls(measurements, provenance, parameters, design)
    return _in_order(_after_controls(findings, controls))


def check_controls(
    measurements: pl.DataFrame,
    provenance: Mapping[str, Any],
    parameters: Mapping[str, Any],
    design: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Whether the encoders whose answer is known in advance gave that answer.

    Parameters
    ----------
    measurements
        Measurements of all experiments and encoders.
    provenance
        ``is_phantom``: `phantom_truth` is expected there only.
    parameters
        ``chance_margin``: how far above chance a control may keep neighbours under rotation.
    design
        Columns label, center, n_slides: gives the linear probe's chance, 1/B for B labels, where
        its row has no null. The votes of the robustness index are held against their own nulls
        alone: a query's patient never votes, so that chance lies below 1/B and 1/C.

    Returns
    -------
    DataFrame
        :data:`CONTROL_SCHEMA`. `behaves` is null where it could not be told or does not apply;
        `blocks` says whether the experiment's findings become inconclusive for it, `blocks_pass`
        whether only those that pass do.
    """
    margin = float(parameters.get("chance_margin", CHANCE_MARGIN))
    measured = set(measurements["experiment"])
    checks: list[ControlCheck] = []
    if "robustness_index" in measured:
        checks += [_random_ri(measurements), _stain_ri(measurements)]
    if "rotation" in measured:
        checks.append(_random_rotation(measurements, margin))
    if "retrieval" in measured:
        checks.append(_random_retrieval(measurements))
    if "linear_probe" in measured:
        checks.append(_random_probe(measurements, _chances(design)))
    checks += [check for told in MUST_FAIL for check in _must_fail(measurements, *told)]
    if provenance.get("is_phantom"):
        checks += _phantom_truth(measurements)
    return pl.DataFrame([asdict(check) for check in checks], schema=CONTROL_SCHEMA)


#: Checks without which an encoder cannot pass as a whole.
CORE_CHECKS = ("ri_minus_null", "mknn")


def verdict_by_encoder(findings: pl.DataFrame, controls: pl.DataFrame) -> pl.DataFrame:
    """One verdict and one sentence for each encoder.

    The verdict is the worst of its findings: fail, then inconclusive, then pass; not_applicable
    where none could be judged. Passing what is left is no pass: where a core check (robustness
    index, rotation) is not applicable, or an experiment that others have findings in has none of
    the encoder, it is inconclusive. A spread over organs does not exist in a cohort of one organ,
    so its absence takes nothing back.

    Returns
    -------
    DataFrame
        :data:`VERDICT_SCHEMA`, encoders before controls, each in alphabetical order.
    """
    expected = _expected_checks(findings)
    rows = []
    for (encoder, role), own in findings.group_by("encoder", "role", maintain_order=True):
        counts = {
            verdict: own.filter(verdict=verdict).height
            for verdict in ("fail", "inconclusive", "pass", "not_applicable")
        }
        measured = set(own["experiment"])
        missing = {name: n for name, n in expected.items() if name not in measured}
        verdict = next((name for name, count in counts.items() if count), "not_applicable")
        core = own.filter(pl.col("metric").is_in(CORE_CHECKS), verdict="not_applicable").height
        if verdict == "pass" and (core or missing):
            verdict = "inconclusive"
        told = _sentence(own, counts, missing)
        rows.append(
            {
                "encoder": encoder,
                "role": role,
                "verdict": verdict,
                **{f"n_{name}": count for name, count in counts.items()},
                "sentence": told + _control_sentence(str(encoder), controls),
            }
        )
    table = pl.DataFrame(rows, schema=VERDICT_SCHEMA)
    return table.sort(pl.col("role") == "control", "encoder")


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


def _expected_checks(findings: pl.DataFrame) -> dict[str, int]:
    """Checks of each experiment: the most that any encoder has findings of."""
    counts = findings.group_by("experiment", "encoder").len().group_by("experiment")
    most = dict(counts.agg(pl.col("len").max()).rows())
    return {name: most[name] for name in experiment_order(list(most))}


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


def _in_order(findings: pl.DataFrame) -> pl.DataFrame:
    """By experiment as told, figure by figure, encoders before controls: no input order remains."""
    order = {name: i for i, name in enumerate(experiment_order(findings["experiment"].to_list()))}
    rank = pl.col("experiment").replace_strict(order, default=0, return_dtype=pl.Int64())
    return findings.sort(
        rank, "metric", "stratum", "setting", pl.col("role") == "control", "encoder"
    ).select(list(FINDING_SCHEMA))


def _chances(design: pl.DataFrame | None) -> dict[str, float | None]:
    """Chance of hitting the right label and the right center blindly: 1/B and 1/C."""
    if design is None:
        return {"label": None, "center": None}
    used = design.filter(pl.col("n_slides") > 0)
    return {name: 1 / max(used[name].n_unique(), 1) for name in ("label", "center")}


def _control_rows(
    measurements: pl.DataFrame, control: str, experiment: str, metric: str, **setting: Any
) -> list[dict[str, Any]]:
    own = measurements.filter(pl.col("encoder") == control)
    return select(own, experiment, metric, **setting).to_dicts()


def _cohort_row(measurements: pl.DataFrame, control: str, metric: str) -> dict[str, Any] | None:
    """The robustness index's row for all labels and centers at the cohort's k."""
    wanted = {"design": "all", "role": "cohort_k"}
    rows = _control_rows(measurements, control, "robustness_index", metric, **wanted)
    return rows[0] if rows else None


def _unknown(control: str, experiment: str, expectation: str, row: Row | None) -> ControlCheck:
    """A control without the figure it is asked for: nothing shows that the instrument works."""
    reason = f"was not measured in {experiment}; keep it among the cohort's encoders and run again"
    if row is not None:
        reason = f"its figure is undefined ({row['reason'] or 'no interval'})"
    return ControlCheck(control, experiment, expectation, blocks=True, reason=reason)


def _has_interval(row: Row | None) -> bool:
    return row is not None and None not in (row["value"], row["ci_low"], row["ci_high"])


def _has_null(row: Row) -> bool:
    return None not in (row["null_low"], row["null_high"])


def _overlaps_null(row: Row, low: float, high: float) -> bool:
    return bool(row["ci_low"] <= high + _TOLERANCE and row["ci_high"] >= low - _TOLERANCE)


def _judged(
    control: str, experiment: str, expectation: str, observed: str, behaves: bool, reason: str
) -> ControlCheck:
    reason = "" if behaves else reason
    return ControlCheck(
        control, experiment, expectation, observed, behaves, blocks=not behaves, reason=reason
    )


def _random_ri(measurements: pl.DataFrame) -> ControlCheck:
    control, experiment = "random_projection", "robustness_index"
    expectation = "its robustness index lies at the null"
    row = _cohort_row(measurements, control, "ri")
    if row is None or not _has_interval(row) or row["null_low"] is None:
        return _unknown(control, experiment, expectation, row)
    low = row["null_low"]
    high = low if row["null_high"] is None else row["null_high"]
    observed = f"{interval_text(row)}, null {null_text({'null_low': low, 'null_high': high})}"
    reason = "knows nothing, yet its robustness index is away from the null"
    behaves = _overlaps_null(row, low, high)
    return _judged(control, experiment, expectation, observed, behaves, reason)


def _random_rotation(measurements: pl.DataFrame, margin: float) -> ControlCheck:
    control, experiment = "random_projection", "rotation"
    expectation = f"keeps hardly more neighbours at 90° than chance (at most {margin:g} above it)"
    rows = _control_rows(measurements, control, experiment, "mknn", angle=90)
    rows = [row for row in rows if json.loads(row["setting"]).get("view", "rotated") == "rotated"]
    rows = [row for row in rows if row["threshold"] is not None] or rows
    usable = [row for row in rows if row["value"] is not None]
    if not usable:
        return _unknown(control, experiment, expectation, rows[0] if rows else None)
    behaves = all(row["value"] <= margin + _mean_null(row, 0.0) for row in usable)
    observed = "; ".join(interval_text(row) for row in usable)
    reason = "knows nothing, yet it keeps its neighbours under rotation"
    return _judged(control, experiment, expectation, observed, behaves, reason)


def _random_retrieval(measurements: pl.DataFrame) -> ControlCheck:
    """Asked where the signatures of retrieval are read; elsewhere nothing is judged."""
    control, experiment = "random_projection", "retrieval"
    expectation = "its macro-F1 lies at the null"
    searches = measurements.filter(pl.col("threshold").is_not_null(), experiment=experiment)
    if searches.is_empty():
        reason = "not applicable: no figure of retrieval has a threshold"
        return ControlCheck(control, experiment, expectation, reason=reason)
    found = measurements.filter(
        pl.col("setting").is_in(searches["setting"].unique().to_list()),
        experiment=experiment,
        encoder=control,
        metric="macro_f1",
        stratum="all",
    )
    rows = found.sort("setting").to_dicts()
    defined = [row for row in rows if row["value"] is not None]
    if rows and not defined:
        reason = f"not applicable: {rows[0]['reason']}"
        return ControlCheck(control, experiment, expectation, reason=reason)
    if not rows:
        return _unknown(control, experiment, expectation, None)
    if not all(_has_interval(row) and _has_null(row) for row in defined):
        reason = "its macro-F1 has no interval or no null"
        return ControlCheck(control, experiment, expectation, blocks=True, reason=reason)
    observed = "; ".join(f"{interval_text(row)}, null {null_text(row)}" for row in defined)
    if all(abs(row["null_high"] - row["null_low"]) < _TOLERANCE for row in defined):
        reason = "not applicable: any encoder gives this macro-F1, the null has no width"
        return ControlCheck(control, experiment, expectation, observed, reason=reason)
    behaves = all(_overlaps_null(row, row["null_low"], row["null_high"]) for row in defined)
    reason = "knows nothing, yet a search by it finds the label more or less often than chance"
    return _judged(control, experiment, expectation, observed, behaves, reason)


def _random_probe(measurements: pl.DataFrame, chance: dict[str, float | None]) -> ControlCheck:
    """Held against the row's own null; against 1/B of the design only where it has none."""
    control, experiment = "random_projection", "linear_probe"
    expectation = "the probe reads the label no better than chance"
    rows = _control_rows(measurements, control, experiment, "balanced_accuracy", target="label")
    row = rows[0] if rows else None
    null = None if row is None else _null_range(row, chance["label"])
    if row is None or not _has_interval(row) or null is None:
        return _unknown(control, experiment, expectation, row)
    shown = null_text({"null_low": null[0], "null_high": null[1]})
    observed = f"{interval_text(row)}, null {shown}"
    reason = "knows nothing, yet a probe reads the label from it"
    behaves = _overlaps_null(row, *null)
    return _judged(control, experiment, expectation, observed, behaves, reason)


def _stain_ri(measurements: pl.DataFrame) -> ControlCheck:
    """Colour alone must fail where the centers differ in stain more than the labels do.

    Both are told by the votes of neighbours, as agreement beyond the chance that each row's own
    null gives. An open index shows neither that the check works nor that it does not: it takes
    back what passes, and leaves what fails.
    """
    control, experiment = "stain_statistics", "robustness_index"
    expectation = "fails the robustness index where the centers differ in stain"
    label = _cohort_row(measurements, control, "knn_accuracy_label")
    center = _cohort_row(measurements, control, "knn_accuracy_center")
    index = _cohort_row(measurements, control, "ri_minus_null")
    for row in (label, center, index):
        if row is None or not _has_interval(row):
            return _unknown(control, experiment, expectation, row)
    assert label is not None and center is not None and index is not None  # noqa: PT018
    of_label, of_center = _kappa(label), _kappa(center)
    if of_label is None or of_center is None:
        reason = "no null of the vote was measured"
        return ControlCheck(control, experiment, expectation, blocks=True, reason=reason)
    observed = (
        f"agreement beyond chance: center {interval_text(of_center)}, label "
        f"{interval_text(of_label)}; index minus null {interval_text(index)}"
    )
    if not of_center["ci_low"] > of_label["ci_high"]:
        reason = "not applicable: the centers do not differ in stain more than the labels do"
        return ControlCheck(control, experiment, expectation, observed, reason=reason)
    if index["verdict"] not in ("pass", "fail"):
        reason = "the cohort is too small to show that this check can fail"
        return ControlCheck(
            control, experiment, expectation, observed, blocks_pass=True, reason=reason
        )
    reason = (
        "knows only colour, yet it passes the robustness index although the centers differ in stain"
    )
    behaves = index["verdict"] == "fail"
    return _judged(control, experiment, expectation, observed, behaves, reason)


#: Controls that a check must be able to fail: control, experiment, metric, and why it must.
MUST_FAIL = (
    (
        "tile_corner",
        "rotation",
        "mknn",
        "fails rotation: it knows only one corner of a tile",
    ),
    (
        "stain_statistics",
        "appearance",
        "stain_kept_neighbours",
        "fails the change of stain: it knows only colour",
    ),
    (
        "stain_statistics",
        "cue_conflict",
        "follows_morphology_minus_null",
        "follows the stain: it knows only colour",
    ),
)


def _must_fail(
    measurements: pl.DataFrame, control: str, experiment: str, metric: str, expectation: str
) -> Iterator[ControlCheck]:
    """A control that has to fail a check; where it does not, nothing shows that the check can fail.

    What passes is taken back then, what fails is its own proof. A cohort without the control, or in
    which the check is not held against a threshold, is not asked.
    """
    rows = measurements.filter(
        pl.col("threshold").is_not_null(), encoder=control, experiment=experiment, metric=metric
    ).to_dicts()
    for row in rows[:1]:
        if row["value"] is None:
            # Where nobody has a figure there is nothing to vouch for.
            asked = measurements.filter(
                pl.col("threshold").is_not_null(), experiment=experiment, metric=metric
            )["value"].is_not_null()
            reason = row["reason"] if asked.any() else f"not applicable: {row['reason']}"
            yield ControlCheck(
                control, experiment, expectation, blocks_pass=bool(asked.any()), reason=reason
            )
            continue
        observed = f"{interval_text(row)}, must be {threshold_text(row)}: {row['verdict']}"
        if row["verdict"] == "fail":
            yield ControlCheck(control, experiment, expectation, observed, behaves=True)
            continue
        reason = "it does not fail, so that nothing shows that this check can fail here"
        yield ControlCheck(
            control, experiment, expectation, observed, blocks_pass=True, reason=reason
        )


def _kappa(row: Row) -> dict[str, float] | None:
    """Agreement beyond chance (a − c) / (1 − c) of an accuracy a and its interval.

    Chance c is the middle of the row's own null, not 1/B or 1/C of the design: a query's patient
    never votes, and centers are shuffled within labels, so that chance depends on the cohort. None
    where the null is missing or leaves nothing above it.
    """
    if not _has_null(row):
        return None
    chance = (row["null_low"] + row["null_high"]) / 2
    if chance >= 1:
        return None
    return {key: (row[key] - chance) / (1 - chance) for key in ("value", "ci_low", "ci_high")}


def _phantom_truth(measurements: pl.DataFrame) -> Iterator[ControlCheck]:
    """The control that knows the drawn morphology must pass every signature.

    Without its rows nothing shows that an encoder can pass; undefined figures are no such gap.
    """
    control, expectation = "phantom_truth", "passes every check: it knows what was drawn"
    signatures = measurements.filter(pl.col("threshold").is_not_null())
    for experiment in experiment_order(signatures["experiment"].to_list()):
        rows = signatures.filter(encoder=control, experiment=experiment)
        if rows.is_empty():
            yield _unknown(control, experiment, expectation, None)
            continue
        judged = rows.filter(pl.col("verdict") != "not_applicable")
        if not judged.height:
            reason = rows["reason"][0]
            yield ControlCheck(control, experiment, expectation, reason=f"not applicable: {reason}")
            continue
        missed = [
            f"{row['verdict']}: {check_title(row)}"
            for row in judged.filter(pl.col("verdict") != "pass").iter_rows(named=True)
        ]
        observed = f"passes {judged.height - len(missed)} of {judged.height}"
        observed += f" ({'; '.join(missed)})" if missed else ""
        reason = f"knows the truth, yet it does not pass ({'; '.join(missed)})"
        yield _judged(control, experiment, expectation, observed, not missed, reason)


def _mean_null(row: Row, default: float) -> float:
    ends = [end for end in (row["null_low"], row["null_high"]) if end is not None]
    return sum(ends) / len(ends) if ends else default


def _null_range(row: Row, chance: float | None) -> tuple[float, float] | None:
    """The row's own null, else chance; None where neither is known."""
    ends = [end for end in (row["null_low"], row["null_high"]) if end is not None]
    if not ends and chance is not None:
        ends = [chance]
    return (min(ends), max(ends)) if ends else None


def _sentence(own: pl.DataFrame, counts: Mapping[str, int], missing: Mapping[str, int]) -> str:
    """What an encoder's findings come to, failures first; `missing` are experiments without any."""
    judged = own.height - counts["not_applicable"]
    if not judged:
        return "None of the checks could be judged on this cohort."
    unjudged = counts["not_applicable"] + sum(missing.values())
    checks = "check" if judged == 1 else "checks"
    parts = []
    if counts["pass"] == judged and unjudged:
        return (
            f"Passes {judged} of {judged + unjudged} checks; {unjudged} could not be judged: "
            f"{_unjudged(own, missing)}."
        )
    if counts["fail"]:
        causes = _told(own, "fail", lambda row: f"{failure_text(row)} ({held_against(row)})")
        parts.append(f"Fails {counts['fail']} of {judged} {checks}: {causes}.")
    if counts["inconclusive"]:
        names = _told(own, "inconclusive", _undecided)
        parts.append(f"Undecided in {counts['inconclusive']} of {judged}: {names}.")
    if counts["pass"]:
        whole = "the only check" if judged == 1 else f"all {judged} checks"
        amount = f" {whole}" if counts["pass"] == judged else ""
        parts.append(f"Passes{amount}: {_told(own, 'pass', check_name, ', ')}.")
    if unjudged:
        parts.append(f"{unjudged} could not be judged: {_unjudged(own, missing)}.")
    return " ".join(parts)


def _undecided(row: Row) -> str:
    """An open check; its interval alone does not say why where a pass or fail was taken back."""
    parts = [f"{interval_text(row)}, must be {threshold_text(row)}"]
    if row["measured_verdict"] in ("pass", "fail"):
        parts.append(row["reason"])
    return f"{check_name(row)} ({'; '.join(parts)})"


def _unjudged(own: pl.DataFrame, missing: Mapping[str, int]) -> str:
    """Checks without a figure, then experiments in which the encoder was not measured."""
    undefined = _told(own, "not_applicable", check_name, ", ")
    absent = [f"{experiment_name(name).lower()} (not measured)" for name in missing]
    return ", ".join([*([undefined] if undefined else []), *absent])


def _told(own: pl.DataFrame, verdict: str, tell: Callable[[Row], str], between: str = "; ") -> str:
    rows = own.filter(pl.col("verdict") == verdict).iter_rows(named=True)
    return between.join(dict.fromkeys(tell(row) for row in rows))


def _control_sentence(encoder: str, controls: pl.DataFrame) -> str:
    own = controls.filter(control=encoder)
    told = own.filter(pl.col("behaves").is_not_null())
    if not told.height:
        return ""
    return (
        f" As a control it behaves in {told['behaves'].sum()} of {told.height} "
        f"{'experiment' if told.height == 1 else 'experiments'}."
    )
