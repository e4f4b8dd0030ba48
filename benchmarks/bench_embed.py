"""Time the runtimes of encoders, and the embed pipeline beside a bare loop of the same encoder.

    python benchmarks/bench_embed.py --slides 16 --repeat 3
    python benchmarks/bench_embed.py --device cuda

The first table has one row per encoder and runtime: preprocessing and forward pass over tiles already
in memory, by as many threads as the pipeline has workers. Then the pipeline with each encoder is timed
beside that same loop. The pipeline also opens slides, decodes and resizes tiles, hashes, writes shards
and keeps its books; the loop does none of that. What is compared is timed in turns, so that a machine
whose speed drifts treats it alike; by processor time too, which other work on the machine moves less.
Reading alone, by all workers, is timed as well: the pipeline can be no faster than the slower of both.
On a CPU a loop that opens the slides with OpenSlide and reads its tiles itself is timed too: what one
would write instead of the pipeline.

With ``--device cuda`` the networks compute in bfloat16, ViT-L/16 (random weights) among them. Slides
are larger there, of JPEG tiles like a scanner's, and are read as they were scanned, by all cores.
Printed too: the bare loop by size of batch, whether vectors by several threads equal those by one, and
what the trial of runtimes would choose.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import polars as pl
import torch
from kedro.io.core import Version

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.bench_memory import MPP, defaults, write_cohort
from benchmarks.bench_tiles import resized
from benchmarks.timing import Taken, in_turns, spent
from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.datasets.slide_files import SlideFilesDataset
from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial
from pathfm_kedro.encoders.base import Encoder, Pixels
from pathfm_kedro.encoders.entry_checks import RUNTIMES
from pathfm_kedro.encoders.torch_encoder import TorchEncoder, load_torch_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles
from pathfm_kedro.engine.settings import available_cores
from pathfm_kedro.pipelines.embed.embedding import plan_embedding
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.drawing import draw_phantom
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.fields import TileFields, slide_fields
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
#: An architecture without its weights: as fast as with them.
RANDOM: dict[str, Any] = {"pretrained": False, "seed": 0}
VIT_LARGE: dict[str, Any] = {"model": "timm:vit_large_patch16_224", "device": "cpu", **RANDOM}
#: A transformer gains nothing by onnxruntime.
LAYOUT = "channels_last"
#: Tiles of a timed pass over each runtime.
_TILES = 64
#: Side in px of a slide that a GPU is fed from: room for the 256 tiles that are taken of a slide.
_GPU_SLIDE = (10_000, 8_000)
#: Batches of which the bare loop on a GPU is timed.
_GPU_BATCHES = (32, 64, 128, 256, 512)


def loop(encoder: Encoder, pixels: Pixels, threads: int) -> None:
    """Vectors of tiles in memory, by threads that compute with one thread each."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(encoder.embed, np.array_split(pixels, threads)):
            pass


def reading_loop(encoder: Encoder, cohort: Cohort) -> None:
    """Vectors of tiles that are read with OpenSlide in the same loop; threads share the slides."""
    pixels = int(cohort.parameters["tile"]["pixels"])

    def embed(own: TileFields) -> None:
        side, corners = round(own.side), list(zip(own.x, own.y, strict=True))
        with openslide.OpenSlide(own.files.root / own.path) as slide:
            for start in range(0, len(corners), encoder.batch_size):
                tiles = [
                    resized(
                        np.asarray(slide.read_region(at, 0, (side, side)).convert("RGB")), pixels
                    )
                    for at in corners[start : start + encoder.batch_size]
                ]
                encoder.embed(np.stack(tiles))

    torch.set_num_threads(1)
    with ThreadPoolExecutor(int(cohort.engine["workers"])) as pool:
        found = slide_fields(cohort.slides, cohort.tiles, cohort.files, pixels)
        for _ in pool.map(embed, [own for _, own in found]):
            pass


def warmed(works: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, list[Taken]]:
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

    @cached_property
    def pixels(self) -> Pixels:
        """Tiles of all slides in memory."""
        return np.concatenate(self.read(_TILES))

    def read(self, size: int) -> list[Pixels]:
        """Tiles of all slides, read now by as many threads as there are workers."""
        KEPT.clear()
        pixels = int(self.parameters["tile"]["pixels"])
        found = slide_fields(self.slides, self.tiles, self.files, pixels)

        def batches(fields: TileFields) -> list[Pixels]:
            return [tiles for tiles, _ in fields.batches(size)]

        with ThreadPoolExecutor(int(self.engine["workers"])) as pool:
            return [b for some in pool.map(batches, [own for _, own in found]) for b in some]


def draw_cohort(root: Path, n_slides: int, threads: int) -> Cohort:
    """A phantom of so many slides."""
    parameters = defaults()
    engine = {"workers": threads, "max_failed_share": 0.0}
    plan, manifest = draw_phantom(parameters["phantom"], engine)
    store = SlideFilesDataset(filepath=str(root / "raw"))
    store.save(type(plan)(plan.jobs[:n_slides], plan.engine, plan.title))
    return tiled(root, manifest.head(n_slides), store.load(), parameters, engine)


def draw_scans(root: Path, n_slides: int, threads: int) -> Cohort:
    """So many slides of JPEG tiles, cut at the magnification that they have."""
    parameters = defaults()
    parameters["tile"] |= {"mpp": MPP}
    manifest = write_cohort(root / "raw", {f"s{i:04d}": _GPU_SLIDE for i in range(n_slides)})
    engine = {"workers": threads, "max_failed_share": 0.0}
    return tiled(root, manifest, SlideFiles(root / "raw"), parameters, engine)


def tiled(
    root: Path,
    manifest: pl.DataFrame,
    files: SlideFiles,
    parameters: dict[str, Any],
    engine: dict[str, Any],
) -> Cohort:
    """Slides of a manifest, described and tiled."""
    slides = describe_slides(check_manifest(manifest), files, parameters["ingest"], engine)
    tiles, _ = cut_tiles(slides, files, parameters["tile"], engine)
    return Cohort(root, slides, tiles, files, parameters, engine)


def compare_with_pipeline(
    cohort: Cohort,
    name: str,
    entry: dict[str, Any],
    record: dict[str, Any],
    repeat: int,
) -> None:
    """Print throughput of the pipeline, of the bare loop, their ratio, and where the rest goes."""
    encoder = load_torch_encoder(EncoderSpec.from_parameters(name, entry).with_runtime(record))
    threads, size = int(cohort.engine["workers"]), encoder.batch_size
    pixels = cohort.pixels
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

    bare = partial(loop, encoder, pixels, threads)
    works: dict[str, Callable[[], object]] = {
        "pipeline": pipeline, "bare": bare, "read": partial(cohort.read, size),
    }  # fmt: skip
    if encoder.device == "cpu":
        works["own"] = partial(reading_loop, encoder, cohort)
    print(
        f"{len(pixels)} tiles of {len(cohort.slides)} slides, {name} by {record['runtime']} in "
        f"{record['precision']} on {record['device']}, batches of {size}, {threads} workers"
    )
    report(warmed(works, repeat), len(pixels), milliseconds_of_parts(encoder, pixels))
    if encoder.device == "cuda":
        report_gpu(encoder, pixels)


def report(turns: dict[str, list[Taken]], n: int, parts: dict[str, float]) -> None:
    """Print throughput, ratios and where the time of processors goes."""
    wall = {work: [one.clock for one in times] for work, times in turns.items()}
    processor = {work: [one.processors for one in times] for work, times in turns.items()}
    names = {
        "pipeline": "pipeline",
        "bare": "bare loop",
        "read": "reading",
        "own": "loop that reads with OpenSlide",
    }
    for work, times in wall.items():
        print(f"{names[work]:30} {n / statistics.median(times):7.1f} tiles/s")
    if "own" in wall:
        print(f"throughput of the pipeline / loop that reads with OpenSlide: {ratio(wall, 'own')}")
    wall["slower"] = [max(pair) for pair in zip(wall["bare"], wall["read"], strict=True)]
    print(f"throughput of the pipeline / bare loop: {ratio(wall, 'bare')}")
    print(f"throughput of the pipeline / slower of bare loop and reading: {ratio(wall, 'slower')}")
    print(f"processor time of the bare loop / pipeline: {ratio(processor, 'bare')}")
    for work, label in (("read", "reading"), ("pipeline", "pipeline, all")):
        parts[label] = 1000 * statistics.median(processor[work]) / n
    print("processor ms a tile: " + ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items()))


def ratio(times: dict[str, list[float]], beside: str) -> str:
    """Median and range of what stands beside over pipeline, turn by turn."""
    found = [b / p for p, b in zip(times["pipeline"], times[beside], strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def report_gpu(encoder: TorchEncoder, pixels: Pixels) -> None:
    """Print the bare loop by size of batch, and whether threads give what one gives."""
    speeds = {}
    for size in _GPU_BATCHES:
        sized, some = replace(encoder, batch_size=size), pixels[: 8 * size]
        sized.embed(some[: 2 * size])
        speeds[size] = len(some) / spent(partial(loop, sized, some, 2)).clock
    print("bare loop by batch: " + ", ".join(f"{n}: {v:.0f} tiles/s" for n, v in speeds.items()))
    parts = [pixels[start : start + 64] for start in range(0, min(len(pixels), 2048), 64)]
    with ThreadPoolExecutor(8) as pool:
        same = np.array_equal(
            np.concatenate(list(pool.map(encoder.embed, parts))),
            np.concatenate([encoder.embed(part) for part in parts]),
        )
    print(f"8 threads give {'the same vectors as' if same else 'OTHER VECTORS THAN'} one")
    print(f"most memory of the GPU: {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB")


def milliseconds_of_parts(encoder: TorchEncoder, pixels: Pixels) -> dict[str, float]:
    """Processor time of a tile by one thread: what the pipeline and the bare loop both do."""
    torch.set_num_threads(1)
    size, some = encoder.batch_size, pixels[: 8 * encoder.batch_size]
    parts = [some[start : start + size] for start in range(0, len(some), size)]
    staged = [encoder.stage(part) for part in parts]
    works: dict[str, Callable[[], object]] = {
        "preprocess": lambda: [encoder.stage(part) for part in parts],
        "network": lambda: [encoder.forward(part) for part in staged],
    }
    return {
        name: 1000 * min(spent(work).processors for _ in range(3)) / len(some)
        for name, work in works.items()
    }


def on_cpu(cohort: Cohort, entries: dict[str, dict[str, Any]], runtime: str, repeat: int) -> None:
    """Every encoder by a runtime that suits it."""
    for name, entry in entries.items():
        chosen = entry | {"runtime": runtime if entry is LITE0 else LAYOUT}
        record = RuntimeTrial(EncoderSpec.from_parameters(name, chosen)).record()
        compare_with_pipeline(cohort, name, chosen, record, repeat)


def on_gpu(cohort: Cohort, entries: dict[str, dict[str, Any]], repeat: int) -> None:
    """Every encoder in bfloat16, and what the trial would choose."""
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for name, entry in entries.items():
        chosen = entry | {"device": "cuda"}
        record = {"runtime": LAYOUT, "precision": "bfloat16", "device": "cuda"}
        compare_with_pipeline(cohort, name, chosen, record, repeat)
        tried = RuntimeTrial(EncoderSpec.from_parameters(name, chosen)).record()
        kept = ("runtime", "precision", "agreement", "tiles_per_second", "refused")
        print("the trial chooses", {key: tried[key] for key in kept}, flush=True)


def main() -> None:
    """Compare runtimes, then draw slides and embed them both ways."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--slides", type=int, help="16; on a GPU 64")
    options.add_argument("--threads", type=int, help="2; on a GPU one for every core")
    options.add_argument("--runtime", choices=RUNTIMES, default="onnxruntime")
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--pipeline-only", action="store_true", help="leave the runtimes out")
    options.add_argument(
        "--real-data",
        type=Path,
        default=Path(os.environ.get("PATHFM_REAL_DATA", PROJECT.parent / "shared" / "data")),
        help="folder with the weights of a ViT-S/14; without them they are random",
    )
    given = options.parse_args()
    weights = given.real_data / VIT_WEIGHTS
    vit = VIT | ({"checkpoint": str(weights)} if weights.is_file() else RANDOM)
    entries = {"efficientnet_lite0": LITE0, "vit_small_14": vit}
    with tempfile.TemporaryDirectory() as folder:
        if given.device == "cuda":
            entries["vit_large_16"] = VIT_LARGE
            threads = given.threads or available_cores()
            on_gpu(draw_scans(Path(folder), given.slides or 64, threads), entries, given.repeat)
            return
        threads = given.threads or 2
        if not given.pipeline_only:
            with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
                print(compare_runtimes(entries, threads, given.repeat))
        cohort = draw_cohort(Path(folder), given.slides or 16, threads)
        on_cpu(cohort, entries, given.runtime, given.repeat)


if __name__ == "__main__":
    main()
