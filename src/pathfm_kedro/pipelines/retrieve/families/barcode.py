"""Yottixel's barcodes: a bit for each rise or fall along a patch's vector.

``bit_j = [x_{j+1} − x_j < 0]``, compared by Hamming distance (the share of bits that differ) and the
median of minima. A vector of d numbers is d − 1 bits, packed into bytes: 1/32 of float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.families.vectors import (
    BLOCK_ROWS,
    blocks,
    median_by_slide,
    smallest_by_slide,
)
from pathfm_kedro.statistics.barcodes import barcodes
from pathfm_kedro.statistics.mosaic import Mosaic

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int32]
#: Some of the columns of codes, one array beside the other.
Parts = list[Bytes]

#: Counts that are held at once by a thread: 1 MiB, so that they are added up within its cache.
BLOCK_ENTRIES = 1 << 18
#: Bytes of codes that FAISS counts without a loop over words, which takes half the time.
_WIDTHS = (64, 32, 16, 8)


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
    import faiss

    result = np.empty((len(queries.starts), len(archive.starts)))
    ends, found_ends = queries.starts + queries.sizes, archive.starts + archive.sizes
    asking, asked = _in_parts(left), _in_parts(right)
    # Bits are counted outside Python's lock.
    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as pool:
        for some in blocks(queries.sizes, BLOCK_ROWS):
            rows = _rows(asking, queries.starts[some.start], ends[some.stop - 1])
            nearest = np.empty((len(archive.starts), len(rows[0])), np.int32)

            def look(found: slice, rows: Parts = rows, nearest: Counts = nearest) -> None:
                own = _rows(asked, archive.starts[found.start], found_ends[found.stop - 1])
                smallest_by_slide(_counted(own, rows), archive.sizes[found], nearest[found])

            list(pool.map(look, blocks(archive.sizes, max(1, BLOCK_ENTRIES // len(rows[0])))))
            result[some] = median_by_slide(nearest.astype(np.float64), queries.sizes[some]).T
    return result


def hamming(left: Bytes, right: Bytes) -> Counts:
    """Bits that differ between all rows: [n, b], [m, b] → [n, m].

    Examples
    --------
    >>> hamming(np.array([[3]], np.uint8), np.array([[0], [1]], np.uint8)).tolist()
    [[2, 1]]
    """
    return _counted(_in_parts(left), _in_parts(right))


def _in_parts(codes: Bytes) -> Parts:
    """Columns in widths that FAISS has a loop of its own for, filled up with zeros: [n, ≤ 64] each."""
    width = max(1, -(-codes.shape[1] // _WIDTHS[-1])) * _WIDTHS[-1]
    padded = np.pad(codes, ((0, 0), (0, width - codes.shape[1])))
    parts, start = [], 0
    while start < width:
        part = next(size for size in _WIDTHS if size <= width - start)
        parts.append(np.ascontiguousarray(padded[:, start : start + part]))
        start += part
    return parts


def _rows(parts: Parts, start: int, stop: int) -> Parts:
    return [part[start:stop] for part in parts]


def _counted(left: Parts, right: Parts) -> Counts:
    import faiss

    result = np.empty((len(left[0]), len(right[0])), np.int32)
    out = result
    for a, b in zip(left, right, strict=True):
        faiss.hammings(  # type: ignore[attr-defined]
            *map(faiss.swig_ptr, (a, b)), len(a), len(b), a.shape[1], faiss.swig_ptr(out)
        )
        if out is not result:
            result += out
        elif len(left) > 1:
            out = np.empty_like(result)
    return result
