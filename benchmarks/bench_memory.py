"""Peak memory of a slide of 8 gigapixels beside a small one, and of a large cohort beside a small one.

    python benchmarks/bench_memory.py                  # 100,000 x 80,000 px; 2,000 slides
    python benchmarks/bench_memory.py --fast           # 20,000 x 16,000 px; 300 slides
    python benchmarks/bench_memory.py --encoder package:efficientnet_lite0

The slides are synthetic: every tile of the file points at one of a few JPEG images, so gigapixels take
a megabyte on disk. Each measurement runs in a process of its own; memory is the largest resident set
that the system saw, before and after the stage.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import peak_mb

CONF = Path(__file__).parents[1] / "conf" / "base"
MPP = 0.25
#: What `runtime: auto` would try out first.
RUNTIME = {"runtime": "eager", "precision": "float32", "device": "cpu"}
_TILE = 256
#: TIFF's tags and types: 3 is SHORT, 4 LONG, 5 RATIONAL.
_SHORT, _LONG, _RATIONAL = 3, 4, 5
#: Enough different images that a slide is not one colour.
_TEXTURES = 6


def write_synthetic_slide(path: Path, width: int, height: int, seed: int = 0) -> None:
    """A pyramidal TIFF of any size with tissue in an ellipse and glass around it.

    Parameters
    ----------
    path
        Where.
    width, height
        Level-0 px; levels of a quarter of the side follow down to 1,500 px.
    seed
        Of the textures.
    """
    generator = np.random.default_rng(seed)
    images = [_jpeg(_glass(generator))] + [_jpeg(_tissue(generator)) for _ in range(_TEXTURES)]
    with path.open("wb") as file:
        file.write(b"II*\0\0\0\0\0")
        places = []
        for image in images:
            places.append((file.tell(), len(image)))
            file.write(image + b"\0" * (len(image) % 2))
        link, factor = 4, 1
        while factor == 1 or min(width, height) / factor > 1500:
            shape = (-(-width // factor), -(-height // factor))
            link = _write_level(file, link, shape, factor, places, generator)
            factor *= 4


def _tissue(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Dark spots on pink."""
    pixels = np.empty((_TILE, _TILE, 3))
    pixels[:] = (np.array([215, 140, 190]) + generator.normal(0, 12, 3)).clip(0, 235)
    y, x = np.mgrid[:_TILE, :_TILE]
    for cx, cy, radius in generator.uniform((0, 0, 4), (_TILE, _TILE, 10), (90, 3)):
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = (95, 60, 140)
    noisy = pixels + generator.normal(0, 5, pixels.shape)
    return np.asarray(noisy.clip(0, 255), np.uint8)


def _glass(generator: np.random.Generator) -> NDArray[np.uint8]:
    return np.asarray(
        generator.normal(243, 1, (_TILE, _TILE, 1)).repeat(3, 2).clip(0, 255), np.uint8
    )


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80, subsampling="4:2:0")
    return buffer.getvalue()


def _write_level(
    file: Any,
    link: int,
    shape: tuple[int, int],
    factor: int,
    places: list[tuple[int, int]],
    generator: np.random.Generator,
) -> int:
    """One directory behind what is there, and where the place of the next one is to be written."""
    width, height = shape
    across, down = -(-width // _TILE), -(-height // _TILE)
    x, y = (np.arange(across) + 0.5) / across, (np.arange(down) + 0.5) / down
    inside = (x - 0.5) ** 2 + (y[:, None] - 0.5) ** 2 < 0.4**2
    kinds = np.where(inside, generator.integers(1, len(places), inside.shape), 0).ravel()
    offsets, sizes = (np.array(column, np.uint32)[kinds] for column in zip(*places, strict=True))
    per_cm = round(1e4 / (MPP * factor) * 100)
    tags: list[tuple[int, int, NDArray[Any]]] = [
        (254, _LONG, np.array([int(factor > 1)], np.uint32)),
        (256, _LONG, np.array([width], np.uint32)),
        (257, _LONG, np.array([height], np.uint32)),
        (258, _SHORT, np.array([8, 8, 8], np.uint16)),
        (259, _SHORT, np.array([7], np.uint16)),
        (262, _SHORT, np.array([6], np.uint16)),
        (277, _SHORT, np.array([3], np.uint16)),
        (282, _RATIONAL, np.array([per_cm, 100], np.uint32)),
        (283, _RATIONAL, np.array([per_cm, 100], np.uint32)),
        (284, _SHORT, np.array([1], np.uint16)),
        (296, _SHORT, np.array([3], np.uint16)),
        (322, _LONG, np.array([_TILE], np.uint32)),
        (323, _LONG, np.array([_TILE], np.uint32)),
        (324, _LONG, offsets),
        (325, _LONG, sizes),
        (530, _SHORT, np.array([2, 2], np.uint16)),
    ]
    entries = []
    for tag, kind, values in tags:
        data = values.tobytes()
        count = len(values) // (2 if kind == _RATIONAL else 1)
        if len(data) > 4:
            entries.append(struct.pack("<HHII", tag, kind, count, file.tell()))
            file.write(data + b"\0" * (len(data) % 2))
        else:
            entries.append(struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0"))
    start = file.tell()
    file.write(struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0")
    end = file.tell()
    file.seek(link)
    file.write(struct.pack("<I", start))
    file.seek(end)
    return int(end - 4)


def write_cohort(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> pl.DataFrame:
    """Slides of these sizes and their manifest; those of one size differ in a few bytes only."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[tuple[int, int], bytes] = {}
    rows = []
    for slide_id, size in sizes.items():
        path = folder / f"{slide_id}.tiff"
        if size not in drawn:
            write_synthetic_slide(path, *size)
            drawn[size] = path.read_bytes()
        path.write_bytes(drawn[size] + slide_id.encode())
        rows.append(
            {
                "slide_id": slide_id,
                "path": path.name,
                "patient_id": slide_id,
                "center": f"center {len(rows) % 2}",
                "label": f"label {len(rows) // 2 % 2}",
            }
        )
    return pl.DataFrame(rows)


def defaults() -> dict[str, Any]:
    """The project's default parameters."""
    found: dict[str, Any] = {}
    for path in sorted(CONF.glob("parameters*.yml")):
        found |= yaml.safe_load(path.read_text())
    return found


def run_stages(
    root: Path,
    manifest: pl.DataFrame,
    encoder: Mapping[str, Any],
    engine: Mapping[str, Any],
    more: Mapping[str, Callable[[pl.DataFrame, pl.DataFrame, Any], object]] | None = None,
) -> dict[str, Any]:
    """Describe, tile and embed; seconds and peak memory after each.

    Parameters
    ----------
    root
        Slides lie in ``raw`` below it; vectors go beside them.
    manifest
        Of the slides.
    encoder
        An entry of ``encoders``.
    engine
        Where the jobs run.
    more
        Further stages by name, each of slides, tiles and vectors.
    """
    from kedro.io.core import Version

    from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
    from pathfm_kedro.encoders import EncoderSpec, load_encoder
    from pathfm_kedro.pipelines.embed.embedding import plan_embedding
    from pathfm_kedro.pipelines.ingest.description import describe_slides
    from pathfm_kedro.pipelines.ingest.manifest import check_manifest
    from pathfm_kedro.pipelines.tile.tiles import cut_tiles
    from pathfm_kedro.slides.files import SlideFiles
    from pathfm_kedro.slides.kept_pixels import KEPT
    from pathfm_kedro.statistics.mosaic import pool_slides

    _load_libraries()
    # What is kept for other encoders has a bound of its own, and would hide what grows without one.
    KEPT.most_bytes = 0
    parameters, files = defaults(), SlideFiles(root / "raw")
    load_encoder(EncoderSpec.from_parameters("measured", encoder).with_runtime(RUNTIME))
    found: dict[str, Any] = {"peak": {"libraries": peak_mb()}, "seconds": {}, "cpu": {}}

    def done(stage: str) -> None:
        found["peak"][stage] = peak_mb()
        found["seconds"][stage] = time.perf_counter() - start[0]
        found["cpu"][stage] = time.process_time() - start[1]

    start = _now()
    slides = describe_slides(check_manifest(manifest), files, parameters["ingest"], engine)
    done("ingest")
    start = _now()
    tiles, _ = cut_tiles(slides, files, parameters["tile"], engine)
    done("tile")
    start = _now()
    version = str(time.time_ns())
    data = ShardedTensorDataset(
        filepath=(root / "vectors" / "measured").as_posix(), version=Version(version, version)
    )
    data.save(
        plan_embedding(
            slides, tiles, files, encoder, RUNTIME, parameters["tile"], parameters["embed"], engine,
            name="measured",
        )
    )  # fmt: skip
    done("embed")
    start = _now()
    pool_slides(slides, tiles, data.load())
    done("pool")
    for name, stage in (more or {}).items():
        start = _now()
        stage(slides, tiles, data.load())
        done(name)
    return found | {"slides": slides.height, "tiles": tiles.height}


def _now() -> tuple[float, float]:
    """Wall clock and processor time of this process's threads."""
    return time.perf_counter(), time.process_time()


def _load_libraries() -> None:
    """What the stages load anyway, so that it is not taken for memory of slides."""
    import openslide  # noqa: F401
    import safetensors.numpy  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import skimage.filters
    import sklearn.cluster
    import torch  # noqa: F401

    # Both load more at their first use.
    skimage.filters.threshold_otsu(np.arange(9.0))  # type: ignore[no-untyped-call]
    sklearn.cluster.KMeans(2, n_init=1).fit(np.arange(9.0)[:, None])


def measured(
    root: Path, manifest: pl.DataFrame, encoder: Mapping[str, Any], engine: Mapping[str, Any]
) -> dict[str, Any]:
    """:func:`run_stages` in a process of its own."""
    manifest.write_csv(root / "manifest.csv")
    told = json.dumps({"encoder": dict(encoder), "engine": dict(engine)})
    command = [sys.executable, str(Path(__file__)), "--child", str(root), told]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: per case and stage seconds, and peak memory beyond the libraries'."""
    stages = list(next(iter(cases.values()))["seconds"])
    lines = [
        "| case | slides | tiles | libraries, MB |"
        + "".join(f" {stage}, s | peak beyond, MB |" for stage in stages),
        "|---|---|---|---|" + "---|---|" * len(stages),
    ]
    for case, found in cases.items():
        base = found["peak"]["libraries"]
        cells = "".join(
            f" {found['seconds'][stage]:.1f} | {found['peak'][stage] - base:.0f} |"
            for stage in stages
        )
        lines.append(f"| {case} | {found['slides']} | {found['tiles']} | {base:.0f} |{cells}")
    return "\n".join(lines)


def main() -> None:
    """Measure both pairs and print the table."""
    if sys.argv[1:2] == ["--child"]:
        root, told = Path(sys.argv[2]), json.loads(sys.argv[3])
        print(json.dumps(run_stages(root, pl.read_csv(root / "manifest.csv"), **told)))
        return
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--fast", action="store_true")
    options.add_argument("--encoder", default="control:stain_statistics")
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--only", choices=("slide", "cohort"))
    told = options.parse_args()
    large, many = ((20_000, 16_000), 300) if told.fast else ((100_000, 80_000), 2_000)
    cohorts: dict[str, dict[str, tuple[int, int]]] = {
        "10,000 x 8,000 px": {"small": (10_000, 8_000)},
        f"{large[0]:,} x {large[1]:,} px": {"large": large},
    }
    if told.only == "cohort":
        cohorts = {}
    if told.only != "slide":
        for n in (many // 10, many):
            cohorts[f"{n:,} slides"] = {f"s{i:05d}": (2048, 2048) for i in range(n)}
    found = {}
    for case, sizes in cohorts.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            manifest = write_cohort(root / "raw", sizes)
            encoder = {"model": told.encoder}
            found[case] = measured(root, manifest, encoder, {"workers": told.workers})
    print(table(found))


if __name__ == "__main__":
    main()
