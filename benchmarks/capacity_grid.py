"""The published grid of free vectors: critical n of 4 to 45 dimensions, with a fitted cubic.

    python benchmarks/capacity_grid.py --largest 12 --seeds 3 --workers 2

The whole grid (``--largest 45``) takes days on two cores: n documents have n(n-1)/2 queries.
Lines are written as they are found, so that a killed run keeps what it has.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np

from pathfm_kedro.pipelines.retrieve.capacity import K
from pathfm_kedro.statistics import free_embedding


def search(d: int, seed: int, steps: int) -> tuple[int, int, int, float]:
    """Dimension, seed, critical n and seconds."""
    how, start = free_embedding.Optimiser(steps=steps), time.perf_counter()

    def solves(n: int) -> bool:
        return free_embedding.fit(n, d, K, how, seed).solved

    return d, seed, free_embedding.critical_n(solves, d + 1), time.perf_counter() - start


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smallest", type=int, default=4)
    parser.add_argument("--largest", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100_000, help="as published")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    found: list[tuple[int, int]] = []
    with ProcessPoolExecutor(asked.workers) as pool:
        jobs = [
            pool.submit(search, d, seed, asked.steps)
            for d in range(asked.smallest, asked.largest + 1)
            for seed in range(asked.seeds)
        ]
        for job in as_completed(jobs):
            d, seed, n, seconds = job.result()
            found.append((d, n))
            published = free_embedding.published_critical_n(d)
            print(
                f"d={d} seed={seed}: {n} (published {published:.1f}), {seconds:.0f} s", flush=True
            )
    if asked.largest - asked.smallest >= 4:
        d, n = np.array(found).T
        fitted = np.polynomial.Polynomial.fit(d, n, 3).convert().coef
        print("cubic:", " + ".join(f"{c:.4f} d^{i}" for i, c in enumerate(fitted)))


if __name__ == "__main__":
    main()
