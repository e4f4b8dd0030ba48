"""Intervals made in the log odds: against scipy's, by loops, and what a monotone change must keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, bootstrap, contingency
from scipy.stats import t as student

from pathfm_kedro.statistics.bootstrap import bootstrap_weights, odds_interval
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total

#: Patients so many that the quantile is the normal one.
MANY = 10**9
SHARES = st.floats(0.001, 0.999)
VARIANCES = st.floats(1e-6, 0.01)
SIZES = st.integers(2, 200)


def test_of_a_ratio_without_a_largest_value_it_is_scipys_interval_of_a_relative_risk():
    theirs = contingency.relative_risk(9, 60, 14, 50)
    risk = theirs.relative_risk
    variance = risk**2 * (1 / 9 - 1 / 60 + 1 / 14 - 1 / 50)
    expected = theirs.confidence_interval(0.95)
    assert odds_interval(risk, variance, MANY) == pytest.approx((expected.low, expected.high))


def test_of_odds_it_is_scipys_interval_of_an_odds_ratio():
    """Of a share against even odds: the interval of a share by its logit."""
    expected = contingency.odds_ratio([[7, 33], [10**12, 10**12]], kind="sample")
    ends = expected.confidence_interval(0.95)
    share = 7 / 40
    found = odds_interval(share, share * (1 - share) / 40, MANY, most=1.0)
    assert [end / (1 - end) for end in found] == pytest.approx([ends.low, ends.high], rel=1e-5)


@pytest.mark.parametrize("hits", [0, 24])
def test_at_an_end_it_is_scipys_exact_one_over_the_patients(hits):
    exact = binomtest(hits, 24).proportion_ci()
    found = odds_interval(hits / 24, 0.0, 99, most=1.0, units=24)
    assert found == pytest.approx((exact.low, exact.high))


def test_of_a_ratio_of_sums_it_is_near_scipys_accelerated_bootstrap():
    generator = np.random.default_rng(0)
    whole = generator.gamma(2.0, size=150)
    part = whole * generator.beta(0.3, 3.0, size=150)

    def share(part, whole, axis=-1):
        return part.sum(axis=axis) / whole.sum(axis=axis)

    theirs = bootstrap((part, whole), share, paired=True, method="BCa", rng=1)
    variance = theirs.standard_error**2
    found = odds_interval(share(part, whole), variance, 150, most=1.0)
    low, high = theirs.confidence_interval
    assert found == pytest.approx((low, high), abs=0.06 * (high - low))


@given(SHARES, VARIANCES, SIZES)
def test_it_holds_the_share_and_stays_in_its_range(share, variance, size):
    low, high = odds_interval(share, variance, size, most=1.0)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


@given(SHARES, VARIANCES, SIZES)
def test_what_is_left_has_the_interval_that_is_left(share, variance, size):
    low, high = odds_interval(share, variance, size, most=1.0)
    left = odds_interval(1 - share, variance, size, most=1.0)
    assert left == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(SHARES, VARIANCES, SIZES)
def test_the_interval_of_the_odds_is_the_odds_of_the_interval(share, variance, size):
    ends = odds_interval(share, variance, size, most=1.0)
    odds = odds_interval(share / (1 - share), variance / (1 - share) ** 4, size)
    with np.errstate(over="ignore"):
        assert expit(np.log(odds)) == pytest.approx(ends, abs=1e-9)


@given(SHARES, VARIANCES, SIZES, st.floats(0.1, 50.0))
def test_another_unit_scales_it(share, variance, size, scale):
    ends = odds_interval(share, variance, size, most=1.0)
    scaled = odds_interval(scale * share, scale**2 * variance, size, most=scale)
    assert scaled == pytest.approx([scale * end for end in ends], abs=1e-9 * scale)


def pairs_that_count(size=24):
    """Pairs whose neighbour shares the label alone, and the center alone."""
    label, center = np.arange(size) % 4, np.arange(size) // 4 % 3
    same_label, same_center = (codes[:, None] == codes for codes in (label, center))
    return same_label & ~same_center, ~same_label & same_center


def test_the_interval_of_a_tiny_cohort_is_that_of_loops():
    generator, size = np.random.default_rng(3), 6
    so, os = generator.poisson([[[0.3]], [[3.0]]], (2, size, size)).astype(float)
    for counts in (so, os):
        np.fill_diagonal(counts, 0)
    both, ratio = so + os, so.sum() / (so + os).sum()
    h = (so - ratio * both) / both.sum()
    h = h + h.T
    kept = [np.delete(np.arange(size), p) for p in range(size)]
    without = [so[np.ix_(k, k)].sum() / both[np.ix_(k, k)].sum() for k in kept]
    first = (size - 1) / size * sum((r - ratio) ** 2 for r in without)
    above = sum(h[p, q] ** 2 for p in range(size) for q in range(p))
    second = (size - 1) / (size - 3) * (above - (h.sum(axis=1) ** 2).sum() / (size - 2))
    error = np.sqrt(max(first - max(second, 0.0), first / 2)) / (ratio * (1 - ratio))
    reach = np.exp(student.ppf(0.975, size - 1) * error)
    odds = so.sum() / os.sum()
    weights = bootstrap_weights(size, 200, 0)
    found = pair_ratio(so, both, resampled_total(both, weights), weights, 1, 1.0)
    expected = [each / (1 + each) for each in (odds / reach, odds * reach)]
    assert (found.ci_low, found.ci_high) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.95])
def test_near_an_end_it_holds_the_share_and_errs_on_both_sides(share):
    """Pairs of patients that are alike in few of their neighbours, by effects of both patients."""
    (so, os), weights, found = pairs_that_count(), bootstrap_weights(24, 100, 0), []
    generator = np.random.default_rng(0)
    # Twice as many neighbours as pairs that share the center, in any design so much of each kind.
    rates = 2.0 * np.stack([share * so / so.sum(), (1 - share) * os / os.sum()]) * os.sum()
    for _ in range(300):
        effect = np.exp(generator.normal(-0.04, 0.28, (2, 24)))
        hits, missed = generator.poisson(rates * effect[:, :, None] * effect[:, None, :])
        both = (hits + missed).astype(float)
        drawn = resampled_total(both, weights)
        found.append(pair_ratio(hits.astype(float), both, drawn, weights, 1, 1.0))
    low, high = np.array([(each.ci_low, each.ci_high) for each in found]).T
    truth = np.mean([each.value for each in found])
    assert 0.91 <= np.mean((low <= truth) & (truth <= high)) <= 0.99
    assert max(np.mean(low > truth), np.mean(high < truth)) <= 0.07


def test_without_any_neighbour_of_its_kind_the_cohort_is_not_certain():
    so, os = pairs_that_count()
    weights, both = bootstrap_weights(24, 100, 0), os.astype(float)
    drawn = resampled_total(both, weights)
    exact = binomtest(0, 24).proportion_ci()
    nothing = pair_ratio(0.0 * so, both, drawn, weights, 1, 1.0)
    assert (nothing.ci_low, nothing.ci_high) == pytest.approx((exact.low, exact.high))
    both[:12] = 0  # half of the patients meet nobody who counts
    half = pair_ratio(0.0 * so, both, resampled_total(both, weights), weights, 1, 1.0)
    assert half.ci_high == pytest.approx(binomtest(0, 12).proportion_ci().high)
