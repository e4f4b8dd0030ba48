"""Curves lie as one file each in a version's folder."""

from __future__ import annotations

import polars as pl
import pytest
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets.curves import CurvesDataset

ROTATION = pl.DataFrame({"encoder": ["a", "b"], "x": [45.0, 90.0], "value": [0.75, 0.1 + 0.2]})
INDEX = pl.DataFrame({"encoder": ["a"], "x": [5.0], "value": [1.0]})


def stored(tmp_path, version=None) -> CurvesDataset:
    return CurvesDataset(
        filepath=(tmp_path / "curves").as_posix(), version=version and Version(version, version)
    )


def test_what_is_saved_is_loaded(tmp_path):
    dataset = stored(tmp_path, "v1")
    dataset.save({"rotation": ROTATION, "robustness_index": INDEX})
    loaded = dataset.load()
    assert list(loaded) == ["robustness_index", "rotation"]
    assert loaded["rotation"].equals(ROTATION)
    folder = tmp_path / "curves" / "v1" / "curves"
    assert sorted(path.name for path in folder.iterdir()) == [
        "robustness_index.csv",
        "rotation.csv",
    ]


def test_versions_lie_side_by_side_and_the_newest_is_loaded(tmp_path):
    stored(tmp_path, "2026-01-01T00.00.00.000Z").save({"rotation": ROTATION})
    stored(tmp_path, "2026-02-01T00.00.00.000Z").save({"robustness_index": INDEX})
    newest = CurvesDataset(filepath=(tmp_path / "curves").as_posix(), version=Version(None, None))
    assert list(newest.load()) == ["robustness_index"]


def test_the_same_curves_give_the_same_bytes(tmp_path):
    for version in ("v1", "v2"):
        stored(tmp_path, version).save({"rotation": ROTATION})
    first, second = (
        (tmp_path / "curves" / v / "curves" / "rotation.csv").read_bytes() for v in ("v1", "v2")
    )
    assert first == second


def test_a_curve_that_is_gone_leaves_no_file(tmp_path):
    dataset = stored(tmp_path)
    dataset.save({"rotation": ROTATION, "robustness_index": INDEX})
    dataset.save({"rotation": INDEX})
    assert list(dataset.load()) == ["rotation"]
    assert dataset.load()["rotation"].equals(INDEX)


def test_no_curves_are_an_empty_folder(tmp_path):
    dataset = stored(tmp_path)
    assert not dataset.exists()
    dataset.save({})
    assert dataset.exists()
    assert dataset.load() == {}


def test_a_version_is_not_written_twice(tmp_path):
    stored(tmp_path, "v1").save({"rotation": ROTATION})
    with pytest.raises(DatasetError, match="must not exist"):
        stored(tmp_path, "v1").save({"rotation": ROTATION})
