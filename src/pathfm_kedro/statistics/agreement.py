"""Agreement of two sets of vectors of the same tiles: features that someone brought, and ours.

Released weights under another preprocessing (mean and std, order of colours, size, resolution, pooling)
give vectors that look sound and are of another encoder. Against vectors of the same tiles this shows at
once. Three figures of one slide, from which :func:`explanation` makes a sentence:

- mean cosine, ``Σ_i cos(a_i, b_i) / n``: blind to a common part, which most encoders have;
- difference over spread, ``√(Σ_i ‖a_i − b_i‖² / Σ_i ‖b_i − b̄‖²)``: 0 where equal, about 1 where ``a_i``
  says nothing of tile i but the mean;
- shared nearest neighbours (m-kNN), which vectors of other dimensions have, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.mutual_knn import (
    cosine_distances,
    nearest,
    shared,
    unit,
    without_spread,
)

Vectors = NDArray[np.floating[Any]]
Kind = Literal["equal", "scaled", "reordered", "different", "undecided"]

#: Tiles whose neighbours are compared, evenly spaced: more change the second digit at most.
_MAX_TILES = 2000
#: Tiles that are looked for elsewhere in the slide, evenly spaced.
_MAX_SOUGHT = 512
#: Half precision and other libraries' kernels move vectors by up to some percent of the spread between
#: tiles; wrong preprocessing by some ten percent at the least.
_EQUAL_DIFFERENCE = 0.1
#: Kept neighbours below which rounding alone is no explanation.
_EQUAL_NEIGHBOURS = 0.9
#: From here two vectors count as of one direction.
_ONE_DIRECTION = 0.999


@dataclass(frozen=True)
class Agreement:
    """How far two sets of vectors of one slide's tiles agree.

    Attributes
    ----------
    n_tiles
        Tiles compared.
    dimensions
        Numbers of a vector of the first and of the second set.
    cosine
        Mean cosine; None where dimensions differ.
    difference
        Root mean square difference over the spread of the second set; None where dimensions differ or
        the second set has no spread.
    neighbours
        Share of each tile's k nearest tiles in one set that are so in the other; None with ``reason``.
    chance
        Its expectation where the sets have nothing to do with each other, k / (n − 1).
    k
        Neighbours per tile.
    lengths
        Mean length of a vector in each set.
    elsewhere
        Share of tiles whose vector is found in the second set, but at another tile.
    reason
        Why ``neighbours`` is None.
    """

    n_tiles: int
    dimensions: tuple[int, int]
    cosine: float | None
    difference: float | None
    neighbours: float | None
    chance: float | None
    k: int
    lengths: tuple[float, float]
    elsewhere: float
    reason: str = ""

    @property
    def kind(self) -> Kind:
        """What the figures say together.

        ``equal`` but for rounding; ``scaled``, of one direction and other lengths; ``reordered``, the
        same vectors at other tiles; ``different``; ``undecided`` where nothing can be said.
        """
        if self.neighbours is None and self.difference is None:
            return "undecided"
        if self.difference is not None and self.difference <= _EQUAL_DIFFERENCE:
            return "equal"
        if self.elsewhere > 0.5:
            return "reordered"
        if self.cosine is not None and self.cosine >= _ONE_DIRECTION and self._keeps_neighbours:
            return "scaled"
        return "different"

    @property
    def _keeps_neighbours(self) -> bool:
        return self.neighbours is None or self.neighbours >= _EQUAL_NEIGHBOURS


def agreement(brought: Vectors, ours: Vectors, k: int = 10) -> Agreement:
    """Compare two sets of vectors of the same tiles of one slide, row by row.

    Parameters
    ----------
    brought
        [n, d] vectors that someone made.
    ours
        [n, e] vectors of the same tiles in the same order.
    k
        Neighbours per tile, by cosine.

    Returns
    -------
    Agreement
        With figures that need equal dimensions left out where d and e differ.

    Raises
    ------
    ValueError
        If the rows do not match or there are none.

    Examples
    --------
    >>> vectors = np.random.default_rng(0).normal(size=(40, 8))
    >>> same = agreement(vectors, vectors)
    >>> round(same.cosine, 6), same.difference, same.neighbours, same.kind
    (1.0, 0.0, 1.0, 'equal')
    >>> agreement(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), vectors).kind
    'scaled'

    References
    ----------
    Elphick et al. 2024, arXiv 2412.11938 (m-kNN).
    """
    if len(brought) != len(ours) or not len(ours) or brought.ndim != 2 or ours.ndim != 2:
        raise ValueError(
            f"vectors brought {list(brought.shape)} and ours {list(ours.shape)} must be of the "
            "same tiles, one row each"
        )
    comparable = brought.shape[1] == ours.shape[1]
    neighbours, reason = _neighbours(brought, ours, k)
    lengths = [float(np.linalg.norm(v.astype(np.float64), axis=1).mean()) for v in (brought, ours)]
    return Agreement(
        n_tiles=len(ours),
        dimensions=(brought.shape[1], ours.shape[1]),
        cosine=float(1 - cosine_distances(brought, ours).mean()) if comparable else None,
        difference=_difference(brought, ours) if comparable else None,
        neighbours=neighbours,
        chance=None if neighbours is None else k / (min(len(ours), _MAX_TILES) - 1),
        k=k,
        lengths=(lengths[0], lengths[1]),
        elsewhere=_elsewhere(brought, ours) if comparable else 0.0,
        reason=reason,
    )


def _difference(brought: Vectors, ours: Vectors) -> float | None:
    exact = ours.astype(np.float64)
    spread = float(np.square(exact - exact.mean(axis=0)).sum())
    if without_spread(ours, "euclidean"):
        return None
    return float(np.sqrt(np.square(brought.astype(np.float64) - exact).sum() / spread))


def _neighbours(brought: Vectors, ours: Vectors, k: int) -> tuple[float | None, str]:
    rows = _evenly(len(ours), _MAX_TILES)
    if len(rows) <= k + 1:
        return None, f"{len(rows)} tiles are too few to compare the {k} nearest of each"
    if any(without_spread(vectors, "cosine") for vectors in (brought, ours)):
        return None, "all tiles of the slide have (nearly) the same vector"
    each = np.arange(len(rows))
    lists = [nearest(vectors[rows], each, k, "cosine") for vectors in (brought, ours)]
    return float(shared(*lists).mean()), ""


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def _elsewhere(brought: Vectors, ours: Vectors) -> float:
    """Share of tiles that are nearly equal to another tile's vector, and not to their own's."""
    rows = _evenly(len(ours), _MAX_SOUGHT)
    cosines = unit(brought[rows]) @ unit(ours).T
    own = cosines[np.arange(len(rows)), rows]
    return float(((cosines.max(axis=1) >= _ONE_DIRECTION) & (own < _ONE_DIRECTION)).mean())


def explanation(found: Agreement) -> str:
    """What an agreement means for a person, and what to look at.

    Examples
    --------
    >>> vectors = np.random.default_rng(0).normal(size=(40, 8))
    >>> explanation(agreement(vectors[::-1], vectors))[:61]
    'the vectors brought are ours at other tiles (100% of those lo'
    """
    if found.kind == "equal":
        return (
            "the vectors brought are ours but for rounding: they differ by "
            f"{found.difference:.2%} of the spread between tiles"
        )
    if found.kind == "reordered":
        return (
            f"the vectors brought are ours at other tiles ({found.elsewhere:.0%} of those looked "
            "for): vectors and coordinates in the files are in different orders; extract the "
            "features again"
        )
    if found.kind == "scaled":
        return (
            f"the vectors brought have our directions (mean cosine {found.cosine:.4f}) and other "
            f"lengths (mean {found.lengths[0]:.3g}, ours {found.lengths[1]:.3g}): they were "
            "normalised or scaled; figures by cosine hold, those by Euclidean distance do not"
        )
    if found.kind == "undecided":
        return f"whether the vectors brought are ours cannot be said: {found.reason}"
    return f"{_how_different(found)}: {_CAUSES}"


_CAUSES = (
    "the weights are others, or the preprocessing is (mean and std, order of colours, size of the "
    "input, resolution of the tiles, pooling); compare each with the encoder's entry"
)


def _how_different(found: Agreement) -> str:
    parts = []
    if found.dimensions[0] != found.dimensions[1]:
        parts.append(f"have {found.dimensions[0]} numbers where ours have {found.dimensions[1]}")
    if found.difference is not None:
        parts.append(f"differ from ours by {found.difference:.0%} of the spread between tiles")
    if found.neighbours is not None and found.chance is not None:
        parts.append(
            f"keep {found.neighbours:.0%} of each tile's {found.k} nearest tiles (chance: "
            f"{found.chance:.0%})"
        )
    return f"the vectors brought {' and '.join(parts)}"
