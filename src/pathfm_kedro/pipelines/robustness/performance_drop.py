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
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.designs import Cohort, Scope, draw_subsamples
from pathfm_kedro.statistics.bootstrap import bootstrap_weights, percentile_interval
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.ridge import CROSS_VALIDATION_EFFECT, dual_ridge, standardised
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "performance_drop"

#: Right and all tested tiles of each patient and label, per repeat (of one pair) and v; a row without
#: patient says why nothing was trained.
HITS_SCHEMA: dict[str, pl.DataType] = {
    "pair": pl.String(),
    "repeat": pl.Int32(),
    "v": pl.Float64(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "right": pl.Int64(),
    "n": pl.Int64(),
    "reason": pl.String(),
}


@dataclass(frozen=True)
class _Pair:
    """Tiles of two labels × two centers; arrays are [n], label and center 0 or 1."""

    name: str
    products: Floats
    patients: Ints
    labels: Ints
    centers: Ints


@dataclass(frozen=True)
class _Hits:
    """[P, repeats, v, 2] right and all tested tiles of each patient, by label of the pair."""

    right: Floats
    asked: Floats

    @property
    def n_patients(self) -> int:
        return len(self.right)


def train_biased_probes(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Train probes at each strength of correlation and count what they get right.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    parameters
        ``performance_drop``: cramers_v (ascending from 0 to 1), repeats, max_pairs,
        max_tiles_per_pair, min_patients_per_cell, min_tiles_per_cell, ridge, seed.

    Returns
    -------
    DataFrame
        :data:`HITS_SCHEMA`.
    """
    drawn = draw_subsamples(
        slides,
        tiles,
        embeddings,
        {
            "designs": ["paired_2x2"],
            "exclude": "patient",
            "draws": 1,
            "max_tiles": parameters["max_tiles_per_pair"],
            **parameters,
            # One patient trains and one tests in every cell.
            "min_patients_per_cell": max(parameters["min_patients_per_cell"], 2),
        },
    )
    strengths = parameters["cramers_v"]
    if strengths[0] != 0 or strengths[-1] != 1 or sorted(set(strengths)) != list(strengths):
        raise ValueError(f"cramers_v is {list(strengths)}: it must rise from 0 to 1")
    if not drawn.scopes or drawn.cohort is None:
        return pl.DataFrame([{"reason": drawn.obstacle("paired_2x2")}], schema=HITS_SCHEMA)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in one order: the same hits on any number of cores
        rows = [
            row
            for scope in drawn.scopes
            for row in _pair_hits(drawn.cohort, scope, drawn.vectors_of(scope), parameters)
        ]
    reason = "in no split of the patients has every cell tiles on both sides: add patients"
    return pl.DataFrame(rows or [{"reason": reason}], schema=HITS_SCHEMA)


def _pair_hits(
    cohort: Cohort, scope: Scope, vectors: NDArray[np.float32], parameters: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    pair, names, labels = _pair(cohort, scope, vectors)
    for repeat in range(parameters["repeats"]):
        generator = np.random.default_rng([parameters["seed"], scope.draw, repeat])
        split = split_patients(pair.patients, pair.labels, pair.centers, generator)
        if split is None:
            continue
        luck = generator.random(len(pair.patients))
        for v in parameters["cramers_v"]:
            train = training_rows(split, pair.labels, pair.centers, luck, v, repeat % 2)
            test = _equal_cells(np.flatnonzero(~split), pair.labels, pair.centers, luck)
            scores = dual_ridge(
                pair.products[np.ix_(train, train)],
                pair.products[np.ix_(test, train)],
                pair.labels[train][:, None].astype(np.float64),
                parameters["ridge"],
            )
            right = (scores[:, 0] > 0.5) == pair.labels[test]
            cells = np.stack([pair.patients[test], pair.labels[test]])
            codes, where = np.unique(cells, axis=1, return_inverse=True)
            hits = np.bincount(where, right)
            for (patient, label), hit, n in zip(codes.T, hits, np.bincount(where), strict=True):
                yield {
                    "pair": pair.name,
                    "repeat": repeat,
                    "v": float(v),
                    "patient_id": names[patient],
                    "label": labels[label],
                    "right": int(hit),
                    "n": int(n),
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


def split_patients(
    patients: Ints, labels: Ints, centers: Ints, generator: np.random.Generator
) -> NDArray[np.bool_] | None:
    """[n] whether a tile may train: half of each cell's patients, so that no patient is on both sides.

    Parameters
    ----------
    patients, labels, centers
        [n] codes; labels and centers 0 or 1.
    generator
        Source of the order of patients.

    Returns
    -------
    ndarray or None
        None where patients with several cells leave a cell empty on one side.
    """
    cells = 2 * labels + centers
    first = np.unique(patients, return_index=True)[1]
    order = np.lexsort((generator.random(len(first)), cells[first]))
    turn = np.arange(len(first)) - np.searchsorted(cells[first][order], cells[first][order])
    trains = np.empty(len(first), dtype=np.bool_)
    # Of an odd number the larger part trains.
    trains[order] = turn % 2 == 0
    side = trains[patients]
    filled = np.bincount(4 * side + cells, minlength=8)
    return side if filled.all() else None


def training_rows(
    trains: NDArray[np.bool_], labels: Ints, centers: Ints, luck: Floats, v: float, way: int
) -> Ints:
    """Training tiles in which Cramér's V between label and center is v (but for rounding).

    The number of tiles is the same for every v: half of it is the smaller of the diagonal's two cells,
    of either way of tying labels to centers.

    Parameters
    ----------
    trains
        [n] whether a tile may train.
    labels, centers
        [n] 0 or 1.
    luck
        [n] random numbers: the smaller are taken first, so that the sets of different v overlap.
    v
        0 … 1.
    way
        0 ties label 0 to center 0, 1 to center 1.

    Returns
    -------
    ndarray
        Rows, sorted.
    """
    cells = 2 * labels + centers
    half = int(np.bincount(cells[trains], minlength=4).min())
    tied = np.array([0, 3]) if way == 0 else np.array([1, 2])
    more = round(half * (1 + v) / 2)
    wanted = np.full(4, half - more)
    wanted[tied] = more
    rows = np.flatnonzero(trains)
    order = rows[np.lexsort((luck[rows], cells[rows]))]
    turn = np.arange(len(order)) - np.searchsorted(cells[order], cells[order])
    return np.sort(order[turn < wanted[cells[order]]])


def _equal_cells(rows: Ints, labels: Ints, centers: Ints, luck: Floats) -> Ints:
    """As many of the rows from each cell."""
    cells = 2 * labels[rows] + centers[rows]
    order = np.lexsort((luck[rows], cells))
    turn = np.arange(len(rows)) - np.searchsorted(cells[order], cells[order])
    return np.sort(rows[order[turn < np.bincount(cells).min()]])


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


def performance_drop(
    hits: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """APD, nIPD and the accuracy at every strength of correlation.

    The interval resamples test patients given the probes, about the figure, widened by the root of
    ``CROSS_VALIDATION_EFFECT`` since the same patients train other repeats' probes.

    Parameters
    ----------
    hits
        Output of :func:`train_biased_probes`.
    parameters
        ``performance_drop``: bootstrap_draws, seed, thresholds.
    encoder
        Name of the encoder.

    Returns
    -------
    DataFrame
        Measurements apd, nipd, accuracy (setting v) over all pairs, apd by pair.
    """
    name: dict[str, Any] = {"experiment": EXPERIMENT, "encoder": encoder}
    rows = hits.filter(pl.col("n").is_not_null())
    if rows.is_empty():
        return _undefined(hits["reason"][0], name, parameters)
    strengths = rows["v"].unique().sort().to_list()
    held = _held(rows)
    weights = bootstrap_weights(held.n_patients, parameters["bootstrap_draws"], parameters["seed"])
    point, drawn = (_accuracies(held, w) for w in (np.ones((1, held.n_patients)), weights))
    # Tiles tested in one repeat of one pair, the mean over all of them: the same ones at every v.
    n = int(held.asked[:, :, 0].sum(axis=(1, 2)).sum() // held.asked.shape[1])
    told = []
    for i, v in enumerate(strengths):
        draws = _known_mean(drawn[:, :, i], axis=1)
        value = float(_known_mean(point[0, :, i], axis=0))
        estimate = _estimate(value, draws, n, held.n_patients, (0.0, 1.0))
        told.append(
            measurement(
                **name,
                metric="accuracy",
                estimate=estimate,
                setting={"v": v},
                null=Null(0.5, 0.5),
            )
        )
    baseline = told[0]
    if baseline["ci_low"] is None or baseline["ci_low"] <= 0.5:
        reason = (
            "without any correlation the probe is not above chance (see accuracy at v = 0), so there "
            "is nothing to lose: add patients, or take this encoder as knowing nothing of the label"
        )
        return pl.concat([_undefined(reason, name, parameters), measurement_table(told)])
    told += [
        measurement(
            **name,
            metric=metric,
            estimate=_estimate(float(of(point)[0]), of(drawn), n, held.n_patients),
            null=Null(0.0, 0.0),
            **(parameters["thresholds"].get(metric) or {}),
        )
        for metric, of in (
            ("apd", average_performance_drop),
            ("nipd", lambda a: normalised_degradation(a, strengths, 0.5)),
        )
    ]
    return measurement_table([*told, *_by_pair(rows, parameters, name)])


def _undefined(reason: str, name: Mapping[str, Any], parameters: Mapping[str, Any]) -> pl.DataFrame:
    return measurement_table(
        row
        for metric in ("apd", "nipd")
        for row in not_applicable(
            **name,
            metrics=[metric],
            reason=reason,
            **(parameters["thresholds"].get(metric) or {}),
        )
    )


def _by_pair(
    rows: pl.DataFrame, parameters: Mapping[str, Any], name: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """APD of each pair, where there are several."""
    pairs = rows["pair"].unique().sort()
    for pair in pairs if len(pairs) > 1 else []:
        held = _held(rows.filter(pl.col("pair") == pair))
        weights = bootstrap_weights(
            held.n_patients, parameters["bootstrap_draws"], parameters["seed"]
        )
        value, draws = (
            average_performance_drop(_accuracies(held, w))
            for w in (np.ones((1, held.n_patients)), weights)
        )
        n = int(held.asked[:, :, 0].sum() // held.asked.shape[1])
        yield measurement(
            **name,
            metric="apd",
            stratum=pair,
            estimate=_estimate(float(value[0]), draws, n, held.n_patients),
            null=Null(0.0, 0.0),
        )


def _held(rows: pl.DataFrame) -> _Hits:
    """Hits as arrays; a repeat of a pair is a repeat of its own, its labels 0 and 1."""
    rows = rows.with_columns(
        repeat=pl.struct("pair", "repeat").rank("dense") - 1,
        label=pl.col("label").rank("dense").over("pair") - 1,
        v=pl.col("v").rank("dense") - 1,
        patient=pl.col("patient_id").rank("dense") - 1,
    )
    codes = [rows[name].to_numpy().astype(np.int64) for name in ("patient", "repeat", "v", "label")]
    shape = tuple(int(code.max()) + 1 for code in codes)
    cell = np.ravel_multi_index(codes, shape)
    right, asked = (
        np.bincount(cell, rows[name].to_numpy(), int(np.prod(shape)))
        .reshape(shape)
        .astype(np.float64)
        for name in ("right", "n")
    )
    return _Hits(right, asked)


def _accuracies(held: _Hits, weights: Floats) -> Floats:
    """[draws, repeats, v] balanced accuracy; NaN where a label has no tested patient."""
    right, asked = (
        (weights @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:])
        for part in (held.right, held.asked)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((right / asked).mean(axis=-1))


def _estimate(
    value: float,
    draws: Floats,
    n: int,
    n_patients: int,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    spread = np.sqrt(CROSS_VALIDATION_EFFECT) * (draws - np.nanmean(draws))
    low, high = percentile_interval(value + spread)
    if low is None or high is None:
        return Estimate(value, None, None, n, n_patients)
    return Estimate(value, max(low, limits[0]), min(high, limits[1]), n, n_patients)
