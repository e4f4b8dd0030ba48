"""How fast slides are compared: against loops over pairs, FAISS per pair, and the product alone.

    python benchmarks/bench_retrieval.py [--slides 1000] [--patches 50] [--seconds 60]

A synthetic cohort of so many slides; queries are taken one block after the other until the time is
up, so that the figures say what a whole cohort would take. Reported per family: pairs of slides per
second, the share of the speed of the matrix product that it needs, times the loop, seconds per query,
hours for all queries of the cohort, and the largest memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import peak_mb
from pathfm_kedro.pipelines.retrieve.families.barcode import barcode, hamming
from pathfm_kedro.pipelines.retrieve.families.maxsim import maxsim
from pathfm_kedro.pipelines.retrieve.families.median_min import median_min
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
from pathfm_kedro.statistics.barcodes import barcodes
from pathfm_kedro.statistics.mosaic import Mosaic

#: Queries of one block: 20 slides of 50 patches are about the 1,024 rows of a product.
BLOCK = 20
#: Queries that the loops are timed on; they are too slow for more.
LOOPED = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--patches", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    cohort = synthetic(given.slides, given.patches, given.dimension)
    print(f"{given.slides} slides x {given.patches} patches x {given.dimension} numbers")
    for precision in ("float64", "float32"):
        p = FamilySettings(precision=precision)
        ceiling = product_speed(cohort, precision)
        loop = numpy_loop(cohort, precision)
        faiss = faiss_per_pair(cohort)
        print(
            f"{precision}: product alone {ceiling:,.0f} pairs/s, NumPy loop {loop:,.0f} pairs/s, "
            f"FAISS per pair (float32) {faiss:,.0f} pairs/s"
        )
        for family in (median_min, maxsim):
            speed = blocks_speed(cohort, partial(family, p=p), given.seconds)
            # One product serves both directions of maxsim.
            report(family.__name__, speed, given.slides, speed / ceiling, speed / loop)
    loop = barcode_loop(cohort)
    read = memory_speed()
    p = FamilySettings()
    speed = blocks_speed(cohort, partial(barcode, p=p), given.seconds)
    words = hamming_speed(cohort)
    print(
        f"barcode: NumPy loop {loop:,.0f} pairs/s; Hamming distances alone {words:,.0f} pairs/s; "
        f"memory is read at {read:.1f} GB/s"
    )
    report("barcode", speed, given.slides, speed / words, speed / loop)
    peak = peak_mb() / 1024
    print(f"largest memory {peak:.2f} GiB")


def synthetic(slides: int, patches: int, dimension: int) -> Mosaic:
    """Normal vectors in float32."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((slides * patches, dimension), np.float32)
    named = pl.DataFrame({"slide_id": [f"s{i}" for i in range(slides)]})
    return Mosaic(named, vectors, np.arange(slides) * patches)


def blocks_speed(
    cohort: Mosaic, compare: Callable[[Mosaic, Mosaic], object], seconds: float
) -> float:
    """Pairs of slides per second, over as many blocks of queries as fit into the time."""
    n, done, start = len(cohort.starts), 0, time.perf_counter()
    for first in range(0, n, BLOCK):
        rows = np.arange(first, min(first + BLOCK, n))
        compare(cohort.select(rows), cohort)
        done += len(rows)
        if time.perf_counter() - start > seconds:
            break
    return done * n / (time.perf_counter() - start)


def product_speed(cohort: Mosaic, precision: str) -> float:
    """Pairs of slides per second of the matrix product alone, in blocks as the families have them."""
    rows = int(cohort.sizes[0]) * BLOCK
    left = cohort.vectors[:rows].astype(precision)
    right = cohort.vectors[: 4 * rows].astype(precision)
    left @ right.T  # warm
    start, times = time.perf_counter(), 0
    while time.perf_counter() - start < 5:
        left @ right.T
        times += 1
    return times * BLOCK * 4 * BLOCK / (time.perf_counter() - start)


def numpy_loop(cohort: Mosaic, precision: str) -> float:
    """Pairs per second of median-min, one pair of slides after the other."""
    size = int(cohort.sizes[0])
    unit = cohort.vectors[: 400 * size].astype(precision)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    slides = unit.reshape(-1, size, unit.shape[1])
    start = time.perf_counter()
    for query in slides[:LOOPED]:
        for other in slides:
            np.median((1 - query @ other.T).min(axis=1))
    return LOOPED * len(slides) / (time.perf_counter() - start)


def faiss_per_pair(cohort: Mosaic) -> float:
    """Pairs per second with an exact FAISS index for each slide."""
    import faiss

    size = int(cohort.sizes[0])
    unit = cohort.vectors[: 400 * size].copy()
    faiss.normalize_L2(unit)
    slides = unit.reshape(-1, size, unit.shape[1])
    indexes = []
    for slide in slides:
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(slide)
        indexes.append(index)
    start = time.perf_counter()
    for query in slides[:LOOPED]:
        for index in indexes:
            np.median(1 - index.search(query, 1)[0])
    return LOOPED * len(slides) / (time.perf_counter() - start)


def barcode_loop(cohort: Mosaic) -> float:
    """Pairs per second of barcodes, one pair of slides after the other."""
    size = int(cohort.sizes[0])
    codes = barcodes(cohort.vectors[: 100 * size])
    slides = codes.reshape(-1, size, codes.shape[1])
    start = time.perf_counter()
    for query in slides[:LOOPED]:
        for other in slides:
            differing = np.bitwise_count(query[:, None] ^ other[None]).sum(axis=2)
            np.median(differing.min(axis=1))
    return LOOPED * len(slides) / (time.perf_counter() - start)


def hamming_speed(cohort: Mosaic) -> float:
    """Pairs of slides per second of the Hamming distances alone."""
    rows = int(cohort.sizes[0]) * BLOCK
    codes = barcodes(cohort.vectors[:rows])
    start, times = time.perf_counter(), 0
    while time.perf_counter() - start < 3:
        hamming(codes, codes)
        times += 1
    return times * BLOCK * BLOCK / (time.perf_counter() - start)


def memory_speed() -> float:
    """GB per second at which memory is read."""
    block = np.ones(1 << 26, np.int64)
    start = time.perf_counter()
    for _ in range(5):
        block.sum()
    return 5 * block.nbytes / (time.perf_counter() - start) / 1e9


def report(name: str, speed: float, slides: int, share: float, times: float) -> None:
    """Print one family's figures."""
    print(
        f"  {name}: {speed:,.0f} pairs/s, {share:.0%} of what it needs alone, "
        f"{times:.1f} times the loop, "
        f"{slides / speed:.3g} s per query, {slides**2 / speed / 3600:.2g} h for all queries"
    )


if __name__ == "__main__":
    main()
