"""Tiles that show how a check fails, as small pictures; only where the cohort allows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.slides.files import SlideFiles, without_patient
from pathfm_kedro.slides.readers import Pixels, resize
from pathfm_kedro.slides.thumbnails import jpeg_source, read_tile

#: Examples of a check, of all encoders together: a page holds at most as many pictures.
MAX_EXAMPLES = 3
#: Side of a picture in px, and quality of its JPEG: what a person sees without magnifying.
_SIDE, _QUALITY = 112, 80
#: Where nothing was changed.
_GREY = 128


@dataclass(frozen=True)
class ShownTile:
    """A tile in an example.

    Attributes
    ----------
    part
        What it is in the example, as the table names it.
    label, center
        Of its slide.
    source
        Its picture; empty where there is none.
    reason
        Why there is none.
    similarity
        Cosine to the first tile, where it is known.
    read_as
        The label that a probe reads, where one was asked.
    times
        By how much a change is multiplied that is shown alone.
    """

    part: str
    label: str
    center: str
    source: str
    reason: str
    similarity: float | None
    read_as: str | None = None
    times: int | None = None


@dataclass(frozen=True)
class Example:
    """Tiles that show together how an encoder fails a check of an experiment."""

    experiment: str
    encoder: str
    tiles: tuple[ShownTile, ...]


def draw_examples(
    examples: pl.DataFrame,
    findings: pl.DataFrame,
    slides: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    tile: Mapping[str, Any],
) -> list[Example]:
    """Pictures of the tiles that fail a check of an audited encoder.

    Parameters
    ----------
    examples
        Which tiles: experiment, encoder, example, part, slide_id, x, y, field_um, angle, similarity;
        where there are such, read_as, change (int8 [side, side, 3], row by row) and times.
    findings
        Which checks failed.
    slides
        Where the slides lie, their label and center.
    files
        The cohort's folder.
    parameters
        ``show_tiles``: nothing is drawn where it is false.
    tile
        ``pixels`` of a tile as it is read.

    Returns
    -------
    list
        At most :data:`MAX_EXAMPLES` of an experiment, those of its encoders in turn. No patient's or
        slide's name is in them.
    """
    if not parameters.get("show_tiles"):
        return []
    failed = findings.filter(role="encoder", verdict="fail").select("experiment", "encoder")
    own = examples.join(failed.unique(), on=["experiment", "encoder"], how="semi")
    carried = slides.select("slide_id", "path", "mpp", "patient_id", "label", "center")
    own = own.join(carried, on="slide_id", how="left", maintain_order="left")
    parts = own.partition_by("experiment", "example", "encoder", maintain_order=True)
    parts.sort(key=lambda part: (part["experiment"][0], part["example"][0], part["encoder"][0]))
    shown: dict[str, list[Example]] = {}
    for part in parts:
        experiment, encoder = part["experiment"][0], part["encoder"][0]
        kept = shown.setdefault(experiment, [])
        if len(kept) < MAX_EXAMPLES:
            tiles = (_shown(row, files, int(tile["pixels"])) for row in part.iter_rows(named=True))
            kept.append(Example(experiment, encoder, tuple(tiles)))
    return [example for kept in shown.values() for example in kept]


def no_examples(parameters: Mapping[str, Any]) -> list[Example]:
    """Of a cohort without pixels."""
    return []


def _shown(row: Mapping[str, Any], files: SlideFiles, pixels: int) -> ShownTile:
    source = reason = ""
    try:
        source = jpeg_source(_picture(row, files, pixels), _QUALITY)
    except (OSError, ValueError) as error:
        reason = without_patient(str(error), row["path"] or "", row["patient_id"] or "")
    label, center = (str(row[name] or f"no {name}") for name in ("label", "center"))
    more = (row["similarity"], row.get("read_as"), row.get("times"))
    return ShownTile(row["part"], label, center, source, reason, *more)


def _picture(row: Mapping[str, Any], files: SlideFiles, pixels: int) -> Pixels:
    """A tile as it is, turned or changed, or its change alone; at most as large as a picture."""
    change = np.frombuffer(row.get("change") or b"", np.int8).astype(np.int16)
    if change.size:
        pixels = math.isqrt(change.size // 3)
        change = change.reshape(pixels, pixels, 3)
    side = min(_SIDE, pixels)
    if row.get("times"):
        # Single pixels: means of neighbours would hide what changes from one to the next.
        every = slice(None, None, pixels // side)
        alone: Pixels = np.clip(_GREY + row["times"] * change[every, every], 0, 255).astype(
            np.uint8
        )
        return alone
    tile = read_tile(files, row, row, pixels)
    if change.size:
        tile = (tile + change).astype(np.uint8)
    turned = np.ascontiguousarray(np.rot90(tile, -(row["angle"] // 90)))
    return resize(turned, side, side)
