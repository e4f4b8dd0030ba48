"""Blinded triplets: does a pathologist find alike what the encoder does.

No step of a run can ask a person: ``kedro triplets export`` makes the triplets, ``kedro triplets read``
puts what was answered among the cohort's parameters, and the figure is computed from there. Without
answers there is no row, and the report says that it was not measured.

``agreement = Σ_i a_i / Σ_i d_i``: of the triplets of patient i that the reader decided (d_i), those in
which the encoder's nearest tile was chosen (a_i), see :mod:`pathfm_kedro.statistics.triplets`.

Pitfalls
--------
- It is of one reader, and readers differ.
- The control tile is sampled at random: an encoder that finds the right organ and nothing more is above
  chance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.figures import Figure, Value, measure
from pathfm_kedro.statistics.measurements import Null, combine_measurements, measurement_table
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.triplets import CHANCE, ReaderAnswers, agreement


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Triplets(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    answers
        Of each encoder whose triplets were answered; ``kedro triplets read`` writes them.
    """

    answers: Mapping[str, ReaderAnswers] = Field(default_factory=dict)


def measure_triplets(p: Triplets, *, encoders: Collection[str]) -> pl.DataFrame:
    """Agreement with each of the cohort's encoders whose triplets were answered.

    Parameters
    ----------
    p
        With the answers.
    encoders
        The cohort's: one that was left out since is not audited.

    Returns
    -------
    DataFrame
        Rows of the measurements table; none where nobody was asked.
    """
    tables = [
        measure(triplets_figures(answers, p), "triplets", name, p.criteria)
        for name, answers in sorted(p.answers.items())
        if name in encoders
    ]
    return combine_measurements(measurement_table([]), *tables)


def triplets_figures(answers: ReaderAnswers, p: Triplets) -> Iterator[Figure]:
    """The one figure."""
    yield Figure(
        "agreement",
        lambda: Value(agreement(answers, p.draws, p.seed), Null(CHANCE, CHANCE)),
    )
