"""What a person writes of an encoder in `parameters_encoders.yml`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pathfm_kedro.encoders.entry_checks import AUTO, HUB_NAME, LIBRARIES, check_entry
from pathfm_kedro.encoders.presets import expanded

#: Keys of an entry that say how it stands to another entry, and nothing of its own encoder.
_SIBLING, _ROBUSTIFIED_FROM = "random_weights", "robustified_from"
#: What changes how a network is run, and not which network it is.
_OF_THE_RUN = frozenset(
    {
        *("name", "role", "batch_size", "runtime", "precision", "device"),
        *("mitigation", "tile", "patch_tokens"),
    }
)


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder of a cohort.

    Attributes
    ----------
    name
        How tables, datasets and the report call it.
    model
        ``control:<name>``, ``package:efficientnet_lite0``, ``timm:<name>``, ``local-dir:<folder>``,
        ``hf-hub:<owner>/<model>``, ``transformers:`` or ``open_clip:`` with a folder or
        ``<owner>/<model>``, ``torchscript:<file>``, ``onnx:<file>``, ``trained:<name>``, which is
        fitted on the cohort, or ``features:<folder>`` of vectors that others made.
    role
        ``encoder`` for what is audited, ``control`` for what shows that a measurement works.
    pooling
        How tokens become one vector: ``default`` as the model declares.
    checkpoint
        Weights for a ``timm:`` architecture: safetensors, or a state dict that loads with
        ``weights_only=True``, as timm or as DINO, iBOT and DINOv2 publish it. A file here, or
        ``hf-hub:<owner>/<model>[@<revision>]/<file>``.
    weights
        Which file of weights of a folder or of the hub is loaded, where there are several.
    sha256
        Of the one file that ``weights``, ``checkpoint``, ``torchscript:`` or ``onnx:`` names: another
        is refused. A TorchScript archive is a program and needs it.
    pretrained
        False for an architecture whose weights are random and never trained: its null; needs ``seed``.
    model_kwargs
        Passed to ``timm.create_model``.
    mean, std, input_pixels
        Override what the model declares; ``torchscript:`` and ``onnx:`` declare nothing and need them.
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
    seed
        Of random weights, where ``pretrained`` is false, and of ``control:noise``.
    dimension
        Of the vectors of ``control:noise``.
    mitigation
        Makes the entry a variant that goes through the same audit. Of a network:
        ``stain_normalisation`` (Macenko, to one reference) or ``rotation_average`` (mean over quarter
        turns). Of a model ``harmonised:<encoder>``, whose vectors are those of another entry with the
        center taken out: ``centring``, ``whitening`` or ``combat``.
    training
        Of a model ``trained:<name>``: :class:`~pathfm_kedro.encoders.rivals.Training`.
    tile
        ``{pixels, mpp}`` of the tiles that it is shown; those of the cohort where not given.
    patch_tokens
        Tokens of patches that are stored of a tile beside its vector, for late interaction: 1, 4, 9 or
        16, which its patches are averaged to.
    patch_size, patch_level
        Of a folder of features whose files do not say how large their tiles are: the side of a tile in
        pixels of the level that it was read from, and that level.
    encoder
        What made a folder of features, as its files call it, where that is not the entry's name.
    same_as
        Of a folder of features, the entry of the cohort that should give the same vectors.
    """

    name: str
    model: str
    role: str = "encoder"
    pooling: str = "default"
    checkpoint: str | None = None
    weights: str | None = None
    sha256: str | None = None
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
    seed: int | None = None
    dimension: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    tile: Mapping[str, Any] | None = None
    patch_tokens: int | None = None
    patch_size: int | None = None
    patch_level: int | None = None
    encoder: str | None = None
    same_as: str | None = None

    def __post_init__(self) -> None:
        check_entry(self)
        if self.model.startswith("onnx:"):
            # Nothing else runs it: what is left to a choice elsewhere is settled here.
            for key, only in (
                ("runtime", "onnxruntime"),
                ("device", "cpu"),
                ("precision", "float32"),
            ):
                object.__setattr__(self, key, only)

    @property
    def names_hub(self) -> bool:
        """Whether the model may be one of the hub, by the form of its name."""
        kind, _, name = self.model.partition(":")
        return kind == "hf-hub" or (
            f"{kind}:" in LIBRARIES
            and HUB_NAME.fullmatch(name) is not None
            and not name.startswith(".")
        )

    @property
    def base(self) -> str:
        """Name of the encoder whose vectors are harmonised; empty for any other model."""
        kind, _, name = self.model.partition(":")
        return name if kind == "harmonised" else ""

    @property
    def is_trained(self) -> bool:
        """Whether the network is fitted on the cohort itself."""
        return self.model.startswith("trained:")

    @property
    def features(self) -> str:
        """Folder of files that hold the vectors; empty for any other model."""
        kind, _, folder = self.model.partition(":")
        return folder if kind == "features" else ""

    @property
    def has_network(self) -> bool:
        """Whether a network is run: not in a control, nor where vectors are there already."""
        return not (self.base or self.features or self.model.startswith("control:"))

    @classmethod
    def from_parameters(cls, name: str, parameters: Mapping[str, Any]) -> EncoderSpec:
        """Read one entry of ``encoders`` in the parameters, a ``preset`` written out.

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
        parameters = expanded(name, parameters)
        known = {entry.name for entry in fields(cls)} - {"name"} | {_SIBLING, _ROBUSTIFIED_FROM}
        unknown = sorted(set(parameters) - known)
        if unknown:
            raise ValueError(
                f"encoders.{name} has unknown keys {unknown}: known are {sorted(known | {'preset'})}"
            )
        if not isinstance(parameters.get("model"), str):
            raise ValueError(
                f"encoders.{name} has no 'model': write e.g. encoders.{name}.model: timm:resnet18, or "
                "a 'preset' ('kedro encoders list')"
            )
        values = dict(parameters)
        if not isinstance(values.pop(_ROBUSTIFIED_FROM, ""), str):
            raise ValueError(
                f"encoders.{name}.{_ROBUSTIFIED_FROM} is {parameters[_ROBUSTIFIED_FROM]!r}: name "
                "another entry of the cohort, or leave it out"
            )
        if not isinstance(values.pop(_SIBLING, False), bool):
            raise ValueError(
                f"encoders.{name}.{_SIBLING} is {parameters[_SIBLING]!r}: give true or false"
            )
        if values["model"].startswith("trained:") and values.get("checkpoint") is not None:
            raise ValueError(
                f"encoders.{name}.checkpoint is given, and '{values['model']}' is fitted on the "
                "cohort: leave it out"
            )
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
            checkpoint=record.get("key", {}).get("checkpoint", self.checkpoint),
        )


def _three_numbers(where: str, given: Any) -> tuple[float, ...]:
    try:
        numbers = () if isinstance(given, str) else tuple(float(x) for x in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where} is {given!r}: give three numbers, one per channel")
    return numbers


def read_encoders(parameters: Mapping[str, Mapping[str, Any] | None]) -> dict[str, EncoderSpec]:
    """All encoders of a cohort by name; an entry set to null in a cohort's folder is left out."""
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"encoders is {parameters!r}: write the encoders' names below it, or remove the line"
        )
    return {
        name: EncoderSpec.from_parameters(name, entry)
        for name, entry in parameters.items()
        if entry is not None
    }
