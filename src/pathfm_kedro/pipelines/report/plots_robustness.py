"""Figures of doses: how far an encoder moves as a disturbance grows, and what the checks can see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.figure_parts import (
    AXIS,
    Style,
    add_curve,
    by_encoder,
    figure_of,
    title_axes,
)
from pathfm_kedro.pipelines.report.summary import METRICS, experiment_name, humanise

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Okabe and Ito's blue and vermilion, told apart with any colour vision; the sign says it again.
_VERDICTS = {
    "pass": ("#0072B2", "circle"),
    "fail": ("#D55E00", "x"),
    "inconclusive": ("#6b6b6b", "diamond-open"),
    "not_applicable": ("#6b6b6b", "circle-open"),
}
#: Of one panel with its titles, and of the room between two, in pixels.
_PANEL_HEIGHT = 250
_PANEL_ROOM = 95
#: What is mixed into the truth, where its name alone does not say it.
_NUISANCES = {"corner": "one corner of the tile"}


def plot_calibration(measurements: pl.DataFrame) -> go.Figure | None:
    """Each check over the dose of nuisance, one panel a check; the sign tells the verdict."""
    rows = measurements.filter(experiment="calibration").drop_nulls("value")
    if rows.is_empty():
        return None
    parsed = [json.loads(text) for text in rows["setting"]]
    told = rows.with_columns(
        pl.Series("of", [entry["of"] for entry in parsed], pl.String()),
        pl.Series("nuisance", [entry["nuisance"] for entry in parsed], pl.String()),
        pl.Series("dose", [float(entry["dose"]) for entry in parsed], pl.Float64()),
        pl.Series("held", [entry["threshold"] for entry in parsed], pl.Float64()),
        pl.Series("said", [entry["verdict"] for entry in parsed], pl.String()),
    ).sort("of", "metric", "dose")
    panels = told.partition_by("of", "metric", maintain_order=True)
    return _panels(panels)


def _panels(panels: list[pl.DataFrame]) -> go.Figure:
    from plotly.subplots import make_subplots

    titles = [_calibration_title(panel.row(0, named=True)) for panel in panels]
    room = _PANEL_ROOM / (_PANEL_HEIGHT * len(panels))
    figure = make_subplots(rows=len(panels), cols=1, subplot_titles=titles, vertical_spacing=room)
    figure.update_layout(figure_of(_PANEL_HEIGHT * len(panels)).layout)
    figure.update_layout(margin={"l": 56, "r": 16, "t": 48, "b": 56})
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    shown: set[str] = set()
    for index, panel in enumerate(panels, 1):
        _add_doses(figure, panel, index, shown)
        nuisance = _NUISANCES.get(panel["nuisance"][0], panel["nuisance"][0])
        figure.update_xaxes(title_text=f"share of the vector: {nuisance}", row=index, col=1)
    return figure


def _calibration_title(row: Mapping[str, Any]) -> str:
    metric = METRICS.get(row["metric"], humanise(row["metric"]))
    return f"<b>{experiment_name(row['of'])}: {metric}</b>"


def _add_doses(figure: go.Figure, panel: pl.DataFrame, index: int, shown: set[str]) -> None:
    place = {"row": index, "col": 1}
    figure.add_scatter(
        x=panel["dose"].to_list(),
        y=panel["value"].to_list(),
        mode="lines",
        line={"color": "#a6a6a6", "width": 1.2},
        showlegend=False,
        hoverinfo="skip",
        **place,
    )
    for verdict, (colour, symbol) in _VERDICTS.items():
        own = panel.filter(said=verdict)
        if own.is_empty():
            continue
        figure.add_scatter(
            x=own["dose"].to_list(),
            y=own["value"].to_list(),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (own["ci_high"] - own["value"]).clip(lower_bound=0).to_list(),
                "arrayminus": (own["value"] - own["ci_low"]).clip(lower_bound=0).to_list(),
                "color": colour,
                "thickness": 1.4,
            },
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            name="not judged" if verdict == "not_applicable" else verdict,
            legendgroup=verdict,
            showlegend=verdict not in shown,
            **place,
        )
        shown.add(verdict)
    threshold = panel["held"].drop_nulls()
    if len(threshold):
        figure.add_hline(threshold[0], line={"color": "#222222", "width": 1.2}, **place)


def plot_doses(
    measurements: pl.DataFrame,
    styles: Mapping[str, Style],
    experiment: str,
    metric: str,
    dose: str,
    axis: str,
    **setting: Any,
) -> go.Figure | None:
    """A figure over the dose of a disturbance, one curve an encoder.

    Parameters
    ----------
    measurements
        Of all experiments.
    styles
        How encoders are drawn.
    experiment, metric
        What is drawn.
    dose
        Entry of the setting along the horizontal axis.
    axis
        Its title.
    setting
        What else the setting must say.
    """
    rows = measurements.filter(experiment=experiment, metric=metric, stratum="all")
    parsed = [json.loads(text) for text in rows["setting"]]
    keep = [
        isinstance(entry.get(dose), int | float)
        and all(entry.get(key) == value for key, value in setting.items())
        for entry in parsed
    ]
    x = [float(entry[dose]) if kept else 0.0 for entry, kept in zip(parsed, keep, strict=True)]
    curve = (
        rows.with_columns(pl.Series("x", x, pl.Float64()))
        .filter(pl.Series(keep, dtype=pl.Boolean()))
        .drop_nulls("value")
        .sort("encoder", "x")
    )
    if curve.is_empty():
        return None
    figure = figure_of(height=420)
    for name, own in by_encoder(curve, styles):
        add_curve(figure, own, name, styles[name])
    title_axes(figure, axis, METRICS.get(metric, humanise(metric)).lower())
    return figure
