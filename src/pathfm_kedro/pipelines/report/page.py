"""The report: one HTML file that needs nothing else, the verdict first, the evidence below."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
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
    CONTROL_SIGNS,
    CONTROL_WORDS,
    KEY_METRICS,
    METRICS,
    NO_WIDTH_NOTE,
    PHANTOM_NOTE,
    VERDICT_SIGNS,
    VERDICT_WORDS,
    Row,
    behaves_text,
    behaving,
    check_title,
    control_state,
    experiment_name,
    experiment_order,
    experiment_words,
    has_width,
    interval_text,
    marked_interval,
    null_text,
    number,
    setting_text,
    threshold_text,
    without_folders,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Rows of an experiment shown at once; more of them hide the ones that matter.
MANY_ROWS = 60
#: Rows behind "all figures": beyond this a page gets slow on a phone; the tables hold the rest.
MAX_ROWS = 600
#: What is shuffled for a figure's null where the column's head does not say it.
SHUFFLED = {"knn_accuracy_label": "", "knn_accuracy_center": "centers shuffled: "}
#: Left out of the tables: the same for every encoder, and in the plot.
HIDDEN_METRICS = ("ri_design_null",)
#: The role under which a figure told in several is kept.
_ROLES = {"cohort_k": 0, "curve": 1, "encoder_k": 2}
#: Experiments whose plots are folded away: the table says the same and decides nothing.
_FOLDED = {
    "geometry": "Each figure of the table as a plot; none of them decides a verdict.",
}
#: Threshold of m-kNN that arXiv 2510.23807 reports.
_REPORTED_MKNN = 0.8
#: Unusable slides listed with their reasons.
MAX_SLIDES = 200


@dataclass(frozen=True)
class Badge:
    """A verdict, or whether a control behaves: its class in the style sheet, sign and words."""

    kind: str
    sign: str
    words: str


@dataclass(frozen=True)
class TableRow:
    """One encoder's figure as it is shown; `measured` is a control's verdict, told small."""

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
    null: str
    plots: tuple[Plot, ...]
    folded: str
    groups: tuple[TableGroup, ...]
    more: tuple[TableGroup, ...]
    left_out: int
    notes: tuple[str, ...]
    footnote: str


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
    """A claim of the paper with what was found here; `head` is that of its second form."""

    title: str
    setting: str
    printed: str
    corrected: str
    rows: tuple[ClaimRow, ...]
    head: str = "Corrected"
    footnote: str = ""


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
        identity=_identity(slides, provenance),
        behaving=behaving(controls),
        phantom=_phantom(provenance),
        cards=_cards(verdicts, controls, "encoder"),
        control_cards=_cards(verdicts, controls, "control"),
        may=_may(findings, slides, parameters),
        may_not=_may_not(findings, controls, slides, design_summary, provenance),
        overview=_plots(drawn, "findings"),
        sections=_sections(measurements, findings, controls, drawn, provenance),
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


def _identity(slides: pl.DataFrame, provenance: Mapping[str, Any]) -> list[str]:
    """What was audited by which version, so that two reports can be told apart."""
    version = provenance.get("versions", {}).get("pathfm-kedro")
    role = [encoder.get("role") for _, encoder in sorted(provenance.get("encoders", {}).items())]
    n_controls = role.count("control")
    return [
        *([f"pathfm-kedro {version}"] if version else []),
        f"slides {slides_digest(slides)}",
        _count(len(role) - n_controls, "encoder"),
        _count(n_controls, "control"),
    ]


def slides_digest(slides: pl.DataFrame) -> str:
    """12 hexadecimal digits that change with any slide's name or content, not with their order.

    Examples
    --------
    >>> slides_digest(pl.DataFrame({"slide_id": ["a"], "fingerprint": ["0f"]}))
    'a5f0e2532034'
    """
    columns = (pl.col(name).fill_null("") for name in ("slide_id", "fingerprint"))
    lines = slides.select(pl.concat_str(*columns, separator="\t")).to_series().sort()
    return sha256("\n".join(lines).encode()).hexdigest()[:12]


def _phantom(provenance: Mapping[str, Any]) -> str:
    if not provenance.get("is_phantom"):
        return ""
    bias = provenance.get("site_bias")
    if bias is None:
        return PHANTOM_NOTE
    return (
        f"{PHANTOM_NOTE} Difference between its drawn centers, from 0 (none) to 1 (colour predicts "
        f"the center alone): {bias:g}."
    )


def _cards(verdicts: pl.DataFrame, controls: pl.DataFrame, role: str) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "badge": _badge(row, role == "control", controls),
            "measured": _measured(row) if role == "control" else "",
        }
        for row in verdicts.filter(pl.col("role") == role).iter_rows(named=True)
    ]


def _badge(
    row: Row, is_control: bool, controls: pl.DataFrame, experiment: str | None = None
) -> Badge:
    verdict = row["verdict"]
    if not is_control:
        return Badge(verdict, VERDICT_SIGNS[verdict], VERDICT_WORDS[verdict])
    state = control_state(controls, row["encoder"], experiment)
    return Badge(state, CONTROL_SIGNS[state], CONTROL_WORDS[state])


def _measured(row: Row) -> str:
    return f"measured: {VERDICT_WORDS[row['verdict']].lower()}"


def _sections(
    measurements: pl.DataFrame,
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    drawn: Mapping[str, go.Figure],
    provenance: Mapping[str, Any],
) -> list[Section]:
    sections = []
    role = roles(provenance, measurements["encoder"].unique().to_list())
    joined = _with_final_verdicts(measurements, findings)
    usual = _usual_settings(measurements, provenance)
    for i, experiment in enumerate(experiment_order(measurements["experiment"].to_list()), 1):
        words = experiment_words(experiment)
        rows = _told_once(joined.filter(experiment=experiment))
        main, rest = _split(rows, experiment, usual.get(experiment, {}))
        shown = pl.concat([main, rest])
        sections.append(
            Section(
                f"experiment-{i}",
                words.title,
                words.meaning,
                words.published,
                words.null,
                _plots(drawn, experiment),
                _FOLDED.get(experiment, ""),
                _groups(main, role, controls),
                _groups(rest, role, controls),
                rows.height - shown.height,
                _notes(experiment, joined.filter(experiment=experiment), role),
                _footnote(shown.iter_rows(named=True)),
            )
        )
    return sections


def _with_final_verdicts(measurements: pl.DataFrame, findings: pl.DataFrame) -> pl.DataFrame:
    """Measurements with the verdict and reason that correction and controls left them."""
    key = ["experiment", "encoder", "metric", "stratum", "setting"]
    judged = findings.select(*key, "q_value", pl.col("verdict", "reason").name.suffix("_"))
    final = pl.col("verdict_").is_not_null()
    return measurements.join(judged, on=key, how="left", maintain_order="left").with_columns(
        pl.coalesce("verdict_", "verdict").alias("verdict"),
        pl.when(final).then("reason_").otherwise("reason").alias("reason"),
    )


def _usual_settings(
    measurements: pl.DataFrame, provenance: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The setting of each experiment that its checks use: what a reader needs first."""
    return {
        "robustness_index": {"design": "all", "role": "cohort_k"},
        "robustness_margins": {"design": "all", "role": "cohort_k", "m": 5},
        "rotation": {**rotation_setting(measurements), "view": "rotated"},
        "retrieval": retrieval_setting(measurements, provenance),
    }


def _split(
    rows: pl.DataFrame, experiment: str, usual: Mapping[str, Any]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to show at once and rows to fold away, at most :data:`MAX_ROWS` of these.

    Shown are the checks and the figures that explain them; of an experiment that the report does
    not know, the figures that an encoder has in few settings. Folded rows that depart furthest
    from the usual setting come last and are left out first.
    """
    rows = rows.filter(~pl.col("metric").is_in(HIDDEN_METRICS))
    rows = _in_reading_order(rows, usual)
    if rows.height <= MANY_ROWS:
        return rows.drop("_usual"), rows.clear().drop("_usual")
    judged = pl.col("threshold").is_not_null()
    if experiment in KEY_METRICS:
        wanted = pl.col("metric").is_in(KEY_METRICS[experiment]) & pl.col("_usual")
        wanted &= ~pl.col("stratum").str.contains("^(label|center)=")
    else:
        wanted = pl.len().over("encoder", "metric") <= 3
    shown = rows.with_columns((judged | wanted).alias("_shown"))
    main = shown.filter("_shown").drop("_shown", "_usual")
    rest = shown.filter(~pl.col("_shown")).drop("_shown", "_usual")
    return main, _whole_groups(rest)


def _told_once(rows: pl.DataFrame) -> pl.DataFrame:
    """Each figure once, under the first of its roles."""
    parsed = [json.loads(text) for text in rows["setting"]]
    bare = [json.dumps(_without_role(entry), sort_keys=True) for entry in parsed]
    rank = [_ROLES.get(str(entry.get("role")), 0) for entry in parsed]
    key = ["encoder", "metric", "stratum", "_bare"]
    return (
        rows.with_columns(pl.Series("_bare", bare, pl.String()), pl.Series("_rank", rank, pl.Int64))
        .sort("_rank", maintain_order=True)
        .unique(key, keep="first", maintain_order=True)
        .drop("_bare", "_rank")
    )


def _without_role(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "role"}


def _in_reading_order(rows: pl.DataFrame, usual: Mapping[str, Any]) -> pl.DataFrame:
    """Checks first, then by distance from the usual setting; k and angles as numbers."""
    parsed = [json.loads(text) for text in rows["setting"]]
    departs = [
        [entry.get(key, wanted) != wanted for key, wanted in usual.items() if key != "role"]
        for entry in parsed
    ]
    is_usual = [
        all(entry.get(key, wanted) == wanted for key, wanted in usual.items()) for entry in parsed
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
    order = {name: i for i, name in enumerate(METRICS)}
    others = pl.col("setting").str.replace_all(r'"(k|angle)": [0-9.]+', "")
    return (
        rows.with_columns(
            pl.Series("_usual", is_usual, dtype=pl.Boolean()),
            pl.Series("_departs", [sum(entry) for entry in departs], dtype=pl.Int64()),
            *numbers.values(),
        )
        .sort(
            pl.col("threshold").is_null(),
            "_departs",
            pl.col("metric").replace_strict(order, default=len(order), return_dtype=pl.Int64()),
            "metric",
            pl.col("stratum") != "all",
            "stratum",
            others,
            "_k",
            "_angle",
            "setting",
            "encoder",
        )
        .drop("_departs", *numbers)
    )


_GROUP = ["metric", "stratum", "setting"]


def _whole_groups(rows: pl.DataFrame) -> pl.DataFrame:
    """The first groups that together stay within :data:`MAX_ROWS`."""
    kept, height = [rows.clear()], 0
    for part in rows.partition_by(_GROUP, maintain_order=True):
        height += part.height
        if height > MAX_ROWS:
            break
        kept.append(part)
    return pl.concat(kept)


def _footnote(rows: Iterable[Row]) -> str:
    return "" if all(has_width(row) for row in rows) else f"† {NO_WIDTH_NOTE}"


def _notes(experiment: str, rows: pl.DataFrame, role: Mapping[str, str]) -> tuple[str, ...]:
    """What a reader must know to take an experiment's figures for what they are."""
    notes = {"rotation": _rotation_note, "robustness_index": _own_k_note}
    if experiment not in notes:
        return ()
    audited = [name for name in sorted(role) if role[name] == "encoder"]
    told = notes[experiment](rows, audited)
    return (told,) if told else ()


def _own_k_note(rows: pl.DataFrame, audited: list[str]) -> str:
    """How many neighbours would suit each encoder best."""
    own = select(rows, "robustness_index", "ri", role="encoder_k", design="all")
    told = [
        f"{row['encoder']} {json.loads(row['setting']).get('k')}"
        for row in own.filter(pl.col("encoder").is_in(audited))
        .sort("encoder")
        .iter_rows(named=True)
    ]
    if not told:
        return ""
    return f"Number of neighbours at which each encoder finds the label best: {', '.join(told)}."


def _rotation_note(rows: pl.DataFrame, audited: list[str]) -> str:
    """What m-kNN depends on, with the figures at other numbers of neighbours."""
    usual = rotation_setting(rows)
    metric = {"metric": usual["metric"]} if "metric" in usual else {}
    at_90 = select(rows, "rotation", "mknn", angle=90, view="rotated", **metric)
    at_90 = at_90.filter(stratum="all").drop_nulls("value")
    if at_90.is_empty():
        return ""
    parts = (_other_ks(at_90.filter(encoder=name), name, usual) for name in audited)
    told = "; ".join(part for part in parts if part)
    threshold = select(rows, "rotation", "mknn", angle=90).drop_nulls("threshold")["threshold"]
    return (
        f"The share kept depends on the number of neighbours and of tiles: here "
        f"{usual.get('k', 'n/a')} neighbours among {at_90['n'][0]:,} tiles"
        f"{f' (at 90°, {told})' if told else ''}; published figures used 1,024 tiles."
        f"{_threshold_note(threshold[0]) if len(threshold) else ''}"
    )


def _other_ks(rows: pl.DataFrame, name: str, usual: Mapping[str, Any]) -> str:
    """What one encoder keeps at other numbers of neighbours than the check's, beside chance."""
    known = ((json.loads(row["setting"]).get("k"), row) for row in rows.iter_rows(named=True))
    others = {k: row for k, row in known if isinstance(k, int) and k != usual.get("k")}
    told = [
        f"{number(row['value'])} of its {k} nearest (chance {null_text(row)})"
        for k, row in sorted(others.items())
    ]
    return f"{name} keeps {' and '.join(told)}" if told else ""


def _threshold_note(threshold: float) -> str:
    """Whose threshold it is.

    Examples
    --------
    >>> _threshold_note(0.7)
    ' The threshold 0.7 is the one set in rotation.thresholds.'
    """
    if threshold != _REPORTED_MKNN:
        return f" The threshold {threshold:g} is the one set in rotation.thresholds."
    return (
        f" The threshold {threshold:g} is the one reported in arXiv 2510.23807, not verified here; "
        f"set your own in rotation.thresholds."
    )


def _groups(
    rows: pl.DataFrame, role: Mapping[str, str], controls: pl.DataFrame
) -> tuple[TableGroup, ...]:
    groups = []
    for part in rows.partition_by(_GROUP, maintain_order=True):
        entries = [_table_row(row, role, controls) for row in part.iter_rows(named=True)]
        entries.sort(key=lambda entry: (entry.is_control, entry.encoder))
        first = part.row(0, named=True)
        groups.append(TableGroup(check_title(first), threshold_text(first), tuple(entries)))
    return tuple(groups)


def _table_row(row: Row, role: Mapping[str, str], controls: pl.DataFrame) -> TableRow:
    judged = row["threshold"] is not None
    is_control = role[row["encoder"]] == "control"
    return TableRow(
        row["encoder"],
        is_control,
        marked_interval(row),
        _null(row),
        _rests_on(row),
        _badge(row, is_control, controls, row["experiment"]) if judged else None,
        _measured(row) if judged and is_control else "",
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


def _null(row: Row) -> str:
    """The null, with what it is where the column's head would mislead.

    Examples
    --------
    >>> _null({"metric": "knn_accuracy_center", "null_low": 0.2, "null_high": 0.4})
    'centers shuffled: 0.200 to 0.400'
    >>> _null({"metric": "knn_accuracy_center", "null_low": 0.25, "null_high": 0.25})
    'chance 0.250'
    """
    null = null_text(row)
    if row["metric"] not in SHUFFLED or row["null_low"] is None:
        return null
    return (
        f"chance {null}" if row["null_low"] == row["null_high"] else SHUFFLED[row["metric"]] + null
    )


def _rests_on(row: Row) -> str:
    """What a figure was counted over.

    Examples
    --------
    >>> _rests_on({"experiment": "rotation", "n": 1044, "n_patients": 48, "setting": "{}"})
    '1,044 tiles of 48 patients'
    """
    unit = experiment_words(row["experiment"]).unit
    text = f"{row['n']:,} {unit} of {_count(row['n_patients'], 'patient')}"
    paired = str(json.loads(row["setting"]).get("design", "")).startswith("paired")
    return f"{text}, counted once per pair" if paired else text


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
        f"and that no control of the experiment speaks against it.",
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
        limits.append("Nothing about tissue: the cohort is drawn.")
    limits += [f"The cohort: {text}" for text in design_summary.get("warnings", [])]
    for row in controls.filter(pl.col("blocks")).iter_rows(named=True):
        title = experiment_name(row["experiment"]).lower()
        limits.append(f"Nothing on {title}: the control {row['control']} {row['reason']}.")
    for row in controls.filter(pl.col("blocks_pass")).iter_rows(named=True):
        title = experiment_name(row["experiment"]).lower()
        limits.append(
            f"No PASS on {title}: the control {row['control']} has to fail there but is undecided: "
            f"{row['reason']}."
        )
    lost = slides.filter(status="unusable").height
    if lost:
        limits.append(
            f"Nothing about {lost:,} of {slides.height:,} slides that could not be used (listed below)."
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


def _control(row: Row) -> dict[str, Any]:
    told = behaves_text(row)
    state = "behaves" if row["behaves"] else "misbehaves"
    if row["behaves"] is None and not row["blocks"]:
        state = "open" if row["blocks_pass"] else "unasked"
    words = told if row["behaves"] is None else CONTROL_WORDS[state]
    return {
        **row,
        "badge": Badge(state, CONTROL_SIGNS[state], words),
        "reason": row["reason"].removeprefix(f"{told}: "),
        "experiment": experiment_name(row["experiment"]),
    }


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
        ("Slides", f"{usable.height:,} usable of {slides.height:,}"),
        ("Patients", f"{usable['patient_id'].n_unique():,}"),
        ("Centers", _names(usable, "center")),
        ("Organs", _names(usable, "organ")),
        ("Labels", _names(usable, "label")),
        ("Scanners", _names(usable, "scanner")),
        ("File formats", _names(usable, "vendor")),
        ("Micrometres per pixel", _range(usable, "mpp")),
    ]
    if len(per_slide):
        spread = f"{per_slide[0]:,} to {per_slide[-1]:,}, median {_median(per_slide):,g}"
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
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str | float):
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
    usual = _usual_settings(measurements, provenance)
    cohort, search = usual["robustness_index"], usual["retrieval"]
    turned = rotation_setting(measurements)
    whole = measurements.filter(stratum="all")
    index = "robustness_index"
    ratio = select(whole, index, "ri_ratio", **cohort)
    above_null = select(whole, index, "ri_minus_null", **cohort)
    at_90 = select(whole, "rotation", "mknn", angle=90, view="rotated", **turned)
    excess = select(whole, "rotation", "mknn_excess_drop", **turned)
    variance = select(whole, "rotation", "mknn_variance", **turned)
    mean = select(whole, "rotation", "mknn_mean", view="rotated", **turned)
    organs = select(whole, "retrieval", "f1_range_over_organs", **search)
    macro = select(whole, "retrieval", "macro_f1", **search)

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
            _setting_of(above_null),
            "The ratio form is below 1. An encoder that knows nothing gives C/B for B labels and C "
            "centers, which may itself be below or above 1.",
            "The index minus its design null is below 0.",
            rows(ratio, _below(1.0), above_null, _below(0.0)),
            footnote=_footnote_of(ratio, above_null),
        ),
        Claim(
            "Encoders are sensitive to rotation: m-kNN drops by more than 0.2 at 90°",
            _setting_of(at_90),
            "m-kNN at 90° is below 0.8.",
            "Turning there and back blurs without turning: what is lost beyond it, as a mean over "
            f"the angles between quarter turns, is above 0.{_edges_note(excess)}",
            rows(at_90, _below(0.8), excess, _above(0.0)),
            footnote=_footnote_of(at_90, excess),
        ),
        Claim(
            "Sensitivity shows as a variance over angles above 0.1",
            _setting_of(variance),
            "Variance of m-kNN over the angles above 0.1.",
            "Out of reach in practice: the largest possible is 0.25, the largest published 0.005. "
            "The mean over angles says more.",
            rows(variance, _above(0.1), mean, _told),
            head="Mean over angles",
            footnote=_footnote_of(variance, mean),
        ),
        Claim(
            "Retrieval differs between organs by more than 0.30 in F1",
            _setting_of(organs),
            "F1 of the best organ minus the worst above 0.30. Reported: kidney 0.68, lung 0.21 "
            "(not verified).",
            "A range grows with the number of organs and with few slides in one: read it with its "
            "interval and its null.",
            rows(organs, _above(0.3), organs, _above_null),
            head="Beside its null",
            footnote=_footnote_of(organs),
        ),
        Claim(
            "Zero-shot retrieval reaches a macro-F1 of 0.40 to 0.42",
            _setting_of(macro),
            "Macro-F1 of 23 organs between 0.40 and 0.42; a reference, not a test: other slides, "
            "other labels.",
            "Yottixel compares several vectors per slide already, so the figure is no evidence "
            "against single vectors.",
            rows(macro, _reference, macro, _above_null),
            head="Beside its null",
            footnote=_footnote_of(macro),
        ),
    ]


def _setting_of(rows: pl.DataFrame) -> str:
    """The setting in which a claim's figures were measured."""
    return setting_text(rows["setting"].sort()[0]) if rows.height else "not measured"


def _footnote_of(*tables: pl.DataFrame) -> str:
    return _footnote(row for table in tables for row in table.iter_rows(named=True))


def _edges_note(excess: pl.DataFrame) -> str:
    """How much turning costs an encoder that knows only colour: what the changed edges do."""
    row = _one(excess, "stain_statistics")
    if row is None or row["value"] is None:
        return ""
    return (
        " Between quarter turns the edges change a little; stain_statistics shows how much "
        f"({interval_text(row)}). Read an encoder's figure against it."
    )


def _one(rows: pl.DataFrame, encoder: str) -> dict[str, Any] | None:
    """An encoder's row."""
    own = rows.filter(pl.col("encoder") == encoder).sort("setting")
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
    return (
        f"{interval_text(row)}: {row['reason']}" if row["value"] is None else marked_interval(row)
    )


def _claim_held(row: Row | None, held: Callable[[Row], str]) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["ci_low"] is None or row["ci_high"] is None:
        return "no interval"
    return held(row)


def _side(low: bool, high: bool) -> str:
    return "held" if low else "did not hold" if high else "undecided"


def _below(threshold: float) -> Callable[[Row], str]:
    return lambda row: _side(row["ci_high"] < threshold, row["ci_low"] >= threshold)


def _above(threshold: float) -> Callable[[Row], str]:
    return lambda row: _side(row["ci_low"] > threshold, row["ci_high"] <= threshold)


def _above_null(row: Row) -> str:
    if row["null_low"] is None or row["null_high"] is None:
        return "no null"
    above, below = row["ci_low"] > row["null_high"], row["ci_high"] < row["null_low"]
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
        ("Adversarial noise takes accuracy from 0.97 to 0.12", "adversarial"),
        ("Larger fields of view raise F1 by more than 0.05", "field_of_view"),
        ("One vector cannot encode the combinations of tissue patterns", "capacity"),
        ("Label noise in pretraining collapses the geometry", "noise"),
        ("Linear probing beats fine-tuning by more than 0.05", "adaptation"),
        ("Up to 35 times the energy of task-specific models", "energy"),
    ]
    return [
        (claim, "see its section" if experiment in measured else "not measured in this audit")
        for claim, experiment in claims
    ]
