"""What a person writes of an encoder in `parameters_encoders.yml`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

#: A dataset name, a file name and a namespace at once, so it must be plain.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
#: Names of arguments that nodes take beside one argument per encoder.
_RESERVED = frozenset({"parameters", "controls"})
_POOLINGS = ("default", "class_token", "patch_mean", "class_token_and_patch_mean")
_PREFIXES = ("control:", "package:", "timm:", "local-dir:", "hf-hub:", "harmonised:")
#: What is done to pixels before the network, and to the vectors of another encoder.
PIXEL_MITIGATIONS = ("stain_normalisation", "rotation_average")
VECTOR_MITIGATIONS = ("centring", "whitening", "combat")
#: What can run a network. Compiling is left out: it takes most of a minute in every process and gives
#: half of what onnxruntime gives.
RUNTIMES = ("eager", "channels_last", "onnxruntime")
PRECISIONS = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
AUTO = "auto"
#: What changes how a network is run, and not which network it is.
_OF_THE_RUN = frozenset(
    {"name", "role", "batch_size", "runtime", "precision", "device", "mitigation"}
)


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
        Tiles per forward pass; ``auto`` takes what suits the device.
    runtime
        What runs the network: ``eager`` PyTorch, PyTorch with ``channels_last`` memory, or
        ``onnxruntime`` (CPU and float32 only). ``auto`` takes the fastest of those that agree with
        eager PyTorch, by a short trial that is recorded and not repeated.
    precision
        Of the arithmetic: ``float32``, ``bfloat16`` or ``float16``. ``auto`` is float32 on a CPU and
        bfloat16 on a GPU that computes with it.
    device
        ``cpu`` or ``cuda``; ``auto`` takes a GPU where there is one.
    mitigation
        Makes the entry a variant that goes through the same audit. Of a network:
        ``stain_normalisation`` (Macenko, to one reference) or ``rotation_average`` (mean over quarter
        turns). Of a model ``harmonised:<encoder>``, whose vectors are those of another entry with the
        center taken out: ``centring``, ``whitening`` or ``combat``.
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
    batch_size: int | str = AUTO
    runtime: str = AUTO
    precision: str = AUTO
    device: str = AUTO
    mitigation: str | None = None

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
        for statistic in (self.mean, self.std):
            if statistic is not None and len(statistic) != 3:
                raise ValueError(f"{where}.mean and std need three numbers, one per channel")
        self._check_mitigation(where)
        self._check_how_it_runs(where)

    def _check_mitigation(self, where: str) -> None:
        if self.model == "harmonised:":
            raise ValueError(f"{where}.model is 'harmonised:': name the encoder after the colon")
        known = VECTOR_MITIGATIONS if self.base else PIXEL_MITIGATIONS
        if (self.base or self.mitigation is not None) and self.mitigation not in known:
            raise ValueError(
                f"{where}.mitigation is {self.mitigation!r}: with model '{self.model}' give one of "
                f"{', '.join(known)}"
            )

    def _check_how_it_runs(self, where: str) -> None:
        size = self.batch_size
        if size != AUTO and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"{where}.batch_size is {size!r}: give a number from 1, or 'auto'")
        for key, known in (
            ("runtime", RUNTIMES),
            ("precision", PRECISIONS),
            ("device", DEVICES),
        ):
            value = getattr(self, key)
            if value not in (AUTO, *known):
                raise ValueError(
                    f"{where}.{key} is {value!r}: give one of {', '.join((AUTO, *known))}"
                )
            if value != AUTO and not self.has_network:
                raise ValueError(
                    f"{where}.{key} is {value!r}, and '{self.model}' is no network: leave it out"
                )
        if self.runtime != "onnxruntime":
            return
        for key, only in (("precision", "float32"), ("device", "cpu")):
            value = getattr(self, key)
            if value not in (AUTO, only):
                raise ValueError(
                    f"{where}.{key} is {value!r}, and onnxruntime is run with {only} only: give "
                    f"{only} or auto, or another {where}.runtime"
                )

    @property
    def base(self) -> str:
        """Name of the encoder whose vectors are harmonised; empty for any other model."""
        kind, _, name = self.model.partition(":")
        return name if kind == "harmonised" else ""

    @property
    def has_network(self) -> bool:
        """Whether a network is run: not in a control, nor where another entry's vectors are taken."""
        return not self.base and not self.model.startswith("control:")

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
        if not isinstance(parameters, Mapping):
            raise ValueError(
                f"encoders.{name} is {parameters!r}: write its keys below it, the first "
                f"'  model: {parameters}'"
            )
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
                values[key] = _three_numbers(f"encoders.{name}.{key}", values[key])
        return cls(name=name, **values)

    def key(self) -> str:
        """The spec as canonical JSON, for caching and for provenance."""
        return json.dumps(asdict(self), sort_keys=True)

    def network_key(self) -> str:
        """As :meth:`key`, without what only says how the network is run."""
        described = {k: v for k, v in asdict(self).items() if k not in _OF_THE_RUN}
        return json.dumps(described, sort_keys=True)

    def with_runtime(self, record: Mapping[str, Any]) -> EncoderSpec:
        """The spec with the recorded runtime, precision and device in place of ``auto``.

        Parameters
        ----------
        record
            The dataset ``encoder_runtime.<name>``.

        Examples
        --------
        >>> record = {"runtime": "eager", "precision": "float32", "device": "cpu"}
        >>> EncoderSpec("r", "timm:resnet18").with_runtime(record).runtime
        'eager'
        """
        if not self.has_network:
            return self
        return replace(
            self,
            runtime=record["runtime"],
            precision=record["precision"],
            device=record["device"],
        )


def _three_numbers(where: str, given: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(x) for x in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where} is {given!r}: give three numbers, one per channel")
    if where.endswith(".std") and min(numbers) <= 0:
        raise ValueError(f"{where} is {given!r}: pixels are divided by it, so give numbers above 0")
    return numbers


def read_encoders(parameters: Mapping[str, Mapping[str, Any] | None]) -> dict[str, EncoderSpec]:
    """All encoders of a cohort by name; an entry set to null in a cohort's folder is left out."""
    return {
        name: EncoderSpec.from_parameters(name, entry)
        for name, entry in parameters.items()
        if entry is not None
    }
