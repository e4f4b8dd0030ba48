"""What every encoder can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """A frozen map from tile pixels to one vector per tile."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights, architecture, pooling and preprocessing."""
        ...

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done to pixels before the forward pass."""
        ...

    @property
    def batch_size(self) -> int:
        """Tiles that are best given at a time; it changes no vector beyond rounding."""
        ...

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """Vectors of tiles.

        Parameters
        ----------
        tiles
            uint8 [n, height, width, 3], RGB.
        truth
            float32 [n, m], what was drawn on each tile; only phantom slides have it and only the
            `phantom_truth` control looks at it.

        Returns
        -------
        ndarray
            float32 [n, d].
        """
        ...
