"""Sections for model cards of the Hugging Face hub: what an audit found of each encoder.

The metadata follow the ``model-index`` of the hub's model cards, one result for each judged figure; the
section below it is for the card's *Evaluation*. Nothing in it names a patient, a slide or a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import yaml

from pathfm_kedro.pipelines.report.text import (
    Row,
    marked_interval,
    threshold_text,
)
from pathfm_kedro.pipelines.report.text import markdown_text as _md
from pathfm_kedro.pipelines.report.words import Words

#: What the hub calls the task of an encoder.
_TASK = "image-feature-extraction"


def render_model_cards(
    findings: pl.DataFrame,
    verdicts: pl.DataFrame,
    provenance: Mapping[str, Any],
    words: Mapping[str, Any],
) -> str:
    """A section for the model card of each audited encoder.

    Parameters
    ----------
    findings, verdicts
        From :mod:`.findings` and :mod:`.verdicts`.
    provenance
        Cohort's name and whether it is the phantom.
    words
        How checks are called.

    Returns
    -------
    str
        Markdown, one heading for each encoder; controls have none.
    """
    wording = Words.read(words)
    note = [wording.report.phantom_note, ""] if provenance.get("is_phantom") else []
    lines = ["# Sections for model cards", ""]
    for verdict in verdicts.filter(role="encoder").iter_rows(named=True):
        own = findings.filter(encoder=verdict["encoder"])
        lines += [f"## {_md(verdict['encoder'])}", "", "For the metadata:", ""]
        lines += ["```yaml", _metadata(own, str(provenance["cohort"]), wording), "```", ""]
        lines += ["For the section *Evaluation*:", "", "### Known failures, on our own slides", ""]
        lines += [*note, _md(verdict["sentence"]), ""]
        lines += [
            "| check | value [95% interval] | must be | verdict |",
            "| --- | --- | --- | --- |",
        ]
        lines += [_line(row, wording) for row in own.iter_rows(named=True)]
        lines += [""]
    return "\n".join(lines)


def _metadata(own: pl.DataFrame, cohort: str, words: Words) -> str:
    """The hub's ``model-index``; figures without a value are left out."""
    metrics = [
        {
            "type": row["metric"],
            "name": words.named_title(row, words.check_title(row)),
            "value": row["value"],
            "verdict": row["verdict"],
        }
        for row in own.iter_rows(named=True)
        if row["value"] is not None
    ]
    # A name must not end the block that it stands in.
    dataset = {"name": " ".join(cohort.replace("`", "'").split()), "type": "private"}
    result = {"task": {"type": _TASK}, "dataset": dataset, "metrics": metrics}
    name = own["encoder"][0] if own.height else cohort
    index = {"model-index": [{"name": name, "results": [result]}]}
    return str(yaml.safe_dump(index, sort_keys=False, allow_unicode=True)).strip()


def _line(row: Row, words: Words) -> str:
    cells = [
        words.named_title(row, words.check_title(row)),
        marked_interval(row),
        threshold_text(row),
        row["verdict"],
    ]
    return "| " + " | ".join(_md(cell) for cell in cells) + " |"
