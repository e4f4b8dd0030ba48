"""Calibration of probes on cohorts whose answer is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pathfm_kedro.pipelines.inheritance.probe_calibration import (
    PROBE_CALIBRATION_SCHEMA,
    ProbeCalibration,
    probe_calibration_figures,
    probe_calibration_statistics,
)
from pathfm_kedro.statistics.probe_splits import held_out_center_splits, in_domain_splits
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

PARAMETERS = {
    "max_tiles_per_slide": 3,
    "probe": {"folds": 4, "C": 1.0, "max_iter": 200},
    "null_samples": 50,
    "draws": 100,
    "seed": 0,
}
EXPERIMENT = Experiment(
    "probe_calibration",
    ProbeCalibration,
    probe_calibration_statistics,
    probe_calibration_figures,
    [],
)


def cohort(n_patients=48, n_labels=2, signal=1.0, noise=1.0, shift=0.0, seed=0):
    """Balanced labels and three centers; the first dimensions tell the label.

    At center c2 all vectors are shifted towards the last label, and one more dimension says that they
    are of c2: who trains there can take the shift back, who does not cannot.
    """
    generator = np.random.default_rng(seed)
    names = [f"s{i:02}" for i in range(n_patients)]
    label, center = np.arange(n_patients) % n_labels, np.arange(n_patients) // n_labels % 3
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": [f"p{i:02}" for i in range(n_patients)],
            "center": [f"c{c}" for c in center],
            "organ": "o",
            "label": [f"l{i}" for i in label],
        }
    )
    tiles = pl.DataFrame(
        {
            "slide_id": np.repeat(names, 3),
            "tile_id": [f"t{i:04}" for i in range(n_patients * 3)],
        }
    )
    shards = {}
    for name, y, c in zip(names, label, center, strict=True):
        own = signal * np.eye(n_labels)[y] + noise * generator.normal(size=(3, n_labels))
        own[:, -1] += shift * (c == 2)
        shards[name] = np.column_stack([own, np.full(3, c == 2)]).astype(np.float32)
    return slides, tiles, shards


def measure(slides, tiles, shards, parameters=PARAMETERS):
    statistics = EXPERIMENT.statistics(slides, tiles, InMemory(shards), parameters)
    assert dict(statistics.schema) == PROBE_CALIBRATION_SCHEMA
    return EXPERIMENT.measurements(statistics, parameters, encoder="e")


def row(table, metric, stratum="all", **at):
    rows = table.filter(metric=metric, stratum=stratum)
    keep = [all(f'"{k}": "{v}"' in text for k, v in at.items()) for text in rows["setting"]]
    return rows.filter(pl.Series(keep)).row(0, named=True)


def test_nobody_who_trains_or_sets_a_temperature_tests():
    patients = np.repeat(np.arange(30), 2)
    targets, centers = patients % 2, np.array([f"c{p % 3}" for p in patients])
    centers[-1] = "c0"  # the last patient has slides at two centers
    home = list(in_domain_splits(patients, targets, centers, 5, 0))
    away = list(held_out_center_splits(patients, targets, centers, 5, 0))
    for split in (*home, *away):
        parts = [set(patients[rows]) for rows in (split.train, split.aside, split.test)]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))
    for split in away:
        assert set(centers[split.test]) == {split.center}
        assert split.center not in centers[np.concatenate([split.train, split.aside])]
    for splits in (home, away):
        tested = np.sort(np.concatenate([split.test for split in splits]))
        assert tested.tolist() == list(range(60))


def test_noise_lies_at_its_references():
    table = measure(*cohort(signal=0.0, n_labels=3, n_patients=45))
    for tested in ("in_domain", "held_out_center"):
        auc = row(table, "auc", tested=tested)
        assert auc["ci_low"] <= 0.5 <= auc["ci_high"]
        brier = row(table, "brier", tested=tested, probabilities="scaled")
        assert brier["null_low"] == pytest.approx(2 / 3)
        assert brier["ci_high"] >= 2 / 3 - 0.01
        # A probe that has learnt noise is too sure: the flatter, the better.
        assert row(table, "temperature_needed", tested=tested)["value"] > 1.5
        stated, scaled = (
            row(table, "ece", tested=tested, bins="fixed_width", probabilities=p)["value"]
            for p in ("stated", "scaled")
        )
        assert scaled < stated


def test_at_a_shifted_center_calibration_moves_where_auc_stays():
    table = measure(*cohort(n_patients=96, signal=2.0, shift=3.0))
    auc = row(table, "auc_change", "center=c2")
    assert auc["ci_low"] <= 0 <= auc["ci_high"]
    assert abs(auc["value"]) < 0.03
    moved = row(table, "ece_change", "center=c2", probabilities="stated")
    assert moved["ci_low"] > 0
    calm = row(table, "ece_change", "center=c0", probabilities="stated")
    assert calm["value"] < moved["value"] / 2
    assert row(table, "auc", "center=c2", tested="held_out_center")["n_patients"] == 32


def test_separable_labels_are_ranked_perfectly():
    table = measure(*cohort(signal=50.0))
    for tested in ("in_domain", "held_out_center"):
        assert row(table, "auc", tested=tested)["value"] == 1.0
        assert row(table, "degeneracy_share", tested=tested)["value"] == pytest.approx(0.5)
        # Nothing is wrong, so that no temperature is low enough.
        assert row(table, "temperature_fitted", tested=tested)["value"] == pytest.approx(0.05)
        needed = row(table, "temperature_needed", tested=tested)
        assert needed["ci_low"] <= needed["value"] <= needed["ci_high"]


def test_order_of_rows_changes_nothing():
    slides, tiles, shards = cohort()
    order = np.random.default_rng(3).permutation(len(tiles))
    stacked, shuffled = np.concatenate(list(shards.values())), tiles[order]
    moved = {n: stacked[order[(shuffled["slide_id"] == n).to_numpy()]] for n in shards}
    assert_frame_equal(
        measure(slides, tiles, shards), measure(slides[::-1], shuffled, moved), check_exact=True
    )


def test_small_designs_say_what_they_lack():
    slides, tiles, shards = cohort()
    table = measure(slides.with_columns(center=pl.lit("only")), tiles, shards)
    away = row(table, "auc", tested="held_out_center")
    assert (away["verdict"], away["n_patients"]) == ("not_applicable", 0)
    assert "1 center(s)" in away["reason"]
    assert "1 center(s)" in row(table, "auc_change")["reason"]
    assert row(table, "auc", tested="in_domain")["value"] is not None
    # A label that is found at one center alone cannot be told by probes of the others.
    alone = pl.when(pl.col("center") == "c2").then(pl.lit("own")).otherwise("label")
    table = measure(slides.with_columns(label=alone), tiles, shards)
    reason = row(table, "auc", "center=c2", tested="held_out_center")["reason"]
    assert "no label of this center is found at another" in reason
    table = measure(slides.with_columns(label=pl.lit("one")), tiles, shards)
    assert table["value"].is_null().all()
    assert table["reason"].str.contains("1 label").all()
    assert measure(slides, tiles, {})["value"].is_null().all()


def test_two_folds_cannot_keep_one_aside():
    with pytest.raises(ValueError, match=r"probe_calibration\.probe.*folds must be 3 at least"):
        EXPERIMENT.read(PARAMETERS | {"probe": {"folds": 2, "C": 1.0}})
