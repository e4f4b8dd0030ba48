"""The fixed set of tiles whose views are compared: sampled once, the same for every encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.slides.views import wide_side
from pathfm_kedro.statistics.sampling import balanced_over_cells

POOL_COLUMNS = [
    "tile_id",
    "slide_id",
    "patient_id",
    "center",
    "organ",
    "label",
    "field",
    "x",
    "y",
    "field_um",
    "mpp",
]


def choose_pool(
    slides: pl.DataFrame, tiles: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Sample the pool of tiles whose views are compared, balanced over label x center x patient.

    Cells of label and center take turns, in each its patients, in each their slides, until
    ``max_tiles`` are sampled. A tile whose wide field (:func:`~pathfm_kedro.slides.views.wide_side`)
    lies on the slide has field ``wide``. A slide without any such tile, as a pre-cut image, gives
    its tiles as ``inscribed``: the tile itself is the wide field and its inner square the view.

    Parameters
    ----------
    slides
        Slides table: slide_id, patient_id, center, organ, label, status, width and height (level-0
        px), mpp (µm per level-0 px). Only ``usable`` slides take part.
    tiles
        Tiles table: tile_id, slide_id, x and y (top left, level-0 px), field_um, mpp (µm per px of
        the tile as encoded).
    parameters
        ``tile_pool``: max_tiles and seed.

    Returns
    -------
    DataFrame
        Columns ``POOL_COLUMNS``, slides in sorted order, each slide's tiles in the tiles' order.
        The sample does not depend on the order of either table's rows.

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["s"], "patient_id": ["p"], "center": ["A"],
    ...     "organ": ["o"], "label": ["x"], "status": ["usable"], "width": [4000],
    ...     "height": [4000], "mpp": [0.5]})
    >>> tiles = pl.DataFrame({"tile_id": ["s-0", "s-1"], "slide_id": ["s", "s"], "x": [0, 1000],
    ...     "y": [0, 1000], "field_um": [112.0, 112.0], "mpp": [0.5, 0.5]})
    >>> parameters = {"max_tiles": 72, "seed": 0}
    >>> choose_pool(slides, tiles, parameters).select("tile_id", "field").rows()
    [('s-1', 'wide')]
    """
    carried = slides.filter(pl.col("status") == "usable").select(
        "slide_id",
        "patient_id",
        "center",
        "organ",
        "label",
        "width",
        "height",
        pl.col("mpp").alias("slide_mpp"),
    )
    candidates = (
        tiles.with_row_index("_row")
        .join(carried, on="slide_id", how="inner")
        .with_columns(_wide=_wide_field_on_slide(tiles))
        .filter(pl.col("_wide") | ~pl.col("_wide").any().over("slide_id"))
        .with_columns(
            field=pl.when("_wide").then(pl.lit("wide")).otherwise(pl.lit("inscribed")),
        )
        .sort("tile_id")
    )
    sampled = balanced_over_cells(candidates, parameters["seed"]).head(int(parameters["max_tiles"]))
    return sampled.sort("slide_id", "_row").select(POOL_COLUMNS)


def _wide_field_on_slide(tiles: pl.DataFrame) -> pl.Expr:
    """Whether the field that a rotation needs lies inside the slide; false where mpp is unknown."""
    size = (pl.col("field_um") / pl.col("mpp")).round().cast(pl.Int64)
    sizes = tiles.select(size.alias("size"))["size"].unique().drop_nulls().to_list()
    wide = size.replace_strict(sizes, [wide_side(side) for side in sizes], return_dtype=pl.Int64)
    side = pl.col("field_um") / pl.col("slide_mpp")
    margin = side * (wide / size - 1) / 2
    return pl.all_horizontal(
        pl.col("x") - margin >= 0,
        pl.col("y") - margin >= 0,
        pl.col("x") + side + margin <= pl.col("width"),
        pl.col("y") + side + margin <= pl.col("height"),
    ).fill_null(False)
