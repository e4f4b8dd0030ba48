"""The findings for spreadsheets."""

from __future__ import annotations

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
