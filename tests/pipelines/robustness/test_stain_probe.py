"""What a linear model reads of a tile's stain."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.pipelines.robustness.stain_probe import (
    STAIN_PROBE_SCHEMA,
    StainProbe,
    stain_probe_figures,
    stain_probe_statistics,
)
from pathfm_kedro.slides.center_stains import MOMENTS
from pathfm_kedro.statistics.cross_validation import patient_folds
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.permutation import permuted_blocks
from pathfm_kedro.statistics.ridge import cross_validated_ridge
from pathfm_kedro.wiring import Experiment
from tests.pipelines.robustness.phantom_views import (
    CONTROLS,
    make_pool,
    measured,
    phantom_cohort,
    phantom_stains,
    pick,
    shards_of,
)

PARAMETERS = {
    "folds": 5,
    "ridges": [0.1, 1.0, 10.0, 100.0, 1000.0],
    "n_permutations": 50,
    "draws": 300,
    "seed": 0,
}
STAIN_PROBE = Experiment("stain_probe", StainProbe, stain_probe_statistics, stain_probe_figures, [])


def pool_and_stains(n_patients=20, each=3, seed=0) -> tuple[pl.DataFrame, pl.DataFrame]:
    patient = [f"p{i:02d}" for i in range(n_patients) for _ in range(each)]
    pool = make_pool(patient, ["x"] * len(patient), ["A"] * len(patient))
    generator = np.random.default_rng(seed)
    own = np.repeat(generator.normal(size=(n_patients, 4)), each, axis=0)
    values = own + 0.3 * generator.normal(size=own.shape)
    stains = pool.select("tile_id", "patient_id").with_columns(
        pl.Series(name, values[:, i]) for i, name in enumerate(MOMENTS)
    )
    return pool, stains


def measure(pool, stains, vectors, **changes) -> pl.DataFrame:
    """The cohort is the pool: every tile of it was embedded."""
    slides = pool.select("slide_id", "patient_id", "center", "organ", "label").unique()
    shards = shards_of(pool, embedding=vectors)
    tiles = pool.select("tile_id", "slide_id")
    return measured(STAIN_PROBE, PARAMETERS | changes, slides, tiles, shards, stains)


def test_ridge_is_scikit_learn_s():
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    vectors, targets = generator.normal(size=(40, 12)), generator.normal(size=(40, 3))
    folds = np.arange(40) % 4
    predicted, mean = cross_validated_ridge(vectors, targets, folds, ridges=[0.3])
    for fold in range(4):
        model = make_pipeline(StandardScaler(), Ridge(alpha=0.3 * 12))
        model.fit(vectors[folds != fold], targets[folds != fold])
        np.testing.assert_allclose(predicted[folds == fold], model.predict(vectors[folds == fold]))
        expected = targets[folds != fold].mean(axis=0)
        np.testing.assert_allclose(mean[folds == fold], np.tile(expected, (10, 1)))


def test_the_penalty_is_chosen_as_a_nested_search_would():
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(1)
    vectors, folds = generator.normal(size=(45, 8)), np.arange(45) % 3
    targets = vectors @ generator.normal(size=(8, 2)) + generator.normal(size=(45, 2)) * [0.2, 9.0]
    ridges = [0.01, 1.0, 100.0]
    predicted, _ = cross_validated_ridge(vectors, targets, folds, ridges)
    for fold in range(3):
        train = folds != fold
        for i in range(2):
            search = GridSearchCV(
                make_pipeline(StandardScaler(), Ridge()),
                {"ridge__alpha": [8 * ridge for ridge in ridges]},
                scoring="neg_mean_squared_error",
                cv=PredefinedSplit(np.unique(folds[train], return_inverse=True)[1]),
            ).fit(vectors[train], targets[train, i])
            np.testing.assert_allclose(predicted[~train, i], search.predict(vectors[~train]))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=8), st.integers(0, 100))
def test_permuted_targets_are_the_same_targets(sizes, seed):
    patients = np.repeat(np.arange(len(sizes)), sizes)
    for rows in permuted_blocks(patients, 5, seed):
        assert sorted(rows) == list(range(len(patients)))


def test_equal_blocks_stay_together():
    patients = np.repeat(np.arange(6), 3)
    for rows in permuted_blocks(patients, 20, seed=1):
        taken = patients[rows].reshape(6, 3)
        assert (taken == taken[:, :1]).all()


@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 50))
def test_folds_hold_whole_patients_evenly(n_patients, folds, seed):
    patients = np.repeat(np.arange(n_patients), 2)
    found = patient_folds(patients, folds, seed).reshape(n_patients, 2)
    assert (found[:, 0] == found[:, 1]).all()
    sizes = np.bincount(found[:, 0], minlength=folds)
    assert np.ptp(sizes) <= 1


def test_a_vector_that_is_the_stain_tells_it():
    pool, stains = pool_and_stains()
    table = measure(
        pool, stains, stains.select(MOMENTS).to_numpy().astype(np.float32), ridges=[1e-4]
    )
    for target in MOMENTS:
        assert pick(table, "r2", target=target)["value"] > 0.99
        assert pick(table, "selectivity", target=target)["ci_low"] > 0.9


def test_a_vector_of_noise_tells_nothing():
    pool, stains = pool_and_stains()
    vectors = np.random.default_rng(5).normal(size=(60, 64)).astype(np.float32)
    table = measure(pool, stains, vectors)
    r2 = table.filter(metric="r2")
    assert (r2["value"] < 0.1).all()
    inside = r2.select(pl.col("value").is_between("null_low", "null_high")).to_series()
    assert inside.sum() >= 3
    # What nothing can be learned from falls back on the mean, so that the null lies near 0.
    assert (r2["null_low"] > -0.5).all()
    selectivity = table.filter(metric="selectivity")
    assert (selectivity["value"].abs() < 0.3).all()


def test_r2_is_scikit_learn_s_up_to_the_mean_it_compares_with():
    from sklearn.metrics import r2_score

    pool, stains = pool_and_stains()
    generator = np.random.default_rng(2)
    values = stains.select(MOMENTS).to_numpy()
    vectors = (values @ generator.normal(size=(4, 10)) + generator.normal(size=(60, 10))).astype(
        np.float32
    )
    table = measure(pool, stains, vectors)
    folds = patient_folds(np.repeat(np.arange(20), 3), 5, 0)
    predicted, mean = cross_validated_ridge(
        vectors.astype(np.float64), values, folds, PARAMETERS["ridges"]
    )
    expected = 1 - ((values - predicted) ** 2).sum(axis=0) / ((values - mean) ** 2).sum(axis=0)
    for i, target in enumerate(MOMENTS):
        row = pick(table, "r2", target=target)
        assert row["value"] == pytest.approx(expected[i])
        # The mean of other patients fits less well than that of the tiles themselves.
        assert row["value"] > r2_score(values[:, i], predicted[:, i])
        assert row["ci_low"] < row["value"] < row["ci_high"]


def test_controls_answer_as_they_must():
    cohort, found = phantom_cohort(), {}
    for control in ("stain_statistics", "noise"):
        vectors = CONTROLS[control].embed(cohort.pixels, cohort.truth)
        found[control] = measure(cohort.pool, phantom_stains(), vectors)
    for target in ("haematoxylin_mean", "eosin_mean"):
        assert pick(found["stain_statistics"], "r2", target=target)["value"] > 0.8
        nothing = pick(found["noise"], "r2", target=target)
        assert nothing["value"] < 0.1
        assert nothing["null_low"] < nothing["value"] < nothing["null_high"] + 0.05


def test_statistics_have_their_columns_and_only_embedded_tiles_count():
    pool, stains = pool_and_stains()
    vectors = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    slides = pool.select("slide_id", "patient_id", "center", "organ", "label").unique()
    p = read_parameters(StainProbe, "stain_probe", PARAMETERS)
    some = shards_of(pool[:30], embedding=vectors[:30])
    statistics = stain_probe_statistics(slides, pool, some, stains, p)
    assert dict(statistics.schema) == STAIN_PROBE_SCHEMA
    assert statistics["patient_id"].n_unique() == 10 + 1


def test_few_patients_and_equal_targets_have_reasons():
    pool, stains = pool_and_stains(n_patients=4)
    vectors = np.ones((12, 3), np.float32)
    table = measure(pool, stains, vectors)
    assert table["reason"].str.contains("lower stain_probe.folds").all()
    pool, stains = pool_and_stains()
    stains = stains.with_columns(eosin_sd=pl.lit(1.0))
    table = measure(pool, stains, np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32))
    assert "nothing to predict" in pick(table, "r2", target="eosin_sd")["reason"]
    assert pick(table, "r2", target="eosin_mean")["value"] is not None


def test_two_folds_leave_none_to_choose_the_penalty():
    with pytest.raises(ValueError, match=r"stain_probe\.folds is 2: .* equal to 3"):
        read_parameters(StainProbe, "stain_probe", PARAMETERS | {"folds": 2})


def test_a_criterion_makes_a_verdict():
    pool, stains = pool_and_stains()
    vectors = stains.select(MOMENTS).to_numpy().astype(np.float32)
    criteria = [{"metric": "selectivity", "below": 0.5}]
    table = measure(pool, stains, vectors, criteria=criteria, ridges=[1e-3])
    rows = table.filter(metric="selectivity")
    assert rows["verdict"].to_list() == ["fail"] * 4
