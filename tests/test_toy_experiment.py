"""A new experiment is one file, one line, a block of parameters and a block of words: this is one.

What an experiment takes stands between the two lines below; the rest runs it, as `kedro run` would, and
looks for it in the report.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import polars as pl
import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.report.pipeline import create_pipeline as report
from pathfm_kedro.pipelines.report.plot_kinds import KINDS
from pathfm_kedro.pipelines.robustness.pipeline import create_pipeline as robustness
from pathfm_kedro.statistics.figures import Figure, Value
from pathfm_kedro.statistics.measurements import Null, combine_measurements
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.wiring import Experiment
from tests.conftest import PROJECT, base_parameters
from tests.in_memory import InMemory

# ---------------------------------------------------------------- the file


@dataclass(frozen=True, config=STRICT, kw_only=True)
class NearestLabel(ExperimentParameters):
    """Parameters of the experiment."""

    k: tuple[Annotated[int, Field(ge=1)], ...]


def nearest_label_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, vectors: Embeddings, p: NearestLabel
) -> pl.DataFrame:
    """Neighbours of each patient's tiles in other patients, and how many have the tile's label."""
    rows = tiles.join(slides, on="slide_id").sort("slide_id")
    labels, patients = rows["label"].to_numpy(), rows["patient_id"].to_numpy()
    near = nearest_indices(vectors.stack(sorted(slides["slide_id"])), patients, max(p.k))
    other = patients[:, None] != patients
    expected = ((labels[:, None] == labels) & other).sum(axis=1) / other.sum(axis=1)
    return pl.concat(
        rows.select(
            "patient_id",
            k=pl.lit(k),
            n_tiles=1,
            n_agree=pl.Series((labels[near[:, :k]] == labels[:, None]).mean(axis=1)),
            n_expected=pl.Series(expected),
        )
        for k in p.k
    )


def nearest_label_figures(statistics: pl.DataFrame, p: NearestLabel) -> Iterator[Figure]:
    """Share of neighbours in other patients that have the tile's label, beside what chance gives."""
    for k in p.k:
        yield PatientStatistics(statistics, p).at(k=k).figure("label_agreement", label_agreement)


def label_agreement(part: PatientStatistics) -> Value:
    """Σ neighbours of the tile's label / Σ neighbours."""
    part.require_interval()
    tiles = part.sums("n_tiles")
    chance = part.sums("n_expected").sum() / tiles.sum()
    return Value(part.ratio(part.sums("n_agree"), tiles), Null(chance, chance))


# ---------------------------------------------------------------- the line

TOY = Experiment(
    "nearest_label",
    NearestLabel,
    nearest_label_statistics,
    nearest_label_figures,
    ["slides", "tiles", "embeddings.{e}"],
)

# ---------------------------------------------------------------- the two blocks

BLOCKS = """
nearest_label:
  k: [1, 3, 5]
  criteria:
    - {metric: label_agreement, at: {k: 3}, above: 0.5}
  draws: 200
  calibration: {nuisance: stain_statistics, called: colour, set: {k: [3]}}

words_robustness:
  nearest_label:
    title: 'Nearest label: do neighbours share the diagnosis?'
    group: tissue_or_center
    meaning: What the tiles nearest to a tile in other patients are.
    unit: tiles
    key_figures: [label_agreement]
    metrics:
      label_agreement:
        name: Neighbours of the same diagnosis
        short: agreement on the diagnosis
        fail: sees other diagnoses in neighbouring tiles
        core: true
    plots:
      - kind: curve
        metric: label_agreement
        x: k
        x_title: neighbours that were asked
        caption: Agreement of neighbours over their number.
    controls:
      - control: stain_statistics
        must: fail
        metric: label_agreement
        expectation: fails to find the diagnosis by colour
"""

# ---------------------------------------------------------------- running and reading it

AUDITED = "made_encoder"
CONTROLS = {"phantom_truth": "label", "stain_statistics": "center"}
ENCODERS = [AUDITED, *CONTROLS]
LABELS, CENTERS, PATIENTS, TILES = ("clear", "papillary", "solid"), ("north", "south"), 3, 4


def merged_parameters() -> dict[str, Any]:
    """The project's parameters, and the two blocks."""
    merged = base_parameters()
    blocks = yaml.safe_load(BLOCKS)
    merged["words_robustness"] |= blocks.pop("words_robustness")
    merged["calibration"] = {"doses": [0.0, 0.5, 1.0]}
    return merged | blocks | {"cohort": {"name": "toy", "source": "phantom"}}


def cohort_tables() -> dict[str, pl.DataFrame]:
    """Slides with one patient each, and tables about them as the earlier pipelines make them."""
    cells = [(a, b, i) for a in LABELS for b in CENTERS for i in range(PATIENTS)]
    slides = pl.DataFrame(
        [
            {
                "slide_id": f"{label}-{center}-{i}",
                "path": "",
                "patient_id": f"patient-{label}-{center}-{i}",
                "center": center,
                "organ": "kidney",
                "label": label,
                "mpp": 0.5,
                "fingerprint": f"{at:064x}",
                "status": "usable",
                "reason": "",
            }
            for at, (label, center, i) in enumerate(cells)
        ]
    )
    names = [(slide, f"{slide}@{i}") for slide in slides["slide_id"] for i in range(TILES)]
    return {
        "slides": slides,
        "tiles": pl.DataFrame(names, schema=["slide_id", "tile_id"], orient="row"),
        "tiling": slides.select("slide_id", status=pl.lit("tiled"), reason=pl.lit("")),
        "design": slides.group_by("label", "center", maintain_order=True).agg(
            n_patients=pl.col("patient_id").n_unique(), n_slides=pl.len()
        ),
    }


def vectors_that_know(slides: pl.DataFrame, column: str, seed: int) -> InMemory:
    """Vectors that tell one column and nothing else."""
    generator = np.random.default_rng(seed)
    names = slides[column].unique().sort().to_list()
    return InMemory(
        {
            slide: (5 * np.eye(8)[names.index(name)] + generator.normal(size=(TILES, 8))).astype(
                "f4"
            )
            for slide, name in slides.select("slide_id", column).iter_rows()
        }
    )


class Kept(MemoryDataset):
    """What can still be read once the run is over."""

    def _release(self) -> None:
        """Hold on to it."""


def ran(pipeline: Pipeline, data: dict[str, Any]) -> dict[str, Any]:
    """All that a pipeline makes, by Kedro's own runner."""
    made = {name: Kept(copy_mode="assign") for name in pipeline.all_outputs()}
    given = {name: MemoryDataset(value) for name, value in data.items()}
    SequentialRunner().run(pipeline, DataCatalog(given | made))
    return {name: dataset.load() for name, dataset in made.items()}


@pytest.fixture(scope="module")
def parameters() -> dict[str, Any]:
    return merged_parameters()


@pytest.fixture(scope="module")
def measurements(parameters) -> pl.DataFrame:
    """The collected table of the robustness pipeline with the toy alone."""
    tables = cohort_tables()
    whole = robustness(ENCODERS, list(CONTROLS), {}, parameters, experiments=[TOY])
    pipeline = whole.filter(node_namespaces=["robustness.nearest_label"])
    known = {AUDITED: "label", **CONTROLS}
    vectors = {
        f"embeddings.{e}": vectors_that_know(tables["slides"], column, seed)
        for seed, (e, column) in enumerate(known.items())
    }
    told = {f"params:{name}": parameters[name] for name in ("nearest_label", "calibration")}
    return ran(pipeline, tables | vectors | told)["measurements.robustness.nearest_label"]


@pytest.fixture(scope="module")
def reported(parameters, measurements) -> dict[str, Any]:
    """What the report pipeline leaves."""
    cards = {
        e: {
            "model": f"made/{e}",
            "role": "control" if e in CONTROLS else "encoder",
            "fingerprint": "0" * 64,
            "preprocessing": {},
            "dimension": 8,
            "n_slides": 18,
            "n_failed": 0,
        }
        for e in ENCODERS
    }
    data = cohort_tables() | {
        "robustness_measurements": measurements,
        "retrieve_measurements": combine_measurements(),
        "inheritance_measurements": combine_measurements(),
        "parameters": parameters,
        "params:report": parameters["report"],
        "params:triplets": parameters["triplets"],
        "params:cohort.name": "toy",
        "package_versions": {"kedro": "1"},
        "encoder_cards": cards,
        "design_summary": {"cramers_v": 0.0, "warnings": []},
    }
    return ran(report(["nearest_label", "calibration"], [], without_slides=True), data)


@pytest.fixture(scope="module")
def page(reported) -> str:
    return reported["report"]


def text_of(page: str) -> str:
    """What a person reads of a page, blanks made one."""
    visible = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", visible)))


def test_the_one_line_wires_statistics_measurements_calibration_and_collection(parameters):
    pipeline = robustness(ENCODERS, list(CONTROLS), {}, parameters, experiments=[TOY])
    outputs = pipeline.filter(node_namespaces=["robustness.nearest_label"]).all_outputs()
    of_encoder = {
        f"{kind}.robustness.nearest_label.{e}"
        for kind in ("statistics", "measurements")
        for e in ENCODERS
    }
    assert outputs == of_encoder | {
        "measurements.robustness.nearest_label",
        "measurements.robustness.calibration_nearest_label.phantom_truth",
    }
    (collect,) = (n for n in pipeline.nodes if n.outputs == ["robustness_measurements"])
    assert "measurements.robustness.nearest_label" in collect.inputs


def test_every_figure_of_every_encoder_is_measured(measurements):
    own = measurements.filter(experiment="nearest_label")
    assert own.height == 3 * len(ENCODERS)
    judged = own.drop_nulls("threshold")
    assert dict(judged.select("encoder", "verdict").iter_rows()) == {
        AUDITED: "pass",
        "phantom_truth": "pass",
        "stain_statistics": "fail",
    }


def test_calibration_goes_from_pass_to_fail(measurements):
    settings = [json.loads(s) for s in measurements.filter(experiment="calibration")["setting"]]
    assert {(s["of"], s["nuisance"]) for s in settings} == {("nearest_label", "colour")}
    by_dose = {s["dose"]: s["verdict"] for s in settings}
    assert list(by_dose) == [0.0, 0.5, 1.0]
    assert (by_dose[0.0], by_dose[1.0]) == ("pass", "fail")


def test_the_report_has_its_heading_meaning_and_figures(page):
    told = text_of(page)
    assert "Nearest label: do neighbours share the diagnosis?" in told
    assert "What the tiles nearest to a tile in other patients are." in told
    assert "Neighbours of the same diagnosis" in told


def test_the_report_has_its_plot(page, reported):
    assert "Agreement of neighbours over their number." in text_of(page)
    plots = re.findall(r'<script type="application/json" id=".*?-data">(.*?)</script>', page)
    assert any("neighbours that were asked" in plot for plot in plots)
    assert reported["nearest_label_plot"].layout.xaxis.title.text == "neighbours that were asked"
    assert list(reported["plotted_curves"]) == ["nearest_label"]


def test_the_report_has_its_verdict(page, reported):
    findings = reported["findings"].filter(experiment="nearest_label")
    assert dict(findings.select("encoder", "verdict").iter_rows()) == {
        AUDITED: "pass",
        "phantom_truth": "pass",
        "stain_statistics": "fail",
    }
    assert "agreement on the diagnosis" in text_of(page)
    sentences = dict(reported["verdicts"].select("encoder", "sentence").iter_rows())
    assert "sees other diagnoses in neighbouring tiles" in sentences["stain_statistics"]


def test_the_report_has_its_control(page, reported):
    asked = reported["controls"].filter(control="stain_statistics", experiment="nearest_label")
    assert asked["behaves"].to_list() == [True]
    assert "fails to find the diagnosis by colour" in text_of(page)


def test_the_report_has_its_calibration(page, reported):
    (title,) = (a.text for a in reported["calibration_plot"].layout.annotations)
    assert title == "<b>Nearest label: Neighbours of the same diagnosis</b>"
    assert "Calibration: at which dose does a check begin to fail?" in text_of(page)


def test_no_patient_is_named(reported):
    for name in ("report", "summary"):
        assert "patient-clear" not in reported[name]


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Words of a module's code: its names and texts, documentation left out."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documentation:
                yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def test_the_code_of_the_report_names_no_experiment():
    told = {
        name
        for key, block in base_parameters().items()
        if key.startswith("words_") and key != "words_report"
        for name in block
    }
    assert len(told) > 15
    # A kind of plot may have the name of the only experiment that it plots, and some have names that
    # are everyday words. What encoders cost is an experiment of the report itself, since it reads the
    # measurements of all others; so is what a person answered.
    everyday = {"cost", "comparison", "triplets"}
    asked = re.compile(rf"(?<![a-z])({'|'.join(sorted(told - set(KINDS) - everyday))})(?![a-z])")
    found = [
        f"{path.name}:{line}: {word}"
        for path in sorted((PROJECT / "src/pathfm_kedro/pipelines/report").glob("*.py"))
        if path.name != "cost.py"
        for line, word in names_in(ast.parse(path.read_text(encoding="utf-8")))
        if asked.search(word)
    ]
    assert found == []
    template = (PROJECT / "src/pathfm_kedro/pipelines/report/report.html").read_text("utf-8")
    assert asked.findall(template) == []
