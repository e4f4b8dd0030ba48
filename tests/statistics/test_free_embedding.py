"""Free vectors, the two constructions, and bounds of the sign rank."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from benchmarks.capacity_grid import fit_by_torch
from pathfm_kedro.statistics import free_embedding as fe
from pathfm_kedro.statistics import sign_rank


def brute_force_solved(queries: np.ndarray, documents: np.ndarray, k: int) -> bool:
    for query, wanted in zip(queries, combinations(range(len(documents)), k), strict=True):
        order = sorted(range(len(documents)), key=lambda i: -float(query @ documents[i]))
        if set(order[:k]) != set(wanted):
            return False
    return True


def test_a_step_is_that_of_autograd_and_torchs_adam():
    how = fe.Optimiser(steps=20, evaluate_every=20)
    ours, theirs = fe.fit(7, 3, 2, how, seed=3), fit_by_torch(7, 3, 2, how, seed=3)
    assert ours.steps == theirs.steps == 20
    for mine, other in ((ours.queries, theirs.queries), (ours.documents, theirs.documents)):
        assert np.abs(mine - other).max() < 2e-5


def test_the_fit_on_a_device_solves_what_numpy_solves():
    how = fe.Optimiser(steps=2000)
    ours, theirs = fe.fit(7, 4, 2, how, seed=0), fit_by_torch(7, 4, 2, how, seed=0)
    assert theirs.solved
    assert theirs.steps == ours.steps
    assert brute_force_solved(theirs.queries, theirs.documents, 2)


def test_what_is_called_solved_is_solved():
    found = fe.fit(7, 4, 2, fe.Optimiser(steps=2000), seed=0)
    assert found.solved
    assert brute_force_solved(found.queries, found.documents, 2)
    assert np.allclose(np.linalg.norm(found.documents, axis=1), 1, atol=1e-6)


def test_the_critical_n_of_a_replica_is_found():
    """Seen in a replica of the source: 8 or 9 documents at 4 dimensions."""
    how = fe.Optimiser(steps=5000)
    assert fe.critical_n(lambda n: fe.fit(n, 4, 2, how, 0).solved, 5) in (8, 9, 10)


def test_accuracy_counts_ties_against():
    relevant = np.array([[True, True, False, False]])
    assert fe.top_k_accuracy(np.array([[3.0, 2.0, 1.0, 0.0]]), relevant, 2) == 1
    assert fe.top_k_accuracy(np.array([[3.0, 1.0, 2.0, 0.0]]), relevant, 2) == 0.5
    assert fe.top_k_accuracy(np.array([[3.0, 2.0, 2.0, 0.0]]), relevant, 2) < 1


@pytest.mark.parametrize(("n", "k"), [(6, 1), (12, 2), (9, 3)])
def test_the_circle_solves_every_subset_in_2k_dimensions(n, k):
    queries, documents = fe.circle_curve(n, k)
    assert queries.shape[1] == documents.shape[1] == 2 * k
    wanted = fe.relevance(fe.all_subsets(n, k), n)
    assert (fe.margins(queries, documents, wanted) > 0).all()
    assert brute_force_solved(queries, documents, k)


def test_the_circles_margin_of_one_documents_pairs_is_that_of_all():
    queries, documents = fe.circle_curve(21, 2)
    least = fe.margins(queries, documents, fe.relevance(fe.all_subsets(21, 2), 21)).min()
    assert fe.circle_curve_margin(21, np.float64) == pytest.approx(least, rel=1e-9)


def test_less_precision_solves_fewer():
    most = [
        fe.critical_n(lambda n, p=p: fe.circle_curve_margin(n, p) > 0, 5, most=256)
        for p in (np.float16, np.float32, np.float64)
    ]
    assert most == sorted(most)
    assert most[0] < most[2] == 256


@pytest.mark.parametrize(("n", "k"), [(5, 2), (11, 2), (8, 3)])
def test_no_vectors_have_a_larger_margin_than_the_simplex(n, k):
    queries, documents = fe.simplex(n, k)
    wanted = fe.relevance(fe.all_subsets(n, k), n)
    assert fe.margins(queries, documents, wanted).min() == pytest.approx(fe.margin_ceiling(n, k))
    generator = np.random.default_rng(0)
    for _ in range(20):
        noise = [x + 0.05 * generator.standard_normal(x.shape) for x in (queries, documents)]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in noise]
        assert fe.margins(*unit, wanted).min() <= fe.margin_ceiling(n, k) + 1e-12


@pytest.mark.parametrize(
    ("d", "documents"), [(512, 0.5e6), (768, 1.7e6), (1024, 4e6), (3072, 107e6), (4096, 250e6)]
)
def test_the_published_fit_gives_the_published_figures(d, documents):
    assert fe.published_critical_n(d) == pytest.approx(documents, rel=0.05)


def test_labels_need_at_most_three_dimensions():
    """Each label a point of a circle: the product with its own, less a threshold, has the sign."""
    labels = np.repeat(np.arange(7), [1, 2, 5, 3, 1, 4, 2])
    signs = np.where(labels[:, None] == labels, 1, -1).astype(np.int8)
    angles = 2 * np.pi * labels / 7
    points = np.stack([np.cos(angles), np.sin(angles), np.ones(len(labels))], axis=1)
    threshold = (1 + np.cos(2 * np.pi / 7)) / 2
    factor = points @ (points * [1, 1, -threshold]).T
    assert (np.sign(factor) == signs).all()
    assert sign_rank.sign_change_bound(signs) == sign_rank.sign_change_bound_of_labels(7) == 3
    assert sign_rank.forster_bound_of_labels(np.bincount(labels)) <= 3


def test_bounds_enclose_the_rank_of_a_factorisation():
    generator = np.random.default_rng(1)
    for rank in (2, 3, 5):
        product = generator.standard_normal((40, rank)) @ generator.standard_normal((rank, 30))
        signs = np.where(product > 0, 1, -1).astype(np.int8)
        assert sign_rank.forster_bound(signs) <= rank
        assert sign_rank.sign_change_bound(signs) >= sign_rank.forster_bound(signs)


@pytest.mark.parametrize(("t", "a"), [(1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (3, 4)])
def test_bounds_of_subsets_are_those_of_the_matrix(t, a):
    m = 7
    rows, columns = (list(combinations(range(m), size)) for size in (t, a))
    signs = np.array([[1 if set(r) <= set(c) else -1 for c in columns] for r in rows], np.int8)
    lower, upper = sign_rank.forster_bound_of_subsets(m, t, a), sign_rank.subset_bound(m, t, a)
    assert lower == pytest.approx(sign_rank.forster_bound(signs))
    assert lower <= upper
    # The construction, in whole numbers: power sums of a row, a column's squared polynomial.
    sums = np.array([[sum(x**j for x in row) for j in range(2 * a + 1)] for row in rows])
    squared = [np.poly(c + c)[::-1] for c in columns]
    factor = sums @ -np.array(squared).T + 0.5
    assert (np.sign(factor) == signs).all()
    assert upper <= 2 * a + 1
