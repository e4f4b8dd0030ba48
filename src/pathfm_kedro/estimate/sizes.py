"""How much there is to audit: from tiles where they are cut, else from the manifest or a design."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import polars as pl

#: Slides without a limit of tiles: of published cohorts' whole slides at 20x about so many are tissue.
_TILES_OF_WHOLE_SLIDE = 5000
#: What is counted by: columns that a table lacks are empty.
_COLUMNS = ("slide_id", "patient_id", "center", "organ", "label", "status", "same_tissue_as")


@dataclass(frozen=True, eq=False)
class CohortSize:
    """How much there is to audit.

    Attributes
    ----------
    slides, patients, centers
        How many.
    tiles
        Of all slides.
    basis
        Where these numbers come from, for the reader.
    table
        One row per slide: slide_id, patient_id, center, organ, label, status, same_tissue_as, n_tiles.
    places
        Places of mosaics where wider fields are read; None before tiles are cut.
    """

    slides: int
    patients: int
    centers: int
    tiles: int
    basis: str
    table: pl.DataFrame
    places: pl.DataFrame | None = None


def cohort_size(parameters: Mapping[str, Any], listed: Any = None, tiles: Any = None) -> CohortSize:
    """How much there is to audit: from tiles where they are cut, else from the manifest.

    Parameters
    ----------
    parameters
        All parameters.
    listed
        Slides table or manifest: patient_id, center; None for a phantom that is not drawn yet.
    tiles
        Tiles table; None before tiles are cut.
    """
    source = "the manifest"
    if listed is None:
        listed, source = _designed(parameters["phantom"]), "the phantom's design"
    table = _counted_by(listed)
    usable = table.filter(status="usable")
    patients, centers = (usable[c].n_unique() for c in ("patient_id", "center"))
    if tiles is not None:
        counts = tiles.group_by("slide_id").agg(n_tiles=pl.len().cast(pl.Int64))
        table = table.join(counts, on="slide_id", how="left", maintain_order="left")
        table = table.with_columns(pl.col("n_tiles").fill_null(0))
        basis, places = "tiles that were cut", _places(parameters, listed, tiles)
        return CohortSize(usable.height, patients, centers, tiles.height, basis, table, places)
    most = parameters["tile"]["max_tiles_per_slide"]
    typical = _TILES_OF_WHOLE_SLIDE if most is None else int(most)
    basis = f"{source}; tiles are not cut yet, {typical:,} of each slide are assumed"
    is_usable = (pl.col("status") == "usable").cast(pl.Int64)
    table = table.with_columns(n_tiles=is_usable * typical)
    return CohortSize(usable.height, patients, centers, usable.height * typical, basis, table)


def _counted_by(listed: pl.DataFrame) -> pl.DataFrame:
    """What is counted by, of a slides table or of a manifest, which has no status yet."""
    missing = [name for name in _COLUMNS if name not in listed.columns]
    table = listed.with_columns(pl.lit(None, pl.String()).alias(name) for name in missing)
    if "slide_id" in missing:
        table = table.with_columns(slide_id=pl.int_range(pl.len()).cast(pl.String()))
    if "status" in missing:
        repeats = pl.col("same_tissue_as").is_not_null()
        status = pl.when(repeats).then(pl.lit("repeat")).otherwise(pl.lit("usable"))
        table = table.with_columns(status=status)
    return table.select(_COLUMNS)


def _designed(phantom: Mapping[str, Any]) -> pl.DataFrame:
    """The slides that a phantom will have."""
    cells = product(
        phantom["labels"].items(), phantom["centers"], range(int(phantom["patients_per_cell"]))
    )
    patients = [
        {"patient_id": f"{label}-{center}-{n}", "center": center, "organ": organ, "label": label}
        for (label, organ), center, n in cells
    ]
    slides: list[dict[str, Any]] = [
        row | {"slide_id": f"{row['patient_id']}-{n}", "same_tissue_as": None}
        for row in patients
        for n in range(int(phantom["slides_per_patient"]))
    ]
    repeated = slides[: int(phantom["repeat_patients"])]
    repeats = [
        row | {"slide_id": f"{row['slide_id']}-{change}", "same_tissue_as": row["slide_id"]}
        for row in repeated
        for change in phantom["repeat_changes"]
    ]
    return pl.DataFrame([*slides, *repeats], infer_schema_length=None)


def _places(
    parameters: Mapping[str, Any], slides: pl.DataFrame, tiles: pl.DataFrame
) -> pl.DataFrame | None:
    """Places where wider fields are read; None where the tables do not say where tiles lie."""
    from pathfm_kedro.pipelines.retrieve.mosaic_views import choose_mosaic_places

    needed = {"in_mosaic", "colour_cluster", "field_um", "mpp", "x", "y"}
    if not needed <= set(tiles.columns) or "width" not in slides.columns:
        return None
    return choose_mosaic_places(slides, tiles, parameters["mosaic_field"])
