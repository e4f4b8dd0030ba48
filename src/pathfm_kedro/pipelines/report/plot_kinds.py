"""The plots of experiments, by kind; what each shows stands in the words of its experiment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.calibration_plot import plot_calibration
from pathfm_kedro.pipelines.report.curve_places import add_marked, curve_points
from pathfm_kedro.pipelines.report.figure_parts import (
    AXIS,
    Style,
    add_curve,
    by_encoder,
    error_bars,
    figure_of,
    layout_of,
    plain_text,
    title_axes,
    wrapped,
)
from pathfm_kedro.pipelines.report.panels import interval_panels
from pathfm_kedro.pipelines.report.text import interval_text
from pathfm_kedro.pipelines.report.words import (
    PlotWords,
    PublishedWords,
    Words,
    select,
    settings_of,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

NULL_COLOUR = "#d9d9d9"
#: Half the width of a threshold's mark on the axis, as a share of the axis.
_MARK = 0.02
#: Half the room between two groups of bars, as a share of a group.
_GROUP_MARGIN = 0.1

#: Makes a figure of measurements, an experiment, what is plotted, styles, words; None without data.
Plot = Callable[[pl.DataFrame, str, PlotWords, Mapping[str, Style], Words], "go.Figure | None"]


def curve(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    styles: Mapping[str, Style],
    words: Words,
) -> go.Figure | None:
    """A figure over an entry of its setting with interval bands; one curve an encoder."""
    at = {**words.usual_of_check(measurements, experiment), **plot.at}
    rows = curve_points(measurements, experiment, plot.metric, plot.x, at)
    if rows.is_empty():
        return None
    figure = figure_of(height=460)
    if plot.null_band:
        _add_null_band(figure, _null_points(measurements, experiment, plot, at, rows), plot)
    judged = rows.drop_nulls("threshold")
    if plot.threshold and judged.height:
        _add_threshold(figure, judged, rows, plot.threshold)
    for name, own in by_encoder(rows, styles):
        add_curve(figure, own, name, styles[name])
    if plot.beside:
        _add_beside(figure, measurements, experiment, plot, at, styles)
    if plot.marked:
        add_marked(figure, measurements, experiment, plot, at, styles)
    if plot.published is not None:
        _add_published(figure, rows, plot.published)
    if isinstance(plot.x, Mapping) and plot.x.get("log"):
        figure.update_xaxes(type="log")
    title_axes(figure, plot.x_title, plot.y_title)
    if plot.x_ticks:
        ticks = list(range(0, 361, plot.x_ticks))
        figure.update_xaxes(tickmode="array", tickvals=ticks)
    return figure


def curve_table(measurements: pl.DataFrame, experiment: str, words: Words) -> pl.DataFrame:
    """The points of an experiment's first curve, for ``dvc plots``.

    Returns
    -------
    DataFrame
        encoder, x, value, ci_low, ci_high, null_low, null_high; sorted.
    """
    columns = ["encoder", "x", "value", "ci_low", "ci_high", "null_low", "null_high"]
    for plot in words.of(experiment).plots:
        if plot.kind == "curve":
            at = {**words.usual_of_check(measurements, experiment), **plot.at}
            rows = curve_points(measurements, experiment, plot.metric, plot.x, at)
            return rows.select(columns)
    return pl.DataFrame(schema=dict.fromkeys(columns, pl.Float64()) | {"encoder": pl.String()})


def bars(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    styles: Mapping[str, Style],
    words: Words,
) -> go.Figure | None:
    """A figure for each value of an entry of its setting, the null as a line across its group."""
    key = str(plot.x)
    at = {k: v for k, v in words.usual(measurements, experiment).items() if k != key} | dict(
        plot.at
    )
    rows = select(measurements, experiment, plot.metric, at).filter(stratum="all")
    rows = rows.drop_nulls("value")
    if not rows.height:
        return None
    rows = rows.with_columns(
        pl.Series("x", [str(entry.get(key, "")) for entry in settings_of(rows)], pl.String())
    )
    places = {value: i for i, value in enumerate(rows["x"].unique().sort().to_list())}
    figure = figure_of(height=480)
    for name, own in by_encoder(rows, styles, sort="x"):
        style = styles[name]
        figure.add_bar(
            x=[places[value] for value in own["x"]],
            y=own["value"].to_list(),
            error_y=error_bars(own, "#333333"),
            name=style.label,
            marker={
                "color": style.colour,
                "line": {"color": style.colour, "width": 1},
                "pattern": _hatch(style),
            },
            hovertext=[interval_text(row) for row in own.iter_rows(named=True)],
        )
    _add_null_lines(figure, rows, places)
    judged = rows.drop_nulls("threshold").unique("x", maintain_order=True)
    for row in judged.iter_rows(named=True):
        place = places[row["x"]]
        _add_threshold_line(figure, place - 0.5, place + 0.5, float(row["threshold"]), "threshold")
    title_axes(figure, words.setting_text(experiment, at), plot.y_title)
    names = [wrapped(words.setting_text(experiment, {key: value}), 20) for value in places]
    figure.update_xaxes(
        tickmode="array", tickvals=list(places.values()), ticktext=names, showgrid=False
    )
    figure.update_layout(barmode="group", bargap=2 * _GROUP_MARGIN)
    return figure


def strata(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    styles: Mapping[str, Style],
    words: Words,
) -> go.Figure | None:
    """A figure, or those that `y` lists, within each organ, label or center, at the usual setting.

    Within every stratum where none is named.
    """
    at = {**words.usual(measurements, experiment), **plot.at}
    shown = plot.y or [{"metric": plot.metric}]
    parts = [
        select(measurements, experiment, y["metric"], {**at, **y.get("at", {})}) for y in shown
    ]
    within = pl.col("stratum").str.starts_with(f"{plot.stratum}=")
    rows = pl.concat(parts).filter(within if plot.stratum else pl.col("stratum") != "all")
    return interval_panels(rows, styles, words) if rows["stratum"].n_unique() > 1 else None


def scatter(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    styles: Mapping[str, Style],
    words: Words,
) -> go.Figure | None:
    """One figure against the same figure at another setting, a point an encoder."""
    sides = [
        select(measurements, experiment, plot.metric, at)
        .filter(stratum="all")
        .drop_nulls("value")
        .unique("encoder", keep="first", maintain_order=True)
        for at in (plot.x, plot.y)
    ]
    both = sides[0].join(sides[1], on="encoder", suffix="_y")
    if not both.height:
        return None
    figure = figure_of(height=480)
    for name, own in by_encoder(both, styles):
        row = own.row(0, named=True)
        second = {key.removesuffix("_y"): row[key] for key in row if key.endswith("_y")}
        colour = styles[name].colour
        figure.add_scatter(
            x=[row["value"]],
            y=[second["value"]],
            error_x=error_bars(own, colour),
            error_y=error_bars(pl.DataFrame([second]), colour),
            mode="markers",
            name=styles[name].label,
            marker={"color": colour, "symbol": styles[name].symbol, "size": 11},
        )
    line = {"color": "#a6a6a6", "width": 1, "dash": "dot"}
    if (chance := sides[0]["null_high"].max()) is not None:
        figure.add_vline(chance, line=line)
    if (chance := sides[1]["null_high"].max()) is not None:
        figure.add_hline(chance, line=line)
    title_axes(figure, plot.x_title, plot.y_title)
    figure.update_xaxes(range=[-0.02, 1.04])
    figure.update_yaxes(range=[-0.02, 1.04])
    return figure


def pareto(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    styles: Mapping[str, Style],
    words: Words,
) -> go.Figure | None:
    """Figures against a cost on a logarithmic axis, one below the other, with the line of the best.

    An encoder is a point, or has one for all that the entries `each` of the setting come in.
    """
    from plotly.subplots import make_subplots

    cost = _at_setting(measurements, experiment, plot.x, plot.each).filter(pl.col("value") > 0)
    worth = [_at_setting(measurements, experiment, y, plot.each) for y in plot.y]
    both = [rows.join(cost, on=["encoder", "each"], suffix="_cost") for rows in worth]
    if not any(rows.height for rows in both):
        return None
    figure = make_subplots(rows=len(both), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    figure.update_layout(layout_of(height=160 + 260 * len(both)))
    for row, (rows, y) in enumerate(zip(both, plot.y, strict=True), start=1):
        for name, own in by_encoder(rows, styles, sort="each"):
            style = styles[name]
            figure.add_scatter(
                x=own["value_cost"].to_list(),
                y=own["value"].to_list(),
                error_y=error_bars(own, style.colour),
                mode="markers",
                name=style.label,
                hovertext=[words.setting_text(experiment, setting) for setting in own["each"]],
                legendgroup=name,
                showlegend=row == 1,
                marker={"color": style.colour, "symbol": style.symbol, "size": 11},
                row=row,
                col=1,
            )
        front = pareto_front(rows)
        figure.add_scatter(
            x=front["value_cost"].to_list(),
            y=front["value"].to_list(),
            mode="lines",
            line={"color": "#a6a6a6", "width": 1, "dash": "dot", "shape": "hv"},
            showlegend=False,
            hoverinfo="skip",
            row=row,
            col=1,
        )
        figure.update_yaxes(title_text=y.get("title", y["metric"]), row=row, col=1, **AXIS)
    figure.update_xaxes(type="log", **AXIS)
    figure.update_xaxes(title_text=plot.x_title, row=len(both), col=1)
    return figure


def pareto_front(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that no other is both cheaper and better than, the cheapest first.

    Parameters
    ----------
    rows
        ``value_cost`` and ``value``, more of which is better.

    Examples
    --------
    >>> rows = pl.DataFrame({"value_cost": [1.0, 3.0, 2.0], "value": [0.5, 0.4, 0.7]})
    >>> pareto_front(rows).rows()
    [(1.0, 0.5), (2.0, 0.7)]
    """
    cheapest = rows.sort(["value_cost", "value"], descending=[False, True])
    before = pl.col("value").cum_max().shift(1)
    return cheapest.filter(before.is_null() | (pl.col("value") > before))


def _at_setting(
    measurements: pl.DataFrame, experiment: str, entry: Mapping[str, Any], each: Sequence[str]
) -> pl.DataFrame:
    """A figure ``{metric, at}`` of each encoder, and of all that entries of its setting come in."""
    rows = select(measurements, experiment, entry["metric"], entry.get("at"))
    kept = rows.filter(stratum="all").drop_nulls("value")
    values = [
        json.dumps({key: setting[key] for key in each if key in setting})
        for setting in settings_of(kept)
    ]
    placed = kept.with_columns(each=pl.Series(values, dtype=pl.String()))
    return placed.unique(["encoder", "each"], keep="first", maintain_order=True)


def panels(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    styles: Mapping[str, Style],
    words: Words,
) -> go.Figure | None:
    """Values with intervals: the checks and the key figures, else every figure."""
    rows = _key_rows(measurements, experiment, words)
    return interval_panels(rows, styles, words) if rows.height else None


def answering_panels(
    measurements: pl.DataFrame, experiment: str, styles: Mapping[str, Style], words: Words
) -> tuple[go.Figure | None, go.Figure | None]:
    """Panels that answer an experiment's question, its checks or else its first figure; the others."""
    rows = _key_rows(measurements, experiment, words)
    judged = rows.filter(pl.col("threshold").is_not_null())
    key = ["metric", "stratum", "setting"]
    known = rows.drop_nulls("value")
    ranks = {"_metric": words.metric_ranks(known), "_setting": words.setting_ranks(known)}
    first = judged if judged.height else known.with_columns(**ranks).sort(*ranks, *key).head(1)
    wanted = first.select(key).unique()
    split = (rows.join(wanted, on=key, how=how, maintain_order="left") for how in ("semi", "anti"))
    answer, others = (interval_panels(r, styles, words) if r.height else None for r in split)
    return answer, others


def _key_rows(measurements: pl.DataFrame, experiment: str, words: Words) -> pl.DataFrame:
    """Rows of the checks and the key figures of an experiment, else of every figure."""
    rows = measurements.filter(experiment=experiment)
    known = words.of(experiment)
    if known.key_figures is not None:
        key = pl.col("metric").is_in(list(known.key_figures)) | pl.col("threshold").is_not_null()
        fixed = {k: v for k, v in known.usual.items() if isinstance(v, str) and k == "design"}
        whole = [all(entry.get(k, v) == v for k, v in fixed.items()) for entry in settings_of(rows)]
        rows = rows.filter(pl.Series(whole, dtype=pl.Boolean())).filter(key, stratum="all")
    return rows


def calibration(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    styles: Mapping[str, Style],
    words: Words,
) -> go.Figure | None:
    """Each check over the dose of a nuisance."""
    return plot_calibration(measurements.filter(experiment=experiment), plot, words)


KINDS: dict[str, Plot] = {
    "curve": curve,
    "bars": bars,
    "strata": strata,
    "scatter": scatter,
    "pareto": pareto,
    "panels": panels,
    "calibration": calibration,
}


def _null_points(
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    at: Mapping[str, Any],
    rows: pl.DataFrame,
) -> pl.DataFrame:
    """Nulls of the curve itself, or a figure of its own that is the null."""
    metric = plot.null_band.get("metric")
    if metric is None:
        return rows
    own = curve_points(measurements, experiment, metric, plot.x, at)
    return own.with_columns(null_low=pl.col("value"), null_high=pl.col("value"))


def _add_null_band(figure: go.Figure, rows: pl.DataFrame, plot: PlotWords) -> None:
    """From the lowest to the highest null of all encoders; a line where they agree."""
    null = (
        rows.drop_nulls(["null_low", "null_high"])
        .group_by("x")
        .agg(pl.col("null_low").min(), pl.col("null_high").max())
        .sort("x")
    )
    if null.height:
        figure.add_scatter(
            x=[*null["x"], *null["x"][::-1]],
            y=[*null["null_high"], *null["null_low"][::-1]],
            fill="toself",
            fillcolor=NULL_COLOUR,
            line={"color": "#a6a6a6", "width": 1.5, "dash": "dot"},
            mode="lines",
            name=plot.null_band["name"],
            hoverinfo="skip",
        )


def _add_threshold(figure: go.Figure, judged: pl.DataFrame, rows: pl.DataFrame, name: str) -> None:
    """A short mark where the check is read: elsewhere nothing is judged by the threshold."""
    place, threshold = float(judged["x"][0]), float(judged["threshold"][0])
    half = _MARK * (float(rows["x"].max()) - float(rows["x"].min()))  # type: ignore[arg-type]
    _add_threshold_line(figure, place - half, place + half, threshold, name)


def _add_threshold_line(
    figure: go.Figure, start: float, end: float, threshold: float, name: str
) -> None:
    figure.add_scatter(
        x=[start, end],
        y=[threshold, threshold],
        mode="lines",
        name=f"{name} ({threshold:g})",
        hoverinfo="skip",
        line={"color": "#222222", "width": 3},
    )


def _add_published(figure: go.Figure, rows: pl.DataFrame, published: PublishedWords) -> None:
    """Figures of others as labelled crosses, where the cohort's protocol is theirs."""
    settings = settings_of(rows)
    same = [all(s.get(k) == v for k, v in published.at.items()) for s in settings]
    if not any(s and n == published.n for s, n in zip(same, rows["n"], strict=True)):
        return
    figure.add_scatter(
        x=[mark.x for mark in published.marks],
        y=[mark.value for mark in published.marks],
        mode="markers+text",
        text=[plain_text(mark.name) for mark in published.marks],
        textposition="middle right",
        textfont={"size": 10, "color": "#444444"},
        marker={"symbol": "x-thin", "size": 8, "line": {"color": "#444444", "width": 1.5}},
        name="published, same protocol on other slides",
        hovertemplate="%{text}: %{y}<extra></extra>",
    )


def _add_beside(
    figure: go.Figure,
    measurements: pl.DataFrame,
    experiment: str,
    plot: PlotWords,
    at: Mapping[str, Any],
    styles: Mapping[str, Style],
) -> None:
    """A control of the same figure, thin and dashed in the colour of each audited encoder."""
    rows = curve_points(measurements, experiment, plot.metric, plot.x, {**at, **plot.beside["at"]})
    step, upto = plot.beside.get("repeat"), plot.beside.get("upto", 0)
    if step:  # the control is the same in every period
        repeats = [rows.with_columns(pl.col("x") + step * i) for i in range(upto // step)]
        rows = pl.concat(repeats).unique(["encoder", "x"]).sort("encoder", "x")
    name_of_curve, shown = plot.beside["name"], False
    for name, own in by_encoder(rows, styles):
        if styles[name].is_control:
            continue
        figure.add_scatter(
            x=own["x"].to_list(),
            y=own["value"].to_list(),
            mode="lines",
            showlegend=False,
            legendgroup=name,
            hovertemplate=f"{plain_text(name)}, {name_of_curve}, %{{x}}: %{{y:.3g}}<extra></extra>",
            line={"color": styles[name].colour, "dash": "dash", "width": 1.2},
        )
        shown = True
    if shown:
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            name=name_of_curve,
            hoverinfo="skip",
            line={"color": "#444444", "dash": "dash", "width": 1.2},
        )


def _hatch(style: Style) -> dict[str, str]:
    """Controls are hatched, so that bars are distinguished in grey print too."""
    if not style.is_control:
        return {"shape": ""}
    return {"shape": "/", "fgcolor": style.colour, "bgcolor": "#ffffff"}


def _add_null_lines(figure: go.Figure, rows: pl.DataFrame, places: Mapping[str, int]) -> None:
    null = rows.drop_nulls("null_high").group_by("x").agg(pl.col("null_high").max()).sort("x")
    half = 0.5 - _GROUP_MARGIN
    x: list[float | None] = []
    y: list[float | None] = []
    for family, high in zip(null["x"], null["null_high"], strict=True):
        x += [places[family] - half, places[family] + half, None]
        y += [high, high, None]
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name="upper end of the null (largest of all encoders)",
            line={"color": "#222222", "width": 2, "dash": "dash"},
            hovertemplate="upper end of the null: %{y:.3g}<extra></extra>",
        )
