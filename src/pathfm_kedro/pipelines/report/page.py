"""The report: one HTML file that needs nothing else, the verdict first, the evidence below."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.findings import ALPHA, roles, select
from pathfm_kedro.pipelines.report.plots import (
    figures,
    retrieval_setting,
    rotation_setting,
    title_of,
)
from pathfm_kedro.pipelines.report.summary import (
    PHANTOM_NOTE,
    VERDICT_SIGNS,
    VERDICT_WORDS,
    Row,
    behaves_text,
    check_title,
    experiment_name,
    experiment_order,
    experiment_words,
    interval_text,
    null_text,
    number,
    threshold_text,
    without_folders,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Rows of an experiment shown at once; more of them hide the ones that matter.
MANY_ROWS = 60
#: Rows behind "all figures": beyond this a page gets slow on a phone; the tables hold the rest.
MAX_ROWS = 600
#: Unusable slides listed with their reasons.
MAX_SLIDES = 200


@dataclass(frozen=True)
class TableRow:
    """One encoder's figure as it is shown."""

    encoder: str
    is_control: bool
    value: str
    null: str
    rests_on: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class TableGroup:
    """One figure for all encoders; `must_be` is empty where it has no threshold."""

    title: str
    must_be: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Plot:
    """A figure on the page: the name of its box, what it shows, its data as JSON."""

    box: str
    caption: str
    data: str


@dataclass(frozen=True)
class Section:
    """An experiment on the page."""

    anchor: str
    title: str
    meaning: str
    published: str
    plots: tuple[Plot, ...]
    groups: tuple[TableGroup, ...]
    more: tuple[TableGroup, ...]
    note: str


@dataclass(frozen=True)
class ClaimRow:
    """What one encoder's figures say about a claim."""

    encoder: str
    is_control: bool
    printed: str
    printed_held: str
    corrected: str
    corrected_held: str


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with what was found here."""

    title: str
    printed: str
    corrected: str
    rows: tuple[ClaimRow, ...]


def render_report(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    verdicts: pl.DataFrame,
    measurements: pl.DataFrame,
    slides: pl.DataFrame,
    design: pl.DataFrame,
    design_summary: Mapping[str, Any],
    tiles: pl.DataFrame,
    provenance: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> str:
    """Render the audit as one self-contained HTML page.

    Parameters
    ----------
    findings, controls, verdicts
        From :mod:`.findings`.
    measurements
        Measurements of all experiments and encoders; an experiment that the report does not know
        gets a section with its values and intervals.
    slides, design, tiles
        The cohort: slides with status and reason, patients and slides per label and center, tiles.
    design_summary
        ``cramers_v`` (None where undefined) and ``warnings``.
    provenance
        cohort, is_phantom, site_bias, encoders, versions, parameters.
    parameters
        The report's own parameters: ``alpha``.

    Returns
    -------
    str
        HTML that loads nothing; the same tables give the same bytes. All text from the tables is
        escaped, absolute paths are cut to the file's name.
    """
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    drawn = figures(measurements, findings, design, provenance)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["md3"] = number
    environment.filters["plain"] = lambda text: without_folders(str(text or ""))
    source = files("pathfm_kedro.pipelines.report").joinpath("report.html")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(
        provenance=provenance,
        cards=verdicts.filter(role="encoder").to_dicts(),
        control_cards=verdicts.filter(role="control").to_dicts(),
        signs=VERDICT_SIGNS,
        words=VERDICT_WORDS,
        may=_may(findings, slides, parameters),
        may_not=_may_not(findings, controls, slides, design_summary, provenance),
        overview=_plots(drawn, "findings"),
        sections=_sections(measurements, findings, drawn, provenance),
        controls=[_control(row) for row in controls.iter_rows(named=True)],
        claims=_claims(measurements, provenance),
        other_claims=_other_claims(measurements),
        cohort=_cohort_facts(slides, tiles),
        design=design.sort("label", "center", *design.columns).to_dicts(),
        design_plots=_plots(drawn, "design"),
        cramers_v=design_summary.get("cramers_v"),
        unusable=_unusable(slides),
        max_slides=MAX_SLIDES,
        encoders=_encoders(provenance),
        versions=sorted(provenance.get("versions", {}).items()),
        parameters=_pretty(provenance.get("parameters", {})),
        plotly=_Raw(get_plotlyjs()),
    )


class _Raw(str):
    """Text that the template takes as it is; only for constants of this module and JSON."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def script_json(data: str) -> str:
    r"""JSON that may stand inside a script element: no character can end it.

    Examples
    --------
    >>> script_json('["</script>"]')
    '["\\u003c/script\\u003e"]'
    """
    for character, escaped in (("<", r"\u003c"), (">", r"\u003e"), ("&", r"\u0026")):
        data = data.replace(character, escaped)
    return data


def _plots(drawn: Mapping[str, go.Figure], prefix: str) -> tuple[Plot, ...]:
    """Figures of one experiment; boxes are numbered, since names may hold any character."""
    numbers = {name: i for i, name in enumerate(drawn, start=1)}
    own = [name for name in drawn if name.split(":")[0] == prefix or name == f"experiment:{prefix}"]
    return tuple(
        Plot(
            f"figure-{numbers[name]}",
            title_of(name),
            _Raw(script_json(str(drawn[name].to_json(engine="json")))),
        )
        for name in own
    )


def _sections(
    measurements: pl.DataFrame,
    findings: pl.DataFrame,
    drawn: Mapping[str, go.Figure],
    provenance: Mapping[str, Any],
) -> list[Section]:
    sections = []
    role = roles(provenance, measurements["encoder"].unique().to_list())
    key = ["experiment", "encoder", "metric", "stratum", "setting"]
    judged = findings.select(*key, "q_value", pl.col("verdict", "reason").name.suffix("_"))
    joined = measurements.join(judged, on=key, how="left", maintain_order="left").with_columns(
        pl.coalesce("verdict_", "verdict").alias("verdict"),
        pl.when(pl.col("verdict_").is_not_null())
        .then("reason_")
        .otherwise("reason")
        .alias("reason"),
    )
    for i, experiment in enumerate(experiment_order(measurements["experiment"].to_list()), 1):
        words = experiment_words(experiment)
        main, rest, note = _split(joined.filter(experiment=experiment))
        sections.append(
            Section(
                f"experiment-{i}",
                words.title,
                words.meaning,
                words.published,
                _plots(drawn, experiment),
                _groups(main, role),
                _groups(rest, role),
                note,
            )
        )
    return sections


def _split(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Rows to show at once, rows to fold away, and what was left out.

    Shown are the checks and the figures that an encoder has in few settings; curves and figures
    per label are folded.
    """
    judged = pl.col("threshold").is_not_null()
    rows = rows.sort(~judged, "metric", "stratum", "setting", maintain_order=True)
    if rows.height <= MANY_ROWS:
        return rows, rows.clear(), ""
    few = pl.len().over("encoder", "metric") <= 3
    shown = rows.with_columns((judged | few).alias("_shown"))
    main = shown.filter("_shown").drop("_shown")
    rest = shown.filter(~pl.col("_shown")).drop("_shown")
    note = ""
    if rest.height > MAX_ROWS:
        note = f"The first {MAX_ROWS} of {rest.height} rows; the measurements table holds all."
    return main, rest.head(MAX_ROWS), note


def _groups(rows: pl.DataFrame, role: Mapping[str, str]) -> tuple[TableGroup, ...]:
    groups = []
    for part in rows.partition_by("metric", "stratum", "setting", maintain_order=True):
        entries = [_table_row(row, role) for row in part.iter_rows(named=True)]
        entries.sort(key=lambda entry: (entry.is_control, entry.encoder))
        first = part.row(0, named=True)
        groups.append(TableGroup(check_title(first), threshold_text(first), tuple(entries)))
    return tuple(groups)


def _table_row(row: Row, role: Mapping[str, str]) -> TableRow:
    judged = row["threshold"] is not None
    reason = row["reason"] or ""
    if not judged and row["value"] is not None:
        reason = ""
    if judged and row["q_value"] is not None and not reason:
        reason = _q_text(row["q_value"])
    return TableRow(
        row["encoder"],
        role[row["encoder"]] == "control",
        interval_text(row),
        null_text(row),
        f"{row['n']} in {row['n_patients']} patients",
        row["verdict"] if judged else "",
        reason,
    )


def _q_text(q_value: float) -> str:
    """Digits of a tiny q-value would claim what a normal approximation cannot know."""
    return "q < 0.001" if q_value < 0.001 else f"q = {number(q_value)}"


def _may(findings: pl.DataFrame, slides: pl.DataFrame, parameters: Mapping[str, Any]) -> list[str]:
    usable = slides.filter(status="usable")
    alpha = float(parameters.get("alpha", ALPHA))
    checks = findings.filter(role="encoder").height
    return [
        f"A PASS or FAIL says that the whole 95% interval over patients lies on one side of the "
        f"threshold, that this holds after correcting for all {checks} checks (q below {alpha:g}), "
        f"and that the controls of the experiment behaved.",
        f"It holds for slides like these: {_count(usable.height, 'usable slide')} of "
        f"{_count(usable['patient_id'].n_unique(), 'patient')} from "
        f"{_count(usable['center'].n_unique(), 'center')}, with "
        f"{_count(usable['label'].n_unique(), 'label')}.",
    ]


def _may_not(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    slides: pl.DataFrame,
    design_summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> list[str]:
    limits = []
    if provenance.get("is_phantom"):
        bias = provenance.get("site_bias")
        strength = "" if bias is None else f" Strength of its site bias, 0 to 1: {number(bias)}."
        limits.append(PHANTOM_NOTE + strength)
    limits += [f"Confounded design: {text}" for text in design_summary.get("warnings", [])]
    for row in controls.filter(pl.col("blocks")).iter_rows(named=True):
        title = experiment_name(row["experiment"]).lower()
        limits.append(f"Nothing on {title}: the control {row['control']} {row['reason']}.")
    lost = slides.filter(status="unusable").height
    if lost:
        limits.append(
            f"Nothing about {lost} of {slides.height} slides that could not be used (listed below)."
        )
    for name, encoder in sorted(provenance.get("encoders", {}).items()):
        if encoder.get("n_failed"):
            limits.append(
                f"Nothing about {_count(encoder['n_failed'], 'slide')} that {name} could not embed."
            )
    if findings.filter(verdict="inconclusive").height:
        limits.append("INCONCLUSIVE is not a weak pass: the question is open on these slides.")
    limits.append(
        "No statement about diagnosis in patients: the checks look for known ways to go wrong, and "
        "an encoder that passes them may still be wrong in another way."
    )
    return limits


def _control(row: Row) -> dict[str, str]:
    told = behaves_text(row)
    reason = row["reason"].removeprefix(f"{told}: ")
    name = experiment_name(row["experiment"])
    return {**row, "told": told, "reason": reason, "experiment": name}


def _count(n: int, word: str) -> str:
    """A count with its noun.

    Examples
    --------
    >>> _count(1, "slide"), _count(1200, "slide")
    ('1 slide', '1,200 slides')
    """
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _cohort_facts(slides: pl.DataFrame, tiles: pl.DataFrame) -> list[tuple[str, str]]:
    """What the cohort consists of, as name and value."""
    usable = slides.filter(status="usable")
    per_slide = tiles.group_by("slide_id").len()["len"].sort()
    facts = [
        ("Slides", f"{usable.height} usable of {slides.height}"),
        ("Patients", f"{usable['patient_id'].n_unique():,}"),
        ("Centers", _names(usable, "center")),
        ("Organs", _names(usable, "organ")),
        ("Labels", _names(usable, "label")),
        ("Scanners", _names(usable, "scanner")),
        ("File formats", _names(usable, "vendor")),
        ("Micrometres per pixel", _range(usable, "mpp")),
    ]
    if len(per_slide):
        spread = f"{per_slide[0]} to {per_slide[-1]}, median {_median(per_slide):g}"
        facts.append(("Tiles", f"{tiles.height:,} ({spread} on a slide)"))
    else:
        facts.append(("Tiles", "none"))
    return facts


def _median(values: pl.Series) -> float:
    return float(str(values.median()))


def _names(slides: pl.DataFrame, column: str) -> str:
    names = slides[column].drop_nulls().unique().sort().to_list() if column in slides else []
    shown = ", ".join(str(name) for name in names[:12])
    return f"{len(names)}: {shown}{', …' if len(names) > 12 else ''}" if names else "n/a"


def _range(slides: pl.DataFrame, column: str) -> str:
    values = slides[column].drop_nulls().sort() if column in slides else pl.Series([])
    if not len(values):
        return "n/a"
    low, high = number(values[0]), number(values[-1])
    return low if low == high else f"{low} to {high}"


def _unusable(slides: pl.DataFrame) -> list[dict[str, Any]]:
    lost = slides.filter(status="unusable").sort("slide_id")
    return lost.select("slide_id", "center", "label", "reason").to_dicts()


def _encoders(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = ("model", "role", "dimension", "n_slides", "n_failed", "fingerprint", "preprocessing")
    return [
        {"name": name, **{key: _pretty(encoder.get(key)) for key in keys}}
        for name, encoder in sorted(provenance.get("encoders", {}).items())
    ]


def _pretty(value: Any) -> str:
    """A value as text, containers as JSON with sorted keys; folders cut."""
    if value is None:
        return "n/a"
    if isinstance(value, str | int | float):
        return without_folders(str(value))
    return json.dumps(_cut(value), indent=2, sort_keys=True, ensure_ascii=False, default=str)


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, Mapping):
        return {str(key): _cut(entry) for key, entry in value.items()}
    if isinstance(value, Iterable):
        return [_cut(entry) for entry in value]
    return value


# Claims of arXiv 2510.23807


def _claims(measurements: pl.DataFrame, provenance: Mapping[str, Any]) -> list[Claim]:
    names = measurements["encoder"].unique().sort().to_list()
    role = roles(provenance, names)
    ordered = sorted(names, key=lambda name: (role[name] == "control", name))
    cohort = {"design": "all", "role": "cohort_k"}
    index = "robustness_index"
    ratio = select(measurements, index, "ri_ratio", **cohort)
    above_null = select(measurements, index, "ri_minus_null", **cohort)
    at_90 = select(measurements, "rotation", "mknn", angle=90, view="rotated")
    turned = rotation_setting(measurements)
    excess = select(measurements, "rotation", "mknn_excess_drop", **turned)
    variance = select(measurements, "rotation", "mknn_variance", **turned)
    mean = select(measurements, "rotation", "mknn_mean", **turned)
    organs = select(measurements, "retrieval", "f1_range_over_organs")
    macro = select(measurements, "retrieval", "macro_f1", **retrieval_setting(measurements))
    macro = macro.filter(stratum="all")

    def rows(
        printed: pl.DataFrame,
        printed_held: Callable[[Row], str],
        corrected: pl.DataFrame,
        corrected_held: Callable[[Row], str],
    ) -> tuple[ClaimRow, ...]:
        return tuple(
            _claim_row(
                name,
                role[name],
                _one(printed, name),
                printed_held,
                _one(corrected, name),
                corrected_held,
            )
            for name in ordered
        )

    return [
        Claim(
            "Encoders follow the site, not the biology: robustness index below 1",
            "The ratio form is below 1. An encoder that knows nothing gives C/B for B labels and C "
            "centers, which may itself be below or above 1.",
            "The index minus its null is below 0.",
            rows(ratio, _below(1.0), above_null, _below(0.0)),
        ),
        Claim(
            "Encoders are sensitive to rotation: m-kNN drops by more than 0.2 at 90°",
            "m-kNN at 90° is below 0.8.",
            "Turning there and back blurs without turning: what is lost beyond it is above 0.",
            rows(at_90, _below(0.8), excess, _above(0.0)),
        ),
        Claim(
            "Sensitivity shows as a variance over angles above 0.1",
            "Variance of m-kNN over the angles above 0.1.",
            "Out of reach in practice: the largest possible is 0.25, the largest published 0.005. "
            "The mean over angles says more.",
            rows(variance, _above(0.1), mean, _told),
        ),
        Claim(
            "Retrieval differs between organs by more than 30 points of F1",
            "F1 of the best organ minus the worst above 0.30. Reported: kidney .68, lung .21 (not "
            "verified).",
            "A range grows with the number of organs and with few slides in one: read it with its "
            "interval and its null.",
            rows(organs, _above(0.3), organs, _above_null),
        ),
        Claim(
            "Zero-shot retrieval reaches 40 to 42% macro-F1",
            "Macro-F1 of 23 organs between .40 and .42; a reference, not a test: other slides, "
            "other labels.",
            "Beside its null. Yottixel compares several vectors per slide already, so the "
            "figure is no evidence against single vectors.",
            rows(macro, _reference, macro, _above_null),
        ),
    ]


def _one(rows: pl.DataFrame, encoder: str) -> dict[str, Any] | None:
    """An encoder's row: the one with a threshold, else the first in order of its setting."""
    own = rows.filter(pl.col("encoder") == encoder)
    own = own.sort(pl.col("threshold").is_null(), "setting")
    return own.row(0, named=True) if own.height else None


def _claim_row(
    encoder: str,
    role: str,
    printed: Row | None,
    printed_held: Callable[[Row], str],
    corrected: Row | None,
    corrected_held: Callable[[Row], str],
) -> ClaimRow:
    return ClaimRow(
        encoder,
        role == "control",
        _claim_value(printed),
        _claim_held(printed, printed_held),
        _claim_value(corrected),
        _claim_held(corrected, corrected_held),
    )


def _claim_value(row: Row | None) -> str:
    if row is None:
        return "not measured"
    return f"{interval_text(row)}: {row['reason']}" if row["value"] is None else interval_text(row)


def _claim_held(row: Row | None, held: Callable[[Row], str]) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["ci_low"] is None or row["ci_high"] is None:
        return "no interval"
    return held(row)


def _side(low: bool, high: bool) -> str:
    return "held" if low else "did not hold" if high else "undecided"


def _below(threshold: float) -> Callable[[Row], str]:
    return lambda row: _side(row["ci_high"] < threshold, row["ci_low"] > threshold)


def _above(threshold: float) -> Callable[[Row], str]:
    return lambda row: _side(row["ci_low"] > threshold, row["ci_high"] < threshold)


def _above_null(row: Row) -> str:
    if row["null_high"] is None:
        return "no null"
    above, below = row["ci_low"] > row["null_high"], row["ci_high"] < row["null_high"]
    return "above the null" if above else "below the null" if below else "not told from the null"


def _reference(row: Row) -> str:
    if row["ci_low"] > 0.42:
        return "above the reference"
    return "below the reference" if row["ci_high"] < 0.40 else "overlaps the reference"


def _told(row: Row) -> str:
    return "figure only"


def _other_claims(measurements: pl.DataFrame) -> list[tuple[str, str]]:
    """Claims without a table of their own, and whether their experiment ran here."""
    measured = set(measurements["experiment"])
    claims = [
        ("Adversarial noise takes accuracy from 97% to 12%", "adversarial"),
        ("Larger fields of view raise F1 by more than 5 points", "field_of_view"),
        ("One vector cannot encode the combinations of tissue patterns", "capacity"),
        ("Label noise in pretraining collapses the geometry", "noise"),
        ("Linear probing beats fine-tuning by more than 5 points", "adaptation"),
        ("Up to 35 times the energy of task-specific models", "energy"),
    ]
    return [
        (claim, "see its section" if experiment in measured else "not measured in this audit")
        for claim, experiment in claims
    ]
