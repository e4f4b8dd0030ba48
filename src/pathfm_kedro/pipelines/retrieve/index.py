"""An index of slides that a person can query, beside the audited search."""

from __future__ import annotations

import numpy as np
import polars as pl

from pathfm_kedro.statistics.named_index import NamedIndex, cosine_index


def index_slides(slide_vectors: pl.DataFrame) -> NamedIndex:
    """Exact cosine index over the slides' mean vectors.

    Parameters
    ----------
    slide_vectors
        slide_id and mean, from the embed pipeline.

    Returns
    -------
    NamedIndex
        Search it with the mean vector of a slide's mosaic; rows are named by slide_id. Unlike the
        audited search it does not leave out the query's own patient.
    """
    vectors = slide_vectors["mean"].to_numpy().astype(np.float32)
    return cosine_index(
        vectors.reshape(slide_vectors.height, -1), slide_vectors["slide_id"].to_list()
    )
