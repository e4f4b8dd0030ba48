"""An index of slides that a person can query, beside the audited search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from pathfm_kedro.statistics.named_index import NamedIndex, cosine_index


def index_slides(slide_vectors: pl.DataFrame) -> NamedIndex:
    """Exact cosine index over the slides' mean vectors.

    Parameters
    ----------
    slide_vectors
        slide_id and mean, from :func:`~pathfm_kedro.statistics.mosaic.pool_slides`.

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


def describe_indices(*indices: NamedIndex, names: Sequence[str]) -> pl.DataFrame:
    """What each encoder's index holds.

    Returns
    -------
    DataFrame
        encoder, n_slides, dimension, megabytes of vectors.
    """
    rows = [
        {
            "encoder": name,
            "n_slides": len(index.names),
            "dimension": int(index.index.d),
            "megabytes": 4 * int(index.index.d) * len(index.names) / 1e6,
        }
        for name, index in zip(names, indices, strict=True)
    ]
    schema = {
        "encoder": pl.String(),
        "n_slides": pl.Int64(),
        "dimension": pl.Int64(),
        "megabytes": pl.Float64(),
    }
    return pl.DataFrame(rows, schema=schema)
