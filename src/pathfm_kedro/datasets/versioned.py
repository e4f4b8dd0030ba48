"""What the project's own versioned datasets have in common."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from kedro.io.core import AbstractVersionedDataset, Version

from pathfm_kedro.datasets.paths import shared_version_path, shared_versions

In = TypeVar("In")
Out = TypeVar("Out")


class VersionedDataset(AbstractVersionedDataset[In, Out], Generic[In, Out]):
    """What lies at a path with versions; a subclass reads and writes it."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.metadata = metadata
        super().__init__(
            filepath=PurePosixPath(filepath), version=version, exists_function=self.is_whole
        )

    @staticmethod
    def is_whole(path: str) -> bool:
        """Whether a version is there: one that was not finished is none."""
        return Path(path).is_file()

    def _exists(self) -> bool:
        return self.is_whole(str(self._get_load_path()))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}


class FamilyDataset(VersionedDataset[In, Out]):
    """One of a family that shares the folder of a version: ``<folder>/<version>/<name>``."""

    def _get_versioned_path(self, version: str) -> PurePosixPath:
        return shared_version_path(self._filepath, version)

    def _place_to_save(self) -> Path:
        """Where this version lies, also where it is there already and may be gone on with."""
        version = self.resolve_save_version()
        path = Path(self._get_versioned_path(version) if version else self._filepath)
        # A worker may run in another folder.
        return path.absolute()

    def _other_versions(self, own: Path) -> list[Path]:
        """What lies under other versions, newest first; nothing without versions."""
        if self._version is None:
            return []
        found = (path.absolute() for path in shared_versions(self._filepath))
        return [path for path in found if path != own]
