"""The tiles of tissue of one slide, and its mosaic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.files import SlideError, SlideFiles
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

#: Columns of a slide's tiles that its pixels decide.
_COLUMNS = ("x", "y", "tissue_fraction", "in_mosaic", "colour_cluster")


class SlideTiles(Protocol):
    """Shards of what slides gave."""

    @property
    def failures(self) -> Mapping[str, str]:
        """Reason of every slide that failed."""
        ...

    def load_slide(self, slide_id: str, name: str) -> NDArray[Any]:
        """One tensor of one slide."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is recorded of a slide beside its tiles.

    Attributes
    ----------
    tissue_mm2
        Area of its tissue.
    most
        Largest tissue fraction of any tile.
    pen_share
        Of what is coloured, the share that was left out as pen; looked at where there is no tile.
    most_with_pen
        Largest tissue fraction of any tile, had no pen been left out.
    """

    tissue_mm2: float
    most: float
    pen_share: float = 0.0
    most_with_pen: float = 0.0


@dataclass(frozen=True)
class Found:
    """What a slide gave: columns of its tiles, [n_tiles] each, and facts about it.

    Attributes
    ----------
    x, y
        Upper left corner in level-0 px.
    tissue_fraction
        Share of each tile that is tissue.
    in_mosaic, colour_cluster
        Whether it stands for the slide, and which of its colours it has.
    facts
        About the slide.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    tissue_fraction: NDArray[np.float64]
    in_mosaic: NDArray[np.bool_]
    colour_cluster: NDArray[np.int64]
    facts: Facts

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """All of it as arrays."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        return {**columns, "facts": np.array(list(asdict(self.facts).values()))}

    @classmethod
    def read(cls, shards: SlideTiles, slide_id: str) -> Found:
        """What :meth:`tensors` gave."""
        columns: Any = {name: shards.load_slide(slide_id, name) for name in _COLUMNS}
        return cls(**columns, facts=Facts(*shards.load_slide(slide_id, "facts").tolist()))


def tiles_of_one(row: Mapping[str, Any], files: SlideFiles, parameters: Mapping[str, Any]) -> Found:
    """Tiles of tissue of a slide, and which of them stand for it.

    Parameters
    ----------
    row
        Of the slides table.
    files, parameters
        As of :func:`~pathfm_kedro.pipelines.tile.tiles.cut_tiles`.

    Raises
    ------
    SlideError
        If the slide is coarser than the tiles, smaller than one, or cannot be read.
    """
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
    found = Found(grid.x, grid.y, grid.tissue_fraction, chosen, clusters, Facts(area_mm2, most))
    if len(grid.x) or not tissue.leave_out_pen:
        return found
    with_pen = tissue_mask(overview.image, replace(tissue, leave_out_pen=False), um_per_px)
    coloured = int(with_pen.sum())
    shares = tile_grid(overview, with_pen, row["width"], row["height"], fitting).tissue_fraction
    pen_share = 1 - int((mask & with_pen).sum()) / coloured if coloured else 0.0
    return replace(found, facts=Facts(area_mm2, most, pen_share, float(shares.max())))


def why_no_tile(found: Found, parameters: Mapping[str, Any]) -> str:
    """Why a slide gives no tile, from what :func:`tiles_of_one` found; empty where it gives some."""
    if len(found.x):
        return ""
    facts, least = found.facts, float(parameters["min_tissue_fraction"])
    area, most = facts.tissue_mm2, facts.most
    if facts.pen_share > 0 and most < least <= facts.most_with_pen:
        return (
            f"pen marks were left out, {facts.pen_share:.0%} of what is coloured on this slide, and no "
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
