"""Alignment against its definition summed term by term, and against its closed form for Gaussians."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from pathfm_kedro.statistics.kernel_alignment import debiased_cka


def by_definition(x, y):
    """Σ over tuples of distinct rows of the U-statistic's kernel (Song et al. 2012, eq. 4)."""

    def hsic(k, m):
        n = len(k)
        pairs = np.mean([k[i, j] * m[i, j] for i, j in permutations(range(n), 2)])
        four = np.mean([k[i, j] * m[q, r] for i, j, q, r in permutations(range(n), 4)])
        three = np.mean([k[i, j] * m[i, q] for i, j, q in permutations(range(n), 3)])
        return pairs + four - 2 * three

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_it_is_the_definition():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 3)) + 5
    y = x[:, :2] + rng.normal(size=(7, 2))
    assert debiased_cka(x, y) == pytest.approx(by_definition(x, y), rel=1e-9)


def test_of_two_correlated_numbers_it_is_their_squared_correlation():
    rng = np.random.default_rng(1)
    x = rng.normal(size=2000)
    y = 0.6 * x + 0.8 * rng.normal(size=2000)
    assert debiased_cka(x[:, None], y[:, None]) == pytest.approx(0.36, abs=0.04)


def test_vectors_that_have_nothing_in_common_are_not_aligned_in_many_dimensions():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 60, 500))
    assert abs(debiased_cka(x, y)) < 0.1
    turned, _ = np.linalg.qr(rng.normal(size=(500, 500)))
    assert debiased_cka(x, 3 * x @ turned) == pytest.approx(1.0)


def test_what_does_not_vary_has_no_alignment():
    assert np.isnan(debiased_cka(np.ones((5, 2)), np.eye(5)))
