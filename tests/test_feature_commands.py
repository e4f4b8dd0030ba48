"""`kedro features export` writes one file for each slide, which reads back as what was embedded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace

import h5py
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from kedro.framework.project import configure_project

from pathfm_kedro.cli import cli
from pathfm_kedro.commands import features as feature_commands
from pathfm_kedro.context import CohortSession
from pathfm_kedro.encoders.features import (
    WRITTEN,
    find_feature_files,
    read_features,
    write_features,
)
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.statistics.tables import digests_by_slide
from tests.conftest import PROJECT

#: A place that no file may have as its name, and one that is none.
SLIDES = ("S-1", "a/b c", "S-3")
TILES, DIMENSION, MPP, FIELD = 5, 4, 0.2528, 112.0
FAILED = "S-3"


def vectors_of(slide_id):
    seed = sum(slide_id.encode())
    return np.random.default_rng(seed).normal(size=(TILES, DIMENSION)).astype(np.float32)


@dataclass(frozen=True)
class Job:
    slide_id: str
    digest: str

    def header(self):
        return {"slide": "f", "tile_ids": self.digest}

    def compute(self):
        if self.slide_id == FAILED:
            raise ValueError("the slide is broken")
        return {"embedding": vectors_of(self.slide_id)}


def tables():
    slides = pl.DataFrame(
        [
            {
                "slide_id": slide,
                "path": f"{slide}.svs",
                "patient_id": slide,
                "center": "A",
                "organ": "o",
                "label": "x",
                "scanner": "",
                "vendor": "",
                "width": 9000,
                "height": 9000,
                "levels": 1,
                "mpp": MPP,
                "fingerprint": "f",
                "status": "usable",
                "reason": "",
            }
            for slide in SLIDES
        ]
    )
    tiles = pl.DataFrame(
        [
            {
                "tile_id": f"{slide}-{i}",
                "slide_id": slide,
                "x": 443 * i,
                "y": 100,
                "field_um": FIELD,
                "mpp": 0.5,
                "tissue_fraction": 1.0,
                "in_mosaic": False,
                "colour_cluster": 0,
            }
            for slide in SLIDES
            for i in range(TILES)
        ]
    )
    return slides, tiles


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a cohort that one encoder has embedded, but for one slide."""
    root = tmp_path_factory.mktemp("made") / "project"
    shutil.copytree(PROJECT / "conf", root / "conf")
    shutil.copy(PROJECT / "pyproject.toml", root)
    (root / "src").mkdir()
    slides, tiles = tables()
    digests = digests_by_slide(tiles)
    engine = EngineSettings(workers=1, max_failed_share=0.5)
    jobs = [Job(slide, digests[slide]) for slide in SLIDES]
    with pytest.MonkeyPatch.context() as patch, opened(root, patch) as catalog:
        catalog.save("slides", slides)
        catalog.save("tiles", tiles)
        catalog.save("embeddings.noise", ShardPlan(jobs, engine))
    return root


@pytest.fixture(scope="module")
def of_other_sizes(made, tmp_path_factory):
    """What the command loads of an encoder whose tiles are not the cohort's."""
    root = shutil.copytree(made, tmp_path_factory.mktemp("big") / "project")
    written = root / "conf/phantom/parameters_encoders.yml"
    entry = "  big: {model: 'control:noise', role: control, tile: {pixels: 512, mpp: 0.5}}\n"
    written.write_text(written.read_text() + entry)
    tiles = tables()[1].with_columns(tile_id=pl.col("tile_id") + "-big")
    digests = digests_by_slide(tiles)
    engine = EngineSettings(workers=1, max_failed_share=0.5)
    jobs = [Job(slide, digests[slide]) for slide in SLIDES]
    with pytest.MonkeyPatch.context() as patch, opened(root, patch) as catalog:
        catalog.save("tiles.512px_0_5mpp", tiles)
        catalog.save("embeddings.big", ShardPlan(jobs, engine))
        yield feature_commands._load("big", "phantom", None)


@contextmanager
def opened(root, patch):
    """The catalog of a project as a command in its folder sees it."""
    patch.chdir(root)
    for variable in ("KEDRO_ENV", "PATHFM_CONF_SOURCE", "PATHFM_RUNTIME_PARAMS"):
        # Set, so that whatever a context exports is taken back after the test.
        patch.setenv(variable, "")
    # The project's own code is on the path already.
    patch.setattr("kedro.framework.startup._add_src_to_path", lambda *words: None)
    configure_project("pathfm_kedro")
    with CohortSession.create(project_path=root, env="phantom") as session:
        yield session.load_context().catalog


@pytest.fixture(scope="module")
def embedded(made):
    """What the command loads of the cohort."""
    with pytest.MonkeyPatch.context() as patch, opened(made, patch):
        yield feature_commands._load("noise", "phantom", None)


def run(*words):
    return CliRunner().invoke(cli, ["features", "export", *map(str, words)])


@pytest.mark.parametrize("layout", WRITTEN)
def test_one_file_for_each_slide_reads_back_as_what_was_embedded(
    layout, embedded, tmp_path, monkeypatch
):
    monkeypatch.setattr(feature_commands, "_load", lambda *words: embedded)
    out = tmp_path / "out"
    stated = run("noise", "--format", layout, "--out", out, "--env", "phantom")
    assert stated.exit_code == 0, stated.output
    assert "2 slides, 10 tiles with 4 numbers each" in stated.output
    assert "left out, S-3: " in stated.output
    assert "the slide is broken" in stated.output
    files = find_feature_files(out)
    assert [path.parent for path in files.values()] == [out, out]
    for path, slide in zip(files.values(), ("S-1", "a/b c"), strict=True):
        read = read_features(path, slide_mpp=MPP)
        assert read.vectors.tobytes() == vectors_of(slide).tobytes()
        assert read.x.tolist() == [443 * i for i in range(TILES)]
        assert read.encoder == "noise"
        # TRIDENT counts sides in whole pixels.
        assert read.mpp == pytest.approx(0.5, rel=1e-3)
        assert read.field_px == pytest.approx(FIELD / MPP, abs=0.5)


def test_an_encoder_of_other_tiles_is_written_with_its_own(of_other_sizes):
    assert of_other_sizes.tiles["tile_id"].str.ends_with("-big").all()
    assert [len(made) for _, made in of_other_sizes.slides("big")] == [TILES, TILES]


def test_what_files_of_features_say_is_written_again(embedded, tmp_path):
    """A vector of a slide has no place, and without its mpp a tile's side is known in pixels alone."""
    unplaced = {"mpp": pl.lit(None, pl.Float64)}
    brought = replace(
        embedded,
        slides_table=embedded.slides_table.with_columns(**unplaced),
        tiles=embedded.tiles.with_columns(field_um=pl.lit(None, pl.Float64)),
        files={"S-1": {"level": "tile", "field_px": 443.0}, "a/b c": {"level": "slide"}},
    )
    found = {slide["slide_id"]: made for slide, made in brought.slides("uni")}
    assert (found["a/b c"].level, found["a/b c"].x) == ("slide", None)
    write_features(tmp_path / "S-1.h5", "trident", found["S-1"])
    assert read_features(tmp_path / "S-1.h5").field_px == 443


def test_files_that_are_there_are_kept_unless_told_otherwise(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_commands, "_load", lambda *words: embedded)
    words = ("noise", "--format", "trident", "--out", tmp_path / "out")
    assert run(*words).exit_code == 0
    path = tmp_path / "out" / "S-1.h5"
    path.write_text("mine")
    stated = run(*words)
    assert stated.exit_code == 1
    assert "2 of 2 files exist in" in stated.output
    assert "--force to replace them" in stated.output
    assert path.read_text() == "mine"
    assert run(*words, "--force").exit_code == 0
    with h5py.File(path) as file:
        assert file["coords"].attrs["level0_width"] == 9000


def test_what_is_not_there_is_told_with_the_mend(made, tmp_path, monkeypatch):
    root = shutil.copytree(made, tmp_path / "project")
    words = ("--format", "stamp", "--out", tmp_path / "out")
    with opened(root, monkeypatch) as catalog:
        stated = run("uni", *words)
        assert stated.exit_code == 1
        assert "cohort 'phantom' has no encoder 'uni'; it has" in stated.output
        stated = run("stain_statistics", *words)
        assert stated.exit_code == 1
        assert "has no vectors of 'stain_statistics' yet: make them by kedro run" in stated.output
        stated = run("noise", *words, "--version", "2025-01-01T00.00.00.000Z")
        assert stated.exit_code == 1
        assert "version 2025-01-01T00.00.00.000Z of the vectors of 'noise'" in stated.output
        assert "make them by kedro run --env phantom" in stated.output
        catalog.save("tiles", tables()[1].with_columns(pl.col("x") + 1))
        stated = run("noise", *words)
        assert stated.exit_code == 1
        assert "were made from other tiles than the table 'tiles' holds" in stated.output
    assert not (tmp_path / "out").exists()


def test_the_command_offers_what_is_written():
    assert feature_commands._FORMATS == WRITTEN


def test_help_loads_neither_torch_nor_readers():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from pathfm_kedro.cli import cli\n"
        "stated = CliRunner().invoke(cli, ['features', 'export', '--help'])\n"
        "assert stated.exit_code == 0 and 'trident' in stated.output, stated.output\n"
        "assert not {'torch', 'h5py', 'zarr', 'timm', 'polars'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)
