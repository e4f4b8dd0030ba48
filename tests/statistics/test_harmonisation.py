"""Center maps against direct formulas, and properties of what they leave."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.statistics.harmonisation import METHODS, fit_maps


@pytest.fixture
def centers() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "A": random.normal(0.0, 1.0, (60, 8)),
        "B": random.normal(2.0, 3.0, (40, 8)) * np.linspace(0.5, 2, 8),
    }


@pytest.mark.parametrize("method", METHODS)
def test_centers_share_a_mean_after_any_map(centers, method):
    maps = fit_maps(iter(centers.items()), method)
    means = [maps[name](vectors).mean(axis=0) for name, vectors in centers.items()]
    before = [vectors.mean(axis=0) for vectors in centers.values()]
    # Empirical Bayes draws the location towards the other dimensions': close, not equal.
    within = 0.2 * np.abs(before[0] - before[1]).max() if method == "combat" else 1e-5
    np.testing.assert_allclose(means[0], means[1], atol=within)


def test_whitening_leaves_the_identity_where_there_are_many_vectors():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(20_000, 5)) @ random.normal(size=(5, 5))
    white = fit_maps(iter([("A", vectors)]), "whitening")["A"](vectors)
    np.testing.assert_allclose(np.cov(white.T), np.eye(5), atol=0.02)


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance():
    from scipy.linalg import inv, sqrtm
    from sklearn.covariance import LedoitWolf

    vectors = np.random.default_rng(2).normal(size=(12, 30)) * np.linspace(1, 3, 30)
    fitted = LedoitWolf().fit(vectors)
    expected = (vectors - vectors.mean(axis=0)) @ inv(sqrtm(fitted.covariance_))
    found = fit_maps(iter([("A", vectors)]), "whitening")["A"](vectors)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_combat_is_the_published_iteration(centers):
    """Written out dimension by dimension, as Johnson et al. 2007 have it in section 3."""
    maps = fit_maps(iter(centers.items()), "combat")
    everything = np.concatenate(list(centers.values()))
    middle = everything.mean(axis=0)
    residual = np.concatenate([v - v.mean(axis=0) for v in centers.values()])
    pooled = np.sqrt((residual**2).mean(axis=0))
    for name, vectors in centers.items():
        z = (vectors - middle) / pooled
        g_hat, d_hat = z.mean(axis=0), z.var(axis=0, ddof=1)
        g_bar, t2 = g_hat.mean(), g_hat.var(ddof=1)
        m, s2 = d_hat.mean(), d_hat.var(ddof=1)
        a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
        adjusted = np.empty_like(z)
        for j in range(z.shape[1]):
            g, d = g_hat[j], d_hat[j]
            for _ in range(200):
                g = (t2 * len(z) * g_hat[j] + d * g_bar) / (t2 * len(z) + d)
                d = (0.5 * ((z[:, j] - g) ** 2).sum() + b) / (len(z) / 2 + a - 1)
            adjusted[:, j] = pooled[j] * (z[:, j] - g) / np.sqrt(d) + middle[j]
        np.testing.assert_allclose(maps[name](vectors), adjusted, rtol=1e-3, atol=1e-3)


def test_combat_undoes_a_change_of_scale_and_place():
    random = np.random.default_rng(3)
    tissue = random.normal(size=(2, 400, 20))
    moved = tissue[1] * 2.5 + random.normal(size=20) * 3
    maps = fit_maps(iter([("A", tissue[0]), ("B", moved)]), "combat")
    a, b = maps["A"](tissue[0]), maps["B"](moved)
    np.testing.assert_allclose(a.mean(axis=0), b.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(a.std(axis=0), b.std(axis=0), rtol=0.15)


def test_a_constant_dimension_stays_finite():
    vectors = np.ones((10, 3))
    for method in METHODS:
        assert np.isfinite(
            fit_maps(iter([("A", vectors), ("B", 2 * vectors)]), method)["A"](vectors)
        ).all()


def test_an_unknown_method_says_which_there_are():
    with pytest.raises(ValueError, match="centring, whitening, combat"):
        fit_maps(iter([("A", np.ones((2, 2)))]), "magic")
