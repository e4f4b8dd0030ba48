"""Training and test sets of two labels × two centers in which label and center go together as asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.balanced_designs import rank_within

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def split_patients(
    patients: Ints, labels: Ints, centers: Ints, generator: np.random.Generator
) -> NDArray[np.bool_] | None:
    """[n] whether a tile may train: half of each cell's patients, so that no patient is on both sides.

    Parameters
    ----------
    patients, labels, centers
        [n] codes; labels and centers 0 or 1.
    generator
        Source of the order of patients.

    Returns
    -------
    ndarray or None
        None where patients with several cells leave a cell empty on one side.
    """
    cells = 2 * labels + centers
    first = np.unique(patients, return_index=True)[1]
    turn = rank_within(cells[first][None], generator.random(len(first)))
    # Of an odd number the larger part trains.
    side = (turn % 2 == 0)[patients]
    filled = np.bincount(4 * side + cells, minlength=8)
    return side if filled.all() else None


def training_rows(
    trains: NDArray[np.bool_],
    labels: Ints,
    centers: Ints,
    random_key: Floats,
    v: float,
    diagonal: int,
) -> Ints:
    """Training tiles in which Cramér's V between label and center is v (but for rounding).

    The number of tiles is the same for every v: half of it is the smaller of the diagonal's two cells,
    of either way of tying labels to centers.

    Parameters
    ----------
    trains
        [n] whether a tile may train.
    labels, centers
        [n] 0 or 1.
    random_key
        [n] random numbers: the smaller are taken first, so that the sets of different v overlap.
    v
        0 … 1.
    diagonal
        0 ties label 0 to center 0, 1 to center 1.

    Returns
    -------
    ndarray
        Rows, sorted.
    """
    cells = 2 * labels + centers
    half = int(np.bincount(cells[trains], minlength=4).min())
    tied = np.array([0, 3]) if diagonal == 0 else np.array([1, 2])
    more = round(half * (1 + v) / 2)
    wanted = np.full(4, half - more)
    wanted[tied] = more
    rows = np.flatnonzero(trains)
    turn = rank_within(cells[rows][None], random_key[rows])
    return np.asarray(rows[turn < wanted[cells[rows]]])


def equal_cells(rows: Ints, labels: Ints, centers: Ints, random_key: Floats) -> Ints:
    """As many of the rows from each cell."""
    cells = 2 * labels[rows] + centers[rows]
    return np.asarray(rows[rank_within(cells[None], random_key[rows]) < np.bincount(cells).min()])
