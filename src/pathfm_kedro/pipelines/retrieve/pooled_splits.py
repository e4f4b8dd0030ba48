"""Retrieval of an encoder that is trained on several splits of the patients, pooled over them.

Every split is searched by itself, with the vectors of its own model, and its votes are counted per
patient. No patient is in two splits, so the counts stand one below the other: macro-F1 and accuracy of
all of them, the bootstrap over all patients, and the sum of the splits' permuted counts as null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.retrieve.counted_queries import (
    Search,
    no_figures,
    searched_slides,
    why_no_votes,
)
from pathfm_kedro.pipelines.retrieve.search import VOTES, Retrieval, ScopeName
from pathfm_kedro.pipelines.retrieve.voted_figures import share
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.votes import PatientVotes

_POOLED = ("macro_f1", "accuracy")


def pooled_retrieval_figures(
    splits: Sequence[pl.DataFrame], slides: pl.DataFrame, p: Retrieval
) -> Iterator[Figure]:
    """Macro-F1 and accuracy of every family, scope and vote over all splits.

    Parameters
    ----------
    splits
        From :func:`~pathfm_kedro.pipelines.retrieve.search.search_slides`, of each split.
    slides
        Slides table.
    p
        The parameters.
    """
    labels = sorted(set().union(*(searched_slides(each, slides)["label"] for each in splits)))
    for scope in p.scopes:
        for family in p.families:
            own = [each.filter(family=family, scope=scope) for each in splits]
            # Each with permutations of its own: of one seed they would move together.
            seeds = (replace(p, seed=p.seed + number) for number in range(len(own)))
            found = (_search(each, slides, scope, q) for each, q in zip(own, seeds, strict=True))
            searches = [search for search in found if search is not None]
            for vote in p.votes:
                at = {"family": family, "scope": scope, "vote": vote}
                if not searches:
                    yield from no_figures(_POOLED, at, why_no_votes(own[0]))
                    continue
                votes = pooled_votes(searches, VOTES[vote], labels, p)
                for metric in _POOLED:
                    figure = getattr(votes, metric)
                    compute = partial(share, figure, votes.n, votes.n_patients)
                    yield Figure(metric, compute, at)


def _search(
    matches: pl.DataFrame, slides: pl.DataFrame, scope: ScopeName, p: Retrieval
) -> Search | None:
    found = matches.drop_nulls("query_slide")
    if found.is_empty():
        return None
    search = Search.of(found, searched_slides(matches, slides), scope, p)
    return search if search.counted.any() else None


def pooled_votes(
    searches: Sequence[Search], k: int, labels: Sequence[str], p: Retrieval
) -> PatientVotes:
    """Votes of the k nearest matches in each search, counted for the patients of all of them.

    Parameters
    ----------
    searches
        Of disjoint patients.
    k
        Matches that vote.
    labels
        Of all searches, sorted.
    p
        The parameters.
    """
    parts = [search.votes(k) for search in searches]
    place = [np.searchsorted(labels, search.labels) for search in searches]
    counts = []
    permuted = np.zeros((p.n_permutations, 3, len(labels)))
    for votes, columns in zip(parts, place, strict=True):
        own = np.zeros((len(votes.counts), 3, len(labels)))
        own[:, :, columns] = votes.counts
        counts.append(own)
        permuted[:, :, columns] += votes.permuted
    stacked = np.concatenate(counts)
    # What a patient moves in the pooled figure is what it moves in its own split, by that split's share
    # of the queries.
    sizes = np.array([votes.n for votes in parts], float)
    influence = np.concatenate(
        [votes.influence * size / sizes.sum() for votes, size in zip(parts, sizes, strict=True)],
        axis=1,
    )
    matches = np.concatenate([votes.matches for votes in parts])
    return PatientVotes(matches, stacked, permuted, influence, p.weights(len(stacked)))
