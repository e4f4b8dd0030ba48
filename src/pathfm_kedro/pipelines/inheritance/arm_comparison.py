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
  are nearer.

``difference``: each of these less that of another arm, by the same resampled patients, with
intervals that hold together over the arms
(:func:`~pathfm_kedro.statistics.paired_comparison.simultaneous_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as record
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.pipelines.inheritance.arm_tiles import DOWNSTREAM, HELD_OUT
from pathfm_kedro.statistics.cross_validation import (
    ProbeSettings,
    probe_accuracy,
    probed,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import too_few_candidates, unit
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.paired_comparison import simultaneous_differences
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.perturbation import (
    PERTURBATION_SUMS,
    ReferenceTiles,
    kept_columns,
    kept_neighbours,
    nearest_references,
    relative_shift,
)
from pathfm_kedro.statistics.tables import to_schema

Vectors = NDArray[np.float32]

#: What an arm's shard holds of its test tiles: [n, d] vectors of the tiles and of their views, and
#: of how it was trained, one row each: operations, tiles, losses per epoch.
VECTORS = "vectors"
ROTATIONS = {"rotation_90": 1, "rotation_180": 2, "rotation_270": 3}
STAIN, CROP, DRAWN = "stain", "local_crop", "drawn_morphology"
#: Views of a test tile whose vectors an arm gives.
VIEWS = (VECTORS, *ROTATIONS, STAIN, CROP)
LABEL, HELD_OUT_LABEL, CENTER = "label", "label_held_out_center", "center"

#: One row per arm, seed and
#:
#: - target, value (class), patient: tiles and how many are correctly classified; `problem` where
#:   nothing could be probed;
#: - patient and patient met: neighbours with the label from another center (so), and the reverse (os);
#: - view and patient: :data:`PERTURBATION_SUMS`;
#: - nothing else: operations, n_tiles, first and last loss, or why the arm failed.
ARM_SCHEMA: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "kind": pl.String(),
    "target": pl.String(),
    "value": pl.String(),
    "view": pl.String(),
    "patient_id": pl.String(),
    "met": pl.String(),
    "n_correct": pl.Int64(),
    "so": pl.Int64(),
    "os": pl.Int64(),
    **PERTURBATION_SUMS,
    "operations": pl.Float64(),
    "first_loss": pl.Float64(),
    "last_loss": pl.Float64(),
    "problem": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ArmParameters(ExperimentParameters):
    """Parameters of every comparison of pretrained arms.

    Attributes
    ----------
    n_seeds
        Of weights, batches and views, from ``seed`` on; the figures are means over them.
    epochs, batch, learning_rate, weight_decay
        The budget of an arm: passes over the tiles of the patients that pretrain, and AdamW with a
        cosine.
    probe
        Of label and center.
    k
        Neighbours.
    stain_sigma
        Dose of the stain jitter (Tellez et al. 2018).
    crop_share
        Share of the tile's area in a small crop.
    """

    n_seeds: Annotated[int, Field(ge=1)] = 1
    epochs: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=2)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    probe: ProbeSettings
    k: Annotated[int, Field(ge=1)]
    stain_sigma: Annotated[float, Field(gt=0)]
    crop_share: Annotated[float, Field(gt=0, lt=1)]

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.n_seeds)


def arm_shard(arm: str, seed: int) -> str:
    """What the shard of an arm is called."""
    return f"{arm}.{seed}"


def arm_statistics(
    tiles: pl.DataFrame,
    shards: Shards,
    arms: Sequence[str],
    p: ArmParameters,
    drawn: NDArray[np.floating[Any]] | None = None,
) -> pl.DataFrame:
    """Reduce the vectors of all arms to sums per patient.

    Parameters
    ----------
    tiles
        Rows of the pool that were tested, in the order of the shards' rows.
    shards
        One for each arm and seed, named by :func:`arm_shard`.
    arms
        Their names.
    p
        The parameters.
    drawn
        [n, m] morphology that was drawn on the tiles; None where it is not known.

    Returns
    -------
    DataFrame
        Columns :data:`ARM_SCHEMA`.
    """
    known = set(shards.slide_ids)
    parts = [pl.DataFrame(schema=ARM_SCHEMA)]
    for arm in arms:
        for seed in p.seeds:
            name = arm_shard(arm, seed)
            found: Iterable[pl.DataFrame]
            if name in known:
                found = _of_arm(tiles, shards, name, p, drawn)
            else:
                failures: Mapping[str, str] = getattr(shards, "failures", {})
                why = failures.get(name, "no pixels of the arms' tiles could be read")
                found = [pl.DataFrame({"kind": ["fit"], "problem": [why]})]
            keys = {"arm": pl.lit(arm), "seed": pl.lit(seed, pl.Int64)}
            parts += [to_schema(each.with_columns(**keys), ARM_SCHEMA) for each in found]
    return pl.concat(parts)


def _of_arm(
    tiles: pl.DataFrame,
    shards: Shards,
    name: str,
    p: ArmParameters,
    drawn: NDArray[np.floating[Any]] | None,
) -> Iterator[pl.DataFrame]:
    vectors = shards.load_slide(name, VECTORS).astype(np.float64)
    losses = shards.load_slide(name, "losses")
    fit = {
        "kind": ["fit"],
        "operations": [float(shards.load_slide(name, "operations")[0])],
        "n_tiles": [int(shards.load_slide(name, "n_tiles")[0])],
        "first_loss": [float(losses[0]) if len(losses) else None],
        "last_loss": [float(losses[-1]) if len(losses) else None],
    }
    yield pl.DataFrame(
        fit, schema_overrides={k: ARM_SCHEMA[k] for k in ("first_loss", "last_loss")}
    )
    if tiles.is_empty():
        return
    yield from _probes(tiles, vectors, p)
    yield _neighbours(tiles, vectors, p)
    reference = ReferenceTiles.of(vectors, tiles, p.k)
    for view in (*ROTATIONS, STAIN, CROP):
        found = shards.load_slide(name, view)
        yield reference.statistics(found, view=view).with_columns(kind=pl.lit("view"))
    if drawn is not None:
        yield _agreement(reference, drawn, p.k)


def _probes(
    tiles: pl.DataFrame, vectors: NDArray[np.float64], p: ArmParameters
) -> Iterator[pl.DataFrame]:
    inside = tiles["role"].to_numpy() == DOWNSTREAM
    own, patients = tiles.filter(inside), tiles.filter(inside)["patient_id"]
    mend = "add patients or lower the experiment's probe.folds"
    for target in (LABEL, CENTER):
        x = vectors[inside]
        found = probed(x, x[:, None], own[target], patients, p.probe, p.seed, mend)
        yield _counted(own, target, target, found.rows, found.correct[:, 0], found.problem)
    outside = tiles["role"].to_numpy() == HELD_OUT
    test = tiles.filter(outside)
    if own["label"].n_unique() < 2 or test.is_empty():
        problem = (
            "no tile of a center that was held out: a second center with slides of every label is "
            "needed (arms.held_out_center)"
            if test.is_empty()
            else "the patients that are trained on have fewer than two labels: add patients"
        )
        yield pl.DataFrame({"kind": ["probe"], "target": [HELD_OUT_LABEL], "problem": [problem]})
        return
    model = fit_linear_classifier(
        vectors[inside], own["label"].to_numpy(), p.probe.C, p.probe.max_iter
    )
    learnt = test["label"].is_in(list(model.labels)).to_numpy()
    codes = test["label"].replace_strict(
        list(model.labels), range(len(model.labels)), default=0, return_dtype=pl.Int64
    )
    correct = learnt & (model.margins(vectors[outside], codes.to_numpy()) > 0)
    yield _counted(test, HELD_OUT_LABEL, "label", learnt, correct, "")


def _counted(
    tiles: pl.DataFrame,
    target: str,
    column: str,
    rows: NDArray[np.bool_],
    correct: NDArray[np.bool_],
    problem: str,
) -> pl.DataFrame:
    return (
        tiles.select("patient_id", value=column, tested=rows, correct=correct)
        .filter(pl.col("tested") | pl.lit(bool(problem)))
        .group_by("value", "patient_id")
        .agg(n_tiles=pl.len().cast(pl.Int64), n_correct=pl.col("correct").sum().cast(pl.Int64))
        .sort("value", "patient_id")
        .with_columns(kind=pl.lit("probe"), target=pl.lit(target), problem=pl.lit(problem))
    )


def _neighbours(
    tiles: pl.DataFrame, vectors: NDArray[np.float64], p: ArmParameters
) -> pl.DataFrame:
    """Per pair of patients, neighbours of the two types that tell label from center."""
    table = tiles.select("patient_id", "label", "center").with_columns(
        pl.col("center").fill_null("")
    )
    # A vector of zeros has no direction; a constant dimension gives it one and alike for all.
    padded = np.pad(unit(vectors), ((0, 0), (0, 1)), constant_values=1e-6)
    found = nearest_indices(padded, table["patient_id"].to_numpy(), p.k)
    query, rank = np.nonzero(found >= 0)
    asking, met = table[query], table[found[query, rank]]
    same_label = (asking["label"] == met["label"]).to_numpy()
    same_center = (asking["center"] == met["center"]).to_numpy()
    return (
        pl.DataFrame(
            {
                "patient_id": asking["patient_id"],
                "met": met["patient_id"],
                "so": same_label & ~same_center,
                "os": ~same_label & same_center,
            }
        )
        .group_by("patient_id", "met")
        .agg(pl.col("so", "os").sum().cast(pl.Int64), n_tiles=pl.len().cast(pl.Int64))
        .sort("patient_id", "met")
        .with_columns(kind=pl.lit("pairs"))
    )


def _agreement(reference: ReferenceTiles, drawn: NDArray[np.floating[Any]], k: int) -> pl.DataFrame:
    """Neighbours that the vectors share with the morphology that was drawn."""
    groups = reference.groups
    columns: dict[str, NDArray[np.float64]] = {}
    if reference.neighbours is not None:
        truth = unit(drawn)
        nearest = nearest_references(truth, truth, groups.patients, k + 1)
        columns = kept_columns(reference.neighbours, nearest, groups.patients, k)
    return groups.sums(**columns).with_columns(
        pl.col("n_tiles").cast(pl.Int64),
        kind=pl.lit("view"),
        view=pl.lit(DRAWN),
        k=pl.lit(k, pl.Int64),
        fewest_candidates=pl.lit(int(groups.candidates.min()), pl.Int64),
        no_spread=pl.lit(False),
    )


@record(frozen=True)
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


@record(frozen=True)
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
        From :func:`arm_statistics`.
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
        if metric.of not in _KNOWS and remark.startswith(_COUNTS) and not self._knows(arm, against):
            remark = f"undecidable: {remark}, but the arm reads the label no better than the other"
        return Value(estimate, Null(0.0, 0.0), remark=remark)

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
    patients = sorted({*pairs["patient_id"], *pairs["met"]})
    size = len(patients)
    if size < 2 or not int((pairs["so"] + pairs["os"]).sum()):
        raise Undefined(
            "no tile has a neighbour with its label from another center, or the reverse: two labels at "
            "two centers are needed; add patients or raise the experiment's k"
        )
    rows, columns = (
        pairs[name].replace_strict(patients, range(size)).to_numpy()
        for name in ("patient_id", "met")
    )
    so, os = np.zeros((2, size, size))
    np.add.at(so, (rows, columns), pairs["so"].to_numpy())
    np.add.at(os, (rows, columns), pairs["os"].to_numpy())
    weights = arm.parameters.weights(size)
    drawn = np.stack([resampled_total(so, weights), resampled_total(so + os, weights)])
    k, seeds = getattr(arm.parameters, "k", 1), pairs["seed"].n_unique()
    n = int(pairs["n_tiles"].sum()) // (k * seeds)
    return Value(pair_ratio(so, so + os, drawn, n, 1.0))


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
