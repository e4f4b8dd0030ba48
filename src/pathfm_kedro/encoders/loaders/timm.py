"""Architectures of timm with weights of a hub, a downloaded folder or a checkpoint."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from pathfm_kedro.encoders.input_size import patch_side
from pathfm_kedro.encoders.loaders.checkpoints import converted
from pathfm_kedro.encoders.loaders.files import (
    checked_file,
    misfit,
    mismatch,
    one_line,
    place_weights,
    read_json,
    read_tensors,
    refuse_pointer,
    some_of,
)
from pathfm_kedro.encoders.loaders.hub import hub_problem
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.project import resolve_path

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
#: Of several files timm takes these; else the first by name, whatever it holds.
_PREFERRED = frozenset(
    f"{name}{suffix}"
    for name in ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
    for suffix in _WEIGHTS
)
#: Keys by which the config.json of other libraries is distinguished from timm's.
_TRANSFORMERS = ("model_type", "architectures", "auto_map", "transformers_version")
_OPEN_CLIP = ("model_cfg", "preprocess_cfg")
#: Taken while torch's loading is watched, since two watchers would undo each other.
_watching = threading.Lock()


def load(spec: EncoderSpec) -> torch.nn.Module:
    """The network of ``timm:``, ``hf-hub:`` or ``local-dir:``, every weight of it loaded.

    Raises
    ------
    ValueError
        If the model or its weights cannot be had or do not fit, naming the entry and the mend.
    """
    import timm

    where = f"encoders.{spec.name}"
    kind, _, name = spec.model.partition(":")
    kwargs = {"num_classes": 0, **resolve_layers(spec.model_kwargs, where)}
    if kind == "local-dir":
        source = f"local-dir:{_checked_folder(spec, name)}"
    else:
        source = name if kind == "timm" else spec.model
    if spec.checkpoint is not None:
        path = checked_file(spec, spec.checkpoint, "checkpoint")
        with _explained(spec):
            model: torch.nn.Module = timm.create_model(source, pretrained=False, **kwargs)
        return _with_checkpoint(model, path, spec)
    with _explained(spec), _drawn_from(spec.seed), _loading() as results:
        model = timm.create_model(source, pretrained=spec.pretrained, **kwargs)
    for result in results:
        problem = mismatch(model, result.missing_keys, result.unexpected_keys, strict=False)
        if problem:
            raise ValueError(
                f"{where}.model is '{spec.model}', and its weights do not fit the network: {problem}; "
                "the rest would stay random. Correct the architecture and model_args of "
                f"config.json, {where}.model_kwargs, or the names of the weights"
            )
    if spec.pretrained and not results:
        raise ValueError(
            f"{where}.model is '{spec.model}', and no weights were loaded, so that the network would "
            f"stay random: give timm:<architecture> with {where}.checkpoint: <file>"
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
        known = hub_problem(error, spec, _repository(spec)) if kind != "local-dir" else None
        if known is not None:
            raise known from error
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(
                f"encoders.{spec.name}.model is '{spec.model}', and its file of weights is cut short"
                f" or no safetensors ({one_line(error)}): download it again"
            ) from error
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


def _repository(spec: EncoderSpec) -> str:
    """Where the hub has a model of ``hf-hub:``, or timm's own weights of ``timm:``."""
    import timm

    kind, _, name = spec.model.partition(":")
    if kind == "hf-hub":
        return name
    known = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    return known.hf_hub_id or name if known else name


@contextmanager
def _drawn_from(seed: int | None) -> Iterator[None]:
    """Where weights are drawn by declaration, from the same seed in every process.

    Where they are loaded no seed is set: what stayed random would be the same in every load, and nobody
    could tell it from what was loaded.
    """
    import torch

    with torch.random.fork_rng():
        if seed is not None:
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


def _of_another_library(spec: EncoderSpec, library: str) -> ValueError:
    where = f"encoders.{spec.name}"
    name = spec.model.partition(":")[2]
    prefixes = [kind for kind in ("transformers", "open_clip") if kind in library]
    given = " or ".join(f"{kind}:{name}" for kind in prefixes)
    if given:
        mend = f"give {where}.model: {given}"
    else:
        mend = (
            "take the model's timm version where its page has one; else give "
            f"{where}.model: timm:<architecture> with {where}.checkpoint: <file>"
        )
    return ValueError(
        f"{where}.model is '{spec.model}', whose config.json is that of {library} and names no "
        f"architecture of timm: {mend}"
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
    _check_config(folder / "config.json", spec, where)
    if spec.pretrained:
        _check_folder_weights(folder, where)
    return folder


def _check_config(path: Path, spec: EncoderSpec, where: str) -> None:
    import timm

    config = read_json(path, where)
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
        refuse_pointer(path, where)
    if any(folder.glob("*.index.json")) and not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{where}, whose weights are split into {len(files)} files: join them into one "
            "model.safetensors"
        )
    names = [path.name for path in files]
    if len({path.suffix for path in files}) < len(files) and _PREFERRED.isdisjoint(names):
        raise ValueError(
            f"{where}, and the folder holds {', '.join(names)}: which of them is the network's cannot "
            "be known, so call that one model.safetensors"
        )


def _with_checkpoint(model: torch.nn.Module, path: Path, spec: EncoderSpec) -> torch.nn.Module:
    """Weights from a file, every one of them placed; heads of a pretext task are dropped by name."""
    where = f"encoders.{spec.name}"
    with misfit(lambda cause: f"{where}: checkpoint '{spec.checkpoint}' cannot be used: {cause}"):
        loaded = read_tensors(path)
    with misfit(
        lambda cause: (
            f"{where}: checkpoint '{spec.checkpoint}' does not fit '{spec.model}' ({cause}): give "
            f"{where}.checkpoint the state dict of this architecture, and {where}.model_kwargs the "
            "arguments that it was built with"
        )
    ):
        found = converted(loaded, model)
        _refuse_other_grid(found.tensors.get("pos_embed"), model)
        place_weights(model, found.tensors)
    if found.dropped:
        logger.info(
            "encoders.%s: of checkpoint '%s' %d tensors of heads and other networks are left out: %s",
            spec.name,
            spec.checkpoint,
            len(found.dropped),
            some_of(found.dropped),
        )
    return model


def _refuse_other_grid(positions: torch.Tensor | None, model: Any) -> None:
    """Position embeddings belong to a grid of patches, and are no other grid's."""
    own, patch = getattr(model, "pos_embed", None), patch_side(model)
    if positions is None or own is None or positions.shape[1] == own.shape[1]:
        return
    if positions.shape[-1] != own.shape[-1]:
        return  # of another architecture, whose grid says nothing of this one's
    side = math.isqrt(positions.shape[1]) * patch
    raise ValueError(
        f"its position embeddings are of {positions.shape[1]} tokens, and the network's of "
        f"{own.shape[1]}; perhaps it is of model_kwargs img_size: {side}, which dynamic_img_size: true "
        "lets follow another input_pixels"
    )
