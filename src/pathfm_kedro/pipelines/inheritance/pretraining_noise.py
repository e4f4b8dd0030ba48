r"""Wrong labels in pretraining: what frozen vectors lose, whether it shows upstream, what undoes it.

A small network is pretrained from scratch on tiles, each with its slide's label, of which a share is
wrong: drawn tile by tile, from all tiles alike, or more from some centers than from others
(:func:`~pathfm_kedro.statistics.label_noise.flipped`). Each seed gives a network without wrong labels,
one for each kind and rate, and one with random weights; of one seed all begin with the same weights and
see the same tiles in the same order, so that they differ in labels alone. Frozen, they are compared on
patients that pretrained nothing:

- ``accuracy``: balanced accuracy of a logistic regression; ``in_domain`` in folds of patients,
  ``out_of_domain`` fitted on all of these and tested on a center that neither the network nor the probe
  has seen. Null: the network of random weights.
- ``gain_over_random``: clean minus random weights. Only where its whole interval lies above 0, over
  eight patients or more, does what follows count; else undecidable: what was not learnt cannot be lost.
- ``accuracy_loss``: clean minus noisy. ``upstream_accuracy``: on true labels, of a fifth of the
  pretraining patients that are kept out (``held_out``), and of the tiles trained on (``trained``).
- ``hidden_loss``: accuracy loss minus the loss of upstream accuracy (held out): above 0, who looks
  upstream sees less than what is lost.
- moments and spectra as in :mod:`~pathfm_kedro.pipelines.inheritance.geometry`, of the same downstream
  tiles for all; ``principal_angle``, the mean angle between what the leading components span on these
  tiles for the noisy network and for the clean one of its seed. Null: between clean ones of two seeds.
- ``trend``: mean over seeds of Spearman's correlation with the rate, which is Page's L on the scale −1
  to 1, ``12 L / (S R (R² − 1)) − 3 (R + 1)/(R − 1)`` for S seeds and R rates; ``trend_p``, two-sided.
- ``recovered_share``: (remedied − noisy) / (clean − noisy), for whitening, for a probe of the leading
  components (both fitted without the tested patients) and for NMTune
  (:mod:`~pathfm_kedro.encoders.nmtune`), where the loss lies above 0 with its whole interval;
  ``remaining_loss``: clean minus noisy, both remedied, since a remedy may help the clean one as much.

Intervals: every draw resamples patients, alike for all networks, and seeds, alike for all arms;
patients upstream are drawn by themselves. In domain they are widened for cross-validation. Those of
geometry join a jackknife over groups of patients and the spread over seeds. With one seed they are over
patients alone.

References: Chen et al., Understanding and mitigating the label noise in pre-training on downstream
tasks (ICLR 2024; TPAMI 2025), where slight noise helps in domain and always hurts out of domain.

Pitfalls
--------
- The network is small and sees few tiles: what noise does to a foundation model may differ.
- A tile has its slide's label, also where it shows healthy tissue: the clean arm has wrong labels too.
- The held-out center's interval is over its patients and says nothing of other centers.
- Page's test takes seeds as its units: it says what noise does on these patients.
- Five seeds resampled give four fifths of their variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import factorial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.pipelines.inheritance.geometry import (
    SPECTRAL,
    moments,
    power_sums,
    spectrum,
    varying_dimensions,
)
from pathfm_kedro.pipelines.inheritance.noise_arms import (
    CLEAN,
    RANDOM,
    Arm,
    Downstream,
    PretrainingNoise,
    Upstream,
    noise_arms,
)
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    patient_codes,
    percentile_interval,
)
from pathfm_kedro.statistics.cross_validation import (
    CROSS_VALIDATION_EFFECT,
    balanced_accuracy,
    widened_interval,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.jackknife import jackknife_interval, patient_groups
from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier
from pathfm_kedro.statistics.measurements import MIN_PATIENTS, Estimate, Null
from pathfm_kedro.statistics.subspaces import PrincipalAxes, principal_angles
from pathfm_kedro.statistics.tables import to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROBES = ("in_domain", "out_of_domain")
#: Upstream accuracy, by the tiles that it is of.
UPSTREAM = {"held_out": "upstream_held_out", "trained": "upstream_trained"}
NO_REMEDY, NMTUNE = "none", "nmtune"
REMEDIES = ("whitening", "top_components", NMTUNE)
GEOMETRY = ("skewness", "kurtosis_excess", *SPECTRAL)
ANGLE = "principal_angle"
#: Keep the draws of upstream patients and of seeds apart from those of downstream patients.
_OF_UPSTREAM, _OF_SEEDS = 1, 2

#: Of one network: tiles of each label and patient that are correctly classified, by what is tested and
#: the remedy; or a figure of its vectors, of all downstream tiles (no group) and without a group of
#: patients.
#: One row with a problem where there is no network.
NOISE_SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),
    "rate": pl.Float64(),
    "seed": pl.Int64(),
    "measure": pl.String(),
    "remedy": pl.String(),
    "label": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "group": pl.Int64(),
    "value": pl.Float64(),
    "problem": pl.String(),
}


def noise_statistics(
    pool: pl.DataFrame, tiles: Shards, arms: Shards, p: PretrainingNoise
) -> pl.DataFrame:
    """Correctly classified tiles and figures of the vectors, network by network.

    Parameters
    ----------
    pool, tiles
        Tiles that arms are trained and probed on, and their pixels.
    arms
        Shards of :class:`~pathfm_kedro.pipelines.inheritance.noise_arms.NoisyPretraining`.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`NOISE_SCHEMA`.
    """
    upstream, below = Upstream.of(pool, tiles, p), Downstream.of(pool, tiles, p)
    trained = [arm for arm in noise_arms(p) if arm.name in set(arms.slide_ids)]
    problem = upstream.problem or below.problem
    if problem or not trained:
        text = problem or "no network could be trained: the log of slides has the reasons"
        return to_schema(pl.DataFrame({"problem": [text]}), NOISE_SCHEMA)
    parts = []
    for arm in trained:
        own = [
            *_probed(arms, arm, below, p),
            *_upstream(arms, arm, upstream),
            _shape(arms, arm, trained, below, p),
        ]
        named = {"kind": arm.kind, "rate": arm.rate, "seed": arm.seed}
        parts += [
            to_schema(
                table.with_columns(pl.lit(v).alias(k) for k, v in named.items()), NOISE_SCHEMA
            )
            for table in own
        ]
    return pl.concat(parts)


def _probed(
    arms: Shards, arm: Arm, below: Downstream, p: PretrainingNoise
) -> Iterator[pl.DataFrame]:
    vectors = arms.load_slide(arm.name, "vectors").astype(np.float64)
    remedies: dict[str, Ints] = {
        remedy: probe_predictions(vectors, below, remedy, p)
        for remedy in (NO_REMEDY, "whitening", "top_components")
    }
    remedies[NMTUNE] = arms.load_slide(arm.name, "nmtune")
    for remedy, found in remedies.items():
        for measure, rows in zip(PROBES, (below.fold >= 0, below.fold < 0), strict=True):
            counted = _counted(below.table, found == below.targets, rows)
            yield counted.with_columns(measure=pl.lit(measure), remedy=pl.lit(remedy))


def probe_predictions(vectors: Floats, below: Downstream, remedy: str, p: PretrainingNoise) -> Ints:
    """The class that a probe without the tested patients gives each tile.

    Parameters
    ----------
    vectors
        [n, d] of the tiles of `below`.
    below
        The tiles, and who is tested by whom.
    remedy
        What is done to vectors before, fitted on the training tiles: ``none``, ``whitening`` or
        ``top_components``.
    p
        The parameters.
    """
    found = np.full(len(vectors), -1)
    for train, test in below.splits():
        seen, tested = vectors[train], vectors[test]
        if remedy != NO_REMEDY:
            axes = PrincipalAxes.fit(seen)
            if not len(axes.spread):  # all vectors are one: nothing to turn
                continue
            seen, tested = (
                axes.whitened(x) if remedy == "whitening" else axes.top(x, p.components)
                for x in (seen, tested)
            )
        targets = below.targets[train]
        probe = fit_linear_classifier(seen, targets, p.probe.C, p.probe.max_iter)
        classes = np.array([int(label) for label in probe.labels])
        found[test] = classes[probe.logits(tested).argmax(axis=1)]
    return found


def _upstream(arms: Shards, arm: Arm, upstream: Upstream) -> Iterator[pl.DataFrame]:
    if arm.kind == RANDOM:
        return
    found, known = arms.load_slide(arm.name, "upstream"), upstream.targets >= 0
    for measure, rows in zip(UPSTREAM.values(), (~upstream.trains, upstream.trains), strict=True):
        counted = _counted(upstream.table, found == upstream.targets, rows & known)
        yield counted.with_columns(measure=pl.lit(measure), remedy=pl.lit(NO_REMEDY))


def _counted(
    table: pl.DataFrame, correct: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> pl.DataFrame:
    return (
        table.with_columns(_correct=pl.Series(correct))
        .filter(pl.Series(rows, dtype=pl.Boolean))
        .group_by("label", "patient_id")
        .agg(n_tiles=pl.len(), n_correct=pl.col("_correct").sum())
        .sort("label", "patient_id")
    )


def _shape(
    arms: Shards, arm: Arm, trained: Sequence[Arm], below: Downstream, p: PretrainingNoise
) -> pl.DataFrame:
    """Figures of the downstream tiles' vectors, of all and without each group of patients."""
    from threadpoolctl import threadpool_limits

    inside = below.fold >= 0
    codes, _ = patient_codes(below.table["patient_id"].to_numpy()[inside])
    groups = patient_groups(codes, p.n_groups)
    vectors = arms.load_slide(arm.name, "vectors").astype(np.float64)[inside]
    other = _held_against(arm, trained)
    clean = None if other is None else arms.load_slide(other.name, "vectors")[inside]
    rows = []
    with threadpool_limits(1):
        for group in (None, *range(int(groups.max()) + 1)):
            kept = np.ones(len(groups), np.bool_) if group is None else groups != group
            found = cloud_figures(vectors[kept])
            if clean is not None:
                angles = principal_angles(vectors[kept], clean[kept], p.components)
                found |= {ANGLE: float(angles.mean())} if len(angles) else {}
            rows += [{"measure": k, "group": group, "value": v} for k, v in found.items()]
    return pl.DataFrame(rows, schema={k: NOISE_SCHEMA[k] for k in ("measure", "group", "value")})


def _held_against(arm: Arm, trained: Sequence[Arm]) -> Arm | None:
    """The clean network of the same seed; of a clean one that of the next seed."""
    clean = [other for other in trained if other.kind == CLEAN]
    if arm.kind != CLEAN:
        return next((other for other in clean if other.seed == arm.seed), None)
    after = [other for other in clean if other.seed > arm.seed] or clean
    return after[0] if after[0] != arm else None


def cloud_figures(vectors: Floats) -> dict[str, float]:
    """Moments and spectrum of [m, d], as far as they are defined.

    Examples
    --------
    >>> round(cloud_figures(np.eye(4))["effective_rank"], 6)
    4.0
    """
    found = spectrum(vectors) if vectors.any() else {}
    varying = vectors[:, varying_dimensions(vectors)]
    if varying.shape[1]:
        found |= {k: float(v) for k, v in moments(power_sums(varying).sum(axis=0)).items()}
    return {name: found[name] for name in GEOMETRY if name in found}


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
                score = self.score(_OF[of], kind, rate)
                columns.append({seed: value for seed, (value, _) in score.by_seed.items()})
        seeds = sorted(set.intersection(*(set(column) for column in columns)))
        return np.array([[column[seed] for column in columns] for seed in seeds])

    def trend(self, of: str, kind: str, p_value: bool) -> Value:
        """Mean rank correlation with the rate, or the p of Page's test."""
        probe = "out_of_domain" if of == "out_of_domain_accuracy" else "in_domain"
        found = page_trend(self.by_seed(of, kind))
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
_OF = {f"{probe}_accuracy": probe for probe in PROBES} | {"upstream_accuracy": UPSTREAM["held_out"]}
_WHERE = {"in_domain": "in domain", "out_of_domain": "on the held-out center"}
_MISSING = {
    "out_of_domain": "no center is held out: this needs two centers, one of them with slides of every "
    "label",
    "arm": "no network of this arm was trained: noise that depends on the center needs two centers "
    "among the tiles that pretrain; of one that failed the log of slides has the reason",
    "shape": "the vectors do not vary, or there is no second clean network to hold this one against: "
    "raise pretraining_noise.n_seeds",
}


@dataclass(frozen=True)
class Trend:
    """Page's test.

    Attributes
    ----------
    correlation
        Mean over seeds of Spearman's correlation with the rate.
    p
        Two-sided.
    statistic
        Page's L.
    seeds, rates
        Rows and columns.
    """

    correlation: float
    p: float
    statistic: float
    seeds: int
    rates: int

    @property
    def described(self) -> str:
        """For the reader."""
        return f"Page's L = {self.statistic:g}, two-sided p = {self.p:.3g}, over {self.seeds} seeds"


def page_trend(values: Floats) -> Trend:
    """Page's test for a trend over columns, rows being seeds.

    Parameters
    ----------
    values
        [seeds, rates], rates rising.

    Raises
    ------
    Undefined
        With fewer than two seeds or three rates, telling what they could have shown.

    Examples
    --------
    >>> page_trend(np.array([[3.0, 2.0, 1.0], [0.3, 0.2, 0.1]])).correlation
    -1.0
    """
    from scipy.stats import page_trend_test

    seeds, rates = values.shape if values.ndim == 2 else (0, 0)
    if seeds < 2 or rates < 3:
        least = min(1.0, 2.0 / factorial(rates) ** seeds)
        raise Undefined(
            f"a trend test needs two seeds and three rates, and there are {seeds} and {rates}: even a "
            f"perfect order of these would have a two-sided p of {least:.2g}"
            f"{', so that nothing could be found' if least > 0.05 else ''}; raise "
            "pretraining_noise.n_seeds and rates to 5"
        )
    rising, falling = page_trend_test(values), page_trend_test(values[:, ::-1])
    statistic = float(rising.statistic)
    correlation = 12 * statistic / (seeds * rates * (rates**2 - 1)) - 3 * (rates + 1) / (rates - 1)
    p = min(1.0, 2 * min(float(rising.pvalue), float(falling.pvalue)))
    return Trend(correlation, p, statistic, seeds, rates)


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
    if estimate.ci_low is None or estimate.ci_high is None:
        return f"{estimate.value:.3f} (no interval)"
    return f"{estimate.value:.3f} [{estimate.ci_low:.3f}, {estimate.ci_high:.3f}]"


def noise_figures(statistics: pl.DataFrame, p: PretrainingNoise) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`noise_statistics`.
    p
        The parameters.
    """
    of = Results(statistics, p)

    def figure(metric: str, compute: Callable[..., Value], *args: Any, **setting: Any) -> Figure:
        return Figure(metric, partial(compute, *args, *setting.values()), setting)

    for probe in PROBES:
        yield figure("gain_over_random", of.gain, probe=probe)
        yield figure("random_weights_accuracy", of.random_accuracy, probe=probe)
    for kind in p.kinds:
        for rate in p.rates:
            at: dict[str, Any] = {"kind": kind, "rate": rate}
            for probe in PROBES:
                for remedy in (NO_REMEDY, *REMEDIES):
                    yield figure("accuracy", of.accuracy, probe=probe, **at, remedy=remedy)
            for tiles in UPSTREAM:
                yield figure("upstream_accuracy", of.upstream_accuracy, tiles=tiles, **at)
            for measure in GEOMETRY:
                yield figure(measure, of.shape, measure, **at)
        for rate in p.rates[1:]:
            yield from _against_clean(of, figure, {"kind": kind, "rate": rate})
        for name in (*_OF, *GEOMETRY):
            yield Figure("trend", partial(of.trend, name, kind, False), {"of": name, "kind": kind})
            yield Figure("trend_p", partial(of.trend, name, kind, True), {"of": name, "kind": kind})


def _against_clean(
    of: Results, figure: Callable[..., Figure], at: Mapping[str, Any]
) -> Iterator[Figure]:
    yield figure(ANGLE, of.shape, ANGLE, **at)
    for probe in PROBES:
        yield figure("accuracy_loss", of.loss, probe=probe, **at)
        yield figure("hidden_loss", of.hidden_loss, probe=probe, **at)
        for remedy in REMEDIES:
            yield figure("recovered_share", of.recovered, probe=probe, remedy=remedy, **at)
            yield figure("remaining_loss", of.loss, probe=probe, **at, remedy=remedy)
