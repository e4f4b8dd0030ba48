"""The report page: whole, offline, escaped, the same twice."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pathfm_kedro.pipelines.report.page import render_report, script_json, slides_digest
from pathfm_kedro.pipelines.report.plots import plot_design, plot_findings
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA, Estimate, Null, measurement
from tests.pipelines.report.conftest import WORDS, judged

EVIL = "<script>alert(1)</script>"
#: Unfolds all and asks for what a printer would get, as soon as the page has its plotting library.
EVERYTHING_IN_SIGHT = """<script>
var asked = setInterval(function () {
  if (!window.Plotly) { return; }
  clearInterval(asked);
  document.querySelectorAll("details").forEach(function (fold) { fold.open = true; });
  window.dispatchEvent(new Event("beforeprint"));
}, 200);
</script>"""
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


@pytest.fixture(scope="module")
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
    inputs = plotted(inputs)
    page = render_report(**inputs)
    assert EVIL not in page
    parsed = Page(page)
    assert parsed.open == []
    assert sum(tag == "script" for tag, _ in parsed.elements) <= clean + 2
    assert EVIL in parsed.text


def test_an_unknown_experiment_gets_plot_and_table(page: str) -> None:
    assert "Colour swap" in Page(page).text
    assert "Keeps its shape, donor center B" in Page(page).text


def test_no_absolute_path_and_no_time(page: str) -> None:
    body = page[: page.index("<script>")]
    assert "/data/site" not in body
    assert "cannot open &#39;…/x.tiff&#39;" in body
    assert not re.search(r"\b20\d\d-\d\d-\d\d", body)


def test_no_patient_and_no_slide_is_named(page: str, slides: pl.DataFrame) -> None:
    body = page[: page.index("<script>")] + page[page.rindex("</script>") :]
    for name in [*slides["patient_id"], *slides["slide_id"]]:
        assert not re.search(rf"\b{name}\b", body), name


def test_slides_without_tiles_are_counted_among_the_lost(page: str) -> None:
    text = Page(page).text
    assert "Slides that could not be used: 3" in text
    assert "no tissue was found" in text
    assert "15 slides with tiles of" in text


def test_limits_are_told(page: str) -> None:
    text = Page(page).text
    for told in (
        "The cohort: papillary comes from north alone",
        "Nothing about 3 of 18 slides",
        "1 slide that beta could not embed",
    ):
        assert told in text


def test_the_phantom_is_told_once_and_its_bias_in_words(page: str) -> None:
    text = Page(page).text
    assert text.count("calibration target with known truth, not a claim about tissue") == 1
    assert "from 0 (none) to 1 (colour predicts the center alone): 0.6." in text


def test_the_line_below_the_title_tells_audits_apart(
    report_inputs: dict[str, Any], provenance: dict[str, Any]
) -> None:
    named = {**provenance, "versions": {**provenance["versions"], "pathfm-kedro": "9.8.7"}}
    text = Page(render_report(**{**report_inputs, "provenance": named})).text
    digest = slides_digest(report_inputs["slides"])
    assert (
        f"pathfm-kedro 9.8.7 · fingerprint of the slides {digest} · 2 encoders · 3 controls · "
        in text
    )
    asked = report_inputs["controls"].filter(pl.col("behaves").is_not_null()).height
    assert f"{asked} of {asked} control checks behave" in text


def test_the_digest_follows_content_and_not_order(slides: pl.DataFrame) -> None:
    digest = slides_digest(slides)
    assert slides_digest(slides.reverse()) == digest
    other = pl.when(pl.col("slide_id") == "s003").then(pl.lit("0")).otherwise("fingerprint")
    assert slides_digest(slides.with_columns(other.alias("fingerprint"))) != digest
    assert slides_digest(slides.with_columns(pl.lit("/else/where").alias("path"))) == digest


def test_a_control_is_never_called_pass_or_fail(page: str) -> None:
    rows = re.findall(r'<tr class="control">(.*?)</tr>', page)
    assert rows
    for row in rows:
        assert 'class="badge pass"' not in row
        assert 'class="badge fail"' not in row
    assert any("measured: fail" in row and "behaves" in row for row in rows)


def test_sections_come_in_the_order_a_reader_needs(page: str) -> None:
    places = [
        page.index(f'id="{anchor}"') for anchor in ("conclusions", "controls", "experiment-1")
    ]
    assert places == sorted(places)


def with_rows(
    report_inputs: dict[str, Any], rows: list[dict[str, Any]], **changes: Any
) -> dict[str, Any]:
    """The report's inputs with more measurements, judged anew."""
    extra = pl.DataFrame(rows, schema=MEASUREMENT_SCHEMA)
    table = pl.concat([changes.pop("measurements", report_inputs["measurements"]), extra])
    provenance = changes.get("provenance", report_inputs["provenance"])
    return plotted({**report_inputs, **changes, "measurements": table, "provenance": provenance})


def plotted(inputs: dict[str, Any]) -> dict[str, Any]:
    """The report's inputs, judged and plotted anew."""
    findings, controls, verdicts = judged(inputs["measurements"], inputs["provenance"])
    return {
        **inputs,
        "findings": findings,
        "controls": controls,
        "verdicts": verdicts,
        "findings_plot": plot_findings(findings, inputs["provenance"], WORDS),
        "design_plot": plot_design(inputs["design"]),
    }


def claim(page: str, title: str) -> str:
    """The markup of one claim."""
    start = page.index(f"<h4>{title}")
    return page[start : page.index("</article>", start)]


def test_the_claims_of_retrieval_use_the_search_of_the_check(page: str) -> None:
    own = claim(page, "Zero-shot")
    assert "Yottixel search (median of minima), within the organ, majority of 5" in own


def test_what_is_exactly_nothing_is_not_above_nothing(report_inputs: dict[str, Any]) -> None:
    setting = {"k": 10, "distance": "cosine", "control": "round_trip"}
    none = measurement(
        experiment="rotation",
        encoder="alpha",
        metric="mknn_excess_drop",
        estimate=Estimate(0.0, 0.0, 0.0, 16, 12),
        setting=setting,
    )
    table = report_inputs["measurements"]
    same = (pl.col("metric") == "mknn_excess_drop") & (pl.col("encoder") == "alpha")
    inputs = with_rows(report_inputs, [none], measurements=table.filter(~same))
    told = claim(render_report(**inputs), "Encoders are sensitive")
    row = next(line for line in told.splitlines() if ">alpha<" in line)
    assert "0.00 [0.00, 0.00] †</span> did not hold" in row
    assert row.count("did not hold") == 2


def test_an_interval_without_width_gets_its_footnote_and_no_q(
    report_inputs: dict[str, Any],
) -> None:
    flat = measurement(
        experiment="colour_swap",
        encoder="alpha",
        metric="flat",
        estimate=Estimate(1.0, 1.0, 1.0, 16, 12),
        threshold=0.5,
        direction="above",
    )
    page = render_report(**with_rows(report_inputs, [flat, {**flat, "encoder": "phantom_truth"}]))
    section = page[page.index("Colour swap</h3>") :]
    row = next(line for line in section.splitlines() if "1.00 [1.00, 1.00] †" in line)
    assert "PASS" in row
    assert "false discovery" not in row
    assert "no proof for the next cohort" in section


def test_the_page_says_why_nothing_passes_where_colour_is_undecided(
    report_inputs: dict[str, Any],
) -> None:
    controls = report_inputs["controls"]
    stain = pl.col("control") == "stain_statistics"
    controls = controls.with_columns(
        pl.when(stain).then(None).otherwise("behaves").alias("behaves"),
        stain.alias("blocks_pass"),
        pl.when(stain).then(pl.lit("the cohort is too small")).otherwise("reason").alias("reason"),
    )
    page = render_report(**{**report_inputs, "controls": controls})
    assert page.count("No PASS on robustness index: the control stain_statistics") == 1
    assert "Nothing on robustness index" not in page
    assert 'class="badge open"' in page


def test_each_figure_is_told_once_in_numeric_order(report_inputs: dict[str, Any]) -> None:
    hidden = [
        measurement(
            experiment="robustness_index",
            encoder=encoder,
            metric="ri_design_null",
            estimate=Estimate(0.375, 0.375, 0.375, 480, 24),
            setting={"design": "all", "k": 11, "role": "cohort_k"},
        )
        for encoder in ("alpha", "beta")
    ]
    page = render_report(**with_rows(report_inputs, hidden))
    titles = re.findall(r'<span class="stay">(.*?)</span>', page)
    bare = [title.split(" <span")[0] for title in titles]
    assert len(bare) == len(set(bare))
    assert not any("esign null" in title for title in bare)
    curve = [title for title in bare if title.startswith("Robustness index, all labels")]
    ks = [int(re.findall(r"(\d+) neighbour", title)[0]) for title in curve]
    # The cohort's k leads; the curve follows by number, not by letter.
    assert ks == [11, 1, 3, 5, 7, 9, 21, 31]
    turned = [title for title in bare if title.startswith("Neighbours kept (m-kNN), at")]
    angles = [int(re.findall(r"at (\d+)°", title)[0]) for title in turned if "back" not in title]
    assert angles == [90, *(angle for angle in range(15, 360, 15) if angle != 90)]


def test_the_open_tables_hold_what_explains_the_checks(page: str) -> None:
    for experiment, titles in {
        "Robustness index": ["Robustness index, all labels and centers, 11 neighbours"],
        "Rotation": ["Neighbours kept, mean over angles", "Neighbours lost beyond"],
        "Retrieval": [
            "Macro-F1, Yottixel search",
            "Macro-F1, organ kidney, Yottixel search",
            "Macro-F1, organ lung, Yottixel search",
        ],
    }.items():
        section = page[page.index(f">{experiment}:") :]
        shown = section[: section.index("More figures of this experiment")]
        for title in titles:
            assert title in shown


def test_what_is_left_out_is_counted(
    report_inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathfm_kedro.pipelines.report.sections.MAX_ROWS", 7)
    page = render_report(**report_inputs)
    section = page[page.index(">Retrieval:") :]
    section = section[: section.index("</section>")]
    rows = section.count('<th scope="row">')
    left = int(re.findall(r"(\d+) further figures are in the measurements", section)[0])
    assert rows + left == report_inputs["measurements"].filter(experiment="retrieval").height


def test_the_note_on_rotation_names_what_the_share_depends_on(
    report_inputs: dict[str, Any],
) -> None:
    wider = measurement(
        experiment="rotation",
        encoder="alpha",
        metric="mknn",
        estimate=Estimate(0.95, 0.9, 0.97, 480, 24),
        setting={"angle": 90, "k": 50, "distance": "cosine", "view": "rotated"},
        null=Null(0.7, 0.7),
    )
    text = Page(render_report(**with_rows(report_inputs, [wider]))).text
    assert (
        "here 480 tiles (alpha 0.90 at 10 neighbours (chance 0.020), 0.95 at 50 neighbours" in text
    )
    assert "published figures used 1,024 tiles. The threshold 0.8 is the one reported in" in text


def test_counts_rest_on_their_unit(page: str) -> None:
    text = Page(page).text
    assert "480 tiles of 24 patients" in text
    assert "480 slides of 24 patients" in text


def test_undefined_figures_show_their_reason(page: str) -> None:
    assert "label rare has one patient; add slides of a second one" in page
    assert "NaN" not in page[: page.index('id="plotly"')]
    assert ">None<" not in page


def test_a_cohort_with_nothing_measured_still_gives_a_page(report_inputs: dict[str, Any]) -> None:
    cohort = {name: report_inputs[name].clear() for name in ("slides", "tiles", "tiling", "design")}
    empty = pl.DataFrame(schema=MEASUREMENT_SCHEMA)
    page = render_report(**plotted({**report_inputs, **cohort, "measurements": empty}))
    assert "No encoder was judged" in page


def test_json_cannot_end_its_script_element() -> None:
    data = json.dumps(["</script><!--", "a & b"])
    escaped = script_json(data)
    assert not set("<>&") & set(escaped)
    assert json.loads(escaped) == json.loads(data)


def test_a_browser_draws_every_plot(page: str, dumped_page: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page + EVERYTHING_IN_SIGHT, encoding="utf-8")
    shown = dumped_page(file.as_uri(), tmp_path / "profile", 20_000)
    boxes = page.count('class="plot"')
    assert len(re.findall(r'class="plot js-plotly-plot"', shown)) == boxes
    assert shown.count('class="plot-container plotly"') == boxes
    # The page's own script holds the sentence once; a plot that failed would add another.
    assert shown.count("This plot could not be shown") == 1


def test_what_the_registry_knows_of_an_encoder_is_told(report_inputs, provenance):
    """Licence, gate and revision beside the encoder; other tiles than it is made for as a limit."""
    preset = {
        "name": "conch",
        "licence": "CC-BY-NC-ND-4.0",
        "commercial": False,
        "gated": True,
        "revision": "f9ca9f8",
        "trained_on": {"pixels": 448, "mpp": [0.5, 1.0], "stated": "paper"},
        "differs": "trained on tiles of 448 px",
    }
    encoders = provenance["encoders"]
    known = {**provenance, "encoders": {**encoders, "beta": {**encoders["beta"], "preset": preset}}}
    text = Page(render_report(**{**report_inputs, "provenance": known})).text
    for told in ("CC-BY-NC-ND-4.0", "f9ca9f8", "tiles of 448 px at 0.5 or 1 µm per px"):
        assert told in text
    assert (
        "Not how beta does on the tiles it is made for: it was trained on tiles of 448 px." in text
    )
    assert "it is made for" not in Page(render_report(**report_inputs)).text


def test_features_of_several_magnifications_are_a_limit(report_inputs, provenance):
    encoders = provenance["encoders"]
    sizes = {**encoders["beta"], "field_um": [64.0, 128.0]}
    known = {**provenance, "encoders": {**encoders, "beta": sizes}}
    text = Page(render_report(**{**report_inputs, "provenance": known})).text
    assert "No statement about one magnification: beta was shown tiles of 64 to 128 µm" in text
    assert "one magnification" not in Page(render_report(**report_inputs)).text
