"""Blinded triplets: does a person find the encoder's nearest tile more alike than another one.

A triplet is a tile, its nearest tile of another patient, and a control: a tile sampled at random among
those of further patients. Which of the two stands first is a toss of a coin.
Agreement is the share of answers that chose the encoder's nearest; without knowledge it is 0.5.

The interval resamples the patients of the first tiles and is no narrower than the exact binomial one
of so many patients (:func:`~pathfm_kedro.statistics.bootstrap.at_least_binomial`). It is of this
reader: readers differ as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import (
    at_least_binomial,
    bootstrap_weights,
    patient_codes,
    ratio_estimate,
)
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.mutual_knn import unit

#: What a reader may answer: the first candidate, the second, or that none is more alike.
FIRST, SECOND, NEITHER = "1", "2", "0"
#: Agreement of somebody who answers at random.
CHANCE = 0.5


def choose_triplets(
    vectors: NDArray[np.floating], patients: NDArray[np.generic], n: int, seed: int
) -> pl.DataFrame:
    """Triplets of tiles, their first tiles of as many patients as possible.

    Parameters
    ----------
    vectors
        [n_tiles, d] of one encoder.
    patients
        [n_tiles] whose tile it is.
    n
        Triplets wanted.
    seed
        Of all choices.

    Returns
    -------
    DataFrame
        triplet (from 1), tile, first, second (rows of `vectors`), nearest (:data:`FIRST` or
        :data:`SECOND`), patient (a number, of the first tile).

    Raises
    ------
    ValueError
        If there are fewer than three patients.

    Examples
    --------
    >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> found = choose_triplets(vectors, np.array(["p", "q", "r"]), 3, seed=0)
    >>> found.filter(tile=0).select("tile", pl.min_horizontal("first", "second")).row(0)
    (0, 1)
    """
    codes, n_patients = patient_codes(patients)
    if n_patients < 3:
        raise ValueError(
            f"triplets need tiles of three patients, there are {n_patients}: add patients"
        )
    generator, cloud = np.random.default_rng(seed), unit(vectors)
    rows = []
    for number, tile in enumerate(_in_turns(codes, generator)[:n], 1):
        similarity = np.where(codes == codes[tile], -np.inf, cloud @ cloud[tile])
        nearest = int(similarity.argmax())
        others = np.flatnonzero((codes != codes[tile]) & (codes != codes[nearest]))
        control, nearest_first = int(generator.choice(others)), bool(generator.integers(2))
        first, second = (nearest, control) if nearest_first else (control, nearest)
        rows.append(
            {
                "triplet": number,
                "tile": int(tile),
                "first": first,
                "second": second,
                "nearest": FIRST if nearest_first else SECOND,
                "patient": int(codes[tile]),
            }
        )
    return pl.DataFrame(rows)


@dataclass(frozen=True)
class ReaderAnswers:
    """What a reader decided, patient by patient: nothing in it names a patient.

    Attributes
    ----------
    decided
        Of each patient, triplets in which the reader chose one of the two candidates.
    agree
        Of these, triplets in which it was the encoder's nearest tile.
    """

    decided: tuple[int, ...]
    agree: tuple[int, ...]

    def __post_init__(self) -> None:
        pairs = list(zip(self.decided, self.agree, strict=False))
        if len(self.decided) != len(self.agree) or any(not 0 <= a <= d for d, a in pairs):
            raise ValueError(
                "decided and agree must be as long as each other, and nobody agrees more often than "
                "was decided: write them by kedro triplets read"
            )


def read_answers(key: pl.DataFrame, answers: pl.DataFrame) -> ReaderAnswers:
    """What a reader answered, held against the key.

    Parameters
    ----------
    key
        triplet, nearest and patient of each triplet.
    answers
        triplet and answer: :data:`FIRST`, :data:`SECOND`; others, and those left empty, do not count.

    Examples
    --------
    >>> key = pl.DataFrame({"triplet": [1, 2], "nearest": ["1", "2"], "patient": [0, 1]})
    >>> answers = pl.DataFrame({"triplet": [1, 2], "answer": ["1", "1"]})
    >>> read_answers(key, answers)
    ReaderAnswers(decided=(1, 1), agree=(1, 0))
    """
    decided = answers.filter(pl.col("answer").is_in([FIRST, SECOND]))
    both = key.join(decided, on="triplet", how="inner")
    by_patient = (
        both.group_by("patient")
        .agg(decided=pl.len(), agree=(pl.col("answer") == pl.col("nearest")).sum())
        .sort("patient")
    )
    return ReaderAnswers(tuple(by_patient["decided"]), tuple(by_patient["agree"]))


def agreement(answers: ReaderAnswers, draws: int, seed: int) -> Estimate:
    """Share of answers that chose the encoder's nearest tile.

    Parameters
    ----------
    answers
        Of a reader.
    draws, seed
        Of the bootstrap over patients.

    Returns
    -------
    Estimate
        Without a value where nothing was answered.

    Examples
    --------
    >>> agreement(ReaderAnswers((1, 1), (1, 0)), draws=100, seed=0).value
    0.5
    """
    counts = np.array(answers.decided, np.float64)
    if not counts.sum():
        return Estimate(None, None, None, 0, 0)
    weights = bootstrap_weights(len(counts), draws, seed)
    return at_least_binomial(ratio_estimate(np.array(answers.agree, np.float64), counts, weights))


def _in_turns(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Rows in random order, patient after patient: all have one before any has two."""
    shuffled = generator.permutation(len(codes))
    turn = pl.Series(codes[shuffled]).to_frame("code").select(pl.int_range(pl.len()).over("code"))
    return np.asarray(shuffled[np.argsort(turn.to_series().to_numpy(), kind="stable")])
