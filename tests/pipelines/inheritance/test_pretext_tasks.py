"""Arms with planted vectors differ from random frozen weights, and from nothing else."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.inheritance.arm_fit import (
    small_crops,
    stained_as_next_center,
    stained_otherwise,
)
from pathfm_kedro.pipelines.inheritance.arm_statistics import (
    CROP,
    ROTATIONS,
    STAIN,
    STAINED_AS,
    VECTORS,
    arm_shard,
)
from pathfm_kedro.pipelines.inheritance.arm_tiles import ArmTiles
from pathfm_kedro.pipelines.inheritance.pretext_tasks import (
    PretextTasks,
    drawn_on,
    plan_pretext_tasks,
    pretext_figures,
    pretext_statistics,
)
from pathfm_kedro.slides.stain import COMMON_BASIS, StainBasis, stained
from pathfm_kedro.statistics.cue_conflict import TRANSFERRED
from pathfm_kedro.statistics.figures import measure

SETTINGS = {
    "epochs": 1,
    "batch": 8,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "probe": {"folds": 3, "C": 0.1, "max_iter": 100},
    "k": 3,
    "stain_sigma": 0.1,
    "crop_share": 0.25,
    "reference_tiles": 6,
    "min_reference_tiles": 3,
    "draws": 300,
}
BLOCK = {**SETTINGS, "backbone": "small_cnn", "tasks": ["simclr"], "n_seeds": 1}
ENGINE = {"workers": 1}


def parameters(**changed):
    return PretextTasks(**{**BLOCK, "tasks": ("simclr", "morphology"), "n_seeds": 1, **changed})


def pool(patients=24, per=4, role=None):
    """Two labels at three centers, one slide a patient; the last center is held out."""
    rows = [
        (
            f"s{i:02}-{j}",
            f"s{i:02}",
            f"p{i:02}",
            f"c{i % 3}",
            "o",
            "ab"[i // 3 % 2],
            role or ("held_out_center" if i % 3 == 2 else "downstream"),
            j,
        )
        for i in range(patients)
        for j in range(per)
    ]
    names = ["tile_id", "slide_id", "patient_id", "center", "organ", "label", "role", "place"]
    return pl.DataFrame(rows, schema=names, orient="row")


class Shards:
    def __init__(self, tensors, failures=()):
        self.tensors, self.failures = tensors, dict(failures)
        self.slide_ids = tuple(sorted(tensors))

    def load_slide(self, slide_id, name="embedding"):
        return self.tensors[slide_id][name]

    def slide_header(self, slide_id):
        return {"slide": slide_id}


def tiles_of(table, side=16):
    rng = np.random.default_rng(5)
    return Shards(
        {
            slide: {"pixels": rng.integers(40, 240, (own.height, side, side, 3), dtype=np.uint8)}
            for (slide,), own in table.group_by("slide_id", maintain_order=True)
        }
    )


def shard(vectors, wobble, rng, operations=0.0, losses=()):
    views = {
        name: (vectors + wobble * rng.normal(size=vectors.shape)).astype(np.float32)
        for name in (*ROTATIONS, STAIN, CROP, TRANSFERRED)
    }
    return {
        VECTORS: vectors.astype(np.float32),
        **views,
        STAINED_AS: np.array([1, 2, 0]),
        "losses": np.array(losses, np.float64),
        "operations": np.array([operations]),
        "n_tiles": np.array([40]),
    }


def planted(table, rng):
    """simclr knows the label and stands every view; morphology and random know nothing."""
    label = (table["label"] == "a").to_numpy() * 6.0
    noise = lambda: rng.normal(size=(table.height, 6))  # noqa: E731
    known = np.column_stack([label, noise()[:, :5]])
    return {
        arm_shard("simclr", 0): shard(known, 0.01, rng, 3e9, (2.0, 1.0)),
        arm_shard("morphology", 0): shard(noise(), 3.0, rng, 1e9, (1.0, 0.5)),
        arm_shard("random", 0): shard(noise(), 3.0, rng),
    }


def measured(statistics, p):
    return measure(
        pretext_figures(statistics, p), "pretext_tasks", "pretrained_arms", p.criteria, "arm"
    )


def row(table, metric, **setting):
    found = table.filter(
        pl.col("metric") == metric,
        pl.col("setting") == json.dumps(setting, sort_keys=True),
    )
    assert found.height == 1, (metric, setting)
    return found.row(0, named=True)


@pytest.fixture(scope="module")
def found():
    table, p = pool(), parameters()
    arms = Shards(planted(table, np.random.default_rng(0)))
    return measured(pretext_statistics(table, tiles_of(table), arms, p), p)


@pytest.mark.parametrize(
    "of",
    ["label", "robustness_index", "rotation", "stain", "transferred"],
)
def test_an_arm_that_knows_is_better_and_one_that_knows_nothing_undecidable(found, of):
    knows, nothing = (
        row(found, "difference", arm=arm, against="random", of=of)
        for arm in ("simclr", "morphology")
    )
    assert knows["ci_low"] > 0
    assert "better, with the whole interval" in knows["reason"]
    assert not knows["caveat"]
    assert nothing["ci_low"] <= 0 <= nothing["ci_high"]
    assert "undecidable" in nothing["reason"]


def test_eight_patients_who_are_all_right_do_not_prove_an_arm_better(found):
    right = row(found, "balanced_accuracy", arm="simclr", target="label_held_out_center")
    assert (right["value"], right["n_patients"]) == (1.0, 8)
    assert right["ci_low"] == pytest.approx(0.025 ** (1 / 8))
    better = row(found, "difference", arm="simclr", against="random", of="label_held_out_center")
    assert better["reason"].startswith("undecidable")


def test_what_stands_every_view_and_reads_nothing_is_undecidable():
    table, p, rng = pool(), parameters(tasks=("simclr",)), np.random.default_rng(0)
    made = planted(table, rng)
    made[arm_shard("simclr", 0)] = shard(rng.normal(size=(table.height, 6)), 0.01, rng)
    found = measured(pretext_statistics(table, tiles_of(table), Shards(made), p), p)
    stands = row(found, "difference", arm="simclr", against="random", of="rotation")
    assert stands["ci_low"] > 0
    assert stands["reason"].startswith("undecidable: better")
    assert "reads the label no better" in stands["caveat"]


def test_vectors_without_knowledge_lie_at_chance():
    table, p = pool(), parameters(tasks=("random",), n_seeds=6)
    rng = np.random.default_rng(0)
    arms = {
        arm_shard("random", seed): shard(rng.normal(size=(table.height, 6)), 3.0, rng)
        for seed in p.seeds
    }
    found = measured(pretext_statistics(table, tiles_of(table), Shards(arms), p), p)
    for target in ("label", "label_held_out_center", "center"):
        at = row(found, "balanced_accuracy", arm="random", target=target)
        assert at["ci_low"] <= 0.5 <= at["ci_high"]
        assert at["null_low"] == 0.5
    for view in ("rotation", "stain"):
        at = row(found, "kept_neighbours", arm="random", view=view)
        # Noise of three times the vectors' size leaves little more than chance.
        assert at["null_low"] < at["ci_high"] < 0.3


def test_own_crops_are_nearer_where_views_change_nothing(found):
    near, far = (
        row(found, "relative_shift", arm=arm, view="local_crop") for arm in ("simclr", "random")
    )
    assert near["ci_high"] < 0.2 < far["ci_low"]
    assert near["n"] == 96
    assert near["n_patients"] == 24


def test_what_training_took_is_given(found):
    assert row(found, "operations", arm="simclr")["value"] == 3e9
    assert row(found, "loss_ratio", arm="simclr")["value"] == 0.5
    assert "nothing was learnt" in row(found, "loss_ratio", arm="random")["reason"]


def test_seeds_are_averaged_and_a_tile_counts_once():
    table, p = pool(), parameters(tasks=("simclr",), n_seeds=2)
    rng = np.random.default_rng(1)
    arms = {}
    for seed in p.seeds:
        own = planted(table, rng)
        arms |= {arm_shard(a, seed): own[arm_shard(a, 0)] for a in ("simclr", "random")}
    found = measured(pretext_statistics(table, tiles_of(table), Shards(arms), p), p)
    for metric, setting in (
        ("balanced_accuracy", {"target": "label"}),
        ("kept_neighbours", {"view": "rotation"}),
        ("robustness_index", {}),
        ("follows_morphology_minus_null", {"view": "transferred"}),
    ):
        assert row(found, metric, arm="simclr", **setting)["n"] == (
            64 if setting.get("target") else 96
        )


def test_a_failed_arm_says_why_and_the_others_stay():
    table, p = pool(), parameters()
    made = planted(table, np.random.default_rng(0))
    del made[arm_shard("morphology", 0)]
    arms = Shards(made, {arm_shard("morphology", 0): "ValueError: the loss is inf"})
    found = measured(pretext_statistics(table, tiles_of(table), arms, p), p)
    failed = found.filter(pl.col("setting").str.contains("morphology"))
    assert failed["value"].null_count() == failed.height
    assert failed["reason"].str.contains("the loss is inf").all()
    assert row(found, "difference", arm="simclr", against="random", of="label")["ci_low"] > 0


def test_one_center_has_no_held_out_accuracy_and_says_so():
    table, p = pool(role="downstream"), parameters()
    arms = Shards(planted(table, np.random.default_rng(0)))
    found = measured(pretext_statistics(table, tiles_of(table), arms, p), p)
    at = row(found, "balanced_accuracy", arm="simclr", target="label_held_out_center")
    assert at["value"] is None
    assert "arms.held_out_center" in at["reason"]


def test_drawn_morphology_is_agreed_with_where_it_is_known():
    table, p = pool(), parameters()
    drawn = Shards(
        {
            slide: {"embedding": np.random.default_rng(int(slide[1:])).normal(size=(9, 6))}
            for slide in table["slide_id"].unique()
        }
    )
    # The cohort has a tile before those of the pool.
    first = table.unique("slide_id", maintain_order=True).with_columns(
        tile_id=pl.col("slide_id") + "-first"
    )
    tiles = pl.concat([first, table]).sort("slide_id", maintain_order=True)
    truth = drawn_on(table, tiles, drawn)
    np.testing.assert_array_equal(truth[5], drawn.load_slide("s01")[2])
    made = planted(table, np.random.default_rng(0))
    made[arm_shard("simclr", 0)] |= {VECTORS: truth.astype(np.float32)}
    found = measured(pretext_statistics(table, tiles_of(table), Shards(made), tiles, drawn, p), p)
    assert row(found, "kept_neighbours", arm="simclr", view="drawn_morphology")["value"] == 1.0
    of = row(found, "difference", arm="simclr", against="random", of="drawn_morphology")
    assert of["ci_low"] > 0


@pytest.mark.parametrize("of", [lambda _: Shards({}), tiles_of], ids=["no pixels", "no role"])
def test_without_tiles_to_learn_from_nothing_is_trained_and_every_figure_says_so(of):
    table, none = pool(), Shards({})
    tiles = of(table)
    assert not plan_pretext_tasks(table, tiles, ENGINE, PretextTasks(**BLOCK)).jobs
    p = parameters()
    found = measured(pretext_statistics(table, tiles, none, p), p)
    assert found["value"].null_count() == found.height
    assert found["reason"].str.contains("no pixels of the arms' tiles could be read").all()
    assert found["reason"].str.contains("too few to pretrain on: add patients").all()


def test_an_arm_is_fitted_frozen_and_shown_its_views():
    table = pool(6, 3).with_columns(
        role=pl.when(pl.col("slide_id") < "s03").then(pl.lit("pretrain")).otherwise("role")
    )
    shards = tiles_of(table)
    plan = plan_pretext_tasks(
        table, shards, ENGINE, PretextTasks(**{**BLOCK, "tasks": ["orientation"]})
    )
    assert [job.slide_id for job in plan.jobs] == ["orientation.0", "random.0"]
    trained, random = (job.compute() for job in plan.jobs)
    assert {VECTORS, STAIN, CROP, TRANSFERRED, *ROTATIONS} < set(trained)
    assert trained[VECTORS].shape == (9, 128)
    assert not np.allclose(trained[VECTORS], random[VECTORS])
    assert len(trained["losses"]) == 1
    assert random["operations"][0] == 0 < trained["operations"][0]
    headers = [json.dumps(job.header()) for job in plan.jobs]
    assert headers[0] != headers[1]


@pytest.mark.parametrize(("tissue", "stain"), [(6.0, 0.0), (0.0, 6.0)])
def test_neighbours_follow_the_tissue_or_the_stain_that_was_taken(tissue, stain):
    table, p, rng = pool(), parameters(tasks=("random",)), np.random.default_rng(0)
    of_label = np.eye(2)[(table["label"] == "a").cast(int)]
    center = table["center"].str.tail(1).cast(int).to_numpy()

    def seen(centers):
        cues = [tissue * of_label, stain * np.eye(3)[centers]]
        return np.column_stack([*cues, 0.1 * rng.normal(size=(table.height, 2))])

    made = shard(seen(center), 0.0, rng) | {TRANSFERRED: seen((center + 1) % 3)}
    arms = Shards({arm_shard("random", 0): made})
    found = measured(pretext_statistics(table, tiles_of(table), arms, p), p)
    conflict = row(found, "follows_morphology_minus_null", arm="random", view="transferred")
    # Every cell has 16 tiles; the own patient's 4 are no candidates: 28 of morphology, 16 of stain.
    assert conflict["value"] == pytest.approx(float(tissue > 0) - 28 / (28 + 16))
    assert conflict["n"] == 96


def test_without_another_center_s_stain_there_is_no_conflict():
    table, p = pool(), parameters(tasks=("random",))
    made = planted(table, np.random.default_rng(0))[arm_shard("random", 0)]
    arms = Shards({arm_shard("random", 0): made | {STAINED_AS: np.full(3, -1)}})
    table = measured(pretext_statistics(table, tiles_of(table), arms, p), p)
    conflict = row(table, "follows_morphology_minus_null", arm="random", view="transferred")
    assert conflict["value"] is None
    assert "raise arms.tiles_per_slide" in conflict["reason"]


def test_a_tile_takes_the_stain_of_the_next_center():
    table = pool(9, 2)
    center = table["center"].str.tail(1).cast(int).to_numpy()
    amounts = np.random.default_rng(0).gamma(2.0, 0.4, (table.height, 40, 40, 3)) * (1, 1, 0)
    bases = (COMMON_BASIS, StainBasis((0.5, 0.8, 0.35), (0.2, 0.95, 0.25)))
    looks = [stained(amounts * (1 + 0.3 * i), basis) for i, basis in enumerate(bases)]
    pixels = np.where((center == 0)[:, None, None, None], *looks)
    pixels[center == 2] = 244  # glass: no stain of its own
    made, places = stained_as_next_center(ArmTiles(table, pixels), parameters())
    assert places.tolist() == [1, 0, -1]
    for own, other in ((0, 1), (1, 0)):
        rows = center == own
        off, before = (
            np.abs(looks[other][rows].astype(int) - seen[rows]).mean() for seen in (made, pixels)
        )
        assert off < before / 3
    np.testing.assert_array_equal(made[center == 2], pixels[center == 2])
    unmet = parameters(min_reference_tiles=99)
    alone, places = stained_as_next_center(ArmTiles(table, pixels), unmet)
    assert places.tolist() == [-1] * 3
    np.testing.assert_array_equal(alone, pixels)


def test_an_untrained_network_reads_no_label_from_noise():
    table, p = pool(32), parameters(tasks=("random",))
    trains = pl.col("slide_id") < "s08"
    table = table.with_columns(role=pl.when(trains).then(pl.lit("pretrain")).otherwise("role"))
    shards = tiles_of(table)
    (job,) = plan_pretext_tasks(table, shards, ENGINE, p).jobs
    arms = Shards({job.slide_id: job.compute()})
    found = measured(pretext_statistics(table, shards, arms, p), p)
    for target in ("label", "label_held_out_center"):
        at = row(found, "balanced_accuracy", arm="random", target=target)
        assert at["ci_low"] <= 0.5 <= at["ci_high"]


def test_views_are_of_the_same_tiles():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    jittered = stained_otherwise(pixels, 0.1, 0)
    assert jittered.shape == pixels.shape
    assert not np.array_equal(jittered, pixels)
    plain = np.full((2, 16, 16, 3), [[[[10]]], [[[200]]]], np.uint8)
    assert small_crops(plain, 0.25, 0).tolist() == plain.tolist()
