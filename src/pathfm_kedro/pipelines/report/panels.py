"""Panels: one figure of the table in each, with a point and an interval for every encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.figure_parts import (
    AXIS,
    Style,
    by_encoder,
    error_bars,
    layout_of,
    name_ticks,
    plain_text,
    wrapped,
)
from pathfm_kedro.pipelines.report.text import Row, interval_text, threshold_text
from pathfm_kedro.pipelines.report.words import Words

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Panels of one figure beyond which a reader loses the thread; the tables hold the rest.
MAX_PANELS = 12
#: Room for encoder names left of a panel, in pixels; fixed, so that titles can start at the edge.
_NAMES_WIDTH = 132
#: One line of a name, in pixels.
_NAME_LINE = 14
#: One line of a panel's title, and the ticks below a panel, in pixels.
_LINE_HEIGHT = 15
_TICKS_HEIGHT = 30
#: Characters of a title that fit on a phone.
_TITLE_WIDTH = 46


def interval_panels(
    rows: pl.DataFrame, styles: Mapping[str, Style], words: Words, named: bool = False
) -> go.Figure | None:
    """One panel per figure with a point and an interval per encoder; checks come first.

    Parameters
    ----------
    rows
        Rows of the measurements table.
    styles
        From :func:`~pathfm_kedro.pipelines.report.figure_parts.encoder_styles`.
    words
        What figures and settings are called.
    named
        Whether the panels' titles begin with the experiment's name.

    Returns
    -------
    Figure
        At most :data:`MAX_PANELS` panels; None where no row has a value.
    """
    from plotly.subplots import make_subplots

    # What was not judged is not set beside a threshold.
    unjudged = pl.col("threshold").is_not_null() & (pl.col("verdict") == "not_applicable")
    panels = _panels(rows.drop_nulls("value").filter(~unjudged), words)[:MAX_PANELS]
    if not panels:
        return None
    names = [name for name in styles if name in set(rows["encoder"])][::-1]
    titles = [_panel_title(panel.row(0, named=True), named, words) for panel in panels]
    room = _LINE_HEIGHT * max(title.count("<br>") + 1 for title in titles) + 8
    n_lines = max(styles[name].label.count("<br>") + 1 for name in names)
    inner = max(24, _NAME_LINE * n_lines + 4) * len(names) + 8
    gap = room + _TICKS_HEIGHT
    plotted = inner * len(panels) + gap * (len(panels) - 1)
    figure = make_subplots(
        rows=len(panels), cols=1, vertical_spacing=gap / plotted if len(panels) > 1 else 0.0
    )
    for i, panel in enumerate(panels, start=1):
        _add_panel(figure, i, panel, styles)
        figure.add_annotation(_title_place(titles[i - 1], i))
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[plain_text(name) for name in names],
        type="category",
        **name_ticks({name: styles[name].label for name in names}),
    )
    figure.update_layout(layout_of(height=plotted + room + _TICKS_HEIGHT))
    figure.update_layout(
        margin={"t": room, "b": _TICKS_HEIGHT, "l": _NAMES_WIDTH}, showlegend=False
    )
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**{**AXIS, "automargin": False, "tickfont": {"size": 11}})
    return figure


def _panels(rows: pl.DataFrame, words: Words) -> list[pl.DataFrame]:
    """Rows of the same figure together, those with a threshold first."""
    key = ["experiment", "metric", "stratum", "setting"]
    place = {name: i for i, name in enumerate(words.order(rows["experiment"].to_list()))}
    experiment = pl.col("experiment").replace_strict(place, default=0, return_dtype=pl.Int64())
    judged = pl.col("threshold").is_null().all().over(key)
    ordered = rows.with_columns(_rank=words.metric_ranks(rows)).sort(
        judged, experiment, "_rank", "stratum", "setting"
    )
    return ordered.partition_by(key, maintain_order=True)


def _panel_title(row: Row, named: bool, words: Words) -> str:
    title, setting = words.plain_title(row), words.setting_text(row["experiment"], row["setting"])
    title = words.named_title(row, title) if named else title
    must_be = f"must be {threshold_text(row)}" if row["threshold"] is not None else ""
    second = "; ".join(part for part in (must_be, setting) if part)
    lines = [f"<b>{wrapped(title, _TITLE_WIDTH)}</b>", wrapped(second, _TITLE_WIDTH + 4)]
    return "<br>".join(line for line in lines if line)


def _title_place(text: str, index: int) -> dict[str, Any]:
    axis = "" if index == 1 else str(index)
    return {
        "text": text,
        "xshift": -_NAMES_WIDTH,
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 1,
        "yref": f"y{axis} domain",
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
    }


def _add_panel(
    figure: go.Figure, index: int, panel: pl.DataFrame, styles: Mapping[str, Style]
) -> None:
    place = {"row": index, "col": 1}
    for name, own in by_encoder(panel, styles):
        row, style = own.row(0, named=True), styles[name]
        _add_null_tick(figure, row, place)
        figure.add_scatter(
            x=[row["value"]],
            y=[plain_text(name)],
            error_x=error_bars(own, style.colour),
            mode="markers",
            marker={"color": style.colour, "symbol": style.symbol, "size": 9},
            hovertemplate=f"{plain_text(name)}: {interval_text(row)}<extra></extra>",
            **place,
        )
    threshold = panel["threshold"].drop_nulls()
    if len(threshold):
        line = {"color": "#222222", "width": 1.2}
        figure.add_vline(threshold[0], line=line, **place)


def _add_null_tick(figure: go.Figure, row: Row, place: Mapping[str, int]) -> None:
    ends = [end for end in (row["null_low"], row["null_high"]) if end is not None]
    if ends:
        figure.add_scatter(
            x=ends,
            y=[plain_text(row["encoder"])] * len(ends),
            mode="lines+markers",
            line={"color": "#c4c4c4", "width": 7},
            marker={"symbol": "line-ns", "size": 12, "line": {"color": "#9a9a9a", "width": 2}},
            hovertemplate="if it knew nothing: %{x:.3g}<extra></extra>",
            **place,
        )
