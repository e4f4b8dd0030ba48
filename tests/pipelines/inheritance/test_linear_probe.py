"""The probe on data whose answer is known: separable, random, and patient identity alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pathfm_kedro.pipelines.inheritance.linear_probe import (
    LINEAR_PROBE_SCHEMA,
    LinearProbe,
    linear_probe_figures,
    linear_probe_statistics,
)
from pathfm_kedro.statistics.bootstrap import bootstrap_weights
from pathfm_kedro.statistics.cross_validation import (
    ProbeSettings,
    balanced_accuracy,
    cross_validated,
    probe_accuracy,
)
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

PARAMETERS = {
    "max_tiles_per_slide": 3,
    "probe": {"folds": 4, "C": 1.0, "max_iter": 200},
    "criteria": [{"metric": "balanced_accuracy", "at": {"target": "label"}, "above": 0.8}],
    "draws": 200,
    "seed": 0,
}
EXPERIMENT = Experiment(
    "linear_probe", LinearProbe, linear_probe_statistics, linear_probe_figures, []
)


def measure(slides, tiles, shards):
    statistics = EXPERIMENT.statistics(slides, tiles, InMemory(shards), PARAMETERS)
    assert dict(statistics.schema) == LINEAR_PROBE_SCHEMA
    return EXPERIMENT.measurements(statistics, PARAMETERS, encoder="e")


def patient_counts(targets, predicted, patients):
    """Correctly classified and all rows per patient and target, counted one row at a time."""
    correct, tested = np.zeros((2, patients.max() + 1, targets.max() + 1))
    for target, found, patient in zip(targets, predicted, patients, strict=True):
        tested[patient, target] += 1
        correct[patient, target] += target == found
    return correct, tested


def cohort(n_patients=24, tiles_per_slide=4, seed=0):
    """Two labels and two centers, balanced; dimension 0 is the label, the rest noise."""
    generator = np.random.default_rng(seed)
    names = [f"s{i:02}" for i in range(n_patients)]
    label = np.arange(n_patients) % 2
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": [f"p{i:02}" for i in range(n_patients)],
            "center": [f"c{i // 2 % 2}" for i in range(n_patients)],
            "organ": "o",
            "label": [f"l{i}" for i in label],
        }
    )
    tiles = pl.DataFrame(
        {
            "slide_id": np.repeat(names, tiles_per_slide),
            "tile_id": [f"t{i:04}" for i in range(n_patients * tiles_per_slide)],
        }
    )
    shards = {
        name: np.column_stack(
            [10.0 * np.full(tiles_per_slide, one), generator.normal(size=(tiles_per_slide, 2))]
        )
        for name, one in zip(names, label, strict=True)
    }
    return slides, tiles, shards


def row(table, target, stratum="all"):
    return table.filter(setting=f'{{"target": "{target}"}}', stratum=stratum).row(0, named=True)


def test_separable_labels_are_found_and_the_center_is_not():
    slides, tiles, shards = cohort()
    table = measure(slides, tiles, shards)
    assert row(table, "label")["value"] == pytest.approx(1.0)
    assert row(table, "label")["verdict"] == "pass"
    center = row(table, "center")
    assert center["ci_low"] <= 0.5 <= center["ci_high"]
    assert (center["null_low"], center["null_high"]) == (0.5, 0.5)
    assert center["n"] == 24 * 3


@pytest.mark.parametrize(("n_targets", "dimensions"), [(2, 2), (3, 2)])
def test_interval_covers_chance_under_random_labels(n_targets, dimensions):
    n_patients, tiles = 60, 2
    patients = np.repeat(np.arange(n_patients), tiles)
    weights = bootstrap_weights(n_patients, 400, seed=1)
    probe = ProbeSettings(folds=5, C=0.1, max_iter=100)
    covered = []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        own = generator.normal(size=(n_patients, dimensions))[patients]
        vectors = own + generator.normal(size=own.shape)
        targets = generator.permutation(np.arange(n_patients) % n_targets)[patients]
        predicted = cross_validated(vectors, vectors[:, None], targets, patients, probe, seed=0)
        counts = patient_counts(targets, predicted[:, 0], patients)
        estimate = probe_accuracy(*counts, weights)
        covered.append(estimate.ci_low <= 1 / n_targets <= estimate.ci_high)
    assert 0.90 <= np.mean(covered) <= 0.99


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), n_targets=st.integers(2, 3))
def test_knowing_the_patient_gives_no_advantage(seed, n_targets):
    generator = np.random.default_rng(seed)
    patients = np.repeat(np.arange(30), 3)
    targets = generator.permutation(np.arange(30) % n_targets)[patients]
    identity = 10 * np.eye(30)[patients]
    probe = ProbeSettings(folds=5, C=1.0, max_iter=200)
    predicted = cross_validated(identity, identity[:, None], targets, patients, probe, seed=seed)
    correct, tested = patient_counts(targets, predicted[:, 0], patients)
    assert balanced_accuracy(correct.sum(axis=0), tested.sum(axis=0)) <= 1 / n_targets + 0.1


def test_balanced_accuracy_equals_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    generator = np.random.default_rng(0)
    targets, predicted = generator.integers(0, 4, (2, 200))
    patients = generator.integers(0, 20, 200)
    correct, tested = patient_counts(targets, predicted, patients)
    expected = balanced_accuracy_score(targets, predicted)
    found = balanced_accuracy(correct.sum(axis=0), tested.sum(axis=0))
    assert found == pytest.approx(expected)


def test_order_of_rows_changes_nothing():
    slides, tiles, shards = cohort()
    order = np.random.default_rng(3).permutation(len(tiles))
    stacked, shuffled = np.concatenate(list(shards.values())), tiles[order]
    moved = {n: stacked[order[(shuffled["slide_id"] == n).to_numpy()]] for n in shards}
    assert_frame_equal(
        measure(slides, tiles, shards),
        measure(slides[::-1], shuffled, moved),
        check_exact=True,
    )


def test_one_center_and_a_rare_label_say_so():
    slides, tiles, shards = cohort()
    rare = pl.when(pl.col("slide_id") == "s00").then(pl.lit("rare")).otherwise(pl.col("label"))
    slides = slides.with_columns(center=pl.lit("only"), label=rare)
    table = measure(slides, tiles, shards)
    assert row(table, "center")["verdict"] == "not_applicable"
    assert "1 center(s)" in row(table, "center")["reason"]
    assert "1 patient(s)" in row(table, "label", "label=rare")["reason"]
    assert row(table, "label")["value"] == pytest.approx(1.0)
    assert row(table, "label")["n_patients"] == 23


def test_missing_embeddings_and_slides_of_one_tile():
    slides, tiles, shards = cohort()
    nothing = measure(slides, tiles, {})
    assert set(nothing["verdict"]) == {"not_applicable"}
    single = {name: shard[:1] for name, shard in shards.items() if name != "s05"}
    first = tiles.group_by("slide_id", maintain_order=True).first()
    table = measure(slides, first, single)
    assert row(table, "label")["n"] == 23


def test_tiles_without_a_label_are_not_probed():
    slides, tiles, shards = cohort()
    known = pl.when(pl.col("slide_id") > "s05").then("label")
    table = measure(slides.with_columns(label=known), tiles, shards)
    assert row(table, "label")["n_patients"] == 18
    assert row(table, "center")["n_patients"] == 24
    assert table.height == 2
