"""Embed fields of view and their parts slide by slide; the pixels of a place are read once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.encoders.input_size import native_encoder
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.robustness.field_of_view import (
    COST,
    NATIVES,
    PARTS,
    PROBLEMS,
    FieldParameters,
    Layout,
    Size,
    name_of,
)
from pathfm_kedro.slides.fields import Box, TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.tables import digests_by_slide

#: Raised with any change of how fields and parts are made from pixels.
_REVISION = "1"
#: Pixels of fields and their parts held at once by one job: some 30 fields of 512 px with 9 sub-tiles.
_HELD_BYTES = 64 << 20


@dataclass(frozen=True)
class EmbedFields:
    """The fields of one slide's places.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        The largest field around each place.
    tiles_digest
        Digest of the tiles' ids.
    sizes
        Width and height of the nested fields, the tile first.
    spec
        The encoder.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tiles_digest: str
    sizes: tuple[Size, ...]
    spec: EncoderSpec

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        encoder = load_encoder(self.spec)
        return {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "view": json.dumps([_REVISION, self.sizes]),
            "encoder": encoder.fingerprint,
            "preprocessing": json.dumps(dict(encoder.preprocessing), sort_keys=True),
            "units": "place x part x dimension, as the encoder gives it, not normalised",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``parts`` [n, parts, d], ``native`` [n, wider, d] and what the experiment says of them.

        ``native_problem`` [n, wider] is 0 where the native vectors are real, else they are zero and
        it says why (:data:`~pathfm_kedro.encoders.input_size.NATIVE_PROBLEMS`).
        ``cost`` [n, fields, 3, 2]: forward passes and pixels forwarded, of the whole field, of its
        sub-tiles and at native size. Both are integers: no vectors.

        Raises
        ------
        ValueError
            If a field reaches over the slide's edge or the encoder gives a number that is not finite.
        """
        self.fields.refuse_over_edge()
        encoder, layout = load_encoder(self.spec), Layout.of(self.sizes)
        natives = [native_encoder(encoder, size) for size in self.sizes[1:]]
        truth = self.fields.truth_of_parts(layout.parts)
        found: list[tuple[Vectors, Vectors]] = []
        start = 0
        for pixels, _ in self.fields.batches(_fields_at_once(layout)):
            own = None if truth is None else truth[start : start + len(pixels)]
            parts = _embed_parts(encoder, pixels, layout.parts, own)
            found.append((parts, _embed_natives(natives, pixels, layout, own, parts.shape[-1])))
            start += len(pixels)
        parts, native = (np.concatenate(vectors) for vectors in zip(*found, strict=True))
        if not (np.isfinite(parts).all() and np.isfinite(native).all()):
            raise ValueError("the encoder gives NaN or infinity on a field of view")
        problems = np.array([code for _, code in natives], np.int8)
        return {
            PARTS: parts,
            NATIVES: native,
            PROBLEMS: np.tile(problems, (start, 1)),
            COST: np.tile(_costs(encoder, layout, natives), (start, 1, 1, 1)),
        }


def plan_field_views(
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
        From :func:`~pathfm_kedro.pipelines.robustness.field_of_view.choose_field_pool`.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders``.
    runtime
        Its recorded runtime.
    tile_parameters
        ``pixels``: side of a tile, the first field whatever ``parameters`` says of it.
    parameters
        Of the field-of-view experiment.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    told = FieldParameters.parse(parameters).around(int(tile_parameters["pixels"]))
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    chosen = tiles.join(pool.select("tile_id"), on="tile_id", maintain_order="left")
    largest = dict(pool.select("slide_id", "field").iter_rows())
    digests = digests_by_slide(chosen)
    jobs = []
    for slide, fields in slide_fields(slides, chosen, files, int(tile_parameters["pixels"])):
        slide_id = slide["slide_id"]
        sizes = told.up_to(largest[slide_id])
        wide = fields.widened(*sizes[-1])
        jobs.append(
            EmbedFields(slide_id, slide["fingerprint"], wide, digests[slide_id], sizes, spec)
        )
    title = f"fields up to {name_of(told.fields[-1])} px with {name}"
    return ShardPlan(jobs, EngineSettings(**engine), title, lambda: load_encoder(spec))


def _embed_parts(
    encoder: Encoder, pixels: Pixels, parts: tuple[Box, ...], truth: Vectors | None
) -> Vectors:
    """Vectors of the parts of fields [n, parts, d]; parts of one size go in one batch."""
    vectors: Vectors | None = None
    for same in _of_one_size(parts):
        found = _embed(
            encoder,
            np.stack([parts[i].cut(pixels) for i in same], axis=1),
            None if truth is None else truth[:, same],
        )
        if vectors is None:
            vectors = np.empty((len(pixels), len(parts), found.shape[-1]), np.float32)
        vectors[:, same] = found
    assert vectors is not None
    return vectors


def _embed_natives(
    natives: list[tuple[Encoder | None, int]],
    pixels: Pixels,
    layout: Layout,
    truth: Vectors | None,
    dimension: int,
) -> Vectors:
    """[n, wider fields, d] at native size; zero where the encoder has no such input."""
    vectors = np.zeros((len(pixels), len(natives), dimension), np.float32)
    for at, (encoder, _) in enumerate(natives):
        if encoder is not None:
            whole = layout.wholes[at + 1]
            own = None if truth is None else truth[:, [whole]]
            cut = layout.parts[whole].cut(pixels)[:, None]
            vectors[:, [at]] = _embed(encoder, cut, own)
    return vectors


def _embed(encoder: Encoder, pixels: Pixels, truth: Vectors | None) -> Vectors:
    """[n, parts, h, w, 3] to [n, parts, d]."""
    shape = pixels.shape[:2]
    flat = None if truth is None else truth.reshape(-1, truth.shape[-1])
    vectors = encoder.embed(pixels.reshape(-1, *pixels.shape[2:]), flat)
    return vectors.reshape(*shape, -1)


def _of_one_size(parts: tuple[Box, ...]) -> Iterator[list[int]]:
    for size in dict.fromkeys(part[2:] for part in parts):
        yield [i for i, part in enumerate(parts) if part[2:] == size]


def _fields_at_once(layout: Layout) -> int:
    each = sum(3 * part.width * part.height for part in layout.parts)
    return max(1, _HELD_BYTES // each)


def _costs(
    encoder: Encoder, layout: Layout, natives: list[tuple[Encoder | None, int]]
) -> NDArray[np.int64]:
    """[fields, 3, 2] forward passes and pixels forwarded; zero where there is no native input."""
    costs = np.zeros((len(layout.fields), 3, 2), np.int64)
    tile = layout.fields[0]
    for at, (field, subs) in enumerate(zip(layout.fields, layout.subs, strict=True)):
        costs[at, 0] = 1, _forwarded(encoder, field)
        costs[at, 1] = len(subs), len(subs) * _forwarded(encoder, tile)
        native = natives[at - 1][0] if at else encoder
        costs[at, 2] = (0, 0) if native is None else (1, _forwarded(native, field))
    return costs


def _forwarded(encoder: Encoder, field: Size) -> int:
    """Pixels that go through an encoder for one image of a size."""
    side = encoder.preprocessing.get("input_pixels")
    return field[0] * field[1] if side is None else int(side) ** 2
