"""Figures of the report: one colour for an encoder everywhere, controls grey and dashed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.figure_parts import (
    Style,
    encoder_styles,
    figure_of,
    name_ticks,
    plain_text,
    short_names,
    title_axes,
)
from pathfm_kedro.pipelines.report.panels import interval_panels
from pathfm_kedro.pipelines.report.plot_kinds import KINDS, answering_panels, curve_table
from pathfm_kedro.pipelines.report.words import Words

if TYPE_CHECKING:
    import plotly.graph_objects as go

_POINTS = "Point: value; line: 95% interval; grey bar: if it knew nothing"
FINDINGS_CAPTION = f"Each check. {_POINTS}; vertical line: threshold."
DESIGN_CAPTION = "Slides (patients) for each label and center."


def experiment_plots(
    measurements: pl.DataFrame, experiment: str, styles: Mapping[str, Style], words: Words
) -> list[tuple[str, go.Figure]]:
    """Caption and figure of each plot of an experiment; a plot without data is left out.

    An experiment without plots in its words gets its values with intervals.
    """
    plotted: list[tuple[str, go.Figure]] = []
    for plot in words.of(experiment).plots:
        figure = KINDS[plot.kind](measurements, experiment, plot, styles, words)
        if figure is None:
            continue
        if plot.x_range is not None:
            figure.update_xaxes(range=list(plot.x_range))
        if plot.y_range is not None:
            figure.update_yaxes(range=list(plot.y_range))
        plotted.append((plot.caption or f"{_POINTS}.", figure))
    if not plotted:
        answer, others = answering_panels(measurements, experiment, styles, words)
        plotted = [(f"{_POINTS}.", figure) for figure in (answer, others) if figure is not None]
    return plotted


def plot_experiment(
    measurements: pl.DataFrame,
    provenance: Mapping[str, Any],
    words: Mapping[str, Any],
    *,
    experiment: str,
) -> Any:
    """The first plot of an experiment, for kedro-viz; an empty one that says so without data."""
    read, styles = Words.read(words), styles_of(measurements, provenance)
    plotted = experiment_plots(measurements, experiment, styles, read)
    return plotted[0][1] if plotted else _nothing()


def plot_findings(
    findings: pl.DataFrame, provenance: Mapping[str, Any], words: Mapping[str, Any]
) -> Any:
    """Every check in a panel: where each encoder lies from the threshold."""
    styles = styles_of(findings, provenance)
    return interval_panels(findings, styles, Words.read(words), named=True) or _nothing()


def plot_design(design: pl.DataFrame) -> Any:
    """Slides and patients for each label and center."""
    if not design.height:
        return _nothing()
    counts = [pl.col("n_slides").sum(), pl.col("n_patients").sum()]
    design = design.group_by("label", "center").agg(counts)
    labels = design["label"].unique().sort(descending=True).to_list()
    centers = design["center"].unique().sort().to_list()
    cells = {(row["label"], row["center"]): row for row in design.iter_rows(named=True)}
    empty = {"n_slides": 0, "n_patients": 0}
    grid = [[cells.get((label, center), empty) for center in centers] for label in labels]
    figure = figure_of(height=130 + 44 * len(labels))
    figure.add_heatmap(
        x=[plain_text(name) for name in centers],
        y=[plain_text(name) for name in labels],
        z=[[cell["n_slides"] for cell in line] for line in grid],
        text=[[f"{cell['n_slides']} ({cell['n_patients']})" for cell in line] for line in grid],
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}: %{text} slides (patients)<extra></extra>",
        colorscale=[[0, "#f7f7f7"], [1, "#7fb3d5"]],
        zmin=0,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    title_axes(figure, "center", "")
    figure.update_xaxes(type="category", showgrid=False, **name_ticks(short_names(centers)))
    figure.update_yaxes(type="category", showgrid=False, **name_ticks(short_names(labels)))
    return figure


def plotted_curves(measurements: pl.DataFrame, words: Mapping[str, Any]) -> dict[str, pl.DataFrame]:
    """The first curve of every experiment that has one, for ``dvc plots``.

    Returns
    -------
    dict
        By experiment: encoder, x, value, ci_low, ci_high, null_low, null_high.
    """
    read = Words.read(words)
    return {
        x: curve_table(measurements, x, read)
        for x in read.order(measurements["experiment"].to_list())
        if any(plot.kind == "curve" for plot in read.of(x).plots)
    }


def styles_of(table: pl.DataFrame, provenance: Mapping[str, Any]) -> dict[str, Style]:
    """How each encoder of a table is plotted."""
    return encoder_styles(table["encoder"].unique().to_list(), provenance)


def _nothing() -> Any:
    import plotly.graph_objects as go

    return go.Figure(layout={"title": {"text": "not measured in this cohort"}})
