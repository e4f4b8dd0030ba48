"""Features that someone brought against ours: whether they are what the cohort's encoder gives.

An entry of features may name another entry that should give the same vectors (``same_as``). Both are
compared slide by slide on the tiles that both have, at the same place and resolution
(:func:`~pathfm_kedro.statistics.agreement.agreement`):

- ``difference``: root mean square difference over the spread between tiles, mean over slides; rounding
  of half precision moves it by some percent, wrong preprocessing by some ten percent at the least;
- ``kept_neighbours``: share of each tile's k nearest tiles that are so in both, mean over slides; blind
  to scaling, and defined for vectors of other dimensions. Null: k / (n − 1);
- ``cosine``: mean over tiles; blind to a common part, which most encoders have: described.

Intervals: bootstrap over patients. The reason says in a sentence what most slides show: equal, scaled,
at other tiles, or different, and what to look at.

Pitfalls
--------
- Tiles must lie at the same places: set ``tile.at`` to the entry of the features.
- A difference says that something differs, not which of the two is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.agreement import agreement, explanation
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.tables import Embeddings, to_schema

#: One row per slide that both have vectors of; figures that cannot be are null, and reason says why.
AGREEMENT_SCHEMA: dict[str, pl.DataType] = {
    "slide_id": pl.String(),
    "patient_id": pl.String(),
    "n_slides": pl.Int64(),
    "n_tiles": pl.Int64(),
    "cosine_sum": pl.Float64(),
    "difference": pl.Float64(),
    "kept_neighbours": pl.Float64(),
    "chance": pl.Float64(),
    "kind": pl.String(),
    "sentence": pl.String(),
    "reason": pl.String(),
}
_OF_A_TILE = ("tile_id", "field_um", "mpp")
_NO_COMMON_TILE = (
    "no tile of both lies at the same place with the same size: set tile.at to the entry of the "
    "features, so that the other is run where their files have vectors"
)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FeatureAgreement(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    k
        Neighbours per tile.
    """

    k: Annotated[int, Field(ge=1)]


def feature_agreement_statistics(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    features: Embeddings,
    other_tiles: pl.DataFrame,
    others: Embeddings,
    p: FeatureAgreement,
) -> pl.DataFrame:
    """Compare two encoders' vectors of the same tiles, slide by slide.

    Parameters
    ----------
    slides
        The slides table.
    tiles, features
        Tiles and vectors that were brought.
    other_tiles, others
        Tiles and vectors of the entry that should give the same.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`AGREEMENT_SCHEMA`.
    """
    patients = dict(slides.select("slide_id", "patient_id").iter_rows())
    both = sorted(set(features.slide_ids) & set(others.slide_ids))
    rows = [
        {"slide_id": s, "patient_id": patients[s], "n_slides": 1}
        | _agreement(s, tiles, features, other_tiles, others, p)
        for s in both
    ]
    return to_schema(rows, AGREEMENT_SCHEMA)


def no_agreement_statistics(p: FeatureAgreement) -> pl.DataFrame:
    """The statistics of an encoder that no other should equal: no rows."""
    return pl.DataFrame(schema=AGREEMENT_SCHEMA)


def _agreement(
    slide: str,
    tiles: pl.DataFrame,
    features: Embeddings,
    other_tiles: pl.DataFrame,
    others: Embeddings,
    p: FeatureAgreement,
) -> dict[str, Any]:
    """Figures of one slide."""
    own, other = (
        table.filter(slide_id=slide).select(*_OF_A_TILE).with_row_index(name)
        for table, name in ((tiles, "_own"), (other_tiles, "_other"))
    )
    common = own.join(other, on=_OF_A_TILE, nulls_equal=True, maintain_order="left")
    if common.is_empty():
        return {"n_tiles": 0, "reason": _NO_COMMON_TILE}
    found = agreement(
        features.stack([slide])[common["_own"].to_numpy()],
        others.stack([slide])[common["_other"].to_numpy()],
        p.k,
    )
    of_other_dimension = (
        f"the vectors have {found.dimensions[0]} numbers, and those of the other entry "
        f"{found.dimensions[1]}"
    )
    return {
        "n_tiles": found.n_tiles,
        "cosine_sum": None if found.cosine is None else found.cosine * found.n_tiles,
        "difference": found.difference,
        "kept_neighbours": found.neighbours,
        "chance": found.chance,
        "kind": found.kind,
        "sentence": explanation(found),
        "reason": found.reason if found.cosine is not None else of_other_dimension,
    }


def feature_agreement_figures(statistics: pl.DataFrame, p: FeatureAgreement) -> Iterator[Figure]:
    """``difference``, ``kept_neighbours`` and ``cosine``.

    Parameters
    ----------
    statistics
        From :func:`feature_agreement_statistics`.
    p
        The parameters.
    """
    whole = PatientStatistics(statistics, p)
    yield whole.figure("difference", difference)
    yield whole.figure("kept_neighbours", kept_neighbours, k=p.k)
    yield whole.figure("cosine", cosine)


def difference(of: PatientStatistics) -> Value:
    """Mean over slides of the difference over the spread between tiles."""
    known = _defined(of, "difference")
    estimate = known.ratio(known.sums("difference"), known.sums("n_slides"))
    return Value(estimate, remark=_sentence(of.table))


def kept_neighbours(of: PatientStatistics) -> Value:
    """Mean over slides of the share of neighbours that are the same in both."""
    known = _defined(of, "kept_neighbours")
    slides = known.sums("n_slides")
    chance = float(known.sums("chance").sum() / slides.sum())
    estimate = known.ratio(known.sums("kept_neighbours"), slides)
    return Value(estimate, Null(chance, chance), remark=_sentence(of.table))


def cosine(of: PatientStatistics) -> Estimate:
    """Mean cosine over tiles."""
    known = _defined(of, "cosine_sum")
    return known.ratio(known.sums("cosine_sum"), known.sums("n_tiles"))


def _defined(of: PatientStatistics, column: str) -> PatientStatistics:
    """The slides that have a figure, of two patients or more."""
    known = of.where(pl.col(column).is_not_null())
    if known.table.is_empty():
        reasons = of.table["reason"].drop_nulls().filter(of.table["reason"].drop_nulls() != "")
        raise Undefined(reasons[0] if len(reasons) else "no slide has vectors of both entries")
    if known.n_patients < 2:
        raise Undefined("one patient has vectors of both entries: an interval needs two")
    return known


def _sentence(table: pl.DataFrame) -> str:
    """What most slides show, in the words of the slide in their middle."""
    known = table.filter(pl.col("kind").is_not_null())
    kind = known["kind"].value_counts(sort=True).sort("count", "kind", descending=[True, False])[0]
    alike = known.filter(kind=kind["kind"][0]).sort("difference", "slide_id", nulls_last=True)
    sentence = alike["sentence"][int(np.floor((alike.height - 1) / 2))]
    return f"on {alike.height} of {table.height} slides {sentence}"
