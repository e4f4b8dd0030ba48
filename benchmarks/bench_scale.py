"""Cost of 10, 100 and 1,000 phantom slides, stage by stage, and of one worker beside two.

    python benchmarks/bench_scale.py                    # 10 and 100 slides, then 1 and 2 workers
    python benchmarks/bench_scale.py --full             # also 1,000 slides

Drawing is not timed. Every size runs in a process of its own, on one worker, with the two controls that
read pixels. Processor time is printed beside wall time: where other work shares the machine, only the
former says whether cost is linear.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.bench_memory import RUNTIME, defaults, run_stages

SIZE_PX = 768
CONTROLS = ("stain_statistics", "noise")
_STAGES = ("ingest", "tile", "embed", "pool")


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
    """Run the stages with each control and print what they cost."""
    manifest = pl.read_csv(root / "manifest.csv").head(n_slides)
    runs = [
        run_stages(root, manifest, {"model": f"control:{name}", "role": "control"}, {"workers": 1})
        for name in CONTROLS
    ]
    cost = {
        kind: {
            stage: statistics.mean(run[kind][stage] for run in runs)
            if stage in ("ingest", "tile")
            else sum(run[kind][stage] for run in runs)
            for stage in _STAGES
        }
        for kind in ("seconds", "cpu")
    }
    peak = max(run["peak"]["pool"] for run in runs)
    print(json.dumps(cost | {"tiles": runs[0]["tiles"], "peak": peak}))


def cost_table(found: Mapping[int, Mapping[str, Any]]) -> str:
    """Markdown: a row per number of slides; per stage wall and processor milliseconds per slide."""
    head = [f"{stage}, s | wall / cpu per slide, ms" for stage in _STAGES]
    lines = [
        "| slides | tiles | " + " | ".join(head) + " | all cpu per slide, ms | peak, MB |",
        "|---" * (2 + 2 * len(_STAGES) + 2) + "|",
    ]
    for n, cost in found.items():
        cells = [
            f"{cost['seconds'][stage]:.1f} | {1e3 * cost['seconds'][stage] / n:.0f} / "
            f"{1e3 * cost['cpu'][stage] / n:.0f}"
            for stage in _STAGES
        ]
        total = 1e3 * sum(cost["cpu"].values()) / n
        lines.append(
            f"| {n} | {cost['tiles']} | {' | '.join(cells)} | {total:.0f} | {cost['peak']:.0f} |"
        )
    return "\n".join(lines)


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
        encoder = {"model": "package:efficientnet_lite0"}
        plan = plan_embedding(
            self.slides, self.tiles, self.files, encoder, RUNTIME, self.parameters["tile"],
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
    told = f"{n_slides} slides, {work.tiles.height} tiles; {os.cpu_count()} cores, load {load}"
    return "\n".join([*lines, "", told])


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
    told = options.parse_args()
    sizes = [10, 100, 1000] if told.full else [10, 100]
    wanted = told.scaling_slides if told.only == "scaling" else max(*sizes, told.scaling_slides)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root, wanted)
        if told.only != "scaling":
            print(cost_table({n: cost_of(root, n) for n in sizes}), "\n", flush=True)
        if told.only != "cost":
            print(scaling(root, told.scaling_slides, told.repeat))


if __name__ == "__main__":
    main()
