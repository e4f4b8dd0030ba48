"""Label budgets: whom they sample, what they read, and what is too little."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.inheritance.label_budget import (
    LABEL_BUDGET_SCHEMA,
    LabelBudget,
    label_budget_figures,
    label_budget_statistics,
)
from pathfm_kedro.pipelines.inheritance.patient_budgets import sampled_patients
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory
from tests.pipelines.inheritance.test_probe_calibration import cohort

PARAMETERS = {
    "max_tiles_per_slide": 2,
    "probe": {"folds": 4, "C": 0.1, "max_iter": 200},
    "budgets": [0.01, 0.1, 0.25, 1.0],
    "repeats": 3,
    "draws": 100,
    "seed": 0,
}
EXPERIMENT = Experiment(
    "label_budget", LabelBudget, label_budget_statistics, label_budget_figures, []
)


def measure(slides, tiles, shards, parameters=PARAMETERS):
    statistics = EXPERIMENT.statistics(slides, tiles, InMemory(shards), parameters)
    assert dict(statistics.schema) == LABEL_BUDGET_SCHEMA
    table = EXPERIMENT.measurements(statistics, parameters, encoder="e")
    return statistics, {
        (r["metric"], r["setting"].split('"tested": ')[1].strip('"}'), budget_of(r)): r
        for r in table.iter_rows(named=True)
    }


def budget_of(row):
    return float(row["setting"].split('"budget": ')[1].split(",")[0])


def test_a_budget_is_even_in_labels_and_holds_the_smaller_ones():
    patients = np.repeat(np.arange(40), 3)
    targets = (patients < 30).astype(np.int64)
    whole = [
        sampled_patients(patients, targets, b, np.random.SeedSequence(1)) for b in (0.1, 0.5, 1.0)
    ]
    assert [((own >= 30).sum(), (own < 30).sum()) for own in whole] == [(1, 3), (5, 15), (10, 30)]
    assert set(whole[0]) < set(whole[1]) < set(whole[2])


def test_less_than_a_patient_is_not_applicable_and_more_labels_read_more():
    statistics, rows = measure(*cohort(n_patients=96, signal=2.0, n_labels=2))
    for tested, n in (("in_domain", 36), ("held_out_center", 32)):
        nothing = rows["balanced_accuracy", tested, 0.01]
        assert nothing["verdict"] == "not_applicable"
        assert f"1% of the {n} patient(s) of l0" in nothing["reason"]
        values = [rows["balanced_accuracy", tested, b]["value"] for b in (0.1, 0.25, 1.0)]
        assert values[0] < values[2]
        assert rows["balanced_accuracy", tested, 1.0]["null_low"] == 0.5
        # A tile counts once, however many repeats.
        assert {rows["ece", tested, b]["n"] for b in (0.1, 0.25, 1.0)} == {192}
    spent = (
        statistics.drop_nulls("n_training_patients")
        .group_by("tested", "budget")
        .agg(pl.col("n_training_patients").first(), pl.col("repeat").n_unique())
    )
    home = spent.filter(tested="in_domain").sort("budget")
    assert home["n_training_patients"].to_list() == [8, 18, 72]
    assert home["repeat"].to_list() == [3, 3, 1]


def test_permuted_labels_leave_every_budget_at_chance():
    slides, tiles, shards = cohort(n_patients=60, n_labels=3, signal=3.0)
    shuffled = slides["label"].sample(fraction=1, shuffle=True, seed=1)
    _, rows = measure(slides.with_columns(label=shuffled), tiles, shards)
    for (metric, _, budget), row in rows.items():
        if metric == "balanced_accuracy" and budget >= 0.1:
            assert row["ci_low"] <= 1 / 3 <= row["ci_high"]


def test_all_patients_are_what_a_plain_probe_reads():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.preprocessing import StandardScaler

    slides, tiles, shards = cohort(n_patients=30)
    expected_n = 0
    table = slides.join(tiles.group_by("slide_id", maintain_order=True).head(3), on="slide_id")
    vectors = np.concatenate([shards[s] for s in slides["slide_id"]])
    predicted, truth = [], []
    for center in ("c0", "c1", "c2"):
        test = (table["center"] == center).to_numpy()
        scaler = StandardScaler().fit(vectors[~test])
        model = LogisticRegression(C=0.1, max_iter=200)
        model.fit(scaler.transform(vectors[~test]), table["label"].to_numpy()[~test])
        predicted.append(model.predict(scaler.transform(vectors[test])))
        truth.append(table["label"].to_numpy()[test])
        expected_n += test.sum()
    expected = balanced_accuracy_score(np.concatenate(truth), np.concatenate(predicted))
    parameters = PARAMETERS | {"max_tiles_per_slide": 3}
    _, rows = measure(slides, tiles, shards, parameters)
    found = rows["balanced_accuracy", "held_out_center", 1.0]
    assert found["value"] == pytest.approx(expected)
    assert found["n"] == expected_n


def test_nothing_embedded_and_one_label():
    slides, tiles, shards = cohort()
    for _, rows in (
        measure(slides, tiles, {}),
        measure(slides.with_columns(label=pl.lit("one")), tiles, shards),
    ):
        assert all(row["value"] is None and row["reason"] for row in rows.values())
