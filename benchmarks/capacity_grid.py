"""The published grid of free vectors: critical n of 4 to 45 dimensions, with a fitted cubic.

    python benchmarks/capacity_grid.py --largest 12 --seeds 3 --workers 2
    python benchmarks/capacity_grid.py --largest 45 --device cuda

The whole grid (``--largest 45``) takes days on two cores: n documents have n(n-1)/2 queries. With
``--device`` the same optimisation runs by PyTorch on an accelerator, from the same first vectors. Lines
are written as they are found, so that a killed run keeps what it has.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np

from pathfm_kedro.pipelines.retrieve.capacity import K
from pathfm_kedro.statistics import free_embedding


def fit_by_torch(
    n: int, d: int, k: int, how: free_embedding.Optimiser, seed: int, device: str = "cpu"
) -> free_embedding.Fit:
    """:func:`~pathfm_kedro.statistics.free_embedding.fit` by autograd and PyTorch's own Adam."""
    import torch

    subsets = free_embedding.all_subsets(n, k)
    relevant = torch.from_numpy(free_embedding.relevance(subsets, n)).to(device)
    q = len(subsets)
    drawn = np.random.default_rng(seed).standard_normal((q + n, d)).astype(np.float32)
    vectors = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).to(device)
    vectors.requires_grad_(True)
    adam = torch.optim.Adam([vectors], lr=how.learning_rate)
    best, lowest, since, step = (-1.0, drawn), np.inf, 0, 0
    while step < how.steps and since < how.patience and best[0] < 1:
        step += 1
        logits = vectors[:q] @ vectors[q:].T / how.temperature
        loss = -torch.log_softmax(logits, dim=1)[relevant].mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            vectors /= vectors.norm(dim=1, keepdim=True)
            if step % how.evaluate_every == 0 or step == how.steps:
                kept = vectors.detach().cpu().numpy().copy()
                accuracy = free_embedding.top_k_accuracy(
                    (vectors[:q] @ vectors[q:].T).cpu().numpy(), relevant.cpu().numpy(), k
                )
                best = max(best, (accuracy, kept), key=lambda pair: pair[0])
        value = loss.item()
        since = 0 if value < lowest - how.min_delta else since + 1
        lowest = value if since == 0 else lowest
    return free_embedding.Fit(best[0], step, best[1][:q], best[1][q:])


def search(d: int, seed: int, steps: int, device: str) -> tuple[int, int, int, float]:
    """Dimension, seed, critical n and seconds."""
    how, start = free_embedding.Optimiser(steps=steps), time.perf_counter()

    def solves(n: int) -> bool:
        if device:
            return fit_by_torch(n, d, K, how, seed, device).solved
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
    parser.add_argument("--device", default="", help="of PyTorch, such as cuda; NumPy if not given")
    asked = parser.parse_args()
    found: list[tuple[int, int]] = []
    # An accelerator cannot be used in a process that was forked.
    with ProcessPoolExecutor(asked.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(search, d, seed, asked.steps, asked.device)
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
