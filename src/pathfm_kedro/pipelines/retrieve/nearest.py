"""The nearest slides of one slide, for a person who searches, and which of their tiles match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.registry import Distances
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats, Ints
from pathfm_kedro.pipelines.retrieve.search import SCOPES, ScopeName, rank_matches
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.mutual_knn import unit


@dataclass(frozen=True)
class PatchPair:
    """A tile of the query and the tile of a found slide that it is most like.

    Attributes
    ----------
    query, match
        Their places in the mosaics of the two slides.
    similarity
        Cosine of their vectors.
    """

    query: int
    match: int
    similarity: float


@dataclass(frozen=True)
class FoundSlide:
    """A slide that a search found.

    Attributes
    ----------
    row
        In the archive.
    distance
        By the family.
    pairs
        Tiles that match, the most similar first; each tile stands in one pair.
    """

    row: int
    distance: float
    pairs: tuple[PatchPair, ...]


def nearest_slides(
    query: Mosaic,
    archive: Mosaic,
    family: str,
    p: FamilySettings,
    scope: ScopeName = "across_organs",
    held_out: Sequence[str] = (),
    top: int = 10,
    n_pairs: int = 4,
) -> list[FoundSlide]:
    """Search one slide in an archive.

    Parameters
    ----------
    query
        One slide.
    archive
        Slides that are searched.
    family, p
        How slides are compared.
    scope
        Where the query looks.
    held_out
        Patients whose slides are not found: the query's own.
    top
        Slides wanted.
    n_pairs
        Pairs of tiles that are shown of each.

    Raises
    ------
    Undefined
        If there is nothing to find, or the archive is too small for the family.
    """
    allowed = ~archive.slides["patient"].is_in(list(held_out)).to_numpy()
    rule = SCOPES[scope]
    for column in rule.same:
        allowed &= (archive.slides[column] == query.slides[column][0]).to_numpy()
    for column in rule.other:
        allowed &= (archive.slides[column] != query.slides[column][0]).to_numpy()
    if not allowed.any():
        raise Undefined(
            "there is no slide of another patient to find: search across organs, or add slides"
        )
    row = allowed[None]
    distances = Distances(query, archive, p).of(family, row)
    _, _, found = rank_matches(distances, row, top)
    return [
        FoundSlide(
            int(one), float(distances[0, one]), matched_patches(query, archive, one, n_pairs)
        )
        for one in found
    ]


def matched_patches(query: Mosaic, archive: Mosaic, row: int, most: int) -> tuple[PatchPair, ...]:
    """Most similar tiles of the query and one slide, each in one pair at most."""
    start = archive.starts[row]
    similar = unit(query.vectors) @ unit(archive.vectors[start : start + archive.sizes[row]]).T
    return tuple(
        PatchPair(int(q), int(c), float(similar[q, c])) for q, c in one_to_one(similar)[:most]
    )


def one_to_one(similar: Floats) -> list[tuple[int, int]]:
    """Pairs of a row and a column, the largest entry first, each row and column once.

    Examples
    --------
    >>> one_to_one(np.array([[0.9, 0.8], [0.85, 0.1]]))
    [(0, 0), (1, 1)]
    """
    order: Ints = np.argsort(-similar, axis=None, kind="stable")
    rows, columns = np.unravel_index(order, similar.shape)
    taken: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if row not in used[0] and column not in used[1]:
            taken.append((row, column))
            used[0].add(row)
            used[1].add(column)
    return taken
