"""tile: from slides to tiles of tissue and the mosaic that stands for each slide."""

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.features.cohort import tiles_of_features
from pathfm_kedro.pipelines.tile.contact_sheet import draw_contact_sheet, sheet_without_pixels
from pathfm_kedro.pipelines.tile.gallery import draw_gallery, no_gallery
from pathfm_kedro.pipelines.tile.tiles import cut_grid, cut_tiles
from pathfm_kedro.slides.mosaic import choose_mosaic
from pathfm_kedro.wiring import TileGrids, grouped, named_partial, node


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
        grouped(grid, [_cut(grid, pixels, mpp, grids)])
        for grid, (pixels, mpp) in (sizes or {}).items()
    ]
    return grouped("tile", [_brought(of_features) if of_features else _found(), *shown, *more])


def _found() -> Node:
    return node(
        cut_tiles,
        ["slides", "slide_files", "params:tile", "params:engine"],
        ["tiles", "tiling"],
        name="cut_tiles",
    )


def _brought(encoder: str) -> Node:
    """Tiles where an encoder's files have vectors."""
    return node(
        named_partial(tiles_of_features, name=encoder, choose_mosaic=choose_mosaic),
        ["slides", f"params:encoders.{encoder}", "params:tile", "params:engine"],
        ["tiles", "tiling"],
        name="tiles_of_features",
    )


def _cut(grid: str, pixels: int, mpp: float, grids: TileGrids) -> Node:
    """Tiles of another size."""
    return node(
        named_partial(cut_grid, pixels=pixels, mpp=mpp),
        ["slides", "slide_files", "params:tile", "params:engine"],
        [grids.in_grid(table, grid) for table in ("tiles", "tiling")],
        name=f"cut_{grid}",
    )


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
