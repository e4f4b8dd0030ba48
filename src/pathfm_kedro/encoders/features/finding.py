"""Which file of a folder is about which slide."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from pathfm_kedro.encoders.features.slide_features import FeatureFileError, some

#: Files that may hold features. A ``.zarr`` is a folder.
SUFFIXES = (".h5", ".hdf5", ".h5ad", ".pt", ".npz", ".npy", ".parquet", ".zarr")
#: What tools write after a slide's name, before the suffix.
_ADDED = (".embeddings", ".spatialdata", "_embeddings", "_embedding", "_features", "_feats")
#: Files beside features that hold coordinates alone.
COMPANIONS = (
    ".coordinates.npz",
    "_coords.npy",
    ".coords.npy",
    "_coordinates.npy",
    ".coordinates.npy",
    "_coords.parquet",
    "_coordinates.parquet",
)
#: Some tools keep the suffix of the slide's file.
_OF_SLIDES = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".bif",
    ".vms",
    ".svslide",
    ".czi",
    ".isyntax",
    ".dcm",
    ".ome",
    ".qptiff",
)


def find_feature_files(folder: Path, slide_ids: Collection[str] = ()) -> dict[str, Path]:
    """Files of features in a folder, by slide.

    Parameters
    ----------
    folder
        Its files are looked at, not those of folders in it.
    slide_ids
        Slides of the cohort, if known: a file named as one of them is that slide's even where the name
        ends as if a tool had added to it.

    Returns
    -------
    dict
        Path of each slide's file, sorted by slide.

    Raises
    ------
    FeatureFileError
        If the folder is missing or holds no such file, or two are about one slide.
    """
    found = {}
    for slide_id, paths in list_feature_files(folder, slide_ids).items():
        if len(paths) > 1:
            raise FeatureFileError(two_files(slide_id, paths))
        found[slide_id] = paths[0]
    return found


def list_feature_files(
    folder: Path, slide_ids: Collection[str] = ()
) -> dict[str, tuple[Path, ...]]:
    """As :func:`find_feature_files`, with all files of a slide that has several.

    Raises
    ------
    FeatureFileError
        If the folder is missing or holds no such file.
    """
    if not folder.is_dir():
        raise FeatureFileError(f"no folder of features at '{folder}': correct the path")
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(folder.iterdir()):
        if _holds_features(path):
            slide_id = slide_of_file(path.name, slide_ids)
            found[slide_id] = (*found.get(slide_id, ()), path)
    if not found:
        raise FeatureFileError(_nothing_in(folder))
    return dict(sorted(found.items()))


def two_files(slide_id: str, paths: Sequence[Path]) -> str:
    """What is wrong with a slide that has several files."""
    first, second, *_ = paths
    return (
        f"slide '{slide_id}' has two files of features in '{first.parent.name}': {first.name} and "
        f"{second.name}; keep one, or put each encoder's files into a folder of its own"
    )


def slide_of_file(name: str, slide_ids: Collection[str] = ()) -> str:
    """The slide that a file is about.

    Parameters
    ----------
    name
        Of the file.
    slide_ids
        Slides that are known.

    Examples
    --------
    >>> slide_of_file("S-1.h5"), slide_of_file("S-1.svs.pt"), slide_of_file("S-1.embeddings.zarr")
    ('S-1', 'S-1', 'S-1')
    >>> slide_of_file("S-1_features.h5", {"S-1_features"})
    'S-1_features'
    """
    known = {unicodedata.normalize("NFC", slide): slide for slide in slide_ids}
    stem = unicodedata.normalize("NFC", name)
    suffix = next((s for s in SUFFIXES if stem.lower().endswith(s)), "")
    stem = stem[: len(stem) - len(suffix)]
    while True:
        if stem in known:
            return known[stem]
        ending = next((e for e in (*_ADDED, *_OF_SLIDES) if stem.lower().endswith(e)), None)
        if ending is None or len(ending) == len(stem):
            return stem
        stem = stem[: -len(ending)]


def _holds_features(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith(".") or name.endswith(COMPANIONS) or not name.endswith(SUFFIXES):
        return False
    return path.is_dir() if name.endswith(".zarr") else path.is_file()


def _nothing_in(folder: Path) -> str:
    inner = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and any(_holds_features(path) for path in entry.iterdir())
    )
    mend = (
        f"files of features lie in {some(inner)} in it; name one of these"
        if inner
        else (f"give the folder whose files end in {', '.join(SUFFIXES)}, one for each slide")
    )
    return f"'{folder}' holds no file of features: {mend}"
