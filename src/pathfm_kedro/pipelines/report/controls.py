"""Controls: whether the encoders whose answer is known in advance gave that answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.text import Row, interval_text, null_text, threshold_text
from pathfm_kedro.pipelines.report.words import ControlWords, Words, select

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
#: How far above chance a control that knows nothing may keep its neighbours: in a small pool the share
#: kept by accident is itself uncertain.
CHANCE_MARGIN = 0.2
#: Numerical slack where an interval touches a closed-form null.
_TOLERANCE = 1e-9
_NOT_ASKED = "not applicable: "
#: Of a control that could not be shown, which is no failure of anybody's.
_NO_PIXELS = (
    f"{_NOT_ASKED}it needs pixels, and this cohort has features and no slides, so that it cannot show "
    "here whether the check can fail"
)


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
        None where it could not be decided or does not apply.
    blocks
        Whether the experiment's findings cannot be trusted for that reason.
    blocks_pass
        Whether a pass cannot be trusted, although a fail can: nothing shows that the check can fail.
    reason
        Why it misbehaves, could not be decided, or does not apply.
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
    """Role of each encoder, ``encoder`` or ``control``; one without an entry is an encoder.

    Examples
    --------
    >>> roles({"encoders": {"noise": {"role": "control"}}}, ["uni", "noise"])
    {'uni': 'encoder', 'noise': 'control'}
    """
    known = provenance.get("encoders", {})
    return {name: known.get(name, {}).get("role", "encoder") for name in names}


def check_controls(
    measurements: pl.DataFrame,
    provenance: Mapping[str, Any],
    parameters: Mapping[str, Any],
    words: Mapping[str, Any],
) -> pl.DataFrame:
    """Hold every control against what the words of an experiment say that it must show.

    Parameters
    ----------
    measurements
        Measurements of all experiments and encoders.
    provenance
        ``encoders``: controls that the cohort does not have are asked nothing, unless they must lie
        at a null, which every cohort needs; ``is_phantom``.
    parameters
        ``chance_margin``: how far above chance a control may keep neighbours.
    words
        From :func:`~pathfm_kedro.pipelines.report.words.gather_words`.

    Returns
    -------
    DataFrame
        :data:`CONTROL_SCHEMA`. `behaves` is null where it could not be decided or does not apply;
        `blocks` says whether the experiment's findings become inconclusive for it, `blocks_pass`
        whether only those that pass do.
    """
    wording = Words.read(words)
    margin = float(parameters.get("chance_margin", CHANCE_MARGIN))
    checks: list[ControlCheck] = []
    cohort = provenance.get("parameters", {}).get("cohort", {})
    without_pixels = cohort.get("source") == "features"
    for experiment in wording.order(measurements["experiment"].to_list()):
        rows = measurements.filter(experiment=experiment)
        for control in wording.of(experiment).controls:
            if without_pixels and rows.filter(encoder=control.control).is_empty():
                name = control.control, experiment, control.expectation
                checks.append(ControlCheck(*name, reason=_NO_PIXELS))
                continue
            ask = _ASKED_OF[control.must]
            checks += ask(rows, experiment, control, margin)
    # What was drawn is known on the phantom alone.
    for control in wording.report.controls if provenance.get("is_phantom") else ():
        checks += _passes_everything(measurements, control, wording)
    return pl.DataFrame([asdict(check) for check in checks], schema=CONTROL_SCHEMA)


def _lies_at_null(
    rows: pl.DataFrame, experiment: str, control: ControlWords, margin: float
) -> Iterator[ControlCheck]:
    """The control's figure must lie within its own null, or its interval hold the null's middle.

    Intervals that merely overlap say little: a figure above its whole null would pass.
    """
    name = control.control, experiment, control.expectation
    if control.where_judged and rows["threshold"].is_null().all():
        reason = f"{_NOT_ASKED}no figure of this experiment has a criterion"
        yield ControlCheck(*name, reason=reason)
        return
    found = _asked_rows(rows, control)
    defined = [row for row in found if row["value"] is not None]
    if control.where_judged and found and not defined:
        yield ControlCheck(*name, reason=f"{_NOT_ASKED}{found[0]['reason']}")
        return
    if not defined or not all(_has_interval(row) and _null(row) for row in defined):
        yield _unknown(*name, found[0] if found else None)
        return
    observed = "; ".join(f"{interval_text(row)}, null {null_text(row)}" for row in defined)
    nulls = [_null(row) or (0.0, 0.0) for row in defined]
    if control.where_judged and all(high - low < _TOLERANCE for low, high in nulls):
        reason = f"{_NOT_ASKED}any encoder gives this figure, the null has no width"
        yield ControlCheck(*name, observed, reason=reason)
        return
    behaves = all(_at_null(row, *null) for row, null in zip(defined, nulls, strict=True))
    yield _judged(*name, observed, behaves, control.otherwise)


def _at_null(row: Row, low: float, high: float) -> bool:
    within = low - _TOLERANCE <= row["value"] <= high + _TOLERANCE
    middle = (low + high) / 2
    return bool(within or row["ci_low"] - _TOLERANCE <= middle <= row["ci_high"] + _TOLERANCE)


def _lies_near_chance(
    rows: pl.DataFrame, experiment: str, control: ControlWords, margin: float
) -> Iterator[ControlCheck]:
    """The control's figure may lie no more than the margin above the middle of its null."""
    expectation = f"{control.expectation} (at most {margin:g} above it)"
    name = control.control, experiment, expectation
    found = _asked_rows(rows, control)
    found = [row for row in found if row["threshold"] is not None] or found
    usable = [row for row in found if row["value"] is not None]
    if found and rows.filter(pl.col("value").is_not_null(), metric=control.metric).is_empty():
        # Where nobody has a figure there is nothing to vouch for.
        yield ControlCheck(*name, reason=f"{_NOT_ASKED}{found[0]['reason']}")
        return
    if not usable:
        yield _unknown(*name, found[0] if found else None)
        return
    behaves = all(row["value"] <= margin + _middle(_null(row) or (0.0, 0.0)) for row in usable)
    observed = "; ".join(interval_text(row) for row in usable)
    yield _judged(*name, observed, behaves, control.otherwise)


def _fails(
    rows: pl.DataFrame, experiment: str, control: ControlWords, margin: float
) -> Iterator[ControlCheck]:
    """A control that has to fail; where it does not, nothing shows that the check can fail.

    What passes is taken back then, what fails is its own proof. A cohort without the control, or in
    which the check is not judged, is not asked.
    """
    name = control.control, experiment, control.expectation
    judged = rows.filter(pl.col("threshold").is_not_null(), metric=control.metric)
    if judged.is_empty():
        return
    own = judged.filter(encoder=control.control).to_dicts()
    observed = ""
    if control.where:
        state = _agreements(rows, control)
        if isinstance(state, ControlCheck):
            yield ControlCheck(*name, blocks=state.blocks, reason=state.reason)
            return
        agreements, differs = state
        index = own[0] if own else None
        if index is None or not _has_interval(index):
            yield _unknown(*name, index)
            return
        observed = f"{agreements}; "
        if not differs:
            reason = f"{_NOT_ASKED}{control.where['else']}"
            yield ControlCheck(*name, f"{observed}{interval_text(index)}", reason=reason)
            return
    for row in own[:1]:
        if row["value"] is None:
            # Where nobody has a figure there is nothing to vouch for.
            asked = bool(judged["value"].is_not_null().any())
            reason = row["reason"] if asked else f"{_NOT_ASKED}{row['reason']}"
            yield ControlCheck(*name, blocks_pass=asked, reason=reason)
            continue
        observed += f"{interval_text(row)}, must be {threshold_text(row)}: {row['verdict']}"
        if row["verdict"] == "fail":
            yield ControlCheck(*name, observed, behaves=True)
        elif row["verdict"] == "pass" and control.pass_blocks:
            yield _judged(*name, observed, False, control.otherwise)
        else:
            reason = "it does not fail, so that nothing shows that this check can fail here"
            yield ControlCheck(*name, observed, blocks_pass=True, reason=reason)


def _agreements(rows: pl.DataFrame, control: ControlWords) -> tuple[str, bool] | ControlCheck:
    """Whether the control's agreement beyond chance in one figure exceeds that in another.

    Agreement is (a − c) / (1 − c) of an accuracy a; chance c is the middle of the row's own null, not
    1/B or 1/C of the design, since a query's patient never votes.
    """
    nothing = ControlCheck(control.control, "", "", blocks=True)
    found: list[dict[str, float]] = []
    for metric in (control.where["metric"], control.where["exceeds"]):
        own = select(
            rows.filter(encoder=control.control), rows["experiment"][0], metric, control.at
        )
        row = own.row(0, named=True) if own.height else None
        if row is None or not _has_interval(row):
            return _unknown(control.control, "", "", row)
        null = row["null_low"], row["null_high"]
        if None in null or _middle(null) >= 1:
            return ControlCheck(
                nothing.control,
                "",
                "",
                blocks=True,
                reason="no null of the vote was measured",
            )
        chance = _middle(null)
        ends = ("value", "ci_low", "ci_high")
        found.append({key: (row[key] - chance) / (1 - chance) for key in ends})
    more, less = found
    names = control.where["more"], control.where["less"]
    shown = [f"{n} {interval_text(v)}" for n, v in zip(names, found, strict=True)]
    agreement = f"agreement beyond chance: {', '.join(shown)}"
    return agreement, more["ci_low"] > less["ci_high"]


def _passes_everything(
    measurements: pl.DataFrame, control: ControlWords, words: Words
) -> Iterator[ControlCheck]:
    """A control that knows the truth must pass every check.

    Without its rows nothing shows that an encoder can pass; undefined figures are no such gap.
    """
    judged = measurements.filter(pl.col("threshold").is_not_null())
    for experiment in words.order(judged["experiment"].to_list()):
        name = control.control, experiment, control.expectation
        rows = judged.filter(encoder=control.control, experiment=experiment)
        if rows.is_empty():
            yield _unknown(*name, None)
            continue
        # What no figure could decide in a cohort of this size is no fault of the control.
        asked = rows.filter(~pl.col("verdict").is_in(["not_applicable", "undecidable"]))
        if not asked.height:
            yield ControlCheck(*name, reason=f"{_NOT_ASKED}{rows['reason'][0]}")
            continue
        missed = [
            f"{row['verdict']}: {words.check_title(row)}"
            for row in asked.filter(pl.col("verdict") != "pass").iter_rows(named=True)
        ]
        observed = f"passes {asked.height - len(missed)} of {asked.height}"
        observed += f" ({'; '.join(missed)})" if missed else ""
        yield _judged(*name, observed, not missed, f"{control.otherwise} ({'; '.join(missed)})")


_ASKED_OF = {"lie_at_null": _lies_at_null, "lie_near_chance": _lies_near_chance, "fail": _fails}


def _asked_rows(rows: pl.DataFrame, control: ControlWords) -> list[dict[str, Any]]:
    """The control's rows of the figure, at the settings that are judged where it says so."""
    own = rows.filter(encoder=control.control, stratum="all")
    if control.where_judged:
        judged = rows.filter(pl.col("threshold").is_not_null())["setting"].unique().to_list()
        own = own.filter(pl.col("setting").is_in(judged))
    if own.is_empty():
        return []
    found = select(own, own["experiment"][0], control.metric, control.at)
    return found.sort("setting").to_dicts()


def _unknown(control: str, experiment: str, expectation: str, row: Row | None) -> ControlCheck:
    """A control that could not be asked: without it the experiment's findings cannot be trusted."""
    reason = f"was not measured in {experiment}; keep it among the cohort's encoders and run again"
    if row is not None:
        reason = f"its figure is undefined ({row['reason'] or 'no interval or no null'})"
    return ControlCheck(control, experiment, expectation, blocks=True, reason=reason)


def _judged(
    control: str, experiment: str, expectation: str, observed: str, behaves: bool, reason: str
) -> ControlCheck:
    reason = "" if behaves else reason
    return ControlCheck(
        control, experiment, expectation, observed, behaves, blocks=not behaves, reason=reason
    )


def _has_interval(row: Row | None) -> bool:
    return row is not None and None not in (row["value"], row["ci_low"], row["ci_high"])


def _null(row: Row) -> tuple[float, float] | None:
    ends = [end for end in (row["null_low"], row["null_high"]) if end is not None]
    return (min(ends), max(ends)) if ends else None


def _middle(null: tuple[float, float]) -> float:
    return sum(null) / 2
