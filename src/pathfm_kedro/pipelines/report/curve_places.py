"""Where points and marks of a curve lie, where that is a figure of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.figure_parts import Style, by_encoder, plain_text
from pathfm_kedro.pipelines.report.words import PlotWords, select, settings_of

if TYPE_CHECKING:
    import plotly.graph_objects as go


def curve_points(
    measurements: pl.DataFrame, experiment: str, metric: str, x: Any, at: Mapping[str, Any]
) -> pl.DataFrame:
    """Rows of a figure with their place on the axis, sorted by encoder and x.

    Parameters
    ----------
    measurements, experiment
        Whose rows.
    metric, at
        Of the figure, and the setting that it is shown at.
    x
        Entry of the setting that is the place; or ``{over, metric}``, the entry over which the curve
        runs and the figure that says where each of its values lies.
    """
    by_figure = isinstance(x, Mapping)
    entry = str(x["over"] if by_figure else x)
    rows = _over(measurements, experiment, metric, entry, at)
    if by_figure:
        # A figure of fewer entries, as patients whatever the model, lies at each of them.
        own = _entries_of(measurements.filter(experiment=experiment, metric=x["metric"]), at)
        places = _over(measurements, experiment, x["metric"], entry, own)
        places = places.select("encoder", "x", place="value")
        rows = rows.join(places, on=["encoder", "x"]).with_columns(x="place").drop("place")
    return rows.sort("encoder", "x")


def _entries_of(rows: pl.DataFrame, at: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a setting that a figure has."""
    known = {key for setting in settings_of(rows) for key in setting}
    return {key: value for key, value in at.items() if key in known}


def _over(
    measurements: pl.DataFrame, experiment: str, metric: str, entry: str, at: Mapping[str, Any]
) -> pl.DataFrame:
    """Rows with the entry of their setting as a column."""
    fixed = {key: value for key, value in at.items() if key != entry}
    rows = select(measurements, experiment, metric, fixed).filter(stratum="all").drop_nulls("value")
    places = [setting.get(entry) for setting in settings_of(rows)]
    numbers = [float(p) if isinstance(p, int | float) else None for p in places]
    return rows.with_columns(pl.Series("x", numbers, pl.Float64())).drop_nulls("x")


def add_marked(
    figure: go.Figure,
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    at: Mapping[str, Any],
    styles: Mapping[str, Style],
) -> None:
    """A dotted line in each audited encoder's colour, where a figure's value is a place on the axis."""
    metric, name_of_mark = plot.marked["metric"], plot.marked["name"]
    rows = measurements.filter(experiment=experiment, metric=metric, stratum="all")
    found = select(rows, experiment, metric, _entries_of(rows, at)).drop_nulls("value")
    for name, row in by_encoder(found, styles):
        if styles[name].is_control:
            continue
        place = float(row["value"][0])
        figure.add_scatter(
            x=[place, place],
            y=[0, 1],
            mode="lines",
            name=f"{name_of_mark}: {plain_text(name)}",
            legendgroup=name,
            hovertemplate=f"{plain_text(name)}, {name_of_mark}: %{{x:.3g}}<extra></extra>",
            line={"color": styles[name].colour, "dash": "dot", "width": 1.6},
        )
