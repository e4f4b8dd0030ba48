"""Manifests of tissue that was scanned or stained again: folders of scanners, or PLISM's names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import polars as pl

from pathfm_kedro.manifests.folders import (
    FolderError,
    FolderListing,
    find_slides,
    list_folder,
    path_below,
    refuse_bad_cell,
    slide_stem,
)

#: Levels of folders that tell two slides of one tissue apart.
_CHANGES = ("scanner", "stain")
#: ``GIVH_AT2_to_GMH_S60.tif``: stain and scanner of a slide, and of the slide that it was registered
#: to.
_PLISM = re.compile(
    r"(?P<stain>[A-Za-z0-9]+)_(?P<scanner>[A-Za-z0-9]+)(_to_(?P<reference>[A-Za-z0-9]+_[A-Za-z0-9]+))?"
)
_NAMED = 5


def list_rescans(
    folder: Path, levels: Sequence[str], start: Path, mpp: float | None = None
) -> FolderListing:
    """As :func:`~.folders.list_folder`, of slides scanned or stained several times.

    Slides that lie in the same folders under the same file name, but for the folders of ``scanner`` and
    ``stain``, show one tissue. Its reference slide is that of the scanner and stain which have most
    slides, and the first of these by name; the others name it in ``same_tissue_as``.

    Parameters
    ----------
    folder, levels, start, mpp
        As of :func:`~.folders.list_folder`; `levels` hold scanner, stain, or both.

    Raises
    ------
    FolderError
        If there is no such level, or no two slides show one tissue.
    """
    changes = [name for name in _CHANGES if name in levels]
    if not changes:
        raise FolderError(
            f"the levels {'/'.join(levels)} hold neither scanner nor stain: name the folders that tell "
            "the scans of one tissue apart, such as --levels center/label/scanner/patient"
        )
    listing = list_folder(folder, levels, start, mpp)
    # Without a level for the patient every file would be one of its own, each scan of it too.
    same = [name for name in listing.manifest.columns if name not in {"slide_id", "path", *changes}]
    same = same if "patient" in levels else [name for name in same if name != "patient_id"]
    tissue = pl.col("path").map_elements(
        lambda path: slide_stem(PurePosixPath(path)), return_dtype=pl.String()
    )
    often = pl.len().over(changes)
    numbered = listing.manifest.with_columns(_tissue=pl.struct(*same, tissue.alias("_stem")))
    ranked = numbered.with_columns(_often=often).sort(
        "_often", *changes, "slide_id", descending=[True, *([False] * (len(changes) + 1))]
    )
    first = pl.col("slide_id").first().over("_tissue")
    marked = ranked.with_columns(
        same_tissue_as=pl.when(first == pl.col("slide_id")).then(pl.lit("")).otherwise(first),
        **({} if "patient" in levels else {"patient_id": first}),
    )
    counts = marked.group_by("_tissue").len()["len"].to_list()
    if max(counts) < 2:
        raise FolderError(
            f"no two slides below {folder} have the same folders and file name in two folders of "
            f"{' or '.join(changes)}: name the scans of one tissue alike"
        )
    warnings = list(listing.warnings)
    alone = sum(count == 1 for count in counts)
    if alone:
        warnings.append(f"{alone} tissue(s) have one slide and are compared with no other scan")
    table = marked.sort("path").select(*listing.manifest.columns, "same_tissue_as")
    return FolderListing(table, tuple(warnings))


def list_plism(folder: Path, start: Path, mpp: float | None = None) -> FolderListing:
    """One row per slide of PLISM, named ``<stain>_<scanner>[_to_<stain>_<scanner>]``.

    Plismbench has 13 stains by 7 scanners of one tissue, each registered to ``GMH_S60``: the columns of
    a registration say that nothing is left to move. Slides without ``_to_`` are registered by the
    audit, onto the first by name. There is one patient, one center and one label.

    Parameters
    ----------
    folder, start, mpp
        As of :func:`~.folders.list_folder`.

    Raises
    ------
    FolderError
        If a name is another, or slides were registered to several or to one that is not there.
    """
    prefix = path_below(folder, start)
    slides, _ = find_slides(folder)
    parsed = [(path, _PLISM.fullmatch(slide_stem(path))) for path in slides]
    other = [str(path) for path, match in parsed if match is None]
    if other or not parsed:
        shown = ", ".join(other[:_NAMED]) or "no slide"
        raise FolderError(
            f"{shown} below {folder}: slides of PLISM are named <stain>_<scanner>.tif or "
            "<stain>_<scanner>_to_<stain>_<scanner>.tif, such as GIVH_AT2_to_GMH_S60.tif"
        )
    named = [(path, match) for path, match in parsed if match is not None]
    rows = []
    for path, match in named:
        row = {"slide_id": f"{match['stain']}_{match['scanner']}", "path": str(prefix / path)}
        row |= {"patient_id": "plism", "center": "plism", "label": "tissue"}
        row |= {"scanner": match["scanner"], "stain": match["stain"]}
        for column, cell in row.items():
            refuse_bad_cell(column, cell, path)
        rows.append(row)
    ids = Counter(row["slide_id"] for row in rows)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise FolderError(f"two slides below {folder} are {twice[0]}: remove one")
    registered = {match["reference"] for _, match in named if match["reference"]}
    if len(registered) > 1 or not registered <= set(ids):
        raise FolderError(
            f"slides below {folder} were registered to {', '.join(sorted(registered))}: bring the "
            "slides of one reference, and the reference itself"
        )
    reference = next(iter(registered), min(ids))
    for row, (_, match) in zip(rows, named, strict=True):
        is_other = row["slide_id"] != reference
        still = "0" if is_other and match["reference"] else ""
        row |= {"same_tissue_as": reference if is_other else ""}
        row |= {"offset_x": still, "offset_y": still, "rotation_deg": still}
        row |= {"mpp": f"{mpp:.12g}"} if mpp is not None else {}
    warning = (
        "one patient: intervals are over regions of this tissue, and no check is judged; experiments "
        "that need several patients, centers or labels have nothing to measure"
    )
    return FolderListing(pl.DataFrame(rows), (warning,))
