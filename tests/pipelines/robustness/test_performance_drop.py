"""The performance drop: croma's reductions, the design of its splits, encoders of known answer."""

import itertools
import json

import croma
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from pathfm_kedro.pipelines.robustness.performance_drop import (
    PERFORMANCE_DROP_SCHEMA,
    PerformanceDrop,
    average_performance_drop,
    normalised_degradation,
    performance_drop_figures,
    performance_drop_statistics,
)
from pathfm_kedro.statistics.association import cramers_v
from pathfm_kedro.statistics.correlated_samples import split_patients, training_rows
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.ridge import dual_ridge, standardised
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory
from tests.pipelines.robustness.phantom_views import measured

PARAMETERS = {
    "cramers_v": [0.0, 0.25, 0.5, 0.75, 1.0],
    "repeats": 10,
    "max_pairs": 6,
    "max_tiles_per_pair": 800,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 4,
    "ridge": 1.0,
    "draws": 200,
    "seed": 0,
    "criteria": [{"metric": "apd", "above": -0.05}],
}
PERFORMANCE_DROP = Experiment(
    "performance_drop", PerformanceDrop, performance_drop_statistics, performance_drop_figures, []
)


def parameters_with(**changes) -> PerformanceDrop:
    return read_parameters(PerformanceDrop, "performance_drop", PARAMETERS | changes)


def cohort(seed, effects, labels=2, centers=2, patients=8, tiles=6, d=20):
    generator = np.random.default_rng(seed)
    of_label, of_center = np.random.default_rng(9).standard_normal((2, 4, d))
    rows, shards = [], {}
    for label, center, _ in itertools.product(range(labels), range(centers), range(patients)):
        name = f"s{len(rows):03d}"
        rows.append((name, name, f"C{center}", "organ", f"L{label}"))
        mean = effects[0] * of_label[label] + effects[1] * of_center[center]
        mean = mean + 0.5 * generator.standard_normal(d)
        shards[name] = (mean + generator.standard_normal((tiles, d))).astype(np.float32)
    columns = ["slide_id", "patient_id", "center", "organ", "label"]
    names = [f"{name}-{i}" for name in shards for i in range(tiles)]
    table = pl.DataFrame({"tile_id": names, "slide_id": np.repeat(list(shards), tiles)})
    return pl.DataFrame(rows, schema=columns, orient="row"), table, InMemory(shards)


def measure(data, **changes):
    return measured(PERFORMANCE_DROP, PARAMETERS | changes, *data)


def pick(table, metric, stratum="all"):
    rows = table.filter(pl.col("metric") == metric, pl.col("stratum") == stratum)
    return rows.row(0, named=True)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 8), st.integers(1, 30))
def test_reductions_equal_croma(seed, splits, repeats):
    accuracies = np.random.default_rng(seed).uniform(0.55, 1.0, (repeats, splits))
    ours = average_performance_drop(accuracies)
    assert ours == pytest.approx(croma.apd(accuracies.T), abs=1e-9)
    strengths = np.linspace(0, 1, splits)
    area = normalised_degradation(accuracies, strengths, 0.5)
    assert area == pytest.approx(croma.nipd(accuracies.T, strengths, 0.5), abs=1e-9)


def test_figures_equal_croma_on_the_counted_accuracies():
    p = parameters_with()
    statistics = performance_drop_statistics(*cohort(0, (0.5, 0.5), labels=3), p)
    assert dict(statistics.schema) == PERFORMANCE_DROP_SCHEMA
    matrix = (
        statistics.group_by("pair", "repeat", "v", "label")
        .agg(accuracy=pl.col("n_correct").sum() / pl.col("n_tested").sum())
        .group_by("pair", "repeat", "v")
        .agg(pl.col("accuracy").mean())
        .sort("v", "pair", "repeat")["accuracy"]
        .to_numpy()
        .reshape(5, -1)
    )
    assert matrix.shape == (5, 3 * 10)
    table = PERFORMANCE_DROP.measurements(statistics, PARAMETERS, encoder="e")
    assert pick(table, "apd")["value"] == pytest.approx(croma.apd(matrix), abs=1e-9)
    expected = croma.nipd(matrix, p.cramers_v, 0.5)
    assert pick(table, "nipd")["value"] == pytest.approx(expected, abs=1e-9)
    assert table.filter(pl.col("stratum") != "all").height == 3


@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_dual_ridge_equals_scikit_learn(ridge):
    generator = np.random.default_rng(0)
    rows, tested = generator.standard_normal((30, 50)), generator.standard_normal((7, 50))
    targets = generator.standard_normal((30, 2))
    centred = rows - rows.mean(axis=0)
    penalty = ridge * np.trace(centred @ centred.T) / 30
    expected = Ridge(alpha=penalty).fit(rows, targets).predict(tested)
    ours = dual_ridge(rows @ rows.T, tested @ rows.T, targets, ridge)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_rows_that_are_all_equal_predict_the_mean():
    same = np.ones((4, 3))
    found = dual_ridge(same @ same.T, same @ same.T, np.arange(4.0)[:, None], 1.0)
    np.testing.assert_allclose(found, 1.5)
    assert not standardised(same).any()


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 1))
def test_training_sets_have_the_correlation_asked_for(seed, v, diagonal):
    generator = np.random.default_rng(seed)
    cells = np.repeat(np.arange(4), generator.integers(8, 40, 4))
    labels, centers = cells // 2, cells % 2
    random_key = generator.random(len(cells))
    rows = training_rows(np.ones(len(cells), bool), labels, centers, random_key, v, diagonal)
    counts = np.bincount(cells[rows], minlength=4).reshape(2, 2)
    assert len(rows) == 2 * np.bincount(cells).min()
    # A tile more or less in a cell is what rounding can do.
    assert cramers_v(counts) == pytest.approx(v, abs=2 / counts.sum() * 2)
    if v > 0:
        assert (counts[0, 0] > counts[0, 1]) == (diagonal == 0)


@given(st.integers(0, 1000))
def test_no_patient_is_on_both_sides(seed):
    generator = np.random.default_rng(seed)
    patients = np.repeat(np.arange(16), 3)
    labels, centers = generator.integers(0, 2, 48), (patients % 2)
    split = split_patients(patients, labels, centers, generator)
    if split is not None:
        assert not set(patients[split]) & set(patients[~split])
        assert len(set(zip(labels[~split], centers[~split], strict=True))) == 4


def test_a_probe_that_could_lean_on_the_center_does():
    of_label = pick(measure(cohort(0, (1.0, 0.0))), "apd")
    of_both = pick(measure(cohort(0, (0.4, 1.5))), "apd")
    assert of_label["value"] == pytest.approx(0, abs=0.03)
    assert of_label["verdict"] == "pass"
    assert of_both["value"] < -0.15
    assert of_both["verdict"] == "fail"
    accuracies = measure(cohort(0, (0.4, 1.5))).filter(metric="accuracy")
    strengths = [json.loads(setting)["v"] for setting in accuracies["setting"]]
    assert strengths == PARAMETERS["cramers_v"]
    assert accuracies["value"][0] > 0.7
    assert accuracies["value"][-1] < accuracies["value"][0] - 0.2


def test_a_probe_at_chance_has_nothing_to_lose():
    row = pick(measure(cohort(0, (0.0, 1.5))), "apd")
    assert row["value"] is None
    assert row["verdict"] == "not_applicable"
    assert row["threshold"] == -0.05
    assert "nothing to lose" in row["reason"]


def test_a_cohort_without_a_pair_says_why():
    slides, tiles, embeddings = cohort(0, (1.0, 0.0))
    # L1 at C1 only: label and center cannot be told apart.
    keep = (pl.col("label") == "L0") == (pl.col("center") == "C0")
    table = measure((slides.filter(keep), tiles, embeddings))
    assert table["verdict"].unique().to_list() == ["not_applicable"]
    assert "confounded" in table["reason"][0]


def test_strengths_must_rise_from_0_to_1():
    with pytest.raises(ValueError, match=r"performance_drop\.cramers_v is .*must rise from 0 to 1"):
        parameters_with(cramers_v=[0.0, 0.5])


def test_interval_covers():
    """Truth: the mean over cohorts of the same effects."""
    quick = {"repeats": 6, "cramers_v": [0.0, 0.5, 1.0]}
    rows = [pick(measure(cohort(seed, (0.4, 0.8)), **quick), "apd") for seed in range(40)]
    truth = np.mean([row["value"] for row in rows])
    hits = [row["ci_low"] <= truth <= row["ci_high"] for row in rows]
    assert np.mean(hits) >= 0.8
