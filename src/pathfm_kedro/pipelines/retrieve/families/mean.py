"""One vector per slide: the mean of its patches."""

from __future__ import annotations

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import between_rows
from pathfm_kedro.statistics.mosaic import Mosaic


def mean(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Distance between the means of the patches: [n_queries, n_archive]."""
    return between_rows(queries.mean(), archive.mean(), p.distance)
