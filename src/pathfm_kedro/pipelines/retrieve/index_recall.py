"""Recall of indexes: how much of the exact search a faster or smaller one finds.

Each slide's mean vector is searched among those of the other patients, by an index that is

- ``flat``: exact, by cosine: what the others are held against;
- ``binary``: of barcodes (:func:`~pathfm_kedro.statistics.barcodes.barcodes`), by Hamming distance;
- ``ivf``: in cells, of which a share is looked at;
- ``hnsw``: a graph of near vectors.

``recall`` is the share of the k nearest slides of other patients by the exact search that the index
also gives among its k nearest; slides as near as the k-th count as well, so that ties cost nothing.
The interval is the bootstrap over patients, and at least as wide as the exact binomial one.
``bytes_per_slide`` counts the whole index, with cells and links. ``seconds_per_query`` is measured
where the cohort allows it (:mod:`~pathfm_kedro.pipelines.retrieve.search_time`).

Pitfalls
--------
- Recall is of vectors and says nothing of labels: a neighbour that is missed may be replaced by one as
  good.
- It falls with the number of slides. Of a small cohort nearly every index finds nearly everything.
- An index searches all patients; the query's own are taken out of a list that is so much longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.retrieve.families.settings import Count, Ints
from pathfm_kedro.pipelines.retrieve.search_time import SECONDS, seconds_of
from pathfm_kedro.statistics.bootstrap import (
    at_least_binomial,
    patient_codes,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.figures import Figure, Undefined
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.named_index import INDEX_TYPES, NamedIndex, Vectors
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters

RECALL, BYTES = "recall", "bytes_per_slide"
#: Cosines closer than this are tied: float32 knows them no better.
_TIED = 1e-6
#: Queries whose neighbours are compared at once.
_QUERIES_AT_ONCE = 1024
_FEWEST_PATIENTS = 2

RECALL_SCHEMA: dict[str, pl.DataType] = {
    "index": pl.String(),
    "bytes_per_slide": pl.Float64(),
    "k": pl.Int64(),
    "patient_id": pl.String(),
    "found": pl.Int64(),
    "wanted": pl.Int64(),
    "queries": pl.Int64(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class IndexRecall(ExperimentParameters):
    """Parameters of the experiment; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    k
        Neighbours that are asked for.
    probed
        Share of the cells that ``ivf`` looks at.
    links, built, searched
        Of ``hnsw``: links of each vector, and candidates that are kept while it is built and searched.
    """

    k: Annotated[tuple[Count, ...], Field(min_length=1)]
    probed: Annotated[float, Field(gt=0, le=1)]
    links: Annotated[int, Field(ge=2)]
    built: Count
    searched: Count


def recall_statistics(*inputs: Any) -> pl.DataFrame:
    """Neighbours that each index finds, summed by patient.

    Parameters
    ----------
    inputs
        Slides table; slide_id and mean of :func:`~pathfm_kedro.statistics.mosaic.pool_slides`; an
        index of each of :data:`INDEX_TYPES` over these; the parameters.

    Returns
    -------
    DataFrame
        Columns :data:`RECALL_SCHEMA`: of each type, k and patient the neighbours found, those
        wanted, and queries.
    """
    slides, slide_vectors, *indexes, p = inputs
    named = slide_vectors.join(slides.select("slide_id", "patient_id"), on="slide_id", how="left")
    vectors = named["mean"].to_numpy().astype(np.float32).reshape(named.height, -1)
    names = named["patient_id"].to_numpy()
    patients, n_patients = patient_codes(names)
    tables = [pl.DataFrame(schema=RECALL_SCHEMA)]
    if n_patients < _FEWEST_PATIENTS:
        return tables[0]
    codes = np.unique(names)
    nearest = [neighbours_of_others(index, vectors, patients, max(p.k)) for index in indexes]
    for kind, index, found in zip(INDEX_TYPES, indexes, nearest, strict=True):
        each = len(index.serialized()) / len(vectors)
        for k in p.k:
            hits, wanted = hits_of(vectors, nearest[0][:, :k], found[:, :k])
            sums = np.column_stack([hits, wanted, wanted > 0])
            counts = sum_by_patient(sums, patients, n_patients).astype(np.int64)
            tables.append(
                pl.DataFrame(
                    {"patient_id": codes}
                    | dict(zip(("found", "wanted", "queries"), counts.T, strict=True))
                )
                .with_columns(
                    index=pl.lit(kind), bytes_per_slide=pl.lit(each), k=pl.lit(k, pl.Int64())
                )
                .select(list(RECALL_SCHEMA))
            )
    return pl.concat(tables)


def neighbours_of_others(index: NamedIndex, vectors: Vectors, patients: Ints, k: int) -> Ints:
    """The k nearest rows of other patients by an index: [n, k], −1 where it finds fewer.

    Parameters
    ----------
    index
        Over `vectors`, in their order.
    vectors
        [n, d].
    patients
        [n] codes.
    k
        Rows wanted.
    """
    own = int(np.bincount(patients).max())
    _, rows = index.nearest(vectors, k + own)
    other = (rows >= 0) & (patients[rows] != patients[:, None])
    # What may be kept comes first, in its order.
    order = np.argsort(~other, axis=1, kind="stable")[:, :k]
    kept = np.where(other, rows, -1)
    found = np.take_along_axis(kept, order, axis=1)
    return np.pad(found, ((0, 0), (0, k - found.shape[1])), constant_values=-1)


def hits_of(vectors: Vectors, exact: Ints, found: Ints) -> tuple[Ints, Ints]:
    """How many of each query's exact neighbours were found, and how many there are.

    Parameters
    ----------
    vectors
        [n, d].
    exact, found
        [n, k] rows, −1 for none.

    Examples
    --------
    >>> vectors = np.float32([[1, 0], [1, 0.1], [1, -0.1], [0, 1]])  # 1 and 2 are tied for query 0
    >>> hits_of(vectors, np.array([[1]] * 4), np.array([[2]] * 4))[0].tolist()[0]
    1
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0, length, 1)
    hits, wanted = np.zeros(len(vectors), np.int64), (exact >= 0).sum(axis=1)
    for start in range(0, len(vectors), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        near, given = (
            np.where(part >= 0, np.einsum("nd,nkd->nk", unit[rows], unit[part]), np.nan)
            for part in (exact[rows], found[rows])
        )
        furthest = np.where(
            wanted[rows] > 0, np.nanmin(np.nan_to_num(near, nan=np.inf), axis=1), np.inf
        )
        hits[rows] = (given >= furthest[:, None] - _TIED).sum(axis=1)
    return np.minimum(hits, wanted), wanted


def recall_figures(
    statistics: pl.DataFrame, times: Mapping[str, Any], p: IndexRecall
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`recall_statistics`.
    times
        From :mod:`~pathfm_kedro.pipelines.retrieve.search_time`.
    p
        The parameters.
    """
    for kind in INDEX_TYPES:
        own = statistics.filter(index=kind)
        for k in p.k:
            compute = partial(_recall, own.filter(k=k), p)
            yield Figure(RECALL, compute, {"index": kind, "k": k})
        yield Figure(BYTES, partial(_bytes, own.filter(k=p.k[0])), {"index": kind})
        yield Figure(SECONDS, partial(seconds_of, times, f"index {kind}"), {"index": kind})


def _recall(rows: pl.DataFrame, p: IndexRecall) -> Estimate:
    _refuse_nothing(rows)
    found, wanted = (rows[name].to_numpy().astype(np.float64) for name in ("found", "wanted"))
    queries = int(rows["queries"].sum())
    return at_least_binomial(ratio_estimate(found, wanted, p.weights(rows.height), n=queries))


def _bytes(rows: pl.DataFrame) -> Estimate:
    _refuse_nothing(rows)
    counted = rows["bytes_per_slide"][0]
    return Estimate(counted, counted, counted, int(rows["queries"].sum()), rows.height)


def _refuse_nothing(rows: pl.DataFrame) -> None:
    if rows.is_empty():
        raise Undefined("fewer than two patients have embedded slides, so that none finds another")
