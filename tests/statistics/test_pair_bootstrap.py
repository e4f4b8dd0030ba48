"""The interval of a ratio over pairs: against loops, a recomputed jackknife and a closed form."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from pathfm_kedro.statistics import pair_bootstrap as module
from pathfm_kedro.statistics.bootstrap import bootstrap_weights
from pathfm_kedro.statistics.pair_bootstrap import (
    linear_draws,
    pair_ratio,
    pair_variance,
    resampled_total,
)
from pathfm_kedro.statistics.paired_comparison import simultaneous_differences


def counts(seed, size=12):
    return np.random.default_rng(seed).poisson(1.0, (size, size)).astype(float)


def test_totals_equal_a_cohort_with_patients_repeated():
    matrix, weights = counts(0, 6), np.random.default_rng(1).integers(0, 4, (5, 6)).astype(float)
    by_loops = [
        sum(matrix[p, q] * (w[p] if p == q else w[p] * w[q]) for p in range(6) for q in range(6))
        for w in weights
    ]
    assert resampled_total(matrix, weights).tolist() == by_loops
    assert resampled_total(csr_array(matrix), weights).tolist() == by_loops


def test_float32_is_left_before_it_rounds(monkeypatch):
    matrix = np.full((40, 40), 2.0**22 + 1) - np.diag(np.full(40, 2.0**22 + 1))
    weights = np.random.default_rng(0).integers(0, 5, (3, 40)).astype(np.float32)
    exact = resampled_total(matrix, weights.astype(np.float64))
    assert resampled_total(matrix, weights).tolist() == exact.tolist()
    monkeypatch.setattr(module, "_EXACT_FLOAT32", np.inf)
    assert resampled_total(matrix, weights).tolist() != exact.tolist()


def test_variance_equals_one_with_every_patient_left_out_in_turn():
    """J from ratios recomputed without each patient, T from the pairs' influences by loops."""
    numerator, size = counts(2), 12
    denominator = numerator + counts(3)
    total = denominator.sum()
    ratio = numerator.sum() / total
    without = []
    for p in range(size):
        kept = np.arange(size) != p
        without.append(numerator[np.ix_(kept, kept)].sum() / denominator[np.ix_(kept, kept)].sum())
    jackknife = (size - 1) / size * sum((r - ratio) ** 2 for r in without)
    e = (numerator - ratio * denominator) / total
    h = e + e.T
    above = sum(h[p, q] ** 2 for p in range(size) for q in range(p + 1, size))
    sums = [h[p].sum() - e[p, p] for p in range(size)]
    second = (size - 1) / (size - 3) * (above - sum(s * s for s in sums) / (size - 2))
    expected = max(jackknife - max(second, 0.0), jackknife / 2)
    assert pair_variance(numerator, denominator) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_a_ratio_of_few_holds_its_truth():
    """Neighbours by random effects of both patients: most of the numerator lies with few of them."""
    size, truth, held = 24, 2.0, []
    for seed in range(150):
        generator = np.random.default_rng(seed)
        effect = generator.normal(0, 0.7, (2, size, 2))
        rates = np.exp(effect[:, :, None, 0] + effect[:, None, :, 1])
        numerator, denominator = generator.poisson(rates * np.array([1.0, 0.5])[:, None, None])
        weights = bootstrap_weights(size, 100, 0)
        drawn = resampled_total(denominator, weights)
        found = pair_ratio(numerator, denominator, drawn, weights, 1)
        assert found.ci_low * found.ci_high == pytest.approx(found.value**2)
        held.append(found.ci_low <= truth <= found.ci_high)
    assert 0.91 <= np.mean(held) <= 0.99


def test_encoders_that_share_the_design_alone_do_not_move_together():
    """Independent counts of the pairs that count: what resampled labels move is not shared."""
    size, weights = 24, bootstrap_weights(24, 200, 0)
    label, center = np.arange(size) % 4, np.arange(size) // 4 % 3
    same_label, same_center = (codes[:, None] == codes for codes in (label, center))
    so, os = same_label & ~same_center, ~same_label & same_center
    generator, linear, two_way, held = np.random.default_rng(0), [], [], []
    for _ in range(150):
        pair = []
        for _ in range(2):
            numerator = generator.poisson(3.0 * so).astype(float)
            parts = numerator, numerator + generator.poisson(3.0 * os)
            drawn = np.stack([resampled_total(part, weights) for part in parts])
            pair.append((pair_ratio(*parts, drawn[1], weights, 1), drawn[0] / drawn[1]))
        (a, of_a), (b, of_b) = pair
        linear.append(np.corrcoef(a.draws, b.draws)[0, 1])
        two_way.append(np.corrcoef(of_a, of_b)[0, 1])
        (found,) = simultaneous_differences([(a, b)])
        held.append(found.low <= 0 <= found.high)
    assert abs(np.mean(linear)) < 0.06
    assert np.mean(two_way) > 0.3
    assert 0.92 <= np.mean(held) <= 0.99


def test_draws_are_spread_as_the_jackknife_says():
    numerator = counts(6)
    both, weights = numerator + counts(7), bootstrap_weights(12, 20_000, 0)
    total = both.sum()
    without = [
        numerator[np.ix_(kept, kept)].sum() / both[np.ix_(kept, kept)].sum()
        for kept in (np.delete(np.arange(12), p) for p in range(12))
    ]
    change = np.array(without) - numerator.sum() / total
    draws = linear_draws(numerator, both, weights)
    assert draws[0] == pytest.approx(numerator.sum() / total - (weights[0] - 1) @ change)
    assert draws.var() == pytest.approx(np.sum((change - change.mean()) ** 2), rel=0.05)


def test_sparse_equals_dense():
    numerator, other = counts(4), counts(5)
    drawn = np.random.default_rng(0).uniform(1, 2, 50)
    both, weights = numerator + other, bootstrap_weights(12, 50, 0)
    dense = pair_ratio(numerator, both, drawn, weights, 10)
    sparse = pair_ratio(csr_array(numerator), csr_array(both), drawn, weights, 10)
    assert sparse.value == pytest.approx(dense.value)
    assert (sparse.ci_low, sparse.ci_high) == pytest.approx((dense.ci_low, dense.ci_high))
    np.testing.assert_allclose(sparse.draws, dense.draws)


def test_nothing_below_is_no_value():
    nothing = pair_ratio(np.zeros((5, 5)), np.zeros((5, 5)), np.zeros(20), np.ones((20, 5)), 7)
    assert (nothing.value, nothing.ci_low, nothing.n, nothing.n_patients) == (None, None, 7, 5)
