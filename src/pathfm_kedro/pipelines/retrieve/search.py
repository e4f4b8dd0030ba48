"""Search among slides: for each query slide the nearest slides of other patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.tables import Embeddings, tile_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Distance = Literal["cosine", "euclidean"]

#: Slides read at once: a mosaic keeps few tiles of each, so the whole cohort is never in memory.
_SLIDES_AT_ONCE = 32
#: Entries of one block of patch-to-patch products: 128 MiB of float64.
_BLOCK_ENTRIES = 1 << 24
#: Distances closer than this are tied: it lies far above rounding, far below any real difference.
_TIE_DECIMALS = 7
#: What of a slide stands beside it in the matches.
_CARRIED = ("patient", "center", "organ", "label")


@dataclass(frozen=True)
class Mosaic:
    """The patches that stand for each slide.

    Attributes
    ----------
    slides
        One row per slide, sorted by slide_id: slide_id, patient, center, organ, label.
    vectors
        [n_patches, d] float32, one slide below the other.
    starts
        [n_slides] first patch of each slide; every slide has at least one.
    """

    slides: pl.DataFrame
    vectors: NDArray[np.float32]
    starts: Ints

    @property
    def sizes(self) -> Ints:
        """[n_slides] patches of each slide."""
        return np.diff(np.append(self.starts, len(self.vectors)))


@dataclass(frozen=True)
class Scope:
    """Which slides a query may find: `same` must agree with the query, `other` must differ."""

    same: tuple[str, ...] = ()
    other: tuple[str, ...] = ()


#: Where a query looks, beside the exclusion of its own patient.
SCOPES: dict[str, Scope] = {
    "within_organ": Scope(same=("organ",)),
    "across_organs": Scope(),
    "within_organ_other_centers": Scope(same=("organ",), other=("center",)),
}

#: Nearest matches that vote.
VOTES = {"top1": 1, "mv3": 3, "mv5": 5}

#: Column that a match must not share with its query.
_EXCLUDED: dict[str, tuple[str, ...]] = {
    "patient": ("patient",),
    "slide": ("slide_id",),
    "none": (),
}
_DISTANCES = ("cosine", "euclidean")
#: Figures that a threshold can be set for: the signatures.
_JUDGED = ("macro_f1", "f1_range_over_organs")
#: What makes one search of many.
_SETTING = ("family", "vote", "scope")


def read_mosaic(slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings) -> Mosaic:
    """Embeddings of the mosaic tiles, ordered by slide and tile.

    Slides without embeddings or without a mosaic tile are left out.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.

    Raises
    ------
    ValueError
        If a vector holds NaN or infinity; the message names the slides.
    """
    parts = list(_mosaic_parts(slides, tiles, embeddings))
    if not parts:
        return Mosaic(_searched(slides, []), np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
    rows = pl.concat([part for part, _ in parts]).with_row_index("_row")
    # The order of rows in a table must not matter, not even to the last bit of a mean.
    rows = rows.sort("slide_id", "tile_id")
    vectors = np.concatenate([part for _, part in parts])[rows["_row"].to_numpy()]
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        slide_ids = rows.filter(pl.Series(broken))["slide_id"].unique().sort().to_list()
        raise ValueError(f"embeddings hold NaN or infinity on {slide_ids[:5]}: embed them anew")
    names, starts = np.unique(rows["slide_id"].to_numpy(), return_index=True)
    return Mosaic(_searched(slides, names.tolist()), vectors, starts.astype(np.int64))


def pool_slides(
    vectors: NDArray[np.floating[Any]], starts: Ints, pooling: Literal["mean", "max"]
) -> Floats:
    """One vector per slide: the mean or the maximum over its patches.

    Parameters
    ----------
    vectors
        [n_patches, d], one slide below the other.
    starts
        [n_slides] first patch of each slide, increasing.
    pooling
        ``mean`` or ``max``, per dimension.

    Returns
    -------
    ndarray
        [n_slides, d] float64.

    Examples
    --------
    >>> patches = np.array([[0.0, 2.0], [4.0, 0.0], [1.0, 1.0]])
    >>> pool_slides(patches, np.array([0, 2]), "mean").tolist()
    [[2.0, 1.0], [1.0, 1.0]]
    >>> pool_slides(patches, np.array([0, 2]), "max").tolist()
    [[4.0, 2.0], [1.0, 1.0]]
    """
    patches = vectors.astype(np.float64)
    if pooling == "max":
        return np.maximum.reduceat(patches, starts, axis=0)
    sizes = np.diff(np.append(starts, len(patches)))
    return np.add.reduceat(patches, starts, axis=0) / sizes[:, None]


def mean(mosaic: Mosaic, distance: Distance) -> Floats:
    """Distances between slides by the mean of their patches: [n_slides, n_slides]."""
    return _between_rows(pool_slides(mosaic.vectors, mosaic.starts, "mean"), distance)


def maximum(mosaic: Mosaic, distance: Distance) -> Floats:
    """Distances between slides by the maximum of their patches: [n_slides, n_slides]."""
    return _between_rows(pool_slides(mosaic.vectors, mosaic.starts, "max"), distance)


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


#: Every way to compare two slides; a new one is a function here and a name in the parameters.
FAMILIES: dict[str, Callable[[Mosaic, Distance], Floats]] = {
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


@dataclass(frozen=True)
class RetrievalParameters:
    """What the experiment is told; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    families, scopes, votes
        Names in :data:`FAMILIES`, :data:`SCOPES`, :data:`VOTES`.
    distance
        ``cosine`` or ``euclidean``.
    exclude
        ``patient``, ``slide`` or ``none``: what a match must not share with its query.
    k
        Matches kept per query.
    min_patients
        Patients that a label needs to be counted.
    primary
        family, vote and scope of the search that the signatures are read from.
    thresholds
        macro_f1 and f1_range_over_organs; None for none.
    draws, n_permutations, seed
        Of the bootstrap and of the null.

    Examples
    --------
    >>> told = {"families": ["mean"], "scopes": ["within_organ"], "votes": ["top1", "mv5"],
    ...         "distance": "cosine", "exclude": "patient", "k": 5, "min_patients": 2,
    ...         "primary": {"family": "mean", "vote": "mv5", "scope": "within_organ"},
    ...         "thresholds": {"macro_f1": None, "f1_range_over_organs": 0.3},
    ...         "draws": 200, "n_permutations": 50, "seed": 0}
    >>> RetrievalParameters.parse(told).votes
    ('top1', 'mv5')
    >>> RetrievalParameters.parse(told | {"k": 3})
    Traceback (most recent call last):
    ...
    ValueError: retrieve.k is 3, but mv5 asks 5 matches: set k to 5, or leave mv5 out of retrieve.votes
    """

    families: tuple[str, ...]
    scopes: tuple[str, ...]
    votes: tuple[str, ...]
    distance: Distance
    exclude: str
    k: int
    min_patients: int
    primary: Mapping[str, str]
    thresholds: Mapping[str, float | None]
    draws: int
    n_permutations: int
    seed: int

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> RetrievalParameters:
        """Read and check the parameters, so that no signature vanishes by a slip.

        Raises
        ------
        ValueError
            If a key is missing; a family, scope, vote, distance, exclusion or threshold is unknown;
            the primary search is not among those measured; or k is below the largest vote. The
            message names the key and the mend.
        """
        _check_complete("retrieve", parameters, [field.name for field in fields(cls)])
        told = {field.name: parameters[field.name] for field in fields(cls)}
        for name, known in {"families": FAMILIES, "scopes": SCOPES, "votes": VOTES}.items():
            _check_known(f"retrieve.{name}", told[name], known)
            told[name] = tuple(dict.fromkeys(told[name]))
        _check_known("retrieve.exclude", [told["exclude"]], _EXCLUDED)
        _check_known("retrieve.distance", [told["distance"]], _DISTANCES)
        for name, keys in {"primary": _SETTING, "thresholds": _JUDGED}.items():
            _check_known(f"retrieve.{name}", list(told[name]), keys)
            _check_complete(f"retrieve.{name}", told[name], keys)
        _check_primary_is_measured(told)
        _check_enough_matches(told["k"], told["votes"])
        return cls(**told)

    def thresholds_of(self, setting: Mapping[str, str]) -> Mapping[str, float | None]:
        """The signatures' thresholds where they are read, none elsewhere."""
        return self.thresholds if dict(setting) == dict(self.primary) else {}


def search_slides(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Search every slide among the slides of other patients, by every family and scope.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    parameters
        See :class:`RetrievalParameters`.

    Returns
    -------
    DataFrame
        One row per match: family, scope, query_slide, rank, match_slide, distance, then patient,
        center, organ and label of query and match.

    Raises
    ------
    ValueError
        If the parameters do not hold together (:meth:`RetrievalParameters.parse`).
    """
    told = RetrievalParameters.parse(parameters)
    mosaic = read_mosaic(slides, tiles, embeddings)
    found = [_no_matches()]
    if len(mosaic.starts):
        for family in told.families:
            distances = _rounded(FAMILIES[family](mosaic, told.distance))
            for scope in told.scopes:
                triple = rank_matches(distances, mosaic.slides, SCOPES[scope], told.exclude, told.k)
                found.append(_matches(family, scope, mosaic.slides, distances, triple))
    return pl.concat(found)


def _mosaic_parts(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings
) -> Iterator[tuple[pl.DataFrame, NDArray[np.float32]]]:
    names = embeddings.slide_ids
    for start in range(0, len(names), _SLIDES_AT_ONCE):
        chunk = names[start : start + _SLIDES_AT_ONCE]
        rows = tile_rows(slides, tiles, chunk)
        keep = rows["in_mosaic"].to_numpy().astype(bool)
        yield rows.filter(keep).select("slide_id", "tile_id"), embeddings.stack(chunk)[keep]


def _searched(slides: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    carried = slides.select(
        "slide_id", pl.col("patient_id").alias("patient"), "center", "organ", "label"
    )
    return carried.filter(pl.col("slide_id").is_in(list(names))).sort("slide_id")


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
    return pairs.with_columns(beside).cast(_no_matches().schema)


def _no_matches() -> pl.DataFrame:
    text = {f"{role}_{column}": pl.String() for role in ("query", "match") for column in _CARRIED}
    return pl.DataFrame(
        schema={
            "family": pl.String(),
            "scope": pl.String(),
            "query_slide": pl.String(),
            "rank": pl.Int64(),
            "match_slide": pl.String(),
            "distance": pl.Float64(),
            **text,
        }
    )


def _check_known(parameter: str, given: Any, known: Any) -> None:
    if isinstance(given, str):
        raise ValueError(f"{parameter}: {given!r} is no list; write [{given}]")
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{parameter}: {unknown} unknown; choose from {sorted(known)}")


def _check_complete(parameter: str, given: Mapping[str, Any], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(
            f"{parameter}: {missing} missing; add them as in conf/base/parameters_retrieve.yml"
        )


def _check_primary_is_measured(told: Mapping[str, Any]) -> None:
    for name, among in zip(_SETTING, ("families", "votes", "scopes"), strict=True):
        if told["primary"][name] not in told[among]:
            raise ValueError(
                f"retrieve.primary.{name} is {told['primary'][name]}, which is not measured: add "
                f"it to retrieve.{among}, or choose from {list(told[among])}"
            )


def _check_enough_matches(k: int, votes: Sequence[str]) -> None:
    largest = max(votes, key=VOTES.__getitem__)
    if k < VOTES[largest]:
        raise ValueError(
            f"retrieve.k is {k}, but {largest} asks {VOTES[largest]} matches: set k to "
            f"{VOTES[largest]}, or leave {largest} out of retrieve.votes"
        )
