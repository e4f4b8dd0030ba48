"""Probe against small network: whom they share, where planted curves cross, and what has no answer."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.encoders.training import InMemory
from pathfm_kedro.pipelines.inheritance.task_specific import (
    TASK_SPECIFIC_SCHEMA,
    task_specific_figures,
    task_specific_statistics,
)
from pathfm_kedro.pipelines.inheritance.task_specific_fits import (
    TaskSpecific,
    budget_splits,
    folded,
    plan_task_specific,
)
from pathfm_kedro.statistics.crossings import crossings
from pathfm_kedro.statistics.figures import measure
from tests.pipelines.inheritance.test_pretext_tasks import Shards, pool, tiles_of

ENGINE = {"workers": 1}
BLOCK = {
    "budgets": (0.01, 0.25, 0.5, 1.0),
    "repeats": 2,
    "probe": {"folds": 2, "C": 0.1, "max_iter": 100},
    "training": {"steps": 4, "batch": 8, "learning_rate": 1e-3, "weight_decay": 0.05},
    "draws": 100,
}


def parameters(**changed):
    return TaskSpecific(**{**BLOCK, **changed})


class Networks:
    """Logits of fits that were never run: a tile is right with a chance that grows with the budget."""

    def __init__(self, table, pixels, p, chance, failures=()):
        own = folded(table, pixels, p)
        self.failures, self.logits = dict(failures), {}
        for budget in p.budgets[1:]:
            for split in budget_splits(own, budget, p):
                rng = np.random.default_rng([split.fold, split.repeat])
                right = rng.random(len(split.test)) < chance(budget)
                said = np.where(right, own.targets[split.test], 1 - own.targets[split.test])
                self.logits[split.name] = np.eye(2, dtype=np.float32)[said]
        self.slide_ids = tuple(sorted(set(self.logits) - set(self.failures)))

    def load_slide(self, slide_id, name="logits"):
        return self.logits[slide_id]


def vectors_of(table, signal, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for (slide,), own in table.group_by("slide_id", maintain_order=True):
        x = rng.normal(size=(own.height, 5))
        x[:, 0] += signal * (own["label"] == "a").to_numpy()
        made[slide] = {"embedding": x.astype(np.float32)}
    return Shards(made)


def run(chance, signal=1.2, p=None, table=None, embeddings=None, failures=()):
    p, table = p or parameters(), pool(48) if table is None else table
    pixels = tiles_of(table, side=2)
    fits = Networks(table, pixels, p, chance, failures)
    embeddings = embeddings or vectors_of(table, signal)
    tiles = table.select("tile_id", "slide_id")
    statistics = task_specific_statistics(tiles, embeddings, table, pixels, fits, p)
    assert dict(statistics.schema) == TASK_SPECIFIC_SCHEMA
    return statistics, measure(task_specific_figures(statistics, p), "task_specific", "e")


def row(table, metric, **setting):
    named = pl.col("setting") == json.dumps(setting, sort_keys=True)
    return table.filter(pl.col("metric") == metric, named).row(0, named=True)


def test_planted_curves_cross_between_the_budgets_where_they_were_planted_to():
    _, found = run(lambda budget: {0.25: 0.4, 0.5: 0.5, 1.0: 0.99}[budget])
    for tested in ("in_domain", "held_out_center"):
        crossing = row(found, "crossing_patients", tested=tested)
        patients = [
            row(found, "training_patients", tested=tested, budget=b)["value"] for b in (0.5, 1.0)
        ]
        assert patients[0] < crossing["value"] < patients[1]
        assert row(found, "lead", tested=tested, budget=0.25)["ci_low"] > 0
        assert row(found, "lead", tested=tested, budget=1.0)["ci_high"] < 0
        shares = [
            row(found, "outcome_share", tested=tested, outcome=o)["value"]
            for o in ("crossing", "probe_ahead", "network_ahead")
        ]
        assert sum(shares) == pytest.approx(1)
        assert shares[0] > 0.9


def test_no_crossing_is_an_answer_and_a_budget_below_a_patient_is_none():
    for chance, ahead in ((0.2, "probe is ahead at the largest"), (1.0, "network is ahead at all")):
        _, found = run(lambda _, chance=chance: chance)
        crossing = row(found, "crossing_patients", tested="in_domain")
        assert crossing["value"] is None
        assert "no crossing within the budgets of" in crossing["reason"]
        assert ahead in crossing["reason"]
        share = row(found, "outcome_share", tested="in_domain", outcome=ahead.split()[0] + "_ahead")
        assert share["value"] == 1
    assert "undecidable" not in crossing["reason"]
    nothing = row(found, "macro_f1", tested="in_domain", model="probe", budget=0.01)
    assert nothing["verdict"] == "not_applicable"
    assert "is less than one" in nothing["reason"]
    assert "task_specific.budgets" in nothing["reason"]


def test_the_probe_is_scikit_learns_and_guessing_is_the_null():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    table = pool(48)
    embeddings = vectors_of(table, 1.2)
    x = np.concatenate([embeddings.load_slide(s) for s in embeddings.slide_ids]).astype(float)
    held = (table["role"] == "held_out_center").to_numpy()
    labels = table["label"].to_numpy()
    scaler = StandardScaler().fit(x[~held])
    model = LogisticRegression(C=0.1, max_iter=100).fit(scaler.transform(x[~held]), labels[~held])
    expected = f1_score(labels[held], model.predict(scaler.transform(x[held])), average="macro")
    _, found = run(lambda _: 0.5, table=table, embeddings=embeddings)
    probe = row(found, "macro_f1", tested="held_out_center", model="probe", budget=1.0)
    assert probe["value"] == pytest.approx(expected)
    assert probe["n"] == held.sum()
    assert (probe["null_low"], probe["null_high"]) == pytest.approx((1 / 3, 0.5))
    network = row(found, "macro_f1", tested="held_out_center", model="small_cnn", budget=1.0)
    assert network["ci_low"] < 0.5 < network["ci_high"]


def test_vectors_that_know_nothing_lead_nobody():
    leads = []
    for seed in range(6):
        table = pool(48)
        embeddings = vectors_of(table, 0.0, seed)
        _, found = run(lambda _: 0.5, table=table, embeddings=embeddings)
        leads.append(row(found, "lead", tested="in_domain", budget=1.0))
    assert "does not beat a guess" in leads[0]["caveat"]
    assert sum(lead["ci_low"] <= 0 <= lead["ci_high"] for lead in leads) >= 5


def test_both_learn_from_the_same_patients_and_none_of_those_is_tested():
    p, table = parameters(), pool(48)
    own = folded(table, tiles_of(table, side=2), p)
    patients = own.table["patient_id"].to_numpy()
    by_budget = {b: list(budget_splits(own, b, p)) for b in (0.25, 1.0)}
    for small, large in zip(by_budget[0.25], by_budget[1.0], strict=True):
        assert set(patients[small.train]) < set(patients[large.train])
        assert not set(patients[large.train]) & set(patients[large.test])
        assert set(own.targets[small.train]) == {0, 1}
    held = [s for s in by_budget[1.0] if s.tested == "held_out_center"]
    assert set(own.table["center"].to_numpy()[held[0].test]) == {"c2"}
    assert "c2" not in set(own.table["center"].to_numpy()[held[0].train])


def test_encoders_of_other_patients_and_failed_fits_say_so():
    table = pool(48)
    some = vectors_of(table.filter(pl.col("slide_id") < "s30"), 1.0)
    _, found = run(lambda _: 0.5, table=table, embeddings=some)
    assert found["value"].null_count() == found.height
    assert found["reason"].str.contains("vectors of the network's tiles of 30 of 48 patients").all()
    failed = {"in_domain-fold0-budget1000-repeat1": "the loss of epoch 1 is nan"}
    _, found = run(lambda _: 0.5, table=table, failures=failed)
    network = row(found, "macro_f1", tested="in_domain", model="small_cnn", budget=1.0)
    assert "the loss of epoch 1 is nan" in network["reason"]
    assert row(found, "macro_f1", tested="in_domain", model="probe", budget=1.0)["value"] > 0.5
    _, found = run(lambda _: 0.5, p=parameters(budgets=()), table=table)
    assert found["reason"].to_list() == [
        "task_specific.budgets is empty: give shares of the patients, as 0.25 and 1"
    ]


@pytest.mark.slow
def test_a_fit_learns_what_shows_and_goes_on_after_a_kill():
    table, p = pool(24), parameters(budgets=(1.0,), repeats=1)
    pixels = tiles_of(table, side=16)
    for slide, own in table.group_by("slide_id"):
        red = pixels.tensors[slide[0]]["pixels"]
        red[..., 0] = np.where(own["label"][0] == "a", 240, 40)
    p = parameters(budgets=(1.0,), repeats=1, training=BLOCK["training"] | {"steps": 24})
    jobs = plan_task_specific(table, pixels, ENGINE, p).jobs
    assert [job.slide_id for job in jobs] == [
        "in_domain-fold0-budget1000-repeat0",
        "in_domain-fold1-budget1000-repeat0",
        "held_out_center-fold2-budget1000-repeat0",
    ]

    class Killed(InMemory):
        def save(self, tensors, text):
            super().save(tensors, text)
            raise KeyboardInterrupt

    whole, killed = jobs[2].compute(), Killed()
    with pytest.raises(KeyboardInterrupt):
        jobs[2].fit(killed)
    resumed = jobs[2].fit(InMemory(killed.saved))
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)
    truth = jobs[2].own.targets[jobs[2].split.test]
    assert (whole["logits"].argmax(axis=1) == truth).mean() > 0.9
    assert len(whole["losses"]) == 3


def test_the_last_of_several_crossings_counts():
    leads = np.array([[0.1, -0.1, 0.3, -0.1]])
    assert crossings(leads, np.array([1.0, 2.0, 4.0, 8.0]))[0] == pytest.approx(4 * 2**0.75)
