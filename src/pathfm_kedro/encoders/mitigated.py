"""An encoder with something done to its pixels first: a variant that goes through the same audit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.engine.versions import package_versions

#: Raised with any change of what is done to pixels.
_REVISION = "1"
#: Packages whose version decides about the pixels.
_DONE_BY = {"stain_normalisation": ("torchstain",)}
#: Fewer pixels of tissue give no stain vectors: the tile is left as it is. torchstain takes pixels with
#: an optical density above 0.15 in every channel for tissue.
_FEWEST_TISSUE_PIXELS = 100
_TISSUE_DENSITY = 0.15


@dataclass(frozen=True)
class MitigatedEncoder:
    """What an encoder gives of tiles that were changed first; see :data:`MITIGATIONS`.

    Attributes
    ----------
    base
        The encoder.
    mitigation
        What is done.
    """

    base: Encoder
    mitigation: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the encoder's fingerprint, of what is done, and of what does it."""
        by = package_versions(_DONE_BY.get(self.mitigation, ()))
        identity = f"{self.base.fingerprint}:{self.mitigation}:{_REVISION}:{by}"
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """The encoder's, and what is done before."""
        return {**self.base.preprocessing, "mitigation": self.mitigation}

    @property
    def batch_size(self) -> int:
        """The encoder's."""
        return self.base.batch_size

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, d] float32."""
        return MITIGATIONS[self.mitigation](self.base, tiles, truth)


def rotation_average(base: Encoder, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
    """Mean of the vectors of a tile's four quarter turns, which move pixels without loss.

    A quarter turn of a tile leaves its vector as it is, but for rounding.
    """
    rotated = (np.rot90(tiles, quarters, axes=(1, 2)) for quarters in range(4))
    total = sum(
        base.embed(np.ascontiguousarray(view), truth).astype(np.float64) for view in rotated
    )
    return (np.asarray(total) / 4).astype(np.float32)


def stain_normalisation(base: Encoder, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
    """Vectors of tiles whose two stains were moved to one reference (Macenko et al. 2009).

    The reference is torchstain's, the published one. Stain vectors are estimated from the tile
    itself, so that nothing of its center or patient is needed.
    """
    return base.embed(np.stack([normalised(tile) for tile in tiles]), truth)


def normalised(tile: Pixels) -> Pixels:
    """A tile in the reference stain; one with hardly any tissue is left as it is.

    Parameters
    ----------
    tile
        uint8 [height, width, 3].
    """
    density = -np.log((tile.reshape(-1, 3).astype(np.float64) + 1) / 240)
    tissue = density[(density >= _TISSUE_DENSITY).all(axis=1)]
    if len(tissue) < _FEWEST_TISSUE_PIXELS:
        return tile
    try:
        stained, _, _ = _normalizer().normalize(I=tile, stains=False)
    except np.linalg.LinAlgError:
        return tile
    result = np.asarray(stained)
    # Where both stains are one the estimate has no second direction and divides by nothing.
    return result.astype(np.uint8) if np.isfinite(result).all() else tile


@lru_cache(maxsize=1)
def _normalizer() -> Any:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    return NumpyMacenkoNormalizer()


MITIGATIONS: dict[str, Callable[[Encoder, Pixels, Vectors | None], Vectors]] = {
    "rotation_average": rotation_average,
    "stain_normalisation": stain_normalisation,
}
