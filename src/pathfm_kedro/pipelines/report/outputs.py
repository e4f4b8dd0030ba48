"""The report's figures for kedro-viz, its curves for DVC, its findings for spreadsheets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.plots import figures, ri_curve, rotation_curve
from pathfm_kedro.pipelines.report.summary import safe_cells

#: Figures of the report that kedro-viz shows as datasets of their own.
_SHOWN = ("findings", "robustness_index:curve", "rotation:curve", "design")


def draw_overview(
    measurements: pl.DataFrame,
    findings: pl.DataFrame,
    design: pl.DataFrame,
    provenance: Mapping[str, Any],
) -> tuple[Any, ...]:
    """The findings, the robustness curve, the rotation curve and the design as plotly figures.

    A figure without data is an empty one that says so.
    """
    import plotly.graph_objects as go

    drawn = figures(measurements, findings, design, provenance)
    nothing = go.Figure(layout={"title": {"text": "not measured in this cohort"}})
    return tuple(drawn.get(name, nothing) for name in _SHOWN)


def findings_for_spreadsheets(findings: pl.DataFrame) -> pl.DataFrame:
    """The findings with every cell safe to open in a spreadsheet.

    p and q come from a normal approximation: digits beyond the third say nothing.
    """
    rounded = pl.col("p_value", "q_value").map_elements(
        lambda value: float(f"{value:.3g}"), return_dtype=pl.Float64
    )
    return safe_cells(findings.with_columns(rounded))


def robustness_curves(measurements: pl.DataFrame) -> pl.DataFrame:
    """Robustness index over the number of neighbours, one row per encoder and k."""
    return ri_curve(measurements)


def rotation_curves(measurements: pl.DataFrame) -> pl.DataFrame:
    """Share of neighbours kept over the angle, one row per encoder and angle."""
    return rotation_curve(measurements)
