"""Geometry against closed forms and scipy, and what a change of the space must leave alone."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pathfm_kedro.pipelines.inheritance.geometry import (
    CORRELATED,
    GEOMETRY_SCHEMA,
    MOMENTS,
    SHAPE,
    Geometry,
    alignment_and_uniformity,
    correlation_figures,
    geometry_figures,
    geometry_statistics,
    marchenko_pastur_edge,
    mean_cosine,
    moments,
    power_sums,
    rotated_into_rows,
    shape_figures,
    spectrum,
)
from pathfm_kedro.statistics.jackknife import patient_groups
from pathfm_kedro.statistics.sampling import balanced_tiles
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

PARAMETERS = {"n_tiles": 64, "draws": 200, "n_groups": 10, "null_samples": 3, "seed": 0}


EXPERIMENT = Experiment("geometry", Geometry, geometry_statistics, geometry_figures, [])


def measure(slides, tiles, shards, parameters=PARAMETERS):
    inputs = (slides, tiles, InMemory(shards))
    statistics = EXPERIMENT.statistics(*inputs, parameters)
    assert dict(statistics.schema) == GEOMETRY_SCHEMA
    return EXPERIMENT.measurements(statistics, parameters, encoder="e")


def cohort(n_slides=12, tiles_per_slide=9, dimensions=5, seed=0):
    generator = np.random.default_rng(seed)
    names = [f"s{i:02}" for i in range(n_slides)]
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": [f"p{i // 2}" for i in range(n_slides)],
            "center": "a",
            "organ": "o",
            "label": "l",
        }
    )
    tiles = pl.DataFrame(
        {
            "slide_id": np.repeat(names, tiles_per_slide),
            "tile_id": [f"t{i:04}" for i in range(n_slides * tiles_per_slide)],
        }
    )
    shards = {
        name: generator.gamma(1.5, size=(tiles_per_slide, dimensions)).astype(np.float32)
        for name in names
    }
    return slides, tiles, shards


def values(table):
    return dict(table.select("metric", "value").iter_rows())


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 6)])
def test_orthonormal_rows_fill_every_direction(shape):
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0][: shape[0]]
    vectors = vectors[:, : shape[1]] if shape[0] > shape[1] else np.eye(*shape)
    figures = spectrum(vectors)
    assert figures["singular_value_entropy"] == pytest.approx(np.log(min(shape)))
    assert figures["largest_singular_value_ratio"] == pytest.approx(np.log(min(shape)))
    assert figures["effective_rank"] == pytest.approx(min(shape))


def test_one_direction_has_effective_rank_one():
    vectors = np.outer(np.arange(1, 30), np.arange(1, 50)).astype(float)
    figures = spectrum(rotated_into_rows(vectors))
    assert figures["effective_rank"] == pytest.approx(1.0)
    assert figures["largest_singular_value_ratio"] == pytest.approx(0.0)
    assert mean_cosine(vectors) == pytest.approx(1.0)


def test_moments_equal_scipy():
    from scipy.stats import kurtosis, skew

    vectors = np.random.default_rng(0).gamma(2.0, size=(200, 7)) * 1e3 + 1e5
    found = moments(power_sums(vectors).sum(axis=0))
    assert found["skewness"] == pytest.approx(skew(vectors).mean())
    assert found["kurtosis_excess"] == pytest.approx(kurtosis(vectors).mean())
    assert found["kurtosis_raw"] == pytest.approx(kurtosis(vectors, fisher=False).mean())


def test_mean_cosine_equals_all_pairs():
    vectors = np.random.default_rng(0).normal(size=(20, 4)) + 1
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = (units @ units.T)[np.triu_indices(20, 1)]
    assert mean_cosine(vectors) == pytest.approx(pairs.mean())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(2, 30),
    columns=st.integers(1, 40),
    scale=st.floats(1e-3, 1e3),
)
def test_rotation_and_scale_leave_the_shape_alone(seed, rows, columns, scale):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, columns))
    rotation = np.linalg.qr(generator.normal(size=(columns, columns)))[0]
    slides = np.arange(rows) // 2
    plain = shape_figures(vectors, slides)
    for other in (scale * vectors @ rotation, rotated_into_rows(vectors)):
        assert shape_figures(other, slides) == pytest.approx(plain, abs=1e-9)


def test_shift_and_scale_of_dimensions_leave_moments_alone():
    generator = np.random.default_rng(0)
    vectors = generator.gamma(2.0, size=(100, 4))
    moved = vectors * np.array([1e-3, 1.0, 10.0, 1e4]) + np.array([5.0, -3.0, 0.0, 1e6])
    plain = moments(power_sums(vectors).sum(axis=0))
    assert moments(power_sums(moved).sum(axis=0)) == pytest.approx(plain, rel=1e-6)


def test_alignment_and_uniformity_equal_all_pairs():
    generator = np.random.default_rng(0)
    vectors, slides = generator.normal(size=(15, 4)) + 1, generator.integers(0, 4, 15)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(15) for j in range(i)]
    distances = np.array([((units[i] - units[j]) ** 2).sum() for i, j in pairs])
    alike = np.array([slides[i] == slides[j] for i, j in pairs])
    found = alignment_and_uniformity(vectors, slides)
    assert found["alignment"] == pytest.approx(distances[alike].mean())
    assert found["uniformity"] == pytest.approx(np.log(np.exp(-2 * distances).mean()))


def test_gaussian_noise_has_the_shape_that_is_known_of_it():
    m, n = 1500, 300
    noise = np.random.default_rng(0).normal(size=(m, n))
    moment = {k: float(v) for k, v in moments(power_sums(noise).sum(axis=0)).items()}
    assert moment["skewness"] == pytest.approx(0, abs=0.02)
    assert moment["kurtosis_raw"] == pytest.approx(3, abs=0.05)
    # Of independent normal columns |r| is half-normal with variance 1 / m.
    found = correlation_figures(noise)
    assert found["off_diagonal_correlation"] == pytest.approx(np.sqrt(2 / (np.pi * m)), rel=0.02)
    assert found["above_marchenko_pastur"] <= 1 / n
    largest = np.linalg.eigvalsh(np.corrcoef(noise.T))[-1]
    assert largest == pytest.approx(marchenko_pastur_edge(m, n), rel=0.03)
    # Random directions lie at a right angle: ‖u − v‖² = 2, spread 2 / √n.
    found = alignment_and_uniformity(noise, np.arange(m) % 50)
    assert found["alignment"] == pytest.approx(2, abs=0.01)
    assert found["uniformity"] == pytest.approx(-4 + 8 / n, abs=0.01)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_planted_rank_one_nuisance_is_the_one_eigenvalue_above_the_edge(strength):
    m, n = 400, 100
    generator = np.random.default_rng(1)
    nuisance = generator.choice([-1.0, 1.0], m)[:, None] * generator.choice([-1.0, 1.0], n)
    planted = generator.normal(size=(m, n)) + strength * nuisance
    found = correlation_figures(planted)
    # r_ij = ± s² / (1 + s²) for all i ≠ j; the spike λ shows itself at λ + γ λ / (λ − 1).
    r = strength**2 / (1 + strength**2)
    spike = (1 + (n - 1) * r) / (1 - r)
    shown = (1 - r) * (spike + n / m * spike / (spike - 1))
    assert found["off_diagonal_correlation"] == pytest.approx(r, rel=0.05)
    assert found["above_marchenko_pastur"] == pytest.approx(1 / n)
    assert found["variance_above_marchenko_pastur"] == pytest.approx(shown / n, rel=0.03)


def test_a_collapse_shows_in_every_figure_of_the_spread():
    slides, tiles, shards = cohort(n_slides=20, dimensions=30)
    generator = np.random.default_rng(2)
    shards = {k: generator.normal(size=(9, 30)).astype(np.float32) for k in shards}
    direction = generator.normal(size=30).astype(np.float32)
    collapsed = {
        k: 0.05 * x + generator.normal(size=(9, 1)).astype(np.float32) * direction
        for k, x in shards.items()
    }
    parameters = PARAMETERS | {"n_tiles": 180}
    before, after = (values(measure(slides, tiles, x, parameters)) for x in (shards, collapsed))
    assert after["effective_rank"] < before["effective_rank"] / 3
    assert after["off_diagonal_correlation"] > 0.9 > 10 * before["off_diagonal_correlation"] / 2
    assert after["variance_above_marchenko_pastur"] > 0.9
    assert after["uniformity"] > before["uniformity"] + 1


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    wanted=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_chosen_tiles_are_balanced_and_do_not_depend_on_order(sizes, wanted, seed):
    names = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    tiles = pl.DataFrame({"slide_id": names, "tile_id": [f"t{i:03}" for i in range(len(names))]})
    chosen = tiles[balanced_tiles(tiles, wanted, seed)]
    assert len(chosen) == min(wanted, len(tiles))
    counts = dict(chosen["slide_id"].value_counts().iter_rows())
    most = max(counts.values())
    assert all(counts.get(f"s{i}", 0) >= min(size, most - 1) for i, size in enumerate(sizes))
    shuffled = tiles.sample(fraction=1, shuffle=True, seed=seed)
    assert_frame_equal(chosen, shuffled[balanced_tiles(shuffled, wanted, seed)])


def test_groups_hold_whole_patients():
    patients = np.random.default_rng(0).integers(0, 40, 300)
    groups = patient_groups(patients, 7)
    assert len(np.unique(np.column_stack([patients, groups]), axis=0)) == len(np.unique(patients))
    assert np.ptp(np.bincount(groups)) <= np.bincount(patients).max()


def test_node_gives_every_figure_with_interval_and_null():
    slides, tiles, shards = cohort()
    table = measure(slides, tiles, shards)
    measured = table.filter(pl.col("metric") != "constant_dimensions")
    assert set(measured["metric"]) == {*MOMENTS, *SHAPE}
    assert measured.select(pl.col("value", "ci_low", "ci_high", "null_low").is_null().any()).row(
        0
    ) == (False, False, False, False)
    assert (
        (measured["ci_low"] <= measured["value"]) & (measured["value"] <= measured["ci_high"])
    ).all()
    assert set(table["setting"]) == {json.dumps({"n_tiles": 64})}
    assert set(table["n_patients"]) == {6}


def test_gaussian_embeddings_lie_near_their_null():
    slides, tiles, _ = cohort(n_slides=30, dimensions=40)
    generator = np.random.default_rng(5)
    shards = {
        name: generator.normal(size=(9, 40)).astype(np.float32) for name in slides["slide_id"]
    }
    wide = PARAMETERS | {"n_tiles": 256, "null_samples": 30}
    table = measure(slides, tiles, shards, wide).drop_nulls("null_low")
    middle = (table["null_low"] + table["null_high"]) / 2
    spread = table["null_high"] - table["null_low"]
    assert ((table["value"] - middle).abs() <= spread).all()


def test_constant_dimensions_are_counted_and_left_out_of_moments():
    slides, tiles, shards = cohort()
    padded = {n: np.column_stack([x, np.full((len(x), 2), 0.3)]) for n, x in shards.items()}
    plain = values(measure(slides, tiles, shards))
    found = values(measure(slides, tiles, padded))
    assert found["constant_dimensions"] == 2
    assert {m: found[m] for m in MOMENTS} == pytest.approx({m: plain[m] for m in MOMENTS})
    alike = {n: np.ones_like(x) for n, x in shards.items()}
    table = measure(slides, tiles, alike)
    assert set(table.filter(pl.col("value").is_null())["metric"]) == {*MOMENTS, *CORRELATED}


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


def test_small_cohorts_say_what_they_lack():
    slides, tiles, shards = cohort()
    nothing = measure(slides, tiles, {})
    assert nothing["value"].is_null().all()
    assert set(nothing["verdict"]) == {"not_applicable"}
    one_patient = {name: shards[name] for name in ("s00", "s01")}
    table = measure(slides, tiles, one_patient)
    assert table["value"].is_not_null().all()
    assert table["ci_low"].is_null().all()
    assert set(table["setting"]) == {'{"n_tiles": 18}'}
    single = {name: shard[:1] for name, shard in shards.items()}
    first = tiles.group_by("slide_id", maintain_order=True).first()
    table = measure(slides, first, single)
    assert set(table["n"]) == {12}
    assert table.filter(metric="alignment")["reason"][0].startswith("no slide has two")


@pytest.mark.parametrize("outliers", [1, 3])
def test_a_few_endless_vectors_are_no_shape(outliers):
    slides, tiles, shards = cohort()
    for slide in list(shards)[:outliers]:
        shards[slide][0] = 1e10
    table = measure(slides, tiles, shards, PARAMETERS | {"n_tiles": 108})
    assert table["value"].is_null().all()
    assert table["reason"].str.contains(f"{outliers} of 108 vectors").all()
    assert table["reason"].str.contains("times as long as the median").all()


def test_intervals_end_where_the_figures_can():
    slides, tiles, shards = cohort(n_slides=6)
    for slide in list(shards)[:3]:
        shards[slide] *= 9
    rows = {row["metric"]: row for row in measure(slides, tiles, shards).iter_rows(named=True)}
    rank = rows["effective_rank"]
    assert 1 <= rank["ci_low"] <= rank["value"] <= rank["ci_high"] <= 5
    assert rows["singular_value_entropy"]["ci_low"] >= 0
    assert rows["singular_value_entropy"]["ci_high"] <= np.log(5)
    assert rows["kurtosis_raw"]["ci_low"] >= 1
    assert rows["mean_cosine"]["ci_high"] <= 1
