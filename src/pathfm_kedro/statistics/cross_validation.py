"""Linear probes tested on patients they never saw, and the spread that cross-validation adds."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.bootstrap import (
    exact_without_spread,
    odds_interval,
    percentile_interval,
)
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.parameters import STRICT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Variance of a cross-validated score over that of independent patients. Each patient is tested and
#: trains the models that test the others: two patients in different folds, alike, are right or wrong
#: together. Under random labels this doubles the variance (Bates et al., JASA 2023); in simulated
#: cohorts of 60 to 100 patients the ratio was 1.4 to 1.8.
CROSS_VALIDATION_EFFECT = 2.0


@dataclass(frozen=True, config=STRICT)
class ProbeSettings:
    """A cross-validated logistic regression.

    Attributes
    ----------
    folds
        Groups of patients; each is tested by a model of the others.
    C
        Inverse strength of the L2 penalty.
    max_iter
        Iterations of the solver at most.
    """

    folds: Annotated[int, Field(ge=2)]
    C: Annotated[float, Field(gt=0)]
    max_iter: Annotated[int, Field(ge=1)] = 1000


def patient_folds(
    patients: NDArray[np.generic],
    folds: int,
    seed: int,
    strata: NDArray[np.generic] | None = None,
) -> Ints:
    """Fold of each row: whole patients, as evenly as they go, and as evenly in every stratum.

    Parameters
    ----------
    patients
        [n] names or codes.
    folds
        How many.
    seed
        Of the order in which patients go to folds.
    strata
        [n] such as the center; a patient of several counts as of the first of them.

    Returns
    -------
    ndarray
        [n] fold, 0 … folds − 1; the same for any order of the rows.

    Examples
    --------
    >>> fold = patient_folds(np.array(list("aabcd")), 2, 0, strata=np.array([0, 0, 0, 1, 1]))
    >>> bool(fold[0] == fold[1] != fold[2]), bool(fold[3] != fold[4])
    (True, True)
    """
    names, row_of = np.unique(patients, return_inverse=True)
    stratum = np.zeros(len(names), np.int64)
    if strata is not None:
        _, codes = np.unique(strata, return_inverse=True)
        stratum[:] = len(codes)
        np.minimum.at(stratum, row_of, codes)
    order = np.lexsort((np.random.default_rng(seed).random(len(names)), stratum))
    fold = np.empty(len(names), np.int64)
    # A stratum begins where the last one ended, so that folds are of equal size.
    fold[order] = np.arange(len(names)) % folds
    return np.asarray(fold[row_of])


def cross_validated(
    trained: NDArray[np.floating[Any]],
    tested: NDArray[np.floating[Any]],
    targets: Ints,
    patients: Ints,
    settings: ProbeSettings,
    seed: int,
) -> Ints:
    """Classify every row, in each of its views, by a model that saw no row of its patient.

    Standardisation and logistic regression, classes weighted equally, are fitted on the other folds;
    folds hold whole patients and are stratified by target.

    Parameters
    ----------
    trained
        [n, d] rows that models are fitted on.
    tested
        [n, views, d] the same rows as they are classified.
    targets, patients
        [n] codes; each target needs at least ``folds`` patients.
    settings
        The probe.
    seed
        Of the folds.

    Returns
    -------
    ndarray
        [n, views] predicted targets.

    Raises
    ------
    Undefined
        If a fold leaves one target to train on.

    Examples
    --------
    >>> vectors = np.repeat([[0.0], [1.0]], 4, axis=0)
    >>> targets = np.repeat([0, 1], 4)
    >>> probe = ProbeSettings(folds=2, C=1.0, max_iter=100)
    >>> cross_validated(vectors, vectors[:, None], targets, np.arange(8), probe, 0).ravel().tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    splitter = StratifiedGroupKFold(settings.folds, shuffle=True, random_state=seed)
    predicted = np.empty(tested.shape[:2], targets.dtype)
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for train, test in splitter.split(trained, targets, patients):
            if len(np.unique(targets[train])) < 2:
                raise Undefined(
                    "all rows of all classes but one fall into one fold, so that a probe would learn "
                    "one class alone; add patients or change the folds or the seed"
                )
            model = make_pipeline(
                StandardScaler(),
                LogisticRegression(
                    C=settings.C, max_iter=settings.max_iter, class_weight="balanced"
                ),
            ).fit(trained[train], targets[train])
            found = model.predict(tested[test].reshape(-1, tested.shape[2]))
            predicted[test] = found.reshape(len(test), -1)
    return predicted


@dataclass(frozen=True, config=STRICT)
class Probed:
    """What a probe that leaves patients out classifies correctly.

    Attributes
    ----------
    classes
        Classes with patients enough, sorted.
    rows
        [n] rows that were probed.
    correct
        [n, views] rows that were correctly classified; False where they were not probed.
    problem
        Why nothing was probed; empty where rows were.
    """

    classes: tuple[str, ...]
    rows: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    problem: str = ""


def probed(
    trained: NDArray[np.floating[Any]],
    tested: NDArray[np.floating[Any]],
    classes: pl.Series,
    patients: pl.Series,
    settings: ProbeSettings,
    seed: int,
    mend: str,
) -> Probed:
    """Probe the classes that have as many patients as there are folds.

    Parameters
    ----------
    trained, tested
        [n, d] and [n, views, d] as of :func:`cross_validated`.
    classes
        [n] names, such as labels; the name of the series stands in the reason. Rows without a class
        are not probed.
    patients
        [n] names.
    settings, seed
        As of :func:`cross_validated`.
    mend
        What a person can do where fewer than two classes have patients enough.

    Examples
    --------
    >>> names, patients = pl.Series("label", ["x"] * 4), pl.Series(list("abcd"))
    >>> probe = ProbeSettings(folds=2, C=1.0)
    >>> probed(np.eye(4), np.eye(4)[:, None], names, patients, probe, 0, "add patients").problem
    '1 label(s) have 2 patients, two are needed to train and test a probe: add patients'
    """
    support = pl.DataFrame({"class": classes, "patient": patients}).drop_nulls("class")
    counted = support.group_by("class").agg(pl.col("patient").n_unique())
    enough = counted.filter(pl.col("patient") >= settings.folds)["class"].sort().to_list()
    rows = classes.is_in(enough).fill_null(False).to_numpy()
    correct = np.zeros(tested.shape[:2], np.bool_)
    try:
        if len(enough) < 2:
            raise Undefined(
                f"{len(enough)} {classes.name}(s) have {settings.folds} patients, two are needed to "
                f"train and test a probe: {mend}"
            )
        targets = np.unique(classes.to_numpy()[rows], return_inverse=True)[1]
        owners = patients.to_numpy()[rows]
        found = cross_validated(trained[rows], tested[rows], targets, owners, settings, seed)
    except Undefined as problem:
        return Probed(tuple(enough), np.zeros_like(rows), correct, str(problem))
    correct[rows] = found == targets[:, None]
    return Probed(tuple(enough), rows, correct)


def balanced_accuracy(correct: Floats, tested: Floats) -> Floats:
    """Mean over classes of the share of correctly classified rows; classes without rows are left out.

    Parameters
    ----------
    correct, tested
        [..., classes] counts.

    Examples
    --------
    >>> float(balanced_accuracy(np.array([3.0, 1.0]), np.array([4.0, 4.0])))
    0.5
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = correct / tested
    found = np.isfinite(recall)
    mean: Floats = np.where(found, recall, 0.0).sum(axis=-1) / np.maximum(found.sum(axis=-1), 1)
    return mean


def probe_accuracy(correct: Floats, tested: Floats, weights: Floats) -> Estimate:
    """Balanced accuracy of a cross-validated probe, its interval from :func:`widened_interval`.

    Where no resampled cohort differs the interval is the exact one of so many patients.

    Parameters
    ----------
    correct, tested
        [patients, classes] counts.
    weights
        [draws, patients] of the bootstrap.

    Examples
    --------
    >>> correct, tested = np.array([[2.0, 0.0], [1.0, 1.0]]), np.full((2, 2), 2.0)
    >>> weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    >>> probe_accuracy(correct, tested, weights).value
    0.5
    >>> found = probe_accuracy(tested, tested, weights)
    >>> round(found.ci_low, 3), found.ci_high
    (0.158, 1.0)
    """
    value = float(balanced_accuracy(correct.sum(axis=0), tested.sum(axis=0)))
    draws = balanced_accuracy(weights @ correct, weights @ tested)
    interval = widened_interval(value, draws, (0.0, 1.0))
    return exact_without_spread(Estimate(value, *interval, int(tested.sum()), len(tested), draws))


def widened_interval(
    value: float, draws: Floats, limits: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float | None, float | None]:
    """95% interval about a cross-validated figure: the draws' spread, times √2, around the value.

    Parameters
    ----------
    value
        The figure.
    draws
        [draws] of a bootstrap over patients; see :data:`CROSS_VALIDATION_EFFECT`.
    limits
        Least and largest value that the figure can have.

    Examples
    --------
    >>> low, high = widened_interval(0.5, np.linspace(0.4, 0.6, 1001))
    >>> round(low, 3), round(high, 3)
    (0.366, 0.634)
    """
    finite = draws[np.isfinite(draws)]
    middle = finite.mean() if len(finite) else 0.0
    spread = np.sqrt(CROSS_VALIDATION_EFFECT) * (draws - middle)
    low, high = percentile_interval(value + spread)
    if low is None or high is None:
        return None, None
    # Both ends to both limits: where no draw differs, rounding may take both past one.
    return float(np.clip(low, *limits)), float(np.clip(high, *limits))


def widened_odds_interval(
    value: float, draws: Floats, size: int, most: float = np.inf, least: float = 0.0
) -> tuple[float | None, float | None]:
    """:func:`~pathfm_kedro.statistics.bootstrap.odds_interval` of draws, widened for cross-validation.

    Parameters
    ----------
    value
        The figure, in 0 … most.
    draws
        [draws] of a bootstrap over patients; see :data:`CROSS_VALIDATION_EFFECT`. None bounds where
        more than 5% are undefined.
    size
        Patients.
    most
        Largest value that the figure can have.
    least
        Standard error that it has at least, where draws differ at all.

    Examples
    --------
    >>> low, high = widened_odds_interval(0.9, np.linspace(0.85, 0.95, 1001), 24, most=1.0)
    >>> round(low, 3), round(high, 3)
    (0.779, 0.958)
    """
    if percentile_interval(draws)[0] is None:
        return None, None
    variance = CROSS_VALIDATION_EFFECT * float(np.var(draws[np.isfinite(draws)]))
    if variance > 0:
        variance = max(variance, least**2)
    return odds_interval(value, variance, size, most)
