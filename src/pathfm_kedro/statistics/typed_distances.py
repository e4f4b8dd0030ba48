"""Distances from sampled tiles to the nearest tiles of every unit: margins had labels been others.

What a margin would be under permuted labels, or without a patient, needs the neighbours that would
then be met. For a sample of queries the m nearest tiles of *every* unit are kept; the m nearest of a
type under any labels, and without any one patient, are then found among these without a new search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.balanced_designs import rank_within

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Distances in memory at once: 32 MB.
_BLOCK = 2**23
#: Integers below this are exact in float32.
_EXACT_FLOAT32 = 2**24
#: Under permuted labels the m tiles of a type are sought among this many times m · classes entries;
#: e⁻⁸ of the queries find fewer and are left out of that permutation.
_DEPTH = 8


@dataclass(frozen=True)
class Entries:
    """The nearest tiles of all units for each sampled query, nearest first.

    Attributes
    ----------
    distance
        [q, t] in its own unit; infinite where there is none.
    unit
        [q, t] unit of each entry.
    """

    distance: Floats32
    unit: Ints

    def where(self, kept: Bools, depth: int) -> Entries:
        """The first entries of each query among those kept; the others become infinite."""
        distance = np.where(kept, self.distance, np.float32(np.inf))
        depth = min(depth, distance.shape[1])
        order = np.argsort(distance, axis=1, kind="stable")[:, :depth]
        return Entries(
            np.take_along_axis(distance, order, axis=1),
            np.take_along_axis(self.unit, order, axis=1),
        )


def sampled_queries(units: Ints, most: int, seed: int) -> Ints:
    """At most `most` rows, the units taking turns; sorted.

    Examples
    --------
    >>> sampled_queries(np.array([0, 0, 0, 1]), 2, seed=0).tolist()[1]
    3
    """
    random_key = np.random.default_rng(seed).random(len(units))
    turn = rank_within(units[None], random_key)
    return cast(Ints, np.sort(np.lexsort((random_key, turn))[:most]))


def nearest_of_units(
    vectors: Floats32, groups: Ints, units: Ints, queries: Ints, m: int, distance: str
) -> Entries:
    """The m nearest tiles of every unit, for each query, outside the query's group.

    Distances are computed on vectors rounded to whole numbers whose products float32 sums exactly,
    so that they do not depend on the BLAS. The rounding error of a distance is about 10⁻⁴ of the
    vectors' spread: enough for nulls and for the spread of a figure, not for the figure.

    Parameters
    ----------
    vectors
        [n, d].
    groups, units
        [n] codes; units are 0 … U − 1.
    queries
        [q] rows that ask.
    m
        Tiles of each unit.
    distance
        ``cosine``: 1 − cosine; ``euclidean``.

    Returns
    -------
    Entries
        [q, U · m], sorted by distance.
    """
    whole, scale = _whole_numbers(vectors, distance)
    squares = np.einsum("ij,ij->i", whole, whole)
    table = _padded(units, m)
    n_units, width = table.shape
    step = max(_BLOCK // max(table.size, len(vectors)), 1)
    # The last column stands for the gaps of the table.
    row = np.full((min(step, len(queries)), len(vectors) + 1), np.inf, dtype=np.float32)
    # Whole numbers below 2²⁴, so that the type loses nothing before the sum of three of them.
    nearest = np.empty((len(queries), n_units * m), dtype=np.float32)
    for start in range(0, len(queries), step):
        asking = queries[start : start + step]
        far = row[: len(asking)]
        products = np.matmul(whole[asking], whole.T)
        products *= -2
        products += squares
        products += squares[asking, None]
        np.multiply(products, scale, out=far[:, :-1])
        far[:, :-1][groups[asking, None] == groups] = np.inf
        of_unit = far[:, table.ravel()].reshape(len(asking), n_units, width)
        if width > m:
            of_unit = np.partition(of_unit, m - 1, axis=2)[:, :, :m]
        nearest[start : start + step] = of_unit.reshape(len(asking), -1)
    if distance == "euclidean":
        nearest = np.sqrt(nearest)
    order = np.argsort(nearest, axis=1, kind="stable")
    return Entries(np.take_along_axis(nearest, order, axis=1), order // m)


def _whole_numbers(vectors: Floats32, distance: str) -> tuple[Floats32, np.float32]:
    """Centred vectors as whole numbers, and what turns their squared distance into a distance."""
    rows = vectors.copy()
    if distance == "cosine":
        rows /= _lengths(rows)[:, None].astype(np.float32)
    rows -= rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    reach = float(_lengths(rows).max(initial=0.0)) or 1.0
    size = float(np.floor(np.sqrt(_EXACT_FLOAT32) - 1 - 0.5 * np.sqrt(rows.shape[1])))
    rows *= np.float32(size / reach)
    scale = (reach / size) ** 2
    return np.rint(rows, out=rows), np.float32(0.5 * scale if distance == "cosine" else scale)


def _lengths(rows: Floats32) -> Floats:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)))


def _padded(units: Ints, m: int) -> Ints:
    """[U, t] rows of each unit, filled up with n, t being the largest unit's size or m."""
    order = np.argsort(units, kind="stable")
    counts = np.bincount(units)
    table = np.full((len(counts), max(int(counts.max()), m)), len(units), dtype=np.int64)
    place = np.arange(len(units)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[units[order], place] = order
    return table


def first_mean(distance: NDArray[np.floating], kept: Bools, m: int) -> Floats:
    """[...] mean of the first m kept distances along the last axis; infinite where there are fewer.

    Examples
    --------
    >>> first_mean(np.array([[1.0, 2.0, 4.0]]), np.array([[True, False, True]]), 2).tolist()
    [2.5]
    """
    kept = kept & np.isfinite(distance)
    rank = np.cumsum(kept, axis=-1, dtype=np.int16)
    chosen = kept & (rank <= m)
    total = np.where(chosen, distance, 0).sum(axis=-1, dtype=np.float64)
    return np.where(rank[..., -1] >= m, total / m, np.inf)


def margin_of(near: Floats, far: Floats) -> Floats:
    """(far − near) / (far + near); NaN where either is infinite or both are zero.

    Parameters
    ----------
    near
        Mean distance to tiles of the query's label at other centers.
    far
        Mean distance to tiles of other labels at the query's center.

    Examples
    --------
    >>> margin_of(np.array([1.0, 0.0, 1.0]), np.array([3.0, 0.0, np.inf])).tolist()
    [0.5, nan, nan]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isfinite(near) & np.isfinite(far), (far - near) / (far + near), np.nan)


@dataclass(frozen=True)
class Sample:
    """Sampled queries with the entries from their own, from other and from all centers.

    Attributes
    ----------
    unit
        [q] unit of each query.
    near_center, far_center, any_center
        Entries from the query's center, from the others, and from all.
    """

    unit: Ints
    near_center: Entries
    far_center: Entries
    any_center: Entries


def split_by_center(entries: Entries, unit: Ints, label: Ints, center: Ints, m: int) -> Sample:
    """Entries of each center, and of all, as deep as permuted tags need them.

    Parameters
    ----------
    entries, unit
        Of the sampled queries.
    label, center
        [U] codes of each unit.
    m
        Tiles of each type whose distances are averaged.
    """
    same = center[entries.unit] == center[unit][:, None]
    n_labels, n_centers = len(np.unique(label)), len(np.unique(center))
    depth = _DEPTH * m * n_labels
    # One type in this many, at best, where label and center are permuted together.
    rarest = -(-n_labels * n_centers // max(min(n_labels, n_centers) - 1, 1))
    every = slice(None, _DEPTH * m * rarest)
    return Sample(
        unit,
        entries.where(same, depth),
        entries.where(~same, depth),
        Entries(entries.distance[:, every], entries.unit[:, every]),
    )


def margins_under(sample: Sample, labels: Ints, m: int) -> Floats:
    """[q] margins if the units carried these labels.

    Parameters
    ----------
    labels
        [U] label of each unit.
    m
        Tiles of each type whose distances are averaged.
    """
    own = labels[sample.unit][:, None]
    matching = first_mean(sample.far_center.distance, labels[sample.far_center.unit] == own, m)
    clashing = first_mean(sample.near_center.distance, labels[sample.near_center.unit] != own, m)
    return margin_of(matching, clashing)


def margins_under_both(sample: Sample, labels: Ints, centers: Ints, m: int) -> Floats:
    """[q] margins if the units carried these labels and centers, permuted together.

    Parameters
    ----------
    labels, centers
        [U] of each unit.
    m
        Tiles of each type whose distances are averaged.
    """
    entries = sample.any_center
    same_label, same_center = (
        tags[entries.unit] == tags[sample.unit][:, None] for tags in (labels, centers)
    )
    matching = first_mean(entries.distance, same_label & ~same_center, m)
    clashing = first_mean(entries.distance, ~same_label & same_center, m)
    return margin_of(matching, clashing)


def margins_without(
    sample: Sample, labels: Ints, patients: Ints, m: int
) -> tuple[Floats, Ints, Floats]:
    """Margins, and what they become without each patient whose tiles they rest on.

    Parameters
    ----------
    labels, patients
        [U] label and patient of each unit.
    m
        Tiles of each type whose distances are averaged.

    Returns
    -------
    tuple
        [q] margins; [q, 2m] patients among the m nearest of either type (−1 where there are
        fewer); [q, 2m] margins without each of them.
    """
    own = labels[sample.unit][:, None]
    # A patient has at most m entries in a unit, mostly one unit of a type: 3m leave m without it.
    matching = sample.far_center.where(labels[sample.far_center.unit] == own, 3 * m)
    clashing = sample.near_center.where(labels[sample.near_center.unit] != own, 3 * m)
    near, far = patients[matching.unit], patients[clashing.unit]
    met = np.concatenate([near[:, :m], far[:, :m]], axis=1)
    there = np.isfinite(
        np.concatenate([matching.distance[:, :m], clashing.distance[:, :m]], axis=1)
    )
    left = [
        first_mean(entries.distance[:, None, :], who[:, None, :] != met[:, :, None], m)
        for entries, who in ((matching, near), (clashing, far))
    ]
    everyone = [
        first_mean(entries.distance, np.ones(entries.distance.shape, dtype=bool), m)
        for entries in (matching, clashing)
    ]
    return margin_of(*everyone), np.where(there, met, -1), margin_of(*left)
