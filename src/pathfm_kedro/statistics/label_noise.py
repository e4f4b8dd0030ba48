"""Labels of which a known share is wrong."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Kind = Literal["symmetric", "center"]


def flipped(
    labels: Ints, n_labels: int, centers: NDArray[Any], kind: Kind, rate: float, seed: int
) -> Ints:
    """Labels with the share `rate` of them replaced by a wrong one.

    ``symmetric``: ``round(rate · n)`` rows, drawn from all alike, each with a wrong label drawn from
    all others alike. ``center``: centers are put into a drawn order and the c-th of C has the share
    ``rate · c · n / Σ c n_c`` of its rows wrong (at most all), and each center mistakes a label for
    one drawn other label, always the same: who labels there errs systematically.

    The same seed draws the same order of rows: what is wrong at a rate stays wrong at a higher one.

    Parameters
    ----------
    labels
        [n] codes 0 … n_labels − 1.
    n_labels
        At least two.
    centers
        [n] names; only ``center`` needs them.
    kind, rate, seed
        Which noise, how much of it, and its draw.

    Raises
    ------
    ValueError
        If there is no other label.

    Examples
    --------
    >>> given = flipped(np.zeros(10, np.int64), 3, np.zeros(10), "symmetric", 0.3, seed=0)
    >>> int((given != 0).sum())
    3
    """
    if n_labels < 2:
        raise ValueError(f"{n_labels} label(s): a label can be wrong only where there is another")
    rng = np.random.default_rng([seed, ("symmetric", "center").index(kind)])
    turn = rng.permutation(len(labels))
    if kind == "symmetric":
        wrong = np.zeros(len(labels), np.bool_)
        wrong[turn[: round(rate * len(labels))]] = True
        other = (labels + rng.integers(1, n_labels, len(labels))) % n_labels
        return np.where(wrong, other, labels)
    given = labels.copy()
    names, of_row = np.unique(centers, return_inverse=True)
    weight = 1 + rng.permutation(len(names))
    mistaken = rng.integers(1, n_labels, (len(names), n_labels))
    total = float(weight[of_row].sum())
    for center, times in enumerate(weight):
        own = turn[of_row[turn] == center]
        share = min(rate * times * len(labels) / total, 1.0)
        rows = own[: round(share * len(own))]
        given[rows] = (labels[rows] + mistaken[center, labels[rows]]) % n_labels
    return given
