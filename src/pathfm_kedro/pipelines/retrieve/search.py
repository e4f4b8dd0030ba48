"""Search among slides: for each query slide the nearest slides of other patients.

A slide is one vector, the ``mean`` or the maximum of its tiles, or its mosaic, the few tiles that stand
for it (:func:`~pathfm_kedro.slides.mosaic.choose_mosaic`), compared by
:func:`~pathfm_kedro.pipelines.retrieve.search.median_min`:
``D(q, c) = median over patches a of q of min over patches b of c of distance(a, b)`` (Kalra et al.
2020, Yottixel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationInfo
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.mosaic import Mosaic, read_mosaic
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]
Distance = Literal["cosine", "euclidean"]
Family = Literal["mean", "max", "median_min"]
ScopeName = Literal["within_organ", "across_organs", "within_organ_other_centers"]
Vote = Literal["top1", "mv3", "mv5"]
T = TypeVar("T")

#: Entries of one block of patch-to-patch products: 128 MiB of float64.
_BLOCK_ENTRIES = 1 << 24
#: Distances closer than this are tied: it lies far above rounding, far below any real difference.
_TIE_DECIMALS = 7
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
class Retrieval(ExperimentParameters):
    """Parameters of the experiment; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    families, scopes, votes
        Names in :data:`FAMILIES`, :data:`SCOPES`, :data:`VOTES`: how slides are compared, where a
        query looks, and how many matches vote.
    distance
        ``cosine`` or ``euclidean``.
    exclude
        What a match must not share with its query.
    k
        Matches kept per query; the largest vote needs as many.
    min_patients
        Patients that a label needs to be counted.
    n_permutations
        Of labels among patients, for the null.
    """

    families: Annotated[tuple[Family, ...], Field(min_length=1), AfterValidator(_once)]
    scopes: Annotated[tuple[ScopeName, ...], Field(min_length=1), AfterValidator(_once)]
    votes: Annotated[tuple[Vote, ...], Field(min_length=1), AfterValidator(_once)]
    distance: Distance
    exclude: Literal["patient", "slide", "none"]
    k: Annotated[Count, AfterValidator(_enough_for_votes)]
    min_patients: Count
    n_permutations: Count


def mean(mosaic: Mosaic, distance: Distance) -> Floats:
    """Distances between slides by the mean of their patches: [n_slides, n_slides]."""
    return _between_rows(mosaic.mean(), distance)


def maximum(mosaic: Mosaic, distance: Distance) -> Floats:
    """Distances between slides by the maximum of their patches: [n_slides, n_slides]."""
    return _between_rows(mosaic.maximum(), distance)


def median_min(mosaic: Mosaic, distance: Distance) -> Floats:
    """Distances between slides as Yottixel ranks them.

    ``D(q, c) = median over patches a of q of min over patches b of c of distance(a, b)``. It is
    asymmetric: q is the query. Blocked, so that memory does not grow with the number of pairs of
    patches.

    Returns
    -------
    ndarray
        [n_slides, n_slides] float64, row = query.

    References
    ----------
    Kalra et al., Yottixel, Medical Image Analysis 65 (2020).

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["s", "t"]})
    >>> vectors = np.array([[0.0], [3.0], [1.0]], dtype=np.float32)
    >>> median_min(Mosaic(slides, vectors, np.array([0, 2])), "euclidean").tolist()
    [[0.0, 1.5], [1.0, 0.0]]
    """
    left, right, shift = _as_products(mosaic.vectors, distance)
    result = np.empty((len(mosaic.starts), len(mosaic.starts)))
    ends = mosaic.starts + mosaic.sizes
    side = int(np.sqrt(_BLOCK_ENTRIES))
    for queries in _blocks(mosaic.sizes, side):
        rows = slice(mosaic.starts[queries.start], ends[queries.stop - 1])
        nearest = np.empty((rows.stop - rows.start, len(mosaic.starts)))
        for found in _blocks(mosaic.sizes, side):
            columns = slice(mosaic.starts[found.start], ends[found.stop - 1])
            products = left[rows] @ right[columns].T
            starts = mosaic.starts[found] - columns.start
            nearest[:, found] = np.minimum.reduceat(products, starts, axis=1)
        nearest = _as_distance(nearest + shift[rows, None], distance)
        result[queries] = _median_by_slide(nearest, mosaic.sizes[queries])
    return result


#: Every way to compare two slides; a new one is a function here and a name in :data:`Family`.
FAMILIES: dict[Family, Callable[[Mosaic, Distance], Floats]] = {
    "mean": mean,
    "max": maximum,
    "median_min": median_min,
}


def rank_matches(
    distances: Floats, slides: pl.DataFrame, scope: Scope, exclude: str, k: int
) -> tuple[Ints, Ints, Ints]:
    """Find the k nearest admissible slides of each query; ties go to the lower index.

    Parameters
    ----------
    distances
        [n, n], row = query.
    slides
        [n] rows in the same order, with the columns that `scope` and `exclude` compare.
    scope
        Which slides a query may find.
    exclude
        ``patient``, ``slide`` or ``none``: what a match must not share with its query.
    k
        Matches per query; fewer where the scope holds fewer.

    Returns
    -------
    tuple
        Query, rank (from 1) and match of every found pair, ordered by query and rank.

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["r", "s", "t"], "patient": ["p", "p", "q"]})
    >>> distances = np.array([[0.0, 0.1, 0.2], [0.1, 0.0, 0.3], [0.2, 0.2, 0.0]])
    >>> query, rank, match = rank_matches(distances, slides, Scope(), "patient", k=2)
    >>> query.tolist(), rank.tolist(), match.tolist()
    ([0, 1, 2, 2], [1, 1, 1, 2], [2, 2, 0, 1])
    """
    same = [_codes(slides, column) for column in scope.same]
    other = [_codes(slides, column) for column in (*scope.other, *_EXCLUDED[exclude])]
    found: list[tuple[Ints, Ints, Ints]] = []
    for rows in _blocks(np.ones(len(slides), np.int64), max(1, _BLOCK_ENTRIES // len(slides))):
        block = distances[rows].copy()
        for codes in same:
            block[codes[rows, None] != codes] = np.inf
        for codes in other:
            block[codes[rows, None] == codes] = np.inf
        order = np.argsort(block, axis=1, kind="stable")[:, :k]
        query, rank = np.nonzero(np.isfinite(np.take_along_axis(block, order, axis=1)))
        found.append((query + rows.start, rank + 1, order[query, rank]))
    query, rank, match = (np.concatenate(part) for part in zip(*found, strict=True))
    return query, rank, match


def search_slides(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: Retrieval
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
        match_slide, distance, then patient, center, organ and label of query and match.
    """
    mosaic = read_mosaic(slides, tiles, embeddings)
    found = [pl.DataFrame(schema=MATCHES_SCHEMA)]
    if len(mosaic.starts):
        for family in p.families:
            distances = _rounded(FAMILIES[family](mosaic, p.distance))
            for scope in p.scopes:
                triple = rank_matches(distances, mosaic.slides, SCOPES[scope], p.exclude, p.k)
                found.append(_matches(family, scope, mosaic.slides, distances, triple))
    return pl.concat(found)


def _as_products(vectors: NDArray[Any], distance: Distance) -> tuple[Floats, Floats, Floats]:
    """Left, right, shift with distance (euclidean: squared) of rows i, j = left·right + shift_i.

    In this form the minimum over j needs the matrix product alone. float64, since a tie decided by
    rounding would make the ranking depend on threads and block sizes.
    """
    rows = vectors.astype(np.float64)
    if distance == "cosine":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        return -units, units, np.ones(len(rows))
    rows = rows - rows.mean(axis=0)  # far from the origin the squares would cancel
    squares = np.einsum("ij,ij->i", rows, rows)
    left = np.column_stack([-2 * rows, np.ones(len(rows))])
    return left, np.column_stack([rows, squares]), squares


def _as_distance(values: Floats, distance: Distance) -> Floats:
    positive = np.maximum(values, 0)
    return cast(Floats, np.sqrt(positive) if distance == "euclidean" else positive)


def _between_rows(rows: Floats, distance: Distance) -> Floats:
    left, right, shift = _as_products(rows, distance)
    return _as_distance(left @ right.T + shift[:, None], distance)


def _median_by_slide(values: Floats, sizes: Ints) -> Floats:
    """Medians over the rows of each slide: [Σ sizes, m] → [n_slides, m]."""
    slide = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded = np.full((len(sizes), int(sizes.max()), values.shape[1]), np.inf)
    padded[slide, place] = values
    padded.sort(axis=1)
    every = np.arange(len(sizes))
    middle = padded[every, (sizes - 1) // 2] + padded[every, sizes // 2]
    return cast(Floats, middle / 2)


def _blocks(sizes: Ints, limit: int) -> Iterator[slice]:
    """Consecutive slides of at most `limit` rows together, at least one slide each."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(start, stop)
        start = stop


def _rounded(distances: Floats) -> Floats:
    """Distances without the last digits, where rounding would decide between tied slides."""
    largest = float(distances.max())
    magnitude = int(np.ceil(np.log10(largest))) if largest > 0 else 0
    return np.round(distances, _TIE_DECIMALS - magnitude)


def _codes(slides: pl.DataFrame, column: str) -> Ints:
    return np.unique(slides[column].to_numpy(), return_inverse=True)[1].astype(np.int64)


def _matches(
    family: str,
    scope: str,
    slides: pl.DataFrame,
    distances: Floats,
    triple: tuple[Ints, Ints, Ints],
) -> pl.DataFrame:
    query, rank, match = triple
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
    kinds = [pl.col(name).cast(kind) for name, kind in MATCHES_SCHEMA.items()]
    return pairs.with_columns(beside).select(kinds)
