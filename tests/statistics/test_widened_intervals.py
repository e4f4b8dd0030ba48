"""What widens an interval: probes that share patients, and chance from few permutations."""

import numpy as np
import pytest

from pathfm_kedro.statistics.bootstrap import odds_interval
from pathfm_kedro.statistics.cross_validation import (
    CROSS_VALIDATION_EFFECT,
    widened_odds_interval,
)
from pathfm_kedro.statistics.figures import Value
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.permutation import with_error_of_mean


def test_cross_validation_widens_it_and_a_least_error_does():
    draws = 0.9 + 0.02 * np.random.default_rng(0).standard_normal(500)
    variance = CROSS_VALIDATION_EFFECT * draws.var()
    assert widened_odds_interval(0.9, draws, 24, 1.0) == odds_interval(0.9, variance, 24, 1.0)
    least = widened_odds_interval(0.9, draws, 24, 1.0, least=0.05)
    assert least == pytest.approx(odds_interval(0.9, 0.05**2, 24, 1.0))
    undefined = np.where(np.arange(500) < 40, np.nan, draws)
    assert widened_odds_interval(0.9, undefined, 24, 1.0) == (None, None)


def test_few_permutations_leave_an_error_of_their_mean():
    figure = Value(Estimate(0.5, 0.4, 0.7, 9, 9))
    permuted = np.random.default_rng(0).normal(0.1, 0.05, 20)
    error = 1.959964 * permuted.std() / np.sqrt(20)
    found = with_error_of_mean(figure, permuted).estimate
    assert found.ci_low == pytest.approx(0.5 - np.sqrt(0.1**2 + error**2))
    assert found.ci_high == pytest.approx(0.5 + np.sqrt(0.2**2 + error**2))
    assert with_error_of_mean(figure, np.full(20, 0.1)).estimate == figure.estimate
