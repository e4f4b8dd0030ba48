"""Distances from sampled tiles to the nearest tiles of every unit: margins had labels been others.

What a margin would be under permuted labels, or without a patient, needs the neighbours that would
then be met. For a sample of queries the m nearest tiles of *every* unit are kept; the m nearest of a
type under any labels, and without any one patient, are then found among these without a new search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.balanced_designs import rank_within
from pathfm_kedro.statistics.blocked_search import Metric
from pathfm_kedro.statistics.equal_rows import count_before
from pathfm_kedro.statistics.neighbours import nearest_of_types

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
#: Whether units met are kept, by permutation, unit met and unit of the query.
_Kept = Callable[[Ints, Ints, Ints], Bools]

#: Distances in memory at once: 32 MB.
_BLOCK = 2**23
#: Integers below this are exact in float32.
_EXACT_FLOAT32 = 2**24
#: Under permuted labels the m tiles of a type are sought among this many times m · classes entries;
#: e⁻⁸ of the queries find fewer and are left out of that permutation.
_DEPTH = 8
#: In this part of these entries nine of ten queries find them already.
_NEARLY_ALL = 4
#: Entries compared at once under permuted labels: they stay in the processor's cache.
_PERMUTED_ENTRIES = 2**18


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
    table[units[order], count_before(units[order])] = order
    return table


def first_mean(distance: NDArray[np.floating], kept: Bools, m: int) -> Floats:
    """[...] mean of the first m kept distances along the last axis; infinite where there are fewer.

    Parameters
    ----------
    distance
        [..., t] nearest first, infinite where there is none.
    kept
        [..., t], of the shape that both have together.
    m
        How many are averaged.

    Examples
    --------
    >>> first_mean(np.array([[1.0, 2.0, 4.0]]), np.array([[True, False, True]]), 2).tolist()
    [2.5]
    """
    width = kept.shape[-1]
    found = np.flatnonzero(kept)
    # Where each row's kept entries begin and end among all that are kept.
    ends = np.searchsorted(found, np.arange(1, kept.size // width + 1) * width)
    starts = np.concatenate([[0], ends[:-1]])
    there = np.flatnonzero(starts + m <= ends)
    place = found[starts[there, None] + np.arange(m)]
    if distance.shape != kept.shape[kept.ndim - distance.ndim :]:
        distance = np.broadcast_to(distance, kept.shape)
    mean = np.full(len(ends), np.inf)
    mean[there] = distance.reshape(-1)[place % distance.size].sum(axis=1, dtype=np.float64) / m
    return mean.reshape(kept.shape[:-1])


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


def tile_margins(
    vectors: NDArray[np.floating],
    groups: NDArray[np.generic],
    labels: Ints,
    centers: Ints,
    m: int,
    distance: Metric = "cosine",
) -> Floats:
    """[n] margin of every tile, exact: CRoMa is its median.

    Parameters
    ----------
    vectors
        [n, d].
    groups
        [n] patient of each tile: none of its own tiles is a neighbour.
    labels, centers
        [n] codes.
    m
        Tiles of each type whose distances are averaged; a tile that has fewer has no margin (NaN).
    distance
        ``cosine``: 1 − cosine; ``euclidean``.

    References
    ----------
    Grisi et al. 2026 (package croma).

    Examples
    --------
    >>> rows = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]])
    >>> margins = tile_margins(rows, np.arange(4), np.array([0, 0, 1, 0]), np.array([0, 1, 0, 0]), 1)
    >>> margins.round(2).tolist()
    [0.59, nan, nan, -0.06]
    """
    found = nearest_of_types(vectors, groups, labels, centers, m, distance)
    near, far = (each.distance(distance).mean(axis=1) for each in found)
    return margin_of(near, far)


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
    """[permutations, q] margins if the units carried these labels.

    Parameters
    ----------
    labels
        [U, permutations] label of each unit.
    m
        Tiles of each type whose distances are averaged.
    """
    of_labels = _Tags.of(labels)
    matching = _first_means(sample.far_center, sample.unit, labels.shape[1], of_labels.same, m)
    clashing = _first_means(sample.near_center, sample.unit, labels.shape[1], of_labels.other, m)
    return margin_of(matching, clashing)


def margins_under_both(sample: Sample, labels: Ints, centers: Ints, m: int) -> Floats:
    """[permutations, q] margins if the units carried these labels and centers, permuted together.

    Parameters
    ----------
    labels, centers
        [U, permutations] of each unit.
    m
        Tiles of each type whose distances are averaged.
    """
    of_labels, of_centers = _Tags.of(labels), _Tags.of(centers)

    def matches(at: Ints, met: Ints, own: Ints) -> Bools:
        return of_labels.same(at, met, own) & of_centers.other(at, met, own)

    def clashes(at: Ints, met: Ints, own: Ints) -> Bools:
        return of_labels.other(at, met, own) & of_centers.same(at, met, own)

    matching, clashing = (
        _first_means(sample.any_center, sample.unit, labels.shape[1], kept, m)
        for kept in (matches, clashes)
    )
    return margin_of(matching, clashing)


@dataclass(frozen=True)
class _Tags:
    """[permutations, U] codes of the units, few bytes each."""

    codes: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, tags: Ints) -> _Tags:
        few = np.min_scalar_type(int(tags.max(initial=0)))
        return cls(np.ascontiguousarray(tags.T.astype(few)))

    def same(self, at: Ints, met: Ints, own: Ints) -> Bools:
        """Whether the units met carry the tag of their query's unit in the permutations `at`."""
        return np.asarray(self.codes[at, met] == self.codes[at, own])

    def other(self, at: Ints, met: Ints, own: Ints) -> Bools:
        """Whether they carry another."""
        return ~self.same(at, met, own)


def _first_means(entries: Entries, unit: Ints, n_permutations: int, kept: _Kept, m: int) -> Floats:
    """[permutations, q] mean of the first m kept entries of each query.

    Nearly all find them among the first few entries; the others are looked through whole.
    """
    few = max(entries.unit.shape[1] // _NEARLY_ALL, 1)
    near, met = entries.distance[:, :few], entries.unit[:, :few]
    step = max(_PERMUTED_ENTRIES // met.size, 1)
    means = np.empty((n_permutations, len(unit)))
    for start in range(0, n_permutations, step):
        at = np.arange(start, min(start + step, n_permutations))
        mean = first_mean(near, kept(at[:, None, None], met, unit[:, None]), m)
        draw, query = np.nonzero(np.isinf(mean))
        whole = kept(at[draw, None], entries.unit[query], unit[query, None])
        mean[draw, query] = first_mean(entries.distance[query], whole, m)
        means[at] = mean
    return means


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
