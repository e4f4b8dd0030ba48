"""The very file of weights that an entry names: found or downloaded, and compared with its digest."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pathfm_kedro.encoders.spec import HUB_FILE, EncoderSpec
from pathfm_kedro.project import resolve_path

_CONFIG = "config.json"
#: Kinds that timm loads from a folder with a configuration and weights.
_OF_TIMM = ("hf-hub", "local-dir")


@contextmanager
def at_hand(spec: EncoderSpec) -> Iterator[EncoderSpec]:
    """The entry with what it names on the hub as files here, each compared with ``sha256``.

    Where ``weights`` names the file, that one is loaded whatever else lies beside it.

    Parameters
    ----------
    spec
        The entry.

    Yields
    ------
    EncoderSpec
        The entry to load; valid inside the block.

    Raises
    ------
    ValueError
        If a file cannot be had or is another one; it names the mend.
    """
    if spec.checkpoint is not None:
        yield _with_checkpoint_here(spec)
    elif spec.weights is None or not spec.pretrained:
        yield spec
    elif spec.model.partition(":")[0] in _OF_TIMM:
        with tempfile.TemporaryDirectory(prefix="encoder-") as folder:
            here = _folder_of_two(spec, Path(folder))
            try:
                yield here
            except ValueError as error:
                # What is wrong is said of what the entry names, not of where it was linked.
                raise ValueError(str(error).replace(here.model, spec.model)) from error
    else:
        yield replace(spec, weights=None, sha256=None)
        # Its loader has fetched the whole model by now.
        refuse_other_file(_file_of_model(spec, str(spec.weights)), spec)


def refuse_other_file(path: Path, spec: EncoderSpec) -> None:
    """Compare a file of weights with the digest that its entry gives, if any.

    Raises
    ------
    ValueError
        If it differs, naming both digests and the mend.
    """
    if spec.sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.sha256.lower():
        raise ValueError(
            f"encoders.{spec.name}: '{path.name}' is another file than expected (SHA-256 {found}, and "
            f"encoders.{spec.name}.sha256 is {spec.sha256}): download it again from where it was "
            f"published; if you trust this one, write sha256: null, or its own digest, into the entry"
        )


def _with_checkpoint_here(spec: EncoderSpec) -> EncoderSpec:
    named = HUB_FILE.fullmatch(str(spec.checkpoint))
    path = (
        hub_file(named[1], named[2], named[3], spec)
        if named
        else resolve_path(str(spec.checkpoint))
    )
    if path.is_file():
        # That there is none is said where it is loaded.
        refuse_other_file(path, spec)
    return replace(spec, checkpoint=str(path) if named else spec.checkpoint)


def _folder_of_two(spec: EncoderSpec, folder: Path) -> EncoderSpec:
    """A folder with nothing but the configuration and the file of weights that is meant."""
    weights = _file_of_model(spec, str(spec.weights))
    refuse_other_file(weights, spec)
    for path in (_file_of_model(spec, _CONFIG), weights):
        (folder / path.name).symlink_to(path.absolute())
    return replace(spec, model=f"local-dir:{folder}", weights=None, sha256=None)


def _file_of_model(spec: EncoderSpec, name: str) -> Path:
    """A file of the folder or of the hub's model that the entry names."""
    given = spec.model.partition(":")[2]
    folder = resolve_path(given)
    if spec.model.startswith("hf-hub:") or not folder.is_dir():
        if spec.model.startswith("local-dir:"):
            raise ValueError(
                f"encoders.{spec.name}.model is '{spec.model}', and there is no folder at {folder}: "
                "correct the path, which starts from the project's folder"
            )
        repository, _, revision = given.partition("@")
        return hub_file(repository, revision or None, name, spec)
    if not (folder / name).is_file():
        key = (
            "" if name == _CONFIG else ", or write weights: with the name of the file that is there"
        )
        raise ValueError(
            f"encoders.{spec.name}.model is '{spec.model}', and the folder holds no {name}: download "
            f"it too{key}"
        )
    return folder / name


def hub_file(repository: str, revision: str | None, name: str, spec: EncoderSpec) -> Path:
    """A file of the hub's cache, downloaded where it is not there.

    Parameters
    ----------
    repository
        ``owner/model``.
    revision
        Commit, branch or tag; None for the newest.
    name
        Of the file.
    spec
        The entry, which errors name.

    Raises
    ------
    ValueError
        If it cannot be had, saying why and what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except MemoryError:
        raise
    except Exception as error:
        # Of the network, of the hub's client and of the disk: of any type.
        at = f" --revision {revision}" if revision else ""
        raise ValueError(
            f"encoders.{spec.name}: {name} of {repository} on the hub {_why(error)}: "
            f"{_mend(error, repository, f'hf download {repository} {name}{at}')}"
        ) from error


def _why(error: Exception) -> str:
    from huggingface_hub import errors

    known = (
        (errors.GatedRepoError, "is gated"),
        (errors.RepositoryNotFoundError, "is not there, or not for you"),
        (errors.RevisionNotFoundError, "is not there in that revision"),
        (errors.LocalEntryNotFoundError, "is not cached here, and the hub cannot be reached"),
        (errors.EntryNotFoundError, "is not among its files"),
    )
    told = next((text for kind, text in known if isinstance(error, kind)), None)
    return told or f"cannot be had ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _mend(error: Exception, repository: str, command: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"accept its terms at https://huggingface.co/{repository}, then run 'hf auth login'"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"run '{command}' where the hub can be reached, and take the hub's cache over"
    return (
        "check name, revision and access rights, or download the model and give its folder or file"
    )
