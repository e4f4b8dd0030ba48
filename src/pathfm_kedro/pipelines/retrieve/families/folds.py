"""Learning on other patients: what is fitted for a query never saw the query's patient."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.settings import Bools, Ints
from pathfm_kedro.statistics.mosaic import Mosaic


def other_patients(
    queries: Mosaic, archive: Mosaic, folds: int, seed: int
) -> Iterator[tuple[Ints, Bools]]:
    """Queries in folds of patients, and the archive's slides that may be learned from.

    A patient's fold follows from its id and the seed alone, so that adding a slide moves no other. A
    query whom the archive does not hold learns from the archive less one fold.

    Yields
    ------
    tuple
        Rows of the queries in a fold, and [n_archive] whether a slide lies outside it. Queries whose
        fold leaves nobody to learn from learn from the slides of all other patients, one by one.
    """
    own = _fold_of(queries, folds, seed)
    found = _fold_of(archive, folds, seed)
    for fold in np.unique(own):
        rows = np.flatnonzero(own == fold)
        outside = found != fold
        if outside.any():
            yield rows, outside
            continue
        for row in rows:
            others = _of_others(queries, archive, int(row))
            if others.any():
                yield np.array([row]), others


def _fold_of(mosaic: Mosaic, folds: int, seed: int) -> Ints:
    names = mosaic.slides["patient"].to_list()
    digests = (sha256(f"{seed}:{name}".encode()).digest() for name in names)
    return np.array([int.from_bytes(digest[:8], "little") % folds for digest in digests], np.int64)


def _of_others(queries: Mosaic, archive: Mosaic, row: int) -> Bools:
    patient = queries.slides["patient"][row]
    return np.asarray((archive.slides["patient"] != patient).to_numpy(), bool)
