"""Calibration: what each check says of encoders with a known dose of nuisance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.figure_parts import AXIS, figure_of
from pathfm_kedro.pipelines.report.words import PlotWords, Words, settings_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Okabe and Ito's blue and vermilion, distinguished with any colour vision; the sign says it again.
_VERDICTS = {
    "pass": ("#0072B2", "circle"),
    "fail": ("#D55E00", "x"),
    "inconclusive": ("#6b6b6b", "diamond-open"),
    "undecidable": ("#6b6b6b", "square-open"),
    "not_applicable": ("#6b6b6b", "circle-open"),
}
_NAMES = {"not_applicable": "not judged", "inconclusive": "open", "undecidable": "too small"}
#: Of one panel with its titles, and of the room between two, in pixels.
_PANEL_HEIGHT = 250
_PANEL_ROOM = 95


def plot_calibration(rows: pl.DataFrame, plot: PlotWords, words: Words) -> go.Figure | None:
    """Each check over the dose of nuisance, one panel a check; the sign tells the verdict."""
    rows = rows.drop_nulls("value")
    if rows.is_empty():
        return None
    settings = settings_of(rows)
    table = rows.with_columns(
        pl.Series("of", [entry["of"] for entry in settings], pl.String()),
        pl.Series("nuisance", [entry["nuisance"] for entry in settings], pl.String()),
        pl.Series("dose", [float(entry["dose"]) for entry in settings], pl.Float64()),
        pl.Series("criterion", [entry["threshold"] for entry in settings], pl.Float64()),
        pl.Series("dosed_verdict", [entry["verdict"] for entry in settings], pl.String()),
    ).sort("of", "metric", "dose")
    return _panels(table.partition_by("of", "metric", maintain_order=True), plot, words)


def _panels(panels: list[pl.DataFrame], plot: PlotWords, words: Words) -> go.Figure:
    from plotly.subplots import make_subplots

    titles = [_title(panel.row(0, named=True), words) for panel in panels]
    room = _PANEL_ROOM / (_PANEL_HEIGHT * len(panels))
    figure = make_subplots(rows=len(panels), cols=1, subplot_titles=titles, vertical_spacing=room)
    figure.update_layout(figure_of(_PANEL_HEIGHT * len(panels)).layout)
    figure.update_layout(margin={"l": 56, "r": 16, "t": 48, "b": 56})
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    shown: set[str] = set()
    for index, panel in enumerate(panels, 1):
        _add_doses(figure, panel, index, shown)
        title = f"{plot.x_title}: {panel['nuisance'][0]}"
        figure.update_xaxes(title_text=title, row=index, col=1)
    return figure


def _title(row: Mapping[str, Any], words: Words) -> str:
    metric = words.metric_name({**row, "experiment": row["of"]})
    return f"<b>{words.name(row['of'])}: {metric}</b>"


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
        own = panel.filter(dosed_verdict=verdict)
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
            name=_NAMES.get(verdict, verdict),
            legendgroup=verdict,
            showlegend=verdict not in shown,
            **place,
        )
        shown.add(verdict)
    threshold = panel["criterion"].drop_nulls()
    if len(threshold):
        figure.add_hline(threshold[0], line={"color": "#222222", "width": 1.2}, **place)
