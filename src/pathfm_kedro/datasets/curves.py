"""Tables by name in one versioned folder, as CSV: what ``dvc plots`` plots file by file."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pathfm_kedro.datasets.named_files import NamedFilesDataset


class CurvesDataset(NamedFilesDataset[pl.DataFrame]):
    """Curves by the name of their experiment, one CSV file each.

    Examples
    --------
    >>> import tempfile
    >>> dataset = CurvesDataset(filepath=tempfile.mkdtemp())
    >>> dataset.save({"rotation": pl.DataFrame({"x": [90.0], "value": [0.8]})})
    >>> dataset.load()["rotation"].rows()
    [(90.0, 0.8)]
    """

    suffix = ".csv"

    def read(self, path: Path) -> pl.DataFrame:
        """A table."""
        return pl.read_csv(path)

    def write(self, value: pl.DataFrame, path: Path) -> None:
        """A table."""
        value.write_csv(path)
