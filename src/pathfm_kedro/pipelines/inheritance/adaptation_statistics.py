"""What the fits of the adaptation experiment gave, reduced to counts and sums per patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.adaptation_arms import ARMS
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.pipelines.inheritance.adaptation_fits import (
    LINEAR,
    Adaptation,
    adapted_tiles,
    name_of_fit,
    not_adaptable,
)
from pathfm_kedro.pipelines.inheritance.arm_tiles import DOWNSTREAM, HELD_OUT
from pathfm_kedro.statistics.bootstrap import sum_by_patient
from pathfm_kedro.statistics.cross_validation import (
    Probed,
    probed,
)
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.jackknife import patient_groups
from pathfm_kedro.statistics.kernel_alignment import debiased_cka
from pathfm_kedro.statistics.mutual_knn import candidate_counts, mknn, mknn_chance

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Where tiles are tested.
IN_DOMAIN = "in_domain"
TESTED = (IN_DOMAIN, HELD_OUT)
#: With fewer trials an arm had no choice of learning rate.
LEAST_TRIALS = 3
#: What no arm is tuned for.
TARGETS = ("organ", "center")

#: One row per part, arm and what the part counts; what a part does not count is null.
#:
#: - ``accuracy``: per tested, label (value) and patient: n_tiles, n_correct, over folds and seeds;
#: - ``probe``: per target, class (value) and patient: n_tiles, n_correct after adaptation, n_frozen
#:   before;
#: - ``neighbours``: per patient: n_tiles, mknn_sum, chance_sum;
#: - ``cka``: per group of patients that is left out (−1: none): cka;
#: - ``trials``: per learning rate: n_fits, n_diverged, n_stopped (before the last epoch), their epochs,
#:   inner_accuracy;
#: - ``cost``: n_fits, operations, seconds and joules of all;
#: - ``problem``: why there is nothing.
ADAPTATION_SCHEMA: dict[str, pl.DataType] = {
    "part": pl.String(),
    "arm": pl.String(),
    "tested": pl.String(),
    "target": pl.String(),
    "value": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "n_frozen": pl.Int64(),
    "mknn_sum": pl.Float64(),
    "chance_sum": pl.Float64(),
    "group": pl.Int64(),
    "cka": pl.Float64(),
    "learning_rate": pl.Float64(),
    "n_fits": pl.Int64(),
    "n_diverged": pl.Int64(),
    "n_stopped": pl.Int64(),
    "epochs": pl.Int64(),
    "inner_accuracy": pl.Float64(),
    "operations": pl.Float64(),
    "seconds": pl.Float64(),
    "joules": pl.Float64(),
    "problem": pl.String(),
}


def adaptation_statistics(
    pool: pl.DataFrame,
    tiles: Shards,
    arms: Shards,
    encoder: Mapping[str, Any],
    p: Adaptation,
) -> pl.DataFrame:
    """Reduce what the arms gave to counts and sums per patient.

    Parameters
    ----------
    pool, tiles
        As of :func:`plan_adaptation`.
    arms
        Shards of it.
    encoder
        The entry of ``encoders``.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`ADAPTATION_SCHEMA`.
    """
    try:
        reason = not_adaptable(EncoderSpec.from_parameters("encoder", encoder))
        if reason:
            raise Undefined(reason)
        table, labels = adapted_tiles(pool, tiles, p)
        done = _fits(arms, p)
    except Undefined as problem:
        return _table([pl.DataFrame({"part": ["problem"], "problem": [str(problem)]})])
    table = table.filter(pl.col("role").is_in([DOWNSTREAM, HELD_OUT]))
    counted = pl.concat([_accuracy(fit, table, labels) for fit in done])
    keys = ["arm", "tested", "value", "patient_id"]
    accuracy = counted.group_by(keys).agg(pl.col("n_tiles").sum(), pl.col("n_correct").sum())
    parts = [accuracy.sort(keys).with_columns(part=pl.lit("accuracy"))]
    parts += [*_forgetting(done, table, p), *_searched(done, p), *_costs(done)]
    return _table(parts)


@plain_dataclass(frozen=True)
class _Fit:
    """What one arm gave, of one seed and outer fold."""

    shards: Shards
    arm: str
    seed: int
    fold: int

    @property
    def name(self) -> str:
        """Of its shard."""
        return name_of_fit(self.arm, self.seed, self.fold)

    def __call__(self, name: str) -> NDArray[Any]:
        """One of its tensors."""
        return self.shards.load_slide(self.name, name)


def _fits(arms: Shards, p: Adaptation) -> list[_Fit]:
    """Fits of the arms of which every fold and seed is there: others have no patient's mean."""
    known = set(arms.slide_ids)
    found = []
    for arm in p.arms:
        own = [_Fit(arms, arm, s, f) for f in range(p.folds) for s in range(p.n_seeds)]
        if all(fit.name in known for fit in own):
            found += own
    if not any(fit.arm == LINEAR for fit in found):
        raise Undefined("the linear arm could not be fitted: see why in the log of slides")
    return found


def _accuracy(fit: _Fit, table: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """Tiles and correctly classified ones per label and patient."""
    said = fit("logits").argmax(axis=1)
    rows = table[fit("rows")].select(
        "patient_id",
        value="label",
        tested=pl.when(pl.col("role") == DOWNSTREAM).then(pl.lit(IN_DOMAIN)).otherwise("role"),
    )
    return (
        rows.with_columns(correct=pl.Series([labels[i] for i in said]) == pl.col("value"))
        .group_by("tested", "value", "patient_id")
        .agg(n_tiles=pl.len().cast(pl.Int64), n_correct=pl.col("correct").sum().cast(pl.Int64))
        .with_columns(arm=pl.lit(fit.arm))
    )


def _forgetting(done: Sequence[_Fit], table: pl.DataFrame, p: Adaptation) -> Iterator[pl.DataFrame]:
    """Vectors before and after adaptation, of the arms that change the encoder."""
    changed = [fit for fit in done if ARMS[fit.arm].changes_encoder]
    if not changed:
        return
    before = {fit.fold: fit for fit in done if fit.arm == LINEAR and fit.seed == 0}
    names = table["patient_id"].unique().sort().to_list()
    groups = dict(zip(names, patient_groups(np.arange(len(names)), p.groups), strict=True))
    frozen_right: dict[tuple[int, str], Probed] = {}
    counted, neighbours, aligned = [], [], []
    for fit in changed:
        own, frozen, vectors = (
            table[fit("vector_rows")],
            before[fit.fold]("vectors"),
            fit("vectors"),
        )
        for target in TARGETS:
            key = fit.fold, target
            if key not in frozen_right:
                frozen_right[key] = _probed(frozen, own, target, p)
            found, base = _probed(vectors, own, target, p), frozen_right[key]
            counted.append(
                own.select("patient_id", value=target).with_columns(
                    arm=pl.lit(fit.arm),
                    target=pl.lit(target),
                    problem=pl.lit(found.problem or base.problem),
                    n_tiles=pl.Series((found.rows & base.rows).astype(np.int64)),
                    n_correct=pl.Series(found.correct[:, 0].astype(np.int64)),
                    n_frozen=pl.Series(base.correct[:, 0].astype(np.int64)),
                )
            )
        neighbours.append(_neighbours(fit.arm, own, frozen, vectors, p))
        group = own["patient_id"].replace_strict(groups, return_dtype=pl.Int64).to_numpy()
        aligned.append(_aligned(fit.arm, group, frozen, vectors, p.groups))
    keys = ["arm", "target", "value", "patient_id"]
    sums = [pl.col(name).sum() for name in ("n_tiles", "n_correct", "n_frozen")]
    yield (
        pl.concat(counted)
        .drop_nulls("value")
        .group_by(keys)
        .agg(*sums, pl.col("problem").max())
        .sort(keys)
        .with_columns(part=pl.lit("probe"))
    )
    by_patient = pl.concat(neighbours).group_by("arm", "patient_id")
    yield (
        by_patient.agg(pl.col("n_tiles", "mknn_sum", "chance_sum").sum())
        .sort("arm", "patient_id")
        .with_columns(part=pl.lit("neighbours"))
    )
    yield (
        pl.concat(aligned)
        .group_by("arm", "group")
        .agg(pl.col("cka").mean(), n_tiles=pl.col("n_tiles").sum())
        .sort("arm", "group")
        .with_columns(part=pl.lit("cka"))
    )


def _probed(
    vectors: NDArray[np.floating[Any]], own: pl.DataFrame, target: str, p: Adaptation
) -> Probed:
    mend = "add patients or lower adaptation.probe.folds"
    patients = own["patient_id"]
    return probed(vectors, vectors[:, None], own[target], patients, p.probe, p.seed, mend)


def _neighbours(
    arm: str,
    own: pl.DataFrame,
    frozen: NDArray[np.floating[Any]],
    vectors: NDArray[np.floating[Any]],
    p: Adaptation,
) -> pl.DataFrame:
    """Shared neighbours per patient; no rows where a tile has too few tiles of other patients."""
    names, codes = np.unique(own["patient_id"].to_numpy(), return_inverse=True)
    enough = len(own) > 0 and int(candidate_counts(codes).min()) >= p.k
    shared = mknn(frozen, vectors, codes, p.k, "cosine") if enough else np.zeros(0)
    chance = mknn_chance(codes, p.k) if enough else np.zeros(0)
    kept = codes if enough else codes[:0]
    sums = sum_by_patient(np.stack([np.ones(len(kept)), shared, chance], 1), kept, len(names))
    table = pl.DataFrame(
        {
            "patient_id": names.astype(str),
            "n_tiles": sums[:, 0].astype(np.int64),
            "mknn_sum": sums[:, 1],
            "chance_sum": sums[:, 2],
        }
    )
    return table.filter(pl.col("n_tiles") > 0).with_columns(arm=pl.lit(arm))


def _aligned(
    arm: str,
    group: Ints,
    frozen: NDArray[np.floating[Any]],
    vectors: NDArray[np.floating[Any]],
    n_groups: int,
) -> pl.DataFrame:
    """CKA of all rows (group −1) and without each group of patients."""
    rows = []
    for left_out in range(-1, n_groups):
        kept = group != left_out
        rows.append((left_out, debiased_cka(frozen[kept], vectors[kept]), int(kept.sum())))
    schema = {"group": pl.Int64, "cka": pl.Float64, "n_tiles": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(arm=pl.lit(arm))


def _searched(done: Sequence[_Fit], p: Adaptation) -> Iterator[pl.DataFrame]:
    """Trials of each arm by their learning rate, the same for all folds and seeds."""
    rows = []
    for fit in done:
        head = ARMS[fit.arm].trains == "head"
        most = p.search.head_epochs if head else p.search.epochs
        for rate, accuracy, score, epochs in fit("trials"):
            stopped = 0 < epochs < most
            rows.append(
                (fit.arm, rate, accuracy, 1, int(np.isnan(score)), int(stopped), int(epochs))
            )
    counts = ["n_fits", "n_diverged", "n_stopped", "epochs"]
    yield (
        pl.DataFrame(rows, schema=["arm", "learning_rate", "inner_accuracy", *counts], orient="row")
        .with_columns(pl.col("inner_accuracy").fill_nan(None))
        .group_by("arm", "learning_rate", maintain_order=True)
        .agg(pl.col("inner_accuracy").mean(), pl.col(counts).sum())
        .with_columns(part=pl.lit("trials"))
    )


def _costs(done: Sequence[_Fit]) -> Iterator[pl.DataFrame]:
    """Operations, seconds and joules of all fits of an arm; null where one fit lacks them."""
    rows = [(fit.arm, 1, *map(float, fit("cost"))) for fit in done]
    measured = ["operations", "seconds", "joules"]
    yield (
        pl.DataFrame(rows, schema=["arm", "n_fits", *measured], orient="row")
        .group_by("arm", maintain_order=True)
        .agg(pl.col("n_fits", *measured).sum())
        .with_columns(pl.col("seconds", "joules").fill_nan(None), part=pl.lit("cost"))
    )


def _table(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    whole = pl.concat(parts, how="diagonal_relaxed")
    missing = [name for name in ADAPTATION_SCHEMA if name not in whole.columns]
    whole = whole.with_columns(pl.lit(None).alias(name) for name in missing)
    return whole.select(pl.col(name).cast(kind) for name, kind in ADAPTATION_SCHEMA.items())
