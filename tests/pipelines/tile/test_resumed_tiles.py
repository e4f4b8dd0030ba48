"""A run that is killed while it finds tissue repeats at most the slide at work."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from kedro.io.core import DatasetError, Version
from polars.testing import assert_frame_equal

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.engine.failures import TooManyFailedError
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile import tiles as tiles_module
from pathfm_kedro.pipelines.tile.tiles import collect_tiles, cut_tiles, plan_tiles
from pathfm_kedro.slides.files import SlideFiles
from tests.conftest import manifest, manifest_row, write_tiff
from tests.pipelines.tile.test_tiles import ENGINE
from tests.pipelines.tile.test_tiles import PARAMETERS as TILE

NAMES = "abcd"


@pytest.fixture
def cohort(tmp_path, pink_slide):
    """Three slides of tissue, and one of glass alone."""
    for i, name in enumerate(NAMES[:3]):
        write_tiff(tmp_path / f"{name}.tiff", np.roll(pink_slide[:768, :768], 64 * i, axis=0))
    write_tiff(tmp_path / "d.tiff", np.full((512, 512, 3), 245, np.uint8))
    return described(tmp_path), SlideFiles(tmp_path)


def described(folder):
    listed = check_manifest(manifest(*(manifest_row(name) for name in NAMES)))
    ingest = {"mpp_bounds": [0.05, 10], "cramers_v_warning": 1}
    return describe_slides(listed, SlideFiles(folder), ingest, ENGINE)


def dataset(folder, version="1"):
    path = folder / "slide_tiles/cohort"
    return ShardedTensorDataset(filepath=path.as_posix(), version=Version(version, version))


@pytest.fixture
def worked_on(monkeypatch):
    """Slides whose tissue is found, in order; the process is killed before one named in ``kill``."""
    found, kill = [], set()
    real = tiles_module.tiles_of_one

    def noting(row, *rest):
        if row["slide_id"] in kill:
            raise KeyboardInterrupt
        found.append(row["slide_id"])
        return real(row, *rest)

    monkeypatch.setattr(tiles_module, "tiles_of_one", noting)
    noting.found, noting.kill = found, kill
    return noting


def run(folder, slides, files, version="1", **changes):
    own = dataset(folder, version)
    own.save(plan_tiles(slides, files, TILE | changes, ENGINE))
    return collect_tiles(slides, own.load(), TILE | changes, ENGINE)


def test_the_slides_that_were_done_are_not_done_again(tmp_path, cohort, worked_on):
    slides, files = cohort
    worked_on.kill.add("c")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, slides, files)
    assert worked_on.found == ["a", "b"]
    worked_on.kill.clear()
    tables = run(tmp_path, slides, files)
    assert worked_on.found == ["a", "b", "c", "d"]
    for found, expected in zip(tables, cut_tiles(slides, files, TILE, ENGINE), strict=True):
        assert_frame_equal(found, expected)
    assert tables[1].filter(slide_id="d")["reason"].item() == "no tissue was found on this slide"


def test_another_version_takes_what_has_not_changed(tmp_path, cohort, worked_on, pink_slide):
    slides, files = cohort
    run(tmp_path, slides, files)
    worked_on.found.clear()
    write_tiff(tmp_path / "b.tiff", pink_slide[:700, :700])
    changed = described(tmp_path)
    tiles, _ = run(tmp_path, changed, files, "2")
    assert worked_on.found == ["b"]
    assert_frame_equal(tiles, cut_tiles(changed, files, TILE, ENGINE)[0])
    worked_on.found.clear()
    fewer, _ = run(tmp_path, changed, files, "3", max_tiles_per_slide=5)
    assert worked_on.found == list(NAMES)
    assert fewer.group_by("slide_id").len()["len"].to_list() == [5] * 3


def test_a_slide_that_fails_has_the_reason_that_it_has_without_shards(tmp_path, cohort):
    slides, files = cohort
    (tmp_path / "a.tiff").unlink()
    found = run(tmp_path, slides, files)[1]
    assert_frame_equal(found, cut_tiles(slides, files, TILE, ENGINE)[1])
    assert found.filter(status="unusable")["slide_id"].to_list() == ["a", "d"]
    strict = ENGINE | {"max_failed_share": 0.3}
    with pytest.raises(TooManyFailedError, match=r"2 of 4.*a: no file"):
        collect_tiles(slides, dataset(tmp_path).load(), TILE, strict)
    with pytest.raises(DatasetError, match="1 of 4"):
        dataset(tmp_path).save(plan_tiles(slides, files, TILE, ENGINE | {"max_failed_share": 0.1}))


def test_a_cohort_without_a_usable_slide_has_empty_tables(tmp_path, cohort):
    slides, files = cohort
    none = slides.with_columns(status=pl.lit("unusable"))
    tiles, tiling = run(tmp_path, none, files)
    assert tiles.is_empty()
    assert tiling.is_empty()
