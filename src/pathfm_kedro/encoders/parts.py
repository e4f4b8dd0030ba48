"""Vectors of parts of fields, those of one size in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors

#: Left, top, width and height in px of the field.
Part = tuple[int, int, int, int]


def embed_parts(
    encoder: Encoder, pixels: Pixels, parts: Sequence[Part], truth: Vectors | None
) -> Vectors:
    """Vectors of the parts of fields: [n, parts, d].

    Parameters
    ----------
    encoder
        The encoder.
    pixels
        uint8 [n, h, w, 3] fields.
    parts
        Where they lie in the field.
    truth
        What was drawn on each part of a phantom [n, parts, m], else None.
    """
    vectors: Vectors | None = None
    for same in _of_one_size(parts):
        cut = np.stack([_cut(pixels, parts[i]) for i in same], axis=1)
        found = embed_pictures(encoder, cut, None if truth is None else truth[:, same])
        if vectors is None:
            vectors = np.empty((len(pixels), len(parts), found.shape[-1]), np.float32)
        vectors[:, same] = found
    assert vectors is not None
    return vectors


def embed_pictures(encoder: Encoder, pixels: Pixels, truth: Vectors | None) -> Vectors:
    """Vectors of several pictures of each place: [n, pictures, h, w, 3] to [n, pictures, d]."""
    shape = pixels.shape[:2]
    flat = None if truth is None else truth.reshape(-1, truth.shape[-1])
    vectors = encoder.embed(pixels.reshape(-1, *pixels.shape[2:]), flat)
    return vectors.reshape(*shape, -1)


def refuse_not_finite(tile_ids: Sequence[str], *vectors: Vectors) -> None:
    """Refuse vectors [n, parts, d] with a number that is not finite, naming the first tile.

    Raises
    ------
    ValueError
        If the encoder gives NaN or infinity.
    """
    broken = ~np.all([np.isfinite(each).all(axis=(1, 2)) for each in vectors], axis=0)
    if broken.any():
        tile_id = tile_ids[int(broken.argmax())]
        raise ValueError(f"the encoder gives NaN or infinity on a field around tile {tile_id}")


def _cut(pixels: Pixels, part: Part) -> Pixels:
    left, top, width, height = part
    return pixels[:, top : top + height, left : left + width]


def _of_one_size(parts: Sequence[Part]) -> Iterator[list[int]]:
    for size in dict.fromkeys(part[2:] for part in parts):
        yield [i for i, part in enumerate(parts) if part[2:] == size]
