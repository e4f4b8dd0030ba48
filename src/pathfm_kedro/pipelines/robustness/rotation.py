r"""Rotation: whether a tile keeps its neighbours when it is rotated.

Every tile of the pool is embedded rotated by every angle and in three controls: rotated by the angle
and back (round trip: the blur of interpolation alone), shifted until as little of the tile is left as
in the rotated square (the loss of content alone), and rotated behind a disc, which holds the same
tissue at any angle. Neighbours are those of the whole pool, once as it is and once in the view
(:func:`~pathfm_kedro.statistics.mutual_knn.mknn`); the disc has its own reference, the disc that is
not rotated. A slide without room around its tiles shows their inner square in every view.

- ``mknn`` per view, angle, k and distance, beside chance; at 90°, where pixels only move and where it
  was published, also per label and per center;
- ``mknn_mean`` over angles (0° excluded), ``mknn_quarter_turns`` over the lossless multiples of 90°
  alone, and ``mknn_variance``, the population variance of the angles' means (null 0, since chance is
  the same at every angle);
- ``mknn_excess_drop``: mean over interpolated angles of mknn(control) − mknn(rotated), which is what
  the control does not explain (null 0);
- ``cosine_distance`` per view and angle, beside the distance to other patients' views.

Intervals resample patients, with the same draws for every angle; a patient counts with its tiles as
queries and as candidates (:func:`~pathfm_kedro.statistics.mutual_knn.candidate_effects`).

Pitfalls
--------
- The share kept depends on the size of the pool (published figures used 1,024 tiles): compare encoders
  within one audit only.
- All tiles are rotated together: an encoder that changes every tile in the same way, or whose
  dimensions only change places, keeps its neighbours; ``cosine_distance`` shows it. ``tile_corner`` is
  made so that this does not save it.
- Blindness to shape passes: ``stain_statistics`` knows no angle. Read others against it, also for what
  changed edges cost between quarter turns.
- A shift goes to one side and a rotation loses four corners: equal area is not equal tissue. White
  around a disc looks like the edge of tissue.
- The variance of shares between 0 and 1 is at most 0.25; the largest published figure is 0.005.

References
----------
Elphick et al. 2024, "Are the Latent Representations of Foundation Models for Pathology Invariant to
Rotation?", arXiv 2412.11938.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.slides.views import (
    disc_views,
    inscribed_size,
    rotated_views,
    round_trip_views,
    shifted_views,
    wide_side,
)
from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import (
    cosine_distance_chance,
    cosine_distances,
    nearest,
    without_spread,
)
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.perturbation import (
    TileGroups,
    excess_drop,
    kept_columns,
    kept_neighbours,
    require_neighbours,
)
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.views import View, ViewSet, embedded_views

Floats = NDArray[np.float64]

#: Rotations by multiples of this move pixels and lose nothing.
QUARTER_TURN = 90

ROTATED, ROUND_TRIP, SHIFTED, DISC = "rotated", "round_trip", "shifted", "disc"

#: One row per view, angle, distance, k, patient, label and center. The sums of neighbours are null
#: where a tile of the pool has no more than k candidates; no_spread: whether the tiles as they are
#: have (nearly) one vector.
ROTATION_SCHEMA: dict[str, pl.DataType] = {
    "view": pl.String(),
    "angle": pl.Int64(),
    "distance": pl.String(),
    "k": pl.Int64(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "n_tiles": pl.Int64(),
    "kept_sum": pl.Float64(),
    "candidate_sum": pl.Float64(),
    "chance_sum": pl.Float64(),
    "cosine_distance_sum": pl.Float64(),
    "cosine_distance_chance_sum": pl.Float64(),
    "fewest_candidates": pl.Int64(),
    "no_spread": pl.Boolean(),
}


def _divides_quarter_turn(step: int) -> int:
    if QUARTER_TURN % step:
        raise ValueError("give a step that divides 90, where rotation is lossless, such as 15")
    return step


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Rotation(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    angle_step
        Degrees between angles.
    k
        Neighbours that count.
    distances
        ``euclidean`` (as published), ``cosine``.

    Examples
    --------
    >>> p = Rotation(angle_step=45, k=(10,), distances=("cosine",))
    >>> p.angles["round_trip"], p.angles["disc"]
    ((45,), (0, 45, 90))
    """

    angle_step: Annotated[int, Field(ge=1), AfterValidator(_divides_quarter_turn)]
    k: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1),
        AfterValidator(lambda ks: tuple(sorted(set(ks)))),
    ]
    distances: Annotated[tuple[Literal["euclidean", "cosine"], ...], Field(min_length=1)]

    @property
    def angles(self) -> dict[str, tuple[int, ...]]:
        """Angles of each view, degrees; 0 first where a view is its own reference.

        A rotation by θ + 90 is a lossless quarter turn after one by θ, and the way back undoes both,
        so the round trip by θ + 90 gives the very pixels of that by θ: angles within the first
        quarter stand for all. So does the first eighth for the loss of content, which the rest
        mirrors.
        """
        interpolated = tuple(range(self.angle_step, QUARTER_TURN, self.angle_step))
        eighth = tuple(angle for angle in interpolated if 2 * angle <= QUARTER_TURN)
        halfway = tuple(angle for angle in eighth if 2 * angle == QUARTER_TURN)
        return {
            ROTATED: tuple(range(0, 360, self.angle_step)),
            ROUND_TRIP: interpolated,
            SHIFTED: eighth,
            DISC: (0, *halfway, QUARTER_TURN),
        }


def rotation_views(p: Rotation, size: int, side: tuple[int, int] | None = None) -> ViewSet:
    """Views of `size` px, in a field of that width and height."""
    pixels = {
        ROTATED: rotated_views,
        ROUND_TRIP: round_trip_views,
        SHIFTED: shifted_views,
        DISC: disc_views,
    }
    views = (
        View(
            view,
            pixels[view],
            {"size": size, "angles": angles},
            tuple({"angle": angle} for angle in angles),
        )
        for view, angles in p.angles.items()
        if angles
    )
    return ViewSet(tuple(views), side)


def view_of_rotation(tiles: pl.DataFrame, pixels: int, p: Rotation) -> ViewSet:
    """The views of one slide's tiles: of the tile's size where the slide has room around it."""
    if tiles["field"][0] == "inscribed":
        return rotation_views(p, inscribed_size(pixels))
    return rotation_views(p, pixels, (wide_side(pixels), wide_side(pixels)))


def rotation_statistics(views: Embeddings, pool: pl.DataFrame, p: Rotation) -> pl.DataFrame:
    """Reduce the views' vectors to sums per view, angle, distance, k, patient, label and center.

    Parameters
    ----------
    views
        Vectors of :func:`rotation_views`.
    pool
        The tiles; slides without a shard are left out.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`ROTATION_SCHEMA`.
    """
    found = embedded_views(views, pool, rotation_views(p, 1).settings, "rotation")
    if found.tiles.is_empty():
        return pl.DataFrame(schema=ROTATION_SCHEMA)
    groups = TileGroups.of(found.tiles, ["patient_id", "label", "center"])
    rotations = ((ROTATED, (ROTATED, ROUND_TRIP, SHIFTED)), (DISC, (DISC,)))
    return pl.concat(
        frame
        for distance in p.distances
        for reference, kinds in rotations
        for frame in _held_against(
            found.at(reference, angle=0),
            [
                (view, setting["angle"], vectors)
                for view in kinds
                for setting, vectors in found.of(view)
                if setting["angle"]
            ],
            groups,
            distance,
            p.k,
        )
    )


def _held_against(
    reference: NDArray[np.float32],
    views: Sequence[tuple[str, int, NDArray[np.float32]]],
    groups: TileGroups,
    distance: str,
    ks: Sequence[int],
) -> Iterator[pl.DataFrame]:
    """Sums of each view and k; neighbours of the whole pool, as it is and in the view."""
    patients, fewest = groups.patients, int(groups.candidates.min())
    # One neighbour beyond the largest k is needed: the one that moves up where a candidate is missing.
    supported = [k for k in ks if k < fewest]
    depth = max(supported, default=0) + 1
    neighbours = nearest(reference, patients, depth, distance)
    no_spread = without_spread(reference, distance)
    for view, angle, vectors in views:
        found = nearest(vectors, patients, depth, distance)
        shifts = {
            "cosine_distance_sum": cosine_distances(reference, vectors),
            "cosine_distance_chance_sum": cosine_distance_chance(reference, vectors, patients),
        }
        for k in ks:
            kept = kept_columns(neighbours, found, patients, k) if k in supported else {}
            sums = groups.sums(**shifts, **kept).with_columns(
                view=pl.lit(view),
                angle=pl.lit(angle),
                distance=pl.lit(distance),
                k=pl.lit(k),
                fewest_candidates=pl.lit(fewest),
                no_spread=pl.lit(no_spread),
            )
            yield to_schema(sums, ROTATION_SCHEMA)


def rotation_figures(statistics: pl.DataFrame, p: Rotation) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`rotation_statistics`.
    p
        The parameters.
    """
    of = PatientStatistics(statistics, p)
    angles = [(view, angle) for view, every in p.angles.items() for angle in every if angle]
    for k, distance in product(p.k, p.distances):
        measured = of.at(k=k, distance=distance)
        for view, angle in angles:
            yield measured.at(view=view, angle=angle).figure("mknn", kept_neighbours)
        quarter = measured.at(view=ROTATED, angle=QUARTER_TURN)
        for part in (*quarter.within("label"), *quarter.within("center")):
            yield part.figure("mknn", kept_neighbours)
        yield from _over_angles(measured, p)
    once = of.at(k=p.k[0], distance=p.distances[0]).with_setting()
    for view, angle in angles:
        yield once.at(view=view, angle=angle).figure("cosine_distance", cosine_distance)


def _over_angles(measured: PatientStatistics, p: Rotation) -> Iterator[Figure]:
    """Figures of all angles together, at one k and distance."""
    for view in (ROTATED, ROUND_TRIP, SHIFTED):
        if p.angles[view]:
            every = measured.at(view=view).mean_over("angle")
            yield every.figure("mknn_mean", kept_neighbours)
    rotated = measured.at(view=ROTATED).mean_over("angle")
    lossless = pl.col("angle") % QUARTER_TURN == 0
    yield rotated.where(lossless).figure("mknn_quarter_turns", kept_neighbours)
    yield rotated.where(~lossless).figure("mknn_between_quarter_turns", kept_between)
    yield replace(rotated, setting=measured.setting).figure("mknn_variance", variance_over_angles)
    interpolated = replace(rotated.where(~lossless), setting=measured.setting)
    for view in (ROUND_TRIP, SHIFTED):
        control = _of_equal_loss(measured.at(view=view), p)
        drop = partial(excess_over_control, control=control)
        yield interpolated.figure("mknn_excess_drop", drop, control=view)


def _of_equal_loss(control: PatientStatistics, p: Rotation) -> PatientStatistics:
    """The control of each interpolated angle: at θ within the quarter turn, or its mirror 90° − θ."""
    kept = p.angles[control.setting["view"]]
    within = [angle % QUARTER_TURN for angle in p.angles[ROTATED] if angle % QUARTER_TURN]
    angles = [angle if angle in kept else QUARTER_TURN - angle for angle in within]
    repeated = pl.DataFrame({"angle": angles}, schema={"angle": pl.Int64})
    return replace(control, table=repeated.join(control.table, on="angle"))


def kept_between(view: PatientStatistics) -> Value:
    """Mean of mknn over the angles that are no multiples of 90°.

    An encoder that averages its vectors over quarter turns keeps everything at 90° by construction:
    only angles between show whether it is invariant.

    Raises
    ------
    Undefined
        If every angle is a multiple of 90°, or neighbours are undefined.
    """
    _require_interpolated(view)
    return kept_neighbours(view)


def excess_over_control(view: PatientStatistics, control: PatientStatistics) -> Value:
    """Mean over interpolated angles of mknn(control) − mknn(rotated); null 0.

    Raises
    ------
    Undefined
        If no angle is interpolated, or neighbours are undefined.
    """
    _require_interpolated(view)
    return excess_drop(view, control)


def _require_interpolated(view: PatientStatistics) -> None:
    if cast(Rotation, view.parameters).angle_step == QUARTER_TURN:
        raise Undefined(
            "every angle is a multiple of 90°, which no interpolation blurs; set "
            "rotation.angle_step below 90"
        )


def variance_over_angles(view: PatientStatistics) -> Value:
    """Population variance over angles of mknn; null 0."""
    require_neighbours(view)
    kept, effects, tiles = (
        view.matrix(name, "angle", "n_tiles") for name in ("kept_sum", "candidate_sum", "n_tiles")
    )
    values = kept + effects - effects.sum(axis=0) / tiles.sum(axis=0) * tiles
    value = float(np.var(values.sum(axis=0) / tiles.sum(axis=0)))
    draws = np.var((view.weights @ values) / (view.weights @ tiles), axis=1)
    # Resampling adds its own spread to that of the angles, so the draws lie too high by the
    # difference of their mean to the figure; a variance is never negative.
    draws = np.maximum(draws - (draws.mean() - value), 0.0)
    estimate = Estimate(value, *percentile_interval(draws), view.n, view.n_patients, draws)
    return Value(estimate, Null(0.0, 0.0))


def cosine_distance(view: PatientStatistics) -> Value:
    """Mean cosine distance of a tile to its view; null: to the views of other patients."""
    view.require_interval()
    level = float(view.sums("cosine_distance_chance_sum").sum() / view.n)
    estimate = view.ratio(view.sums("cosine_distance_sum"), view.sums("n_tiles"))
    return Value(estimate, Null(level, level))
