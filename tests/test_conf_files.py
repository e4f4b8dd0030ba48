"""Files of conf/ parsed once and merged as mappings give what Kedro gives through OmegaConf."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.config import OmegaConfigLoader

from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS
from pathfm_kedro.conf_files import PlainConfigLoader
from tests.conftest import PROJECT

#: A cohort that uses what YAML and OmegaConf offer.
CLINIC = {
    "globals.yml": "root: data/clinic\nslides_root: ${root}/slides\n",
    "parameters.yml": "cohort: {name: clinic, source: manifest}\nengine: {workers: 1e0}\n",
    "parameters_encoders.yml": (
        "encoders:\n  noise: null\n  uni: {model: 'local-dir:${globals:root}/uni'}\n"
    ),
    "parameters_robustness.yml": "rotation: {criteria: [], seed: '${cohort.name}'}\n",
    "catalog_own.yml": "notes: {type: json.JSONDataset, filepath: '${globals:root}/n.json'}\n",
}


def read_by(loader: type[OmegaConfigLoader], conf: Path, env: str, typed: dict) -> dict[str, dict]:
    made = loader(str(conf), env=env, runtime_params=typed, **CONFIG_LOADER_ARGS)
    kinds = ("globals", "parameters") if env == "phantom" else ("globals", "parameters", "catalog")
    return {kind: made[kind] for kind in kinds}


@pytest.mark.parametrize(
    ("env", "typed"),
    [("phantom", {}), ("clinic", {"rotation": {"angle_step": 45}, "new": "${cohort.name}"})],
)
def test_the_configuration_of_a_cohort_is_kedros(tmp_path, env, typed):
    conf = tmp_path / "conf"
    shutil.copytree(PROJECT / "conf", conf)
    (conf / "clinic").mkdir()
    for name, text in CLINIC.items():
        (conf / "clinic" / name).write_text(text)
    found = read_by(PlainConfigLoader, conf, env, typed)
    assert found == read_by(OmegaConfigLoader, conf, env, typed)
    assert found["parameters"]["rotation"]["angle_step"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.sampled_from(
        ["", "a", "???", "${a}", "\\${a}", "${globals:root}", "2020-01-01", "1e-3", "no"]
    ),
)
KEYS = st.sampled_from(["a", "b", "c", 1])
CONTENTS = st.dictionaries(
    KEYS,
    st.recursive(
        VALUES, lambda of: st.lists(of, max_size=2) | st.dictionaries(KEYS, of, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)  # fmt: skip


def outcome(loader: type[OmegaConfigLoader], conf: Path, typed: dict) -> tuple[type, str] | dict:
    try:
        return loader(str(conf), env="own", runtime_params=typed, **CONFIG_LOADER_ARGS)[
            "parameters"
        ]
    except Exception as error:
        return type(error), str(error)


def without_clash(first: object, second: object) -> bool:
    """Whether no list stands where keys stand in another file, which OmegaConf refuses to merge."""
    if isinstance(first, dict) and isinstance(second, dict):
        return all(without_clash(first[k], second[k]) for k in first.keys() & second.keys())
    return {type(first), type(second)} != {dict, list}


@settings(max_examples=30, deadline=None)
@given(CONTENTS, CONTENTS, CONTENTS)
def test_any_two_files_are_merged_as_kedro_merges_them(tmp_path_factory, base, own, typed):
    conf = tmp_path_factory.mktemp("conf")
    for env, content in {"base": base, "own": own}.items():
        (conf / env).mkdir()
        (conf / env / "globals.yml").write_text("root: data/own\n")
        (conf / env / "parameters.yml").write_text(yaml.safe_dump(content))
    found = outcome(PlainConfigLoader, conf, typed)
    if without_clash(base, own) and without_clash(base, typed) and without_clash(own, typed):
        assert found == outcome(OmegaConfigLoader, conf, typed)


def test_a_file_that_changed_is_read_anew_and_what_was_read_is_the_caller_s(tmp_path):
    for env in ("base", "own"):
        (tmp_path / env).mkdir()
        (tmp_path / env / "globals.yml").write_text("root: data/own\n")
    file = tmp_path / "base" / "parameters.yml"
    for side in (224, 112):
        file.write_text(f"tile: {{pixels: {side}, at: [1]}}\n")
        for _ in range(2):
            found = outcome(PlainConfigLoader, tmp_path, {})
            assert found == {"tile": {"pixels": side, "at": [1]}}
            found["tile"]["at"].append(2)


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2\n", "[1]\n", "{a: 1}\n---\n{b: 1}\n", "a"])
def test_what_is_no_mapping_is_refused_in_kedros_words(tmp_path, text):
    for env in ("base", "own"):
        (tmp_path / env).mkdir()
        (tmp_path / env / "globals.yml").write_text("root: data/own\n")
    (tmp_path / "own" / "parameters.yml").write_text(text)
    found = outcome(PlainConfigLoader, tmp_path, {})
    assert found == outcome(OmegaConfigLoader, tmp_path, {})
