"""Sections of the report: an experiment's question, plots and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.badges import Badge, badge_of, measured_text
from pathfm_kedro.pipelines.report.results import result_sentence
from pathfm_kedro.pipelines.report.summary import NO_WIDTH_NOTE
from pathfm_kedro.pipelines.report.text import (
    Row,
    count_of,
    has_width,
    marked_interval,
    null_text,
    threshold_text,
    value_text,
)
from pathfm_kedro.pipelines.report.words import NoteWords, Words, select, settings_of
from pathfm_kedro.statistics.readable_numbers import percent

#: Rows of an experiment shown at once; more of them hide the ones that matter.
MANY_ROWS = 60
#: Rows behind "all figures": beyond this a page gets slow on a phone; the tables hold the rest.
MAX_ROWS = 600
_GROUP = ["metric", "stratum", "setting"]


@dataclass(frozen=True)
class TableRow:
    """One encoder's figure as it is shown; `measured` is a control's verdict, in small print."""

    encoder: str
    is_control: bool
    value: str
    null: str
    rests_on: str
    badge: Badge | None
    measured: str
    reason: str


@dataclass(frozen=True)
class TableGroup:
    """One figure for all encoders; `must_be` is empty where it has no threshold."""

    title: str
    must_be: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Plot:
    """A figure on the page: the name of its box, what it shows, its data as JSON and its height."""

    box: str
    caption: str
    data: str
    height: int


@dataclass(frozen=True)
class Section:
    """An experiment on the page; `name` is its title up to the question."""

    experiment: str
    anchor: str
    group_anchor: str
    group: str
    name: str
    question: str
    result: str
    meaning: str
    published: str
    null: str
    plot: tuple[Plot, ...]
    more_plots: tuple[Plot, ...]
    folded: str
    groups: tuple[TableGroup, ...]
    more: tuple[TableGroup, ...]
    left_out: int
    notes: tuple[str, ...]
    footnote: str


def sections_of(
    measurements: pl.DataFrame,
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    plots: Mapping[str, tuple[Plot, ...]],
    role: Mapping[str, str],
    words: Words,
) -> list[Section]:
    """One section for each experiment that was measured, by group and in the order of the words.

    The first plot of an experiment is shown beside its answer, the others are folded away; all of them
    where its words say so (`folded`).

    Parameters
    ----------
    measurements, findings, controls
        The tables.
    plots
        Of each experiment.
    role
        Of each encoder.
    words
        How experiments are described.
    """
    sections = []
    joined = words.with_counts(with_final_verdicts(measurements, findings))
    places = list(dict.fromkeys(words.group(x) for x in _ordered(measurements, words)))
    for i, experiment in enumerate(_ordered(measurements, words), 1):
        wording = words.of(experiment)
        group = words.report.groups.get(wording.group)
        name, _, question = wording.title.partition(": ")
        drawn = plots.get(experiment, ())
        n_shown = 0 if wording.folded else 1
        rows = joined.filter(experiment=experiment)
        main, rest = _split(rows, experiment, words.usual(measurements, experiment), words)
        shown = pl.concat([main, rest])
        sections.append(
            Section(
                experiment,
                f"experiment-{i}",
                f"group-{places.index(wording.group) + 1}",
                group.title if group else "",
                name,
                question,
                result_sentence(rows, role, words),
                wording.meaning,
                wording.published,
                wording.null_title,
                drawn[:n_shown],
                drawn[n_shown:],
                wording.folded,
                _groups(main, role, controls, words),
                _groups(rest, role, controls, words),
                rows.height - shown.height,
                _notes(joined.filter(experiment=experiment), experiment, role, words),
                footnote(shown.iter_rows(named=True)),
            )
        )
    return sections


def _ordered(measurements: pl.DataFrame, words: Words) -> list[str]:
    """Experiments group by group; those without one come last."""
    groups = list(words.report.groups)
    order = words.order(measurements["experiment"].to_list())
    return sorted(
        order,
        key=lambda x: groups.index(words.group(x)) if words.group(x) in groups else len(groups),
    )


def with_final_verdicts(measurements: pl.DataFrame, findings: pl.DataFrame) -> pl.DataFrame:
    """Measurements with the verdict and reason that correction and controls left them."""
    key = ["experiment", "encoder", "metric", "stratum", "setting"]
    judged = findings.select(*key, "q_value", pl.col("verdict", "reason").name.suffix("_"))
    final = pl.col("verdict_").is_not_null()
    return measurements.join(judged, on=key, how="left", maintain_order="left").with_columns(
        pl.coalesce("verdict_", "verdict").alias("verdict"),
        pl.when(final).then("reason_").otherwise("reason").alias("reason"),
    )


def _split(
    rows: pl.DataFrame, experiment: str, usual: Mapping[str, Any], words: Words
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to show at once and rows to fold away, at most :data:`MAX_ROWS` of these.

    Shown are the checks and the figures that explain them; of an experiment that the report does
    not know, the figures that an encoder has in few settings. Folded rows that depart furthest
    from the usual setting come last and are left out first.
    """
    wording = words.of(experiment)
    rows = rows.filter(~pl.col("metric").is_in(list(wording.hidden)))
    rows = _in_reading_order(rows, usual, words)
    if rows.height <= MANY_ROWS:
        return rows.drop("_usual"), rows.clear().drop("_usual")
    judged = pl.col("threshold").is_not_null()
    if wording.key_figures is not None:
        wanted = pl.col("metric").is_in(list(wording.key_figures)) & pl.col("_usual")
        wanted &= ~pl.col("stratum").str.contains("^(label|center)=")
    else:
        wanted = pl.len().over("encoder", "metric") <= 3
    shown = rows.with_columns((judged | wanted).alias("_shown"))
    main = shown.filter("_shown").drop("_shown", "_usual")
    rest = shown.filter(~pl.col("_shown")).drop("_shown", "_usual")
    return main, _whole_groups(rest)


def _in_reading_order(rows: pl.DataFrame, usual: Mapping[str, Any], words: Words) -> pl.DataFrame:
    """Checks first, then by distance from the usual setting; k and angles as numbers."""
    parsed = settings_of(rows)
    known: dict[str, set[str]] = {}
    for metric, entry in zip(rows["metric"], parsed, strict=True):
        known.setdefault(metric, set()).update(entry)
    # A figure that no setting of this kind applies to is at its usual one.
    departs = [
        sum(entry.get(key) != wanted for key, wanted in usual.items() if key in known[metric])
        for metric, entry in zip(rows["metric"], parsed, strict=True)
    ]
    numbers = {
        f"_{key}": pl.Series(
            f"_{key}",
            [v if isinstance(v := entry.get(key), int | float) else None for entry in parsed],
            dtype=pl.Float64,
            strict=False,
        )
        for key in ("k", "angle")
    }
    others = pl.col("setting").str.replace_all(r'"(k|angle)": [0-9.]+', "")
    return (
        rows.with_columns(
            pl.Series("_usual", [count == 0 for count in departs], dtype=pl.Boolean()),
            pl.Series("_departs", departs, dtype=pl.Int64()),
            words.metric_ranks(rows).alias("_rank"),
            *numbers.values(),
        )
        .sort(
            pl.col("threshold").is_null(),
            "_departs",
            "_rank",
            "metric",
            pl.col("stratum") != "all",
            "stratum",
            others,
            "_k",
            "_angle",
            "setting",
            "encoder",
        )
        .drop("_departs", "_rank", *numbers)
    )


def _whole_groups(rows: pl.DataFrame) -> pl.DataFrame:
    """The first groups that together stay within :data:`MAX_ROWS`."""
    kept, height = [rows.clear()], 0
    for part in rows.partition_by(_GROUP, maintain_order=True):
        height += part.height
        if height > MAX_ROWS:
            break
        kept.append(part)
    return pl.concat(kept)


def footnote(rows: Iterable[Row]) -> str:
    """What is said below a table that holds an interval without width."""
    return "" if all(has_width(row) for row in rows) else f"† {NO_WIDTH_NOTE}"


def _notes(
    rows: pl.DataFrame, experiment: str, role: Mapping[str, str], words: Words
) -> tuple[str, ...]:
    """What a reader must know to take an experiment's figures for what they are."""
    audited = [name for name in sorted(role) if role[name] == "encoder"]
    usual = words.usual(rows, experiment)
    notes = (
        _note(rows, experiment, note, audited, usual, words) for note in words.of(experiment).notes
    )
    return tuple(text for text in notes if text)


def _note(
    rows: pl.DataFrame,
    experiment: str,
    note: NoteWords,
    audited: Sequence[str],
    usual: Mapping[str, Any],
    words: Words,
) -> str:
    """The note with the audited encoders' figures; empty where there are none."""
    at = {k: v for k, v in {**usual, **note.at}.items() if k not in (note.over, note.tell)}
    own = select(rows, experiment, note.metric, at).filter(
        pl.col("encoder").is_in(audited), stratum="all"
    )
    own = own.drop_nulls("value")
    if own.is_empty():
        return ""
    listed = {}
    for name in audited:
        mine = own.filter(encoder=name)
        entries = sorted(
            zip(settings_of(mine), mine.iter_rows(named=True), strict=True),
            key=lambda pair: pair[0].get(note.over) or 0,
        )
        values = [_note_value(setting, row, note, words) for setting, row in entries]
        if values:
            listed[name] = ", ".join(values)
    # What is one for the cohort is said once.
    one = note.tell != "value" and len(set(listed.values())) == 1
    parts = (
        list(listed.values())[:1] if one else [f"{name} {text}" for name, text in listed.items()]
    )
    return note.text.format(values="; ".join(parts), n=f"{int(own['n'].to_numpy().max()):,}")


def _note_value(setting: Mapping[str, Any], row: Row, note: NoteWords, words: Words) -> str:
    if note.tell != "value":
        return str(setting.get(note.tell, "n/a"))
    over = words.setting_text(row["experiment"], {note.over: setting.get(note.over)})
    where = f" at {over.removeprefix('at ')}" if note.over and over else ""
    chance = "" if row["null_low"] is None else f" (chance {null_text(row)})"
    return f"{value_text(row)}{where}{chance}"


def _groups(
    rows: pl.DataFrame, role: Mapping[str, str], controls: pl.DataFrame, words: Words
) -> tuple[TableGroup, ...]:
    groups = []
    for part in rows.partition_by(_GROUP, maintain_order=True):
        entries = [_table_row(row, role, controls, words) for row in part.iter_rows(named=True)]
        entries.sort(key=lambda entry: (entry.is_control, entry.encoder))
        first = part.row(0, named=True)
        groups.append(TableGroup(words.check_title(first), threshold_text(first), tuple(entries)))
    return tuple(groups)


def _table_row(row: Row, role: Mapping[str, str], controls: pl.DataFrame, words: Words) -> TableRow:
    judged = row["threshold"] is not None
    is_control = role[row["encoder"]] == "control"
    return TableRow(
        row["encoder"],
        is_control,
        marked_interval(row),
        _null(row, words),
        _rests_on(row, words),
        badge_of(row, is_control, controls, row["experiment"]) if judged else None,
        measured_text(row) if judged and is_control else "",
        _reason(row, judged),
    )


def _reason(row: Row, judged: bool) -> str:
    """Why a figure is undefined or undecided; else how sure a verdict is, where that is known."""
    reason = str(row["reason"] or "")
    if not judged:
        return reason if row["value"] is None else ""
    if not reason and row["q_value"] is not None and has_width(row):
        return _q_text(row["q_value"])
    return reason


def _null(row: Row, words: Words) -> str:
    """The null, with what it is where the column's head would mislead."""
    null, shown = null_text(row), words.of(row["experiment"]).shown_null
    if row["metric"] not in shown or row["null_low"] is None:
        return null
    same = row["null_low"] == row["null_high"]
    return f"chance {null}" if same else shown[row["metric"]] + null


def _rests_on(row: Row, words: Words) -> str:
    """What a figure was counted over."""
    unit = words.of(row["experiment"]).unit
    text = f"{row['n']:,} {unit}"
    # What is measured of a machine rests on no patient.
    if row["n_patients"] or not row["n"]:
        text += f" of {count_of(row['n_patients'], 'patient')}"
    paired = str(json.loads(row["setting"]).get("design", "")).startswith("paired")
    return f"{text}, counted once per pair" if paired else text


def _q_text(q_value: float) -> str:
    """Digits of a tiny rate would claim what a normal approximation cannot know."""
    return f"false discovery rate {percent(q_value)}"
