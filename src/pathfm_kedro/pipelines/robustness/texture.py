r"""Texture: what an encoder makes of a tile whose patches have changed places.

A tile is cut on 2, 4 and 8 grids and its patches shuffled: colours and texture inside a patch stay,
the arrangement goes. Its control rotates every patch by 180° in place
(:func:`~pathfm_kedro.slides.perturbations.rotated_in_place`): the same seams, the arrangement kept.

- ``relative_shift`` and ``kept_neighbours`` of both views
  (:mod:`~pathfm_kedro.statistics.perturbation`);
- ``excess_shift``: relative shift of the shuffle minus that of the control; ``excess_drop``: kept
  neighbours of the control minus those of the shuffle. Zero is an encoder to which the arrangement
  of patches means nothing;
- ``label_accuracy``: balanced accuracy of a linear probe trained on clean tiles of other patients;
- ``label_survival = (accuracy − chance) / (clean accuracy − chance)`` of the shuffle: how much of
  what is read of the label survives without arrangement. 1 means that texture was all it read.

No threshold is set by default: an encoder of texture alone is not wrong, but its user should know.

Pitfalls
--------
- Few patients of each label in the pool: few folds, wide intervals.
- A grid of 2 leaves large structures whole; the finest grid has the most seams.
- ``excess_shift`` and ``label_survival`` ask for opposite things: judge one of them.
- The coverage of these intervals was not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.slides.perturbations import patch_sources, rotated_in_place, shuffled
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.cross_validation import (
    ProbeSettings,
    balanced_accuracy,
    probe_accuracy,
    probed,
    widened_interval,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.perturbation import (
    PERTURBATION_SUMS,
    ReferenceTiles,
    excess_drop,
    excess_shift,
    kept_neighbours,
    relative_shift,
)
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.views import View, ViewSet, embedded_views, unchanged

Floats = NDArray[np.float64]

#: Views: the tile as it is, its patches shuffled, and its patches rotated in place.
CLEAN, SHUFFLED, ROTATED = "clean", "shuffled", "rotated_in_place"

#: One row per view, grid (null: clean), patient and label: sums of the perturbation, and how many
#: tiles were probed and correctly classified; probe_problem says why none was.
TEXTURE_SCHEMA: dict[str, pl.DataType] = {
    "view": pl.String(),
    "grid": pl.Int64(),
    "patient_id": pl.String(),
    "label": pl.String(),
    **PERTURBATION_SUMS,
    "n_probed": pl.Int64(),
    "n_correct": pl.Int64(),
    "n_labels": pl.Int64(),
    "probe_problem": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Texture(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    grids
        Patches along a side; each divides ``tile.pixels``.
    k
        Neighbours that count.
    probe
        Of the label.
    """

    grids: Annotated[
        tuple[Annotated[int, Field(ge=2)], ...],
        Field(min_length=1),
        AfterValidator(lambda grids: tuple(sorted(set(grids)))),
    ]
    k: Annotated[int, Field(ge=1)]
    probe: ProbeSettings


def shuffled_patches(tile: Pixels, grid: int, experiment_seed: int, seed: int) -> Pixels:
    """The tile [1, s, s, 3] with its patches shuffled, the same way whenever it is asked."""
    return shuffled(tile, grid, patch_sources(grid, [experiment_seed, seed, grid]))[None]


def rotated_patches(tile: Pixels, grid: int) -> Pixels:
    """The tile [1, s, s, 3] with every patch rotated by 180° where it stands."""
    return rotated_in_place(tile, grid)[None]


def texture_views(p: Texture) -> ViewSet:
    """The clean tile, then the shuffles, then their controls."""
    shuffles = (
        View(
            SHUFFLED,
            shuffled_patches,
            {"grid": grid, "experiment_seed": p.seed},
            ({"grid": grid},),
            random=True,
        )
        for grid in p.grids
    )
    controls = (View(ROTATED, rotated_patches, {"grid": g}, ({"grid": g},)) for g in p.grids)
    return ViewSet((View(CLEAN, unchanged), *shuffles, *controls))


def view_of_texture(tiles: pl.DataFrame, pixels: int, p: Texture) -> ViewSet:
    """The views of one slide's tiles.

    Raises
    ------
    ValueError
        If a grid does not divide a tile.
    """
    odd = [grid for grid in p.grids if pixels % grid]
    if odd:
        raise ValueError(
            f"texture.grids {odd} do not divide tile.pixels = {pixels}: take grids that do"
        )
    return texture_views(p)


def texture_statistics(views: Embeddings, pool: pl.DataFrame, p: Texture) -> pl.DataFrame:
    """Reduce the views' vectors to sums per view, grid, patient and label.

    Parameters
    ----------
    views
        Vectors of :func:`texture_views`.
    pool
        The tiles; slides without a shard are left out.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`TEXTURE_SCHEMA`.
    """
    found = embedded_views(views, pool, texture_views(p).settings, "texture")
    if found.tiles.is_empty():
        return pl.DataFrame(schema=TEXTURE_SCHEMA)
    keys = ["patient_id", "label"]
    clean = ReferenceTiles.of(found.at(CLEAN), found.tiles, p.k, keys)
    vectors = found.vectors.astype(np.float64)
    labels, patients = found.tiles["label"], found.tiles["patient_id"]
    mend = "add patients, raise tile_pool.max_tiles or lower texture.probe.folds"
    probe = probed(vectors[:, 0], vectors, labels, patients, p.probe, p.seed, mend)
    frames = []
    for i, setting in enumerate(found.settings):
        counts = (
            found.tiles.select(*keys, n_probed=probe.rows, n_correct=probe.correct[:, i])
            .group_by(keys)
            .agg(pl.col("n_probed", "n_correct").sum())
        )
        sums = clean.statistics(found.vectors[:, i], view=setting["view"], grid=setting.get("grid"))
        frames.append(sums.join(counts, on=keys, how="left", nulls_equal=True))
    return (
        pl.concat(frames, how="vertical_relaxed")
        .with_columns(n_labels=pl.lit(len(probe.classes)), probe_problem=pl.lit(probe.problem))
        .select(pl.col(name).cast(kind) for name, kind in TEXTURE_SCHEMA.items())
    )


def texture_figures(statistics: pl.DataFrame, p: Texture) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`texture_statistics`.
    p
        The parameters.
    """
    of = PatientStatistics(statistics, p)
    clean = of.at(view=CLEAN)
    yield clean.figure("label_accuracy", label_accuracy)
    for grid in p.grids:
        moved, control = (of.at(view=view, grid=grid) for view in (SHUFFLED, ROTATED))
        for view in (moved, control):
            yield view.figure("relative_shift", relative_shift)
            yield view.figure("kept_neighbours", kept_neighbours, k=p.k)
        both = moved.with_setting(grid=grid)
        yield both.figure("excess_shift", partial(excess_shift, control=control))
        yield both.figure("excess_drop", partial(excess_drop, control=control), k=p.k)
        yield moved.figure("label_accuracy", label_accuracy)
        yield control.figure("label_accuracy", label_accuracy)
        yield both.figure("label_survival", partial(label_survival, clean=clean))


def label_accuracy(view: PatientStatistics) -> Value:
    """Balanced accuracy of the probe on one view."""
    correct, tested = _counts(view)
    chance = _chance(view)
    return Value(probe_accuracy(correct, tested, view.weights), Null(chance, chance))


def label_survival(view: PatientStatistics, clean: PatientStatistics) -> Value:
    """Accuracy above chance of a view, as a share of the clean tile's; null 0.

    Raises
    ------
    Undefined
        If the label is not read from clean tiles better than chance.
    """
    reference = label_accuracy(clean).estimate
    chance = _chance(clean)
    if reference.ci_low is None or reference.ci_low <= chance:
        raise Undefined(
            "the probe does not read the label from clean tiles better than chance, so nothing can "
            "be lost: raise tile_pool.max_tiles, or see whether the encoder knows the labels"
        )
    (before, before_draws), (after, after_draws) = _accuracy(clean), _accuracy(view)
    value = (after - chance) / (before - chance)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (after_draws - chance) / (before_draws - chance)
    interval, n = widened_interval(value, draws), _n_probed(view)
    estimate = Estimate(value, *interval, n, view.n_patients, draws)
    return Value(estimate, Null(0.0, 0.0))


def _accuracy(view: PatientStatistics) -> tuple[float, Floats]:
    """The probe's balanced accuracy, and the same in every bootstrap draw [draws]."""
    correct, tested = _counts(view)
    whole = float(balanced_accuracy(correct.sum(axis=0), tested.sum(axis=0)))
    return whole, balanced_accuracy(view.weights @ correct, view.weights @ tested)


def _counts(view: PatientStatistics) -> tuple[Floats, Floats]:
    """Correctly classified and probed tiles, [patients, labels] each."""
    if not view.table.is_empty() and view.table["probe_problem"][0]:
        raise Undefined(str(view.table["probe_problem"][0]))
    view.require_interval()
    return tuple(view.matrix(c, "label", "n_probed") for c in ("n_correct", "n_probed"))  # type: ignore[return-value]


def _n_probed(view: PatientStatistics) -> int:
    return int(view.table["n_probed"].sum())


def _chance(view: PatientStatistics) -> float:
    return 1 / int(view.table["n_labels"][0])
