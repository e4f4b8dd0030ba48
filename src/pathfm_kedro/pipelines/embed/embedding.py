"""Embed every tile of a cohort with one encoder, slide by slide."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec, embed_batches, load_encoder
from pathfm_kedro.encoders.base import Vectors
from pathfm_kedro.encoders.rivals import left_out
from pathfm_kedro.engine import EngineSettings, ShardPlan, cancellable
from pathfm_kedro.slides.fields import TileFields, kept_for_others, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.mosaic import PATCH_TOKENS, PATCH_TOKENS_LOSS
from pathfm_kedro.statistics.tables import digests_by_slide


@dataclass(frozen=True)
class EmbedSlide:
    """The embedding of one slide's tiles.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        Its tiles.
    tiles_digest
        Digest of their ids.
    spec
        The encoder.
    dtype
        ``float32`` or ``float16``, how vectors are stored.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tiles_digest: str
    spec: EncoderSpec
    dtype: str

    def header(self) -> dict[str, str]:
        """What the shard depends on: slide, tiles, encoder, preprocessing."""
        encoder = load_encoder(self.spec)
        tokens = self.spec.patch_tokens
        return {
            **({PATCH_TOKENS: str(tokens)} if tokens else {}),
            "slide": self.slide_fingerprint,
            "tiles": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "encoder": encoder.fingerprint,
            "preprocessing": json.dumps(dict(encoder.preprocessing), sort_keys=True),
            "dtype": self.dtype,
            "units": "one row per tile, as the encoder gives it, not normalised",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``embedding`` [n_tiles, d]; of an encoder with ``patch_tokens`` these too.

        They are float16 [n_tiles, tokens, width], and ``patch_tokens_loss`` [n_tiles] is the largest
        relative error that this makes of a tile's.

        Raises
        ------
        ValueError
            If the encoder gives a number that is not finite, or a vector of zeros, or if ``dtype``
            makes it so.
        """
        where = f"encoder {self.spec.name} on slide {self.slide_id}"
        vectors, beside = self._embedded(where)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise ValueError(
                f"the encoder gives NaN or infinity on {self._tiles(broken)}: check its weights and "
                "its mean and std"
            )
        empty = np.flatnonzero(~vectors.any(axis=1))
        if len(empty):
            raise ValueError(
                f"the encoder gives a vector of zeros on {self._tiles(empty)}: it has no direction, so "
                "no neighbours; check the encoder, or leave such tiles out by "
                "tile.min_tissue_fraction"
            )
        return {"embedding": stored(vectors, self.dtype, where, self._tiles), **beside}

    def _embedded(self, where: str) -> tuple[Vectors, dict[str, NDArray[np.generic]]]:
        """Vectors [n_tiles, d], and the tensors beside them."""
        encoder = load_encoder(self.spec)
        batches = cancellable(self.fields.batches(encoder.batch_size))
        if self.spec.patch_tokens is None:
            return embed_batches(encoder, batches), {}
        from pathfm_kedro.encoders.patch_tokens import as_float16, token_encoder

        vectors, tokens = token_encoder(self.spec).embed_batches(batches)
        half, loss = as_float16(tokens, where)
        return vectors, {PATCH_TOKENS: half, PATCH_TOKENS_LOSS: loss}

    def _tiles(self, rows: NDArray[np.intp]) -> str:
        """How many tiles, and where the first lies."""
        return f"{len(rows)} tiles, the first at x={self.fields.x[rows[0]]}, y={self.fields.y[rows[0]]}"


def stored(
    vectors: Vectors,
    dtype: str,
    where: str,
    tell: Callable[[NDArray[np.intp]], str] = lambda rows: f"{len(rows)} tiles",
) -> NDArray[np.floating[Any]]:
    """Vectors as they are stored, none of them lost by it.

    Parameters
    ----------
    vectors
        float32 [n, d].
    dtype
        ``float32`` or ``float16``.
    where
        How an error names them.
    tell
        How an error names rows.

    Raises
    ------
    ValueError
        If ``dtype`` cannot hold them.
    """
    with np.errstate(over="ignore", under="ignore"):
        made = vectors.astype(dtype)
    lost = np.flatnonzero(~(np.isfinite(made).all(axis=1) & made.any(axis=1)))
    if len(lost):
        sizes = np.abs(vectors[lost]).max(axis=1)
        raise ValueError(
            f"{dtype} cannot hold the vectors of {where} ({tell(lost)}; largest numbers "
            f"{sizes.min():.3g} to {sizes.max():.3g}, it holds "
            f"{np.finfo(dtype).smallest_subnormal:.1g} to {np.finfo(dtype).max:.5g}): set embed.dtype "
            "to float32"
        )
    return made


def _prepare(spec: EncoderSpec) -> None:
    """Load what all slides share."""
    load_encoder(spec)
    if spec.patch_tokens is not None:
        from pathfm_kedro.encoders.patch_tokens import token_encoder

        token_encoder(spec)


def read_dtype(parameters: Mapping[str, Any]) -> str:
    """How vectors are stored.

    Raises
    ------
    ValueError
        If it is neither type.
    """
    dtype = (parameters or {}).get("dtype")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"embed.dtype is {dtype!r}: give float32 or float16")
    return str(dtype)


def plan_embedding(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide that has tiles; the dataset that stores the shards runs them.

    Parameters
    ----------
    slides, tiles
        The tables.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders`` in the parameters.
    runtime
        Its recorded runtime, from :func:`~pathfm_kedro.pipelines.embed.runtime.choose_runtime`.
    tile_parameters
        ``pixels``: side of a tile as read, where the tiles themselves do not say it.
    parameters
        ``dtype``: how vectors are stored.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    dtype = read_dtype(parameters)
    without = left_out(slides, spec)
    tiles = tiles.filter(~pl.col("slide_id").is_in(list(without)))
    digests = digests_by_slide(tiles)
    found = slide_fields(slides, tiles, files, int(tile_parameters["pixels"]))
    jobs = [
        EmbedSlide(
            slide["slide_id"],
            slide["fingerprint"],
            fields,
            digests[slide["slide_id"]],
            spec,
            dtype,
        )
        for slide, fields in kept_for_others(found)
    ]
    return ShardPlan(
        jobs,
        EngineSettings(**engine),
        f"embedding with {name}",
        partial(_prepare, spec),
        without,
    )
