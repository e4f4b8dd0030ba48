"""Time the embed pipeline beside a bare loop of the same model over tiles already in memory.

    python benchmarks/bench_embed.py --slides 16 --repeat 3

Both use the same weights, batch size, channels-last memory and number of threads. The pipeline also
opens slides, decodes and resizes tiles, hashes, writes shards and keeps its books; the loop does none
of that. The two are timed in turns, so that a machine whose speed drifts treats them alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from kedro.io.core import Version

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.datasets.slide_files import SlideFilesDataset
from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.pipelines.embed.embedding import plan_embedding
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.drawing import draw_phantom
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.fields import slide_fields

CONF = Path(__file__).parents[1] / "conf" / "base"


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Draw slides, embed them both ways, print throughput and the ratio."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slides", type=int, default=16)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--repeat", type=int, default=3)
    told = options.parse_args()
    parameters: dict[str, Any] = {}
    for path in CONF.glob("parameters*.yml"):
        parameters |= yaml.safe_load(path.read_text())
    engine = {"workers": told.threads, "max_failed_share": 0.0}
    entry = {"model": "package:efficientnet_lite0", "batch_size": told.batch}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plan, manifest = draw_phantom(parameters["phantom"], engine)
        kept = manifest.head(told.slides)
        store = SlideFilesDataset(filepath=str(root / "raw"))
        store.save(type(plan)(plan.jobs[: told.slides], plan.engine, plan.title))
        files = store.load()
        slides = describe_slides(check_manifest(kept), files, parameters["ingest"], engine)
        tiles, _ = cut_tiles(slides, files, parameters["tile"], engine)
        encoder = load_encoder(EncoderSpec.from_parameters("lite0", entry))
        pixels = np.concatenate(
            [
                batch
                for _, fields in slide_fields(slides, tiles, files, parameters["tile"]["pixels"])
                for batch, _ in fields.batches(told.batch)
            ]
        )

        def bare() -> None:
            torch.set_num_threads(told.threads)
            encoder.embed(pixels)

        count = iter(range(10_000))

        def pipeline() -> None:
            version = f"run-{next(count)}"
            data = ShardedTensorDataset(
                filepath=str(root / version / "lite0"), version=Version(version, version)
            )
            data.save(
                plan_embedding(
                    slides, tiles, files, entry, parameters["tile"], parameters["embed"], engine,
                    name="lite0",
                )
            )  # fmt: skip

        bare()
        pairs = [(seconds(pipeline), seconds(bare)) for _ in range(told.repeat)]
    rows = pl.DataFrame(pairs, schema=["pipeline", "bare"], orient="row")
    ratios = [b / p for p, b in pairs]
    n = len(pixels)
    print(f"{n} tiles of {told.slides} slides, batch {told.batch}, {told.threads} threads")
    print(f"pipeline  {n / rows['pipeline'].median():7.1f} tiles/s")
    print(f"bare loop {n / rows['bare'].median():7.1f} tiles/s")
    print(
        f"throughput of the pipeline / bare loop: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
