"""Chamfer distance between two sets of patches.

``(1 / |q|) Σ_a min_b ‖a − b‖² + (1 / |c|) Σ_b min_a ‖a − b‖²``, halved. On vectors of length 1 it is
twice the distance of ``maxsim``; what it adds is the length of the vectors.
"""

from __future__ import annotations

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import mean_by_slide, set_to_set_both_ways
from pathfm_kedro.statistics.mosaic import Mosaic


def chamfer(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Mean squared distance to the nearest patch, in both directions: [n_queries, n_archive]."""
    return set_to_set_both_ways(queries, archive, "euclidean", mean_by_slide, p.precision)
