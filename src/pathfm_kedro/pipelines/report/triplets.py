"""Blinded triplets: does a pathologist find alike what the encoder does.

No step of a run can ask a person: ``kedro triplets export`` makes the triplets, ``kedro triplets read``
puts what was answered among the cohort's parameters, and the figure is computed from there. Without
answers there is no row, and the report says that it was not measured.

``agreement = Σ_i a_i / Σ_i d_i``: of the answers on triplets of patient i that chose one of the two
(d_i), those that chose the encoder's nearest tile (a_i), see :mod:`pathfm_kedro.statistics.triplets`.
With several readers there is a figure of all, one of each, and Fleiss' kappa among them.

Pitfalls
--------
- Intervals resample patients and not readers: they are of those who were asked, and others may differ.
- The control tile is sampled at random: an encoder that finds the right organ and nothing more is above
  chance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial

import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.figures import Figure, Value, measure
from pathfm_kedro.statistics.measurements import Null, combine_measurements, measurement_table
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.triplets import CHANCE, TripletAnswers, agreement, fleiss_kappa


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Triplets(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    answers
        Of each encoder whose triplets were answered; ``kedro triplets read`` writes them.
    """

    answers: Mapping[str, TripletAnswers] = Field(default_factory=dict)


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


def triplets_figures(answers: TripletAnswers, p: Triplets) -> Iterator[Figure]:
    """How often readers agree with the encoder, and with each other."""
    yield Figure("agreement", partial(_agreement, answers, p))
    if len(answers.readers) < 2:
        return
    for number in range(len(answers.readers)):
        own = answers.of_reader(number)
        yield Figure("agreement_of_reader", partial(_agreement, own, p), {"reader": number + 1})
    yield Figure(
        "fleiss_kappa", lambda: Value(fleiss_kappa(answers, p.draws, p.seed), Null(0.0, 0.0))
    )


def _agreement(answers: TripletAnswers, p: Triplets) -> Value:
    return Value(agreement(answers, p.draws, p.seed), Null(CHANCE, CHANCE))
