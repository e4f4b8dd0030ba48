"""What an encoder costs on this cohort's slides: tiles that stand for them, and how they are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.base import Pixels, Vectors
from pathfm_kedro.encoders.cost import CostSettings, CostTrial
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.tissue import TissueSettings, read_overview, tile_grid, tissue_mask


def plan_cost(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    name: str,
) -> CostTrial:
    """The measurement of an encoder's cost; the dataset makes it where no record of it is found.

    Parameters
    ----------
    slides, tiles
        The tables.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders`` in the parameters.
    runtime
        Its recorded runtime.
    tile_parameters
        How tiles are found and read.
    parameters
        ``cost_trial``.
    name
        The encoder's name.
    """
    settings = CostSettings.from_parameters(parameters)
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    tile_parameters = {**tile_parameters, **(spec.tile or {})}
    pixels = int(tile_parameters["pixels"])
    sampled = sample_fields(slides, tiles, files, pixels, settings)
    described = [(slide["fingerprint"], fields.digest()) for slide, fields in sampled]
    searches = [partial(find_tissue, slide, files, tile_parameters) for slide, _ in sampled]
    return CostTrial(
        spec,
        settings,
        dict(runtime.get("key", {})),
        hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        partial(_batches, [fields for _, fields in sampled]),
        searches,
    )


def plan_no_cost(
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    name: str,
) -> CostTrial:
    """The record of an encoder of which no tile is embedded here: that there is no cost, and why.

    Parameters
    ----------
    encoder, runtime, parameters, name
        As of :func:`plan_cost`.
    """
    spec = EncoderSpec.from_parameters(name, encoder)
    settings = CostSettings.from_parameters(parameters)
    key = dict(runtime.get("key", {}))
    return CostTrial(spec, settings, key, "", lambda size: iter(()), [])


def sample_fields(
    slides: pl.DataFrame, tiles: pl.DataFrame, files: SlideFiles, pixels: int, p: CostSettings
) -> list[tuple[dict[str, Any], TileFields]]:
    """Slides at even distances in their order, each with tiles at even distances in theirs."""
    found = slide_fields(slides, tiles, files, pixels)
    chosen = [found[i] for i in _even(len(found), p.slides)]
    each = -(-p.tiles // max(len(chosen), 1))
    return [
        (
            slide,
            replace(
                fields,
                x=tuple(fields.x[i] for i in _even(len(fields.x), each)),
                y=tuple(fields.y[i] for i in _even(len(fields.y), each)),
            ),
        )
        for slide, fields in chosen
    ]


def _even(n: int, most: int) -> list[int]:
    """At most so many of n places, from the first to the last.

    Examples
    --------
    >>> _even(10, 3), _even(2, 5), _even(0, 3)
    ([0, 4, 9], [0, 1], [])
    """
    return sorted({int(place) for place in np.linspace(0, n - 1, min(n, most))})


def _batches(fields: Sequence[TileFields], size: int) -> Iterator[tuple[Pixels, Vectors | None]]:
    for own in fields:
        yield from own.batches(size)


def find_tissue(slide: Mapping[str, Any], files: SlideFiles, parameters: Mapping[str, Any]) -> None:
    """Search a slide for tissue and lay the grid of tiles, as the tile pipeline does.

    Parameters
    ----------
    slide
        Its row of the slides table: path, mpp, width, height.
    files
        The cohort's folder.
    parameters
        ``tile``.
    """
    side = int(parameters["pixels"]) * float(parameters["mpp"]) / slide["mpp"]
    tissue = TissueSettings.from_parameters(parameters.get("tissue", {}))
    with files.open(slide["path"]) as reader:
        overview = read_overview(reader, slide["mpp"], float(parameters["overview_mpp"]))
        mask = tissue_mask(overview.image, tissue, overview.scale * slide["mpp"])
        fitting = min(side, slide["width"], slide["height"])
        tile_grid(overview, mask, slide["width"], slide["height"], fitting)
