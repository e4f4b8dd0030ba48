"""Colours of pixels, a few rows of an image at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.interface import Pixels

#: Colour is looked at in bands of at most this many overview px, each with a dozen bytes of
#: intermediate results per value: an overview of a large slide has 8 million px.
COLOUR_BAND_PIXELS = 500_000


def in_bands(
    function: Callable[[Pixels], NDArray[Any]],
    image: Pixels,
) -> NDArray[Any]:
    """A function of single pixels, applied to a few rows of the image at a time."""
    rows = max(1, COLOUR_BAND_PIXELS // image.shape[1])
    tops = range(0, len(image), rows)
    return np.concatenate([function(image[top : top + rows]) for top in tops])


def highest(image: NDArray[Any]) -> NDArray[Any]:
    """Largest of the three colours; ten times as fast as a maximum over an axis of three."""
    high: NDArray[Any] = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    return high


def lowest(image: NDArray[Any]) -> NDArray[Any]:
    """Smallest of the three colours."""
    low: NDArray[Any] = np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])
    return low


def saturation_of(image: Pixels) -> NDArray[np.float32]:
    """Saturation of each px, 0 to 1."""
    high = highest(image).astype(np.float32)
    low = lowest(image).astype(np.float32)
    saturation: NDArray[np.float32] = np.divide(high - low, np.maximum(high, 1), dtype=np.float32)
    return saturation


def hue_of(image: Pixels) -> NDArray[np.float32]:
    """Hue in degrees, 0 red, 120 green, 240 blue; 0 where there is no colour."""
    red, green, blue = np.moveaxis(image.astype(np.float32), 2, 0)
    high = highest(image).astype(np.float32)
    chroma = np.maximum(high - lowest(image), 1.0)
    sector = np.select(
        [high == red, high == green],
        [(green - blue) / chroma, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    hue: NDArray[np.float32] = sector * 60 % 360
    return hue


def between(hue: NDArray[np.float32], low: float, high: float) -> NDArray[np.bool_]:
    """Hues from low up to high, through 0 where low is the larger."""
    return (hue - low) % 360 < (high - low) % 360
