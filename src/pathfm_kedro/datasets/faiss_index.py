"""A FAISS index with the names of its rows, on disk."""

from __future__ import annotations

import json
from pathlib import Path

from kedro.io.core import DatasetError

from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.datasets.versioned import FamilyDataset
from pathfm_kedro.statistics.named_index import NamedIndex


class FaissIndexDataset(FamilyDataset[NamedIndex, NamedIndex]):
    """A :class:`NamedIndex` as FAISS's own bytes, the names in a header line before them.

    FAISS's format holds numbers only, so loading one runs no code.
    """

    def load(self) -> NamedIndex:
        """Read the index."""
        path = Path(self._get_load_path())
        header, _, content = path.read_bytes().partition(b"\n")
        try:
            return NamedIndex.deserialized(content, json.loads(header))
        except ValueError as error:
            raise DatasetError(
                f"{path} is not a whole index ({error}): remove it and run the retrieve pipeline"
            ) from error

    def save(self, data: NamedIndex) -> None:
        """Write the index."""
        header = json.dumps(list(data.names)).encode()
        with atomic_path(Path(self._get_save_path())) as temporary:
            temporary.write_bytes(header + b"\n" + data.serialized())
