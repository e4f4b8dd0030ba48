"""One sentence of what an experiment found, made from its figures."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from pathfm_kedro.pipelines.report.text import (
    Row,
    count_of,
    null_text,
    short_value,
    threshold_text,
)
from pathfm_kedro.pipelines.report.words import Words, select

#: Encoders that a sentence can name with their figures.
_NAMED = 6
_SAYS = {
    "pass": "passes",
    "fail": "fails",
    "inconclusive": "open",
    "undecidable": "too small a cohort",
    "not_applicable": "not measured",
}


def result_sentence(rows: pl.DataFrame, role: Mapping[str, str], words: Words) -> str:
    """What the audited encoders' figures come to.

    Parameters
    ----------
    rows
        An experiment's rows of the measurements table, with their final verdicts.
    role
        Of each encoder.
    words
        Names of checks and the usual setting.
    """
    experiment = rows["experiment"][0]
    audited = rows.filter(pl.col("encoder").replace_strict(role, default="encoder") == "encoder")
    audited = words.with_counts(audited)
    if audited.is_empty():
        return "Asked of the instrument and its controls, not of the audited encoders."
    checks = audited.filter(pl.col("threshold").is_not_null())
    if checks.height:
        key = ["metric", "stratum", "setting"]
        ranked = checks.with_columns(_rank=words.metric_ranks(checks)).sort(
            "_rank", "metric", "stratum", "setting", "encoder"
        )
        parts = ranked.partition_by(key, maintain_order=True)
        return " ".join(_judged(part, words) for part in parts)
    metric = _main_metric(audited, experiment, words)
    if metric is None:
        return "No audited encoder was measured."
    own = select(audited, experiment, metric, _applicable(audited, experiment, metric, words))
    own = own.filter(stratum="all").with_columns(
        _rank=words.setting_ranks(own.filter(stratum="all"))
    )
    return _described(own.sort("_rank", "setting", "encoder"), words)


def _judged(part: pl.DataFrame, words: Words) -> str:
    """Encoders by verdict, each with its figure."""
    first = part.row(0, named=True)
    name = words.check_name(first)
    said: dict[str, list[str]] = {}
    for row in part.iter_rows(named=True):
        said.setdefault(row["verdict"], []).append(_named(row))
    answers = []
    for verdict in (v for v in _SAYS if v in said):
        named = said[verdict]
        who = ", ".join(named) if len(named) <= _NAMED else count_of(len(named), "encoder")
        answers.append(f"{_SAYS[verdict]}: {who}")
    return f"{_capital(name)} must be {threshold_text(first)}. {_capital('; '.join(answers))}."


def _described(own: pl.DataFrame, words: Words) -> str:
    """The main figure of each encoder, beside what it would be without knowledge."""
    known = own.drop_nulls("value")
    if known.height:
        known = known.filter(setting=known["setting"][0])
    if known.is_empty():
        reason = own["reason"].drop_nulls().to_list()
        return f"Not measured: {reason[0]}." if reason else "Not measured."
    rows = list(known.iter_rows(named=True))
    title = words.check_title(rows[0])
    if len(rows) > _NAMED:
        low, high = (min(rows, key=_value), max(rows, key=_value))
        figures = f"from {_named(low)} to {_named(high)}"
    else:
        figures = ", ".join(_named(row) for row in rows)
    null = null_text(rows[0])
    chance = "" if null == "n/a" else f" (if it knew nothing: {null})"
    return f"{title}: {figures}{chance}. Described, not judged."


def _main_metric(rows: pl.DataFrame, experiment: str, words: Words) -> str | None:
    """The figure a reader asks for first: the first key figure that was measured, else the first."""
    measured = set(rows.drop_nulls("value")["metric"])
    wording = words.of(experiment)
    named = [*(f.metric for f in wording.front), *(wording.key_figures or ()), *wording.metrics]
    candidates = [*named, *rows["metric"].unique().sort()]
    return next((m for m in candidates if m in measured), None)


def _applicable(
    rows: pl.DataFrame, experiment: str, metric: str, words: Words
) -> dict[str, object]:
    """The usual setting, as far as the figure has its entries."""
    front = next((f.at for f in words.of(experiment).front if f.metric == metric), {})
    wanted = {**words.usual(rows, experiment), **front}
    own = rows.filter(metric=metric)
    return {k: v for k, v in wanted.items() if select(own, experiment, metric, {k: v}).height}


def _named(row: Row) -> str:
    if row["subject"] != "encoder":
        return short_value(row)
    return row["encoder"] if row["value"] is None else f"{row['encoder']} {short_value(row)}"


def _value(row: Row) -> float:
    return float(row["value"])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
