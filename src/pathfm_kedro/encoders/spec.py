"""What a person writes of an encoder in `parameters_encoders.yml`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pathfm_kedro.encoders.presets import expanded

#: A dataset name, a file name and a namespace at once, so it must be plain.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
#: Names of arguments that nodes take beside one argument per encoder.
_RESERVED = frozenset({"parameters", "controls"})
_POOLINGS = ("default", "class_token", "patch_mean", "class_token_and_patch_mean")
#: Networks by timm; those of other libraries, from a folder or the hub; and single files that say
#: nothing of their preprocessing.
_TIMM = ("timm:", "local-dir:", "hf-hub:")
_LIBRARIES = ("transformers:", "open_clip:")
_FILES = ("torchscript:", "onnx:")
_PREFIXES = (
    *("control:", "package:", *_TIMM, *_LIBRARIES, *_FILES),
    *("harmonised:", "trained:", "features:"),
)
#: Kinds whose weights lie in a folder or repository beside other files.
_FOLDERS = ("local-dir:", "hf-hub:", *_LIBRARIES)
_NOISE = "control:noise"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
#: A checkpoint on the hub: ``hf-hub:<owner>/<model>[@<revision>]/<file>``.
HUB_FILE = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/([\w./-]+)")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
#: Keys of an entry that say how it stands to another entry, and nothing of its own encoder.
_SIBLING, _ROBUSTIFIED_FROM = "random_weights", "robustified_from"
#: Arguments of ``timm.create_model`` with which the result is no vector of features, by the one value
#: that is.
_MODEL_KWARGS: Mapping[str, tuple[Any, str]] = {
    "num_classes": (0, "a classifier's logits are no features"),
    "features_only": (False, "maps of every stage are no vector"),
    "in_chans": (3, "tiles have three channels"),
    "pretrained_strict": (True, "weights that do not fit would stay random"),
    "pretrained": (True, "this is a key of the entry itself"),
}
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
    {
        *("name", "role", "batch_size", "runtime", "precision", "device"),
        *("mitigation", "tile", "patch_tokens"),
    }
)
#: Tokens that may be stored of a tile: squares of a grid, few enough that the mosaics of a cohort fit
#: into memory.
_PATCH_TOKENS = (1, 4, 9, 16)
#: Keys of a folder of features.
_OF_FEATURES = ("patch_size", "patch_level", "encoder", "same_as")


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
        where = f"encoders.{self.name}"
        if (
            not isinstance(self.name, str)
            or not _NAME.fullmatch(self.name)
            or self.name in _RESERVED
        ):
            raise ValueError(
                f"encoder name '{self.name}' may hold letters, digits, '-' and '_' only, and not be "
                f"one of {sorted(_RESERVED)}: rename it"
            )
        self._check_model(where)
        self._check_types(where)
        if self.role not in ("encoder", "control"):
            raise ValueError(f"{where}.role is '{self.role}': give 'encoder' or 'control'")
        if self.pooling not in _POOLINGS:
            raise ValueError(f"{where}.pooling is '{self.pooling}': give one of {_POOLINGS}")
        self._check_model_kwargs(where)
        for key in ("mean", "std"):
            if getattr(self, key) is not None:
                refuse_other_scale(f"{where}.{key}", getattr(self, key))
        self._check_weights(where)
        self._check_file(where)
        self._check_mitigation(where)
        self._check_tiles(where)
        self._check_patch_tokens(where)
        self._check_how_it_runs(where)
        if self.model.startswith("onnx:"):
            # Nothing else runs it: what is left to a choice elsewhere is settled here.
            for key, only in (
                ("runtime", "onnxruntime"),
                ("device", "cpu"),
                ("precision", "float32"),
            ):
                object.__setattr__(self, key, only)

    def _check_model(self, where: str) -> None:
        kind, _, name = self.model.partition(":")
        if not self.model.startswith(_PREFIXES):
            raise ValueError(
                f"{where}.model is '{self.model}': begin it with one of {', '.join(_PREFIXES)}"
            )
        if not name.strip():
            what = "encoder" if kind == "harmonised" else "model"
            raise ValueError(f"{where}.model is '{self.model}': name the {what} after the colon")
        if kind == "hf-hub" and not _HUB_NAME.fullmatch(name):
            raise ValueError(
                f"{where}.model is '{self.model}': give hf-hub:<owner>/<model> as the model's page of "
                "the hub is titled, e.g. hf-hub:MahmoodLab/UNI"
            )

    @property
    def names_hub(self) -> bool:
        """Whether the model may be one of the hub, by the form of its name."""
        kind, _, name = self.model.partition(":")
        return kind == "hf-hub" or (
            f"{kind}:" in _LIBRARIES
            and _HUB_NAME.fullmatch(name) is not None
            and not name.startswith(".")
        )

    def _check_types(self, where: str) -> None:
        if not isinstance(self.pretrained, bool):
            raise ValueError(
                f"{where}.pretrained is {self.pretrained!r}: give true or false, or leave it out"
            )
        if not isinstance(self.model_kwargs, Mapping) or not all(
            isinstance(key, str) for key in self.model_kwargs
        ):
            raise ValueError(
                f"{where}.model_kwargs is {self.model_kwargs!r}: write arguments of "
                "timm.create_model below it, as 'img_size: 224', or leave it out"
            )
        if self.checkpoint is not None and not (
            isinstance(self.checkpoint, str) and self.checkpoint.strip()
        ):
            raise ValueError(
                f"{where}.checkpoint is {self.checkpoint!r}: give the path of a file with weights, or "
                "leave it out"
            )
        least_of = {"input_pixels": 1, "seed": 0, "dimension": 2, "patch_size": 1, "patch_level": 0}
        for key, least in least_of.items():
            value = getattr(self, key)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < least
            ):
                raise ValueError(f"{where}.{key} is {value!r}: give a whole number from {least}")

    def _check_weights(self, where: str) -> None:
        if self.training and not self.is_trained:
            raise ValueError(
                f"{where}.training is given, and '{self.model}' is not trained here: leave it out; it "
                "goes with model trained:<name>"
            )
        if self.checkpoint is not None and not self.model.startswith(("timm:", "trained:")):
            raise ValueError(
                f"{where}.checkpoint goes with a timm: architecture, not with '{self.model}', which "
                "brings its own weights: leave it out or name the architecture"
            )
        loads = self.pretrained or self.checkpoint is not None
        if not self.pretrained and not self.model.startswith(_TIMM):
            raise ValueError(
                f"{where}.pretrained is False, which '{self.model}' does not know: leave it out"
            )
        if not loads and self.seed is None:
            raise ValueError(
                f"{where}.pretrained is False, and no weights are given: they would be drawn at "
                f"random, and the vectors mean nothing. Leave it out to load the published weights, "
                f"give {where}.checkpoint, or, where the null of this architecture is wanted, declare "
                f"{where}.seed: 0"
            )
        if self.seed is not None and loads and self.model != _NOISE and not self.is_trained:
            raise ValueError(
                f"{where}.seed is {self.seed}, and nothing is drawn: leave it out; it goes with "
                f"pretrained: false, with trained:<name> and with {_NOISE}"
            )
        if self.dimension is not None and self.model != _NOISE:
            raise ValueError(
                f"{where}.dimension is {self.dimension}, and '{self.model}' has the dimension that it "
                f"has: leave it out; it goes with {_NOISE}"
            )

    def _check_file(self, where: str) -> None:
        """What goes with a single file of weights or of a network."""
        alone = self.model.startswith(_FILES)
        self._check_which_file(where)
        if self.sha256 is not None and not (
            isinstance(self.sha256, str) and _DIGEST.fullmatch(self.sha256)
        ):
            raise ValueError(f"{where}.sha256 is {self.sha256!r}: give 64 hexadecimal digits")
        if self.sha256 is not None and not (alone or self.checkpoint or self.weights):
            raise ValueError(
                f"{where}.sha256 is given, and '{self.model}' is no single file: name the one that is "
                f"meant in {where}.weights, or leave it out"
            )
        if not alone:
            return
        lacks = [key for key in ("mean", "std", "input_pixels") if getattr(self, key) is None]
        if lacks:
            raise ValueError(
                f"{where}.model is '{self.model}', a file that does not say what is done to pixels "
                f"first: give {where}.{', '.join(lacks)} as the model's page has it"
            )
        if self.pooling != "default":
            raise ValueError(
                f"{where}.pooling is '{self.pooling}', and '{self.model}' gives the vector that it was "
                "exported with: leave it out"
            )

    def _check_which_file(self, where: str) -> None:
        """What names one file of several."""
        given = str(self.checkpoint or "")
        if given.startswith("hf-hub:") and not HUB_FILE.fullmatch(given):
            raise ValueError(
                f"{where}.checkpoint is '{given}': give hf-hub:<owner>/<model>@<revision>/<file>, or "
                "the path of a file"
            )
        if self.weights is not None and not (
            isinstance(self.weights, str)
            and re.fullmatch(r"\w[\w.-]*", self.weights)
            and self.model.startswith(_FOLDERS)
        ):
            raise ValueError(
                f"{where}.weights is {self.weights!r}: it names one file of the folder or of the hub's "
                f"model that {where}.model names ({', '.join(_FOLDERS)}), as model.safetensors; leave "
                "it out elsewhere"
            )

    def _check_model_kwargs(self, where: str) -> None:
        if self.model_kwargs and self.model.startswith((*_LIBRARIES, *_FILES)):
            raise ValueError(
                f"{where}.model_kwargs are arguments of timm.create_model, and '{self.model}' says "
                "itself how it is built: leave them out"
            )
        for key, (only, why) in _MODEL_KWARGS.items():
            value = self.model_kwargs.get(key, only)
            if type(value) is not type(only) or value != only:
                raise ValueError(
                    f"{where}.model_kwargs.{key} is {value!r}: {why}; leave it out"
                    + (f" and set {where}.pretrained" if key == "pretrained" else "")
                )
        if "checkpoint_path" in self.model_kwargs:
            raise ValueError(
                f"{where}.model_kwargs.checkpoint_path is {self.model_kwargs['checkpoint_path']!r}: "
                f"move it to {where}.checkpoint, where every key of the weights must fit"
            )

    def _check_mitigation(self, where: str) -> None:
        known = VECTOR_MITIGATIONS if self.base else PIXEL_MITIGATIONS
        if (self.base or self.mitigation is not None) and self.mitigation not in known:
            raise ValueError(
                f"{where}.mitigation is {self.mitigation!r}: with model '{self.model}' give one of "
                f"{', '.join(known)}"
            )

    def _check_tiles(self, where: str) -> None:
        """Which tiles the vectors are of: declared, or brought by files."""
        if self.tile is not None:
            read_tile(f"{where}.tile", self.tile)
            if self.base or self.features:
                raise ValueError(
                    f"{where}.tile is {dict(self.tile)!r}, and '{self.model}' has the tiles that its "
                    "vectors were made of: leave it out"
                )
        for key in _OF_FEATURES:
            if getattr(self, key) is not None and not self.features:
                raise ValueError(
                    f"{where}.{key} goes with features:<folder>, not with '{self.model}': leave it out"
                )

    def _check_patch_tokens(self, where: str) -> None:
        tokens = self.patch_tokens
        if tokens is None:
            return
        if type(tokens) is not int or tokens not in _PATCH_TOKENS:
            known = ", ".join(map(str, _PATCH_TOKENS))
            raise ValueError(
                f"{where}.patch_tokens is {tokens!r}: give one of {known}, or leave it out"
            )
        what = f"mitigation {self.mitigation}" if self.mitigation else f"'{self.model}'"
        if not self.has_network or self.mitigation or self.model.startswith(_FILES):
            raise ValueError(
                f"{where}.patch_tokens is {tokens}, and {what} gives vectors only: leave it out"
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
        if self.model.startswith("onnx:") and self.runtime not in (AUTO, "onnxruntime"):
            raise ValueError(
                f"{where}.runtime is '{self.runtime}', and '{self.model}' is run by onnxruntime only: "
                "leave it out"
            )
        if self.runtime != "onnxruntime" and not self.model.startswith("onnx:"):
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


def refuse_other_scale(where: str, given: Sequence[float]) -> None:
    """Refuse a mean or standard deviation that is not of pixels on the scale 0 … 1.

    Parameters
    ----------
    where
        The key, ending in ``.mean`` or ``.std``.
    given
        One number per channel.

    Raises
    ------
    ValueError
        If there are not three numbers, or one cannot be; it names the key and the mend.

    Examples
    --------
    >>> try:
    ...     refuse_other_scale("encoders.uni.mean", (123.675, 116.28, 103.53))
    ... except ValueError as error:
    ...     print(str(error).rpartition(": ")[2])
    give [0.485, 0.456, 0.406]
    """
    given_as = f"{where} is [{', '.join(f'{number:g}' for number in given)}]"
    divides = where.endswith(".std")
    if len(given) != 3:
        raise ValueError(f"{given_as}: give three numbers, one per channel")
    if divides and min(given) <= 0:
        raise ValueError(f"{given_as}: pixels are divided by it, so give numbers above 0")
    if min(given) < 0:
        raise ValueError(
            f"{given_as}: it is taken off pixels on the scale 0 ... 1, so give numbers from 0 to 1"
        )
    if max(given) > 1:
        used = "they are divided by it" if divides else "it is taken off"
        smaller = [round(number / 255, 4) for number in given]
        raise ValueError(
            f"{given_as}: pixels are scaled to 0 ... 1 before {used}, and this is of 0 ... 255: give "
            f"{smaller}"
        )


def read_tile(where: str, given: Any) -> tuple[int, float]:
    """Side in pixels, and micrometres per pixel, of the tiles that an encoder is shown.

    Raises
    ------
    ValueError
        If these are not the two keys, or no such numbers; it names the key.

    Examples
    --------
    >>> read_tile("encoders.titan.tile", {"pixels": 512, "mpp": 0.5})
    (512, 0.5)
    """
    keys = set(given) if isinstance(given, Mapping) else set()
    pixels: Any = given["pixels"] if keys == {"pixels", "mpp"} else None
    mpp: Any = given["mpp"] if keys == {"pixels", "mpp"} else None
    is_count = isinstance(pixels, int) and not isinstance(pixels, bool) and pixels >= 1
    is_size = isinstance(mpp, int | float) and not isinstance(mpp, bool) and 0 < mpp < math.inf
    if not (is_count and is_size):
        raise ValueError(
            f"{where} is {given!r}: give {{pixels: <whole number>, mpp: <micrometres per pixel>}}, "
            "such as {pixels: 512, mpp: 0.5}"
        )
    return int(pixels), float(mpp)


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
