"""Sections for model cards: figures that the hub can read, and nothing foreign in them."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import yaml

from pathfm_kedro.pipelines.report.model_card import render_model_cards
from tests.pipelines.report.conftest import WORDS


@pytest.fixture
def cards(report_inputs: dict[str, Any], provenance: dict[str, Any]) -> str:
    return render_model_cards(
        report_inputs["findings"], report_inputs["verdicts"], provenance, WORDS
    )


def blocks(text: str) -> list[Any]:
    return [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:]]


def test_each_encoder_has_its_figures_and_no_control_has(
    cards: str, report_inputs: dict[str, Any]
) -> None:
    audited = report_inputs["verdicts"].filter(role="encoder")["encoder"].to_list()
    found = {block["model-index"][0]["name"]: block for block in blocks(cards)}
    assert sorted(found) == sorted(audited)
    for encoder, block in found.items():
        (result,) = block["model-index"][0]["results"]
        own = report_inputs["findings"].filter(pl.col("value").is_not_null(), encoder=encoder)
        assert [m["value"] for m in result["metrics"]] == own["value"].to_list()


def test_foreign_text_stays_text(report_inputs: dict[str, Any], provenance: dict[str, Any]) -> None:
    evil = "x: [a](http://b)\n```\n# <img src=x>"
    verdicts = report_inputs["verdicts"].with_columns(sentence=pl.lit(evil))
    text = render_model_cards(
        report_inputs["findings"], verdicts, {**provenance, "cohort": evil}, WORDS
    )
    (result,) = blocks(text)[0]["model-index"][0]["results"]
    assert result["dataset"]["name"] == "x: [a](http://b) ''' # <img src=x>"
    outside = "".join(part.partition("```")[2] for part in text.split("```yaml\n"))
    assert "](http" not in outside
    assert "\n# <img" not in text
