"""What a linear model reads from embeddings: the label, and the center it should not know.

``balanced_accuracy`` of a logistic regression on the tiles of patients it never saw
(:func:`~pathfm_kedro.statistics.cross_validation.cross_validated`), for the label and for the center,
on a capped number of tiles per slide. The interval is widened for cross-validation
(:func:`~pathfm_kedro.statistics.cross_validation.widened_interval`). Null: 1 / number of classes, what
any guess that ignores the vector reaches. Classes of fewer patients than folds are left out and listed.

A trustworthy encoder knows the label (``above``) and does not know the center (``below``).

Pitfalls
--------
- A tile has its slide's label, also where it shows healthy tissue.
- The penalty is fixed and not tuned per encoder; encoders of many dimensions may profit or suffer.
- Of vectors that do not tell the classes apart, as of a center by an encoder of the label alone, few
  patients give figures below the null: whoever is tested is missing from those who train.
- That a center can be read does not show that it misleads, nor whether colour or something else gives
  it away.
- The widening of the interval is cautious and not measured for the cohort at hand; coverage with signal
  was not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.cross_validation import (
    ProbeSettings,
    probe_accuracy,
    probed,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.sampling import capped_tiles
from pathfm_kedro.statistics.tables import Embeddings, chosen_vectors, tile_rows

METRIC = "balanced_accuracy"
#: Why a probe may lie below what a guess reaches.
_BELOW_CHANCE = (
    "below a guess, which is no knowledge: who is tested is missing from those who train, so that "
    "among vectors that do not tell the classes apart the tested one's class is the rarer"
)
#: What is read from the vectors.
TARGETS = ("label", "center")

#: One row per target, class and patient: its tiles, and how many are correctly classified; null where
#: the class is left out or nothing could be probed, with the reason.
LINEAR_PROBE_SCHEMA: dict[str, pl.DataType] = {
    "target": pl.String(),
    "value": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "problem": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LinearProbe(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    max_tiles_per_slide
        Tiles per slide that the probe sees, so that large slides do not rule.
    probe
        Of label and center.
    """

    max_tiles_per_slide: Annotated[int, Field(ge=1)]
    probe: ProbeSettings


def linear_probe_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: LinearProbe
) -> pl.DataFrame:
    """Correctly classified tiles per target, class and patient.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`LINEAR_PROBE_SCHEMA`.
    """
    rows = tile_rows(slides, tiles, embeddings.slide_ids)
    chosen = capped_tiles(rows, p.max_tiles_per_slide, p.seed)
    vectors = chosen_vectors(rows, chosen, embeddings)
    return pl.concat([_of_target(rows[chosen], vectors, target, p) for target in TARGETS])


def _of_target(
    rows: pl.DataFrame, vectors: NDArray[np.float64], target: str, p: LinearProbe
) -> pl.DataFrame:
    mend = "add patients or lower linear_probe.probe.folds"
    patients = rows["patient_id"]
    probe = probed(vectors, vectors[:, None], rows[target], patients, p.probe, p.seed, mend)
    return (
        rows.select("patient_id", value=target, probed=probe.rows, correct=probe.correct[:, 0])
        .drop_nulls("value")
        .group_by("value", "patient_id")
        .agg(
            n_tiles=pl.len(),
            n_correct=pl.when(pl.col("probed").any()).then(pl.col("correct").sum()),
        )
        .sort("value", "patient_id")
        .with_columns(target=pl.lit(target), problem=pl.lit(probe.problem))
        .select(pl.col(name).cast(kind) for name, kind in LINEAR_PROBE_SCHEMA.items())
    )


def linear_probe_figures(statistics: pl.DataFrame, p: LinearProbe) -> Iterator[Figure]:
    """Figures of the experiment, in reading order: the classes that are left out, then the probe.

    Parameters
    ----------
    statistics
        From :func:`linear_probe_statistics`.
    p
        The parameters.
    """
    for target in TARGETS:
        of_target = PatientStatistics(statistics, p).at(target=target)
        for of_class in of_target.within("value"):
            if of_class.n_patients < p.probe.folds:
                named = replace(of_class, stratum=of_class.stratum.replace("value", target))
                yield named.figure(METRIC, partial(left_out, folds=p.probe.folds))
        yield of_target.figure(METRIC, accuracy)


def pooled_probe_figures(splits: Sequence[pl.DataFrame], p: LinearProbe) -> Iterator[Figure]:
    """Figures of the counts of several splits together, each of other patients and of its own model.

    Parameters
    ----------
    splits
        From :func:`linear_probe_statistics`, of each split; one that could not be probed is left out
        where others could.
    p
        The parameters.
    """
    parts = pl.concat(splits)
    could = (pl.col("problem").fill_null("") == "").any().over("target")
    kept = parts.filter(~could | (pl.col("problem").fill_null("") == ""))
    yield from (f for f in linear_probe_figures(kept, p) if f.stratum == "all")


def accuracy(target: PatientStatistics) -> Value:
    """Balanced accuracy over the classes that were probed; null 1 / their number.

    Raises
    ------
    Undefined
        If nothing was probed.
    """
    table = target.table
    if table.is_empty():
        raise Undefined("no slide has embedded tiles, so that nothing can be probed: embed slides")
    if table["problem"][0]:
        raise Undefined(str(table["problem"][0]))
    tested = replace(target, table=table.drop_nulls("n_correct"))
    correct, n = (tested.matrix(name, "value", "n_tiles") for name in ("n_correct", "n_tiles"))
    chance = 1 / tested.table["value"].n_unique()
    estimate = probe_accuracy(correct, n, tested.weights)
    below = estimate.ci_high is not None and estimate.ci_high < chance
    return Value(estimate, Null(chance, chance), remark=_BELOW_CHANCE if below else "")


def left_out(of_class: PatientStatistics, folds: int) -> Value:
    """Say why a class is not probed.

    Raises
    ------
    Undefined
        Always.
    """
    raise Undefined(
        f"{of_class.n_patients} patient(s) for {folds} folds: left out of the probe; add patients or "
        "lower linear_probe.probe.folds"
    )
