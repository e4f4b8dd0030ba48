"""The first screen: one row an encoder, one column a check, grouped by the question it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.badges import Badge, badge_of
from pathfm_kedro.pipelines.report.text import Row, interval_text, short_value, threshold_text
from pathfm_kedro.pipelines.report.words import Words, select

#: Of a figure that nothing judges, and of a check that an encoder does not have.
DESCRIBED, ABSENT = "described", Badge("not_applicable", "–", "NOT MEASURED")
_CHECK = ["experiment", "metric", "stratum", "setting"]
#: Heading above experiments without a group.
_OTHER = "Other checks"


@dataclass(frozen=True)
class Column:
    """A check, or a figure that is described only: where it is explained and what it must be."""

    group: str
    title: str
    experiment: str
    must_be: str


@dataclass(frozen=True)
class Cell:
    """One encoder's answer: sign and word, the figure with its interval, why it is what it is."""

    badge: Badge
    figure: str = ""
    reason: str = ""


@dataclass(frozen=True)
class MatrixRow:
    """An encoder's answers, in the order of the columns."""

    encoder: str
    is_control: bool
    badge: Badge
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of encoders, then of controls; groups of columns with how many each spans."""

    groups: tuple[tuple[str, int], ...]
    columns: tuple[Column, ...]
    rows: tuple[MatrixRow, ...]


def matrix_of(
    findings: pl.DataFrame,
    measurements: pl.DataFrame,
    verdicts: pl.DataFrame,
    controls: pl.DataFrame,
    role: Mapping[str, str],
    words: Words,
) -> Matrix:
    """Every judged figure and what the words ask to see on the first screen beside them.

    Parameters
    ----------
    findings, measurements, verdicts, controls
        The tables.
    role
        Of each encoder.
    words
        Groups and names of checks; ``front`` names figures that are shown without being judged.
    """
    tables = _in_groups([*_checks(findings), *_described(findings, measurements, words)], words)
    columns = [_column(table.row(0, named=True), words) for table in tables]
    verdict = {row["encoder"]: row for row in verdicts.iter_rows(named=True)}
    ordered = sorted(verdict, key=lambda name: (role.get(name) == "control", name))
    rows = []
    for name in ordered:
        is_control = role.get(name) == "control"
        cells = tuple(_cell(table, name, is_control, controls, words) for table in tables)
        badge = badge_of(verdict[name], is_control, controls)
        rows.append(MatrixRow(name, is_control, badge, cells))
    groups = [(title, len(list(own))) for title, own in groupby(c.group for c in columns)]
    return Matrix(tuple(groups), tuple(columns), tuple(rows))


def _checks(findings: pl.DataFrame) -> list[pl.DataFrame]:
    """Findings check by check; settings that differ between encoders alone are one check."""
    tables = []
    for part in findings.partition_by("experiment", "metric", "stratum", maintain_order=True):
        once = not part["encoder"].is_duplicated().any()
        tables += [part] if once else part.partition_by("setting", maintain_order=True)
    return tables


def _described(
    findings: pl.DataFrame, measurements: pl.DataFrame, words: Words
) -> list[pl.DataFrame]:
    """Figures that the words put on the first screen, where nothing judges them."""
    judged = set(findings.select("experiment", "metric").iter_rows())
    tables = []
    for experiment in words.order(measurements["experiment"].to_list()):
        for figure in words.of(experiment).front:
            if (experiment, figure.metric) in judged:
                continue
            at = {**words.usual(measurements, experiment), **figure.at}
            rows = select(measurements, experiment, figure.metric, at).filter(stratum="all")
            rows = rows.unique("encoder", keep="first", maintain_order=True)
            tables += [rows] if rows.height else []
    return tables


def _in_groups(tables: list[pl.DataFrame], words: Words) -> list[pl.DataFrame]:
    """Columns in the order of groups, then of experiments."""
    groups = list(words.report.groups)
    order = words.order({table["experiment"][0] for table in tables})

    def place(table: pl.DataFrame) -> tuple[int, int]:
        experiment = table["experiment"][0]
        group = words.group(experiment)
        known = groups.index(group) if group in groups else len(groups)
        return known, order.index(experiment)

    return sorted(tables, key=place)


def _column(row: Row, words: Words) -> Column:
    known = words.report.groups.get(words.group(row["experiment"]))
    name = words.check_name(row)
    return Column(
        known.title if known else _OTHER,
        name[:1].upper() + name[1:],
        row["experiment"],
        threshold_text(row),
    )


def _cell(
    table: pl.DataFrame, encoder: str, is_control: bool, controls: pl.DataFrame, words: Words
) -> Cell:
    own = table.filter(encoder=encoder)
    if own.is_empty():
        return Cell(ABSENT, reason="this encoder was not measured here")
    row: dict[str, Any] = {**own.row(0, named=True)}
    row["counts"] = words.metric(row).counts
    if row["threshold"] is None:
        return Cell(
            Badge(DESCRIBED, "·", short_value(row)), interval_text(row), row["reason"] or ""
        )
    badge = badge_of(row, is_control, controls, row["experiment"])
    figure = "" if row["value"] is None else interval_text(row)
    return Cell(badge, figure, row["reason"] or "")
