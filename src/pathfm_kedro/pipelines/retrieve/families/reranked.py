"""A small cross-encoder orders the first search's best slides anew.

The first search is ``mean``; its best ``candidates`` are scored by a network with one hidden layer that
sees both slides at once: quantiles of the similarity of each slide's patches to their nearest in the
other, the similarity of their means, and where the means differ (16 fixed random directions). It is
trained to tell pairs of one label from others on pairs of patients outside the query's fold. Unlike the
other families it has seen labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.folds import other_patients
from pathfm_kedro.pipelines.retrieve.families.settings import (
    Bools,
    FamilySettings,
    Floats,
    Ints,
)
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.mutual_knn import unit

FIRST = "mean"
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_DIRECTIONS = 16
_HIDDEN = 16
#: Pairs of slides that a network is trained on: what it has to learn is small.
_MOST_PAIRS = 20_000


def reranked(
    distances: Callable[[str], Floats],
    allowed: Bools,
    queries: Mosaic,
    archive: Mosaic,
    p: FamilySettings,
) -> Floats:
    """One less the probability that two slides have one label; slides that are no candidates: infinity.

    Raises
    ------
    Undefined
        If a query may find fewer slides than candidates are asked.
    """
    fewest = int(allowed.sum(axis=1).min())
    if fewest < p.candidates:
        raise Undefined(
            f"a query may find {fewest} slides here, and the first search hands over "
            f"{p.candidates} (retrieval.candidates): add slides, or search across organs"
        )
    first = np.where(allowed, distances(FIRST), np.inf)
    found = np.argsort(first, axis=1, kind="stable")[:, : p.candidates]
    features = pair_features(queries, archive, found, p.seed)
    own = queries.slides["label"].to_numpy()[:, None]
    same = own == archive.slides["label"].to_numpy()[found]
    result = np.full(allowed.shape, np.inf)
    for rows, outside in other_patients(queries, archive, p.folds, p.seed):
        # A pair teaches where neither of its slides is of the fold's patients.
        fold = set(archive.slides["patient"].to_numpy()[~outside])
        fold |= set(queries.slides["patient"].to_numpy()[rows])
        taught = np.array([patient not in fold for patient in queries.slides["patient"]])
        pairs = np.nonzero(outside[found] & taught[:, None])
        scores = _learned(features[pairs], same[pairs], features[rows], p.seed)
        result[rows[:, None], found[rows]] = 1 - scores
    return result


def pair_features(queries: Mosaic, archive: Mosaic, found: Ints, seed: int) -> Floats:
    """What the network sees of each query and each of its candidates: [n_queries, candidates, f]."""
    left, right = (unit(mosaic.vectors) for mosaic in (queries, archive))
    means = [unit(mosaic.mean()) for mosaic in (queries, archive)]
    dimension = left.shape[1]
    directions = np.random.default_rng(seed).normal(size=(dimension, _DIRECTIONS))
    places = [mean @ directions for mean in means]
    sizes = archive.sizes
    described = []
    for query, candidates in enumerate(found):
        rows = left[queries.starts[query] :][: queries.sizes[query]]
        similar = [rows @ right[archive.starts[c] :][: sizes[c]].T for c in candidates]
        profiles = [
            np.concatenate([np.quantile(s.max(axis=side), _QUANTILES) for side in (0, 1)])
            for s in similar
        ]
        cosine = means[1][candidates] @ means[0][query]
        apart = np.abs(places[1][candidates] - places[0][query])
        described.append(np.column_stack([np.stack(profiles), cosine, apart]))
    return np.stack(described)


def _learned(seen: Floats, same: Bools, asked: Floats, seed: int) -> Floats:
    """Probability of one label for each asked pair; one half where there is nothing to learn."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if len(np.unique(same)) < 2:
        return np.full(asked.shape[:2], 0.5)
    if len(seen) > _MOST_PAIRS:
        some = np.random.default_rng(seed).choice(len(seen), _MOST_PAIRS, replace=False)
        seen, same = seen[some], same[some]
    network = MLPClassifier((_HIDDEN,), alpha=1e-2, max_iter=60, tol=1e-3, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last epoch is as good as any: it is small and decays
        model = make_pipeline(StandardScaler(), network).fit(seen, same)
        scores = model.predict_proba(asked.reshape(-1, asked.shape[2]))[:, 1]
    return np.asarray(scores, np.float64).reshape(asked.shape[:2])
