"""Whether an encoder is what its entry says: it loads, from a file, and gives vectors as it should."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.encoders.registry import load_anew
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.trial import synthetic_tiles

#: Tiles that are embedded: enough to see whether one depends on those beside it.
_TILES = 3
#: Of torch's random numbers when an encoder is loaded for the first and for the second time.
_SEEDS = (1, 2)
#: A tile alone and among others may differ in the last bits of float32, as share of its length.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What was asked.
    passed
        Whether it is so; None where it could not be asked.
    detail
        What was found, and the mend where it is not so.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class _Load:
    """What one load of an encoder gives."""

    vectors: Vectors
    again: Vectors
    alone: Vectors
    fingerprint: str


def check_encoder(
    spec: EncoderSpec, dimension: int | None = None, tile_pixels: int = 224
) -> Iterator[Check]:
    """Load an encoder twice, embed a few fixed tiles, and say what is found, one check after the other.

    The two loads begin with different random numbers: weights that came from a file are the same in
    both, and weights that were left at random are not.

    Parameters
    ----------
    spec
        The encoder.
    dimension
        That its vectors should have; None where nobody says.
    tile_pixels
        Side of the tiles.

    Yields
    ------
    Check
        In the order of the work.

    Raises
    ------
    ValueError
        If it cannot be loaded at all, naming the mend.
    """
    tiles = synthetic_tiles(_TILES, tile_pixels)
    first = _loaded(spec, tiles, _SEEDS[0])
    yield Check("loads", True, f"fingerprint {first.fingerprint[:12]}")
    yield _dimension(first.vectors, dimension)
    finite = bool(np.isfinite(first.vectors).all())
    yield Check(
        "finite",
        finite,
        "every number is" if finite else "NaN or infinity: check weights, mean, std",
    )
    differ = bool((first.vectors[0] != first.vectors[1]).any())
    yield Check(
        "tells tiles apart", differ, "yes" if differ else "two tiles have one vector: check pooling"
    )
    same = first.vectors.tobytes() == first.again.tobytes()
    yield Check(
        "deterministic",
        same,
        "the same tiles give the same vectors"
        if same
        else "the same tiles give other vectors: a layer draws numbers; load it in evaluation mode",
    )
    apart = float(
        np.linalg.norm(first.vectors[0] - first.alone[0]) / np.linalg.norm(first.vectors[0])
    )
    yield Check(
        "a tile for itself",
        apart <= _ROUNDING,
        f"alone and among others its vector differs by {apart:.1g} of its length"
        + ("" if apart <= _ROUNDING else ": a layer looks at the batch; it is no encoder of tiles"),
    )
    yield _weights(spec, first.fingerprint)


def _loaded(spec: EncoderSpec, tiles: np.ndarray, seed: int) -> _Load:
    encoder = load_anew(spec, seed)
    return _Load(
        encoder.embed(tiles), encoder.embed(tiles), encoder.embed(tiles[:1]), encoder.fingerprint
    )


def _dimension(vectors: Vectors, expected: int | None) -> Check:
    found = int(vectors.shape[1])
    if expected is None:
        return Check("dimension", None, f"{found}; nobody says what it should be")
    if found == expected:
        return Check("dimension", True, f"{found}, as published")
    return Check(
        "dimension", False, f"{found}, and {expected} is published: check pooling and model_kwargs"
    )


def _weights(spec: EncoderSpec, fingerprint: str) -> Check:
    """Whether nothing of the network is random."""
    name = "weights from a file"
    if not spec.has_network:
        return Check(name, None, "it has none")
    if not (spec.pretrained or spec.checkpoint):
        return Check(name, None, f"random by declaration, from seed {spec.seed}")
    second: Encoder = load_anew(spec, _SEEDS[1])
    if second.fingerprint == fingerprint:
        return Check(name, True, "two loads under different seeds are the same network")
    return Check(
        name,
        False,
        "two loads under different seeds are different networks, so weights are left at random: give "
        f"encoders.{spec.name}.model: timm:<architecture> with the file in "
        f"encoders.{spec.name}.checkpoint",
    )
