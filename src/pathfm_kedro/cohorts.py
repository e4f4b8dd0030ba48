"""Which cohort a command is about, read from conf/ before Kedro has a context."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pathfm_kedro.project import project_root, resolve_path
from pathfm_kedro.variants import expand_variants

#: The environment that Kedro commands use where none is given.
DEFAULT_COHORT = "phantom"
#: Environment variable that pins the load and save version of every versioned dataset.
PIN_VARIABLE = "PATHFM_PIN_VERSION"
#: Environment variables by which a session gives the pipeline registry what it was created with.
CONF_VARIABLE = "PATHFM_CONF_SOURCE"
RUNTIME_VARIABLE = "PATHFM_RUNTIME_PARAMS"
#: A cohort names a folder, a Kedro environment and a DVC stage: '$', '{', blanks and '@' mean something
#: to one of these.
SAFE_NAME = re.compile(r"\w[\w.-]*")
#: Arguments of the configuration loader, shared by sessions and by the pipeline registry. Parameters
#: are merged key by key, so that a cohort's file holds only what it changes.
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": DEFAULT_COHORT,
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
    "config_patterns": {
        "parameters": ["parameters*", "parameters*/**", "**/parameters*"],
        "catalog": ["catalog*", "catalog*/**", "**/catalog*"],
    },
}

#: Prefixes of ``model`` that are followed by a file or folder, and by one or the name of a hub's model.
_FILES_OF_WEIGHTS = ("local-dir", "torchscript", "onnx")
_FOLDERS_OR_HUB = ("transformers", "open_clip")


@dataclass(frozen=True)
class CohortPlan:
    """What the pipelines of a cohort are built from.

    Attributes
    ----------
    source
        ``phantom`` where the project draws the slides, ``manifest`` where an institution brings them.
    encoders
        Entries of ``encoders`` in the parameters by name, those set to null left out.
    parameters
        All parameters.
    """

    source: str
    encoders: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def read_cohort_plan(env: str | None = None, conf_source: str | None = None) -> CohortPlan:
    """Read the encoders and the slides' source of one cohort.

    Pipelines are registered before Kedro makes its context, so the configuration is read here for
    the environment that the session exported as ``KEDRO_ENV``.

    Parameters
    ----------
    env
        The cohort; ``KEDRO_ENV`` or the phantom where not given.
    conf_source
        The configuration folder; ``PATHFM_CONF_SOURCE`` or the project's conf/ where not given.

    Raises
    ------
    ValueError
        If there is no such cohort, naming those there are, or an encoder's entry is no mapping.
    """
    source = conf_source or os.environ.get(CONF_VARIABLE) or str(project_root() / "conf")
    cohort = env or os.environ.get("KEDRO_ENV") or DEFAULT_COHORT
    refuse_unknown_cohort(cohort, Path(source))
    given = os.environ.get(RUNTIME_VARIABLE) or "{}"
    return _plan_of(cohort, source, given, _state_of(Path(source), cohort))


def _state_of(source: Path, cohort: str) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file that decides a cohort's parameters."""
    folders = (source / "base", source / cohort)
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    stats = [(path, path.stat()) for path in files or [source]]
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats)


# Kedro registers the pipelines several times in a run, and reading YAML takes most of its start.
@lru_cache(maxsize=4)
def _plan_of(
    cohort: str, source: str, given: str, state: tuple[tuple[str, int, int], ...]
) -> CohortPlan:
    """The plan of a cohort as long as none of its files changes."""
    from pathfm_kedro.sizes import SizedConfigLoader

    with naming_references(cohort):
        loader = SizedConfigLoader(
            conf_source=source,
            env=cohort,
            runtime_params=json.loads(given),
            **CONFIG_LOADER_ARGS,
        )
        parameters = loader["parameters"]
    sections = {key: _section(parameters, key, cohort) for key in ("encoders", "cohort")}
    written = sections["encoders"]
    parameters["encoders"] = expand_variants(written)
    encoders = {n: entry for n, entry in parameters["encoders"].items() if entry is not None}
    for name, entry in encoders.items():
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"encoders.{name} is {entry!r}: write its keys below it, the first '  model: {entry}'"
            )
    return CohortPlan(str(sections["cohort"].get("source")), encoders, parameters)


def _section(parameters: Mapping[str, Any], key: str, cohort: str) -> Mapping[str, Any]:
    section = parameters.get(key)
    if not isinstance(section, Mapping):
        raise ValueError(
            f"'{key}' is {section!r} in the parameters of cohort '{cohort}': write its keys below it "
            f"in conf/{cohort}/ or conf/base/, or remove the line that says '{key}:' and nothing below"
        )
    return section


def refuse_unknown_cohort(cohort: str, source: Path) -> None:
    """Check that a cohort has a folder in the configuration, and a name that every tool takes.

    Raises
    ------
    ValueError
        Naming those there are.

    Examples
    --------
    >>> refuse_unknown_cohort("clinic ${x}", Path("conf"))
    Traceback (most recent call last):
    ...
    ValueError: conf/clinic ${x}: 'clinic ${x}' cannot name a cohort: rename the folder, ...
    """
    if not SAFE_NAME.fullmatch(cohort):
        raise ValueError(
            f"conf/{cohort}: '{cohort}' cannot name a cohort: rename the folder, with letters, digits, "
            "'_', '-' and '.' only"
        )
    # A configuration may also come as an archive, which Kedro opens itself.
    if not source.is_dir() or (source / cohort).is_dir():
        return
    known = sorted(path.parent.name for path in source.glob("*/globals.yml"))
    raise ValueError(
        f"there is no cohort '{cohort}': {source} has {', '.join(n for n in known if n != 'base')}; "
        "correct --env or KEDRO_ENV, or add the cohort by 'kedro cohort new'"
    )


def weights_path(encoder: Mapping[str, Any]) -> str | None:
    """File or folder of an encoder's weights, as its entry names it; None where it names none.

    Examples
    --------
    >>> weights_path({"model": "local-dir:../models/uni/"})
    '../models/uni'
    >>> weights_path({"model": "timm:resnet18", "checkpoint": "w.pth"})
    'w.pth'
    >>> weights_path({"model": "onnx:models/uni.onnx"})
    'models/uni.onnx'
    >>> weights_path({"model": "transformers:owkin/phikon"}) is None  # of the hub: no such folder
    True
    """
    kind, _, name = str(encoder.get("model", "")).partition(":")
    on_disk = kind in _FILES_OF_WEIGHTS or (
        kind in _FOLDERS_OR_HUB and resolve_path(name.partition("@")[0]).exists()
    )
    given = str(encoder.get("checkpoint") or (name if on_disk else ""))
    if given.startswith("hf-hub:"):
        return None
    return Path(given).expanduser().as_posix() if given else None


@contextmanager
def naming_references(cohort: str) -> Iterator[None]:
    """Say which value of a cohort's configuration refers to something that is not there.

    Raises
    ------
    ValueError
        In place of OmegaConf's error.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OmegaConfBaseException as error:
        said = str(error.msg or error).splitlines()[0]
        raise ValueError(
            f"conf/{cohort}, {error.full_key or 'a value'}: {said}. What stands in ${{…}} is read as a "
            "reference to another key. Where it is part of a folder's name, rename the folder, or link "
            "to it by another name"
        ) from error


def refuse_braces(path: str | Path, what: str) -> None:
    """Check that a path can stand in the catalog, where ``{…}`` is a part of a dataset's name.

    Raises
    ------
    ValueError
        Naming the path.
    """
    if any(brace in str(path) for brace in "{}"):
        raise ValueError(
            f"{what} is '{path}', and the catalog reads what stands in {{…}} as a part of a dataset's "
            "name: rename the folder"
        )


def difference_from_stages(root: Path, cohort: str, encoders: Mapping[str, object]) -> str:
    """How the stages that DVC makes of params.yaml differ from a cohort's encoders, and the mend.

    Parameters
    ----------
    root
        The project's folder.
    cohort
        Its name.
    encoders
        Entries of ``encoders`` in the parameters; null leaves one out.

    Returns
    -------
    str
        Empty where they agree, or where there is no params.yaml.
    """
    import yaml

    try:
        listed = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return ""
    stages = [*(listed.get("embeddings") or {}).values(), *(listed.get("variants") or {}).values()]
    known = {stage["encoder"] for stage in stages if stage["cohort"] == cohort}
    wanted = {name for name, entry in encoders.items() if entry is not None}
    problems = [
        f"{word} {', '.join(sorted(names))}"
        for word, names in (("lacks", wanted - known), ("still lists", known - wanted))
        if names
    ]
    if not problems:
        return ""
    return (
        f"params.yaml, from which DVC makes its stages, {' and '.join(problems)} for cohort {cohort}: "
        "run 'kedro cohort sync' before 'dvc repro'"
    )


def harmonised_bases(encoders: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of each variant whose center is taken out of another encoder's vectors, that encoder.

    Raises
    ------
    ValueError
        If that encoder is not among the cohort's, or is such a variant itself.

    Examples
    --------
    >>> harmonised_bases({"uni": {"model": "timm:x"}, "uni_combat": {"model": "harmonised:uni"}})
    {'uni_combat': 'uni'}
    """
    found = {}
    for name, entry in encoders.items():
        kind, _, base = str(entry.get("model", "")).partition(":")
        if kind != "harmonised":
            continue
        other = encoders.get(base)
        if other is None or str(other.get("model", "")).startswith("harmonised:"):
            raise ValueError(
                f"encoders.{name}.model is 'harmonised:{base}': give the name of another encoder of "
                f"the cohort that is no such variant itself; there are {sorted(encoders)}"
            )
        found[name] = base
    return found
