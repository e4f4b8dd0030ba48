"""Distances between sets of vectors as blocked matrix products.

They are float64 unless ``precision`` says otherwise, since a tie that rounding decides would make a
ranking depend on threads and block sizes. Only blocks are: the vectors themselves stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.settings import (
    Distance,
    Floats,
    Ints,
    Precision,
    Vectors,
)
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.mutual_knn import unit

#: Entries of one block of patch-to-patch products: 16 MiB of float64, so that the minimum is taken
#: while they are near the processor.
BLOCK_ENTRIES = 1 << 21
#: Patches of the queries in one block: enough for the matrix product to run at full speed.
BLOCK_ROWS = 1024


def between_rows(queries: Floats, archive: Floats, distance: Distance) -> Floats:
    """Distances between one vector per slide and one per slide: [n, d], [m, d] → [n, m]."""
    left, right, shift = as_products(queries, archive, distance)
    return as_distance(left @ right.T + shift[:, None], distance)


def nearest_patches(
    queries: Mosaic, archive: Mosaic, distance: Distance, precision: Precision = "float64"
) -> Iterator[tuple[slice, Floats]]:
    """Distance of each patch of the queries to the nearest patch of each slide of the archive.

    Yields
    ------
    tuple
        Consecutive slides of the queries, and [n_archive, patches of these] distances. Euclidean
        distances are squared.
    """
    for some, rows in _blocks_of_queries(queries):
        nearest = np.empty((len(archive.starts), len(rows)), precision)
        for found, values in _between_patches(rows, archive, distance, precision):
            smallest_by_slide(values, archive.sizes[found], nearest[found])
        yield some, _from_smallest(nearest, distance)


def smallest_by_slide(values: Vectors, sizes: Ints, out: Vectors) -> None:
    """Minima over the patches of each slide: [Σ sizes, m] → [n_slides, m], written to `out`.

    ``np.minimum.reduceat`` along the first axis does the same, ten to thirty times slower.
    """
    ends = np.cumsum(sizes)
    for row, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        np.min(values[end - size : end], axis=0, out=out[row])


def _blocks_of_queries(queries: Mosaic) -> Iterator[tuple[slice, Vectors]]:
    """Consecutive slides, and their patches."""
    ends = queries.starts + queries.sizes
    for some in blocks(queries.sizes, BLOCK_ROWS):
        yield some, queries.vectors[queries.starts[some.start] : ends[some.stop - 1]]


def _between_patches(
    rows: Vectors, archive: Mosaic, distance: Distance, precision: Precision
) -> Iterator[tuple[slice, Vectors]]:
    """Consecutive slides of the archive and [their patches, rows] distances as far as they vary.

    Their minima are those of the distances, which :func:`_from_smallest` makes of them. The product is
    divided by the lengths of the archive's vectors: to divide these took a sixth of the time.
    """
    # Far from the origin the squares of Euclidean distances would cancel.
    origin = archive.vectors.mean(axis=0, dtype=np.float64) if distance == "euclidean" else None
    left, shift = _asking(rows, origin, precision)
    ends = archive.starts + archive.sizes
    for found in blocks(archive.sizes, max(1, BLOCK_ENTRIES // len(rows))):
        right = archive.vectors[archive.starts[found.start] : ends[found.stop - 1]]
        if origin is None:
            right = right.astype(precision, copy=False)
            values = right @ left.T
            norms = np.sqrt(np.einsum("ij,ij->i", right, right))[:, None]
            np.divide(values, norms, out=values, where=norms > 0)
        else:
            centred = right - origin
            squares = np.einsum("ij,ij->i", centred, centred)
            values = np.column_stack([centred, squares]).astype(precision) @ left.T
            values += shift
        yield found, values


def _asking(rows: Vectors, origin: Floats | None, precision: Precision) -> tuple[Vectors, Vectors]:
    """Left and shift with squared Euclidean distance of rows i, j = left_i · right_j + shift_i.

    Without an origin they are −unit vectors, and nothing.
    """
    if origin is None:
        return -unit(rows).astype(precision), np.zeros(len(rows), precision)
    centred = rows - origin
    left = np.column_stack([-2 * centred, np.ones(len(centred))])
    return left.astype(precision), np.einsum("ij,ij->i", centred, centred).astype(precision)


def _from_smallest(smallest: Vectors, distance: Distance) -> Vectors:
    """Distances from the minima of :func:`_between_patches`, in place."""
    if distance == "cosine":
        smallest += 1
    return np.maximum(smallest, 0, out=smallest)


def set_to_set(
    queries: Mosaic,
    archive: Mosaic,
    distance: Distance,
    reduce: Callable[[Floats, Ints], Floats],
    precision: Precision = "float64",
) -> Floats:
    """Reduce, for each pair of slides, the distances of the query's patches to their nearest ones.

    Parameters
    ----------
    queries, archive
        Slides that search, and slides that are searched.
    distance
        Between patches; Euclidean ones are squared.
    reduce
        ``([m, patches], [n] sizes) -> [m, n]``: over the patches of each slide.
    precision
        Of the products.

    Returns
    -------
    ndarray
        [n_queries, n_archive].
    """
    result = np.empty((len(queries.starts), len(archive.starts)))
    for some, nearest in nearest_patches(queries, archive, distance, precision):
        result[some] = reduce(nearest, queries.sizes[some]).T
    return result


def set_to_set_both_ways(
    queries: Mosaic,
    archive: Mosaic,
    distance: Distance,
    reduce: Callable[[Floats, Ints], Floats],
    precision: Precision = "float64",
) -> Floats:
    """Mean of :func:`set_to_set` in both directions, from one product between patches.

    Parameters and result are those of :func:`set_to_set`.
    """
    if queries is archive:
        directed = set_to_set(queries, archive, distance, reduce, precision)
        return (directed + directed.T) / 2
    there = np.empty((len(queries.starts), len(archive.starts)))
    back = np.empty_like(there)
    for some, rows in _blocks_of_queries(queries):
        nearest = np.empty((len(archive.starts), len(rows)), precision)
        starts = queries.starts[some] - queries.starts[some.start]
        for found, values in _between_patches(rows, archive, distance, precision):
            smallest_by_slide(values, archive.sizes[found], nearest[found])
            asked = _from_smallest(np.minimum.reduceat(values, starts, axis=1), distance)
            back[some, found] = reduce(asked.T, archive.sizes[found])
        there[some] = reduce(_from_smallest(nearest, distance), queries.sizes[some]).T
    there += back
    there /= 2
    return there


def median_by_slide(values: Floats, sizes: Ints) -> Floats:
    """Medians over the patches of each slide: [m, Σ sizes] → [m, n_slides].

    Examples
    --------
    >>> median_by_slide(np.array([[3.0, 1.0, 2.0, 5.0]]), np.array([3, 1])).tolist()
    [[2.0, 5.0]]
    """
    slide = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(values.shape[1]) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded = np.full((len(values), len(sizes), int(sizes.max())), np.inf, values.dtype)
    padded[:, slide, place] = values
    middle = np.unique([(sizes - 1) // 2, sizes // 2])
    padded.partition(middle, axis=2)
    every = np.arange(len(sizes))
    low, high = padded[:, every, (sizes - 1) // 2], padded[:, every, sizes // 2]
    middle_value: Floats = (low + high) / 2
    return middle_value


def mean_by_slide(values: Floats, sizes: Ints) -> Floats:
    """Means over the patches of each slide: [m, Σ sizes] → [m, n_slides]."""
    sums: Floats = np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=1)
    return sums / sizes


def as_products(
    queries: Vectors, archive: Vectors, distance: Distance
) -> tuple[Floats, Floats, Floats]:
    """Left, right, shift with distance (euclidean: squared) of rows i, j = left·right + shift_i.

    In this form the minimum over j needs the matrix product alone.
    """
    if distance == "cosine":
        same = queries is archive
        right = unit(archive)
        return -(right if same else unit(queries)), right, np.ones(len(queries))
    origin = archive.mean(axis=0, dtype=np.float64)  # far from it the squares would cancel
    left, right = queries - origin, archive - origin
    squares = np.einsum("ij,ij->i", right, right)
    shift = np.einsum("ij,ij->i", left, left)
    return (
        np.column_stack([-2 * left, np.ones(len(left))]),
        np.column_stack([right, squares]),
        shift,
    )


def as_distance(values: Floats, distance: Distance) -> Floats:
    """Distances from what the products give: roots of Euclidean ones, none below zero."""
    positive = np.maximum(values, 0)
    return cast(Floats, np.sqrt(positive) if distance == "euclidean" else positive)


def blocks(sizes: Ints, limit: int) -> Iterator[slice]:
    """Consecutive slides of at most `limit` rows together, at least one slide each."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(start, stop)
        start = stop
