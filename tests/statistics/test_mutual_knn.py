"""Neighbours kept by the whole pool, against brute force and against what is expected of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.statistics import mutual_knn
from pathfm_kedro.statistics.mutual_knn import (
    DISTANCES,
    candidate_effects,
    cosine_distance_chance,
    cosine_distances,
    mknn,
    mknn_chance,
    nearest,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def brute_force(reference, view, patients, k, distance):
    """Set intersections, one tile at a time."""

    def far(a, b):
        if distance == "euclidean":
            return np.linalg.norm(a - b)
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def nearest(space, i):
        others = [j for j in range(len(space)) if patients[j] != patients[i]]
        return set(sorted(others, key=lambda j: (far(space[i], space[j]), j))[:k])

    return [len(nearest(reference, i) & nearest(view, i)) / k for i in range(len(reference))]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_mknn_equals_set_intersection(distance, k):
    patients = np.random.default_rng(1).choice(list("abcdef"), size=40)
    reference, view = normal(40, 6) + 3, normal(40, 6, seed=2) * 0.5 + normal(40, 6) + 3
    found = mknn(reference, view, patients, k, distance)
    np.testing.assert_allclose(found, brute_force(reference, view, patients, k, distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_ties_go_to_the_lower_index(distance):
    reference = np.repeat(normal(4, 300), 12, axis=0)
    view = np.repeat(normal(3, 300, seed=3), 16, axis=0)
    patients = np.arange(48)
    # Whole-number coordinates, where brute force is exact too.
    reference, view = np.sign(reference), np.sign(view)
    found = mknn(reference, view, patients, 5, distance)
    np.testing.assert_array_equal(found, brute_force(reference, view, patients, 5, "euclidean"))


@pytest.mark.parametrize("distance", DISTANCES)
def test_searching_in_blocks_changes_nothing(distance, monkeypatch):
    monkeypatch.setattr(mutual_knn, "_BLOCK", 7)
    reference, view, patients = normal(40, 6), normal(40, 6, seed=2), np.arange(40) // 2
    found = mknn(reference, view, patients, 5, distance)
    np.testing.assert_allclose(found, brute_force(reference, view, patients, 5, distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_identical_views_keep_every_neighbour(distance):
    tiles = normal(60, 5)
    assert (mknn(tiles, tiles, np.arange(60) // 3, 10, distance) == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(DISTANCES), st.floats(0.01, 1000))
def test_turning_or_scaling_the_embedding_space_changes_nothing(seed, distance, scale):
    tiles = np.random.default_rng(seed).normal(size=(40, 6))
    turn, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(6, 6)))
    patients = np.arange(40) // 2
    assert (mknn(tiles, scale * tiles @ turn, patients, 7, distance) == 1).all()
    np.testing.assert_allclose(cosine_distances(tiles, tiles), 0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(DISTANCES))
def test_permuting_tiles_permutes_their_overlaps(seed, distance):
    generator = np.random.default_rng(seed)
    reference, view = generator.normal(size=(2, 40, 6))
    patients = generator.integers(0, 12, 40)
    order = generator.permutation(40)
    found = mknn(reference, view, patients, 7, distance)
    permuted = mknn(reference[order], view[order], patients[order], 7, distance)
    np.testing.assert_array_equal(permuted, found[order])


@pytest.mark.parametrize("distance", DISTANCES)
def test_chance_is_the_mean_over_independent_views(distance):
    patients = np.array([0] * 20 + list(range(1, 21)))
    draws = [
        mknn(normal(40, 10, seed=s), normal(40, 10, seed=s + 5000), patients, 5, distance)
        for s in range(400)
    ]
    chance = mknn_chance(patients, 5)
    np.testing.assert_allclose(chance, [5 / 20] * 20 + [5 / 39] * 20)
    standard_error = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert (np.abs(np.mean(draws, axis=0) - chance) < 4.5 * standard_error).all()


def test_cosine_distance_chance_is_the_mean_over_other_patients():
    reference, view, codes = normal(12, 4), normal(12, 4, seed=1), np.arange(12) // 3
    expected = [
        np.mean(
            [cosine_distances(reference[[i]], view[[j]]) for j in range(12) if j // 3 != i // 3]
        )
        for i in range(12)
    ]
    np.testing.assert_allclose(cosine_distance_chance(reference, view, codes), expected)


def test_unfit_arrays_are_refused_with_the_mend():
    tiles = normal(6, 3)
    with pytest.raises(ValueError, match="same rows"):
        mknn(tiles, tiles[:5], np.arange(6), 2, "cosine")
    with pytest.raises(ValueError, match="only 3 tiles of other patients; add patients"):
        mknn(tiles, tiles, np.arange(6) // 3, 4, "cosine")
    with pytest.raises(ValueError, match="unknown distance 'manhattan'"):
        mknn(tiles, tiles, np.arange(6), 2, "manhattan")


@pytest.mark.parametrize("distance", DISTANCES)
def test_candidate_effects_foretell_what_removing_a_tile_changes(distance):
    n, k = 40, 4
    patients = np.arange(n)
    foretold, measured = [], []
    for seed in range(4):
        reference = normal(n, 5, seed=seed)
        view = reference + 0.7 * normal(n, 5, seed=seed + 100)
        lists = [nearest(space, patients, k + 1, distance) for space in (reference, view)]
        foretold += candidate_effects(*lists, k).tolist()
        whole = mknn(reference, view, patients, k, distance)
        for j in range(n):
            rest = patients != j
            without = mknn(reference[rest], view[rest], patients[rest], k, distance)
            measured.append((whole[rest] - without).sum())
    slope, intercept = np.polyfit(foretold, measured, 1)
    assert slope == pytest.approx(1, abs=0.15)
    assert intercept == pytest.approx(0, abs=0.05)
    assert np.corrcoef(foretold, measured)[0, 1] > 0.5
