r"""Clustering score: whether tiles gather by biology or by center.

``clustering_score = ARI(clusters, labels) − ARI(clusters, centers)`` (Kömen et al. 2025, PathoROB),
with k-means on unit vectors of a balanced subsample and the number of clusters that has the largest
silhouette.

0 is neutral only with as many labels as centers: clusters of patients that know neither agree better
with the finer of the two. ``clustering_score_minus_null`` is the difference from the mean over
permutations of (label, center). To pass it must also lie above what labels permuted within centers
give: vectors whose centers were pushed apart exceed the first null without knowing a label.

The interval resamples patients, and in each draw chooses the number of clusters anew by the
silhouettes of the resampled patients: another cohort may find another number, and the score of two
clusters is not that of four. Where tiles are in the clusters of one number is not found anew. Copies
of a patient are counted as other patients, but a tile never forms a pair with its own copy, and pairs
within a patient count once for each copy.

Pitfalls
--------
- Where several numbers of clusters fit about as well the interval spans the scores of all of them,
  and is wide (docs/error_rates.md).
- One number of clusters is chosen; where labels have subtypes, more clusters than labels lower
  ``ari_label``.
- Silhouettes need every pair of tiles, so that few tiles are clustered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as record
from functools import cached_property, partial
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.balanced_designs import (
    Subsamples,
    Subsampling,
    balanced_subsamples,
    codes_of,
    left_out_cells,
    remark_on_size,
)
from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.clusters import (
    permuted_ari,
    resampled_ari,
    silhouettes_of,
    unit_distances,
)
from pathfm_kedro.statistics.figures import Figure, Value, undefined
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.permutation import (
    minus_null,
    null_range,
    permuted_together,
    permuted_within,
)
from pathfm_kedro.statistics.tables import Embeddings, to_schema

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Fewer tiles than this many per cluster make no cluster.
_TILES_PER_CLUSTER = 3

#: The score and what it is the difference of.
SCORES = ("clustering_score", "ari_label", "ari_center")

#: One row per number of clusters, unit (patient, label, center) and cluster: its n tiles and their
#: mean silhouette; a row without patient says why nothing was clustered (reason), or why a cell is
#: left out, or which one decides the others' size (remark).
CLUSTERING_SCHEMA: dict[str, pl.DataType] = {
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "cluster": pl.Int32(),
    "n": pl.Int64(),
    "n_clusters": pl.Int32(),
    "silhouette": pl.Float64(),
    "reason": pl.String(),
    "remark": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ClusteringScore(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    max_tiles
        Of the balanced subsample.
    min_patients_per_cell, min_tiles_per_cell
        Cells of label and center with fewer are left out.
    k_range
        Smallest and largest number of clusters.
    restarts
        Of k-means, for each number: the best of a few, since a single one may end where two clusters
        share a class, and another number is then chosen.
    n_permutations
        Of (label, center) over patients, and of labels within centers.
    """

    max_tiles: Annotated[int, Field(ge=1)]
    min_patients_per_cell: Annotated[int, Field(ge=0)]
    min_tiles_per_cell: Annotated[int, Field(ge=0)]
    k_range: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]]
    restarts: Annotated[int, Field(ge=1)]
    n_permutations: Annotated[int, Field(ge=0)] = 200


def clustering_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: ClusteringScore
) -> pl.DataFrame:
    """Tiles of each unit (patient, label, center) per k-means cluster, for each number of clusters.

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
        Columns :data:`CLUSTERING_SCHEMA`.
    """
    asked = Subsampling(
        max_tiles=p.max_tiles,
        min_patients_per_cell=p.min_patients_per_cell,
        min_tiles_per_cell=p.min_tiles_per_cell,
    )
    sampled = balanced_subsamples(slides, tiles, embeddings, asked, p.seed)
    problem = _problem(sampled, p)
    if problem:
        return to_schema([{"reason": problem}], CLUSTERING_SCHEMA)
    scope = sampled.scopes[0]
    found = clusterings(sampled.vectors_of(scope), p)
    assigned = pl.concat(
        pl.DataFrame(
            {
                "unit": sampled.cohort.units[scope.rows],
                "n_clusters": number,
                "cluster": clusters,
                "silhouette": silhouettes,
            }
        )
        for number, (clusters, silhouettes) in found.items()
    )
    key = ["n_clusters", "unit", "cluster"]
    counts = (
        assigned.group_by(key)
        .agg(n=pl.len(), silhouette=pl.col("silhouette").mean())
        .join(sampled.cohort.unit_table, on="unit", how="left")
        .sort(key)
    )
    remarks = sampled.of_design("all")
    return pl.concat([to_schema(rows, CLUSTERING_SCHEMA) for rows in (counts, remarks)])


def _problem(sampled: Subsamples, p: ClusteringScore) -> str:
    if not sampled.scopes:
        return sampled.obstacle("all")
    n, fewest = len(sampled.scopes[0].rows), _TILES_PER_CLUSTER * p.k_range[0]
    if n < fewest:
        return f"{n} tiles for at least {fewest}: add tiles, or take fewer clusters in k_range"
    return ""


def clusterings(vectors: Floats32, p: ClusteringScore) -> dict[int, tuple[Ints, Floats]]:
    """Clusters of the unit vectors, for every number of clusters of the range.

    Parameters
    ----------
    vectors
        [n, d], no row zero.
    p
        k_range, restarts, seed.

    Returns
    -------
    dict
        By the number K of clusters found: [n] clusters, 0 … K − 1, and [n] silhouettes.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    unit = vectors / lengths[:, None].astype(np.float32)
    fewest, most = p.k_range
    found: dict[int, tuple[Ints, Floats]] = {}
    with threadpool_limits(1):  # sums in one order: the same clusters on any number of cores
        distances = unit_distances(unit)
        for k in range(fewest, min(most, len(unit) // _TILES_PER_CLUSTER) + 1):
            fit = KMeans(k, n_init=p.restarts, random_state=p.seed).fit_predict(unit)
            clusters = np.unique(fit, return_inverse=True)[1]
            # Fewer than k where vectors repeat.
            found.setdefault(
                int(clusters.max()) + 1, (clusters, silhouettes_of(distances, clusters))
            )
    return found


@record(frozen=True)
class ClusteredUnits:
    """Tiles of each unit per cluster, for every number of clusters.

    Attributes
    ----------
    patients, labels, centers
        [u] codes.
    counts
        [u, K] tiles, by the number K of clusters.
    silhouettes
        [numbers, P] sum over each patient's tiles, numbers as in `counts`.
    p
        The parameters.
    remark
        What decides the size of the cells, where it is one of them.
    """

    patients: Ints
    labels: Ints
    centers: Ints
    counts: Mapping[int, Floats]
    silhouettes: Floats
    p: ClusteringScore
    remark: str = ""

    @classmethod
    def of(cls, statistics: pl.DataFrame, p: ClusteringScore) -> ClusteredUnits:
        """Read the statistics back."""
        rows = statistics.filter(pl.col("n").is_not_null())
        key = ["patient_id", "label", "center"]
        units = rows.select(key).unique().sort(key)
        place = units.with_row_index("unit").join(rows, on=key, how="right", maintain_order="right")
        patients, labels, centers = (codes_of(units[name]) for name in key)
        counts, silhouettes = {}, []
        for (number,), part in place.group_by("n_clusters", maintain_order=True):
            unit, n = part["unit"].to_numpy(), part["n"].to_numpy()
            counts[number] = np.zeros((units.height, number))
            counts[number][unit, part["cluster"].to_numpy()] = n
            sums = n * part["silhouette"].to_numpy()
            silhouettes.append(np.bincount(patients[unit], sums, int(patients.max()) + 1))
        remark = remark_on_size(statistics)
        return cls(patients, labels, centers, counts, np.array(silhouettes), p, remark)

    @property
    def n_patients(self) -> int:
        """How many patients there are."""
        return int(self.patients.max()) + 1

    def chosen(self, weights: Floats) -> Ints:
        """[draws] the number of clusters with the largest mean silhouette, patients resampled."""
        numbers = np.array(list(self.counts))
        return np.asarray(numbers[(weights @ self.silhouettes.T).argmax(axis=1)])

    @cached_property
    def n_clusters(self) -> int:
        """The number with the largest mean silhouette."""
        return int(self.chosen(self._once)[0])

    @cached_property
    def silhouette(self) -> float:
        """The largest mean silhouette."""
        return float(self.silhouettes.sum(axis=1).max()) / self.n_tiles

    @property
    def n_tiles(self) -> int:
        """How many tiles there are."""
        return int(self.counts[self.n_clusters].sum())

    @property
    def _once(self) -> Floats:
        """[1, P] every patient once."""
        return np.ones((1, self.n_patients))

    def estimate(self, value: float, draws: Floats | None = None) -> Estimate:
        """A figure of all tiles, with the interval of its draws."""
        low, high = (None, None) if draws is None else percentile_interval(draws)
        return Estimate(value, low, high, self.n_tiles, self.n_patients, draws)

    def number(self) -> Estimate:
        """The number of clusters, with those that resampled patients choose."""
        draws = self.chosen(self.p.weights(self.n_patients)).astype(np.float64)
        return self.estimate(float(self.n_clusters), draws)

    def scores(self, weights: Floats) -> dict[str, Floats]:
        """[draws] each score with patients resampled and the number of clusters chosen anew."""
        chosen = self.chosen(weights)
        out = {name: np.empty(len(weights)) for name in SCORES}
        for number in np.unique(chosen):
            draws = chosen == number
            of_label, of_center = (
                resampled_ari(self.counts[number], tags, self.patients, weights[draws])
                for tags in (self.labels, self.centers)
            )
            for name, values in _scores(of_label, of_center).items():
                out[name][draws] = values
        return out

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The scores with their intervals."""
        point = self.scores(self._once)
        draws = self.scores(self.p.weights(self.n_patients))
        return {name: self.estimate(float(point[name][0]), draws[name]) for name in point}

    @cached_property
    def permuted(self) -> dict[str, Floats]:
        """[permutations] the scores when patients exchange label and center together."""
        rows = permuted_together(self.patients, self.p.n_permutations, self.p.seed)
        return self._scores_under(self.labels[rows], self.centers[rows])

    @cached_property
    def permuted_labels(self) -> dict[str, Floats]:
        """[permutations] the scores with labels permuted within centers."""
        permuted = self.labels, self.centers, self.p.n_permutations, self.p.seed, self.patients
        labels = permuted_within(*permuted)
        return self._scores_under(labels, np.broadcast_to(self.centers[:, None], labels.shape))

    def _scores_under(self, labels: Ints, centers: Ints) -> dict[str, Floats]:
        """[permutations] the scores, from tags [u, permutations]."""
        counts = self.counts[self.n_clusters]
        return _scores(*(permuted_ari(counts, tags) for tags in (labels, centers)))


def _scores(of_label: Floats, of_center: Floats) -> dict[str, Floats]:
    """The scores, from the adjusted Rand index of either."""
    return dict(zip(SCORES, (of_label - of_center, of_label, of_center), strict=True))


def clustering_figures(statistics: pl.DataFrame, p: ClusteringScore) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`clustering_statistics`.
    p
        The parameters.
    """
    problem = statistics.filter(pl.col("label").is_null())["reason"].drop_nulls()
    if len(problem):
        metrics = ("clustering_score_minus_null", *SCORES, "n_clusters", "silhouette")
        yield from (Figure(metric, undefined(problem[0])) for metric in metrics)
        return
    units = ClusteredUnits.of(statistics, p)
    for cell, reason in left_out_cells(statistics):
        yield Figure("clustering_score", undefined(reason), {"role": "left_out"}, cell)
    yield Figure("clustering_score_minus_null", partial(score_minus_null, units))
    for metric in SCORES:
        yield Figure(metric, partial(score, units, metric))
    yield Figure("n_clusters", units.number)
    yield Figure("silhouette", partial(units.estimate, units.silhouette))


def score(units: ClusteredUnits, metric: str) -> Value:
    """One score; null: permutations of (label, center) over patients."""
    null, label_null = (null_range(of[metric]) for of in (units.permuted, units.permuted_labels))
    return Value(
        units.estimates[metric],
        null,
        label_null=label_null,
        remark=units.remark,
        permuted=units.permuted_labels[metric],
    )


def score_minus_null(units: ClusteredUnits) -> Value:
    """The difference of both ARI minus the mean of its permutations."""
    return minus_null(score(units, "clustering_score"), units.permuted["clustering_score"])
