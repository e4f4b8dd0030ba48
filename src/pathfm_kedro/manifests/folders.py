"""A manifest from slides or pre-cut images that lie in folders named for center, label and patient."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from pathfm_kedro.pipelines.ingest.spelling import (
    several_spellings,
    stands_for_nothing,
    visible,
)
from pathfm_kedro.slides.members import dicom_series, is_dicom
from pathfm_kedro.slides.readers import PLAIN_SUFFIXES

#: What OpenSlide or the TIFF reader opens, and plain images. DICOM slides are folders.
SLIDE_SUFFIXES = PLAIN_SUFFIXES | {
    ".svs", ".tif", ".tiff", ".btf", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif",
    ".czi", ".qptiff",
}  # fmt: skip
#: A spreadsheet takes a cell that begins so for a formula and runs it.
_FORMULA = ("=", "+", "-", "@")
_LEVEL = re.compile(r"[a-z][a-z0-9_]*")
_NEEDED = ("center", "label")
#: Columns that are made here; `patient` becomes patient_id.
_MADE = ("slide_id", "path", "patient_id", "mpp")
_NAMED = 5


class FolderError(ValueError):
    """A folder from which no manifest can be made, and why."""


@dataclass(frozen=True)
class FolderListing:
    """What was found in a folder.

    Attributes
    ----------
    manifest
        slide_id, path, patient_id, center, label, further levels, mpp where it was given.
    warnings
        What a person should look at.
    """

    manifest: pl.DataFrame
    warnings: tuple[str, ...]


def list_folder(
    folder: Path, levels: Sequence[str], start: Path, mpp: float | None = None
) -> FolderListing:
    """One row per slide, in the order of their paths.

    Hidden files, files of other kinds and the parts of slides of several files (the folder of an
    MRXS, the images of a VMS, the instances of a DICOM series) are no slides of their own. The
    slide_id is the path below the folder without suffix, with ``-`` between its parts.

    Parameters
    ----------
    folder
        Where the slides lie.
    levels
        What each level of folders stands for, from the outermost: ``center`` and ``label``,
        ``patient`` if there is one, other names become columns of their own.
    start
        The folder that the manifest will lie in: paths are relative to it.
    mpp
        Micrometres per level-0 pixel of every slide; None leaves it to the files.

    Raises
    ------
    FolderError
        If there are no slides, a slide lies at another depth, two would have one id, a name cannot
        stand in a manifest, or folders differ in spelling only.
    """
    _check_levels(levels)
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise FolderError(f"mpp {mpp!r} is not a positive number: give micrometres per pixel")
    prefix = path_below(folder, start)
    slides, others = find_slides(folder)
    if not slides:
        seen = f"; it holds {_counted(others)}" if others else ""
        raise FolderError(f"no slides and no images below {folder}{seen}")
    rows = [_row(path, prefix, levels, mpp) for path in slides]
    _refuse_equal_ids(rows)
    _refuse_several_spellings(rows)
    return FolderListing(pl.DataFrame(rows), _warnings(rows, levels, others))


def parse_levels(text: str) -> tuple[str, ...]:
    """Levels of folders as typed.

    Examples
    --------
    >>> parse_levels("center/label/patient")
    ('center', 'label', 'patient')
    """
    return tuple(part.strip() for part in text.strip().strip("/").split("/"))


def _check_levels(levels: Sequence[str]) -> None:
    for level in levels:
        if not _LEVEL.fullmatch(level) or level in _MADE:
            raise FolderError(
                f"level '{level}' cannot be a column: use center, label, patient, or a name of "
                f"lower-case letters, digits and '_' that is none of {', '.join(_MADE)}"
            )
    twice = [level for level, count in Counter(levels).items() if count > 1]
    if twice:
        raise FolderError(f"level '{twice[0]}' is given twice: every level is a column of its own")
    missing = [name for name in _NEEDED if name not in levels]
    if missing:
        raise FolderError(
            f"the levels {'/'.join(levels)} lack {' and '.join(missing)}: an audit needs both"
        )


def path_below(folder: Path, start: Path) -> PurePosixPath:
    """The folder as seen from where the manifest lies."""
    try:
        relative = folder.resolve().relative_to(start.resolve())
    except ValueError as error:
        raise FolderError(
            f"a manifest in {start} cannot name slides in {folder}: write it into that folder or one "
            "above it"
        ) from error
    return PurePosixPath(relative.as_posix())


def find_slides(folder: Path) -> tuple[list[PurePosixPath], Counter[str]]:
    """Slides as paths below the folder, sorted, and suffixes of the files that are none."""
    slides: list[PurePosixPath] = []
    others: Counter[str] = Counter()
    for place, names in _walk(folder):
        relative = PurePosixPath(place.relative_to(folder).as_posix())
        if _is_series(place, names):
            _refuse_several_series(place, relative)
            slides.append(relative)
            continue
        suffixes = {name: PurePosixPath(name).suffix.lower() for name in names}
        # A VMS is a list of JPEG files that lie beside it.
        parts = PLAIN_SUFFIXES if {".vms", ".vmu"} & set(suffixes.values()) else frozenset()
        for name, suffix in suffixes.items():
            if suffix in SLIDE_SUFFIXES - parts:
                slides.append(relative / name)
            else:
                others[suffix or "without suffix"] += 1
    return sorted(slides), others


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files, without hidden ones; links are followed, circles are not."""

    def refuse(error: OSError) -> None:
        raise FolderError(f"{error.filename} cannot be read: {error.strerror}") from error

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        true = os.path.realpath(place)
        if true in seen:
            folders.clear()
            continue
        seen.add(true)
        slides = {PurePosixPath(name).stem for name in names if name.lower().endswith(".mrxs")}
        folders[:] = (
            []
            if _is_series(Path(place), [name for name in names if name[0] != "."])
            else sorted(name for name in folders if name[0] != "." and name not in slides)
        )
        yield Path(place), sorted(name for name in names if name[0] != ".")


def _is_series(place: Path, names: Sequence[str]) -> bool:
    """Whether a folder's files are DICOM, by their suffix or, without one, by how they begin."""
    return any(
        name.lower().endswith(".dcm") or ("." not in name and is_dicom(place / name))
        for name in names
    )


def _refuse_several_series(place: Path, relative: PurePosixPath) -> None:
    n_series = len(dicom_series(place))
    if n_series > 1:
        raise FolderError(
            f"'{relative}' holds {n_series} DICOM series: give each slide a folder of its own"
        )


def _row(
    path: PurePosixPath, prefix: PurePosixPath, levels: Sequence[str], mpp: float | None
) -> dict[str, str]:
    folders = path.parts[:-1]
    if len(folders) != len(levels):
        raise FolderError(
            f"'{path}' lies in {len(folders)} folders, and the levels {'/'.join(levels)} are "
            f"{len(levels)}: move it, or name the levels that there are"
        )
    row = dict(zip(levels, folders, strict=True))
    slide_id = "-".join((*folders, slide_stem(path)))
    patient = row.pop("patient", slide_id)
    made = {"slide_id": slide_id, "path": str(prefix / path), "patient_id": patient} | row
    for column, cell in made.items():
        refuse_bad_cell(column, cell, path)
    return made | ({} if mpp is None else {"mpp": f"{mpp:.12g}"})


def slide_stem(path: PurePosixPath) -> str:
    """Name of a slide without its suffix; a folder's name is whole.

    Examples
    --------
    >>> slide_stem(PurePosixPath("A/x/p1/a.svs")), slide_stem(PurePosixPath("A/x/p1/series 1.2"))
    ('a', 'series 1.2')
    """
    return path.stem if path.suffix.lower() in SLIDE_SUFFIXES else path.name


def refuse_bad_cell(column: str, cell: str, path: PurePosixPath) -> None:
    """Refuse what a manifest or a spreadsheet would take for something else."""
    shown = str(path).encode("utf-8", "backslashreplace").decode()
    if stands_for_nothing(cell):
        raise FolderError(
            f"'{shown}': {column} '{visible(cell)}' is what programs write for an empty cell: rename "
            "the folder or file to what is meant"
        )
    if cell.startswith(_FORMULA):
        raise FolderError(
            f"'{shown}': {column} '{cell}' begins with '{cell[0]}', which a spreadsheet takes for a "
            "formula: rename the folder or file"
        )
    if not cell.isprintable() or "\\" in cell or cell != cell.strip():
        raise FolderError(
            f"'{shown}': {column} has a character that a manifest cannot hold (a control character, "
            "a backslash, a blank at an end, or one that is no text): rename the folder or file"
        )


def _refuse_several_spellings(rows: Sequence[dict[str, str]]) -> None:
    """Folders whose names would be two centers, classes or patients though one is meant."""
    for column in ("center", "label", "organ", "scanner", "patient_id"):
        cells = [(number, row[column]) for number, row in enumerate(rows) if column in row]
        for one in several_spellings(cells, patients=column == "patient_id"):
            first, second = (
                f"{one.written(text)} (as of '{rows[at[0]]['path']}')"
                for text, at in list(one.rows.items())[:2]
            )
            raise FolderError(
                f"{column} {first} and {second} differ in spelling only and would count as two: rename "
                "the folders or files to one spelling, or to names that differ in more"
            )


def _refuse_equal_ids(rows: Sequence[dict[str, str]]) -> None:
    """Ids that are equal, or would be one file name on disks that do not tell case apart."""
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        other = first.setdefault(row["slide_id"].lower(), row)
        if other["path"] == row["path"]:
            continue
        if other["slide_id"] != row["slide_id"]:
            raise FolderError(
                f"'{other['path']}' and '{row['path']}' differ in case only, and some disks take them "
                "for one: rename one, or remove it if it is a copy"
            )
        raise FolderError(
            f"'{other['path']}' and '{row['path']}' would both be slide_id '{row['slide_id']}': rename "
            "one, or remove it if it is a copy"
        )


def _warnings(
    rows: Sequence[dict[str, str]], levels: Sequence[str], others: Counter[str]
) -> tuple[str, ...]:
    found = []
    if "patient" not in levels:
        found.append(
            "the levels name no patient, so every file counts as a patient of its own: where a "
            "patient has several, intervals will be too narrow; correct patient_id then"
        )
    else:
        found += _shared_patients(rows)
    if others:
        found.append(f"left out as no slides: {_counted(others)}")
    return tuple(found)


def _shared_patients(rows: Sequence[dict[str, str]]) -> list[str]:
    centers: dict[str, set[str]] = {}
    for row in rows:
        centers.setdefault(row["patient_id"], set()).add(row["center"])
    shared = sorted(patient for patient, at in centers.items() if len(at) > 1)
    if not shared:
        return []
    more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
    return [
        f"{', '.join(shared[:_NAMED])}{more}: patients at several centers, each taken for one "
        "person; where centers only count alike, rename the folders"
    ]


def _counted(others: Counter[str]) -> str:
    parts = [f"{count} {suffix}" for suffix, count in sorted(others.items())]
    more = f" and {len(parts) - _NAMED} other kinds" if len(parts) > _NAMED else ""
    return f"{sum(others.values())} files ({', '.join(parts[:_NAMED])}{more})"
