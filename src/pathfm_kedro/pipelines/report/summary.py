"""What a reader reads: words for experiments and figures, the Markdown summary, the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ExperimentWords:
    """How an experiment is told to somebody who never met it.

    Attributes
    ----------
    title
        Heading.
    meaning
        One sentence: what is measured and why it matters.
    published
        Figures others published, as context; they come from other slides and other protocols.
    """

    title: str
    meaning: str
    published: str = ""


#: Told in this order; an experiment that is not listed follows in alphabetical order.
EXPERIMENTS: dict[str, ExperimentWords] = {
    "robustness_index": ExperimentWords(
        "Robustness index: tissue or center?",
        "When two tiles look alike to the encoder, is it because they show the same tissue from "
        "different centers, or because they come from the same center? Below the null, the "
        "encoder follows the center more than an encoder that knows nothing.",
        "Robustness index averaged over the data sets of PathoROB (Kömen et al. 2025): Virchow2 "
        ".861, CONCH v1.5 .852, UNI2-h .757, UNI .598, Phikon-v2 .469. On Camelyon alone: Virchow2 "
        ".806, UNI .145, Phikon-v2 .019.",
    ),
    "rotation": ExperimentWords(
        "Rotation: does turning the slide change the answer?",
        "Tissue has no up and down. A tile and its rotated copy should have the same neighbours; "
        "the share of neighbours kept (m-kNN) says how far they do. The dashed curves rotate there "
        "and back, so that blur alone is seen apart.",
        "Mean m-kNN over angles: PathDino .850, Kaiko-B .828, Phikon .797, Virchow2 .735, UNI "
        ".733, GigaPath .712, Phikon-v2 .690, CONCH .657, Virchow .535. At 90°, in that order: "
        ".929, .848, .841, .838, .766, .784, .704, .742, .532.",
    ),
    "retrieval": ExperimentWords(
        "Retrieval: does a search find the same diagnosis?",
        "Each slide is searched among the slides of all other patients; the labels of the best "
        "matches vote. F1 near the null means the search is no better than guessing.",
        "Macro-F1 on 23 organs, majority of 5: UNI .42 ± .14, GigaPath .41 ± .13, Virchow .40 ± "
        ".13, DenseNet .27 ± .13. Reported by arXiv 2510.23807 and not verified here: kidney .68 "
        "against lung .21.",
    ),
    "linear_probe": ExperimentWords(
        "Linear probe: what can be read from the vectors?",
        "A simple classifier is trained on some patients and tested on others, once to tell the "
        "tissue and once to tell the center. What is easy to read is easy to be misled by.",
    ),
    "geometry": ExperimentWords(
        "Geometry: how are the vectors spread?",
        "Descriptive figures of the cloud of vectors. They have no threshold, and skewness and "
        "kurtosis depend on the number of dimensions: compare them within one encoder only.",
        "Sun et al. 2025, ResNet-50 pretrained with 0 and with 30% wrong labels, on Camelyon17: "
        "skewness 6.00 and 3.61, kurtosis 110 and 57.",
    ),
}

METRICS: dict[str, str] = {
    "ri": "Robustness index",
    "ri_ratio": "Robustness index, ratio form",
    "ri_minus_null": "Robustness index minus its null",
    "support": "Neighbours that count towards the index",
    "knn_accuracy_label": "Nearest neighbours agree on the label",
    "knn_accuracy_center": "Nearest neighbours agree on the center",
    "mknn": "Neighbours kept (m-kNN)",
    "mknn_mean": "Neighbours kept, mean over angles",
    "mknn_variance": "Neighbours kept, variance over angles",
    "mknn_excess_drop": "Neighbours lost beyond the there-and-back control",
    "cosine_distance": "Cosine distance to the unrotated view",
    "macro_f1": "Macro-F1",
    "f1": "F1",
    "accuracy": "Accuracy",
    "f1_range_over_organs": "F1 of the best organ minus the worst",
    "f1_sd_over_organs": "F1, standard deviation over organs",
    "f1_tau_over_organs": "F1, spread over organs beyond sampling noise (τ)",
    "balanced_accuracy": "Balanced accuracy",
    "skewness": "Skewness",
    "kurtosis_excess": "Kurtosis, excess",
    "kurtosis_raw": "Kurtosis, raw",
    "singular_value_entropy": "Singular value entropy",
    "largest_singular_value_ratio": "Largest singular value ratio",
    "effective_rank": "Effective rank",
    "mean_cosine": "Mean cosine between vectors",
}

#: What failing a check means, to be read after "Fails 2 of 5 checks:".
FAILURES: dict[tuple[str, str], str] = {
    ("robustness_index", "ri"): "follows the center more than the tissue",
    ("robustness_index", "ri_ratio"): "lets the center decide as much as the tissue",
    ("robustness_index", "ri_minus_null"): "follows the center more than the tissue",
    ("rotation", "mknn"): "changes under rotation",
    ("rotation", "mknn_variance"): "changes unevenly over the angles",
    ("rotation", "mknn_excess_drop"): "changes under rotation beyond what blur explains",
    ("retrieval", "f1_range_over_organs"): "finds some organs far better than others",
    ("retrieval", "macro_f1"): "does not find the label",
    ("linear_probe", "balanced_accuracy"): "does not hold what the probe asks for",
}

#: A sign beside each word, so that a verdict is never told by colour alone.
VERDICT_SIGNS = {"pass": "✓", "fail": "✕", "inconclusive": "?", "not_applicable": "–"}
VERDICT_WORDS = {
    "pass": "PASS",
    "fail": "FAIL",
    "inconclusive": "INCONCLUSIVE",
    "not_applicable": "NOT APPLICABLE",
}

_SETTING_VALUES = {
    ("role", "cohort_k"): "one k for the cohort",
    ("role", "encoder_k"): "the encoder's own k",
    ("role", "curve"): "",
    ("design", "all"): "all labels and centers",
    ("design", "paired_2x2"): "pairs of two labels and two centers",
    ("view", "rotated"): "",
    ("view", "rotated_back"): "rotated there and back",
    ("vote", "top1"): "nearest match",
    ("vote", "mv3"): "majority of 3",
    ("vote", "mv5"): "majority of 5",
    ("scope", "within_organ"): "within the organ",
    ("scope", "across_organs"): "across organs",
}
#: Folders of an absolute path, POSIX or Windows; only what names the file itself stays.
_FOLDERS = re.compile(
    r"""(?:(?<=[\s'"(=\[,:;])|^)(?:file://)?(?:[A-Za-z]:)?[/\\](?:[^\s'"/\\]+[/\\])+"""
)
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def experiment_words(experiment: str) -> ExperimentWords:
    """The words for an experiment; a plain title where it has none of its own.

    Examples
    --------
    >>> experiment_words("colour_swap").title
    'Colour swap'
    """
    if experiment in EXPERIMENTS:
        return EXPERIMENTS[experiment]
    return ExperimentWords(humanise(experiment), "")


def experiment_name(experiment: str) -> str:
    """The short name of an experiment: its title up to the question.

    Examples
    --------
    >>> experiment_name("rotation")
    'Rotation'
    """
    return experiment_words(experiment).title.split(":")[0]


def experiment_order(experiments: Mapping[str, Any] | list[str]) -> list[str]:
    """Experiments without repeats, the known ones first and in the order they are told.

    Examples
    --------
    >>> experiment_order(["zeta", "rotation", "alpha", "robustness_index"])
    ['robustness_index', 'rotation', 'alpha', 'zeta']
    """
    present = set(experiments)
    return [name for name in EXPERIMENTS if name in present] + sorted(present - set(EXPERIMENTS))


def humanise(name: str) -> str:
    """A name from the tables as words.

    Examples
    --------
    >>> humanise("colour_swap")
    'Colour swap'
    """
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def setting_text(setting: str) -> str:
    """A setting (sorted-key JSON) as words; what every reader takes for granted is left out.

    Examples
    --------
    >>> setting_text('{"angle": 90, "k": 10, "metric": "cosine", "view": "rotated"}')
    'at 90°, k 10, cosine'
    """
    parts = []
    for key, value in json.loads(setting).items():
        known = _SETTING_VALUES.get((key, value)) if isinstance(value, str) else None
        if value is None:
            continue
        if known is not None:
            parts.append(known)
        elif key == "angle":
            parts.append(f"at {value:g}°" if isinstance(value, int | float) else f"at {value}")
        elif key == "metric":
            parts.append(str(value))
        else:
            shown = value if isinstance(value, str | int | float) else json.dumps(value)
            parts.append(f"{key.replace('_', ' ')} {shown}")
    return ", ".join(part for part in parts if part)


def check_title(row: Row) -> str:
    """What a row measures: metric, stratum and setting in words.

    Examples
    --------
    >>> check_title({"metric": "f1", "stratum": "label=gland", "setting": '{"family": "mean"}'})
    'F1, label gland (family mean)'
    """
    title, setting = plain_title(row), setting_text(row["setting"])
    return f"{title} ({setting})" if setting else title


def plain_title(row: Row) -> str:
    """What a row measures, without its setting."""
    title = METRICS.get(row["metric"], humanise(row["metric"]))
    return title if row["stratum"] == "all" else f"{title}, {row['stratum'].replace('=', ' ')}"


def short_title(row: Row) -> str:
    """What a row measures without its settings, to stand in a sentence.

    Examples
    --------
    >>> short_title({"metric": "macro_f1", "stratum": "organ=kidney", "setting": "{}"})
    'macro-F1 in organ kidney'
    """
    title = METRICS.get(row["metric"], humanise(row["metric"]))
    title = title if title[1:2].isupper() or title[1:2].isdigit() else title[0].lower() + title[1:]
    return title if row["stratum"] == "all" else f"{title} in {row['stratum'].replace('=', ' ')}"


def failure_text(row: Row) -> str:
    """What failing this check says about the encoder."""
    known = FAILURES.get((row["experiment"], row["metric"]))
    if known:
        return known
    return f"{humanise(row['experiment']).lower()}: {short_title(row)}"


def number(value: float | None) -> str:
    """Three significant digits, or n/a.

    Examples
    --------
    >>> [number(value) for value in (0.5, -0.01234, 110.0, 41234.0, 0.0, 0.000012, None)]
    ['0.500', '−0.0123', '110', '41,234', '0', '1.20e−05', 'n/a']
    """
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def interval_text(row: Row) -> str:
    """Value with its 95% interval.

    Examples
    --------
    >>> interval_text({"value": 0.5, "ci_low": 0.4, "ci_high": 0.61})
    '0.500 [0.400, 0.610]'
    """
    if row["value"] is None or row["ci_low"] is None or row["ci_high"] is None:
        return number(row["value"])
    return f"{number(row['value'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"


def null_text(row: Row) -> str:
    """The null as a number or a range; n/a where there is none.

    Examples
    --------
    >>> null_text({"null_low": 0.2, "null_high": 0.25})
    '0.200 to 0.250'
    """
    low, high = row["null_low"], row["null_high"]
    if low is None or high is None or number(low) == number(high):
        return number(low if low is not None else high)
    return f"{number(low)} to {number(high)}"


def threshold_text(row: Row) -> str:
    """What a trustworthy encoder's figure must be.

    Examples
    --------
    >>> threshold_text({"threshold": 0.8, "direction": "above"})
    'above 0.800'
    """
    if row["threshold"] is None:
        return ""
    return f"{row['direction'] or ''} {number(row['threshold'])}".strip()


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


def render_summary(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    verdicts: pl.DataFrame,
    provenance: Mapping[str, Any],
) -> str:
    """The audit on one page of Markdown: verdicts, checks, controls.

    Parameters
    ----------
    findings, controls, verdicts
        From :mod:`.findings`.
    provenance
        Cohort's name and whether it is the phantom.

    Returns
    -------
    str
        Markdown; the same tables give the same text.
    """
    lines = [f"# Audit of encoders: {_md(provenance['cohort'])}", ""]
    if provenance.get("is_phantom"):
        lines += [PHANTOM_NOTE, ""]
    lines += ["## Verdicts", "", "| encoder | verdict | why |", "| --- | --- | --- |"]
    lines += [
        f"| {_md(row['encoder'] + _role_note(row))} | {VERDICT_WORDS[row['verdict']]} "
        f"| {_md(row['sentence'])} |"
        for row in verdicts.iter_rows(named=True)
    ]
    lines += ["", "## Checks", ""]
    lines += ["| check | encoder | value [95% interval] | null | must be | verdict | reason |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [_check_line(row) for row in findings.iter_rows(named=True)]
    lines += ["", "## Controls", "", "| control | experiment | expected | observed | behaves |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {_md(row['control'])} | {_md(row['experiment'])} | {_md(row['expectation'])} "
        f"| {_md(row['observed'])} | {behaves_text(row)} |"
        for row in controls.iter_rows(named=True)
    ]
    return "\n".join(lines) + "\n"


#: Shown wherever the cohort was drawn and not cut from tissue.
PHANTOM_NOTE = (
    "This cohort is drawn by the project itself: a calibration target with known truth, not a "
    "claim about tissue."
)


def behaves_text(row: Row) -> str:
    """Yes, no, or that it could not be told."""
    if row["behaves"] is None:
        return "could not be shown" if row["blocks"] else "not applicable"
    return "yes" if row["behaves"] else "NO"


def findings_metrics(findings: pl.DataFrame, verdicts: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Verdicts and unrounded figures for ``dvc metrics show``.

    Returns
    -------
    dict
        ``{encoder: {"verdict": ..., metric: value}}``. A metric judged more than once for an
        encoder carries its experiment, stratum and setting in the name; an undefined figure
        reads "n/a".
    """
    metrics: dict[str, dict[str, Any]] = {
        row["encoder"]: {"verdict": row["verdict"]} for row in verdicts.iter_rows(named=True)
    }
    often = findings.select("encoder", "metric").is_duplicated()
    for row, repeated in zip(findings.iter_rows(named=True), often, strict=True):
        name = row["metric"]
        if repeated:
            name = f"{row['experiment']} {name} {row['stratum']} {row['setting']}"
        value = "n/a" if row["value"] is None else row["value"]
        metrics.setdefault(row["encoder"], {})[name] = value
    return metrics


def _role_note(row: Row) -> str:
    return " (control)" if row["role"] == "control" else ""


def _check_line(row: Row) -> str:
    cells = [
        f"{experiment_name(row['experiment'])}: {check_title(row)}",
        row["encoder"] + _role_note(row),
        interval_text(row),
        null_text(row),
        threshold_text(row),
        VERDICT_WORDS[row["verdict"]],
        row["reason"] or "",
    ]
    return "| " + " | ".join(_md(cell) for cell in cells) + " |"


def _md(text: object) -> str:
    """Text that stays text in a Markdown table: no markup, no link, no new cell."""
    flat = " ".join(without_folders(str(text)).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", flat).replace("](", "]\\(")
