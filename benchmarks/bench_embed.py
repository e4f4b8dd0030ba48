"""Time the runtimes of encoders, and the embed pipeline beside a bare loop of the same encoder.

    python benchmarks/bench_embed.py --slides 16 --repeat 3

The first table has one row per encoder and runtime: preprocessing and forward pass over tiles already
in memory, by as many threads as the pipeline has workers. Then the pipeline with each encoder is timed
beside that same loop. The pipeline also opens slides, decodes and resizes tiles, hashes, writes shards
and keeps its books; the loop does none of that. What is compared is timed in turns, so that a machine
whose speed drifts treats it alike; by processor time too, which other work on the machine moves less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from kedro.io.core import Version

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.bench_memory import defaults
from benchmarks.timing import Taken, in_turns, spent
from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.datasets.slide_files import SlideFilesDataset
from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial
from pathfm_kedro.encoders.base import Encoder, Pixels
from pathfm_kedro.encoders.entry_checks import RUNTIMES
from pathfm_kedro.encoders.torch_encoder import TorchEncoder, load_torch_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles
from pathfm_kedro.pipelines.embed.embedding import plan_embedding
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.drawing import draw_phantom
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.fields import slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.kept_pixels import KEPT

PROJECT = Path(__file__).parents[1]
LITE0: dict[str, Any] = {"model": "package:efficientnet_lite0", "device": "cpu"}
VIT: dict[str, Any] = {
    "model": "timm:vit_small_patch14_dinov2",
    "device": "cpu",
    "input_pixels": 224,
    "model_kwargs": {"img_size": 518, "dynamic_img_size": True, "depth": 8, "final_norm": False},
}
VIT_WEIGHTS = "weights/vits14_imgfocus_depth8_fp16.safetensors"
#: Tiles of a timed pass over each runtime.
_TILES = 64


def loop(encoder: Encoder, pixels: Pixels, threads: int) -> None:
    """Vectors of tiles in memory, by threads that compute with one thread each."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(encoder.embed, np.array_split(pixels, threads)):
            pass


def warmed(works: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[Taken]]:
    """What each work takes, done once before it counts, then all of them in turns."""
    for work in works.values():
        work()
    return in_turns(works, repeat)


def compare_runtimes(entries: dict[str, dict[str, Any]], threads: int, repeat: int) -> pl.DataFrame:
    """Tiles per second and agreement of every runtime of every encoder."""
    rows = []
    for name, entry in entries.items():
        specs = {r: EncoderSpec.from_parameters(name, entry | {"runtime": r}) for r in RUNTIMES}
        encoders = {runtime: load_torch_encoder(spec) for runtime, spec in specs.items()}
        works = {
            r: partial(loop, e, synthetic_tiles(_TILES, 224), threads) for r, e in encoders.items()
        }
        times = warmed(works, repeat)
        for runtime, spec in specs.items():
            agreement = RuntimeTrial(spec).record()["agreement"]
            rows.append(
                {
                    "encoder": name,
                    "runtime": runtime,
                    "tiles/s": round(_TILES / min(times[runtime]).clock, 1),
                    "smallest cosine": agreement["cosine"],
                    "difference at most": agreement["difference"],
                }
            )
    return pl.DataFrame(rows)


@dataclass(frozen=True)
class Cohort:
    """Slides that were drawn, described and tiled."""

    root: Path
    slides: pl.DataFrame
    tiles: pl.DataFrame
    files: SlideFiles
    parameters: dict[str, Any]
    engine: dict[str, Any]

    def batches(self, size: int) -> Iterator[Pixels]:
        """Tiles of all slides, read now."""
        KEPT.clear()
        pixels = int(self.parameters["tile"]["pixels"])
        for _, fields in slide_fields(self.slides, self.tiles, self.files, pixels):
            yield from (batch for batch, _ in fields.batches(size))


def draw_cohort(root: Path, n_slides: int, threads: int) -> Cohort:
    """A phantom of so many slides."""
    parameters = defaults()
    engine = {"workers": threads, "max_failed_share": 0.0}
    plan, manifest = draw_phantom(parameters["phantom"], engine)
    store = SlideFilesDataset(filepath=str(root / "raw"))
    store.save(type(plan)(plan.jobs[:n_slides], plan.engine, plan.title))
    files = store.load()
    kept = check_manifest(manifest.head(n_slides))
    slides = describe_slides(kept, files, parameters["ingest"], engine)
    tiles, _ = cut_tiles(slides, files, parameters["tile"], engine)
    return Cohort(root, slides, tiles, files, parameters, engine)


def compare_with_pipeline(cohort: Cohort, name: str, entry: dict[str, Any], repeat: int) -> None:
    """Print throughput of the pipeline, of the bare loop, their ratio, and where the rest goes."""
    spec = EncoderSpec.from_parameters(name, entry)
    record = RuntimeTrial(spec).record()
    encoder = load_torch_encoder(spec.with_runtime(record))
    threads = int(cohort.engine["workers"])
    pixels = np.concatenate(list(cohort.batches(encoder.batch_size)))
    count = iter(range(10_000))

    def pipeline() -> None:
        KEPT.clear()
        version = f"run-{next(count)}"
        data = ShardedTensorDataset(
            filepath=str(cohort.root / version / name), version=Version(version, version)
        )
        data.save(
            plan_embedding(
                cohort.slides, cohort.tiles, cohort.files, entry, record,
                cohort.parameters["tile"], cohort.parameters["embed"], cohort.engine, name=name,
            )
        )  # fmt: skip

    works = {"pipeline": pipeline, "bare": partial(loop, encoder, pixels, threads)}
    turns = warmed(works, repeat)
    wall = {work: [one.clock for one in times] for work, times in turns.items()}
    processor = {work: [one.processors for one in times] for work, times in turns.items()}
    n = len(pixels)
    print(f"{n} tiles of {len(cohort.slides)} slides, {name} by {spec.runtime}, {threads} workers")
    for work, label in (("pipeline", "pipeline "), ("bare", "bare loop")):
        print(f"{label} {n / statistics.median(wall[work]):7.1f} tiles/s")
    print(f"throughput of the pipeline / bare loop: {ratio(wall)}")
    print(f"processor time of the bare loop / pipeline: {ratio(processor)}")
    parts = milliseconds_of_parts(cohort, encoder, pixels)
    parts["pipeline, all"] = 1000 * statistics.median(processor["pipeline"]) / n
    print("processor ms a tile: " + ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items()))


def ratio(times: dict[str, list[float]]) -> str:
    """Median and range of bare loop over pipeline, turn by turn."""
    found = [b / p for p, b in zip(times["pipeline"], times["bare"], strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def milliseconds_of_parts(
    cohort: Cohort, encoder: TorchEncoder, pixels: Pixels
) -> dict[str, float]:
    """Processor time of a tile by one thread: what the pipeline alone does, and what both do."""
    torch.set_num_threads(1)
    size = encoder.batch_size
    parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    works: dict[str, Callable[[], object]] = {
        "read": lambda: [None for _ in cohort.batches(size)],
        "preprocess": lambda: [encoder.stage(part) for part in parts],
        "network": lambda: [encoder.forward(part) for part in staged],
    }
    staged = [encoder.stage(part) for part in parts[:8]]
    of = {"read": len(pixels), "preprocess": len(pixels), "network": sum(map(len, staged))}
    return {
        name: 1000 * min(spent(work).processors for _ in range(3)) / of[name]
        for name, work in works.items()
    }


def main() -> None:
    """Compare runtimes, then draw slides and embed them both ways."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slides", type=int, default=16)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--runtime", choices=RUNTIMES, default="onnxruntime")
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--pipeline-only", action="store_true", help="leave the runtimes out")
    options.add_argument(
        "--real-data",
        type=Path,
        default=Path(os.environ.get("PATHFM_REAL_DATA", PROJECT.parent / "shared" / "data")),
        help="folder with the weights of a ViT-S/14; without them it is left out",
    )
    given = options.parse_args()
    entries = {"efficientnet_lite0": LITE0}
    if (given.real_data / VIT_WEIGHTS).is_file():
        entries["vit_small_14"] = VIT | {"checkpoint": str(given.real_data / VIT_WEIGHTS)}
    if not given.pipeline_only:
        with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
            print(compare_runtimes(entries, given.threads, given.repeat))
    # A transformer gains nothing by onnxruntime.
    runtimes = {"efficientnet_lite0": given.runtime, "vit_small_14": "channels_last"}
    with tempfile.TemporaryDirectory() as folder:
        cohort = draw_cohort(Path(folder), given.slides, given.threads)
        for name, entry in entries.items():
            chosen = entry | {"runtime": runtimes[name]}
            compare_with_pipeline(cohort, name, chosen, given.repeat)


if __name__ == "__main__":
    main()
