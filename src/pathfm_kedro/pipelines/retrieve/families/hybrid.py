"""Reciprocal rank fusion of other searches, as of a dense and a sparse one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.settings import Bools, FamilySettings, Floats
from pathfm_kedro.statistics.mosaic import Mosaic

#: The constant of the paper, which keeps first places from deciding alone.
CONSTANT = 60


def hybrid(
    distances: Callable[[str], Floats],
    allowed: Bools,
    queries: Mosaic,
    archive: Mosaic,
    p: FamilySettings,
) -> Floats:
    """``Σ over searches of 1 / (60 + rank)``, as a distance: the largest possible sum less it.

    Ranks are those among the slides that a query may find; ties share the better rank.

    Parameters
    ----------
    distances
        Those of another family.
    allowed
        [n_queries, n_archive] which slides a query may find.
    queries, archive, p
        Not needed beyond ``p.fused``.

    References
    ----------
    Cormack, Clarke & Büttcher, Reciprocal rank fusion, SIGIR 2009.
    """
    result = np.full(allowed.shape, len(p.fused) / (CONSTANT + 1))
    for name in p.fused:
        result -= 1 / (CONSTANT + ranks(np.where(allowed, distances(name), np.inf)))
    return result


def ranks(distances: Floats) -> Floats:
    """Rank of each entry in its row, from 1; equal ones share the better.

    Examples
    --------
    >>> ranks(np.array([[0.3, 0.1, 0.3, 0.9]])).tolist()
    [[2.0, 1.0, 2.0, 4.0]]
    """
    from scipy.stats import rankdata

    return np.asarray(rankdata(distances, method="min", axis=1), np.float64)
