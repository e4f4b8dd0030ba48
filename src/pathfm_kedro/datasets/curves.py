"""Tables by name in one versioned folder, as CSV: what ``dvc plots`` plots file by file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from kedro.io.core import AbstractVersionedDataset, Version

from pathfm_kedro.datasets.paths import atomic_path


class CurvesDataset(AbstractVersionedDataset[dict[str, pl.DataFrame], dict[str, pl.DataFrame]]):
    """Curves by the name of their experiment, one CSV file each.

    Examples
    --------
    >>> import tempfile
    >>> dataset = CurvesDataset(filepath=tempfile.mkdtemp())
    >>> dataset.save({"rotation": pl.DataFrame({"x": [90.0], "value": [0.8]})})
    >>> dataset.load()["rotation"].rows()
    [(90.0, 0.8)]
    """

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.metadata = metadata
        super().__init__(
            filepath=PurePosixPath(filepath),
            version=version,
            exists_function=lambda path: Path(path).is_dir(),
        )

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_dir()

    def load(self) -> dict[str, pl.DataFrame]:
        """All tables by name."""
        folder = Path(self._get_load_path())
        return {path.stem: pl.read_csv(path) for path in sorted(folder.glob("*.csv"))}

    def save(self, data: dict[str, pl.DataFrame]) -> None:
        """Write one file a table; files of tables that are gone are removed."""
        folder = Path(self._get_save_path())
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.csv"):
            if path.stem not in data:
                path.unlink()
        for name, table in data.items():
            with atomic_path(folder / f"{name}.csv") as temporary:
                table.write_csv(temporary)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
