"""Pipelines are registered for the cohort at hand, and nothing heavy is loaded to list them."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from pathfm_kedro.cohorts import read_cohort_plan
from pathfm_kedro.pipeline_registry import register_pipelines
from tests.conftest import PROJECT

SEVEN = {"ingest", "tile", "embed", "retrieve", "robustness", "inheritance", "report"}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.delenv("KEDRO_ENV", raising=False)


def test_seven_pipelines_and_all_of_them_by_default():
    pipelines = register_pipelines()
    assert set(pipelines) == SEVEN | {"__default__"}
    everything = {node.name for node in pipelines["__default__"].nodes}
    assert everything == {n.name for name in SEVEN for n in pipelines[name].nodes}


def test_every_node_lies_in_its_pipelines_namespace():
    for name in SEVEN:
        for node in register_pipelines()[name].nodes:
            assert node.namespace.split(".")[0] == name


def test_every_encoder_has_its_own_namespace():
    encoders = set(read_cohort_plan("phantom", str(PROJECT / "conf")).encoders)
    namespaces = {node.namespace for node in register_pipelines()["embed"].nodes}
    assert namespaces == {f"embed.{name}" for name in encoders}


def test_only_the_phantom_is_drawn():
    names = {node.name for node in register_pipelines()["ingest"].nodes}
    assert "ingest.draw_phantom" in names


def test_every_experiment_ends_in_the_report():
    pipelines = register_pipelines()
    measured = {
        name
        for pipeline in pipelines.values()
        for name in pipeline.all_outputs()
        if name.startswith("measurements.")
    }
    assert measured <= pipelines["report"].inputs()
    assert len({name.split(".")[2] for name in measured}) >= 5


@pytest.mark.parametrize("module", ["torch", "timm", "openslide", "faiss", "sklearn", "plotly"])
def test_listing_the_pipelines_loads_nothing_heavy(module):
    code = (
        "import sys; from pathfm_kedro.pipeline_registry import register_pipelines as r; r(); "
        f"sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


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
