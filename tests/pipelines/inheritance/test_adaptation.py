"""Who trains and who is tested, what the arms' answers become, and labels that say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pathfm_kedro.pipelines.inheritance.adaptation import adaptation_figures
from pathfm_kedro.pipelines.inheritance.adaptation_fits import (
    Adaptation,
    Split,
    adapted_tiles,
    plan_adaptation,
)
from pathfm_kedro.pipelines.inheritance.adaptation_statistics import (
    ADAPTATION_SCHEMA,
    adaptation_statistics,
)
from pathfm_kedro.pipelines.inheritance.arm_tiles import DOWNSTREAM, HELD_OUT, PRETRAIN
from pathfm_kedro.pipelines.inheritance.pipeline import create_pipeline
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from tests.conftest import base_parameters

LITE0 = {"model": "package:efficientnet_lite0"}
TINY = {"model": "timm:test_efficientnet", "pretrained": False, "seed": 1, "device": "cpu"}
DEFAULTS = base_parameters()
ARMS = ["linear", "full", "random_frozen"]


def settings(**changes):
    quick = {"arms": ARMS, "n_seeds": 1, "folds": 2, "draws": 200, "measured": False}
    quick |= {"input_pixels": 32, "groups": 4, "k": 3}
    search = {**DEFAULTS["adaptation"]["search"], "trials": 1, "epochs": 1, "head_epochs": 5}
    given = DEFAULTS["adaptation"] | quick | {"search": search} | changes
    return read_parameters(Adaptation, "adaptation", given)


def pool(per_cell=8, tiles=2, organs=True):
    rows = []
    for role, center in ((DOWNSTREAM, "c0"), (HELD_OUT, "c1"), (PRETRAIN, "c0")):
        for label in "ab":
            for i in range(per_cell):
                name = f"{role[:2]}-{label}-{i}"
                organ = f"o{i % 2}" if organs else None
                rows += [
                    (f"{name}-{j}", name, f"p-{name}", center, organ, label, role, j)
                    for j in range(tiles)
                ]
    columns = ["tile_id", "slide_id", "patient_id", "center", "organ", "label", "role", "place"]
    return pl.DataFrame(rows, schema=columns, orient="row")


class Tiles:
    """Shards of pixels; brighter where the label is b, if labels say anything."""

    def __init__(self, table, side=16):
        self.slide_ids = tuple(table["slide_id"].unique().sort())
        self.table, self.side = table, side

    def load_slide(self, slide_id, name="pixels"):
        own = self.table.filter(slide_id=slide_id)
        rng = np.random.default_rng(sum(map(ord, slide_id)))
        pixels = rng.integers(0, 100, (own.height, self.side, self.side, 3))
        return (pixels + 120 * (own["label"][0] == "b")).astype(np.uint8)

    def slide_header(self, slide_id):
        return {"slide": slide_id}


class Fits:
    """What arms gave: given answers in place of training."""

    def __init__(self, table, p, answer, measured=(np.nan, np.nan)):
        self.given = {}
        rng = np.random.default_rng(0)
        tiles = table.filter(pl.col("role") != PRETRAIN).sort("slide_id", "place")
        truth = (tiles["label"] == "b").to_numpy().astype(int)
        base = rng.normal(size=(tiles.height, 6)) + 3 * truth[:, None]
        for fold in range(p.folds):
            split = Split.of(tiles, fold, p)
            for arm in p.arms:
                for seed in range(p.n_seeds):
                    rows = split.tested
                    self.given[f"{arm}-seed{seed}-fold{fold}"] = {
                        "rows": rows,
                        "logits": answer(arm, truth[rows], tiles[rows]),
                        "trials": np.array([[1e-3, 0.7, -0.5, 3.0]]),
                        "cost": np.array([1e9, *measured]),
                        "vector_rows": rows,
                        "vectors": base[rows].astype(np.float32),
                    }
        self.slide_ids = tuple(self.given)

    def load_slide(self, slide_id, name="pixels"):
        return self.given[slide_id][name]


def answers(share_of):
    """Logits that are right for a share of the tiles of each arm."""

    def answer(arm, truth, rows):
        right = np.arange(len(truth)) % 10 < 10 * share_of[arm]
        return np.eye(2)[np.where(right, truth, 1 - truth)]

    return answer


def measured(table, p, answer, *cost):
    fits = Fits(table, p, answer, *cost)
    statistics = adaptation_statistics(table, Tiles(table), fits, LITE0, p)
    assert dict(statistics.schema) == ADAPTATION_SCHEMA
    return measure(adaptation_figures(statistics, p), "adaptation", "e", p.criteria)


def row(table, metric, **setting):
    found = table.filter(metric=metric).filter(
        *(pl.col("setting").str.contains(f'"{k}": "{v}"', literal=True) for k, v in setting.items())
    )
    assert found.height == 1, found
    return found.row(0, named=True)


def test_no_patient_is_in_two_parts_of_a_split_and_each_is_tested_once():
    p, table = settings(folds=4), pool().filter(pl.col("role") != PRETRAIN)
    tested = []
    for fold in range(4):
        split = Split.of(table, fold, p)
        parts = [
            set(table[rows]["patient_id"]) for rows in (split.train, split.inner, split.tested)
        ]
        assert sum(map(len, parts)) == len(set().union(*parts))
        assert set(table[split.train]["label"]) == {"a", "b"}
        assert set(table[split.train]["role"]) == {DOWNSTREAM}
        assert len(split.inner)
        tested += table[split.tested].filter(role=DOWNSTREAM)["patient_id"].unique().to_list()
        assert table[split.tested].filter(role=HELD_OUT).height == 32
    assert sorted(tested) == sorted(table.filter(role=DOWNSTREAM)["patient_id"].unique())


def test_balanced_accuracy_is_the_share_of_right_answers_and_differences_are_paired():
    p = settings(n_seeds=2, search={**DEFAULTS["adaptation"]["search"], "trials": 4})
    found = measured(pool(), p, answers({"linear": 0.9, "full": 0.6, "random_frozen": 0.3}))
    for arm, share in (("linear", 0.9), ("full", 0.6)):
        own = row(found, "balanced_accuracy", arm=arm, tested="held_out_center")
        assert own["value"] == pytest.approx(share, abs=0.06)
        assert own["n_patients"] == 16
        assert own["null_low"] == 0.5
    gap = row(found, "linear_minus_tuned", arm="full", tested="held_out_center")
    parts = [
        row(found, "balanced_accuracy", arm=arm, tested="held_out_center")["value"]
        for arm in ("linear", "full")
    ]
    assert gap["value"] == pytest.approx(parts[0] - parts[1])
    assert "the printed sign" in gap["reason"]
    better = measured(pool(), p, answers({"linear": 0.5, "full": 1.0, "random_frozen": 0.3}))
    other = row(better, "linear_minus_tuned", arm="full", tested="held_out_center")
    assert other["reason"] == "training the network is better by more than 5 points"


def test_an_arm_that_does_not_beat_random_weights_is_held_against_nothing():
    p = settings(search={**DEFAULTS["adaptation"]["search"], "trials": 4})
    found = measured(pool(), p, answers({"linear": 0.9, "full": 0.5, "random_frozen": 0.5}))
    own = row(found, "linear_minus_tuned", arm="full", tested="in_domain")
    assert "does not beat random frozen weights" in own["caveat"]
    quick = measured(pool(), settings(), answers(dict.fromkeys(ARMS, 0.9)))
    assert "no search" in row(quick, "linear_minus_tuned", arm="full", tested="in_domain")["caveat"]


def test_an_encoder_that_stays_as_it_is_forgets_nothing():
    found = measured(pool(), settings(), answers(dict.fromkeys(ARMS, 0.9)))
    for target in ("organ", "center"):
        assert row(found, "forgotten", target=target)["value"] == 0
    assert row(found, "mknn", arm="full")["value"] == 1
    assert row(found, "cka", arm="full")["value"] == pytest.approx(1)
    assert "adaptation.measured" in row(found, "training_seconds", arm="full")["reason"]


def test_what_a_search_took_is_told_and_what_no_counter_counts_is_not():
    search = {**DEFAULTS["adaptation"]["search"], "trials": 1}
    p, right = settings(measured=True, search=search | {"epochs": 5}), dict.fromkeys(ARMS, 0.9)
    found = measured(pool(), p, answers(right), (2.0, 30.0))
    assert row(found, "training_seconds", arm="full")["value"] == 2
    assert row(found, "training_joules", arm="full")["value"] == 30
    assert row(found, "epochs_run", arm="full")["value"] == 3
    assert row(found, "stopped_early", arm="full")["value"] == 1
    found = measured(pool(), p, answers(right), (2.0, np.nan))
    assert "engine.workers to 1" in row(found, "training_joules", arm="full")["reason"]
    whole = measured(pool(), settings(search=search | {"epochs": 3}), answers(right))
    assert row(whole, "stopped_early", arm="full")["value"] == 0


def test_labels_that_say_nothing_make_no_arm_better():
    """An interval of a difference between answers that are independent of the label misses 0 rarely."""
    p, missed = settings(arms=("linear", "random_frozen")), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = measured(
            pool(), p, lambda arm, truth, rows, rng=rng: rng.normal(size=(len(truth), 2))
        )
        own = found.filter(metric="above_random")
        missed += [low > 0 or high < 0 for low, high in own.select("ci_low", "ci_high").iter_rows()]
    assert len(missed) == 40
    assert np.mean(missed) <= 0.125


def test_too_few_patients_and_encoders_without_a_network_are_named():
    p = settings()
    for table, entry, reason in (
        (pool(per_cell=2), LITE0, "label(s) have 3 downstream patients"),
        (pool(), {"model": "control:noise"}, "needs a network that PyTorch trains"),
        (pool(), {"model": "trained:small_cnn"}, "was trained on patients of this cohort"),
    ):
        plan = plan_adaptation(table, Tiles(table), entry, {}, p, name="e")
        assert not plan.jobs
        nothing = Fits(table.clear(), settings(), answers(dict.fromkeys(ARMS, 1)))
        nothing.slide_ids = ()
        statistics = adaptation_statistics(table, Tiles(table), nothing, entry, p)
        found = measure(adaptation_figures(statistics, p), "adaptation", "e")
        assert found["value"].null_count() == found.height
        assert all(reason in text for text in found["reason"])


def test_arms_of_a_network_are_fitted_and_given_again_byte_for_byte(tmp_path: Path):
    from kedro.io.core import Version

    from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset

    table, p = pool(per_cell=4, tiles=3), settings(forgetting_tiles=16)
    tiles = Tiles(table)
    stores = [
        ShardedTensorDataset(filepath=(tmp_path / n / "arms").as_posix(), version=Version("v", "v"))
        for n in "ab"
    ]
    for store in stores:
        plan = plan_adaptation(table, tiles, TINY, {"workers": 1}, p, name="e")
        store.save(plan)
    one, two = (store.load() for store in stores)
    assert len(one.slide_ids) == 6
    for name in one.slide_ids:
        for tensor in one.tensor_names(name):
            np.testing.assert_array_equal(
                one.load_slide(name, tensor), two.load_slide(name, tensor)
            )
    tables = [adaptation_statistics(table, tiles, arms, TINY, p) for arms in (one, two)]
    assert_frame_equal(*tables)
    kept, labels = adapted_tiles(table, tiles, p)
    assert labels == ["a", "b"]
    assert kept.height == table.height


def test_only_listed_encoders_are_adapted():
    names = {n.name for n in create_pipeline(["x", "y"], adapted=["x"]).nodes}
    assert "inheritance.adaptation.x.fit_arms" in names
    assert not any(".adaptation.y." in name for name in names)
    assert not any(".adaptation." in n.name for n in create_pipeline(["x"]).nodes)
    with pytest.raises(ValueError, match=r"adaptation\.encoders names z"):
        create_pipeline(["x"], adapted=["z"])
