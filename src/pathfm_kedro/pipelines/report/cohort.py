"""The cohort on the page: what the figures rest on, what was lost and why; no patient is named."""

from __future__ import annotations

from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.text import without_folders
from pathfm_kedro.statistics.readable_numbers import number

#: Reasons listed on the page; the slides and tiling tables hold every slide.
MAX_REASONS = 60


def audited_slides(slides: pl.DataFrame, tiling: pl.DataFrame) -> pl.DataFrame:
    """The slides table with what became of each slide: one that gave no tile is not usable either.

    Parameters
    ----------
    slides
        slide_id, status, reason, ….
    tiling
        slide_id, status (``tiled`` or ``unusable``) and reason of every slide that was cut.
    """
    cut = tiling.select("slide_id", _status="status", _reason="reason")
    joined = slides.join(cut, on="slide_id", how="left", maintain_order="left")
    lost = (pl.col("status") == "usable") & (pl.col("_status") == "unusable")
    return joined.with_columns(
        status=pl.when(lost).then(pl.lit("unusable")).otherwise("status"),
        reason=pl.when(lost).then("_reason").otherwise("reason"),
    ).drop("_status", "_reason")


def lost_slides(audited: pl.DataFrame) -> list[dict[str, Any]]:
    """Why slides could not be used, how many each, most first; names of slides are left out.

    A slide's name, its file's and its patient's may tell who somebody is; the tables have them.
    """
    lost = audited.filter(status="unusable")
    if lost.is_empty():
        return []
    reasons = [_nameless(row) for row in lost.iter_rows(named=True)]
    return (
        lost.with_columns(pl.Series("reason", reasons, pl.String()))
        .group_by("reason")
        .agg(
            n=pl.len(),
            centers=pl.col("center").drop_nulls().unique().sort().str.join(", "),
            labels=pl.col("label").drop_nulls().unique().sort().str.join(", "),
        )
        .sort(pl.col("n"), "reason", descending=[True, False])
        .to_dicts()
    )


def _nameless(row: dict[str, Any]) -> str:
    text = without_folders(str(row["reason"] or "no reason was recorded"))
    file = str(row.get("path") or "").replace("\\", "/").rsplit("/", 1)[-1]
    for name in sorted({file, row["slide_id"], row["patient_id"]} - {None, ""}, key=len)[::-1]:
        text = text.replace(str(name), "…")
    return text


def cohort_facts(audited: pl.DataFrame, tiles: pl.DataFrame) -> list[tuple[str, str]]:
    """What the cohort consists of, as name and value."""
    usable = audited.filter(status="usable")
    per_slide = tiles.group_by("slide_id").len()["len"].sort()
    facts = [
        ("Slides", f"{usable.height:,} usable of {audited.height:,}"),
        ("Patients", f"{usable['patient_id'].n_unique():,}"),
        ("Centers", _names(usable, "center")),
        ("Organs", _names(usable, "organ")),
        ("Labels", _names(usable, "label")),
        ("Scanners", _names(usable, "scanner")),
        ("File formats", _names(usable, "vendor")),
        ("Micrometres per pixel", _range(usable, "mpp")),
    ]
    if len(per_slide):
        spread = f"{per_slide[0]:,} to {per_slide[-1]:,}, median {_median(per_slide):,g}"
        facts.append(("Tiles", f"{tiles.height:,} ({spread} on a slide)"))
    else:
        facts.append(("Tiles", "none"))
    return facts


def _median(values: pl.Series) -> float:
    return float(str(values.median()))


def _names(slides: pl.DataFrame, column: str) -> str:
    names = slides[column].drop_nulls().unique().sort().to_list() if column in slides else []
    shown = ", ".join(str(name) for name in names[:12])
    return f"{len(names)}: {shown}{', …' if len(names) > 12 else ''}" if names else "n/a"


def _range(slides: pl.DataFrame, column: str) -> str:
    values = slides[column].drop_nulls().sort() if column in slides else pl.Series([])
    if not len(values):
        return "n/a"
    low, high = number(values[0]), number(values[-1])
    return low if low == high else f"{low} to {high}"
