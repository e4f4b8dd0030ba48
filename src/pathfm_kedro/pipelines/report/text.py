"""Figures and names as text: what every part of the report writes the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pathfm_kedro.statistics.readable_numbers import number

Row = Mapping[str, Any]

#: Folders of an absolute path, POSIX or Windows; only what names the file itself stays.
_FOLDERS = re.compile(
    r"""(?:(?<=[\s'"(=\[,:;])|^)(?:file://)?(?:[A-Za-z]:)?[/\\](?:[^\s'"/\\]+[/\\])+"""
)
#: Ends of an interval closer than this differ by rounding alone.
_NO_WIDTH = 1e-9
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def value_text(row: Row) -> str:
    """A row's value; whole where the row's ``counts`` says that it counts things.

    Examples
    --------
    >>> value_text({"counts": True, "value": 7.0})
    '7'
    """
    return _beside(row, row["value"], ())


def short_value(row: Row) -> str:
    """A row's value where room is short: large numbers in millions and billions.

    Examples
    --------
    >>> short_value({"value": 3.9e8})
    '390 million'
    """
    value = row["value"]
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value is not None and abs(value) >= size:
            return f"{number(value / size)} {name}"
    return value_text(row)


def interval_text(row: Row) -> str:
    """Value with its 95% interval.

    Examples
    --------
    >>> interval_text({"value": 0.5, "ci_low": 0.4, "ci_high": 0.61})
    '0.50 [0.40, 0.61]'
    >>> interval_text({"value": -0.2, "ci_low": -0.33, "ci_high": 6.03e-6})
    '−0.20 [−0.33, 0.00]'
    >>> interval_text({"value": -0.0084, "ci_low": -0.022, "ci_high": 0.0067})
    '−0.008 [−0.022, 0.007]'
    """
    value, ends = row["value"], (row["ci_low"], row["ci_high"])
    # What is counted comes out the same in every resampled cohort.
    counted = row.get("counts") and ends[0] == ends[1]
    if value is None or None in ends or counted:
        return value_text(row)
    low, high = (_beside(row, end, (value, *ends)) for end in ends)
    return f"{_beside(row, value, ends)} [{low}, {high}]"


def has_width(row: Row) -> bool:
    """Whether the interval spans anything; True where there is none.

    Examples
    --------
    >>> has_width({"ci_low": 1.0, "ci_high": 1.0})
    False
    """
    low, high = row["ci_low"], row["ci_high"]
    return (
        bool(row.get("counts"))
        or low is None
        or high is None
        or abs(high - low) > _NO_WIDTH * max(1.0, abs(high))
    )


def null_text(row: Row) -> str:
    """The null as a number or a range; n/a where there is none.

    Examples
    --------
    >>> null_text({"null_low": 0.2, "null_high": 0.25})
    '0.20 to 0.25'
    """
    low, high = row["null_low"], row["null_high"]
    if low is None or high is None or number(low) == number(high):
        return _beside(row, low if low is not None else high, ())
    return f"{_beside(row, low, (high,))} to {_beside(row, high, (low,))}"


def _beside(row: Row, value: float | None, others: Sequence[float]) -> str:
    """A number as it is read beside others: all with as many decimals as the largest of them.

    One that differs from its threshold keeps the digit that shows it.
    """
    if value is None:
        return number(value)
    if row.get("counts"):
        return f"{value:,.0f}".replace("-", "−")
    text = _with_decimals(value, max(map(abs, (value, *others))))
    threshold = row.get("threshold")
    if threshold is None or value == threshold or text != _with_decimals(threshold, 1.0):
        return text
    return number(value, 4 if number(value) == number(threshold) else 2)


def _with_decimals(value: float, largest: float) -> str:
    """A number with the decimals that :func:`number` gives the largest beside it.

    Examples
    --------
    >>> [_with_decimals(-0.0012, largest) for largest in (0.0, 0.5, 0.034, 41.0)]
    ['−0.0012', '0.00', '−0.001', '−0.0012']
    """
    if value == 0 == largest:
        return "0.00"
    # Large numbers stand for themselves: what is small beside them may still be of interest.
    if not 0 < largest < 10:
        return number(value)
    shown = number(largest)
    if "e" in shown:
        return number(value)
    text = f"{value:.{len(shown.partition('.')[2])}f}"
    return text.removeprefix("-" if float(text) == 0 else "").replace("-", "−")


def threshold_text(row: Row) -> str:
    """What a trustworthy encoder's figure must be; the threshold as it was written.

    Examples
    --------
    >>> threshold_text({"threshold": 0.8, "direction": "above"})
    'above 0.8'
    """
    if row["threshold"] is None:
        return ""
    threshold = f"{row['threshold']:.10g}".replace("-", "−")
    return f"{row['direction'] or ''} {threshold}".strip()


def without_folders(text: str) -> str:
    """Text in which absolute paths keep only the file's name: a report is read elsewhere.

    Examples
    --------
    >>> without_folders("cannot open '/data/site a/x.svs', tissue and/or pen")
    "cannot open '…/site a/x.svs', tissue and/or pen"
    >>> without_folders("cannot open /data/x.svs")
    'cannot open …/x.svs'
    """
    return _FOLDERS.sub("…/", text)


def safe_cells(table: pl.DataFrame) -> pl.DataFrame:
    """A table whose text no spreadsheet runs as a formula: such cells get a leading apostrophe.

    Parameters
    ----------
    table
        Any table; only text columns are touched.

    Examples
    --------
    >>> safe_cells(pl.DataFrame({"label": ["=1+1", "gland"], "value": [-1, 2]})).rows()
    [("'=1+1", -1), ('gland', 2)]
    """
    text = pl.col(pl.String())
    risky = text.str.contains(_FORMULA.pattern)
    return table.with_columns(pl.when(risky).then(pl.lit("'") + text).otherwise(text).name.keep())


def marked_interval(row: Row) -> str:
    """Value and interval, marked where the interval has no width."""
    return interval_text(row) + ("" if has_width(row) else " †")


def humanise(name: str) -> str:
    """A name from the tables as words.

    Examples
    --------
    >>> humanise("colour_swap")
    'Colour swap'
    """
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def count_of(n: int, word: str) -> str:
    """A count with its noun.

    Examples
    --------
    >>> count_of(1, "slide"), count_of(1200, "slide")
    ('1 slide', '1,200 slides')
    """
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def markdown_text(text: object) -> str:
    """Text that stays text in a Markdown table: no markup, no link, no new cell."""
    flat = " ".join(without_folders(str(text)).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", flat).replace("](", "]\\(")
