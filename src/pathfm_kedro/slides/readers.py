"""Open slides of any scanner, and plain images, behind one small interface."""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pathfm_kedro.slides.dicom_colour import is_mislabelled_ycbcr, ycbcr_to_rgb
from pathfm_kedro.slides.direct_tiff import DirectReader
from pathfm_kedro.slides.interface import Pixels, SlideDescription, SlideReader, on_white
from pathfm_kedro.slides.members import dicom_slide, slide_members
from pathfm_kedro.slides.ome_tiff import TiffReader, is_ome_tiff, is_tiff
from pathfm_kedro.slides.tiff_images import NotBrightfieldError

__all__ = [
    "MAX_PLAIN_PIXELS", "PLAIN_SUFFIXES", "Pixels", "SlideDescription", "SlideReader",
    "file_fingerprint", "on_white", "open_slide", "read_field", "reduce_by_area", "resize",
]  # fmt: skip

#: Images without a pyramid that are read whole.
PLAIN_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
#: How the files begin, whatever their name: PNG, JPEG, WebP, BMP.
_PLAIN_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM")
#: Formats of which Pillow shows the first frame of several.
_ANIMATED = ("WEBP", "PNG", "GIF")
#: How Pillow names stored values of two bytes, high or low byte first.
_SIXTEEN_BITS = (";16B", ";16L", ";16N", ";16")
#: What is wrong with a slide without colours.
GREY_REASON = (
    "the pixels are grey, so this is fluorescence or a copy without colour: only brightfield slides of "
    "8-bit RGB can be audited, so scan or export it in colour"
)
#: A plain image is in memory as a whole: 20,000 x 20,000 px are 1.2 GB.
MAX_PLAIN_PIXELS = 400_000_000
#: Pillow refuses images of 179 million px on its own account. Its limit is a setting of the process.
_PILLOW_LIMIT = threading.Lock()
#: OpenSlide keeps 32 MiB of decoded tiles by default, less than a row of fields across wide tissue
#: touches, so that the next row would decode them again.
_CACHE_BYTES = 128 << 20
#: Bytes hashed at the start, in the middle and at the end of a large file for its fingerprint.
_FINGERPRINT_SAMPLE = 1 << 20


class _UnknownFormatError(ValueError):
    """OpenSlide does not know the format, so its reason says nothing about the file."""


class _OpenSlideReader:
    def __init__(self, path: Path) -> None:
        import openslide

        try:
            self._slide: Any = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise _UnknownFormatError("no reader knows this format") from error
        except openslide.OpenSlideError as error:
            raise ValueError(str(error)) from error
        self._slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        self.description = _describe_openslide(self._slide)
        self.level_sizes: tuple[tuple[int, int], ...] = self._slide.level_dimensions
        self._is_ycbcr = self.description.vendor == "dicom" and is_mislabelled_ycbcr(path)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        import openslide

        try:
            region = self._slide.read_region((x, y), level, (width, height))
        except openslide.OpenSlideError as error:
            raise ValueError(f"pixels at x={x}, y={y} cannot be decoded: {error}") from error
        # Whole fields are opaque almost always, and Pillow drops alpha faster than NumPy.
        if region.getchannel("A").getextrema()[0] == 255:
            rgb = np.asarray(region.convert("RGB"))
            return ycbcr_to_rgb(rgb) if self._is_ycbcr else rgb
        rgba = np.asarray(region)
        if self._is_ycbcr:
            rgba = np.dstack([ycbcr_to_rgb(rgba[..., :3]), rgba[..., 3]])
        return on_white(rgba)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._slide.close()


class _PlainImageReader:
    def __init__(self, path: Path) -> None:
        try:
            with _largest_frame(path) as image:
                if image.width * image.height > MAX_PLAIN_PIXELS:
                    raise ValueError(
                        f"a plain image of {image.width} x {image.height} px is too large to hold "
                        "in memory: convert it to a pyramidal TIFF"
                    )
                self._pixels = _as_rgb(image)
        except (OSError, SyntaxError) as error:
            # The system's own errors have a number; Pillow's say no more than that decoding ended.
            if getattr(error, "errno", None) is not None:
                raise
            raise ValueError("the file is cut short, damaged or no image: copy it again") from error
        height, width = self._pixels.shape[:2]
        self.description = SlideDescription("image", width, height, (1.0,), None)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        region = np.full((height, width, 3), 255, np.uint8)
        x0, y0 = max(x, 0), max(y, 0)
        inside = self._pixels[y0 : max(y + height, 0), x0 : max(x + width, 0)]
        region[y0 - y : y0 - y + inside.shape[0], x0 - x : x0 - x + inside.shape[1]] = inside
        return region

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def _largest_frame(path: Path) -> Any:
    """A Pillow image, its pixels not decoded yet; of a TIFF's images the largest."""
    from PIL import Image

    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
            _seek_largest(image)
            return image
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _seek_largest(image: Any) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames == 1:
        return
    if image.format in _ANIMATED:
        image.close()
        raise ValueError(
            f"the file holds {frames} frames of an animation: save the one that is the slide"
        )
    if image.format == "TIFF":
        areas = []
        for frame in range(frames):
            image.seek(frame)
            areas.append(image.width * image.height)
        image.seek(areas.index(max(areas)))


def _is_plain_image(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(_PLAIN_MAGIC)


def _as_rgb(image: Any) -> Pixels:
    """Pixels of a Pillow image as a viewer shows it; what is no 8-bit colour is refused.

    What is transparent is white, and the image is rotated as its EXIF orientation says.
    """
    from PIL import ImageOps

    kind, _, _ = image.mode.partition(";")
    # Converted, values above 255 would become white; Pillow drops the lower bits of 16-bit colours, and
    # what a camera of 12 bits wrote becomes black.
    stored = [str(part) for tile in image.tile for part in np.atleast_1d(tile[3])]
    if kind in ("I", "F") or any(part.endswith(_SIXTEEN_BITS) for part in stored):
        raise ValueError(
            f"the pixels have more than 8 bits per channel (mode {image.mode}): only brightfield "
            "slides of 8-bit RGB can be audited, so export it with 8 bits"
        )
    if kind in ("1", "L", "LA", "La"):
        raise ValueError(GREY_REASON)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def open_slide(path: Path) -> SlideReader:
    """Open a whole-slide image or a plain image; a folder is a DICOM series.

    OpenSlide comes first. What it does not know goes to the TIFF reader, and so does OME-TIFF, of
    which OpenSlide sees neither the pyramid nor the micrometres per pixel. Plain images are read
    whole, TIFFs without RGB pixels in tiles or strips among them.

    Tiles of Aperio's and plain tiled TIFF files are decoded directly. On a level whose factor is no
    whole number OpenSlide interpolates between pixels, so a field is blurred the more the further
    its corner lies from a whole pixel; read directly, it begins at the nearest whole pixel.

    Of a TIFF that holds several images the largest in 8-bit RGB is the slide: labels, macro images
    and thumbnails may come first. TIFF and plain images are known by their content, whatever the
    name of the file.

    Raises
    ------
    ValueError
        If no reader can open the file, with the reader's reason.
    """
    if path.is_dir():
        return _OpenSlideReader(dicom_slide(path)[0])
    is_a_tiff = is_tiff(path)
    if path.suffix.lower() in PLAIN_SUFFIXES and not is_a_tiff:
        return _PlainImageReader(path)
    try:
        reader = _OpenSlideReader(path)
    except ValueError as refusal:
        if is_a_tiff:
            return _open_other_tiff(path, refusal)
        if isinstance(refusal, _UnknownFormatError) and _is_plain_image(path):
            return _PlainImageReader(path)
        raise
    # Formats that are tiled TIFF files, whose tiles are decoded without OpenSlide where that gives the
    # same pixels. It takes half the time: OpenSlide paints every tile on a canvas of 32-bit pixels.
    try:
        if reader.description.vendor == "aperio":
            return _open_directly(path, reader) or reader
        if reader.description.vendor == "generic-tiff":
            return _open_plain_tiff(path, reader)
    except ValueError:
        reader.__exit__(None, None, None)
        raise
    return reader


def _open_directly(path: Path, reader: _OpenSlideReader) -> DirectReader | None:
    """None where OpenSlide may see other pixels; pixels that are no 8-bit RGB are refused."""
    try:
        return DirectReader(path, reader, reader.level_sizes)
    except NotBrightfieldError:
        raise
    except (OSError, ValueError):
        return None


def _open_plain_tiff(path: Path, reader: _OpenSlideReader) -> SlideReader:
    """A tiled TIFF of no scanner's format, of which OpenSlide shows the first image, whatever it is.

    It turns grey and 16-bit pixels into 8-bit colours, and a tag of orientation turns every tile on
    its own: such a file is refused or read by the TIFF reader.
    """
    if is_ome_tiff(path):
        slide: SlideReader = TiffReader(path)
        reader.__exit__(None, None, None)
        return slide
    direct = _open_directly(path, reader)
    if direct is not None:
        return direct
    try:
        other = TiffReader(path)
    except NotBrightfieldError:
        raise
    except (OSError, ValueError):
        return reader
    shown, other_one = reader.description, other.description
    if other.is_reoriented or (shown.width, shown.height) != (other_one.width, other_one.height):
        reader.__exit__(None, None, None)
        return other
    other.__exit__(None, None, None)
    return reader


def _open_other_tiff(path: Path, refusal: ValueError) -> SlideReader:
    """A TIFF that OpenSlide refuses."""
    try:
        return TiffReader(path)
    except NotBrightfieldError:
        raise
    except ValueError as error:
        try:
            return _PlainImageReader(path)
        except (ValueError, OSError) as last:
            if isinstance(refusal, _UnknownFormatError):
                raise ValueError(f"{error}; as a plain image: {last}") from last
            raise refusal from last


def file_fingerprint(path: Path) -> str:
    """SHA-256 that changes with a slide's content, cheap on files of gigabytes.

    Small files are hashed whole; of larger ones the size and a mebibyte from the start, the middle
    and the end. Of a slide of several files every file counts, however it is named: a DICOM series
    by its folder or one of its files, an MRXS with its folder, a VMS with its images.
    """
    digest = hashlib.sha256()
    for member in slide_members(path):
        size = member.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with member.open("rb") as file:
            if size <= 3 * _FINGERPRINT_SAMPLE:
                digest.update(file.read())
                continue
            for start in (0, size // 2, size - _FINGERPRINT_SAMPLE):
                file.seek(start)
                digest.update(file.read(_FINGERPRINT_SAMPLE))
    return digest.hexdigest()


def read_field(
    reader: SlideReader, x: float, y: float, side: float, pixels: int, rows: int | None = None
) -> Pixels:
    """A field of view at a wanted resolution, from the best pyramid level.

    The coarsest level that is still at least as fine as wanted is read and reduced; nothing is
    enlarged except by less than one pixel of rounding.

    Parameters
    ----------
    reader
        An open slide.
    x, y
        Upper left corner in level-0 px.
    side
        Width of the field in level-0 px.
    pixels
        Width of the result in px.
    rows
        Height of the result in px; a square if not given.

    Returns
    -------
    ndarray
        uint8 [rows, pixels, 3].

    Raises
    ------
    ValueError
        If the slide is coarser than wanted (side < pixels): reading would invent detail.
    """
    if side < pixels * 0.98:
        raise ValueError(
            f"the field has {side:.0f} px on the slide, fewer than the {pixels} px wanted: lower "
            "tile.pixels or raise tile.mpp"
        )
    wanted = max(side / pixels, 1.0)
    downsamples = reader.description.downsamples
    level = max(
        (i for i, factor in enumerate(downsamples) if factor <= wanted * 1.01),
        key=lambda i: downsamples[i],
    )
    rows = pixels if rows is None else rows
    width = max(1, round(side / downsamples[level]))
    height = max(1, round(side * rows / pixels / downsamples[level]))
    region = reader.read(round(x), round(y), level, width, height)
    return resize(region, pixels, rows)


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Bilinear with anti-aliasing (area-weighted when reducing)."""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def reduce_by_area(image: Pixels, width: int, height: int) -> Pixels:
    """Mean over the area of each result px: keeps mean colours, and bands meet without a seam."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _describe_openslide(slide: Any) -> SlideDescription:
    width, height = slide.dimensions
    mpp = [_number(slide.properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    known = [value for value in mpp if value is not None]
    return SlideDescription(
        vendor=slide.properties.get("openslide.vendor", "unknown"),
        width=width,
        height=height,
        downsamples=tuple(float(factor) for factor in slide.level_downsamples),
        mpp=sum(known) / len(known) if known else None,
        comment=slide.properties.get("openslide.comment", ""),
        mpp_xy=(known[0], known[1]) if len(known) == 2 else None,
        magnification=_number(slide.properties.get("openslide.objective-power")),
    )


def _number(text: str | None) -> float | None:
    """A positive number; some files write 0 or nan for a size that they do not know."""
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
