"""Ways to compare slides, one to a file.

A family is a function of the slides that search and those that are searched, ``(queries, archive,
settings) -> [n_queries, n_archive]`` distances. One that orders what others found, such as the hybrid
search, also takes their distances and which slides a query may find. To add one, write its file and its
line here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.attention import attention
from pathfm_kedro.pipelines.retrieve.families.barcode import barcode
from pathfm_kedro.pipelines.retrieve.families.chamfer import chamfer
from pathfm_kedro.pipelines.retrieve.families.hybrid import hybrid
from pathfm_kedro.pipelines.retrieve.families.max import maximum
from pathfm_kedro.pipelines.retrieve.families.maxsim import maxsim, maxsim_pooled
from pathfm_kedro.pipelines.retrieve.families.mean import mean
from pathfm_kedro.pipelines.retrieve.families.median_min import median_min, median_min_symmetric
from pathfm_kedro.pipelines.retrieve.families.reranked import reranked
from pathfm_kedro.pipelines.retrieve.families.settings import (
    Bools,
    FamilySettings,
    Floats,
    Precision,
)
from pathfm_kedro.pipelines.retrieve.families.visual_words import bm25, bovw, vlad
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.mosaic import Mosaic

Family = Callable[[Mosaic, Mosaic, FamilySettings], Floats]
Reordering = Callable[[Callable[[str], Floats], Bools, Mosaic, Mosaic, FamilySettings], Floats]


def by_tokens(family: Family) -> Family:
    """A family that compares slides by the patch tokens of their tiles, in place of tiles' vectors.

    Raises
    ------
    Undefined
        Where it is called, if there are no tokens.
    """

    def compare(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
        if queries.tokens is None or archive.tokens is None:
            raise Undefined(
                "needs tokens of patches, and there are none of these tiles: give the encoder's entry "
                "patch_tokens, as 4, and embed again"
            )
        return family(queries.tokens, archive.tokens, p)

    return compare


#: Families that compare slides by tokens of patches, several of a tile, where an encoder's entry has
#: them stored (``patch_tokens``).
TOKEN_FAMILIES: dict[str, Family] = {
    "maxsim_tokens": by_tokens(maxsim),
    "chamfer_tokens": by_tokens(chamfer),
}
#: Families that compare two slides by their vectors alone.
FAMILIES: dict[str, Family] = {
    "mean": mean,
    "max": maximum,
    "attention": attention,
    "median_min": median_min,
    "median_min_symmetric": median_min_symmetric,
    "barcode": barcode,
    "maxsim": maxsim,
    "maxsim_pooled": maxsim_pooled,
    "chamfer": chamfer,
    **TOKEN_FAMILIES,
    "bovw": bovw,
    "bm25": bm25,
    "vlad": vlad,
}
#: Families that order anew what others found.
REORDERINGS: dict[str, Reordering] = {"hybrid": hybrid, "reranked": reranked}

#: Distances closer than this are tied: it lies far above rounding, far below any real difference.
TIE_DECIMALS: dict[Precision, int] = {"float64": 7, "float32": 5}


@dataclass(frozen=True)
class Distances:
    """Distances by every family between the same slides; each family is computed once.

    Attributes
    ----------
    queries, archive
        Slides that search, and slides that are searched; the same object for a cohort's own search.
    p
        Settings of the families.
    """

    queries: Mosaic
    archive: Mosaic
    p: FamilySettings
    _known: dict[str, Floats] = field(default_factory=dict)

    def of(self, name: str, allowed: Bools) -> Floats:
        """[n_queries, n_archive] distances by a family, without the digits that rounding decides.

        Parameters
        ----------
        name
            Of the family.
        allowed
            [n_queries, n_archive] which slides a query may find.

        Raises
        ------
        Undefined
            If these slides are too few for the family.
        """
        if name in FAMILIES:
            return self._own(name)
        reorder = REORDERINGS[name]
        return rounded(
            reorder(partial(self.of, allowed=allowed), allowed, self.queries, self.archive, self.p)
        )

    def _own(self, name: str) -> Floats:
        if name not in self._known:
            found = FAMILIES[name](self.queries, self.archive, self.p)
            self._known[name] = rounded(found, self.p.precision)
        return self._known[name]


def known_families(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises
    ------
    ValueError
        If a name is no family; the message names the nearest.

    Examples
    --------
    >>> known_families(["mean", "max", "mean"])
    ('mean', 'max')
    """
    known = [*FAMILIES, *REORDERINGS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            mend = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"'{name}' is no family: {mend}Known are {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def comparing_families(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, none of which orders anew what others found."""
    listed = known_families(names)
    for name in listed:
        if name in REORDERINGS:
            raise ValueError(
                f"'{name}' orders what other families found: name one of {[*FAMILIES]}"
            )
    return listed


def rounded(distances: Floats, precision: Precision = "float64") -> Floats:
    """The same array without the last digits, where rounding would decide between tied slides."""
    largest = float(distances.max(initial=0.0, where=np.isfinite(distances)))
    magnitude = int(np.ceil(np.log10(largest))) if largest > 0 else 0
    return np.round(distances, TIE_DECIMALS[precision] - magnitude, out=distances)
