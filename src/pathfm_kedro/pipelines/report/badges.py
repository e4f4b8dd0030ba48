"""Verdicts and controls as a reader sees them: a word and a sign, never colour alone."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pathfm_kedro.pipelines.report.text import Row

VERDICT_SIGNS = {
    "pass": "✓",
    "fail": "✕",
    "inconclusive": "?",
    "undecidable": "…",
    "not_applicable": "–",
}
VERDICT_WORDS = {
    "pass": "PASS",
    "fail": "FAIL",
    "inconclusive": "OPEN",
    "undecidable": "TOO SMALL",
    "not_applicable": "NOT MEASURED",
}
#: What is shown of a control in place of a verdict: not whether it passes, but whether it answers as
#: it must. A red FAIL beside an encoder that has to fail would say the opposite of what it means.
CONTROL_SIGNS = {"behaves": "✓", "misbehaves": "✕", "open": "?", "unasked": "–"}
CONTROL_WORDS = {
    "behaves": "behaves",
    "misbehaves": "does not behave",
    "open": "could not be shown",
    "unasked": "nothing expected",
}
#: Control checks that had to be answered.
_ASKED = pl.col("behaves").is_not_null() | pl.col("blocks") | pl.col("blocks_pass")


@dataclass(frozen=True)
class Badge:
    """A verdict, or whether a control behaves: its class in the style sheet, sign and words."""

    kind: str
    sign: str
    words: str


def badge_of(
    row: Row, is_control: bool, controls: pl.DataFrame, experiment: str | None = None
) -> Badge:
    """The badge of an encoder's verdict, or of what a control shows."""
    verdict = row["verdict"]
    if not is_control:
        return Badge(verdict, VERDICT_SIGNS[verdict], VERDICT_WORDS[verdict])
    state = control_state(controls, row["encoder"], experiment)
    return Badge(state, CONTROL_SIGNS[state], CONTROL_WORDS[state])


def measured_text(row: Row) -> str:
    """What was measured of a control."""
    return f"measured: {VERDICT_WORDS[row['verdict']].lower()}"


def behaves_text(row: Row) -> str:
    """Yes, no, or that it could not be decided."""
    if row["behaves"] is None:
        needed = row["blocks"] or row["blocks_pass"]
        return "could not be shown" if needed else "not applicable"
    return "yes" if row["behaves"] else "NO"


def control_state(controls: pl.DataFrame, control: str, experiment: str | None = None) -> str:
    """Whether a control answers as it must: ``behaves``, ``misbehaves``, ``open``, ``unasked``.

    Open is what only takes back passes: the cohort is too small to tell.

    Parameters
    ----------
    controls
        From :mod:`.findings`.
    control
        Its name.
    experiment
        One experiment; None for all of them.
    """
    own = controls.filter(pl.col("control") == control)
    if experiment is not None:
        own = own.filter(pl.col("experiment") == experiment)
    asked = own.filter(_ASKED)
    if asked.is_empty():
        return "unasked"
    if asked.filter("blocks").height:
        return "misbehaves"
    return "open" if asked.filter("blocks_pass").height else "behaves"


def verdict_words(row: Row, controls: pl.DataFrame, experiment: str | None = None) -> str:
    """An encoder's verdict; of a control, whether it behaves, and what was measured."""
    verdict = VERDICT_WORDS[row["verdict"]]
    if row["role"] != "control":
        return verdict
    state = CONTROL_WORDS[control_state(controls, row["encoder"], experiment)]
    return f"{state} (measured: {verdict.lower()})"


def behaving(controls: pl.DataFrame) -> tuple[int, int]:
    """How many control checks behave, of how many that had to."""
    asked = controls.filter(_ASKED)
    return int(asked["behaves"].fill_null(value=False).sum()), asked.height
