"""One vector per slide: its patches weighted by attention that was fitted on other patients."""

from __future__ import annotations

import numpy as np

from pathfm_kedro.encoders.heads import pool_bags
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import between_rows
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.mosaic import Mosaic


def attention(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Distance between slides pooled by attention (ABMIL) that never saw the query's patient.

    Both slides are pooled by the query's model: vectors of two models do not compare. Unlike the other
    families it has seen labels, those of other patients.

    Raises
    ------
    Undefined
        If there are too few patients or labels to fit it, or if the queries are not the archive's own.
    """
    if queries is not archive:
        raise Undefined(
            "attention is fitted in folds of the cohort's own patients: to search with an image from "
            "outside choose another family"
        )
    bags = np.split(archive.vectors, archive.starts[1:])
    labels, patients = (archive.slides[name].to_numpy() for name in ("label", "patient"))
    pooled = pool_bags(
        "attention", bags, labels, patients, p.attention, p.seed, "retrieval.attention"
    )
    result = np.empty((len(bags), len(bags)))
    for asking, vectors in pooled.by_model():
        result[asking] = between_rows(vectors[asking], vectors, p.distance)
    return result
