"""One card an encoder: what it may be used for, what not, what is open and what would settle it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.badges import Badge, badge_of
from pathfm_kedro.pipelines.report.findings import ALPHA, TWO_SIDED_95, critical_distance
from pathfm_kedro.pipelines.report.text import Row, threshold_text, value_text
from pathfm_kedro.pipelines.report.verdicts import unasked
from pathfm_kedro.pipelines.report.words import Words

#: A check that would take more patients than this lies, for all that can be known, at its threshold.
MANY_PATIENTS = 20_000
ASSUMPTION = (
    "Patients needed: as many as would decide the check in 80 of 100 cohorts, among so many checks, "
    "if the figure stays where it is and its interval shrinks with the square root of the number of "
    "patients."
)


@dataclass(frozen=True)
class Line:
    """A use, and the figure that it rests on."""

    use: str
    figure: str


@dataclass(frozen=True)
class Card:
    """An encoder's verdict and its three lists, by their titles; `sentence` says all at length."""

    encoder: str
    badge: Badge
    verdict: str
    lists: tuple[tuple[str, tuple[Line, ...]], ...]
    sentence: str


def cards_of(
    findings: pl.DataFrame,
    verdicts: pl.DataFrame,
    controls: pl.DataFrame,
    parameters: Mapping[str, Any],
    words: Words,
) -> list[Card]:
    """A card for each audited encoder.

    Parameters
    ----------
    findings, verdicts, controls
        The tables.
    parameters
        ``alpha``.
    words
        What each check allows (``use``).
    """
    alpha = float(parameters.get("alpha", ALPHA))
    needed = critical_distance(findings, alpha)
    blocked = set(controls.filter("blocks")["experiment"])
    by_interval = (pl.col("verdict") == "inconclusive") & (pl.col("q_value") >= alpha)
    by_interval &= (pl.col("caveat").fill_null("") == "") & (pl.col("n_patients") > 0)
    by_interval &= ~pl.col("experiment").is_in(sorted(blocked))
    findings = words.with_counts(findings).with_columns(_by_interval=by_interval.fill_null(False))
    cards = []
    for verdict in verdicts.filter(role="encoder").iter_rows(named=True):
        own = findings.filter(encoder=verdict["encoder"])
        rows = list(own.iter_rows(named=True))
        passed = tuple(_judged(row, words) for row in rows if row["verdict"] == "pass")
        failed = tuple(_judged(row, words) for row in rows if row["verdict"] == "fail")
        undecided = [
            Line(words.use_text(row), _open(row, needed, words))
            for row in rows
            if row["verdict"] not in ("pass", "fail")
        ]
        open_names = {words.check_name(row) for row in rows}
        undecided += [
            Line(f"{name[:1].upper()}{name[1:]}", "no check of it was decided")
            for name in unasked(own, words)
            if name not in open_names
        ]
        lists = (
            ("May be used for", passed),
            ("Not for", failed),
            ("Open", tuple(undecided)),
        )
        badge = badge_of(verdict, False, controls)
        name, sentence = verdict["encoder"], verdict["sentence"]
        cards.append(Card(name, badge, verdict["verdict"], lists, sentence))
    return cards


def _judged(row: Row, words: Words) -> Line:
    if row["value"] is None:
        return Line(words.use_text(row), f"{words.check_name(row)}: {_first_clause(row)}")
    must = f", must be {threshold_text(row)}" if row["verdict"] == "fail" else ""
    return Line(words.use_text(row), f"{words.check_name(row)} {value_text(row)}{must}")


def _open(row: Row, needed: float, words: Words) -> str:
    """Why a check is open, and how many patients would settle it."""
    if row["value"] is None:
        return f"{words.check_name(row)} not measured: {_first_clause(row)}"
    figure = f"{words.check_name(row)} {value_text(row)}, must be {threshold_text(row)}"
    if not row["_by_interval"]:
        return f"{figure}; {row['reason']}" if row["reason"] else figure
    patients = patients_needed(row, needed)
    if patients > MANY_PATIENTS:
        return f"{figure}; too near to it for any cohort"
    return f"{figure}; about {patients:,} patients would settle it ({row['n_patients']:,} now)"


def _first_clause(row: Row) -> str:
    """A reason up to its first semicolon: the tables have it whole."""
    return str(row["reason"] or "").split("; ")[0]


def patients_needed(row: Row, needed: float) -> int:
    """Patients at which the check would be decided, if nothing but the width of its interval changed.

    ``n² / (n − 1) · (needed · s / |value − threshold|)²``, since a bootstrap of n patients spreads as
    n − 1 do. The standard error ``s`` is, over 1.96, the half of the interval that faces the threshold,
    or half of the whole where that is more: an interval loses its skew as patients are added. To two
    significant digits, :data:`MANY_PATIENTS` + 1 at most.

    Parameters
    ----------
    row
        A finding with an interval.
    needed
        Standard errors between figure and threshold, from :func:`.findings.critical_distance`.

    Examples
    --------
    >>> row = {"value": 0.5, "ci_low": 0.3, "ci_high": 0.7, "threshold": 0.4, "n_patients": 20}
    >>> patients_needed(row, needed=1.959964)
    85
    """
    value, threshold = row["value"], row["threshold"]
    distance = abs(value - threshold)
    facing = value - row["ci_low"] if value > threshold else row["ci_high"] - value
    half = max(facing, (row["ci_high"] - row["ci_low"]) / 2)
    if distance * 1000 <= half:
        return MANY_PATIENTS + 1
    n = row["n_patients"]
    exact: float = n**2 / max(n - 1, 1) * (half / TWO_SIDED_95 * needed / distance) ** 2
    digits: int = 10 ** max(len(f"{exact:.0f}") - 2, 0)
    return min(round(math.ceil(round(exact / digits, 6)) * digits), MANY_PATIENTS + 1)
