"""Time the runtimes of encoders, and the embed pipeline beside a bare loop of the same encoder.

    python benchmarks/bench_embed.py --slides 16 --repeat 3

The first table has one row per encoder and runtime: preprocessing and forward pass over tiles already
in memory, by as many threads as the pipeline has workers. Then the pipeline with the first encoder is
timed beside that same loop. The pipeline also opens slides, decodes and resizes tiles, hashes, writes
shards and keeps its books; the loop does none of that. What is compared is timed in turns, so that a
machine whose speed drifts treats it alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from kedro.io.core import Version

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.datasets.slide_files import SlideFilesDataset
from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial
from pathfm_kedro.encoders.base import Encoder, Pixels
from pathfm_kedro.encoders.spec import RUNTIMES
from pathfm_kedro.encoders.torch_encoder import load_torch_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles
from pathfm_kedro.pipelines.embed.embedding import plan_embedding
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.drawing import draw_phantom
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.fields import slide_fields

PROJECT = Path(__file__).parents[1]
CONF = PROJECT / "conf" / "base"
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


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def loop(encoder: Encoder, pixels: Pixels, threads: int) -> None:
    """Vectors of tiles in memory, by threads that compute with one thread each."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(encoder.embed, np.array_split(pixels, threads)):
            pass


def in_turns(works: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each work, done once before it counts, then all of them in turns."""
    for work in works.values():
        work()
    turns = [{name: seconds(work) for name, work in works.items()} for _ in range(repeat)]
    return {name: [turn[name] for turn in turns] for name in works}


def compare_runtimes(threads: int, repeat: int, real_data: Path) -> pl.DataFrame:
    """Tiles per second and agreement of every runtime of every encoder."""
    entries = {"efficientnet_lite0": LITE0}
    if (real_data / VIT_WEIGHTS).is_file():
        entries["vit_small_14"] = VIT | {"checkpoint": str(real_data / VIT_WEIGHTS)}
    rows = []
    for name, entry in entries.items():
        specs = {r: EncoderSpec.from_parameters(name, entry | {"runtime": r}) for r in RUNTIMES}
        encoders = {runtime: load_torch_encoder(spec) for runtime, spec in specs.items()}
        works = {
            r: partial(loop, e, synthetic_tiles(_TILES, 224), threads) for r, e in encoders.items()
        }
        times = in_turns(works, repeat)
        for runtime, spec in specs.items():
            agreement = RuntimeTrial(spec).record()["agreement"]
            rows.append(
                {
                    "encoder": name,
                    "runtime": runtime,
                    "tiles/s": round(_TILES / min(times[runtime]), 1),
                    "smallest cosine": agreement["cosine"],
                    "difference at most": agreement["difference"],
                }
            )
    return pl.DataFrame(rows)


def main() -> None:
    """Compare runtimes, then draw slides and embed them both ways."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slides", type=int, default=16)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--runtime", choices=RUNTIMES, default="onnxruntime")
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument(
        "--real-data",
        type=Path,
        default=Path(os.environ.get("PATHFM_REAL_DATA", PROJECT.parent / "shared" / "data")),
        help="folder with the weights of a ViT-S/14; without them it is left out",
    )
    told = options.parse_args()
    with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        print(compare_runtimes(told.threads, told.repeat, told.real_data))
    compare_with_pipeline(told.slides, told.threads, told.runtime, told.repeat)


def compare_with_pipeline(n_slides: int, threads: int, runtime: str, repeat: int) -> None:
    """Print throughput of the pipeline, of the bare loop, and their ratio."""
    parameters: dict[str, Any] = {}
    for path in CONF.glob("parameters*.yml"):
        parameters |= yaml.safe_load(path.read_text())
    engine = {"workers": threads, "max_failed_share": 0.0}
    entry = LITE0 | {"runtime": runtime}
    spec = EncoderSpec.from_parameters("lite0", entry)
    record = RuntimeTrial(spec).record()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plan, manifest = draw_phantom(parameters["phantom"], engine)
        kept = manifest.head(n_slides)
        store = SlideFilesDataset(filepath=str(root / "raw"))
        store.save(type(plan)(plan.jobs[:n_slides], plan.engine, plan.title))
        files = store.load()
        slides = describe_slides(check_manifest(kept), files, parameters["ingest"], engine)
        tiles, _ = cut_tiles(slides, files, parameters["tile"], engine)
        encoder = load_torch_encoder(spec.with_runtime(record))
        pixels = np.concatenate(
            [
                batch
                for _, fields in slide_fields(slides, tiles, files, parameters["tile"]["pixels"])
                for batch, _ in fields.batches(encoder.batch_size)
            ]
        )
        count = iter(range(10_000))

        def pipeline() -> None:
            version = f"run-{next(count)}"
            data = ShardedTensorDataset(
                filepath=str(root / version / "lite0"), version=Version(version, version)
            )
            data.save(
                plan_embedding(
                    slides, tiles, files, entry, record, parameters["tile"], parameters["embed"],
                    engine, name="lite0",
                )
            )  # fmt: skip

        bare = partial(loop, encoder, pixels, threads)
        times = in_turns({"pipeline": pipeline, "bare": bare}, repeat)
    ratios = [b / p for p, b in zip(times["pipeline"], times["bare"], strict=True)]
    n = len(pixels)
    print(f"{n} tiles of {n_slides} slides, efficientnet_lite0 by {runtime}, {threads} workers")
    print(f"pipeline  {n / statistics.median(times['pipeline']):7.1f} tiles/s")
    print(f"bare loop {n / statistics.median(times['bare']):7.1f} tiles/s")
    print(
        f"throughput of the pipeline / bare loop: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
