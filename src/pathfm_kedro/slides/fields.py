"""The fields of view of one slide's tiles, read in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.engine.versions import package_versions
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.kept_pixels import KEPT, Kept
from pathfm_kedro.slides.readers import PLAIN_SUFFIXES, Pixels, SlideReader, read_field

#: Raised with any change of how pixels are read, so that vectors of other pixels are not reused.
_READER_REVISION = 4
#: Packages that decode slides, by the suffix of a file; of any other suffix several readers may be
#: tried, so all of them count. Pillow resizes the fields of every file.
_OPENSLIDE = ("openslide-bin", "openslide-python", "pillow")
_DECODERS = {
    **dict.fromkeys(PLAIN_SUFFIXES, ("pillow",)),
    **dict.fromkeys((".mrxs", ".vms", ".vmu"), _OPENSLIDE),
}
_ANY_DECODER = ("imagecodecs", *_OPENSLIDE, "tifffile")
#: Micrometres per pixel may be this much coarser than asked: vendors round theirs (0.2527 for 0.25).
_MPP_ROUNDING = 1.02
#: Corners are whole level-0 px, so a field that just fits may stand out by less than one.
_CORNER_ROUNDING_PX = 1.0


def decoders_of(path: PurePath) -> tuple[str, ...]:
    """Packages whose versions decide about the pixels that a file gives."""
    return _DECODERS.get(path.suffix.lower(), _ANY_DECODER)


class Box(NamedTuple):
    """A part of a field, in px of the field as read, counted from its upper left."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, fields: Pixels) -> Pixels:
        """The part of each of the fields [n, rows, pixels, 3]."""
        return fields[:, self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class TileFields:
    """Where the tiles of one slide lie and how they are read.

    Attributes
    ----------
    files, path
        The cohort's folder and the slide's path in it.
    x, y
        Upper left corners in level-0 px.
    side
        Width of a field in level-0 px; its height too, unless `rows` says otherwise.
    pixels
        Width of a field as read.
    rows
        Height of a field as read; None for a square.
    kept_as
        Fingerprint of a slide whose pixels are kept for other steps; None where they are not.
    """

    files: SlideFiles
    path: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    side: float
    pixels: int
    rows: int | None = None
    kept_as: str | None = None

    @property
    def height(self) -> float:
        """Height of a field in level-0 px."""
        return self.side if self.rows is None else self.side * self.rows / self.pixels

    @property
    def nbytes(self) -> int:
        """Of the pixels of all fields."""
        return 3 * self.pixels * (self.rows or self.pixels) * len(self.x)

    def widened(self, pixels: int, rows: int | None = None) -> TileFields:
        """The same centres with a wider field at the same resolution.

        Parameters
        ----------
        pixels
            Width of the wider field as read.
        rows
            Its height as read; None for a square.
        """
        per_px = self.side / self.pixels
        right = (pixels * per_px - self.side) / 2
        down = ((rows or pixels) * per_px - self.height) / 2
        return replace(
            self,
            x=tuple(round(x - right) for x in self.x),
            y=tuple(round(y - down) for y in self.y),
            side=pixels * per_px,
            pixels=pixels,
            rows=None if rows == pixels else rows,
        )

    def digest(self) -> str:
        """SHA-256 of positions, resolution and the decoders' versions: changes when pixels may."""
        described: list[Any] = [
            _READER_REVISION,
            self.x,
            self.y,
            round(self.side, 6),
            self.pixels,
            package_versions(decoders_of(PurePath(self.path))),
        ]
        if self.rows is not None:
            described.append(self.rows)
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def refuse_over_edge(self) -> None:
        """Check that every field lies on the slide: outside it, pixels would be invented white.

        Raises
        ------
        ValueError
            Names the first field that reaches over the edge.
        """
        width, height = self._kept("size", self._size)[0]
        over = np.maximum.reduce(
            [
                -np.asarray(self.x, float),
                -np.asarray(self.y, float),
                np.asarray(self.x) + self.side - width,
                np.asarray(self.y) + self.height - height,
            ]
        )
        if (over > _CORNER_ROUNDING_PX).any():
            first = int(np.argmax(over > _CORNER_ROUNDING_PX))
            raise ValueError(
                f"the field of {self.side:.0f} x {self.height:.0f} px at x={self.x[first]}, "
                f"y={self.y[first]} reaches over the edge of the slide ({width} x {height} px): "
                "choose tiles with fields_on_slide"
            )

    def batches(self, size: int) -> Iterator[tuple[Pixels, NDArray[np.float32] | None]]:
        """Tiles uint8 [n, rows, pixels, 3] and, on a phantom, what was drawn on them [n, m].

        `size` fields are in memory at a time. What was drawn is that of a field's centre, however wide
        the field is.
        """
        corners = list(zip(self.x, self.y, strict=True))
        with _Opened(self.files, self.path) as slide:
            for start in range(0, len(corners), size):
                found = [self._read(slide, corner) for corner in corners[start : start + size]]
                drawn = [truth for _, truth in found if truth is not None]
                yield np.stack([tile for tile, _ in found]), np.stack(drawn) if drawn else None

    def _read(
        self, slide: _Opened, corner: tuple[int, int]
    ) -> tuple[Pixels, NDArray[np.float32] | None]:
        """One field, and what was drawn on it."""

        def read() -> tuple[Pixels, NDArray[np.float32] | None]:
            reader = slide.reader
            field = read_field(reader, *corner, self.side, self.pixels, self.rows)
            truth = self._truth(reader, [corner])
            return field, None if truth is None else truth[0]

        return self._kept((corner, self.side, self.pixels, self.rows), read)

    def _size(self) -> tuple[NDArray[np.int64]]:
        with self.files.open(self.path) as reader:
            return (np.array([reader.description.width, reader.description.height]),)

    def _kept(self, what: Hashable, make: Callable[[], Kept]) -> Kept:
        """What was made of this slide before, where it is kept."""
        if self.kept_as is None:
            return make()
        return KEPT.get((self.files.root, self.path, self.kept_as, what), make)

    def truth_of_parts(self, parts: Sequence[Box]) -> NDArray[np.float32] | None:
        """What was drawn at the centre of each part of each field [n, parts, m]; None off a phantom.

        A part around the field's centre has the field's truth.
        """
        fields = (self.x, self.y, self.side, self.pixels, self.rows)
        return self._kept(("truth", *fields, *parts), lambda: (self._truth_of_parts(parts),))[0]

    def _truth_of_parts(self, parts: Sequence[Box]) -> NDArray[np.float32] | None:
        per_px = self.side / self.pixels
        with self.files.open(self.path) as reader:
            if '"phantom"' not in reader.description.comment:
                return None
            found = []
            for part in parts:
                corners = [
                    (round(x + part.left * per_px), round(y + part.top * per_px))
                    for x, y in zip(self.x, self.y, strict=True)
                ]
                own = TileFields(
                    self.files,
                    self.path,
                    tuple(x for x, _ in corners),
                    tuple(y for _, y in corners),
                    part.width * per_px,
                    part.width,
                    part.height,
                )
                found.append(own._truth(reader, corners))
        return np.stack([truth for truth in found if truth is not None], axis=1)

    def _truth(
        self, reader: SlideReader, corners: list[tuple[int, int]]
    ) -> NDArray[np.float32] | None:
        if '"phantom"' not in reader.description.comment:
            return None
        from pathfm_kedro.slides.phantom import tile_truth

        drawn = json.loads(reader.description.comment)
        # Truth is that of a window's centre, so a rectangle is described as the square around its own.
        extent = min(round(self.side), round(self.height))
        right, down = ((round(whole) - extent) // 2 for whole in (self.side, self.height))
        return np.stack([tile_truth(drawn, x + right, y + down, extent) for x, y in corners])


class _Opened:
    """A slide that is opened once it is looked into."""

    def __init__(self, files: SlideFiles, path: str) -> None:
        self._files, self._path = files, path
        self._reader: SlideReader | None = None
        self._closing = ExitStack()

    @property
    def reader(self) -> SlideReader:
        if self._reader is None:
            self._reader = self._closing.enter_context(self._files.open(self._path))
        return self._reader

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()


def kept_for_others(
    found: Sequence[tuple[dict[str, Any], TileFields]],
) -> list[tuple[dict[str, Any], TileFields]]:
    """Slides and fields whose pixels are kept for other steps, where those of all fit into memory.

    Parameters
    ----------
    found
        As of :func:`slide_fields`.
    """
    if not KEPT.fits(sum(fields.nbytes for _, fields in found)):
        return list(found)
    return [(slide, replace(own, kept_as=slide["fingerprint"])) for slide, own in found]


def side_of_tiles(tiles: pl.DataFrame) -> int | None:
    """Side in px of tiles as they are embedded: ``field_um`` / ``mpp``; None where no tile tells it.

    Examples
    --------
    >>> side_of_tiles(pl.DataFrame({"field_um": [112.0], "mpp": [0.5]}))
    224
    """
    known = tiles.select("field_um", "mpp").drop_nulls()
    return None if known.is_empty() else round(known["field_um"][0] / known["mpp"][0])


def slide_fields(
    slides: pl.DataFrame, tiles: pl.DataFrame, files: SlideFiles, pixels: int
) -> list[tuple[dict[str, Any], TileFields]]:
    """Each slide that has tiles, with where they lie.

    Parameters
    ----------
    slides, tiles
        The tables.
    files
        The cohort's folder.
    pixels
        Side of a tile as read, where the tiles do not tell it themselves.
    """
    pixels = side_of_tiles(tiles) or pixels
    rows = {row["slide_id"]: row for row in slides.to_dicts()}
    found = []
    for (slide_id,), group in tiles.group_by("slide_id", maintain_order=True):
        slide = rows[str(slide_id)]
        side = group["field_um"][0] / slide["mpp"]
        corners = TileFields(
            files, slide["path"], tuple(group["x"]), tuple(group["y"]), side, pixels
        )
        found.append((slide, corners))
    return found


def fields_on_slide(
    tiles: pl.DataFrame, slides: pl.DataFrame, width_px: int, height_px: int
) -> pl.DataFrame:
    """Which tiles have room on their slide for a wider field around the same centre.

    Parameters
    ----------
    tiles
        tile_id, slide_id, x and y (upper left, level-0 px), field_um (side of the tile), mpp (µm per
        px as encoded).
    slides
        slide_id, width and height (level-0 px), mpp (µm per level-0 px).
    width_px, height_px
        The field, in px at the tiles' mpp.

    Returns
    -------
    DataFrame
        `tiles` in their order with ``has_room`` and ``no_room`` (why not; empty where there is room).

    Raises
    ------
    ValueError
        If a tile's slide is not in the table.

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["s"], "width": [1000], "height": [800], "mpp": [0.5]})
    >>> tiles = pl.DataFrame({"tile_id": ["a", "b"], "slide_id": ["s", "s"], "x": [0, 400],
    ...     "y": [300, 300], "field_um": [112.0, 112.0], "mpp": [0.5, 0.5]})
    >>> fields_on_slide(tiles, slides, 512, 512).select("tile_id", "has_room").rows()
    [('a', False), ('b', True)]
    """
    described = slides.select("slide_id", _w="width", _h="height", _mpp="mpp", _known=True)
    joined = tiles.join(described, on="slide_id", how="left", maintain_order="left")
    stray = joined.filter(pl.col("_known").is_null())["slide_id"].unique().sort().to_list()
    if stray:
        raise ValueError(f"tiles of {len(stray)} slides that the slides table lacks: {stray[0]}")
    field = _field_on_slide(width_px, height_px)
    return joined.with_columns(no_room=_why_no_room(*field, f"{width_px} x {height_px}")).select(
        *tiles.columns, (pl.col("no_room") == "").alias("has_room"), "no_room"
    )


def _field_on_slide(width_px: int, height_px: int) -> tuple[pl.Expr, pl.Expr, pl.Expr, pl.Expr]:
    """Left, top, width and height of the field in level-0 px."""
    per_px, tile = pl.col("mpp") / pl.col("_mpp"), pl.col("field_um") / pl.col("_mpp")
    width, height = width_px * per_px, height_px * per_px
    return pl.col("x") - (width - tile) / 2, pl.col("y") - (height - tile) / 2, width, height


def _why_no_room(
    left: pl.Expr, top: pl.Expr, width: pl.Expr, height: pl.Expr, asked: str
) -> pl.Expr:
    slack = _CORNER_ROUNDING_PX / 2
    inside = pl.all_horizontal(
        left >= -slack,
        top >= -slack,
        left + width <= pl.col("_w") + slack,
        top + height <= pl.col("_h") + slack,
    )
    too_small = (width > pl.col("_w") + slack) | (height > pl.col("_h") + slack)
    reasons = [
        (
            pl.col("_mpp").is_null() | pl.col("mpp").is_null(),
            "the slide's micrometres per pixel are unknown: give mpp in the manifest",
        ),
        (
            pl.col("_mpp") > pl.col("mpp") * _MPP_ROUNDING,
            "the slide is coarser than the field asks for: reading it would invent detail",
        ),
        (
            too_small,
            f"the slide is smaller than {asked} px at the tiles' resolution, as an image cut "
            "beforehand is: bring the whole slide",
        ),
        (~inside, f"the field of {asked} px reaches over the edge of the slide"),
    ]
    return pl.coalesce(
        *(pl.when(holds.fill_null(False)).then(pl.lit(why)) for holds, why in reasons), pl.lit("")
    )
