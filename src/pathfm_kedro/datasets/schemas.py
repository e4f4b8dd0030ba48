"""What each table must look like, checked whenever the catalog loads or saves it."""

from __future__ import annotations

import pandera.polars as pa
import polars as pl

from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA

_TEXT = pl.String()

slides = pa.DataFrameSchema(
    {
        "slide_id": pa.Column(_TEXT, unique=True),
        "path": pa.Column(_TEXT, nullable=True),
        "patient_id": pa.Column(_TEXT, nullable=True),
        "center": pa.Column(_TEXT, nullable=True),
        "organ": pa.Column(_TEXT),
        "label": pa.Column(_TEXT, nullable=True),
        "scanner": pa.Column(_TEXT),
        "stain": pa.Column(_TEXT, required=False),
        "same_tissue_as": pa.Column(_TEXT, nullable=True, required=False),
        "vendor": pa.Column(_TEXT, nullable=True),
        "width": pa.Column(pl.Int64(), pa.Check.gt(0), nullable=True),
        "height": pa.Column(pl.Int64(), pa.Check.gt(0), nullable=True),
        "levels": pa.Column(pl.Int64(), pa.Check.gt(0), nullable=True),
        "mpp": pa.Column(pl.Float64(), pa.Check.gt(0), nullable=True),
        "fingerprint": pa.Column(_TEXT, nullable=True),
        # Tables that were made before these columns came can still be loaded.
        "tissue_digest": pa.Column(_TEXT, nullable=True, required=False),
        "tissue_share": pa.Column(
            pl.Float64(), pa.Check.in_range(0, 1), nullable=True, required=False
        ),
        "warning": pa.Column(_TEXT, required=False),
        "status": pa.Column(_TEXT, pa.Check.isin(["usable", "repeat", "unusable"])),
        "reason": pa.Column(_TEXT),
    },
    name="slides",
)

design = pa.DataFrameSchema(
    {
        "organ": pa.Column(_TEXT),
        "label": pa.Column(_TEXT),
        "center": pa.Column(_TEXT),
        "n_patients": pa.Column(pl.Int64(), pa.Check.ge(0)),
        "n_slides": pa.Column(pl.Int64(), pa.Check.ge(0)),
    },
    strict=True,
    name="design",
)

tiles = pa.DataFrameSchema(
    {
        "tile_id": pa.Column(_TEXT, unique=True),
        "slide_id": pa.Column(_TEXT),
        "x": pa.Column(pl.Int64(), pa.Check.ge(0)),
        "y": pa.Column(pl.Int64(), pa.Check.ge(0)),
        # Where features come from files, these may be unknown.
        "field_um": pa.Column(pl.Float64(), pa.Check.gt(0), nullable=True),
        "mpp": pa.Column(pl.Float64(), pa.Check.gt(0), nullable=True),
        "tissue_fraction": pa.Column(pl.Float64(), pa.Check.in_range(0, 1 + 1e-9), nullable=True),
        "in_mosaic": pa.Column(pl.Boolean()),
        "colour_cluster": pa.Column(pl.Int64(), pa.Check.ge(0)),
    },
    strict=True,
    name="tiles",
)

measurements = pa.DataFrameSchema(
    {
        name: pa.Column(
            kind, nullable=name not in {"experiment", "encoder", "metric", "stratum", "verdict"}
        )
        for name, kind in MEASUREMENT_SCHEMA.items()
    },
    checks=[
        pa.Check(lambda data: _within_interval(data.lazyframe), error="ci_low <= ci_high"),
    ],
    name="measurements",
)


def _within_interval(table: pl.LazyFrame) -> pl.LazyFrame:
    return table.select((pl.col("ci_low") <= pl.col("ci_high")).fill_null(True).alias("check"))
