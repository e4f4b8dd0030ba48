"""Slides that show the tissue of another slide again: the manifest's column ``same_tissue_as``.

The cell names the slide whose tissue is shown (the *reference*); all slides of one tissue name the same
one. Where the registration is known, further columns give it, as
:class:`~pathfm_kedro.slides.registration.Registration` takes it: ``offset_x`` and ``offset_y`` (level-0
px of the reference), and where they are not 0, no and the ratio of the resolutions, ``rotation_deg``,
``flip`` and ``scale``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.ingest.spelling import stands_for_nothing

#: The column, and those of a registration that is known.
REPEAT_COLUMNS = ("same_tissue_as", "offset_x", "offset_y", "rotation_deg", "flip", "scale")
#: Status of a slide that shows the tissue of another again: it counts in the comparison with that one
#: alone.
REPEAT = "repeat"
_NUMBERS = ("offset_x", "offset_y", "rotation_deg", "scale")
_SCHEMA: dict[str, pl.DataType] = {
    "same_tissue_as": pl.String(),
    **dict.fromkeys(_NUMBERS, pl.Float64()),
    "flip": pl.Boolean(),
}
_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
#: What a slide and its reference must share.
_SHARED = {"patient_id": "patient", "label": "label"}


def checked_repeats(numbered: pl.DataFrame, row: str, reason: str) -> pl.DataFrame:
    """Read the columns of repeated tissue and say what is wrong with a row.

    Parameters
    ----------
    numbered
        The manifest as text; nothing changes without the column ``same_tissue_as``.
    row
        Column of row numbers.
    reason
        Column that is added: what is wrong with the row and the mend, or an empty text.

    Returns
    -------
    DataFrame
        With same_tissue_as (null for none), and offset_x, offset_y, rotation_deg, scale (float), flip
        (Boolean), null where they are not given.
    """
    column = REPEAT_COLUMNS[0]
    if column not in numbered.columns:
        return numbered.with_columns(pl.lit("").alias(reason))
    rows = numbered.to_dicts()
    listed = {each["slide_id"]: each for each in rows}
    read = [_read(each, listed, row) for each in rows]
    kept = numbered.drop([name for name in REPEAT_COLUMNS if name in numbered.columns])
    found = pl.DataFrame(read, schema={**_SCHEMA, reason: pl.String()}, orient="row")
    return pl.concat([kept, found], how="horizontal")


def marked_repeats(slides: pl.DataFrame) -> pl.DataFrame:
    """Give usable slides that show the tissue of another again a status of their own.

    Examples
    --------
    >>> rows = [{"status": "usable", "reason": "", "same_tissue_as": name} for name in (None, "s1")]
    >>> marked_repeats(pl.DataFrame(rows))["status"].to_list()
    ['usable', 'repeat']
    """
    column = REPEAT_COLUMNS[0]
    if column not in slides.columns:
        return slides
    again = (pl.col("status") == "usable") & pl.col(column).is_not_null()
    why = pl.format(
        "shows the tissue of {} again: counts in the experiment same_tissue alone", column
    )
    return slides.with_columns(
        status=pl.when(again).then(pl.lit(REPEAT)).otherwise("status"),
        reason=pl.when(again).then(why).otherwise("reason"),
    )


def _read(given: Mapping[str, Any], listed: Mapping[str, Mapping[str, Any]], row: str) -> list[Any]:
    """Cells of one row in the order of the schema, and what is wrong with it."""
    reference = _text(given, "same_tissue_as")
    if reference is None:
        return [None] * len(_SCHEMA) + [""]
    problem = _of_reference(given, reference, listed)
    known: dict[str, Any] = dict.fromkeys(_SCHEMA)
    known["same_tissue_as"] = reference
    for name in _NUMBERS:
        text = _text(given, name)
        known[name] = _number(text)
        if text is not None and (known[name] is None or (name == "scale" and known[name] <= 0)):
            what = "a positive number" if name == "scale" else "a number"
            problem = problem or f"{name} '{text}' is not {what}: correct it, or leave it empty"
    flip = _text(given, "flip")
    known["flip"] = None if flip is None else _YES_NO.get(flip.casefold())
    if flip is not None and known["flip"] is None:
        problem = (
            problem or f"flip '{flip}' is neither true nor false: write one, or leave it empty"
        )
    problem = problem or _half_registered(known)
    return [*known.values(), f"row {given[row]}: {problem}" if problem else ""]


def _first_reference(name: str, listed: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The slide at which references end; None where they go round."""
    seen = {name}
    while name in listed and (further := _text(listed[name], "same_tissue_as")) is not None:
        if further in seen:
            return None
        seen.add(further)
        name = further
    return name


def _of_reference(
    given: Mapping[str, Any], name: str, listed: Mapping[str, Mapping[str, Any]]
) -> str:
    """What is wrong with the slide that a row names."""
    if name == given["slide_id"]:
        return (
            f"same_tissue_as '{name}' is the slide itself: leave it empty for the reference slide"
        )
    first = _first_reference(name, listed)
    if first is None:
        return (
            f"same_tissue_as '{name}' leads back to where it began, so that no slide is the reference: "
            "leave it empty in the row of one, which all others of this tissue name"
        )
    if first not in listed:
        return (
            f"same_tissue_as '{first}' is no slide_id of this manifest: correct it, list that slide, "
            "or leave the cell empty"
        )
    if first != name:
        return (
            f"same_tissue_as '{name}' shows the tissue of '{first}' itself: all slides of one tissue "
            f"name the same reference; write '{first}' here too"
        )
    other = listed[name]
    for column, called in _SHARED.items():
        if given.get(column) != other.get(column):
            return (
                f"same_tissue_as '{name}' has the {called} '{other.get(column)}' and this row "
                f"'{given.get(column)}', and one tissue has one {called}: correct either, or leave "
                "same_tissue_as empty"
            )
    return ""


def _half_registered(known: Mapping[str, Any]) -> str:
    given = [name for name in REPEAT_COLUMNS[1:] if known[name] is not None]
    missing = [name for name in ("offset_x", "offset_y") if known[name] is None]
    if not given or not missing:
        return ""
    return (
        f"{', '.join(given)} without {' and '.join(missing)} is no whole registration: fill in both "
        "offsets, or leave all empty and it is looked for"
    )


def _text(given: Mapping[str, Any], name: str) -> str | None:
    cell = given.get(name)
    return None if cell is None or stands_for_nothing(cell) else str(cell)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
