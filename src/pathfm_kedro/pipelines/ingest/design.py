"""What the cohort can and cannot show: its classes, centers and patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.ingest.duplicates import DuplicateGroup, find_duplicates
from pathfm_kedro.statistics.association import cramers_v

#: Slides, patients or groups named in a warning before the rest is counted.
_NAMED = 5
_SAME = {
    "path": "are the same file, listed more than once",
    "file": "are the same file",
    "tissue": "show the same tissue in different files",
}


def summarise_design(
    slides: pl.DataFrame, parameters: Mapping[str, Any]
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Patients and slides per class and center, and what that rules out.

    Parameters
    ----------
    slides
        The slides table.
    parameters
        ``cramers_v_warning``: association of class and center above which the two are confounded.

    Returns
    -------
    design
        organ, label, center, n_patients, n_slides; one row per class and center, zeros included.
    summary
        ``cramers_v`` (over patients; null where it is undefined), ``n_patients``, ``n_slides``,
        ``n_unusable``, ``duplicates`` (slide ids of every group that shows the same tissue) and
        ``warnings``.
    """
    usable = slides.filter(pl.col("status") == "usable")
    design = _design_table(usable)
    counts = (
        design.pivot("center", index="label", values="n_patients", aggregate_function="sum")
        .drop("label")
        .to_numpy()
        if design.height
        else np.zeros((0, 0), np.int64)
    )
    association = cramers_v(counts) if counts.size else None
    duplicates = find_duplicates(usable)
    limit = float(parameters["cramers_v_warning"])
    summary = {
        "cramers_v": association,
        "n_patients": usable["patient_id"].n_unique(),
        "n_slides": usable.height,
        "n_unusable": slides.height - usable.height,
        "duplicates": [list(group.slide_ids) for group in duplicates],
        "warnings": _warnings(usable, association, limit) + _same_tissue(duplicates),
    }
    return design, summary


def _design_table(usable: pl.DataFrame) -> pl.DataFrame:
    cells = usable.group_by("label", "center").agg(
        pl.col("patient_id").n_unique().cast(pl.Int64).alias("n_patients"),
        pl.len().cast(pl.Int64).alias("n_slides"),
    )
    labels = usable.group_by("label").agg(pl.col("organ").unique().sort().str.join(", "))
    return (
        labels.join(usable.select("center").unique(), how="cross")
        .join(cells, on=["label", "center"], how="left")
        .with_columns(pl.col("n_patients", "n_slides").fill_null(0))
        .select("organ", "label", "center", "n_patients", "n_slides")
        .sort("organ", "label", "center")
    )


def _warnings(usable: pl.DataFrame, association: float | None, limit: float) -> list[str]:
    warnings = []
    if usable.is_empty():
        return ["no slide is usable: see the reasons in the slides table"]
    if usable["center"].n_unique() < 2:
        warnings.append(
            "one center only: whether an encoder follows the center cannot be measured here"
        )
    if usable["label"].n_unique() < 2:
        warnings.append("one label only: retrieval and probes have nothing to tell apart")
    if association is not None and association > limit:
        warnings.append(
            f"class and center are confounded (Cramér's V {association:.2f}, more than {limit:g}): "
            "what an encoder knows of the class cannot be told from what it knows of the center"
        )
    per_label = (
        usable.group_by("label").agg(pl.col("patient_id").n_unique().alias("n")).sort("label")
    )
    single = per_label.filter(pl.col("n") < 2)["label"].to_list()
    if single:
        warnings.append(
            f"{len(single)} label(s) with one patient cannot be retrieved from other patients: "
            f"{', '.join(single[:8])}{' …' if len(single) > 8 else ''}"
        )
    return warnings + _split_patients(usable) + _slide_warnings(usable)


def _split_patients(usable: pl.DataFrame) -> list[str]:
    """Patients that are not of one center or one label, as a slip in the manifest would make them."""
    told = []
    for column, means in (
        ("center", "if two people share an id, tell them apart"),
        ("label", "if that is not meant, correct the label or the id"),
    ):
        several = (
            usable.group_by("patient_id")
            .agg(pl.col(column).unique().sort())
            .filter(pl.col(column).list.len() > 1)
            .sort("patient_id")
        )
        if several.height:
            named = [
                f"{patient} ({', '.join(values)})"
                for patient, values in several.head(_NAMED).iter_rows()
            ]
            told.append(
                f"{several.height} patient(s) have slides of more than one {column}: "
                f"{_listed(named, several.height)}; {means}"
            )
    return told


def _slide_warnings(usable: pl.DataFrame) -> list[str]:
    warned = usable.filter(pl.col("warning") != "").sort("slide_id")
    named = warned.select(pl.format("slide {}: {}", "slide_id", "warning")).to_series()
    told = named.head(_NAMED).to_list()
    if warned.height > _NAMED:
        told.append(
            f"{warned.height - _NAMED} more slides have a warning of their own: see 'warning' in the "
            "slides table"
        )
    return told


def _same_tissue(duplicates: list[DuplicateGroup]) -> list[str]:
    """The same tissue under several ids; worst where a query could find itself in another patient."""
    told = [
        f"slides {_listed(list(group.slide_ids[:_NAMED]), len(group.slide_ids))} of {_whose(group)} "
        f"{_SAME[group.evidence]}: {_harm(group)}; keep one of them"
        for group in sorted(duplicates, key=lambda group: not _leaks(group))
    ]
    more = len(told) - 2 * _NAMED
    return told[: 2 * _NAMED] + (
        [f"{more} more groups of slides that show the same tissue: see 'duplicates' beside this"]
        if more > 0
        else []
    )


def _leaks(group: DuplicateGroup) -> bool:
    return group.n_patients > 1 or group.n_centers > 1


def _harm(group: DuplicateGroup) -> str:
    if _leaks(group):
        return "leakage, the same tissue would be its own neighbour"
    return "it counts more than once"


def _whose(group: DuplicateGroup) -> str:
    if group.n_patients > 1:
        return "different patients"
    return "one patient at different centers" if group.n_centers > 1 else "one patient"


def _listed(named: list[str], total: int) -> str:
    return ", ".join(named) + (f" and {total - len(named)} more" if total > len(named) else "")
