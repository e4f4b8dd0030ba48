"""Shifts and neighbours under changes of stain and scanner."""

import json
import pickle

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.pipelines.robustness.appearance import (
    APPEARANCE_SCHEMA,
    DOSES,
    Appearance,
    appearance_figures,
    appearance_statistics,
    appearance_views,
)
from pathfm_kedro.slides.center_stains import center_references
from pathfm_kedro.statistics.mutual_knn import mknn_chance, unit
from pathfm_kedro.wiring import Experiment
from tests.pipelines.robustness.phantom_views import (
    APPEARANCE,
    appearance_of,
    appearance_with,
    make_pool,
    measured,
    phantom_cohort,
    phantom_references,
    phantom_stains,
    pick,
    shards_of,
)

EXPERIMENT = Experiment("appearance", Appearance, appearance_statistics, appearance_figures, [])
NO_REFERENCES = center_references(phantom_stains().clear(), 5)
CHANGES = appearance_with().changes
OWN_CHANGES = [change for change in CHANGES if change["change"] in DOSES]


def measure_control(control: str) -> pl.DataFrame:
    views, pool = appearance_of(control), phantom_cohort().pool
    return measured(EXPERIMENT, APPEARANCE, views, pool, phantom_references(), encoder=control)


def measure(pool, views, **changes) -> pl.DataFrame:
    """Measurements of given vectors [n, views, d], without transfers."""
    shards = shards_of(pool, views=views)
    return measured(EXPERIMENT, APPEARANCE | changes, shards, pool, NO_REFERENCES)


def drifted(n=60, d=8, by=0.3, seed=0) -> tuple[pl.DataFrame, np.ndarray]:
    """A pool of 20 patients, and views that drift the further the later they stand."""
    patient = np.repeat(np.arange(n // 3), 3)
    pool = make_pool(
        [f"p{p:02d}" for p in patient],
        ["xyz"[p % 3] for p in patient],
        ["AB"[p % 2] for p in patient],
    )
    views = 1 + len(OWN_CHANGES)
    generator = np.random.default_rng(seed)
    clean = generator.normal(size=(n, 1, d))
    noise = generator.normal(size=(n, views, d))
    return pool, (clean + by * np.arange(views)[None, :, None] * noise).astype(np.float32)


def test_truth_never_moves_and_passes():
    table = measure_control("phantom_truth")
    assert table.filter(metric="relative_shift")["value"].max() == pytest.approx(0, abs=1e-9)
    assert table.filter(metric="kept_neighbours")["value"].to_list() == [1.0] * 17
    assert pick(table, "stain_kept_neighbours")["verdict"] == "pass"
    assert pick(table, "scanner_kept_neighbours")["verdict"] == "pass"


def test_colour_alone_follows_the_stain_and_fails():
    table = measure_control("stain_statistics")
    signature = pick(table, "stain_kept_neighbours")
    assert signature["verdict"] == "fail"
    assert signature["value"] < 0.6
    shifts = [
        pick(table, "relative_shift", change="jitter", sigma=sigma)["value"]
        for sigma in APPEARANCE["jitter"]
    ]
    assert shifts == sorted(shifts)
    assert shifts[-1] > 10 * shifts[0]
    kept = pick(table, "kept_neighbours", change="jitter", sigma=0.2)
    assert kept["ci_high"] < 0.9


def test_knowing_nothing_sits_on_chance_and_on_the_distance_of_strangers():
    table = measure_control("noise")
    patients = phantom_cohort().pool["patient_id"].to_numpy()
    chance = mknn_chance(patients, 10).mean()
    kept, shift = (table.filter(metric=name) for name in ("kept_neighbours", "relative_shift"))
    np.testing.assert_allclose(kept["null_low"], chance)
    covered = kept.select(pl.lit(chance).is_between("ci_low", "ci_high")).to_series()
    assert covered.mean() > 0.8
    np.testing.assert_allclose(shift["value"], 1.0, atol=0.1)
    assert pick(table, "stain_kept_neighbours")["verdict"] == "fail"
    assert pick(table, "scanner_kept_neighbours")["verdict"] == "fail"


def test_figures_are_those_of_brute_force():
    pool, views = drifted()
    table = measure(pool, views)
    rows = unit(views.reshape(-1, 8)).reshape(views.shape)
    patient, label = pool["patient_id"].to_list(), pool["label"].to_list()
    between, shift, kept = [], [], []
    for i in range(len(views)):
        others = [j for j in range(len(views)) if patient[j] != patient[i]]
        alike = [1 - rows[i, 0] @ rows[j, 0] for j in others if label[j] == label[i]]
        between.append(np.median(alike))
        shift.append([1 - rows[i, 0] @ view for view in rows[i]])
        near = [
            set(sorted(others, key=lambda j, view=view: -float(view @ rows[j, 0]))[:10])
            for view in rows[i]
        ]
        kept.append([len(near[0] & found) / 10 for found in near])
    for place, change in enumerate(OWN_CHANGES, start=1):
        expected = np.sum(shift, axis=0)[place] / np.sum(between)
        assert pick(table, "relative_shift", **change)["value"] == pytest.approx(expected)
        found = pick(table, "kept_neighbours", **change)
        assert found["value"] == pytest.approx(np.mean(kept, axis=0)[place])
        assert found["ci_low"] <= found["value"] <= found["ci_high"]


def test_a_move_of_the_whole_cloud_is_seen():
    pool, views = drifted(by=0.0)
    views = views.copy()
    views[:, 1:, 0] += 3.0
    table = measure(pool, views)
    assert pick(table, "kept_neighbours", change="jpeg", quality=70)["value"] < 0.7


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_turning_and_scaling_the_space_changes_nothing(seed, scale):
    pool, views = drifted(n=36)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
    one, other = (
        appearance_statistics(shards_of(pool, views=v), pool, NO_REFERENCES, appearance_with())
        for v in (views, scale * views.astype(np.float64) @ turn)
    )
    for name in ("shift_sum", "between_sum", "kept_sum"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_one_center_has_no_stain_to_take():
    table = measure(*drifted())
    for row in (
        pick(table, "stain_kept_neighbours"),
        pick(table, "kept_neighbours", change="macenko"),
    ):
        assert row["verdict"] == "not_applicable"
        assert "add centers" in row["reason"]
    assert pick(table, "stain_kept_neighbours")["threshold"] == 0.8
    assert pick(table, "scanner_kept_neighbours")["value"] is not None


def test_labels_of_one_patient_have_no_distance_between_patients():
    pool, views = drifted()
    pool = pool.with_columns(label=pl.col("patient_id"))
    row = pick(measure(pool, views), "relative_shift", change="blur", sigma_px=1.0)
    assert "two patients" in row["reason"]
    same = np.ones_like(views)
    row = pick(measure(drifted()[0], same), "relative_shift", change="blur", sigma_px=1.0)
    assert "same vector" in row["reason"]


def test_too_small_a_pool_is_told_what_to_mend():
    pool, views = drifted(n=12)
    row = pick(measure(pool, views), "scanner_kept_neighbours")
    assert "raise tile_pool.max_tiles" in row["reason"]
    assert row["verdict"] == "not_applicable"
    row = pick(measure(*drifted(n=15)), "scanner_kept_neighbours")
    assert row["verdict"] == "undecidable"
    assert "chance alone is 0.83" in row["reason"]


def test_nothing_embedded_is_said_once_for_each_figure():
    pool, views = drifted()
    shards = shards_of(pool[:0], views=views[:0])
    table = measured(EXPERIMENT, APPEARANCE, shards, pool, NO_REFERENCES)
    assert table.height == 2 * 17 + 2
    assert table["reason"].str.contains("no usable slide of the pool").all()


def test_without_criteria_there_is_no_verdict():
    table = measure(*drifted(), criteria=[])
    assert table["threshold"].null_count() == table.height


def test_views_of_other_parameters_and_unknown_combinations_are_refused():
    pool, views = drifted()
    with pytest.raises(ValueError, match="embed the views again"):
        measure(pool, views[:, :-1])
    with pytest.raises(
        ValueError, match=r"appearance: combined.scanner: .* is not among the changes"
    ):
        appearance_with(combined={"scanner": [{"change": "jpeg", "quality": 7}]})
    with pytest.raises(ValueError, match=r"appearance.jpeg.0 is 700"):
        appearance_with(jpeg=[700])


@pytest.mark.slow
def test_the_interval_of_kept_neighbours_covers_new_pools():
    rows = [
        pick(measure(*drifted(seed=seed, by=0.15), draws=200), "scanner_kept_neighbours")
        for seed in range(30)
    ]
    truth = np.mean([row["value"] for row in rows])
    assert np.mean([row["ci_low"] <= truth <= row["ci_high"] for row in rows]) > 0.8


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_the_same_vector_for_every_tile_has_no_neighbours_to_keep(rounding):
    pool, views = drifted()
    noise = 1 + rounding * np.random.default_rng(1).standard_normal(views.shape)
    table = measure(pool, (noise * np.arange(1.0, 9.0)).astype(np.float32))
    kept = table.filter(pl.col("metric").str.ends_with("kept_neighbours"))
    assert (kept["verdict"] == "not_applicable").all()
    possible = kept.filter(~pl.col("reason").str.contains("fewer than two centers"))
    assert possible["reason"].str.contains("same vector for every tile").all()
    scanner = pick(table, "scanner_kept_neighbours")
    assert scanner["value"] is None
    assert scanner["threshold"] is not None


def test_an_encoder_without_slides_of_the_centers_with_a_reference_makes_no_transfer():
    known = phantom_references()
    pool, _ = drifted()  # centers A and B; the references are of others
    shape = (pool.height, len(appearance_views(known, None, appearance_with()).settings), 8)
    views = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    shards = shards_of(pool, views=views)
    statistics = appearance_statistics(shards, pool, known, appearance_with())
    assert set(statistics["change"]) == set(DOSES)
    table = measured(EXPERIMENT, APPEARANCE, shards, pool, known)
    row = pick(table, "kept_neighbours", change="macenko")
    assert "no slide of those that have one" in row["reason"]


def test_statistics_have_their_columns():
    views, pool = appearance_of("phantom_truth"), phantom_cohort().pool
    statistics = appearance_statistics(views, pool, phantom_references(), appearance_with())
    assert dict(statistics.schema) == APPEARANCE_SCHEMA


def test_views_are_few_and_the_clean_tile_comes_first():
    views = appearance_views(phantom_references(), "north", appearance_with())
    field = phantom_cohort().pixels[0]
    made = views.make(field, seed=3)
    assert len({json.dumps(s) for s in views.settings}) == len(views.settings) == len(made) <= 24
    assert views.settings[0] == {"view": "clean"}
    np.testing.assert_array_equal(made[0], field)
    assert all((picture != field).any() for picture in made[1:])


def test_views_of_a_tile_are_always_the_same_and_follow_its_seed():
    views = appearance_views(phantom_references(), "north", appearance_with())
    field = phantom_cohort().pixels[0]
    copy = pickle.loads(pickle.dumps(views))
    np.testing.assert_array_equal(copy.make(field, 3), views.make(field, 3))
    other = (views.make(field, 4) != views.make(field, 3)).any(axis=(1, 2, 3))
    assert other.tolist() == [setting["view"] == "jitter" for setting in views.settings]


def test_what_decides_the_pixels_is_described():
    known = phantom_references()
    described = {
        json.dumps(appearance_views(known, center, appearance_with(seed=seed)).describe())
        for center, seed in (("north", 0), ("south", 0), ("north", 1))
    }
    assert len(described) == 3


def test_a_center_without_a_look_keeps_its_stain_and_is_jittered():
    known = phantom_references().filter(pl.col("center") != "west")
    west, north = (appearance_views(known, c, appearance_with()) for c in ("west", "north"))
    assert west.settings == north.settings
    field = phantom_cohort().pixels[0]
    for setting, picture in zip(west.settings, west.make(field, 1), strict=True):
        unchanged = setting["view"] in ("clean", "reinhard", "macenko")
        assert (picture == field).all() == unchanged
