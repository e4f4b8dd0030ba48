"""TIFF files that OpenSlide does not know or knows only in part, first of all OME-TIFF."""

from __future__ import annotations

import math
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.interface import Pixels, SlideDescription, SlideReader, on_white

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: The OME-XML of one slide has kilobytes. Without a bound a crafted file fills the memory.
MAX_OME_XML = 10_000_000
#: Tiles kept decoded: fields of view that overlap a tile, and files of few large strips, would have
#: it decoded once per field otherwise. Fields come row by row, and a row of fields touches two rows
#: of a file's tiles: of 240 x 240 px they fit for tissue 90,000 px wide.
_CACHE_BYTES = 128 << 20
#: A strip or tile is decoded whole: 20,000 x 20,000 px are 1.2 GB.
MAX_SEGMENT_PIXELS = 400_000_000
#: Micrometres per unit of OME's PhysicalSize; its default is the micrometre, which it writes with
#: the micro sign, others with the Greek letter.
_MICROMETRES = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "in": 25400.0,
    "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "\u00c5": 1e-4, "\u212b": 1e-4,
}  # fmt: skip
#: Micrometres per TIFF ResolutionUnit: inch, centimetre. Unit 1 is none: a shape, not a size.
_TIFF_UNITS = {2: 25400.0, 3: 10000.0}
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
#: Names of images that scanners store beside the slide.
_BESIDE_SLIDE = re.compile(
    r"(?<![^\W_])(label|macro|thumb|thumbnail|overview|barcode)(?![^\W_])", re.IGNORECASE
)
#: A colour image so many times smaller than one of other pixels is a macro image or label beside it,
#: as of a fluorescence slide, and no slide.
_MUCH_SMALLER = 16
#: TIFF orientations: those whose rows are stored as columns, then those flipped left to right and
#: upside down after that.
_TRANSPOSED, _LEFT_RIGHT, _UPSIDE_DOWN = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
#: TIFF's numbers for JPEG and for Aperio's JPEG 2000 of RGB pixels: decoded here and by OpenSlide with
#: the same libraries, libjpeg-turbo and OpenJPEG, to the same pixels.
_JPEG = 7
_ALIKE = (_JPEG, 33005)
#: What tifffile runs into on a damaged file, besides ValueError and OSError.
_DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
    TypeError, struct.error,
)  # fmt: skip


class NotBrightfieldError(ValueError):
    """The file holds other pixels than 8-bit red, green and blue."""


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


def ome_mpp(xml: str, width: int, height: int | None = None) -> float | None:
    """Micrometres per pixel in OME-XML, the mean of both directions; None where it is not given.

    Parameters
    ----------
    xml
        The file's OME-XML.
    width, height
        Level-0 px: of several images the one of this size counts.

    Raises
    ------
    ValueError
        If the text declares a document type or entities, is too long, or is no XML.

    Examples
    --------
    >>> pixels = '<Pixels SizeX="9" PhysicalSizeX="250" PhysicalSizeXUnit="nm"/>'
    >>> ome_mpp(f"<OME><Image>{pixels}</Image></OME>", 9)
    0.25
    """
    return _mean(_ome_sizes(xml, width, height))


def _mean(sizes: list[float]) -> float | None:
    return sum(sizes) / len(sizes) if sizes else None


def _ome_sizes(xml: str, width: int, height: int | None) -> list[float]:
    """Micrometres across and down a pixel, those that are given."""
    images = _ome_elements(xml, "Pixels")
    fitting = [
        image
        for image in images
        if image.get("SizeX") == str(width) and image.get("SizeY") in (None, str(height or None))
    ] or [image for image in images if image.get("SizeX") == str(width)]
    # With several images of other sizes nobody knows whose size it is.
    if not fitting and len(images) == 1:
        fitting = images
    if not fitting:
        return []
    sizes = [_physical_size(fitting[0], axis) for axis in "XY"]
    return [size for size in sizes if size is not None]


def _ome_magnification(xml: str) -> float | None:
    """That of the objectives named, where they agree; which image each took is seldom said."""
    powers = {
        objective.get("NominalMagnification", "") for objective in _ome_elements(xml, "Objective")
    }
    try:
        power = float(powers.pop()) if len(powers) == 1 else math.nan
    except ValueError:
        return None
    return power if 0 < power < math.inf else None


def _ome_elements(xml: str, name: str) -> list[ElementTree.Element]:
    _refuse_hostile(xml)
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 - without document type and entities
    except ElementTree.ParseError as error:
        raise ValueError(f"the file's OME-XML is damaged: {error}") from error
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def _physical_size(pixels: ElementTree.Element, axis: str) -> float | None:
    factor = _MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "um"))
    try:
        size = float(pixels.get(f"PhysicalSize{axis}", ""))
    except ValueError:
        return None
    if factor is None or not (math.isfinite(size) and size > 0):
        return None
    return size * factor


def _refuse_hostile(xml: str) -> None:
    """Before any parser sees it: tifffile parses the XML too."""
    if len(xml) > MAX_OME_XML:
        raise ValueError(f"the file's OME-XML has more than {MAX_OME_XML:,} characters")
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ValueError("the file's OME-XML declares a document type, which OME-XML never does")


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
            _refuse_hostile(first.description)
        images = self._file.series
        slide = _slide_among(images)
        levels = [_level(part.pages[0]) for part in slide.levels]
        levels += [
            _level(other.pages[0])
            for other in images
            if other is not slide and _is_reduced_copy(other, slide)
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
            magnification = _ome_magnification(xml)
            sizes, vendor, comment = _ome_sizes(xml, width, height), "ome-tiff", ""
        else:
            sizes, vendor, comment = _tag_sizes(page), "tiff", page.description
        if self._orientation in _TRANSPOSED:
            width, height, sizes = height, width, sizes[::-1]
        return SlideDescription(
            vendor,
            width,
            height,
            tuple(factors),
            _mean(sizes),
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


class DirectReader(TiffReader):
    """A TIFF that OpenSlide opens, its tiles decoded without OpenSlide; in doubt OpenSlide decides.

    Pixels equal OpenSlide's where a region begins at a whole pixel of its level. Elsewhere OpenSlide
    interpolates, and this reader begins at the nearest whole pixel.

    Parameters
    ----------
    path
        The file.
    openslide
        The slide as OpenSlide opened it: says what the slide is, and reads what cannot be decoded here
        or may be damaged. Closed with this reader.
    sizes
        Width and height of every level that OpenSlide sees.

    Raises
    ------
    ValueError
        If not every level is a whole grid of RGB tiles in JPEG or Aperio's RGB JPEG 2000. Holes
        OpenSlide may fill from another level.
    """

    def __init__(
        self, path: Path, openslide: SlideReader, sizes: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__(path)
        if not self._is_seen_alike(sizes):
            self._file.close()
            raise ValueError("OpenSlide may see other pixels")
        self._openslide = openslide
        self.description = openslide.description

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels uint8 [height, width, 3]; x, y in level-0 px, width and height in the level's px."""
        try:
            return super().read(x, y, level, width, height)
        except ValueError:
            return self._openslide.read(x, y, level, width, height)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._openslide.__exit__(kind, error, trace)

    def _is_seen_alike(self, sizes: Sequence[tuple[int, int]]) -> bool:
        if self.is_reoriented or tuple(sizes) != tuple(
            (level.width, level.height) for level in self._levels
        ):
            return False
        return all(
            level.page.keyframe.is_tiled
            and level.page.keyframe.compression in _ALIKE
            and level.page.keyframe.planarconfig == 1
            and level.page.keyframe.samplesperpixel == 3
            and all(level.page.databytecounts)
            for level in self._levels
        )

    def _decoded_content(
        self, keyframe: Any, page: Any, index: int, content: bytes
    ) -> NDArray[np.uint8] | None:
        decoded = super()._decoded_content(keyframe, page, index, content)
        if keyframe.compression == _JPEG and (
            decoded is None or not is_whole_jpeg(content) or _ends_undecoded(decoded)
        ):
            raise ValueError("a tile may be damaged")
        return decoded


def is_whole_jpeg(content: bytes) -> bool:
    """Whether a JPEG of one scan begins and ends as it must, without a marker in its data.

    The decoder at hand fills damaged tiles with what it makes of them, without a word. Together with
    :func:`_ends_undecoded` this found every damage of 512 bytes and more that OpenSlide refuses, of 238
    made on a real slide; of single flipped bits and 16 bytes it lets pass most that OpenSlide refuses.

    Examples
    --------
    >>> is_whole_jpeg(bytes.fromhex("ffd8 ffda 0102 ff00 03 ffd9"))
    True
    >>> is_whole_jpeg(bytes.fromhex("ffd8 ffda 0102 0000 00 0000"))
    False
    """
    content = content.rstrip(b"\0")
    if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):
        return False
    data = content[content.find(b"\xff\xda") + 2 : -2]
    markers = data.count(b"\xff") - data.count(b"\xff\0")
    # Markers at which a decoder may begin again are as good as data.
    return not markers or markers == sum(data.count(bytes((0xFF, 0xD0 + i))) for i in range(8))


def _ends_undecoded(decoded: NDArray[np.uint8]) -> bool:
    """What lies behind the end of too short data libjpeg leaves in the very middle of its range."""
    return bool((decoded[-8:, -8:] == 128).all())


def _bytes(segment: NDArray[np.uint8] | None) -> int:
    return 0 if segment is None else segment.nbytes


def _slide_among(images: Sequence[Any]) -> Any:
    """The largest image of 8-bit RGB, as a series of tifffile; labels and macro images are none.

    Raises
    ------
    ValueError
        If there is none, or a much larger image is of other pixels: why that one cannot be read.
    """
    if not images:
        raise ValueError("the file holds no image")
    named = [image for image in images if not _BESIDE_SLIDE.search(image.name or "")] or images
    by_area = sorted(named, key=_area, reverse=True)
    for image in by_area:
        try:
            _refuse_planes(image)
            _refuse_other_pixels(image.keyframe)
        except ValueError:
            continue
        if _area(image) * _MUCH_SMALLER > _area(by_area[0]):
            _refuse_twins(image, by_area)
            return image
    _refuse_planes(by_area[0])
    _refuse_other_pixels(by_area[0].keyframe)
    return by_area[0]


def _refuse_twins(slide: Any, images: Sequence[Any]) -> None:
    """Of two slides in one file the second would be left out without a word."""

    def kind(image: Any) -> tuple[Any, ...]:
        frame = image.keyframe
        return frame.imagewidth, frame.imagelength, frame.samplesperpixel, frame.dtype

    alike = [image.name or "no name" for image in images if kind(image) == kind(slide)]
    if len(alike) > 1:
        width, height, *_ = kind(slide)
        raise NotBrightfieldError(
            f"the file holds {len(alike)} images of {width} x {height} px ({', '.join(alike[:3])}), "
            "any of which may be the slide: write each to a file of its own"
        )


def _area(image: Any) -> int:
    return int(image.keyframe.imagewidth) * int(image.keyframe.imagelength)


def _is_reduced_copy(image: Any, slide: Any) -> bool:
    """Whether an image says that it is a reduced one, and has the slide's shape to a px."""
    own, whole = image.keyframe, slide.keyframe
    if not own.is_reduced or len(image.pages) > 1 or own.imagewidth >= whole.imagewidth:
        return False
    factor = whole.imagewidth / own.imagewidth
    sizes = {(part.keyframe.imagewidth, part.keyframe.imagelength) for part in slide.levels}
    return (
        abs(whole.imagelength / factor - own.imagelength) <= 1
        and (own.imagewidth, own.imagelength) not in sizes
        and own.photometric == whole.photometric
    )


def _refuse_planes(image: Any) -> None:
    if len(image.pages) > 1:
        raise NotBrightfieldError(
            f"the file holds {len(image.pages)} planes of one image, which is fluorescence, a stack, "
            "several slides, or RGB stored as three channels: write one RGB plane (8 bits, 3 samples) "
            "to a file of its own"
        )


def _level(page: Any) -> _Level:
    frame = page.keyframe
    _refuse_other_pixels(frame)
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


def _refuse_other_pixels(frame: Any) -> None:
    import tifffile

    colours = tifffile.PHOTOMETRIC
    other_words = (colours.PALETTE, colours.SEPARATED, colours.CIELAB, colours.ICCLAB)
    if frame.photometric in other_words and frame.bitspersample == 8:
        raise ValueError(f"colours stored as {frame.photometric.name} are not read in tiles")
    if (
        frame.photometric not in (colours.RGB, colours.YCBCR, *other_words)
        or frame.samplesperpixel < 3
    ):
        raise NotBrightfieldError(
            "the pixels are no RGB colours, so this is fluorescence or a single channel: only "
            "brightfield slides of 8-bit RGB can be audited, so scan or export it in colour"
        )
    if frame.dtype != np.uint8 or frame.bitspersample != 8:
        raise NotBrightfieldError(
            f"the pixels have {frame.bitspersample} bits per channel, so this is fluorescence or "
            "16-bit: only brightfield slides of 8-bit RGB can be audited, so export it with 8 bits"
        )
    if frame.samplesperpixel > 4 or frame.imagedepth > 1:
        raise NotBrightfieldError(
            f"the image has {frame.samplesperpixel} channels and {frame.imagedepth} planes, so this "
            "is fluorescence or a stack: only brightfield slides of 8-bit RGB can be audited"
        )


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
