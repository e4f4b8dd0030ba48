"""A reader's answers become a figure of the report, and without them it says that nobody was asked."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from pathfm_kedro.pipelines.report.claims import claims_of
from pathfm_kedro.pipelines.report.triplets import Triplets, measure_triplets
from pathfm_kedro.pipelines.report.words import Words
from pathfm_kedro.statistics.parameters import read_parameters
from tests.pipelines.report.conftest import TRUTH, WORDS

#: Twelve patients, three answers each, all for the encoder's nearest tile.
ANSWERED = {"patient": [*range(12)] * 3, "nearest": [1, 2] * 18, "readers": [[1, 2] * 18]}


def measured(
    answers: dict[str, Any], encoders: tuple[str, ...] = ("alpha", "beta")
) -> pl.DataFrame:
    p = read_parameters(Triplets, "triplets", {"answers": answers, "draws": 200})
    return measure_triplets(p, encoders=encoders)


def answer_of_claims(measurements: pl.DataFrame) -> str:
    """What is said of the open question, whichever encoder it is about."""
    role = {name: "encoder" if name in ("alpha", "beta") else "control" for name in TRUTH}
    claims = claims_of(measurements, role, Words.read(WORDS))
    (said,) = (
        text
        for _, own in claims
        for claim in own
        for text in claim.here
        if text.startswith("A pathologist agrees")
    )
    return said


def test_answers_are_held_against_chance() -> None:
    row = measured({"alpha": ANSWERED}).row(0, named=True)
    assert (row["value"], row["n"], row["n_patients"]) == (1.0, 36, 12)
    assert row["null_low"] == row["null_high"] == 0.5
    # All of twelve patients agree: the exact binomial interval.
    assert row["ci_low"] == pytest.approx(0.025 ** (1 / 12))


def test_the_open_question_is_answered_with_them_alone(measurements: pl.DataFrame) -> None:
    assert answer_of_claims(measurements).endswith("not measured in this audit.")
    answered = pl.concat([measurements, measured({"alpha": ANSWERED})])
    assert answer_of_claims(answered).endswith("above the null for alpha 1.00.")


def test_an_encoder_that_was_left_out_since_is_not_audited() -> None:
    assert measured({"alpha": ANSWERED}, ("beta",)).is_empty()
    assert measured({}).is_empty()


def test_impossible_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="as long as each other"):
        measured({"alpha": {"patient": [1, 1], "nearest": [2, 1], "readers": [[1]]}})


def test_readers_have_a_row_each_and_one_together() -> None:
    other = [1] * 36
    rows = measured({"alpha": ANSWERED | {"readers": [[1, 2] * 18, other]}})
    of = {(row["metric"], row["setting"]): row["value"] for row in rows.iter_rows(named=True)}
    assert of["agreement", "{}"] == 0.75
    assert of["agreement_of_reader", '{"reader": 1}'] == 1.0
    assert of["agreement_of_reader", '{"reader": 2}'] == 0.5
    # One chose at random as to the other, and the first more often than half of the time.
    assert of["fleiss_kappa", "{}"] == pytest.approx((0.5 - 0.625) / (1 - 0.625))
    assert measured({"alpha": ANSWERED})["metric"].to_list() == ["agreement"]
