"""Cut every usable slide into tiles of tissue and choose its mosaic.

Each slide is a job that leaves a shard, so that a run that was killed finds no slide's tissue twice;
the tables of the cohort are put together from the shards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.engine import EngineSettings, Note, ShardPlan, map_in_order
from pathfm_kedro.engine.failures import refuse_too_many_failed
from pathfm_kedro.engine.versions import package_versions
from pathfm_kedro.pipelines.tile.found_tiles import Found, SlideTiles, tiles_of_one, why_no_tile
from pathfm_kedro.slides.fields import decoders_of
from pathfm_kedro.slides.files import SlideFiles, reason_for_table
from pathfm_kedro.slides.tissue import (
    TissueSettings,
)
from pathfm_kedro.statistics.tables import TILES_SCHEMA

_TILING_SCHEMA: dict[str, pl.DataType] = {
    "slide_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_mosaic": pl.Int64(),
    "tissue_mm2": pl.Float64(),
    "status": pl.String(),
    "reason": pl.String(),
}


#: Parameters that decide about the tiles of a slide.
_DECIDING = (
    "pixels",
    "mpp",
    "min_tissue_fraction",
    "max_tiles_per_slide",
    "overview_mpp",
    "tissue",
    "mosaic",
    "seed",
)
#: Raised with any change of how tiles are found.
_REVISION = "1"


@dataclass(frozen=True)
class TileJob:
    """The tiles of one slide.

    Attributes
    ----------
    row
        Of the slides table.
    files
        The cohort's folder.
    parameters
        Of :func:`cut_tiles`.
    """

    row: Mapping[str, Any]
    files: SlideFiles
    parameters: Mapping[str, Any]

    @property
    def slide_id(self) -> str:
        """The slide whose tiles these are."""
        return str(self.row["slide_id"])

    def header(self) -> dict[str, str]:
        """What the tiles depend on: slide, parameters, software."""
        packages = (*decoders_of(PurePath(self.row["path"])), "numpy", "scikit-learn", "scipy")
        described = {
            "revision": _REVISION,
            "parameters": {name: self.parameters.get(name) for name in _DECIDING},
            "size": [self.row[name] for name in ("width", "height", "mpp")],
            "packages": package_versions(packages),
        }
        return {
            "slide": str(self.row["fingerprint"]),
            "tiles": json.dumps(described, sort_keys=True),
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """A tensor [n_tiles] for each of the grid's columns, and ``facts`` about the slide."""
        return self.found().tensors()

    def found(self) -> Found:
        """What the slide gives."""
        from threadpoolctl import threadpool_limits

        # k-means adds up in the order of its threads: with one, the mosaic does not depend on the
        # machine.
        with threadpool_limits(1):
            return tiles_of_one(self.row, self.files, self.parameters)


def plan_tiles(
    slides: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    size: tuple[int, float] | None = None,
) -> ShardPlan:
    """Plan the tiles of every usable slide; the dataset runs the jobs.

    Parameters
    ----------
    slides, files, parameters, engine
        As of :func:`cut_tiles`.
    size
        Pixels and micrometres per pixel of a tile, where they are not those of the parameters.
    """
    jobs = _jobs(slides, files, _sized(parameters, size))
    return ShardPlan(jobs, EngineSettings(**engine), "finding tissue")


def collect_tiles(
    slides: pl.DataFrame,
    slide_tiles: SlideTiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    size: tuple[int, float] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables of the cohort from the shards of its slides; results are those of :func:`cut_tiles`.

    Parameters
    ----------
    slides
        The slides table.
    slide_tiles
        What :func:`plan_tiles` left.
    parameters, engine, size
        As of :func:`plan_tiles`.
    """
    parameters, failed = _sized(parameters, size), slide_tiles.failures
    found: list[tuple[Mapping[str, Any], Found | str]] = [
        (row, failed.get(row["slide_id"]) or Found.read(slide_tiles, row["slide_id"]))
        for row in _usable(slides)
    ]
    return _tables(found, parameters, EngineSettings(**engine))


def cut_tiles(
    slides: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tiles of tissue of every usable slide, at once and without shards.

    Parameters
    ----------
    slides
        The slides table.
    files
        The cohort's folder.
    parameters
        ``pixels`` and ``mpp`` of a tile, ``min_tissue_fraction``, ``max_tiles_per_slide``,
        ``overview_mpp``, ``tissue``, ``mosaic`` and ``seed``.
    engine
        Where jobs run.

    Returns
    -------
    tiles
        tile_id, slide_id, x, y (level-0 px), field_um, mpp, tissue_fraction, in_mosaic,
        colour_cluster; sorted by slide, rows of a slide from its upper left.
    tiling
        Per usable slide: n_tiles, n_mosaic, tissue_mm2, status, reason.

    Raises
    ------
    ValueError
        If a parameter is no such number as it must be, naming it, its value and the mend.
    TooManyFailedError
        If more slides give no tile than ``engine.max_failed_share`` allows.
    """
    settings = EngineSettings(**engine)
    outcomes = map_in_order(
        TileJob.found,
        _jobs(slides, files, parameters),
        settings,
        "finding tissue",
        lambda found: Note(len(found.x), reason=why_no_tile(found, parameters)),
    )
    found = [(outcome.item.row, outcome.reason or outcome.result) for outcome in outcomes]
    return _tables(found, parameters, settings)


def _sized(parameters: Mapping[str, Any], size: tuple[int, float] | None) -> Mapping[str, Any]:
    return parameters if size is None else {**parameters, "pixels": size[0], "mpp": size[1]}


def _usable(slides: pl.DataFrame) -> list[dict[str, Any]]:
    return slides.filter(pl.col("status") == "usable").sort("slide_id").to_dicts()


def _jobs(
    slides: pl.DataFrame, files: SlideFiles, parameters: Mapping[str, Any]
) -> Sequence[TileJob]:
    _refuse_bad_parameters(parameters)
    return [TileJob(row, files, parameters) for row in _usable(slides)]


def _tables(
    found: Iterable[tuple[Mapping[str, Any], Found | str]],
    parameters: Mapping[str, Any],
    engine: EngineSettings,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tiles and tiling of slides, each with what it gave or why its job failed."""
    tables, tiling = [pl.DataFrame(schema=TILES_SCHEMA)], []
    for row, own in found:
        if isinstance(own, str):
            tiling.append(_tiling_row(row["slide_id"], None, reason_for_table(own, row)))
            continue
        tables.append(_table(row["slide_id"], own, parameters))
        tiling.append(_tiling_row(row["slide_id"], own, why_no_tile(own, parameters)))
    reasons = {row["slide_id"]: row["reason"] for row in tiling if row["reason"]}
    refuse_too_many_failed(reasons, len(tiling), engine)
    return pl.concat(tables), pl.DataFrame(tiling, schema=_TILING_SCHEMA)


def _table(slide_id: str, found: Found, parameters: Mapping[str, Any]) -> pl.DataFrame:
    pixels, mpp = int(parameters["pixels"]), float(parameters["mpp"])
    n = len(found.x)
    return pl.DataFrame(
        {
            "tile_id": [f"{slide_id}@{x}_{y}" for x, y in zip(found.x, found.y, strict=True)],
            "slide_id": [slide_id] * n,
            "x": found.x,
            "y": found.y,
            "field_um": np.full(n, pixels * mpp),
            "mpp": np.full(n, mpp),
            "tissue_fraction": found.tissue_fraction,
            "in_mosaic": found.in_mosaic,
            "colour_cluster": found.colour_cluster,
        },
        schema=TILES_SCHEMA,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_size(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return value == 0 or (_is_size(value) and value <= 1)


_COUNT, _SIZE = "a whole number of 1 or more", "a number above 0"
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pixels": (_is_count, _COUNT),
    "mpp": (_is_size, _SIZE),
    "min_tissue_fraction": (_is_share, "a share from 0 to 1"),
    "max_tiles_per_slide": (
        lambda value: value is None or _is_count(value),
        f"{_COUNT}, or null for all",
    ),
    "overview_mpp": (_is_size, _SIZE),
    "mosaic.colour_clusters": (_is_count, _COUNT),
    "mosaic.share": (_is_share, "a share from 0 to 1"),
    "seed": (lambda value: value == 0 or _is_count(value), "a whole number of 0 or more"),
}


def _refuse_bad_parameters(parameters: Mapping[str, Any]) -> None:
    """Once, before a slide is opened: otherwise one mistake is the reason of every slide."""
    mosaic = {f"mosaic.{name}": value for name, value in parameters["mosaic"].items()}
    given = {**parameters, **mosaic}
    for name, (is_right, wanted) in _ALLOWED.items():
        if not is_right(given.get(name)):
            raise ValueError(f"tile.{name} is {given.get(name)!r}: give {wanted}")
    TissueSettings.from_parameters(parameters.get("tissue", {}))


def _tiling_row(slide_id: str, found: Found | None, reason: str) -> dict[str, Any]:
    return {
        "slide_id": slide_id,
        "n_tiles": 0 if found is None else len(found.x),
        "n_mosaic": 0 if found is None else int(found.in_mosaic.sum()),
        "tissue_mm2": 0.0 if found is None else found.facts.tissue_mm2,
        "status": "unusable" if reason else "tiled",
        "reason": reason,
    }
