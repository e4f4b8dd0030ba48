"""The lineage as kedro-viz shows it: layers run forward, few boxes, experiments inside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kedro.io.catalog_config_resolver import DEFAULT_RUNTIME_PATTERN, CatalogConfigResolver

from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS
from pathfm_kedro.pipeline_registry import register_pipelines
from pathfm_kedro.pipelines.robustness.pipeline import EXPERIMENTS, WIRED
from pathfm_kedro.sizes import SizedConfigLoader
from tests.conftest import PROJECT

LAYERS = (
    "raw",
    "intermediate",
    "primary",
    "feature",
    "model_input",
    "models",
    "model_output",
    "reporting",
)


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setenv("KEDRO_ENV", "phantom")
        yield register_pipelines()["__default__"]


@pytest.fixture(scope="module")
def entries(whole):
    conf = SizedConfigLoader(conf_source=str(PROJECT / "conf"), env="phantom", **CONFIG_LOADER_ARGS)
    resolver = CatalogConfigResolver(
        conf["catalog"], default_runtime_patterns=DEFAULT_RUNTIME_PATTERN
    )
    return {name: resolver.resolve_pattern(name) or {} for name in whole.datasets()}


def layer_of(entry: dict) -> int | None:
    layer = entry.get("metadata", {}).get("kedro-viz", {}).get("layer")
    return None if layer is None else LAYERS.index(layer)


def test_every_stored_dataset_has_the_layer_of_its_folder(entries):
    for name, entry in entries.items():
        folder = next((p for p in Path(entry.get("filepath", "")).parts if p[:2].isdigit()), None)
        if folder is not None:
            assert folder.partition("_")[2] == LAYERS[layer_of(entry)], name


def test_layers_run_forward(whole, entries):
    for node in whole.nodes:
        for made in node.outputs:
            for used in node.inputs:
                first, then = (layer_of(entries.get(name, {})) for name in (used, made))
                assert first is None or then is None or first <= then, f"{used} -> {made}"


#: What kedro-viz draws of each box, as it tells its page; parameters are hidden unless asked for. It
#: makes hundreds of pipelines of one; that namespaces are whole is asked of that one alone.
ELEMENTS = """
import json, sys
from pathlib import Path
from kedro.framework.startup import bootstrap_project
bootstrap_project(Path.cwd())
from kedro.framework.project import pipelines
from kedro.pipeline import Pipeline
pipelines["__default__"]
Pipeline._validate_namespaces = lambda self: None
from kedro_viz.server import load_and_populate_data
load_and_populate_data(Path.cwd(), env="phantom", pipeline_name="__default__")
from kedro_viz.api.rest.responses.pipelines import get_pipeline_response
graph = get_pipeline_response().model_dump()
names = {node["id"]: node["name"] for node in graph["nodes"]}
boxes = {
    key: [[c["type"], names.get(c["id"], c["id"])] for c in box["children"]]
    for key, box in graph["modular_pipelines"].items()
}
json.dump({"boxes": boxes, "layers": graph["layers"]}, sys.stdout)
"""


@pytest.fixture(scope="module")
def shown() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", ELEMENTS], cwd=PROJECT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index('{"boxes"') :])


def elements(shown: dict, box: str) -> list[list[str]]:
    return [child for child in shown["boxes"][box] if child[0] != "parameters"]


def test_the_collapsed_graph_fits_a_screen(shown):
    assert len(elements(shown, "__root__")) <= 40


def test_robustness_opens_into_its_experiments(shown):
    boxes = {name for kind, name in elements(shown, "robustness") if kind == "modularPipeline"}
    assert {f"robustness.{x}" for x in [*WIRED, *(x.name for x in EXPERIMENTS)]} <= boxes


def test_an_experiment_opens_into_its_encoders(shown):
    boxes = {
        name for kind, name in elements(shown, "robustness.rotation") if kind == "modularPipeline"
    }
    assert "robustness.rotation.efficientnet_lite0" in boxes


def test_kedro_viz_orders_the_layers(shown):
    """It shows none where they run in a circle, through boxes as through nodes."""
    assert set(shown["layers"]) == set(LAYERS)


def test_the_plot_of_each_experiment_is_a_dataset_with_a_preview(entries):
    for x in [*WIRED, *(x.name for x in EXPERIMENTS)]:
        assert entries[f"{x}_plot"]["type"].endswith("FamilyPlotDataset"), x
