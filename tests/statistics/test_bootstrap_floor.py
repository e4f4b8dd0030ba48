"""Intervals of few patients are never narrower than the exact binomial ones."""

import pytest
from scipy.stats import binomtest

from pathfm_kedro.statistics.bootstrap import at_least_binomial, exact_without_spread
from pathfm_kedro.statistics.measurements import Estimate


@pytest.mark.parametrize("lost", [0, 1, 2, 10, 24])
def test_intervals_are_at_least_those_of_scipys_binomial_test(lost):
    exact = binomtest(lost, 24).proportion_ci()
    found = at_least_binomial(Estimate(lost / 24, lost / 24, lost / 24, 24, 24))
    assert (found.ci_low, found.ci_high) == pytest.approx((exact.low, exact.high))


def test_wide_intervals_stay():
    wide = Estimate(0.5, 0.1, 0.9, 10, 10)
    assert at_least_binomial(wide) == wide
    one = at_least_binomial(Estimate(1.0, 1.0, 1.0, 24, 24))
    assert one.ci_low == pytest.approx(0.025 ** (1 / 24))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_only_an_interval_without_width_becomes_the_exact_one(share):
    exact = binomtest(round(24 * share), 24).proportion_ci()
    found = exact_without_spread(Estimate(share, share, share, 96, 24))
    assert (found.ci_low, found.ci_high) == pytest.approx((exact.low, exact.high))
    narrow = Estimate(share, share * 0.999, share * 0.999 + 0.001, 96, 24)
    assert exact_without_spread(narrow) == narrow
