"""The findings for spreadsheets and for programs."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.text import safe_cells


def findings_for_spreadsheets(findings: pl.DataFrame) -> pl.DataFrame:
    """The findings with every cell safe to open in a spreadsheet.

    p and q come from a normal approximation: digits beyond the third say nothing.
    """
    rounded = pl.col("p_value", "q_value").map_elements(
        lambda value: float(f"{value:.3g}"), return_dtype=pl.Float64
    )
    return safe_cells(findings.with_columns(rounded))


def findings_for_programs(findings: pl.DataFrame) -> list[dict[str, Any]]:
    """The findings as records of plain values, as ``findings.schema.json`` describes them.

    Settings are objects, not text; what is undefined is None.
    """
    return [
        {**row, "setting": json.loads(row["setting"])} for row in findings.iter_rows(named=True)
    ]
