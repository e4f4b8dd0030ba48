"""A small record that is measured once and found again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from kedro.io.core import AbstractVersionedDataset, DatasetError, Version

from pathfm_kedro.datasets.paths import atomic_path, shared_version_path, shared_versions


class Measurable(Protocol):
    """What a node hands over: a record that need not be measured if it was before."""

    def key(self) -> Mapping[str, str]:
        """What the record depends on."""
        ...

    def record(self) -> Mapping[str, Any]:
        """The record, measured now; its ``key`` is equal to :meth:`key`."""
        ...


class FamilyRecordDataset(AbstractVersionedDataset[Measurable, dict[str, Any]]):
    """A JSON record with a key, in the layout ``<folder>/<version>/<name>``.

    Saving looks for a record with an equal key, in this version and then in the others, newest first.
    Only where there is none it is measured: a second run takes the same record, however fast the
    machine is that day.
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
            exists_function=lambda path: Path(path).is_file(),
        )

    def _get_versioned_path(self, version: str) -> PurePosixPath:
        return shared_version_path(self._filepath, version)

    def load(self) -> dict[str, Any]:
        """The record."""
        path = Path(self._get_load_path())
        record = _read(path)
        if record is None:
            raise DatasetError(f"{path} holds no record: remove the file and run again")
        return record

    def save(self, data: Measurable) -> None:
        """Keep an earlier record with the same key, or measure a new one."""
        target = self._target()
        key = dict(data.key())
        found = next((r for r in self._records(target) if r.get("key") == key), None)
        if found is None:
            found = dict(data.record())
        with atomic_path(target) as temporary:
            temporary.write_text(
                json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n",
                encoding="utf-8",
            )

    def _target(self) -> Path:
        version = self.resolve_save_version()
        return Path(self._get_versioned_path(version) if version else self._filepath)

    def _records(self, target: Path) -> Iterator[dict[str, Any]]:
        others = (path for path in shared_versions(self._filepath) if path != target)
        for path in (target, *others):
            record = _read(path)
            if record is not None:
                yield record

    def _exists(self) -> bool:
        try:
            return Path(self._get_load_path()).is_file()
        except DatasetError:
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}


def _read(path: Path) -> dict[str, Any] | None:
    """The record of a file; None where there is no file or it is not whole."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
