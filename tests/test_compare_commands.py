"""Two audits compared, and an audit verified against what a commit recorded."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from kedro.io.core import Version

from pathfm_kedro import pipeline_registry
from pathfm_kedro.cli import cohort
from pathfm_kedro.commands.audits import Audit
from pathfm_kedro.commands.compare import ComparedAudits, difference_text
from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA
from pathfm_kedro.statistics.parameters import ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.wiring import Experiment
from tests.conftest import AXE_RULES, PROJECT
from tests.pipelines.report.conftest import judged


class Job:
    def __init__(self, slide_id, vectors):
        self.slide_id, self.vectors = slide_id, vectors

    def header(self):
        return {"slide": self.slide_id, "sum": str(self.vectors.sum())}

    def compute(self):
        return {"embedding": self.vectors}


def row(metric, value, verdict, **more):
    return {
        **dict.fromkeys(MEASUREMENT_SCHEMA),
        "experiment": "rotation",
        "encoder": "uni",
        "metric": metric,
        "stratum": "all",
        "setting": '{"angle": 90}',
        "value": value,
        "ci_low": value - 0.1,
        "ci_high": value + 0.1,
        "verdict": verdict,
        **more,
    }


def write(root: Path, name: str, version: str, *rows, shift=0.0, first="p"):
    """An audit as a run leaves it."""
    conf = root / "conf" / name
    conf.mkdir(parents=True, exist_ok=True)
    (conf / "globals.yml").write_text(f"root: data/{name}\n")
    data = root / "data" / name
    table = data / "08_reporting/measurements.parquet" / version / "measurements.parquet"
    table.parent.mkdir(parents=True)
    pl.DataFrame(list(rows), schema=MEASUREMENT_SCHEMA).write_parquet(table)
    slides = [f"s{i}" for i in range(8)]
    folder = data / "02_intermediate/slides.parquet" / version
    folder.mkdir(parents=True)
    pl.DataFrame(
        {"slide_id": slides, "patient_id": [f"{first}{i}" for i in range(8)]}
    ).write_parquet(folder / "slides.parquet")
    rng = np.random.default_rng(0)
    jobs = [Job(s, (rng.normal(size=(5, 3)) + shift).astype(np.float32)) for s in slides]
    ShardedTensorDataset(
        filepath=(data / "04_feature/embeddings/uni").as_posix(), version=Version(version, version)
    ).save(ShardPlan(jobs, EngineSettings(workers=1)))


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[tool.kedro]\n")
    shutil.copytree(PROJECT / "conf" / "base", tmp_path / "conf" / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(cohort, list(words))


AFTER = row("mknn", 0.6, "fail"), row("cosine", 0.5, None)


def test_changed_verdicts_are_named_with_the_interval_of_the_difference(root):
    write(root, "a", "2026-01-01", row("mknn", 0.9, "pass"), row("cosine", 0.5, None))
    write(
        root,
        "b",
        "2026-02-01",
        row("mknn", 0.6, "fail"),
        row("cosine", 0.5, None),
        shift=4.0,
        first="q",
    )
    found = run("compare", "a", "b", "--permutations", "99", "--output", "both.csv")
    assert found.exit_code == 0, found.output
    assert "2 figures in both" in found.output
    assert "verdicts: 0 the same, 1 changed" in found.output
    assert "pass -> fail; 0.90 -> 0.60" in found.output
    # +-0.1 each, taken as independent: 0.1 * sqrt(2)
    assert "(difference −0.30 [−0.44, −0.16], as independent)" in found.output
    assert "uni: the vectors differ" in found.output
    assert pl.read_csv(root / "both.csv").height == 2


def test_versions_of_a_cohort_are_compared_on_the_same_patients(root):
    write(root, "a", "1", row("mknn", 0.9, "pass"))
    write(root, "a", "2", row("mknn", 0.9, "pass"))
    found = run("compare", "a@1", "a@2", "--permutations", "99")
    assert "verdicts: 1 the same, 0 changed" in found.output
    assert "no drift of vectors shown" in found.output
    assert "the same 8 patients twice" in found.output


def drift_line(found):
    assert found.exit_code == 0, found.output
    (line,) = (line for line in found.output.splitlines() if line.startswith("uni: "))
    return line


def test_patients_of_one_name_in_two_cohorts_are_different_patients(root):
    """Institutions count their patients from 1: nothing but the slides says that they are the same."""
    write(root, "a", "1", row("mknn", 0.9, "pass"))
    write(root, "b", "1", row("mknn", 0.9, "pass"), shift=4.0)
    line = drift_line(run("compare", "a", "b", "--permutations", "99"))
    assert "8 and 8 patients, those of one name taken as different ones" in line
    assert "the vectors differ" in line


def test_versions_of_a_cohort_that_grew_are_compared_on_the_patients_of_both(root):
    for version in "12":
        write(root, "a", version, row("mknn", 0.9, "pass"))
    path = root / "data/a/02_intermediate/slides.parquet/2/slides.parquet"
    slides = pl.read_parquet(path)
    pl.DataFrame(slides).with_columns(
        patient_id=pl.when(pl.col("slide_id") == "s7").then(pl.lit("new")).otherwise("patient_id")
    ).write_parquet(path)
    line = drift_line(run("compare", "a@1", "a@2", "--permutations", "99"))
    assert "the same 7 patients twice, those of either version alone left out" in line
    assert "no drift of vectors shown" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a", "a"), "both are a@1"),
        (("a@9", "a"), "has no version '9': there are 1"),
        (("a", "c"), "was not audited yet: kedro run --env c"),
        (("a", "a@1", "--encoder", "x"), "both are"),
        (("a", "nobody"), "nobody"),
    ],
)
def test_what_cannot_be_compared_is_named(root, words, said):
    write(root, "a", "1", row("mknn", 0.9, "pass"))
    (root / "conf/c").mkdir()
    (root / "conf/c/globals.yml").write_text("root: data/c\n")
    found = run("compare", *words)
    assert found.exit_code != 0
    assert said in found.output + str(found.exception)


def length_figures(statistics, p):
    of = PatientStatistics(statistics, p)
    yield Figure("mean_length", lambda: of.ratio(of.sums("length"), of.sums("n_tiles")))


TOY = Experiment("toy", ExperimentParameters, lambda: None, length_figures, [])
BLOCK = {"criteria": [{"metric": "mean_length", "above": 1.0}], "draws": 200, "seed": 0}


def measure_toy(root, name, version, lengths):
    """An audit of lengths, one a patient, with the statistics that its figure comes from."""
    patients = [f"p{i}" for i in range(8)]
    statistics = pl.DataFrame({"patient_id": patients, "length": lengths, "n_tiles": [1] * 8})
    table = TOY.measurements(statistics, BLOCK, encoder="uni")
    write(root, name, version, *table.iter_rows(named=True))
    data = root / "data" / name
    folder = data / "07_model_output/statistics/retrieve" / version
    folder.mkdir(parents=True)
    statistics.write_parquet(folder / "toy.uni.parquet")
    folder = data / "08_reporting/provenance.json" / version
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(json.dumps({"parameters": {"toy": BLOCK}}))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(pipeline_registry, "experiments", lambda: iter([("retrieve", TOY)]))


def test_the_same_patients_are_resampled_together(root, toy):
    """All patients lose the same: on the same resampled cohorts only skew is left of the interval."""
    lengths = np.linspace(1.1, 2.0, 8)
    measure_toy(root, "a", "1", lengths)
    measure_toy(root, "a", "2", lengths - 0.6)
    audits = [Audit.parse(f"a@{version}", root) for version in "12"]
    compared = ComparedAudits.of(*audits, ["uni"], 100, 20)
    (row,) = compared.changed.both.iter_rows(named=True)
    together, paired = compared.difference(row)
    apart, _ = replace(compared, paired={}).difference(row)
    assert paired
    assert together.value == pytest.approx(apart.value) == pytest.approx(-0.6)
    assert together.high - together.low < (apart.high - apart.low) / 4
    assert "same patients" in difference_text(compared, row)


def test_other_slides_under_the_same_names_are_not_paired(root, toy):
    lengths = np.linspace(1.1, 2.0, 8)
    measure_toy(root, "a", "1", lengths)
    measure_toy(root, "b", "1", lengths - 0.6)
    assert "as independent)" in run("compare", "a", "b", "--permutations", "20").output


def test_what_the_code_no_longer_gives_is_not_paired(root, toy):
    lengths = np.linspace(1.1, 2.0, 8)
    measure_toy(root, "a", "1", lengths)
    measure_toy(root, "a", "2", lengths - 0.6)
    path = root / "data/a/07_model_output/statistics/retrieve/1/toy.uni.parquet"
    pl.read_parquet(path).with_columns(pl.col("length") + 0.01).write_parquet(path)
    assert "as independent)" in run("compare", "a@1", "a@2", "--permutations", "20").output


EVIL = "label=<script>alert(1)</script>"


@pytest.fixture
def two_reports(root, toy):
    """Two versions with reports: one finding fails now, one is in the second alone, names are evil."""
    provenance = {"encoders": {"uni": {"role": "encoder"}, "noise": {"role": "control"}}}
    threshold = {"threshold": 0.8, "direction": "above", "n": 90, "n_patients": 30}
    for version, kept, more in (("1", 0.95, []), ("2", 0.6, [EVIL])):
        rows = [
            row("mknn", value, verdict, encoder=encoder, stratum=stratum, **threshold)
            for encoder, value, verdict in (
                ("uni", kept, "pass" if kept > 0.8 else "fail"),
                ("noise", 0.1, "fail"),
            )
            for stratum in ["all", *more]
        ]
        write(root, "a", version, *rows)
        table = pl.DataFrame(rows, schema=MEASUREMENT_SCHEMA)
        parts = judged(table, provenance, {}, {"experiments": {}})
        for name, part in zip(("findings", "controls", "verdicts"), parts, strict=True):
            path = root / f"data/a/08_reporting/{name}.parquet/{version}/{name}.parquet"
            path.parent.mkdir(parents=True)
            part.write_parquet(path)
    return root


@pytest.fixture
def page(two_reports):
    found = run("compare", "a@1", "a@2", "--permutations", "20", "--html", "both.html")
    assert found.exit_code == 0, found.output + str(found.exception)
    return (two_reports / "both.html").read_text(encoding="utf-8")


def test_the_page_shows_both_verdicts_and_asks_for_nothing(page):
    html5lib = pytest.importorskip("html5lib", reason="needs html5lib")
    html5lib.HTMLParser(strict=True).parse(page)
    assert "a@1 against a@2" in page
    assert "1 of 1 finding of audited encoders has another verdict" in page
    assert "Findings of a@2 alone: 2" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not [word for word in ("http:", "https:", "src=", "@import", "url(") if word in page]


def test_a_page_without_a_report_is_refused(root):
    write(root, "a", "1", row("mknn", 0.9, "pass"))
    write(root, "a", "2", row("mknn", 0.9, "pass"))
    found = run("compare", "a@1", "a@2", "--permutations", "20", "--html", "both.html")
    assert found.exit_code == 1
    assert "a@1 has no findings: kedro run --env a --pipelines report" in found.output


@pytest.mark.slow
def test_axe_finds_nothing_on_the_page(page, two_reports, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    shown = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    shown.goto((two_reports / "both.html").as_uri())
    shown.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    answer = axe.Axe().run(shown, options={"runOnly": AXE_RULES}).response
    found = [(v["id"], [node["target"] for node in v["nodes"]]) for v in answer["violations"]]
    assert found == []
    for width in (360, 768, 1280):
        shown.set_viewport_size({"width": width, "height": 900})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
    shown.close()


@pytest.fixture
def recorded(root):
    """An audit that DVC keeps and a commit names."""
    write(root, "a", "0-repro", row("mknn", 0.9, "pass"))
    for words in (
        ("git", "init", "-q"),
        ("git", "config", "user.email", "a@b.c"),
        ("git", "config", "user.name", "n"),
        ("dvc", "init", "-q"),
        ("dvc", "add", "-q", "data/a/08_reporting/measurements.parquet/0-repro"),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "recorded"),
    ):
        subprocess.run(_tool(words), cwd=root, check=True, capture_output=True)
    return root


def _tool(words):
    import sys

    return [sys.executable, "-m", "dvc", *words[1:]] if words[0] == "dvc" else list(words)


def _again(root, value, verdict="pass"):
    path = root / "data/a/08_reporting/measurements.parquet/0-repro/measurements.parquet"
    path.unlink()
    pl.DataFrame([row("mknn", value, verdict)], schema=MEASUREMENT_SCHEMA).write_parquet(path)


def test_last_bits_are_reproduced_and_more_is_not(recorded):
    _again(recorded, 0.9 + 2e-6)
    found = run("verify", "a")
    assert found.exit_code == 0, found.output + str(found.exception)
    assert "same verdicts, largest difference 2e-06" in found.output
    _again(recorded, 0.8)
    found = run("verify", "a")
    assert found.exit_code == 1
    assert "the largest difference is 0.1, above 0.0001" in found.output
    _again(recorded, 0.9, "fail")
    assert "not reproduced: 1 verdicts differ" in run("verify", "a").output


def test_a_commit_that_recorded_nothing_is_named(root):
    write(root, "a", "0-repro", row("mknn", 0.9, "pass"))
    found = run("verify", "a")
    assert found.exit_code == 1
    assert "the figures of HEAD cannot be read" in found.output


def test_figures_that_lie_in_no_cache_and_no_remote_are_asked_for(recorded):
    import shutil

    shutil.rmtree(recorded / ".dvc" / "cache")
    found = run("verify", "a")
    assert found.exit_code == 1
    assert "`dvc fetch report@a` brings them from the remote" in found.output
