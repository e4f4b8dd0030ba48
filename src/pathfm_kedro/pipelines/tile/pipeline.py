"""tile: from slides to tiles of tissue and the mosaic that stands for each slide."""

from kedro.pipeline import Pipeline

from pathfm_kedro.pipelines.tile.contact_sheet import draw_contact_sheet
from pathfm_kedro.pipelines.tile.gallery import draw_gallery
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.wiring import grouped, node


def create_pipeline() -> Pipeline:
    """Wire the pipeline."""
    return grouped(
        "tile",
        [
            node(
                cut_tiles,
                ["slides", "slide_files", "params:tile", "params:engine"],
                ["tiles", "tiling"],
                name="cut_tiles",
            ),
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
        ],
    )
