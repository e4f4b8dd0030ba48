"""Every slide of a large cohort searched among those of other patients: time, memory and growth.

    python benchmarks/bench_retrieval_scale.py [--slides 11444] [--minutes 20] [--threads 2]
    python benchmarks/bench_retrieval_scale.py --minutes 6 --out results
    python benchmarks/bench_retrieval_scale.py --minutes 6 --dask 2

A synthetic cohort of so many slides, 50 patches of 1024 numbers each, two slides a patient. Its float32
vectors and barcodes lie in temporary files that are mapped into memory, as those of a real index would,
and are read block by block. Queries are taken block after block; the query's own patient is left out of
its five nearest. Where the time is up before the cohort is done, the share that was done is reported
and the rest follows from pairs per second, which the growth curve over smaller cohorts shows to be
constant or not. ``--minutes`` is for everything together, drawing aside; nothing is kept but what is
printed, and a JSON file of the same figures with ``--out``.

Beside it: `median_min` and `maxsim` as a share of the bare matrix product that they need, the same in
FAISS per pair of slides, `barcode` against a NumPy loop over pairs, and 100,000 slides on paper: bytes
and seconds per query by each type of index, computed from what was measured and never measured itself.

With ``--dask`` the same blocks of queries are jobs of the project's engine on so many Dask workers of
one thread each, which map the files themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.bench_retrieval import (
    barcode_loop,
    faiss_per_pair,
    memory_speed,
    numpy_loop,
    product_speed,
)
from benchmarks.timing import peak_mb
from pathfm_kedro.engine import EngineSettings, run_each
from pathfm_kedro.pipelines.retrieve.families.barcode import hamming_median_min
from pathfm_kedro.pipelines.retrieve.families.maxsim import maxsim
from pathfm_kedro.pipelines.retrieve.families.median_min import median_min
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
from pathfm_kedro.pipelines.retrieve.search import rank_matches
from pathfm_kedro.statistics.barcodes import barcodes
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.named_index import (
    barcode_index,
    cell_index,
    cosine_index,
    graph_index,
)

SLIDES, PATCHES, DIMENSION, SLIDES_A_PATIENT = 11_444, 50, 1024, 2
ON_PAPER = 100_000
#: Queries of one block: 20 slides of 50 patches are about the 1,024 rows of a product.
BLOCK = 20
NEIGHBOURS = 5
#: Slides whose vectors are drawn and written at once.
_DRAWN = 200
#: Shares of the cohort of the growth curve.
GROWTH = (0.1, 0.3, 1.0)
#: Shares of the time: of each point of the curve but the last, of the last, and of a ceiling.
POINT_TIME, WHOLE_TIME, CEILING_TIME = 0.02, 0.18, 0.03
#: What two cores do in this many seconds is asked of them.
ASKED = 1200
FLOAT = FamilySettings(precision="float32")


@dataclass(frozen=True)
class Cohort:
    """Patches of all slides, mapped into memory.

    Attributes
    ----------
    vectors
        [slides x patches, d] float32.
    codes
        [slides x patches, bytes] barcodes.
    n
        Slides.
    patches
        Of each.
    """

    vectors: Any
    codes: Any
    n: int
    patches: int

    def first(self, n: int) -> Cohort:
        """The first n slides."""
        rows = n * self.patches
        return Cohort(self.vectors[:rows], self.codes[:rows], n, self.patches)

    def mosaic(self, slides: slice) -> Mosaic:
        """Some consecutive slides."""
        rows = slice(slides.start * self.patches, slides.stop * self.patches)
        names = [f"s{i}" for i in range(slides.start, slides.stop)]
        starts = np.arange(len(names)) * self.patches
        return Mosaic(pl.DataFrame({"slide_id": names}), self.vectors[rows], starts)

    @property
    def patients(self) -> np.ndarray:
        """[n] codes."""
        return np.arange(self.n) // SLIDES_A_PATIENT


def synthetic(folder: Path, n: int, patches: int, dimension: int) -> Cohort:
    """Normal vectors and their barcodes in files."""
    shape = n * patches, dimension
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape)
    width = barcodes(np.zeros((1, dimension))).shape[1]
    codes = np.lib.format.open_memmap(folder / "codes.npy", "w+", np.uint8, (shape[0], width))
    generator = np.random.default_rng(0)
    for start in range(0, shape[0], _DRAWN * patches):
        rows = slice(start, min(start + _DRAWN * patches, shape[0]))
        vectors[rows] = generator.standard_normal((rows.stop - start, dimension), np.float32)
        codes[rows] = barcodes(vectors[rows])
    vectors.flush()
    codes.flush()
    return opened(folder, n, patches)


def opened(folder: Path, n: int, patches: int) -> Cohort:
    """The files of :func:`synthetic`, mapped."""
    read = partial(np.load, mmap_mode="r")
    return Cohort(read(folder / "vectors.npy"), read(folder / "codes.npy"), n, patches)


def by_vectors(cohort: Cohort, queries: slice, family: Callable[..., Any]) -> Any:
    """Distances of a block of queries to all slides."""
    return family(cohort.mosaic(queries), cohort.mosaic(slice(0, cohort.n)), FLOAT)


def by_barcodes(cohort: Cohort, queries: slice) -> Any:
    """The same from barcodes that were made before."""
    rows = slice(queries.start * cohort.patches, queries.stop * cohort.patches)
    archive = cohort.mosaic(slice(0, cohort.n))
    return hamming_median_min(cohort.mosaic(queries), archive, cohort.codes[rows], cohort.codes)


#: How slides are compared at this scale.
SEARCHES: dict[str, Callable[[Cohort, slice], Any]] = {
    "median_min": partial(by_vectors, family=median_min),
    "maxsim": partial(by_vectors, family=maxsim),
    "barcode": by_barcodes,
}


@dataclass(frozen=True)
class Done:
    """Queries that were searched, and the seconds they took."""

    queries: int
    seconds: float
    slides: int

    @property
    def pairs(self) -> float:
        """Pairs of slides a second."""
        return self.queries * self.slides / self.seconds


def search_all(cohort: Cohort, search: Callable[[Cohort, slice], Any], seconds: float) -> Done:
    """Search slide after slide, the query's patient left out, until done or the time is up."""
    start, done = time.perf_counter(), 0
    for queries in _blocks(cohort.n):
        search_block(cohort, search, queries)
        done = queries.stop
        if time.perf_counter() - start > seconds:
            break
    return Done(done, time.perf_counter() - start, cohort.n)


def search_block(cohort: Cohort, search: Callable[[Cohort, slice], Any], queries: slice) -> Any:
    """The nearest slides of other patients of a block of queries."""
    rows = np.arange(queries.start, queries.stop)
    allowed = cohort.patients[rows][:, None] != cohort.patients
    return rank_matches(search(cohort, queries), allowed, NEIGHBOURS)


@dataclass(frozen=True)
class BlockJob:
    """A block of queries as a job: the worker maps the files, and gives back matches alone."""

    folder: Path
    n: int
    patches: int
    name: str

    def __call__(self, start: int) -> Any:
        """The nearest slides of the queries from there on."""
        cohort = opened(self.folder, self.n, self.patches)
        queries = slice(start, min(start + BLOCK, self.n))
        return search_block(cohort, SEARCHES[self.name], queries)


def search_on_dask(cohort: Cohort, folder: Path, name: str, workers: int, seconds: float) -> Done:
    """As :func:`search_all`, by the engine's workers."""
    engine = EngineSettings(scheduler="dask", workers=workers)
    job, starts = BlockJob(folder, cohort.n, cohort.patches, name), range(0, cohort.n, BLOCK)
    first, ended = 0.0, 0
    for outcome in run_each(job, starts, engine, "searching"):
        if outcome.reason is not None:
            raise RuntimeError(outcome.reason)
        if not first:  # workers start and import before it
            first = time.perf_counter()
            continue
        ended += 1
        if time.perf_counter() - first > seconds:
            break
    return Done(min(ended * BLOCK, cohort.n), time.perf_counter() - first, cohort.n)


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def growth(cohort: Cohort, name: str, seconds: float) -> list[Done]:
    """Print pairs a second over the size of the cohort; the largest is the last."""
    print(f"\n| {name}: slides | queries done | seconds | pairs/s | h for all queries |", end="")
    print(f" slides in {ASKED / 60:.0f} min |\n|---|---|---|---|---|---|")
    curve = []
    for share in GROWTH:
        part = cohort.first(max(BLOCK, round(share * cohort.n)))
        time_given = seconds * (WHOLE_TIME if share == 1 else POINT_TIME)
        curve.append(search_all(part, SEARCHES[name], time_given))
        print(_growth_row(curve[-1]), flush=True)
    return curve


def _growth_row(done: Done) -> str:
    hours = done.slides**2 / done.pairs / 3600
    whole = "" if done.queries == done.slides else " (extrapolated)"
    return (
        f"| {done.slides:,} | {done.queries:,} ({done.queries / done.slides:.1%}) | "
        f"{done.seconds:.1f} | {done.pairs:,.0f} | {hours:.3g}{whole} | "
        f"{(done.pairs * ASKED) ** 0.5:,.0f} |"
    )


def ceilings(cohort: Cohort, seconds: float) -> dict[str, float]:
    """Shares of what the families need alone, and times what a loop does."""
    part = cohort.first(min(cohort.n, 400))
    mosaic = part.mosaic(slice(0, part.n))
    product, loop = product_speed(mosaic, "float32"), numpy_loop(mosaic, "float32")
    faiss = faiss_per_pair(mosaic)
    print(
        f"\nproduct alone {product:,.0f} pairs/s, NumPy loop {loop:,.0f}, FAISS per pair {faiss:,.0f}"
    )
    found = {"product": product, "numpy_loop": loop, "faiss_per_pair": faiss}
    # One product serves both directions of maxsim.
    for family in (median_min, maxsim):
        speed = search_all(part, partial(by_vectors, family=family), seconds).pairs
        found[family.__name__] = speed
        print(
            f"{family.__name__}: {speed:,.0f} pairs/s, {speed / product:.0%} of the product "
            f"(aim 70%), {speed / loop:.1f} times the loop, {speed / faiss:.1f} times FAISS per pair"
        )
    speed, loop = search_all(part, by_barcodes, seconds).pairs, barcode_loop(mosaic)
    found |= {"barcode": speed, "barcode_loop": loop, "memory_gb_s": memory_speed()}
    compared = speed * part.patches**2 * part.codes.shape[1] / 1e9
    print(
        f"barcode: {speed:,.0f} pairs/s, {speed / loop:.1f} times the loop (aim 10); {compared:.1f} GB "
        f"of codes are compared a second where memory gives {found['memory_gb_s']:.1f}"
    )
    return found


def on_paper(cohort: Cohort, measured: dict[str, Done]) -> None:
    """Bytes and seconds per query of 100,000 slides, from what was measured here."""
    print(f"\n{ON_PAPER:,} slides, computed and not measured:")
    print("| what | bytes per slide | GB | seconds per query | follows from |")
    print("|---|---|---|---|---|")
    each = {
        "median_min": cohort.vectors.itemsize * cohort.vectors.shape[1] * cohort.patches,
        "barcode": cohort.codes.shape[1] * cohort.patches,
    }
    each["maxsim"] = each["median_min"]
    for name, done in measured.items():
        _row(name, each[name], ON_PAPER / done.pairs, "pairs a second, linear in slides")
    n = min(cohort.n, 5_000)
    means = cohort.vectors[: n * cohort.patches].reshape(n, cohort.patches, -1).mean(axis=1)
    names = [f"s{i}" for i in range(n)]
    types = {
        "flat": (partial(cosine_index), ON_PAPER / n, "linear in slides"),
        "binary": (partial(barcode_index), ON_PAPER / n, "linear in slides"),
        "ivf": (
            partial(cell_index, probed=0.25, seed=0),
            ON_PAPER / n,
            "linear at a quarter of cells",
        ),
        "hnsw": (
            partial(graph_index, links=32, built=40, searched=64),
            np.log(ON_PAPER) / np.log(n),
            "as the logarithm of slides",
        ),
    }
    for name, (make, factor, why) in types.items():
        index = make(means, names)
        queries = means[: min(n, 200)]
        index.nearest(queries, NEIGHBOURS)
        start = time.perf_counter()
        index.nearest(queries, NEIGHBOURS)
        seconds = (time.perf_counter() - start) / len(queries)
        _row(
            f"{name} of means",
            len(index.serialized()) / n,
            seconds * factor,
            f"{n:,} slides, {why}",
        )


def _row(name: str, each: float, seconds: float, why: str) -> None:
    print(f"| {name} | {each:,.0f} | {each * ON_PAPER / 1e9:.3g} | {seconds:.3g} | {why} |")


def main() -> None:
    """Measure and print."""
    from threadpoolctl import threadpool_limits

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slides", type=int, default=SLIDES)
    options.add_argument("--patches", type=int, default=PATCHES)
    options.add_argument("--dimension", type=int, default=DIMENSION)
    options.add_argument("--minutes", type=float, default=20.0, help="for everything")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--dask", type=int, default=0, metavar="WORKERS", help="also on Dask")
    options.add_argument("--folder", type=Path, help="for the vectors, 205 kB a slide")
    options.add_argument("--out", type=Path, help="folder of retrieval_scale.json")
    asked = options.parse_args()
    import faiss

    faiss.omp_set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder, threadpool_limits(asked.threads):
        cohort = synthetic(Path(folder), asked.slides, asked.patches, asked.dimension)
        print(f"{asked.slides:,} slides x {asked.patches} patches x {asked.dimension} numbers")
        measured = measure(cohort, Path(folder), 60 * asked.minutes, asked.dask)
    # Pages of a mapped file count as resident and are given back when others need them.
    peak = peak_mb() / 1024
    print(f"\nlargest resident memory {peak:.2f} GiB, mapped files included (limit 4 GB)")
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        written = json.dumps(measured | {"peak_gib": peak}, indent=1) + "\n"
        (asked.out / "retrieval_scale.json").write_text(written)


def measure(cohort: Cohort, folder: Path, seconds: float, workers: int) -> dict[str, Any]:
    """Print every table; figures by name."""
    curves = {name: growth(cohort, name, seconds) for name in SEARCHES}
    found: dict[str, Any] = {
        name: [asdict(done) | {"pairs": done.pairs} for done in curve]
        for name, curve in curves.items()
    }
    if workers:
        print(f"\non Dask, {workers} workers of one thread")
        for name in SEARCHES:
            done = search_on_dask(cohort, folder, name, workers, seconds * CEILING_TIME)
            print(f"{name} {_growth_row(done)}")
            found[f"{name}_dask"] = asdict(done) | {"pairs": done.pairs}
    found["ceilings"] = ceilings(cohort, seconds * CEILING_TIME)
    on_paper(cohort, {name: curve[-1] for name, curve in curves.items()})
    return found


if __name__ == "__main__":
    main()
