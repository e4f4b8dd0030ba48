r"""Task-specific against foundation model: from how many patients on a small network wins.

The same labelled tiles serve both: a logistic regression of the encoder's frozen vectors, and a small
CNN trained from scratch on the pixels. Budgets are shares of the patients that can train, sampled
evenly from every label; larger ones hold the patients of smaller ones. Tested are patients that did
not train, in folds (``in_domain``), and a center that none of them comes from (``held_out_center``).

- ``macro_f1`` of both at each budget, over tiles, mean over samples of patients. Null: what is reached
  by guessing evenly, by the labels' frequencies, or always the most frequent one;
- ``lead``: the probe's minus the network's, by the same resampled patients;
- ``training_patients`` of each budget;
- ``crossing_patients``: from how many patients on the network stays ahead. Between two budgets the lead
  is linear in the logarithm of the patients, and of several crossings it is the last one;
- ``outcome_share`` of resampled cohorts in which the curves cross so, in which the probe is still ahead
  at the largest budget, and in which the network is ahead at all of them. No crossing within the
  budgets is a result, not a missing figure.

Intervals: bootstrap over tested patients, given the models, widened for cross-validation (also at the
held-out center, whose models share their training patients). An end of the crossing's interval that
lies outside the budgets is open. A budget of less than one patient of some label is not applicable.

A network that at the largest budget does not beat a guess with its whole interval was not trained
enough to be held against anything: then nothing of the comparison counts.

Pitfalls
--------
- Neither is tuned: a budget is all labels that are spent, and none is left to choose by. With a search
  at every budget either may do better; ``adaptation`` has one, at one budget.
- One small network stands for all that is task-specific, at the side of the arms' input.
- Both learn from the tiles of the arms' pool, which are fewer than the cohort's.
- The interval is over tested patients. How much another sample of training patients would change is
  in the mean over repeats, not in the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.pipelines.inheritance.arm_tiles import FoldedTiles, embedded_vectors
from pathfm_kedro.pipelines.inheritance.patient_budgets import ResampledSums, counted
from pathfm_kedro.pipelines.inheritance.task_specific_fits import (
    NETWORK,
    BudgetSplit,
    TaskSpecific,
    budget_splits,
    folded,
)
from pathfm_kedro.statistics.bootstrap import exact_without_spread
from pathfm_kedro.statistics.cross_validation import CROSS_VALIDATION_EFFECT
from pathfm_kedro.statistics.crossings import crossings
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.probe_splits import TESTED, probe_logits
from pathfm_kedro.statistics.tables import to_schema
from pathfm_kedro.statistics.votes import macro_f1_of_guesses

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PROBE = "probe"
MODELS = (PROBE, NETWORK)
#: How two curves can lie.
CROSSING, PROBE_AHEAD, NETWORK_AHEAD = "crossing", "probe_ahead", "network_ahead"
#: Of the patients so many may lack vectors, as after a slide that could not be embedded; with fewer
#: the probe and the network would not learn from the same patients.
_LEAST_EMBEDDED = 0.9

#: One row per model, way of testing, budget, repeat, tested patient and label: its tiles, how many are
#: correctly classified, how many are predicted as each label; and how many patients train on average.
#: A row with a problem says why there is nothing.
TASK_SPECIFIC_SCHEMA: dict[str, pl.DataType] = {
    "model": pl.String(),
    "tested": pl.String(),
    "budget": pl.Float64(),
    "repeat": pl.Int64(),
    "patient_id": pl.String(),
    "target": pl.Int64(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "n_predicted": pl.List(pl.Float64()),
    "n_training_patients": pl.Float64(),
    "problem": pl.String(),
}


def task_specific_statistics(
    tiles: pl.DataFrame,
    embeddings: Shards,
    pool: pl.DataFrame,
    pixels: Shards,
    fits: Shards,
    p: TaskSpecific,
) -> pl.DataFrame:
    """What both models of every budget say of the patients that did not train them.

    Parameters
    ----------
    tiles, embeddings
        The encoder's tiles and their vectors.
    pool, pixels
        The arms' tiles and their pixels.
    fits
        The networks' logits, from :func:`~.task_specific_fits.plan_task_specific`.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`TASK_SPECIFIC_SCHEMA`.
    """
    own = folded(pool, pixels, p)
    known, vectors = embedded_vectors(own.table, tiles, embeddings)
    problem = own.problem or _not_the_same(own.table, known)
    if problem:
        return _problems(p.budgets, problem)
    asked = _Asked(own, known, vectors, fits, p)
    return pl.concat([_of_budget(budget, asked) for budget in p.budgets] or [_problems([], "")])


def _problems(
    budgets: Iterable[float],
    reason: str,
    tested: Sequence[str] = TESTED,
    models: Sequence[str] = MODELS,
) -> pl.DataFrame:
    rows = [
        {"model": m, "tested": t, "budget": b, "problem": reason}
        for b in budgets
        for t in tested
        for m in models
    ]
    return to_schema(rows, TASK_SPECIFIC_SCHEMA)


def _not_the_same(table: pl.DataFrame, known: Bools) -> str:
    """Why an encoder's probe is not set against the network; empty where it is."""
    whole = table["patient_id"].n_unique()
    embedded = table.filter(known)["patient_id"].n_unique()
    if embedded >= _LEAST_EMBEDDED * whole and known.any():
        return ""
    return (
        f"the encoder has vectors of the network's tiles of {embedded} of {whole} patients, so that "
        "the two would not learn from the same patients: this needs an encoder with the cohort's own "
        "grid of tiles that was not trained on this cohort"
    )


class _Asked:
    """Logits of either model on the tested tiles that the encoder has vectors of."""

    def __init__(
        self, own: FoldedTiles, known: Bools, vectors: Floats, fits: Shards, p: TaskSpecific
    ) -> None:
        self.own, self.known, self.vectors, self.fits, self.p = own, known, vectors, fits, p
        self._place = np.cumsum(known) - 1

    def probe(self, split: BudgetSplit) -> Floats:
        """Of the encoder's vectors."""
        train, test = (rows[self.known[rows]] for rows in (split.train, split.test))
        targets = self.own.targets[np.concatenate([train, test])]
        if len(np.unique(targets[: len(train)])) < 2:
            raise Undefined("the patients of this budget with vectors carry fewer than two labels")
        vectors = self.vectors[self._place[np.concatenate([train, test])]]
        rows = np.arange(len(train))
        logits = probe_logits(vectors, targets, rows, len(self.own.labels), self.p.probe)
        return logits[len(train) :]

    def small_cnn(self, split: BudgetSplit) -> Floats:
        """Of the pixels, from the shard of the fit."""
        if split.name not in self.fits.slide_ids:
            failures: Mapping[str, str] = getattr(self.fits, "failures", {})
            why = failures.get(split.name, "see why in the log of slides")
            raise Undefined(f"a network of this budget was not trained: {why}")
        logits = self.fits.load_slide(split.name, "logits")
        return logits[self.known[split.test]].astype(np.float64)


def _of_budget(budget: float, asked: _Asked) -> pl.DataFrame:
    try:
        splits = list(budget_splits(asked.own, budget, asked.p))
    except Undefined as problem:
        return _problems([budget], str(problem))
    frames = []
    for tested in TESTED:
        own = [split for split in splits if split.tested == tested]
        if not own:
            reason = (
                "no center is held out with patients of these labels: set arms.held_out_center to a "
                "center that has slides of every label"
            )
            frames.append(_problems([budget], reason, [tested]))
            continue
        # Of all patients there is one sample, and a probe begins with no weights of its own.
        probes = [split for split in own if budget < 1 or not split.repeat]
        for model, of, logits in (
            (PROBE, probes, asked.probe),
            (NETWORK, own, asked.small_cnn),
        ):
            try:
                found = _counted(of, logits, asked)
            except Undefined as problem:
                frames.append(_problems([budget], str(problem), [tested], [model]))
                continue
            keys = {"model": model, "tested": tested, "budget": budget}
            keyed = found.with_columns(**{name: pl.lit(value) for name, value in keys.items()})
            frames.append(to_schema(keyed, TASK_SPECIFIC_SCHEMA))
    return pl.concat(frames)


def _counted(
    splits: Sequence[BudgetSplit], logits: Callable[[BudgetSplit], Floats], asked: _Asked
) -> pl.DataFrame:
    """Counts of one model at one budget."""
    parts = []
    for split in splits:
        rows = split.test[asked.known[split.test]]
        found = counted(logits(split), asked.own.targets[rows], asked.own.table[rows])
        parts.append(found.with_columns(repeat=pl.lit(split.repeat)))
    spent = float(np.mean([split.n_patients for split in splits]))
    return pl.concat(parts).with_columns(n_training_patients=pl.lit(spent))


def task_specific_figures(statistics: pl.DataFrame, p: TaskSpecific) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`task_specific_statistics`.
    p
        The parameters.
    """
    if not p.budgets:
        reason = "task_specific.budgets is empty: give shares of the patients, as 0.25 and 1"
        yield Figure("crossing_patients", undefined(reason), {"tested": TESTED[0]})
        return
    for tested in TESTED:
        curves = _Curves(PatientStatistics(statistics, p).at(tested=tested), p)
        for model in MODELS:
            for budget in p.budgets:
                at = {"tested": tested, "model": model, "budget": budget}
                yield Figure("macro_f1", partial(curves.macro_f1, model, budget), at)
        for budget in p.budgets:
            at = {"tested": tested, "budget": budget}
            yield Figure("lead", partial(curves.lead, budget), at)
            yield Figure("training_patients", partial(curves.training_patients, budget), at)
        yield Figure("crossing_patients", curves.crossing, {"tested": tested})
        for outcome in (CROSSING, PROBE_AHEAD, NETWORK_AHEAD):
            at = {"tested": tested, "outcome": outcome}
            yield Figure("outcome_share", partial(curves.outcome_share, outcome), at)


class _Curves:
    """Both curves at one way of testing, each point summed once."""

    def __init__(self, of: PatientStatistics, p: TaskSpecific) -> None:
        self.of, self.p = of, p
        self.sums = cache(self._sums)
        self.crossings = cache(self._crossings)
        self.untrained = cache(self._untrained)

    def _sums(self, model: str, budget: float) -> ResampledSums:
        return ResampledSums.read(self.of.at(model=model, budget=budget))

    def macro_f1(self, model: str, budget: float) -> Value:
        """Of one model at one budget, beside what guessing reaches."""
        sums = self.sums(model, budget)
        remark = f"{sums.training_patients:.3g} patients train"
        null = Null(*macro_f1_of_guesses(sums.tested[0, 0]))
        estimate = exact_without_spread(sums.estimate(sums.macro_f1))
        return Value(estimate, null, remark=remark)

    def lead(self, budget: float) -> Value:
        """The probe's macro-F1 minus the network's."""
        draws = self._leads(budget)
        sums, why = self.sums(PROBE, budget), self.untrained()
        estimate = sums.estimate(draws, (-1.0, 1.0))
        return Value(estimate, Null(0.0, 0.0), caveat=why, remark=why)

    def _untrained(self) -> str:
        """Why the network may be held against nothing; empty where it may."""
        found = self.macro_f1(NETWORK, self.p.budgets[-1])
        low, guess = found.estimate.ci_low, found.null.high
        if low is not None and guess is not None and low > guess:
            return ""
        return (
            "undecidable: at the largest budget the network does not beat a guess with its whole "
            "interval, so that it shows nothing of task-specific networks: raise "
            "task_specific.training.steps, or add patients"
        )

    def _leads(self, budget: float) -> Floats:
        """[1 + draws] the probe's macro-F1 minus the network's, of the same patients."""
        probe, network = (self.sums(model, budget) for model in MODELS)
        if probe.of.patients != network.of.patients:
            raise Undefined("the two were not tested on the same patients")
        return np.asarray(probe.macro_f1 - network.macro_f1)

    def training_patients(self, budget: float) -> Value:
        """How many patients train at a budget."""
        sums = self.sums(PROBE, budget)
        return Value(Estimate(sums.training_patients, None, None, sums.of.n, sums.of.n_patients))

    def _crossings(self) -> tuple[Floats, Floats, ResampledSums]:
        """[1 + draws] crossings, [budgets] patients, and sums of the largest budget.

        Raises
        ------
        Undefined
            If fewer than two budgets have both models, with the reason of the first that has not.
        """
        leads, patients, why = [], [], ""
        for budget in self.p.budgets:
            try:
                leads.append(self._leads(budget))
            except Undefined as problem:
                why = why or str(problem)
                continue
            sums = self.sums(PROBE, budget)
            patients.append(sums.training_patients)
        if len(leads) < 2:
            raise Undefined(
                f"a crossing lies between two budgets or more, here {len(leads)}: {why}"
            )
        found = np.stack(leads, axis=1)
        middle = found[1:].mean(axis=0)
        found[1:] = found[0] + np.sqrt(CROSS_VALIDATION_EFFECT) * (found[1:] - middle)
        return crossings(found, np.array(patients)), np.array(patients), sums

    def crossing(self) -> Value:
        """From how many patients on the network stays ahead."""
        found, patients, sums = self.crossings()
        why = self.untrained()
        span = f"{patients[0]:.3g} to {patients[-1]:.3g} patients"
        n = sums.of.n, sums.of.n_patients
        if not np.isfinite(found[0]):
            where = (
                "probe is ahead at the largest"
                if found[0] > 0
                else "network is ahead at all of them"
            )
            share = np.isfinite(found[1:]).mean()
            said = (
                f"no crossing within the budgets of {span}: the {where}; the curves of {share:.0%} of "
                "resampled cohorts cross within them"
            )
            raise Undefined("; ".join(filter(None, [why, said])), *n)
        # No interpolation between draws: some lie at infinity.
        low, high = np.quantile(found[1:], (0.025, 0.975), method="inverted_cdf")
        low, high = (float(end) if np.isfinite(end) else None for end in (low, high))
        remark = f"budgets of {span}"
        if low is None or high is None:
            shown = [
                "fewer" if low is None else f"{low:.3g}",
                "more" if high is None else f"{high:.3g}",
            ]
            remark += f"; the interval is open, from {' to '.join(shown)}"
        remark = "; ".join(filter(None, [why, remark]))
        return Value(Estimate(float(found[0]), low, high, *n), caveat=why, remark=remark)

    def outcome_share(self, outcome: str) -> Value:
        """Share of resampled cohorts whose curves lie so."""
        found, _, sums = self.crossings()
        drawn = found[1:]
        so = {
            CROSSING: np.isfinite(drawn),
            PROBE_AHEAD: drawn == np.inf,
            NETWORK_AHEAD: drawn == -np.inf,
        }
        estimate = Estimate(float(so[outcome].mean()), None, None, sums.of.n, sums.of.n_patients)
        return Value(estimate, caveat=self.untrained(), remark=self.untrained())
