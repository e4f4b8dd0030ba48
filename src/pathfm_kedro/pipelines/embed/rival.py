"""Encoders that are trained on the cohort: their tiles, read once, and the fit to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.rivals import (
    RivalFit,
    plan_rival,
    shrunk,
    side_of,
    training_tiles,
)
from pathfm_kedro.engine import EngineSettings, ShardPlan, cancellable
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles

#: Raised with any change of what is stored of the same tiles.
_REVISION = "1"
#: Tiles in memory at their own size.
_AT_ONCE = 8


@dataclass(frozen=True)
class ReadTiles:
    """Some tiles of one slide at the side of a network's input.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        The tiles.
    side
        Of the network's input, px.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    side: int

    def header(self) -> dict[str, str]:
        """What the pixels depend on."""
        return {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "read": json.dumps([_REVISION, self.side]),
            "units": "RGB of 0 to 255, tile x row x column x channel",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``pixels`` uint8 [n, side, side, 3]."""
        batches = cancellable(self.fields.batches(_AT_ONCE))
        return {"pixels": np.concatenate([shrunk(tiles, self.side) for tiles, _ in batches])}


def plan_training_tiles(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide of the patients that train an encoder; later epochs read no slide.

    Parameters
    ----------
    slides, tiles
        The tables.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders``.
    tile_parameters
        ``pixels``: side of a tile as read.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder)
    chosen = training_tiles(slides, tiles, spec)
    found = slide_fields(slides, chosen, files, int(tile_parameters["pixels"]))
    jobs = [
        ReadTiles(slide["slide_id"], slide["fingerprint"], fields, side_of(spec))
        for slide, fields in found
    ]
    return ShardPlan(jobs, EngineSettings(**engine), f"reading tiles that train {name}")


def fit_rival(
    slides: pl.DataFrame, pixels: Shards, encoder: Mapping[str, Any], *, name: str
) -> RivalFit:
    """The fit of an encoder; the dataset runs it where its weights are not found.

    Parameters
    ----------
    slides
        The table.
    pixels
        From :func:`plan_training_tiles`.
    encoder
        The entry of ``encoders``.
    name
        The encoder's name.
    """
    return plan_rival(slides, EncoderSpec.from_parameters(name, encoder), pixels)
