"""One vector per slide: the largest value of its patches in each dimension."""

from __future__ import annotations

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import between_rows
from pathfm_kedro.statistics.mosaic import Mosaic


def maximum(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Distance between the maxima of the patches: [n_queries, n_archive]."""
    return between_rows(queries.maximum(), archive.maximum(), p.distance)
