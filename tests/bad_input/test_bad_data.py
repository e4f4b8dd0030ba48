"""What a crash, a full disk or a stranger's file leaves in the data folder is found and mended."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets.faiss_index import FaissIndexDataset
from pathfm_kedro.datasets.parquet import ParquetDataset
from pathfm_kedro.datasets.sharded_tensors import (
    INDEX_NAME,
    ShardedTensorDataset,
    read_header,
    shard_name,
    write_shard,
)
from pathfm_kedro.datasets.slide_files import SlideFilesDataset
from pathfm_kedro.encoders.controls import CONTROLS
from pathfm_kedro.engine import EngineSettings, FilePlan, ShardPlan
from pathfm_kedro.pipelines.embed.embedding import EmbedSlide, plan_embedding
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.report.page import render_report
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.tables import OtherTilesError, refuse_other_tiles
from tests.bad_input.test_bad_slides import ENGINE, INGEST, TILE, tissue
from tests.conftest import manifest, manifest_row, write_tiff
from tests.pipelines.report.conftest import (  # noqa: F401 - fixtures of the report's tests
    design,
    measurements,
    provenance,
    report_inputs,
    slides,
    tiles,
    tiling,
)

EVIL = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Job:
    slide_id: str
    computed: list[str] = field(default_factory=list, compare=False)

    def header(self) -> dict[str, str]:
        return {"slide": self.slide_id}

    def compute(self) -> dict[str, np.ndarray]:
        self.computed.append(self.slide_id)
        return {"embedding": np.full((2, 4), len(self.slide_id), np.float32)}


def dataset(folder: Path) -> ShardedTensorDataset:
    return ShardedTensorDataset(filepath=(folder / "uni").as_posix(), version=Version("1", "1"))


def plan(names: str, computed: list[str] | None = None) -> ShardPlan:
    jobs = [Job(name, [] if computed is None else computed) for name in names]
    return ShardPlan(jobs, EngineSettings(workers=1))


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


REAL_FSYNC = os.fsync


def full_from(file: int, code: int = errno.ENOSPC):
    """A disk that takes so many files and no more."""
    written = iter(range(1000))

    def fsync(handle: int) -> None:
        if next(written) >= file:
            raise OSError(code, os.strerror(code))
        REAL_FSYNC(handle)

    return fsync


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_forbidden_disk_ends_the_run_and_the_next_run_goes_on(
    tmp_path, monkeypatch, code
):
    computed: list[str] = []
    monkeypatch.setattr("os.fsync", full_from(2, code))
    data = dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"uni cannot be written: .* Finished shards are kept"):
        data.save(plan("abcde", computed))
    assert files_in(tmp_path) == {shard_name("a"), shard_name("b")}
    assert computed == ["a", "b", "c"]
    assert not data.exists()

    monkeypatch.setattr("os.fsync", REAL_FSYNC)
    data.save(plan("abcde", computed))
    assert computed == ["a", "b", "c", "c", "d", "e"]
    assert data.load().slide_ids == tuple("abcde")


def test_a_disk_that_is_full_for_the_index_alone_leaves_no_index(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", full_from(2))
    with pytest.raises(DatasetError, match="uni cannot be written: No space left on device"):
        dataset(tmp_path).save(plan("ab"))
    assert files_in(tmp_path) == {shard_name("a"), shard_name("b")}


def test_a_data_folder_that_may_not_be_written_to_is_named(tmp_path, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    with pytest.raises(DatasetError, match=r"uni cannot be written: Permission denied"):
        dataset(tmp_path).save(plan("a"))


def test_a_table_on_a_full_disk_leaves_no_half_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", full_from(0))
    data = ParquetDataset(filepath=(tmp_path / "t.parquet").as_posix())
    with pytest.raises(DatasetError, match="No space left on device"):
        data.save(pl.DataFrame({"a": [1]}))
    assert files_in(tmp_path) == set()


def test_a_corrupt_shard_names_its_file_and_is_made_again(tmp_path):
    data = dataset(tmp_path)
    data.save(plan("ab"))
    shard = tmp_path / "1/uni" / shard_name("a")
    shard.write_bytes(b"\xff" * 100)
    with pytest.raises(
        DatasetError, match=r"shard of slide 'a' at .*a\.safetensors cannot be read"
    ):
        data.load().stack(["a", "b"])
    computed: list[str] = []
    data.save(plan("ab", computed))
    assert computed == ["a"]


def test_a_shard_of_another_dimension_names_itself(tmp_path):
    data = dataset(tmp_path)
    data.save(plan("ab"))
    path = tmp_path / "1/uni" / shard_name("b")
    write_shard(path, {"embedding": np.zeros((2, 5), np.float32)}, {"slide": "b"})
    message = "has vectors of shape (5,), and that of slide 'a' of (4,): remove the file"
    with pytest.raises(DatasetError, match=re.escape(message)):
        data.load().stack(["a", "b"])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_shard_of_another_length_names_the_folder(tmp_path, rows):
    data = dataset(tmp_path)
    data.save(plan("ab"))
    path = tmp_path / "1/uni" / shard_name("b")
    write_shard(path, {"embedding": np.zeros((rows, 4), np.float32)}, {"slide": "b"})
    with pytest.raises(DatasetError, match=rf"hold {2 + rows} rows where their index says 4"):
        data.load().stack(["a", "b"])


@pytest.mark.parametrize("content", ["", '{"slides": {"a"', "{}", "[]"])
def test_a_half_written_index_is_told_and_written_anew(tmp_path, content):
    data = dataset(tmp_path)
    data.save(plan("ab"))
    (tmp_path / "1/uni" / INDEX_NAME).write_text(content)
    with pytest.raises(
        DatasetError, match=r"holds no finished shards .* run the pipeline that makes"
    ):
        data.load()
    computed: list[str] = []
    data.save(plan("ab", computed))
    assert computed == []
    assert data.load().slide_ids == ("a", "b")


def test_a_half_written_table_names_the_folder_to_remove(tmp_path):
    data = ParquetDataset(filepath=(tmp_path / "t.parquet").as_posix())
    data.save(pl.DataFrame({"a": range(1000)}))
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DatasetError, match=r"is not a whole Parquet file .* remove its version folder"
    ):
        data.load()


@pytest.mark.parametrize("content", [b"", b"not an index", b'["a"]\nhalf'])
def test_a_half_written_search_index_says_what_to_run(tmp_path, content):
    (tmp_path / "a.faiss").write_bytes(content)
    with pytest.raises(DatasetError, match="is not a whole index"):
        FaissIndexDataset(filepath=(tmp_path / "a.faiss").as_posix()).load()


def test_a_damaged_list_of_what_the_phantom_drew_says_what_to_remove(tmp_path):
    (tmp_path / "_drawn.json").write_text('{"slides/a": ')
    with pytest.raises(
        DatasetError, match=r"_drawn\.json lists what the phantom drew and is damaged"
    ):
        SlideFilesDataset(filepath=str(tmp_path)).save(FilePlan([]))


def test_files_of_others_are_not_drawn_over(tmp_path):
    (tmp_path / "a.svs").write_text("precious")
    with pytest.raises(DatasetError, match="holds files that the phantom did not draw"):
        SlideFilesDataset(filepath=str(tmp_path)).save(FilePlan([]))


def embedding_plan(folder: Path, names: str) -> ShardPlan:
    listed = check_manifest(manifest(*(manifest_row(name) for name in names)))
    files = SlideFiles(folder)
    table = describe_slides(listed, files, INGEST, ENGINE)
    cut, _ = cut_tiles(table, files, TILE, ENGINE)
    return plan_embedding(
        table,
        cut,
        files,
        encoder={"model": "control:stain_statistics", "role": "control"},
        runtime={},
        tile_parameters=TILE,
        parameters={"dtype": "float32"},
        engine=ENGINE,
        name="stain",
    )


def test_a_slide_that_changed_between_runs_is_the_only_one_computed_again(tmp_path, monkeypatch):
    computed: list[str] = []
    compute = EmbedSlide.compute

    def counted(self):
        computed.append(self.slide_id)
        return compute(self)

    monkeypatch.setattr(EmbedSlide, "compute", counted)
    for place, name in enumerate("abc"):
        write_tiff(tmp_path / f"{name}.tiff", tissue(256, 256 + 64 * place))
    dataset(tmp_path / "data").save(embedding_plan(tmp_path, "abc"))
    write_tiff(tmp_path / "b.tiff", 255 - (255 - tissue(256, 320)) // 2)
    dataset(tmp_path / "data").save(embedding_plan(tmp_path, "abc"))
    assert sorted(computed[:3]) == ["a", "b", "c"]
    assert computed[3:] == ["b"]


def test_weights_of_nan_fail_with_the_tile_and_the_mend(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tiff", tissue(256, 256))
    embed = CONTROLS["stain_statistics"].embed

    def broken(self, pixels, truth=None):
        return embed(self, pixels, truth) * np.nan

    monkeypatch.setattr(CONTROLS["stain_statistics"], "embed", broken)
    data = dataset(tmp_path / "data")
    message = (
        r"1 of 1 slides failed.*the encoder gives NaN or infinity on 16 tiles.*its mean and std"
    )
    with pytest.raises(DatasetError, match=message):
        data.save(embedding_plan(tmp_path, "a"))
    assert read_header(tmp_path / "data/1/uni" / shard_name("a")) is None


def test_vectors_of_other_tiles_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tiff", tissue(256, 256))
    data = dataset(tmp_path / "data")
    data.save(embedding_plan(tmp_path, "a"))
    others = pl.DataFrame({"slide_id": ["a"], "tile_id": ["a@1_1"]})
    with pytest.raises(
        OtherTilesError, match=r"made from other tiles .* run the embed pipeline again"
    ):
        refuse_other_tiles(others, data.load())


def test_markup_in_any_cell_of_a_manifest_is_text_in_the_report(report_inputs):  # noqa: F811
    rows = [
        manifest_row(f"{EVIL}{i}", patient_id=EVIL, center=f"{EVIL}c", label=f"{EVIL}{i}")
        for i in range(3)
    ]
    told = check_manifest(manifest(*rows)).with_columns(
        status=pl.lit("usable"),
        warning=pl.lit(f"a warning with {EVIL}"),
        fingerprint=pl.lit("same"),
        tissue_digest=pl.lit(None, pl.String),
    )
    summary = summarise_design(told, INGEST)[1]
    assert sum(EVIL in warning for warning in summary["warnings"]) >= 3
    clean = render_report(**report_inputs)
    page = render_report(**(report_inputs | {"design_summary": summary}))
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert page.count("<script") == clean.count("<script")
