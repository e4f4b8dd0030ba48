r"""Clustering score: whether tiles gather by biology or by center.

``clustering_score = ARI(clusters, labels) − ARI(clusters, centers)`` (Kömen et al. 2025, PathoROB),
with k-means on unit vectors of a balanced subsample and the number of clusters that has the largest
silhouette. :func:`cluster_tiles` leaves counts of each unit's tiles per cluster;
:func:`clustering_score` works on these.

0 is neutral only with as many labels as centers: clusters of patients that know neither agree better
with the finer of the two. ``clustering_score_minus_null`` is the difference from the mean over
permutations of (label, center), and what the verdict rests on.

The interval resamples patients *given the clusters*: it does not speak of how k-means would cluster
another cohort. Copies of a patient are counted as other patients, but a tile never forms a pair
with its own copy, and pairs within a patient count once for each copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.designs import Subsamples, codes_of, draw_subsamples
from pathfm_kedro.statistics.bootstrap import bootstrap_weights, percentile_interval
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

EXPERIMENT = "clustering_score"
SIGNATURE = "clustering_score_minus_null"

#: Fewer tiles than this many per cluster make no cluster.
_TILES_PER_CLUSTER = 3

#: Starts of k-means while the number of clusters is chosen: the silhouette of one tells as much, and
#: the chosen number gets `restarts`.
_STARTS = 1

#: One row per unit and cluster; a row without unit says why nothing was clustered.
CLUSTERS_SCHEMA: dict[str, pl.DataType] = {
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "cluster": pl.Int32(),
    "n": pl.Int64(),
    "n_clusters": pl.Int32(),
    "silhouette": pl.Float64(),
    "reason": pl.String(),
}


@dataclass(frozen=True)
class _Clustered:
    """Counts per unit: [u] codes, [u, K] tiles."""

    patients: Ints
    labels: Ints
    centers: Ints
    counts: Floats

    @property
    def n_patients(self) -> int:
        return int(self.patients.max()) + 1


def cluster_tiles(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Tiles of each unit (patient, label, center) per k-means cluster.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    parameters
        ``clustering_score``: max_tiles, min_patients_per_cell, min_tiles_per_cell, k_range (smallest
        and largest number of clusters), restarts, seed.

    Returns
    -------
    DataFrame
        :data:`CLUSTERS_SCHEMA`.
    """
    drawn = draw_subsamples(
        slides,
        tiles,
        embeddings,
        {"designs": ["all"], "draws": 1, "exclude": "patient", **parameters},
    )
    reason = _obstacle(drawn, parameters)
    if reason or drawn.cohort is None:
        return pl.DataFrame([{"reason": reason}], schema=CLUSTERS_SCHEMA)
    scope = drawn.scopes[0]
    clusters, silhouette = chosen_clusters(drawn.vectors_of(scope), parameters)
    units = drawn.cohort.unit_table.with_columns(pl.col("unit").cast(pl.Int64))
    found = pl.DataFrame({"unit": drawn.cohort.units[scope.rows], "cluster": clusters})
    return (
        found.group_by("unit", "cluster")
        .agg(n=pl.len())
        .join(units, on="unit", how="left")
        .sort("unit", "cluster")
        .with_columns(
            pl.lit(int(clusters.max()) + 1).alias("n_clusters"),
            pl.lit(silhouette).alias("silhouette"),
            pl.lit(None).alias("reason"),
        )
        .select(pl.col(name).cast(kind) for name, kind in CLUSTERS_SCHEMA.items())
    )


def _obstacle(drawn: Subsamples, parameters: Mapping[str, Any]) -> str:
    if not drawn.scopes:
        return drawn.obstacle("all")
    n, fewest = len(drawn.scopes[0].rows), _TILES_PER_CLUSTER * parameters["k_range"][0]
    if n < fewest:
        return f"{n} tiles for at least {fewest}: add tiles, or take fewer clusters in k_range"
    return ""


def chosen_clusters(vectors: Floats32, parameters: Mapping[str, Any]) -> tuple[Ints, float]:
    """Clusters of the unit vectors for the number of clusters with the largest silhouette.

    Parameters
    ----------
    vectors
        [n, d], no row zero.
    parameters
        k_range, restarts, seed.

    Returns
    -------
    tuple
        [n] clusters, 0 … K − 1, and their mean silhouette.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    unit = vectors / lengths[:, None].astype(np.float32)
    fewest, most = parameters["k_range"]
    most = min(most, len(unit) // _TILES_PER_CLUSTER)

    def fitted(k: int, starts: int) -> Ints:
        means = KMeans(k, n_init=starts, random_state=parameters["seed"])
        return np.unique(means.fit_predict(unit), return_inverse=True)[1]

    with threadpool_limits(1):  # sums in one order: the same clusters on any number of cores
        distances = _distances(unit)
        best = max(
            range(fewest, most + 1), key=lambda k: silhouette_of(distances, fitted(k, _STARTS))
        )
        clusters = fitted(best, parameters["restarts"])
        return clusters, silhouette_of(distances, clusters)


def _distances(unit: Floats32) -> Floats32:
    squares = 2 - 2 * (unit @ unit.T)
    np.fill_diagonal(squares, 0)
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def silhouette_of(distances: NDArray[np.floating], clusters: Ints) -> float:
    """Mean silhouette (b − a) / max(a, b); 0 for a tile that is alone in its cluster.

    Parameters
    ----------
    distances
        [n, n].
    clusters
        [n] codes, 0 … K − 1, each taken.

    Returns
    -------
    float
        −1 … 1; −1 if there is one cluster only.

    Examples
    --------
    >>> places = np.array([0.0, 1.0, 10.0, 11.0])
    >>> round(silhouette_of(abs(places[:, None] - places), np.array([0, 0, 1, 1])), 3)
    0.9
    """
    member = np.eye(int(clusters.max()) + 1)[clusters]
    if member.shape[1] < 2:
        return -1.0
    sizes = member.sum(axis=0)
    sums = (distances @ member.astype(distances.dtype)).astype(np.float64)
    rows = np.arange(len(clusters))
    own = sums[rows, clusters] / np.maximum(sizes[clusters] - 1, 1)
    others = sums / sizes
    others[rows, clusters] = np.inf
    nearest = others.min(axis=1)
    with np.errstate(invalid="ignore"):
        each = (nearest - own) / np.maximum(nearest, own)
    return float(np.where(sizes[clusters] > 1, np.nan_to_num(each), 0).mean())


def clustering_score(
    clusters: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """ARI of the clusters with labels and with centers, and their difference.

    Parameters
    ----------
    clusters
        Output of :func:`cluster_tiles`.
    parameters
        ``clustering_score``: bootstrap_draws, n_permutations, seed, thresholds.
    encoder
        Name of the encoder.

    Returns
    -------
    DataFrame
        Measurements clustering_score_minus_null, clustering_score, ari_label, ari_center, n_clusters,
        silhouette. Null: 95% of permutations of (label, center) over patients, so that clusters know
        neither.
    """
    rows = clusters.filter(pl.col("n").is_not_null())
    name: dict[str, Any] = {"experiment": EXPERIMENT, "encoder": encoder}
    thresholds = parameters["thresholds"]
    if rows.is_empty():
        return measurement_table(
            row
            for metric in (SIGNATURE, "clustering_score", "ari_label", "ari_center")
            for row in not_applicable(
                **name,
                metrics=[metric],
                reason=clusters["reason"][0],
                **(thresholds.get(metric) or {}),
            )
        )
    held = _held(rows)
    weights = bootstrap_weights(held.n_patients, parameters["bootstrap_draws"], parameters["seed"])
    point, drawn = (_scores(held, w) for w in (np.ones((1, held.n_patients)), weights))
    nulls = _permuted(held, parameters["n_permutations"], parameters["seed"])
    n = int(held.counts.sum())
    estimates = {
        metric: Estimate(
            float(point[metric][0]), *percentile_interval(drawn[metric]), n, held.n_patients
        )
        for metric in point
    }
    score = "clustering_score"
    judged = thresholds.get(SIGNATURE) or {}
    told = [_minus_null(estimates[score], nulls[score], {**name, **judged})]
    told += [
        measurement(
            **name,
            metric=metric,
            estimate=estimate,
            null=Null(*percentile_interval(nulls[metric])) if len(nulls[metric]) else Null(),
            **(thresholds.get(metric) or {}),
        )
        for metric, estimate in estimates.items()
    ]
    for metric in ("n_clusters", "silhouette"):
        value = float(rows[metric][0])
        estimate = Estimate(value, None, None, n, held.n_patients)
        told.append(measurement(**name, metric=metric, estimate=estimate))
    return measurement_table(told)


def _minus_null(estimate: Estimate, permuted: Floats, common: Mapping[str, Any]) -> dict[str, Any]:
    """The score minus the mean of its permutations."""
    known = permuted[np.isfinite(permuted)]
    if not len(known):
        reason = "no permutation to compare with: set n_permutations to 200"
        return not_applicable(
            **common,
            metrics=[SIGNATURE],
            reason=reason,
            n=estimate.n,
            n_patients=estimate.n_patients,
        )[0]
    chance = float(known.mean())
    value, low, high = (
        None if figure is None else figure - chance
        for figure in (estimate.value, estimate.ci_low, estimate.ci_high)
    )
    return measurement(
        **common,
        metric=SIGNATURE,
        estimate=Estimate(value, low, high, estimate.n, estimate.n_patients),
        null=Null(*percentile_interval(permuted - chance)),
    )


def _held(rows: pl.DataFrame) -> _Clustered:
    key = ["patient_id", "label", "center"]
    units = rows.select(key).unique().sort(key)
    place = units.with_row_index("unit").join(rows, on=key, how="right", maintain_order="right")
    counts = np.zeros((units.height, int(rows["n_clusters"][0])))
    counts[place["unit"].to_numpy(), rows["cluster"].to_numpy()] = rows["n"].to_numpy()
    patients, labels, centers = (codes_of(units[name]) for name in key)
    return _Clustered(patients, labels, centers, counts)


def _scores(held: _Clustered, weights: Floats) -> dict[str, Floats]:
    of_label, of_center = (
        resampled_ari(held.counts, tags, held.patients, weights)
        for tags in (held.labels, held.centers)
    )
    return {
        "clustering_score": of_label - of_center,
        "ari_label": of_label,
        "ari_center": of_center,
    }


def _permuted(held: _Clustered, permutations: int, seed: int) -> dict[str, Floats]:
    """[permutations] the scores when patients exchange label and center together.

    Units lie side by side by patient, once in the patients' order and once in a random one, and each
    takes the tags that lie beside it: a patient's units take those of one other patient where all
    have equally many. The order within a patient is random too, or patients that show every label
    would give each label to itself.
    """
    generator = np.random.default_rng(seed)
    ones = np.ones((1, held.n_patients))
    worlds = []
    for _ in range(permutations):
        patient, unit = generator.random(held.n_patients), generator.random(len(held.labels))
        order = np.lexsort((unit, patient[held.patients]))
        other = _Clustered(held.patients, held.labels[order], held.centers[order], held.counts)
        worlds.append({metric: float(value[0]) for metric, value in _scores(other, ones).items()})
    metrics = ("clustering_score", "ari_label", "ari_center")
    return {metric: np.array([world[metric] for world in worlds]) for metric in metrics}


def resampled_ari(counts: Floats, tags: Ints, patients: Ints, weights: Floats) -> Floats:
    """[draws] adjusted Rand index of clusters and tags with patients resampled.

    ARI = (Σ_ij − E) / (½(Σ_i + Σ_j) − E) with E = Σ_i·Σ_j / Σ, where Σ_ij, Σ_i, Σ_j and Σ are pairs
    of tiles that share cluster and tag, tag, cluster, or nothing (Hubert & Arabie 1985).

    Parameters
    ----------
    counts
        [u, K] tiles of each unit in each cluster.
    tags
        [u] label or center of each unit.
    patients
        [u] patient of each unit, 0 … P − 1.
    weights
        [draws, P] how often each patient is drawn.

    Returns
    -------
    ndarray
        NaN where a draw has no two tags.

    Examples
    --------
    >>> counts = np.array([[2.0, 0.0], [0.0, 2.0]])
    >>> tags = patients = np.array([0, 1])
    >>> resampled_ari(counts, tags, patients, np.ones((1, 2))).tolist()
    [1.0]
    """
    shape = (weights.shape[1], int(tags.max()) + 1, counts.shape[1])
    cells = np.zeros(shape)
    np.add.at(cells, (patients, tags), counts)
    both, by_tag, by_cluster, every = (
        _pairs(part.reshape(shape[0], -1), weights)
        for part in (cells, cells.sum(axis=2), cells.sum(axis=1), cells.sum(axis=(1, 2)))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = by_tag * by_cluster / every
        return (both - expected) / (0.5 * (by_tag + by_cluster) - expected)


def _pairs(counts: Floats, weights: Floats) -> Floats:
    """[draws] pairs of tiles in the same column; pairs within a patient weigh w, not w²."""
    between = (weights @ counts) ** 2 - weights**2 @ counts**2
    return np.asarray(0.5 * (between + weights @ (counts**2 - counts)).sum(axis=1))
