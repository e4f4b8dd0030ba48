"""Encoders that read one cue which the phantom draws at a dose: without it they pass, with it fail.

A reader sees the truth, as ``phantom_truth`` does, and the cue as the pixels show it, at a fixed
weight. Where no cue is drawn the truth decides, where it is drawn in full the cue does: so a check is
calibrated through drawing, views and pixels. ``field`` sees its cue alone: the truth tells the label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.base import Pixels, Vectors

Floats = NDArray[np.float64]
#: Raised with any change of what a reader computes.
_REVISION = "1"
_BATCH_SIZE = 8
#: Cells along a side of what reads the arrangement.
_GRID = 4
#: Bands of the two cues, in cycles on a tile of any resolution and in cycles per px.
_CHATTER, _LABEL = (7.5, 11.5), (0.06, 0.25)
#: Side of what is looked at for the label's bands, px: two periods at 0.5, four at 1 micrometre per px.
_BLOCK = 28


def _chatter(density: Floats) -> Floats:
    """[n, 2] how far waves of chatter run along the rows, and along a diagonal; none below 0.

    Half of a direction's sine and cosine: a detector of some directions, not a compass, which would
    turn as one with all tiles and keep every neighbour.
    """
    found: Floats = np.maximum(_direction(density, *_CHATTER), 0)
    return found


def _label_bands(density: Floats) -> Floats:
    """[n, 2] direction of fine waves, doubled, where they are strongest."""
    n, along = len(density), density.shape[-1] // _BLOCK
    side = along * _BLOCK
    blocks = density[:, :side, :side].reshape(n, along, _BLOCK, along, _BLOCK).swapaxes(2, 3)
    found = _direction(blocks.reshape(-1, _BLOCK, _BLOCK), _LABEL[0] * _BLOCK, _LABEL[1] * _BLOCK)
    by_tile = found.reshape(n, along**2, 2)
    strongest = np.linalg.norm(by_tile, axis=2).argmax(axis=1)
    found_there: Floats = by_tile[np.arange(n), strongest]
    return found_there


def _direction(density: Floats, low: float, high: float) -> Floats:
    """Mean cosine and sine of twice the direction of waves of low to high cycles, by their power."""
    side = density.shape[-1]
    window = np.hanning(side)
    centred = (density - density.mean(axis=(1, 2), keepdims=True)) * window[:, None] * window
    power = np.abs(np.fft.fft2(centred)) ** 2 / side**2 / (window**2).mean() ** 2
    rows, columns = np.meshgrid(*(np.fft.fftfreq(side, 1 / side),) * 2, indexing="ij")
    cycles = np.hypot(rows, columns)
    kept = (cycles >= low) & (cycles <= high)
    angle = 2 * np.arctan2(rows[kept], columns[kept])
    directed = power[:, kept] @ np.stack([np.cos(angle), np.sin(angle)], axis=1) / side**2
    found: Floats = np.sign(directed) * np.sqrt(np.abs(directed))
    return found


def _arrangement(density: Floats) -> Floats:
    """[n, 16] mean density of a grid of cells, less the tile's."""
    n, side = len(density), density.shape[-1] // _GRID * _GRID
    cut = density[:, :side, :side].reshape(n, _GRID, side // _GRID, _GRID, side // _GRID)
    cells = cut.mean(axis=(2, 4)).reshape(n, -1)
    relative: Floats = cells - cells.mean(axis=1, keepdims=True)
    return relative


def _fine_detail(density: Floats) -> Floats:
    """[n, 1] how much neighbouring pixels differ along both diagonals: what blur takes first."""
    corner = density[:, :-1, :-1] - density[:, :-1, 1:] - density[:, 1:, :-1] + density[:, 1:, 1:]
    spread: Floats = np.sqrt((corner**2).mean(axis=(1, 2)))[:, None]
    return spread


@dataclass(frozen=True)
class _Reader:
    """How a cue is read.

    Attributes
    ----------
    read
        Density [n, s, s] to numbers [n, m].
    level
        What tissue without the cue reaches: less is read as nothing.
    weight
        Of what lies above, beside the truth.
    with_truth
        Whether the truth is read too.
    """

    read: Callable[[Floats], Floats]
    level: float
    weight: float
    with_truth: bool = True

    def __call__(self, density: Floats) -> Floats:
        found = self.read(density)
        above: Floats = np.sign(found) * np.maximum(np.abs(found) - self.level, 0) * self.weight
        return above


READERS = {
    "orientation": _Reader(_chatter, 0.03, 100.0),
    "arrangement": _Reader(_arrangement, 0.13, 50.0),
    "fine_detail": _Reader(_fine_detail, 0.03, 100.0),
    "field": _Reader(_label_bands, 0.0, 10.0, with_truth=False),
}


@dataclass(frozen=True)
class CueReader:
    """What reads a drawn cue from pixels, and the truth.

    Attributes
    ----------
    cue
        Name in :data:`READERS`.
    """

    cue: str
    batch_size: int = _BATCH_SIZE

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What the vector is made from."""
        return {"input": f"optical density: {self.cue}; and the drawn morphology"}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the reader's name and revision."""
        return hashlib.sha256(f"cue:{self.cue}:{_REVISION}".encode()).hexdigest()

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, m] float32: the truth, the cue at its weight, and a small constant.

        Raises
        ------
        ValueError
            If the slide is not a phantom.
        """
        reader = READERS[self.cue]
        density = -np.log10((np.asarray(tiles, np.float64).mean(axis=3) + 1) / 256)
        parts = [reader(density), np.full((len(tiles), 1), 0.1)]
        if reader.with_truth:
            if truth is None:
                raise ValueError(f"the reader of {self.cue} needs slides drawn by the phantom")
            parts.insert(0, np.asarray(truth, np.float64))
        return np.concatenate(parts, axis=1).astype(np.float32)
