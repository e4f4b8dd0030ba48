"""Plots that share one version folder, so that a DVC stage has one output for all of them."""

from __future__ import annotations

from pathlib import PurePosixPath

from kedro_datasets.plotly import JSONDataset

from pathfm_kedro.datasets.paths import shared_version_path


class FamilyPlotDataset(JSONDataset):  # type: ignore[misc]
    """A Plotly figure as JSON at ``<folder>/<version>/<name>``, previewed by kedro-viz."""

    def _get_versioned_path(self, version: str) -> PurePosixPath:
        return shared_version_path(self._filepath, version)
