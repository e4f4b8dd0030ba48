"""Median and lower tail of values whose owners (patients) are resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Resampled values in memory at once: 8 MB as 32-bit integers.
_IN_MEMORY = 2**21

#: What is computed of a set of values: their median, mean, lower tail's mean, share ≤ 0.
SUMMARIES = ("median", "mean", "tail", "below")


@dataclass(frozen=True)
class Distribution:
    """What the resampled values look like; every array is [draws], NaN where no value is resampled.

    Attributes
    ----------
    median, mean
        Of all values.
    tail
        Mean of the values that do not exceed the lower quantile: the lower tail's mean.
    below
        Share of values ≤ 0.
    shares
        [draws, n_cells] share of each cell among the tail's values.
    """

    median: Floats
    mean: Floats
    tail: Floats
    below: Floats
    shares: Floats


def resampled_distribution(
    values: Floats,
    owners: Ints,
    weights: Floats,
    share: float,
    cells: Ints | None = None,
    n_cells: int = 1,
) -> Distribution:
    """Median, mean, lower tail and share below zero, each value standing as often as its owner.

    With every weight 1 these are ``np.median``, ``np.mean`` and the mean of the values up to
    ``np.percentile`` (linear).

    Parameters
    ----------
    values
        [n] numbers.
    owners
        [n] owner of each value, 0 … P − 1.
    weights
        [draws, P] how often each owner is resampled: whole numbers.
    share
        The tail's share, such as 0.1.
    cells, n_cells
        [n] cell of each value, 0 … n_cells − 1, for `shares`; one cell if not given.

    Examples
    --------
    >>> found = resampled_distribution(np.arange(-4.0, 6.0), np.arange(10), np.ones((1, 10)), 0.2)
    >>> float(found.median[0]), float(found.tail[0]), float(found.below[0])
    (0.5, -3.5, 0.5)
    """
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    kinds = np.zeros(len(values), dtype=np.int64) if cells is None else cells[order]
    member = np.eye(n_cells)[kinds]
    step = max(_IN_MEMORY // max(len(values), 1), 1)
    parts = [
        _of_draws(values, owners, weights[start : start + step], share, member)
        for start in range(0, len(weights), step)
    ]
    return Distribution(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("median", "mean", "tail", "below", "shares")
        )
    )


def summaries(values: Floats, share: float) -> dict[str, Floats]:
    """Median, mean, lower tail's mean and share ≤ 0 along the last axis, without NaN.

    Parameters
    ----------
    values
        [..., n].
    share
        The tail's share, such as 0.1.

    Examples
    --------
    >>> found = summaries(np.array([-1.0, 0.5, np.nan, 1.0]), 0.1)
    >>> float(found["median"]), float(found["tail"])
    (0.5, -1.0)
    """
    values = np.sort(values, axis=-1)
    size = np.isfinite(values).sum(axis=-1, keepdims=True)
    some = np.maximum(size, 1)

    def at(rank: Ints) -> Floats:
        return np.take_along_axis(values, rank, axis=-1)

    place = (some - 1) * share
    low = np.floor(place).astype(np.int64)
    bound = at(low) + (at(np.minimum(low + 1, some - 1)) - at(low)) * (place - low)
    inside = values <= bound
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "median": 0.5 * (at((some - 1) // 2) + at(some // 2))[..., 0],
            "mean": np.nansum(values, axis=-1) / size[..., 0],
            "tail": np.where(inside, values, 0).sum(axis=-1) / inside.sum(axis=-1),
            "below": (values <= 0).sum(axis=-1) / size[..., 0],
        }


def _of_draws(
    values: Floats, owners: Ints, weights: Floats, share: float, member: Floats
) -> Distribution:
    counts = np.take(weights.astype(np.int32), owners, axis=1)
    reached = np.cumsum(counts, axis=1, dtype=np.int32)
    total = reached[:, -1].astype(np.int64) if len(values) else np.zeros(len(weights), np.int64)
    some = np.maximum(total, 1)
    median = 0.5 * (
        _at_rank(values, reached, (some - 1) // 2) + _at_rank(values, reached, some // 2)
    )
    place = (some - 1) * share
    low = np.floor(place).astype(np.int64)
    first, second = (
        _at_rank(values, reached, rank) for rank in (low, np.minimum(low + 1, some - 1))
    )
    bound = first + (second - first) * (place - low)
    ends = np.searchsorted(values, bound, side="right")
    longest = int(ends.max(initial=0))
    inside = counts[:, :longest] * (np.arange(longest) < ends[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        size = inside.sum(axis=1)[:, None]
        shares = (inside @ member[:longest]) / size
        tail = (inside @ values[:longest]) / size[:, 0]
        owned = np.bincount(owners, values, minlength=weights.shape[1])
        mean = weights @ owned / total
        zero = int(np.searchsorted(values, 0.0, side="right"))
        below = (reached[:, zero - 1] if zero else np.zeros(len(weights))) / total
    absent = total == 0
    median[absent] = tail[absent] = np.nan
    return Distribution(median, mean, tail, below, shares)


def _at_rank(values: Floats, reached: NDArray[np.int32], rank: Ints) -> Floats:
    """[draws] the value at each draw's rank, counted from 0."""
    if not len(values):
        return np.full(len(reached), np.nan)
    # One look-up a draw: a search in all draws at once would copy the whole matrix.
    place = [int(row.searchsorted(r, side="right")) for row, r in zip(reached, rank, strict=True)]
    return values[np.minimum(place, len(values) - 1)]
