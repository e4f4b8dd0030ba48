r"""Frozen vectors of pretrained arms compared: what they know, and what changes them.

Every arm's vectors of the same tiles are measured alike:

- ``balanced_accuracy`` of a linear probe of the label within the training centers (cross-validated by
  patient), of the same probe on the center that nothing was trained on, and of the center;
- ``robustness_index = SO / (SO + OS)`` among each tile's k nearest tiles of other patients: SO has its
  label and another center, OS its center and another label
  (:mod:`~pathfm_kedro.statistics.pair_bootstrap`);
- ``kept_neighbours`` of the tile turned by a quarter, and of the tile with haematoxylin and eosin
  jittered; on phantom slides also of the drawn morphology in place of the tile
  (:mod:`~pathfm_kedro.statistics.perturbation`);
- ``relative_shift`` of small crops of the tile: their distance to it over the distance to other
  patients' tiles of its label. The local-global assumption holds below 1, where a tile's own parts
  are nearer;
- ``follows_morphology_minus_null`` of the tile in the stain of the next center (Macenko): whether its
  neighbours follow the tissue or the stain (:mod:`~pathfm_kedro.statistics.cue_conflict`).

``difference``: each of these less that of another arm, by the same resampled patients, with
intervals that hold together over the arms
(:func:`~pathfm_kedro.statistics.paired_comparison.simultaneous_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.inheritance.arm_statistics import (
    CENTER,
    CROP,
    DRAWN,
    HELD_OUT_LABEL,
    LABEL,
    ROTATIONS,
    STAIN,
    ArmParameters,
)
from pathfm_kedro.statistics.cross_validation import probe_accuracy
from pathfm_kedro.statistics.cue_conflict import (
    CUES,
    TRANSFERRED,
    CueCounts,
    follows_morphology_minus_null,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import too_few_candidates
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.paired_comparison import simultaneous_differences
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.perturbation import kept_neighbours, relative_shift


@dataclass(frozen=True)
class Arm:
    """An arm as figures name it.

    Attributes
    ----------
    name
        Of its shards.
    setting
        Of its figures.
    against
        Arms that it is compared with, by what they are called in the setting.
    """

    name: str
    setting: Mapping[str, Any]
    against: Mapping[str, str]


@dataclass(frozen=True)
class _Measured:
    """One metric of all arms."""

    metric: str
    setting: Mapping[str, Any]
    compute: Callable[[PatientStatistics], Value]
    #: Where a useful arm lies: 1 above, -1 below, 0 for neither.
    better: int

    @property
    def of(self) -> str:
        """What a difference is of."""
        return next(iter(self.setting.values()), self.metric)


def arm_figures(
    statistics: pl.DataFrame, arms: Sequence[Arm], p: ArmParameters
) -> Iterator[Figure]:
    """Figures of each arm, then differences between arms.

    Parameters
    ----------
    statistics
        From :func:`~pathfm_kedro.pipelines.inheritance.arm_statistics.arm_statistics`.
    arms
        In reading order.
    p
        The parameters.
    """
    comparison = _Comparison(statistics, arms, p)
    for arm in arms:
        for each in comparison.metrics:
            yield Figure(
                each.metric,
                partial(comparison.value, each, arm.name),
                {**arm.setting, **each.setting},
            )
        yield Figure("operations", partial(_operations, comparison, arm.name), arm.setting)
        yield Figure("loss_ratio", partial(_loss_ratio, comparison, arm.name), arm.setting)
    for arm in arms:
        for against in arm.against:
            for each in comparison.metrics:
                setting = {**arm.setting, "against": against, "of": each.of}
                yield Figure(
                    "difference", partial(comparison.difference, each, arm, against), setting
                )


class _Comparison:
    def __init__(self, statistics: pl.DataFrame, arms: Sequence[Arm], p: ArmParameters) -> None:
        self.statistics, self.arms, self.p = statistics, arms, p
        self._values: dict[tuple[str, str], Value | Undefined] = {}

    @cached_property
    def metrics(self) -> list[_Measured]:
        """Figures of an arm, in reading order."""
        found = [
            _Measured("balanced_accuracy", {"target": target}, partial(_accuracy, target), better)
            for target, better in ((LABEL, 1), (HELD_OUT_LABEL, 1), (CENTER, -1))
        ]
        found.append(_Measured("robustness_index", {}, _robustness_index, 1))
        views = {"rotation": tuple(ROTATIONS), STAIN: (STAIN,)}
        if self.statistics.filter(view=DRAWN).height:
            views[DRAWN] = (DRAWN,)
        found += [
            _Measured("kept_neighbours", {"view": name}, partial(_kept, of), 1)
            for name, of in views.items()
        ]
        found.append(_Measured("relative_shift", {"view": CROP}, _shift, 0))
        conflict = partial(_cue_conflict, self.p)
        found.append(_Measured("follows_morphology_minus_null", {"view": TRANSFERRED}, conflict, 1))
        return found

    def rows(self, arm: str) -> PatientStatistics:
        """Rows of an arm.

        Raises
        ------
        Undefined
            If the arm was not trained, with the reason.
        """
        own = self.statistics.filter(arm=arm)
        failed = own.filter(pl.col("kind") == "fit", pl.col("problem").is_not_null())
        if own.is_empty() or failed.height:
            why = failed["problem"][0] if failed.height else "it has no statistics"
            raise Undefined(f"the arm '{arm}' was not trained: {why}")
        return PatientStatistics(own, self.p)

    def value(self, metric: _Measured, arm: str) -> Value:
        """A figure of an arm, computed once."""
        key = (metric.of, arm)
        if key not in self._values:
            try:
                self._values[key] = metric.compute(self.rows(arm))
            except Undefined as problem:
                self._values[key] = problem
        found = self._values[key]
        if isinstance(found, Undefined):
            raise found
        return found

    def difference(self, metric: _Measured, arm: Arm, against: str) -> Value:
        """The arm's figure less that of another, and whether it counts."""
        estimate = self._less(metric, arm, against)
        remark = _in_words(estimate, metric.better)
        caveat = ""
        if metric.of not in _KNOWS and remark.startswith(_COUNTS) and not self._knows(arm, against):
            caveat = f"undecidable: {remark}, but the arm reads the label no better than the other"
        return Value(estimate, Null(0.0, 0.0), caveat=caveat, remark=caveat or remark)

    def _knows(self, arm: Arm, against: str) -> bool:
        """Whether an arm reads the label better than another, with its whole interval."""
        for metric in self.metrics:
            if metric.of in _KNOWS:
                try:
                    low = self._less(metric, arm, against).ci_low
                except Undefined:
                    continue
                if low is not None and low > 0:
                    return True
        return False

    def _less(self, metric: _Measured, arm: Arm, against: str) -> Estimate:
        """The difference, with the interval that holds for all arms together."""
        own, other = self._pair(metric, arm, against)
        if own.ci_low is None or other.ci_low is None:
            raise Undefined("one of the two has no interval: add patients", own.n, own.n_patients)
        pairs = [(own, other)]
        for each in self.arms:
            if each is not arm and against in each.against:
                try:
                    first, second = self._pair(metric, each, against)
                except Undefined:
                    continue
                if first.ci_low is not None and second.ci_low is not None:
                    pairs.append((first, second))
        found = simultaneous_differences(pairs)[0]
        low, high = (
            float(end) if np.isfinite(end) else found.value for end in (found.low, found.high)
        )
        return Estimate(found.value, low, high, found.n, found.n_patients)

    def _pair(self, metric: _Measured, arm: Arm, against: str) -> tuple[Estimate, Estimate]:
        return (
            self.value(metric, arm.name).estimate,
            self.value(metric, arm.against[against]).estimate,
        )


#: Figures that show that something of the tissue was learnt.
_KNOWS = (LABEL, HELD_OUT_LABEL)
#: How a difference begins that counts.
_COUNTS = ("better", "worse")


def _in_words(difference: Estimate, better: int) -> str:
    """Whether a difference counts: only where its whole interval says so."""
    low, high = difference.ci_low, difference.ci_high
    assert low is not None
    assert high is not None
    if low <= 0 <= high:
        return "undecidable: the interval of the difference contains 0"
    if not better:
        return ""
    return (
        "better, with the whole interval" if low * better > 0 else "worse, with the whole interval"
    )


def _accuracy(target: str, arm: PatientStatistics) -> Value:
    of_target = arm.where(pl.col("target") == target)
    table = of_target.table
    if table.is_empty():
        raise Undefined("no tile to probe: see arms.tiles_per_slide and the cohort's labels")
    problems = table["problem"].fill_null("").unique().sort(descending=True)
    if problems[0]:
        raise Undefined(str(problems[0]))
    probed_rows = of_target.mean_over("seed")
    if probed_rows.n_patients < 2:
        raise Undefined(f"{probed_rows.n_patients} patient(s) to test on, two are needed")
    correct, n = (probed_rows.matrix(name, "value", "n_tiles") for name in ("n_correct", "n_tiles"))
    chance = 1 / table["value"].n_unique()
    # On the held-out center too: another training set would have given another probe, and its few
    # patients are resampled to too narrow an interval.
    estimate = probe_accuracy(correct, n, probed_rows.weights)
    return Value(_of_tiles(estimate, probed_rows), Null(chance, chance))


def _of_tiles(estimate: Estimate, rows: PatientStatistics) -> Estimate:
    """A tile counts once, however many seeds there are."""
    return Estimate(
        estimate.value, estimate.ci_low, estimate.ci_high, rows.n, rows.n_patients, estimate.draws
    )


def _robustness_index(arm: PatientStatistics) -> Value:
    pairs = arm.where(pl.col("kind") == "pairs").table
    patients = sorted({*pairs["patient_id"], *pairs["neighbour_patient"]})
    size = len(patients)
    if size < 2 or not int((pairs["so"] + pairs["os"]).sum()):
        raise Undefined(
            "no tile has a neighbour with its label from another center, or the reverse: two labels at "
            "two centers are needed; add patients or raise the experiment's k"
        )
    rows, columns = (
        pairs[name].replace_strict(patients, range(size)).to_numpy()
        for name in ("patient_id", "neighbour_patient")
    )
    so, os = np.zeros((2, size, size))
    np.add.at(so, (rows, columns), pairs["so"].to_numpy())
    np.add.at(os, (rows, columns), pairs["os"].to_numpy())
    weights = arm.parameters.weights(size)
    drawn = resampled_total(so + os, weights)
    k, seeds = getattr(arm.parameters, "k", 1), pairs["seed"].n_unique()
    n = int(pairs["n_tiles"].sum()) // (k * seeds)
    so_expected, os_expected = (float(pairs[f"{kind}_expected"].sum()) for kind in ("so", "os"))
    chance = so_expected / (so_expected + os_expected)
    return Value(pair_ratio(so, so + os, drawn, weights, n, 1.0), Null(chance, chance))


def _cue_conflict(p: ArmParameters, arm: PatientStatistics) -> Value:
    met = arm.table.filter(kind="cues").group_by("view", "patient_id", "neighbour_patient")
    # A tile counts once in `n`: whether it is a query is the same for all seeds.
    table = met.agg(pl.col("n_queries").max(), pl.col(CUES).sum())
    counts = CueCounts(table, p, p.k, "the experiment's k", "arms.tiles_per_slide")
    return follows_morphology_minus_null(counts)


def _kept(views: Sequence[str], arm: PatientStatistics) -> Value:
    return kept_neighbours(_view(arm, views))


def _shift(arm: PatientStatistics) -> Value:
    return relative_shift(_view(arm, (CROP,)))


def _view(arm: PatientStatistics, views: Sequence[str]) -> PatientStatistics:
    """Rows of some views, a tile counting once in `n`."""
    # A key of both: the mean over views and seeds.
    table = arm.table.filter(pl.col("view").is_in(views)).with_columns(
        repeat=pl.concat_str("view", "seed", separator=" ")
    )
    if table.is_empty():
        raise Undefined("no tile to test: see arms.tiles_per_slide and the cohort's labels")
    if table["patient_id"].n_unique() < 2:
        raise Undefined("fewer than two patients to test: add patients")
    if table["kept_sum"].null_count():
        text = too_few_candidates(int(table["k"][0]), int(table["fewest_candidates"][0]))
        raise Undefined(text.replace("tile_pool.max_tiles", "arms.tiles_per_slide"))
    return PatientStatistics(table, arm.parameters, over="repeat")


def _operations(comparison: _Comparison, arm: str) -> Value:
    found = comparison.rows(arm).table.filter(kind="fit")
    return Value(_without_interval(found["operations"], found))


def _loss_ratio(comparison: _Comparison, arm: str) -> Value:
    found = comparison.rows(arm).table.filter(kind="fit")
    ratio = (found["last_loss"] / found["first_loss"]).drop_nulls()
    if ratio.is_empty():
        raise Undefined("nothing was learnt: the weights are as they were before training")
    return Value(_without_interval(ratio, found))


def _without_interval(values: pl.Series, fits: pl.DataFrame) -> Estimate:
    """The mean over seeds, resting on the tiles that were trained on."""
    return Estimate(float(values.to_numpy().mean()), None, None, int(fits["n_tiles"][0]), 0)
