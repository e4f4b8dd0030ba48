"""Blinded triplets: does a person find the encoder's nearest tile more alike than another one.

A triplet is a tile, its nearest tile of another patient, and a control: a tile sampled at random among
those of further patients. Which of the two stands first is a toss of a coin.
Agreement is the share of answers that chose the encoder's nearest; without knowledge it is 0.5.

The interval resamples the patients of the first tiles and is no narrower than the exact binomial one
of so many patients (:func:`~pathfm_kedro.statistics.bootstrap.at_least_binomial`). It is of these
readers: others may differ. How far they agree among themselves is Fleiss' kappa of what they chose,
first or second, over triplets that all of them decided (Fleiss 1971, Psychological Bulletin 76:378).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import (
    at_least_binomial,
    bootstrap_weights,
    patient_codes,
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.figures import Undefined
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
class TripletAnswers:
    """What readers chose, triplet by triplet: numbers alone, nothing in it names anybody.

    Attributes
    ----------
    patient
        [n_triplets] a number for the patient of the first tile.
    nearest
        [n_triplets] which candidate is the encoder's nearest tile, 1 or 2.
    readers
        [n_readers] of [n_triplets]: the candidate that the reader chose, 1 or 2; 0 for neither.
    """

    patient: tuple[int, ...]
    nearest: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        lengths = {len(self.patient), len(self.nearest), *map(len, self.readers)}
        chosen = {answer for reader in self.readers for answer in reader}
        if len(lengths) > 1 or not set(self.nearest) <= {1, 2} or not chosen <= {0, 1, 2}:
            raise ValueError(
                "patient, nearest and each reader must be as long as each other, nearest 1 or 2 and "
                "answers 0, 1 or 2: write them by kedro triplets read"
            )

    def of_reader(self, number: int) -> TripletAnswers:
        """Those of one reader, counted from 0."""
        return replace(self, readers=(self.readers[number],))


def read_answers(key: pl.DataFrame, *answers: pl.DataFrame) -> TripletAnswers:
    """What readers answered, beside the key.

    Parameters
    ----------
    key
        triplet, nearest and patient of each triplet.
    answers
        Of each reader: triplet and answer, :data:`FIRST`, :data:`SECOND` or :data:`NEITHER`; triplets
        that are left empty, or out, are undecided.

    Examples
    --------
    >>> key = pl.DataFrame({"triplet": [1, 2], "nearest": ["1", "2"], "patient": [0, 1]})
    >>> answers = pl.DataFrame({"triplet": [1, 2], "answer": ["1", ""]})
    >>> read_answers(key, answers)
    TripletAnswers(patient=(0, 1), nearest=(1, 2), readers=((1, 0),))
    """
    known = key.select("triplet", pl.col("nearest", "patient").cast(pl.Int64))
    readers = [
        known.join(own, on="triplet", how="left", maintain_order="left")["answer"]
        .cast(pl.Int64, strict=False)
        .fill_null(0)
        for own in answers
    ]
    return TripletAnswers(
        tuple(known["patient"]), tuple(known["nearest"]), tuple(tuple(own) for own in readers)
    )


def agreement(answers: TripletAnswers, draws: int, seed: int) -> Estimate:
    """Share of the readers' answers that chose the encoder's nearest tile.

    Parameters
    ----------
    answers
        Of one reader or several.
    draws, seed
        Of the bootstrap over patients.

    Returns
    -------
    Estimate
        Without a value where nothing was answered.

    Examples
    --------
    >>> agreement(TripletAnswers((0, 1), (1, 1), ((1, 2),)), draws=100, seed=0).value
    0.5
    """
    chosen, nearest = np.array(answers.readers), np.array(answers.nearest)
    counts = np.stack([(chosen > 0).sum(axis=0), (chosen == nearest).sum(axis=0)], axis=1)
    answered = counts[:, 0] > 0
    if not answered.any():
        return Estimate(None, None, None, 0, 0)
    decided, agree = _by_patient(counts[answered], answers, answered).T
    return at_least_binomial(
        ratio_estimate(agree, decided, bootstrap_weights(len(decided), draws, seed))
    )


def fleiss_kappa(answers: TripletAnswers, draws: int, seed: int) -> Estimate:
    """Fleiss' kappa: how far readers choose the same candidate, beyond chance.

    ``κ = (P − Pₑ) / (1 − Pₑ)``: P is the share of pairs of readers that chose alike, Pₑ = p₁² + p₂²
    what it would be if each chose the first at random as often as all did (p₁). The candidates' order
    is a toss of a coin, so that its place does not tell which one is the encoder's nearest.

    Parameters
    ----------
    answers
        Of two readers or more; triplets that all of them decided count.
    draws, seed
        Of the bootstrap over patients.

    Raises
    ------
    Undefined
        If there is one reader, no triplet that all decided, or all chose the same place throughout.

    Examples
    --------
    >>> same = TripletAnswers((0, 1, 2), (1, 2, 1), ((1, 2, 1), (1, 2, 1)))
    >>> fleiss_kappa(same, draws=100, seed=0).value
    1.0
    """
    chosen = np.array(answers.readers)
    n_readers = len(chosen)
    if n_readers < 2:
        raise Undefined("one reader has nobody to agree with: ask a second")
    shared = np.asarray((chosen > 0).all(axis=0))
    if not shared.any():
        raise Undefined("no triplet was decided by all readers: let them answer the same triplets")
    first = (chosen[:, shared] == int(FIRST)).sum(axis=0)
    second = n_readers - first
    pairs = (first * (first - 1) + second * (second - 1)) / (n_readers * (n_readers - 1))
    counts = _by_patient(
        np.stack([np.ones(len(first)), pairs, first / n_readers], axis=1), answers, shared
    )
    value = float(_kappa(counts.sum(axis=0)))
    if not np.isfinite(value):
        raise Undefined("every reader chose the same place in every triplet: kappa is not defined")
    resampled = _kappa(bootstrap_weights(len(counts), draws, seed) @ counts)
    return Estimate(
        value, *percentile_interval(resampled), int(shared.sum()), len(counts), resampled
    )


def _kappa(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of sums over triplets [..., 3]: triplets, pairs that chose alike, shares of the first."""
    n, alike, first = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = first / n
        chance = share**2 + (1 - share) ** 2
        return np.asarray((alike / n - chance) / (1 - chance))


def _by_patient(
    rows: NDArray[np.generic], answers: TripletAnswers, kept: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Sums of the kept triplets' rows, patient by patient."""
    codes, n_patients = patient_codes(np.array(answers.patient)[kept])
    return sum_by_patient(rows, codes, n_patients)


def _in_turns(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Rows in random order, patient after patient: all have one before any has two."""
    shuffled = generator.permutation(len(codes))
    turn = pl.Series(codes[shuffled]).to_frame("code").select(pl.int_range(pl.len()).over("code"))
    return np.asarray(shuffled[np.argsort(turn.to_series().to_numpy(), kind="stable")])
