"""What a person writes of an encoder in `parameters_encoders.yml`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: A dataset name, a file name and a namespace at once, so it must be plain.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
#: Names of arguments that nodes take beside one argument per encoder.
_RESERVED = frozenset({"parameters", "controls"})
_POOLINGS = ("default", "class_token", "patch_mean", "class_token_and_patch_mean")
_PREFIXES = ("control:", "package:", "timm:", "local-dir:", "hf-hub:")


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder of a cohort.

    Attributes
    ----------
    name
        How tables, datasets and the report call it.
    model
        ``control:<name>``, ``package:efficientnet_lite0``, ``timm:<name>``, ``local-dir:<folder>``
        or ``hf-hub:<owner>/<model>``.
    role
        ``encoder`` for what is audited, ``control`` for what shows that a measurement works.
    pooling
        How tokens become one vector: ``default`` as the model declares.
    checkpoint
        Weights for a ``timm:`` architecture: safetensors, or a state dict that loads with
        ``weights_only=True``.
    pretrained
        Whether a ``timm:`` architecture loads its published weights; needs the hub.
    model_kwargs
        Passed to ``timm.create_model``.
    mean, std, input_pixels
        Override what the model declares.
    batch_size
        Tiles per forward pass.
    """

    name: str
    model: str
    role: str = "encoder"
    pooling: str = "default"
    checkpoint: str | None = None
    pretrained: bool = True
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_pixels: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        where = f"encoders.{self.name}"
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise ValueError(
                f"encoder name '{self.name}' may hold letters, digits, '-' and '_' only, and not be "
                f"one of {sorted(_RESERVED)}: rename it"
            )
        if not self.model.startswith(_PREFIXES):
            raise ValueError(
                f"{where}.model is '{self.model}': begin it with one of {', '.join(_PREFIXES)}"
            )
        if self.role not in ("encoder", "control"):
            raise ValueError(f"{where}.role is '{self.role}': give 'encoder' or 'control'")
        if self.pooling not in _POOLINGS:
            raise ValueError(f"{where}.pooling is '{self.pooling}': give one of {_POOLINGS}")
        if self.checkpoint is not None and not self.model.startswith("timm:"):
            raise ValueError(
                f"{where}.checkpoint goes with a timm: architecture, not with '{self.model}', which "
                "brings its own weights: leave it out or name the architecture"
            )
        if self.batch_size < 1:
            raise ValueError(f"{where}.batch_size is {self.batch_size}: give 1 or more")
        for statistic in (self.mean, self.std):
            if statistic is not None and len(statistic) != 3:
                raise ValueError(f"{where}.mean and std need three numbers, one per channel")

    @classmethod
    def from_parameters(cls, name: str, parameters: Mapping[str, Any]) -> EncoderSpec:
        """Read one entry of ``encoders`` in the parameters.

        Raises
        ------
        ValueError
            If a key is unknown, missing or has a value out of range; it names the key.

        Examples
        --------
        >>> EncoderSpec.from_parameters("uni", {"model": "hf-hub:MahmoodLab/UNI"}).role
        'encoder'
        """
        known = {entry.name for entry in fields(cls)} - {"name"}
        unknown = sorted(set(parameters) - known)
        if unknown:
            raise ValueError(
                f"encoders.{name} has unknown keys {unknown}: known are {sorted(known)}"
            )
        if not isinstance(parameters.get("model"), str):
            raise ValueError(f"encoders.{name} has no 'model': say which, e.g. timm:resnet18")
        values = dict(parameters)
        for key in ("mean", "std"):
            if values.get(key) is not None:
                values[key] = tuple(float(x) for x in values[key])
        return cls(name=name, **values)

    def key(self) -> str:
        """The spec as canonical JSON, for caching and for provenance."""
        return json.dumps(asdict(self), sort_keys=True)


def read_encoders(parameters: Mapping[str, Mapping[str, Any] | None]) -> dict[str, EncoderSpec]:
    """All encoders of a cohort by name; an entry set to null in a cohort's folder is left out."""
    return {
        name: EncoderSpec.from_parameters(name, entry)
        for name, entry in parameters.items()
        if entry is not None
    }
