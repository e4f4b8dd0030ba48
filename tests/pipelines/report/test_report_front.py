"""The first screen, cards, results and claims say what the tables say."""

from __future__ import annotations

import json
import math
from typing import Any

import polars as pl
import pytest

from pathfm_kedro.pipelines.report.badges import VERDICT_WORDS
from pathfm_kedro.pipelines.report.cards import MANY_PATIENTS, cards_of, patients_needed
from pathfm_kedro.pipelines.report.claims import NOT_MEASURED, claims_of
from pathfm_kedro.pipelines.report.controls import roles
from pathfm_kedro.pipelines.report.findings import FINDING_SCHEMA
from pathfm_kedro.pipelines.report.matrix import matrix_of
from pathfm_kedro.pipelines.report.outputs import findings_for_programs
from pathfm_kedro.pipelines.report.page import render_report
from pathfm_kedro.pipelines.report.results import result_sentence
from pathfm_kedro.pipelines.report.words import Words
from tests.conftest import PROJECT
from tests.pipelines.report.conftest import PARAMETERS, TRUTH, WORDS
from tests.pipelines.report.test_report_page import plotted

READ = Words.read(WORDS)
SCHEMA = PROJECT / "src/pathfm_kedro/pipelines/report/findings.schema.json"


def front(inputs: dict[str, Any]) -> Any:
    role = roles(inputs["provenance"], list(TRUTH))
    tables = (inputs[name] for name in ("findings", "measurements", "verdicts", "controls"))
    return matrix_of(*tables, role, READ)


def test_every_finding_stands_once_in_its_encoders_row(report_inputs: dict[str, Any]) -> None:
    matrix = front(report_inputs)
    findings = report_inputs["findings"]
    for row in matrix.rows:
        own = findings.filter(encoder=row.encoder)
        judged = [
            (column.experiment, cell)
            for column, cell in zip(matrix.columns, row.cells, strict=True)
            if column.must_be
        ]
        assert sorted(x for x, _ in judged) == sorted(own["experiment"])
        if not row.is_control:
            shown = sorted(cell.badge.words for _, cell in judged)
            assert shown == sorted(VERDICT_WORDS[verdict] for verdict in own["verdict"])
            assert all(cell.badge.sign and "[" in cell.figure for _, cell in judged)


def test_columns_stand_together_by_group_and_controls_below(report_inputs: dict[str, Any]) -> None:
    matrix = front(report_inputs)
    titles = [title for title, _ in matrix.groups]
    assert len(titles) == len(set(titles))
    known = [group.title for group in READ.report.groups.values()]
    assert [title for title in known if title in titles] == titles
    assert sum(span for _, span in matrix.groups) == len(matrix.columns)
    below = [row.is_control for row in matrix.rows]
    assert below == sorted(below)


def test_a_check_that_an_encoder_lacks_is_not_measured(report_inputs: dict[str, Any]) -> None:
    findings = report_inputs["findings"]
    lacking = (pl.col("encoder") == "beta") & (pl.col("metric") == "mknn")
    matrix = front({**report_inputs, "findings": findings.filter(~lacking)})
    place = [c.must_be == "above 0.8" for c in matrix.columns].index(True)
    beta = next(row for row in matrix.rows if row.encoder == "beta")
    assert beta.cells[place].badge.words == "NOT MEASURED"


def test_the_three_lists_of_a_card_hold_every_check_once(report_inputs: dict[str, Any]) -> None:
    tables = (report_inputs[name] for name in ("findings", "verdicts", "controls"))
    for card in cards_of(*tables, PARAMETERS, READ):
        own = report_inputs["findings"].filter(encoder=card.encoder)
        may, must_not, undecided = (lines for _, lines in card.lists)
        assert len(may) == own.filter(verdict="pass").height
        assert len(must_not) == own.filter(verdict="fail").height
        waiting = own.filter(~pl.col("verdict").is_in(["pass", "fail"])).height
        assert len([line for line in undecided if "no check of it" not in line.figure]) == waiting


@pytest.mark.parametrize("value", [0.31, 0.55, 0.93])
def test_so_many_patients_put_the_figure_where_it_is_decided(value: float) -> None:
    row = {"value": value, "ci_low": 0.2, "ci_high": 1.1, "threshold": 0.6, "n_patients": 30}
    needed = 3.1
    n = patients_needed(row, needed)
    half = value - 0.2 if value > 0.6 else 1.1 - value
    error = half / 1.96 * math.sqrt(30 / n)
    assert abs(value - 0.6) / error >= needed * 0.9999
    assert n <= 1.16 * 30 * (half / 1.96 * needed / abs(value - 0.6)) ** 2
    assert patients_needed({**row, "value": 0.6}, needed) == MANY_PATIENTS + 1


def test_a_result_names_every_audited_encoder_and_no_control(report_inputs: dict[str, Any]) -> None:
    role = roles(report_inputs["provenance"], list(TRUTH))
    for experiment in ("robustness_index", "retrieval", "geometry", "colour_swap"):
        rows = report_inputs["measurements"].filter(experiment=experiment)
        sentence = result_sentence(rows, role, READ)
        for name in TRUTH:
            assert (name in sentence) == (role[name] == "encoder"), (experiment, name)


def test_claims_hold_every_statement_and_name_figures_that_there_are(
    report_inputs: dict[str, Any],
) -> None:
    kinds = [claim.kind for claim in READ.report.claims]
    least = {"mechanism": 3, "key_result": 4, "failure_signature": 5, "open_question": 4}
    for kind, n in (least | {"next_check": 3}).items():
        assert kinds.count(kind) >= n
    for claim in READ.report.claims:
        assert claim.kind in READ.report.kinds_of_claims
        for figure in claim.here:
            assert figure.metric in READ.of(figure.experiment).metrics, figure
    for experiment, words in READ.experiments.items():
        assert all(figure.metric in words.metrics for figure in words.front), experiment
    role = roles(report_inputs["provenance"], list(TRUTH))
    found = claims_of(report_inputs["measurements"], role, READ)
    shown = {claim.title: claim for _, own in found for claim in own}
    rotated = next(c for title, c in shown.items() if title.startswith("Encoders are sensitive"))
    assert "did not hold for alpha 0.90; held for beta 0.62" in rotated.here[0]
    attacked = next(c for title, c in shown.items() if title.startswith("Adversarial"))
    assert NOT_MEASURED in attacked.here[0]
    assert not attacked.rows


def test_a_cohort_whose_labels_nobody_reads_says_so_first(report_inputs: dict[str, Any]) -> None:
    target = pl.col("setting").str.contains('"label"') & (pl.col("experiment") == "linear_probe")
    blind = report_inputs["measurements"].with_columns(
        pl.when(target).then(1.0).otherwise("null_high").alias("null_high")
    )
    page = render_report(**plotted({**report_inputs, "measurements": blind}))
    assert page.index("The label cannot be read here") < page.index('class="scroll matrix"')
    assert "The label cannot be read here" not in render_report(**report_inputs)


def test_findings_follow_their_published_schema(report_inputs: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["items"]["properties"]) == list(FINDING_SCHEMA)
    records = findings_for_programs(report_inputs["findings"])
    records = json.loads(json.dumps(records, allow_nan=False))
    jsonschema.validate(records, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{**records[0], "verdict": "perhaps"}], schema)


def test_a_page_is_light(report_inputs: dict[str, Any]) -> None:
    assert len(render_report(**report_inputs).encode()) < 3_000_000
