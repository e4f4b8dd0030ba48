"""Fields of view that lie inside one another around one centre, and the sub-tiles that cover them."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import polars as pl

from pathfm_kedro.slides.fields import Box

#: Width and height in px.
Size = tuple[int, int]
#: Pixels of fields and their parts that one job has in memory: 30 fields of 512 px with 9 sub-tiles.
_BYTES_IN_MEMORY = 64 << 20


def name_of(field: Size) -> str:
    """A field's name: one side of a square, else width x height.

    Examples
    --------
    >>> name_of((512, 512)), name_of((2048, 1536))
    ('512', '2048x1536')
    """
    return str(field[0]) if field[0] == field[1] else f"{field[0]}x{field[1]}"


def size_of(field: Any) -> Any:
    """Width and height of a field that is given as its side or as [width, height].

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> size_of(512), size_of([2048, 1536])
    ((512, 512), (2048, 1536))
    """
    sides = [field, field] if isinstance(field, int) else field
    known = isinstance(sides, list | tuple) and len(sides) == 2
    if not (known and all(isinstance(side, int) and side > 0 for side in sides)):
        raise ValueError("neither a side in px nor [width, height]")
    return tuple(sides)


def require_nested(fields: tuple[Size, ...]) -> tuple[Size, ...]:
    """The fields, if each lies inside the next with the same centre px.

    Raises
    ------
    ValueError
        Naming the fields that do not; or if there are fewer than two.
    """
    if len(fields) < 2:
        raise ValueError("needs the tile and one wider field")
    for small, large in pairwise(fields):
        if small == large or small[0] > large[0] or small[1] > large[1]:
            raise ValueError(
                f"{name_of(small)} does not lie inside {name_of(large)}; list them from small to "
                "large"
            )
        if (large[0] - small[0]) % 2 or (large[1] - small[1]) % 2:
            raise ValueError(
                f"{name_of(small)} and {name_of(large)} have no common centre px; make all sides "
                "even, or all odd"
            )
    return fields


def fields_around(fields: Sequence[Size], side: int | None) -> tuple[Size, ...]:
    """A tile, and those of the wider fields that lie around it with its centre px.

    Parameters
    ----------
    fields
        The first stands for the tile.
    side
        Of the tile, px; None where it is not known, which changes nothing.

    Examples
    --------
    >>> fields_around([(224, 224), (512, 512), (1025, 1025)], 256)
    ((256, 256), (512, 512))
    """
    if side is None:
        return tuple(fields)
    return ((side, side), *(field for field in fields[1:] if _is_around(field, side)))


def places_with_room(
    fields: Sequence[Size], places: pl.DataFrame, slide_ids: Collection[str]
) -> Iterator[tuple[tuple[Size, ...], pl.DataFrame]]:
    """Each field beyond the tile with those inside it, and the places that have room for it.

    Parameters
    ----------
    fields
        Nested, the tile first.
    places
        slide_id, and field: the largest that the place has room for.
    slide_ids
        Slides that were read; others are left out, and so are fields without a place.

    Examples
    --------
    >>> places = pl.DataFrame({"slide_id": ["s", "t"], "field": ["512", "1024"]})
    >>> fields = [(224, 224), (512, 512), (1024, 1024)]
    >>> [(len(own), rows.height) for own, rows in places_with_room(fields, places, ["s", "t"])]
    [(2, 2), (3, 1)]
    """
    for position in range(1, len(fields)):
        names = [name_of(field) for field in fields[position:]]
        rows = places.filter(
            pl.col("field").is_in(names), pl.col("slide_id").is_in(list(slide_ids))
        )
        if rows.height:
            yield tuple(fields[: position + 1]), rows


def _is_around(field: Size, side: int) -> bool:
    """Whether a field holds a tile of this side, more than it, and has its centre px."""
    beyond = [length - side for length in field]
    return min(beyond) >= 0 < max(beyond) and not any(length % 2 for length in beyond)


def sub_tiles(field: Size, tile: Size) -> list[Box]:
    """Fewest sub-tiles that cover a field, evenly spaced, row by row; they may overlap.

    Where a side takes an odd number of them, one lies in the middle.

    Examples
    --------
    >>> [(box.left, box.top) for box in sub_tiles((512, 224), (224, 224))]
    [(0, 0), (144, 0), (288, 0)]
    """

    def starts(whole: int, part: int) -> list[int]:
        steps = math.ceil(whole / part) - 1
        return [round(i * (whole - part) / max(steps, 1)) for i in range(steps + 1)]

    return [
        Box(left, top, *tile)
        for top in starts(field[1], tile[1])
        for left in starts(field[0], tile[0])
    ]


@dataclass(frozen=True)
class Layout:
    """The parts of the largest of nested fields that are embedded, each once.

    Parts of a smaller field come before those that a larger one adds, so that a part has the same
    index whatever the largest field is.

    Attributes
    ----------
    fields
        Width and height of the fields, small to large.
    parts
        Where they lie in the largest.
    wholes
        Per field, the index of the part that is the field itself.
    subs
        Per field, the indices of its sub-tiles; none of a field that is not covered by them.
    coarse
        The same of sub-tiles at a coarser resolution; none where the field is no larger than they are.
    """

    fields: tuple[Size, ...]
    parts: tuple[Box, ...]
    wholes: tuple[int, ...]
    subs: tuple[tuple[int, ...], ...]
    coarse: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls,
        fields: Sequence[Size],
        covered: Container[Size] | None = None,
        coarser: int | None = None,
    ) -> Layout:
        """Lay out nested fields; the first is the tile.

        Parameters
        ----------
        fields
            From small to large.
        covered
            Fields of which sub-tiles are embedded too; all where not given.
        coarser
            How many times the tile's micrometres per px sub-tiles of the covered fields have once more.

        Examples
        --------
        >>> layout = Layout.of([(224, 224), (512, 512)])
        >>> len(layout.parts), layout.wholes, len(layout.subs[1])
        (10, (0, 1), 9)
        >>> [len(of) for of in Layout.of([(224, 224), (1024, 1024)], coarser=2).coarse]
        [0, 9]
        """
        index: dict[Box, int] = {}
        wholes, subs, coarse = [], [], []
        tile = fields[0]
        large = tile if coarser is None else (coarser * tile[0], coarser * tile[1])
        for field in fields:
            left, top = ((fields[-1][axis] - field[axis]) // 2 for axis in (0, 1))
            whole = Box(left, top, *field)
            wholes.append(index.setdefault(whole, len(index)))

            def cover(
                part: Size, left: int = left, top: int = top, of: Size = field
            ) -> Iterator[int]:
                for box in sub_tiles(of, part):
                    moved = box._replace(left=box.left + left, top=box.top + top)
                    yield index.setdefault(moved, len(index))

            is_covered = covered is None or field in covered
            subs.append(tuple(cover(tile)) if is_covered else ())
            holds = coarser is not None and field[0] > large[0] and field[1] > large[1]
            coarse.append(tuple(cover(large)) if is_covered and holds else ())
        return cls(tuple(fields), tuple(index), tuple(wholes), tuple(subs), tuple(coarse))


@dataclass(frozen=True)
class NestedFields:
    """Fields around each place and their parts, as one job reads them.

    Attributes
    ----------
    sizes
        Width and height of the fields, the tile first.
    covered
        Those of which the sub-tiles are embedded too; None for all.
    coarser
        How many times the tile's micrometres per px they have once more; None for not at all.
    units
        Of the vectors.
    """

    sizes: tuple[Size, ...]
    covered: tuple[Size, ...] | None = None
    coarser: int | None = None
    units: str = "place x part x dimension, as the encoder gives it, not normalised"

    @cached_property
    def layout(self) -> Layout:
        """Where the parts lie."""
        return Layout.of(self.sizes, self.covered, self.coarser)

    @property
    def side(self) -> Size:
        """The largest field."""
        return self.sizes[-1]

    @property
    def parts(self) -> tuple[Box, ...]:
        """Parts of the largest field that are embedded."""
        return self.layout.parts

    @property
    def batch(self) -> int:
        """Fields in memory at once."""
        each = sum(3 * part.width * part.height for part in self.parts)
        return max(1, _BYTES_IN_MEMORY // each)
