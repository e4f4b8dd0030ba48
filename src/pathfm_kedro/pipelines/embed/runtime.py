"""What runs an encoder: given, or the fastest of those that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial
from pathfm_kedro.encoders.rivals import with_weights


class FittedWeights(Protocol):
    """Weights that were fitted, as the dataset gives them."""

    @property
    def path(self) -> str:
        """Of the file, from the project's folder where it lies there."""
        ...


def choose_runtime(
    encoder: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    fitted: FittedWeights | None = None,
    *,
    name: str,
) -> RuntimeTrial:
    """The trial of an encoder's runtimes; the dataset makes it where no record of it is found.

    Parameters
    ----------
    encoder
        The entry of ``encoders`` in the parameters.
    tile_parameters
        ``pixels``: side of a tile as read, where the entry has no ``tile`` of its own; a much larger
        input is warned of.
    fitted
        Weights of an encoder that is trained on the cohort; its record says where they are.
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
    if fitted is not None:
        spec = with_weights(spec, fitted.path)
    own = spec.tile or tile_parameters
    return RuntimeTrial(spec, int(own["pixels"]), encoder)


def collect_records(*records: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Recorded runtimes, or costs, by the encoder's name."""
    return {name: dict(record) for name, record in zip(names, records, strict=True)}
