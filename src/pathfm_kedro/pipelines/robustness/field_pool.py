"""The places where fields of view are compared: sampled once, the same for every encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.robustness.field_of_view import FieldOfView
from pathfm_kedro.pipelines.robustness.tile_pool import POOL_COLUMNS
from pathfm_kedro.slides.fields import fields_on_slide, side_of_tiles
from pathfm_kedro.slides.nested_fields import name_of
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.sampling import balanced_over_cells

ROOM_SCHEMA: dict[str, pl.DataType] = {
    "field": pl.String(),
    "n_slides": pl.Int64(),
    "n_slides_with_room": pl.Int64(),
    "n_tiles": pl.Int64(),
    "n_tiles_with_room": pl.Int64(),
    "reason": pl.String(),
}


def choose_field_pool(
    slides: pl.DataFrame, tiles: pl.DataFrame, parameters: Mapping[str, Any]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Sample the places where fields are compared, balanced over label x center x patient.

    A slide takes part with the tiles that have room for the largest field that any of its tiles has
    room for; a slide without room for a field wider than a tile does not take part.

    Parameters
    ----------
    slides
        slide_id, patient_id, center, organ, label, status, width, height (level-0 px), mpp. Only
        ``usable`` slides take part.
    tiles
        tile_id, slide_id, x, y (level-0 px), field_um, mpp.
    parameters
        Of :class:`~pathfm_kedro.pipelines.robustness.field_of_view.FieldOfView`.

    Returns
    -------
    pool
        Columns ``POOL_COLUMNS``; ``field`` names the slide's largest field. Slides in sorted order,
        tiles of a slide in the tiles' order. The sample does not depend on the order of either
        table's rows.
    room
        Columns :data:`ROOM_SCHEMA`: per wider field, how many slides and tiles have room, and why
        the others have none.
    """
    p = read_parameters(FieldOfView, "field_of_view", parameters)
    side = side_of_tiles(tiles)
    usable = slides.filter(pl.col("status") == "usable")
    placed = tiles.with_row_index("_row").join(
        usable.select("slide_id", "patient_id", "center", "organ", "label"), on="slide_id"
    )
    fields = p.fields_around(side)
    rooms = {field: fields_on_slide(placed, usable, *field) for field in fields[1:]}
    not_around = _not_around(placed, side)
    room = pl.DataFrame(
        [_room_row(name_of(field), rooms.get(field, not_around)) for field in p.fields[1:]],
        schema=ROOM_SCHEMA,
    )
    # Fields lie inside one another, so the number of fields with room names the largest.
    none = pl.zeros(len(placed), pl.Int64)
    largest = sum((has["has_room"].cast(pl.Int64) for has in rooms.values()), none)
    names = dict(enumerate(map(name_of, fields)))
    candidates = (
        placed.with_columns(_largest=largest)
        .filter(pl.col("_largest") > 0)
        .filter(pl.col("_largest") == pl.col("_largest").max().over("slide_id"))
        .with_columns(field=pl.col("_largest").replace_strict(names, return_dtype=pl.String()))
        .sort("tile_id")
    )
    sampled = balanced_over_cells(candidates, p.seed).head(p.max_tiles)
    return sampled.sort("slide_id", "_row").select(POOL_COLUMNS), room


def _not_around(tiles: pl.DataFrame, side: int | None) -> pl.DataFrame:
    """Tiles without room for a field that does not lie around them."""
    why = (
        f"the field is no larger than the tile of {side} px or shares no centre px with it; add to "
        "field_of_view.fields a larger one, even where the tile's side is"
    )
    return tiles.with_columns(has_room=pl.lit(False), no_room=pl.lit(why))


def _room_row(field: str, room: pl.DataFrame) -> dict[str, Any]:
    by_slide = room.group_by("slide_id").agg(pl.col("has_room").any())
    without = room.filter(~pl.col("has_room"))["no_room"].value_counts(sort=True)
    why = "; ".join(
        f"{row['count']} tiles: {row['no_room']}"
        for row in without.sort(["count", "no_room"], descending=[True, False]).to_dicts()
    )
    return {
        "field": field,
        "n_slides": by_slide.height,
        "n_slides_with_room": int(by_slide["has_room"].sum()),
        "n_tiles": room.height,
        "n_tiles_with_room": int(room["has_room"].sum()),
        "reason": why,
    }
