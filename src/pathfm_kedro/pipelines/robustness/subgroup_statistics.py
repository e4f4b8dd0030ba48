"""Who belongs to which subgroup, and what a search and a probe find of each patient's slides.

See :mod:`pathfm_kedro.pipelines.robustness.subgroups` for what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.subgroups import (
    PROBE,
    RETRIEVAL,
    SUBGROUPS_SCHEMA,
    Subgroups,
)
from pathfm_kedro.statistics.balanced_designs import codes_of
from pathfm_kedro.statistics.cross_validation import probed
from pathfm_kedro.statistics.mosaic import pool_slides
from pathfm_kedro.statistics.neighbour_votes import votes_at
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.tables import Embeddings, to_schema

#: What ingest writes where the manifest gives no scanner or stain: no subgroup.
_NOT_GIVEN = "unspecified"
_TAGS = ["patient_id", "label", "center"]
#: Before the names of columns of subgroups, which a manifest is free to choose.
_OF_COLUMN = "subgroup "


def subgroup_statistics(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    columns: Sequence[str],
    p: Subgroups,
) -> pl.DataFrame:
    """Who belongs to which subgroup, and what retrieval and a probe find of each patient's slides.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables; slides with the columns of subgroups, of any name and type.
    embeddings
        Vectors of one encoder.
    columns
        Of subgroups.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`SUBGROUPS_SCHEMA`.
    """
    own = [pl.col(name).cast(pl.String).alias(_OF_COLUMN + name) for name in columns]
    tags = slides.select("slide_id", *_TAGS, *own)
    pooled = pool_slides(slides, tiles, embeddings).select("slide_id", "mean")
    whole = pooled.join(tags, on="slide_id", how="left").drop_nulls(_TAGS)
    members = [_members(whole, column) for column in columns]
    width = -1 if whole.height else 1  # cannot be read off no rows
    vectors = whole["mean"].to_numpy().reshape(whole.height, width)
    found = [_retrieved(whole, vectors, p), _probed(whole, vectors, p)]
    return pl.concat(to_schema(frame, SUBGROUPS_SCHEMA) for frame in [*members, *found])


def _members(slides: pl.DataFrame, column: str) -> pl.DataFrame:
    """The one value that a patient's slides have in the column; null where there are several."""
    cell = pl.col(_OF_COLUMN + column)
    given = cell.filter(cell.is_not_null() & (cell != _NOT_GIVEN))
    one = pl.when(given.n_unique() == 1).then(given.first())
    rows = slides.group_by("patient_id").agg(
        one.alias("group"), given.len().alias("_n"), pl.col("label", "center").min()
    )
    named = rows.filter(pl.col("_n") > 0).sort("patient_id")
    return named.with_columns(column=pl.lit(column)).drop("_n")


def _retrieved(slides: pl.DataFrame, vectors: NDArray[np.float32], p: Subgroups) -> pl.DataFrame:
    """What the majority of the k nearest slides of other patients says."""
    if slides["patient_id"].n_unique() < 2:
        return _none(RETRIEVAL, "slides of one patient: add patients")
    labels = codes_of(slides["label"])
    found = nearest_indices(vectors, codes_of(slides["patient_id"]), p.k)
    votes = votes_at(labels, found, np.array([p.k]))[:, 0]
    return _counts(RETRIEVAL, slides, votes == labels)


def _probed(slides: pl.DataFrame, vectors: NDArray[np.float32], p: Subgroups) -> pl.DataFrame:
    """What a probe says of slides whose patient it never saw."""
    seen, mend = vectors.astype(np.float64), "add patients"
    of = slides["label"], slides["patient_id"]
    found = probed(seen, seen[:, None], *of, p.probe, p.seed, mend)
    if found.problem:
        return _none(PROBE, found.problem)
    tested = slides.filter(pl.Series(found.rows))
    return _counts(PROBE, tested, found.correct[found.rows, 0])


def _none(measure: str, reason: str) -> pl.DataFrame:
    return pl.DataFrame({"measure": [measure], "reason": [reason]})


def _counts(measure: str, slides: pl.DataFrame, correct: NDArray[np.bool_]) -> pl.DataFrame:
    counted = slides.select("patient_id", "label", correct=pl.Series(correct))
    by_patient = counted.group_by("patient_id", "label").agg(
        n_slides=pl.len(), n_correct=pl.col("correct").sum()
    )
    return by_patient.sort("patient_id", "label").with_columns(measure=pl.lit(measure))
