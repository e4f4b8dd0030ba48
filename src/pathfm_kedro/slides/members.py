"""The files that belong to one slide: instances of a DICOM series, parts beside an MRXS or VMS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

#: Bytes before the four letters by which a DICOM file is known, whatever it is called.
_PREAMBLE = 128
_MAGIC = b"DICM"
_SUFFIXES = (".dcm", ".dicom")
#: A directory of files on a medium, which is no image.
_INDEX = "dicomdir"
#: SOP class of whole-slide images. Annotations of a slide are series of other classes.
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
#: Lists of images that lie beside them, as lines of ``name=file``.
_LISTS = (".vms", ".vmu")


def slide_members(path: Path) -> list[Path]:
    """Every file that a slide's pixels come from, itself among them.

    Parameters
    ----------
    path
        A slide, or the folder of a DICOM series.

    Raises
    ------
    ValueError
        If a folder holds no DICOM series, or several.
    """
    if path.is_dir():
        return dicom_slide(path)
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return [path, *_visible_files(path.with_suffix(""))]
    if suffix in _LISTS:
        return [path, *_listed_files(path)]
    if is_dicom(path):
        series = _series_uid(path)
        if series is not None:
            return next(
                (files for files in _series_in(path.parent).values() if path in files), [path]
            )
    return [path]


def dicom_slide(folder: Path) -> list[Path]:
    """The files of the one DICOM series in a folder or in one folder below it, sorted.

    Raises
    ------
    ValueError
        If there is none, or there are several.
    """
    found: list[list[Path]] = []
    for place, _, _ in os.walk(folder):
        if Path(place).name.startswith(".") and Path(place) != folder:
            continue
        series = dicom_series(Path(place))
        if len(series) > 1:
            raise ValueError(
                f"the folder holds {len(series)} DICOM series: give each slide a folder of its own, or "
                "name one file of the series instead of the folder"
            )
        found += series
        if len(found) > 1:
            raise ValueError(
                "the DICOM files below this folder lie in several: name the one that holds the slide, "
                "or put the files of its series into one folder"
            )
        if found and Path(place) == folder:
            break
    if not found:
        raise ValueError(
            "a folder without DICOM files (*.dcm), here and in folders below: name the folder or one "
            "file of a DICOM series"
        )
    return found[0]


def dicom_series(folder: Path) -> list[list[Path]]:
    """The files of each DICOM series in a folder; where there are whole slides, of these alone.

    Files that are called DICOM and cannot be read as such are one series, so that who opens them
    says what is wrong.
    """
    series = list(_series_in(folder).values())
    if series:
        return series
    called = [path for path in _visible_files(folder) if path.suffix.lower() in _SUFFIXES]
    return [called] if called else []


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM, whatever its name; hidden files and DICOMDIR do not count."""
    if path.name.startswith(".") or path.name.lower() == _INDEX:
        return False
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def _series_in(folder: Path) -> dict[str, list[Path]]:
    found: dict[tuple[bool, str], list[Path]] = {}
    for path in _visible_files(folder):
        if is_dicom(path):
            uid = _series_uid(path)
            if uid is not None:
                found.setdefault(uid, []).append(path)
    any_slide = any(is_slide for is_slide, _ in found)
    return {uid: files for (is_slide, uid), files in found.items() if is_slide or not any_slide}


def _series_uid(path: Path) -> tuple[bool, str] | None:
    """Whether an instance is a whole slide, and its series."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(
            path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SeriesInstanceUID"]
        )
    except (OSError, InvalidDicomError, EOFError):
        return None
    return header.get("SOPClassUID") == _WHOLE_SLIDE, str(header.get("SeriesInstanceUID"))


def _visible_files(folder: Path) -> list[Path]:
    """Files of a folder, sorted; macOS puts one that begins with ``._`` beside each on other disks."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file())


def _listed_files(path: Path) -> Iterator[Path]:
    """Files beside a list of files that it names."""
    seen = {path.name}
    for line in path.read_text(encoding="latin-1").splitlines():
        name = line.partition("=")[2].strip()
        if name and name not in seen and Path(name).name == name and (path.parent / name).is_file():
            seen.add(name)
            yield path.parent / name
