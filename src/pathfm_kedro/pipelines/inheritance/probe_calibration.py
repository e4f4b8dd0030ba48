r"""Calibration: whether a probe's stated probabilities are true, at home and at a center it never saw.

A logistic regression of the label on standardised vectors, as the linear probe's but without weights of
classes, which would move probabilities. It is fitted twice over
(:mod:`~pathfm_kedro.statistics.probe_splits`):

- ``in_domain``: each fold of patients is tested by a model of the others, of all centers;
- ``held_out_center``: each center is tested by a model of the other centers alone.

One fold of patients, which neither trains nor tests, sets the temperature of each model. The figures,
on tested tiles:

- ``auc``: macro average of each label against the rest, over pairs of tiles of one model;
- ``ece = Σ_b n_b/n · |share that is true − mean stated|`` over bins of equal width or of equal mass
  (quantiles; bounds are not drawn anew when patients are resampled). Of two labels the stated is the
  probability of the second, in the order of their names; of more that of the most probable label;
- ``brier``: of two labels (p − y)² for the second, 0 … 1; of more the sum over labels, 0 … 2;
- both for probabilities as ``stated``, and ``scaled`` by the fitted temperature;
- ``temperature_fitted``: the models' geometric mean; ``temperature_needed``: what would give the tested
  tiles the highest likelihood; above 1 the probe is too sure;
- ``degeneracy_share``: share of tiles in the label that is predicted most;
- ``auc_change`` and ``ece_change``: held-out center minus in-domain, of the same patients.

Intervals: bootstrap over patients, given the models, widened for cross-validation. References beside
them: ½ for AUC; the range of ``ece`` if the same probabilities were true, patients as clusters, since
few tiles alone give an error; for ``brier`` stating the shares of the labels; for
``degeneracy_share`` the most frequent label's share; 1 for the temperature; 0 for changes.

Sources: Guo et al., On calibration of modern neural networks (arXiv 1706.04599); Thiringer et al.
(arXiv 2601.04163): at other centers calibration moves where AUC stays.

Pitfalls
--------
- A tile has its slide's label, also where it shows healthy tissue: no probe can be sure there.
- The error is never 0 on few tiles: read it beside its reference, and its changes.
- Held-out models train on other numbers of patients: some of a change may be that.
- Where tiles that set the temperature are all correct, it ends at 0.05, the least looked at.
- In 40 simulated cohorts of 48 patients whose vectors were noise the interval of ``auc`` held ½ in 98
  to 100%; coverage of the others was not simulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property, partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.auc import resampled_macro_auc
from pathfm_kedro.statistics.bootstrap import patient_codes, percentile_interval, sum_by_patient
from pathfm_kedro.statistics.cross_validation import ProbeSettings, widened_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.probability_error import (
    TEMPERATURES,
    base_rate_brier,
    best_temperature,
    brier_scores,
    calibrated_errors,
    equal_mass_bins,
    expected_calibration_error,
    fixed_width_bins,
    log_probabilities,
    losses_at_temperatures,
    stated_and_true,
    sums_in_bins,
)
from pathfm_kedro.statistics.probe_splits import (
    HELD_OUT_CENTER,
    IN_DOMAIN,
    TESTED,
    ProbedTiles,
    Split,
    probe_logits,
)
from pathfm_kedro.statistics.readable_numbers import number
from pathfm_kedro.statistics.tables import Embeddings, to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS: dict[str, Callable[[Floats, int], Ints]] = {
    "fixed_width": fixed_width_bins,
    "equal_mass": equal_mass_bins,
}
#: Probabilities as the model states them, or scaled by the temperature of other patients.
STATED, SCALED = "stated", "scaled"

#: One row per tested tile and way of testing: ranks of tiles make the AUC, so that sums per patient
#: would not do. logits: of all labels, minus infinity for one that did not train. A row with a problem
#: says why a center, or a way of testing, has no tile.
PROBE_CALIBRATION_SCHEMA: dict[str, pl.DataType] = {
    "tested": pl.String(),
    "center": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "model": pl.Int64(),
    "target": pl.Int64(),
    "logits": pl.List(pl.Float64()),
    "temperature": pl.Float64(),
    "problem": pl.String(),
}


def _three_folds(probe: ProbeSettings) -> ProbeSettings:
    if probe.folds < 3:
        raise ValueError(
            "folds must be 3 at least: one tests, one sets the temperature, one trains"
        )
    return probe


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ProbeCalibration(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    max_tiles_per_slide
        Tiles per slide that the probe sees, so that large slides do not rule.
    probe
        Of the label; labels of fewer patients than folds are left out.
    n_bins
        Of the calibration error.
    null_samples
        Samples of labels from the stated probabilities.
    """

    max_tiles_per_slide: Annotated[int, Field(ge=1)]
    probe: Annotated[ProbeSettings, AfterValidator(_three_folds)]
    n_bins: Annotated[int, Field(ge=1)] = 15
    null_samples: Annotated[int, Field(ge=1)] = 200


def probe_calibration_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: ProbeCalibration
) -> pl.DataFrame:
    """Logits of every tested tile, in domain and by models of other centers.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`PROBE_CALIBRATION_SCHEMA`.
    """
    folds = p.probe.folds
    try:
        own = ProbedTiles.of(
            slides, tiles, embeddings, p.max_tiles_per_slide, folds, p.seed, "probe_calibration"
        )
    except Undefined as problem:
        return _problems(str(problem))
    frames = []
    for tested in TESTED:
        try:
            frames.append(_tested(own, own.splits(tested, folds, p.seed), p))
        except Undefined as problem:
            frames.append(_problems(str(problem), tested))
    return pl.concat(frames)


def _problems(reason: str, *tested: str, center: str | None = None) -> pl.DataFrame:
    rows = [{"tested": name, "center": center, "problem": reason} for name in tested or TESTED]
    return to_schema(rows, PROBE_CALIBRATION_SCHEMA)


def _tested(own: ProbedTiles, splits: Iterable[Split], p: ProbeCalibration) -> pl.DataFrame:
    targets, frames = own.targets, []
    for place, split in enumerate(splits):
        tested = HELD_OUT_CENTER if split.center else IN_DOMAIN
        problem = split.problem or _untrained(targets, split)
        if problem:
            frames.append(_problems(problem, tested, center=split.center or None))
            continue
        n_classes = int(targets.max()) + 1
        logits = probe_logits(own.vectors, targets, split.train, n_classes, p.probe)
        aside = split.aside[np.isin(targets[split.aside], targets[split.train])]
        temperature = best_temperature(
            losses_at_temperatures(logits[aside], targets[aside]).sum(axis=0)
        )
        of_split = own.tags[split.test].select("center", "patient_id")
        rows = of_split.with_columns(
            tested=pl.lit(tested),
            n_tiles=pl.lit(1),
            model=pl.lit(place),
            target=pl.Series(targets[split.test]),
            logits=pl.Series(logits[split.test].tolist(), dtype=pl.List(pl.Float64())),
            temperature=pl.lit(float(temperature)),
        )
        frames.append(to_schema(rows, PROBE_CALIBRATION_SCHEMA))
    return pl.concat(frames)


def _untrained(targets: Ints, split: Split) -> str:
    known = np.unique(targets[split.train])
    if len(known) < 2 or not np.isin(targets[split.aside], known).any():
        return (
            "patients of one split hold fewer than two labels, or none to set the temperature by: add "
            "patients or change probe_calibration.seed"
        )
    return ""


@dataclasses.dataclass(frozen=True, eq=False)
class TestedTiles:
    """Tested tiles of a way of testing, or of one center in it.

    Attributes
    ----------
    of
        Their rows of the statistics.
    p
        The parameters.
    """

    of: PatientStatistics
    p: ProbeCalibration

    @cached_property
    def logits(self) -> Floats:
        """[n, labels]."""
        return np.array(self.of.table["logits"].to_list())

    @cached_property
    def targets(self) -> Ints:
        """[n] codes of labels."""
        return self.of.table["target"].to_numpy()

    @cached_property
    def patients(self) -> Ints:
        """[n] codes."""
        return patient_codes(self.of.table["patient_id"].to_numpy())[0]

    @cached_property
    def weights(self) -> Floats:
        """[1 + draws, patients]: the patients themselves, then every resampled cohort."""
        return np.vstack([np.ones(self.of.n_patients), self.of.weights])

    @property
    def several(self) -> bool:
        """Whether there are more than two labels."""
        return bool(self.logits.shape[1] > 2)

    def log_probabilities(self, probabilities: str) -> Floats:
        """[n, labels], scaled by the temperature of other patients or not."""
        temperature = self.of.table["temperature"].to_numpy() if probabilities == SCALED else 1.0
        return log_probabilities(self.logits, temperature)

    def resampled(self, rows: Floats) -> Floats:
        """[1 + draws, ...] sums over rows [n, ...]."""
        return np.tensordot(
            self.weights, sum_by_patient(rows, self.patients, self.of.n_patients), axes=1
        )

    @cached_property
    def n(self) -> Floats:
        """[1 + draws] tiles."""
        return self.resampled(np.ones(len(self.targets)))

    def estimate(self, values: Floats, least: float = 0.0, most: float = 1.0) -> Estimate:
        """The first of [1 + draws] numbers, its interval from the others."""
        values = np.clip(values, least, most)  # rounding may pass what the figure can be
        interval = widened_interval(float(values[0]), values[1:], (least, most))
        return Estimate(float(values[0]), *interval, self.of.n, self.of.n_patients, values[1:])


def tested_tiles(of: PatientStatistics, p: ProbeCalibration) -> TestedTiles:
    """Tiles of these rows.

    Raises
    ------
    Undefined
        If there is none, with the reason; or if they are of one patient.
    """
    rows = of.where(pl.col("problem").is_null())
    problems = of.table["problem"].drop_nulls()
    if rows.table.is_empty():
        reason = str(problems[0]) if len(problems) else "no tile is tested: embed more slides"
        raise Undefined(reason, 0, 0)
    if rows.n_patients < 2:
        raise Undefined("tiles of one patient are tested: an interval needs two; add patients")
    return TestedTiles(rows, p)


def probe_calibration_figures(statistics: pl.DataFrame, p: ProbeCalibration) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`probe_calibration_statistics`.
    p
        The parameters.
    """
    whole = PatientStatistics(statistics, p)
    for tested in TESTED:
        of = whole.at(tested=tested)
        for part in (of, *of.within("center")):
            figure = partial(_figure, part, cache(partial(tested_tiles, part, p)))
            yield figure("auc", auc)
            for bins in BINS if part is of else ("fixed_width",):
                for probabilities in (STATED, SCALED):
                    yield figure("ece", calibration_error, bins=bins, probabilities=probabilities)
            if part is not of:
                continue
            for probabilities in (STATED, SCALED):
                yield figure("brier", brier, probabilities=probabilities)
            yield figure("temperature_fitted", temperature_fitted)
            yield figure("temperature_needed", temperature_needed)
            yield figure("degeneracy_share", degeneracy_share)
    for part in (whole, *whole.within("center")):
        figure = partial(_figure, part, cache(partial(tested_twice, part, p)))
        yield figure("auc_change", auc_change)
        for probabilities in (STATED, SCALED):
            yield figure("ece_change", ece_change, probabilities=probabilities)


def _figure(
    of: PatientStatistics,
    tiles: Callable[[], Any],
    metric: str,
    estimator: Callable[..., Value],
    **setting: str,
) -> Figure:
    return of.figure(metric, lambda _: estimator(tiles(), **setting), **setting)


def auc(tiles: TestedTiles) -> Value:
    """Macro AUC, one label against the rest; reference ½."""
    return Value(tiles.estimate(_aucs(tiles, tiles.of.table["model"].to_numpy())), Null(0.5, 0.5))


def _aucs(tiles: TestedTiles, models: Ints) -> Floats:
    from threadpoolctl import threadpool_limits

    scores = tiles.log_probabilities(STATED)
    with threadpool_limits(1):  # small matrices: more threads cost more than they give
        found = resampled_macro_auc(scores, tiles.targets, tiles.patients, models, tiles.weights)
    if np.isnan(found[0]):
        raise Undefined("no two tiles of one model have different labels: add patients of others")
    return found


def calibration_error(tiles: TestedTiles, bins: str, probabilities: str) -> Value:
    """Expected calibration error; reference: its range if the probabilities were true."""
    shares = np.exp(tiles.log_probabilities(probabilities))
    stated, _ = stated_and_true(shares, tiles.targets)
    own, p = BINS[bins](stated, tiles.p.n_bins), tiles.p
    if_true = calibrated_errors(shares, own, p.n_bins, tiles.patients, p.null_samples, p.seed)
    of = "of the most probable label" if tiles.several else "of the second of two labels"
    estimate = tiles.estimate(_errors(tiles, bins, probabilities))
    return Value(estimate, Null(*percentile_interval(if_true)), remark=f"probability {of}")


def _errors(tiles: TestedTiles, bins: str, probabilities: str) -> Floats:
    """[1 + draws] expected calibration errors."""
    stated, true = stated_and_true(np.exp(tiles.log_probabilities(probabilities)), tiles.targets)
    n_bins = tiles.p.n_bins
    gaps = sums_in_bins(true - stated, BINS[bins](stated, n_bins), n_bins)
    return expected_calibration_error(tiles.resampled(gaps), tiles.n)


def brier(tiles: TestedTiles, probabilities: str) -> Value:
    """Brier score; reference: stating the shares of the labels, whatever the tile."""
    scores = brier_scores(np.exp(tiles.log_probabilities(probabilities)), tiles.targets)
    shares = np.bincount(tiles.targets, minlength=tiles.logits.shape[1]) / len(tiles.targets)
    reference, most = base_rate_brier(shares), 2.0 if tiles.several else 1.0
    form = "sum over labels, 0 to 2" if tiles.several else "of the second of two labels, 0 to 1"
    estimate = tiles.estimate(tiles.resampled(scores) / tiles.n, most=most)
    return Value(estimate, Null(reference, reference), remark=form)


def temperature_fitted(tiles: TestedTiles) -> Value:
    """Geometric mean of the models' temperatures; models are few and share patients: no interval."""
    models = tiles.of.table.unique("model").sort("model")["temperature"].to_numpy()
    value = float(np.exp(np.log(models).mean()))
    remark = (
        f"of {len(models)} models, {number(models.min())} to {number(models.max())}, without an "
        "interval"
    )
    return Value(
        Estimate(value, None, None, tiles.of.n, tiles.of.n_patients), Null(1.0, 1.0), remark=remark
    )


def temperature_needed(tiles: TestedTiles) -> Value:
    """Temperature of the highest likelihood of the tested tiles; interval on a logarithmic scale."""
    losses = losses_at_temperatures(tiles.logits, tiles.targets)
    logs = np.log(best_temperature(tiles.resampled(losses)))
    ends = float(np.log(TEMPERATURES[0])), float(np.log(TEMPERATURES[-1]))
    found = tiles.estimate(logs, *ends)
    value, low, high = (
        None if end is None else float(np.exp(end))
        for end in (found.value, found.ci_low, found.ci_high)
    )
    exact = dataclasses.replace(
        found, value=value, ci_low=low, ci_high=high, draws=np.exp(logs[1:])
    )
    return Value(exact, Null(1.0, 1.0))


def degeneracy_share(tiles: TestedTiles) -> Value:
    """Share of tiles in the label that is predicted most; reference: the most frequent label's."""
    predicted = np.eye(tiles.logits.shape[1])[tiles.logits.argmax(axis=1)]
    shares = tiles.resampled(predicted).max(axis=1) / tiles.n
    reference = float(np.bincount(tiles.targets).max() / len(tiles.targets))
    return Value(tiles.estimate(shares), Null(reference, reference))


def tested_twice(of: PatientStatistics, p: ProbeCalibration) -> tuple[TestedTiles, TestedTiles]:
    """Tiles in domain and at a held-out center, of patients and labels that were tested in both ways.

    Raises
    ------
    Undefined
        If either has none.
    """
    home, away = (tested_tiles(of.where(pl.col("tested") == name), p).of.table for name in TESTED)
    keys = ["patient_id", "center", "target"]
    both = home.join(away, on=keys, how="semi"), away.join(home, on=keys, how="semi")
    first, second = (tested_tiles(dataclasses.replace(of, table=table), p) for table in both)
    return first, second


def auc_change(twice: tuple[TestedTiles, TestedTiles]) -> Value:
    """AUC at the held-out center minus in domain, over pairs of one center in both."""
    home, away = (_aucs(tiles, _models_and_centers(tiles)) for tiles in twice)
    return Value(twice[1].estimate(away - home, -1.0), Null(0.0, 0.0))


def _models_and_centers(tiles: TestedTiles) -> Ints:
    codes = tiles.of.table.select(pl.struct("model", "center").rank("dense")).to_series()
    return codes.to_numpy().astype(np.int64)


def ece_change(twice: tuple[TestedTiles, TestedTiles], probabilities: str) -> Value:
    """Calibration error at the held-out center minus in domain, bins of equal width."""
    home, away = (_errors(tiles, "fixed_width", probabilities) for tiles in twice)
    return Value(twice[1].estimate(away - home, -1.0), Null(0.0, 0.0))
