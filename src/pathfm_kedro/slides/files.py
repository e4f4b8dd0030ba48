"""The folder of a cohort's slides, addressed by the paths of its manifest."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pathfm_kedro.slides.readers import SlideReader, open_slide

#: How a pointer of Git LFS begins, and the bytes that one stays below.
LFS_POINTER = b"version https://git-lfs"
_LARGEST_POINTER = 1024


def reason_for_table(reason: str, row: Mapping[str, Any]) -> str:
    """Why a slide's job failed, as it may stand in a table: no class of ours, no patient's name.

    Parameters
    ----------
    reason
        Of the outcome: class and message of the error.
    row
        path and patient_id of the slide.

    Examples
    --------
    >>> row = {"path": "p17/a.svs", "patient_id": "p17"}
    >>> reason_for_table("SlideError: no file at 'p17/a.svs'", row)
    "no file at '<patient_id>/a.svs'"
    """
    plain = reason.removeprefix(f"{SlideError.__name__}: ").removeprefix("ValueError: ")
    return without_patient(plain, row["path"] or "", row["patient_id"] or "")


def without_patient(reason: str, path: str, patient_id: str) -> str:
    """A reason whose path does not name the patient, so that it may stand in a report.

    Examples
    --------
    >>> without_patient("no file at 'north/p17/p17_a.svs'", "north/p17/p17_a.svs", "p17")
    "no file at 'north/<patient_id>/<patient_id>_a.svs'"
    """
    if not path or not patient_id:
        return reason
    # A whole word of the path: of p1 in p17.svs nothing is to be hidden.
    word = rf"(?<![^\W_]){re.escape(patient_id)}(?![^\W_])"
    return reason.replace(path, re.sub(word, "<patient_id>", path, flags=re.IGNORECASE))


class SlideError(ValueError):
    """A slide that cannot be used, and why."""


@dataclass(frozen=True)
class SlideFiles:
    """Slides below one folder.

    Attributes
    ----------
    root
        The folder; no path of a manifest leads out of it.
    """

    root: Path

    def resolve(self, path: str) -> Path:
        """Where a manifest's path lies; its letters may be in another Unicode form on the disk.

        macOS writes ö as o and a mark, most others as one letter, and a copy keeps what it had.

        Raises
        ------
        SlideError
            If the path is absolute or climbs out of the folder, or nothing lies there.

        Examples
        --------
        >>> SlideFiles(Path("slides")).resolve("../secret.svs")
        Traceback (most recent call last):
        ...
        pathfm_kedro.slides.files.SlideError: path '../secret.svs' leads out of the manifest's folder
        """
        relative = PurePosixPath(path.replace("\\", "/"))
        absolute = relative.is_absolute() or bool(PureWindowsPath(path).drive)
        if absolute or ".." in relative.parts or "\0" in path or not relative.parts:
            raise SlideError(f"path '{path}' leads out of the manifest's folder")
        found = _in_any_form(self.root, relative)
        # Links are followed: slides on several disks, or kept by DVC, lie in the folder as links.
        if not _lies_there(found):
            missing = "only a link to nothing" if _is_link(found) else "no file"
            raise SlideError(
                f"{missing} at '{path}' below the manifest's folder: correct the path or restore the "
                "file"
            )
        return found

    def open(self, path: str) -> SlideReader:
        """Open a slide for reading; close it or use it in a `with` block.

        Raises
        ------
        SlideError
            If there is no such file or no reader can open it.
        """
        found = self.resolve(path)
        try:
            if found.is_file():
                _refuse_placeholder(found)
            return open_slide(found)
        except OSError as error:
            # The system's own text names the file by its place on this machine.
            raise SlideError(f"'{path}' cannot be opened: {error.strerror or error}") from error
        except ValueError as error:
            raise SlideError(f"'{path}' cannot be opened: {error}") from error


def _refuse_placeholder(path: Path) -> None:
    size = path.stat().st_size
    if not size:
        raise ValueError("the file is empty: restore it")
    if size < _LARGEST_POINTER and path.read_bytes().startswith(LFS_POINTER):
        raise ValueError("a pointer of Git LFS in place of the file: run 'git lfs pull'")


def _in_any_form(root: Path, relative: PurePosixPath) -> Path:
    """The path, with each part as the disk spells it."""
    found = root
    for part in relative.parts:
        exact = found / part
        if not _lies_there(exact) and not _is_link(exact):
            exact = _in_other_form(found, part) or exact
        found = exact
    return found


def _in_other_form(folder: Path, name: str) -> Path | None:
    wanted = unicodedata.normalize("NFC", name)
    if wanted.isascii():
        return None
    try:
        alike = [
            path for path in folder.iterdir() if unicodedata.normalize("NFC", path.name) == wanted
        ]
    except OSError:
        return None
    return alike[0] if len(alike) == 1 else None


def _lies_there(path: Path) -> bool:
    """Whether there is a file or a folder; a pipe would be waited on for ever."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:
        return False


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        return False
