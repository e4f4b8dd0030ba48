"""How good clusters are, and how well they agree with labels when patients are resampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]


def unit_distances(unit: Floats32) -> Floats32:
    """[n, n] Euclidean distances of rows [n, d] of length 1."""
    squares = 2 - 2 * (unit @ unit.T)
    np.fill_diagonal(squares, 0)
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def silhouettes_of(distances: NDArray[np.floating], clusters: Ints) -> Floats:
    """[n] silhouette (b − a) / max(a, b) of each tile; 0 for one that is alone in its cluster.

    Parameters
    ----------
    distances
        [n, n].
    clusters
        [n] codes, 0 … K − 1, each taken.

    Returns
    -------
    ndarray
        −1 … 1; −1 if there is one cluster only.

    Examples
    --------
    >>> places = np.array([0.0, 1.0, 10.0, 11.0])
    >>> silhouettes_of(abs(places[:, None] - places), np.array([0, 0, 1, 1])).mean().round(3)
    np.float64(0.9)
    """
    member = np.eye(int(clusters.max()) + 1)[clusters]
    if member.shape[1] < 2:
        return np.full(len(clusters), -1.0)
    sizes = member.sum(axis=0)
    sums = (distances @ member.astype(distances.dtype)).astype(np.float64)
    rows = np.arange(len(clusters))
    own = sums[rows, clusters] / np.maximum(sizes[clusters] - 1, 1)
    others = sums / sizes
    others[rows, clusters] = np.inf
    nearest = others.min(axis=1)
    with np.errstate(invalid="ignore"):
        each = (nearest - own) / np.maximum(nearest, own)
    return np.where(sizes[clusters] > 1, np.nan_to_num(each), 0)


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
        [draws, P] how often each patient is resampled.

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
    return _adjusted(both, by_tag, by_cluster, every)


def permuted_ari(counts: Floats, tags: Ints) -> Floats:
    """[permutations] adjusted Rand index of clusters and permuted tags, every patient once.

    Parameters
    ----------
    counts
        [u, K] tiles of each unit in each cluster.
    tags
        [u, permutations] label or center of each unit.

    Examples
    --------
    >>> permuted_ari(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[0, 0], [1, 0]])).tolist()
    [1.0, 0.0]
    """
    member = tags.T[:, None, :] == np.arange(int(tags.max(initial=0)) + 1)[:, None]
    cells = member.astype(np.float64) @ counts
    both, by_tag, by_cluster, every = (
        (part * (part - 1) / 2).sum(axis=tuple(range(1, part.ndim)))
        for part in (cells, cells.sum(axis=2), cells.sum(axis=1), cells.sum(axis=(1, 2)))
    )
    return _adjusted(both, by_tag, by_cluster, every)


def _adjusted(both: Floats, by_tag: Floats, by_cluster: Floats, every: Floats) -> Floats:
    """ARI from pairs that share cluster and tag, tag, cluster, or nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = by_tag * by_cluster / every
        return np.asarray((both - expected) / (0.5 * (by_tag + by_cluster) - expected))


def _pairs(counts: Floats, weights: Floats) -> Floats:
    """[draws] pairs of tiles in the same column; pairs within a patient weigh w, not w²."""
    between = (weights @ counts) ** 2 - weights**2 @ counts**2
    return np.asarray(0.5 * (between + weights @ (counts**2 - counts)).sum(axis=1))
