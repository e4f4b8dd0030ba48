"""What the report's figures share: one colour for an encoder everywhere, axes, curves, short names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, count
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.controls import roles
from pathfm_kedro.pipelines.report.text import interval_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Okabe and Ito's palette: distinguished with any common colour vision deficiency.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: A second sign beside the colour, for print in grey and for more encoders than colours.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "bowtie")
GREYS = ("#6b6b6b", "#8c8c8c", "#4d4d4d")
DASHES = ("dash", "dot", "dashdot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
#: Characters of a name that fit beside a panel, and lines that it may take.
_SHORT = 20
_LINES = 3
AXIS: dict[str, Any] = {
    "gridcolor": "#ececec",
    "linecolor": "#bbbbbb",
    "showline": True,
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "#bbbbbb",
    "automargin": True,
    "fixedrange": True,
}


@dataclass(frozen=True)
class Style:
    """How an encoder is plotted in every figure."""

    colour: str
    dash: str
    symbol: str
    is_control: bool
    #: Its name in lines, unlike that of every other encoder.
    label: str = ""


def encoder_styles(names: Sequence[str], provenance: Mapping[str, Any]) -> dict[str, Style]:
    """A style for each encoder by its place in the alphabet, real encoders before controls.

    Examples
    --------
    >>> cards = {"encoders": {"noise": {"role": "control"}}}
    >>> styles = encoder_styles(["uni", "noise", "conch"], cards)
    >>> list(styles), styles["uni"].colour, styles["noise"].dash
    (['conch', 'uni', 'noise'], '#D55E00', 'dash')
    """
    role = roles(provenance, sorted(set(names)))
    label = short_names(list(role))
    real = [name for name in role if role[name] != "control"]
    controls = [name for name in role if role[name] == "control"]
    styles = {
        name: Style(
            COLOURS[i % len(COLOURS)], "solid", SYMBOLS[i % len(SYMBOLS)], False, label[name]
        )
        for i, name in enumerate(real)
    }
    for i, name in enumerate(controls):
        j = i % len(GREYS)
        symbol = f"{SYMBOLS[i % len(SYMBOLS)]}-open"
        styles[name] = Style(GREYS[j], DASHES[j], symbol, True, label[name])
    return styles


def by_encoder(
    rows: pl.DataFrame, styles: Mapping[str, Style], sort: str | None = None
) -> list[tuple[str, pl.DataFrame]]:
    """Each encoder's rows, in the order of the styles; encoders without rows are left out."""
    parts = [(name, rows.filter(encoder=name)) for name in styles]
    return [(name, own.sort(sort) if sort else own) for name, own in parts if own.height]


def plain_text(name: str | None) -> str:
    """A name from the tables as text: Plotly reads markup in every label."""
    return escape(name or "", quote=False)


def short_names(names: Sequence[str], width: int = _SHORT) -> dict[str, str]:
    """A text for each name on at most :data:`_LINES` lines, no two alike, markup taken out.

    A name that fits is whole. One that does not keeps both ends; a number distinguishes what is still
    alike.

    Examples
    --------
    >>> list(short_names(["uni", "efficientnet_lite0", "efficientnet_lite0_centred"], 12).values())
    ['uni', 'efficientnet<br>_lite0', 'efficientnet<br>_lite0_<br>centred']
    """
    room = width * _LINES
    cut = {name: _cut(name, room) for name in names}
    shown: dict[str, str] = {}
    for name, text in cut.items():
        numbered = (f"{text[: room - len(end)]}{end}" for end in (f"…{i}" for i in count(2)))
        unused = (entry for entry in chain([text], numbered) if entry not in shown.values())
        shown[name] = next(unused)
    return {name: "<br>".join(map(plain_text, _lines(text, width))) for name, text in shown.items()}


def _cut(name: str, room: int) -> str:
    """A name's beginning and end."""
    if len(name) <= room:
        return name
    tail = room // 2
    return f"{name[: room - 1 - tail]}…{name[len(name) - tail :]}"


def _lines(text: str, width: int) -> list[str]:
    """Text in lines of at most `width` characters, broken behind ``_``, ``-`` or a space if it fits."""
    lines: list[str] = []
    while len(text) > width:
        ends = [i for i in range(1, width + 1) if text[i - 1] in "_- "]
        left = _LINES - len(lines) - 1
        fitting = [i for i in ends if len(text) - i <= left * width]
        end = fitting[-1] if fitting else width
        lines.append(text[:end])
        text = text[end:]
    return [*lines, text]


def name_ticks(short: Mapping[str, str]) -> dict[str, Any]:
    """Ticks of an axis whose categories are whole names: shortened, two could become one."""
    return {
        "tickmode": "array",
        "tickvals": [plain_text(name) for name in short],
        "ticktext": list(short.values()),
    }


def wrapped(text: str, width: int) -> str:
    """Text as lines of at most `width` characters: Plotly breaks none itself.

    Examples
    --------
    >>> wrapped("all labels & centers", 10)
    'all labels<br>&amp; centers'
    """
    return "<br>".join(escape(line, quote=False) for line in wrap(text, width))


def layout_of(height: int) -> dict[str, Any]:
    """Layout of a figure of some height, in pixels."""
    return {
        "template": "none",
        "height": height,
        "autosize": True,
        "font": {"family": FONT, "size": 12, "color": "#222222"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 12, "r": 16, "t": 12, "b": 56},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
    }


def figure_of(height: int) -> go.Figure:
    """An empty figure as the report draws them."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=layout_of(height))
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    return figure


def title_axes(figure: go.Figure, x: str, y: str) -> None:
    """Name both axes."""
    figure.update_xaxes(title_text=escape(x, quote=False))
    figure.update_yaxes(title_text=escape(y, quote=False))


def error_bars(rows: pl.DataFrame, colour: str) -> dict[str, Any]:
    """Distances from the value to both ends of its interval; none where an end is missing."""
    above = (rows["ci_high"] - rows["value"]).clip(lower_bound=0).to_list()
    below = (rows["value"] - rows["ci_low"]).clip(lower_bound=0).to_list()
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": colour,
        "thickness": 1.6,
        "width": 4,
    }


def _translucent(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def add_curve(figure: go.Figure, own: pl.DataFrame, name: str, style: Style) -> None:
    """One encoder's curve with the band of its intervals."""
    band = own.drop_nulls(["ci_low", "ci_high"])
    if band.height and not style.is_control:
        figure.add_scatter(
            x=[*band["x"], *band["x"][::-1]],
            y=[*band["ci_high"], *band["ci_low"][::-1]],
            fill="toself",
            fillcolor=_translucent(style.colour, 0.14),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
    figure.add_scatter(
        x=own["x"].to_list(),
        y=own["value"].to_list(),
        mode="lines+markers",
        name=style.label,
        legendgroup=name,
        line={"color": style.colour, "dash": style.dash, "width": 2},
        marker={"symbol": style.symbol, "size": 6},
        text=[interval_text(row) for row in own.iter_rows(named=True)],
        hovertemplate=f"{plain_text(name)}, %{{x}}: %{{text}}<extra></extra>",
    )
