"""Yottixel's distance between mosaics, and its symmetric form."""

from __future__ import annotations

from functools import partial

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import (
    as_distance,
    median_by_slide,
    nearest_patches,
    symmetrised,
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
    return _median_min(queries, archive, p)


def median_min_symmetric(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Mean of Yottixel's distance in both directions: ``(D(q, c) + D(c, q)) / 2``."""
    return symmetrised(partial(_median_min, p=p), queries, archive)


def _median_min(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    result = np.empty((len(queries.starts), len(archive.starts)))
    for some, nearest in nearest_patches(queries, archive, p.distance, p.precision):
        # The root before the median: of an even number of patches it is a mean of two.
        result[some] = median_by_slide(as_distance(nearest, p.distance), queries.sizes[some]).T
    return result
