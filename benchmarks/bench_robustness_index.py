"""Time the robustness index beside one exact FAISS search and beside croma, in one run.

    python benchmarks/bench_robustness_index.py --n 10000 --d 768 --patients 500

Every figure is the best of `--repeat` runs; memory is what the process grew beyond the arrays.
FAISS is timed with the BLAS it ships, whose kernels may not know this processor. Set
OPENBLAS_CORETYPE (for example SkylakeX or Haswell) to choose them, and compare again.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.robustness_index import (
    choose_k,
    count_neighbours,
    robustness_index,
)

PARAMETERS = {
    "k_grid": [1, 3, 5, 7, 9, 11, 21, 31],
    "designs": ["all"],
    "k_design": "all",
    "metric": "cosine",
    "exclude": "patient",
    "draws": 5,
    "max_tiles": 1_000_000,
    "max_tiles_per_pair": 2000,
    "max_pairs": 100,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 1,
    "bootstrap_draws": 2000,
    "n_permutations": 0,
    "seed": 0,
    "thresholds": {},
}


class _InMemory:
    """Embeddings of one encoder, one slide a patient."""

    def __init__(self, shards: dict[str, NDArray[np.float32]]) -> None:
        self._shards = shards
        self.slide_ids = tuple(sorted(shards))

    def stack(self, slide_ids: tuple[str, ...], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of the given slides."""
        return np.concatenate([self._shards[slide] for slide in slide_ids])


def best(work: Callable[[], object], repeat: int) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cohort(n: int, d: int, patients: int) -> tuple[pl.DataFrame, pl.DataFrame, _InMemory]:
    """2 labels × 2 centers in equal cells, with effects of label, center and patient."""
    generator = np.random.default_rng(0)
    names = [f"p{i:05d}" for i in range(patients)]
    label, center = np.arange(patients) % 2, np.arange(patients) // 2 % 2
    effects = generator.standard_normal((4, d)).astype(np.float32)
    per_patient = n // patients
    shards = {
        name: (
            0.1 * effects[label[i]]
            + 0.1 * effects[2 + center[i]]
            + 0.5 * generator.standard_normal(d)
            + generator.standard_normal((per_patient, d))
        ).astype(np.float32)
        for i, name in enumerate(names)
    }
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": names,
            "center": [f"center {c}" for c in center],
            "organ": ["organ"] * patients,
            "label": [f"label {c}" for c in label],
        }
    )
    tiles = pl.DataFrame(
        {
            "tile_id": [f"{name}_{j}" for name in names for j in range(per_patient)],
            "slide_id": [name for name in names for _ in range(per_patient)],
        }
    )
    return slides, tiles, _InMemory(shards)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="tiles")
    parser.add_argument("--d", type=int, default=768, help="dimensions of the embedding")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    slides, tiles, embeddings = cohort(arguments.n, arguments.d, arguments.patients)
    vectors = embeddings.stack(embeddings.slide_ids)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found: dict[str, float] = {}

    import faiss
    from croma import RI

    index = faiss.IndexFlatIP(arguments.d)
    index.add(unit)
    warm = unit[:64] @ unit.T
    index.search(unit[:64], 31)
    del warm
    before = peak_mb()

    def ours() -> None:
        counts = count_neighbours(slides, tiles, embeddings, PARAMETERS)
        chosen = choose_k(PARAMETERS, encoder=counts)
        table = robustness_index(counts, chosen, PARAMETERS, "encoder")
        row = table.filter(
            pl.col("metric") == "ri",
            pl.col("setting").str.json_path_match("$.role") == "cohort_k",
        )
        found["ours"], found["k"] = row["value"][0], chosen["k"]

    seconds = {"robustness index with interval and nulls": best(ours, arguments.repeat)}
    grown = peak_mb() - before
    seconds["one exact FAISS search, k = 31"] = best(
        lambda: index.search(unit, 31), arguments.repeat
    )
    manifest = (
        tiles.join(slides, on="slide_id")
        .rename({"tile_id": "sample_id", "patient_id": "group_id"})
        .with_columns(pl.lit("none").alias("image_path"))
        .to_pandas()
    )

    def theirs() -> None:
        result = RI.compute(
            vectors, manifest, confounder_column="center", k_candidates=PARAMETERS["k_grid"]
        )
        found["croma"] = result.value

    seconds["croma RI.compute (no interval)"] = best(theirs, 1)
    own = seconds["robustness index with interval and nulls"]
    print(f"{arguments.n} tiles, {arguments.d} dimensions, {arguments.patients} patients")
    for name, taken in seconds.items():
        print(f"{name:<42}{taken:8.2f} s   ours / this {own / taken:6.2f}")
    print(f"peak memory beyond the arrays: {grown:.0f} MB")
    print(f"index at k = {found['k']}: ours {found['ours']:.9f}, croma {found['croma']:.9f}")


if __name__ == "__main__":
    main()
