"""Heads for slides: what each is without steps, where attention helps, and what is left open."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.inheritance.slide_heads import (
    SLIDE_HEADS_SCHEMA,
    SlideHeads,
    slide_heads_figures,
    slide_heads_statistics,
)
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

BLOCK = {
    "heads": ["mean", "max", "attention"],
    "max_tiles_per_slide": 8,
    "folds": 3,
    "inner_folds": 2,
    "C": [0.1],
    "max_iter": 200,
    "attention": {
        "components": 6,
        "hidden": 8,
        "steps": 0,
        "learning_rate": 0.05,
        "weight_decay": 0.001,
    },
    "draws": 100,
}
EXPERIMENT = Experiment("slide_heads", SlideHeads, slide_heads_statistics, slide_heads_figures, [])


def cohort(n=36, d=6, seed=0, shift=6.0, noise=10.0):
    """Three centers, two labels; one tile of six shows the label, beside noise that the mean keeps."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) // 3 % 2
    names = [f"s{i:02}" for i in range(n)]
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": [f"p{i:02}" for i in range(n)],
            "center": [f"c{i % 3}" for i in range(n)],
            "organ": ["o"] * n,
            "label": [f"l{label}" for label in labels],
        }
    )
    shards = {}
    for name, label in zip(names, labels, strict=True):
        bag = rng.normal(size=(6, d)) * np.array([1.0] + [3.0] * (d - 1))
        bag[:, 0] *= noise
        bag[0, 0] = shift * (2 * label - 1)
        bag[0, 1] += 20
        shards[name] = bag.astype(np.float32)
    tiles = pl.DataFrame({"slide_id": [s for s in names for _ in range(6)]})
    tiles = tiles.with_columns(tile_id=pl.col("slide_id") + "-" + pl.int_range(pl.len()).cast(str))
    return slides, tiles, InMemory(shards)


def run(given=None, **changed):
    slides, tiles, shards = given or cohort()
    parameters = {**BLOCK, **changed}
    table = EXPERIMENT.statistics(slides, tiles, shards, parameters)
    assert dict(table.schema) == SLIDE_HEADS_SCHEMA
    return EXPERIMENT.measurements(table, parameters, encoder="e")


def row(table, metric, **setting):
    named = pl.col("setting") == json.dumps(setting, sort_keys=True)
    return table.filter(pl.col("metric") == metric, named).row(0, named=True)


def test_the_mean_is_scikit_learns_regression_and_attention_without_steps_is_the_mean():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    given = cohort()
    slides, _, shards = given
    means = np.stack([shards.shards[s].astype(float).mean(axis=0) for s in slides["slide_id"]])
    truth, centers = slides["label"].to_numpy(), slides["center"].to_numpy()
    said = np.empty_like(truth)
    for center in np.unique(centers):
        test = centers == center
        scaler = StandardScaler().fit(means[~test])
        model = LogisticRegression(C=0.1, max_iter=200)
        model.fit(scaler.transform(means[~test]), truth[~test])
        said[test] = model.predict(scaler.transform(means[test]))
    table = run(given)
    found = row(table, "macro_f1", tested="held_out_center", head="mean")
    assert found["value"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert (found["n"], found["n_patients"]) == (36, 36)
    assert (found["null_low"], found["null_high"]) == pytest.approx((1 / 3, 0.5))
    for tested in ("in_domain", "held_out_center"):
        equal = row(table, "difference", tested=tested, head="attention", against="mean")
        assert equal["value"] == equal["ci_low"] == equal["ci_high"] == 0


def test_attention_finds_the_tile_that_shows_the_label():
    steps = BLOCK["attention"] | {"steps": 60}
    table = run(cohort(60), attention=steps, heads=["mean", "attention"])
    gain = row(table, "difference", tested="in_domain", head="attention", against="mean")
    assert gain["ci_low"] > 0
    assert row(table, "macro_f1", tested="held_out_center", head="attention")["value"] > 0.9


def test_inner_folds_choose_the_strength_that_reads_more():
    """Of two strengths one is too weak to move a prediction from the frequent label."""
    slides, tiles, shards = cohort(36, shift=40.0)
    few = slides.with_columns(
        label=pl.when(pl.int_range(36) < 24).then("label").otherwise(pl.lit("l0"))
    )
    table = run((few, tiles, shards), C=[1e-9, 1.0], heads=["mean"])
    found = row(table, "macro_f1", tested="in_domain", head="mean")
    assert found["reason"].endswith("C 1")
    alone = run((few, tiles, shards), C=[1e-9], heads=["mean"])
    weak = row(alone, "macro_f1", tested="in_domain", head="mean")
    assert weak["value"] < found["value"]


def test_permuted_labels_leave_every_head_at_chance():
    slides, tiles, shards = cohort(36)
    shuffled = slides.with_columns(slides["label"].sample(fraction=1, shuffle=True, seed=3))
    table = run((shuffled, tiles, shards), attention=BLOCK["attention"] | {"steps": 10})
    for head in BLOCK["heads"]:
        found = row(table, "macro_f1", tested="in_domain", head=head)
        assert found["ci_low"] <= found["null_high"]


def test_what_cannot_be_said_has_a_reason():
    slides, tiles, shards = cohort()
    one = slides.with_columns(label=pl.lit("l0"))
    center = slides.with_columns(center=pl.lit("c0"))
    for given, tested, reason in (
        ((one, tiles, shards), "in_domain", "lower slide_heads.folds"),
        ((center, tiles, shards), "held_out_center", "to hold one out needs two"),
    ):
        found = row(run(given), "macro_f1", tested=tested, head="mean")
        assert found["value"] is None
        assert reason in found["reason"]
    assert "slide_heads.heads is empty" in run(heads=[])["reason"][0]
