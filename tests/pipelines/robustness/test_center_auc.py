"""The center AUC: against scikit-learn, with colour taken out, and on encoders of known answer."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import roc_auc_score

from pathfm_kedro.pipelines.robustness import center_auc
from pathfm_kedro.pipelines.robustness.center_auc import (
    CENTER_AUC_SCHEMA,
    CenterAuc,
    center_auc_figures,
    center_auc_statistics,
    without_colour,
)
from pathfm_kedro.statistics.cross_validation import patient_folds
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory
from tests.pipelines.robustness.phantom_views import measured

PARAMETERS = {
    "max_tiles": 600,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 2,
    "folds": 4,
    "ridge": 1.0,
    "draws": 300,
    "n_permutations": 40,
    "seed": 0,
}
CENTER_AUC = Experiment("center_auc", CenterAuc, center_auc_statistics, center_auc_figures, [])


def cohort(seed, colour_to_embedding=0.0, center_effect=0.0, centers=2, patients=8, tiles=5, d=16):
    """Centers differ in colour; the embedding may carry colour, the center itself, or neither."""
    generator = np.random.default_rng(seed)
    fixed = np.random.default_rng(9)
    mixing = fixed.standard_normal((4, d)) * colour_to_embedding
    shift, of_center = fixed.standard_normal((centers, 4)), fixed.standard_normal((centers, d))
    rows, shards, colours = [], {}, {}
    for label, center, _ in itertools.product(range(2), range(centers), range(patients)):
        name = f"s{len(rows):03d}"
        rows.append((name, name, f"C{center}", "organ", f"L{label}"))
        colour = shift[center] + 0.5 * generator.standard_normal((tiles, 4))
        vectors = colour @ mixing + center_effect * of_center[center]
        vectors = vectors + 0.5 * generator.standard_normal(d)
        shards[name] = (vectors + generator.standard_normal((tiles, d))).astype(np.float32)
        colours[name] = colour.astype(np.float32)
    columns = ["slide_id", "patient_id", "center", "organ", "label"]
    names = [f"{name}-{i}" for name in shards for i in range(tiles)]
    table = pl.DataFrame({"tile_id": names, "slide_id": np.repeat(list(shards), tiles)})
    slides = pl.DataFrame(rows, schema=columns, orient="row")
    return slides, table, InMemory(shards), InMemory(colours)


def measure(data, **changes):
    return measured(CENTER_AUC, PARAMETERS | changes, *data)


def pick(table, features, metric="center_auc", stratum="all"):
    return next(
        row
        for row in table.iter_rows(named=True)
        if (row["metric"], row["stratum"]) == (metric, stratum)
        and json.loads(row["setting"]).get("features") == features
    )


def test_auc_equals_scikit_learn():
    slides, tiles, embeddings, colours = cohort(0, 0.2, 0.3, centers=3)
    vectors = embeddings.stack(embeddings.slide_ids).astype(float)
    center = np.repeat(np.arange(48) // 8 % 3, 5)
    label = np.repeat(np.arange(48) // 24, 5)
    patients = np.repeat(np.arange(48), 5)
    folds = patient_folds(patients, 4, seed=0, strata=label)
    won, pairs = np.zeros(3), np.zeros(3)
    for fold in range(4):
        train, test = folds != fold, folds == fold
        rows = (vectors - vectors[train].mean(axis=0)) / vectors[train].std(axis=0)
        # Standardised columns: the trace of their products is n times d.
        model = Ridge(alpha=vectors.shape[1]).fit(rows[train], np.eye(3)[center[train]])
        for c, scores in enumerate(model.predict(rows[test]).T):
            own = center[test] == c
            size = own.sum() * (~own).sum()
            won[c] += roc_auc_score(own, scores) * size
            pairs[c] += size
    table = measure((slides, tiles, embeddings, colours))
    for c in range(3):
        row = pick(table, "embedding", stratum=f"center=C{c}")
        assert row["value"] == pytest.approx(won[c] / pairs[c], abs=1e-9)
    assert pick(table, "embedding")["value"] == pytest.approx((won / pairs).mean(), abs=1e-9)


def test_colour_is_taken_out_as_by_scikit_learn():
    generator = np.random.default_rng(0)
    colour, vectors = generator.standard_normal((40, 3)), generator.standard_normal((40, 6))
    train = np.arange(25)
    model = LinearRegression().fit(colour[train], vectors[train])
    expected = vectors - model.predict(colour)
    np.testing.assert_allclose(without_colour(vectors, colour, train), expected, atol=1e-10)


def test_colour_alone_goes_and_the_center_itself_stays():
    of_colour = measure(cohort(0, colour_to_embedding=1.0))
    assert pick(of_colour, "embedding")["value"] > 0.85
    left = pick(of_colour, "embedding_without_colour")
    assert left["ci_low"] < 0.5 < left["ci_high"]
    drop = pick(of_colour, None, "center_auc_drop")
    assert drop["ci_low"] > 0.2
    # The center in directions that colour does not explain within centers.
    of_both = measure(cohort(0, 0.3, center_effect=1.5, centers=6))
    assert pick(of_both, "embedding_without_colour")["ci_low"] > 0.6


def test_an_encoder_that_knows_nothing_is_at_chance():
    rows = [pick(measure(cohort(seed)), "embedding") for seed in range(12)]
    inside = [row["null_low"] <= row["value"] <= row["null_high"] for row in rows]
    assert np.mean(inside) >= 0.75
    assert np.mean([row["ci_low"] <= 0.5 <= row["ci_high"] for row in rows]) >= 0.75
    assert all(row["null_low"] < 0.5 < row["null_high"] for row in rows)


def test_interval_covers():
    rows = [pick(measure(cohort(seed, 0.2), n_permutations=0), "embedding") for seed in range(50)]
    truth = np.mean([row["value"] for row in rows])
    assert 0.6 < truth < 0.95
    assert np.mean([row["ci_low"] <= truth <= row["ci_high"] for row in rows]) >= 0.86


def test_a_criterion_judges_the_features_that_it_names():
    criteria = [{"metric": "center_auc", "at": {"features": "embedding"}, "below": 0.8}]
    table = measure(cohort(0, 1.0), criteria=criteria)
    assert pick(table, "embedding")["verdict"] == "fail"
    assert table.filter(pl.col("threshold").is_not_null()).height == 1
    assert measure(cohort(0, 1.0))["threshold"].is_null().all()


@given(st.integers(0, 1000), st.integers(2, 6))
def test_folds_hold_whole_patients_and_are_even(seed, folds):
    patients = np.repeat(np.arange(24), 3)
    cells = patients % 4
    found = patient_folds(patients, folds, seed, cells)
    assert (found.reshape(-1, 3) == found.reshape(-1, 3)[:, :1]).all()
    sizes = np.bincount(found, minlength=folds)
    assert sizes.max() - sizes.min() <= 3
    for cell in range(4):
        of_cell = np.bincount(found[cells == cell], minlength=folds)
        assert of_cell.max() - of_cell.min() <= 3


def test_slides_without_colour_are_left_out():
    slides, tiles, embeddings, colours = cohort(0, 1.0)
    fewer = InMemory({name: shard for name, shard in colours.shards.items() if name != "s000"})
    table = measure((slides, tiles, embeddings, fewer))
    assert pick(table, "embedding")["n_patients"] == 31


def test_without_the_control_that_knows_colour_the_embedding_is_measured():
    *vectors, colours = cohort(0, 1.0)
    table, whole = measure(vectors), measure([*vectors, colours])
    assert pick(table, "embedding") == pick(whole, "embedding")
    for features, metric in (
        ("embedding_without_colour", "center_auc"),
        ("colour", "center_auc"),
        (None, "center_auc_drop"),
    ):
        row = pick(table, features, metric)
        assert row["value"] is None
        assert "leaves out" in row["reason"]


def test_a_cohort_of_one_center_says_why():
    slides, tiles, embeddings, colours = cohort(0)
    one = slides.with_columns(center=pl.lit("C0"))
    table = measure((one, tiles, embeddings, colours))
    assert table["metric"].to_list() == ["center_auc"] * 3 + ["center_auc_drop"]
    assert (table["verdict"] == "not_applicable").all()
    assert table["reason"].str.contains("second center").all()


def test_statistics_have_their_columns_and_are_the_same_for_one_seed():
    data, p = cohort(1, 0.5), read_parameters(CenterAuc, "center_auc", PARAMETERS)
    statistics = center_auc_statistics(*data, p)
    assert dict(statistics.schema) == CENTER_AUC_SCHEMA
    assert statistics.equals(center_auc_statistics(*data, p))


def test_an_encoder_that_knows_the_label_alone_lies_in_its_null():
    places = []
    for seed in range(60):
        slides, tiles, embeddings, _ = cohort(seed, centers=3, patients=3, tiles=4)
        label = dict(slides.select("slide_id", "label").iter_rows())
        known = {s: x + 3.0 * (label[s] == "L1") for s, x in embeddings.shards.items()}
        p = read_parameters(CenterAuc, "center_auc", PARAMETERS | {"draws": 20})
        statistics = center_auc_statistics(slides, tiles, InMemory(known), p)
        found = next(iter(center_auc_figures(statistics, p))).compute()
        permuted = statistics.filter(pl.col("center").is_null(), features="embedding")["permuted"]
        places.append(np.mean(permuted.drop_nulls()[0].to_numpy() < found.estimate.value))
    # The place of the figure among its permutations is even: its mean is a half.
    assert abs(np.mean(places) - 0.5) < 3 / np.sqrt(12 * len(places))


@pytest.mark.filterwarnings("error")
def test_a_permutation_that_leaves_no_fold_two_centers_has_no_auc():
    """Two folds of two tiles: of three permutations one keeps the centers in both folds."""
    permuted = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 1, 0]]).T
    tiles = SimpleNamespace(
        centers=np.array([0, 0, 1, 1]),
        folds=np.array([0, 1, 0, 1]),
        center_names=pl.Series(["a", "b"]),
    )
    scores = np.random.default_rng(0).normal(size=(4, 3, 2))
    table = center_auc._nulls("embedding", scores, permuted, tiles)
    assert table["permuted"].list.len().to_list() == [1, 1, 1]
    none = center_auc._nulls("embedding", scores[:, ::2], permuted[:, ::2], tiles)
    assert none["permuted"].list.len().to_list() == [0, 0, 0]
