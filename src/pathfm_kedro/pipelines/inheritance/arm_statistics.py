"""Vectors of pretrained arms reduced to sums per patient, which figures are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.pipelines.inheritance.arm_tiles import DOWNSTREAM, HELD_OUT
from pathfm_kedro.statistics.balanced_designs import codes_of
from pathfm_kedro.statistics.cross_validation import ProbeSettings, probed
from pathfm_kedro.statistics.cue_conflict import CUE_COUNTS, TRANSFERRED, CueTiles
from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier
from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.perturbation import (
    PERTURBATION_SUMS,
    ReferenceTiles,
    kept_columns,
    nearest_references,
)
from pathfm_kedro.statistics.tables import to_schema
from pathfm_kedro.statistics.unit_neighbours import OS, SO, type_shares

Floats = NDArray[np.float64]

#: What an arm's shard holds of its test tiles: [n, d] vectors of the tiles and of their views, and
#: of how it was trained, one row each: operations, tiles, losses per epoch.
VECTORS = "vectors"
ROTATIONS = {"rotation_90": 1, "rotation_180": 2, "rotation_270": 3}
STAIN, CROP, DRAWN = "stain", "local_crop", "drawn_morphology"
#: Views of a test tile whose vectors an arm gives.
VIEWS = (VECTORS, *ROTATIONS, STAIN, CROP, TRANSFERRED)
#: [C] of each of the test tiles' centers, sorted, the place of that whose stain its tiles take in the
#: view :data:`TRANSFERRED`; -1 where they stay as they are.
STAINED_AS = "stained_as"
LABEL, HELD_OUT_LABEL, CENTER = "label", "label_held_out_center", "center"

#: One row per arm, seed and
#:
#: - target, value (class), patient: tiles and how many are correctly classified; `problem` where
#:   nothing could be probed;
#: - patient and neighbour_patient: neighbours with the label from another center (so), and the reverse
#:   (os), and as many as there would be if every tile of other patients were equally likely;
#: - view and patient, or patient and neighbour_patient: :data:`CUE_COUNTS`;
#: - view and patient: :data:`PERTURBATION_SUMS`;
#: - nothing else: operations, n_tiles, first and last loss, or why the arm failed.
ARM_SCHEMA: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "kind": pl.String(),
    "target": pl.String(),
    "value": pl.String(),
    "n_correct": pl.Int64(),
    "so": pl.Int64(),
    "os": pl.Int64(),
    "so_expected": pl.Float64(),
    "os_expected": pl.Float64(),
    **CUE_COUNTS,
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
    reference_tiles
        Test tiles that a center's stain is estimated from, at most.
    min_reference_tiles
        Of these, tiles with a stain of their own that a center needs for others to take its stain.
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
    reference_tiles: Annotated[int, Field(ge=1)]
    min_reference_tiles: Annotated[int, Field(ge=1)]

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.n_seeds)


def arm_shard(arm: str, seed: int) -> str:
    """What the shard of an arm is called."""
    return f"{arm}.{seed}"


def centers_of(tiles: pl.DataFrame) -> list[str]:
    """Names of the centers, sorted."""
    return list(tiles["center"].drop_nulls().unique().sort())


#: Nothing was planned.
_NOT_FITTED = (
    "no pixels of the arms' tiles could be read, or too few to pretrain on: add patients, or raise "
    "arms.tiles_per_slide"
)


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
                why = failures.get(name, _NOT_FITTED)
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
    transferred = shards.load_slide(name, TRANSFERRED).astype(np.float64)
    yield _cues(tiles, vectors, transferred, shards.load_slide(name, STAINED_AS), p.k)
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
    found = nearest_indices(_directed(vectors), table["patient_id"].to_numpy(), p.k)
    query, rank = np.nonzero(found >= 0)
    asking, met = table[query], table[found[query, rank]]
    same_label = (asking["label"] == met["label"]).to_numpy()
    same_center = (asking["center"] == met["center"]).to_numpy()
    labels, centers, patients = (codes_of(table[c]) for c in ("label", "center", "patient_id"))
    expected = type_shares(labels, centers, patients)[0][query]
    return (
        pl.DataFrame(
            {
                "patient_id": asking["patient_id"],
                "neighbour_patient": met["patient_id"],
                "so": same_label & ~same_center,
                "os": ~same_label & same_center,
                "so_expected": expected[:, SO],
                "os_expected": expected[:, OS],
            }
        )
        .group_by("patient_id", "neighbour_patient")
        .agg(
            pl.col("so", "os").sum().cast(pl.Int64),
            pl.col("so_expected", "os_expected").sum(),
            n_tiles=pl.len().cast(pl.Int64),
        )
        .sort("patient_id", "neighbour_patient")
        .with_columns(kind=pl.lit("pairs"))
    )


def _directed(vectors: Floats) -> Floats:
    """Rows of length 1; a constant dimension gives vectors of zeros a direction, alike for all."""
    return np.pad(unit(vectors), ((0, 0), (0, 1)), constant_values=1e-6)


def _cues(
    tiles: pl.DataFrame, vectors: Floats, transferred: Floats, stained_as: NDArray[Any], k: int
) -> pl.DataFrame:
    """Cues that neighbours of tiles in another center's stain share."""
    known = tiles["center"].is_not_null().to_numpy()
    names = centers_of(tiles)
    targets = {names[i]: names[place] for i, place in enumerate(stained_as) if place >= 0}
    found = pl.DataFrame(schema=CUE_COUNTS)
    if targets:
        of = CueTiles.of(tiles.filter(known), _directed(vectors[known]))
        found = of.counts([(targets, _directed(transferred[known]))], [k])
    return found.with_columns(kind=pl.lit("cues"))


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
