"""Rotation: whether a tile keeps its neighbours when it is turned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.mutual_knn import (
    METRICS,
    NO_SPREAD,
    candidate_counts,
    candidate_effects,
    cosine_distance_chance,
    cosine_distances,
    nearest,
    shared,
    too_few_candidates,
    without_spread,
)
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    patient_codes,
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The angle at which the published robustness signature is read; lossless in pixels.
SIGNATURE_ANGLE = 90

#: Views: turned; turned there and back (blur alone); shifted until as little of the tile is left as in
#: the turned square (content alone); turned behind a disc, which holds the same tissue at any angle.
ROTATED, ROTATED_BACK, SHIFTED, DISC = "rotated", "rotated_back", "shifted", "disc"

OVERLAP_SCHEMA: dict[str, pl.DataType] = {
    "view": pl.String(),
    "angle": pl.Int64(),
    "k": pl.Int64(),
    "metric": pl.String(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "overlap_sum": pl.Float64(),
    "candidate_sum": pl.Float64(),
    "chance_sum": pl.Float64(),
    "cosine_distance_sum": pl.Float64(),
    "cosine_distance_chance_sum": pl.Float64(),
    "n_tiles": pl.Int64(),
    "fewest_candidates": pl.Int64(),
    "no_spread": pl.Boolean(),
}

#: Sums where a tile has fewer candidates than neighbours asked for.
_NO_OVERLAP = {
    name: pl.lit(None, pl.Float64) for name in ("overlap_sum", "candidate_sum", "chance_sum")
}


@dataclass(frozen=True)
class RotationParameters:
    """What the experiment is told; see ``parameters_robustness.yml`` for the reasons.

    Examples
    --------
    >>> told = {"angle_step": 45, "k": [5, 10], "metrics": ["cosine"], "signature_k": 10,
    ...         "signature_metric": "cosine", "thresholds": {"mknn": 0.8, "mknn_variance": 0.1},
    ...         "draws": 200, "seed": 0}
    >>> RotationParameters.parse(told).rotated_back_angles
    (45,)
    """

    angle_step: int
    k: tuple[int, ...]
    metrics: tuple[str, ...]
    signature_k: int
    signature_metric: str
    mknn_threshold: float | None
    variance_threshold: float | None
    draws: int
    seed: int

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> RotationParameters:
        """Read and check the parameters.

        Raises
        ------
        ValueError
            If 90 is not a multiple of the step, a metric is unknown, or the signature's k or metric
            is not among those measured.
        """
        told = cls(
            angle_step=parameters["angle_step"],
            k=tuple(sorted(set(parameters["k"]))),
            metrics=tuple(parameters["metrics"]),
            signature_k=parameters["signature_k"],
            signature_metric=parameters["signature_metric"],
            mknn_threshold=parameters["thresholds"]["mknn"],
            variance_threshold=parameters["thresholds"]["mknn_variance"],
            draws=parameters["draws"],
            seed=parameters["seed"],
        )
        if told.angle_step < 1 or SIGNATURE_ANGLE % told.angle_step:
            raise ValueError(
                f"rotation.angle_step is {told.angle_step}°: give a step that divides 90, where "
                "the signature is read, such as 15"
            )
        unknown = sorted(set(told.metrics) - set(METRICS))
        if unknown:
            raise ValueError(f"rotation.metrics: {unknown} unknown; choose from {list(METRICS)}")
        if told.signature_k not in told.k or told.signature_metric not in told.metrics:
            raise ValueError(
                f"rotation: the signature is read at k = {told.signature_k}, "
                f"{told.signature_metric}; add these to rotation.k and rotation.metrics"
            )
        return told

    @property
    def rotated_angles(self) -> tuple[int, ...]:
        """Angles of the stored rotated views, degrees: 0 first, then every step below 360."""
        return tuple(range(0, 360, self.angle_step))

    @property
    def rotated_back_angles(self) -> tuple[int, ...]:
        """Angles of the stored control views: those that interpolate, within the first quarter.

        A turn by θ + 90 is a lossless quarter turn after a turn by θ, and going back undoes both,
        so there-and-back by θ + 90 gives the very pixels of there-and-back by θ.
        """
        return tuple(angle for angle in self.rotated_angles if 0 < angle < SIGNATURE_ANGLE)

    @property
    def shifted_angles(self) -> tuple[int, ...]:
        """Angles whose loss of content the stored shifts have: the first eighth; the rest mirror it."""
        return tuple(angle for angle in self.rotated_back_angles if 2 * angle <= SIGNATURE_ANGLE)

    @property
    def disc_angles(self) -> tuple[int, ...]:
        """Angles of the stored views behind a disc: 0 first, then halfway and the quarter turn."""
        halfway = [angle for angle in self.shifted_angles if 2 * angle == SIGNATURE_ANGLE]
        return (0, *halfway, SIGNATURE_ANGLE)

    def is_signature(self, k: int, metric: str) -> bool:
        """Whether the failure signatures are read at this k and metric."""
        return (k, metric) == (self.signature_k, self.signature_metric)


def rotation_overlaps(
    views: Embeddings, pool: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Reduce the views' embeddings to sums per patient, label and center.

    Parameters
    ----------
    views
        Embeddings of the pool's views: ``stack(slide_ids, "rotated")`` is [n, A, d] at the angles
        ``RotationParameters.rotated_angles`` (0 first), ``"rotated_back"`` [n, B, d] at
        ``rotated_back_angles`` (those that interpolate, in the first quarter), ``"shifted"``
        [n, C, d] at ``shifted_angles`` and ``"disc"`` [n, D, d] at ``disc_angles`` (0 first; its
        own reference).
    pool
        Table of :func:`choose_pool`, rows in the order of the stacked views. Slides without a shard
        are left out.
    parameters
        The experiment's parameters.

    Returns
    -------
    DataFrame
        Columns ``OVERLAP_SCHEMA``: one row per view, angle, k, metric, patient, label, center.
        ``overlap_sum`` adds up the group's tiles as queries, ``candidate_sum`` their effects as
        candidates (:func:`candidate_effects`); these and ``chance_sum`` are null where any tile
        of the pool has fewer than k candidates. ``no_spread`` says whether the tiles as they are
        have (nearly) one vector.

    Raises
    ------
    ValueError
        If a stack does not hold the expected tiles and angles, or holds NaN or infinity.
    """
    told = RotationParameters.parse(parameters)
    pool = pool.filter(pl.col("slide_id").is_in(list(views.slide_ids)))
    if pool.is_empty():
        return pl.DataFrame(schema=OVERLAP_SCHEMA)
    rotated = _stacked(views, pool, ROTATED, told.rotated_angles)
    reference = rotated[:, 0]
    series = [_Series(ROTATED, told.rotated_angles[1:], rotated[:, 1:])]
    for view, angles in (
        (ROTATED_BACK, told.rotated_back_angles),
        (SHIFTED, told.shifted_angles),
    ):
        if angles:
            series.append(_Series(view, angles, _stacked(views, pool, view, angles)))
    disc = _stacked(views, pool, DISC, told.disc_angles)
    groups = _Groups.of(pool)
    frames = [
        frame
        for metric in told.metrics
        for first, compared in (
            (reference, series),
            (disc[:, 0], [_Series(DISC, told.disc_angles[1:], disc[:, 1:])]),
        )
        for frame in _overlaps_of_metric(first, compared, groups, told.k, metric)
    ]
    return pl.concat(frames).cast(pl.Schema(OVERLAP_SCHEMA))


def _stacked(
    views: Embeddings, pool: pl.DataFrame, name: str, angles: Sequence[int]
) -> NDArray[np.float32]:
    slide_ids = pool["slide_id"].unique(maintain_order=True).to_list()
    stack = views.stack(slide_ids, name)
    if stack.ndim != 3 or stack.shape[:2] != (pool.height, len(angles)):
        raise ValueError(
            f"views {name!r} have shape {list(stack.shape)}, expected "
            f"[{pool.height} tiles, {len(angles)} angles, d] at {list(angles)}; embed the views "
            "again with these parameters"
        )
    finite = np.isfinite(stack).all(axis=(1, 2))
    if not finite.all():
        broken = pool.filter(pl.Series(~finite))["tile_id"].head(3).to_list()
        raise ValueError(
            f"views {name!r} of {int((~finite).sum())} tiles hold NaN or infinity, such as "
            f"{broken}; check the encoder's precision and embed them again"
        )
    return stack


@dataclass(frozen=True)
class _Series:
    """Views of one kind, [n, angles, d]."""

    view: str
    angles: Sequence[int]
    stack: NDArray[np.float32]


@dataclass(frozen=True)
class _Groups:
    """Tiles grouped by patient, label and center."""

    keys: pl.DataFrame
    codes: Ints
    patients: Ints

    @classmethod
    def of(cls, pool: pl.DataFrame) -> _Groups:
        names = ["patient_id", "label", "center"]
        keys = pool.select(names).unique().sort(names).with_row_index("_group")
        codes = pool.join(keys, on=names, how="left", maintain_order="left", nulls_equal=True)
        return cls(
            keys=keys.drop("_group"),
            codes=codes["_group"].cast(pl.Int64).to_numpy(),
            patients=patient_codes(pool["patient_id"].to_numpy())[0],
        )

    @property
    def fewest_candidates(self) -> int:
        return int(candidate_counts(self.patients).min())

    def sums(self, values: Floats) -> Floats:
        return sum_by_patient(values, self.codes, self.keys.height)


def _overlaps_of_metric(
    reference: NDArray[np.float32],
    series: Sequence[_Series],
    groups: _Groups,
    ks: Sequence[int],
    metric: str,
) -> Iterable[pl.DataFrame]:
    """Frames of sums for one metric, one per view, angle and k."""
    # One neighbour beyond the largest k is needed: the one that moves up where a candidate is missing.
    supported = [k for k in ks if k < groups.fewest_candidates]
    depth = max(supported, default=0) + 1
    home = nearest(reference, groups.patients, depth, metric)
    no_spread = pl.lit(without_spread(reference, metric))
    for compared in series:
        for index, angle in enumerate(compared.angles):
            vectors = compared.stack[:, index]
            away = nearest(vectors, groups.patients, depth, metric)
            keys = _keys_with_cosine(reference, vectors, groups).with_columns(
                view=pl.lit(compared.view),
                angle=pl.lit(angle),
                metric=pl.lit(metric),
                no_spread=no_spread,
            )
            for k in ks:
                sums = _overlap_sums(home, away, groups, k) if k in supported else _NO_OVERLAP
                yield keys.with_columns(k=pl.lit(k), **sums).select(OVERLAP_SCHEMA.keys())


def _keys_with_cosine(
    reference: NDArray[np.float32], view: NDArray[np.float32], groups: _Groups
) -> pl.DataFrame:
    distance = cosine_distances(reference, view)
    chance = cosine_distance_chance(reference, view, groups.patients)
    return groups.keys.with_columns(
        cosine_distance_sum=pl.Series(groups.sums(distance)),
        cosine_distance_chance_sum=pl.Series(groups.sums(chance)),
        n_tiles=pl.Series(groups.sums(np.ones(len(view)))).cast(pl.Int64),
        fewest_candidates=pl.lit(groups.fewest_candidates),
    )


def _overlap_sums(
    home: NDArray[np.intp], away: NDArray[np.intp], groups: _Groups, k: int
) -> dict[str, pl.Series]:
    chance = k / candidate_counts(groups.patients)
    return {
        "overlap_sum": pl.Series(groups.sums(shared(home[:, :k], away[:, :k]))),
        "candidate_sum": pl.Series(groups.sums(candidate_effects(home, away, k))),
        "chance_sum": pl.Series(groups.sums(chance)),
    }


def rotation_measurements(
    overlaps: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn sums per patient into the rotation rows of the measurements table.

    - ``mknn`` per view, angle, k, metric, beside chance; at 90° also per label and per center;
    - ``mknn_mean`` over angles (0° excluded), ``mknn_quarter_turns`` over the lossless multiples of
      90° alone, and ``mknn_variance`` (population variance of the angles' means; null 0, since
      chance is the same at every angle);
    - ``mknn_excess_drop``: mean over interpolated angles of mknn(control) − mknn(turned): what the
      blur of interpolation (there and back) and the loss of content (shift) do not explain (null 0);
    - ``cosine_distance`` per view and angle, beside the distance to other patients' views.

    All intervals resample patients, with the same draws for every angle; a patient counts with its
    tiles as queries and, for mknn, as candidates (:func:`candidate_effects`). Signatures: mknn at
    90° and mknn_variance, at ``signature_k`` and ``signature_metric``.

    Parameters
    ----------
    overlaps
        Table of :func:`rotation_overlaps`.
    parameters
        The experiment's parameters.
    encoder
        Name of the encoder.

    Returns
    -------
    DataFrame
        Measurements table, experiment ``rotation``.
    """
    told = RotationParameters.parse(parameters)
    row = _Rows(told, encoder)
    rows = [
        entry
        for k, metric in product(told.k, told.metrics)
        for entry in row.of_neighbours(
            overlaps.filter(pl.col("k") == k, pl.col("metric") == metric), k, metric
        )
    ]
    once = overlaps.filter(pl.col("k") == told.k[0], pl.col("metric") == told.metrics[0])
    return measurement_table([*rows, *row.of_cosine(once)])


@dataclass(frozen=True)
class _Curve:
    """Contributions of patients over the angles of one view.

    ``values`` [A, P] add up to the figure's sum over tiles, ``chance`` [A, P] to its null's;
    ``tiles`` [P].
    """

    angles: tuple[int, ...]
    values: Floats
    chance: Floats
    tiles: Floats

    @classmethod
    def of_overlap(cls, overlaps: pl.DataFrame, view: str) -> _Curve:
        """Curve of mknn: a patient's tiles as queries, and as candidates against the average."""
        table = _per_patient(overlaps, view)
        tiles = table.matrix("n_tiles")
        effects = table.matrix("candidate_sum")
        average = effects.sum(axis=1, keepdims=True) / np.maximum(
            tiles.sum(axis=1, keepdims=True), 1
        )
        return cls(
            angles=table.angles,
            values=table.matrix("overlap_sum") + effects - average * tiles,
            chance=table.matrix("chance_sum"),
            tiles=tiles[0] if len(tiles) else np.zeros(0),
        )

    @classmethod
    def of_cosine(cls, overlaps: pl.DataFrame, view: str) -> _Curve:
        """Curve of the cosine distance."""
        table = _per_patient(overlaps, view)
        tiles = table.matrix("n_tiles")
        return cls(
            angles=table.angles,
            values=table.matrix("cosine_distance_sum"),
            chance=table.matrix("cosine_distance_chance_sum"),
            tiles=tiles[0] if len(tiles) else np.zeros(0),
        )

    def part(self, indices: Sequence[int]) -> _Curve:
        """The curve at some of its angles."""
        angles = tuple(self.angles[i] for i in indices)
        return _Curve(angles, self.values[list(indices)], self.chance[list(indices)], self.tiles)

    @property
    def n(self) -> int:
        return int(self.tiles.sum())

    @property
    def n_patients(self) -> int:
        return len(self.tiles)

    def at(self, index: int, weights: Floats) -> Estimate:
        return ratio_estimate(self.values[index], self.tiles, weights)

    def null_at(self, index: int) -> Null:
        level = float(self.chance[index].sum() / self.tiles.sum())
        return Null(level, level)

    def mean(self, weights: Floats) -> Estimate:
        tiles = self.tiles * len(self.angles)
        return ratio_estimate(self.values.sum(axis=0), tiles, weights, n=self.n)

    def variance(self, weights: Floats) -> Estimate:
        value = float(np.var(self.values.sum(axis=1) / self.tiles.sum()))
        draws = np.var((weights @ self.values.T) / (weights @ self.tiles)[:, None], axis=1)
        # Resampling adds its own spread to that of the angles, so the draws lie too high by the
        # difference of their mean to the figure; a variance is never negative.
        draws = np.maximum(draws - (draws.mean() - value), 0.0)
        return Estimate(value, *percentile_interval(draws), self.n, self.n_patients)


@dataclass(frozen=True)
class _PatientSums:
    """Sums sorted by angle and patient; every patient has a row at every angle."""

    rows: pl.DataFrame
    angles: tuple[int, ...]

    def matrix(self, column: str) -> Floats:
        """Column as [angles, patients]."""
        values = self.rows[column].cast(pl.Float64).to_numpy()
        return values.reshape((len(self.angles), -1) if self.angles else (0, 0))


def _per_patient(overlaps: pl.DataFrame, view: str) -> _PatientSums:
    rows = (
        overlaps.filter(pl.col("view") == view)
        .group_by("angle", "patient_id")
        .agg(cs.ends_with("_sum").sum(), pl.col("n_tiles").sum())
        .sort("angle", "patient_id")
    )
    return _PatientSums(rows, tuple(rows["angle"].unique().sort().to_list()))


@dataclass(frozen=True)
class _Rows:
    """Rows of the measurements table for one encoder."""

    told: RotationParameters
    encoder: str

    def weights(self, curve: _Curve) -> Floats:
        return bootstrap_weights(curve.n_patients, self.told.draws, self.told.seed)

    def of_neighbours(
        self, overlaps: pl.DataFrame, k: int, metric: str
    ) -> Iterable[dict[str, Any]]:
        """All rows at one k and metric."""
        problem = _unsupported(overlaps, k)
        if problem:
            return self.undefined(overlaps, k, metric, problem)
        rotated = _Curve.of_overlap(overlaps, ROTATED)
        controls = {view: _Curve.of_overlap(overlaps, view) for view in (ROTATED_BACK, SHIFTED)}
        disc = _Curve.of_overlap(overlaps, DISC)
        return [
            *self.per_angle(rotated, ROTATED, k, metric),
            *self.per_angle(controls[ROTATED_BACK], ROTATED_BACK, k, metric),
            *self.per_angle(controls[SHIFTED], SHIFTED, k, metric),
            *self.per_angle(disc, DISC, k, metric),
            *self.per_stratum(overlaps, k, metric),
            *self.over_angles(rotated, controls, k, metric),
        ]

    def per_angle(self, curve: _Curve, view: str, k: int, metric: str) -> Iterable[dict[str, Any]]:
        weights = self.weights(curve) if curve.angles else np.zeros((0, 0))
        for index, angle in enumerate(curve.angles):
            signature = view == ROTATED and angle == SIGNATURE_ANGLE
            row = self.row(
                "mknn",
                {"angle": angle, "k": k, "metric": metric, "view": view},
                curve.at(index, weights),
                curve.null_at(index),
                signature=signature and self.told.is_signature(k, metric),
            )
            yield row

    def per_stratum(self, overlaps: pl.DataFrame, k: int, metric: str) -> Iterable[dict[str, Any]]:
        """Mknn at 90° within each label and each center, patients resampled within it."""
        setting = _at_signature(ROTATED) | {"k": k, "metric": metric}
        at_signature = overlaps.filter(pl.col("angle") == SIGNATURE_ANGLE)
        for column in ("label", "center"):
            for name in at_signature[column].drop_nulls().unique().sort().to_list():
                part = at_signature.filter(pl.col(column) == name)
                curve = _Curve.of_overlap(part, ROTATED)
                yield self.in_stratum(f"{column}={name}", curve, setting)

    def in_stratum(self, stratum: str, curve: _Curve, setting: Mapping[str, Any]) -> dict[str, Any]:
        if curve.n_patients < 2:
            return self.no_interval("mknn", stratum, curve, setting)
        estimate = curve.at(0, self.weights(curve))
        return self.row("mknn", setting, estimate, curve.null_at(0), stratum=stratum)

    def over_angles(
        self, rotated: _Curve, controls: Mapping[str, _Curve], k: int, metric: str
    ) -> Iterable[dict[str, Any]]:
        setting = {"k": k, "metric": metric}
        weights = self.weights(rotated)
        chance = rotated.null_at(0)
        for view, curve in {ROTATED: rotated, **controls}.items():
            if curve.angles:
                yield self.row("mknn_mean", setting | {"view": view}, curve.mean(weights), chance)
        lossless = rotated.part(
            [i for i, a in enumerate(rotated.angles) if not a % SIGNATURE_ANGLE]
        )
        yield self.row(
            "mknn_quarter_turns", setting | {"view": ROTATED}, lossless.mean(weights), chance
        )
        yield self.row(
            "mknn_variance",
            setting,
            rotated.variance(weights),
            Null(0.0, 0.0),
            signature=self.told.is_signature(k, metric),
        )
        for view, control in controls.items():
            yield self.excess_drop(rotated, control, setting | {"control": view}, weights)

    def excess_drop(
        self, rotated: _Curve, control: _Curve, setting: Mapping[str, Any], weights: Floats
    ) -> dict[str, Any]:
        """Mean over interpolated angles of mknn(control) − mknn(turned)."""
        if not control.angles:
            return not_applicable(
                experiment="rotation",
                encoder=self.encoder,
                metrics=["mknn_excess_drop"],
                setting=setting,
                n=rotated.n,
                n_patients=rotated.n_patients,
                reason="every angle is a multiple of 90°, which no interpolation blurs; set "
                "rotation.angle_step below 90",
            )[0]
        interpolated = [i for i, angle in enumerate(rotated.angles) if angle % SIGNATURE_ANGLE]
        matched = [_same_loss(rotated.angles[i], control.angles) for i in interpolated]
        turned = rotated.part(interpolated)
        drop = replace(
            turned,
            values=control.values[matched] - turned.values,
            chance=np.zeros_like(turned.values),
        )
        return self.row("mknn_excess_drop", setting, drop.mean(weights), Null(0.0, 0.0))

    def of_cosine(self, overlaps: pl.DataFrame) -> Iterable[dict[str, Any]]:
        """Cosine distance per view and angle."""
        for view in (ROTATED, ROTATED_BACK, SHIFTED, DISC):
            curve = _Curve.of_cosine(overlaps, view)
            if view == ROTATED and curve.n_patients < 2:
                yield self.no_interval("cosine_distance", "all", curve, _at_signature(view))
                return
            weights = self.weights(curve) if curve.angles else np.zeros((0, 0))
            for index, angle in enumerate(curve.angles):
                yield self.row(
                    "cosine_distance",
                    {"angle": angle, "view": view},
                    curve.at(index, weights),
                    curve.null_at(index),
                )

    def no_interval(
        self, metric: str, stratum: str, curve: _Curve, setting: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Explain why a figure of fewer than two patients is undefined."""
        where = "the pool" if stratum == "all" else f"{stratum} in the pool"
        return not_applicable(
            experiment="rotation",
            encoder=self.encoder,
            metrics=[metric],
            stratum=stratum,
            setting=setting,
            n=curve.n,
            n_patients=curve.n_patients,
            reason=f"{where} holds {curve.n_patients} patient(s) with embedded views: an interval "
            "over patients needs two; add patients or raise tile_pool.max_tiles",
        )[0]

    def row(
        self,
        metric: str,
        setting: Mapping[str, Any],
        estimate: Estimate,
        null: Null,
        *,
        stratum: str = "all",
        signature: bool = False,
    ) -> dict[str, Any]:
        """One row; a signature is held against its threshold unless chance alone would pass it."""
        held = self.held(metric) if signature else {}
        row = measurement(
            experiment="rotation",
            encoder=self.encoder,
            metric=metric,
            estimate=_within_unit(estimate) if metric in _SHARES else estimate,
            stratum=stratum,
            setting=setting,
            null=null,
            **held,
        )
        if metric == "mknn" and held and (null.low or 0.0) >= held["threshold"]:
            return row | {"verdict": "not_applicable", "reason": _chance_passes(null, held)}
        return row

    def held(self, metric: str) -> dict[str, Any]:
        """Threshold and direction of a signature; nothing where the parameters set no threshold."""
        if metric == "mknn":
            threshold, direction = self.told.mknn_threshold, "above"
        else:
            threshold, direction = self.told.variance_threshold, "below"
        return {} if threshold is None else {"threshold": threshold, "direction": direction}

    def undefined(
        self, overlaps: pl.DataFrame, k: int, metric: str, reason: str
    ) -> Iterable[dict[str, Any]]:
        """List the figures at one k and metric that the pool cannot support, once each."""
        first = overlaps.filter(pl.col("view") == ROTATED, pl.col("angle") == SIGNATURE_ANGLE)
        nothing = partial(
            not_applicable,
            experiment="rotation",
            encoder=self.encoder,
            reason=reason,
            n=int(first["n_tiles"].sum()),
            n_patients=first["patient_id"].n_unique(),
        )
        setting = {"k": k, "metric": metric}
        held = self.held if self.told.is_signature(k, metric) else lambda metric: {}
        angle = setting | _at_signature(ROTATED)
        return [
            *nothing(metrics=["mknn"], setting=angle, **held("mknn")),
            *nothing(metrics=["mknn_mean"], setting=setting | {"view": ROTATED}),
            *nothing(metrics=["mknn_variance"], setting=setting, **held("mknn_variance")),
            *(
                row
                for view in (ROTATED_BACK, SHIFTED)
                for row in nothing(
                    metrics=["mknn_excess_drop"], setting=setting | {"control": view}
                )
            ),
        ]


#: Figures that are shares.
_SHARES = ("mknn", "mknn_mean", "mknn_quarter_turns")


def _within_unit(estimate: Estimate) -> Estimate:
    """Cut an interval to 0…1: linear effects of candidates can overshoot near the ends."""
    if estimate.ci_low is None or estimate.ci_high is None:
        return estimate
    return replace(estimate, ci_low=max(estimate.ci_low, 0.0), ci_high=min(estimate.ci_high, 1.0))


def _same_loss(angle: int, stored: Sequence[int]) -> int:
    """Place of the control that loses as much as a turn by the angle: θ, or its mirror 90° − θ."""
    within = angle % SIGNATURE_ANGLE
    return stored.index(within if within in stored else SIGNATURE_ANGLE - within)


def _at_signature(view: str) -> dict[str, Any]:
    return {"angle": SIGNATURE_ANGLE, "view": view}


def _unsupported(overlaps: pl.DataFrame, k: int) -> str | None:
    """Why the neighbours' figures are undefined at this k; None where they are not."""
    if overlaps.is_empty():
        return "no tile was turned: no usable slide of the pool has embedded views"
    if overlaps["overlap_sum"].null_count():
        return too_few_candidates(k, int(overlaps["fewest_candidates"][0]))
    if overlaps.filter(pl.col("view") == ROTATED)["no_spread"].any():
        return NO_SPREAD
    return None


def _chance_passes(null: Null, held: Mapping[str, Any]) -> str:
    return (
        f"the pool is too small: chance alone is {null.low:.3g}, which reaches the threshold "
        f"{held['threshold']:g}; raise tile_pool.max_tiles or lower rotation.signature_k"
    )
