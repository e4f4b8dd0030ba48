"""Variants held against the encoders that they come from."""

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.statistics.bootstrap import bootstrap_weights, ratio_estimate
from pathfm_kedro.statistics.figures import Criterion, Figure
from pathfm_kedro.statistics.mitigation import compare_with_bases
from pathfm_kedro.statistics.paired_comparison import Judged, compare_encoders

PATIENTS, ASKED = 40, 10.0
#: Share of answers that are right.
RIGHT = {"base": 0.5, "centred": 0.7, "other": 0.6}


@pytest.fixture(scope="module")
def judged() -> dict[str, Judged]:
    generator = np.random.default_rng(0)
    weights = bootstrap_weights(PATIENTS, draws=400, seed=0)
    table = pl.DataFrame({"patient_id": [f"p{i}" for i in range(PATIENTS)]})
    found = {}
    for name, share in RIGHT.items():
        right = generator.binomial(int(ASKED), share, PATIENTS).astype(float)
        estimate = ratio_estimate(right, np.full(PATIENTS, ASKED), weights)
        figure = Figure("accuracy", lambda estimate=estimate: estimate)
        found[name] = Judged.of([figure], [Criterion("accuracy", 0.5, "above")], table)
    return found


def test_a_variant_has_one_row_that_says_what_was_done(judged):
    bases = {"centred": ("base", "centring"), "lost": ("base", "combat")}
    row = compare_with_bases(judged, "probe", bases).row(0, named=True)
    setting = json.loads(row["setting"])
    assert (row["experiment"], row["encoder"]) == ("mitigation", "centred")
    assert (setting["compared_with"], setting["mitigation"]) == ("base", "centring")
    assert row["value"] == pytest.approx(0.2, abs=0.1)
    assert row["ci_low"] > 0


def test_it_is_the_comparison_of_these_two_alone(judged):
    """Other encoders of the cohort do not widen the interval."""
    bases = {"centred": ("base", "centring")}
    row = compare_with_bases(judged, "probe", bases).row(0, named=True)
    two = compare_encoders({name: judged[name] for name in ("base", "centred")}, "probe")
    alone = two.filter(encoder="centred").row(0, named=True)
    for column in ("value", "ci_low", "ci_high", "null_low", "null_high"):
        assert row[column] == pytest.approx(alone[column], abs=1e-12), column


def test_without_variants_there_is_no_row(judged):
    assert compare_with_bases(judged, "probe", {}).is_empty()
