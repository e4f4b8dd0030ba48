"""A contact sheet of the cohort: every slide small, with its tissue and the tiles chosen on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.engine import EngineSettings, map_in_order
from pathfm_kedro.slides.files import SlideError, SlideFiles
from pathfm_kedro.slides.readers import Pixels, reduce_by_area
from pathfm_kedro.slides.tissue import Overview, TissueSettings, read_overview, tissue_mask

_GAP, _HEADER, _CAPTION, _LINE = 10, 26, 36, 15
_FONT_SIZE = 12
_INK, _FAINT, _GREY = (25, 25, 25), (95, 95, 95), (214, 214, 214)
#: Distinguished by people who are colour-blind, and against pink and purple.
_TISSUE, _TILE, _MOSAIC = (0, 0, 0), (0, 84, 200), (255, 170, 0)
#: Frames smaller than this run into each other: such tiles are shown as dots.
_SMALLEST_FRAME = 7
#: Slides without use take at most this share of a sheet that cannot show all.
_UNUSABLE_SHARE = 0.25


@dataclass(frozen=True)
class _Cell:
    """What one cell shows: the picture, or the reason why there is none."""

    title: str
    subtitle: str
    picture: Pixels | None
    reason: str


def draw_contact_sheet(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    tiling: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> NDArray[np.uint8]:
    """Slides in the order of label, center and id; those without use as a grey cell with the reason.

    Where there are more than ``max_slides``, slides at even distances in that order are shown.

    Parameters
    ----------
    slides, tiles, tiling
        The tables.
    files
        The cohort's folder.
    parameters
        ``overview_mpp``, ``tissue`` and ``contact_sheet``: ``max_slides``, ``columns``,
        ``cell_pixels``.
    engine
        Where slides are read.

    Returns
    -------
    ndarray
        uint8 [height, width, 3].
    """
    sheet = parameters["contact_sheet"]
    cell, columns = int(sheet["cell_pixels"]), int(sheet["columns"])
    chosen = _chosen(_with_reasons(slides, tiling), int(sheet["max_slides"]))
    groups = {str(key): group for (key,), group in tiles.group_by("slide_id", maintain_order=True)}
    jobs = [(row, groups.get(row["slide_id"], tiles.clear())) for row in chosen.to_dicts()]
    outcomes = map_in_order(
        lambda job: _cell(*job, files, parameters),
        jobs,
        EngineSettings(**engine),
        "drawing the contact sheet",
    )
    cells = [o.result if o.reason is None else _failed(o.item[0], o.reason) for o in outcomes]
    header = (
        f"{len(cells)} of {slides.height} slides.  Black line: tissue.  Blue: tiles.  "
        "Orange: tiles of the mosaic.  Grey: no tiles, and why."
    )
    return _lay_out(cells, header, columns, cell)


def sheet_without_pixels(
    slides: pl.DataFrame, tiling: pl.DataFrame, parameters: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """A cell for each slide of a cohort that has features and no slides: how many tiles, or why none.

    Parameters
    ----------
    slides, tiling
        The tables.
    parameters
        ``contact_sheet``: ``max_slides``, ``columns``, ``cell_pixels``.
    """
    sheet = parameters["contact_sheet"]
    counts = dict(tiling.select("slide_id", "n_tiles").iter_rows())
    cells = [
        _Cell(
            row["slide_id"],
            _subtitle(row),
            None,
            row["reason"] or f"{counts.get(row['slide_id'], 0)} vectors; no slide, so no picture",
        )
        for row in _chosen(_with_reasons(slides, tiling), int(sheet["max_slides"])).to_dicts()
    ]
    header = f"{len(cells)} of {slides.height} slides, of which there are features alone."
    return _lay_out(cells, header, int(sheet["columns"]), int(sheet["cell_pixels"]))


def _with_reasons(slides: pl.DataFrame, tiling: pl.DataFrame) -> pl.DataFrame:
    """The slides with why there are no tiles, empty where there are; sorted."""
    reasons = tiling.select("slide_id", pl.col("reason").alias("_tiling"))
    return (
        slides.join(reasons, on="slide_id", how="left")
        .with_columns(
            pl.when(pl.col("status") == "usable")
            .then(pl.col("_tiling").fill_null("it was not tiled"))
            .otherwise(pl.col("reason"))
            .alias("reason")
        )
        .drop("_tiling")
        .sort("label", "center", "slide_id", nulls_last=True)
    )


def _chosen(slides: pl.DataFrame, limit: int) -> pl.DataFrame:
    """At most `limit` rows: those without use last."""
    useful, useless = slides.filter(reason=""), slides.filter(pl.col("reason") != "")
    room = max(round(limit * _UNUSABLE_SHARE), limit - useful.height)
    useless = _spread(useless, min(useless.height, room))
    return pl.concat([_spread(useful, limit - useless.height), useless])


def _spread(rows: pl.DataFrame, wanted: int) -> pl.DataFrame:
    """So many rows at even distances; all where there are no more."""
    if rows.height <= wanted:
        return rows
    at = np.round(np.linspace(0, rows.height - 1, wanted)).astype(np.int64)
    return rows.select(pl.all().gather(pl.Series(at)))


def _cell(
    row: Mapping[str, Any], tiles: pl.DataFrame, files: SlideFiles, parameters: Mapping[str, Any]
) -> _Cell:
    subtitle = _subtitle(row)
    if row["reason"]:
        return _Cell(row["slide_id"], subtitle, None, row["reason"])
    size = int(parameters["contact_sheet"]["cell_pixels"])
    overview_mpp = float(parameters["overview_mpp"])
    thumb_mpp = max(row["width"], row["height"]) * row["mpp"] / size
    with files.open(row["path"]) as reader:
        overview = read_overview(reader, row["mpp"], overview_mpp)
        # A small slide is shown larger than tissue is looked for on it.
        fine = (
            overview if thumb_mpp >= overview_mpp else read_overview(reader, row["mpp"], thumb_mpp)
        )
    tissue = TissueSettings.from_parameters(parameters.get("tissue", {}))
    mask = tissue_mask(overview.image, tissue, overview.scale * row["mpp"])
    picture = _picture(row, tiles, mask, fine, size)
    plural = "tile" if tiles.height == 1 else "tiles"
    return _Cell(row["slide_id"], f"{subtitle}, {tiles.height} {plural}", picture, "")


def _failed(row: Mapping[str, Any], reason: str) -> _Cell:
    plain = reason.removeprefix(f"{SlideError.__name__}: ").removeprefix("ValueError: ")
    return _Cell(row["slide_id"], _subtitle(row), None, plain)


def _subtitle(row: Mapping[str, Any]) -> str:
    return f"{row['label'] or 'no label'}, {row['center'] or 'no center'}"


def _picture(
    row: Mapping[str, Any],
    tiles: pl.DataFrame,
    tissue: NDArray[np.bool_],
    fine: Overview,
    size: int,
) -> Pixels:
    """The slide with its longer side `size` px, tissue outlined, tiles framed."""
    from PIL import Image, ImageDraw

    scale = max(row["width"], row["height"]) / size
    width, height = max(1, round(row["width"] / scale)), max(1, round(row["height"] / scale))
    picture = reduce_by_area(fine.image, width, height).copy()
    mask = Image.fromarray(tissue).resize((width, height))
    picture[_outline(np.asarray(mask))] = _TISSUE
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    side = tiles["field_um"][0] / row["mpp"] / scale if tiles.height else 0.0
    for x, y, in_mosaic in tiles.sort("in_mosaic").select("x", "y", "in_mosaic").iter_rows():
        _mark(draw, x / scale, y / scale, side, in_mosaic)
    return np.asarray(image)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tissue px that touch what is no tissue; the picture's edge is no outline."""
    from scipy import ndimage

    inside = ndimage.binary_erosion(mask, border_value=1)
    edge: NDArray[np.bool_] = mask & ~inside
    return edge


def _mark(draw: Any, x: float, y: float, side: float, in_mosaic: bool) -> None:
    colour = _MOSAIC if in_mosaic else _TILE
    if side < _SMALLEST_FRAME:
        reach = 2 if in_mosaic else 1
        middle_x, middle_y = round(x + side / 2), round(y + side / 2)
        box = (middle_x - reach, middle_y - reach, middle_x + reach, middle_y + reach)
        draw.rectangle(box, fill=colour)
        return
    box = (round(x) + 1, round(y) + 1, round(x + side) - 2, round(y + side) - 2)
    thick = 3 if side >= 4 * _SMALLEST_FRAME else 2
    draw.rectangle(box, outline=colour, width=thick if in_mosaic else 1)


def _lay_out(cells: list[_Cell], header: str, columns: int, size: int) -> Pixels:
    from PIL import Image, ImageDraw

    columns = max(1, min(columns, len(cells)))
    rows = -(-len(cells) // columns)
    font = _font()
    least = int(font.getlength(header)) + 2 * _GAP
    width = max(columns * (size + _GAP) + _GAP, least)
    height = _HEADER + rows * (size + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), header, _INK, font)
    for i, cell in enumerate(cells):
        left = _GAP + (i % columns) * (size + _GAP)
        top = _HEADER + _GAP + (i // columns) * (size + _CAPTION + _GAP)
        _draw_cell(sheet, draw, font, cell, left, top, size)
    return np.asarray(sheet)


def _draw_cell(
    sheet: Any, draw: Any, font: Any, cell: _Cell, left: int, top: int, size: int
) -> None:
    from PIL import Image

    box = (left, top, left + size - 1, top + size - 1)
    if cell.picture is None:
        draw.rectangle(box, fill=_GREY)
        lines = wrapped(cell.reason, size - 2 * _GAP, (size - 2 * _GAP) // _LINE, font.getlength)
        draw.multiline_text((left + _GAP, top + _GAP), "\n".join(lines), _INK, font, spacing=3)
    else:
        height, width = cell.picture.shape[:2]
        at = (left + (size - width) // 2, top + (size - height) // 2)
        sheet.paste(Image.fromarray(cell.picture), at)
        draw.rectangle(box, outline=_GREY)
    for line, (text, colour) in enumerate([(cell.title, _INK), (cell.subtitle, _FAINT)]):
        shown = wrapped(text, size, 1, font.getlength)
        draw.text((left, top + size + 3 + line * _LINE), "".join(shown), colour, font)


def wrapped(text: str, width: float, lines: int, length: Any) -> list[str]:
    """Text in at most so many lines of a width; what does not fit ends in an ellipsis.

    Parameters
    ----------
    text
        Words; a word wider than a line is broken.
    width
        Largest length of a line.
    lines
        Largest number of lines.
    length
        Gives the length of a text.

    Examples
    --------
    >>> wrapped("no tissue was found", 10, 2, len)
    ['no tissue', 'was found']
    >>> wrapped("no tissue was found here", 10, 2, len)
    ['no tissue', 'was found…']
    """
    found = [""]
    for word in " ".join(text.split()).split(" "):
        joined = f"{found[-1]} {word}".strip()
        if length(joined) <= width:
            found[-1] = joined
            continue
        if found[-1]:
            found.append("")
        for letter in word:
            if length(found[-1] + letter) > width and found[-1]:
                found.append("")
            found[-1] += letter
    if len(found) <= lines:
        return found
    last = found[lines - 1]
    while last and length(f"{last}…") > width:
        last = last[:-1]
    return [*found[: lines - 1], f"{last}…"]


def _font() -> Any:
    """Pillow's own font, laid out by Pillow alone: a text library of the machine would change bytes."""
    from PIL import ImageFont

    font: Any = ImageFont.load_default(_FONT_SIZE)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)
