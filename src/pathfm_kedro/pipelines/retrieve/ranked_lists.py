"""Figures of the whole list of matches, where votes look at labels alone.

- ``map_at_5``: mean over queries of ``AP@5 = Σ over ranks r ≤ 5 of P(r) · [match r has the label] /
  min(5, R)``, with P(r) the share of the first r matches that have it and R the slides that could be
  found and have it. Null: permuted labels.
- ``same_center``: share of queries whose five nearest all come from the query's center. Null: centers
  permuted among patients. Where it lies above its null the search follows stain and scanner.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import (
    exact_without_spread,
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.permutation import permuted_within
from pathfm_kedro.statistics.votes import LabelledQueries

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Matches that count, as in the published figures.
TOP = 5


def mean_average_precision(
    queries: LabelledQueries,
    matches: Ints,
    counted: Bools,
    labels: Ints,
    relevant: Ints,
    weights: Floats,
) -> Value:
    """Mean of AP@5 over the counted queries, with its interval and null.

    Parameters
    ----------
    queries
        Patient of each slide.
    matches
        [n, k] row of each match, nearest first; −1 where fewer were found.
    counted
        [n] queries that count.
    labels
        [1 + n_permutations, n] label codes: the true ones, then permuted ones.
    relevant
        The same shape, from :func:`findable`.
    weights
        [draws, n_patients] of the bootstrap.

    Raises
    ------
    Undefined
        If no query is counted.
    """
    if not counted.any():
        raise Undefined("no query is counted: no label has enough patients")
    precision = average_precision(matches, labels, relevant)
    null = precision[1:, counted].mean(axis=1)
    estimate = _by_patient(precision[0], counted, queries, weights)
    return Value(estimate, Null(*percentile_interval(null)))


def average_precision(matches: Ints, labels: Ints, relevant: Ints) -> Floats:
    """AP@5 of each query under each row of labels.

    Parameters
    ----------
    matches
        [n, k] rows, nearest first; −1 for none.
    labels
        [m, n] label codes.
    relevant
        [m, n] slides that a query may find and that have its label.

    Returns
    -------
    ndarray
        [m, n]; 0 where nothing could be found.

    Examples
    --------
    >>> matches = np.array([[1, 2], [0, 2], [0, 1]])
    >>> average_precision(matches, np.array([[0, 1, 0]]), np.array([[1, 0, 1]])).tolist()
    [[0.5, 0.0, 1.0]]
    """
    near = matches[:, :TOP]
    hits = (labels[:, near] == labels[:, :, None]) & (near >= 0)
    places = np.arange(1, near.shape[1] + 1)
    gained = (np.cumsum(hits, axis=2) / places * hits).sum(axis=2)
    could = np.minimum(relevant, TOP)
    return cast(Floats, np.divide(gained, could, out=np.zeros(gained.shape), where=could > 0))


def same_center(
    queries: LabelledQueries, center: Ints, matches: Ints, weights: Floats, shape: tuple[int, int]
) -> Value:
    """Share of queries whose five nearest all come from the query's center.

    Parameters
    ----------
    queries
        Patient and pool of each slide.
    center
        [n] codes.
    matches
        [n, k] rows, nearest first; −1 for none.
    weights
        [draws, n_patients] of the bootstrap.
    shape
        Permutations of the null, and their seed.

    Raises
    ------
    Undefined
        If there is one center, or no query found five slides.
    """
    near = matches[:, :TOP]
    whole = (near >= 0).all(axis=1) & (near.shape[1] == TOP)
    if len(np.unique(center)) < 2:
        raise Undefined("the cohort has one center: every match comes from it")
    if not whole.any():
        raise Undefined(f"no query found {TOP} slides: add patients, or raise k")
    units, unit = np.unique(
        np.column_stack([queries.pool, queries.patient, center]), axis=0, return_inverse=True
    )
    moved = permuted_within(units[:, 2], units[:, 0], *shape)[unit.reshape(-1)].T
    together = [
        (centers[near] == centers[:, None]).all(axis=1) & whole for centers in (center, *moved)
    ]
    null = np.array([row[whole].mean() for row in together[1:]])
    estimate = _by_patient(together[0].astype(np.float64), whole, queries, weights)
    return Value(estimate, Null(*percentile_interval(null)))


def findable(allowed: Bools, labels: Ints, n_labels: int) -> Ints:
    """Slides that a query may find and that have its label, under each row of labels.

    Parameters
    ----------
    allowed
        [n, n] which slides each query may find.
    labels
        [m, n] label codes.
    n_labels
        Number of labels.

    Returns
    -------
    ndarray
        [m, n].

    Examples
    --------
    >>> findable(~np.eye(3, dtype=bool), np.array([[0, 0, 1]]), 2).tolist()
    [[1, 1, 0]]
    """
    reach = allowed.astype(np.float32)  # counts below 2^24 are exact
    return np.stack([_own_counts(reach, row, n_labels) for row in labels])


def _own_counts(reach: NDArray[np.float32], labels: Ints, n_labels: int) -> Ints:
    counts = reach @ np.eye(n_labels, dtype=np.float32)[labels]
    return cast(Ints, counts[np.arange(len(labels)), labels].astype(np.int64))


def _by_patient(values: Floats, keep: Bools, queries: LabelledQueries, weights: Floats) -> Estimate:
    sums = sum_by_patient(
        np.column_stack([values * keep, keep]), queries.patient, queries.n_patients
    )
    return exact_without_spread(ratio_estimate(sums[:, 0], sums[:, 1], weights))
