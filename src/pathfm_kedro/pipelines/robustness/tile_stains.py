"""The stain of the pool's tiles, measured on their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.slides.center_stains import TILE_STAIN_SCHEMA, TileStains
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.tables import Embeddings, stacked, with_shards
from pathfm_kedro.views import Tensors

#: Raised with any change of what is measured on a tile's pixels.
_REVISION = "1"


@dataclass(frozen=True)
class StainMeasurement:
    """The stain of a slide's tiles: work on pixels alone."""

    side: tuple[int, int] | None = None
    batch: int = 1
    units: str = "natural optical density; CIELAB with L in 0 ... 100"

    def describe(self) -> Any:
        """What beside the pixels decides the result."""
        return ["stain", _REVISION]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """The fields of :class:`~pathfm_kedro.slides.center_stains.TileStains`."""
        return dict(vars(TileStains.of(pixels)))


def stain_of_tiles(tiles: pl.DataFrame, pixels: int, p: Any) -> StainMeasurement:
    """What is measured on one slide's tiles: the same for all, whatever the parameters."""
    return StainMeasurement()


def tile_stains(stains: Embeddings, pool: pl.DataFrame) -> pl.DataFrame:
    """Turn what was measured on pixels into a table, one row per tile.

    Parameters
    ----------
    stains
        What :class:`StainMeasurement` left.
    pool
        The tiles; slides without a shard are left out.

    Returns
    -------
    DataFrame
        Columns :data:`~pathfm_kedro.slides.center_stains.TILE_STAIN_SCHEMA`.
    """
    present = with_shards(pool, stains)
    if present.is_empty():
        return pl.DataFrame(schema=TILE_STAIN_SCHEMA)
    names = [each.name for each in fields(TileStains)]
    measured = (stacked(present, stains, name).astype(np.float64) for name in names)
    return TileStains(*measured).table(present)
