"""What happens around a run: vectors are held against the tiles table, the report is pointed to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl

logger = logging.getLogger(__name__)

#: Stacked vectors, and the table whose rows they stand for.
_ROWS_OF = {
    "embeddings.": "tiles",
    "rotation_views.": "tile_pool",
    "appearance_views.": "tile_pool",
    "texture_views.": "tile_pool",
    "crop_views.": "tile_pool",
}


class TileHooks:
    """Refuse vectors that were made from other tiles than the table at hand.

    A person may cut tiles anew and run an experiment without embedding again; rows would then be
    paired by position alone.
    """

    @hook_impl
    def before_node_run(self, inputs: Mapping[str, Any]) -> None:
        """Compare digests wherever a node gets vectors together with their table."""
        from pathfm_kedro.statistics.tables import TracedEmbeddings, refuse_other_tiles

        for name, data in inputs.items():
            for prefix, table in _ROWS_OF.items():
                if (
                    name.startswith(prefix)
                    and table in inputs
                    and isinstance(data, TracedEmbeddings)
                ):
                    refuse_other_tiles(inputs[table], data)


class ReportHooks:
    """Print where the report lies once it is written."""

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Remember that this run wrote a report."""
        if dataset_name == "report":
            self._wrote_report = True

    @hook_impl
    def after_pipeline_run(self, catalog: Any) -> None:
        """Say where the report is."""
        if getattr(self, "_wrote_report", False):
            self._wrote_report = False
            path = Path(catalog["report"]._get_load_path())
            if path.is_relative_to(Path.cwd()):
                path = path.relative_to(Path.cwd())
            logger.info("The report: %s", path)
