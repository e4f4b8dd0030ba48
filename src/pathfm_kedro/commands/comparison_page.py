"""One page of two audits side by side: which findings changed, and whether vectors drifted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import polars as pl

from pathfm_kedro.commands.audits import Audit
from pathfm_kedro.commands.compare import ComparedAudits
from pathfm_kedro.commands.paired_audits import share_slides
from pathfm_kedro.pipelines.report.badges import Badge, badge_of, measured_text
from pathfm_kedro.pipelines.report.templates import template
from pathfm_kedro.pipelines.report.text import (
    Row,
    count_of,
    interval_text,
    marked_interval,
    threshold_text,
)
from pathfm_kedro.pipelines.report.words import Words, gather_words
from pathfm_kedro.statistics.changed_figures import ChangedFigures

_CHECK = ["experiment", "metric", "stratum", "setting"]


@dataclass(frozen=True)
class Side:
    """A finding as one of the audits has it; `measured` is a control's verdict, in small print."""

    badge: Badge | None
    measured: str
    figure: str
    reason: str


@dataclass(frozen=True)
class FindingRow:
    """One encoder's finding in both audits."""

    encoder: str
    is_control: bool
    first: Side
    second: Side
    difference: str
    meaning: str


@dataclass(frozen=True)
class FindingGroup:
    """One check for all encoders."""

    title: str
    must_be: str
    rows: tuple[FindingRow, ...]


@dataclass(frozen=True)
class VerdictRow:
    """An encoder's verdict in both audits; None where it was not audited."""

    encoder: str
    is_control: bool
    badges: tuple[Badge | None, Badge | None]


@dataclass(frozen=True)
class Judgements:
    """What an audit's report judged."""

    findings: pl.DataFrame
    controls: pl.DataFrame
    verdicts: pl.DataFrame

    @classmethod
    def of(cls, audit: Audit) -> Judgements:
        """Read the tables of a report.

        Raises
        ------
        ClickException
            If the audit has no report.
        """
        tables = [audit.load(name) for name in ("findings", "controls", "verdicts")]
        if any(table is None for table in tables):
            raise click.ClickException(
                f"{audit} has no findings: kedro run --env {audit.cohort} --pipelines report"
            )
        return cls(*tables)

    def of_encoders(self, encoders: Sequence[str]) -> pl.DataFrame:
        """Findings of some encoders."""
        return self.findings.filter(pl.col("encoder").is_in(list(encoders)))


def render_comparison(compared: ComparedAudits) -> str:
    """The page; it loads nothing, and every text that comes from data is escaped."""
    judged = tuple(Judgements.of(audit) for audit in (compared.one, compared.other))
    found = ChangedFigures.between(*(each.of_encoders(compared.encoders) for each in judged))
    words = _words(compared.other)
    stays = pl.col("verdict").eq_missing(pl.col("verdict_after"))
    return template("commands/comparison.html").render(
        first=str(compared.one),
        second=str(compared.other),
        slides=_slides(compared.one, compared.other),
        result=_result(found, compared),
        verdicts=_verdicts(judged),
        changed=_groups(found.verdicts, judged, compared, words),
        same=_groups(found.both.filter(stays), judged, compared, words),
        alone=[
            (f"Findings of {compared.one} alone", _named(found.before, words)),
            (f"Findings of {compared.other} alone", _named(found.after, words)),
        ],
        drifts=compared.drifts,
    )


def _words(audit: Audit) -> Words:
    """The words of a cohort's report."""
    from pathfm_kedro.cohorts import read_cohort_plan

    parameters = read_cohort_plan(audit.cohort, str(audit.conf)).parameters
    return Words.read(gather_words(parameters))


def _slides(one: Audit, other: Audit) -> str:
    """Slides and patients of both, and whether they are the same."""
    if one.slides is None or other.slides is None:
        return "The slides of one of the audits are not recorded."
    own, others = (set(table["patient_id"]) for table in (one.slides, other.slides))
    counts = [
        f"{audit}: {count_of(table.height, 'slide')} of {count_of(len(patients), 'patient')}"
        for audit, table, patients in ((one, one.slides, own), (other, other.slides, others))
    ]
    if share_slides(one, other) and own == others:
        counts.append("the same patients")
    elif one.cohort == other.cohort:
        counts.append(f"{count_of(len(own & others), 'patient')} in both")
    return " · ".join(counts)


def _result(found: ChangedFigures, compared: ComparedAudits) -> str:
    """What changed, in a sentence."""
    moved = found.verdicts.filter(role_after="encoder").height
    drifted = [drift.encoder for drift in compared.drifts if drift.found and drift.found.is_shown]
    said = f"Vectors differ: {', '.join(drifted)}." if drifted else "No drift of vectors shown."
    return (
        f"{moved} of {count_of(found.both.filter(role_after='encoder').height, 'finding')} of audited "
        f"encoders {'has' if moved == 1 else 'have'} another verdict. {said}"
    )


def _verdicts(judged: Sequence[Judgements]) -> list[VerdictRow]:
    """Verdicts of both, encoders before controls."""
    tables = [
        {row["encoder"]: row for row in each.verdicts.iter_rows(named=True)} for each in judged
    ]
    roles = {name: row["role"] for table in tables for name, row in table.items()}
    rows = []
    for name in sorted(roles, key=lambda name: (roles[name] == "control", name)):
        is_control = roles[name] == "control"
        badges = [
            badge_of(table[name], is_control, each.controls) if name in table else None
            for table, each in zip(tables, judged, strict=True)
        ]
        rows.append(VerdictRow(name, is_control, (badges[0], badges[1])))
    return rows


def _groups(
    both: pl.DataFrame, judged: Sequence[Judgements], compared: ComparedAudits, words: Words
) -> list[FindingGroup]:
    """Checks in the order of the report, encoders before controls."""
    order = {name: i for i, name in enumerate(words.order(both["experiment"].to_list()))}
    place = pl.col("experiment").replace_strict(order, default=0, return_dtype=pl.Int64())
    ranked = words.with_counts(both).sort(
        place, *_CHECK[1:], pl.col("role_after") == "control", "encoder"
    )
    return [
        _group(part, judged, compared, words)
        for part in ranked.partition_by(_CHECK, maintain_order=True)
    ]


def _group(
    part: pl.DataFrame, judged: Sequence[Judgements], compared: ComparedAudits, words: Words
) -> FindingGroup:
    rows = [_finding(row, judged, compared) for row in part.iter_rows(named=True)]
    before, after = _sides(part.row(0, named=True))
    must, was = threshold_text(after), threshold_text(before)
    title = words.named_title(after, words.check_title(after))
    return FindingGroup(title, must if must == was else f"{must}, was {was}", tuple(rows))


def _sides(row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    """A joined row as the rows that it was joined from."""
    after = {name.removesuffix("_after"): v for name, v in row.items() if name.endswith("_after")}
    before = {name: value for name, value in row.items() if not name.endswith("_after")}
    return before, {**before, **after}


def _finding(row: Row, judged: Sequence[Judgements], compared: ComparedAudits) -> FindingRow:
    is_control = row["role_after"] == "control"
    sides = [
        Side(
            badge_of(own, is_control, each.controls, row["experiment"]),
            measured_text(own) if is_control else "",
            marked_interval(own),
            own["reason"] or "",
        )
        for own, each in zip(_sides(row), judged, strict=True)
    ]
    difference, meaning = _difference(row, compared)
    return FindingRow(row["encoder"], is_control, sides[0], sides[1], difference, meaning)


def _difference(row: Row, compared: ComparedAudits) -> tuple[str, str]:
    """The difference with its interval, and what it says."""
    found, paired = compared.difference(row)
    if found is None:
        return "n/a", "a figure or an interval is missing"
    if found.low != found.low:
        return "0", "the same in every resampled cohort"
    ends: Mapping[str, Any] = {"value": found.value, "ci_low": found.low, "ci_high": found.high}
    said = "higher" if found.low > 0 else "lower" if found.high < 0 else "not distinguished"
    return interval_text(ends), f"{said}, {'same patients' if paired else 'as independent'}"


def _named(keys: pl.DataFrame, words: Words) -> list[str]:
    rows: Iterable[Row] = keys.iter_rows(named=True)
    return [f"{row['encoder']}: {words.named_title(row, words.check_title(row))}" for row in rows]
