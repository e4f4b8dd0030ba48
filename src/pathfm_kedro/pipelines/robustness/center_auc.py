r"""Center AUC: how well a linear probe tells the center, with colour and without.

On a balanced subsample (equally many tiles of every label at every center) a ridge regression of each
center against the others is cross-validated by patient. For center c, with scores s of tested tiles,

``AUC_c = P(s of a tile from c > s of a tile from elsewhere)``, ties counting one half, over pairs of
tiles of the same fold; ``center_auc`` is the mean over centers: ½ is chance, 1 is certainty.

It is measured on the embedding as it is, and on what is left of it after a linear regression on the
tile's colour (mean, spread and quantiles of optical density per channel), fitted on training patients
only. What a probe still tells is not linear in colour: sharpness, noise, compression, tissue
handling, or colour in ways that the regression does not know. Beside both stands a probe of colour
alone.

:func:`center_wins` leaves won and all pairs for each pair of patients; :func:`center_auc` works on
these. The interval resamples patients, about the figure, widened by the root of
``CROSS_VALIDATION_EFFECT``. Null: the same probes for centers permuted over patients within labels. In
small cohorts it lies below ½: the centers of the tested patients are rarer among those that teach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.designs import (
    Cohort,
    deal_tags,
    draw_subsamples,
    read_rows,
    tagged_rows,
)
from pathfm_kedro.statistics.bootstrap import bootstrap_weights, percentile_interval
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.pair_bootstrap import resampled_total
from pathfm_kedro.statistics.ridge import CROSS_VALIDATION_EFFECT, dual_ridge, standardised
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "center_auc"

#: What the probe sees: the embedding, the embedding without colour, colour alone.
FEATURES = ("embedding", "embedding_without_colour", "colour")

#: One row per features, center, patient of that center and patient of another one: pairs of tiles, and
#: how many of them the first won. Rows without patient: in `permuted` the AUC of the center under each
#: permutation (without center: their mean), or in `reason` why there is no probe.
WINS_SCHEMA: dict[str, pl.DataType] = {
    "features": pl.String(),
    "center": pl.String(),
    "patient_id": pl.String(),
    "other_patient": pl.String(),
    "won": pl.Float64(),
    "pairs": pl.Float64(),
    "n": pl.Int64(),
    "permuted": pl.List(pl.Float64()),
    "reason": pl.String(),
}


@dataclass(frozen=True)
class _Tiles:
    """Tiles of the subsample; arrays are [n] codes and follow the vectors."""

    patients: Ints
    centers: Ints
    units: Ints
    folds: Ints


@dataclass(frozen=True)
class _Fold:
    """Tested tiles of a fold with their scores, one column per target."""

    rows: Ints
    scores: Floats


def center_wins(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    colours: Embeddings,
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Cross-validate the probes and count the pairs of tiles that they order rightly.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    colours
        Colour of the same tiles: the control ``stain_statistics``.
    parameters
        ``center_auc``: max_tiles, min_patients_per_cell, min_tiles_per_cell, folds, ridge,
        n_permutations, seed.

    Returns
    -------
    DataFrame
        :data:`WINS_SCHEMA`.
    """
    from threadpoolctl import threadpool_limits

    known = _Among(embeddings, tuple(sorted({*embeddings.slide_ids} & {*colours.slide_ids})))
    asked = {"designs": ["all"], "draws": 1, "exclude": "patient", **parameters}
    drawn = draw_subsamples(slides, tiles, known, asked)
    if not drawn.scopes or drawn.cohort is None:
        return _reason(drawn.obstacle("all"))
    scope, cohort = drawn.scopes[0], drawn.cohort
    held = _held(cohort, scope.rows, parameters["folds"], parameters["seed"])
    fewest = min(len(np.unique(held.folds[held.centers == c])) for c in np.unique(held.centers))
    if fewest < 2:
        return _reason(
            "a center has one patient: none can test what the other taught; add patients"
        )
    colour = read_rows(colours, tagged_rows(slides, tiles, known.slide_ids)[scope.rows])
    dealt = next(deal_tags(cohort, [scope], parameters["n_permutations"], parameters["seed"]))
    place = np.searchsorted(dealt.units, held.units)
    targets = np.column_stack([held.centers, dealt.center[place]])
    names = cohort.unit_table["center"].unique().sort()
    with threadpool_limits(1):  # sums in one order: the same scores on any number of cores
        frames = [
            _feature_wins(cohort, held, found, targets, names, features)
            for features, found in _scores(
                held, drawn.vectors_of(scope), colour, targets, parameters
            )
        ]
    return pl.concat(frames)


def no_center_wins(parameters: Mapping[str, Any]) -> pl.DataFrame:
    """What a cohort without the control that knows the colour gets: the reason.

    Parameters
    ----------
    parameters
        ``center_auc``.
    """
    return _reason(
        "colour is taken from the control stain_statistics, which this cohort leaves out: keep it "
        "among the encoders"
    )


@dataclass(frozen=True)
class _Among:
    """Embeddings of some of the slides."""

    embeddings: Embeddings
    slide_ids: tuple[str, ...]

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        return self.embeddings.stack(slide_ids, name)


def _reason(reason: str) -> pl.DataFrame:
    return pl.DataFrame([{"reason": reason}], schema=WINS_SCHEMA)


def _held(cohort: Cohort, rows: Ints, folds: int, seed: int) -> _Tiles:
    patients, cells = cohort.patients[rows], cohort.cells[rows]
    return _Tiles(
        patients,
        cohort.centers[rows],
        cohort.units[rows],
        patient_folds(patients, cells, folds, seed),
    )


def patient_folds(patients: Ints, cells: Ints, folds: int, seed: int) -> Ints:
    """[n] fold of each tile: whole patients, dealt round the folds cell by cell.

    Examples
    --------
    >>> folds = patient_folds(np.array([0, 0, 1, 2, 3]), np.array([0, 0, 0, 1, 1]), 2, seed=0)
    >>> bool(folds[0] == folds[1] != folds[2]), bool(folds[3] != folds[4])
    (True, True)
    """
    names, first, where = np.unique(patients, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(names)), cells[first]))
    fold = np.empty(len(names), dtype=np.int64)
    # Dealt on from where the last cell ended, so that folds are of equal size.
    fold[order] = np.arange(len(names)) % folds
    return np.asarray(fold[where])


def _scores(
    held: _Tiles,
    vectors: NDArray[np.float32],
    colour: NDArray[np.float32],
    targets: Ints,
    parameters: Mapping[str, Any],
) -> Iterator[tuple[str, list[_Fold]]]:
    """Scores of every tile's target columns (center one-hot, true and permuted), per features."""
    size = int(targets.max()) + 1
    columns = (targets[:, :, None] == np.arange(size)).reshape(len(targets), -1).astype(np.float64)
    found: dict[str, list[_Fold]] = {name: [] for name in FEATURES}
    for fold in np.unique(held.folds):
        train, test = np.flatnonzero(held.folds != fold), np.flatnonzero(held.folds == fold)
        whole, shade = standardised(vectors, train), standardised(colour, train)
        seen = dict(zip(FEATURES, (whole, without_colour(whole, shade, train), shade), strict=True))
        for name, rows in seen.items():
            gram = rows[train] @ rows[train].T
            cross = rows[test] @ rows[train].T
            scores = dual_ridge(gram, cross, columns[train], parameters["ridge"])
            found[name].append(_Fold(test, scores))
    yield from found.items()


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


def _feature_wins(
    cohort: Cohort,
    held: _Tiles,
    found: list[_Fold],
    targets: Ints,
    names: pl.Series,
    features: str,
) -> pl.DataFrame:
    size = int(targets.max()) + 1
    centers = np.unique(held.centers)
    patient_names = cohort.unit_table["patient_id"].unique().sort().to_numpy()
    frames = [
        pl.DataFrame(
            {
                "features": features,
                "center": names[int(center)],
                "patient_id": patient_names[mine],
                "other_patient": patient_names[others],
                "won": won,
                "pairs": pairs,
                "n": int((held.centers == center).sum()),
            }
        )
        for center in centers
        for mine, others, won, pairs in _pair_wins(held, found, int(center))
    ]
    # The first target is the true one.
    permuted = np.array(
        [
            [_rank_auc(found, targets[:, i], int(c), i * size) for c in centers]
            for i in range(1, targets.shape[1])
        ]
    ).reshape(-1, len(centers))
    worlds = [(None, np.nanmean(permuted, axis=1)), *zip(centers, permuted.T, strict=True)]
    last = [
        {
            "features": features,
            "center": None if center is None else names[int(center)],
            "permuted": aucs[np.isfinite(aucs)].tolist(),
        }
        for center, aucs in worlds
    ]
    nulls = pl.DataFrame(last, schema=WINS_SCHEMA)
    return pl.concat([_in_schema(frame) for frame in [*frames, nulls]])


def _in_schema(rows: pl.DataFrame) -> pl.DataFrame:
    absent = [pl.lit(None).alias(name) for name in WINS_SCHEMA if name not in rows.columns]
    rows = rows.with_columns(absent)
    return rows.select(pl.col(name).cast(kind) for name, kind in WINS_SCHEMA.items())


def _pair_wins(
    held: _Tiles, found: list[_Fold], center: int
) -> Iterator[tuple[Ints, Ints, Floats, Floats]]:
    """Patients at the center and elsewhere in each fold, with won and all pairs of their tiles."""
    for fold in found:
        own = held.centers[fold.rows] == center
        if own.all() or not own.any():
            continue
        score, patient = fold.scores[:, center], held.patients[fold.rows]
        ahead = np.sign(score[own][:, None] - score[~own]) / 2 + 0.5
        (mine, first), (others, second) = (
            np.unique(patient[part], return_inverse=True) for part in (own, ~own)
        )
        of_mine, of_others = np.eye(len(mine))[first], np.eye(len(others))[second]
        won = of_mine.T @ ahead @ of_others
        pairs = np.outer(of_mine.sum(axis=0), of_others.sum(axis=0))
        yield (
            np.repeat(mine, len(others)),
            np.tile(others, len(mine)),
            won.ravel(),
            pairs.ravel(),
        )


def _rank_auc(found: list[_Fold], target: Ints, center: int, first: int) -> float:
    """AUC of a center for one target, over pairs of the same fold, from ranks; NaN without pairs."""
    from scipy.stats import rankdata

    won = pairs = 0.0
    for fold in found:
        own = target[fold.rows] == center
        n, others = int(own.sum()), int((~own).sum())
        won += rankdata(fold.scores[:, first + center])[own].sum() - n * (n + 1) / 2
        pairs += n * others
    return won / pairs if pairs else float("nan")


def center_auc(wins: pl.DataFrame, parameters: Mapping[str, Any], encoder: str) -> pl.DataFrame:
    """AUC of the center with and without colour, and what colour explains of it.

    Parameters
    ----------
    wins
        Output of :func:`center_wins`.
    parameters
        ``center_auc``: bootstrap_draws, seed, thresholds.
    encoder
        Name of the encoder.

    Returns
    -------
    DataFrame
        Measurements center_auc (setting features; with three or more centers also per center as
        strata, but for colour alone) and center_auc_drop, the AUC of the embedding less that without
        colour, on the same draws.
    """
    name: dict[str, Any] = {"experiment": EXPERIMENT, "encoder": encoder}
    judged = parameters["thresholds"].get("center_auc") or {}
    rows = wins.filter(pl.col("pairs").is_not_null())
    if rows.is_empty():
        return measurement_table(
            not_applicable(
                **name,
                metrics=["center_auc"],
                setting={"features": FEATURES[0]},
                reason=wins["reason"][0],
                **judged,
            )
        )
    told: list[dict[str, Any]] = []
    drawn: dict[str, Floats] = {}
    names = pl.concat([rows["patient_id"], rows["other_patient"]]).unique().sort()
    weights = bootstrap_weights(len(names), parameters["bootstrap_draws"], parameters["seed"])
    for features in FEATURES:
        own = rows.filter(pl.col("features") == features)
        by_center = [
            (center, _resampled_auc(own.filter(pl.col("center") == center), names, weights))
            for center in own["center"].unique().sort()
        ]
        every = np.mean([auc for _, auc in by_center], axis=0)
        n = int(own.select("center", "n").unique()["n"].sum())
        drawn[features] = every
        told.append(
            measurement(
                **name,
                metric="center_auc",
                setting={"features": features},
                estimate=_estimate(every, n, len(names)),
                null=_permuted(wins, features),
                **(judged if features == FEATURES[0] else {}),
            )
        )
        told += [
            measurement(
                **name,
                metric="center_auc",
                stratum=center,
                setting={"features": features},
                estimate=_estimate(auc, n, len(names)),
                null=_permuted(wins, features, center),
            )
            for center, auc in by_center
            if len(by_center) > 2 and features != "colour"
        ]
    drop = drawn[FEATURES[0]] - drawn[FEATURES[1]]
    estimate = _estimate(drop, told[0]["n"], len(names), (-1.0, 1.0))
    told.append(
        measurement(**name, metric="center_auc_drop", estimate=estimate, null=Null(0.0, 0.0))
    )
    return measurement_table(told)


def _permuted(wins: pl.DataFrame, features: str, center: str | None = None) -> Null:
    """95% of the permutations of a center's AUC, or of their mean; ½ where there are none."""
    own = (pl.col("features") == features) & pl.col("center").eq_missing(pl.lit(center))
    drawn = wins.filter(own, pl.col("permuted").is_not_null())["permuted"][0].to_numpy()
    return Null(*percentile_interval(drawn)) if len(drawn) else Null(0.5, 0.5)


def _resampled_auc(rows: pl.DataFrame, names: pl.Series, weights: Floats) -> Floats:
    """[1 + draws] AUC of one center, as measured and in every resampled cohort."""
    place = {name: i for i, name in enumerate(names)}
    codes = [rows[key].replace_strict(place).to_numpy() for key in ("patient_id", "other_patient")]
    size = len(names)
    won, pairs = (
        np.bincount(codes[0] * size + codes[1], rows[key].to_numpy(), size * size).reshape(size, -1)
        for key in ("won", "pairs")
    )
    drawn = np.vstack([np.ones((1, size)), weights])
    with np.errstate(invalid="ignore", divide="ignore"):
        # Halves of pairs: twice the numbers are whole.
        return np.asarray(resampled_total(2 * won, drawn) / resampled_total(2 * pairs, drawn))


def _estimate(
    auc: Floats, n: int, n_patients: int, limits: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    value, draws = float(auc[0]), auc[1:]
    spread = np.sqrt(CROSS_VALIDATION_EFFECT) * (draws - np.nanmean(draws))
    low, high = percentile_interval(value + spread)
    if low is None or high is None:
        return Estimate(value, None, None, n, n_patients)
    return Estimate(value, max(low, limits[0]), min(high, limits[1]), n, n_patients)
