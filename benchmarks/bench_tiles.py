"""Time the reading of tiles beside what one would use instead, on the Aperio slides of a folder.

    python benchmarks/bench_tiles.py --slides ../shared/data/slides --repeats 15

Every contestant reads the same tiles: those that the tile pipeline chooses, as uint8 arrays of the
same size. In turn each opens the slide, reads all its tiles and closes it, in a process with one
thread of Python; seconds of the processor count, on all its threads. Contestants:

- the project's reader;
- a plain loop over OpenSlide: read_region from the best level, convert, resize if needed;
- tiffslide, if installed;
- hs2p with each backend that is installed, in the Python of --peer-python or this one. It reads blocks
  of tiles on a regular grid, so it is given the regular grid nearest to the tiles.

Agreement is the mean absolute difference (0 to 255) to what OpenSlide reads at the same place. With
--accuracy nothing is timed: tiles are compared with level 0, read by OpenSlide and reduced by area.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

HS2P_BACKENDS = ("openslide", "vips", "cucim")

Tiles = NDArray[np.uint8]
#: Seconds on the clock, seconds of the processor.
Timing = tuple[float, float]


@dataclass(frozen=True)
class Work:
    """The tiles of one slide.

    Attributes
    ----------
    path
        The slide.
    x, y
        Upper left corners in level-0 px.
    side
        Side of a tile in level-0 px.
    pixels
        Side of a tile as wanted.
    level, factor
        The level to read and its level-0 px per px.
    mpp
        Micrometres per level-0 px.
    """

    path: str
    x: list[int]
    y: list[int]
    side: float
    pixels: int
    level: int
    factor: float
    mpp: float

    @property
    def extent(self) -> int:
        """Side of a tile in px of the level."""
        return round(self.side / self.factor)

    def on_regular_grid(self) -> Work:
        """Corners at whole multiples of the side rounded to whole px of the level."""
        step = round(self.extent * self.factor)
        x = [round(x / self.side) * step for x in self.x]
        y = [round(y / self.side) * step for y in self.y]
        return Work(**asdict(self) | {"x": x, "y": y})


def resized(tile: Tiles, pixels: int) -> Tiles:
    """A tile at the wanted size, as one would do it."""
    from PIL import Image

    if tile.shape[0] == pixels:
        return tile
    return np.asarray(Image.fromarray(tile).resize((pixels, pixels), Image.Resampling.BILINEAR))


def read_ours(work: Work) -> list[Tiles]:
    """The project's reader, as the embed pipeline calls it."""
    from pathfm_kedro.slides.fields import TileFields
    from pathfm_kedro.slides.files import SlideFiles

    path = Path(work.path)
    fields = TileFields(
        SlideFiles(path.parent), path.name, tuple(work.x), tuple(work.y), work.side, work.pixels
    )
    return [tile for batch, _ in fields.batches(32) for tile in batch]


def read_openslide(work: Work) -> list[Tiles]:
    """A plain loop."""
    import openslide

    size = (work.extent, work.extent)
    with openslide.OpenSlide(work.path) as slide:
        return [
            resized(
                np.asarray(slide.read_region((x, y), work.level, size).convert("RGB")), work.pixels
            )
            for x, y in zip(work.x, work.y, strict=True)
        ]


def read_tiffslide(work: Work) -> list[Tiles]:
    """The same loop with tiffslide."""
    import tiffslide

    size = (work.extent, work.extent)
    with tiffslide.TiffSlide(work.path) as slide:
        return [
            resized(
                np.asarray(slide.read_region((x, y), work.level, size, as_array=True), np.uint8),
                work.pixels,
            )
            for x, y in zip(work.x, work.y, strict=True)
        ]


def read_hs2p(work: Work, backend: str) -> list[Tiles]:
    """hs2p's own way from positions to tiles, which reads blocks of up to 8 x 8 tiles."""
    from hs2p.wsi import iter_tile_records_from_result

    levels = level_factors(work.path)
    result = SimpleNamespace(
        image_path=Path(work.path),
        backend=backend,
        base_spacing_um=work.mpp,
        x=np.array(work.x),
        y=np.array(work.y),
        num_tiles=len(work.x),
        tile_index=np.arange(len(work.x)),
        read_level=work.level,
        read_tile_size_px=work.extent,
        tile_size_lv0=round(work.extent * work.factor),
        step_px_lv0=round(work.extent * work.factor),
        overlap=0.0,
        level_downsamples=levels,
    )
    tiles: list[Tiles] = [np.empty(0, np.uint8)] * len(work.x)
    for record in iter_tile_records_from_result(result=result, num_workers=1):
        tile = np.ascontiguousarray(record.tile_arr[..., :3])
        tiles[record.tile_index] = resized(tile, work.pixels)
    return tiles


_FACTORS: dict[str, list[float]] = {}


def level_factors(path: str) -> list[float]:
    """Level-0 px per px of every level; kept, since hs2p knows them from its tiling."""
    import openslide

    if path not in _FACTORS:
        with openslide.OpenSlide(path) as slide:
            _FACTORS[path] = list(slide.level_downsamples)
    return _FACTORS[path]


def timed(read: Callable[[Work], list[Tiles]], work: Work) -> tuple[Timing, list[Tiles]]:
    """Seconds on the clock and of the processor, and the tiles."""
    wall, used = time.perf_counter(), time.process_time()
    tiles = read(work)
    return (time.perf_counter() - wall, time.process_time() - used), tiles


def difference(work: Work, tiles: list[Tiles]) -> float:
    """Mean absolute difference to OpenSlide at the same place."""
    pairs = zip(read_openslide(work), tiles, strict=True)
    return float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))


def reduced_level_0(work: Work) -> list[Tiles]:
    """What the tiles show: level 0 at their place, each px the mean of those it covers."""
    import openslide
    from PIL import Image

    side, wanted = round(work.side), (work.pixels, work.pixels)
    with openslide.OpenSlide(work.path) as slide:
        return [
            np.asarray(
                slide.read_region((x, y), 0, (side, side))
                .convert("RGB")
                .resize(wanted, Image.Resampling.BOX)
            )
            for x, y in zip(work.x, work.y, strict=True)
        ]


def accuracy(work: Work) -> list[str]:
    """Rows of the table of accuracy: each reader's tiles beside the reduced level 0."""
    from skimage.registration import phase_cross_correlation

    from pathfm_kedro.slides.tissue import sharpness

    true = reduced_level_0(work)
    read = {"pathfm_kedro": read_ours(work), "OpenSlide loop": read_openslide(work)}
    apart = {
        name: [np.abs(a.astype(int) - b).mean() for a, b in zip(true, tiles, strict=True)]
        for name, tiles in read.items()
    }
    least = np.min(list(apart.values()), axis=0)
    rows = []
    for name, tiles in read.items():
        moved = [
            np.hypot(
                *phase_cross_correlation(a.mean(axis=2), b.mean(axis=2), upsample_factor=50)[0]
            )
            for a, b in zip(true, tiles, strict=True)
        ]
        sharp = [sharpness(b) / sharpness(a) for a, b in zip(true, tiles, strict=True)]
        rows.append(
            f"| {name} | {np.mean(apart[name]):.2f} | {np.sum(apart[name] == least)} of {len(true)} | "
            f"{np.mean(moved):.3f} ({np.max(moved):.2f}) | {np.mean(sharp):.2f} |"
        )
    return rows


def serve() -> None:
    """The peer's side: one line of JSON in, one out."""
    for line in sys.stdin:
        asked = json.loads(line)
        work, backend = Work(**asked["work"]), asked["backend"]
        try:
            seconds, tiles = timed(partial(read_hs2p, backend=backend), work)
            answer: dict[str, Any] = {"seconds": seconds}
            if asked["compare"]:
                answer["difference"] = difference(work, tiles)
        except ImportError as error:
            answer = {"error": f"not installed: {error}"}
        except Exception as error:
            answer = {"error": f"does not read this slide: {error}"}
        print(json.dumps(answer), flush=True)


class Peer:
    """hs2p in a Python of its own, since it need not fit beside the project's packages."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, work: Work, backend: str, compare: bool = False) -> dict[str, Any]:
        """Have the slide read once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"work": asdict(work.on_regular_grid()), "backend": backend, "compare": compare}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "not installed"}

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def choose_tiles(path: Path, mpp: float, unknown_mpp: float) -> Work:
    """The tiles that the tile pipeline chooses, all of them."""
    from benchmarks.bench_memory import defaults
    from pathfm_kedro.pipelines.ingest.description import describe_slides
    from pathfm_kedro.pipelines.ingest.manifest import check_manifest
    from pathfm_kedro.pipelines.tile.tiles import cut_tiles
    from pathfm_kedro.slides.files import SlideFiles
    from pathfm_kedro.slides.readers import open_slide

    with open_slide(path) as reader:
        description = reader.description
    known = description.mpp or unknown_mpp
    parameters = defaults()
    engine = {"workers": 1, "max_failed_share": 0.0}
    listed = check_manifest(_manifest(path, known))
    files = SlideFiles(path.parent)
    slides = describe_slides(listed, files, parameters["ingest"], engine)
    tile = parameters["tile"] | {"max_tiles_per_slide": None, "mpp": mpp}
    tiles, _ = cut_tiles(slides, files, tile, engine)
    side = tile["pixels"] * mpp / known
    wanted = side / tile["pixels"]
    factors = description.downsamples
    level = max(i for i, factor in enumerate(factors) if factor <= max(wanted, 1.0) * 1.01)
    return Work(
        str(path), tiles["x"].to_list(), tiles["y"].to_list(), side, tile["pixels"], level,
        factors[level], known,
    )  # fmt: skip


def _manifest(path: Path, mpp: float) -> Any:
    import polars as pl

    row = {
        "slide_id": "slide",
        "path": path.name,
        "patient_id": "patient",
        "center": "center",
        "label": "label",
        "mpp": str(mpp),
    }
    return pl.DataFrame([row])


@dataclass(frozen=True)
class Contestant:
    """Who reads.

    Attributes
    ----------
    name
        As in the table.
    once
        Reads a slide once: seconds, or why it cannot.
    differs
        Mean absolute difference to OpenSlide.
    """

    name: str
    once: Callable[[Work], Timing]
    differs: Callable[[Work], float]


def here(name: str, read: Callable[[Work], list[Tiles]]) -> Contestant:
    """A contestant in this process."""
    return Contestant(
        name, lambda work: timed(read, work)[0], lambda work: difference(work, read(work))
    )


def there(peer: Peer, backend: str) -> Contestant:
    """Hs2p with one backend."""

    def ask(work: Work, compare: bool) -> dict[str, Any]:
        answer = peer.ask(work, backend, compare)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def once(work: Work) -> Timing:
        wall, used = ask(work, False)["seconds"]
        return wall, used

    return Contestant(f"hs2p ({backend})", once, lambda work: float(ask(work, True)["difference"]))


def compete(work: Work, contestants: list[Contestant], repeats: int) -> list[str]:
    """Rows of the table: our own first, the best other is what it is measured against."""
    differences: dict[str, float] = {}
    missing = []
    for contestant in contestants:
        try:
            differences[contestant.name] = contestant.differs(work)
        except ImportError:
            missing.append(f"| {contestant.name} | not installed | | | | |")
        except RuntimeError as error:
            reason = str(error).replace("\n", " ").replace("|", "/")[:60]
            missing.append(f"| {contestant.name} | {reason} | | | | |")
    running = [c for c in contestants if c.name in differences]
    timings: dict[str, list[Timing]] = {c.name: [] for c in running}
    # In turns, so that a machine whose speed drifts treats all alike.
    for turn in range(repeats):
        for contestant in running[turn % len(running) :] + running[: turn % len(running)]:
            timings[contestant.name].append(contestant.once(work))
    used = {name: np.array([t[1] for t in took]) for name, took in timings.items()}
    ours = running[0].name
    rows = []
    for name, took in timings.items():
        wall = statistics.median(t[0] for t in took)
        cpu = float(np.median(used[name]))
        ratios = used[name] / used[ours]
        low, high = np.percentile(ratios, [25, 75])
        ratio = "" if name == ours else f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"
        rows.append(
            f"| {name} | {wall * 1e3:.0f} | {cpu * 1e3:.0f} | {len(work.x) / cpu:.0f} | {ratio} | "
            f"{differences[name]:.3f} |"
        )
    best = min(
        (name for name in used if name != ours), key=lambda name: float(np.median(used[name]))
    )
    share = np.median(used[best] / used[ours])
    return [*rows, *missing, "", f"{ours} / best other ({best}), per core-second: {share:.2f}"]


def main() -> None:
    """Choose tiles, read them in turns, print a table for each slide."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--slides", type=Path, help="folder with Aperio slides (*.svs)")
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument(
        "--mpp", type=float, nargs="+", default=[0.5], help="micrometres per px of the tiles"
    )
    options.add_argument(
        "--unknown-mpp", type=float, default=0.25, help="for slides that do not say their own"
    )
    options.add_argument("--peer-python", default=sys.executable, help="a Python with hs2p")
    options.add_argument(
        "--accuracy", action="store_true", help="compare tiles with level 0 instead of timing them"
    )
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    told = options.parse_args()
    if told.serve:
        serve()
        return
    slides = sorted(told.slides.glob("*.svs")) if told.slides else []
    if not slides:
        options.error("give --slides, a folder with *.svs files")
    if told.accuracy:
        for path in slides:
            for mpp in told.mpp:
                work = choose_tiles(path, mpp, told.unknown_mpp)
                print(
                    f"\n{path.name}: {len(work.x)} tiles at {mpp:g} µm per px, level {work.level}\n"
                )
                print("| | mean difference | nearest on | px moved (most) | sharpness |")
                print("|---|---|---|---|---|")
                print("\n".join(accuracy(work)), flush=True)
        return
    peer = Peer(told.peer_python)
    contestants = [
        here("pathfm_kedro", read_ours),
        here("OpenSlide loop", read_openslide),
        here("tiffslide", read_tiffslide),
        *(there(peer, backend) for backend in HS2P_BACKENDS),
    ]
    for path in slides:
        for mpp in told.mpp:
            work = choose_tiles(path, mpp, told.unknown_mpp)
            print(
                f"\n{path.name}: {len(work.x)} tiles of {work.pixels} px at {mpp:g} µm per px, from "
                f"level {work.level} ({work.extent} px each), {told.repeats} repeats\n"
            )
            print(
                "| | ms | ms of processor | tiles per core-second | processor time / ours (quartiles) "
                "| mean difference to OpenSlide |"
            )
            print("|---|---|---|---|---|---|")
            print("\n".join(compete(work, contestants, told.repeats)), flush=True)
    peer.close()


if __name__ == "__main__":
    main()
