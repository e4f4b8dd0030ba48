"""How fast an encoder is on this machine: what its records say, or a trial on blank tiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TRIAL_TILES, _TRIAL_TURNS = 8, 3
_TRIED = "a trial made now, reading left out"


@dataclass(frozen=True)
class Speed:
    """How fast an encoder is here.

    Attributes
    ----------
    seconds
        For a tile, on one thread or on the GPU; None where nothing was measured.
    device
        ``cpu`` or ``cuda``.
    basis
        Where it comes from, for the reader.
    dimension
        Of the vectors; None where it is not known yet.
    """

    seconds: float | None = None
    device: str = "cpu"
    basis: str = "not measured yet"
    dimension: int | None = None


def recorded_speed(
    cost: Mapping[str, Any] | None,
    runtime: Mapping[str, Any] | None,
    card: Mapping[str, Any] | None,
) -> Speed:
    """What the records of an encoder say of its speed, the most telling first.

    Parameters
    ----------
    cost, runtime, card
        ``encoder_cost``, ``encoder_runtime`` and ``encoder_card``; None where there is none.
    """
    dimension = None if card is None or not card["dimension"] else int(card["dimension"])
    if cost is not None and cost["turns"]:
        seconds = float(np.mean([turn["seconds"] for turn in cost["turns"]])) / cost["tiles"]
        return Speed(seconds, cost["device"], "its recorded cost, reading included", dimension)
    if runtime is not None:
        fast = runtime["tiles_per_second"].get(runtime["runtime"])
        device = runtime["device"]
        if fast:
            return Speed(1 / fast, device, "its recorded trial, reading left out", dimension)
        return Speed(None, device, "its runtime was given and not timed", dimension)
    return Speed(dimension=dimension)


def tried_speed(name: str, entry: Mapping[str, Any], known: Speed, pixels: int) -> Speed:
    """The speed of an encoder on blank tiles, measured now.

    Parameters
    ----------
    name, entry
        The encoder and its entry.
    known
        What its records say.
    pixels
        Side of a tile.
    """
    from pathfm_kedro.encoders import EncoderSpec, load_encoder

    spec = EncoderSpec.from_parameters(name, entry)
    if spec.is_trained:  # timed once it is fitted
        return known
    encoder = load_encoder(spec)
    tiles = np.full((_TRIAL_TILES, pixels, pixels, 3), 200, np.uint8)
    seconds, dimension = _timed(encoder.embed, tiles)
    device = str(getattr(encoder, "device", "cpu"))
    return replace(known, seconds=seconds, device=device, basis=_TRIED, dimension=dimension)


def tried_small_network(name: str, pixels: int) -> Speed:
    """The speed of a network that arms train, on blank tiles, measured now.

    Parameters
    ----------
    name
        ``small_cnn`` or ``small_vit``.
    pixels
        Side of its input.
    """
    from pathfm_kedro.encoders.pretraining import Backbone

    network = Backbone(name, pixels, 0)
    tiles = np.full((_TRIAL_TILES, pixels, pixels, 3), 200, np.uint8)
    seconds, dimension = _timed(network.vectors, tiles)
    return Speed(seconds, network.device, _TRIED, dimension)


def _timed(
    embed: Callable[[NDArray[np.uint8]], NDArray[Any]], tiles: NDArray[np.uint8]
) -> tuple[float, int]:
    """Seconds a tile on one thread, and the dimension of the vectors."""
    from pathfm_kedro.engine.threads import one_thread

    with one_thread():
        vectors = embed(tiles)
        seconds = []
        for _ in range(_TRIAL_TURNS):
            start = time.perf_counter()
            embed(tiles)
            seconds.append((time.perf_counter() - start) / len(tiles))
    return min(seconds), int(vectors.shape[1])
