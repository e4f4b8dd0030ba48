"""JSON files that share one version folder with their family."""

from __future__ import annotations

from pathlib import PurePosixPath

from kedro_datasets.json import JSONDataset

from pathfm_kedro.datasets.paths import shared_version_path


class FamilyJSONDataset(JSONDataset):  # type: ignore[misc]
    """A JSON file at ``<folder>/<version>/<name>``."""

    def _get_versioned_path(self, version: str) -> PurePosixPath:
        return shared_version_path(self._filepath, version)
