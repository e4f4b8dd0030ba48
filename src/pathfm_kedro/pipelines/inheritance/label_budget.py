"""Label budgets: how many labelled patients a probe of the label needs.

The probe of ``probe_calibration`` trained on a share of the patients that could train it: the budget,
sampled evenly from every label, in several repeats; larger budgets hold the patients of smaller ones.
Tested are patients that did not train, in folds (``in_domain``), or each center by models of the other
centers (``held_out_center``). There is no validation split: nothing is tuned, so that a budget is all
the labels that are spent.

Means over repeats of:

- ``balanced_accuracy``; null: 1 / number of labels;
- ``ece``: expected calibration error, bins of equal width, as in ``probe_calibration``;
- ``degeneracy_share``: share of tiles in the label that is predicted most, 1 for a probe that
  always says the same.

Intervals: bootstrap over tested patients, given the models, widened for cross-validation. A budget that
is less than one patient of some label is not applicable.

Budgets are patients, not tiles: all tiles of a patient cost one label.

Pitfalls
--------
- The share is of the patients that can train in each split, not of the cohort: of four fifths in five
  folds.
- Small budgets differ from repeat to repeat, which the interval over tested patients does not hold.
- Calibration errors of different budgets rest on the same tiles, and few tiles alone give an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.inheritance.patient_budgets import (
    ResampledSums,
    counted,
    refuse_less_than_a_patient,
    sampled_patients,
)
from pathfm_kedro.statistics.bootstrap import exact_without_spread, patient_codes
from pathfm_kedro.statistics.cross_validation import (
    ProbeSettings,
    balanced_accuracy,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.probability_error import (
    expected_calibration_error,
    fixed_width_bins,
    log_probabilities,
    stated_and_true,
    sums_in_bins,
)
from pathfm_kedro.statistics.probe_splits import (
    TESTED,
    ProbedTiles,
    Split,
    probe_logits,
)
from pathfm_kedro.statistics.tables import Embeddings, to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: One row per way of testing, budget, repeat, tested patient and label: its tiles, how many are
#: correctly classified, how many are predicted as each label, and true minus stated in each bin; with
#: how many patients train on average. A row with a problem says why there is nothing.
LABEL_BUDGET_SCHEMA: dict[str, pl.DataType] = {
    "tested": pl.String(),
    "budget": pl.Float64(),
    "repeat": pl.Int64(),
    "patient_id": pl.String(),
    "target": pl.Int64(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "n_predicted": pl.List(pl.Float64()),
    "gaps": pl.List(pl.Float64()),
    "n_training_patients": pl.Float64(),
    "problem": pl.String(),
}

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LabelBudget(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    max_tiles_per_slide
        Tiles per slide that the probe sees, so that large slides do not rule.
    probe
        Of the label; labels of fewer patients than folds are left out.
    budgets
        Shares of the patients that can train.
    repeats
        Samples of patients of each budget; all patients are one sample.
    n_bins
        Of the calibration error.
    """

    max_tiles_per_slide: Annotated[int, Field(ge=1)]
    probe: ProbeSettings
    budgets: Annotated[tuple[Share, ...], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1)]
    n_bins: Annotated[int, Field(ge=1)] = 15


def label_budget_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: LabelBudget
) -> pl.DataFrame:
    """What probes of every budget say of the patients that did not train them.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`LABEL_BUDGET_SCHEMA`.
    """
    folds = p.probe.folds
    try:
        own = ProbedTiles.of(
            slides, tiles, embeddings, p.max_tiles_per_slide, folds, p.seed, "label_budget"
        )
    except Undefined as problem:
        return _problems(TESTED, p.budgets, str(problem))
    frames = []
    for tested in TESTED:
        try:
            frames.append(_tested(tested, own.splits(tested, folds, p.seed), own, p))
        except Undefined as problem:
            frames.append(_problems([tested], p.budgets, str(problem)))
    return pl.concat(frames)


def _problems(tested: Iterable[str], budgets: Iterable[float], reason: str) -> pl.DataFrame:
    rows = [{"tested": t, "budget": b, "problem": reason} for t in tested for b in budgets]
    return to_schema(rows, LABEL_BUDGET_SCHEMA)


def _tested(tested: str, splits: Iterable[Split], own: ProbedTiles, p: LabelBudget) -> pl.DataFrame:
    """Rows of one way of testing; of a budget only where every split has a patient of each label."""
    usable = [split for split in splits if not split.problem]
    if not usable:
        return _problems([tested], p.budgets, "no center can be tested by models of the others")
    pools = [np.union1d(split.train, split.aside) for split in usable]
    tags, targets = own.tags, own.targets
    patients, _ = patient_codes(tags["patient_id"].to_numpy())
    names = tags["label"].to_numpy()
    frames = []
    for budget in p.budgets:
        try:
            for pool in pools:
                refuse_less_than_a_patient(patients[pool], names[pool], budget, "label_budget")
        except Undefined as problem:
            frames.append(_problems([tested], [budget], str(problem)))
            continue
        for repeat in range(p.repeats if budget < 1 else 1):
            numbers = zip(pools, usable, strict=True)
            parts, spent = [], []
            for number, (pool, split) in enumerate(numbers):
                seed = np.random.SeedSequence([p.seed, number, repeat])
                taken = sampled_patients(patients[pool], targets[pool], budget, seed)
                train = pool[np.isin(patients[pool], taken)]
                logits = probe_logits(own.vectors, targets, train, int(targets.max()) + 1, p.probe)[
                    split.test
                ]
                gaps = _gaps(logits, targets[split.test], p.n_bins)
                parts.append(counted(logits, targets[split.test], tags[split.test], {"gaps": gaps}))
                spent.append(len(taken))
            found = pl.concat(parts).with_columns(
                tested=pl.lit(tested),
                budget=pl.lit(budget),
                repeat=pl.lit(repeat),
                n_training_patients=pl.lit(float(np.mean(spent))),
            )
            frames.append(to_schema(found, LABEL_BUDGET_SCHEMA))
    return pl.concat(frames)


def _gaps(logits: Floats, targets: Ints, n_bins: int) -> Floats:
    """[n, bins] true minus stated, in the bin of what is stated."""
    stated, true = stated_and_true(np.exp(log_probabilities(logits)), targets)
    return sums_in_bins(true - stated, fixed_width_bins(stated, n_bins), n_bins)


def label_budget_figures(statistics: pl.DataFrame, p: LabelBudget) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`label_budget_statistics`.
    p
        The parameters.
    """
    for tested in TESTED:
        for budget in p.budgets:
            of = PatientStatistics(statistics, p).at(tested=tested, budget=budget)
            sums = cache(partial(ResampledSums.read, of))
            for metric, reduce in FIGURES.items():
                yield of.figure(metric, partial(_reduced, sums=sums, reduce=reduce))


def _reduced(
    _: PatientStatistics,
    sums: Callable[[], ResampledSums],
    reduce: Callable[[ResampledSums], Value],
) -> Value:
    return reduce(sums())


def budget_accuracy(sums: ResampledSums) -> Value:
    """Balanced accuracy; null 1 / number of labels that are tested."""
    chance = 1 / int((sums.tested[0, 0] > 0).sum())
    accuracies = balanced_accuracy(sums.correct, sums.tested)
    remark = f"{sums.training_patients:.3g} patients train"
    estimate = exact_without_spread(sums.estimate(accuracies.mean(axis=1)))
    return Value(estimate, Null(chance, chance), remark=remark)


def budget_error(sums: ResampledSums) -> Value:
    """Expected calibration error."""
    errors = expected_calibration_error(sums.lists("gaps"), sums.tested.sum(axis=-1))
    return Value(sums.estimate(errors.mean(axis=1)))


def budget_degeneracy(sums: ResampledSums) -> Value:
    """Share of tiles in the label that is predicted most; reference: the most frequent label's."""
    shares = sums.predicted.max(axis=-1) / sums.tested.sum(axis=-1)
    reference = float(sums.tested[0, 0].max() / sums.tested[0, 0].sum())
    return Value(sums.estimate(shares.mean(axis=1)), Null(reference, reference))


FIGURES = {
    "balanced_accuracy": budget_accuracy,
    "ece": budget_error,
    "degeneracy_share": budget_degeneracy,
}
