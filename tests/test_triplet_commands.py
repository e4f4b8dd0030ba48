"""Triplets for a pathologist, written and read back."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from pathfm_kedro.commands.search import EmbeddedCohort
from pathfm_kedro.commands.triplets import triplets
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.mosaic import read_mosaic
from tests.conftest import PROJECT
from tests.in_memory import InMemory


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Five pictures of five patients, whose names begin like a formula; the vectors know no label."""
    generator = np.random.default_rng(0)
    rows, tiles, vectors = [], [], {}
    for i in range(5):
        pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"s{i}.png")
        name = f"=s{i}"
        rows.append(
            {"slide_id": name, "path": f"s{i}.png", "patient_id": f"SECRET-{i}", "center": "north",
             "organ": "kidney", "label": "clear", "mpp": 0.5, "status": "usable"}
        )  # fmt: skip
        tiles.append(
            {"tile_id": f"{name}-0", "slide_id": name, "x": 0, "y": 0, "field_um": 32.0,
             "in_mosaic": True}
        )  # fmt: skip
        vectors[name] = generator.normal(size=(1, 4)).tolist()
    slides, table = pl.DataFrame(rows), pl.DataFrame(tiles)
    opened = EmbeddedCohort(
        "ours", "famous", slides, table, SlideFiles(tmp_path),
        read_mosaic(slides, table, InMemory(vectors)), {"tile": {"pixels": 64}}, None,
    )  # fmt: skip
    monkeypatch.setattr(EmbeddedCohort, "open", lambda *given: opened)
    return opened


def run(*arguments):
    return CliRunner().invoke(triplets, [str(a) for a in arguments])


def test_the_reader_sees_tiles_alone_and_answers_are_read_back(cohort, tmp_path):
    folder, key = tmp_path / "out", tmp_path / "out-key.csv"
    done = run("export", folder, "--n", 4)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in folder.iterdir()) == ["answers.csv", "triplets.html"]
    page = (folder / "triplets.html").read_text(encoding="utf-8")
    for hidden in ("famous", "SECRET", "north", "clear", "=s", "nearest"):
        assert hidden not in page
    assert page.count("<img src='data:image/jpeg;base64,") == 3 * 4
    known = pl.read_csv(key, infer_schema=False)
    assert "SECRET" not in key.read_text()
    assert not known["tile_id"].str.starts_with("=").any()

    blank = run("read", folder / "answers.csv", "--key", key)
    assert "not measured" in blank.output
    answered = known.select("triplet", answer="nearest")
    answered.write_csv(folder / "answers.csv")
    read = run("read", folder / "answers.csv", "--key", key)
    assert read.exit_code == 0, read.output
    assert "Agreement with famous: 1.00 [" in read.output


def test_answers_go_to_the_report_without_a_name(cohort, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[tool.kedro]\n")
    shutil.copytree(PROJECT / "conf" / "base", tmp_path / "conf" / "base")
    own = tmp_path / "conf" / "ours"
    own.mkdir()
    (own / "globals.yml").write_text("root: data/ours\n")
    (own / "parameters_encoders.yml").write_text("encoders: {famous: {model: 'timm:resnet18'}}\n")
    (own / "parameters_report.yml").write_text("report: {alpha: 0.01}  # ours\n")
    monkeypatch.chdir(tmp_path)
    run("export", "out", "--n", 4)
    known = pl.read_csv("out-key.csv", infer_schema=False)
    known.select("triplet", answer="nearest").write_csv("out/answers.csv")
    for _ in range(2):
        done = run("read", "out/answers.csv", "--key", "out-key.csv", "--env", "ours")
        assert done.exit_code == 0, done.output + str(done.exception)
    text = (own / "parameters_report.yml").read_text()
    assert text.startswith("report: {alpha: 0.01}  # ours\n")
    answers = yaml.safe_load(text)["triplets"]["answers"]
    nearest = [int(one) for one in known["nearest"]]
    assert answers["famous"]["readers"] == [nearest]
    both = run(
        "read", "out/answers.csv", "out/answers.csv", "--key", "out-key.csv", "--env", "ours"
    )
    assert both.output.count("Agreement with famous: 1.00 [") == 3
    assert "Agreement of 2 readers with each other: Fleiss' kappa 1.00" in both.output
    answers = yaml.safe_load((own / "parameters_report.yml").read_text())["triplets"]["answers"]
    assert answers["famous"]["readers"] == [nearest, nearest]
    refused = run("read", "out/answers.csv", "--key", "out-key.csv", "--env", "nobody")
    assert refused.exit_code == 1


def test_the_page_parses_strictly(cohort, tmp_path):
    html5lib = pytest.importorskip("html5lib", reason="needs html5lib")
    run("export", tmp_path / "out", "--n", 2)
    html5lib.HTMLParser(strict=True).parse((tmp_path / "out" / "triplets.html").read_text())


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("triplet,answer\n1,yes\n", "give 1, 2, 0"),
        ("triplet,answer\n99,1\n", "triplet 99 is not in"),
        ("triplet,answer\n1,1\n1,2\n", "answered twice"),
        ("triplet\n1\n", "no column answer"),
    ],
)
def test_answers_that_cannot_be_read_say_what_to_do(cohort, tmp_path, answers, said):
    run("export", tmp_path / "out", "--n", 2)
    path = tmp_path / "answers.csv"
    path.write_text(answers)
    done = run("read", path, "--key", tmp_path / "out-key.csv")
    assert done.exit_code == 1
    assert said in done.output


def test_the_key_never_lies_in_the_readers_folder(cohort, tmp_path):
    done = run("export", tmp_path / "out", "--key", tmp_path / "out" / "key.csv")
    assert done.exit_code == 1
    assert "give another --key" in done.output
    assert not (tmp_path / "out").exists()
