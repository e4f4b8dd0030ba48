"""Tables are versioned, whole, and checked at the catalog's edge."""

from __future__ import annotations

import polars as pl
import pytest
from kedro.io import DataCatalog
from kedro.io.core import DatasetError, Version
from kedro.validation import DataValidationError

from pathfm_kedro.datasets.parquet import FamilyParquetDataset, ParquetDataset


def test_a_family_shares_one_folder_per_version(tmp_path):
    for name in ("a", "b"):
        data = FamilyParquetDataset(
            filepath=(tmp_path / f"{name}.parquet").as_posix(), version=Version("v", "v")
        )
        data.save(pl.DataFrame({"x": [1]}))
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == ["a.parquet", "b.parquet"]


def test_the_pinned_label_sorts_before_timestamps(tmp_path):
    path = (tmp_path / "a.parquet").as_posix()
    for version in ("0-repro", "2026-01-01T00.00.00.000Z"):
        ParquetDataset(filepath=path, version=Version(version, version)).save(
            pl.DataFrame({"version": [version]})
        )
    newest = ParquetDataset(filepath=path, version=Version(None, None)).load()
    assert newest["version"][0].startswith("2026")


def test_a_broken_file_is_named_with_the_mend(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not whole")
    with pytest.raises(DatasetError, match=r"a\.parquet is not a whole Parquet file.*run again"):
        ParquetDataset(filepath=path.as_posix()).load()


def test_the_same_table_gives_the_same_bytes(tmp_path):
    table = pl.DataFrame({"x": range(5000), "y": [str(i) for i in range(5000)]})
    for name in ("a", "b"):
        ParquetDataset(filepath=(tmp_path / name).as_posix()).save(table)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_table_of_the_wrong_form_is_refused_by_the_catalog(tmp_path):
    catalog = DataCatalog.from_config(
        {
            "tiles": {
                "type": "pathfm_kedro.datasets.parquet.ParquetDataset",
                "filepath": (tmp_path / "tiles.parquet").as_posix(),
                "validator": "pathfm_kedro.datasets.schemas.tiles",
            }
        }
    )
    with pytest.raises(DataValidationError, match="tile"):
        catalog.save("tiles", pl.DataFrame({"tile_id": ["a", "a"]}))
