"""Neighbours equal a full sort in float64, whatever the threads and blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from pathfm_kedro.statistics import blocked_search, equal_rows
from pathfm_kedro.statistics.neighbours import (
    nearest_by_type,
    nearest_indices,
    nearest_neighbours,
    nearest_of_types,
)
from pathfm_kedro.statistics.permutation import permuted_within


def by_full_sort(vectors, groups, k, metric="cosine", eligible=None):
    rows = vectors.astype(np.float64)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        similarity = rows @ rows.T
    else:
        similarity = -np.linalg.norm(rows[:, None] - rows[None], axis=2)
    similarity[groups[:, None] == groups[None]] = -np.inf
    if eligible is not None:
        similarity[~eligible] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(similarity, order, axis=1)
    indices = np.where(np.isfinite(best), order, -1)
    missing = k - indices.shape[1]
    return np.pad(indices, ((0, 0), (0, max(missing, 0))), constant_values=-1)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 120),
    d=st.integers(2, 40),
    k=st.integers(1, 40),
    patients=st.integers(1, 12),
    metric=st.sampled_from(["cosine", "euclidean"]),
    block=st.sampled_from([5, 13, 64, None]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_a_full_sort(seed, n, d, k, patients, metric, block):
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((n, d)).astype(np.float32)
    groups = generator.integers(0, patients, n)
    found = nearest_neighbours(vectors, groups, k, metric, block_rows=block)
    np.testing.assert_array_equal(found.indices, by_full_sort(vectors, groups, k, metric))
    assert (np.isfinite(found.similarity) == (found.indices >= 0)).all()


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 120),
    m=st.integers(1, 9),
    kinds=st.sampled_from([(2, 2), (3, 2), (5, 7)]),
    copies=st.booleans(),
    metric=st.sampled_from(["cosine", "euclidean"]),
    block=st.sampled_from([6, 40, None]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_neighbours_of_each_type_equal_full_sorts(seed, n, m, kinds, copies, metric, block):
    """Patients have tiles of several labels and centers, and blocks hold several of them."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((n, 12)).astype(np.float32)
    if copies:
        vectors = np.eye(12, dtype=np.float32)[generator.integers(0, 4, n)]
    groups = generator.integers(0, 9, n)
    label, center = (generator.integers(0, size, n) for size in kinds)
    same_label, same_center = (codes[:, None] == codes for codes in (label, center))
    expected = [
        by_full_sort(vectors, groups, m, metric, eligible)
        for eligible in (same_label & ~same_center, ~same_label & same_center)
    ]
    tags = groups, label, center
    both = nearest_by_type(vectors, *tags, 3, m, metric, block)
    alone = nearest_of_types(vectors, *tags, m, metric, block)
    for found in ((both.same_label, both.same_center), alone):
        for each, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(each.indices, right)
    nearest = by_full_sort(vectors, groups, 3, metric)
    np.testing.assert_array_equal(both.nearest.indices, nearest)


@pytest.mark.parametrize(
    ("metric", "spread"),
    [("cosine", 1e-2), ("cosine", 1e-4), ("euclidean", 1e-2), ("euclidean", 1e-6)],
)
def test_differences_below_float32_are_resolved(metric, spread):
    """Similarities of 0.9999…: a float32 product alone gets most of these orders wrong."""
    generator = np.random.default_rng(0)
    vectors = 1 + spread * generator.standard_normal((400, 64))
    vectors = vectors.astype(np.float32)
    groups = np.arange(400) // 8
    expected = by_full_sort_exact(vectors, groups, 9, metric)
    np.testing.assert_array_equal(nearest_neighbours(vectors, groups, 9, metric).indices, expected)


def by_full_sort_exact(vectors, groups, k, metric):
    """Full sort of distances in long doubles."""
    rows = vectors.astype(np.longdouble)
    if metric == "cosine":
        rows = rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        distance = 1 - np.stack([(rows * row).sum(axis=1) for row in rows])
    else:
        distance = np.stack([((rows - row) ** 2).sum(axis=1) for row in rows])
    distance[groups[:, None] == groups[None]] = np.inf
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


def test_ties_go_to_the_smaller_index():
    vectors = np.tile(np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 0.5]], dtype=np.float32), (20, 1))
    found = nearest_neighbours(vectors, None, 3).indices
    assert found[0].tolist() == [2, 4, 6]
    assert found[5].tolist() == [1, 3, 7]


def test_threads_and_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((700, 96)).astype(np.float32)
    vectors[350:] = vectors[:350] * np.float32(1.0000001)
    groups = generator.integers(0, 50, 700)
    results = []
    for workers, threads, block in [(1, 1, None), (1, 2, 33), (3, 2, 100), (2, 1, 256)]:
        monkeypatch.setattr(blocked_search, "_MAX_WORKERS", workers)
        with threadpool_limits(threads):
            results.append(nearest_neighbours(vectors, groups, 15, block_rows=block))
    for other in results[1:]:
        np.testing.assert_array_equal(other.indices, results[0].indices)
        np.testing.assert_array_equal(other.similarity, results[0].similarity)


def test_chosen_queries_get_the_same_neighbours():
    vectors = np.random.default_rng(2).standard_normal((90, 10)).astype(np.float32)
    groups = np.arange(90) % 11
    queries = np.array([70, 3, 3, 41])
    every = nearest_neighbours(vectors, groups, 5)
    some = nearest_neighbours(vectors, groups, 5, queries=queries, block_rows=2)
    np.testing.assert_array_equal(some.indices, every.indices[queries])
    np.testing.assert_array_equal(some.similarity, every.similarity[queries])


def test_unusable_rows_are_named():
    vectors = np.ones((5, 3), dtype=np.float32)
    vectors[3] = 0
    with pytest.raises(ValueError, match=r"zero.*rows 3"):
        nearest_neighbours(vectors, None, 1)
    assert nearest_neighbours(vectors, None, 1, metric="euclidean").indices[3, 0] == 0
    vectors[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity.*rows 1"):
        nearest_neighbours(vectors, None, 1)


def test_permuted_labels_stay_in_their_stratum_and_reach_every_place():
    labels, strata = np.array([0, 0, 1, 2, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    drawn = permuted_within(labels, strata, draws=400, seed=3)
    assert (np.sort(drawn[:3], axis=0) == [[0], [0], [1]]).all()
    assert (np.sort(drawn[3:], axis=0) == [[1], [1], [2]]).all()
    np.testing.assert_allclose((drawn[:3] == 1).mean(axis=1), 1 / 3, atol=0.08)


@given(
    seed=st.integers(0, 10_000),
    distinct=st.integers(1, 6),
    k=st.integers(1, 12),
    patients=st.integers(1, 9),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_copies_of_a_row_are_taken_in_the_order_of_their_index(seed, distinct, k, patients, metric):
    """Few distinct rows: the order is that of the distinct rows, then of the index."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(0, distinct, 80)
    # One-hot rows of different length: similarities are exact, ties are ties.
    rows = np.eye(distinct, dtype=np.float32) * np.arange(1, distinct + 1, dtype=np.float32)
    vectors, groups = rows[kind], generator.integers(0, patients, 80)
    expected = by_full_sort(vectors, groups, k, metric)
    found = nearest_neighbours(vectors, groups, k, metric)
    np.testing.assert_array_equal(found.indices, expected)
    np.testing.assert_array_equal(nearest_indices(vectors, groups, k, metric), expected)
    alone = nearest_neighbours(vectors, None, k, metric)
    np.testing.assert_array_equal(alone.indices, by_full_sort(vectors, np.arange(80), k, metric))


def test_copies_cost_nothing(monkeypatch):
    """2000 rows with 20 distinct vectors: no more pairs are re-scored than without copies."""
    vectors = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    vectors = np.tile(vectors, (100, 1))
    groups = np.arange(2000) // 10
    scored = []
    exact = blocked_search.Space.similarity

    def counted(space, left, right):
        scored.append(len(left))
        return exact(space, left, right)

    monkeypatch.setattr(blocked_search.Space, "similarity", counted)
    nearest_indices(vectors, groups, 5)
    assert sum(scored) <= 2000 * 3 * 5


def test_different_rows_with_equal_hashes_are_both_searched(monkeypatch):
    vectors = np.random.default_rng(3).standard_normal((60, 5)).astype(np.float32)
    vectors[:, 0] = 1
    vectors[40:] = vectors[:20]
    groups = np.arange(60) // 3
    expected = by_full_sort_exact(vectors, groups, 4, "euclidean")
    monkeypatch.setattr(equal_rows, "_hash_factors", lambda d: np.eye(1, d, dtype=np.uint64)[0])
    np.testing.assert_array_equal(nearest_indices(vectors, groups, 4, "euclidean"), expected)


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_indices_alone_are_those_with_similarities(metric, spread):
    generator = np.random.default_rng(0)
    vectors = (1 + spread * generator.standard_normal((300, 64))).astype(np.float32)
    vectors[200:] = vectors[100:200]
    groups = np.arange(300) // 8
    found = nearest_neighbours(vectors, groups, 9, metric)
    np.testing.assert_array_equal(nearest_indices(vectors, groups, 9, metric), found.indices)
    assert (np.diff(found.similarity, axis=1) <= 0).all()
