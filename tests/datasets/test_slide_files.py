"""The phantom writes into its own folder only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from kedro.io.core import DatasetError

from pathfm_kedro.datasets.slide_files import ManifestDataset, SlideFilesDataset
from pathfm_kedro.engine import EngineSettings, FilePlan


@dataclass(frozen=True)
class Letter:
    path: str
    fingerprint: str = "1"

    def write(self, target: Path) -> None:
        target.write_text(self.fingerprint)


def plan(*jobs: Letter) -> FilePlan:
    return FilePlan(jobs, EngineSettings(workers=1))


def test_files_are_drawn_kept_and_drawn_again_when_they_change(tmp_path):
    data = SlideFilesDataset(filepath=str(tmp_path / "raw"))
    data.save(plan(Letter("slides/a"), Letter("slides/b")))
    before = (tmp_path / "raw/slides/a").stat().st_mtime_ns
    data.save(plan(Letter("slides/a"), Letter("slides/b", "2")))
    assert (tmp_path / "raw/slides/a").stat().st_mtime_ns == before
    assert (tmp_path / "raw/slides/b").read_text() == "2"
    data.save(plan(Letter("slides/a")))
    assert not (tmp_path / "raw/slides/b").exists()


def test_a_folder_of_somebody_elses_slides_is_not_written_to(tmp_path):
    (tmp_path / "a.svs").write_text("precious")
    with pytest.raises(DatasetError, match="the phantom did not draw"):
        SlideFilesDataset(filepath=str(tmp_path)).save(plan(Letter("slides/a")))
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]


def test_a_manifest_that_a_person_made_is_not_replaced(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text("slide_id\na\n")
    with pytest.raises(DatasetError, match="not written by the phantom"):
        ManifestDataset(filepath=str(path)).save(pl.DataFrame({"slide_id": ["b"]}))
    assert path.read_text() == "slide_id\na\n"


def test_a_missing_folder_names_the_setting(tmp_path):
    with pytest.raises(DatasetError, match="correct 'slides_root'"):
        SlideFilesDataset(filepath=str(tmp_path / "nowhere")).load()
