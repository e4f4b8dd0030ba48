"""Yottixel's barcodes: a bit for each rise or fall along a patch's vector.

``bit_j = [x_{j+1} − x_j < 0]``, compared by Hamming distance (the share of bits that differ) and the
median of minima. A vector of d numbers is d − 1 bits, packed into bytes: 1/32 of float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import (
    BLOCK_ENTRIES,
    BLOCK_ROWS,
    blocks,
    median_by_slide,
)
from pathfm_kedro.statistics.barcodes import barcodes
from pathfm_kedro.statistics.mosaic import Mosaic

Bytes = NDArray[np.uint8]


def barcode(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Median over the query's barcodes of the smallest Hamming distance: [n_queries, n_archive].

    References
    ----------
    Kalra et al., Yottixel, Medical Image Analysis 65 (2020); Tizhoosh et al., MinMax barcodes (2016).
    """
    left, right = barcodes(queries.vectors), barcodes(archive.vectors)
    n_bits = max(1, queries.vectors.shape[1] - 1)
    distances: Floats = hamming_median_min(queries, archive, left, right) / n_bits
    return distances


def hamming_median_min(queries: Mosaic, archive: Mosaic, left: Bytes, right: Bytes) -> Floats:
    """Median of minima of the number of bits that differ, blocked.

    Parameters
    ----------
    queries, archive
        Which patches belong to which slide.
    left, right
        [patches, bytes] of both.
    """
    result = np.empty((len(queries.starts), len(archive.starts)))
    ends, found_ends = queries.starts + queries.sizes, archive.starts + archive.sizes
    for some in blocks(queries.sizes, BLOCK_ROWS):
        rows = left[queries.starts[some.start] : ends[some.stop - 1]]
        nearest = np.empty((len(archive.starts), len(rows)), np.int32)
        for found in blocks(archive.sizes, max(1, BLOCK_ENTRIES // len(rows))):
            first = archive.starts[found.start]
            differing = hamming(right[first : found_ends[found.stop - 1]], rows)
            nearest[found] = np.minimum.reduceat(differing, archive.starts[found] - first, axis=0)
        result[some] = median_by_slide(nearest.astype(np.float64), queries.sizes[some]).T
    return result


def hamming(left: Bytes, right: Bytes) -> NDArray[np.int32]:
    """Bits that differ between all rows: [n, b], [m, b] → [n, m].

    Examples
    --------
    >>> hamming(np.array([[3]], np.uint8), np.array([[0], [1]], np.uint8)).tolist()
    [[2, 1]]
    """
    import faiss

    width = -left.shape[1] % 8  # whole words of 64 bits are counted at once
    a, b = (np.ascontiguousarray(np.pad(codes, ((0, 0), (0, width)))) for codes in (left, right))
    out = np.empty((len(a), len(b)), np.int32)
    faiss.hammings(  # type: ignore[attr-defined]
        faiss.swig_ptr(a), faiss.swig_ptr(b), len(a), len(b), a.shape[1], faiss.swig_ptr(out)
    )
    return out
