"""Manifests of published cohorts of whole slides, from the names under which they are published."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import polars as pl

from pathfm_kedro.manifests.folders import (
    FolderError,
    FolderListing,
    find_slides,
    path_below,
    refuse_bad_cell,
    slide_stem,
)

_NAMED = 5

#: ``patient_042_node_3.tif``.
_NODE = re.compile(r"(?P<patient>patient_(?P<number>\d{3}))_node_\d")
_CENTER = re.compile(r"center_\d")
#: Of the training set's 100 patients each of the five centers sent 20, in this order.
_PATIENTS_PER_CENTER, _TRAINING = 20, 100
_STAGES = "stage_labels.csv"
#: What the label of a node is, by the largest metastasis in it.
_METASTASIS = {
    "negative": "negative",
    "itc": "metastasis",
    "micro": "metastasis",
    "macro": "metastasis",
}

#: ``TCGA-CJ-4642-01Z-00-DX1.<UUID>``: tissue source site, participant, sample, section.
_BARCODE = re.compile(
    r"(?P<patient>TCGA-(?P<site>[A-Z0-9]{2})-[A-Z0-9]{4})-(?P<sample>\d{2})[A-Z]?"
    r"(-\d{2}-(?P<section>[A-Z]{2})[A-Z0-9]+)?(\..+)?"
)
#: 10 to 19 are normal tissue, 20 and more controls.
_FIRST_NORMAL = 10
_PREPARATIONS = {"DX": "FFPE", "TS": "frozen", "BS": "frozen", "MS": "frozen"}
_PROJECT = re.compile(r"(?:TCGA-)?(?P<name>[A-Z]{2,4})")
#: Organ of each project.
ORGANS = {
    "ACC": "adrenal gland", "BLCA": "bladder", "BRCA": "breast", "CESC": "cervix",
    "CHOL": "bile duct", "COAD": "colorectum", "DLBC": "lymphoid tissue", "ESCA": "esophagus",
    "GBM": "brain", "HNSC": "head and neck", "KICH": "kidney", "KIRC": "kidney", "KIRP": "kidney",
    "LAML": "bone marrow",
    "LGG": "brain", "LIHC": "liver", "LUAD": "lung", "LUSC": "lung", "MESO": "pleura", "OV": "ovary",
    "PAAD": "pancreas", "PCPG": "adrenal gland", "PRAD": "prostate", "READ": "colorectum",
    "SARC": "soft tissue", "SKCM": "skin", "STAD": "stomach", "TGCT": "testis", "THCA": "thyroid",
    "THYM": "thymus", "UCEC": "uterus", "UCS": "uterus", "UVM": "eye",
}  # fmt: skip
_SAMPLE_SHEET, _SITES = "gdc_sample_sheet*.tsv", "tissueSourceSite.tsv"


def list_camelyon17(folder: Path, start: Path, mpp: float | None = None) -> FolderListing:
    """One row per lymph node of CAMELYON17, ``patient_<NNN>_node_<n>.tif``, wherever it lies below.

    The label comes from the published ``stage_labels.csv`` (columns patient and stage): ``negative``,
    or ``metastasis`` for itc, micro and macro, which `stage` keeps. The center is the folder
    ``center_<n>`` that the slide lies in, else that of the training set's order, 20 patients each.

    Parameters
    ----------
    folder, start, mpp
        As of :func:`~pathfm_kedro.manifests.folders.list_folder`.

    Raises
    ------
    FolderError
        If there are no such slides, or no file of stages.
    """
    stages = {
        row["patient"]: row["stage"].strip().lower()
        for row in _table(folder, _STAGES, ("patient", "stage"))
    }
    rows, left_out = [], Counter[str]()
    for path, match in _named(folder, _NODE, "patient_<NNN>_node_<n>.tif, as CAMELYON17's are"):
        stage = stages.get(f"{slide_stem(path)}.tif", "")
        center = _center(path, int(match["number"]))
        if not center or stage not in _METASTASIS:
            left_out[f"without a stage in {_STAGES}" if center else "in no folder center_<n>"] += 1
            continue
        rows.append(
            {
                "slide_id": slide_stem(path),
                "path": str(path_below(folder, start) / path),
                "patient_id": match["patient"],
                "center": center,
                "label": _METASTASIS[stage],
                "organ": "lymph node",
                "stage": stage,
            }
        )
    warning = (
        "a label is that of the slide, and a metastasis may fill a small part of it: figures on single "
        "tiles count tiles without tumour as metastasis"
    )
    return _listing(rows, mpp, folder, [warning, *_counted(left_out)])


def _center(path: PurePosixPath, patient: int) -> str:
    lies_in = [part for part in path.parts[:-1] if _CENTER.fullmatch(part)]
    if lies_in:
        return lies_in[-1]
    return f"center_{patient // _PATIENTS_PER_CENTER}" if patient < _TRAINING else ""


def list_tcga(folder: Path, start: Path, mpp: float | None = None) -> FolderListing:
    """One row per tumour slide of TCGA, named by its barcode, wherever it lies below.

    The center is the tissue source site, the second part of the barcode; with GDC's table of codes,
    ``tissueSourceSite.tsv``, in the folder it is the name of that institution, which may have several
    codes. The label is the project: a folder on the way such as ``TCGA-KIRC``, else GDC's sample sheet
    ``gdc_sample_sheet*.tsv`` beside it. The organ follows from the project. Slides of normal tissue
    (sample 11) are left out.

    Parameters
    ----------
    folder, start, mpp
        As of :func:`~pathfm_kedro.manifests.folders.list_folder`.

    Raises
    ------
    FolderError
        If there are no such slides, or the project of one is not known.
    """
    projects = {
        row["File Name"]: row["Project ID"]
        for row in _tables(folder, _SAMPLE_SHEET, ("File Name", "Project ID"), "\t")
    }
    sites = {
        row["TSS Code"]: row["Source Site"].strip()
        for row in _tables(folder, _SITES, ("TSS Code", "Source Site"), "\t")
    }
    rows, left_out = [], Counter[str]()
    for path, match in _named(folder, _BARCODE, "TCGA-<site>-<participant>-<sample>…, a barcode"):
        if int(match["sample"]) >= _FIRST_NORMAL:
            left_out["of normal tissue"] += 1
            continue
        project = _project(path, projects)
        rows.append(
            {
                "slide_id": slide_stem(path),
                "path": str(path_below(folder, start) / path),
                "patient_id": match["patient"],
                "center": sites.get(match["site"], match["site"]),
                "label": f"TCGA-{project}",
                "organ": ORGANS[project],
                "preparation": _PREPARATIONS.get(match["section"] or "", "unspecified"),
            }
        )
    warnings = _counted(left_out)
    if not sites:
        warnings.append(
            "a center is a code of the barcode, and an institution has one for each project that it "
            f"sent to: put GDC's {_SITES} into the folder to have institutions by name"
        )
    if len({row["preparation"] for row in rows}) > 1:
        warnings.append(
            "slides of FFPE and of frozen sections look unlike: keep one kind (column preparation)"
        )
    return _listing(rows, mpp, folder, warnings)


def _project(path: PurePosixPath, projects: Mapping[str, str]) -> str:
    given = [projects[path.name]] if path.name in projects else list(path.parts[-2::-1])
    for name in given:
        match = _PROJECT.fullmatch(name)
        if match is not None and match["name"] in ORGANS:
            return match["name"]
    raise FolderError(
        f"'{path}': the project is not known: move it into a folder such as TCGA-KIRC, or put GDC's "
        "sample sheet (gdc_sample_sheet.<date>.tsv) into the folder that is listed"
    )


def _named(
    folder: Path, pattern: re.Pattern[str], wanted: str
) -> Iterator[tuple[PurePosixPath, re.Match[str]]]:
    """Slides whose name is of a pattern; others are refused, so that none is left out unseen."""
    slides, _ = find_slides(folder)
    parsed = [
        (path, pattern.fullmatch(slide_stem(path)))
        for path in slides
        # CAMELYON's outlines of tumour lie among its slides.
        if not slide_stem(path).endswith("_mask")
    ]
    other = [str(path) for path, match in parsed if match is None]
    if other or not parsed:
        more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        shown = f"{', '.join(other[:_NAMED])}{more}" if other else "no slide"
        raise FolderError(f"{shown} below {folder}: the names of its slides must be {wanted}")
    yield from ((path, match) for path, match in parsed if match is not None)


def _table(folder: Path, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    found = list(_tables(folder, name, columns, ","))
    if not found:
        raise FolderError(f"there is no {name} below {folder}: put the published file into it")
    return found


def _tables(
    folder: Path, pattern: str, columns: Sequence[str], separator: str
) -> Iterator[dict[str, str]]:
    """Rows of every table below a folder whose name is of a pattern."""
    for path in sorted(folder.rglob(pattern)):
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise FolderError(f"{path} lacks the column {missing[0]}: restore it as published")
            yield from ({name: row[name] or "" for name in columns} for row in reader)


def _listing(
    rows: list[dict[str, str]], mpp: float | None, folder: Path, warnings: Sequence[str]
) -> FolderListing:
    if not rows:
        raise FolderError(f"no slide below {folder} can be listed: {'; '.join(warnings)}")
    twice = [name for name, n in Counter(row["slide_id"] for row in rows).items() if n > 1]
    if twice:
        raise FolderError(f"two slides below {folder} are '{twice[0]}': remove one")
    for row in rows:
        for column, cell in row.items():
            refuse_bad_cell(column, cell, PurePosixPath(row["path"]))
        row |= {} if mpp is None else {"mpp": f"{mpp:.12g}"}
    return FolderListing(pl.DataFrame(rows), tuple(warnings))


def _counted(left_out: Mapping[str, int]) -> list[str]:
    return [f"left out: {n} slide(s) {why}" for why, n in sorted(left_out.items())]
