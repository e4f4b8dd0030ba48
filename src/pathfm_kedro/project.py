"""Where the project lies: relative paths in its configuration start there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).resolve().parents[2]


def find_project(start: Path) -> Path | None:
    """The nearest folder at or above one whose ``pyproject.toml`` makes it a Kedro project.

    Examples
    --------
    >>> find_project(Path("/")) is None
    True
    """
    return next((folder for folder in (start, *start.parents) if _is_project(folder)), None)


def project_root() -> Path:
    """The folder of the Kedro project this process works in, whichever of its folders it is in.

    Outside of a project it is the project that holds this code; of an installed package there is none,
    and the working folder stands in.
    """
    return find_project(Path.cwd()) or find_project(_SOURCE) or Path.cwd()


def resolve_path(given: str) -> Path:
    """A path of the configuration as an absolute path; it need not exist.

    Relative paths start from the project's folder; outside of a project from the working folder, or,
    where nothing is there, as in a worker of a cluster, from the folder that holds this code.

    Parameters
    ----------
    given
        As written; ``~`` is a person's home.
    """
    path = Path(given).expanduser()
    if path.is_absolute():
        return path
    starts = (find_project(Path.cwd()) or Path.cwd(), _SOURCE)
    return next((s / path for s in starts if (s / path).exists()), starts[0] / path)


def _is_project(folder: Path) -> bool:
    try:
        return "[tool.kedro]" in (folder / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return False


def path_from(folder: Path, root: Path) -> str:
    """A folder from the project's, where the two share a disk, so that a checkout can be moved."""
    try:
        return Path(os.path.relpath(folder, root)).as_posix()
    except ValueError:
        return folder.as_posix()


def write_yaml(path: Path, comment: str, content: Mapping[str, Any]) -> None:
    """Write keys below a line that says what they are."""
    import yaml

    path.write_text(
        f"# {comment}\n{yaml.safe_dump(dict(content), sort_keys=False)}", encoding="utf-8"
    )
