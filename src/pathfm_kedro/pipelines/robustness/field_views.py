"""Embed fields of view and their parts; the pixels of a place are read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.encoders.input_size import native_encoder
from pathfm_kedro.encoders.parts import embed_parts, embed_pictures, refuse_not_finite
from pathfm_kedro.pipelines.robustness.field_of_view import (
    COST,
    NATIVES,
    PARTS,
    PROBLEMS,
    FieldOfView,
)
from pathfm_kedro.slides.nested_fields import Layout, NestedFields, Size, name_of
from pathfm_kedro.views import Tensors

#: Raised with any change of how fields and parts are made from pixels.
_REVISION = "1"


@dataclass(frozen=True)
class EmbedFields(NestedFields):
    """Nested fields around each place: a :class:`~pathfm_kedro.views.PartsWork`."""

    def describe(self) -> Any:
        """Everything beside pixels and encoder that decides the vectors."""
        return [_REVISION, self.sizes]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """``parts`` [n, parts, d], ``native`` [n, wider, d] and what the experiment says of them.

        ``native_problem`` [n, wider] is 0 where the native vectors are real, else they are zero and
        it says why (:data:`~pathfm_kedro.encoders.input_size.NATIVE_PROBLEMS`). ``cost``
        [n, fields, 3, 2]: forward passes and pixels forwarded, of the whole field, of its sub-tiles
        and at native size. Both are integers: no vectors.

        Raises
        ------
        ValueError
            If the encoder gives a number that is not finite.
        """
        assert encoder is not None
        natives = [native_encoder(encoder, size) for size in self.sizes[1:]]
        parts = embed_parts(encoder, pixels, self.parts, truth)
        native = _embed_natives(natives, pixels, self.layout, truth, parts.shape[-1])
        refuse_not_finite(tile_ids, parts, native)
        problems = np.array([code for _, code in natives], np.int8)
        return {
            PARTS: parts,
            NATIVES: native,
            PROBLEMS: np.tile(problems, (len(pixels), 1)),
            COST: np.tile(_costs(encoder, self.layout, natives), (len(pixels), 1, 1, 1)),
        }


def view_of_fields(tiles: pl.DataFrame, pixels: int, p: FieldOfView) -> EmbedFields:
    """Fields up to the largest that a slide's places have room for.

    Parameters
    ----------
    tiles
        Places of one slide, from
        :func:`~pathfm_kedro.pipelines.robustness.field_pool.choose_field_pool`.
    pixels
        Side of a tile, the first field whatever the parameters say of it.
    p
        The parameters.
    """
    fields = p.fields_around(pixels)
    names = [name_of(field) for field in fields]
    return EmbedFields(fields[: names.index(tiles["field"][0]) + 1])


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
            vectors[:, [at]] = embed_pictures(encoder, cut, own)
    return vectors


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
