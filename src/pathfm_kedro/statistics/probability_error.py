"""How far stated probabilities are from what happens: calibration error, Brier score, temperature.

References
----------
Naeini, Cooper & Hauskrecht 2015 and Guo et al. 2017 (arXiv 1706.04599) for the expected calibration
error and temperature scaling; Brier 1950; for what a calibrated model would show Bröcker & Smith 2007,
"Increasing the reliability of reliability diagrams".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Temperatures that are looked at. Where no row is wrong any smaller one is better still.
TEMPERATURES = np.geomspace(0.05, 20.0, 61)


def log_probabilities(logits: Floats, temperature: Floats | float = 1.0) -> Floats:
    """Logarithm of softmax(logits / T).

    Parameters
    ----------
    logits
        [n, classes]; minus infinity for a class that cannot be.
    temperature
        One, or [n].

    Examples
    --------
    >>> np.exp(log_probabilities(np.array([[0.0, np.log(3.0)]]))).round(2).tolist()
    [[0.25, 0.75]]
    """
    scaled = logits / np.reshape(temperature, (-1, 1))
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def stated_and_true(probabilities: Floats, targets: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """What is stated of each row, and whether it is so.

    Of two classes: the probability of the second, and whether it is the second. Of more: the
    probability of the most probable class, and whether it is that.

    Parameters
    ----------
    probabilities
        [n, classes].
    targets
        [n].

    Examples
    --------
    >>> stated, true = stated_and_true(np.array([[0.2, 0.5, 0.3]]), np.array([2]))
    >>> stated.tolist(), true.tolist()
    ([0.5], [False])
    """
    about = _stated_class(probabilities)
    return np.take_along_axis(probabilities, about[:, None], axis=1)[:, 0], about == targets


def _stated_class(probabilities: Floats) -> Ints:
    if probabilities.shape[1] == 2:
        return np.ones(len(probabilities), np.int64)
    return np.asarray(probabilities.argmax(axis=1))


def fixed_width_bins(stated: Floats, n_bins: int) -> Ints:
    """Bin of each probability, all equally wide; a bound belongs to the bin below it.

    Examples
    --------
    >>> fixed_width_bins(np.array([0.0, 0.5, 0.51, 1.0]), 2).tolist()
    [0, 0, 1, 1]
    """
    return np.asarray(np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], stated))


def equal_mass_bins(stated: Floats, n_bins: int) -> Ints:
    """Bin of each probability, bounded by quantiles; equal probabilities stand in one bin.

    Examples
    --------
    >>> equal_mass_bins(np.array([0.9, 0.91, 0.92, 0.93]), 2).tolist()
    [0, 0, 1, 1]
    """
    shares = np.linspace(0, 1, n_bins + 1)[1:-1]
    bounds = np.quantile(stated, shares)
    return np.asarray(np.searchsorted(bounds, stated))


def sums_in_bins(gaps: Floats, bins: Ints, n_bins: int) -> Floats:
    """[n, n_bins] each row's gap in the column of its bin, to be summed."""
    out = np.zeros((len(gaps), n_bins))
    out[np.arange(len(gaps)), bins] = gaps
    return out


def expected_calibration_error(gaps: Floats, n: Floats | float) -> Floats:
    """Σ_bins |Σ_rows of the bin (true − stated)| / n.

    The share of a bin's rows times the difference of its mean probability and the share that is true.

    Parameters
    ----------
    gaps
        [..., bins] sums of true minus stated.
    n
        [...] rows.

    Examples
    --------
    >>> float(expected_calibration_error(np.array([1.0, -2.0]), 10.0))
    0.3
    """
    return np.asarray(np.abs(gaps).sum(axis=-1) / n)


def calibrated_errors(
    probabilities: Floats, bins: Ints, n_bins: int, groups: Ints, samples: int, seed: int
) -> Floats:
    """[samples] calibration error of the same probabilities if they were true.

    Labels are sampled from the probabilities, with one random number for all rows of a group: each row
    is as probable as stated, and rows of a group go together as far as they can, as a patient's do.

    Parameters
    ----------
    probabilities
        [n, classes].
    bins
        [n] of what is stated.
    n_bins, samples, seed
        How many bins, how many samples, and their seed.
    groups
        [n] codes.
    """
    about = _stated_class(probabilities)[:, None]
    upper = np.take_along_axis(probabilities.cumsum(axis=1), about, axis=1)[:, 0]
    stated = np.take_along_axis(probabilities, about, axis=1)[:, 0]
    of_bin = (bins[:, None] == np.arange(n_bins)).astype(np.float64)
    u = np.random.default_rng(seed).random((samples, int(groups.max()) + 1))[:, groups]
    true = (u > upper - stated) & (u <= upper)
    return expected_calibration_error((true - stated) @ of_bin, float(len(stated)))


def brier_scores(probabilities: Floats, targets: Ints) -> Floats:
    """Brier score of each row.

    Of two classes (p − y)² for the second, 0 … 1; of more the sum over all classes, 0 … 2, as Brier
    defined it.

    Examples
    --------
    >>> brier_scores(np.array([[0.2, 0.8]]), np.array([1])).round(2).tolist()
    [0.04]
    >>> brier_scores(np.array([[0.2, 0.8, 0.0]]), np.array([1])).round(2).tolist()
    [0.08]
    """
    squares = (probabilities - (targets[:, None] == np.arange(probabilities.shape[1]))) ** 2
    return np.asarray(squares[:, 1] if probabilities.shape[1] == 2 else squares.sum(axis=1))


def base_rate_brier(shares: Floats) -> float:
    """Brier score of stating the shares of the classes whatever the row.

    Examples
    --------
    >>> base_rate_brier(np.array([0.5, 0.5])), base_rate_brier(np.full(4, 0.25))
    (0.25, 0.75)
    """
    return float(shares.prod() if len(shares) == 2 else 1 - (shares**2).sum())


def losses_at_temperatures(logits: Floats, targets: Ints) -> Floats:
    """[n, temperatures] minus log probability of the target at each of :data:`TEMPERATURES`."""
    rows = np.arange(len(logits))
    return np.stack([-log_probabilities(logits, t)[rows, targets] for t in TEMPERATURES], axis=1)


def best_temperature(losses: NDArray[np.floating[Any]]) -> Floats:
    """Temperature of the least loss, by a parabola through the least and its neighbours in log T.

    Parameters
    ----------
    losses
        [..., temperatures] sums over rows of :func:`losses_at_temperatures`.

    Returns
    -------
    ndarray
        [...]; an end of the range where the loss falls towards it.

    Examples
    --------
    >>> float(best_temperature(np.log(TEMPERATURES / 2) ** 2).round(6))
    2.0
    """
    logs = np.log(TEMPERATURES)
    least = losses.argmin(axis=-1)
    middle = np.clip(least, 1, len(logs) - 2)
    before, at, after = (
        np.take_along_axis(losses, (middle + step)[..., None], axis=-1)[..., 0]
        for step in (-1, 0, 1)
    )
    curvature = before - 2 * at + after
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.where(curvature > 0, (before - after) / (2 * curvature), 0.0)
    shift = np.where(least == middle, np.clip(shift, -1, 1), 0.0)
    return np.asarray(np.exp(logs[least] + shift * (logs[1] - logs[0])))
