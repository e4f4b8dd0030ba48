"""Gains over one vector per slide: found where they were planted, and nowhere else."""

from __future__ import annotations

import json

import pytest

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_mosaic
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from tests.pipelines.retrieve.planted import (
    label_in_the_maximum,
    label_in_the_mean,
    mosaic_of,
    nothing,
)

AT = {"family": "maxsim", "vote": "mv5", "scope": "within_organ"}
PARAMETERS = {
    "families": ["mean", "median_min", "maxsim", "bm25", "hybrid"],
    "scopes": ["within_organ"],
    "votes": ["mv5"],
    "exclude": "patient",
    "k": 5,
    "min_patients": 2,
    "words": 12,
    "folds": 3,
    "draws": 400,
    "n_permutations": 60,
    "criteria": [{"metric": "gain_over_mean", "at": AT, "below": 0.05}],
    "seed": 0,
}


def gains(cohort, **changes):
    slides, patches = cohort
    p = read_parameters(Retrieval, "retrieval", PARAMETERS | changes)
    matches = search_mosaic(mosaic_of(slides, patches), p)
    table = measure(retrieval_figures(matches, slides, p), "retrieval", "e", p.criteria)
    found = {}
    for row in table.filter(metric="gain_over_mean").iter_rows(named=True):
        found[json.loads(row["setting"])["family"]] = row
    return found


def test_several_vectors_win_where_the_label_lies_in_the_maximum():
    row = gains(label_in_the_maximum())["maxsim"]
    assert row["ci_low"] > 0.05
    assert row["verdict"] == "fail"


def test_several_vectors_do_not_win_where_the_label_lies_in_the_mean():
    found = gains(label_in_the_mean())
    assert all(row["ci_low"] < 0.05 for row in found.values())
    assert found["maxsim"]["verdict"] in {"pass", "inconclusive"}


@pytest.mark.parametrize(
    "cohorts",
    [pytest.param(10), pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_vectors_that_know_nothing_gain_nothing(cohorts):
    """Of null encoders 2.5% may seem to gain by the whole interval, and none may be judged so."""
    families = ["mean", "median_min", "maxsim"]
    gained = judged = 0
    for seed in range(cohorts):
        found = gains(nothing(seed=seed), families=families, draws=200, n_permutations=40)
        gained += sum(row["ci_low"] > 0 for row in found.values())
        judged += found["maxsim"]["verdict"] == "fail"
    assert gained / (2 * cohorts) <= 0.025 + 3 * (0.025 * 0.975 / cohorts) ** 0.5
    assert judged / cohorts <= 0.025


def test_one_vector_a_slide_gains_nothing_over_itself():
    """Vectors of whole slides, and slides of so few tiles that one of them is the mosaic."""
    slides, patches = label_in_the_mean()
    found = gains((slides, patches[:, :1]))
    assert found["maxsim"]["verdict"] == "not_applicable"
    assert "single tile or vector" in found["maxsim"]["reason"]
