"""Polars tables in Parquet files, versioned, written whole or not at all."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from kedro.io.core import DatasetError, get_filepath_str
from kedro_datasets.polars import EagerPolarsDataset

from pathfm_kedro.datasets.paths import atomic_path, shared_version_path


class ParquetDataset(EagerPolarsDataset):  # type: ignore[misc]
    """A Polars DataFrame in a Parquet file.

    Differs from kedro-datasets' `EagerPolarsDataset` in that a file appears under its name only when
    it is whole: a killed run leaves no half-written newest version behind.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "tiles.parquet"
    >>> dataset = ParquetDataset(filepath=path.as_posix())
    >>> dataset.save(pl.DataFrame({"tile_id": ["a"]}))
    >>> dataset.load()["tile_id"].to_list()
    ['a']
    """

    def __init__(self, *, filepath: str, **kwargs: Any) -> None:
        super().__init__(filepath=filepath, file_format="parquet", **kwargs)

    def load(self) -> pl.DataFrame:
        """Read the table."""
        path = Path(get_filepath_str(self._get_load_path(), self._protocol))
        try:
            return pl.read_parquet(path, **self._load_args)
        except pl.exceptions.ComputeError as error:
            raise DatasetError(
                f"{path} is not a whole Parquet file ({error}): remove its version folder "
                f"{path.parent} and run again"
            ) from error

    def save(self, data: pl.DataFrame) -> None:
        """Write the table under a temporary name, then give it its own."""
        path = Path(get_filepath_str(self._get_save_path(), self._protocol))
        with atomic_path(path) as temporary:
            data.write_parquet(temporary, **self._save_args)
        self._invalidate_cache()


class FamilyParquetDataset(ParquetDataset):
    """A Parquet table that shares one version folder with its family.

    ``filepath: data/x/07_measurements/rotation.uni.parquet`` has the version
    ``data/x/07_measurements/<version>/rotation.uni.parquet``.
    """

    def _get_versioned_path(self, version: str) -> PurePosixPath:
        return shared_version_path(self._filepath, version)
