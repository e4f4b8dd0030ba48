"""A small record that is measured once and found again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from kedro.io.core import DatasetError

from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.datasets.versioned import FamilyDataset


class Measurable(Protocol):
    """What a node hands over: a record that need not be measured if it was before."""

    def key(self) -> Mapping[str, str]:
        """What the record depends on."""
        ...

    def record(self) -> Mapping[str, Any]:
        """The record, measured now; its ``key`` is equal to :meth:`key`."""
        ...


class FamilyRecordDataset(FamilyDataset[Measurable, dict[str, Any]]):
    """A JSON record with a key, in the layout ``<folder>/<version>/<name>``.

    Saving looks for a record with an equal key, in this version and then in the others, newest first.
    Only where there is none it is measured: a second run takes the same record, however fast the
    machine is that day.
    """

    def load(self) -> dict[str, Any]:
        """The record."""
        path = Path(self._get_load_path())
        record = _read(path)
        if record is None:
            raise DatasetError(f"{path} holds no record: remove the file and run again")
        return record

    def save(self, data: Measurable) -> None:
        """Keep an earlier record with the same key, or measure a new one."""
        target = self._place_to_save()
        key = dict(data.key())
        found = next((r for r in self._records(target) if r.get("key") == key), None)
        if found is None:
            found = dict(data.record())
        with atomic_path(target) as temporary:
            temporary.write_text(
                json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n",
                encoding="utf-8",
            )

    def _records(self, target: Path) -> Iterator[dict[str, Any]]:
        for path in (target, *self._other_versions(target)):
            record = _read(path)
            if record is not None:
                yield record


def _read(path: Path) -> dict[str, Any] | None:
    """The record of a file; None where there is no file or it is not whole."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
