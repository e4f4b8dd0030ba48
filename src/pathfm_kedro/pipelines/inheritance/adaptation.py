r"""Adaptation: what each way of adapting an encoder reaches, what it forgets, what it inherits.

Arms (:data:`~pathfm_kedro.encoders.adaptation_arms.ARMS`) are fitted to the label on downstream
patients: linear and MLP probe, probe then fine-tuning, LoRA, full fine-tuning, the same architecture
from scratch, the same with random frozen weights (the null), and a small CNN. Patients are split in
outer folds; each is tested by models of the others, of which an inner fold selects. Every arm has the
same number of trials. Tiles of the held-out center are tested by every model.

- ``balanced_accuracy`` of each arm, on patients that it never saw and at a center that none saw. Null:
  1 / labels. Correct tiles are summed over folds and seeds, which test the same tiles, so that it is
  the mean over seeds;
- ``above_random``: minus that of random frozen weights. Null: 0;
- ``linear_minus_tuned``: the linear probe minus an arm that trains the network. 0.05 and more is
  printed as a sign of a weak encoder; Enda et al. 2026 find it of foundation models on external
  data, and the opposite of conventional networks. The remark says which of both is excluded; nothing
  is judged;
- ``inner_accuracy`` of each trial by its learning rate, ``divergence_rate``: share of trials with a
  loss that is not finite; ``stopped_early``: share of the others that patience ended before their last
  epoch, and ``epochs_run`` of them on average;
- *forgetting*: ``forgotten``, how much worse a linear probe reads what was not tuned for (organ,
  center) after adaptation, ``mknn`` and ``cka`` of the vectors before and after;
- *inheritance*: ``center_gap``, balanced accuracy in domain minus at the held-out center; the
  linear arm's is that of the frozen encoder;
- ``training_operations``, and ``training_seconds`` and ``training_joules`` where they are measured: of
  the whole machine's counters (:mod:`~pathfm_kedro.encoders.energy`), idle draw included.

Intervals are over patients. In domain they are widened for cross-validation
(:func:`~pathfm_kedro.statistics.cross_validation.widened_interval`); of CKA they are from a jackknife
over groups of patients.

Pitfalls
--------
- Seeds are averaged: their spread is not in the interval, nor is that of the random search.
- The models that test the held-out center share their training patients, which that interval does not
  hold.
- An inner fold selects and never trains, of every arm alike; with few patients it is a poor judge.
- Heads see frozen vectors of tiles as they are, what trains a network sees them turned and mirrored.
- LoRA changes all linear layers, or where there is none all convolutions but depthwise ones.
- The inner accuracy of a learning rate is that of the fits that did not diverge.
- Operations are counted, seconds and joules taken for the whole search, testing left out.
- Joules are of fits that ran alone and whole: counters see the machine, not a thread of it.
- Organ follows from the label where a label has one organ: what is forgotten of it is a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.adaptation_arms import ARMS
from pathfm_kedro.pipelines.inheritance.adaptation_fits import (
    LINEAR,
    RANDOM,
    Adaptation,
)
from pathfm_kedro.pipelines.inheritance.adaptation_statistics import (
    IN_DOMAIN,
    LEAST_TRIALS,
    TARGETS,
    TESTED,
)
from pathfm_kedro.pipelines.inheritance.arm_tiles import HELD_OUT
from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.cross_validation import (
    CROSS_VALIDATION_EFFECT,
    balanced_accuracy,
    widened_interval,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.kernel_alignment import aligned_value
from pathfm_kedro.statistics.measurements import MIN_PATIENTS, Estimate, Null
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.readable_numbers import number

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


_NOT_FITTED = "the arm could not be fitted"
_ALL_DIVERGED = "all trials diverged: lower adaptation.search.learning_rates"
_NOT_KEPT = "not kept, so that a run gives the same bytes again: set adaptation.measured to true"
#: What a search costs, and why it is not known where time and energy are kept.
_COSTS = {
    "operations": "operations were not counted",
    "seconds": "seconds were not taken",
    "joules": (
        "no energy is known of these fits: they ran side by side or went on after a kill (set "
        "engine.workers to 1 and fit them again), or the counters of processor (powercap) and GPU "
        "(NVML, from Volta on, no MIG) could not both be read: virtual machines and containers hide "
        "them; run on the machine itself, where /sys/class/powercap/intel-rapl:*/energy_uj may be read"
    ),
}


def adaptation_figures(statistics: pl.DataFrame, p: Adaptation) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`adaptation_statistics`.
    p
        The parameters.
    """
    of = PatientStatistics(statistics, p)
    problem = statistics.filter(part="problem")["problem"].to_list()
    accuracy = of.where(pl.col("part") == "accuracy")
    at = {
        (arm, tested): Tested(accuracy.at(arm=arm, tested=tested), problem, tested, arm)
        for arm in p.arms
        for tested in TESTED
    }
    for own in at.values():
        yield own.rows.figure("balanced_accuracy", own.accuracy)
    for (arm, tested), own in at.items():
        if RANDOM in p.arms and arm != RANDOM:
            pair = partial(difference, own, at[RANDOM, tested])
            yield own.rows.figure("above_random", pair)
    for (arm, tested), own in at.items():
        if ARMS[arm].changes_encoder:
            pair = partial(signature, at[LINEAR, tested], own, at.get((RANDOM, tested)), p)
            yield own.rows.figure("linear_minus_tuned", pair)
    for arm in p.arms:
        own = at[arm, IN_DOMAIN]
        gap = partial(center_gap, own, at[arm, HELD_OUT])
        yield own.rows.with_setting(arm=arm).figure("center_gap", gap)
    for arm in p.arms:
        if ARMS[arm].changes_encoder:
            yield from _of_forgetting(of, arm, problem)
    yield from _of_search(of, p, problem)


@plain_dataclass(frozen=True)
class Tested:
    """What one arm answered at one place.

    Attributes
    ----------
    rows
        Its counts per label and patient.
    problem
        Why there are none at all.
    tested, arm
        Which.
    """

    rows: PatientStatistics
    problem: Sequence[str]
    tested: str
    arm: str

    def counts(self) -> tuple[Floats, Floats]:
        """[patients, labels] correct and tested tiles.

        Raises
        ------
        Undefined
            If there are none, or of fewer than two patients.
        """
        if self.problem:
            raise Undefined(self.problem[0])
        if self.rows.table.is_empty():
            raise Undefined(
                f"{self.arm} could not be fitted: see why in the log of slides"
                if self.tested == IN_DOMAIN
                else "no center is held out with patients of these labels: set arms.held_out_center "
                "to a center that has slides of every label"
            )
        if self.rows.n_patients < 2:
            raise Undefined("an interval over patients needs two: add patients")
        correct, tested = (
            self.rows.matrix(c, "value", "n_tiles") for c in ("n_correct", "n_tiles")
        )
        return correct, tested

    def draws(self) -> tuple[float, Floats]:
        """Balanced accuracy, and that of resampled patients."""
        correct, tested = self.counts()
        weights = self.rows.weights
        value = float(balanced_accuracy(correct.sum(axis=0), tested.sum(axis=0)))
        return value, balanced_accuracy(weights @ correct, weights @ tested)

    def interval(
        self, value: float, draws: Floats, limits: tuple[float, float]
    ) -> tuple[float | None, float | None]:
        """Widened where the models that test a patient saw other tested ones."""
        if self.tested == IN_DOMAIN:
            return widened_interval(value, draws, limits)
        return percentile_interval(draws)

    def accuracy(self, _: Any = None) -> Value:
        """Balanced accuracy beside chance."""
        value, draws = self.draws()
        chance = 1 / self.rows.table["value"].n_unique()
        interval = self.interval(value, draws, (0.0, 1.0))
        return self.value(value, interval, draws, Null(chance, chance))

    def value(
        self,
        value: float,
        interval: tuple[float | None, float | None],
        draws: Floats,
        null: Null,
        remark: str = "",
    ) -> Value:
        """A figure that rests on these patients."""
        few = self.rows.n_patients < MIN_PATIENTS
        remarks = [remark] if remark else []
        if few:
            remarks.append(
                f"rests on {self.rows.n_patients} patients: an interval over fewer than "
                f"{MIN_PATIENTS} decides nothing; add patients"
            )
        estimate = Estimate(value, *interval, self.rows.n, self.rows.n_patients, draws)
        return Value(estimate, null, remark="; ".join(remarks))


def difference(one: Tested, other: Tested, _: Any = None, remark: str = "") -> Value:
    """Balanced accuracy of one arm minus another's, on the same patients."""
    (a, drawn_a), (b, drawn_b) = one.draws(), other.draws()
    draws = drawn_a - drawn_b
    interval = one.interval(a - b, draws, (-1.0, 1.0))
    return one.value(a - b, interval, draws, Null(0.0, 0.0), remark)


def signature(
    linear: Tested,
    tuned: Tested,
    null: Tested | None,
    p: Adaptation,
    _: Any = None,
) -> Value:
    """The linear probe minus an arm that trains the network, with what is excluded in words.

    An arm that does not beat random frozen weights was not trained long enough to be held against
    anything, and so was one without a search.
    """
    found = difference(linear, tuned)
    if p.search.trials < LEAST_TRIALS:
        caveat = (
            f"{p.search.trials} trial(s) of each arm are no search: raise adaptation.search.trials"
        )
        return replace(found, caveat=caveat, remark="; ".join(filter(None, [caveat, found.remark])))
    above = None if null is None else difference(tuned, null).estimate.ci_low
    if above is not None and above <= 0:
        caveat = (
            "the trained arm does not beat random frozen weights with its whole interval, so that "
            "nothing follows of the encoder: raise adaptation.search.epochs, or add patients"
        )
        return replace(found, caveat=caveat, remark="; ".join(filter(None, [caveat, found.remark])))
    low, high = found.estimate.ci_low, found.estimate.ci_high
    if low is None or high is None or linear.rows.n_patients < MIN_PATIENTS:
        return found
    threshold, points = p.signature, 100 * p.signature
    if low > threshold:
        said = f"the probe is better by more than {points:g} points, the printed sign of weakness"
    elif high < -threshold:
        said = f"training the network is better by more than {points:g} points"
    elif -threshold < low and high < threshold:
        said = f"neither is better by more than {points:g} points"
    else:
        said = f"whether one is better by more than {points:g} points is open"
    return replace(found, remark=said)


def center_gap(own: Tested, other: Tested, _: Any = None) -> Value:
    """Balanced accuracy in domain minus at the held-out center, of two sets of patients."""
    (a, inside), (b, outside) = own.draws(), other.draws()
    # In another order: of as many patients the draws would be the same, and these are others.
    outside = outside[::-1]
    widened = np.sqrt(CROSS_VALIDATION_EFFECT) * (inside - inside.mean())
    low, high = percentile_interval(a - b + widened - (outside - outside.mean()))
    patients = own.rows.n_patients + other.rows.n_patients
    estimate = Estimate(a - b, low, high, own.rows.n + other.rows.n, patients, inside - outside)
    return Value(estimate, Null(0.0, 0.0))


def _of_forgetting(of: PatientStatistics, arm: str, problem: Sequence[str]) -> Iterator[Figure]:
    """What of the encoder is lost by adapting it."""
    for target in TARGETS:
        rows = of.where(pl.col("part") == "probe").at(arm=arm, target=target)
        yield rows.figure("forgotten", partial(_forgotten, problem=problem))
    near = of.where(pl.col("part") == "neighbours").at(arm=arm)
    yield near.figure("mknn", partial(_shared, problem=problem))
    aligned = of.where(pl.col("part") == "cka").at(arm=arm)
    patients = of.where(pl.col("part") == "probe").at(arm=arm).n_patients
    yield aligned.figure("cka", partial(_cka, problem=problem, n_patients=patients))


def _forgotten(rows: PatientStatistics, problem: Sequence[str]) -> Value:
    """Balanced accuracy of a probe of the encoder minus that of the adapted one."""
    _refuse_nothing(rows, problem, "the arm could not be fitted, or no slide says which it is of")
    own = rows.where(pl.col("n_tiles") > 0)
    if own.table.is_empty() or own.table["problem"].max():
        raise Undefined(str(rows.table["problem"].max()))
    before, after, tested = (
        own.matrix(name, "value", "n_tiles") for name in ("n_frozen", "n_correct", "n_tiles")
    )
    whole = tested.sum(axis=0)
    a, b = (float(balanced_accuracy(c.sum(axis=0), whole)) for c in (before, after))
    resampled = own.weights @ tested
    draws = balanced_accuracy(own.weights @ before, resampled)
    draws = draws - balanced_accuracy(own.weights @ after, resampled)
    value, interval = a - b, widened_interval(a - b, draws, (-1.0, 1.0))
    remark = f"before {number(a)}, after {number(b)}"
    estimate = Estimate(value, *interval, own.n, own.n_patients, draws)
    return Value(estimate, Null(0.0, 0.0), remark=remark)


def _shared(rows: PatientStatistics, problem: Sequence[str]) -> Value:
    """Mutual k-NN before and after, and what chance gives."""
    _refuse_nothing(
        rows, problem, "a tile has fewer than k tiles of other patients: lower adaptation.k"
    )
    tiles = rows.sums("n_tiles")
    chance = float(rows.sums("chance_sum").sum() / tiles.sum())
    return Value(rows.ratio(rows.sums("mknn_sum"), tiles), Null(chance, chance))


def _cka(rows: PatientStatistics, problem: Sequence[str], n_patients: int) -> Value:
    """Alignment of all rows, its interval from those without a group of patients."""
    _refuse_nothing(rows, problem)
    return aligned_value(rows, n_patients)


def _refuse_nothing(
    rows: PatientStatistics, problem: Sequence[str], reason: str = "the arm could not be fitted"
) -> None:
    if problem:
        raise Undefined(problem[0])
    if rows.table.is_empty():
        raise Undefined(reason)


def _of_search(of: PatientStatistics, p: Adaptation, problem: Sequence[str]) -> Iterator[Figure]:
    """Trials and cost of each arm; these are counts of fits and have no interval over patients."""
    of_costs = of.table.filter(part="cost")
    for arm in p.arms:
        trials = of.table.filter(part="trials", arm=arm)
        for rate, accuracy, n in trials.select(
            "learning_rate", "inner_accuracy", "n_fits"
        ).iter_rows():
            at = {"arm": arm, "log10_learning_rate": round(float(np.log10(rate)), 3)}
            yield Figure("inner_accuracy", partial(_counted, accuracy, n, problem), at, n=n)
        n = int(trials["n_fits"].sum() or 0)
        diverged, stopped, epochs = (
            int(trials[name].sum() or 0) for name in ("n_diverged", "n_stopped", "epochs")
        )
        ran = n - diverged
        for metric, value, fits in (
            ("divergence_rate", diverged, n),
            ("stopped_early", stopped, ran),
            ("epochs_run", epochs, ran),
        ):
            share = value / fits if fits else None
            why = _ALL_DIVERGED if n else _NOT_FITTED
            counted = partial(_counted, share, fits, problem, why)
            yield Figure(metric, counted, {"arm": arm}, n=fits)
    for arm in p.arms:
        cost = of_costs.filter(arm=arm)
        for metric, why in _COSTS.items():
            n = int(cost["n_fits"].sum())
            total = cost[metric][0] if n else None
            mean = None if total is None else total / n
            if not p.measured:
                why = _NOT_KEPT
            counted = partial(_counted, mean, n, problem, why if n else _NOT_FITTED)
            yield Figure(f"training_{metric}", counted, {"arm": arm}, n=n)


def _counted(value: float | None, n: int, problem: Sequence[str], why: str = _NOT_FITTED) -> Value:
    if problem:
        raise Undefined(problem[0])
    if value is None:
        raise Undefined(why)
    return Value(Estimate(value, None, None, n, 0))
