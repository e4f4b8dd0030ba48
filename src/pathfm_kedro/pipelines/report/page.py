"""The report: one HTML file that needs nothing else, the verdict first, the evidence below."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any

import polars as pl

from pathfm_kedro.pipelines.report.badges import (
    CONTROL_SIGNS,
    CONTROL_WORDS,
    Badge,
    badge_of,
    behaves_text,
    behaving,
    measured_text,
)
from pathfm_kedro.pipelines.report.cards import ASSUMPTION, cards_of
from pathfm_kedro.pipelines.report.claims import claims_of
from pathfm_kedro.pipelines.report.cohort import (
    MAX_REASONS,
    audited_slides,
    cohort_facts,
    lost_slides,
)
from pathfm_kedro.pipelines.report.controls import roles
from pathfm_kedro.pipelines.report.examples import Example
from pathfm_kedro.pipelines.report.findings import ALPHA, label_is_read
from pathfm_kedro.pipelines.report.matrix import matrix_of
from pathfm_kedro.pipelines.report.plots import (
    DESIGN_CAPTION,
    FINDINGS_CAPTION,
    experiment_plots,
    styles_of,
)
from pathfm_kedro.pipelines.report.sections import Plot, sections_of
from pathfm_kedro.pipelines.report.templates import template
from pathfm_kedro.pipelines.report.text import Row, count_of, without_folders
from pathfm_kedro.pipelines.report.words import Words

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Of a plot that does not say, in pixels.
_HEIGHT = 450
#: How names of architectures' nulls end.
_RANDOM_WEIGHTS = "_random_weights"


def render_report(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    verdicts: pl.DataFrame,
    measurements: pl.DataFrame,
    slides: pl.DataFrame,
    design: pl.DataFrame,
    design_summary: Mapping[str, Any],
    tiles: pl.DataFrame,
    tiling: pl.DataFrame,
    provenance: Mapping[str, Any],
    parameters: Mapping[str, Any],
    words: Mapping[str, Any],
    examples: Sequence[Example],
    findings_plot: Any,
    design_plot: Any,
    *first_plots: Any,
    experiments: tuple[str, ...] = (),
) -> str:
    """Render the audit as one self-contained HTML page.

    Parameters
    ----------
    findings, controls, verdicts
        From :mod:`.findings`, :mod:`.controls` and :mod:`.verdicts`.
    measurements
        Measurements of all experiments and encoders; an experiment without words gets a section with
        its values and intervals.
    slides, design, tiles, tiling
        The cohort: slides with status and reason, patients and slides per label and center, tiles,
        and what became of each slide that was cut.
    design_summary
        ``cramers_v`` (None where undefined) and ``warnings``.
    provenance
        cohort, is_phantom, site_bias, encoders, versions, parameters.
    parameters
        The report's own parameters: ``alpha``.
    words
        From :func:`~pathfm_kedro.pipelines.report.words.gather_words`.
    examples
        Tiles that show how checks fail, from :mod:`.examples`.
    findings_plot, design_plot, first_plots
        Figures that were plotted before; the first plot of each of `experiments`.
    experiments
        Whose first plots are given.

    Returns
    -------
    str
        HTML that loads nothing; the same tables give the same bytes. All text from the tables is
        escaped, absolute paths are cut to the file's name.
    """
    wording = Words.read(words)
    audited = audited_slides(slides, tiling)
    names = measurements["encoder"].unique().sort().to_list()
    role = roles(provenance, names)
    boxes = count(1)
    given = dict(zip(experiments, first_plots, strict=True))
    plots = _plots_of_experiments(measurements, provenance, wording, given, boxes)
    sections = sections_of(measurements, findings, controls, plots, role, wording)
    return template("pipelines/report/report.html").render(
        provenance=provenance,
        identity=_identity(slides, provenance),
        behaving=behaving(controls),
        phantom=_phantom(provenance, wording),
        unread=_unread(measurements, audited, role, wording),
        matrix=matrix_of(findings, measurements, verdicts, controls, role, wording),
        anchors={section.experiment: section.anchor for section in sections},
        cards=cards_of(findings, verdicts, controls, parameters, wording),
        assumption=ASSUMPTION,
        control_cards=_cards(verdicts, controls, "control"),
        may=_may(findings, audited, parameters),
        may_not=_may_not(findings, controls, audited, design_summary, provenance, wording),
        overview=_shown(findings_plot, FINDINGS_CAPTION, boxes) if findings.height else (),
        sections=sections,
        examples={
            section.experiment: [e for e in examples if e.experiment == section.experiment]
            for section in sections
        },
        example_words={x: wording.of(x).examples for x in {e.experiment for e in examples}},
        controls=[_control(row, wording) for row in controls.iter_rows(named=True)],
        claims=claims_of(measurements, role, wording),
        cohort=cohort_facts(audited, tiles),
        design=design.sort("label", "center", *design.columns).to_dicts(),
        design_plots=_shown(design_plot, DESIGN_CAPTION, boxes) if design.height else (),
        cramers_v=design_summary.get("cramers_v"),
        lost=lost_slides(audited)[:MAX_REASONS],
        encoders=_encoders(provenance),
        versions=sorted(provenance.get("versions", {}).items()),
        parameters=_pretty(provenance.get("parameters", {})),
        plotly=_plotly(),
    )


def _plots_of_experiments(
    measurements: pl.DataFrame,
    provenance: Mapping[str, Any],
    words: Words,
    given: Mapping[str, Any],
    boxes: Iterable[int],
) -> dict[str, tuple[Plot, ...]]:
    """Plots of each experiment; the first may have been plotted before."""
    styles = styles_of(measurements, provenance)
    found: dict[str, tuple[Plot, ...]] = {}
    for experiment in words.order(measurements["experiment"].to_list()):
        plotted = experiment_plots(measurements, experiment, styles, words)
        if plotted and experiment in given:
            plotted[0] = plotted[0][0], given[experiment]
        found[experiment] = tuple(
            entry for caption, figure in plotted for entry in _shown(figure, caption, boxes)
        )
    return found


def _shown(figure: go.Figure, caption: str, boxes: Iterable[int]) -> tuple[Plot, ...]:
    """A figure in a box of its own; boxes are numbered, since names may hold any character."""
    content = _shortened(json.loads(figure.to_json(engine="json")))
    data = _Raw(script_json(json.dumps(content, separators=(",", ":"), ensure_ascii=False)))
    height = int(figure.layout.height or _HEIGHT)
    return (Plot(f"figure-{next(iter(boxes))}", caption, data, height),)


def _shortened(value: Any) -> Any:
    """Numbers with as many digits as a screen has pixels."""
    if isinstance(value, dict):
        return {key: _shortened(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _plotly() -> str:
    """The plotting library, packed: a browser unpacks it when the first plot comes into sight."""
    from plotly.offline import get_plotlyjs

    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


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


def _identity(slides: pl.DataFrame, provenance: Mapping[str, Any]) -> list[str]:
    """What was audited by which version, so that two reports can be distinguished."""
    version = provenance.get("versions", {}).get("pathfm-kedro")
    role = [encoder.get("role") for _, encoder in sorted(provenance.get("encoders", {}).items())]
    n_controls = role.count("control")
    return [
        *([f"pathfm-kedro {version}"] if version else []),
        f"fingerprint of the slides {slides_digest(slides)}",
        count_of(len(role) - n_controls, "encoder"),
        count_of(n_controls, "control"),
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


def _phantom(provenance: Mapping[str, Any], words: Words) -> str:
    if not provenance.get("is_phantom"):
        return ""
    bias, note = provenance.get("site_bias"), words.report.phantom_note
    if bias is None:
        return note
    return (
        f"{note} Difference between its drawn centers, from 0 (none) to 1 (colour predicts "
        f"the center alone): {bias:g}."
    )


def _unread(
    measurements: pl.DataFrame, slides: pl.DataFrame, role: Mapping[str, str], words: Words
) -> str:
    """Said first where the cohort has no label that could be read."""
    if slides.filter(status="usable")["label"].drop_nulls().n_unique() < 2:
        return "The slides have fewer than two labels: no check that needs labels can be made."
    check = words.report.label_check
    if check is not None and label_is_read(measurements, role, words) is False:
        return f"{check.reason[:1].upper()}{check.reason[1:]}. They are open below."
    return ""


def _cards(verdicts: pl.DataFrame, controls: pl.DataFrame, role: str) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "badge": badge_of(row, role == "control", controls),
            "measured": measured_text(row) if role == "control" else "",
        }
        for row in verdicts.filter(pl.col("role") == role).iter_rows(named=True)
    ]


def _may(findings: pl.DataFrame, slides: pl.DataFrame, parameters: Mapping[str, Any]) -> list[str]:
    usable = slides.filter(status="usable")
    alpha = float(parameters.get("alpha", ALPHA))
    checks = findings.filter(pl.col("q_value").is_not_null(), role="encoder").height
    return [
        f"A PASS or FAIL says that the whole 95% interval over patients lies on one side of the "
        f"threshold, that this holds after correcting for all {checks} checks (false discovery rate "
        f"below {100 * alpha:g}%), "
        f"and that no control of the experiment speaks against it.",
        f"It holds for slides like these: {count_of(usable.height, 'slide')} with tiles of "
        f"{count_of(usable['patient_id'].n_unique(), 'patient')} from "
        f"{count_of(usable['center'].n_unique(), 'center')}, with "
        f"{count_of(usable['label'].n_unique(), 'label')}.",
    ]


def _may_not(
    findings: pl.DataFrame,
    controls: pl.DataFrame,
    slides: pl.DataFrame,
    design_summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    words: Words,
) -> list[str]:
    limits = []
    if provenance.get("is_phantom"):
        limits.append("Nothing about tissue: the cohort is drawn.")
    limits += [f"The cohort: {text}" for text in design_summary.get("warnings", [])]
    for row in controls.filter(pl.col("blocks")).iter_rows(named=True):
        title = words.name(row["experiment"]).lower()
        limits.append(f"Nothing on {title}: the control {row['control']} {row['reason']}.")
    for row in controls.filter(pl.col("blocks_pass")).iter_rows(named=True):
        title = words.name(row["experiment"]).lower()
        limits.append(
            f"No PASS on {title}: the control {row['control']} has to fail there but is undecided: "
            f"{row['reason']}."
        )
    lost = slides.filter(status="unusable").height
    if lost:
        limits.append(
            f"Nothing about {lost:,} of {slides.height:,} slides, which could not be used or gave no "
            "tile (reasons below)."
        )
    for name, encoder in sorted(provenance.get("encoders", {}).items()):
        if encoder.get("n_failed"):
            limits.append(
                f"Nothing about {count_of(encoder['n_failed'], 'slide')} that {name} could not embed."
            )
        if encoder.get("n_left_out"):
            limits.append(
                f"Nothing of {name} on {count_of(encoder['n_left_out'], 'slide')}: their patients "
                "train it. It is audited on the others, so its figures are of fewer patients."
            )
        if encoder.get("role") == "control" and name.endswith(_RANDOM_WEIGHTS):
            limits.append(
                f"No expectation of chance for {name}: it is an architecture before any training, "
                f"which sees colours and patterns. Where {name.removesuffix(_RANDOM_WEIGHTS)} is no "
                "better, its training has brought nothing to that check."
            )
        if differs := (encoder.get("preset") or {}).get("differs"):
            limits.append(f"Not how {name} does on the tiles it is made for: it was {differs}.")
    limits += _about_tiles(provenance)
    if findings.filter(verdict="inconclusive").height:
        limits.append("OPEN is not a weak pass: the question is open on these slides.")
    limits.append(
        "No statement about diagnosis in patients: the checks look for known ways to go wrong, and "
        "an encoder that passes them may still be wrong in another way."
    )
    return limits


def _about_tiles(provenance: Mapping[str, Any]) -> list[str]:
    """What a cohort without slides cannot show, and which encoders have vectors of other tiles."""
    limits = []
    cards = provenance.get("encoders", {})
    parameters = provenance.get("parameters", {})
    if parameters.get("cohort", {}).get("source") == "features":
        asked = {name for name, entry in parameters.get("encoders", {}).items() if entry}
        out = ", ".join(sorted(asked - set(cards)))
        left = f"; left out for that reason: {out}" if out else ""
        limits.append(f"Nothing that needs pixels: the cohort has features and no slides{left}.")
    for name, card in sorted(cards.items()):
        if sizes := card.get("field_um"):
            limits.append(
                f"No statement about one magnification: {name} was shown tiles of {sizes[0]:.4g} to "
                f"{sizes[1]:.4g} µm, and encoders follow magnification. Where centers differ in it, "
                "figures of centers say that as well."
            )
    grids: dict[str, list[str]] = {}
    for name, card in sorted(cards.items()):
        grids.setdefault(card.get("grid", ""), []).append(name)
    if len(grids) > 1:
        named = "; ".join(
            f"{', '.join(names)}: {_tiles_of(grid)}" for grid, names in sorted(grids.items())
        )
        limits.append(
            "No comparison of encoders alone where their tiles differ, since the tissue in a tile "
            f"differs as well ({named})."
        )
    return limits


def _tiles_of(grid: str) -> str:
    """Tiles of a grid in words."""
    if not grid:
        return "the cohort's tiles"
    if grid.startswith("features_"):
        return "the tiles of its files"
    return f"tiles of {grid.replace('px_', ' px at ').replace('mpp', ' µm/px').replace('_', '.')}"


def _control(row: Row, words: Words) -> dict[str, Any]:
    answer = behaves_text(row)
    state = "behaves" if row["behaves"] else "misbehaves"
    if row["behaves"] is None and not row["blocks"]:
        state = "open" if row["blocks_pass"] else "unasked"
    shown = answer if row["behaves"] is None else CONTROL_WORDS[state]
    return {
        **row,
        "badge": Badge(state, CONTROL_SIGNS[state], shown),
        "reason": row["reason"].removeprefix(f"{answer}: "),
        "experiment": words.name(row["experiment"]),
    }


def _encoders(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = ("model", "role", "dimension", "n_slides", "n_failed", "fingerprint", "preprocessing")
    return [
        {
            "name": name,
            "published": _published(encoder.get("preset") or {}),
            **{key: _pretty(encoder.get(key)) for key in keys},
        }
        for name, encoder in sorted(provenance.get("encoders", {}).items())
    ]


def _published(preset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the registry of presets knows of an encoder, as name and value."""
    if not preset:
        return []
    answers = {True: "yes", False: "no", None: "unclear"}
    trained = preset["trained_on"]
    scales = " or ".join(f"{mpp:g}" for mpp in trained.get("mpp") or ())
    tiles = f"tiles of {trained['pixels']} px" if trained else "unknown"
    return [
        ("Preset", preset["name"]),
        ("Licence", preset["licence"] or "unknown"),
        ("Commercial use", answers[preset["commercial"]]),
        ("Gated", answers[preset["gated"]]),
        ("Revision", preset["revision"] or "not pinned"),
        ("Trained on", f"{tiles} at {scales} µm per px" if scales else tiles),
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
