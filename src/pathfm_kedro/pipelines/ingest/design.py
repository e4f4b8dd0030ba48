"""What the cohort can and cannot show: its classes, centers and patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.statistics.association import cramers_v


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
        ``n_unusable`` and ``warnings``.
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
    summary = {
        "cramers_v": association,
        "n_patients": usable["patient_id"].n_unique(),
        "n_slides": usable.height,
        "n_unusable": slides.height - usable.height,
        "warnings": _warnings(usable, association, float(parameters["cramers_v_warning"])),
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
    moved = usable.group_by("patient_id").agg(pl.col("center").n_unique().alias("n"))
    several = moved.filter(pl.col("n") > 1).height
    if several:
        warnings.append(f"{several} patient(s) have slides at more than one center")
    warnings.extend(_same_content(usable))
    return warnings


def _same_content(usable: pl.DataFrame) -> list[str]:
    """The same file under two ids: its tiles would be found as their own neighbours."""
    shared = (
        usable.filter(pl.col("fingerprint").is_duplicated())
        .group_by("fingerprint")
        .agg(pl.col("slide_id").sort(), pl.col("patient_id").n_unique().alias("patients"))
        .sort(pl.col("slide_id").list.first())
    )
    told = []
    for ids, patients in shared.select("slide_id", "patients").iter_rows():
        whose = "different patients" if patients > 1 else "one patient"
        told.append(f"slides {', '.join(ids)} of {whose} are the same file: keep one of them")
    return told[:10] + ([f"{len(told) - 10} more groups of equal files"] if len(told) > 10 else [])
