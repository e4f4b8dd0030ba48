"""Cut every usable slide into tiles of tissue and choose its mosaic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.engine import EngineSettings, Note, map_in_order
from pathfm_kedro.engine.failures import refuse_too_many_failed
from pathfm_kedro.slides.files import SlideError, SlideFiles, reason_for_table
from pathfm_kedro.slides.mosaic import choose_mosaic, colour_clusters
from pathfm_kedro.slides.readers import SlideReader, read_field
from pathfm_kedro.slides.tissue import (
    TileGrid,
    TissueSettings,
    read_overview,
    sharpness,
    tile_grid,
    tissue_mask,
)
from pathfm_kedro.statistics.sampling import tiles_of_slide
from pathfm_kedro.statistics.tables import TILES_SCHEMA

_TILING_SCHEMA: dict[str, pl.DataType] = {
    "slide_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_mosaic": pl.Int64(),
    "tissue_mm2": pl.Float64(),
    "status": pl.String(),
    "reason": pl.String(),
}


def cut_tiles(
    slides: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tiles of tissue of every usable slide.

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
    from threadpoolctl import threadpool_limits

    _refuse_bad_parameters(parameters)
    rows = slides.filter(pl.col("status") == "usable").sort("slide_id").to_dicts()
    settings = EngineSettings(**engine)
    # k-means adds up in the order of its threads: with one, the mosaic does not depend on the machine.
    with threadpool_limits(1):
        outcomes = map_in_order(
            lambda row: _tile_slide(row, files, parameters),
            rows,
            settings,
            "finding tissue",
            lambda found: Note(found.table.height, reason=_why_no_tile(found, parameters)),
        )
    tables, tiling = [], []
    for outcome in outcomes:
        slide_id = outcome.item["slide_id"]
        if outcome.reason is not None:
            reason = reason_for_table(outcome.reason, outcome.item)
            tiling.append(_tiling_row(slide_id, None, 0.0, reason))
            continue
        found = outcome.result
        tables.append(found.table)
        tiling.append(
            _tiling_row(slide_id, found.table, found.tissue_mm2, _why_no_tile(found, parameters))
        )
    reasons = {row["slide_id"]: row["reason"] for row in tiling if row["reason"]}
    refuse_too_many_failed(reasons, len(rows), settings)
    empty = pl.DataFrame(schema=TILES_SCHEMA)
    return pl.concat([empty, *tables]), pl.DataFrame(tiling, schema=_TILING_SCHEMA)


def cut_grid(
    slides: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    pixels: int,
    mpp: float,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """As :func:`cut_tiles`, of tiles of another size than the cohort's.

    Parameters
    ----------
    slides, files, parameters, engine
        As of :func:`cut_tiles`.
    pixels, mpp
        Side of a tile and its resolution.
    """
    return cut_tiles(slides, files, {**parameters, "pixels": pixels, "mpp": mpp}, engine)


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


@dataclass(frozen=True)
class _Found:
    """What a slide gave.

    Attributes
    ----------
    table
        Its tiles.
    tissue_mm2
        Area of its tissue.
    most
        Largest tissue fraction of any tile.
    pen_share
        Of what is coloured, the share that was left out as pen; looked at where there is no tile.
    most_with_pen
        Largest tissue fraction of any tile, had no pen been left out.
    """

    table: pl.DataFrame
    tissue_mm2: float
    most: float
    pen_share: float = 0.0
    most_with_pen: float = 0.0


def _tile_slide(row: Mapping[str, Any], files: SlideFiles, parameters: Mapping[str, Any]) -> _Found:
    pixels, mpp = int(parameters["pixels"]), float(parameters["mpp"])
    field_um = pixels * mpp
    side = field_um / row["mpp"]
    # Two per cent cover rounding in vendors' figures (0.2527 for 0.25); more would invent detail.
    if row["mpp"] > mpp * 1.02:
        raise SlideError(
            f"the slide has {row['mpp']:g} micrometres per pixel, coarser than the tiles' {mpp:g}: "
            "raise tile.mpp for this cohort or rescan"
        )
    if side > min(row["width"], row["height"]) + 0.5:
        raise SlideError(
            f"a tile of {field_um:g} micrometres is larger than the slide: lower tile.pixels or "
            "tile.mpp for this cohort"
        )
    tissue = TissueSettings.from_parameters(parameters.get("tissue", {}))
    # A slide that lacks part of a px for one tile has that tile.
    fitting = min(side, row["width"], row["height"])
    with files.open(row["path"]) as reader:
        overview = read_overview(reader, row["mpp"], float(parameters["overview_mpp"]))
        um_per_px = overview.scale * row["mpp"]
        mask = tissue_mask(overview.image, tissue, um_per_px)
        grid = tile_grid(overview, mask, row["width"], row["height"], fitting)
        most = float(grid.tissue_fraction.max())
        grid = grid.where(grid.tissue_fraction >= float(parameters["min_tissue_fraction"]))
        grid = _in_focus(grid, reader, pixels, tissue.min_sharpness)
    area_mm2 = float(mask.sum()) * (um_per_px / 1000) ** 2
    grid = _capped(grid, parameters["max_tiles_per_slide"], row["slide_id"], parameters["seed"])
    clusters, chosen = _mosaic(grid, parameters)
    ids = [f"{row['slide_id']}@{x}_{y}" for x, y in zip(grid.x, grid.y, strict=True)]
    table = pl.DataFrame(
        {
            "tile_id": ids,
            "slide_id": [row["slide_id"]] * len(ids),
            "x": grid.x,
            "y": grid.y,
            "field_um": np.full(len(ids), field_um),
            "mpp": np.full(len(ids), mpp),
            "tissue_fraction": grid.tissue_fraction,
            "in_mosaic": chosen,
            "colour_cluster": clusters,
        },
        schema=TILES_SCHEMA,
    )
    found = _Found(table, area_mm2, most)
    if table.height or not tissue.leave_out_pen:
        return found
    with_pen = tissue_mask(overview.image, replace(tissue, leave_out_pen=False), um_per_px)
    coloured = int(with_pen.sum())
    shares = tile_grid(overview, with_pen, row["width"], row["height"], fitting).tissue_fraction
    return replace(
        found,
        pen_share=1 - int((mask & with_pen).sum()) / coloured if coloured else 0.0,
        most_with_pen=float(shares.max()),
    )


def _why_no_tile(found: _Found, parameters: Mapping[str, Any]) -> str:
    """Why a slide gives no tile, from what :func:`_tile_slide` found; empty where it gives some."""
    if found.table.height:
        return ""
    area, most, least = found.tissue_mm2, found.most, float(parameters["min_tissue_fraction"])
    if found.pen_share > 0 and most < least <= found.most_with_pen:
        return (
            f"pen marks were left out, {found.pen_share:.0%} of what is coloured on this slide, and no "
            f"tile is tissue to {least:.0%} without them: if that colour is a stain (green, or strong "
            "blue or red), set tile.tissue.leave_out_pen to false for this cohort"
        )
    if area == 0:
        return "no tissue was found on this slide"
    if most >= least:
        return (
            f"every tile is less sharp than {parameters['tissue']['min_sharpness']:g}: scan the slide "
            "again, or lower tile.tissue.min_sharpness for this cohort"
        )
    return (
        f"no tile is tissue to {least:.0%}, the most is {most:.0%}: lower tile.min_tissue_fraction for "
        "this cohort"
    )


def _in_focus(grid: TileGrid, reader: SlideReader, pixels: int, least: float | None) -> TileGrid:
    """The tiles that are sharp enough; read one by one, since all of a slide do not fit in memory."""
    if least is None:
        return grid
    fields = (
        read_field(reader, x, y, grid.side, pixels) for x, y in zip(grid.x, grid.y, strict=True)
    )
    return grid.where(np.array([sharpness(field) >= least for field in fields], bool))


def _capped(grid: TileGrid, limit: int | None, slide_id: str, seed: int) -> TileGrid:
    """At most `limit` tiles, sampled at random with a seed of the slide's own, in grid order."""
    if limit is None or len(grid.x) <= limit:
        return grid
    keep = np.zeros(len(grid.x), bool)
    keep[tiles_of_slide(len(grid.x), limit, slide_id, seed)] = True
    return grid.where(keep)


def _mosaic(
    grid: TileGrid, parameters: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    if not len(grid.x):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    mosaic, seed = parameters["mosaic"], int(parameters["seed"])
    clusters = colour_clusters(grid.mean_rgb, int(mosaic["colour_clusters"]), seed)
    positions = np.stack([grid.x, grid.y], axis=1)
    return clusters, choose_mosaic(clusters, positions, float(mosaic["share"]), seed)


def _tiling_row(
    slide_id: str, table: pl.DataFrame | None, area: float, reason: str
) -> dict[str, Any]:
    return {
        "slide_id": slide_id,
        "n_tiles": 0 if table is None else table.height,
        "n_mosaic": 0 if table is None else int(table["in_mosaic"].sum()),
        "tissue_mm2": area,
        "status": "unusable" if reason else "tiled",
        "reason": reason,
    }
