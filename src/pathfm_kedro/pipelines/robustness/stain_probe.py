r"""Stain probe: how much of a tile's staining can be read from its vector.

Ridge regression from the clean tile's vector to the mean and standard deviation of the amounts of
haematoxylin and eosin, tested on patients that it did not see. With ŷ the prediction and ȳ the mean
over the training tiles,

- ``r2 = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²``: 1 where the vector tells the staining, 0 where it is worth no
  more than the mean, below 0 where it misleads;
- ``selectivity = r2 − mean r2 of permuted targets``: what the vector says beyond what so flexible a
  model finds in noise (Hewitt & Liang 2019). Targets change patients in blocks, so that tiles of a
  patient stay alike.

How much haematoxylin a tile holds is its nuclei as well as its stain: a high r2 is no fault in
itself. It is read beside the changes of stain, which leave the tissue alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.appearance import view_stack
from pathfm_kedro.pipelines.robustness.appearance_views import (
    MOMENTS,
    n_targets,
    usable_references,
    view_changes,
)
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
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "stain_probe"
DIRECTION: Direction = "below"

#: Two kinds of rows by target:
#:
#: - with patient_id: tiles and the two sums of squares of the patient;
#: - without: r2 of each permutation, and why nothing could be fitted.
PROBE_SCHEMA: dict[str, pl.DataType] = {
    "target": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "residual_sum": pl.Float64(),
    "total_sum": pl.Float64(),
    "permuted_r2": pl.List(pl.Float64()),
    "reason": pl.String(),
}


def patient_folds(patients: Ints, folds: int, seed: int) -> Ints:
    """Fold of each row: whole patients, as evenly as they go.

    Parameters
    ----------
    patients
        [n] codes 0 … P − 1.
    folds
        Number of folds.
    seed
        Of the order in which patients are dealt.

    Examples
    --------
    >>> sorted(patient_folds(np.arange(4), 2, seed=0).tolist())
    [0, 0, 1, 1]
    """
    order = np.random.default_rng(seed).permutation(int(patients.max()) + 1)
    return (order % folds)[patients]


def ridge_predictions(
    vectors: Floats, targets: Floats, folds: Ints, ridges: Sequence[float]
) -> Floats:
    """Predict every row by ridge regression on the rows of other folds.

    Vectors are standardised on the training rows (a constant dimension stays 0) and targets centred.
    The penalty is ridge · d on the sum of squares, d the number of dimensions, so that it means the
    same for encoders of different size. Of the penalties offered each target takes the one that
    predicts best from fold to fold within its training rows; with one fixed penalty the model would
    fit noise wherever there is nothing to learn. Solved over rows, all targets at once.

    Parameters
    ----------
    vectors
        [n, d].
    targets
        [n, m].
    folds
        [n] codes; at least three folds where several penalties are offered.
    ridges
        Penalties per dimension, above 0; the larger one wins a tie.

    Returns
    -------
    ndarray
        [2, n, m]: predictions, and the training mean that stands for knowing nothing.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 21)[:, None]
    >>> predicted, mean = ridge_predictions(x, 3 * x, np.arange(21) % 3, ridges=[1e-6, 1.0])
    >>> bool(np.allclose(predicted, 3 * x, atol=1e-4))
    True
    """
    from threadpoolctl import threadpool_limits

    offered = sorted(ridges, reverse=True)
    out = np.empty((2, *targets.shape))
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for fold in np.unique(folds):
            train, test = folds != fold, folds == fold
            chosen = _chosen_ridges(vectors[train], targets[train], folds[train], offered)
            predicted = _ridge_path(vectors[train], targets[train], vectors[test], offered)
            out[0, test] = np.take_along_axis(predicted, chosen[None, None], axis=0)[0]
            out[1, test] = targets[train].mean(axis=0)
    return out


def _chosen_ridges(vectors: Floats, targets: Floats, folds: Ints, offered: Sequence[float]) -> Ints:
    """[m] position of the penalty that predicts each target best from fold to fold."""
    errors = np.zeros((len(offered), targets.shape[1]))
    if len(offered) > 1:
        for fold in np.unique(folds):
            train, test = folds != fold, folds == fold
            predicted = _ridge_path(vectors[train], targets[train], vectors[test], offered)
            errors += ((predicted - targets[test]) ** 2).sum(axis=1)
    best: Ints = errors.argmin(axis=0)
    return best


def _ridge_path(
    vectors: Floats, targets: Floats, asked: Floats, offered: Sequence[float]
) -> Floats:
    """[penalties, rows asked, m] predictions of a model of the given rows at each penalty."""
    centre, scale = vectors.mean(axis=0), vectors.std(axis=0)
    standard, new = ((part - centre) / np.where(scale > 0, scale, 1.0) for part in (vectors, asked))
    # One decomposition serves every penalty.
    values, axes = np.linalg.eigh(standard @ standard.T / vectors.shape[1])
    mean = targets.mean(axis=0)
    onto = axes.T @ (targets - mean)
    reach = new @ standard.T / vectors.shape[1] @ axes
    return np.stack(
        [reach @ (onto / (np.maximum(values, 0) + ridge)[:, None]) + mean for ridge in offered]
    )


def permuted_blocks(patients: Ints, draws: int, seed: int) -> Ints:
    """Rows whose targets each row takes, patients changing places as blocks.

    Rows lie side by side by patient, once in the patients' order and once in a random one, and each
    takes the target that lies beside it. Where all patients have equally many rows a patient's rows
    take those of one other patient.

    Parameters
    ----------
    patients
        [n] codes.
    draws
        Number of permutations.
    seed
        Of the draws.

    Returns
    -------
    ndarray
        [draws, n] permutations of the rows.

    Examples
    --------
    >>> permuted_blocks(np.array([0, 0, 1, 1]), draws=1, seed=0).tolist()
    [[2, 3, 0, 1]]
    """
    n_patients = int(patients.max()) + 1
    numbers = np.random.default_rng(seed).random((draws, n_patients))
    # Stable sorts keep the rows of a patient in their order.
    source = np.argsort(patients, kind="stable")
    place = np.argsort(numbers[:, patients], axis=1, kind="stable")
    out = np.empty((draws, len(patients)), np.int64)
    np.put_along_axis(out, place, np.broadcast_to(source, out.shape), axis=1)
    return out


def stain_residuals(
    views: Embeddings,
    pool: pl.DataFrame,
    references: pl.DataFrame,
    stains: pl.DataFrame,
    appearance: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Fit the probe and keep sums of squares per patient.

    Parameters
    ----------
    views
        What ``plan_appearance_views`` left; only the clean tiles are used.
    pool
        The tiles.
    references
        From ``center_references``.
    stains
        From ``tile_stains``: the targets.
    appearance
        The parameters of the views.
    parameters
        ``stain_probe``: folds, ridges, n_permutations, seed.

    Returns
    -------
    DataFrame
        Columns :data:`PROBE_SCHEMA`.

    Raises
    ------
    ValueError
        If there are fewer than three folds.
    """
    targets = n_targets(list(usable_references(references)), int(appearance["max_targets"]))
    names = [change.name for change in view_changes(appearance, targets)]
    present, stack = view_stack(views, pool, names, "appearance")
    joined = present.select("tile_id", "patient_id").join(
        stains.select("tile_id", *MOMENTS), on="tile_id", how="left", maintain_order="left"
    )
    measured = joined.select(pl.all_horizontal(pl.col(MOMENTS).is_not_null())).to_series()
    joined = joined.filter(measured)
    folds, n_patients = int(parameters["folds"]), joined["patient_id"].n_unique()
    if folds < 3:
        raise ValueError(
            f"stain_probe.folds is {folds}: give 3 or more, since the penalty is chosen between the "
            "folds that train"
        )
    if n_patients < folds:
        reason = (
            f"{n_patients} patients of the pool have embedded tiles with measured stain, {folds} are "
            "needed for as many folds; add patients, raise tile_pool.max_tiles or lower "
            "stain_probe.folds"
        )
        return _frame([_unfitted(target, reason) for target in MOMENTS])
    vectors = stack[measured.to_numpy(), 0].astype(np.float64)
    return _fitted(vectors, joined, parameters)


def _fitted(vectors: Floats, joined: pl.DataFrame, parameters: Mapping[str, Any]) -> pl.DataFrame:
    patients, n_patients = patient_codes(joined["patient_id"].to_numpy())
    names = joined["patient_id"].unique().sort().to_list()
    values = joined.select(MOMENTS).to_numpy()
    seed = int(parameters["seed"])
    dealt = permuted_blocks(patients, int(parameters["n_permutations"]), seed)
    # The true targets first, then their permutations: [n, 1 + draws, 4].
    whole = np.concatenate([values[:, None], np.moveaxis(values[dealt], 0, 1)], axis=1)
    folds = patient_folds(patients, int(parameters["folds"]), seed)
    predicted, mean = ridge_predictions(
        vectors,
        whole.reshape(len(whole), -1),
        folds,
        [float(ridge) for ridge in parameters["ridges"]],
    )
    squares = [
        sum_by_patient((whole.reshape(len(whole), -1) - guess) ** 2, patients, n_patients)
        for guess in (predicted, mean)
    ]
    residual, total = (part.reshape(n_patients, *whole.shape[1:]) for part in squares)
    tiles = sum_by_patient(np.ones(len(patients)), patients, n_patients)
    rows = []
    for place, target in enumerate(MOMENTS):
        if values[:, place].std() == 0:
            reason = "all tiles of the pool have the same value: there is nothing to predict"
            rows.append(_unfitted(target, reason))
            continue
        sums = residual[..., place].sum(axis=0), total[..., place].sum(axis=0)
        rows.append(_unfitted(target, "") | {"permuted_r2": (1 - sums[0] / sums[1])[1:].tolist()})
        rows += [
            {
                "target": target,
                "patient_id": name,
                "n_tiles": int(tiles[i]),
                "residual_sum": residual[i, 0, place],
                "total_sum": total[i, 0, place],
            }
            for i, name in enumerate(names)
        ]
    return _frame(rows)


def _unfitted(target: str, reason: str) -> dict[str, Any]:
    return {"target": target, "n_tiles": 0, "reason": reason}


def _frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    empty = dict.fromkeys(PROBE_SCHEMA)
    return pl.DataFrame([empty | dict(row) for row in rows], schema=PROBE_SCHEMA)


def stain_probe_measurements(
    residuals: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn the sums into ``r2`` (beside its permutation null) and ``selectivity`` per target.

    Parameters
    ----------
    residuals
        From :func:`stain_residuals`.
    parameters
        ``stain_probe``: thresholds (selectivity: null for none), draws, seed.
    encoder
        Name for the table.

    Returns
    -------
    DataFrame
        Measurements table, experiment ``stain_probe``.
    """
    return measurement_table(
        row
        for target in MOMENTS
        for row in _rows(residuals.filter(target=target), target, parameters, encoder)
    )


def _rows(
    residuals: pl.DataFrame, target: str, parameters: Mapping[str, Any], encoder: str
) -> Iterable[dict[str, Any]]:
    name: dict[str, Any] = {
        "experiment": EXPERIMENT,
        "encoder": encoder,
        "setting": {"target": target},
    }
    threshold = parameters["thresholds"]["selectivity"]
    held: dict[str, Any] = (
        {} if threshold is None else {"threshold": threshold, "direction": DIRECTION}
    )
    whole = residuals.filter(pl.col("patient_id").is_null())
    sums = residuals.filter(pl.col("patient_id").is_not_null()).sort("patient_id")
    if sums.is_empty():
        reason = whole["reason"][0]
        yield from not_applicable(**name, metrics=["r2"], reason=reason)
        yield from not_applicable(**name, metrics=["selectivity"], reason=reason, **held)
        return
    permuted = np.array(whole["permuted_r2"][0].to_list())
    weights = bootstrap_weights(sums.height, parameters["draws"], parameters["seed"])
    estimate = r2_estimate(
        sums["residual_sum"].to_numpy(),
        sums["total_sum"].to_numpy(),
        weights,
        int(sums["n_tiles"].sum()),
    )
    null = Null(*percentile_interval(permuted))
    yield measurement(**name, metric="r2", estimate=estimate, null=null)
    level = float(permuted.mean())
    spread = Null(*(None if end is None else end - level for end in (null.low, null.high)))
    yield measurement(
        **name, metric="selectivity", estimate=_less(estimate, level), null=spread, **held
    )


def r2_estimate(residual: Floats, total: Floats, weights: Floats, n: int) -> Estimate:
    """1 − Σ residual / Σ total with its bootstrap interval over patients.

    Examples
    --------
    >>> weights = bootstrap_weights(4, 200, seed=0)
    >>> r2_estimate(np.ones(4), np.full(4, 4.0), weights, 4).value
    0.75
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = 1 - (weights @ residual) / (weights @ total)
    value = 1 - float(residual.sum() / total.sum())
    return Estimate(value, *percentile_interval(draws), n, len(residual))


def _less(estimate: Estimate, level: float) -> Estimate:
    low, high = (
        None if end is None else end - level for end in (estimate.ci_low, estimate.ci_high)
    )
    value = cast(float, estimate.value) - level
    return Estimate(value, low, high, estimate.n, estimate.n_patients)
