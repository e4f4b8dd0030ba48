"""`kedro cohort new` takes an institution's manifest in and says what is wrong with it."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from pathfm_kedro.cli import cli
from pathfm_kedro.cohorts import read_cohort_plan
from pathfm_kedro.commands.kedro_commands import pack_configuration
from tests.conftest import PROJECT, write_tiff


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project's configuration in a folder of its own."""
    root = tmp_path / "project"
    shutil.copytree(PROJECT / "conf", root / "conf")
    shutil.copy(PROJECT / "pyproject.toml", root)
    (root / "src").mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    return root


@pytest.fixture
def slides(tmp_path, pink_slide):
    folder = tmp_path / "slides"
    write_tiff(folder / "a.tiff", pink_slide)
    write_tiff(folder / "b.tiff", pink_slide)
    return folder


def write_manifest(folder, text):
    path = folder / "slides.csv"
    path.write_text(text)
    return path


GOOD = "slide_id,path,patient_id,center,label,stage\na,a.tiff,p1,A,x,I\nb,b.tiff,p2,B,y,II\n"


def run(*words):
    return CliRunner().invoke(cli, ["cohort", *map(str, words)])


def test_a_good_manifest_becomes_a_cohort(project, slides):
    result = run("new", "clinic", "--manifest", write_manifest(slides, GOOD))
    assert result.exit_code == 0, result.output
    assert "2 slides (every file is there)" in result.output
    assert "2 patients, 2 centers, 2 labels" in result.output
    told = yaml.safe_load((project / "conf/clinic/globals.yml").read_text())
    assert told == {
        "root": "data/clinic",
        "slides_root": "../slides",
        "manifest": "conf/clinic/manifest.csv",
    }
    assert "stage" in (project / "conf/clinic/manifest.csv").read_text().splitlines()[0]
    listed = yaml.safe_load((project / "params.yaml").read_text())
    # Without features and with one size of tiles the rest stands for nothing.
    assert listed["cohorts"]["clinic"]["input"] == "conf/clinic/manifest.csv"
    assert listed["cohorts"]["clinic"]["grids"] == ""
    assert listed["embeddings"]["clinic-efficientnet_lite0"]["cohort"] == "clinic"
    assert "clinic" not in listed["phantoms"]
    assert "phantom_truth" not in {
        e["encoder"] for k, e in listed["embeddings"].items() if "clinic" in k
    }


def test_a_folder_that_yaml_would_take_for_a_reference_is_refused(project, slides):
    odd = slides.rename(slides.parent / "a${x}b")
    result = run("new", "clinic", "--manifest", write_manifest(odd, GOOD))
    assert result.exit_code == 1
    assert "'../a${x}b', and what stands in ${…} is read as a reference" in result.output
    assert not (project / "conf/clinic").exists()


def test_a_phantom_of_ones_own(project):
    assert run("new", "mini", "--phantom").exit_code == 0
    assert "mini" in yaml.safe_load((project / "params.yaml").read_text())["phantoms"]
    assert "mini: phantom;" in run("list").output


def test_slides_with_problems_are_listed_and_the_rest_is_taken(project, slides):
    (slides / "f.tiff").write_bytes(b"II*\x00 cut short")
    text = GOOD + "c,nowhere.svs,p3,A,x,I\nd,../../etc/passwd,p4,A,x,I\ne,b.tiff,p5,,x,I\n"
    text += "f,f.tiff,p6,A,x,I\n"
    result = run("new", "clinic", "--manifest", write_manifest(slides, text))
    assert result.exit_code == 0
    assert "c: no file at 'nowhere.svs'" in result.output
    assert "d: path '../../etc/passwd' leads out" in result.output
    assert "e: row 6: 'center' is empty" in result.output
    assert "f: 'f.tiff' cannot be opened" in result.output
    assert "6 slides (4 with problems" in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,path\na,a.tiff\n", "has no column patient_id, center, label"),
        (GOOD + "a,b.tiff,p2,B,y,II\n", "slide_id 'a' is in rows 2, 4"),
        (GOOD.splitlines()[0] + "\n", "has no rows"),
        ("", "cannot be read as a table"),
        (
            GOOD.replace("a.tiff", "x").replace("b.tiff", "y"),
            "no slide of this manifest can be used",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used_writes_nothing(project, slides, text, message):
    result = run("new", "clinic", "--manifest", write_manifest(slides, text))
    assert result.exit_code != 0
    assert message in result.output
    assert not (project / "conf/clinic").exists()


@pytest.mark.parametrize("name", ["base", "local", "Clinic", "../x", "1a", "a-b"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(project, slides, name):
    result = run("new", name, "--manifest", write_manifest(slides, GOOD))
    assert result.exit_code != 0
    assert "cannot name a cohort" in result.output


def test_an_existing_cohort_is_not_overwritten(project):
    result = run("new", "phantom", "--phantom")
    assert result.exit_code != 0
    assert "conf/phantom exists" in result.output


def test_neither_or_both_sources_are_refused(project, slides):
    manifest = write_manifest(slides, GOOD)
    assert "give either" in run("new", "x").output
    assert "give either" in run("new", "x", "--phantom", "--manifest", manifest).output


def save_image(path, side):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), (220, 120, 170), np.uint8)).save(path)


def fill(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


def test_a_folder_becomes_a_manifest_that_a_new_cohort_takes(project, tmp_path):
    images = fill(tmp_path / "images", "A/x/p1/a.json")
    for path in ("A/x/p1/a.png", "B/y/p2/b.png"):
        save_image(images / path, side=128)
    result = run("manifest", images, "--mpp", 0.25)
    assert result.exit_code == 0, result.output
    assert "2 slides, 2 patients, 2 centers, 2 labels" in result.output
    assert "Warning: left out as no slides: 1 files (1 .json)" in result.output
    taken = run("new", "clinic", "--manifest", images / "slides.csv")
    assert "2 slides (every file is there)" in taken.output
    # Cut beforehand: each becomes a tile, without an error first.
    tile = yaml.safe_load((project / "conf/clinic/parameters_tile.yml").read_text())["tile"]
    assert tile == {"pixels": 128, "mpp": 0.25, "min_tissue_fraction": 0.0}
    assert "tile.pixels 128, tile.mpp 0.25" in taken.output
    assert "  x  1  0\n  y  0  1\n" in taken.output
    assert "cannot: robustness_index (all)" in taken.output
    assert "undecidable: every check, since 2 patients are fewer than 8" in taken.output
    written = (project / "conf/clinic/manifest.csv").read_text().splitlines()
    assert written[1] == "A-x-p1-a,A/x/p1/a.png,p1,A,x,0.25"


def test_a_folder_that_is_refused_leaves_no_manifest(tmp_path):
    images = fill(tmp_path, "A/x/a.png")
    result = run("manifest", images, "--output", images / "new.csv")
    assert result.exit_code != 0
    assert "'A/x/a.png' lies in 2 folders" in result.output
    assert not (images / "new.csv").exists()
    assert run("manifest", images, "--levels", "center/label").exit_code == 0


def test_a_manifest_is_not_overwritten(tmp_path):
    images = fill(tmp_path, "A/x/p/a.png", "slides.csv")
    result = run("manifest", images)
    assert result.exit_code != 0
    assert "exists: give another --output" in result.output
    assert (images / "slides.csv").read_bytes() == b"x"


@pytest.mark.parametrize(("file", "key"), [("encoders", "encoders"), ("cohort", "cohort")])
def test_a_section_left_empty_is_named(project, file, key):
    """A line whose keys are all commented out replaces the section of conf/base by nothing."""
    (project / f"conf/phantom/parameters_{file}.yml").write_text(f"{key}:\n  # model: x\n")
    for name in (project / "conf/phantom").glob("parameters.yml"):
        name.write_text("")
    with pytest.raises(ValueError, match=f"'{key}' is None in the parameters of cohort 'phantom'"):
        read_cohort_plan("phantom", str(project / "conf"))


WEIGHTS = {
    "by_file": {"model": "timm:test_vit", "checkpoint": "models/w.pth"},
    "by_folder": {"model": "local-dir:models/uni/"},
    "of_the_hub": {"model": "hf-hub:MahmoodLab/UNI"},
}


@pytest.fixture
def watched(project):
    """A project under DVC whose cohort has an encoder for each way of naming weights."""
    from dvc.repo import Repo

    (project / "models/uni").mkdir(parents=True)
    for path in ("models/w.pth", "models/uni/model.safetensors"):
        (project / path).write_text("first")
    entries = project / "conf/phantom/parameters_encoders.yml"
    entries.write_text(yaml.safe_dump({"encoders": WEIGHTS}))
    assert run("sync").exit_code == 0
    shutil.copy(PROJECT / "dvc.yaml", project)
    return Repo.init(str(project), no_scm=True)


@pytest.mark.parametrize(
    ("encoder", "path"), [("by_file", "models/w.pth"), ("by_folder", "models/uni")]
)
def test_replaced_weights_are_seen_by_the_stage_of_their_encoder_alone(
    project, watched, encoder, path
):
    def dependencies(name):
        return {
            d.def_path: d for d in watched.stage.load_one("dvc.yaml", f"embed@phantom-{name}").deps
        }

    for other in (*WEIGHTS, "stain_statistics"):
        assert (path in dependencies(other)) is (other == encoder)
    weights = dependencies(encoder)[path]
    weights.save()
    assert weights.status() == {}
    target = project / path
    (target / "model.safetensors" if target.is_dir() else target).write_text("second, longer")
    assert weights.status() == {path: "modified"}


def test_a_stage_without_weights_of_its_own_depends_on_nothing_more(project, watched):
    stage = watched.stage.load_one("dvc.yaml", "embed@phantom-of_the_hub")
    paths = [d.def_path for d in stage.deps]
    (standing_in,) = (p for p in paths if p.endswith("weights.py"))
    assert standing_in.rpartition("/")[0] in paths


def test_the_packed_configuration_holds_no_patients_and_no_secrets(project, slides, tmp_path):
    assert run("new", "clinic", "--manifest", write_manifest(slides, GOOD)).exit_code == 0
    folder = project / "conf" / "clinic"
    for secret in ("old.parquet", "slides.CSV", "notes.txt", "credentials_hub.yml", ".hidden.yml"):
        (folder / secret).write_text("patient p1")
    (project / "conf" / "local").mkdir(exist_ok=True)
    (project / "conf" / "local" / "parameters.yml").write_text("mine: 1")
    archive = tmp_path / "dist" / "conf.tar.gz"
    left_out = pack_configuration(project / "conf", archive)
    with tarfile.open(archive) as packed:
        names = set(packed.getnames())
    assert {"conf/clinic/globals.yml", "conf/base/parameters_tile.yml", "conf/logging.yml"} <= names
    assert not {n for n in names if Path(n).suffix not in {".yml", ".md"}}
    assert not {n for n in names if "local" in n or "credentials" in n or "hidden" in n}
    assert [path.name for path in left_out] == [
        "credentials_hub.yml", "manifest.csv", "notes.txt", "old.parquet", "slides.CSV",
    ]  # fmt: skip
    # What was packed is a whole configuration.
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "elsewhere", filter="data")
    plan = read_cohort_plan("clinic", str(tmp_path / "elsewhere" / "conf"))
    assert plan.source == "manifest"


def test_kedro_runs_the_projects_own_commands():
    from pathfm_kedro.commands.kedro_commands import package
    from pathfm_kedro.commands.kedro_commands import run as kedro_run

    context = click.Context(cli)
    assert cli.get_command(context, "run") is kedro_run
    assert cli.get_command(context, "package") is package
    assert {"verbose", "traceback", "pipelines", "env"} <= {p.name for p in kedro_run.params}


@pytest.mark.parametrize("slides_lie", ["beside the link", "beside the file"])
def test_a_link_to_a_manifest_is_taken_with_the_slides_beside_either(
    project, tmp_path, pink_slide, slides_lie
):
    beside_link, beside_file = tmp_path / "link", tmp_path / "store"
    for folder in (beside_link, beside_file):
        folder.mkdir()
    home = beside_link if slides_lie == "beside the link" else beside_file
    write_tiff(home / "s1.tiff", pink_slide)
    target = beside_file / "0f3a.csv"
    target.write_text("slide_id,path,patient_id,center,label\ns1,s1.tiff,p1,A,x\n")
    (beside_link / "slides.csv").symlink_to(target)
    result = run("new", "clinic", "--manifest", str(beside_link / "slides.csv"))
    assert result.exit_code == 0, result.output
    assert "1 slides (every file is there)" in result.output
    written = yaml.safe_load((project / "conf/clinic/globals.yml").read_text())
    assert (project / written["slides_root"]).resolve() == home.resolve()
