"""What the keys of an encoder's entry may hold, and which of them go together."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathfm_kedro.encoders.spec import EncoderSpec

#: A dataset name, a file name and a namespace at once, so it must be plain.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
#: Names of arguments that nodes take beside one argument per encoder.
_RESERVED = frozenset({"parameters", "controls"})
_POOLINGS = ("default", "class_token", "patch_mean", "class_token_and_patch_mean")
#: Networks by timm; those of other libraries, from a folder or the hub; and single files that say
#: nothing of their preprocessing.
_TIMM = ("timm:", "local-dir:", "hf-hub:")
LIBRARIES = ("transformers:", "open_clip:")
_FILES = ("torchscript:", "onnx:")
_PREFIXES = (
    *("control:", "package:", *_TIMM, *LIBRARIES, *_FILES),
    *("harmonised:", "trained:", "features:"),
)
#: Kinds whose weights lie in a folder or repository beside other files.
_FOLDERS = ("local-dir:", "hf-hub:", *LIBRARIES)
_NOISE = "control:noise"
_PACKAGES = ("efficientnet_lite0",)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
#: A checkpoint on the hub: ``hf-hub:<owner>/<model>[@<revision>]/<file>``.
HUB_FILE = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/([\w./-]+)")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
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
#: Tokens that may be stored of a tile: squares of a grid, few enough that the mosaics of a cohort fit
#: into memory.
_PATCH_TOKENS = (1, 4, 9, 16)
#: Keys of a folder of features.
_OF_FEATURES = ("patch_size", "patch_level", "encoder", "same_as")


def check_entry(spec: EncoderSpec) -> None:
    """Refuse an entry whose keys hold what they may not, or do not go together.

    Raises
    ------
    ValueError
        Naming the key, the value and the mend.
    """
    where = f"encoders.{spec.name}"
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name) or spec.name in _RESERVED:
        raise ValueError(
            f"encoder name '{spec.name}' may hold letters, digits, '-' and '_' only, and not be "
            f"one of {sorted(_RESERVED)}: rename it"
        )
    _check_model(spec, where)
    _check_types(spec, where)
    if spec.role not in ("encoder", "control"):
        raise ValueError(f"{where}.role is '{spec.role}': give 'encoder' or 'control'")
    if spec.pooling not in _POOLINGS:
        raise ValueError(f"{where}.pooling is '{spec.pooling}': give one of {_POOLINGS}")
    _check_model_kwargs(spec, where)
    for key in ("mean", "std"):
        if getattr(spec, key) is not None:
            refuse_other_scale(f"{where}.{key}", getattr(spec, key))
    _check_weights(spec, where)
    _check_file(spec, where)
    _check_mitigation(spec, where)
    _check_tiles(spec, where)
    _check_patch_tokens(spec, where)
    _check_how_it_runs(spec, where)


def _check_model(spec: EncoderSpec, where: str) -> None:
    kind, _, name = spec.model.partition(":")
    if not spec.model.startswith(_PREFIXES):
        raise ValueError(
            f"{where}.model is '{spec.model}': begin it with one of {', '.join(_PREFIXES)}"
        )
    if not name.strip():
        what = "encoder" if kind == "harmonised" else "model"
        raise ValueError(f"{where}.model is '{spec.model}': name the {what} after the colon")
    known = _known_names().get(kind)
    if known and name not in known:
        raise ValueError(
            f"{where}.model is '{spec.model}', which there is not: give {kind}: with one of "
            f"{', '.join(sorted(known))}"
        )
    if kind == "hf-hub" and not HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{where}.model is '{spec.model}': give hf-hub:<owner>/<model> as the model's page of "
            "the hub is titled, e.g. hf-hub:MahmoodLab/UNI"
        )


def _known_names() -> dict[str, Collection[str]]:
    """Names after the colon, of kinds that have a few."""
    from pathfm_kedro.encoders.controls import CONTROLS

    return {"control": CONTROLS, "package": _PACKAGES}


def _check_types(spec: EncoderSpec, where: str) -> None:
    if not isinstance(spec.pretrained, bool):
        raise ValueError(
            f"{where}.pretrained is {spec.pretrained!r}: give true or false, or leave it out"
        )
    if not isinstance(spec.model_kwargs, Mapping) or not all(
        isinstance(key, str) for key in spec.model_kwargs
    ):
        raise ValueError(
            f"{where}.model_kwargs is {spec.model_kwargs!r}: write arguments of "
            "timm.create_model below it, as 'img_size: 224', or leave it out"
        )
    if spec.checkpoint is not None and not (
        isinstance(spec.checkpoint, str) and spec.checkpoint.strip()
    ):
        raise ValueError(
            f"{where}.checkpoint is {spec.checkpoint!r}: give the path of a file with weights, or "
            "leave it out"
        )
    least_of = {"input_pixels": 1, "seed": 0, "dimension": 2, "patch_size": 1, "patch_level": 0}
    for key, least in least_of.items():
        value = getattr(spec, key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < least
        ):
            raise ValueError(f"{where}.{key} is {value!r}: give a whole number from {least}")


def _check_weights(spec: EncoderSpec, where: str) -> None:
    if spec.training and not spec.is_trained:
        raise ValueError(
            f"{where}.training is given, and '{spec.model}' is not trained here: leave it out; it "
            "goes with model trained:<name>"
        )
    if spec.checkpoint is not None and not spec.model.startswith(("timm:", "trained:")):
        raise ValueError(
            f"{where}.checkpoint goes with a timm: architecture, not with '{spec.model}', which "
            "brings its own weights: leave it out or name the architecture"
        )
    loads = spec.pretrained or spec.checkpoint is not None
    if not spec.pretrained and not spec.model.startswith(_TIMM):
        raise ValueError(
            f"{where}.pretrained is False, which '{spec.model}' does not know: leave it out"
        )
    if not loads and spec.seed is None:
        raise ValueError(
            f"{where}.pretrained is False, and no weights are given: they would be drawn at "
            f"random, and the vectors mean nothing. Leave it out to load the published weights, "
            f"give {where}.checkpoint, or, where the null of this architecture is wanted, declare "
            f"{where}.seed: 0"
        )
    if spec.seed is not None and loads and spec.model != _NOISE and not spec.is_trained:
        raise ValueError(
            f"{where}.seed is {spec.seed}, and nothing is drawn: leave it out; it goes with "
            f"pretrained: false, with trained:<name> and with {_NOISE}"
        )
    if spec.dimension is not None and spec.model != _NOISE:
        raise ValueError(
            f"{where}.dimension is {spec.dimension}, and '{spec.model}' has the dimension that it "
            f"has: leave it out; it goes with {_NOISE}"
        )


def _check_file(spec: EncoderSpec, where: str) -> None:
    """What goes with a single file of weights or of a network."""
    alone = spec.model.startswith(_FILES)
    _check_which_file(spec, where)
    if spec.sha256 is not None and not (
        isinstance(spec.sha256, str) and _DIGEST.fullmatch(spec.sha256)
    ):
        raise ValueError(f"{where}.sha256 is {spec.sha256!r}: give 64 hexadecimal digits")
    if spec.sha256 is not None and not (alone or spec.checkpoint or spec.weights):
        raise ValueError(
            f"{where}.sha256 is given, and '{spec.model}' is no single file: name the one that is "
            f"meant in {where}.weights, or leave it out"
        )
    if not alone:
        return
    lacks = [key for key in ("mean", "std", "input_pixels") if getattr(spec, key) is None]
    if lacks:
        raise ValueError(
            f"{where}.model is '{spec.model}', a file that does not say what is done to pixels "
            f"first: give {where}.{', '.join(lacks)} as the model's page has it"
        )
    if spec.pooling != "default":
        raise ValueError(
            f"{where}.pooling is '{spec.pooling}', and '{spec.model}' gives the vector that it was "
            "exported with: leave it out"
        )


def _check_which_file(spec: EncoderSpec, where: str) -> None:
    """What names one file of several."""
    given = str(spec.checkpoint or "")
    if given.startswith("hf-hub:") and not HUB_FILE.fullmatch(given):
        raise ValueError(
            f"{where}.checkpoint is '{given}': give hf-hub:<owner>/<model>@<revision>/<file>, or "
            "the path of a file"
        )
    if spec.weights is not None and not (
        isinstance(spec.weights, str)
        and re.fullmatch(r"\w[\w.-]*", spec.weights)
        and spec.model.startswith(_FOLDERS)
    ):
        raise ValueError(
            f"{where}.weights is {spec.weights!r}: it names one file of the folder or of the hub's "
            f"model that {where}.model names ({', '.join(_FOLDERS)}), as model.safetensors; leave "
            "it out elsewhere"
        )


def _check_model_kwargs(spec: EncoderSpec, where: str) -> None:
    if spec.model_kwargs and spec.model.startswith((*LIBRARIES, *_FILES)):
        raise ValueError(
            f"{where}.model_kwargs are arguments of timm.create_model, and '{spec.model}' says "
            "itself how it is built: leave them out"
        )
    for key, (only, why) in _MODEL_KWARGS.items():
        value = spec.model_kwargs.get(key, only)
        if type(value) is not type(only) or value != only:
            raise ValueError(
                f"{where}.model_kwargs.{key} is {value!r}: {why}; leave it out"
                + (f" and set {where}.pretrained" if key == "pretrained" else "")
            )
    if "checkpoint_path" in spec.model_kwargs:
        raise ValueError(
            f"{where}.model_kwargs.checkpoint_path is {spec.model_kwargs['checkpoint_path']!r}: "
            f"move it to {where}.checkpoint, where every key of the weights must fit"
        )


def _check_mitigation(spec: EncoderSpec, where: str) -> None:
    known = VECTOR_MITIGATIONS if spec.base else PIXEL_MITIGATIONS
    if (spec.base or spec.mitigation is not None) and spec.mitigation not in known:
        raise ValueError(
            f"{where}.mitigation is {spec.mitigation!r}: with model '{spec.model}' give one of "
            f"{', '.join(known)}"
        )


def _check_tiles(spec: EncoderSpec, where: str) -> None:
    """Which tiles the vectors are of: declared, or brought by files."""
    if spec.tile is not None:
        read_tile(f"{where}.tile", spec.tile)
        if spec.base or spec.features:
            raise ValueError(
                f"{where}.tile is {dict(spec.tile)!r}, and '{spec.model}' has the tiles that its "
                "vectors were made of: leave it out"
            )
    if spec.features and spec.pooling != "default":
        raise ValueError(
            f"{where}.pooling is '{spec.pooling}', and '{spec.model}' has vectors as they were pooled: "
            "leave it out, variants too, and give the folder of each pooling an entry of its own"
        )
    for key in _OF_FEATURES:
        if getattr(spec, key) is not None and not spec.features:
            raise ValueError(
                f"{where}.{key} goes with features:<folder>, not with '{spec.model}': leave it out"
            )


def _check_patch_tokens(spec: EncoderSpec, where: str) -> None:
    tokens = spec.patch_tokens
    if tokens is None:
        return
    if type(tokens) is not int or tokens not in _PATCH_TOKENS:
        known = ", ".join(map(str, _PATCH_TOKENS))
        raise ValueError(
            f"{where}.patch_tokens is {tokens!r}: give one of {known}, or leave it out"
        )
    what = f"mitigation {spec.mitigation}" if spec.mitigation else f"'{spec.model}'"
    if not spec.has_network or spec.mitigation or spec.model.startswith(_FILES):
        raise ValueError(
            f"{where}.patch_tokens is {tokens}, and {what} gives vectors only: leave it out"
        )


def _check_how_it_runs(spec: EncoderSpec, where: str) -> None:
    size = spec.batch_size
    if size != AUTO and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"{where}.batch_size is {size!r}: give a number from 1, or 'auto'")
    for key, known in (
        ("runtime", RUNTIMES),
        ("precision", PRECISIONS),
        ("device", DEVICES),
    ):
        value = getattr(spec, key)
        if value not in (AUTO, *known):
            raise ValueError(f"{where}.{key} is {value!r}: give one of {', '.join((AUTO, *known))}")
        if value != AUTO and not spec.has_network:
            raise ValueError(
                f"{where}.{key} is {value!r}, and '{spec.model}' is no network: leave it out"
            )
    if spec.model.startswith("onnx:") and spec.runtime not in (AUTO, "onnxruntime"):
        raise ValueError(
            f"{where}.runtime is '{spec.runtime}', and '{spec.model}' is run by onnxruntime only: "
            "leave it out"
        )
    if spec.runtime != "onnxruntime" and not spec.model.startswith("onnx:"):
        return
    for key, only in (("precision", "float32"), ("device", "cpu")):
        value = getattr(spec, key)
        if value not in (AUTO, only):
            raise ValueError(
                f"{where}.{key} is {value!r}, and onnxruntime is run with {only} only: give "
                f"{only} or auto, or another {where}.runtime"
            )


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
