"""Wrong labels in pretraining: a planted loss is found, none is found where there is none."""

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.encoders.training import InMemory
from pathfm_kedro.pipelines.inheritance.arm_tiles import DOWNSTREAM, HELD_OUT, PRETRAIN
from pathfm_kedro.pipelines.inheritance.noise_arms import (
    CLEAN,
    RANDOM,
    Arm,
    NoisyPretraining,
    PretrainingNoise,
    Upstream,
    downstream,
    noise_arms,
    plan_noise_arms,
)
from pathfm_kedro.pipelines.inheritance.pretraining_noise import noise_figures, noise_statistics
from pathfm_kedro.statistics.figures import Undefined, measure
from pathfm_kedro.statistics.page_trend import page_trend
from pathfm_kedro.statistics.parameters import read_parameters

PARAMETERS = {
    "rates": [0.0, 0.1, 0.3],
    "kinds": ["symmetric"],
    "n_seeds": 3,
    "pretraining": {"epochs": 2, "batch": 16, "learning_rate": 0.001, "weight_decay": 0.0},
    "probe": {"folds": 3, "C": 0.01, "max_iter": 100},
    "nmtune": {"epochs": 1, "views": 1},
    "components": 2,
    "n_groups": 4,
    "draws": 300,
}


def parameters(**changes):
    return read_parameters(PretrainingNoise, "pretraining_noise", PARAMETERS | changes)


def pool_of(patients=24, each=4):
    """Patients of two labels and two centers each: half pretrain, and a third center is held out."""
    rows = []
    for role, centers in ((PRETRAIN, "AB"), (DOWNSTREAM, "AB"), (HELD_OUT, "C")):
        for number in range(patients):
            name = f"{role}{number:02}"
            place = centers[number // 2 % len(centers)]
            rows += [
                (f"{name}-{i}", name, name, place, "o", "xy"[number % 2], role, i)
                for i in range(each)
            ]
    names = ["tile_id", "slide_id", "patient_id", "center", "organ", "label", "role", "place"]
    return pl.DataFrame(rows, names, orient="row")


class Pixels:
    """Tiles whose label shows in their red channel."""

    def __init__(self, pool, side=16):
        self.pool, self.side = pool, side
        self.slide_ids = tuple(pool["slide_id"].unique().sort())

    def load_slide(self, slide_id, name="pixels"):
        rows = self.pool.filter(slide_id=slide_id)
        rng = np.random.default_rng(list(slide_id.encode()))
        tiles = rng.integers(80, 160, (rows.height, self.side, self.side, 3)).astype(np.uint8)
        tiles[..., 0] += 60 * (rows["label"] == "x").to_numpy().astype(np.uint8)[:, None, None]
        return tiles

    def slide_header(self, slide_id):
        return {"slide": slide_id}


class Arms:
    """Shards without networks: vectors that carry the label as far as `signal` of an arm says."""

    def __init__(self, pool, tiles, p, signal, d=6):
        below, upstream = downstream(pool, tiles, p), Upstream.of(pool, tiles, p)
        self.made = {}
        names, owner = np.unique(below.table["patient_id"].to_numpy(), return_inverse=True)
        shared = np.random.default_rng([p.seed, 1]).normal(size=(len(names), d))[owner]
        for arm in noise_arms(p):
            rng = np.random.default_rng([p.seed, arm.seed, round(arm.rate * 100), len(arm.kind)])
            vectors = rng.normal(size=(len(owner), d)) + shared
            vectors[:, 0] += signal(arm) * (2 * below.targets - 1)
            if arm.rate >= 0.3:  # noise that flattens
                vectors[:, 3:] *= 0.01
            self.made[arm.name] = {
                "vectors": vectors.astype(np.float32),
                "nmtune": below.targets,
                "upstream": upstream.targets,
            }
        self.slide_ids = tuple(self.made)

    def load_slide(self, slide_id, name="vectors"):
        return self.made[slide_id][name]


def figures_of(signal, p=None, pool=None):
    p = parameters() if p is None else p
    pool = pool_of() if pool is None else pool
    tiles = Pixels(pool)
    statistics = noise_statistics(pool, tiles, Arms(pool, tiles, p, signal), p)
    table = measure(noise_figures(statistics, p), "pretraining_noise", "small_cnn", subject="arm")
    return {(row["metric"], row["setting"]): row for row in table.iter_rows(named=True)}


def at(found, metric, **setting):
    return found[metric, json.dumps(setting, sort_keys=True)]


def planted(arm):
    return {CLEAN: 4.0, RANDOM: 0.0}.get(arm.kind, 4.0 - 10 * arm.rate)


@pytest.fixture(scope="module")
def lost():
    return figures_of(planted)


@pytest.mark.parametrize("probe", ["in_domain", "out_of_domain"])
def test_a_planted_loss_is_found_and_a_remedy_that_undoes_it(lost, probe):
    assert at(lost, "gain_over_random", probe=probe)["ci_low"] > 0
    loss = at(lost, "accuracy_loss", probe=probe, kind="symmetric", rate=0.3)
    assert loss["ci_low"] > 0
    accuracies = [
        at(lost, "accuracy", probe=probe, kind="symmetric", rate=rate, remedy="none")["value"]
        for rate in (0.0, 0.3)
    ]
    assert loss["value"] == pytest.approx(accuracies[0] - accuracies[1])
    perfect = at(lost, "recovered_share", probe=probe, kind="symmetric", rate=0.3, remedy="nmtune")
    assert perfect["value"] >= 1
    nothing = at(
        lost, "recovered_share", probe=probe, kind="symmetric", rate=0.3, remedy="top_components"
    )
    assert nothing["value"] < 0.5
    remaining = at(lost, "remaining_loss", probe=probe, kind="symmetric", rate=0.3, remedy="nmtune")
    assert remaining["value"] == 0


def test_upstream_accuracy_hides_a_loss_that_it_does_not_share(lost):
    """Upstream all arms are perfect here, so that all of the loss is hidden."""
    hidden = at(lost, "hidden_loss", probe="in_domain", kind="symmetric", rate=0.3)
    loss = at(lost, "accuracy_loss", probe="in_domain", kind="symmetric", rate=0.3)
    assert hidden["value"] == pytest.approx(loss["value"])
    assert hidden["ci_low"] > 0


def test_noise_that_flattens_shows_in_the_spectrum(lost):
    ranks = [
        at(lost, "effective_rank", kind="symmetric", rate=rate)["value"] for rate in (0.0, 0.3)
    ]
    assert ranks[1] < ranks[0]
    trend = at(lost, "trend", of="in_domain_accuracy", kind="symmetric")
    assert trend["value"] < trend["null_low"]
    assert at(lost, "trend_p", of="in_domain_accuracy", kind="symmetric")["value"] < 0.05


def test_what_was_never_learnt_cannot_be_lost():
    found = figures_of(lambda arm: 0.0, parameters(n_seeds=2))
    for metric in ("accuracy_loss", "hidden_loss"):
        row = at(found, metric, probe="in_domain", kind="symmetric", rate=0.3)
        assert row["value"] is None
        assert row["reason"].startswith("undecidable")
    assert at(found, "trend_p", of="effective_rank", kind="symmetric")["value"] is None
    # An untrained network is at chance.
    random = at(found, "random_weights_accuracy", probe="in_domain")
    assert random["ci_low"] < 0.5 < random["ci_high"]


def test_one_seed_and_two_rates_have_no_trend_and_say_what_they_could_show():
    found = figures_of(planted, parameters(rates=[0.0, 0.3], n_seeds=1))
    row = at(found, "trend_p", of="in_domain_accuracy", kind="symmetric")
    assert row["value"] is None
    assert "p of 1" in row["reason"]
    assert "seeds" in row["reason"]
    assert at(found, "principal_angle", kind="symmetric", rate=0.3)["value"] > 0
    loss = at(found, "accuracy_loss", probe="in_domain", kind="symmetric", rate=0.3)
    assert "one network" in loss["reason"]
    assert loss["ci_low"] is not None


def test_without_a_held_out_center_that_part_is_undefined():
    found = figures_of(
        planted,
        parameters(rates=[0.0, 0.3], n_seeds=1),
        pool_of().filter(pl.col("role") != HELD_OUT),
    )
    row = at(found, "accuracy_loss", probe="out_of_domain", kind="symmetric", rate=0.3)
    assert row["value"] is None
    assert "held out" in row["reason"]
    assert at(found, "gain_over_random", probe="in_domain")["value"] > 0


def test_without_pixels_every_figure_has_the_reason():
    pool, p = pool_of(), parameters()
    tiles = Pixels(pool.clear())
    assert plan_noise_arms(pool, tiles, {}, p).jobs == []
    statistics = noise_statistics(pool, tiles, Pixels(pool.clear()), p)
    table = measure(noise_figures(statistics, p), "pretraining_noise", "small_cnn", subject="arm")
    assert table["value"].null_count() == table.height
    assert set(table["reason"]) == {
        "the tiles to pretrain on carry 0 label(s), two are needed: this needs slides with pixels, "
        "labels and several patients of each"
    }


def test_the_trend_is_the_mean_of_rank_correlations():
    from scipy.stats import spearmanr

    values = np.random.default_rng(0).normal(size=(5, 4))
    mean = np.mean([spearmanr(row, range(4)).statistic for row in values])
    assert page_trend(values, "").correlation == pytest.approx(mean)
    with pytest.raises(Undefined, match="2 and 2"):
        page_trend(np.zeros((2, 2)), "add seeds")


def test_a_fit_keeps_what_is_measured_and_goes_on_after_a_kill():
    pool, p = pool_of(patients=12, each=2), parameters()
    job = NoisyPretraining(Arm("symmetric", 0.3, 1), pool, Pixels(pool), "d", p)

    class Killed(InMemory):
        def save(self, tensors, text):
            super().save(tensors, text)
            raise KeyboardInterrupt

    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        job.fit(killed)
    resumed, whole = job.fit(InMemory(killed.saved)), job.compute()
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)
    below, upstream = downstream(pool, Pixels(pool), p), Upstream.of(pool, Pixels(pool), p)
    assert whole["vectors"].shape == (below.table.height, 128)
    assert whole["vectors"].dtype == np.float32
    assert (whole["nmtune"] >= 0).all()
    wrong = whole["given"] != upstream.targets
    assert wrong.sum() == round(0.3 * upstream.trains.sum())
    assert not wrong[~upstream.trains].any()


def test_no_patient_that_is_tested_trains_its_probe():
    pool, p = pool_of(), parameters()
    below = downstream(pool, Pixels(pool), p)
    tested = []
    for train, test in below.splits():
        patients = below.table["patient_id"].to_numpy()
        assert not set(patients[train]) & set(patients[test])
        assert set(below.table["role"].to_numpy()[train]) == {DOWNSTREAM}
        tested += test.tolist()
    assert sorted(tested) == list(range(below.table.height))


def test_arms_of_a_seed_begin_alike_and_their_names_differ():
    arms = list(noise_arms(parameters(kinds=["symmetric", "center"])))
    assert len({arm.name for arm in arms}) == len(arms) == 3 * (2 + 2 * 2)


def test_a_missing_clean_rate_is_named():
    with pytest.raises(ValueError, match=r"pretraining_noise\.rates.*give 0"):
        parameters(rates=[0.1, 0.3])


@pytest.mark.slow
def test_where_noise_does_nothing_intervals_hold_zero():
    """Arms that carry the label alike: none is better than another, and intervals hold 0."""
    covered = []
    for seed in range(20):
        found = figures_of(
            lambda arm: 1.5 * (arm.kind != RANDOM),
            parameters(seed=seed, rates=[0.0, 0.3], n_seeds=2),
            pool_of(patients=30, each=2),
        )
        row = at(found, "accuracy_loss", probe="in_domain", kind="symmetric", rate=0.3)
        if row["value"] is not None:
            covered.append(row["ci_low"] <= 0 <= row["ci_high"])
    assert len(covered) >= 15
    assert np.mean(covered) >= 0.9
