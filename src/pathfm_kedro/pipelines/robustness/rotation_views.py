"""Embed the tiles of the rotation pool at every angle; the pixels of a tile are read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.robustness.rotation import (
    DISC,
    ROTATED,
    ROTATED_BACK,
    SHIFTED,
    RotationParameters,
)
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.views import (
    apply_disc,
    inscribed_size,
    rotated_back_views,
    rotated_views,
    shifted_views,
    wide_side,
)
from pathfm_kedro.statistics.tables import digests_by_slide

#: Raised with any change of how views are made from pixels.
_REVISION = "3"


@dataclass(frozen=True)
class RotateSlide:
    """The views of one slide's pool tiles.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        The wide fields, √2 times the side of a view.
    tiles_digest
        Digest of the tiles' ids.
    pixels
        Side of a view.
    angles
        Degrees of each kind of view: rotated (0 first), rotated there and back, shifted, and behind
        a disc (0 first).
    spec
        The encoder.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tiles_digest: str
    pixels: int
    angles: Mapping[str, tuple[int, ...]]
    spec: EncoderSpec

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        encoder = load_encoder(self.spec)
        return {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "view": json.dumps([_REVISION, self.pixels, dict(self.angles)]),
            "encoder": encoder.fingerprint,
            "preprocessing": json.dumps(dict(encoder.preprocessing), sort_keys=True),
            "units": "tile x angle x dimension, as the encoder gives it, not normalised",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """One tensor [n, angles, d] for each kind of view."""
        encoder = load_encoder(self.spec)
        rows: dict[str, list[Vectors]] = {name: [] for name in self.angles}
        for wide, truth in self.fields.batches(1):
            views = rotation_views(wide[0], self.pixels, self.angles)
            vectors = _embed(encoder, np.concatenate(list(views.values())), truth)
            ends = np.cumsum([len(part) for part in views.values()])[:-1]
            for name, part in zip(views, np.split(vectors, ends), strict=True):
                rows[name].append(part)
        return {name: np.stack(parts) for name, parts in rows.items() if self.angles[name]}


def rotation_views(
    wide: Pixels, size: int, angles: Mapping[str, tuple[int, ...]]
) -> dict[str, Pixels]:
    """Views of one field by kind, [angles, size, size, 3] each.

    Parameters
    ----------
    wide
        uint8 [s, s, 3], the wide field.
    size
        Side of a view, px.
    angles
        Degrees of each kind.
    """
    rotated = rotated_views(wide, size, angles[ROTATED])
    at = [angles[ROTATED].index(angle) for angle in angles[DISC]]
    return {
        ROTATED: rotated,
        ROTATED_BACK: rotated_back_views(wide, size, angles[ROTATED_BACK]),
        SHIFTED: shifted_views(wide, size, angles[SHIFTED]),
        DISC: apply_disc(rotated[at]),
    }


def plan_rotation_views(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide of the pool.

    Parameters
    ----------
    slides, tiles
        The tables.
    pool
        From :func:`~pathfm_kedro.pipelines.robustness.tile_pool.choose_pool`.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders``.
    runtime
        What runs it, as recorded when its tiles were embedded.
    tile_parameters
        ``pixels``: side of a tile.
    parameters
        Of the rotation experiment.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    pixels = int(tile_parameters["pixels"])
    chosen = tiles.join(pool.select("tile_id", "field"), on="tile_id", maintain_order="left")
    kinds = dict(pool.select("slide_id", "field").iter_rows())
    digests = digests_by_slide(chosen)
    jobs = [
        _job(
            slide,
            fields,
            digests[slide["slide_id"]],
            kinds[slide["slide_id"]],
            pixels,
            parameters,
            spec,
        )
        for slide, fields in slide_fields(slides, chosen, files, pixels)
    ]
    return ShardPlan(
        jobs, EngineSettings(**engine), f"rotating with {name}", lambda: load_encoder(spec)
    )


def _job(
    slide: Mapping[str, Any],
    fields: TileFields,
    tiles_digest: str,
    kind: str,
    pixels: int,
    parameters: Mapping[str, Any],
    spec: EncoderSpec,
) -> RotateSlide:
    """Where the slide has room the field is widened; else the view is the tile's inner square."""
    told = RotationParameters.parse(parameters)
    view = pixels if kind == "wide" else inscribed_size(pixels)
    wide = fields.widened(wide_side(pixels)) if kind == "wide" else fields
    return RotateSlide(
        slide["slide_id"],
        slide["fingerprint"],
        wide,
        tiles_digest,
        view,
        {
            ROTATED: told.rotated_angles,
            ROTATED_BACK: told.rotated_back_angles,
            SHIFTED: told.shifted_angles,
            DISC: told.disc_angles,
        },
        spec,
    )


def _embed(encoder: Encoder, views: Pixels, truth: Vectors | None) -> Vectors:
    """Vectors of the views of one tile; what was drawn does not change with the angle."""
    repeated = None if truth is None else np.repeat(truth, len(views), axis=0)
    return encoder.embed(views, repeated)
