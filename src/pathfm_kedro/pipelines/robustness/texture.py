r"""Texture: what an encoder makes of a tile whose patches have changed places.

A tile is cut on 2, 4 and 8 grids and its patches shuffled: colours and texture inside a patch stay,
the arrangement goes. Its control turns every patch in place
(:func:`~pathfm_kedro.slides.perturbations.turned_in_place`): the same seams, the arrangement kept.

- ``relative_shift`` and ``kept_neighbours`` of both views, as in the appearance experiment;
- ``excess_shift``: relative shift of the shuffle minus that of the control; ``excess_drop``: kept
  neighbours of the control minus those of the shuffle. Zero is an encoder to which the arrangement
  of patches means nothing;
- ``label_accuracy``: balanced accuracy of a linear probe trained on clean tiles of other patients;
- ``label_survival = (accuracy − chance) / (clean accuracy − chance)`` of the shuffle: how much of
  what is read of the label survives without arrangement. 1 means that texture was all it read.

No threshold is set by default: an encoder of texture alone is not wrong, but its user should know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.engine import ShardPlan
from pathfm_kedro.pipelines.robustness.appearance import (
    VIEW_SUMS,
    CleanPool,
    ViewFigures,
    view_stack,
)
from pathfm_kedro.pipelines.robustness.appearance_views import CLEAN, pool_tiles
from pathfm_kedro.pipelines.robustness.views import plan_views
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.perturbations import patch_sources, shuffled, turned_in_place
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.bootstrap import percentile_interval, ratio_estimate
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

EXPERIMENT = "texture"
SHUFFLED, TURNED = "shuffled", "turned_in_place"
DIRECTION: Direction = "above"

_REVISION = "1"
#: Tested patients also train the models that test others, which about doubles a score's variance
#: (see the linear probe of the inheritance pipeline).
_CROSS_VALIDATION_EFFECT = 2.0

#: One row per view, grid (0: clean), patient and label: sums of the appearance experiment, and how
#: many tiles were probed and named right; probe_problem says why none was.
TEXTURE_SCHEMA: dict[str, pl.DataType] = {
    "view": pl.String(),
    "grid": pl.Int64(),
    "patient_id": pl.String(),
    "label": pl.String(),
    **VIEW_SUMS,
    "n_probed": pl.Int64(),
    "n_right": pl.Int64(),
    "n_labels": pl.Int64(),
    "probe_problem": pl.String(),
}


@dataclass(frozen=True)
class TextureMaker:
    """Makes the clean tile and, for each grid, the shuffle and its control.

    Attributes
    ----------
    grids
        Patches along a side.
    seed
        Of the experiment.
    """

    grids: tuple[int, ...]
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """One name per view: clean, then the shuffles, then the controls."""
        return (CLEAN, *(f"{view} {grid}" for view, grid in self.pairs))

    @property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """View and grid after the clean tile."""
        return tuple((view, grid) for view in (SHUFFLED, TURNED) for grid in self.grids)

    def describe(self) -> Mapping[str, Any]:
        """Everything that decides the views' pixels."""
        return {"revision": _REVISION, "grids": list(self.grids), "seed": self.seed}

    def make(self, field: Pixels, seed: int) -> Pixels:
        """Views uint8 [views, s, s, 3] of a tile [s, s, 3]."""
        moved = [
            shuffled(field, grid, patch_sources(grid, [self.seed, seed, grid]))
            for grid in self.grids
        ]
        return np.stack([field, *moved, *(turned_in_place(field, grid) for grid in self.grids)])


def texture_maker(parameters: Mapping[str, Any]) -> TextureMaker:
    """Read and check the parameters.

    Raises
    ------
    ValueError
        If a grid has fewer than 2 patches along a side.
    """
    grids = tuple(sorted({int(grid) for grid in parameters["grids"]}))
    if not grids or grids[0] < 2:
        raise ValueError(f"texture.grids is {list(grids)}: give numbers of 2 or more, such as 4")
    return TextureMaker(grids, int(parameters["seed"]))


def plan_texture_views(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide of the pool.

    Parameters
    ----------
    slides, tiles
        The tables.
    pool
        From :func:`~pathfm_kedro.pipelines.robustness.tile_pool.choose_pool`.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders``.
    runtime
        Its recorded runtime.
    tile_parameters
        ``pixels``: side of a tile.
    parameters
        ``texture``: grids, seed.
    engine
        Where jobs run.
    name
        The encoder's name.

    Raises
    ------
    ValueError
        If a grid does not divide a tile.
    """
    maker, pixels = texture_maker(parameters), int(tile_parameters["pixels"])
    odd = [grid for grid in maker.grids if pixels % grid]
    if odd:
        raise ValueError(
            f"texture.grids {odd} do not divide tile.pixels = {pixels}: take grids that do"
        )
    return plan_views(
        slides,
        pool_tiles(tiles, pool),
        files,
        maker,
        EncoderSpec.from_parameters(name, encoder).with_runtime(runtime),
        pixels,
        engine,
        f"shuffling with {name}",
    )


def texture_sums(
    views: Embeddings, pool: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Reduce the views' vectors to sums per view, grid, patient and label.

    Parameters
    ----------
    views
        What :func:`plan_texture_views` left.
    pool
        The tiles; slides without a shard are left out.
    parameters
        ``texture``: grids, k, folds, C, max_iter, seed.

    Returns
    -------
    DataFrame
        Columns :data:`TEXTURE_SCHEMA`.
    """
    maker = texture_maker(parameters)
    present, stack = view_stack(views, pool, maker.names, EXPERIMENT)
    if present.is_empty():
        return pl.DataFrame(schema=TEXTURE_SCHEMA)
    keys = ["patient_id", "label"]
    clean = CleanPool.of(stack[:, 0], present, int(parameters["k"]), keys)
    probe = _probed(stack, present, parameters)
    frames = [
        clean.sums(stack[:, i])
        .join(probe.counts(present, i), on=keys, how="left", nulls_equal=True)
        .with_columns(view=pl.lit(view), grid=pl.lit(grid))
        for i, (view, grid) in enumerate([(CLEAN, 0), *maker.pairs])
    ]
    return (
        pl.concat(frames)
        .with_columns(n_labels=pl.lit(probe.n_labels), probe_problem=pl.lit(probe.problem))
        .select(pl.col(name).cast(kind) for name, kind in TEXTURE_SCHEMA.items())
    )


@dataclass(frozen=True)
class _Probe:
    """Which tiles were probed [n], which were named right [n, views], or why none was."""

    probed: NDArray[np.bool_]
    right: NDArray[np.bool_]
    n_labels: int
    problem: str

    def counts(self, present: pl.DataFrame, view: int) -> pl.DataFrame:
        return (
            present.select("patient_id", "label")
            .with_columns(
                pl.Series("n_probed", self.probed), pl.Series("n_right", self.right[:, view])
            )
            .group_by("patient_id", "label")
            .agg(pl.col("n_probed", "n_right").sum())
        )


def _probed(
    stack: NDArray[np.float32], present: pl.DataFrame, parameters: Mapping[str, Any]
) -> _Probe:
    """Name the label of each view by a model of clean tiles that saw no tile of its patient."""
    folds = int(parameters["folds"])
    patients_of = present.group_by("label").agg(pl.col("patient_id").n_unique().alias("patients"))
    enough = (
        patients_of.filter(pl.col("label").is_not_null(), pl.col("patients") >= folds)["label"]
        .sort()
        .to_list()
    )
    nothing = np.zeros(stack.shape[:2], np.bool_)
    if len(enough) < 2:
        problem = (
            f"{len(enough)} label(s) of the pool have {folds} patients, two are needed to train and "
            "test a probe; add patients, raise tile_pool.max_tiles or lower texture.folds"
        )
        return _Probe(nothing[:, 0], nothing, len(enough), problem)
    probed = present["label"].is_in(enough).fill_null(False).to_numpy()
    labels = np.unique(present["label"].to_numpy()[probed], return_inverse=True)[1]
    patients = present["patient_id"].to_numpy()[probed]
    right = nothing.copy()
    named = _named_right(stack[probed], labels, patients, parameters)
    if named is None:
        problem = (
            "all tiles of all labels but one fall into one fold, so that a probe would learn one label "
            "alone; add patients, raise tile_pool.max_tiles or change texture.folds or texture.seed"
        )
        return _Probe(nothing[:, 0], nothing, len(enough), problem)
    right[probed] = named
    return _Probe(probed, right, len(enough), "")


def _named_right(
    stack: NDArray[np.float32],
    labels: NDArray[np.int64],
    patients: NDArray[Any],
    parameters: Mapping[str, Any],
) -> NDArray[np.bool_] | None:
    """[n, views] whether the label was named right; models are trained on view 0.

    None where a fold leaves one label to train on.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    views = stack.astype(np.float64)
    splitter = StratifiedGroupKFold(
        int(parameters["folds"]), shuffle=True, random_state=int(parameters["seed"])
    )
    right = np.zeros(stack.shape[:2], np.bool_)
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for train, test in splitter.split(views[:, 0], labels, patients):
            if len(np.unique(labels[train])) < 2:
                return None
            model = make_pipeline(
                StandardScaler(),
                LogisticRegression(
                    C=parameters["C"], max_iter=parameters["max_iter"], class_weight="balanced"
                ),
            ).fit(views[train, 0], labels[train])
            named = model.predict(views[test].reshape(-1, stack.shape[2]))
            right[test] = named.reshape(len(test), -1) == labels[test, None]
    return right


def texture_measurements(
    sums: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn the sums into the texture rows of the measurements table.

    Parameters
    ----------
    sums
        From :func:`texture_sums`.
    parameters
        ``texture``: grids, k, thresholds (excess_shift, label_survival: null for none, read on the
        finest grid), draws, seed.
    encoder
        Name for the table.

    Returns
    -------
    DataFrame
        Measurements table, experiment ``texture``.
    """
    rows = _Rows(sums, parameters, encoder)
    grids = texture_maker(parameters).grids
    return measurement_table(
        [
            rows.accuracy(CLEAN, 0),
            *(row for grid in grids for row in rows.of_grid(grid, signature=grid == grids[-1])),
        ]
    )


@dataclass(frozen=True)
class _Rows:
    """Rows of the measurements table for one encoder."""

    sums: pl.DataFrame
    parameters: Mapping[str, Any]
    encoder: str

    def _figures(self, view: str, grid: int) -> ViewFigures:
        told = self.parameters
        part = self.sums.filter(view=view, grid=grid)
        return ViewFigures.of(part, int(told["k"]), told["draws"], told["seed"])

    def of_grid(self, grid: int, signature: bool) -> Iterable[dict[str, Any]]:
        """All rows of one grid."""
        moved, control = self._figures(SHUFFLED, grid), self._figures(TURNED, grid)
        empty = (
            "no tile was shuffled: no usable slide of the pool has embedded views"
            if self.sums.is_empty()
            else None
        )
        k = {"k": int(self.parameters["k"])}
        for view, figures in ((SHUFFLED, moved), (TURNED, control)):
            setting = {"view": view, "grid": grid}
            problem = empty or figures.no_shift()
            shift = None if problem else (figures.relative_shift(), Null(1.0, 1.0))
            yield self._row("relative_shift", setting, figures, problem, shift)
            problem = empty or figures.no_neighbours()
            kept = None if problem else (figures.kept_neighbours(), figures.chance())
            yield self._row("kept_neighbours", setting | k, figures, problem, kept)
        problem = empty or moved.no_shift()
        shift = None if problem else (_excess_shift(moved, control), Null(0.0, 0.0))
        held = self._held("excess_shift") if signature else {}
        yield self._row("excess_shift", {"grid": grid}, moved, problem, shift, held)
        problem = empty or moved.no_neighbours()
        drop = None if problem else (_excess_drop(moved, control), Null(0.0, 0.0))
        yield self._row("excess_drop", {"grid": grid} | k, moved, problem, drop)
        yield self.accuracy(SHUFFLED, grid)
        yield self.accuracy(TURNED, grid)
        yield self.survival(grid, signature)

    def accuracy(self, view: str, grid: int) -> dict[str, Any]:
        """Balanced accuracy of the probe on one view."""
        setting = {"view": view} | ({"grid": grid} if grid else {})
        figures = self._figures(view, grid)
        problem = self._no_probe(figures)
        if problem:
            return self._row("label_accuracy", setting, figures, problem, None)
        right, probed = self._label_counts(view, grid)
        value, draws = _balanced(right, probed, figures.weights)
        low, high = _widened(value, draws)
        estimate = Estimate(
            value,
            None if low is None else max(low, 0.0),
            None if high is None else min(high, 1.0),
            int(probed.sum()),
            figures.n_patients,
        )
        return self._row("label_accuracy", setting, figures, None, (estimate, self._chance()))

    def survival(self, grid: int, signature: bool) -> dict[str, Any]:
        """Accuracy above chance of the shuffle, as a share of the clean tile's."""
        figures, setting = self._figures(SHUFFLED, grid), {"grid": grid}
        held = self._held("label_survival") if signature else {}
        problem = self._no_probe(figures) or self._nothing_to_survive()
        if problem:
            return self._row("label_survival", setting, figures, problem, None, held)
        chance = float(self._chance().low or 0.0)
        clean, clean_draws = _balanced(*self._label_counts(CLEAN, 0), figures.weights)
        moved, moved_draws = _balanced(*self._label_counts(SHUFFLED, grid), figures.weights)
        value = (moved - chance) / (clean - chance)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = (moved_draws - chance) / (clean_draws - chance)
        probed = self._label_counts(SHUFFLED, grid)[1]
        estimate = Estimate(value, *_widened(value, draws), int(probed.sum()), figures.n_patients)
        return self._row("label_survival", setting, figures, None, (estimate, Null(0.0, 0.0)), held)

    def _label_counts(self, view: str, grid: int) -> tuple[Floats, Floats]:
        """[patients, labels] tiles named right and probed."""
        part = self.sums.filter(view=view, grid=grid)
        patients = part["patient_id"].unique().sort().to_list()
        labels = part.filter(pl.col("n_probed") > 0)["label"].unique().sort().to_list()
        shape = (len(patients), len(labels))
        right, probed = np.zeros(shape), np.zeros(shape)
        counted = part.filter(pl.col("n_probed") > 0)
        rows = counted["patient_id"].replace_strict(patients, range(shape[0])).to_numpy()
        columns = counted["label"].replace_strict(labels, range(shape[1])).to_numpy()
        right[rows, columns] = counted["n_right"].to_numpy()
        probed[rows, columns] = counted["n_probed"].to_numpy()
        return right, probed

    def _chance(self) -> Null:
        level = 1 / int(self.sums["n_labels"][0])
        return Null(level, level)

    def _no_probe(self, figures: ViewFigures) -> str | None:
        if self.sums.is_empty():
            return "no tile was shuffled: no usable slide of the pool has embedded views"
        return str(self.sums["probe_problem"][0]) or figures.no_figures()

    def _nothing_to_survive(self) -> str | None:
        clean = self.accuracy(CLEAN, 0)
        chance = float(self._chance().low or 0.0)
        if clean["ci_low"] is not None and clean["ci_low"] > chance:
            return None
        return (
            "the probe does not read the label from clean tiles better than chance, so nothing can "
            "be lost: raise tile_pool.max_tiles, or see whether the encoder knows the labels"
        )

    def _held(self, metric: str) -> dict[str, Any]:
        threshold = self.parameters["thresholds"][metric]
        return {} if threshold is None else {"threshold": threshold, "direction": DIRECTION}

    def _row(
        self,
        metric: str,
        setting: Mapping[str, Any],
        figures: ViewFigures,
        problem: str | None,
        figure: tuple[Estimate, Null] | None,
        held: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        common: dict[str, Any] = {
            "experiment": EXPERIMENT,
            "encoder": self.encoder,
            "setting": setting,
            **(held or {}),
        }
        if problem or figure is None:
            return not_applicable(
                **common,
                metrics=[metric],
                reason=problem or "",
                n=figures.n,
                n_patients=figures.n_patients,
            )[0]
        return measurement(**common, metric=metric, estimate=figure[0], null=figure[1])


def _excess_shift(moved: ViewFigures, control: ViewFigures) -> Estimate:
    """Relative shift of the shuffle minus that of the control, over the same patients."""
    difference = moved.column("shift_sum") - control.column("shift_sum")
    return ratio_estimate(difference, moved.column("between_sum"), moved.weights, n=moved.n)


def _excess_drop(moved: ViewFigures, control: ViewFigures) -> Estimate:
    """Kept neighbours of the control minus those of the shuffle, over the same patients."""
    difference = control.kept_values() - moved.kept_values()
    return ratio_estimate(difference, moved.tiles(), moved.weights, n=moved.n)


def _balanced(right: Floats, probed: Floats, weights: Floats) -> tuple[float, Floats]:
    """Mean over labels of the share named right, and the same in every draw [draws]."""
    value = float((right.sum(axis=0) / probed.sum(axis=0)).mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = (weights @ right) / (weights @ probed)
    drawn = np.isfinite(shares)
    kept = np.maximum(drawn.sum(axis=1), 1)
    return value, np.where(drawn, shares, 0.0).sum(axis=1) / kept


def _widened(value: float, draws: Floats) -> tuple[float | None, float | None]:
    """Percentile interval about the value, for the dependence that cross-validation adds."""
    finite = draws[np.isfinite(draws)]
    spread = np.sqrt(_CROSS_VALIDATION_EFFECT) * (draws - (finite.mean() if len(finite) else 0.0))
    return percentile_interval(value + spread)
