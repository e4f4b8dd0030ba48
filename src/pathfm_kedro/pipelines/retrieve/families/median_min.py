"""Yottixel's distance between mosaics, and its symmetric form."""

from __future__ import annotations

from collections.abc import Callable

from pathfm_kedro.pipelines.retrieve.families.settings import (
    Distance,
    FamilySettings,
    Floats,
    Ints,
)
from pathfm_kedro.pipelines.retrieve.families.vectors import (
    as_distance,
    median_by_slide,
    set_to_set,
    set_to_set_both_ways,
)
from pathfm_kedro.statistics.mosaic import Mosaic


def median_min(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Distances between slides as Yottixel ranks them.

    ``D(q, c) = median over patches a of q of min over patches b of c of distance(a, b)``. It is
    asymmetric: q is the query. Blocked, so that memory does not grow with the number of pairs of
    patches.

    Returns
    -------
    ndarray
        [n_queries, n_archive] float64.

    References
    ----------
    Kalra et al., Yottixel, Medical Image Analysis 65 (2020).

    Examples
    --------
    >>> import numpy as np, polars as pl
    >>> slides = pl.DataFrame({"slide_id": ["s", "t"]})
    >>> mosaic = Mosaic(slides, np.float32([[0.0], [3.0], [1.0]]), np.array([0, 2]))
    >>> median_min(mosaic, mosaic, FamilySettings(distance="euclidean")).tolist()
    [[0.0, 1.5], [1.0, 0.0]]
    """
    return set_to_set(queries, archive, p.distance, _median_of(p.distance), p.precision)


def median_min_symmetric(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Mean of Yottixel's distance in both directions: ``(D(q, c) + D(c, q)) / 2``."""
    reduce = _median_of(p.distance)
    return set_to_set_both_ways(queries, archive, p.distance, reduce, p.precision)


def _median_of(distance: Distance) -> Callable[[Floats, Ints], Floats]:
    # The root before the median: of an even number of patches it is a mean of two.
    return lambda values, sizes: median_by_slide(as_distance(values, distance), sizes)
