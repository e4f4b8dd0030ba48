"""What a linear model reads from embeddings: the label, and the center it should not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.inheritance.geometry import capped_tiles, read_vectors
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    patient_codes,
    percentile_interval,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Direction,
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings, tile_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "linear_probe"
METRIC = "balanced_accuracy"
#: An encoder should know the label and should not know the center.
DIRECTIONS: dict[str, Direction] = {"label": "above", "center": "below"}
#: Variance of a cross-validated score over that of independent patients. Each patient is tested and
#: trains the models that test the others: two patients in different folds, alike, are right or
#: wrong together. Under random labels this doubles the variance of the linear score (every pair
#: counts twice) and multiplies that of its sign by 1 + 2/π; 2 is the cautious end. In simulations
#: of 60 to 100 patients the ratio was 1.4 to 1.8. Bates et al. (JASA 2023) discuss the effect.
CROSS_VALIDATION_EFFECT = 2.0


def cross_validated(
    vectors: Floats,
    targets: Ints,
    patients: Ints,
    folds: int,
    regularisation: float,
    max_iter: int,
    seed: int,
) -> Ints:
    """Predict every row by a model that saw no row of its patient.

    Standardisation and logistic regression, classes weighted equally, are fitted on the other
    folds; folds hold whole patients and are stratified by target.

    Parameters
    ----------
    vectors
        [n, d].
    targets, patients
        [n] codes; each target needs at least `folds` patients.
    folds
        Number of folds.
    regularisation
        Inverse strength C of the L2 penalty.
    max_iter
        Iterations of the solver at most.
    seed
        Seed of the folds.

    Returns
    -------
    ndarray
        [n] predicted targets.

    Examples
    --------
    >>> vectors = np.repeat([[0.0], [1.0]], 4, axis=0)
    >>> targets = np.repeat([0, 1], 4)
    >>> cross_validated(vectors, targets, np.arange(8), 2, 1.0, 100, seed=0).tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    predicted = np.empty_like(targets)
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for train, test in splitter.split(vectors, targets, patients):
            model = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=regularisation, max_iter=max_iter, class_weight="balanced"),
            )
            predicted[test] = model.fit(vectors[train], targets[train]).predict(vectors[test])
    return predicted


def patient_counts(
    targets: Ints, predicted: Ints, patients: Ints, shape: tuple[int, int]
) -> Floats:
    """Right and all rows per patient and target: [n_patients, 2, n_targets].

    Parameters
    ----------
    targets, predicted, patients
        [n] codes.
    shape
        Number of patients, number of targets.
    """
    own = np.eye(shape[1])[targets]
    right = own * (targets == predicted)[:, None]
    return sum_by_patient(np.stack([right, own], axis=1), patients, shape[0])


def balanced_accuracy(counts: Floats) -> Floats:
    """Mean over targets of the share of right rows; targets without rows are left out.

    Parameters
    ----------
    counts
        [..., 2, n_targets]: right and all rows.

    Examples
    --------
    >>> float(balanced_accuracy(np.array([[3.0, 1.0], [4.0, 4.0]])))
    0.5
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = counts[..., 0, :] / counts[..., 1, :]
        found = np.isfinite(recall)
        return cast(Floats, np.where(found, recall, 0).sum(axis=-1) / found.sum(axis=-1))


def probe_estimate(counts: Floats, weights: Floats) -> Estimate:
    """Balanced accuracy with its interval from counts per patient.

    Bootstrap over patients, centred on the figure and widened by the root of
    ``CROSS_VALIDATION_EFFECT``.

    Parameters
    ----------
    counts
        [n_patients, 2, n_targets] from :func:`patient_counts`.
    weights
        [draws, n_patients] from ``bootstrap_weights``.
    """
    total = counts.sum(axis=0)
    value = float(balanced_accuracy(total))
    draws = balanced_accuracy(np.tensordot(weights, counts, axes=1))
    spread = np.sqrt(CROSS_VALIDATION_EFFECT) * (draws - np.nanmean(draws))
    low, high = percentile_interval(value + spread)
    low = None if low is None else max(0.0, low)
    high = None if high is None else min(1.0, high)
    return Estimate(value, low, high, int(total[1].sum()), len(counts))


def linear_probe(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
    encoder: str,
) -> pl.DataFrame:
    """Balanced accuracy of a linear probe for the label and for the center.

    Cross-validated over patients, on a capped number of tiles per slide. Labels and centers with
    fewer patients than folds are left out and listed. Null: 1 / number of classes, what any guess
    that ignores the embedding reaches.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    parameters
        ``max_tiles_per_slide``, ``folds``, ``C``, ``max_iter``, ``draws``, ``seed``,
        ``thresholds`` (label, center; null for none).
    encoder
        Name for the table.
    """
    rows = tile_rows(slides, tiles, embeddings.slide_ids)
    chosen = capped_tiles(rows, parameters["max_tiles_per_slide"], parameters["seed"])
    vectors = read_vectors(rows, chosen, embeddings)
    return measurement_table(
        row
        for target in DIRECTIONS
        for row in _target_rows(rows[chosen], vectors, target, parameters, encoder)
    )


def _target_rows(
    rows: pl.DataFrame, vectors: Floats, target: str, parameters: Mapping[str, Any], encoder: str
) -> Iterator[dict[str, Any]]:
    name: dict[str, Any] = {
        "experiment": EXPERIMENT,
        "encoder": encoder,
        "setting": {"target": target},
    }
    judged: dict[str, Any] = {
        "threshold": parameters["thresholds"][target],
        "direction": DIRECTIONS[target],
    }
    folds = parameters["folds"]
    support = rows.group_by(target).agg(n=pl.len(), patients=pl.col("patient_id").n_unique())
    for few in support.filter(pl.col("patients") < folds).sort(target).iter_rows(named=True):
        yield from not_applicable(
            **name,
            metrics=[METRIC],
            stratum=f"{target}={few[target]}",
            n=few["n"],
            n_patients=few["patients"],
            reason=f"{few['patients']} patient(s) for {folds} folds: left out of the probe; "
            "add patients or take fewer folds",
        )
    enough = support.filter(pl.col("patients") >= folds)[target].to_list()
    if len(enough) < 2:
        reason = (
            f"{len(enough)} {target}(s) with {folds} patients, two are needed: add patients or "
            "take fewer folds"
        )
        yield from not_applicable(**name, **judged, metrics=[METRIC], n=len(rows), reason=reason)
        return
    keep = rows[target].is_in(enough).to_numpy()
    patients, n_patients = patient_codes(rows["patient_id"].to_numpy()[keep])
    targets = np.unique(rows[target].to_numpy()[keep], return_inverse=True)[1].astype(np.int64)
    predicted = cross_validated(
        vectors[keep],
        targets,
        patients,
        folds,
        parameters["C"],
        parameters["max_iter"],
        parameters["seed"],
    )
    counts = patient_counts(targets, predicted, patients, (n_patients, len(enough)))
    weights = bootstrap_weights(n_patients, parameters["draws"], parameters["seed"])
    chance = 1 / len(enough)
    yield measurement(
        **name,
        **judged,
        metric=METRIC,
        estimate=probe_estimate(counts, weights),
        null=Null(chance, chance),
    )
