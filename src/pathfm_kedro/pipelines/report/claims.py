"""What a paper says, what holds of it, and what this cohort shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.sections import footnote
from pathfm_kedro.pipelines.report.text import Row, count_of, marked_interval, short_value
from pathfm_kedro.pipelines.report.words import ClaimFigure, ClaimWords, Words, select, settings_of
from pathfm_kedro.statistics.measurements import MIN_PATIENTS

#: Of a claim whose figure was not measured here.
NOT_MEASURED = "not measured in this audit"


@dataclass(frozen=True)
class ClaimCell:
    """One encoder's figure, whether the claim held, the figure alone, and why nothing is decided."""

    figure: str
    held: str
    short: str = ""
    why: str = ""


@dataclass(frozen=True)
class ClaimRow:
    """What one encoder's figures say about a claim."""

    encoder: str
    is_control: bool
    cells: tuple[ClaimCell, ...]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with what was found here."""

    title: str
    printed: str
    holds: str
    beyond: str
    here: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[ClaimRow, ...]
    footnote: str = ""


def claims_of(
    measurements: pl.DataFrame, role: Mapping[str, str], words: Words
) -> list[tuple[str, list[Claim]]]:
    """Every claim of the words below the title of its kind."""
    ordered = sorted(role, key=lambda name: (role[name] == "control", name))
    by_kind: dict[str, list[Claim]] = {}
    for claim in words.report.claims:
        title = words.report.kinds_of_claims.get(claim.kind, claim.kind)
        found = _claim(measurements, claim, ordered, role, words)
        by_kind.setdefault(title, []).append(found)
    return list(by_kind.items())


def _claim(
    measurements: pl.DataFrame,
    claim: ClaimWords,
    ordered: list[str],
    role: Mapping[str, str],
    words: Words,
) -> Claim:
    """Figures of each encoder, and a sentence for each figure."""
    tables = [_rows(measurements, figure, words) for figure in claim.here]
    known = [(f, t) for f, t in zip(claim.here, tables, strict=True) if t.height]
    rows = []
    for name in ordered:
        own = [_cell(_one(table, name), figure) for figure, table in known]
        if any(cell.figure for cell in own):
            rows.append(ClaimRow(name, role[name] == "control", tuple(own)))
    audited = [row for row in rows if not row.is_control]
    here = [f"{figure.head}: {_sentence(audited, i)}" for i, (figure, _) in enumerate(known)] + [
        f"{f.head}: {NOT_MEASURED}."
        for f, t in zip(claim.here, tables, strict=True)
        if not t.height
    ]
    return Claim(
        claim.title,
        claim.printed,
        claim.holds,
        claim.beyond,
        tuple(here),
        tuple(_head(figure, table, words) for figure, table in known),
        tuple(rows),
        footnote(row for _, table in known for row in table.iter_rows(named=True)),
    )


def _head(figure: ClaimFigure, table: pl.DataFrame, words: Words) -> str:
    at = words.setting_text(figure.experiment, table["setting"][0])
    return f"{figure.head} ({at})" if at else figure.head


def _sentence(rows: list[ClaimRow], place: int) -> str:
    """Encoders by what their figure says of the claim."""
    said: dict[str, list[str]] = {}
    for row in rows:
        cell = row.cells[place]
        if cell.figure:
            named = f"{row.encoder} {cell.short}".strip()
            said.setdefault(cell.held, []).append(named)
    parts = [f"{held} for {', '.join(names)}".removeprefix(" for ") for held, names in said.items()]
    return "; ".join(parts) + "." if parts else "no audited encoder has a figure."


def _rows(measurements: pl.DataFrame, figure: ClaimFigure, words: Words) -> pl.DataFrame:
    at = {**words.usual(measurements, figure.experiment), **figure.at}
    whole = measurements.filter(stratum="all", experiment=figure.experiment, metric=figure.metric)
    known = {key for setting in settings_of(whole) for key in setting}
    fixed = {key: value for key, value in at.items() if key in known or key in figure.at}
    chosen = select(whole, figure.experiment, figure.metric, fixed)
    chosen = chosen.with_columns(_rank=words.setting_ranks(chosen)).sort("_rank", "setting")
    judged = chosen.filter(pl.col("threshold").is_not_null())
    return words.with_counts(judged if judged.height else chosen)


def _one(rows: pl.DataFrame, encoder: str) -> dict[str, Any] | None:
    """An encoder's row."""
    own = rows.filter(pl.col("encoder") == encoder)
    return own.row(0, named=True) if own.height else None


def _cell(row: Row | None, figure: ClaimFigure) -> ClaimCell:
    """The figure, and whether the claim held."""
    if row is None:
        return ClaimCell("", "")
    if row["value"] is None:
        return ClaimCell(str(row["reason"]), "not measured")
    shown = marked_interval(row)
    if why := _why_undecided(row, figure.criterion):
        return ClaimCell(shown, "undecided", short_value(row), why)
    if row["ci_low"] is None or row["ci_high"] is None:
        held = "no interval" if figure.criterion else ""
    else:
        held = _outcome(row, figure.criterion)
    return ClaimCell(shown, held, short_value(row))


def _why_undecided(row: Row, criterion: Mapping[str, Any]) -> str:
    """Why a figure that decides no verdict decides no claim either; empty where it may."""
    if criterion and 0 < row["n_patients"] < MIN_PATIENTS:
        return f"rests on {count_of(row['n_patients'], 'patient')}, fewer than {MIN_PATIENTS}"
    return str(row["caveat"] or "") if _THRESHOLDS & criterion.keys() else ""


def _outcome(row: Row, criterion: Mapping[str, Any]) -> str:
    """What the interval says of the claim; nothing where it asks nothing."""
    for kind, say in _SAYS.items():
        if kind in criterion:
            return say(row, criterion[kind])
    return ""


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


#: A caveat takes nothing from where a figure lies beside its null or a published range.
_THRESHOLDS = {"above", "below"}
_SAYS: dict[str, Callable[[Row, Any], str]] = {
    "below": lambda row, end: _side(row["ci_high"] < end, row["ci_low"] >= end),
    "above": lambda row, end: _side(row["ci_low"] > end, row["ci_high"] <= end),
    "above_null": _above_null,
    "between": _between,
}
