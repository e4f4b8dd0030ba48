"""Calibration error, Brier score and temperature against scikit-learn, brute force and known models."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.statistics.auc import resampled_macro_auc
from pathfm_kedro.statistics.probability_error import (
    base_rate_brier,
    best_temperature,
    brier_scores,
    calibrated_errors,
    equal_mass_bins,
    expected_calibration_error,
    fixed_width_bins,
    log_probabilities,
    losses_at_temperatures,
    stated_and_true,
    sums_in_bins,
)

N_BINS = 15


def ece(probabilities, targets, binned=fixed_width_bins):
    stated, true = stated_and_true(probabilities, targets)
    gaps = sums_in_bins(true - stated, binned(stated, N_BINS), N_BINS)
    return float(expected_calibration_error(gaps.sum(axis=0), len(targets)))


def logistic_model(n, n_classes, seed=0, spread=2.0):
    """Logits of a model, and labels drawn from what it states: calibrated by construction."""
    generator = np.random.default_rng(seed)
    logits = spread * generator.normal(size=(n, n_classes))
    cumulated = np.exp(log_probabilities(logits)).cumsum(axis=1)
    return logits, (generator.random((n, 1)) > cumulated[:, :-1]).sum(axis=1)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_calibration_error_equals_a_loop_over_bins(n_classes):
    logits, targets = logistic_model(300, n_classes)
    probabilities = np.exp(2.5 * logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    stated = probabilities[:, 1] if n_classes == 2 else probabilities.max(axis=1)
    true = targets == (1 if n_classes == 2 else probabilities.argmax(axis=1))
    expected = 0.0
    for b in range(N_BINS):
        inside = [i for i, p in enumerate(stated) if b / N_BINS < p <= (b + 1) / N_BINS]
        if inside:
            gap = abs(np.mean(true[inside]) - np.mean(stated[inside]))
            expected += len(inside) / len(stated) * gap
    assert ece(probabilities, targets) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("binned", "strategy"), [(fixed_width_bins, "uniform"), (equal_mass_bins, "quantile")]
)
def test_bins_equal_those_of_scikit_learn(binned, strategy):
    from sklearn.calibration import calibration_curve

    logits, targets = logistic_model(402, 2)
    stated, true = stated_and_true(np.exp(log_probabilities(logits)), targets)
    bins = binned(stated, N_BINS)
    shares, means = calibration_curve(true, stated, n_bins=N_BINS, strategy=strategy)
    own = [(true[bins == b].mean(), stated[bins == b].mean()) for b in np.unique(bins)]
    assert np.array(own) == pytest.approx(np.stack([shares, means], axis=1))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_brier_equals_scikit_learn(n_classes):
    from sklearn.metrics import brier_score_loss

    logits, targets = logistic_model(200, n_classes)
    probabilities = np.exp(log_probabilities(logits))
    stated = probabilities[:, 1] if n_classes == 2 else probabilities
    expected = brier_score_loss(targets, stated, scale_by_half=n_classes == 2)
    assert brier_scores(probabilities, targets).mean() == pytest.approx(expected)
    shares = np.bincount(targets) / len(targets)
    constant = brier_scores(np.tile(shares, (len(targets), 1)), targets).mean()
    assert base_rate_brier(shares) == pytest.approx(constant)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered_and_mends_a_known_logistic_model(n_classes, temperature):
    logits, targets = logistic_model(20_000, n_classes)
    stated = logits * temperature
    found = float(best_temperature(losses_at_temperatures(stated, targets).sum(axis=0)))
    assert found == pytest.approx(temperature, rel=0.05)
    # Of a calibrated model the error is 0 but for chance: about √(p(1 − p) / n of the bin) in each bin.
    assert ece(np.exp(log_probabilities(stated, found)), targets) < 0.015
    if temperature != 1:
        assert ece(np.exp(log_probabilities(stated)), targets) > 0.04


def test_closed_form_of_a_model_that_is_too_sure():
    # Stated 0.9, true of 0.6: an error of 0.3, and the temperature that turns 9 : 1 into 6 : 4.
    targets = np.repeat([1, 0], [600, 400])
    logits = np.tile([0.0, np.log(9.0)], (1000, 1))
    assert ece(np.exp(log_probabilities(logits)), targets) == pytest.approx(0.3)
    found = float(best_temperature(losses_at_temperatures(logits, targets).sum(axis=0)))
    assert found == pytest.approx(np.log(9) / np.log(1.5), rel=1e-2)


def test_errors_if_the_probabilities_were_true_cover_those_of_a_calibrated_model():
    inside, high_of = [], {}
    for seed in range(60):
        generator = np.random.default_rng(seed)
        logits = np.repeat(2 * generator.normal(size=(40, 3)), 4, axis=0)
        groups = np.repeat(np.arange(40), 4)
        probabilities = np.exp(log_probabilities(logits))
        u = generator.random(40)[groups, None]
        targets = (u > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
        bins = fixed_width_bins(probabilities.max(axis=1), N_BINS)
        for name, clusters in (("patients", groups), ("tiles", np.arange(160))):
            draws = calibrated_errors(probabilities, bins, N_BINS, clusters, 200, seed)
            low, high_of[name] = np.percentile(draws, [2.5, 97.5])
            if name == "patients":
                inside.append(low <= ece(probabilities, targets) <= high_of[name])
        # Tiles of a patient that share their label leave more to chance than as many patients.
        assert high_of["patients"] > high_of["tiles"]
    assert np.mean(inside) >= 0.85


def test_macro_auc_equals_scikit_learn_and_repeated_patients():
    from sklearn.metrics import roc_auc_score

    logits, targets = logistic_model(60, 3)
    probabilities = np.exp(log_probabilities(logits))
    patients, one = np.arange(60), np.zeros(60, np.int64)
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 3).astype(float)
    weights[0] = 1
    found = resampled_macro_auc(probabilities, targets, patients, one, weights)
    for value, times in zip(found, weights.astype(int), strict=True):
        rows = np.repeat(patients, times)
        expected = roc_auc_score(
            targets[rows], probabilities[rows], multi_class="ovr", average="macro"
        )
        assert value == pytest.approx(expected)
