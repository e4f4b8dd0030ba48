"""The places of mosaics where fields of several sizes are compared, and the fields' vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.encoders.parts import embed_parts, refuse_not_finite
from pathfm_kedro.pipelines.retrieve.mosaic_field import PARTS, MosaicField
from pathfm_kedro.slides.fields import fields_on_slide, side_of_tiles
from pathfm_kedro.slides.nested_fields import NestedFields, name_of
from pathfm_kedro.statistics.parameters import read_parameters

PLACES_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("tile_id", "slide_id", "patient_id", "center", "organ", "label"), pl.String()),
    "field_um": pl.Float64(),
    "mpp": pl.Float64(),
    "field": pl.String(),
}
#: Raised with any change of how fields are made from pixels.
_REVISION = "1"


def choose_mosaic_places(
    slides: pl.DataFrame, tiles: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Tiles of each slide's mosaic that have room for wider fields, at most ``places`` of a slide.

    A slide takes part with the tiles that have room for the largest field that any tile of its mosaic
    has room for. Colour clusters take turns.

    Parameters
    ----------
    slides
        slide_id, patient_id, center, organ, label, status, width, height (level-0 px), mpp.
    tiles
        tile_id, slide_id, x, y (level-0 px), field_um, mpp, in_mosaic, colour_cluster.
    parameters
        Of :class:`~pathfm_kedro.pipelines.retrieve.mosaic_field.MosaicField`.

    Returns
    -------
    DataFrame
        Columns :data:`PLACES_SCHEMA`; ``field`` names the slide's largest field.
    """
    p = read_parameters(MosaicField, "mosaic_field", parameters)
    usable = slides.filter(pl.col("status") == "usable")
    carried = usable.select("slide_id", "patient_id", "center", "organ", "label")
    placed = tiles.filter("in_mosaic").join(carried, on="slide_id").sort("slide_id", "tile_id")
    fields = p.fields_around(side_of_tiles(tiles))
    # Fields lie inside one another, so the number of fields with room names the largest.
    rooms = [fields_on_slide(placed, usable, *field)["has_room"] for field in fields[1:]]
    none = pl.zeros(len(placed), pl.Int64, eager=True)
    largest = sum((room.cast(pl.Int64) for room in rooms), none)
    names = dict(enumerate(map(name_of, fields)))
    found = placed.with_columns(_largest=largest).filter(
        pl.col("_largest") > 0, pl.col("_largest") == pl.col("_largest").max().over("slide_id")
    )
    return (
        found.with_columns(
            field=pl.col("_largest").replace_strict(names, return_dtype=pl.String()),
            _turn=pl.int_range(pl.len()).over("slide_id", "colour_cluster"),
        )
        .sort("slide_id", "_turn", "colour_cluster")
        .filter(pl.int_range(pl.len()).over("slide_id") < p.places)
        .sort("slide_id", "tile_id")
        .select(pl.col(name).cast(kind) for name, kind in PLACES_SCHEMA.items())
    )


@dataclass(frozen=True)
class EmbedMosaicFields(NestedFields):
    """Nested fields around the places of a slide: what is computed from the pixels of tiles."""

    def describe(self) -> Any:
        """Everything beside pixels and encoder that decides the vectors."""
        return [_REVISION, self.sizes, self.covered, self.coarser]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> dict[str, NDArray[np.generic]]:
        """``parts`` [n, parts, d].

        Raises
        ------
        ValueError
            If the encoder gives a number that is not finite.
        """
        assert encoder is not None
        vectors = embed_parts(encoder, pixels, self.parts, truth)
        refuse_not_finite(tile_ids, vectors)
        return {PARTS: vectors}


def view_of_mosaic_fields(places: pl.DataFrame, pixels: int, p: MosaicField) -> EmbedMosaicFields:
    """Fields up to the largest that a slide's places have room for.

    Parameters
    ----------
    places
        Of one slide.
    pixels
        Side of a tile, the first field whatever the parameters say of it.
    p
        The parameters.
    """
    fields = p.fields_around(pixels)
    names = [name_of(field) for field in fields]
    read = fields[: names.index(places["field"][0]) + 1]
    return EmbedMosaicFields(read, p.same_tissue, p.coarser)
