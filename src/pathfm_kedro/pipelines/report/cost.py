"""Cost: what an encoder takes for a tile and for a slide, and whether a smaller model does as well.

- ``flops_per_tile``: floating-point operations of one forward pass
  (:mod:`~pathfm_kedro.encoders.operations`); two for a multiply-add.
- ``seconds_per_tile``, ``cpu_seconds_per_tile``, ``gpu_seconds_per_tile``: by the clock, of all
  threads, and of the GPU's forward pass; reading and resizing are part of the first two.
- ``joules_per_tile``: of the same work, what the machine takes at rest subtracted
  (:mod:`~pathfm_kedro.encoders.energy`); its setting names the source.
- ``joules_per_slide = joules of the search for tissue + tiles per slide × joules_per_tile``.
- ``peak_bytes``: most memory held while embedding, the libraries' own part of it included.
- ``index_bytes_per_slide``: of vectors of all tiles, and of one vector for the slide.
- ``cost_ratio``: over a model trained on this cohort for this task alone (``trained:``), at matched
  accuracy: only where that model's macro-F1 falls short by no more than ``accuracy_margin``. Above 1
  the encoder is dearer.
- ``macro_f1`` and ``ri_minus_null`` stand beside, as retrieval and the robustness index gave them.

Intervals of a tile's seconds and joules are over repeated turns on one machine (Student's on
logarithms), of ratios Welch's on the log ratio; of a slide's joules over turns and patients.

Pitfalls
--------
- Time and energy are those of one machine, one thread and the sampled slides, named in the remark. They
  compare encoders measured on the same machine.
- What the machine takes at rest is subtracted: a machine that is on anyway. Counted with it, a slow
  encoder costs more.
- Accuracy is matched by value: that two macro-F1 are equal is not shown. A model trained on the cohort
  is judged on the patients that did not train it, the encoder on all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.bootstrap import percentile_interval, ratio_estimate
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.readable_numbers import number
from pathfm_kedro.statistics.repeats import Interval, mean_of_repeats, ratio_of_repeats

#: A model trained on the cohort for its task alone begins so.
RIVAL = "trained:"
HARMONISED = "harmonised:"
#: Of a slide's one vector, which the index keeps as float32.
_SLIDE_DTYPE = "float32"
#: Quantities that are repeated, one row a turn.
SECONDS = ("seconds", "cpu_seconds", "gpu_seconds")
#: What a processor or GPU takes; tiling is by slide.
FLOPS, JOULES, TILING, PEAK, TILES, BYTES = (
    "flops", "joules", "tiling_joules", "peak_bytes", "tiles", "bytes_per_tile",
)  # fmt: skip
ACCURACY, ROBUSTNESS, NETWORK = "accuracy", "robustness", "network"

#: One row per number: what it is, whose (the encoder or a rival), from which source or device, of which
#: patient; `n` are tiles of a turn, slides of a patient, rows behind an accuracy. A row without value
#: says why.
COST_SCHEMA: dict[str, pl.DataType] = {
    "of": pl.String(),
    "quantity": pl.String(),
    "source": pl.String(),
    "patient_id": pl.String(),
    "value": pl.Float64(),
    "ci_low": pl.Float64(),
    "ci_high": pl.Float64(),
    "n": pl.Int64(),
    "n_patients": pl.Int64(),
    "reason": pl.String(),
}


@dataclass(frozen=True, config=STRICT)
class ReadFigure:
    """A figure of another experiment: ``{experiment, metric, at}``."""

    experiment: str
    metric: str
    at: Mapping[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Cost(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    accuracy, robustness
        What stands beside the cost; accuracy is also what a ratio is matched by.
    accuracy_margin
        By how much a rival's accuracy may fall short.
    """

    accuracy: ReadFigure
    robustness: ReadFigure
    accuracy_margin: Annotated[float, Field(ge=0)]


def cost_statistics(
    costs: Mapping[str, Mapping[str, Any]],
    cards: Mapping[str, Mapping[str, Any]],
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    retrieved: pl.DataFrame,
    robust: pl.DataFrame,
    p: Cost,
    *,
    name: str,
) -> pl.DataFrame:
    """Numbers behind an encoder's cost, and behind that of each of its rivals.

    Parameters
    ----------
    costs, cards
        Recorded costs, and cards, of all encoders by name.
    slides, tiles
        The tables.
    retrieved, robust
        Measurements of the pipelines retrieve and robustness.
    p
        The parameters.
    name
        The encoder.

    Returns
    -------
    DataFrame
        Columns :data:`COST_SCHEMA`.
    """
    own = str(cards[name]["model"])
    rivals = (
        []
        if own.startswith(RIVAL)
        else sorted(
            other
            for other, card in cards.items()
            # Its null has not been trained.
            if str(card["model"]).startswith(RIVAL) and card.get("role") != "control"
        )
    )
    measurements = pl.concat([retrieved, robust])
    rows: list[dict[str, Any]] = []
    for of in (name, *rivals):
        card = cards[of]
        base = str(card["model"]).removeprefix(HARMONISED)
        record = costs.get(base if str(card["model"]).startswith(HARMONISED) else of)
        runs = {"quantity": NETWORK, "value": float(card.get("runtime") != "none")}
        numbers = [runs, *_of_record(record), *_of_index(card)]
        for kind, figure in ((ACCURACY, p.accuracy), (ROBUSTNESS, p.robustness)):
            numbers.append({"quantity": kind, **_read(measurements, of, figure)})
        rows += [{"of": of, **number} for number in numbers]
    rows += [{"of": name, "quantity": TILES, **patient} for patient in _of_patients(slides, tiles)]
    return pl.DataFrame(rows, schema=COST_SCHEMA)


def _of_record(record: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if record is None:
        yield {"quantity": FLOPS, "reason": "no cost of this encoder was recorded: run embed again"}
        return
    problems, conditions = record["problems"], _conditions(record)
    yield {
        "quantity": FLOPS,
        "value": record["flops_per_tile"],
        "reason": problems.get("flops", ""),
    }
    for turn in record["turns"]:
        common = {"n": record["tiles"], "reason": conditions}
        each = {kind: turn[kind] / record["tiles"] for kind in SECONDS}
        yield from ({"quantity": kind, "value": value, **common} for kind, value in each.items())
        for source, joules in turn["joules"].items():
            value = joules / record["tiles"]
            yield {"quantity": JOULES, "source": source, "value": value, **common}
    for search in record["tiling"]:
        for source, joules in search["joules"].items():
            yield {"quantity": TILING, "source": source, "value": joules, "n": 1}
    for device, most in record["peak_bytes"].items():
        yield {
            "quantity": PEAK,
            "source": device,
            "value": most,
            "n": record["tiles"],
            "reason": conditions,
        }
    for source, why in problems.items():
        yield {"quantity": "problem", "source": source, "reason": why}


def _conditions(record: Mapping[str, Any]) -> str:
    return (
        f"{record['processor']}, {record['device']}, {len(record['turns'])} turns of "
        f"{record['tiles']} tiles"
    )


def _of_index(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    stored = card.get("dtype", _SLIDE_DTYPE)
    for source, dtype in (("tiles", stored), ("slide", _SLIDE_DTYPE)):
        value = int(card["dimension"]) * np.dtype(dtype).itemsize
        yield {"quantity": BYTES, "source": source, "value": value or None}


def _of_patients(slides: pl.DataFrame, tiles: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Tiles and slides of each patient."""
    counted = tiles.group_by("slide_id").agg(pl.len().alias("value"))
    placed = counted.join(slides.select("slide_id", "patient_id"), on="slide_id")
    sums = placed.group_by("patient_id").agg(pl.col("value").sum(), pl.len().alias("n"))
    yield from sums.sort("patient_id").iter_rows(named=True)


def _read(measurements: pl.DataFrame, encoder: str, figure: ReadFigure) -> dict[str, Any]:
    rows = measurements.filter(
        experiment=figure.experiment, metric=figure.metric, encoder=encoder, stratum="all"
    )
    found = [
        row
        for row in rows.iter_rows(named=True)
        if figure.at.items() <= json.loads(row["setting"]).items()
    ]
    if len(found) != 1:
        why = (
            f"{figure.experiment} gives {len(found)} figures {figure.metric} at "
            f"{json.dumps(dict(figure.at))}: correct the entry of cost in the parameters"
        )
        return {"reason": why}
    return {
        key: found[0][key] for key in ("value", "ci_low", "ci_high", "n", "n_patients", "reason")
    }


def cost_figures(statistics: pl.DataFrame, p: Cost) -> Iterator[Figure]:
    """Figures of the experiment, in reading order."""
    own = Numbers(statistics, statistics["of"][0] if statistics.height else "", p)
    yield Figure("flops_per_tile", own.flops)
    if own.is_network:
        yield from _measured(own)
    for index in ("tiles", "slide"):
        yield Figure("index_bytes_per_slide", own.index(index), {"index": index})
    yield Figure("macro_f1", own.copied(ACCURACY))
    yield Figure("ri_minus_null", own.copied(ROBUSTNESS))
    if not own.is_network:
        return
    rivals = [of for of in statistics["of"].unique(maintain_order=True) if of != own.of]
    for rival in rivals or [""]:
        for cost in ("flops", "cpu_seconds", *(f"joules, {source}" for source in own.sources)):
            setting = {"cost": cost, **({"rival": rival} if rival else {})}
            yield Figure("cost_ratio", own.ratio(cost, rival), setting)


def _measured(own: Numbers) -> Iterator[Figure]:
    """Time, energy and memory, which a control without a network has none of."""
    kinds = [kind for kind in SECONDS if kind != "gpu_seconds" or own.uses_gpu]
    yield from (Figure(f"{kind}_per_tile", own.repeated(kind)) for kind in kinds)
    for source in own.sources:
        yield Figure("joules_per_tile", own.repeated(JOULES, source), {"source": source})
    for source in own.sources:
        yield Figure("joules_per_slide", own.per_slide(source), {"source": source})
    for device in own.devices:
        yield Figure("peak_bytes", own.peak(device), {"device": device})


class Numbers:
    """The numbers of one encoder, and those of its rivals beside them."""

    def __init__(self, statistics: pl.DataFrame, of: str, p: Cost) -> None:
        self._all, self.of, self._p = statistics, of, p
        self._rows = statistics.filter(of=of)

    def of_rival(self, name: str) -> Numbers:
        """Those of a rival."""
        return Numbers(self._all, name, self._p)

    @property
    def sources(self) -> list[str]:
        """Sources of energy that were read, or the one whose absence is stated."""
        found = self._rows.filter(quantity=JOULES)["source"].unique().sort().to_list()
        return found or ["rapl"]

    @property
    def devices(self) -> list[str]:
        """Devices whose memory was read."""
        found = self._rows.filter(quantity=PEAK)["source"].unique().sort().to_list()
        return found or ["cpu"]

    @property
    def is_network(self) -> bool:
        """Whether a network is run: not in a control."""
        return any(self.values(NETWORK))

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU computed."""
        return any(self.values("gpu_seconds"))

    def values(self, quantity: str, source: str | None = None) -> list[float]:
        """All numbers of a quantity."""
        rows = self._rows.filter(pl.col("source").eq_missing(pl.lit(source)), quantity=quantity)
        return rows["value"].drop_nulls().to_list()

    def explanation(self, quantity: str) -> str:
        """What a row of the quantity says of itself."""
        said = self._rows.filter(quantity=quantity)["reason"].drop_nulls()
        return str(said[0]) if len(said) else ""

    def why_not(self, *sources: str) -> str:
        """Why a quantity is missing."""
        rows = self._rows.filter(pl.col("source").is_in([*sources, "trial"]), quantity="problem")
        return (
            "; ".join(rows["reason"].unique(maintain_order=True))
            or self.explanation(FLOPS)
            or ("not recorded: run embed again")
        )

    def flops(self) -> Value:
        """Operations of a tile: counted, so the interval is the value itself."""
        values = self.values(FLOPS)
        if not values:
            raise Undefined(self.explanation(FLOPS) or self.why_not())
        return Value(Estimate(values[0], values[0], values[0], 1, 0))

    def repeated(self, quantity: str, source: str | None = None) -> Callable[[], Value]:
        """Mean over turns with its interval."""

        def compute() -> Value:
            values = self._positive(quantity, source)
            return self._value(mean_of_repeats(values), len(values), self.explanation(quantity))

        return compute

    def per_slide(self, source: str) -> Callable[[], Value]:
        """Joules of a slide: its search for tissue and all of its tiles."""

        def compute() -> Value:
            turns = np.array(self._positive(JOULES, source))
            search = np.array(self.values(TILING, source))
            patients = self._rows.filter(quantity=TILES)
            tiles, slides = (patients[c].to_numpy().astype(float) for c in ("value", "n"))
            if not len(tiles) or not len(search):
                raise Undefined("no slide of this cohort has tiles")
            weights = self._p.weights(len(tiles))
            each = ratio_estimate(tiles, slides, weights)
            mean = each.value or 0.0
            generator = np.random.default_rng(self._p.seed)
            drawn = generator.choice(turns, (len(weights), len(turns))).mean(axis=1)
            searched = generator.choice(search, (len(weights), len(search))).mean(axis=1)
            draws = searched + (weights @ tiles) / (weights @ slides) * drawn
            low, high = percentile_interval(draws)
            value = float(search.mean() + mean * turns.mean())
            estimate = Estimate(value, low, high, int(slides.sum()), len(tiles))
            return Value(estimate, remark=f"{mean:.0f} tiles a slide; {self.explanation(JOULES)}")

        return compute

    def peak(self, device: str) -> Callable[[], Value]:
        """Most memory held on a device."""

        def compute() -> Value:
            values = self.values(PEAK, device)
            if not values:
                raise Undefined(self.why_not("memory"))
            return self._value((values[0], None, None), 1, self.explanation(PEAK))

        return compute

    def index(self, kind: str) -> Callable[[], Estimate]:
        """Bytes of a slide's vectors: of all of its tiles, or the one of the slide."""

        def compute() -> Estimate:
            each = self.values(BYTES, kind)
            patients = self._rows.filter(quantity=TILES)
            if not each or not patients.height:
                raise Undefined("no slide of this cohort was embedded")
            tiles, slides = (patients[c].to_numpy().astype(float) for c in ("value", "n"))
            counted = tiles if kind == "tiles" else slides
            weights = self._p.weights(len(tiles))
            return ratio_estimate(each[0] * counted, slides, weights, n=int(slides.sum()))

        return compute

    def copied(self, kind: str) -> Callable[[], Value]:
        """A figure of another experiment as it stands there."""

        def compute() -> Value:
            row = self._rows.filter(quantity=kind).row(0, named=True)
            if row["value"] is None:
                raise Undefined(row["reason"] or "not measured")
            ends = (row["ci_low"], row["ci_high"])
            return Value(Estimate(row["value"], *ends, row["n"] or 0, row["n_patients"] or 0))

        return compute

    def ratio(self, cost: str, rival: str) -> Callable[[], Value]:
        """What the encoder takes over what the rival takes, where both are as accurate."""

        def compute() -> Value:
            if not rival:
                raise Undefined(
                    "no model of this cohort was trained on it for its task alone: add one, "
                    "encoders: {small_cnn: {model: 'trained:small_cnn'}}"
                )
            other = self.of_rival(rival)
            own, theirs = (next(iter(each.values(ACCURACY)), None) for each in (self, other))
            if own is None or theirs is None:
                raise Undefined(f"the accuracy of {self.of if own is None else rival} is not known")
            if theirs < own - self._p.accuracy_margin:
                raise Undefined(
                    f"accuracy is not matched: {rival} reaches {number(theirs)} where {self.of} "
                    f"reaches {number(own)}, short by more than {self._p.accuracy_margin:g}"
                )
            quantity, _, source = cost.partition(", ")
            if quantity == FLOPS:
                exact = self.flops().estimate.value / other.flops().estimate.value  # type: ignore[operator]
                return self._value((exact, exact, exact), 1, _matched(own, theirs))
            a, b = (each._positive(quantity, source or None) for each in (self, other))
            explained = {self.explanation(quantity), other.explanation(quantity)}
            return self._value(
                ratio_of_repeats(a, b),
                len(a),
                "; ".join([_matched(own, theirs), *sorted(explained)]),
            )

        return compute

    def _positive(self, quantity: str, source: str | None) -> list[float]:
        values = self.values(quantity, source)
        if not values:
            raise Undefined(self.why_not(*([source] if source else [])))
        if min(values) <= 0:
            raise Undefined(
                "in some turn no more was counted than the machine takes at rest: measure on a quiet "
                "machine, or raise cost_trial.tiles"
            )
        return values

    @staticmethod
    def _value(interval: Interval, n: int, remark: str) -> Value:
        return Value(Estimate(*interval, n, 0), remark=remark)


def _matched(own: float, theirs: float) -> str:
    return f"accuracy {number(own)} against {number(theirs)}"
