"""Encoders whose answer is known in advance: they show that a measurement can pass and can fail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.encoders.cue_readers import READERS, CueReader
from pathfm_kedro.encoders.pattern_reader import PatternReader

#: Raised with any change of what a control computes, so that stored shards are not reused.
_REVISION = "1"
#: Cells along a side, and the brightest grey level, of the random projection.
_GRID, _GREY_LEVELS = 8, 255
#: Tiles at a time: few enough that their pixels stay in a processor's cache.
_BATCH_SIZE = 8


def _fingerprint(name: str) -> str:
    return hashlib.sha256(f"control:{name}:{_REVISION}".encode()).hexdigest()


@dataclass(frozen=True)
class StainStatistics:
    """Mean, spread and two quantiles of the optical density of each channel: colour and no shape.

    A shuffle of a tile's pixels does not change its vector. Where centers stain differently this
    encoder follows the center, so it must fail the robustness index there.

    Examples
    --------
    >>> tiles = np.full((2, 8, 8, 3), 128, np.uint8)
    >>> StainStatistics().embed(tiles).shape
    (2, 12)
    """

    preprocessing: Mapping[str, Any] = field(
        default_factory=lambda: {"input": "optical density -log10((v + 1) / 256) per channel"}
    )
    fingerprint: str = _fingerprint("stain_statistics")
    batch_size: int = _BATCH_SIZE

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, 12] float32: mean, standard deviation, 10th and 90th percentile per channel."""
        density = -np.log10((np.arange(256, dtype=np.float64) + 1) / 256)
        shares = _value_counts(tiles) / (tiles.shape[1] * tiles.shape[2])
        mean = shares @ density
        spread = np.sqrt(np.maximum(shares @ density**2 - mean**2, 0))
        # Dense is dark: the 10th percentile of density is the 90th of the pixel value.
        cumulative = np.cumsum(shares, axis=2)
        low, high = (density[(cumulative < level).sum(axis=2)] for level in (0.9, 0.1))
        return np.concatenate([mean, spread, low, high], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Noise:
    """Independent standard normal numbers that say nothing of the tile: every figure must be its null.

    The generator of a tile is seeded by ``seed`` and a digest of the tile's pixels, since an encoder is
    shown pixels and no ids: a tile has the same vector always and wherever it lies, and any change of
    its pixels, such as a turn or another stain, gives an independent one.

    Attributes
    ----------
    dimension
        Numbers in a vector.
    seed
        Another seed gives independent vectors of the same tiles.

    Examples
    --------
    >>> tiles = np.zeros((1, 8, 8, 3), np.uint8)
    >>> np.array_equal(Noise().embed(tiles), Noise().embed(tiles))
    True
    >>> np.array_equal(Noise().embed(tiles), Noise(seed=1).embed(tiles))
    False
    """

    dimension: int = 64
    seed: int = 0
    batch_size: int = _BATCH_SIZE

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What the vector is made from."""
        return {"input": "BLAKE2b digest of the pixels", "seed": self.seed}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the control's name, dimension and seed."""
        return _fingerprint(f"noise:{self.dimension}:{self.seed}")

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, dimension] float32, independent standard normal numbers."""
        return _normal_by_digest(tiles, self.dimension, [self.seed])


@dataclass(frozen=True)
class RandomProjection:
    """A fixed random projection of the tile reduced to 8 x 8 mean colours.

    It has learnt nothing, yet it knows colour and coarse structure, since distances survive a random
    projection (Johnson and Lindenstrauss 1984): what an untrained map of pixels reaches, and no null.

    Examples
    --------
    >>> tiles = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 10, 200)])
    >>> a, b, c = RandomProjection().embed(tiles)
    >>> bool(np.linalg.norm(a - b) < np.linalg.norm(a - c))
    True
    """

    dimension: int = 64
    preprocessing: Mapping[str, Any] = field(
        default_factory=lambda: {"input": "8 x 8 mean colours, 0 ... 1, projected at random"}
    )
    fingerprint: str = _fingerprint("random_projection:2")
    batch_size: int = _BATCH_SIZE

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, 64] float32 of tiles [n, h, w, 3] with sides of at least 8 px."""
        rows, columns = (np.linspace(0, side, _GRID + 1).astype(int) for side in tiles.shape[1:3])
        cells = np.add.reduceat(tiles.astype(np.float64), rows[:-1], axis=1)
        cells = np.add.reduceat(cells, columns[:-1], axis=2)
        areas = np.diff(rows)[:, None] * np.diff(columns)
        colours = (cells / areas[..., None] / _GREY_LEVELS).reshape(len(tiles), -1)
        weights = np.random.default_rng(0).standard_normal((colours.shape[1], self.dimension))
        projected: Vectors = (colours @ weights / np.sqrt(self.dimension)).astype(np.float32)
        return projected


@dataclass(frozen=True)
class PhantomTruth:
    """What was drawn on a tile of a phantom slide: morphology alone, so it must pass everything."""

    preprocessing: Mapping[str, Any] = field(
        default_factory=lambda: {"input": "the drawn morphology, not the pixels"}
    )
    fingerprint: str = _fingerprint("phantom_truth")
    batch_size: int = _BATCH_SIZE

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, m] float32: the truth itself.

        Raises
        ------
        ValueError
            If the slide is not a phantom.
        """
        if truth is None:
            raise ValueError(
                "phantom_truth reads what was drawn, and this slide was not drawn by the phantom: "
                "set encoders.phantom_truth to null in this cohort's parameters_encoders.yml"
            )
        return np.ascontiguousarray(truth, np.float32)


@dataclass(frozen=True)
class TileCorner:
    """How dark the parts of one corner are: a quarter of the tile and no tissue as such.

    Mean optical density on a 4 × 4 grid over the upper left quarter, less the quarter's mean, over
    the grid's standard deviation. Another turn or another arrangement puts other tissue there, so its
    neighbours change; another stain hardly matters. (A grid over the whole tile would only permute
    its dimensions under a quarter turn, which leaves all distances, hence all neighbours, as they
    are.)

    Examples
    --------
    >>> tile = np.zeros((1, 16, 16, 3), np.uint8)
    >>> tile[:, :4] = 255
    >>> TileCorner().embed(tile)[0, [0, 15]].round(2).tolist()
    [-1.0, 1.0]
    """

    grid: int = 4
    preprocessing: Mapping[str, Any] = field(
        default_factory=lambda: {"input": "mean optical density on a 4 x 4 grid over one quarter"}
    )
    fingerprint: str = _fingerprint("tile_corner")
    batch_size: int = _BATCH_SIZE

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, 17] float32: the grid row by row, and a small constant, so that no vector is zero."""
        density = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
        corner = density[tiles[:, : tiles.shape[1] // 2, : tiles.shape[2] // 2]]
        rows = [
            np.stack(
                [part.mean(axis=(1, 2, 3)) for part in np.array_split(band, self.grid, axis=2)]
            )
            for band in np.array_split(corner, self.grid, axis=1)
        ]
        cells = np.concatenate(rows).T.astype(np.float64)
        cells -= cells.mean(axis=1, keepdims=True)
        spread = cells.std(axis=1, keepdims=True)
        standardised = np.divide(cells, spread, out=np.zeros_like(cells), where=spread > 1e-6)
        return np.pad(standardised, ((0, 0), (0, 1)), constant_values=0.1).astype(np.float32)


CONTROLS: dict[str, Callable[..., Encoder]] = {
    "noise": Noise,
    "stain_statistics": StainStatistics,
    "random_projection": RandomProjection,
    "tile_corner": TileCorner,
    "phantom_truth": PhantomTruth,
    "pattern_reader": PatternReader,
    **{f"{cue}_reader": partial(CueReader, cue) for cue in READERS},
}


def _normal_by_digest(tiles: Pixels, dimension: int, seed: list[int]) -> Vectors:
    """Standard normal numbers [n, dimension], each row sampled from the tile's digest and the seed."""
    vectors = np.empty((len(tiles), dimension), np.float32)
    # One generator a tile, since its seed is that tile's digest; the forward pass of any real
    # encoder costs a thousand times more.
    for row, tile in zip(vectors, tiles, strict=True):
        pixels = np.ascontiguousarray(tile).tobytes()
        digest = int.from_bytes(hashlib.blake2b(pixels, digest_size=16).digest(), "little")
        generator = np.random.default_rng([digest, *seed] if seed else digest)
        row[:] = generator.standard_normal(dimension, np.float32)
    return vectors


def _value_counts(tiles: Pixels) -> np.ndarray:
    """How often each value occurs per tile and channel: [n, 3, 256]."""
    n = len(tiles)
    offsets = 256 * np.arange(n * 3, dtype=np.int64).reshape(n, 1, 3)
    flat = tiles.reshape(n, -1, 3) + offsets
    return np.bincount(flat.reshape(-1), minlength=n * 3 * 256).reshape(n, 3, 256)
