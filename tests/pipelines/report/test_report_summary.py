"""Summary, metrics and cells: numbers and text only, nothing a reader's program would run."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.pipelines.report.badges import behaving, control_state
from pathfm_kedro.pipelines.report.outputs import findings_for_spreadsheets
from pathfm_kedro.pipelines.report.summary import findings_metrics, render_summary
from pathfm_kedro.pipelines.report.text import safe_cells, without_folders
from pathfm_kedro.statistics.readable_numbers import number
from tests.pipelines.report.conftest import WORDS


def parts(report_inputs: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    return report_inputs["findings"], report_inputs["controls"], report_inputs["verdicts"]


def test_every_finding_is_one_line_of_the_summary(
    report_inputs: dict[str, Any], provenance: dict[str, Any]
) -> None:
    findings, controls, verdicts = parts(report_inputs)
    lines = render_summary(findings, controls, verdicts, provenance, WORDS).splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == findings.height + controls.height + verdicts.height + 6
    assert sum("not a claim about tissue" in line for line in lines) == 1


def test_summary_keeps_foreign_text_in_its_cell(
    report_inputs: dict[str, Any], provenance: dict[str, Any]
) -> None:
    findings, controls, verdicts = parts(report_inputs)
    evil = "<img src=x>|x\n# [a](http://b) /data/site/x"
    findings = findings.with_columns(pl.lit(evil).alias("reason"))
    text = render_summary(findings, controls, verdicts, {**provenance, "cohort": evil}, WORDS)
    assert "<img" not in text
    assert "\n# [" not in text
    assert "](" not in text
    assert "/data/site" not in text
    rows = [line for line in text.splitlines() if line.startswith("| Rotation")]
    assert all(row.replace("\\|", "").count("|") == 8 for row in rows)


def test_the_summary_never_calls_a_control_pass_or_fail(
    report_inputs: dict[str, Any], provenance: dict[str, Any]
) -> None:
    findings, controls, verdicts = parts(report_inputs)
    lines = render_summary(findings, controls, verdicts, provenance, WORDS).splitlines()
    told = [line for line in lines if "(control)" in line]
    assert told
    assert not any("PASS" in line or "FAIL" in line for line in told)
    assert any("behaves (measured: fail)" in line for line in told)
    silent = controls.with_columns(behaves=pl.lit(value=False), blocks=pl.lit(value=True))
    text = render_summary(findings, silent, verdicts, provenance, WORDS)
    assert "does not behave (measured: pass)" in text


def test_an_open_control_is_neither_said_to_behave_nor_to_misbehave(
    report_inputs: dict[str, Any],
) -> None:
    controls = report_inputs["controls"]
    stain = (pl.col("control") == "stain_statistics") & (pl.col("experiment") == "robustness_index")
    unclear = controls.with_columns(
        pl.when(stain).then(None).otherwise("behaves").alias("behaves"),
        (pl.col("blocks_pass") | stain).alias("blocks_pass"),
    )
    assert control_state(unclear, "stain_statistics") == "open"
    assert control_state(unclear, "stain_statistics", "rotation") == "unasked"
    known, asked = behaving(controls)
    assert behaving(unclear) == (known - 1, asked)


def test_spreadsheets_get_three_digits_of_p_and_q(report_inputs: dict[str, Any]) -> None:
    findings = report_inputs["findings"]
    table = findings_for_spreadsheets(findings)
    for name in ("p_value", "q_value"):
        for shown, exact in zip(table[name], findings[name], strict=True):
            assert (shown is None) == (exact is None)
            if exact:
                assert shown == float(f"{exact:.3g}")
    assert table["value"].equals(findings["value"])


def test_metrics_are_plain_and_unrounded(report_inputs: dict[str, Any]) -> None:
    findings, _, verdicts = parts(report_inputs)
    metrics = findings_metrics(findings, verdicts)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert set(metrics) == set(verdicts["encoder"])
    wanted = findings.filter(encoder="beta", metric="ri_minus_null")["value"][0]
    assert metrics["beta"]["ri_minus_null"] == wanted
    assert sum(len(entry) - 1 for entry in metrics.values()) == findings.height
    for entry in metrics.values():
        assert all(isinstance(value, int | float | str) for value in entry.values())


def test_a_metric_judged_twice_keeps_both_values(report_inputs: dict[str, Any]) -> None:
    findings, _, verdicts = parts(report_inputs)
    again = findings.filter(metric="mknn").with_columns(pl.lit('{"k": 50}').alias("setting"))
    both = pl.concat([findings, again])
    metrics = findings_metrics(both, verdicts)
    assert sum(len(entry) - 1 for entry in metrics.values()) == both.height


@settings(deadline=None)
@given(st.text(), st.sampled_from("=+-@\t\r"))
def test_no_cell_starts_a_formula(text: str, start: str) -> None:
    table = pl.DataFrame({"a": [start + text, text, None]}, schema={"a": pl.String()})
    for cell in safe_cells(table)["a"].drop_nulls():
        assert not cell.startswith(tuple("=+-@\t\r"))
    assert safe_cells(table)["a"].null_count() == 1


def test_harmless_cells_and_numbers_are_untouched() -> None:
    table = pl.DataFrame({"a": ["gland", '{"k": 1}', ""], "b": [-1.5, 0.0, None]})
    assert safe_cells(table).equals(table)


@settings(deadline=None)
@given(st.floats(-1e12, 1e12).filter(lambda value: value == 0 or abs(value) > 1e-290))
def test_numbers_stay_near_what_they_stand_for(value: float) -> None:
    shown = float(number(value).replace("−", "-").replace(",", ""))
    size = abs(value)
    unit = 1.0 if size >= 100 else 0.1 if size >= 10 else 0.01 if size >= 0.1 else 0.1 * size
    assert abs(shown - value) <= 0.501 * unit


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/a/b.svs", "…/b.svs"),
        ("see (/srv/a/b.svs): broken", "see (…/b.svs): broken"),
        (r"C:\slides\a\b.svs", "…/b.svs"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("a/b and c/d/e", "a/b and c/d/e"),
    ],
)
def test_absolute_paths_lose_their_folders(text: str, shown: str) -> None:
    assert without_folders(text) == shown
