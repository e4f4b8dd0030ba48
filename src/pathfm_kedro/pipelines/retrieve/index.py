"""Indexes of slides that a person can query, beside the audited search."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.retrieve.index_recall import BYTES, RECALL, IndexRecall
from pathfm_kedro.statistics.named_index import (
    NamedIndex,
    barcode_index,
    cell_index,
    cosine_index,
    graph_index,
)

INDEX_SCHEMA: dict[str, pl.DataType] = {
    "encoder": pl.String(),
    "index": pl.String(),
    "n_slides": pl.Int64(),
    "bytes_per_slide": pl.Float64(),
    "k": pl.Int64(),
    "recall": pl.Float64(),
    "recall_low": pl.Float64(),
    "recall_high": pl.Float64(),
    "reason": pl.String(),
}


def index_slides(slide_vectors: pl.DataFrame, p: IndexRecall) -> list[NamedIndex]:
    """An index of each type over the slides' mean vectors.

    Parameters
    ----------
    slide_vectors
        slide_id and mean, from :func:`~pathfm_kedro.statistics.mosaic.pool_slides`.
    p
        How approximate indexes are built.

    Returns
    -------
    list of NamedIndex
        In the order of :data:`~pathfm_kedro.statistics.named_index.INDEX_TYPES`. Search one with the
        mean vector of a slide's mosaic; rows are named by slide_id. Unlike the audited search it does
        not leave out the query's own patient.
    """
    vectors = slide_vectors["mean"].to_numpy().astype(np.float32)
    vectors = vectors.reshape(slide_vectors.height, -1)
    names = slide_vectors["slide_id"].to_list()
    build: Mapping[str, Callable[..., NamedIndex]] = {
        "flat": cosine_index,
        "binary": barcode_index,
        "ivf": partial(cell_index, probed=p.probed, seed=p.seed),
        "hnsw": partial(graph_index, links=p.links, built=p.built, searched=p.searched),
    }
    return [make(vectors, names) for make in build.values()]


def describe_indices(measurements: pl.DataFrame) -> pl.DataFrame:
    """What each index holds and how much of the exact search it finds.

    Parameters
    ----------
    measurements
        Of the experiment ``index_recall``, all encoders.

    Returns
    -------
    DataFrame
        Columns :data:`INDEX_SCHEMA`, one row for each encoder, type of index and number of neighbours.
    """
    rows, sizes = [], {}
    for row in measurements.iter_rows(named=True):
        setting = json.loads(row["setting"])
        at = row["encoder"], setting["index"]
        if row["metric"] == BYTES:
            sizes[at] = row["value"]
        if row["metric"] == RECALL:
            ends = {"recall": "value", "recall_low": "ci_low", "recall_high": "ci_high"}
            rows.append(
                {"encoder": at[0], "index": at[1], "n_slides": row["n"], "k": setting["k"]}
                | {name: row[column] for name, column in ends.items()}
                | {"reason": row["reason"] if row["value"] is None else ""}
            )
    whole = [row | {"bytes_per_slide": sizes.get((row["encoder"], row["index"]))} for row in rows]
    return pl.DataFrame(whole, schema=INDEX_SCHEMA)
