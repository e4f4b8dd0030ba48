"""What happens around a run: say where the report lies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl

logger = logging.getLogger(__name__)


class ReportHooks:
    """Print where the report lies once it is written."""

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
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
