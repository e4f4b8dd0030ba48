"""Blinded triplets: the nearest is the nearest, and chance is chance."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.triplets import (
    TripletAnswers,
    agreement,
    choose_triplets,
    fleiss_kappa,
    read_answers,
)


@pytest.fixture(scope="module")
def cohort():
    generator = np.random.default_rng(0)
    return generator.normal(size=(60, 5)), np.repeat([f"p{i:02d}" for i in range(20)], 3)


def test_one_candidate_is_the_nearest_of_another_patient(cohort):
    vectors, patients = cohort
    for row in choose_triplets(vectors, patients, 60, seed=1).iter_rows(named=True):
        own, first, second = (patients[row[name]] for name in ("tile", "first", "second"))
        assert len({own, first, second}) == 3
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[row["tile"]])
        cosine = vectors @ vectors[row["tile"]] / lengths
        cosine[patients == own] = -2
        nearest = row["first"] if row["nearest"] == "1" else row["second"]
        assert nearest == cosine.argmax()


def test_every_patient_is_asked_once_before_any_is_asked_twice(cohort):
    found = choose_triplets(*cohort, 20, seed=2)
    assert found["patient"].n_unique() == 20
    assert found.equals(choose_triplets(*cohort, 20, seed=2))


def test_a_reader_who_sees_as_the_encoder_does_agrees_and_one_who_guesses_does_not(cohort):
    key = choose_triplets(*cohort, 60, seed=3)
    same = key.select("triplet", answer="nearest")
    exact = agreement(read_answers(key, same), draws=200, seed=0)
    # Twenty patients of twenty: the exact binomial interval, not none.
    assert (exact.value, exact.n, exact.n_patients) == (1.0, 60, 20)
    assert exact.ci_low == pytest.approx(0.025 ** (1 / 20))
    always_first = key.select("triplet", answer=pl.lit("1"))
    guessed = agreement(read_answers(key, always_first), draws=200, seed=0)
    assert guessed.value == pytest.approx((key["nearest"] == "1").mean())
    assert guessed.ci_low < 0.5 < guessed.ci_high


def test_without_answers_nothing_is_said(cohort):
    key = choose_triplets(*cohort, 10, seed=3)
    blank = key.select("triplet", answer=pl.lit(""))
    assert agreement(read_answers(key, blank), draws=10, seed=0).value is None


def test_two_patients_make_no_triplet():
    with pytest.raises(ValueError, match="three patients"):
        choose_triplets(np.eye(4), np.array(list("ppqq")), 4, seed=0)


def answers_of(*readers, patients=None):
    n = len(readers[0])
    return TripletAnswers(tuple(patients or range(n)), (1,) * n, tuple(map(tuple, readers)))


def test_a_readers_figure_is_alone_that_of_the_reader_and_together_the_mean():
    ours = answers_of([1, 1, 1, 1, 1, 0], [1, 2, 2, 2, 1, 0])
    assert agreement(ours.of_reader(1), draws=50, seed=0).value == pytest.approx(2 / 5)
    together = agreement(ours, draws=50, seed=0)
    assert (together.value, together.n, together.n_patients) == (pytest.approx(7 / 10), 10, 5)


@pytest.mark.parametrize("n_readers", [2, 3, 5])
def test_kappa_is_that_of_statsmodels(n_readers):
    rater = pytest.importorskip("statsmodels.stats.inter_rater", reason="needs statsmodels")
    generator = np.random.default_rng(n_readers)
    habit = generator.random(40) < 0.6
    chosen = np.where(generator.random((n_readers, 40)) < 0.8, habit, ~habit).astype(int) + 1
    chosen[0, :5] = 0  # undecided by one: counts for nobody
    ours = fleiss_kappa(answers_of(*chosen.tolist()), draws=200, seed=0)
    table, _ = rater.aggregate_raters(chosen[:, 5:].T)
    assert ours.value == pytest.approx(rater.fleiss_kappa(table))
    assert (ours.n, ours.n_patients) == (35, 35)
    assert ours.ci_low < ours.value < ours.ci_high


def test_a_patient_counted_twice_narrows_nothing():
    generator = np.random.default_rng(1)
    one, two = generator.integers(1, 3, (2, 30)).tolist()
    apart = fleiss_kappa(answers_of(one, two), draws=400, seed=0)
    twice = answers_of(one + one, two + two, patients=[*range(30), *range(30)])
    found = fleiss_kappa(twice, draws=400, seed=0)
    assert (found.value, found.ci_low) == (pytest.approx(apart.value), pytest.approx(apart.ci_low))


@pytest.mark.parametrize(
    ("readers", "said"),
    [
        ([[1, 2]], "ask a second"),
        ([[1, 0], [0, 1]], "decided by all"),
        ([[1, 1], [1, 1]], "the same place"),
    ],
)
def test_kappa_of_what_cannot_show_it_is_undefined(readers, said):
    with pytest.raises(Undefined, match=said):
        fleiss_kappa(answers_of(*readers), draws=10, seed=0)
