"""What the statistics of networks pretrained on wrong labels say: accuracy, loss, shape, trend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.inheritance.geometry import (
    SPECTRAL,
)
from pathfm_kedro.pipelines.inheritance.noise_arms import (
    CLEAN,
    RANDOM,
    PretrainingNoise,
)
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    percentile_interval,
)
from pathfm_kedro.statistics.cross_validation import (
    CROSS_VALIDATION_EFFECT,
    balanced_accuracy,
    widened_interval,
)
from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.jackknife import jackknife_interval
from pathfm_kedro.statistics.measurements import MIN_PATIENTS, Estimate, Null
from pathfm_kedro.statistics.page_trend import page_trend
from pathfm_kedro.statistics.readable_numbers import interval

Floats = NDArray[np.float64]

PROBES = ("in_domain", "out_of_domain")
#: Upstream accuracy, by the tiles that it is of.
UPSTREAM = {"held_out": "upstream_held_out", "trained": "upstream_trained"}
NO_REMEDY, NMTUNE = "none", "nmtune"
REMEDIES = ("whitening", "top_components", NMTUNE)
GEOMETRY = ("skewness", "kurtosis_excess", *SPECTRAL)
ANGLE = "principal_angle"
#: Keep the draws of upstream patients and of seeds apart from those of downstream patients.
_OF_UPSTREAM, _OF_SEEDS = 1, 2


@dataclass(frozen=True)
class Score:
    """Balanced accuracy of the networks of one arm.

    Attributes
    ----------
    by_seed
        Of each seed's network the accuracy, and [draws] of it over patients.
    n, n_patients
        Tiles and patients that were tested.
    """

    by_seed: Mapping[int, tuple[float, Floats]]
    n: int
    n_patients: int


@dataclass(frozen=True)
class Results:
    """The statistics of all networks, read arm by arm.

    Attributes
    ----------
    table
        Columns :data:`NOISE_SCHEMA`.
    p
        The parameters.
    """

    table: pl.DataFrame
    p: PretrainingNoise

    @cached_property
    def scores(self) -> dict[tuple[str, str, str, float], Score]:
        """By measure, remedy, kind and rate."""
        counted = self.table.drop_nulls("n_tiles")
        keys = ["measure", "remedy", "kind", "rate"]
        return {
            (str(m), str(remedy), str(kind), float(rate)): self._score(rows, str(m))
            for (m, remedy, kind, rate), rows in counted.group_by(keys, maintain_order=True)
        }

    def _score(self, rows: pl.DataFrame, measure: str) -> Score:
        patients, labels = (rows[key].unique().sort() for key in ("patient_id", "label"))
        upstream = measure in UPSTREAM.values()
        weights = bootstrap_weights(
            len(patients), self.p.draws, self.p.seed + (_OF_UPSTREAM if upstream else 0)
        )
        by_seed = {}
        for (seed,), own in rows.group_by("seed", maintain_order=True):
            places = tuple(
                own[key].replace_strict(names, range(len(names))).to_numpy()
                for key, names in (("patient_id", patients), ("label", labels))
            )
            correct, tested = np.zeros((2, len(patients), len(labels)))
            np.add.at(correct, places, own["n_correct"].to_numpy())
            np.add.at(tested, places, own["n_tiles"].to_numpy())
            value = float(balanced_accuracy(correct.sum(axis=0), tested.sum(axis=0)))
            by_seed[int(seed)] = (value, balanced_accuracy(weights @ correct, weights @ tested))
        n = int(rows["n_tiles"].sum()) // max(len(by_seed), 1)
        return Score(by_seed, n, len(patients))

    def score(self, measure: str, kind: str, rate: float, remedy: str = NO_REMEDY) -> Score:
        """Accuracy of an arm; the clean one stands for the rate 0 of every kind.

        Raises
        ------
        Undefined
            If there is none.
        """
        found = self.scores.get(
            (measure, remedy, CLEAN if rate == 0 and kind != RANDOM else kind, rate)
        )
        if found is None:
            self.refuse()
            raise Undefined(_MISSING[measure if measure == "out_of_domain" else "arm"])
        return found

    def refuse(self) -> None:
        """Say why there is no network, where there is none.

        Raises
        ------
        Undefined
            With the reason.
        """
        problems = self.table["problem"].drop_nulls()
        if len(problems):
            raise Undefined(problems[0])

    def estimate(
        self, probe: str, *terms: tuple[float, Score], limits: tuple[float, float] = (-1.0, 1.0)
    ) -> Estimate:
        """Sum of accuracies, each times a factor, over the seeds that all have; with its interval."""
        value, draws = self._sum(terms)
        first = terms[0][1]
        return Estimate(
            value, *self._interval(probe, value, draws, limits), first.n, first.n_patients, draws
        )

    def _interval(
        self, probe: str, value: float, draws: Floats, limits: tuple[float, float]
    ) -> tuple[float | None, float | None]:
        if probe == "in_domain":
            return widened_interval(value, draws, limits)
        return percentile_interval(draws)

    def _sum(self, terms: Sequence[tuple[float, Score]]) -> tuple[float, Floats]:
        seeds = sorted(set.intersection(*(set(score.by_seed) for _, score in terms)))
        if not seeds:
            raise Undefined(_MISSING["arm"])
        weights = np.ones((self.p.draws, 1))
        if len(seeds) > 1:
            weights = bootstrap_weights(len(seeds), self.p.draws, self.p.seed + _OF_SEEDS)
        value, draws = 0.0, np.zeros(self.p.draws)
        for place, seed in enumerate(seeds):
            for factor, score in terms:
                own, drawn = score.by_seed[seed]
                value += factor * own / len(seeds)
                draws += factor * drawn * weights[:, place] / len(seeds)
        return value, draws

    def accuracy(self, probe: str, kind: str, rate: float, remedy: str) -> Value:
        """Of an arm, beside that of random weights."""
        found = self.estimate(
            probe, (1.0, self.score(probe, kind, rate, remedy)), limits=(0.0, 1.0)
        )
        random = self.scores.get((probe, remedy, RANDOM, 0.0))
        null = Null()
        if random is not None:
            ends = self.estimate(probe, (1.0, random), limits=(0.0, 1.0))
            null = Null(ends.ci_low, ends.ci_high)
        return Value(found, null, remark=self.remark)

    def random_accuracy(self, probe: str) -> Value:
        """Of random frozen weights."""
        score = self.score(probe, RANDOM, 0.0)
        return Value(self.estimate(probe, (1.0, score), limits=(0.0, 1.0)), remark=self.remark)

    def upstream_accuracy(self, tiles: str, kind: str, rate: float) -> Value:
        """On true labels of tiles of the pretraining patients."""
        score = self.score(UPSTREAM[tiles], kind, rate)
        return Value(self.estimate("upstream", (1.0, score)), remark=self.remark)

    def gain(self, probe: str) -> Value:
        """Clean minus random frozen weights."""
        clean, random = self.score(probe, CLEAN, 0.0), self.score(probe, RANDOM, 0.0)
        return Value(self.estimate(probe, (1.0, clean), (-1.0, random)), remark=self.remark)

    def gate(self, probe: str) -> None:
        """Refuse what does not count since the clean arm learnt nothing.

        Raises
        ------
        Undefined
            Unless its whole interval lies above random frozen weights, over enough patients.
        """
        gain = self.gain(probe).estimate
        if gain.ci_low is not None and gain.ci_low > 0 and gain.n_patients >= MIN_PATIENTS:
            return
        raise Undefined(
            f"undecidable: pretraining without wrong labels gains {_shown(gain)} over random frozen "
            f"weights {_WHERE[probe]}, over {gain.n_patients} patients; what noise takes counts only "
            f"where all of that lies above 0, over {MIN_PATIENTS} patients: pretrain on more tiles or "
            "for longer (arms.tiles_per_slide, pretraining_noise.pretraining.epochs), or add patients",
            gain.n,
            gain.n_patients,
        )

    def loss(self, probe: str, kind: str, rate: float, remedy: str = NO_REMEDY) -> Value:
        """Clean minus noisy, both with the remedy."""
        self.gate(probe)
        clean, noisy = (self.score(probe, kind, at, remedy) for at in (0.0, rate))
        return Value(self.estimate(probe, (1.0, clean), (-1.0, noisy)), remark=self.remark)

    def hidden_loss(self, probe: str, kind: str, rate: float) -> Value:
        """Loss downstream minus loss upstream."""
        self.gate(probe)
        terms = [
            (sign * factor, self.score(measure, kind, at))
            for measure, sign in ((probe, 1.0), (UPSTREAM["held_out"], -1.0))
            for at, factor in ((0.0, 1.0), (rate, -1.0))
        ]
        found = self.estimate(probe, *terms, limits=(-2.0, 2.0))
        other = terms[2][1]
        said = f"upstream: {other.n} tiles of {other.n_patients} patients"
        return Value(found, remark="; ".join(filter(None, [said, self.remark])))

    def recovered(self, probe: str, remedy: str, kind: str, rate: float) -> Value:
        """What part of the loss a remedy gives back."""
        lost = self.loss(probe, kind, rate).estimate
        if lost.ci_low is None or lost.ci_low <= 0:
            raise Undefined(
                f"the loss is {_shown(lost)}: a share of it is given only where all of the interval "
                "lies above 0; add patients or seeds",
                lost.n,
                lost.n_patients,
            )
        noisy, remedied = (self.score(probe, kind, rate, r) for r in (NO_REMEDY, remedy))
        clean = self.score(probe, kind, 0.0)
        # Over one set of seeds, or numerator and denominator would not belong together.
        gained, gains = self._sum([(1.0, remedied), (-1.0, noisy), (0.0, clean)])
        whole, wholes = self._sum([(1.0, clean), (-1.0, noisy), (0.0, remedied)])
        effect = np.sqrt(CROSS_VALIDATION_EFFECT) if probe == "in_domain" else 1.0
        gains, wholes = (
            value + effect * (draws - draws.mean())
            for value, draws in ((gained, gains), (whole, wholes))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(wholes > 0, gains / wholes, np.nan)
        found = Estimate(
            gained / whole, *percentile_interval(ratios), noisy.n, noisy.n_patients, ratios
        )
        return Value(found, remark=self.remark)

    def shape(self, measure: str, kind: str, rate: float) -> Value:
        """A figure of the vectors, mean over seeds."""
        rows = self._rows(measure, kind, rate)
        whole = rows.filter(pl.col("group").is_null())["value"].to_numpy()
        left = rows.drop_nulls("group").group_by("group").agg(pl.col("value").mean()).sort("group")
        value = float(whole.mean())
        ends = _joined(value, whole, left["value"].to_numpy())
        null = Null()
        if measure == ANGLE:
            between = self.table.filter(pl.col("group").is_null(), measure=ANGLE, kind=CLEAN)[
                "value"
            ]
            null = Null(between.min(), between.max())  # type: ignore[arg-type]
        score = self.score("in_domain", kind, rate)
        return Value(Estimate(value, *ends, score.n, score.n_patients), null, remark=self.remark)

    def _rows(self, measure: str, kind: str, rate: float) -> pl.DataFrame:
        of = CLEAN if rate == 0 else kind
        rows = self.table.filter(measure=measure, kind=of, rate=rate)
        if rows.is_empty():
            self.refuse()
            raise Undefined(_MISSING["shape" if self.scores else "arm"])
        return rows

    def by_seed(self, of: str, kind: str) -> Floats:
        """[seeds, rates] a figure of each network, of the seeds that have all rates."""
        columns: list[dict[int, float]] = []
        for rate in self.p.rates:
            if of in GEOMETRY:
                rows = self._rows(of, kind, rate).filter(pl.col("group").is_null())
                columns.append(dict(rows.select("seed", "value").iter_rows()))
            else:
                score = self.score(TRENDS[of], kind, rate)
                columns.append({seed: value for seed, (value, _) in score.by_seed.items()})
        seeds = sorted(set.intersection(*(set(column) for column in columns)))
        return np.array([[column[seed] for column in columns] for seed in seeds])

    def trend(self, of: str, kind: str, p_value: bool) -> Value:
        """Mean rank correlation with the rate, or the p of Page's test."""
        probe = "out_of_domain" if of == "out_of_domain_accuracy" else "in_domain"
        found = page_trend(self.by_seed(of, kind), "raise pretraining_noise.n_seeds and rates to 5")
        self.gate(probe)
        score = self.score(probe, kind, 0.0)
        if p_value:
            estimate = Estimate(found.p, None, None, score.n, score.n_patients)
            return Value(estimate, remark=found.described)
        reach = 1.96 / np.sqrt(found.seeds * (found.rates - 1))
        estimate = Estimate(found.correlation, None, None, score.n, score.n_patients)
        return Value(estimate, Null(-reach, reach), remark=found.described)

    @property
    def remark(self) -> str:
        """What one seed cannot say."""
        if self.p.n_seeds > 1:
            return ""
        return "one network of each arm: the interval is over patients alone"


#: What a trend is of, and the accuracy that it means.
TRENDS = {f"{probe}_accuracy": probe for probe in PROBES} | {
    "upstream_accuracy": UPSTREAM["held_out"]
}
_WHERE = {"in_domain": "in domain", "out_of_domain": "on the held-out center"}
_MISSING = {
    "out_of_domain": "no center is held out: this needs two centers, one of them with slides of every "
    "label",
    "arm": "no network of this arm was trained: noise that depends on the center needs two centers "
    "among the tiles that pretrain; of one that failed the log of slides has the reason",
    "shape": "the vectors do not vary, or there is no second clean network to hold this one against: "
    "raise pretraining_noise.n_seeds",
}


def _joined(value: float, by_seed: Floats, without: Floats) -> tuple[float | None, float | None]:
    """Interval from a jackknife over patients and the spread over seeds, half-widths as squares."""
    from scipy.stats import t

    low, high = jackknife_interval(value, without)
    if low is None or high is None:
        return None, None
    half, seeds = (high - low) / 2, len(by_seed)
    if seeds > 1:
        own = float(t.ppf(0.975, seeds - 1) * by_seed.std(ddof=1) / np.sqrt(seeds))
        half = float(np.hypot(half, own))
    return value - half, value + half


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "nothing"
    return interval(estimate.value, estimate.ci_low, estimate.ci_high)
