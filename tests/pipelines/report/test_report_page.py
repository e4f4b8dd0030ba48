"""The report page: whole, offline, escaped, the same twice."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pathfm_kedro.pipelines.report.findings import (
    check_controls,
    collect_findings,
    verdict_by_encoder,
)
from pathfm_kedro.pipelines.report.page import render_report, script_json
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA, Estimate, measurement

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements as a browser sees them; complains where one is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture
def page(report_inputs: dict[str, Any]) -> str:
    return render_report(**report_inputs)


def test_same_input_gives_same_bytes_in_any_row_order(
    page: str, report_inputs: dict[str, Any]
) -> None:
    shuffled = {**report_inputs}
    for name in ("slides", "tiles", "design"):
        shuffled[name] = report_inputs[name].sample(fraction=1, shuffle=True, seed=3)
    assert render_report(**shuffled) == page


def test_page_is_well_formed_and_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert page.startswith("<!DOCTYPE html>")
    assert len(page.encode()) < 8_000_000
    for tag, attributes in parsed.elements:
        assert "src" not in attributes
        assert tag not in ("link", "iframe", "img")
        if tag == "a":
            assert str(attributes["href"]).startswith("#")
    policy = [a["content"] for tag, a in parsed.elements if a.get("http-equiv")]
    assert "default-src 'none'" in str(policy[0])


def test_the_control_of_retrieval_is_shown(page: str) -> None:
    assert "its macro-F1 lies at the null" in Page(page).text


def test_ids_are_unique_and_links_lead_somewhere(page: str) -> None:
    elements = Page(page).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {str(a["href"])[1:] for tag, a in elements if tag == "a"}
    assert targets <= set(ids)


def test_every_plot_has_readable_data(page: str) -> None:
    plots = re.findall(r'<script type="application/json" id="(.*?)-data">(.*?)</script>', page)
    assert len(plots) >= 8
    for _, data in plots:
        figure = json.loads(data)
        assert figure["data"]
        assert figure["layout"]["height"] > 0


def test_text_from_tables_stays_text(report_inputs: dict[str, Any]) -> None:
    clean = sum(tag == "script" for tag, _ in Page(render_report(**report_inputs)).elements)
    inputs = dict(report_inputs)
    marked = pl.lit(EVIL)
    lost = pl.col("status") == "unusable"
    inputs["slides"] = inputs["slides"].with_columns(
        *(pl.when(lost).then(marked).otherwise(c).alias(c) for c in ("slide_id", "label")),
        *(marked.alias(c) for c in ("center", "organ", "scanner", "reason", "patient_id")),
    )
    inputs["design"] = inputs["design"].with_columns(marked.alias("label"), marked.alias("center"))
    inputs["design"] = inputs["design"].head(1)
    inputs["design_summary"] = {"cramers_v": None, "warnings": [EVIL]}
    inputs["provenance"] = {
        **inputs["provenance"],
        "cohort": EVIL,
        "versions": {EVIL: EVIL},
        "parameters": {EVIL: [EVIL]},
        "encoders": {EVIL: {"model": EVIL, "role": "encoder", "preprocessing": EVIL}},
    }
    extra = measurement(
        experiment=EVIL,
        encoder=EVIL,
        metric=EVIL,
        stratum=f"label={EVIL}",
        setting={EVIL: EVIL},
        estimate=Estimate(0.5, 0.4, 0.6, 10, 4),
        reason=EVIL,
        threshold=0.2,
        direction="above",
    )
    inputs["measurements"] = pl.concat(
        [inputs["measurements"], pl.DataFrame([extra], schema=MEASUREMENT_SCHEMA)]
    )
    known: tuple[Any, ...] = (inputs["measurements"], inputs["provenance"], {}, inputs["design"])
    inputs["findings"] = collect_findings(*known)
    inputs["controls"] = check_controls(*known)
    inputs["verdicts"] = verdict_by_encoder(inputs["findings"], inputs["controls"])
    page = render_report(**inputs)
    assert EVIL not in page
    parsed = Page(page)
    assert parsed.open == []
    assert sum(tag == "script" for tag, _ in parsed.elements) <= clean + 2
    assert EVIL in parsed.text


def test_an_unknown_experiment_gets_plot_and_table(page: str) -> None:
    assert "Colour swap" in Page(page).text
    assert "Follows morphology (donor center B)" in Page(page).text


def test_no_absolute_path_and_no_time(page: str) -> None:
    body = page[: page.index("<script>")]
    assert "/data/site" not in body
    assert "…/x.tiff" in body
    assert not re.search(r"\b20\d\d-\d\d-\d\d", body)


def test_limits_are_told(page: str) -> None:
    text = Page(page).text
    for told in (
        "calibration target with known truth, not a claim about tissue",
        "papillary comes from north alone",
        "Nothing about 2 of 18 slides",
        "1 slide that beta could not embed",
    ):
        assert told in text


def test_undefined_figures_show_their_reason(page: str) -> None:
    assert "label rare has one patient; add slides of a second one" in page
    assert "NaN" not in page[: page.index("<script>")]
    assert ">None<" not in page


def test_a_cohort_with_nothing_measured_still_gives_a_page(report_inputs: dict[str, Any]) -> None:
    empty = pl.DataFrame(schema=MEASUREMENT_SCHEMA)
    findings = collect_findings(empty, report_inputs["provenance"], {})
    controls = check_controls(empty, report_inputs["provenance"], {})
    page = render_report(
        **{
            **report_inputs,
            "measurements": empty,
            "findings": findings,
            "controls": controls,
            "verdicts": verdict_by_encoder(findings, controls),
            "slides": report_inputs["slides"].clear(),
            "tiles": report_inputs["tiles"].clear(),
            "design": report_inputs["design"].clear(),
        }
    )
    assert "No encoder was judged" in page


def test_json_cannot_end_its_script_element() -> None:
    data = json.dumps(["</script><!--", "a & b"])
    escaped = script_json(data)
    assert not set("<>&") & set(escaped)
    assert json.loads(escaped) == json.loads(data)


def test_a_browser_draws_every_plot(page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=8000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    boxes = page.count('class="plot"')
    assert len(re.findall(r'class="plot js-plotly-plot"', done.stdout)) == boxes
    assert done.stdout.count('class="plot-container plotly"') == boxes
    # The page's own script holds the sentence once; a plot that failed would add another.
    assert done.stdout.count("This plot could not be drawn") == 1
