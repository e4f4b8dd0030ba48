"""What runs an encoder: given, or the fastest of those that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial


def choose_runtime(
    encoder: Mapping[str, Any], tile_parameters: Mapping[str, Any], *, name: str
) -> RuntimeTrial:
    """The trial of an encoder's runtimes; the dataset makes it where no record of it is found.

    Parameters
    ----------
    encoder
        The entry of ``encoders`` in the parameters.
    tile_parameters
        ``pixels``: side of a tile as read, where the entry has no ``tile`` of its own; a much larger
        input is warned of.
    name
        The encoder's name.

    Examples
    --------
    >>> entry = {"model": "control:stain_statistics", "role": "control"}
    >>> trial = choose_runtime(entry, {"pixels": 224}, name="stain")
    >>> trial.record()["runtime"]
    'none'
    """
    spec = EncoderSpec.from_parameters(name, encoder)
    own = spec.tile or tile_parameters
    return RuntimeTrial(spec, int(own["pixels"]))


def collect_runtimes(
    *runtimes: Mapping[str, Any], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Recorded runtimes by the encoder's name."""
    return {name: dict(record) for name, record in zip(names, runtimes, strict=True)}
