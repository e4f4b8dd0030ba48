"""Encoders that are trained on the cohort: their tiles, read once, and the fit to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.rivals import RivalFit, plan_rival, side_of, training_tiles
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.slides.fields import slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.training_tiles import ReadTiles


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
