"""Pipelines are registered for the cohort at hand, and nothing heavy is loaded to list them."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from pathfm_kedro.cohorts import read_cohort_plan
from pathfm_kedro.pipeline_registry import register_pipelines
from tests.conftest import PROJECT, base_parameters

SEVEN = {"ingest", "tile", "embed", "retrieve", "robustness", "inheritance", "report"}


@pytest.fixture(scope="module")
def pipelines():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.delenv("KEDRO_ENV", raising=False)
        yield register_pipelines()


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Modules that a fresh process has loaded once the pipelines are registered."""
    code = (
        "import sys; from pathfm_kedro.pipeline_registry import register_pipelines as r; r(); "
        "print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    return set(run.stdout.split())


def test_seven_pipelines_and_all_of_them_by_default(pipelines):
    assert set(pipelines) == SEVEN | {"__default__"}
    everything = {node.name for node in pipelines["__default__"].nodes}
    assert everything == {n.name for name in SEVEN for n in pipelines[name].nodes}


def test_what_no_encoder_passes_without_is_measured_in_every_cohort(pipelines):
    """A check of an experiment that only some cohorts wire would leave all others without a pass."""
    tables = pipelines["__default__"].all_outputs()
    words_of = {k: v for k, v in base_parameters().items() if k.startswith("words_")}
    for pipeline, block in words_of.items():
        for experiment, words in block.items():
            metrics = words.get("metrics", {}) if isinstance(words, dict) else {}
            if any(isinstance(m, dict) and m.get("core") for m in metrics.values()):
                name = f"measurements.{pipeline.removeprefix('words_')}.{experiment}"
                assert name in tables, name


def test_every_node_lies_in_its_pipelines_namespace(pipelines):
    for name in SEVEN:
        for node in pipelines[name].nodes:
            assert node.namespace.split(".")[0] == name


def test_every_encoder_has_its_own_namespace(pipelines):
    encoders = set(read_cohort_plan("phantom", str(PROJECT / "conf")).encoders)
    namespaces = {node.namespace for node in pipelines["embed"].nodes if "collect" not in node.tags}
    assert namespaces == {f"embed.{name}" for name in encoders}


def test_only_the_phantom_is_drawn(pipelines):
    names = {node.name for node in pipelines["ingest"].nodes}
    assert "ingest.draw_phantom" in names


def test_every_experiment_ends_in_the_report(pipelines):
    everything = pipelines["__default__"]
    measured = {name for name in everything.datasets() if name.startswith("measurements.")}
    told = everything.to_outputs("report").datasets()
    assert measured <= told
    assert len({name.split(".")[2] for name in measured}) >= 15


@pytest.mark.parametrize("module", ["torch", "timm", "openslide", "faiss", "sklearn", "plotly"])
def test_listing_the_pipelines_loads_nothing_heavy(module, loaded):
    assert module not in loaded


def test_only_pipeline_py_knows_kedro():
    """Experiments are plain functions: nothing but the wiring imports Kedro."""
    folder = PROJECT / "src" / "pathfm_kedro" / "pipelines"
    for path in folder.glob("*/*.py"):
        if path.name != "pipeline.py":
            names = {
                name
                for statement in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [statement.module or ""]
                    if isinstance(statement, ast.ImportFrom)
                    else [a.name for a in getattr(statement, "names", [])]
                )
            }
            known = {"kedro", "kedro_datasets", "pathfm_kedro.wiring", "pathfm_kedro.datasets"}
            assert not {n for n in names if any(n == k or n.startswith(k + ".") for k in known)}


def test_without_the_colour_control_every_encoder_still_has_its_rows():
    from pathfm_kedro.pipelines.robustness.pipeline import create_pipeline

    written = [
        {name.rsplit(".", 1)[0] for name in create_pipeline(["uni", other], [other]).all_outputs()}
        for other in ("noise", "stain_statistics")
    ]
    assert written[0] == written[1]
