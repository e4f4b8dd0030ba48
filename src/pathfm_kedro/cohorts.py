"""Which cohort a command is about, read from conf/ before Kedro has a context."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pathfm_kedro.project import project_root, resolve_path
from pathfm_kedro.variants import RANDOM_WEIGHTS, expand_variants, untrained_entry

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

#: Columns of a manifest that name a slide, or are compared in every cohort.
_NO_SUBGROUPS = ("slide_id", "path", "patient_id", "center", "label", "organ", "mpp")
#: Prefixes of ``model`` that are followed by a file or folder, and by one or the name of a hub's model.
_FILES_OF_WEIGHTS = ("local-dir", "torchscript", "onnx", "features")
_FOLDERS_OR_HUB = ("transformers", "open_clip")


@dataclass(frozen=True, eq=False)
class CohortPlan:
    """What the pipelines of a cohort are built from; equal to itself alone.

    Attributes
    ----------
    source
        ``phantom`` where the project draws the slides, ``manifest`` where an institution brings them,
        ``features`` where it brings features and no slides.
    encoders
        Entries of ``encoders`` in the parameters by name, those set to null left out.
    parameters
        All parameters.
    left_out
        Encoders that need pixels, in a cohort without slides.
    """

    source: str
    encoders: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


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
    parameters["encoders"] = expand_variants(with_random_weights(written))
    encoders = {n: entry for n, entry in parameters["encoders"].items() if entry is not None}
    for name, entry in encoders.items():
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"encoders.{name} is {entry!r}: write its keys below it, the first '  model: {entry}'"
            )
    source_of_slides = str(sections["cohort"].get("source"))
    left_out = _without_pixels(encoders) if source_of_slides == "features" else ()
    kept = {name: entry for name, entry in encoders.items() if name not in left_out}
    return CohortPlan(source_of_slides, kept, parameters, left_out)


def _without_pixels(encoders: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Encoders of which nothing can be had where there are no slides."""
    models = {name: str(entry.get("model", "")) for name, entry in encoders.items()}
    usable = {
        name
        for name, model in models.items()
        if model.startswith("features:") or model == "control:noise"
    }
    usable |= {
        name
        for name, model in models.items()
        if model.startswith("harmonised:") and model.partition(":")[2] in usable
    }
    return tuple(name for name in models if name not in usable)


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
    groups = ("embeddings", "features", "rivals", "variants")
    stages = [stage for group in groups for stage in (listed.get(group) or {}).values()]
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


@dataclass(frozen=True)
class CohortTiles:
    """Which tiles the encoders of a cohort have vectors of.

    Attributes
    ----------
    at
        The encoder whose files say where the cohort's tiles lie; empty where tissue says it.
    grids
        Name of the grid of every encoder that has not the cohort's tiles.
    sizes
        Pixels and micrometres per pixel of each grid that is cut from slides.
    features
        Encoders whose vectors are read from files.
    same_as
        Of these, the encoder of the cohort that should give the same.
    """

    at: str = ""
    grids: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    same_as: Mapping[str, str] = field(default_factory=dict)


def tiles_of_cohort(plan: CohortPlan) -> CohortTiles:
    """Which tiles each encoder has vectors of: the cohort's, of a size of its own, or its files'.

    Raises
    ------
    ValueError
        If ``tile.at`` or an entry's ``tile`` cannot be, or a cohort without slides has no features.

    Examples
    --------
    >>> encoders = {"uni": {"model": "features:uni"}, "titan": {"model": "features:titan"},
    ...             "musk": {"model": "timm:x", "tile": {"pixels": 384, "mpp": 0.25}}}
    >>> parameters = {"tile": {"pixels": 224, "mpp": 0.5, "at": "uni"}}
    >>> dict(tiles_of_cohort(CohortPlan("manifest", encoders, parameters)).grids)
    {'titan': 'features_titan', 'musk': '384px_0_25mpp'}
    """
    features = tuple(
        name
        for name, entry in plan.encoders.items()
        if str(entry.get("model", "")).startswith("features:")
    )
    tile = plan.parameters.get("tile") or {}
    at = _tiles_at(tile.get("at"), features, plan)
    usual = (tile.get("pixels"), tile.get("mpp"))
    grids, sizes = {}, {}
    for name, entry in plan.encoders.items():
        own = entry.get("tile")
        if name in features and name != at:
            grids[name] = f"features_{name}"
        elif own is not None:
            size = _tile_size(name, own)
            if size != usual or at:
                grids[name] = grid_name(*size)
                sizes[grids[name]] = size
    bases = harmonised_bases(plan.encoders)
    grids |= {name: grids[base] for name, base in bases.items() if base in grids}
    return CohortTiles(at, grids, sizes, features, _same_as(features, plan))


def shows_same_tissue(plan: CohortPlan) -> bool:
    """Whether slides of the cohort show the tissue of others again, which is an experiment of its own.

    Raises
    ------
    ValueError
        If ``cohort.same_tissue`` is neither true nor false, or the cohort has no slides to compare.

    Examples
    --------
    >>> shows_same_tissue(CohortPlan("manifest", {}, {"cohort": {"same_tissue": True}}))
    True
    """
    given = (plan.parameters.get("cohort") or {}).get("same_tissue", False)
    if not isinstance(given, bool):
        raise ValueError(f"cohort.same_tissue is {given!r}: write true or false")
    if given and plan.source == "features":
        raise ValueError(
            "cohort.same_tissue is true and the cohort has features and no slides, which cannot be "
            "registered: bring the slides, or set it to false"
        )
    return given


def subgroups_of(plan: CohortPlan) -> tuple[str, ...]:
    """Columns of the manifest whose values are compared as subgroups of patients.

    Raises
    ------
    ValueError
        If ``cohort.subgroups`` is no list of columns, or names one that is compared anyway.

    Examples
    --------
    >>> subgroups_of(CohortPlan("manifest", {}, {"cohort": {"subgroups": ["sex", "scanner"]}}))
    ('sex', 'scanner')
    """
    given = (plan.parameters.get("cohort") or {}).get("subgroups") or []
    plain = isinstance(given, list) and all(isinstance(name, str) and name for name in given)
    if not plain or len(set(given)) < len(given):
        raise ValueError(
            f"cohort.subgroups is {given!r}: list columns of the manifest, each once, as [sex, scanner]"
        )
    other = [name for name in given if name in _NO_SUBGROUPS]
    if other:
        raise ValueError(
            f"cohort.subgroups names '{other[0]}', which says which slide this is, or is compared "
            "anyway: leave it out"
        )
    return tuple(given)


def _same_as(features: Sequence[str], plan: CohortPlan) -> dict[str, str]:
    """Of features that were brought, the encoder that should give the same."""
    found = {name: plan.encoders[name].get("same_as") for name in features}
    for name, other in found.items():
        if other is not None and (other == name or other not in plan.encoders):
            raise ValueError(
                f"encoders.{name}.same_as is {other!r}: give the name of another encoder of the cohort "
                f"({', '.join(sorted(set(plan.encoders) - {name}))}), or leave it out"
            )
    return {name: str(other) for name, other in found.items() if other is not None}


def grid_name(pixels: int, mpp: float) -> str:
    """How the datasets of a grid of tiles are called.

    Examples
    --------
    >>> grid_name(512, 0.5)
    '512px_0_5mpp'
    """
    return f"{pixels}px_{mpp:g}mpp".replace(".", "_")


def _tile_size(name: str, own: Any) -> tuple[int, float]:
    from pathfm_kedro.encoders.entry_checks import read_tile

    return read_tile(f"encoders.{name}.tile", own)


def _tiles_at(given: Any, features: Sequence[str], plan: CohortPlan) -> str:
    """The encoder whose files say where the cohort's tiles lie."""
    if given is not None and given not in features:
        raise ValueError(
            f"tile.at is {given!r}: give the name of an encoder of this cohort whose model is "
            f"features:<folder> ({', '.join(features) or 'there is none'}), or null"
        )
    if plan.source == "features" and not features:
        raise ValueError(
            "cohort.source is 'features', and no encoder has the model features:<folder>: name one, or "
            "set cohort.source to 'manifest' where there are slides"
        )
    return str(given or (features[0] if plan.source == "features" else ""))


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


def seeds_of_rivals(encoders: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Seed of each encoder that is trained on the cohort.

    Examples
    --------
    >>> seeds_of_rivals({"cnn": {"model": "trained:small_cnn", "seed": 2}, "u": {"model": "timm:x"}})
    {'cnn': 2}
    """
    return {
        name: int(entry.get("seed") or 0)
        for name, entry in encoders.items()
        if str(entry.get("model", "")).startswith("trained:")
    }


def with_random_weights(
    encoders: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Mapping[str, Any] | None]:
    """Entries with a control ``<name>_random_weights`` for each that says ``random_weights: true``.

    The control is the encoder's architecture with weights drawn from a seed and never trained; all
    else is as the encoder has it. Of a network that is trained on the cohort it is the network before
    training, audited on the same patients.

    Raises
    ------
    ValueError
        If the entry has no network that can be built without weights, or the name is taken.

    Examples
    --------
    >>> found = with_random_weights({"r": {"model": "timm:resnet18", "random_weights": True}})
    >>> found["r_random_weights"]
    {'model': 'timm:resnet18', 'role': 'control', 'pretrained': False, 'seed': 0}
    """
    found = dict(encoders)
    for name, entry in encoders.items():
        if not isinstance(entry, Mapping) or not entry.get(RANDOM_WEIGHTS):
            continue
        sibling = f"{name}_{RANDOM_WEIGHTS}"
        own = untrained_entry(name, entry)
        if sibling in encoders and encoders[sibling] not in (None, own):
            raise ValueError(
                f"encoders.{sibling} is there already, and encoders.{name}.{RANDOM_WEIGHTS} adds it: "
                "leave out one of them"
            )
        if sibling not in encoders:
            found[sibling] = own
    return found
