"""The very file of weights that an entry names: found or downloaded, and compared with its digest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pathfm_kedro.encoders.entry_checks import HUB_FILE
from pathfm_kedro.encoders.loaders.files import refuse_other_digest
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.project import resolve_path

#: Of each kind of model the file that says what it is.
_CONFIGS = {
    "hf-hub": "config.json",
    "local-dir": "config.json",
    "transformers": "config.json",
    "open_clip": "open_clip_config.json",
}
#: What may lie beside it and is read where it does.
_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")


@contextmanager
def at_hand(spec: EncoderSpec) -> Iterator[EncoderSpec]:
    """The entry with files of this machine in place of what it names on the hub, or one of several.

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
        If a file cannot be had, or its digest is not ``sha256``; it names the mend.
    """
    named = HUB_FILE.fullmatch(spec.checkpoint or "")
    if named:
        # Its digest is compared where it is read, as that of any checkpoint.
        path = hub_file(named[1], named[2], named[3], spec)
        yield replace(spec, checkpoint=path.as_posix())
    elif spec.weights is None or not spec.pretrained:
        yield spec
    else:
        with tempfile.TemporaryDirectory(prefix="encoder-") as folder:
            here = _linked(spec, Path(folder))
            try:
                yield here
            except ValueError as error:
                # What is wrong is said of what the entry names, not of where it was linked.
                raise ValueError(str(error).replace(here.model, spec.model)) from error


def _linked(spec: EncoderSpec, folder: Path) -> EncoderSpec:
    """A folder with nothing but the configuration and the file of weights that is meant."""
    kind, name = spec.model.partition(":")[0], str(spec.weights)
    weights = _file_of_model(spec, name)
    refuse_other_digest(weights, name, spec)
    files = [weights, _file_of_model(spec, _CONFIGS[kind])]
    if kind == "transformers":
        for beside in _PREPROCESSING:
            with suppress(ValueError):
                files.append(_file_of_model(spec, beside))
    for path in files:
        (folder / path.name).symlink_to(path.absolute())
    kind = "local-dir" if kind == "hf-hub" else kind
    return replace(spec, model=f"{kind}:{folder}", weights=None, sha256=None)


def _file_of_model(spec: EncoderSpec, name: str) -> Path:
    """A file of the folder or of the hub's model that the entry names."""
    given = spec.model.partition(":")[2]
    folder = resolve_path(given)
    if spec.model.startswith("hf-hub:") or (spec.names_hub and not folder.is_dir()):
        repository, _, revision = given.partition("@")
        return hub_file(repository, revision or None, name, spec)
    where = f"encoders.{spec.name}.model is '{spec.model}'"
    if not folder.is_dir():
        raise ValueError(
            f"{where}, and there is no folder at {folder}: correct the path, which starts from the "
            "project's folder"
        )
    if not (folder / name).is_file():
        other = (
            f", or name the one that is there in encoders.{spec.name}.weights"
            if name == spec.weights
            else ""
        )
        raise ValueError(f"{where}, and the folder holds no {name}: download it too{other}")
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
    cause = next((text for kind, text in known if isinstance(error, kind)), None)
    return cause or f"cannot be had ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _mend(error: Exception, repository: str, command: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"accept its terms at https://huggingface.co/{repository}, then run 'hf auth login'"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"run '{command}' where the hub can be reached, and take the hub's cache over"
    return (
        "check name, revision and access rights, or download the model and give its folder or file"
    )
