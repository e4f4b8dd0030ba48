"""Verdicts: what an encoder's findings come to, in one word and one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.report.text import Row, interval_text, threshold_text
from pathfm_kedro.pipelines.report.variants import variant_sentences
from pathfm_kedro.pipelines.report.words import Words

#: Worst first: an encoder's verdict is the first that one of its findings has.
VERDICTS = ("fail", "inconclusive", "undecidable", "pass", "not_applicable")
VERDICT_SCHEMA: dict[str, pl.DataType] = {
    "encoder": pl.String(),
    "role": pl.String(),
    "verdict": pl.String(),
    **{f"n_{name}": pl.Int64() for name in VERDICTS},
    "sentence": pl.String(),
}


def verdict_by_encoder(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    words: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """One verdict and one sentence for each encoder.

    The verdict is the worst of its findings: fail, then inconclusive or undecidable, then pass;
    not_applicable where none could be judged. Passing what is left is no pass: where a core check
    (named so in the words) is switched off, not measured or not applicable, a core group of checks has
    none that was decided, or an experiment that others have findings in has none of the encoder, it
    is inconclusive. A spread over organs does not exist in a cohort of one organ, so its absence takes
    nothing back. Of a model that is pooled in several ways the sentence says whether a verdict turns;
    ``provenance`` names them.

    Returns
    -------
    DataFrame
        :data:`VERDICT_SCHEMA`, encoders before controls, each in alphabetical order.
    """
    wording = Words.read(words)
    expected = _expected_checks(findings, wording)
    pooled = variant_sentences(findings, (provenance or {}).get("encoders", {}), wording)
    rows = []
    for (encoder, role), own in findings.group_by("encoder", "role", maintain_order=True):
        counts = {verdict: own.filter(verdict=verdict).height for verdict in VERDICTS}
        measured = set(own["experiment"])
        missing = {name: n for name, n in expected.items() if name not in measured}
        rows.append(
            {
                "encoder": encoder,
                "role": role,
                "verdict": _verdict(own, counts, bool(missing), wording),
                **{f"n_{name}": count for name, count in counts.items()},
                "sentence": _sentence(own, counts, missing, wording)
                + pooled.get(str(encoder), "")
                + _control_sentence(str(encoder), controls),
            }
        )
    table = pl.DataFrame(rows, schema=VERDICT_SCHEMA)
    return table.sort(pl.col("role") == "control", "encoder")


def _verdict(own: pl.DataFrame, counts: Mapping[str, int], missing: bool, words: Words) -> str:
    verdict = next((name for name, count in counts.items() if count), "not_applicable")
    if verdict == "undecidable":
        return "inconclusive"
    if verdict != "pass":
        return verdict
    return "inconclusive" if missing or unasked(own, words) else "pass"


def unasked(own: pl.DataFrame, words: Words) -> list[str]:
    """Core checks and core groups in which nothing was decided: without them no encoder passes."""
    decided = own.filter(pl.col("verdict").is_in(["pass", "fail"]))
    pairs = set(decided.select("experiment", "metric").rows())
    missing = [
        words.check_name({"experiment": x, "metric": m, "stratum": "all", "setting": "{}"})
        for x, m in words.core_metrics()
        if (x, m) not in pairs
    ]
    groups = {words.group(x) for x in decided["experiment"]}
    missing += [
        group.title.lower()
        for name, group in words.report.groups.items()
        if group.core and name not in groups
    ]
    return missing


def failures_asked_for(
    findings: pl.DataFrame, verdicts: pl.DataFrame, fail_on: Sequence[str]
) -> list[str]:
    """Failed findings that a run must not end well with, each as encoder and check.

    Parameters
    ----------
    findings, verdicts
        The tables of the report.
    fail_on
        Experiments, figures as ``experiment.metric``, or ``any``.

    Raises
    ------
    ValueError
        If a name is no judged check of this cohort.
    """
    judged = set(findings["experiment"]) | {"any"}
    judged |= {f"{x}.{metric}" for x, metric in findings.select("experiment", "metric").rows()}
    unknown = sorted(set(fail_on) - judged)
    if unknown:
        raise ValueError(
            f"report.fail_on names {', '.join(unknown)}, which nothing is judged by here; judged are "
            f"{', '.join(sorted(judged))}"
        )
    audited = verdicts.filter(role="encoder")["encoder"].to_list()
    failed = findings.filter(pl.col("encoder").is_in(audited), pl.col("verdict") == "fail")
    named = failed.select("encoder", "experiment", "metric").unique(maintain_order=True)
    return [
        f"{encoder} fails {experiment}.{metric}"
        for encoder, experiment, metric in named.rows()
        if {"any", experiment, f"{experiment}.{metric}"} & set(fail_on)
    ]


def _expected_checks(findings: pl.DataFrame, words: Words) -> dict[str, int]:
    """Checks of each experiment: the most that any encoder has findings of."""
    counts = findings.group_by("experiment", "encoder").len().group_by("experiment")
    most = dict(counts.agg(pl.col("len").max()).rows())
    return {name: most[name] for name in words.order(list(most))}


def _sentence(
    own: pl.DataFrame, counts: Mapping[str, int], missing: Mapping[str, int], words: Words
) -> str:
    """What an encoder's findings come to, failures first; `missing` are experiments without any."""
    judged = own.height - counts["not_applicable"]
    if not judged:
        return "None of the checks could be judged on this cohort."
    unjudged = counts["not_applicable"] + sum(missing.values())
    checks = "check" if judged == 1 else "checks"
    parts = []
    core = unasked(own, words)
    without = f" No pass without a verdict on {', '.join(core)}." if core else ""
    if counts["pass"] == judged and unjudged:
        return (
            f"Passes {judged} of {judged + unjudged} checks; {unjudged} could not be judged: "
            f"{_unjudged(own, missing, words)}.{without}"
        )
    if counts["fail"]:
        causes = _listed(
            own, "fail", lambda row: f"{words.failure_text(row)} ({words.held_against(row)})"
        )
        parts.append(f"Fails {counts['fail']} of {judged} {checks}: {causes}.")
    if counts["inconclusive"]:
        names = _listed(own, "inconclusive", lambda row: _undecided(row, words))
        parts.append(f"Undecided in {counts['inconclusive']} of {judged}: {names}.")
    if counts["undecidable"]:
        names = _listed(own, "undecidable", words.check_name, ", ")
        parts.append(f"Too small a cohort for {counts['undecidable']} of {judged}: {names}.")
    if counts["pass"]:
        whole = "the only check" if judged == 1 else f"all {judged} checks"
        amount = f" {whole}" if counts["pass"] == judged else ""
        parts.append(f"Passes{amount}: {_listed(own, 'pass', words.check_name, ', ')}.")
    if unjudged:
        parts.append(f"{unjudged} could not be judged: {_unjudged(own, missing, words)}.")
    if counts["pass"] == judged:
        parts.append(without.strip())
    return " ".join(part for part in parts if part)


def _undecided(row: Row, words: Words) -> str:
    """An open check; its interval alone does not say why where a pass or fail was taken back."""
    parts = [f"{interval_text(row)}, must be {threshold_text(row)}"]
    if row["measured_verdict"] in ("pass", "fail") or row["caveat"]:
        parts.append(row["reason"])
    return f"{words.check_name(row)} ({'; '.join(parts)})"


def _unjudged(own: pl.DataFrame, missing: Mapping[str, int], words: Words) -> str:
    """Checks without a figure, then experiments in which the encoder was not measured."""
    undefined = _listed(own, "not_applicable", words.check_name, ", ")
    absent = [f"{words.name(name).lower()} (not measured)" for name in missing]
    return ", ".join([*([undefined] if undefined else []), *absent])


def _listed(
    own: pl.DataFrame, verdict: str, tell: Callable[[Row], str], between: str = "; "
) -> str:
    rows = own.filter(pl.col("verdict") == verdict).iter_rows(named=True)
    return between.join(dict.fromkeys(tell(row) for row in rows))


def _control_sentence(encoder: str, controls: pl.DataFrame) -> str:
    own = controls.filter(control=encoder)
    asked = own.filter(pl.col("behaves").is_not_null())
    if not asked.height:
        return ""
    return (
        f" As a control it behaves in {asked['behaves'].sum()} of {asked.height} "
        f"{'experiment' if asked.height == 1 else 'experiments'}."
    )
