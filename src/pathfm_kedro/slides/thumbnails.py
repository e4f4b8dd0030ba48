"""Single tiles as small pictures for pages: read from a slide, packed into the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from pathfm_kedro.slides.fields import TileFields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import Pixels


def read_tile(
    files: SlideFiles, slide: Mapping[str, Any], tile: Mapping[str, Any], pixels: int
) -> Pixels:
    """Pixels of one tile.

    Parameters
    ----------
    files
        The cohort's folder.
    slide
        ``path`` and ``mpp`` (µm per level-0 px) of its slide.
    tile
        ``x``, ``y`` (level-0 px) and ``field_um`` of the tile.
    pixels
        Width as read.

    Returns
    -------
    ndarray
        uint8 [pixels, pixels, 3].

    Raises
    ------
    OSError, ValueError
        If the slide cannot be read, or nobody knows where the tile lies.
    """
    if tile["field_um"] is None:
        raise ValueError("nobody knows where the tile lies on its slide")
    side = tile["field_um"] / slide["mpp"]
    fields = TileFields(files, slide["path"], (tile["x"],), (tile["y"],), side, pixels)
    picture: Pixels = next(fields.batches(1))[0][0]
    return picture


def jpeg_source(pixels: Pixels, quality: int = 85) -> str:
    """A picture as the source of an ``img``: nothing is fetched.

    Parameters
    ----------
    pixels
        uint8 [height, width, 3].
    quality
        Of the JPEG.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
