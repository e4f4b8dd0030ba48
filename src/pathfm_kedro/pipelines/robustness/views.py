"""Views of tiles (stained, blurred, shuffled …) embedded slide by slide, cached like any vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.engine import EngineSettings, ShardPlan, cancellable
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.tables import Embeddings, digests_by_slide

#: Name of the tensor in a shard: [tiles, views, d].
VIEWS = "views"


class ViewMaker(Protocol):
    """Makes the views of one tile; picklable, and the same views for the same tile always."""

    @property
    def names(self) -> tuple[str, ...]:
        """One name per view, in the order in which they are made."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Everything that decides the views' pixels, as JSON: part of the shard's header."""
        ...

    def make(self, field: Pixels, seed: int) -> Pixels:
        """Views of a field.

        Parameters
        ----------
        field
            uint8 [s, s, 3], the tile's pixels.
        seed
            From the tile's id, for what is drawn at random.

        Returns
        -------
        ndarray
            uint8 [len(names), t, t, 3].
        """
        ...


def tile_seed(tile_id: str) -> int:
    """Seed of a tile's random draws: from its id, so that no order of work changes it.

    Examples
    --------
    >>> tile_seed("a") == tile_seed("a"), tile_seed("a") == tile_seed("b")
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(tile_id.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class EmbedViews:
    """The views of one slide's tiles.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        Where the tiles lie.
    tile_ids
        Their ids, in the order of the fields.
    tiles_digest
        Digest of the ids.
    maker
        Makes the views of a tile.
    spec
        The encoder.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tile_ids: tuple[str, ...]
    tiles_digest: str
    maker: ViewMaker
    spec: EncoderSpec

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        encoder = load_encoder(self.spec)
        return {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "view": json.dumps([list(self.maker.names), self.maker.describe()], sort_keys=True),
            "encoder": encoder.fingerprint,
            "preprocessing": json.dumps(dict(encoder.preprocessing), sort_keys=True),
            "units": "tile x view x dimension, as the encoder gives it, not normalised",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``views`` [n_tiles, views, d].

        Raises
        ------
        ValueError
            If the encoder gives a number that is not finite.
        """
        encoder = load_encoder(self.spec)
        rows = []
        batches = cancellable(self.fields.batches(1))
        for tile_id, (pixels, truth) in zip(self.tile_ids, batches, strict=True):
            views = self.maker.make(pixels[0], tile_seed(tile_id))
            # What was drawn on a tile is the same in each of its views.
            drawn = None if truth is None else np.repeat(truth, len(views), axis=0)
            vectors = encoder.embed(views, drawn)
            if not np.isfinite(vectors).all():
                raise ValueError(f"the encoder gives NaN or infinity on a view of tile {tile_id}")
            rows.append(vectors)
        return {VIEWS: np.stack(rows)}


def plan_views(
    slides: pl.DataFrame,
    chosen: pl.DataFrame,
    files: SlideFiles,
    maker: ViewMaker,
    spec: EncoderSpec,
    pixels: int,
    engine: Mapping[str, Any],
    title: str,
) -> ShardPlan:
    """One job per slide that has tiles among the chosen.

    Parameters
    ----------
    slides
        The slides table.
    chosen
        Rows of the tiles table.
    files
        The cohort's folder.
    maker
        Makes the views of a tile.
    spec
        The encoder.
    pixels
        Side of a tile as read.
    engine
        Where jobs run.
    title
        What the progress bar says.
    """
    digests = digests_by_slide(chosen)
    ids = dict(chosen.group_by("slide_id", maintain_order=True).agg("tile_id").iter_rows())
    jobs = [
        EmbedViews(
            slide["slide_id"],
            slide["fingerprint"],
            fields,
            tuple(ids[slide["slide_id"]]),
            digests[slide["slide_id"]],
            maker,
            spec,
        )
        for slide, fields in slide_fields(slides, chosen, files, pixels)
    ]
    return ShardPlan(jobs, EngineSettings(**engine), title, lambda: load_encoder(spec))


def stacked_views(
    views: Embeddings, pool: pl.DataFrame
) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """Rows of the pool whose slide was embedded, and their views [n, views, d] in the same order."""
    present = pool.filter(pl.col("slide_id").is_in(views.slide_ids))
    order = present["slide_id"].unique(maintain_order=True).to_list()
    return present, views.stack(order, VIEWS)
