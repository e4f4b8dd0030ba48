r"""Center AUC: how well a linear probe tells the center, with colour and without.

On a balanced subsample (equally many tiles of every label at every center) a ridge regression of each
center against the others is cross-validated by patient. For center c, with scores s of tested tiles,

``AUC_c = P(s of a tile from c > s of a tile from elsewhere)``, ties counting one half, over pairs of
tiles of the same fold; ``center_auc`` is the mean over centers: ½ is chance, 1 is certainty.

It is measured on the embedding as it is, and on what is left of it after a linear regression on the
tile's colour (mean, spread and quantiles of optical density per channel), fitted on training patients
only. What a probe still tells is not linear in colour: sharpness, noise, compression, tissue
handling, or colour in ways that the regression does not know. Beside both stands a probe of colour
alone. ``center_auc_drop`` is the AUC of the embedding minus that without colour.

Patients are resampled in both roles, given the probes; the interval is widened for cross-validation.
That of ``center_auc`` is symmetric in the logarithm of AUC / (1 − AUC), and exact for so many patients
where the probe makes no error
(:func:`~pathfm_kedro.statistics.cross_validation.widened_odds_interval`).
Null: the same probes for centers permuted over patients within labels. In small cohorts it lies
below ½: the centers of the tested patients are rarer among those that teach. Folds are even in labels
and do not look at the center: folds that are even in the true centers are not so in permuted ones,
and an encoder that knows the label alone would then lie above its null.

Pitfalls
--------
- What is left without colour is not linear in colour. It may still be colour, in ways that the
  regression does not know.
- That a center can be read does not show that it misleads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.auc import ordered_pairs, rank_auc
from pathfm_kedro.statistics.balanced_designs import (
    Subsampling,
    balanced_subsamples,
    left_out_cells,
    permuted_tags,
    read_rows,
    remark_on_size,
    tagged_rows,
)
from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.cross_validation import (
    patient_folds,
    widened_interval,
    widened_odds_interval,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.pair_bootstrap import resampled_total
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.ridge import ridge_scores, standardised
from pathfm_kedro.statistics.tables import Embeddings, to_schema, with_shards

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Features and center to [1 + draws] AUC, as measured and in every resampled cohort.
Resampled = Callable[[str, str], Floats]

#: What the probe sees.
EMBEDDING, WITHOUT_COLOUR, COLOUR = "embedding", "embedding_without_colour", "colour"
FEATURES = (EMBEDDING, WITHOUT_COLOUR, COLOUR)

#: Four kinds of rows, the first three by features:
#:
#: - with other_patient: pairs of a tile of the patient, at the center, and of the other, elsewhere; how
#:   many of them are correctly ordered; and the n_tiles tiles of the center;
#: - with permuted: AUC of the center under each permutation (without center: their mean);
#: - with reason: why there is no probe;
#: - without features: why a cell of label and center is left out (reason), or which one decides how
#:   many tiles the others give (remark).
CENTER_AUC_SCHEMA: dict[str, pl.DataType] = {
    "features": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "patient_id": pl.String(),
    "other_patient": pl.String(),
    "n_correct": pl.Float64(),
    "n_pairs": pl.Float64(),
    "n_tiles": pl.Int64(),
    "permuted": pl.List(pl.Float64()),
    "reason": pl.String(),
    "remark": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CenterAuc(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    max_tiles
        Of the balanced subsample.
    min_patients_per_cell, min_tiles_per_cell
        Cells of label and center with fewer are left out.
    folds
        Groups of patients.
    ridge
        Penalty; see :func:`~pathfm_kedro.statistics.ridge.dual_ridge`.
    n_permutations
        Of the null.
    """

    max_tiles: Annotated[int, Field(ge=1)]
    min_patients_per_cell: Annotated[int, Field(ge=1)]
    min_tiles_per_cell: Annotated[int, Field(ge=1)]
    folds: Annotated[int, Field(ge=2)]
    ridge: Annotated[float, Field(gt=0)]
    n_permutations: Annotated[int, Field(ge=0)]


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Tiles of the subsample: codes [n], and the names that they stand for."""

    patients: Ints
    centers: Ints
    folds: Ints
    patient_names: pl.Series
    center_names: pl.Series


def center_auc_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, *more: Any
) -> pl.DataFrame:
    """Cross-validate the probes and count the pairs of tiles that they order correctly.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    more
        Colour of the same tiles, which are the vectors of the control ``stain_statistics`` where the
        cohort has it (slides without are left out), and the parameters.

    Returns
    -------
    DataFrame
        Columns :data:`CENTER_AUC_SCHEMA`.
    """
    from threadpoolctl import threadpool_limits

    *colours, p = more
    if colours:
        slides = with_shards(slides, colours[0])
    sampled = balanced_subsamples(slides, tiles, embeddings, _asked(p), p.seed)
    if not sampled.scopes:
        return _undefined(sampled.obstacle("all"), FEATURES)
    cohort, scope = sampled.cohort, sampled.scopes[0]
    patients, centers = cohort.patients[scope.rows], cohort.centers[scope.rows]
    folds = patient_folds(patients, p.folds, p.seed, cohort.labels[scope.rows])
    names = (cohort.unit_table[name].unique().sort() for name in ("patient_id", "center"))
    known = _Tiles(patients, centers, folds, *names)
    if min(len(np.unique(folds[centers == c])) for c in np.unique(centers)) < 2:
        reason = (
            "all patients of a center stand in one fold: none can test what another taught; add "
            "patients, or take more folds"
        )
        return _undefined(reason, FEATURES)
    permuted = next(permuted_tags(cohort, [scope], p.n_permutations, p.seed))
    place = np.searchsorted(permuted.units, cohort.units[scope.rows])
    # The true centers first.
    targets = np.column_stack([centers, permuted.center[place]])
    vectors, colour = sampled.vectors_of(scope), None
    if colours:
        rows = tagged_rows(slides, tiles, embeddings.slide_ids)[scope.rows]
        colour = read_rows(colours[0], rows)
    frames = []
    with threadpool_limits(1):  # sums in one order: the same scores on any number of cores
        for features, seen in _features(vectors, colour).items():
            scores = _tested(seen, targets, folds, p.ridge)
            frames.append(_pairs(features, scores[:, 0], known))
            frames.append(_nulls(features, scores[:, 1:], targets[:, 1:], known))
    if colour is None:
        reason = (
            "colour is taken from the control stain_statistics, which this cohort leaves out or has of "
            "other tiles: keep it among the encoders, with slides, at the tiles of this one"
        )
        frames.append(_undefined(reason, FEATURES[1:]))
    frames.append(to_schema(sampled.of_design("all"), CENTER_AUC_SCHEMA))
    return pl.concat(frames)


def _asked(p: CenterAuc) -> Subsampling:
    return Subsampling(
        max_tiles=p.max_tiles,
        min_patients_per_cell=p.min_patients_per_cell,
        min_tiles_per_cell=p.min_tiles_per_cell,
    )


def _undefined(reason: str, features: Sequence[str]) -> pl.DataFrame:
    rows = [{"features": name, "reason": reason} for name in features]
    return to_schema(rows, CENTER_AUC_SCHEMA)


def _features(
    vectors: NDArray[np.float32], colour: NDArray[np.float32] | None
) -> dict[str, Callable[[Ints], Floats]]:
    """What a probe sees [n, …], given the rows that it is trained on."""
    if colour is None:
        return {EMBEDDING: partial(standardised, vectors)}
    return {
        EMBEDDING: partial(standardised, vectors),
        WITHOUT_COLOUR: lambda train: without_colour(
            standardised(vectors, train), standardised(colour, train), train
        ),
        COLOUR: partial(standardised, colour),
    }


def without_colour(vectors: Floats, colour: Floats, train: Ints) -> Floats:
    """What is left of the vectors after a linear regression on colour, fitted on the training rows.

    Parameters
    ----------
    vectors, colour
        [n, d] and [n, c].
    train
        Training rows.

    Examples
    --------
    >>> colour = np.arange(4.0)[:, None]
    >>> abs(without_colour(2 * colour + 1, colour, np.arange(3))).max() < 1e-12
    np.True_
    """
    design = np.column_stack([np.ones(len(colour)), colour])
    slopes = np.linalg.lstsq(design[train], vectors[train], rcond=1e-6)[0]
    return np.asarray(vectors - design @ slopes)


def _tested(seen: Callable[[Ints], Floats], targets: Ints, folds: Ints, ridge: float) -> Floats:
    """[n, targets, centers] score of every tile for every center, from models of the other folds."""
    one_hot = targets[:, :, None] == np.arange(int(targets.max()) + 1)
    columns = one_hot.reshape(len(targets), -1).astype(np.float64)
    scores = np.empty_like(columns)
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        scores[test] = ridge_scores(seen(train), columns, train, test, ridge)
    return np.asarray(scores.reshape(one_hot.shape))


def _pairs(features: str, scores: Floats, tiles: _Tiles) -> pl.DataFrame:
    """Correctly ordered and all pairs of tiles, of every center and two patients of one fold."""
    frames = []
    for center in np.unique(tiles.centers):
        own = tiles.centers == center
        correct, pairs = ordered_pairs(scores[:, center], own, tiles.patients, tiles.folds)
        first, second = np.nonzero(pairs)
        found = {
            "features": features,
            "center": tiles.center_names[int(center)],
            "patient_id": tiles.patient_names.gather(first),
            "other_patient": tiles.patient_names.gather(second),
            "n_correct": correct[first, second],
            "n_pairs": pairs[first, second],
            "n_tiles": int(own.sum()),
        }
        frames.append(to_schema(pl.DataFrame(found), CENTER_AUC_SCHEMA))
    return pl.concat(frames)


def _nulls(features: str, scores: Floats, permuted: Ints, tiles: _Tiles) -> pl.DataFrame:
    """AUC of each center, and their mean, under every permutation."""
    centers = np.unique(tiles.centers)
    aucs = np.array([rank_auc(scores[..., c], permuted == c, tiles.folds) for c in centers])
    names = tiles.center_names.gather(centers)
    rows = [
        {"features": features, "center": name, "permuted": auc[np.isfinite(auc)].tolist()}
        for name, auc in [(None, np.nanmean(aucs, axis=0)), *zip(names, aucs, strict=True)]
    ]
    return to_schema(rows, CENTER_AUC_SCHEMA)


def center_auc_figures(statistics: pl.DataFrame, p: CenterAuc) -> Iterator[Figure]:
    """AUC of the center with and without colour, per center where there are three or more, and drop.

    Parameters
    ----------
    statistics
        From :func:`center_auc_statistics`.
    p
        The parameters.
    """
    # By features and center.
    resampled = cache(partial(_resampled_auc, statistics, p))
    for features in FEATURES:
        of = partial(center_auc, statistics, resampled, features)
        yield Figure("center_auc", of, {"features": features})
        centers = _centers(statistics, features) if features != COLOUR else []
        for center in centers if len(centers) > 2 else []:
            yield Figure(
                "center_auc", partial(of, center), {"features": features}, f"center={center}"
            )
    yield Figure("center_auc_drop", partial(center_auc_drop, statistics, resampled))
    for cell, reason in left_out_cells(statistics):
        yield Figure("center_auc", undefined(reason), {"role": "left_out"}, cell)


def center_auc(
    statistics: pl.DataFrame, resampled: Resampled, features: str, center: str | None = None
) -> Value:
    """AUC of one center, or the mean over centers."""
    aucs = resampled(features, center) if center else _mean_auc(statistics, resampled, features)
    permuted = statistics.filter(
        pl.col("permuted").is_not_null(),
        pl.col("features") == features,
        pl.col("center").eq_missing(pl.lit(center)),
    )["permuted"][0]
    null = Null(*percentile_interval(permuted.to_numpy())) if len(permuted) else Null(0.5, 0.5)
    widened = partial(widened_odds_interval, size=len(_patients(statistics)), most=1.0)
    return Value(_estimate(statistics, aucs, widened), null, remark=remark_on_size(statistics))


def center_auc_drop(statistics: pl.DataFrame, resampled: Resampled) -> Value:
    """AUC of the embedding minus that without colour, on the same resampled patients; null 0."""
    whole, left = (_mean_auc(statistics, resampled, name) for name in (EMBEDDING, WITHOUT_COLOUR))
    widened = partial(widened_interval, limits=(-1.0, 1.0))
    return Value(_estimate(statistics, whole - left, widened), Null(0.0, 0.0))


def _mean_auc(statistics: pl.DataFrame, resampled: Resampled, features: str) -> Floats:
    reasons = statistics.filter(features=features)["reason"].drop_nulls()
    if len(reasons):
        raise Undefined(reasons[0])
    aucs = [resampled(features, c) for c in _centers(statistics, features)]
    return np.asarray(np.mean(aucs, axis=0))


def _centers(statistics: pl.DataFrame, features: str) -> list[str]:
    return statistics.filter(features=features)["center"].drop_nulls().unique().sort().to_list()


def _resampled_auc(statistics: pl.DataFrame, p: CenterAuc, features: str, center: str) -> Floats:
    """[1 + draws] AUC as measured and in every resampled cohort."""
    names = _patients(statistics)
    rows = statistics.filter(pl.col("n_pairs").is_not_null(), features=features, center=center)
    codes = tuple(
        rows[key].replace_strict(names, range(len(names))).to_numpy()
        for key in ("patient_id", "other_patient")
    )
    weights = np.vstack([np.ones(len(names)), p.weights(len(names))])
    totals = []
    for column in ("n_correct", "n_pairs"):
        matrix = np.zeros((len(names), len(names)))
        # Halves of pairs: twice the numbers are whole.
        np.add.at(matrix, codes, 2 * rows[column].to_numpy())
        totals.append(resampled_total(matrix, weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals[0] / totals[1])


def _patients(statistics: pl.DataFrame) -> list[str]:
    both = pl.concat([statistics["patient_id"], statistics["other_patient"]])
    return both.drop_nulls().unique().sort().to_list()


def _estimate(
    statistics: pl.DataFrame,
    aucs: Floats,
    widened: Callable[[float, Floats], tuple[float | None, float | None]],
) -> Estimate:
    """The first of the numbers, its interval from the others."""
    value = float(aucs[0])
    if not np.isfinite(value):
        raise Undefined(
            "no fold tests tiles of a center beside tiles of another: add patients, or lower "
            "center_auc.folds"
        )
    of_centers = statistics.filter(features=EMBEDDING).select("center", "n_tiles").unique()
    n = int(of_centers["n_tiles"].sum())
    return Estimate(value, *widened(value, aucs[1:]), n, len(_patients(statistics)), aucs[1:])
