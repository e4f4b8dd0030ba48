"""`kedro cohort new` takes an institution's manifest in and says what is wrong with it."""

from __future__ import annotations

import shutil

import pytest
import yaml
from click.testing import CliRunner

from pathfm_kedro.cli import cli
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
    assert listed["cohorts"]["clinic"] == {"input": "conf/clinic/manifest.csv"}
    assert listed["embeddings"]["clinic-efficientnet_lite0"]["cohort"] == "clinic"
    assert "clinic" not in listed["phantoms"]
    assert "phantom_truth" not in {
        e["encoder"] for k, e in listed["embeddings"].items() if "clinic" in k
    }


def test_a_phantom_of_ones_own(project):
    assert run("new", "mini", "--phantom").exit_code == 0
    assert "mini" in yaml.safe_load((project / "params.yaml").read_text())["phantoms"]
    assert "mini: phantom;" in run("list").output


def test_slides_with_problems_are_listed_and_the_rest_is_taken(project, slides):
    text = GOOD + "c,nowhere.svs,p3,A,x,I\nd,../../etc/passwd,p4,A,x,I\ne,b.tiff,p5,,x,I\n"
    result = run("new", "clinic", "--manifest", write_manifest(slides, text))
    assert result.exit_code == 0
    assert "c: no file at 'nowhere.svs'" in result.output
    assert "d: path '../../etc/passwd' leads out" in result.output
    assert "e: row 6: 'center' is empty" in result.output
    assert "5 slides (3 with problems" in result.output


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


def fill(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


def test_a_folder_becomes_a_manifest_that_a_new_cohort_takes(project, tmp_path):
    images = fill(tmp_path / "images", "A/x/p1/a.png", "B/y/p2/b.png", "A/x/p1/a.json")
    result = run("manifest", images, "--mpp", 0.25)
    assert result.exit_code == 0, result.output
    assert "2 slides, 2 patients, 2 centers, 2 labels" in result.output
    assert "Warning: left out as no slides: 1 files (1 .json)" in result.output
    taken = run("new", "clinic", "--manifest", images / "slides.csv")
    assert "2 slides (every file is there)" in taken.output
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
