"""Polars tables in Parquet files, versioned, written whole or not at all."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from kedro.io.core import DatasetError, get_filepath_str
from kedro_datasets._typing import TablePreview
from kedro_datasets.polars import EagerPolarsDataset

from pathfm_kedro.datasets.paths import atomic_path, shared_version_path

#: Characters shown of what is no plain value: weights and pictures are long.
_SHOWN_TEXT = 200


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

    def preview(self, nrows: int = 5) -> TablePreview:
        """First rows, for kedro-viz; lists, arrays and bytes as the beginning of their text."""
        return table_preview(self._copy().load(), nrows)


class FamilyParquetDataset(ParquetDataset):
    """A Parquet table that shares one version folder with its family.

    ``filepath: data/x/07_measurements/rotation.uni.parquet`` has the version
    ``data/x/07_measurements/<version>/rotation.uni.parquet``.
    """

    def _get_versioned_path(self, version: str) -> PurePosixPath:
        return shared_version_path(self._filepath, version)


def table_preview(table: pl.DataFrame, nrows: int) -> TablePreview:
    """First rows of a table in the form that kedro-viz draws.

    Examples
    --------
    >>> table_preview(pl.DataFrame({"k": [1], "ids": [[2, 3]]}), 5)["data"]
    [[1, '[2, 3]']]
    """
    rows = table.head(nrows).rows()
    plain = [[v if _is_plain(v) else str(v)[:_SHOWN_TEXT] for v in row] for row in rows]
    return TablePreview({"index": list(range(len(rows))), "columns": table.columns, "data": plain})


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
