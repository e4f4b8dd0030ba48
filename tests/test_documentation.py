"""Every example of the documentation runs, is read, or names what there is.

A fenced block says by its language what it is. ``python`` runs, ``yaml`` is read by what reads it in
the project, a block without a language is typed in a shell: its commands, their options and what they
name must exist. What cannot run here says why in a comment before it: ``<!-- not run: … -->``.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import polars as pl
import pytest
import yaml

from docs import generate
from pathfm_kedro.cli import cli
from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS
from pathfm_kedro.conf_files import merge
from pathfm_kedro.configuration import unknown_keys
from pathfm_kedro.pipeline_registry import register_pipelines
from pathfm_kedro.pipelines.report.words import Words, gather_words
from pathfm_kedro.pipelines.robustness.pipeline import agreement_pipeline, same_tissue_pipeline
from pathfm_kedro.sizes import SizedConfigLoader
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.variants import expand_variants
from pathfm_kedro.wiring import grouped
from tests.conftest import PROJECT, base_parameters
from tests.pages import (
    BLOCKS,
    CODE_SPAN,
    COMMANDS,
    FENCE,
    PAGES,
    SPANS,
    Block,
    blocks_of,
    commands_in,
)

#: Cohorts of the examples that the project does not have.
EXAMPLE_COHORTS = {"clinic", "clinic_ten", "kidney"}
EXAMPLE_ENCODERS = {"uni"}
#: Programs that are not the project's: nothing here can say whether their options exist.
OTHERS = {
    "cd",
    "conda",
    "dask",
    "du",
    "export",
    "git",
    "grep",
    "hf",
    "jupyter",
    "pip",
    "source",
    "tail",
}
#: Languages of blocks that are neither code nor commands.
DATA = {"text", "csv"}


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    """Parameters of conf/base."""
    return base_parameters()


@pytest.fixture(scope="module")
def pipelines():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setenv("KEDRO_ENV", "phantom")
        registered = register_pipelines()
    # The phantom brings no features that could be held against an encoder, and shows no tissue twice.
    brought = agreement_pipeline(["brought", "own"], {"brought": "own"})
    brought += same_tissue_pipeline(["brought"])
    return registered | {
        "__default__": registered["__default__"] + grouped("robustness", [brought])
    }


@pytest.fixture(scope="module")
def documented() -> list[generate.Documented]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        return generate.experiments(Words.read(gather_words(generate.configuration())))


@pytest.fixture(scope="module")
def parameter_classes(documented) -> dict[str, type]:
    """The dataclass of each experiment's parameters."""
    return {x.name: x.kind for x in documented if x.kind is not None}


# --- the generated page


def test_the_page_of_experiments_is_what_the_code_says(monkeypatch):
    monkeypatch.chdir(PROJECT)
    told = generate.PAGE.read_text(encoding="utf-8")
    assert told == generate.page(), "docs/experiments.md is stale: run `make docs`"


def test_every_experiment_with_words_has_its_section(base):
    text = generate.PAGE.read_text(encoding="utf-8")
    for name, x in Words.read(gather_words(base)).experiments.items():
        assert f"\n## {x.title}\n" in text, name


def test_every_parameter_of_an_experiment_says_what_it_means(parameter_classes):
    assert len(parameter_classes) >= 15
    for name, kind in parameter_classes.items():
        missing = set(kind.__dataclass_fields__) - set(generate.meanings(kind))
        assert not missing, f"the docstring of {kind.__name__} ({name}) lacks {sorted(missing)}"


# --- blocks


def test_every_block_is_of_a_kind_that_is_checked():
    assert len(BLOCKS) > 25
    for block in BLOCKS:
        assert block.language in {"python", "yaml", "", *DATA}, f"{block}: {block.language}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_runs(block, tmp_path, monkeypatch):
    ast.parse(block.text)
    if block.marker:  # other tests run it in its place, or it says why nothing can
        assert re.match(r"file:|line of:|test$|not run: .+", block.marker), str(block)
        return
    logs = tmp_path / "logs"
    logs.mkdir()
    line = ["2026-01-01", "embed", "s1", "computed", "8", "2.0", ""]
    (logs / "slides.log").write_text("\t".join(line) + "\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml_is_read_by_what_reads_it(block, base, parameter_classes):
    if block.marker.startswith("not parameters: "):
        assert yaml.safe_load(block.text)
    elif block.marker in {"words", "words of an experiment"}:
        head = "words_inheritance:\n" if block.marker != "words" else ""
        own = yaml.safe_load(head + block.text)
        assert set(own) <= set(base)
        assert Words.read(gather_words(merge(base, own))).experiments
    else:
        own = yaml.safe_load(block.text)
        if block.marker != "parameters":
            assert unknown_keys(own, base) == [], str(block)
        for name, values in own.items():
            refuse_unreadable(name, values, base, parameter_classes)


def refuse_unreadable(name: str, values: Any, base: Mapping[str, Any], classes: Mapping[str, type]):
    """Read a block of parameters as the project does."""
    from pathfm_kedro.encoders.spec import EncoderSpec
    from pathfm_kedro.statistics.parameters import ExperimentParameters

    if name == "encoders":
        for encoder, entry in expand_variants(values).items():
            if entry is not None:
                assert EncoderSpec.from_parameters(encoder, entry).name == encoder
    elif name in classes:
        read_parameters(classes[name], name, merge(base[name], values))
    elif name not in base:  # an experiment that the page adds
        read_parameters(ExperimentParameters, name, values)


def test_criteria_of_the_page_on_reports_are_measured_by_their_experiments():
    """A criterion that asks for no figure would be refused; its settings are those of the table."""
    page = PROJECT / "docs" / "report.md"
    block = next(b for b in blocks_of(page) if b.marker == "parameters")
    known = {
        "rotation": {"view", "angle", "k", "distance", "control"},
        "center_auc": {"features"},
        "performance_drop": set(),
    }
    for name, values in yaml.safe_load(block.text).items():
        for criterion in values["criteria"]:
            assert set(criterion["at"]) <= known[name]


# --- commands


@pytest.fixture(scope="module")
def kedro() -> click.Group:
    """Kedro's command line as it is in the project, with the project's and kedro-viz's commands."""
    from kedro.framework.cli.cli import KedroCLI

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        yield KedroCLI(PROJECT)


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_exist(block, kedro, pipelines, base):
    for command in commands_in(block.text):
        refuse_unknown_command(command, kedro, pipelines, base, str(block))


def test_commands_within_sentences_exist(kedro, pipelines, base):
    asked = [
        (span, where)
        for span, where in SPANS
        if re.match(r"(?:[A-Z_]+=\S+ )?(?:kedro|dvc|make|python) [a-z-]", span)
    ]
    assert len(asked) > 40
    for span, where in asked:
        for command in commands_in(span.replace("…", "")):
            refuse_unknown_command(command, kedro, pipelines, base, f"{where}: {span}")


def refuse_unknown_command(command: list[str], kedro, pipelines, base, where: str) -> None:
    program, *words = command
    if program == "kedro":
        refuse_unknown_kedro(words, kedro, pipelines, base, where)
    elif program == "dvc":
        refuse_unknown_dvc(words, where)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        asked = [word for word in words if "=" not in word]
        assert asked, where
        assert set(asked) <= set(targets), where
    elif program == "python":
        refuse_unknown_script(words, where)
    else:
        assert program in OTHERS, f"{where}: {program}"


def refuse_unknown_kedro(words: list[str], kedro, pipelines, base, where: str) -> None:
    command: click.Command = kedro
    context = click.Context(kedro)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{where}: kedro has no {words[0]}"
        command, words = found, words[1:]
    options = {
        name: option
        for option in command.params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
    }
    values: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not name.startswith("-") or name == "--help":
            continue
        assert name in options, f"{where}: {command.name} has no {name}"
        if not options[name].is_flag:
            values[name] = value if equals else next(rest, "")
    refuse_unknown_values(values, pipelines, base, where)


def refuse_unknown_values(values: Mapping[str, str], pipelines, base, where: str) -> None:
    placeholder = re.compile(r"<\w+>")
    cohorts = {path.name for path in (PROJECT / "conf").iterdir()} | EXAMPLE_COHORTS
    env = values.get("--env", "phantom")
    assert env in cohorts or placeholder.fullmatch(env), where
    listed = [name for name in values.get("--pipelines", "").split(",") if name]
    assert set(listed) <= set(pipelines), where
    nodes = [n for name in listed or ["__default__"] for n in pipelines[name].nodes]
    for name in filter(None, values.get("--namespaces", "").split(",")):
        known = name
        for encoder in EXAMPLE_ENCODERS:  # of a cohort that the project does not have
            known = known.replace(f".{encoder}", ".stain_statistics")
        asked = [n for n in nodes if f"{n.namespace}.".startswith(f"{known}.")]
        assert asked or placeholder.search(name), f"{where}: nothing lies in {name}"
    tags = {tag for node in nodes for tag in node.tags} | {"vector_length"}
    assert set(filter(None, values.get("--tags", "").split(","))) <= tags, where
    for assignment in filter(None, values.get("--params", "").split(",")):
        key = assignment.partition("=")[0]
        group: Any = base
        for part in key.split("."):
            if part in EXAMPLE_ENCODERS or (isinstance(group, Mapping) and "model" in group):
                break  # entries of an encoder are its own
            assert part in group, f"{where}: no parameter {key}"
            group = group[part]


def refuse_unknown_dvc(words: list[str], where: str) -> None:
    from dvc.cli.parser import get_main_parser

    parsed = get_main_parser().parse_args(words)
    told = (PROJECT / "dvc.yaml").read_text()
    stages = yaml.safe_load(told)["stages"]
    for target in getattr(parsed, "targets", None) or []:
        if target.startswith("data/"):
            assert target.replace("data/clinic/", "data/${key}/") in told, f"{where}: {target}"
            continue
        assert target.partition("@")[0] in stages, f"{where}: no stage {target}"


def refuse_unknown_script(words: list[str], where: str) -> None:
    if words[:2] == ["-m", "pathfm_kedro"]:
        assert words[2] in cli.list_commands(click.Context(cli)), where
        return
    if words[:2] == ["-m", "pytest"]:
        assert all((PROJECT / word).exists() for word in words[2:] if not word.startswith("-")), (
            where
        )
        return
    script = PROJECT / words[0]
    assert script.is_file(), where
    text = script.read_text(encoding="utf-8")
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in text, f"{where}: no {word}"


# --- what pages name


def test_linked_files_and_headings_exist():
    found = 0
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http", "#un", "#0")):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name} links to {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {generate.anchor(title) for title in titles}, target
            found += 1
    assert found > 100


def test_paths_that_pages_name_exist():
    roots = ("src/", "tests/", "conf/", "docs/", "benchmarks/", "notebooks/", "pipelines/")
    known = {"conf/clinic", "conf/kidney", "conf/local", "pipelines/inheritance/vector_length.py"}
    for span, where in SPANS:
        path = span.rstrip("/")
        if not path.startswith(roots) or re.search(r"[<>*\s…{]", path):
            continue
        if any(path.startswith(name) for name in known) or path.endswith("vector_length.py"):
            continue
        inside = PROJECT / "src" / "pathfm_kedro" / path
        assert (PROJECT / path).exists() or inside.exists(), f"{where} names {span}"


def test_parameters_that_pages_name_exist(base, pipelines):
    """`experiment.parameter` in a sentence, where there is such an experiment."""
    namespaces = {node.namespace for node in pipelines["__default__"].nodes}
    for span, where in SPANS:
        parts = span.split(".")
        if span in namespaces or span.endswith(".py"):
            continue
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span) or parts[0] not in base:
            continue
        group: Any = base
        for part in parts:
            if not isinstance(group, Mapping) or (where == "CHANGELOG.md" and part not in group):
                break
            if part == "calibration" or parts[0] == "encoders":
                break
            assert part in group, f"{where} names {span}"
            group = group[part]


def test_the_page_on_data_lists_every_stored_dataset_in_its_layer():
    conf = SizedConfigLoader(conf_source=str(PROJECT / "conf"), env="phantom", **CONFIG_LOADER_ARGS)
    stored = {
        name: next(part for part in Path(entry["filepath"]).parts if part[:2].isdigit())
        for name, entry in conf["catalog"].items()
        if "filepath" in entry and name != "manifest"
    }
    listed: dict[str, str] = {}
    layer = ""
    for row in (PROJECT / "data" / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        if len(cells) == 3 and cells[1].startswith("`"):
            layer = cells[0].strip("`") or layer
            listed |= dict.fromkeys(CODE_SPAN.findall(cells[1]), layer)
    as_pattern = {re.sub(r"<(\w+)>", r"{\1}", name): layer for name, layer in listed.items()}
    assert {k: v for k, v in as_pattern.items() if k != "manifest"} == stored


# --- the experiment that the page on the architecture adds


@pytest.fixture
def added() -> dict[str, Block]:
    """Blocks of the page by their marker."""
    page = PROJECT / "docs" / "architecture.md"
    return {block.marker.partition(":")[0]: block for block in blocks_of(page) if block.marker}


@pytest.fixture
def module(added) -> Iterator[types.ModuleType]:
    """The file of the example, as if it lay where the page says."""
    name = added["file"].marker.partition(": ")[2]
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(added["file"].text, name, "exec"), made.__dict__)
    yield made
    del sys.modules[name]


def test_the_added_experiment_works_as_pasted(added, module, base):
    from pathfm_kedro.pipelines.inheritance import pipeline as wired
    from pathfm_kedro.wiring import Experiment, experiment_pipeline

    names = {**vars(wired), **vars(module)}
    (experiment,) = eval(added["line of"].text, names)
    assert isinstance(experiment, Experiment)
    nodes = experiment_pipeline("inheritance", experiment, ["uni"]).nodes
    assert [node.name for node in nodes] == [
        "vector_length.uni.statistics",
        "vector_length.uni.measurements",
        "vector_length.collect",
    ]
    parameters = yaml.safe_load(added["parameters"].text)[experiment.name]
    criterion = experiment.read(parameters).criteria[0]
    own = yaml.safe_load("words_inheritance:\n" + added["words of an experiment"].text)
    words = Words.read(gather_words(merge(base, own)))
    statistics = pl.DataFrame(
        {"patient_id": [f"p{i}" for i in range(9)], "n_tiles": [2] * 9, "length": [4.0] * 9}
    )
    row = experiment.measurements(statistics, parameters, encoder="uni").row(0, named=True)
    assert (row["metric"], row["value"], row["verdict"]) == (criterion.metric, 2.0, "pass")
    assert words.of(experiment.name).title.startswith("Vector length")
    assert words.metric(row).fail == "has vectors too short to be stored"


def test_the_added_experiments_own_test_passes(added, module):
    space: dict[str, Any] = {}
    exec(compile(added["test"].text, "test_vector_length", "exec"), space)
    tests = [value for name, value in space.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        assert inspect.signature(test).parameters == {}
        test()


def test_a_test_of_its_own_lies_beside_every_experiment(documented):
    """As the page says: one file, its test."""
    for x in documented:
        assert "Tests: [" in generate.where(x), x.name
