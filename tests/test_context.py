"""Whoever makes a context gets the cohort's own pipelines; sessions leave no trace; runs keep apart."""

from __future__ import annotations

import os
import shutil

import pytest
import yaml
from kedro.framework.project import configure_project, pipelines
from kedro.framework.session import KedroSession

from pathfm_kedro.cohorts import (
    difference_from_stages,
    read_cohort_plan,
    refuse_unknown_cohort,
)
from pathfm_kedro.context import CohortSession
from tests.conftest import PROJECT

ENCODERS = {
    "north": {"efficientnet_lite0", "stain_statistics", "noise", "mine"},
    "south": {"noise"},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two cohorts whose encoders differ."""
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    (tmp_path / "src").mkdir()
    for name, text in {
        "north": "encoders: {mine: {model: 'control:stain_statistics', role: control}}\n",
        "south": "encoders: {efficientnet_lite0: null, stain_statistics: null}\n",
    }.items():
        folder = tmp_path / "conf" / name
        folder.mkdir()
        (folder / "globals.yml").write_text(f"root: data/{name}\n")
        (folder / "parameters_encoders.yml").write_text(text)
        (folder / "parameters.yml").write_text(f"cohort: {{name: {name}, source: manifest}}\n")
    monkeypatch.chdir(tmp_path)
    for variable in ("KEDRO_ENV", "PATHFM_CONF_SOURCE", "PATHFM_RUNTIME_PARAMS"):
        # Set, so that whatever a context exports is taken back after the test.
        monkeypatch.setenv(variable, "")
    configure_project("pathfm_kedro")
    return tmp_path


def embedded() -> set[str]:
    outputs = pipelines["embed"].all_outputs()
    return {name.partition(".")[2] for name in outputs if name.startswith("embeddings.")}


@pytest.mark.parametrize("session", [CohortSession, KedroSession])
def test_every_kind_of_session_has_the_pipelines_of_its_cohort(project, session):
    for cohort in ("north", "south", "north"):
        with session.create(project_path=project, env=cohort) as opened:
            catalog = opened.load_context().catalog
            assert embedded() == ENCODERS[cohort]
            assert f"params:encoders.{min(ENCODERS[cohort])}" in catalog


def test_kedro_viz_shows_the_cohort_that_was_asked_for(project):
    from kedro_viz.integrations.kedro.data_loader import load_data

    for cohort in ("south", "north"):
        _, shown, _ = load_data(project, env=cohort, package_name="pathfm_kedro")
        tags = {tag for node in shown["embed"].nodes for tag in node.tags}
        assert tags - {"collect"} == ENCODERS[cohort]


def test_a_session_leaves_the_environment_as_it_was(project, monkeypatch):
    monkeypatch.setenv("KEDRO_ENV", "south")
    with CohortSession.create(project_path=project, env="north") as session:
        session.load_context()
        assert os.environ["KEDRO_ENV"] == "north"
    assert os.environ["KEDRO_ENV"] == "south"
    with CohortSession.create(project_path=project) as session:
        session.load_context()
        assert embedded() == ENCODERS["south"]


def test_parameters_of_the_command_line_reach_the_pipelines(project):
    with CohortSession.create(
        project_path=project, env="south", runtime_params={"encoders": {"noise": None,
        "other": {"model": "control:stain_statistics"}}},
    ) as session:  # fmt: skip
        session.load_context()
        assert embedded() == {"other"}


def test_poolings_of_one_entry_are_encoders_of_their_own(project):
    file = project / "conf/south/parameters_encoders.yml"
    file.write_text(
        "encoders:\n  efficientnet_lite0: null\n  stain_statistics: null\n"
        "  uni: {model: 'timm:test_vit', batch_size: 2, variants: [class_token, patch_mean]}\n"
        "  uni__patch_mean: {batch_size: 4}\n"
    )
    with CohortSession.create(project_path=project, env="south") as session:
        catalog = session.load_context().catalog
        assert embedded() == {"noise", "uni__class_token", "uni__patch_mean"}
        loaded = [catalog.load(f"params:encoders.uni__{p}") for p in ("class_token", "patch_mean")]
    assert [(e["pooling"], e["batch_size"]) for e in loaded] == [
        ("class_token", 2),
        ("patch_mean", 4),
    ]
    listed = read_cohort_plan("south", str(project / "conf")).encoders
    assert set(listed) == {"noise", "uni__class_token", "uni__patch_mean"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{model: 'timm:x', variants: class_token}", "give a list of poolings"),
        ("{model: 'timm:x', variants: [patch_mean, patch_mean]}", "each once"),
        ("{model: 'timm:x', variants: []}", "give a list of poolings"),
        ("{model: 'timm:x', pooling: default, variants: [patch_mean]}", "into the list"),
    ],
)
def test_variants_that_are_none_name_the_entry(project, entry, told):
    (project / "conf/south/parameters_encoders.yml").write_text(f"encoders: {{uni: {entry}}}\n")
    with pytest.raises(ValueError, match=rf"encoders\.uni.*{told}"):
        read_cohort_plan("south", str(project / "conf"))


def test_a_cohort_that_is_not_there_is_named(project):
    with (
        CohortSession.create(project_path=project, env="west") as session,
        pytest.raises(ValueError, match=r"there is no cohort 'west': .* has north, phantom, south"),
    ):
        session.load_context()


def test_a_reference_to_nothing_is_told_with_its_file_and_key(project):
    (project / "conf" / "south" / "globals.yml").write_text("slides_root: /data/a${x}b\n")
    with pytest.raises(ValueError, match=r"conf/south, slides_root: .*'x'.* rename the folder"):
        CohortSession.create(project_path=project, env="south").load_context()
    with pytest.raises(ValueError, match=r"conf/south, slides_root: .*'x'.* rename the folder"):
        read_cohort_plan("south", str(project / "conf"))


def test_a_folder_in_braces_is_no_root(project):
    (project / "conf" / "south" / "globals.yml").write_text("root: data/{south}\n")
    with (
        CohortSession.create(project_path=project, env="south") as session,
        pytest.raises(
            ValueError, match=r"root in globals.yml is 'data/\{south\}'.* rename the fol"
        ),
    ):
        session.load_context()


@pytest.mark.parametrize("name", ["a${x}", "a b", "a@b", "{a}", ".a", "a/b", ""])
def test_a_folder_that_cannot_name_a_cohort_is_refused(project, name):
    with pytest.raises(ValueError, match="cannot name a cohort"):
        refuse_unknown_cohort(name, project / "conf")


def test_encoders_that_dvc_does_not_know_are_told(tmp_path):
    encoders = {"uni": {"model": "hf-hub:MahmoodLab/UNI"}, "left_out": None, "variant": {}}
    assert difference_from_stages(tmp_path, "north", encoders) == ""
    listed = {
        "embeddings": {"north-uni": {"cohort": "north", "encoder": "uni"}},
        "variants": {"north-variant": {"cohort": "north", "encoder": "variant"}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(listed))
    assert difference_from_stages(tmp_path, "north", encoders) == ""
    told = difference_from_stages(tmp_path, "north", {"uni": {}, "virchow": {}})
    assert "lacks virchow and still lists variant for cohort north: run 'kedro cohort sync'" in told
    assert "lacks uni, variant for cohort south" in difference_from_stages(
        tmp_path, "south", encoders
    )


def test_a_pinned_run_of_an_encoder_without_a_stage_is_refused(project, monkeypatch):
    (project / "params.yaml").write_text("embeddings: {}\n")
    monkeypatch.setenv("PATHFM_PIN_VERSION", "0-repro")
    with (
        CohortSession.create(project_path=project, env="south", save_on_close=False) as session,
        pytest.raises(ValueError, match="kedro cohort sync"),
    ):
        session.run(pipeline_names=["tile"])
