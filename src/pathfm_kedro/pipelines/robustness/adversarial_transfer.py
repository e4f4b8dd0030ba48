"""Show tiles that were made against other encoders to one that may have no gradient of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.pipelines.robustness.probed_tiles import ProbedTiles, ProbedWork
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.mutual_knn import cosine_distances
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.views import Tensors

#: Raised with any change of what is read of the same tiles.
_REVISION = "1"


@dataclass(frozen=True, eq=False)
class ShowAttacked:
    """Tiles of one slide that were made against other encoders, shown to this one.

    Attributes
    ----------
    probed
        The tiles' probe, of the encoder that is shown them.
    attacked
        By the name of the encoder that they were made against, the tiles uint8 [height, width, 3] by
        id; none where there is no such tile.
    """

    probed: ProbedTiles
    attacked: Mapping[str, Mapping[str, Pixels]]
    side: None = None
    batch: int = 1
    units: str = "tile x encoder that the tile was made against; NaN where there is no such tile"

    def describe(self) -> Any:
        """Everything that decides the result."""
        shown = [
            [
                source,
                {tile_id: hashlib.sha256(t.tobytes()).hexdigest() for tile_id, t in tiles.items()},
            ]
            for source, tiles in self.attacked.items()
        ]
        return [_REVISION, shown, *self.probed.describe()]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """``margin`` and ``cosine`` (to the clean tile) float64 [n, encoders]."""
        assert encoder is not None
        margin, cosine = np.full((2, len(tile_ids), len(self.attacked)), np.nan)
        for i, tile_id in enumerate(tile_ids):
            there = np.array([tile_id in tiles for tiles in self.attacked.values()])
            shown = [tiles[tile_id] for tiles in self.attacked.values() if tile_id in tiles]
            truth_of_tile = None if truth is None else truth[i]
            images = np.stack([pixels[i], *shown])
            vectors = self.probed.embed(encoder, images, truth_of_tile, tile_id)
            margin[i, there] = self.probed.margins(vectors[1:], tile_id)
            cosine[i, there] = 1 - cosine_distances(
                np.repeat(vectors[:1], len(shown), axis=0), vectors[1:]
            )
        return {"margin": margin, "cosine": cosine}


def transfer_work(*attacks: Embeddings, sources: Sequence[str]) -> ProbedWork:
    """A slide's tiles that other encoders have adversarial tiles of, shown to one more.

    Parameters
    ----------
    *attacks
        Shards of the attacks on other encoders (:class:`~.adversarial_views.AttackTiles`).
    sources
        Names of those encoders.
    """
    made = dict(zip(sources, attacks, strict=True))

    def work(tiles: pl.DataFrame, probed: ProbedTiles) -> ShowAttacked | None:
        shown = {source: _attacked(shards, tiles) for source, shards in made.items()}
        return ShowAttacked(probed, shown) if any(shown.values()) else None

    return work


def _attacked(shards: Embeddings, tiles: pl.DataFrame) -> dict[str, Pixels]:
    """A slide's adversarial tiles by id; none where the encoder has no gradient or other tiles."""
    slide = tiles["slide_id"][0]
    if slide not in shards.slide_ids:
        return {}
    images = shards.stack([slide], "attacked").astype(np.uint8)
    if images.shape[:2] != (len(tiles), 1):
        return {}
    return dict(zip(tiles["tile_id"], images[:, 0], strict=True))
