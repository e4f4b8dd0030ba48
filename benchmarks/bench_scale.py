"""Cost of 10, 100 and 1,000 phantom slides, stage by stage, and of one worker beside two.

    python benchmarks/bench_scale.py                    # 10 and 100 slides, then 1 and 2 workers
    python benchmarks/bench_scale.py --full             # also 1,000 slides
    python benchmarks/bench_scale.py --only cost --sizes 10 100 1000 --minutes 20

Drawing is not timed. Every size runs in a process of its own, on one worker: ingest, tile, embed with
EfficientNet-Lite0, slides' vectors, robustness index with interval and null. Processor time is printed
beside wall time: where other work shares the machine, only the former says whether cost is linear. A
size that would not be done within ``--minutes``, going by the one before, is left out and said so.

Workers are compared on the network with PyTorch's eager runtime, one thread per worker, in turns. On
Dask the workers are started before the clock, and each has loaded the network. Beside the ratio of wall
times stand two figures that say what limits it: how many cores one worker keeps busy (reading runs
ahead of the network, so it is more than one, and two cores then cannot serve two workers fully),
and the processor time of two workers over that of one (above 1: memory bandwidth or caches are short).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.bench_memory import RUNTIME, defaults, run_stages

SIZE_PX = 768
LITE0 = {"model": "package:efficientnet_lite0"}
_STAGES = ("ingest", "tile", "embed", "pool", "index")


def draw(root: Path, n_slides: int) -> None:
    """So many phantom slides and their manifest."""
    from pathfm_kedro.datasets.slide_files import SlideFilesDataset
    from pathfm_kedro.pipelines.ingest.drawing import draw_phantom

    phantom = defaults()["phantom"] | {"size_px": SIZE_PX}
    cells = len(phantom["labels"]) * len(phantom["centers"])
    phantom["patients_per_cell"] = -(-n_slides // cells)
    plan, manifest = draw_phantom(phantom, {"workers": 0})
    kept = type(plan)(plan.jobs[:n_slides], plan.engine, plan.title)
    SlideFilesDataset(filepath=str(root / "raw")).save(kept)
    manifest.head(n_slides).write_csv(root / "manifest.csv")


def cost_of(root: Path, n_slides: int) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of every stage, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--child", str(root), str(n_slides)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def child(root: Path, n_slides: int) -> None:
    """Run the stages and print what they cost."""
    manifest = pl.read_csv(root / "manifest.csv").head(n_slides)
    found = run_stages(root, manifest, LITE0, {"workers": 1}, {"index": index})
    print(json.dumps(found | {"peak": max(found["peak"].values())}))


def index(slides: pl.DataFrame, tiles: pl.DataFrame, vectors: Any) -> pl.DataFrame:
    """The robustness index with its interval and nulls, as the audit has it."""
    from pathfm_kedro.pipelines.robustness.robustness_index import (
        RobustnessIndex,
        choose_k,
        robustness_index_figures,
        robustness_index_statistics,
    )
    from pathfm_kedro.statistics.figures import measure
    from pathfm_kedro.statistics.parameters import read_parameters

    parameters = defaults()["robustness_index"]
    p = read_parameters(RobustnessIndex, "robustness_index", parameters)
    counts = robustness_index_statistics(slides, tiles, vectors, p)
    figures = robustness_index_figures(counts, choose_k(parameters, lite0=counts), p)
    return measure(figures, "robustness_index", "lite0")


def cost_tables(root: Path, sizes: Sequence[int], seconds: float) -> None:
    """Print, per number of slides, wall and processor milliseconds of each stage per slide."""
    head = [f"{stage}, s | wall / cpu per slide, ms" for stage in _STAGES]
    print("| slides | tiles | " + " | ".join(head) + " | all cpu per slide, ms | peak, MB |")
    print("|---" * (2 + 2 * len(_STAGES) + 2) + "|")
    start, before, took = time.perf_counter(), 0, 0.0
    for n in sorted(sizes):
        begun = time.perf_counter()
        if before and begun - start + took * n / before > seconds:
            print(f"{n} slides were left out: they would take {took * n / before / 60:.0f} minutes")
            break
        print(_cost_row(n, cost_of(root, n)), flush=True)
        before, took = n, time.perf_counter() - begun


def _cost_row(n: int, cost: Mapping[str, Any]) -> str:
    cells = [
        f"{cost['seconds'][stage]:.1f} | {1e3 * cost['seconds'][stage] / n:.0f} / "
        f"{1e3 * cost['cpu'][stage] / n:.0f}"
        for stage in _STAGES
    ]
    total = 1e3 * sum(cost["cpu"].values()) / n
    return f"| {n} | {cost['tiles']} | {' | '.join(cells)} | {total:.0f} | {cost['peak']:.0f} |"


class _Embedding:
    """The embed stage of the drawn slides with the network."""

    def __init__(self, root: Path, n_slides: int) -> None:
        from pathfm_kedro.pipelines.ingest.description import describe_slides
        from pathfm_kedro.pipelines.ingest.manifest import check_manifest
        from pathfm_kedro.pipelines.tile.tiles import cut_tiles
        from pathfm_kedro.slides.files import SlideFiles

        self.root, self.parameters = root, defaults()
        self.files = SlideFiles((root / "raw").absolute())
        manifest = check_manifest(pl.read_csv(root / "manifest.csv").cast(pl.String).head(n_slides))
        engine = {"workers": 1}
        self.slides = describe_slides(manifest, self.files, self.parameters["ingest"], engine)
        self.tiles, _ = cut_tiles(self.slides, self.files, self.parameters["tile"], engine)

    def run(self, engine: Mapping[str, Any]) -> _Cost:
        """Cost of one run into a new version."""
        from kedro.io.core import Version

        from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
        from pathfm_kedro.pipelines.embed.embedding import plan_embedding

        version = str(time.time_ns())
        data = ShardedTensorDataset(
            filepath=(self.root / version / "lite0").as_posix(), version=Version(version, version)
        )
        plan = plan_embedding(
            self.slides, self.tiles, self.files, LITE0, RUNTIME, self.parameters["tile"],
            self.parameters["embed"], engine, name="lite0",
        )  # fmt: skip
        cpu, start = _processor_seconds(engine), time.perf_counter()
        data.save(plan)
        wall = time.perf_counter() - start
        return _Cost(wall, _processor_seconds(engine) - cpu)


class _Cost(NamedTuple):
    wall: float
    cpu: float


def _processor_seconds(engine: Mapping[str, Any]) -> float:
    """Of this process, or of the workers of a cluster."""
    if engine.get("scheduler") != "dask":
        return time.process_time()
    from distributed import Client

    with Client(engine["dask"]["address"], set_as_default=False) as client:
        return float(sum(client.run(time.process_time).values()))


@contextmanager
def _dask(workers: int) -> Iterator[dict[str, Any]]:
    """A cluster of single-threaded processes; the engine's settings that use it."""
    import dask
    from distributed import LocalCluster

    from pathfm_kedro.engine.cluster import ONE_THREAD

    # As the engine starts its own; Dask's default also has glibc give back memory after every layer.
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": ONE_THREAD}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
    ):
        yield {
            "workers": workers,
            "scheduler": "dask",
            "dask": {"address": cluster.scheduler_address},
        }


def scaling(root: Path, n_slides: int, repeat: int) -> str:
    """Markdown: seconds with one worker and with two, on threads and on Dask."""
    work = _Embedding(root, n_slides)
    lines = [
        "| where | 1 worker, s | 2 workers, s | ratio (lowest to highest) | cores of 1 worker | "
        "cpu of 2 / of 1 |",
        "|---|---|---|---|---|---|",
    ]
    lines.append(_row("threads", work, {"workers": 1}, {"workers": 2}, repeat))
    with _dask(1) as one, _dask(2) as two:
        lines.append(_row("Dask", work, one, two, repeat))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    machine = f"{n_slides} slides, {work.tiles.height} tiles; {os.cpu_count()} cores, load {load}"
    return "\n".join([*lines, "", machine])


def _row(
    where: str,
    work: _Embedding,
    one: Mapping[str, Any],
    two: Mapping[str, Any],
    repeat: int,
) -> str:
    for engine in (one, two):
        work.run(engine)
    pairs = [(work.run(one), work.run(two)) for _ in range(repeat)]
    first = min(pair[0] for pair in pairs)
    second = min(pair[1] for pair in pairs)
    ratios = [slow.wall / fast.wall for slow, fast in pairs]
    cpu = statistics.median(fast.cpu / slow.cpu for slow, fast in pairs)
    return (
        f"| {where} | {first.wall:.1f} | {second.wall:.1f} | {first.wall / second.wall:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {first.cpu / first.wall:.2f} | {cpu:.2f} |"
    )


def main() -> None:
    """Draw slides, print both tables."""
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
        return
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true")
    options.add_argument("--scaling-slides", type=int, default=48)
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--only", choices=("cost", "scaling"))
    options.add_argument("--sizes", type=int, nargs="+", help="slides of the table of costs")
    options.add_argument("--minutes", type=float, default=60.0, help="of the table of costs")
    given = options.parse_args()
    sizes = given.sizes or ([10, 100, 1000] if given.full else [10, 100])
    wanted = given.scaling_slides if given.only == "scaling" else max(sizes)
    if given.only is None:
        wanted = max(wanted, given.scaling_slides)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root, wanted)
        if given.only != "scaling":
            cost_tables(root, sizes, 60 * given.minutes)
        if given.only != "cost":
            print("\n" + scaling(root, given.scaling_slides, given.repeat))


if __name__ == "__main__":
    main()
