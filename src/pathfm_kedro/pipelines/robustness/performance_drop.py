r"""Average performance drop: what a probe loses when its training data tie the label to the center.

For two labels at two centers a linear probe learns the label from a training set in which Cramér's V
between label and center is v, and is tested on other patients in equal cells. Where the probe leans
on the center, accuracy falls as v grows. With accuracy a_v of one repeat,

- ``apd = mean over repeats of (mean_{v>0} a_v / a_0) − 1`` (Kömen et al. 2025, PathoROB; the reduction
  is croma's ``apd``): 0 nothing is lost;
- ``nipd``: the area under (ā_v − ā_0) / (ā_0 − ½) over v, repeats averaged first (croma's ``nipd``):
  −½ is a straight fall to chance.

Beside the reference protocol: probes are ridge regression of fixed strength in place of logistic
regression tuned on validation patients; training and test *patients* are disjoint, where the
protocol keeps slides apart; every two labels × two centers is a cohort of its own, the two ways of
tying them taken in turn.

A probe at chance has nothing to lose: where the accuracy at v = 0 is not above ½, both are undefined.
Intervals resample test patients given the probes, widened for cross-validation since the same patients
train other repeats' probes.

Pitfalls
--------
- Published drops are not comparable, see above; pairs share patients.
- Coverage is shown only to 80%.
- Vectors are standardised over all tiles of a pair, tested ones too; no label is used for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.balanced_designs import (
    Cohort,
    Scope,
    Subsampling,
    balanced_subsamples,
)
from pathfm_kedro.statistics.correlated_samples import equal_cells, split_patients, training_rows
from pathfm_kedro.statistics.cross_validation import widened_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.ridge import dual_ridge, standardised
from pathfm_kedro.statistics.tables import Embeddings, to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Correctly classified and all tested tiles of each patient and label, per repeat (of one pair) and v;
#: a row without patient says why nothing was trained.
PERFORMANCE_DROP_SCHEMA: dict[str, pl.DataType] = {
    "pair": pl.String(),
    "repeat": pl.Int32(),
    "v": pl.Float64(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "n_correct": pl.Int64(),
    "n_tested": pl.Int64(),
    "reason": pl.String(),
}


def _rising(strengths: tuple[float, ...]) -> tuple[float, ...]:
    if strengths[0] != 0 or strengths[-1] != 1 or tuple(sorted(set(strengths))) != strengths:
        raise ValueError("it must rise from 0 to 1")
    return strengths


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PerformanceDrop(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    cramers_v
        Correlation of label and center in the training sets, rising from 0 to 1.
    repeats
        Splits of the patients of a pair.
    max_pairs, max_tiles_per_pair
        How many pairs of labels and centers, and tiles of each; None for every pair.
    min_patients_per_cell, min_tiles_per_cell
        Cells with fewer are left out; one patient trains and one tests, so 2 at least.
    ridge
        Penalty; see :func:`~pathfm_kedro.statistics.ridge.dual_ridge`.
    """

    cramers_v: Annotated[tuple[float, ...], Field(min_length=2), AfterValidator(_rising)]
    repeats: Annotated[int, Field(ge=1)]
    max_pairs: Annotated[int, Field(ge=1)] | None
    max_tiles_per_pair: Annotated[int, Field(ge=1)]
    min_patients_per_cell: Annotated[int, Field(ge=2)]
    min_tiles_per_cell: Annotated[int, Field(ge=1)]
    ridge: Annotated[float, Field(gt=0)]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Tiles of two labels × two centers; arrays are [n], label and center 0 or 1."""

    name: str
    products: Floats
    patients: Ints
    labels: Ints
    centers: Ints


def performance_drop_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: PerformanceDrop
) -> pl.DataFrame:
    """Train probes at each strength of correlation and count what they classify correctly.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`PERFORMANCE_DROP_SCHEMA`.
    """
    from threadpoolctl import threadpool_limits

    sampled = balanced_subsamples(slides, tiles, embeddings, _asked(p), p.seed)
    if not sampled.scopes:
        return _undefined(sampled.obstacle("paired_2x2"))
    with threadpool_limits(1):  # sums in one order: the same counts on any number of cores
        rows = [
            row
            for scope in sampled.scopes
            for row in _tested_tiles(sampled.cohort, scope, sampled.vectors_of(scope), p)
        ]
    if not rows:
        reason = "in no split of the patients has every cell tiles on both sides: add patients"
        return _undefined(reason)
    return to_schema(rows, PERFORMANCE_DROP_SCHEMA)


def _asked(p: PerformanceDrop) -> Subsampling:
    return Subsampling(
        designs=("paired_2x2",),
        max_tiles=p.max_tiles_per_pair,
        max_tiles_per_pair=p.max_tiles_per_pair,
        max_pairs=p.max_pairs,
        min_patients_per_cell=p.min_patients_per_cell,
        min_tiles_per_cell=p.min_tiles_per_cell,
    )


def _undefined(reason: str) -> pl.DataFrame:
    return to_schema([{"reason": reason}], PERFORMANCE_DROP_SCHEMA)


def _tested_tiles(
    cohort: Cohort, scope: Scope, vectors: NDArray[np.float32], p: PerformanceDrop
) -> Iterator[dict[str, Any]]:
    pair, names, labels = _pair(cohort, scope, vectors)
    for repeat in range(p.repeats):
        generator = np.random.default_rng([p.seed, scope.number, repeat])
        split = split_patients(pair.patients, pair.labels, pair.centers, generator)
        if split is None:
            continue
        random_key = generator.random(len(pair.patients))
        test = equal_cells(np.flatnonzero(~split), pair.labels, pair.centers, random_key)
        for v in p.cramers_v:
            train = training_rows(split, pair.labels, pair.centers, random_key, v, repeat % 2)
            scores = dual_ridge(
                pair.products[np.ix_(train, train)],
                pair.products[np.ix_(test, train)],
                pair.labels[train][:, None].astype(np.float64),
                p.ridge,
            )
            correct = (scores[:, 0] > 0.5) == pair.labels[test]
            cells = np.stack([pair.patients[test], pair.labels[test]])
            codes, cell_of = np.unique(cells, axis=1, return_inverse=True)
            counts = np.bincount(cell_of, correct), np.bincount(cell_of)
            for (patient, label), n_correct, n in zip(codes.T, *counts, strict=True):
                yield {
                    "pair": pair.name,
                    "repeat": repeat,
                    "v": v,
                    "patient_id": names[patient],
                    "label": labels[label],
                    "n_correct": int(n_correct),
                    "n_tested": int(n),
                }


def _pair(
    cohort: Cohort, scope: Scope, vectors: NDArray[np.float32]
) -> tuple[_Pair, list[str], list[str]]:
    """A pair with the names of its patients and labels.

    Columns are standardised over all tiles of the pair: no label is used, so nothing leaks.
    """
    names = cohort.unit_table[cohort.units[scope.rows]]
    (who, patients), (what, labels), (where, centers) = (
        np.unique(names[name].to_numpy(), return_inverse=True)
        for name in ("patient_id", "label", "center")
    )
    rows = standardised(vectors)
    name = f"{' / '.join(what)} × {' / '.join(where)}"
    pair = _Pair(name, rows @ rows.T, patients, labels, centers)
    return pair, who.tolist(), what.tolist()


def average_performance_drop(accuracies: Floats) -> Floats:
    """Mean over repeats of the mean of a_v / a_0 over v > 0, less 1; repeats with NaN are left out.

    Parameters
    ----------
    accuracies
        [..., repeats, v], v = 0 first.

    Examples
    --------
    >>> float(average_performance_drop(np.array([[0.8, 0.8, 0.4]])))
    -0.25
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        drops = (accuracies[..., 1:] / accuracies[..., :1]).mean(axis=-1) - 1
        known = np.isfinite(drops)
        return np.asarray(np.where(known, drops, 0).sum(axis=-1) / known.sum(axis=-1))


def normalised_degradation(accuracies: Floats, strengths: Sequence[float], chance: float) -> Floats:
    """Area under (ā_v − ā_0) / (ā_0 − chance) over v by trapezoids; ā is the mean over repeats.

    Parameters
    ----------
    accuracies
        [..., repeats, v], v = 0 first.
    strengths
        [v] Cramér's V, from 0 to 1.
    chance
        Accuracy of a guess.

    Examples
    --------
    >>> float(normalised_degradation(np.array([[0.9, 0.7, 0.5]]), [0.0, 0.5, 1.0], 0.5))
    -0.5
    """
    mean = _known_mean(accuracies, axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        fall = (mean - mean[..., :1]) / (mean[..., :1] - chance)
    return np.asarray((np.diff(strengths) * (fall[..., 1:] + fall[..., :-1]) / 2).sum(axis=-1))


def _known_mean(values: Floats, axis: int) -> Floats:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis))


def performance_drop_figures(statistics: pl.DataFrame, p: PerformanceDrop) -> Iterator[Figure]:
    """Accuracy at every strength of correlation, APD and nIPD, and APD by pair where there are several.

    Parameters
    ----------
    statistics
        From :func:`performance_drop_statistics`.
    p
        The parameters.
    """
    # By pair, None for all of them.
    tested = cache(partial(_resampled, statistics, p))
    normalised = partial(normalised_degradation, strengths=p.cramers_v, chance=0.5)
    for place, v in enumerate(p.cramers_v):
        yield Figure("accuracy", partial(_accuracy, tested, place), {"v": v})
    yield Figure("apd", partial(_drop, tested, average_performance_drop))
    yield Figure("nipd", partial(_drop, tested, normalised))
    pairs = statistics["pair"].drop_nulls().unique().sort()
    for pair in pairs if len(pairs) > 1 else []:
        of_pair = partial(_drop, tested, average_performance_drop, pair)
        yield Figure("apd", of_pair, stratum=pair)


@dataclasses.dataclass(frozen=True)
class _Resampled:
    """[1 + draws, repeats, v] accuracies, as measured and of resampled patients."""

    accuracies: Floats
    n: int
    n_patients: int

    def estimate(self, values: Floats, limits: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
        """The first of the figures [1 + draws], its interval from the others."""
        value = float(values[0])
        interval = widened_interval(value, values[1:], limits)
        return Estimate(value, *interval, self.n, self.n_patients, values[1:])


def _accuracy(tested: Callable[[str | None], _Resampled], place: int) -> Value:
    """Balanced accuracy at one strength of correlation, mean over repeats of all pairs."""
    means = _known_mean(tested(None).accuracies[:, :, place], axis=1)
    return Value(tested(None).estimate(means, (0.0, 1.0)), Null(0.5, 0.5))


def _drop(
    tested: Callable[[str | None], _Resampled],
    reduce: Callable[[Floats], Floats],
    pair: str | None = None,
) -> Value:
    """A reduction of the accuracies of all pairs or of one; chance has nothing to lose: no null."""
    unbiased = _accuracy(tested, 0).estimate
    if unbiased.ci_low is None or unbiased.ci_low <= 0.5:
        raise Undefined(
            "without any correlation the probe is not above chance (see accuracy at v = 0), so there "
            "is nothing to lose: add patients, or take this encoder as knowing nothing of the label"
        )
    return Value(tested(pair).estimate(reduce(tested(pair).accuracies)))


def _resampled(statistics: pl.DataFrame, p: PerformanceDrop, pair: str | None) -> _Resampled:
    """A repeat of a pair is a repeat of its own; NaN where a label has no tested patient."""
    if statistics["reason"].count():
        raise Undefined(statistics["reason"][0])
    rows = (statistics if pair is None else statistics.filter(pair=pair)).with_columns(
        repeat=pl.struct("pair", "repeat").rank("dense") - 1,
        label=pl.col("label").rank("dense").over("pair") - 1,
        v=pl.col("v").rank("dense") - 1,
        patient=pl.col("patient_id").rank("dense") - 1,
    )
    keys = ("patient", "repeat", "v", "label")
    codes = tuple(rows[name].to_numpy().astype(np.int64) for name in keys)
    shape = tuple(int(code.max()) + 1 for code in codes)
    correct, tested = np.zeros((2, *shape))
    np.add.at(correct, codes, rows["n_correct"].to_numpy())
    np.add.at(tested, codes, rows["n_tested"].to_numpy())
    weights = np.vstack([np.ones(shape[0]), p.weights(shape[0])])
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.tensordot(weights, correct, 1) / np.tensordot(weights, tested, 1)
    # Tiles tested in one repeat of one pair, the mean over all of them: the same ones at every v.
    n = int(tested[:, :, 0].sum() // shape[1])
    return _Resampled(recall.mean(axis=-1), n, shape[0])
