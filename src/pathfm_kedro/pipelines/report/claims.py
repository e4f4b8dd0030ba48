"""Claims of a paper, as printed and as they hold, beside what this cohort shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.sections import footnote
from pathfm_kedro.pipelines.report.text import Row, interval_text, marked_interval
from pathfm_kedro.pipelines.report.words import ClaimForm, Words, select, settings_of


@dataclass(frozen=True)
class ClaimRow:
    """What one encoder's figures say about a claim."""

    encoder: str
    is_control: bool
    printed: str
    printed_held: str
    corrected: str
    corrected_held: str


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with what was found here; `head` is that of its second form."""

    title: str
    setting: str
    printed: str
    corrected: str
    rows: tuple[ClaimRow, ...]
    head: str = "Corrected"
    footnote: str = ""


def claims_of(measurements: pl.DataFrame, role: Mapping[str, str], words: Words) -> list[Claim]:
    """Every claim of the words, one row an encoder, encoders before controls."""
    ordered = sorted(role, key=lambda name: (role[name] == "control", name))
    found = []
    for claim in words.report.claims:
        forms = claim.printed, claim.corrected
        tables = [_figures(measurements, form, words) for form in forms]
        settings = tables[1]["setting"].sort()
        at = words.setting_text(claim.corrected.experiment, settings[0]) if len(settings) else ""
        rows = []
        for name in ordered:
            cells = [
                _cells(_one(table, name), form) for table, form in zip(tables, forms, strict=True)
            ]
            rows.append(ClaimRow(name, role[name] == "control", *cells[0], *cells[1]))
        found.append(
            Claim(
                claim.title,
                at or "not measured",
                claim.printed.text,
                claim.corrected.text,
                tuple(rows),
                claim.corrected.head,
                footnote(row for table in tables for row in table.iter_rows(named=True)),
            )
        )
    return found


def other_claims(measurements: pl.DataFrame, words: Words) -> list[tuple[str, str]]:
    """Claims without a table of their own, and whether their experiment ran here."""
    measured = set(measurements["experiment"])
    return [
        (c.text, "see its section" if c.experiment in measured else "not measured in this audit")
        for c in words.report.other_claims
    ]


def _figures(measurements: pl.DataFrame, form: ClaimForm, words: Words) -> pl.DataFrame:
    at = {**words.usual(measurements, form.experiment), **form.at}
    whole = measurements.filter(stratum="all", experiment=form.experiment, metric=form.metric)
    known = {key for setting in settings_of(whole) for key in setting}
    fixed = {key: value for key, value in at.items() if key in known or key in form.at}
    return select(whole, form.experiment, form.metric, fixed)


def _one(rows: pl.DataFrame, encoder: str) -> dict[str, Any] | None:
    """An encoder's row."""
    own = rows.filter(pl.col("encoder") == encoder).sort("setting")
    return own.row(0, named=True) if own.height else None


def _cells(row: Row | None, form: ClaimForm) -> tuple[str, str]:
    """The figure, and whether the claim held."""
    if row is None:
        return "not measured", "–"
    if row["value"] is None:
        return f"{interval_text(row)}: {row['reason']}", "–"
    if row["ci_low"] is None or row["ci_high"] is None:
        return marked_interval(row), "no interval"
    return marked_interval(row), _outcome(row, form.criterion)


def _outcome(row: Row, criterion: Mapping[str, Any]) -> str:
    """What the interval says of the claim."""
    for kind, say in _SAYS.items():
        if kind in criterion:
            return say(row, criterion[kind])
    return "figure only"


def _side(low: bool, high: bool) -> str:
    return "held" if low else "did not hold" if high else "undecided"


def _above_null(row: Row, asked: Any) -> str:
    if row["null_low"] is None or row["null_high"] is None:
        return "no null"
    above, below = row["ci_low"] > row["null_high"], row["ci_high"] < row["null_low"]
    return "above the null" if above else "below the null" if below else "not beyond the null"


def _between(row: Row, ends: tuple[float, float]) -> str:
    if row["ci_low"] > ends[1]:
        return "above the reference"
    return "below the reference" if row["ci_high"] < ends[0] else "overlaps the reference"


_SAYS: dict[str, Callable[[Row, Any], str]] = {
    "below": lambda row, end: _side(row["ci_high"] < end, row["ci_low"] >= end),
    "above": lambda row, end: _side(row["ci_low"] > end, row["ci_high"] <= end),
    "above_null": _above_null,
    "between": _between,
}
