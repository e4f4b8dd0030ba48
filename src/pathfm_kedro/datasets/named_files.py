"""Values by name in one versioned folder, a file each: what tools show file by file."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.datasets.versioned import VersionedDataset

T = TypeVar("T")


class NamedFilesDataset(VersionedDataset[dict[str, T], dict[str, T]], Generic[T]):
    """Values by name; a subclass says how one is read and written."""

    #: How the files' names end.
    suffix: str

    @staticmethod
    def is_whole(path: str) -> bool:
        """Also without a value."""
        return Path(path).is_dir()

    @abstractmethod
    def read(self, path: Path) -> T:
        """One value."""

    @abstractmethod
    def write(self, value: T, path: Path) -> None:
        """One value."""

    def load(self) -> dict[str, T]:
        """All values by name."""
        folder = Path(self._get_load_path())
        return {path.stem: self.read(path) for path in sorted(folder.glob(f"*{self.suffix}"))}

    def save(self, data: dict[str, T]) -> None:
        """Write one file a value; files of values that are gone are removed."""
        folder = Path(self._get_save_path())
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"*{self.suffix}"):
            if path.stem not in data:
                path.unlink()
        for name, value in data.items():
            with atomic_path(folder / f"{name}{self.suffix}") as temporary:
                self.write(value, temporary)


class MetricsDataset(NamedFilesDataset[dict[str, Any]]):
    """Figures by the name of their encoder, as JSON: rows of ``dvc metrics show``.

    Examples
    --------
    >>> import tempfile
    >>> dataset = MetricsDataset(filepath=tempfile.mkdtemp())
    >>> dataset.save({"uni": {"verdict": "pass", "mknn": 0.9}})
    >>> dataset.load()
    {'uni': {'mknn': 0.9, 'verdict': 'pass'}}
    """

    suffix = ".json"

    def read(self, path: Path) -> dict[str, Any]:
        """Figures of an encoder."""
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return figures

    def write(self, value: dict[str, Any], path: Path) -> None:
        """The same figures give the same bytes."""
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        path.write_text(f"{text}\n", encoding="utf-8")
