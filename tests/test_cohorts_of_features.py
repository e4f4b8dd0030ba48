"""Cohorts of features and encoders with tiles of their own: what is wired, what the commands write."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner

from pathfm_kedro.cli import cli
from pathfm_kedro.cohorts import (
    CohortPlan,
    difference_from_stages,
    read_cohort_plan,
    tiles_of_cohort,
)
from pathfm_kedro.pipeline_registry import register_pipelines
from pathfm_kedro.wiring import TileGrids
from tests.conftest import PROJECT, write_tiff
from tests.encoders.features import layouts

TILE = {"pixels": 224, "mpp": 0.5, "at": None}
UNI, TITAN = {"model": "features:f/uni"}, {"model": "features:f/titan"}
BIG = {"model": "timm:x", "tile": {"pixels": 512, "mpp": 0.5}}
SAME = {"model": "timm:y", "tile": {"pixels": 224, "mpp": 0.5}}


def tiles_of(encoders, source="manifest", **tile):
    return tiles_of_cohort(CohortPlan(source, encoders, {"tile": TILE | tile}))


def test_encoders_of_one_size_share_tiles_and_others_have_their_own():
    found = tiles_of({"a": {"model": "timm:z"}, "same": SAME, "big": BIG, "too": BIG})
    assert found.grids == {"big": "512px_0_5mpp", "too": "512px_0_5mpp"}
    assert found.sizes == {"512px_0_5mpp": (512, 0.5)}


def test_a_variant_has_the_tiles_of_its_base():
    centred = {"model": "harmonised:big", "mitigation": "centring"}
    assert tiles_of({"big": BIG, "big_centred": centred}).grids["big_centred"] == "512px_0_5mpp"


def test_files_bring_their_own_tiles_unless_they_are_the_cohorts():
    assert tiles_of({"uni": UNI, "titan": TITAN}).grids == {
        "uni": "features_uni",
        "titan": "features_titan",
    }
    assert tiles_of({"uni": UNI, "titan": TITAN}, at="titan").grids == {"uni": "features_uni"}


def test_without_slides_tiles_lie_at_the_first_features():
    found = tiles_of({"noise": {"model": "control:noise"}, "uni": UNI, "titan": TITAN}, "features")
    assert found.at == "uni"
    assert found.grids == {"titan": "features_titan"}


@pytest.mark.parametrize(
    ("encoders", "source", "tile", "message"),
    [
        ({"a": SAME}, "manifest", {"at": "a"}, r"tile.at is 'a'.*there is none"),
        ({"a": SAME}, "features", {}, r"no encoder has the model features:<folder>"),
        ({"a": SAME | {"tile": {"pixels": 0, "mpp": 1}}}, "manifest", {}, r"encoders.a.tile is"),
        (
            {"u": UNI | {"same_as": "v"}, "w": SAME},
            "manifest",
            {},
            r"encoders.u.same_as is 'v'.*\(w\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(encoders, source, tile, message):
    with pytest.raises(ValueError, match=message):
        tiles_of(encoders, source, **tile)


def test_datasets_of_tiles_stand_in_their_grid_and_vectors_do_not():
    grids = TileGrids({"big": "512px"})
    named = [grids.dataset(name, "big") for name in ("slides", "tile_pool", "views.rotation.{e}")]
    assert named == ["slides", "tile_pool.512px", "views.rotation.big"]
    assert grids.dataset("tile_pool", "a") == "tile_pool"


# --- a project with cohorts of its own


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(PROJECT / "conf", root / "conf")
    shutil.copy(PROJECT / "pyproject.toml", root)
    (root / "src").mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    return root


@pytest.fixture
def brought(tmp_path):
    """Tiles of UNI in TRIDENT's layout, and a vector a slide of TITAN, of three slides."""
    for name in ("a", "b", "c"):
        layouts.trident(tmp_path / "job" / "features_uni", name)
        layouts.trident_slide(tmp_path / "job" / "slide_features_titan", name)
    return tmp_path / "job"


def write_manifest(folder, path="", name="slides.csv"):
    rows = [
        f"{s},{path.format(s)},p{s},{c},{label}" for s, c, label in ("aNx", "bSy", "cNy", "dSx")
    ]
    text = "\n".join(["slide_id,path,patient_id,center,label", *rows]) + "\n"
    (folder / name).write_text(text)
    return folder / name


def new(*words):
    return CliRunner().invoke(cli, ["cohort", "new", "clinic", *map(str, words)])


def features(brought):
    return [
        f"--features=uni={brought / 'features_uni'}",
        f"--features=titan={brought / 'slide_features_titan'}",
    ]


def test_a_cohort_of_features_alone(project, brought):
    result = new("--manifest", write_manifest(brought), *features(brought))
    assert result.exit_code == 0, result.output
    size = layouts.VECTORS.shape[1]
    assert (
        f"uni: 3 of 4 slides have a file; layout trident, {size} numbers a vector" in result.output
    )
    assert "titan: 3 of 4 slides have a file" in result.output
    assert "kedro run --env clinic" in result.output
    stated = yaml.safe_load((project / "conf/clinic/parameters_encoders.yml").read_text())
    assert stated["encoders"]["uni"] == {"model": "features:../job/features_uni"}
    plan = read_cohort_plan("clinic", str(project / "conf"))
    assert plan.source == "features"
    assert set(plan.left_out) == {"efficientnet_lite0", "stain_statistics"}
    assert set(plan.encoders) == {"noise", "uni", "titan"}
    assert tiles_of_cohort(plan).at == "uni"
    stages = yaml.safe_load((project / "params.yaml").read_text())
    assert stages["cohorts"]["clinic"]["places"] == "../job/features_uni"
    assert stages["features"]["clinic-titan"]["folder"] == "../job/slide_features_titan"
    assert "clinic-uni" in stages["embeddings"]
    assert difference_from_stages(project, "clinic", plan.encoders) == ""


def test_its_pipelines_open_no_slide(project, brought, monkeypatch):
    new("--manifest", write_manifest(brought), *features(brought))
    monkeypatch.setenv("KEDRO_ENV", "clinic")
    whole = register_pipelines()["__default__"]
    assert "slide_files" not in whole.datasets()
    # Whatever a node reads is made by another, or a parameter.
    left = {name for name in whole.inputs() if not name.startswith("param")}
    assert left == {"manifest", "package_versions"}


def test_with_slides_controls_are_run_where_the_files_have_vectors(
    project, brought, pink_slide, monkeypatch
):
    for name in ("a", "b", "c", "d"):
        write_tiff(brought / f"{name}.tiff", pink_slide)
    result = new("--manifest", write_manifest(brought, "{}.tiff"), *features(brought))
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("KEDRO_ENV", "clinic")
    registered = register_pipelines()
    (found,) = [n for n in registered["tile"].nodes if "tiles" in n.outputs]
    assert "params:encoders.uni" in found.inputs
    whole = {n.name: n for n in registered["__default__"].nodes}
    assert "tiles" in whole["embed.stain_statistics.embed_stain_statistics"].inputs
    assert "tiles.features_titan" in whole["robustness.clustering_score.titan.statistics"].inputs
    # Views of an encoder that is not here are none.
    assert whole["robustness.rotation.uni.rotation_views"].inputs == ["params:engine"]
    assert "tile_pool" in whole["robustness.rotation.noise.rotation_views"].inputs


def test_an_encoder_of_other_tiles_has_pools_of_its_own(project, monkeypatch):
    entry = {"encoders": {"big": {"model": "timm:resnet18", "tile": {"pixels": 512, "mpp": 0.5}}}}
    (project / "conf/phantom/parameters_encoders.yml").write_text(json.dumps(entry))
    monkeypatch.setenv("KEDRO_ENV", "phantom")
    registered = register_pipelines()
    whole = {n.name: n for n in registered["__default__"].nodes}
    grid = "512px_0_5mpp"
    tables = [f"tiles.{grid}", f"tiling.{grid}"]
    assert whole[f"tile.{grid}.collect_{grid}_tiles"].outputs == tables
    for name in ("views.rotation.big", "views.appearance.big", "views.fields.big"):
        (made,) = [n for n in registered["robustness"].nodes if name in n.outputs]
        assert f"tiles.{grid}" in made.inputs
        assert "tiles" not in made.inputs
    attacks = whole["robustness.adversarial.big.transfer"]
    assert not [name for name in attacks.inputs if name.endswith("efficientnet_lite0")]
    unmade = registered["__default__"].inputs()
    assert not [name for name in unmade if grid in name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--features=uni"], "write <encoder>=<folder>"),
        (["--features=uni=/nowhere"], "there is no folder"),
        (["--features=a b=."], "encoder name 'a b'"),
    ],
)
def test_a_bad_option_is_refused(project, brought, words, message):
    result = new("--manifest", write_manifest(brought), *words)
    assert result.exit_code == 1
    assert message in result.output
    assert not (project / "conf/clinic").exists()


def test_files_that_are_named_after_no_slide_are_refused(project, brought, tmp_path):
    other = layouts.trident(tmp_path / "other", "z").parent
    result = new("--manifest", write_manifest(brought), f"--features=uni={other}")
    assert result.exit_code == 1
    assert "none of the 1 files" in result.output


def test_a_file_that_cannot_be_read_is_told_and_the_entry_written(project, brought, tmp_path):
    clam = layouts.clam_h5(tmp_path / "clam", "a").parent
    result = new("--manifest", write_manifest(brought), f"--features=resnet50={clam}")
    assert result.exit_code == 0, result.output
    assert "patch_size" in result.output
