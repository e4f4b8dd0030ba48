"""Which image of a TIFF is the slide, and which pixels can be one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

#: Names of images that scanners store beside the slide.
_BESIDE_SLIDE = re.compile(
    r"(?<![^\W_])(label|macro|thumb|thumbnail|overview|barcode)(?![^\W_])", re.IGNORECASE
)
#: A colour image so many times smaller than one of other pixels is a macro image or label beside it,
#: as of a fluorescence slide, and no slide.
_MUCH_SMALLER = 16


class NotBrightfieldError(ValueError):
    """The file holds other pixels than 8-bit red, green and blue."""


def slide_among(images: Sequence[Any]) -> Any:
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
            refuse_other_pixels(image.keyframe)
        except ValueError:
            continue
        if _area(image) * _MUCH_SMALLER > _area(by_area[0]):
            _refuse_twins(image, by_area)
            return image
    _refuse_planes(by_area[0])
    refuse_other_pixels(by_area[0].keyframe)
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


def is_reduced_copy(image: Any, slide: Any) -> bool:
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


def refuse_other_pixels(frame: Any) -> None:
    """A ValueError says what the pixels of tifffile's page are, where they are no 8-bit RGB."""
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
            f"the pixels have {frame.bitspersample} bits per channel ({frame.dtype}), so this is "
            "fluorescence, 16-bit or signed: only brightfield slides of 8-bit RGB can be audited, so "
            "export it with 8 bits (uint8)"
        )
    if frame.samplesperpixel > 4 or frame.imagedepth > 1:
        raise NotBrightfieldError(
            f"the image has {frame.samplesperpixel} channels and {frame.imagedepth} planes, so this "
            "is fluorescence or a stack: only brightfield slides of 8-bit RGB can be audited"
        )
