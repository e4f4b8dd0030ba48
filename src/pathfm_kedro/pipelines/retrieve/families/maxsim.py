"""Late interaction: every patch of the query looks for its best match in the other slide.

``MaxSim(q, c) = (1 / |q|) Σ over patches a of q of max over patches b of c of cos(a, b)``, symmetrised,
as the distance ``1 − (MaxSim(q, c) + MaxSim(c, q)) / 2``. It is the mean where Yottixel takes the
median.
"""

from __future__ import annotations

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import (
    mean_by_slide,
    set_to_set_both_ways,
)
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.mutual_knn import unit


def maxsim(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Late interaction of all patches: [n_queries, n_archive].

    References
    ----------
    Khattab & Zaharia, ColBERT, SIGIR 2020.
    """
    return set_to_set_both_ways(queries, archive, "cosine", mean_by_slide, p.precision)


def maxsim_pooled(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Late interaction of at most ``tokens`` vectors per slide, see :func:`pooled_patches`."""
    left = pooled_patches(queries, p.tokens)
    right = left if queries is archive else pooled_patches(archive, p.tokens)
    return maxsim(left, right, p)


def pooled_patches(mosaic: Mosaic, tokens: int) -> Mosaic:
    """Patches of each slide pooled to at most `tokens`: means of Ward's clusters of unit vectors.

    References
    ----------
    Clavié et al., Reducing the footprint of multi-vector retrieval with token pooling,
    arXiv 2409.14683 (2024).
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    parts = []
    for slide, start in enumerate(mosaic.starts):
        rows = unit(mosaic.vectors[start : start + mosaic.sizes[slide]])
        if len(rows) > tokens:
            cluster = fcluster(linkage(rows, "ward"), tokens, "maxclust")
            rows = np.stack([rows[cluster == c].mean(axis=0) for c in np.unique(cluster)])
        parts.append(rows.astype(np.float32))
    sizes = np.array([len(part) for part in parts])
    return Mosaic(mosaic.slides, np.concatenate(parts), np.cumsum(sizes) - sizes)
