"""TIFF files that OpenSlide does not know or knows only in part, first of all OME-TIFF."""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.interface import Pixels, SlideDescription, on_white
from pathfm_kedro.slides.ome_xml import mean_size, ome_magnification, ome_sizes, refuse_hostile
from pathfm_kedro.slides.tiff_images import is_reduced_copy, refuse_other_pixels, slide_among

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: Tiles kept decoded: fields of view that overlap a tile, and files of few large strips, would have
#: it decoded once per field otherwise. Fields come row by row, and a row of fields touches two rows
#: of a file's tiles: of 240 x 240 px they fit for tissue 90,000 px wide.
_CACHE_BYTES = 128 << 20
#: A strip or tile is decoded whole: 20,000 x 20,000 px are 1.2 GB.
MAX_SEGMENT_PIXELS = 400_000_000
#: Micrometres per TIFF ResolutionUnit: inch, centimetre. Unit 1 is none: a shape, not a size.
_TIFF_UNITS = {2: 25400.0, 3: 10000.0}
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
#: TIFF orientations: those whose rows are stored as columns, then those flipped left to right and
#: upside down after that.
_TRANSPOSED, _LEFT_RIGHT, _UPSIDE_DOWN = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
#: What tifffile runs into on a damaged file, besides ValueError and OSError.
_DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
    TypeError, struct.error,
)  # fmt: skip


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def is_ome_tiff(path: Path) -> bool:
    """Whether a TIFF describes itself in OME-XML."""
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            return bool(file.pages.first.is_ome)
    except (OSError, ValueError, *_DAMAGE):
        return False


@dataclass(frozen=True)
class _Level:
    """One pyramid level: the page that holds it and how it is cut into tiles or strips."""

    page: Any
    width: int
    height: int
    segment_width: int
    segment_height: int

    @property
    def columns(self) -> int:
        return -(-self.width // self.segment_width)

    @property
    def rows(self) -> int:
        return -(-self.height // self.segment_height)


class TiffReader:
    """A TIFF of 8-bit RGB pixels, tiled or striped, with its pyramid; any compression tifffile knows.

    A region decodes only the tiles or strips that it touches. Of several images the largest is read,
    rotated as its tag of orientation says.

    Parameters
    ----------
    path
        The file. Companion files of a multi-file OME-TIFF are not followed.

    Raises
    ------
    NotBrightfieldError
        If the pixels are fluorescence, grey, 16-bit, or a stack.
    ValueError
        If the file is no TIFF, or its compression or colour space cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        try:
            self._file: Any = tifffile.TiffFile(path, _multifile=False)
        except (tifffile.TiffFileError, *_DAMAGE) as error:
            raise ValueError(f"not a TIFF, or damaged: {error}") from error
        self._lock = threading.Lock()
        self._decoded: OrderedDict[tuple[int, int, int], NDArray[np.uint8] | None] = OrderedDict()
        self._held = 0
        try:
            self._levels = self._find_levels()
            self._orientation = int(self._levels[0].page.keyframe.tags.valueof("Orientation", 1))
            self.description = self._describe()
            self._segment(0, 0, 0)
        except _DAMAGE as error:
            self._file.close()
            raise ValueError(f"the TIFF cannot be decoded: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels uint8 [height, width, 3]; x, y in level-0 px, width and height in the level's px."""
        factor = self.description.downsamples[level]
        left, top = round(x / factor), round(y / factor)
        try:
            return self._turned_region(level, left, top, width, height)
        except (OSError, ValueError, *_DAMAGE) as error:
            raise ValueError(f"pixels at x={x}, y={y} cannot be decoded: {error}") from error

    @property
    def is_reoriented(self) -> bool:
        """Whether the pixels are stored in another orientation than they are shown in."""
        return self._orientation in range(2, 9)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _find_levels(self) -> tuple[_Level, ...]:
        first = self._file.pages.first
        if first.is_ome:
            refuse_hostile(first.description)
        images = self._file.series
        slide = slide_among(images)
        levels = [_level(part.pages[0]) for part in slide.levels]
        levels += [
            _level(other.pages[0])
            for other in images
            if other is not slide and is_reduced_copy(other, slide)
        ]
        return tuple(sorted(levels, key=lambda level: -level.width))

    def _describe(self) -> SlideDescription:
        first = self._levels[0]
        page = first.page.keyframe
        factors = [
            (first.width / level.width + first.height / level.height) / 2 for level in self._levels
        ]
        width, height = first.width, first.height
        magnification = None
        if self._file.pages.first.is_ome:
            xml = self._file.pages.first.description
            magnification = ome_magnification(xml)
            sizes, vendor, comment = ome_sizes(xml, width, height), "ome-tiff", ""
        else:
            sizes, vendor, comment = _tag_sizes(page), "tiff", page.description
        if self._orientation in _TRANSPOSED:
            width, height, sizes = height, width, sizes[::-1]
        return SlideDescription(
            vendor,
            width,
            height,
            tuple(factors),
            mean_size(sizes),
            comment,
            (sizes[0], sizes[1]) if len(sizes) == 2 else None,
            magnification,
        )

    def _turned_region(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """A region of the level as it is shown, from where its pixels are stored."""
        if not self.is_reoriented:
            return self._region(level, left, top, width, height)
        at = self._levels[level]
        transposed = self._orientation in _TRANSPOSED
        across, down = (at.height, at.width) if transposed else (at.width, at.height)
        flips = self._orientation in _LEFT_RIGHT, self._orientation in _UPSIDE_DOWN
        if flips[0]:
            left = across - left - width
        if flips[1]:
            top = down - top - height
        if transposed:
            region = self._region(level, top, left, height, width).swapaxes(0, 1)
        else:
            region = self._region(level, left, top, width, height)
        upright = region[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
        return np.ascontiguousarray(upright)

    def _region(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        at = self._levels[level]
        region = np.full((height, width, at.page.keyframe.samplesperpixel), 255, np.uint8)
        columns = range(max(left, 0) // at.segment_width, at.columns)
        rows = range(max(top, 0) // at.segment_height, at.rows)
        for row in rows:
            y = row * at.segment_height
            if y >= top + height:
                break
            for column in columns:
                x = column * at.segment_width
                if x >= left + width:
                    break
                segment = self._rgba(level, row * at.columns + column)
                if segment is not None:
                    inside = segment[: at.height - y, : at.width - x]
                    _paste(region, inside, x - left, y - top)
        return self._composed(region)

    def _rgba(self, level: int, index: int) -> NDArray[np.uint8] | None:
        """A tile or strip [height, width, 3 or 4]; None where the file has a hole."""
        at = self._levels[level]
        if at.page.keyframe.planarconfig == 1:
            return self._segment(level, 0, index)
        per_plane = at.rows * at.columns
        planes = [
            self._segment(level, plane, plane * per_plane + index)
            for plane in range(at.page.keyframe.samplesperpixel)
        ]
        found = [plane for plane in planes if plane is not None]
        return np.concatenate(found, axis=2) if len(found) == len(planes) else None

    def _segment(self, level: int, plane: int, index: int) -> NDArray[np.uint8] | None:
        key = (level, plane, index)
        with self._lock:
            if key in self._decoded:
                self._decoded.move_to_end(key)
                return self._decoded[key]
        segment = self._decode(self._levels[level].page, index)
        with self._lock:
            # Another thread may have decoded the same one meanwhile.
            self._held += _bytes(segment) - _bytes(self._decoded.pop(key, None))
            self._decoded[key] = segment
            while self._held > _CACHE_BYTES and len(self._decoded) > 1:
                _, dropped = self._decoded.popitem(last=False)
                self._held -= _bytes(dropped)
        return segment

    def _decode(self, page: Any, index: int) -> NDArray[np.uint8] | None:
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not offset or not count:
            return None
        with self._lock:
            self._file.filehandle.seek(offset)
            content = self._file.filehandle.read(count)
        if len(content) < count:
            raise ValueError("the file is cut short")
        return self._decoded_content(page.keyframe, page, index, content)

    def _decoded_content(
        self, keyframe: Any, page: Any, index: int, content: bytes
    ) -> NDArray[np.uint8] | None:
        tables = (
            {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
            if keyframe.compression in (6, 7, 33007, 34892)
            else {}
        )
        decoded, _, _ = keyframe.decode(content, index, **tables)
        return None if decoded is None else np.asarray(decoded[0])

    def _composed(self, region: NDArray[np.uint8]) -> Pixels:
        extra = self._levels[0].page.keyframe.extrasamples
        alpha = int(extra[0]) if extra else 0
        if alpha == _ALPHA:
            return on_white(region)
        if alpha == _ASSOCIATED_ALPHA:
            # Colours are multiplied by alpha already: what is missing is white.
            on_glass = region[..., :3].astype(np.uint16) + (255 - region[..., 3:])
            blended: Pixels = np.minimum(on_glass, 255).astype(np.uint8)
            return blended
        return np.ascontiguousarray(region[..., :3])


def _bytes(segment: NDArray[np.uint8] | None) -> int:
    return 0 if segment is None else segment.nbytes


def _level(page: Any) -> _Level:
    frame = page.keyframe
    refuse_other_pixels(frame)
    tiled = frame.is_tiled
    level = _Level(
        page,
        int(frame.imagewidth),
        int(frame.imagelength),
        int(frame.tilewidth if tiled else frame.imagewidth),
        int(frame.tilelength if tiled else min(frame.rowsperstrip, frame.imagelength)),
    )
    if level.segment_width * level.segment_height > MAX_SEGMENT_PIXELS:
        raise ValueError(
            f"strips or tiles of {level.segment_width} x {level.segment_height} px are too large to "
            "hold in memory: convert the file to a tiled pyramidal TIFF"
        )
    return level


def _tag_sizes(page: Any) -> list[float]:
    """Micrometres across and down a pixel by the TIFF's resolution, those that are given."""
    unit = _TIFF_UNITS.get(int(page.tags.valueof("ResolutionUnit", 2)))
    sizes = []
    for name in ("XResolution", "YResolution"):
        numerator, denominator = page.tags.valueof(name, (0, 1))
        if unit is not None and numerator > 0 and denominator > 0:
            sizes.append(unit * denominator / numerator)
    return sizes


def _paste(region: NDArray[np.uint8], part: NDArray[np.uint8], x: int, y: int) -> None:
    """Put a part's upper left corner at x, y of the region; what lies outside falls away."""
    height, width = region.shape[:2]
    visible = part[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
    if not visible.size:
        return
    x, y = max(x, 0), max(y, 0)
    region[y : y + visible.shape[0], x : x + visible.shape[1], : part.shape[2]] = visible
