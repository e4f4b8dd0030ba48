"""Yottixel's mosaic: the few tiles that stand for a slide (Kalra et al. 2020)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def colour_clusters(mean_rgb: NDArray[np.float64], n_clusters: int, seed: int) -> NDArray[np.int64]:
    """k-means of tiles on their mean colour.

    Parameters
    ----------
    mean_rgb
        [n, 3] mean colour of each tile.
    n_clusters
        Number of clusters (9 in Yottixel); fewer where there are fewer different colours.
    seed
        Seed of the initialisation.

    Returns
    -------
    ndarray
        int64 [n], cluster of each tile.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(mean_rgb, axis=0))
    k = min(n_clusters, distinct)
    if k <= 1:
        return np.zeros(len(mean_rgb), np.int64)
    labels = KMeans(k, n_init=1, random_state=seed).fit_predict(mean_rgb)
    return np.asarray(labels, np.int64)


def choose_mosaic(
    clusters: NDArray[np.int64],
    positions: NDArray[np.int64],
    share: float,
    seed: int,
) -> NDArray[np.bool_]:
    """In every colour cluster, tiles spread over the tissue: k-means on position, nearest to centre.

    Parameters
    ----------
    clusters
        [n] colour cluster of each tile.
    positions
        [n, 2] x, y in level-0 px.
    share
        Share of each cluster's tiles that is chosen (0.05 in Yottixel), at least one.
    seed
        Seed of the initialisation.

    Returns
    -------
    ndarray
        bool [n], True for tiles of the mosaic.

    Examples
    --------
    >>> chosen = choose_mosaic(np.array([0, 0, 0, 1]), np.array([[0, 0], [9, 0], [4, 0], [0, 9]]),
    ...                        share=0.05, seed=0)
    >>> chosen.tolist()
    [False, False, True, True]
    """
    chosen = np.zeros(len(clusters), bool)
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        wanted = max(1, round(share * len(members)))
        chosen[members[_nearest_unused(positions[members], wanted, seed)]] = True
    return chosen


def _nearest_unused(positions: NDArray[np.int64], wanted: int, seed: int) -> NDArray[np.int64]:
    """For each centre of a k-means on position the nearest tile not taken yet."""
    from sklearn.cluster import KMeans

    points = positions.astype(np.float64)
    if wanted >= len(points):
        return np.arange(len(points))
    if wanted == 1:
        centres = points.mean(axis=0, keepdims=True)
    else:
        centres = KMeans(wanted, n_init=1, random_state=seed).fit(points).cluster_centers_
    distances = np.linalg.norm(points[:, None] - centres[None], axis=2)
    taken: list[int] = []
    for column in distances.T:
        order = np.argsort(column, kind="stable")
        taken.append(int(order[~np.isin(order, taken)][0]))
    return np.array(taken, np.int64)
