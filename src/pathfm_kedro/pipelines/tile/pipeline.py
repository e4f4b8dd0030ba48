"""tile: from slides to tiles of tissue and the mosaic that stands for each slide."""

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.features.cohort import tiles_of_features
from pathfm_kedro.pipelines.tile.contact_sheet import draw_contact_sheet, sheet_without_pixels
from pathfm_kedro.pipelines.tile.gallery import draw_gallery, no_gallery
from pathfm_kedro.pipelines.tile.tiles import collect_tiles, plan_tiles
from pathfm_kedro.slides.mosaic import choose_mosaic
from pathfm_kedro.wiring import TileGrids, grouped, named_partial, no_views, node


def create_pipeline(
    of_features: str = "",
    sizes: Mapping[str, tuple[int, float]] | None = None,
    grids: TileGrids | None = None,
) -> Pipeline:
    """Wire the pipeline.

    Parameters
    ----------
    of_features
        The encoder whose files say where the cohort's tiles lie; empty where tissue says it.
    sizes
        Pixels and micrometres per pixel of each further grid of tiles, by its name.
    grids
        What the datasets of a grid are called, and whether there are slides.
    """
    grids = grids or TileGrids()
    shown = _without_pictures() if grids.without_slides else _pictures()
    more = [
        grouped(grid, _cut(grid, size, grids, f"{grid}_tiles"))
        for grid, size in (sizes or {}).items()
    ]
    found = _brought(of_features) if of_features else _cut("", None, grids, "tiles")
    return grouped("tile", [*found, *shown, *more])


def _brought(encoder: str) -> list[Node]:
    """Tiles where an encoder's files have vectors; no slide is searched for tissue."""
    return [
        node(no_views, "params:engine", "slide_tiles", name="no_slide_tiles"),
        node(
            named_partial(tiles_of_features, name=encoder, choose_mosaic=choose_mosaic),
            ["slides", f"params:encoders.{encoder}", "params:tile", "params:engine"],
            ["tiles", "tiling"],
            name="tiles_of_features",
        ),
    ]


def _cut(grid: str, size: tuple[int, float] | None, grids: TileGrids, named: str) -> list[Node]:
    """Tiles of tissue, slide by slide, and the tables of all; of a size that a grid has."""
    bound = {} if size is None else {"size": size}
    shards, *tables = (
        grids.in_grid(name, grid) if grid else name for name in ("slide_tiles", "tiles", "tiling")
    )
    return [
        node(
            named_partial(plan_tiles, **bound),
            ["slides", "slide_files", "params:tile", "params:engine"],
            shards,
            name=f"cut_{named}",
        ),
        node(
            named_partial(collect_tiles, **bound),
            ["slides", shards, "params:tile", "params:engine"],
            tables,
            name=f"collect_{named}",
        ),
    ]


def _pictures() -> list[Node]:
    return [
        node(
            draw_gallery,
            ["slides", "tiles", "slide_files", "params:tile"],
            "tile_gallery",
            name="draw_gallery",
        ),
        node(
            draw_contact_sheet,
            ["slides", "tiles", "tiling", "slide_files", "params:tile", "params:engine"],
            "contact_sheet",
            name="draw_contact_sheet",
        ),
    ]


def _without_pictures() -> list[Node]:
    """What stands in place of pictures where there are no pixels."""
    return [
        node(no_gallery, "params:tile", "tile_gallery", name="draw_gallery"),
        node(
            sheet_without_pixels,
            ["slides", "tiling", "params:tile"],
            "contact_sheet",
            name="draw_contact_sheet",
        ),
    ]
