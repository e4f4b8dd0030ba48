"""What a search costs: bytes of a slide, seconds of a query, and what it finds for them.

- ``bytes_per_slide``: of float32 vectors, barcodes or words of the mosaic, without names and pointers;
- ``seconds_per_query``: of a search among all slides by one thread, measured where the cohort allows it
  (:mod:`~pathfm_kedro.pipelines.retrieve.search_time`);
- ``macro_f1``: as ``retrieval`` gave it, at one scope and vote.

Pitfalls
--------
- Bytes differ here and what is stored follows the family: at equal bytes see
  :mod:`~pathfm_kedro.pipelines.retrieve.index_bytes`.
- Time is that of comparing a slide with every slide: with more slides it grows as their number.
- What is learned (words, attention) is stored once for all slides and not counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Ints
from pathfm_kedro.pipelines.retrieve.search_time import NO_SLIDES, SECONDS, SearchCost, seconds_of
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null

_FLOAT = 4
#: Words of a vocabulary that one byte names.
_WORDS_A_BYTE = 256

COST_SCHEMA: dict[str, pl.DataType] = {
    "family": pl.String(),
    "bytes_per_slide": pl.Float64(),
    "n_slides": pl.Int64(),
    "n_patients": pl.Int64(),
}


def cost_statistics(
    slides: pl.DataFrame, slide_vectors: pl.DataFrame, p: SearchCost
) -> pl.DataFrame:
    """Mean bytes of a slide by family: columns :data:`COST_SCHEMA`.

    Parameters
    ----------
    slides
        Slides table.
    slide_vectors
        slide_id, n_tiles and mean, from :func:`~pathfm_kedro.statistics.mosaic.pool_slides`.
    p
        The parameters.
    """
    named = slide_vectors.join(slides.select("slide_id", "patient_id"), on="slide_id")
    if named.is_empty():
        return pl.DataFrame(schema=COST_SCHEMA)
    sizes, dimension = named["n_tiles"].to_numpy(), len(named["mean"][0])
    support = {"n_slides": named.height, "n_patients": named["patient_id"].n_unique()}
    rows = [
        {"family": family, "bytes_per_slide": bytes_of(family, sizes, dimension, p)} | support
        for family in p.families
    ]
    return pl.DataFrame(rows, schema=COST_SCHEMA)


def bytes_of(family: str, sizes: Ints, dimension: int, p: FamilySettings) -> float:
    """Mean bytes that a family stores of a slide.

    Parameters
    ----------
    family
        Its name.
    sizes
        [n] patches of each slide.
    dimension
        Of a vector.
    p
        How many words, tokens and so on.

    Examples
    --------
    >>> families = ("mean", "maxsim", "barcode", "bm25")
    >>> [bytes_of(name, np.array([3]), 17, FamilySettings()) for name in families]
    [68.0, 204.0, 6.0, 3.0]
    """
    if family == "hybrid":
        return sum(bytes_of(name, sizes, dimension, p) for name in p.fused)
    patches, vector = float(sizes.mean()), _FLOAT * dimension
    word = 1 if p.words <= _WORDS_A_BYTE else 2
    # All vectors of the mosaic where nothing else is said; the reranker takes its means from them.
    stored: dict[str, float] = {
        "mean": float(vector),
        "max": float(vector),
        "attention": float(vector),
        "vlad": float(vector * p.vlad_words),
        "barcode": -(-(dimension - 1) // 8) * patches,
        "maxsim_pooled": vector * float(np.minimum(sizes, p.tokens).mean()),
        "bovw": word * patches,
        "bm25": word * patches,
    }
    return stored.get(family, vector * patches)


def cost_figures(
    statistics: pl.DataFrame, times: Mapping[str, Any], retrieved: pl.DataFrame, p: SearchCost
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`cost_statistics`.
    times
        From :mod:`~pathfm_kedro.pipelines.retrieve.search_time`.
    retrieved
        Measurements of ``retrieval``.
    p
        The parameters.
    """
    for family in p.families:
        setting = {"family": family}
        at = setting | {"scope": p.scope, "vote": p.vote}
        yield Figure("macro_f1", partial(_copied, retrieved, at), setting)
        own = statistics.filter(family=family)
        yield Figure("bytes_per_slide", partial(_bytes, own), setting)
        yield Figure(SECONDS, partial(seconds_of, times, f"family {family}"), setting)


def _bytes(own: pl.DataFrame) -> Estimate:
    if own.is_empty():
        raise Undefined(NO_SLIDES)
    row = own.row(0, named=True)
    counted = row["bytes_per_slide"]
    return Estimate(counted, counted, counted, row["n_slides"], row["n_patients"])


def _copied(retrieved: pl.DataFrame, at: Mapping[str, Any]) -> Value:
    """Macro-F1 as the experiment retrieval gave it."""
    for row in retrieved.filter(metric="macro_f1", stratum="all").iter_rows(named=True):
        if json.loads(row["setting"]) == at:
            if row["value"] is None:
                raise Undefined(row["reason"], row["n"], row["n_patients"])
            ends = row["ci_low"], row["ci_high"], row["n"], row["n_patients"]
            return Value(Estimate(row["value"], *ends), Null(row["null_low"], row["null_high"]))
    raise Undefined(
        "the experiment retrieval has no such search: name its family, scope and vote in "
        f"retrieval too ({', '.join(map(str, at.values()))})"
    )
