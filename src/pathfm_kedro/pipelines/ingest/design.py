"""What the cohort can and cannot show: its classes, centers and patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.ingest.duplicates import DuplicateGroup, find_duplicates
from pathfm_kedro.pipelines.ingest.manifest import OPTIONAL_COLUMNS
from pathfm_kedro.pipelines.ingest.repeats import REPEAT
from pathfm_kedro.pipelines.ingest.spelling import stands_for_unknown
from pathfm_kedro.statistics.association import cramers_v

#: Kinds named in a warning before the rest is counted.
_NAMED = 5
#: What a patient should have one of, and what to do where there are several.
_ONE_PER_PATIENT = {
    "center": "if two people share an id, tell them apart",
    "label": "if that is not meant, correct the label or the id",
}
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
        ``n_unusable``, ``tissue_share`` (median over the slides of each center), ``warnings`` and, for
        who may see ids, ``duplicates`` (slide ids of every group that shows the same tissue) and
        ``patients_of_several`` (centers and labels of every patient that has more than one).
        The warnings stand in the report, so they count patients and slides and name none.
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
    several = {column: _patients_of_several(usable, column) for column in _ONE_PER_PATIENT}
    limit = float(parameters["cramers_v_warning"])
    summary = {
        "cramers_v": association,
        "n_patients": usable["patient_id"].n_unique(),
        "n_slides": usable.height,
        "n_unusable": slides.filter(pl.col("status") == "unusable").height,
        "tissue_share": _tissue_by_center(usable),
        "duplicates": [list(group.slide_ids) for group in duplicates],
        "patients_of_several": several,
        "warnings": [
            *_warnings(usable, association, limit),
            *_split_patients(several),
            *_mixed_organs(usable),
            *_unknown_names(usable),
            *_slide_warnings(usable),
            *_same_tissue(duplicates),
            *_repeats(slides),
        ],
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
            "what an encoder knows of the class cannot be separated from what it knows of the center"
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
    return warnings


def _patients_of_several(usable: pl.DataFrame, column: str) -> dict[str, list[str]]:
    """Patients with slides of more than one center or label, and which."""
    several = (
        usable.group_by("patient_id")
        .agg(pl.col(column).unique().sort())
        .filter(pl.col(column).list.len() > 1)
        .sort("patient_id")
    )
    return {str(patient): list(values) for patient, values in several.iter_rows()}


def _split_patients(several: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """Patients that are not of one center or one label, as a slip in the manifest would make them."""
    warnings = []
    for column, patients in several.items():
        if not patients:
            continue
        kinds = Counter(", ".join(values) for values in patients.values()).most_common()
        shown = "; ".join(f"{count} of {values}" for values, count in kinds[:_NAMED])
        more = f"; and {len(kinds) - _NAMED} other sets" if len(kinds) > _NAMED else ""
        warnings.append(
            f"{len(patients)} patient(s) have slides of more than one {column} ({shown}{more}): see "
            f"'patients_of_several' in the design summary; {_ONE_PER_PATIENT[column]}"
        )
    return warnings


def _mixed_organs(usable: pl.DataFrame) -> list[str]:
    """Slides without an organ beside slides that have one: they would make a stratum of their own."""
    without = usable.filter(pl.col("organ") == OPTIONAL_COLUMNS["organ"]).height
    if without in (0, usable.height):
        return []
    return [
        f"{without} of {usable.height} slides have no organ and count as one organ of their own: fill "
        "'organ' in, or leave it out for all"
    ]


def _unknown_names(usable: pl.DataFrame) -> list[str]:
    """Words such as unknown, which make one patient, center or class of many."""
    warnings = []
    for column in ("patient_id", "center", "label"):
        for name, n in usable[column].value_counts().sort(column).iter_rows():
            if stands_for_unknown(name):
                warnings.append(
                    f"{n} slide(s) have the {column} '{name}', which counts as one name: leave the "
                    "cell empty where it is not known, and the slide is left out"
                )
    return warnings


def _tissue_by_center(usable: pl.DataFrame) -> dict[str, float]:
    """Median share of tissue; centers that differ much in it were scanned or tinted differently."""
    # Tables that were made before this column came have no shares.
    if "tissue_share" not in usable.columns:
        return {}
    medians = (
        usable.group_by("center")
        .agg(pl.col("tissue_share").median())
        .drop_nulls("tissue_share")
        .sort("center")
    )
    return {str(center): round(float(share), 4) for center, share in medians.iter_rows()}


def _slide_warnings(usable: pl.DataFrame) -> list[str]:
    """Each warning of single slides with the number of slides that have it, by center."""
    warned = usable.filter(pl.col("warning") != "")
    counts = warned.group_by("warning").agg(pl.len().alias("n"), pl.col("center"))
    warnings = []
    for warning, n, centers in counts.sort("n", "warning", descending=[True, False]).iter_rows():
        at = ", ".join(f"{center} {count}" for center, count in sorted(Counter(centers).items()))
        warnings.append(f"{n} slide(s) ({at}): {warning}")
    more = len(warnings) - _NAMED
    return warnings[:_NAMED] + (
        [f"{more} more warnings of single slides: see 'warning' in the slides table"]
        if more > 0
        else []
    )


def _same_tissue(duplicates: list[DuplicateGroup]) -> list[str]:
    """The same tissue under several ids; worst where a query could find itself in another patient."""
    kinds: dict[tuple[str, str, str], list[DuplicateGroup]] = {}
    for group in sorted(duplicates, key=lambda group: not _leaks(group)):
        kinds.setdefault((_whose(group), group.evidence, _harm(group)), []).append(group)
    return [
        f"{len(groups)} group(s) of slides of {whose}, {sum(len(g.slide_ids) for g in groups)} slides, "
        f"{_SAME[evidence]}: {harm}; keep one of each, see 'duplicates' in the design summary"
        for (whose, evidence, harm), groups in kinds.items()
    ]


def _repeats(slides: pl.DataFrame) -> list[str]:
    """Slides that the manifest says show tissue again: they are no duplicates, and count once."""
    n = slides.filter(pl.col("status") == REPEAT).height
    if not n:
        return []
    return [
        f"{n} slide(s) show the tissue of another again (same_tissue_as): each tissue counts once, and "
        "they are compared where cohort.same_tissue is true"
    ]


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
