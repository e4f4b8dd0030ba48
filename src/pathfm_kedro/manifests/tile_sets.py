"""PathoROB's tile sets: images out of the published Parquet files, and their manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from pathfm_kedro.manifests.folders import FolderError, FolderListing, path_below, refuse_bad_cell

#: Columns of the published files.
COLUMNS = ("image", "subset", "slide_id", "patch_id", "biological_class", "medical_center")
_IMAGES = "images"
#: How files begin, and the suffix that says so.
_KINDS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}
#: What an id may hold to be a part of a file's name.
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
#: Slides that name their patient: CAMELYON17's nodes, TCGA's barcodes. Others are one patient each.
_PATIENTS = (re.compile(r"(patient_\d+)_node_\d+"), re.compile(r"(TCGA-\w{2}-\w{4})-.+"))
_READ_AT_ONCE = 256


def list_pathorob(folder: Path, start: Path, mpp: float | None = None) -> FolderListing:
    """One row per tile of a set of PathoROB, from the Parquet files in which it is published.

    Each image is written as it is to ``images/<slide_id>-<patch_id>`` in the folder; one that is there
    already is kept. A tile is a slide of its own, its patient that of the slide it was cut from.

    Parameters
    ----------
    folder, start
        As of :func:`~pathfm_kedro.manifests.folders.list_folder`.
    mpp
        Micrometres per pixel of the set, which the files do not say.

    Raises
    ------
    FolderError
        If there is no Parquet file, one lacks a column, or a tile has no name or no image.
    """
    import pyarrow.parquet as pq

    prefix = path_below(folder, start)
    shards = sorted(folder.rglob("*.parquet"))
    if not shards:
        raise FolderError(
            f"no Parquet file below {folder}: download the files of one data set of PathoROB into it"
        )
    (folder / _IMAGES).mkdir(exist_ok=True)
    rows: dict[str, dict[str, str]] = {}
    for shard in shards:
        file = pq.ParquetFile(shard)
        missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise FolderError(f"{shard} lacks the column {missing[0]}: is it a file of PathoROB?")
        for tile in _tiles(file):
            row = _row(tile, folder, prefix, shard)
            if row["slide_id"] in rows:
                raise FolderError(f"tile '{row['slide_id']}' is there twice, again in {shard}")
            rows[row["slide_id"]] = row | ({} if mpp is None else {"mpp": f"{mpp:.12g}"})
    warnings = (
        () if mpp else ("no tile says how large a pixel is: give --mpp as its data card says",)
    )
    return FolderListing(pl.DataFrame(list(rows.values())), warnings)


def _tiles(file: Any) -> Iterator[Mapping[str, Any]]:
    for batch in file.iter_batches(_READ_AT_ONCE, columns=list(COLUMNS)):
        yield from batch.to_pylist()


def _row(
    tile: Mapping[str, Any], folder: Path, prefix: PurePosixPath, shard: Path
) -> dict[str, str]:
    given = {name: str(tile[name] or "") for name in COLUMNS if name != "image"}
    name = f"{given['slide_id']}-{given['patch_id']}"
    if not _SAFE.fullmatch(name) or ".." in name:
        raise FolderError(
            f"{shard}: tile '{name}' cannot name a file: letters, digits, '_', '.', '-'"
        )
    content = (tile["image"] or {}).get("bytes") or b""
    suffix = next((kind for start, kind in _KINDS.items() if content.startswith(start)), None)
    if suffix is None:
        raise FolderError(
            f"{shard}: tile '{name}' holds no PNG, JPEG or TIFF: download the file again"
        )
    path = PurePosixPath(_IMAGES, f"{name}{suffix}")
    target = folder / path
    if not target.exists() or target.stat().st_size != len(content):
        target.write_bytes(content)
    row = {
        "slide_id": name,
        "path": str(prefix / path),
        "patient_id": patient_of(given["slide_id"]),
        "center": given["medical_center"],
        "label": given["biological_class"],
        "subset": given["subset"],
    }
    for column, cell in row.items():
        refuse_bad_cell(column, cell, path)
    return row


def patient_of(slide: str) -> str:
    """The patient of a slide as its name tells, else the slide.

    Examples
    --------
    >>> [patient_of(s) for s in ("patient_004_node_4", "TCGA-E9-A1R5-01Z-00-DX1", "normal_027")]
    ['patient_004', 'TCGA-E9-A1R5', 'normal_027']
    """
    found = next(filter(None, (pattern.fullmatch(slide) for pattern in _PATIENTS)), None)
    return slide if found is None else found[1]
