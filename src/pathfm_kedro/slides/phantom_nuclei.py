"""Draws the phantom's nuclei: soft ellipses, many thousands at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathfm_kedro.slides.phantom_fields import Map

#: Width of a nucleus's edge, pixels.
_EDGE_PX = 1.5


@dataclass(frozen=True)
class Nuclei:
    """Ellipses on a slide, one row each.

    Attributes
    ----------
    at
        Centre in level-0 pixels, row and column [n, 2].
    diameter
        Of a disc of the same area, pixels [n].
    ratio
        Long over short axis [n].
    angle
        Of the long axis, radians from the row direction [n].
    darkness
        Haematoxylin inside [n].
    """

    at: Map
    diameter: Map
    ratio: Map
    angle: Map
    darkness: Map


def stamp(groups: Sequence[Nuclei], size_px: int) -> Map:
    """Draw nuclei on an empty slide; where they overlap the darkest wins.

    Parameters
    ----------
    groups
        Nuclei to draw.
    size_px
        Side of the slide.

    Returns
    -------
    ndarray
        float32 [size_px, size_px].

    Examples
    --------
    >>> one = Nuclei(*(np.array(v) for v in ([[16.0, 16.0]], [10.0], [1.0], [0.0], [0.8])))
    >>> drawn = stamp([one], 32)
    >>> round(float(drawn.max()), 2), float(drawn[0, 0])
    (0.8, 0.0)
    """
    canvas = np.zeros(size_px * size_px, dtype=np.float32)
    for nuclei in groups:
        reach = np.ceil(nuclei.diameter * np.sqrt(nuclei.ratio) / 2 + 1).astype(int)
        if not len(reach):
            continue
        # Nuclei of like size share an array, so that one large nucleus does not widen all others.
        edges = np.unique(np.quantile(reach, (0.5, 0.9, 1.0), method="higher"))
        which = np.searchsorted(edges, reach)
        for bin_, half in enumerate(edges):
            _stamp_alike(canvas, nuclei, which == bin_, int(half))
    return canvas.reshape(size_px, size_px)


def _stamp_alike(canvas: Map, nuclei: Nuclei, some: Map, half: int) -> None:
    """Draw the nuclei of one size, each in a square of side 2 half + 1."""
    size_px = math.isqrt(len(canvas))
    at = nuclei.at[some]
    corner = np.floor(at).astype(np.int32)
    offset = np.arange(-half, half + 1, dtype=np.int32)
    row, column = corner[:, :1] + offset, corner[:, 1:] + offset
    value = _ellipses(nuclei, some, row - at[:, :1], column - at[:, 1:])
    in_row, in_column = ((side >= 0) & (side < size_px) for side in (row, column))
    hit = in_row[:, :, None] & in_column[:, None, :] & (value > 0)
    index = row[:, :, None] * size_px + column[:, None, :]
    np.maximum.at(canvas, index[hit], value[hit])


def _ellipses(nuclei: Nuclei, some: Map, down: Map, right: Map) -> Map:
    """Haematoxylin in a square around each nucleus, [n, rows, columns]."""

    def column_of(values: Map) -> Map:
        column: Map = values[some].astype(np.float32)[:, None, None]
        return column

    stretch = np.sqrt(nuclei.ratio)
    short = column_of(nuclei.diameter / 2 / stretch)
    cos, sin = column_of(np.cos(nuclei.angle)), column_of(np.sin(nuclei.angle))
    dy = down.astype(np.float32)[:, :, None]
    dx = right.astype(np.float32)[:, None, :]
    along = (dx * cos + dy * sin) / column_of(nuclei.diameter / 2 * stretch)
    across = (dy * cos - dx * sin) / short
    depth = (1 - np.sqrt(along * along + across * across)) * short
    inside: Map = np.clip(depth / np.float32(_EDGE_PX) + np.float32(0.5), 0, 1)
    return column_of(nuclei.darkness) * inside
