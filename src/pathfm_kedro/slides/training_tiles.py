"""Tiles that networks are trained on, read once at the side of the network's input."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.engine import cancellable
from pathfm_kedro.slides.fields import TileFields

Pixels = NDArray[np.uint8]

#: Raised with any change of what is stored of the same tiles.
_REVISION = "1"
#: Tiles in memory at their own size.
_AT_ONCE = 8


@dataclass(frozen=True)
class ReadTiles:
    """Some tiles of one slide at the side of a network's input.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        The tiles.
    side
        Of the network's input, px.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    side: int

    def header(self) -> dict[str, str]:
        """What the pixels depend on."""
        return {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "read": json.dumps([_REVISION, self.side]),
            "units": "RGB of 0 to 255, tile x row x column x channel",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``pixels`` uint8 [n, side, side, 3]."""
        batches = cancellable(self.fields.batches(_AT_ONCE))
        return {"pixels": np.concatenate([shrunk(tiles, self.side) for tiles, _ in batches])}


def shrunk(tiles: Pixels, side: int) -> Pixels:
    """Tiles at the side of a network's input, as its preprocessing gives them.

    Parameters
    ----------
    tiles
        uint8 [n, s, s, 3].
    side
        px.

    Returns
    -------
    ndarray
        uint8 [n, side, side, 3].
    """
    import torch

    if tiles.shape[1:3] == (side, side):
        return np.ascontiguousarray(tiles)
    batch = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(
        batch, (side, side), mode="bicubic", antialias=True, align_corners=False
    )
    whole = resized.round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(whole.permute(0, 2, 3, 1).numpy())
