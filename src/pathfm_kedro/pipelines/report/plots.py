"""Figures of the report: one colour for an encoder everywhere, controls grey and dashed."""

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
    encoder_styles,
    error_bars,
    figure_of,
    layout_of,
    name_ticks,
    plain_text,
    short_names,
    title_axes,
    wrapped,
)
from pathfm_kedro.pipelines.report.findings import select
from pathfm_kedro.pipelines.report.plots_robustness import plot_calibration, plot_doses
from pathfm_kedro.pipelines.report.summary import (
    KEY_METRICS,
    METRICS,
    Row,
    experiment_order,
    humanise,
    interval_text,
    named_title,
    plain_title,
    setting_text,
    threshold_text,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

NULL_COLOUR = "#d9d9d9"
#: Panels of one figure beyond which a reader loses the thread; the tables hold the rest.
MAX_PANELS = 12
_POINTS_TITLE = "Point: value; line: 95% interval; grey bar: if it knew nothing"
#: Room for encoder names left of a panel, in pixels; fixed, so that titles can start at the edge.
_NAMES_WIDTH = 132
#: One line of a panel's title, and the ticks below a panel, in pixels.
_LINE_HEIGHT = 15
_TICKS_HEIGHT = 30
#: Characters of a title that fit on a phone.
_TITLE_WIDTH = 46
#: Half the width of the threshold's mark on the axis of angles: shorter than a step between points.
_MARK_DEGREES = 7
#: Half the room between two groups of bars, as a share of a group.
_GROUP_MARGIN = 0.1
#: What tells one search from another.
_SEARCH = ("family", "scope", "vote")


#: Figures over the dose of a disturbance: arguments of :func:`plot_doses`.
DOSED: dict[str, dict[str, Any]] = {
    f"appearance:{change}": {
        "experiment": "appearance",
        "metric": "kept_neighbours",
        "dose": dose,
        "axis": axis,
        "change": change,
    }
    for change, dose, axis in (
        ("jitter", "sigma", "strength of the change of stain (σ)"),
        ("jpeg", "quality", "JPEG quality"),
        ("blur", "sigma_px", "blur (σ in pixels)"),
        ("gamma", "exponent", "gamma"),
    )
}


def figures(
    measurements: pl.DataFrame,
    findings: pl.DataFrame,
    design: pl.DataFrame,
    provenance: Mapping[str, Any],
) -> dict[str, go.Figure]:
    """All figures of the report by name; a figure without data is left out.

    Returns
    -------
    dict
        ``findings``, ``design``, and one or more for each experiment. An experiment without a
        figure of its own gets its values with intervals as ``experiment:<name>``.
    """
    styles = encoder_styles(measurements["encoder"].unique().to_list(), provenance)
    drawn: dict[str, go.Figure | None] = {
        "findings": plot_findings(findings, styles),
        "robustness_index:curve": plot_ri_curve(measurements, styles),
        "rotation:curve": plot_rotation(measurements, styles),
        **{name: plot_doses(measurements, styles, **told) for name, told in DOSED.items()},
        "calibration:doses": plot_calibration(measurements),
        "retrieval:families": plot_retrieval(measurements, styles, provenance),
        "retrieval:organs": plot_retrieval_organs(measurements, styles, provenance),
        "linear_probe:scatter": plot_probe(measurements, styles),
        "geometry:values": plot_geometry(measurements, styles),
        "design": plot_design(design),
    }
    told = {name.split(":")[0] for name, figure in drawn.items() if figure is not None}
    for experiment in experiment_order(measurements["experiment"].to_list()):
        if experiment not in told:
            drawn[f"experiment:{experiment}"] = plot_experiment(measurements, experiment, styles)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def ri_curve(measurements: pl.DataFrame) -> pl.DataFrame:
    """Robustness index over the number of neighbours, all labels and centers.

    Returns
    -------
    DataFrame
        curve, encoder, x (= k), value, ci_low, ci_high, null_low, null_high; sorted.
    """
    rows = select(measurements, "robustness_index", "ri", role="curve", design="all")
    return _curve(rows, "robustness_index", "k")


def rotation_curve(measurements: pl.DataFrame, view: str = "rotated") -> pl.DataFrame:
    """Share of neighbours kept over the angle, at the signature's k and metric.

    Returns
    -------
    DataFrame
        As :func:`ri_curve`, x in degrees.
    """
    chosen = rotation_setting(measurements)
    return _curve(
        select(measurements, "rotation", "mknn", view=view, **chosen), "rotation", "angle"
    )


def curves_table(measurements: pl.DataFrame) -> list[dict[str, Any]]:
    """Both curves as tidy rows for ``dvc plots``: `curve` tells them apart.

    Returns
    -------
    list of dict
        curve (``robustness_index`` or ``rotation``), encoder, x (k or degrees), value, ci_low,
        ci_high, null_low, null_high.
    """
    return [*ri_curve(measurements).to_dicts(), *rotation_curve(measurements).to_dicts()]


def plot_ri_curve(measurements: pl.DataFrame, styles: Mapping[str, Style]) -> go.Figure | None:
    """Robustness index over k with interval bands and the null."""
    curve = ri_curve(measurements)
    if not curve.height:
        return None
    figure = figure_of(height=460)
    _add_null_band(figure, _design_null(measurements), "design null")
    for name, own in by_encoder(curve, styles):
        add_curve(figure, own, name, styles[name])
    title_axes(figure, "number of neighbours", "robustness index")
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure


def _design_null(measurements: pl.DataFrame) -> pl.DataFrame:
    """What the index is if an encoder knows nothing, which follows from the design alone."""
    rows = select(
        measurements, "robustness_index", "ri_design_null", role="curve", design="all"
    ).with_columns(null_low=pl.col("value"), null_high=pl.col("value"))
    return _curve(rows, "robustness_index", "k")


def plot_rotation(measurements: pl.DataFrame, styles: Mapping[str, Style]) -> go.Figure | None:
    """m-kNN over the angle; rotated there and back dashed, in the encoder's colour.

    The threshold is a short mark at 90°, where it is read, below the points.
    """
    curve = rotation_curve(measurements)
    if not curve.height:
        return None
    figure = figure_of(height=460)
    _add_null_band(figure, curve, "if it knew nothing")
    signature = select(measurements, "rotation", "mknn", angle=90).drop_nulls("threshold")
    if signature.height:
        _add_threshold(figure, signature["threshold"][0])
    for name, own in by_encoder(curve, styles):
        add_curve(figure, own, name, styles[name])
    back = _in_every_quarter(rotation_curve(measurements, "rotated_back"))
    shown = [part for part in by_encoder(back, styles) if not styles[part[0]].is_control]
    for name, own in shown:
        _add_back_curve(figure, own, name, styles[name])
    if shown:
        _add_back_legend(figure)
    title_axes(figure, "angle in degrees", "share of neighbours kept")
    figure.update_xaxes(tickmode="array", tickvals=list(range(0, 361, 45)))
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure


def _in_every_quarter(curve: pl.DataFrame) -> pl.DataFrame:
    """The control curve over the whole turn: quarter turns add nothing there and back."""
    quarters = [curve.with_columns(pl.col("x") + 90 * turn) for turn in range(4)]
    return pl.concat(quarters).unique(["encoder", "x"]).sort("encoder", "x")


def plot_retrieval(
    measurements: pl.DataFrame,
    styles: Mapping[str, Style],
    provenance: Mapping[str, Any] | None = None,
) -> go.Figure | None:
    """Macro-F1 of each search with its interval, the null as a line across its group."""
    chosen = retrieval_setting(measurements, provenance)
    chosen.pop("family", None)
    rows = select(measurements, "retrieval", "macro_f1", **chosen).filter(stratum="all")
    rows = rows.drop_nulls("value").with_columns(_entry("family").fill_null("").alias("x"))
    if not rows.height:
        return None
    places = {family: i for i, family in enumerate(rows["x"].unique().sort().to_list())}
    figure = figure_of(height=480)
    for name, own in by_encoder(rows, styles, sort="x"):
        style = styles[name]
        figure.add_bar(
            x=[places[family] for family in own["x"]],
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
    title_axes(figure, setting_text(json.dumps(chosen)), "macro-F1")
    names = [wrapped(setting_text(json.dumps({"family": name})), 20) for name in places]
    figure.update_xaxes(
        tickmode="array", tickvals=list(places.values()), ticktext=names, showgrid=False
    )
    figure.update_yaxes(range=[0, 1.02])
    figure.update_layout(barmode="group", bargap=2 * _GROUP_MARGIN)
    return figure


def plot_retrieval_organs(
    measurements: pl.DataFrame,
    styles: Mapping[str, Style],
    provenance: Mapping[str, Any] | None = None,
) -> go.Figure | None:
    """Macro-F1 organ by organ for one search."""
    chosen = retrieval_setting(measurements, provenance)
    rows = select(measurements, "retrieval", "macro_f1", **chosen)
    rows = rows.filter(pl.col("stratum").str.starts_with("organ="))
    if rows["stratum"].n_unique() < 2:
        return None
    figure = interval_panels(rows, styles)
    if figure is not None:
        figure.update_xaxes(range=[-0.02, 1.02])
    return figure


def plot_probe(measurements: pl.DataFrame, styles: Mapping[str, Style]) -> go.Figure | None:
    """How well a probe reads the tissue against how well it reads the center."""
    sides = {
        target: select(measurements, "linear_probe", "balanced_accuracy", target=target)
        .filter(stratum="all")
        .drop_nulls("value")
        .unique("encoder", keep="first", maintain_order=True)
        for target in ("label", "center")
    }
    both = sides["label"].join(sides["center"], on="encoder", suffix="_center")
    if not both.height:
        return None
    figure = figure_of(height=480)
    for name, own in by_encoder(both, styles):
        row = own.row(0, named=True)
        center = {key.removesuffix("_center"): row[key] for key in row if key.endswith("_center")}
        colour = styles[name].colour
        figure.add_scatter(
            x=[row["value"]],
            y=[center["value"]],
            error_x=error_bars(own, colour),
            error_y=error_bars(pl.DataFrame([center]), colour),
            mode="markers",
            name=styles[name].label,
            marker={"color": colour, "symbol": styles[name].symbol, "size": 11},
        )
    _add_chance_lines(figure, sides["label"], sides["center"])
    title_axes(figure, "label read: balanced accuracy", "center read: balanced accuracy")
    figure.update_xaxes(range=[-0.02, 1.04])
    figure.update_yaxes(range=[-0.02, 1.04])
    return figure


def plot_geometry(measurements: pl.DataFrame, styles: Mapping[str, Style]) -> go.Figure | None:
    """Each geometric figure in a panel of its own: their scales have nothing in common."""
    rows = measurements.filter(experiment="geometry")
    return interval_panels(rows, styles) if rows.height else None


def plot_experiment(
    measurements: pl.DataFrame, experiment: str, styles: Mapping[str, Style]
) -> go.Figure | None:
    """Values with intervals for an experiment that has no figure of its own.

    Of an experiment that the report knows, the checks and the figures that explain them.
    """
    rows = measurements.filter(experiment=experiment)
    if experiment in KEY_METRICS:
        key = pl.col("metric").is_in(KEY_METRICS[experiment]) | pl.col("threshold").is_not_null()
        whole = ~pl.col("setting").str.contains('"design": "paired_2x2"')
        rows = rows.filter(key, whole, stratum="all")
    return interval_panels(rows, styles) if rows.height else None


def plot_findings(findings: pl.DataFrame, styles: Mapping[str, Style]) -> go.Figure | None:
    """Every check in a panel: where each encoder lies from the threshold."""
    return interval_panels(findings, styles, named=True) if findings.height else None


def plot_design(design: pl.DataFrame) -> go.Figure | None:
    """Slides and patients for each label and center."""
    if not design.height:
        return None
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


def interval_panels(
    rows: pl.DataFrame, styles: Mapping[str, Style], named: bool = False
) -> go.Figure | None:
    """One panel per figure with a point and an interval per encoder; checks come first.

    Parameters
    ----------
    rows
        Rows of the measurements table.
    styles
        From :func:`encoder_styles`.
    named
        Whether the panels' titles begin with the experiment's name.

    Returns
    -------
    Figure
        At most :data:`MAX_PANELS` panels; None where no row has a value.
    """
    from plotly.subplots import make_subplots

    panels = _panels(rows.drop_nulls("value"))[:MAX_PANELS]
    if not panels:
        return None
    names = [name for name in styles if name in set(rows["encoder"])][::-1]
    titles = [_panel_title(panel.row(0, named=True), named) for panel in panels]
    room = _LINE_HEIGHT * max(title.count("<br>") + 1 for title in titles) + 8
    inner = 24 * len(names) + 8
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


def retrieval_setting(
    measurements: pl.DataFrame, provenance: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The search that the report shows: family, scope and vote.

    The primary search of the parameters where it was measured, else the check's, else the one
    measured most; ties go to the vote of more matches, as published figures use a majority of five.

    Examples
    --------
    >>> table = pl.DataFrame({"experiment": "retrieval", "metric": "macro_f1", "threshold": 0.5,
    ...                       "setting": '{"family": "mean", "vote": "mv5"}'})
    >>> retrieval_setting(table)
    {'family': 'mean', 'vote': 'mv5'}
    """
    rows = measurements.filter(experiment="retrieval")
    primary = _primary(provenance or {})
    if primary and select(rows, "retrieval", "macro_f1", **primary).height:
        return primary
    judged = rows.drop_nulls("threshold")
    rows = judged if judged.height else rows.filter(metric="macro_f1")
    counted: dict[str, int] = {}
    for text in rows["setting"]:
        entry = json.loads(text)
        kept = {key: entry[key] for key in _SEARCH if key in entry}
        name = json.dumps(kept, sort_keys=True)
        counted[name] = counted.get(name, 0) + 1
    best = max(counted, key=lambda name: (counted[name], name), default="{}")
    return dict(json.loads(best))


def _primary(provenance: Mapping[str, Any]) -> dict[str, Any]:
    told = provenance.get("parameters", {}).get("retrieve", {}).get("primary") or {}
    return {key: told[key] for key in _SEARCH if key in told}


def rotation_setting(measurements: pl.DataFrame) -> dict[str, Any]:
    """The k and metric of the signature, else the first in order."""
    rows = measurements.filter(experiment="rotation", metric="mknn")
    judged = rows.drop_nulls("threshold")
    settings = sorted((judged if judged.height else rows)["setting"])
    entry = json.loads(settings[0]) if settings else {}
    return {key: entry[key] for key in ("k", "metric") if key in entry}


def _entry(key: str) -> pl.Expr:
    return pl.col("setting").str.json_path_match(f"$.{key}")


def _curve(rows: pl.DataFrame, curve: str, x: str) -> pl.DataFrame:
    rows = rows.filter(pl.col("stratum") == "all").drop_nulls("value")
    return (
        rows.with_columns(pl.lit(curve).alias("curve"), _entry(x).cast(pl.Float64).alias("x"))
        .select("curve", "encoder", "x", "value", "ci_low", "ci_high", "null_low", "null_high")
        .sort("encoder", "x")
    )


def _hatch(style: Style) -> dict[str, str]:
    """Controls are hatched, so that bars are told apart in grey print too."""
    if not style.is_control:
        return {"shape": ""}
    return {"shape": "/", "fgcolor": style.colour, "bgcolor": "#ffffff"}


def _add_back_curve(figure: go.Figure, own: pl.DataFrame, name: str, style: Style) -> None:
    figure.add_scatter(
        x=own["x"].to_list(),
        y=own["value"].to_list(),
        mode="lines",
        showlegend=False,
        legendgroup=name,
        hovertemplate=f"{plain_text(name)}, there and back, %{{x}}: %{{y:.3g}}<extra></extra>",
        line={"color": style.colour, "dash": "dash", "width": 1.2},
    )


def _add_back_legend(figure: go.Figure) -> None:
    """One entry for the thin dashes of every encoder."""
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        name="there and back",
        hoverinfo="skip",
        line={"color": "#444444", "dash": "dash", "width": 1.2},
    )


def _add_null_band(figure: go.Figure, curve: pl.DataFrame, name: str) -> None:
    """From the lowest to the highest null of all encoders; a line where they agree."""
    null = (
        curve.drop_nulls(["null_low", "null_high"])
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
            name=name,
            hoverinfo="skip",
        )


def _add_threshold(figure: go.Figure, threshold: float) -> None:
    """A short mark at 90°: at other angles nothing is held against the threshold."""
    figure.add_scatter(
        x=[90 - _MARK_DEGREES, 90 + _MARK_DEGREES],
        y=[threshold, threshold],
        mode="lines",
        name=f"threshold at 90° ({threshold:g})",
        hoverinfo="skip",
        line={"color": "#222222", "width": 3},
    )


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


def _add_chance_lines(figure: go.Figure, label: pl.DataFrame, center: pl.DataFrame) -> None:
    line = {"color": "#a6a6a6", "width": 1, "dash": "dot"}
    if (of_label := label["null_high"].max()) is not None:
        figure.add_vline(of_label, line=line)
    if (of_center := center["null_high"].max()) is not None:
        figure.add_hline(of_center, line=line)


def _panels(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """Rows of the same figure together, those with a threshold first."""
    key = ["experiment", "metric", "stratum", "setting"]
    order = {name: i for i, name in enumerate(METRICS)}
    rank = pl.col("metric").replace_strict(order, default=len(order), return_dtype=pl.Int64())
    tell = {name: i for i, name in enumerate(experiment_order(rows["experiment"].to_list()))}
    told = pl.col("experiment").replace_strict(tell, default=0, return_dtype=pl.Int64())
    judged = pl.col("threshold").is_null().all().over(key)
    ordered = rows.sort(judged, told, rank, "stratum", "setting")
    return ordered.partition_by(key, maintain_order=True)


def _panel_title(row: Row, named: bool) -> str:
    title, setting = plain_title(row), setting_text(row["setting"])
    title = named_title(row, title) if named else title
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


def title_of(name: str) -> str:
    """Caption of a figure by its name.

    Examples
    --------
    >>> title_of("experiment:colour_swap")
    'Colour swap. Point: value; line: 95% interval; grey bar: if it knew nothing.'
    """
    return CAPTIONS.get(name, f"{humanise(name.split(':')[-1])}. {_POINTS_TITLE}.")


CAPTIONS: dict[str, str] = {
    "appearance:jitter": "Neighbours kept when haematoxylin and eosin grow stronger or weaker, with "
    "95% bands. Controls are grey and dashed.",
    "appearance:jpeg": "Neighbours kept under compression.",
    "appearance:blur": "Neighbours kept under blur.",
    "appearance:gamma": "Neighbours kept when the tile gets brighter or darker.",
    "calibration:doses": "What each check says of encoders that know the drawn tissue and a dose of "
    "what no encoder should follow. Blue circle: pass; vermilion cross: fail; grey diamond: open. "
    "Line: 95% interval; horizontal line: the check's threshold.",
    "findings": "Each check. " + _POINTS_TITLE + "; vertical line: threshold.",
    "robustness_index:curve": "Robustness index over the number of neighbours, with 95% bands. "
    "Grey dotted: the design null, the same for every encoder. Controls are grey and dashed.",
    "rotation:curve": "Neighbours kept at each angle, with 95% bands. Thin dashes in an encoder's "
    "colour: rotated there and back. Dark mark: the threshold, which holds at 90° alone. Controls "
    "are grey.",
    "retrieval:families": "Macro-F1 of each search, with 95% intervals. Controls are hatched. "
    "Dashed across a group: upper end of the null (largest of all encoders).",
    "retrieval:organs": "Macro-F1 in each organ. " + _POINTS_TITLE + ".",
    "linear_probe:scatter": "To the right: the tissue can be read. Upwards: the center can be "
    "read too. Dotted: chance.",
    "geometry:values": _POINTS_TITLE + ".",
    "design": "Slides (patients) for each label and center.",
}
