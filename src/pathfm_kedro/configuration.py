"""What a cohort may configure: keys that conf/base does not have are refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader

from pathfm_kedro.conf_files import as_written, merge

#: Groups whose keys a cohort chooses itself: its encoders, what a cluster's class takes, the classes of
#: a phantom and the organ of each, sizes of an audit, versions of encoders; how an experiment is
#: calibrated and described, which is checked where it is read. A star stands for any name.
OPEN_GROUPS = (
    "encoders",
    "engine.dask.options",
    "phantom.labels",
    "*.calibration",
    "*.before",
    "words_*.*",
    "sizes",
)
#: An encoder of conf/base is left out by null: a null under any other name leaves out nothing.
_LEFT_OUT_BY_NULL = ("encoders",)
_NAMED = 10
#: File names that differ less are a slip, and more are files of another kind.
_SLIP = 0.85


@dataclass(frozen=True)
class _Fault:
    """A key that nothing reads, where it stands and what may have been meant."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def refuse_unknown_keys(loader: OmegaConfigLoader) -> None:
    """Check a cohort's files and ``--params`` against what conf/base says there is.

    A leaf is a number, a text, a list or null in conf/base, and may take any value; a mapping there
    may have the same keys only, apart from :data:`OPEN_GROUPS`, and no group may be empty.

    Parameters
    ----------
    loader
        For the cohort, with the parameters of the command line.

    Raises
    ------
    ValueError
        Naming every file and key, with what it may have been meant to be.
    """
    known, given = _by_file(loader, "parameters")
    whole = merge(*known.values())
    faults = [*_misnamed_files(loader, known), *_misnamed_globals(loader)]
    for place, content in given.items():
        texts = unknown_keys(content, whole)
        for group in _LEFT_OUT_BY_NULL:
            texts += _nothing_left_out(content.get(group), whole.get(group), group)
        faults += [_Fault(place, text) for text in texts]
    whole = merge(whole, *given.values())
    for size, content in (whole.get("sizes") or {}).items():
        texts = unknown_keys(content or {}, whole)
        faults += [_Fault(f"sizes.{size}", text) for text in texts]
    typed = dict(loader.runtime_params or {})
    faults += [_Fault("--params", text) for text in unknown_keys(typed, whole)]
    if faults:
        more = [f"… and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
        raise ValueError("\n".join([*map(str, faults[:_NAMED]), *more]))


def unknown_keys(given: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """What is wrong with the keys of one file, in its order.

    Examples
    --------
    >>> base = {"tile": {"pixels": 224, "mpp": 0.5, "tissue": {"min_speck_um2": 500}}}
    >>> unknown_keys({"tile": {"pixel": 112, "tissue": {"min_speck_um2": None}}}, base)
    ['there is no tile.pixel: did you mean tile.pixels?']
    """
    return list(_unknown(given, known, known))


def is_open(path: str) -> bool:
    """Whether a cohort chooses the keys below a key itself.

    Examples
    --------
    >>> is_open("encoders"), is_open("rotation.calibration"), is_open("rotation.criteria")
    (True, True, False)
    """
    return any(fnmatchcase(path, group) for group in OPEN_GROUPS)


def _by_file(
    loader: OmegaConfigLoader, kind: str
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Content of each file of conf/base and of the cohort, as it is written."""
    base, own, *_ = loader._read_raw_config(kind)
    return tuple(  # type: ignore[return-value]
        {_shown(path, loader): _plain(content) for path, content in files.items()}
        for files in (base, own)
    )


def _plain(content: Any) -> dict[str, Any]:
    # Keys that begin with '_' are for interpolation alone: Kedro drops them.
    return {str(k): v for k, v in as_written(content).items() if str(k)[:1] != "_"}


def _shown(path: Path, loader: OmegaConfigLoader) -> str:
    source = Path(loader.conf_source)
    below = path.relative_to(source) if path.is_relative_to(source) else path
    return (Path("conf") / below if source.name == "conf" else below).as_posix()


def _unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], whole: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    for key, value in given.items():
        here = f"{path}{key}"
        # An empty group takes all of conf/base's keys away; further down null may switch a part off.
        if value is None and not path and isinstance(known.get(key), Mapping):
            yield f"{here} is empty: remove the line, or write keys below it"
        elif key not in known and not (key == "calibration" and "criteria" in known):
            yield f"there is no {here}{_hint(str(key), path, known, whole)}"
        elif is_open(here) and isinstance(known.get(key, {}), Mapping):
            if not isinstance(value, Mapping | None):
                yield f"{here} is {value!r}: write its keys below it"
        elif isinstance(known[key], Mapping) and known[key]:
            if isinstance(value, Mapping):
                yield from _unknown(value, known[key], whole, f"{here}.")
            elif value is not None:
                yield f"{here} is {value!r}: it has the keys {', '.join(map(str, known[key]))}"


def _hint(key: str, path: str, known: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    close = get_close_matches(key, [str(name) for name in known], n=1)
    elsewhere = [place for place in _places(whole) if place.rpartition(".")[2] == key]
    if close:
        return f": did you mean {path}{close[0]}?"
    if len(elsewhere) == 1:
        return f": did you mean {elsewhere[0]}?"
    group = path.rstrip(".") or "a cohort"
    return f": {group} has {', '.join(sorted(map(str, known)))}"


def _places(known: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in known.items():
        here = f"{path}{key}"
        yield here
        if isinstance(value, Mapping) and not is_open(here):
            yield from _places(value, f"{here}.")


def _nothing_left_out(given: Any, known: Any, group: str) -> Iterator[str]:
    if not isinstance(given, Mapping) or not isinstance(known, Mapping):
        return
    for name, value in given.items():
        if value is None and name not in known:
            hint = _hint(str(name), f"{group}.", known, known)
            yield f"{group}.{name} is null and leaves out nothing{hint}"


def _misnamed_globals(loader: OmegaConfigLoader) -> Iterator[_Fault]:
    """A cohort may add globals of its own for its catalog, so only slips are refused."""
    known, given = _by_file(loader, "globals")
    names = [name for content in known.values() for name in content]
    for place, content in given.items():
        for name in content:
            close = get_close_matches(name, names, n=1, cutoff=_SLIP)
            if name not in names and close:
                yield _Fault(place, f"there is no {name}: did you mean {close[0]}?")


def _misnamed_files(loader: OmegaConfigLoader, known: Mapping[str, Any]) -> Iterator[_Fault]:
    """Files that no pattern of Kedro finds, with a name close to one that it would."""
    folder = Path(loader.conf_source) / (loader.env or loader.default_run_env)
    if not folder.is_dir():
        return
    names = {Path(place).name for place in known} | {"globals.yml", "catalog.yml"}
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".yml", ".yaml", ".json"} or path.name in names:
            continue
        if path.name.startswith(("parameters", "catalog", "credentials")):
            continue
        close = get_close_matches(path.name, sorted(names), n=1, cutoff=_SLIP)
        if close:
            place = _shown(path, loader)
            yield _Fault(place, f"nothing reads a file of this name: did you mean {close[0]}?")
