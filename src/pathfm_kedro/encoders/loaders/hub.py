"""Models of the Hugging Face hub: from the cache where they are, else downloaded; never their code."""

from __future__ import annotations

from pathlib import Path

from pathfm_kedro.encoders.loaders.files import one_line
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.project import resolve_path

#: What is looked for, in this order: a pickle is downloaded only where there is nothing else.
_WANTED = (["*.json", "*.safetensors"], ["*.json", "*.bin"])
#: Files in folders of a model are for other software.
_UNWANTED = ["*/*"]


def published_folder(spec: EncoderSpec, config: str) -> Path:
    """The folder that an entry names, or that of the hub's cache, downloaded where it is not there.

    Parameters
    ----------
    spec
        ``<prefix>:<folder>`` or ``<prefix>:<owner>/<model>[@<revision>]``.
    config
        Name of the file that says what the model is.

    Raises
    ------
    ValueError
        If there is no such folder or model, or it is no folder of this kind; it names the mend.
    """
    where, name = f"encoders.{spec.name}.model is '{spec.model}'", spec.model.partition(":")[2]
    folder = resolve_path(name)
    if folder.is_file():
        raise ValueError(f"{where}, which is a file: give the folder that holds it")
    if not folder.is_dir():
        if not spec.names_hub:
            raise ValueError(
                f"{where}, and there is no folder at {folder}: correct the path, which starts from the "
                "project's folder"
            )
        folder = _from_hub(spec, name)
    if (folder / "snapshots").is_dir():
        raise ValueError(f"{where}, a cache of the hub: give the folder below its snapshots/")
    if not (folder / config).is_file():
        raise ValueError(
            f"{where}, and the folder holds no {config}: give a folder as the model's page has it, or "
            f"another kind of model than {spec.model.partition(':')[0]}:"
        )
    if not weight_files(folder):
        raise ValueError(
            f"{where}, and the folder holds no weights (*.safetensors, *.bin): download them too"
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Files of weights in a folder: safetensors where there are any, else pickled tensors."""
    for pattern in ("*.safetensors", "*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    return []


def _from_hub(spec: EncoderSpec, name: str) -> Path:
    import huggingface_hub

    model, _, revision = name.partition("@")
    problem: Exception | None = None
    for local in (True, False):
        for wanted in _WANTED:
            try:
                folder = Path(
                    huggingface_hub.snapshot_download(
                        model,
                        revision=revision or None,
                        allow_patterns=wanted,
                        ignore_patterns=_UNWANTED,
                        local_files_only=local,
                    )
                )
            except Exception as error:
                # The hub's client raises its own types, those of its transport and of the system.
                problem = error
                break
            if weight_files(folder):
                return folder
    if problem is None:
        # Where the hub cannot be reached its client gives what part of the model it has.
        raise _not_cached(spec)
    raise hub_problem(problem, spec) or ValueError(
        f"encoders.{spec.name}.model is '{spec.model}', and it could not be downloaded "
        f"({one_line(problem)}): check the network, or download the model and give its folder"
    ) from problem


def hub_problem(error: BaseException, spec: EncoderSpec, repository: str = "") -> ValueError | None:
    """What the hub's client ran into in one sentence with its mend; None where it is something else.

    Parameters
    ----------
    error
        What was raised.
    spec
        The entry.
    repository
        ``<owner>/<model>[@<revision>]``; as the entry's model names it if not given.
    """
    from huggingface_hub import errors

    where = f"encoders.{spec.name}.model is '{spec.model}'"
    if isinstance(error, errors.GatedRepoError):
        return ValueError(
            f"{where}, which is gated: accept its terms on the model's page, then run 'hf auth login' "
            "on this machine"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(
            f"{where}, and the model has no such revision: correct what stands after '@'"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"{where}, and the hub has no such model, or shows it to its owners only: correct the "
            "name, or run 'hf auth login'"
        )
    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    return _not_cached(spec, repository) if isinstance(error, offline) else None


def _not_cached(spec: EncoderSpec, repository: str = "") -> ValueError:
    kind, _, name = spec.model.partition(":")
    folder = "local-dir" if kind in ("hf-hub", "timm") else kind
    repository, _, revision = (repository or name).partition("@")
    at = f" --revision {revision}" if revision else ""
    return ValueError(
        f"encoders.{spec.name}.model is '{spec.model}', whose weights (*.safetensors, *.bin) are not "
        "cached on this machine, and the hub cannot be reached or has none: where there is a network "
        f"run 'hf download {repository}{at} --local-dir <folder>', and give {folder}:<folder>"
    )
