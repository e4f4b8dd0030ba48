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

from pathfm_kedro.slides.views import wide_side
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

METRICS = ("euclidean", "cosine")
ROTATED, ROTATED_BACK = "rotated", "rotated_back"

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
}

POOL_COLUMNS = [
    "tile_id",
    "slide_id",
    "patient_id",
    "center",
    "organ",
    "label",
    "field",
    "x",
    "y",
    "field_um",
    "mpp",
]

#: Sums where a tile has fewer candidates than neighbours asked for.
_NO_OVERLAP = {
    name: pl.lit(None, pl.Float64) for name in ("overlap_sum", "candidate_sum", "chance_sum")
}

#: Rows of a similarity matrix held at once: 1,024 of them against a pool of 10,000 take 80 MB.
_BLOCK = 1024

#: Similarities are compared to this many decimals of the cloud's own size, so that equal vectors
#: tie (and the index decides) whatever the order in which a matrix product adds up.
_DECIMALS = 12


@dataclass(frozen=True)
class RotationParameters:
    """What the experiment is told; see ``parameters_robustness.yml`` for the reasons.

    Examples
    --------
    >>> told = {"angle_step": 45, "k": [5, 10], "metrics": ["cosine"], "signature_k": 10,
    ...         "signature_metric": "cosine", "thresholds": {"mknn": 0.8, "mknn_variance": 0.1},
    ...         "draws": 200, "seed": 0, "max_tiles": 72}
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
    max_tiles: int

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
            max_tiles=parameters["max_tiles"],
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

    def is_signature(self, k: int, metric: str) -> bool:
        """Whether the failure signatures are read at this k and metric."""
        return (k, metric) == (self.signature_k, self.signature_metric)


def choose_pool(
    slides: pl.DataFrame, tiles: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Draw the fixed pool of tiles that are turned, balanced over label x center x patient.

    Cells of label and center take turns, in each its patients, in each their slides, until
    ``max_tiles`` are drawn. A tile whose wide field (:func:`~pathfm_kedro.slides.views.wide_side`)
    lies on the slide has field ``wide``. A slide without any such tile, as a pre-cut image, gives
    its tiles as ``inscribed``: the tile itself is the wide field and its inner square the view.

    Parameters
    ----------
    slides
        Slides table: slide_id, patient_id, center, organ, label, status, width and height (level-0
        px), mpp (µm per level-0 px). Only ``usable`` slides take part.
    tiles
        Tiles table: tile_id, slide_id, x and y (top left, level-0 px), field_um, mpp (µm per px of
        the tile as encoded).
    parameters
        ``max_tiles`` and ``seed``, with the experiment's others.

    Returns
    -------
    DataFrame
        Columns ``POOL_COLUMNS``, slides in sorted order, each slide's tiles in the tiles' order.
        The draw does not depend on the order of either table's rows.

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["s"], "patient_id": ["p"], "center": ["A"],
    ...     "organ": ["o"], "label": ["x"], "status": ["usable"], "width": [4000],
    ...     "height": [4000], "mpp": [0.5]})
    >>> tiles = pl.DataFrame({"tile_id": ["s-0", "s-1"], "slide_id": ["s", "s"], "x": [0, 1000],
    ...     "y": [0, 1000], "field_um": [112.0, 112.0], "mpp": [0.5, 0.5]})
    >>> told = {"angle_step": 15, "k": [10], "metrics": ["cosine"], "signature_k": 10,
    ...     "signature_metric": "cosine", "thresholds": {"mknn": 0.8, "mknn_variance": 0.1},
    ...     "draws": 200, "seed": 0, "max_tiles": 72}
    >>> choose_pool(slides, tiles, told).select("tile_id", "field").rows()
    [('s-1', 'wide')]
    """
    told = RotationParameters.parse(parameters)
    carried = slides.filter(pl.col("status") == "usable").select(
        "slide_id",
        "patient_id",
        "center",
        "organ",
        "label",
        "width",
        "height",
        pl.col("mpp").alias("slide_mpp"),
    )
    candidates = (
        tiles.with_row_index("_row")
        .join(carried, on="slide_id", how="inner")
        .with_columns(_wide=_wide_field_on_slide(tiles))
        .filter(pl.col("_wide") | ~pl.col("_wide").any().over("slide_id"))
        .with_columns(
            field=pl.when("_wide").then(pl.lit("wide")).otherwise(pl.lit("inscribed")),
        )
        .sort("tile_id")
    )
    random = np.random.default_rng(told.seed).permutation(candidates.height)
    drawn = _in_turns(
        candidates.with_columns(_random=pl.Series(random, dtype=pl.Int64)),
        [
            ["label", "center", "patient_id", "slide_id"],
            ["label", "center", "patient_id"],
            ["label", "center"],
        ],
    ).head(told.max_tiles)
    return drawn.sort("slide_id", "_row").select(POOL_COLUMNS)


def _wide_field_on_slide(tiles: pl.DataFrame) -> pl.Expr:
    """Whether the field that turning needs lies inside the slide; false where mpp is unknown."""
    size = (pl.col("field_um") / pl.col("mpp")).round().cast(pl.Int64)
    sizes = tiles.select(size.alias("size"))["size"].unique().drop_nulls().to_list()
    wide = size.replace_strict(sizes, [wide_side(side) for side in sizes], return_dtype=pl.Int64)
    side = pl.col("field_um") / pl.col("slide_mpp")
    margin = side * (wide / size - 1) / 2
    return pl.all_horizontal(
        pl.col("x") - margin >= 0,
        pl.col("y") - margin >= 0,
        pl.col("x") + side + margin <= pl.col("width"),
        pl.col("y") + side + margin <= pl.col("height"),
    ).fill_null(False)


def _in_turns(frame: pl.DataFrame, levels: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Rows in the order in which the groups of each level, inner to outer, take turns."""
    frame = frame.with_columns(_turn=pl.lit(0, pl.Int64))
    for group in levels:
        frame = frame.sort("_turn", "_random").with_columns(
            _turn=pl.int_range(pl.len()).over(group)
        )
    return frame.sort("_turn", "_random")


def mknn(
    reference: NDArray[np.floating[Any]],
    view: NDArray[np.floating[Any]],
    patients: NDArray[Any],
    k: int,
    metric: str,
) -> Floats:
    """Share of each tile's k nearest neighbours that stay when the whole pool is turned.

    ``mknn_i = |N_k(f(x))_i ∩ N_k(f(R x))_i| / k``: neighbours of tile i among the pool's tiles of
    other patients, once in the space of the tiles as they are and once in that of their views.
    Exact; ties go to the lower index. If views carry no information its expectation is
    :func:`mknn_chance`.

    Parameters
    ----------
    reference
        [n, d] embeddings of the tiles, f(x).
    view
        [n, d] embeddings of the same tiles' views, f(R x), in the same order.
    patients
        [n] patient of each tile; a tile's own patient is excluded from its neighbours.
    k
        Neighbours per tile.
    metric
        ``euclidean`` (as published) or ``cosine``.

    Returns
    -------
    ndarray
        [n] in 0…1.

    Raises
    ------
    ValueError
        If the rows do not match, the metric is unknown, or a tile has fewer than k tiles of other
        patients.

    Examples
    --------
    >>> line = np.array([[0.0], [1.0], [2.1], [3.3]])
    >>> mknn(line, -line, np.arange(4), k=2, metric="euclidean").tolist()
    [1.0, 1.0, 1.0, 1.0]

    References
    ----------
    Elphick et al. 2024, "Are the Latent Representations of Foundation Models for Pathology
    Invariant to Rotation?", arXiv 2412.11938.
    """
    if reference.shape != view.shape or len(patients) != len(reference):
        raise ValueError(
            f"tiles {list(reference.shape)}, views {list(view.shape)} and patients "
            f"[{len(patients)}] must have the same rows"
        )
    codes, _ = patient_codes(np.asarray(patients))
    fewest = int(candidate_counts(codes).min())
    if fewest < k:
        raise ValueError(_too_few_candidates(k, fewest))
    return _shared(
        _nearest(reference, codes, k, metric),
        _nearest(view, codes, k, metric),
    )


def mknn_chance(patients: NDArray[Any], k: int) -> Floats:
    """Give the expectation of :func:`mknn` if views say nothing: k / candidates of each tile.

    Candidates are the pool's tiles of other patients; with one tile a patient this is k / (n − 1).

    Returns
    -------
    ndarray
        [n] in 0…1.

    Examples
    --------
    >>> mknn_chance(np.array(["p", "p", "q", "r"]), 1).round(3).tolist()
    [0.5, 0.5, 0.333, 0.333]
    """
    return k / candidate_counts(patient_codes(np.asarray(patients))[0])


def candidate_counts(codes: Ints) -> Ints:
    """Tiles of other patients, for each tile.

    Examples
    --------
    >>> candidate_counts(np.array([0, 0, 1])).tolist()
    [1, 1, 2]
    """
    return len(codes) - np.bincount(codes)[codes]


def _nearest(
    vectors: NDArray[np.floating[Any]], codes: Ints, k: int, metric: str
) -> NDArray[np.intp]:
    """Each row's k nearest rows of other patients, nearest first, ties by index: [n, k]."""
    cloud, offset = _as_inner_products(vectors, metric)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(cloud), _BLOCK)]
    return np.concatenate(
        [
            _best(cloud[rows] @ cloud.T + offset, codes[rows, None] == codes[None], k)
            for rows in blocks
        ]
    )


def _best(similarity: Floats, excluded: NDArray[np.bool_], k: int) -> NDArray[np.intp]:
    distance = -np.round(similarity, _DECIMALS)
    distance[excluded] = np.inf
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


def _as_inner_products(vectors: NDArray[np.floating[Any]], metric: str) -> tuple[Floats, Floats]:
    """Vectors and a per-candidate offset whose inner products rank as the metric does.

    Euclidean: x·y − |y|²/2 falls with |x − y|. Neither moving nor scaling the cloud changes the
    order; centred and of size 1 it loses no digits.
    """
    if metric == "cosine":
        return _unit(vectors), np.zeros(len(vectors))
    if metric != "euclidean":
        raise ValueError(f"unknown metric {metric!r}; choose from {list(METRICS)}")
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    squares = np.einsum("ij,ij->i", centred, centred)
    size = squares.max(initial=0.0) or 1.0
    return centred / np.sqrt(size), -squares / size / 2


def _unit(vectors: NDArray[np.floating[Any]]) -> Floats:
    """Rows of length 1 in float64; a row of zeros stays, similar to nothing."""
    exact = vectors.astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(length > 0, length, 1.0)


def _shared(first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
    """Share of each row's neighbours in ``first`` that are also in ``second``: [n]."""
    chosen = _membership(first)
    share: Floats = np.take_along_axis(chosen, second, axis=1).mean(axis=1, dtype=np.float64)
    return share


def _membership(neighbours: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[n, n] whether tile j is among the neighbours of tile i."""
    chosen = np.zeros((len(neighbours), len(neighbours)), dtype=np.bool_)
    np.put_along_axis(chosen, neighbours, True, axis=1)
    return chosen


def candidate_effects(home: NDArray[np.intp], away: NDArray[np.intp], k: int) -> Floats:
    """Sum over the pool's queries of what each tile's presence as a candidate adds to mknn.

    Tiles are one another's neighbours: a patient who is drawn twice, or not at all, changes the
    overlaps of everybody else's tiles. Resampling queries alone misses this, and its 95% intervals
    hold the truth in 70 to 90 of 100 simulated pools. If candidate j leaves, the next neighbour
    moves up in each list that held it, and the overlap of that query changes by (in units of 1/k)

    - −1 + g where both lists held j, g = mean gain in shared neighbours from k to k + 1,
    - a where only the tile's list did, a = share of its next neighbours that the view's list holds,
    - b where only the view's list did, with b likewise.

    The effect of j is minus the sum of these. Means over queries stand for g, a and b: each query's
    own would add noise and nothing else.

    Parameters
    ----------
    home, away
        [n, > k] nearest neighbours, nearest first, of the tiles and of their views.
    k
        Neighbours that count.

    Returns
    -------
    ndarray
        [n]; 0 where all lists agree.

    Examples
    --------
    >>> lists = np.array([[1, 2], [0, 2], [1, 0]])
    >>> candidate_effects(lists, lists, 1).tolist()
    [0.0, 0.0, 0.0]

    References
    ----------
    The delete-one jackknife, over the nodes of a network: Efron and Stein 1981, "The Jackknife
    Estimate of Variance"; Snijders and Borgatti 1999, "Non-parametric standard errors and tests
    for network statistics".
    """
    in_home, in_away = _membership(home[:, :k]), _membership(away[:, :k])
    a = np.take_along_axis(in_away, home[:, k : k + 1], axis=1).mean()
    b = np.take_along_axis(in_home, away[:, k : k + 1], axis=1).mean()
    gain = a + b + (home[:, k] == away[:, k]).mean()
    effects: Floats = (
        (1 - gain) * (in_home & in_away).sum(axis=0)
        - a * (in_home & ~in_away).sum(axis=0)
        - b * (in_away & ~in_home).sum(axis=0)
    )
    return effects / k


def cosine_distances(
    reference: NDArray[np.floating[Any]], view: NDArray[np.floating[Any]]
) -> Floats:
    """1 − cos(f(x), f(R x)) of each tile, [n] in 0…2; 1 where a vector is zero.

    Examples
    --------
    >>> cosine_distances(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])).tolist()
    [1.0]
    """
    cosines: Floats = np.einsum("ij,ij->i", _unit(reference), _unit(view))
    return 1 - cosines


def cosine_distance_chance(
    reference: NDArray[np.floating[Any]], view: NDArray[np.floating[Any]], codes: Ints
) -> Floats:
    """Mean cosine distance of each tile to the views of other patients' tiles, [n].

    What the distance would be if a view said nothing about its tile: the mean over all
    permutations across patients, without drawing one. Where there is one patient it is 1.

    Examples
    --------
    >>> cosine_distance_chance(np.eye(2), np.eye(2), np.array([0, 1])).tolist()
    [1.0, 1.0]
    """
    views = _unit(view)
    others = views.sum(axis=0) - sum_by_patient(views, codes, int(codes.max()) + 1)[codes]
    cosine_sums: Floats = np.einsum("ij,ij->i", _unit(reference), others)
    return 1 - cosine_sums / np.maximum(candidate_counts(codes), 1)


def rotation_overlaps(
    views: Embeddings, pool: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Reduce the views' embeddings to sums per patient, label and center.

    Parameters
    ----------
    views
        Embeddings of the pool's views: ``stack(slide_ids, "rotated")`` is [n, A, d] at the angles
        ``RotationParameters.rotated_angles`` (0 first) and ``"rotated_back"`` [n, B, d] at
        ``rotated_back_angles`` (those that interpolate, in the first quarter).
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
        of the pool has fewer than k candidates.

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
    series = [(ROTATED, told.rotated_angles[1:], rotated[:, 1:])]
    if told.rotated_back_angles:
        back = _stacked(views, pool, ROTATED_BACK, told.rotated_back_angles)
        series.append((ROTATED_BACK, told.rotated_back_angles, back))
    groups = _Groups.of(pool)
    frames = [
        frame
        for metric in told.metrics
        for frame in _overlaps_of_metric(reference, series, groups, told.k, metric)
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
    series: Sequence[tuple[str, Sequence[int], NDArray[np.float32]]],
    groups: _Groups,
    ks: Sequence[int],
    metric: str,
) -> Iterable[pl.DataFrame]:
    """Frames of sums for one metric, one per view, angle and k."""
    # One neighbour beyond the largest k is needed: the one that moves up where a candidate is missing.
    supported = [k for k in ks if k < groups.fewest_candidates]
    depth = max(supported, default=0) + 1
    home = _nearest(reference, groups.patients, depth, metric)
    for name, angles, stack in series:
        for index, angle in enumerate(angles):
            away = _nearest(stack[:, index], groups.patients, depth, metric)
            keys = _keys_with_cosine(reference, stack[:, index], groups).with_columns(
                view=pl.lit(name), angle=pl.lit(angle), metric=pl.lit(metric)
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
        "overlap_sum": pl.Series(groups.sums(_shared(home[:, :k], away[:, :k]))),
        "candidate_sum": pl.Series(groups.sums(candidate_effects(home, away, k))),
        "chance_sum": pl.Series(groups.sums(chance)),
    }


def rotation_measurements(
    overlaps: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn sums per patient into the rotation rows of the measurements table.

    - ``mknn`` per view, angle, k, metric, beside chance; at 90° also per label and per center;
    - ``mknn_mean`` over angles (0° excluded) and ``mknn_variance`` (population variance of the
      angles' means; null 0, since chance is the same at every angle);
    - ``mknn_excess_drop``: mean over interpolated angles of mknn(there and back) − mknn(turned),
      the drop beyond what the blur of interpolation explains (null 0);
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
        back = _Curve.of_overlap(overlaps, ROTATED_BACK)
        return [
            *self.per_angle(rotated, ROTATED, k, metric),
            *self.per_angle(back, ROTATED_BACK, k, metric),
            *self.per_stratum(overlaps, k, metric),
            *self.over_angles(rotated, back, k, metric),
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
        self, rotated: _Curve, back: _Curve, k: int, metric: str
    ) -> Iterable[dict[str, Any]]:
        setting = {"k": k, "metric": metric}
        weights = self.weights(rotated)
        chance = rotated.null_at(0)
        for view, curve in ((ROTATED, rotated), (ROTATED_BACK, back)):
            if curve.angles:
                yield self.row("mknn_mean", setting | {"view": view}, curve.mean(weights), chance)
        yield self.row(
            "mknn_variance",
            setting,
            rotated.variance(weights),
            Null(0.0, 0.0),
            signature=self.told.is_signature(k, metric),
        )
        yield self.excess_drop(rotated, back, setting, weights)

    def excess_drop(
        self, rotated: _Curve, back: _Curve, setting: Mapping[str, Any], weights: Floats
    ) -> dict[str, Any]:
        if not back.angles:
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
        control = [back.angles.index(rotated.angles[i] % SIGNATURE_ANGLE) for i in interpolated]
        turned = rotated.values[interpolated]
        drop = _Curve(
            angles=tuple(rotated.angles[i] for i in interpolated),
            values=back.values[control] - turned,
            chance=np.zeros_like(turned),
            tiles=back.tiles,
        )
        return self.row("mknn_excess_drop", setting, drop.mean(weights), Null(0.0, 0.0))

    def of_cosine(self, overlaps: pl.DataFrame) -> Iterable[dict[str, Any]]:
        """Cosine distance per view and angle."""
        for view in (ROTATED, ROTATED_BACK):
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
            "over patients needs two; add patients or raise rotation.max_tiles",
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
            estimate=_within_unit(estimate) if metric in ("mknn", "mknn_mean") else estimate,
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
            *nothing(metrics=["mknn_excess_drop"], setting=setting),
        ]


def _within_unit(estimate: Estimate) -> Estimate:
    """Cut an interval to 0…1: linear effects of candidates can overshoot near the ends."""
    if estimate.ci_low is None or estimate.ci_high is None:
        return estimate
    return replace(estimate, ci_low=max(estimate.ci_low, 0.0), ci_high=min(estimate.ci_high, 1.0))


def _at_signature(view: str) -> dict[str, Any]:
    return {"angle": SIGNATURE_ANGLE, "view": view}


def _unsupported(overlaps: pl.DataFrame, k: int) -> str | None:
    """Why the neighbours' figures are undefined at this k; None where they are not."""
    if overlaps.is_empty():
        return "no tile was turned: no usable slide of the pool has embedded views"
    if overlaps["overlap_sum"].null_count():
        return _too_few_candidates(k, int(overlaps["fewest_candidates"][0]))
    return None


def _too_few_candidates(k: int, fewest: int) -> str:
    return (
        f"k = {k} neighbours need more than {k} candidates, but a tile of the pool has only {fewest} "
        "tiles of other patients; add patients, raise rotation.max_tiles or lower rotation.k"
    )


def _chance_passes(null: Null, held: Mapping[str, Any]) -> str:
    return (
        f"the pool is too small: chance alone is {null.low:.3g}, which reaches the threshold "
        f"{held['threshold']:g}; raise rotation.max_tiles or lower rotation.signature_k"
    )
