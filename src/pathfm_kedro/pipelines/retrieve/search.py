"""Search among slides: for each query slide the nearest slides of other patients.

A slide is its mosaic, the few tiles that stand for it
(:func:`~pathfm_kedro.slides.mosaic.choose_mosaic`). How two mosaics are compared is a *family*, a
file of its own, listed in :mod:`~pathfm_kedro.pipelines.retrieve.families.registry`: one vector a slide
(``mean``, ``max``, ``attention``), several (``median_min``, which is Yottixel's, ``barcode``,
``maxsim``, ``chamfer``), visual words (``bovw``, ``bm25``, ``vlad``), or the lists of others ordered
anew (``hybrid``, ``reranked``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np
import polars as pl
from pydantic import AfterValidator, Field, ValidationInfo
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.retrieve.families.registry import (
    TOKEN_FAMILIES,
    Distances,
    comparing_families,
    known_families,
)
from pathfm_kedro.pipelines.retrieve.families.settings import (
    Bools,
    Count,
    FamilySettings,
    Floats,
    Ints,
)
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.mosaic import Mosaic, read_mosaic, read_mosaic_with_tokens
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.tables import Embeddings, to_schema

ScopeName = Literal["within_organ", "across_organs", "within_organ_other_centers"]
Vote = Literal["top1", "mv3", "mv5"]
T = TypeVar("T")

#: Queries ranked at once.
_QUERIES_AT_ONCE = 1024
#: What of a slide stands beside it in the matches.
_CARRIED = ("patient", "center", "organ", "label")
MATCHES_SCHEMA: dict[str, pl.DataType] = {
    "family": pl.String(),
    "scope": pl.String(),
    "query_slide": pl.String(),
    "rank": pl.Int64(),
    "match_slide": pl.String(),
    "distance": pl.Float64(),
    **{f"{role}_{column}": pl.String() for role in ("query", "match") for column in _CARRIED},
    "reason": pl.String(),
}


@plain_dataclass(frozen=True)
class Scope:
    """Which slides a query may find: `same` must agree with the query, `other` must differ."""

    same: tuple[str, ...] = ()
    other: tuple[str, ...] = ()


#: Where a query looks, beside the exclusion of its own patient.
SCOPES: dict[ScopeName, Scope] = {
    "within_organ": Scope(same=("organ",)),
    "across_organs": Scope(),
    "within_organ_other_centers": Scope(same=("organ",), other=("center",)),
}

#: Nearest matches that vote.
VOTES: dict[Vote, int] = {"top1": 1, "mv3": 3, "mv5": 5}

#: Column that a match must not share with its query.
_EXCLUDED: dict[str, tuple[str, ...]] = {
    "patient": ("patient",),
    "slide": ("slide_id",),
    "none": (),
}


def _once(names: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(names))


def _enough_for_votes(k: int, info: ValidationInfo) -> int:
    largest = max(info.data.get("votes", ()), key=VOTES.__getitem__, default=None)
    if largest is not None and k < VOTES[largest]:
        raise ValueError(
            f"{largest} asks {VOTES[largest]} matches: set k to {VOTES[largest]}, or leave {largest} "
            "out of retrieval.votes"
        )
    return k


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SearchSettings(FamilySettings):
    """Parameters of every experiment that searches slides.

    Attributes
    ----------
    families, scopes, votes
        Names in :data:`FAMILIES` and :data:`REORDERINGS`, :data:`SCOPES`, :data:`VOTES`: how slides are
        compared, where a query looks, and how many matches vote.
    exclude
        What a match must not share with its query.
    k
        Matches kept per query; the largest vote needs as many.
    min_patients
        Patients that a label needs to be counted.
    n_permutations
        Of labels among patients, for the null.
    """

    families: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(known_families)]
    scopes: Annotated[tuple[ScopeName, ...], Field(min_length=1), AfterValidator(_once)]
    votes: Annotated[tuple[Vote, ...], Field(min_length=1), AfterValidator(_once)]
    exclude: Literal["patient", "slide", "none"]
    k: Annotated[Count, AfterValidator(_enough_for_votes)]
    min_patients: Count
    n_permutations: Count
    fused: Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(comparing_families)] = (
        "mean",
        "bm25",
    )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Retrieval(SearchSettings):
    """Parameters of the experiment; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    detailed
        Families whose F1 is also reported for each label and organ; all if not given.
    """

    detailed: Annotated[tuple[str, ...], AfterValidator(known_families)] | None = None

    def reports_all_of(self, family: str) -> bool:
        """Whether a family's F1 is reported for each label and organ."""
        return self.detailed is None or family in self.detailed


def allowed_pairs(slides: pl.DataFrame, scope: Scope, exclude: str) -> Bools:
    """Which slides each query may find: [n, n], row = query.

    Parameters
    ----------
    slides
        [n] rows with the columns that `scope` and `exclude` compare.
    scope
        Which slides a query may find.
    exclude
        ``patient``, ``slide`` or ``none``: what a match must not share with its query.
    """
    allowed = np.ones((len(slides), len(slides)), bool)
    for column in scope.same:
        codes = _codes(slides, column)
        allowed &= codes[:, None] == codes
    for column in (*scope.other, *_EXCLUDED[exclude]):
        codes = _codes(slides, column)
        allowed &= codes[:, None] != codes
    return allowed


def rank_matches(distances: Floats, allowed: Bools, k: int) -> tuple[Ints, Ints, Ints]:
    """Find the k nearest slides that each query may find; ties go to the lower index.

    Parameters
    ----------
    distances
        [n, m], row = query; a slide at infinite distance is not found.
    allowed
        [n, m] which slides a query may find.
    k
        Matches per query; fewer where fewer may be found.

    Returns
    -------
    tuple
        Query, rank (from 1) and match of every found pair, ordered by query and rank.

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["r", "s", "t"], "patient": ["p", "p", "q"]})
    >>> distances = np.array([[0.0, 0.1, 0.2], [0.1, 0.0, 0.3], [0.2, 0.2, 0.0]])
    >>> allowed = allowed_pairs(slides, Scope(), "patient")
    >>> query, rank, match = rank_matches(distances, allowed, k=2)
    >>> query.tolist(), rank.tolist(), match.tolist()
    ([0, 1, 2, 2], [1, 1, 1, 2], [2, 2, 0, 1])
    """
    found: list[tuple[Ints, Ints, Ints]] = []
    for start in range(0, len(distances), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        block = np.where(allowed[rows], distances[rows], np.inf)
        order = np.argsort(block, axis=1, kind="stable")[:, :k]
        query, rank = np.nonzero(np.isfinite(np.take_along_axis(block, order, axis=1)))
        found.append((query + start, rank + 1, order[query, rank]))
    query, rank, match = (np.concatenate(part) for part in zip(*found, strict=True))
    return query, rank, match


def search_slides(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: SearchSettings
) -> pl.DataFrame:
    """Search every slide among the slides of other patients, by every family and scope.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`MATCHES_SCHEMA`, one row per match: family, scope, query_slide, rank,
        match_slide, distance, then patient, center, organ and label of query and match. A family for
        which a scope holds too few slides has one row there with the reason and no query.
    """
    by_tokens = not TOKEN_FAMILIES.keys().isdisjoint((*p.families, *p.fused))
    read = read_mosaic_with_tokens if by_tokens else read_mosaic
    return search_mosaic(read(slides, tiles, embeddings), p)


def search_mosaic(mosaic: Mosaic, p: SearchSettings) -> pl.DataFrame:
    """Search every slide of a mosaic; see :func:`search_slides`."""
    return pl.concat([pl.DataFrame(schema=MATCHES_SCHEMA), *_searches(mosaic, p)])


def _searches(mosaic: Mosaic, p: SearchSettings) -> Iterator[pl.DataFrame]:
    if not len(mosaic.starts):
        return
    distances = Distances(mosaic, mosaic, p)
    allowed = {s: allowed_pairs(mosaic.slides, SCOPES[s], p.exclude) for s in p.scopes}
    for family in p.families:
        for scope in p.scopes:
            try:
                found = distances.of(family, allowed[scope])
            except Undefined as problem:
                nothing = {"family": family, "scope": scope, "reason": str(problem)}
                yield to_schema([nothing], MATCHES_SCHEMA)
                continue
            yield matches_table(family, scope, mosaic.slides, found, allowed[scope], p.k)


def _codes(slides: pl.DataFrame, column: str) -> Ints:
    return np.unique(slides[column].to_numpy(), return_inverse=True)[1].astype(np.int64)


def matches_table(
    family: str,
    scope: str,
    slides: pl.DataFrame,
    distances: Floats,
    allowed: Bools,
    k: int,
) -> pl.DataFrame:
    """The k nearest with what their slides carry, in the columns of :data:`MATCHES_SCHEMA`."""
    query, rank, match = rank_matches(distances, allowed, k)
    pairs = pl.DataFrame(
        {
            "family": pl.repeat(family, len(query), eager=True),
            "scope": pl.repeat(scope, len(query), eager=True),
            "query_slide": slides["slide_id"].gather(query),
            "rank": rank,
            "match_slide": slides["slide_id"].gather(match),
            "distance": distances[query, match],
        }
    )
    beside = [
        slides[column].gather(rows).alias(f"{role}_{column}")
        for role, rows in (("query", query), ("match", match))
        for column in _CARRIED
    ]
    return to_schema(pairs.with_columns(beside), MATCHES_SCHEMA)
