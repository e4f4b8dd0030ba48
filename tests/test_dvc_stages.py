"""dvc.yaml says what the Kedro pipelines and the catalog say."""

from __future__ import annotations

import ast
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import pytest
import yaml
from kedro.io.catalog_config_resolver import DEFAULT_RUNTIME_PATTERN, CatalogConfigResolver

from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS, RUNTIME_VARIABLE
from pathfm_kedro.dvc_stages import dvc_parameters
from pathfm_kedro.pipeline_registry import register_pipelines
from pathfm_kedro.pipelines.embed.pipeline import create_pipeline as embed
from pathfm_kedro.sizes import SizedConfigLoader
from pathfm_kedro.wiring import TileGrids
from tests.conftest import PROJECT, base_parameters, files_of_base

COHORT, LABEL = "phantom", "0-repro"
#: Stages that run once for each encoder, and the encoder at which they are looked at.
OF_ENCODER = {
    "embed": "stain_statistics",
    "rival": "small_cnn",
    "harmonise": "efficientnet_lite0_centred",
}
#: The phantom has no rival; stages are looked at as if it had one.
RIVAL = {"small_cnn": {"model": "trained:small_cnn", "seed": 3}}
#: The phantom has no features of others: their stage is looked at for an entry that it might have.
OF_FEATURES = {"cohort": COHORT, "encoder": "uni", "folder": "../features_uni"}
#: Parameters that change no result, so no stage depends on them.
WITHOUT_EFFECT = {"engine"}
#: Rooms whose code decides what a stage gives; engine and datasets decide only where and how it lies.
ROOMS = ("slides", "encoders", "statistics")


@pytest.fixture(scope="module")
def stages() -> dict[str, dict]:
    """The stages of the phantom cohort with their templates filled in."""
    declared = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    listed = yaml.safe_load((PROJECT / "params.yaml").read_text())
    stage_of_rival = {"cohort": COHORT, "encoder": "small_cnn", "seed": "3"}
    listed["rivals"][f"{COHORT}-small_cnn"] = stage_of_rival
    filled = {}
    for name, stage in declared.items():
        text = yaml.safe_dump(stage["do"]).replace("${key}", COHORT)
        key = f"{COHORT}-{OF_ENCODER[name]}" if name in OF_ENCODER else COHORT
        items = OF_FEATURES if name == "features" else listed[stage["foreach"][2:-1]][key]
        for field, value in items.items():
            text = text.replace("${item." + field + "}", value)
        filled[name] = yaml.safe_load(text)
    return filled


@pytest.fixture(scope="module")
def catalog() -> CatalogConfigResolver:
    conf = SizedConfigLoader(conf_source=str(PROJECT / "conf"), env=COHORT, **CONFIG_LOADER_ARGS)
    return CatalogConfigResolver(conf["catalog"], default_runtime_patterns=DEFAULT_RUNTIME_PATTERN)


@pytest.fixture(scope="module")
def pipelines():
    before = Path.cwd(), os.environ.pop("KEDRO_ENV", None)
    os.chdir(PROJECT)
    with mock.patch.dict(os.environ, {RUNTIME_VARIABLE: json.dumps({"encoders": RIVAL})}):
        registered = register_pipelines()
    grids = TileGrids({"uni": "features_uni"})
    registered["features"] = embed(["uni"], features=["uni"], grids=grids)
    yield registered
    os.chdir(before[0])
    if before[1]:
        os.environ["KEDRO_ENV"] = before[1]


def part_of(stage: dict, pipelines):
    """The part of a pipeline that a stage's command runs."""
    words = stage["cmd"].split()
    assert f"PATHFM_PIN_VERSION={LABEL}" in words
    encoder = words[words.index("--namespaces") + 1] if "--namespaces" in words else ""
    brought = encoder == f"embed.{OF_FEATURES['encoder']}"
    pipeline = pipelines["features" if brought else words[words.index("--pipelines") + 1]]
    if "--tags" in words:
        return pipeline.only_nodes_with_tags(words[words.index("--tags") + 1])
    if "--namespaces" in words:
        return pipeline.filter(node_namespaces=[words[words.index("--namespaces") + 1]])
    return pipeline


def pinned_path(name: str, catalog: CatalogConfigResolver) -> str | None:
    """Where the catalog puts the pinned version of a dataset; None for what is not on disk."""
    entry = catalog.resolve_pattern(name)
    if not entry or "filepath" not in entry:
        return None
    path = Path(entry["filepath"])
    if not entry.get("versioned"):
        return path.as_posix()
    if entry["type"].rpartition(".")[2].startswith(("Family", "Sharded", "Faiss")):
        return (path.parent / LABEL / path.name).as_posix()
    return (path / LABEL / path.name).as_posix()


def covers(declared: str, path: str) -> bool:
    return path == declared or path.startswith(declared + "/")


def paths(entries: list) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


#: What the sizes of an audit change: stages that read any of it depend on the size.
SIZES = base_parameters()["sizes"]
#: Stages that run a part of another pipeline.
PIPELINE_OF = {"rival": "embed", "harmonise": "embed", "features": "embed", "collect": "embed"}
STAGES = (
    "draw",
    "ingest",
    "tile",
    "embed",
    "rival",
    "harmonise",
    "features",
    "collect",
    "retrieve",
    "robustness",
    "inheritance",
    "report",
)


def test_there_is_a_stage_for_every_pipeline(stages, pipelines):
    assert set(stages) == set(STAGES)
    assert set(pipelines) - {"__default__", "features"} == set(STAGES) - {"draw", *PIPELINE_OF}


@pytest.mark.parametrize("name", STAGES)
def test_outputs_are_those_of_the_pipeline(name, stages, pipelines, catalog):
    stage = stages[name]
    part = part_of(stage, pipelines)
    written = {pinned_path(d, catalog) for d in part.all_outputs()} - {None}
    declared = [p for kind in ("outs", "metrics", "plots") for p in paths(stage.get(kind, []))]
    assert [p for p in written if not any(covers(d, p) for d in declared)] == []
    assert [d for d in declared if not any(covers(d, p) for p in written)] == []


def without_networks() -> dict[str, None]:
    """Every entry that is no control, left out."""
    files = [PROJECT / "conf" / name / "parameters_encoders.yml" for name in ("base", COHORT)]
    return {
        encoder: None
        for file in files
        for encoder, entry in yaml.safe_load(file.read_text())["encoders"].items()
        if not entry["model"].startswith("control:")
    }


#: What such a cohort says beside the phantom's parameters.
FEATURES_ALONE = {"uni": {"model": "features:../uni"}, "titan": {"model": "features:../titan"}}
KINDS = {
    "controls alone": {"encoders": without_networks()},
    "features alone": {
        "encoders": without_networks() | FEATURES_ALONE,
        "cohort": {"source": "features"},
    },
    "features and slides": {"encoders": without_networks() | FEATURES_ALONE},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cohort_writes_every_output_of_its_stages(kind, stages, catalog, monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    given = KINDS[kind] | {"adaptation": {"encoders": []}}
    monkeypatch.setenv(RUNTIME_VARIABLE, json.dumps(given))
    registered = register_pipelines()
    for name in ("tile", "retrieve", "robustness", "inheritance", "collect", "report"):
        part = part_of(stages[name], registered)
        written = {pinned_path(d, catalog) for d in part.all_outputs()} - {None}
        outs = [p for k in ("outs", "metrics", "plots") for p in paths(stages[name].get(k, []))]
        assert [d for d in outs if not any(covers(d, p) for p in written)] == [], name
        assert [p for p in written if not any(covers(d, p) for d in outs)] == [], name


@pytest.mark.parametrize("name", STAGES)
def test_dependencies_are_those_of_the_pipeline(name, stages, pipelines, catalog):
    stage = stages[name]
    part = part_of(stage, pipelines)
    # Pixels are known to later stages by the slides' fingerprints.
    inputs = part.inputs() - (set() if name == "ingest" else {"slide_files"})
    read = {pinned_path(d, catalog) for d in inputs if not d.startswith("param")} - {None}
    declared = [p for p in paths(stage["deps"]) if not p.startswith(("src/", "../"))]
    assert [p for p in read if not any(covers(d, p) for d in declared)] == []
    assert [d for d in declared if not any(covers(d, p) for p in read)] == []


@pytest.mark.parametrize("name", STAGES)
def test_parameters_are_those_of_the_pipeline(name, stages, pipelines):
    stage = stages[name]
    used = {d for d in part_of(stage, pipelines).inputs() if d.startswith("param")}
    base = {key: file for file, blocks in files_of_base().items() for key in blocks}
    keys = set(base) if "parameters" in used else {d[7:].split(".")[0] for d in used}
    if any(keys & set(size or {}) for size in SIZES.values()):
        keys |= {"audit", "sizes"}
    wanted = {(base[key], key) for key in keys - WITHOUT_EFFECT}
    declared = {
        path: keys
        for entry in stage.get("params", [])
        for path, keys in (entry.items() if isinstance(entry, dict) else [(entry, None)])
        # What params.yaml holds is written from conf/.
        if path.startswith("conf/")
    }
    for file, key in wanted:
        listed = declared.get(f"conf/base/{file}", [])
        assert listed is None or key in listed, f"{name} lacks {key} of conf/base/{file}"
        assert f"conf/{COHORT}/{file}" in declared, f"{name} lacks conf/{COHORT}/{file}"
    files = {file for file, _ in wanted}
    assert {Path(path).name for path in declared} == files


@functools.cache
def imports_of(module: Path) -> frozenset[Path]:
    """Modules of the project that a module imports itself."""
    found = set()
    for statement in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(statement, ast.ImportFrom) and statement.module:
            names = [statement.module, *(f"{statement.module}.{a.name}" for a in statement.names)]
        elif isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        for name in names:
            if name.startswith("pathfm_kedro."):
                stem = PROJECT / "src" / Path(*name.split("."))
                for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                    if path.is_file():
                        found.add(path)
    return frozenset(found)


def imported(start: Iterable[Path]) -> set[Path]:
    """These modules and every one of the project that they import, directly or not."""
    seen: set[Path] = set()
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports_of(module)
    return seen


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_it_runs(name, stages):
    source = PROJECT / "src" / "pathfm_kedro"
    declared = [p for p in paths(stages[name]["deps"]) if p.startswith("src/")]
    assert all((PROJECT / p).exists() for p in declared)
    start = (
        [source / "pipelines/ingest/drawing.py"]
        if name == "draw"
        else sorted((source / "pipelines" / PIPELINE_OF.get(name, name)).glob("*.py"))
    )
    modules = imported(start)
    rooms = {room for room in ROOMS if any(m.is_relative_to(source / room) for m in modules)}
    own = {p.removeprefix("src/pathfm_kedro/") for p in declared}
    # Of the encoders a tile needs the readers of features alone, and no network.
    whole = {p.partition("/")[0] if p == "encoders/features" else p for p in own}
    assert rooms == whole & set(ROOMS)


def test_params_yaml_lists_the_cohorts_of_conf():
    listed = yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert listed == dvc_parameters(PROJECT), "run: kedro cohort sync"
