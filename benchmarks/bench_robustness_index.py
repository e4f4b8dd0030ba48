"""Time the robustness index and the margins beside one exact FAISS search and beside croma, in turn.

    python benchmarks/bench_robustness_index.py --n 10000 --d 768 --patients 500
    python benchmarks/bench_robustness_index.py --center 0.8
    python benchmarks/bench_robustness_index.py --large

Everything runs once in each of `--repeat` rounds. Seconds are those of the fastest round; ratios are
medians over the rounds, so that what slows the machine for a while slows both sides. On a machine that
others use too, read the seconds of processors. Memory is what the process grew beyond the arrays before
anything else ran.

What bounds each:

- CRoMa needs, of every tile, the nearest of its label elsewhere and of other labels at home. Products
  are made of pairs of cells that share one of the two, once for both sides: with 2 labels at 2 centers
  a quarter of the product of all with all, whatever the effect of centers. These products alone are
  timed beside it ("products that CRoMa needs"): croma's time over theirs is what no exact search by
  products can exceed, and CRoMa's over theirs is what is left to gain.
- croma sorts the 200 nearest of every tile first, and searches wider until every tile has neighbours
  of both types: it takes the longer the more an encoder follows the center (`--center`). Where it is
  quick, one whole product, partitions of whole rows and loops over lists are its time. A quarter of
  that product takes about a fourteenth of all this by itself (10,000 tiles of 768 dimensions).
- The index needs the k nearest of all: half of the whole product. Interval and permutations work on
  counts by patient and do not grow with the number of dimensions.

A search is a matrix product and little else, so that its time is that of the kernels that BLAS picks
for the processor. FAISS ships a BLAS of its own, which may pick others than NumPy's: the ratio to a
FAISS call depends on the machine. What is compared between machines is the ratio to NumPy's product
of the same size, and both kernels are named. Set OPENBLAS_CORETYPE (for example SkylakeX or Haswell)
to choose them, and compare again.

With `--large` (50,000 tiles of 1024 dimensions) croma is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import Taken, in_turns, peak_mb
from pathfm_kedro.pipelines.robustness.margin_statistics import index_and_margin_statistics
from pathfm_kedro.pipelines.robustness.margins import (
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_figures,
    robustness_index_statistics,
)
from pathfm_kedro.statistics.balanced_designs import codes_of
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.typed_distances import tile_margins

PARAMETERS = {
    "k_grid": [1, 3, 5, 7, 9, 11, 21, 31],
    "designs": ["all"],
    "k_design": "all",
    "distance": "cosine",
    "exclude": "patient",
    "subsamples": 5,
    "max_tiles": 1_000_000,
    "max_tiles_per_pair": 2000,
    "max_pairs": 100,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 1,
    "draws": 2000,
    "n_permutations": 0,
    "seed": 0,
}
MARGINS = {"m": [5], "sampled_queries": 1000, "draws": 2000, "n_permutations": 0, "seed": 0}
#: Rows of the product that are held at once.
_BLOCK = 1024
INDEX = read_parameters(RobustnessIndex, "robustness_index", PARAMETERS)


class _InMemory:
    """Embeddings of one encoder, one slide a patient."""

    def __init__(self, shards: dict[str, NDArray[np.float32]]) -> None:
        self._shards = shards
        self.slide_ids = tuple(sorted(shards))

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of the given slides."""
        return np.concatenate([self._shards[slide] for slide in slide_ids])


Data = tuple[pl.DataFrame, pl.DataFrame, _InMemory]


def cohort(n: int, d: int, patients: int, center_effect: float = 0.1) -> Data:
    """2 labels × 2 centers in equal cells, with effects of label, center and patient."""
    generator = np.random.default_rng(0)
    names = [f"p{i:05d}" for i in range(patients)]
    label, center = np.arange(patients) % 2, np.arange(patients) // 2 % 2
    effects = generator.standard_normal((4, d)).astype(np.float32)
    per_patient = n // patients
    shards = {
        name: (
            0.1 * effects[label[i]]
            + center_effect * effects[2 + center[i]]
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


def margins_alone(data: Data) -> dict[str, float]:
    """The median margin of all tiles, without interval: what croma computes."""
    slides, tiles, embeddings = data
    rows = tiles.join(slides, on="slide_id", maintain_order="left")
    patients, labels, centers = (codes_of(rows[c]) for c in ("patient_id", "label", "center"))
    vectors = embeddings.stack(embeddings.slide_ids)
    return {"croma": float(np.median(tile_margins(vectors, patients, labels, centers, m=5)))}


def index_alone(data: Data, n_permutations: int) -> dict[str, float]:
    """The robustness index with its interval and nulls."""
    block = PARAMETERS | {"n_permutations": n_permutations}
    p = read_parameters(RobustnessIndex, "robustness_index", block)
    statistics = robustness_index_statistics(*data, p)
    chosen = choose_k(block, encoder=statistics)
    table = measure(robustness_index_figures(statistics, chosen, p), "robustness_index", "encoder")
    return {"ri": figure(table, "ri", "cohort_k"), "k": chosen["k"]}


def whole_family(data: Data) -> dict[str, float]:
    """Index, MaRI, CRoMa and its tail with intervals, from one search."""
    statistics, margins = index_and_margin_statistics(*data, PARAMETERS, MARGINS)
    chosen = choose_k(PARAMETERS, encoder=statistics)
    figures = robustness_index_figures(statistics, chosen, INDEX)
    index = measure(figures, "robustness_index", "encoder")
    p = read_parameters(RobustnessMargins, "robustness_margins", MARGINS)
    figures = robustness_margins_figures(margins, chosen, p)
    table = measure(figures, "robustness_margins", "encoder")
    return {
        "ri": figure(index, "ri", "cohort_k"),
        "mari": figure(table, "mari", "cohort_k"),
        "croma": figure(table, "croma"),
    }


def unit_product(data: Data) -> None:
    """The products of all unit vectors with all, block by block, in float32: what a search must do."""
    _, _, embeddings = data
    vectors = embeddings.stack(embeddings.slide_ids)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    out = np.empty((_BLOCK, len(unit)), np.float32)
    for start in range(0, len(unit), _BLOCK):
        rows = unit[start : start + _BLOCK]
        np.matmul(rows, unit.T, out=out[: len(rows)])


def needed_products(data: Data) -> None:
    """The products of unit vectors of every two cells that share label or center, each pair once."""
    slides, tiles, embeddings = data
    rows = tiles.join(slides, on="slide_id", maintain_order="left")
    vectors = embeddings.stack(embeddings.slide_ids)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cells = {
        cell: unit[(rows["label"] == cell[0]).to_numpy() & (rows["center"] == cell[1]).to_numpy()]
        for cell in rows.select("label", "center").unique(maintain_order=True).iter_rows()
    }
    out = np.empty((_BLOCK, len(unit)), np.float32)
    for one, other in combinations(cells, 2):
        if (one[0] == other[0]) == (one[1] == other[1]):
            continue
        for start in range(0, len(cells[one]), _BLOCK):
            asked, met = cells[one][start : start + _BLOCK], cells[other]
            np.matmul(
                asked, met.T, out=out.ravel()[: len(asked) * len(met)].reshape(len(asked), -1)
            )


def kernels() -> list[str]:
    """The BLAS libraries that are loaded, by file, with the kernels that they picked."""
    from threadpoolctl import threadpool_info

    found = [
        f"{library['internal_api']} {library['version']} of {_package(library['filepath'])}: "
        f"{library.get('architecture', 'kernel not named')}, {library['num_threads']} threads"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    return [*sorted(found), f"FAISS compiled for: {_faiss_options()}"]


def _package(filepath: str) -> str:
    """Such as ``numpy`` of ``…/numpy.libs/libscipy_openblas64_.so``."""
    return Path(filepath).parent.name.removesuffix(".libs")


def _faiss_options() -> str:
    import faiss

    return faiss.get_compile_options().strip() if hasattr(faiss, "get_compile_options") else "n/a"


def figure(table: pl.DataFrame, metric: str, role: str | None = None) -> float:
    """Value of a metric's row."""
    rows = table.filter(pl.col("metric") == metric)
    if role is not None:
        rows = rows.filter(pl.col("setting").str.json_path_match("$.role") == role)
    return float(rows["value"][0])


OURS, PERMUTED, FAMILY = "CRoMa, no interval", "index, interval, 200 permutations", "whole family"
FAISS, PRODUCT, CROMA = "one exact FAISS search, k = 31", "matrix product (NumPy)", "croma CRoMa"
NEEDED = "products that CRoMa needs (NumPy)"
#: Whose ratio is shown: by how much the first takes longer than the second.
COMPARED = [
    (CROMA, OURS),
    (CROMA, NEEDED),
    (OURS, NEEDED),
    (OURS, FAISS),
    (PERMUTED, FAISS),
    (PERMUTED, PRODUCT),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="tiles")
    parser.add_argument("--d", type=int, default=768, help="dimensions of the embedding")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--center", type=float, default=0.1, help="how far centers lie apart")
    parser.add_argument(
        "--large", action="store_true", help="50,000 tiles of 1024 dimensions, without croma"
    )
    arguments = parser.parse_args()
    if arguments.large:
        arguments.n, arguments.d, arguments.repeat = 50_000, 1024, 1
    data = cohort(arguments.n, arguments.d, arguments.patients, arguments.center)
    print(f"{arguments.n} tiles, {arguments.d} dimensions, {arguments.patients} patients")
    found: dict[str, dict[str, float]] = {}

    def kept(name: str, work: Callable[[], dict[str, float]]) -> Callable[[], None]:
        return lambda: found.__setitem__(name, work())

    before = peak_mb()
    ours = {
        OURS: kept(OURS, lambda: margins_alone(data)),
        "index, interval": kept("index", lambda: index_alone(data, 0)),
        PERMUTED: kept(PERMUTED, lambda: index_alone(data, 200)),
        FAMILY: kept(FAMILY, lambda: whole_family(data)),
    }
    for work in ours.values():
        work()
    grown = peak_mb() - before
    others = searches(data) if arguments.large else searches(data) | of_croma(data, kept)
    report(in_turns(ours | others, arguments.repeat), found)
    print(f"peak memory of ours beyond the arrays: {grown:.0f} MB")


def report(taken: Mapping[str, list[Taken]], found: Mapping[str, Mapping[str, float]]) -> None:
    """Print kernels, times, ratios and figures."""
    print("\n".join(kernels()))
    for name, rounds in taken.items():
        clock, processors = np.array(rounds).min(axis=0)
        print(f"{name:<42}{clock:8.2f} s   {processors:8.2f} s of processors")
    for slow, quick in COMPARED:
        if slow in taken:
            ratios = np.median(np.array(taken[slow]) / np.array(taken[quick]), axis=0)
            print(f"{slow} / {quick}: {ratios[0]:.2f}, of processors {ratios[1]:.2f}")
    for name, figures in found.items():
        print(name, ", ".join(f"{key} {value:.9f}" for key, value in figures.items()))


def searches(data: Data) -> dict[str, Callable[[], object]]:
    """FAISS, and bare products."""
    import faiss

    vectors = data[2].stack(data[2].slide_ids)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    index.search(unit[:64], 31)
    return {
        FAISS: lambda: index.search(unit, 31),
        PRODUCT: lambda: unit_product(data),
        NEEDED: lambda: needed_products(data),
    }


def of_croma(
    data: Data, kept: Callable[[str, Callable[[], dict[str, float]]], Callable[[], None]]
) -> dict[str, Callable[[], object]]:
    """Metrics of croma, none with an interval."""
    from croma import RI, CRoMa, MaRI

    slides, tiles, embeddings = data
    vectors = embeddings.stack(embeddings.slide_ids)
    manifest = (
        tiles.join(slides, on="slide_id", maintain_order="left")
        .rename({"tile_id": "sample_id", "patient_id": "group_id"})
        .with_columns(pl.lit("none").alias("image_path"))
        .to_pandas()
    )
    grid = PARAMETERS["k_grid"]

    def theirs(metric: Any, **options: Any) -> dict[str, float]:
        found = metric.compute(vectors, manifest, confounder_column="center", **options)
        return {"value": found.value}

    return {
        "croma RI": kept("croma RI", lambda: theirs(RI, k_candidates=grid)),
        "croma MaRI": kept("croma MaRI", lambda: theirs(MaRI, k_candidates=grid)),
        CROMA: kept(CROMA, lambda: theirs(CRoMa, m=5)),
    }


if __name__ == "__main__":
    main()
