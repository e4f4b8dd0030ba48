"""The audit on one page of Markdown, and its figures for ``dvc metrics show``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.badges import behaves_text, verdict_words
from pathfm_kedro.pipelines.report.text import (
    Row,
    has_width,
    marked_interval,
    null_text,
    threshold_text,
)
from pathfm_kedro.pipelines.report.text import markdown_text as _md
from pathfm_kedro.pipelines.report.words import Words

#: Beside every interval without width.
NO_WIDTH_NOTE = "No width: every resampled cohort gave the same; no proof for the next cohort."


def render_summary(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    verdicts: pl.DataFrame,
    provenance: Mapping[str, Any],
    words: Mapping[str, Any],
) -> str:
    """The audit on one page of Markdown: verdicts, checks, controls.

    Parameters
    ----------
    findings, controls, verdicts
        From :mod:`.findings`, :mod:`.controls` and :mod:`.verdicts`.
    provenance
        Cohort's name and whether it is the phantom.
    words
        How checks are called.

    Returns
    -------
    str
        Markdown; the same tables give the same text.
    """
    wording = Words.read(words)
    lines = [f"# Audit of encoders: {_md(provenance['cohort'])}", ""]
    if provenance.get("is_phantom"):
        lines += [wording.report.phantom_note, ""]
    lines += ["## Verdicts", "", "| encoder | verdict | why |", "| --- | --- | --- |"]
    lines += [
        f"| {_md(row['encoder'] + _role_note(row))} | {verdict_words(row, controls)} "
        f"| {_md(row['sentence'])} |"
        for row in verdicts.iter_rows(named=True)
    ]
    lines += ["", "## Checks", ""]
    lines += ["| check | encoder | value [95% interval] | null | must be | verdict | reason |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [_check_line(row, controls, wording) for row in findings.iter_rows(named=True)]
    if not all(has_width(row) for row in findings.iter_rows(named=True)):
        lines += ["", f"† {NO_WIDTH_NOTE}"]
    lines += ["", "## Controls", "", "| control | experiment | expected | observed | behaves |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {_md(row['control'])} | {_md(row['experiment'])} | {_md(row['expectation'])} "
        f"| {_md(row['observed'])} | {behaves_text(row)} |"
        for row in controls.iter_rows(named=True)
    ]
    return "\n".join(lines) + "\n"


def findings_metrics(findings: pl.DataFrame, verdicts: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Verdicts and unrounded figures for ``dvc metrics show``.

    Returns
    -------
    dict
        ``{encoder: {"verdict": ..., metric: value}}``. A metric judged more than once for an
        encoder carries its experiment, stratum and setting in the name; an undefined figure
        reads "n/a".
    """
    metrics: dict[str, dict[str, Any]] = {
        row["encoder"]: {"verdict": row["verdict"]} for row in verdicts.iter_rows(named=True)
    }
    often = findings.select("encoder", "metric").is_duplicated()
    for row, repeated in zip(findings.iter_rows(named=True), often, strict=True):
        name = row["metric"]
        if repeated:
            name = f"{row['experiment']} {name} {row['stratum']} {row['setting']}"
        value = "n/a" if row["value"] is None else row["value"]
        metrics.setdefault(row["encoder"], {})[name] = value
    return metrics


def _role_note(row: Row) -> str:
    return " (control)" if row["role"] == "control" else ""


def _check_line(row: Row, controls: pl.DataFrame, words: Words) -> str:
    cells = [
        words.named_title(row, words.check_title(row)),
        row["encoder"] + _role_note(row),
        marked_interval(row),
        null_text(row),
        threshold_text(row),
        verdict_words(row, controls, row["experiment"]),
        row["reason"] or "",
    ]
    return "| " + " | ".join(_md(cell) for cell in cells) + " |"
