"""The words of the report: read from the parameters, so that an institution can change them.

Code knows no experiment: what it is called, what its figures mean, how it is plotted and what the
controls must show stands in ``parameters_words_<pipeline>.yml``. An experiment without words is
described by the names in its table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

import polars as pl
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.report.text import Row, humanise, threshold_text, value_text

_STRICT = ConfigDict(extra="forbid", defer_build=True)
#: Blocks of parameters that hold words begin so.
_PREFIX = "words_"
#: The block that belongs to the report as a whole.
_REPORT = "words_report"
#: Stands for every value of a setting that has no words of its own; ``{}`` in its words is the value.
ANY = "*"
#: Settings that are counted: `5 neighbours`.
_COUNTED = {"k": "neighbour", "n_tiles": "tile", "m": "nearest tile"}

Setting = Mapping[str, Any]


@dataclass(frozen=True, config=_STRICT)
class MetricAt:
    """Words of a figure at one setting, where they differ between settings."""

    target: str
    short: str = ""
    fail: str = ""
    use: str = ""


@dataclass(frozen=True, config=_STRICT)
class FigureAt:
    """A figure of an experiment at a setting."""

    metric: str
    at: Setting = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class MetricWords:
    """How a figure is described.

    Attributes
    ----------
    name
        As a title.
    short
        Of its check, in a sentence.
    fail
        What failing its check says about the encoder.
    use
        What an encoder that passes its check may be used for.
    core
        Whether no encoder passes as a whole without this check.
    counts
        Whether it is a whole number.
    at
        Short name, failure and use by the setting's target.
    """

    name: str = ""
    short: str = ""
    fail: str = ""
    use: str = ""
    core: bool = False
    counts: bool = False
    at: tuple[MetricAt, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class NoteWords:
    """A sentence below an experiment's heading with figures of the audited encoders in it.

    Attributes
    ----------
    text
        ``{values}`` and ``{n}`` (tiles) are filled in.
    metric, at
        Which figures.
    tell
        ``value``, or an entry of the setting.
    over
        Entry of the setting over which values are listed.
    """

    text: str
    metric: str
    at: Setting = field(default_factory=dict)
    tell: str = "value"
    over: str = ""


@dataclass(frozen=True, config=_STRICT)
class ControlWords:
    """What a control must show for the findings of an experiment to count.

    Attributes
    ----------
    control
        Its name.
    must
        ``pass``, ``fail``, ``lie_at_null`` or ``lie_near_chance`` (``report.chance_margin``).
    expectation, otherwise
        What is expected, and what is said where it is not met.
    metric, at
        Of which figure; of the judged one where `at` is left out.
    where
        ``{metric, exceeds, more, less, else}``: asked only where the control's agreement beyond chance
        in the first figure lies above that in the second, described as more and less; else why not.
    where_judged
        Asked only where the experiment has a criterion.
    pass_blocks
        Whether a pass of a control that must fail blocks every finding and not only those that pass.
    """

    control: str
    must: str
    expectation: str
    otherwise: str = ""
    metric: str = ""
    at: Setting = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    where_judged: bool = False
    pass_blocks: bool = False


@dataclass(frozen=True, config=_STRICT)
class PublishedMark:
    """A figure that others published, as a labelled mark in a plot."""

    name: str
    x: float
    value: float


@dataclass(frozen=True, config=_STRICT)
class PublishedWords:
    """Published figures of a plot.

    Attributes
    ----------
    n, at
        Their protocol: drawn only where the cohort's figure was counted over as many, at this setting.
    marks
        What was published.
    """

    marks: tuple[PublishedMark, ...]
    n: int
    at: Setting = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class PlotWords:
    """A plot of an experiment: its kind and what it shows."""

    kind: str
    caption: str = ""
    metric: str = ""
    x: Any = None
    y: Any = None
    at: Setting = field(default_factory=dict)
    x_title: str = ""
    y_title: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_ticks: int = 0
    null_band: Mapping[str, str] = field(default_factory=dict)
    threshold: str = ""
    beside: Mapping[str, Any] = field(default_factory=dict)
    marked: Mapping[str, str] = field(default_factory=dict)
    published: PublishedWords | None = None
    stratum: str = ""
    each: tuple[str, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class ExampleWords:
    """Of tiles that show how a check fails: what they are together, and each part of an example."""

    title: str
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class ExperimentWords:
    """How an experiment is described to somebody who never met it; see the head of a file of words."""

    title: str = ""
    group: str = ""
    meaning: str = ""
    published: str = ""
    unit: str = "rows"
    null_title: str = "If it knew nothing"
    usual: Setting = field(default_factory=dict)
    usual_of_check: tuple[str, ...] = ()
    front: tuple[FigureAt, ...] = ()
    key_figures: tuple[str, ...] | None = None
    hidden: tuple[str, ...] = ()
    folded: str = ""
    metrics: Mapping[str, MetricWords] = field(default_factory=dict)
    shown_null: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    plots: tuple[PlotWords, ...] = ()
    notes: tuple[NoteWords, ...] = ()
    controls: tuple[ControlWords, ...] = ()
    examples: ExampleWords | None = None


@dataclass(frozen=True, config=_STRICT)
class GroupWords:
    """Experiments that answer one question.

    Attributes
    ----------
    title
        Of the group.
    core
        Whether an encoder passes as a whole only with a decided check here.
    needs_label
        Whether its checks decide nothing where nobody reads the label.
    """

    title: str
    core: bool = False
    needs_label: bool = False


@dataclass(frozen=True, config=_STRICT)
class LabelCheck:
    """The figure that tells whether the label can be read at all, and what is said where not."""

    experiment: str
    metric: str
    reason: str
    at: Setting = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class ClaimFigure:
    """A figure that speaks to a claim: its heading, which one it is, and when the claim holds."""

    head: str
    experiment: str
    metric: str
    criterion: Mapping[str, Any] = field(default_factory=dict)
    at: Setting = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class ClaimWords:
    """A statement of a paper.

    Attributes
    ----------
    kind
        Of ``kinds_of_claims``.
    title, printed
        What it says.
    holds
        What holds of it, with the correction.
    here
        Figures of the cohort that speak to it.
    beyond
        What such a cohort cannot show.
    """

    kind: str
    title: str
    printed: str
    holds: str
    beyond: str
    here: tuple[ClaimFigure, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class ReportWords:
    """Words of the report as a whole."""

    groups: Mapping[str, GroupWords] = field(default_factory=dict)
    label_check: LabelCheck | None = None
    controls: tuple[ControlWords, ...] = ()
    kinds_of_claims: Mapping[str, str] = field(default_factory=dict)
    claims: tuple[ClaimWords, ...] = ()
    phantom_note: str = ""


@dataclass(frozen=True, config=_STRICT)
class Words:
    """All words: of experiments by name, in the order of the report, and of the report as a whole."""

    experiments: Mapping[str, ExperimentWords] = field(default_factory=dict)
    report: ReportWords = field(default_factory=ReportWords)

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> Words:
        """Read what :func:`gather_words` gathered.

        Raises
        ------
        ValueError
            Naming the place and what is wrong there.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(words))
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"parameters_words_*.yml: {'; '.join(problems)}") from None

    def of(self, experiment: str) -> ExperimentWords:
        """Words of an experiment; a plain title where it has none of its own.

        Examples
        --------
        >>> Words().of("colour_swap").title
        'Colour swap'
        """
        known = self.experiments.get(experiment)
        return known or ExperimentWords(title=humanise(experiment))

    def metric(self, row: Row) -> MetricWords:
        """Words of a row's figure."""
        return self.of(row["experiment"]).metrics.get(row["metric"], MetricWords())

    def name(self, experiment: str) -> str:
        """The short name of an experiment: its title up to the question."""
        return self.of(experiment).title.split(":")[0]

    def group(self, experiment: str) -> str:
        """The group of an experiment; empty where it has none."""
        return self.of(experiment).group

    def needs_label(self, experiment: str) -> bool:
        """Whether the experiment decides nothing where nobody reads the label."""
        known = self.report.groups.get(self.group(experiment))
        return known is not None and known.needs_label

    def core_metrics(self) -> dict[tuple[str, str], MetricWords]:
        """Figures without whose verdict no encoder passes, by experiment and metric."""
        return {
            (x, metric): words
            for x, experiment in self.experiments.items()
            for metric, words in experiment.metrics.items()
            if words.core
        }

    def order(self, experiments: Iterable[str]) -> list[str]:
        """Experiments without repeats, those with words first and in the order of the report.

        Examples
        --------
        >>> words = Words.read({"experiments": {"rotation": {}, "index": {}}})
        >>> words.order(["zeta", "index", "alpha", "rotation"])
        ['rotation', 'index', 'alpha', 'zeta']
        """
        present = set(experiments)
        return [name for name in self.experiments if name in present] + sorted(
            present - set(self.experiments)
        )

    def metric_ranks(self, rows: pl.DataFrame) -> pl.Series:
        """Place of each row's figure in the reading order of its experiment."""
        places = {x: list(words.metrics) for x, words in self.experiments.items()}
        pairs = rows.select("experiment", "metric").iter_rows()
        ranks = [places[x].index(m) if m in places.get(x, []) else 999 for x, m in pairs]
        return pl.Series(ranks, dtype=pl.Int64)

    def metric_name(self, row: Row) -> str:
        """What a row's figure is called."""
        return self.metric(row).name or humanise(row["metric"])

    def with_counts(self, table: pl.DataFrame) -> pl.DataFrame:
        """The table with ``counts``: whether a row's figure is a whole number."""
        whole = {
            f"{x}\t{m}"
            for x, w in self.experiments.items()
            for m, v in w.metrics.items()
            if v.counts
        }
        key = pl.concat_str("experiment", "metric", separator="\t")
        return table.with_columns(counts=key.is_in(sorted(whole)))

    def setting_text(self, experiment: str, setting: str | Setting) -> str:
        """A setting as words; what every reader takes for granted is left out.

        Examples
        --------
        >>> words = Words.read({"experiments": {"rotation": {"settings": {
        ...     "distance": {"cosine": "cosine distance"}, "view": {"rotated": ""}}}}})
        >>> words.setting_text("rotation", {"angle": 90, "k": 10, "view": "rotated"})
        'at 90°, 10 neighbours'
        """
        entries = json.loads(setting) if isinstance(setting, str) else dict(setting)
        known = self.of(experiment).settings
        return ", ".join(
            text for key, value in entries.items() if (text := _entry_text(key, value, known))
        )

    def plain_title(self, row: Row) -> str:
        """What a row measures, without its setting."""
        title = self.metric_name(row)
        stratum = row["stratum"]
        return title if stratum == "all" else f"{title}, {stratum.replace('=', ' ')}"

    def check_title(self, row: Row) -> str:
        """What a row measures: metric, stratum and setting in words."""
        setting = self.setting_text(row["experiment"], row["setting"])
        return ", ".join(part for part in (self.plain_title(row), setting) if part)

    def named_title(self, row: Row, title: str) -> str:
        """A title that begins with its experiment, once."""
        name = self.name(row["experiment"])
        return title if title.startswith(name) else f"{name}: {title}"

    def check_name(self, row: Row) -> str:
        """The short name of a check, to stand in a sentence."""
        words = self.metric(row)
        at = self._at(words, row)
        if at and at.short:
            return at.short
        if words.short:
            return words.short
        title = self.metric_name(row)
        if not (title[1:2].isupper() or title[1:2].isdigit()):
            title = title[0].lower() + title[1:]
        stratum = row["stratum"]
        return title if stratum == "all" else f"{title} in {stratum.replace('=', ' ')}"

    def failure_text(self, row: Row) -> str:
        """What failing this check says about the encoder."""
        words = self.metric(row)
        at = self._at(words, row)
        known = (at.fail if at else "") or words.fail
        return known or f"{humanise(row['experiment']).lower()}: {self.check_name(row)}"

    def use_text(self, row: Row) -> str:
        """What an encoder that passes this check may be used for."""
        words = self.metric(row)
        at = self._at(words, row)
        text = (at.use if at else "") or words.use or self.check_name(row)
        return text[:1].upper() + text[1:]

    def held_against(self, row: Row) -> str:
        """A figure beside what it must be; without one, why."""
        if row["value"] is None:
            return str(row["reason"] or "").split("; ")[0]
        shown = {**row, "counts": self.metric(row).counts}
        return f"{value_text(shown)}, must be {threshold_text(row)}"

    def usual(self, measurements: pl.DataFrame, experiment: str) -> dict[str, Any]:
        """The setting of an experiment that its checks use: what a reader needs first."""
        fixed = dict(self.of(experiment).usual)
        return fixed | self.usual_of_check(measurements, experiment)

    def usual_of_check(self, measurements: pl.DataFrame, experiment: str) -> dict[str, Any]:
        """Entries of the usual setting that come from the judged figure.

        Where none is judged, those of the setting that was measured most.
        """
        keys = self.of(experiment).usual_of_check
        rows = measurements.filter(experiment=experiment)
        judged = rows.drop_nulls("threshold")
        counted: dict[str, int] = {}
        for entry in settings_of(judged if judged.height else rows):
            if keys and all(key in entry for key in keys):
                name = json.dumps({key: entry[key] for key in keys}, sort_keys=True)
                counted[name] = counted.get(name, 0) + 1
        best = max(counted, key=lambda name: (counted[name], name), default="{}")
        return dict(json.loads(best))

    def setting_ranks(self, rows: pl.DataFrame) -> pl.Series:
        """Place of each row's setting: values in the order of the words, then others."""
        places = {
            x: {key: list(values) for key, values in words.settings.items()}
            for x, words in self.experiments.items()
        }
        pairs = zip(rows["experiment"], settings_of(rows), strict=True)
        ranks = [
            sum(
                known[key].index(value) if value in known[key] else len(known[key])
                for key, value in setting.items()
                if isinstance(value, str) and key in (known := places.get(x, {}))
            )
            for x, setting in pairs
        ]
        return pl.Series(ranks, dtype=pl.Int64())

    @staticmethod
    def _at(words: MetricWords, row: Row) -> MetricAt | None:
        target = json.loads(row["setting"]).get("target") if words.at else None
        return next((at for at in words.at if at.target == target), None)


def gather_words(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The words of all pipelines: parameters whose name begins with ``words_``.

    Returns
    -------
    dict
        ``experiments`` in the order of the pipelines, and ``report``.

    Examples
    --------
    >>> gather_words({"words_robustness": {"rotation": {}}, "words_report": {}, "rotation": {}})
    {'experiments': {'rotation': {}}, 'report': {}}
    """
    blocks = {k: v for k, v in parameters.items() if k.startswith(_PREFIX) and k != _REPORT}
    experiments = {x: words for name in sorted(blocks) for x, words in (blocks[name] or {}).items()}
    order = (parameters.get(_REPORT) or {}).get("order", [])
    ordered = [x for x in order if x in experiments]
    ordered += [x for x in experiments if x not in ordered]
    report = {k: v for k, v in (parameters.get(_REPORT) or {}).items() if k != "order"}
    return {"experiments": {x: experiments[x] or {} for x in ordered}, "report": report}


def select(
    measurements: pl.DataFrame, experiment: str, metric: str, at: Setting | None = None
) -> pl.DataFrame:
    """Rows of one metric whose setting has the given entries.

    Examples
    --------
    >>> table = pl.DataFrame({"experiment": ["rotation"] * 2, "metric": ["mknn"] * 2,
    ...                       "setting": ['{"angle": 90}', '{"angle": 45}'], "value": [0.8, 0.9]})
    >>> select(table, "rotation", "mknn", {"angle": 90})["value"].to_list()
    [0.8]
    """
    rows = measurements.filter(experiment=experiment, metric=metric)
    keep = [
        all(entry.get(key) == value for key, value in (at or {}).items())
        for entry in settings_of(rows)
    ]
    return rows.filter(pl.Series(keep, dtype=pl.Boolean()))


def settings_of(rows: pl.DataFrame) -> Sequence[dict[str, Any]]:
    """The settings of rows, parsed."""
    return [json.loads(text) for text in rows["setting"]]


def _entry_text(key: str, value: Any, known: Mapping[str, Mapping[str, str]]) -> str:
    if value is None:
        return ""
    words = known.get(key, {})
    if isinstance(value, str) and value in words:
        return words[value]
    if ANY in words:
        return words[ANY].format(value)
    if key == "angle":
        return f"at {value:g}°" if isinstance(value, int | float) else f"at {value}"
    if key in _COUNTED and isinstance(value, int):
        return f"{value:,} {_COUNTED[key]}{'' if value == 1 else 's'}"
    if isinstance(value, list):
        return ", ".join(words.get(str(entry), str(entry)) for entry in value)
    shown = value if isinstance(value, str | int | float) else json.dumps(value)
    return f"{key.replace('_', ' ')} {shown}"
