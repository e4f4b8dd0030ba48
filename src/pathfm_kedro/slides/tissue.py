"""Where tissue lies on a slide, and the grid of tiles over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.colour import (
    COLOUR_BAND_PIXELS,
    between,
    highest,
    hue_of,
    in_bands,
    saturation_of,
)
from pathfm_kedro.slides.glass import beside_glass
from pathfm_kedro.slides.interface import Pixels, SlideReader
from pathfm_kedro.slides.readers import reduce_by_area

#: Saturation below which stain is too faint to be tissue, and above which it always is: Otsu's
#: threshold is kept between them, so that a slide full of tissue is not split in two. Glass stays
#: below 0.03 on real scans; pale tissue begins at 0.08, and must not be lost, since how pale it is
#: depends on the center.
SATURATION_BOUNDS = (0.04, 0.08)
#: Ink by hue (degrees) and saturation. At overview resolution tissue of eosin and haematoxylin has hues
#: from about 245 (purple-blue) over 320 to 347 (pink) and a saturation up to 0.8, on real slides of
#: several scanners. Green and cyan lie far from it, so even pale ink counts.
_GREEN_HUES, _GREEN_SATURATION = (70.0, 205.0), 0.25
#: Haematoxylin absorbs green most, so its red is no lower than its green and its hue near 240 or above;
#: bluish counterstains reach down to 220, but pale. Blue ink is below and saturated.
_BLUE_HUES, _BLUE_SATURATION = (205.0, 232.0), 0.55
#: Blood is red to a saturation of about 0.8, and strong DAB, which is as saturated as ink, is darker.
#: Paler and darker red ink is taken for tissue: losing tissue rich in blood would be worse.
_RED_HUES, _RED_SATURATION, _RED_VALUE = (345.0, 20.0), 0.85, 120
#: Black ink is dark without colour; nuclei and melanin are dark with colour. Haematoxylin with DAB can
#: be nearly neutral, but has a saturation of 0.29 and more once it is this dark.
_BLACK_VALUE, _BLACK_SATURATION = 80.0, 0.22
#: The rim of a pen mark is paler than its middle: so far around it, in micrometres, is left out too.
_INK_RIM_UM = 40.0
#: Marks are strokes of a fraction of a millimetre. Smaller spots are pigment, folds or chance.
_MIN_INK_UM2 = 20_000.0
#: The overview is read in bands of at most this many level pixels, so that a slide without small
#: levels does not fill the memory.
_BAND_PIXELS = 16_000_000


@dataclass(frozen=True)
class Overview:
    """A slide at low magnification.

    Attributes
    ----------
    image
        uint8 [height, width, 3].
    scale
        Level-0 px per overview px.
    """

    image: Pixels
    scale: float


def read_overview(reader: SlideReader, mpp: float, overview_mpp: float) -> Overview:
    """The whole slide reduced to about `overview_mpp` micrometres per px, read in bands.

    Parameters
    ----------
    reader
        An open slide.
    mpp
        Micrometres per level-0 px of the slide.
    overview_mpp
        Micrometres per px wanted; never enlarged beyond level 0.
    """
    description = reader.description
    scale = max(overview_mpp / mpp, 1.0)
    width = max(1, int(description.width / scale))
    height = max(1, int(description.height / scale))
    downsamples = description.downsamples
    level = max(
        (i for i, f in enumerate(downsamples) if f <= scale * 1.01), key=lambda i: downsamples[i]
    )
    factor = downsamples[level]
    rows = max(1, int(_BAND_PIXELS / max(1.0, description.width / factor) * factor / scale))
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = reader.read(
            0,
            round(top * scale),
            level,
            max(1, round(width * scale / factor)),
            max(1, round((bottom - top) * scale / factor)),
        )
        image[top:bottom] = reduce_by_area(band, width, bottom - top)
    return Overview(image, scale)


@dataclass(frozen=True)
class TissueSettings:
    """What counts as tissue.

    Attributes
    ----------
    leave_out_pen
        Whether pen marks are left out. Off for stains that are themselves green, or blue and strong.
    min_speck_um2
        Coloured spots smaller than this are no tissue; 0 keeps all.
    max_hole_um2
        Gaps in tissue up to this size are tissue; 0 keeps all.
    min_sharpness
        Tiles less sharp than this (see :func:`sharpness`) are left out; None keeps all.

    Raises
    ------
    ValueError
        Names the parameter, its value and the mend.

    Examples
    --------
    >>> TissueSettings.from_parameters({"max_hole_um2": 0}).max_hole_um2
    0
    """

    leave_out_pen: bool = True
    min_speck_um2: float = 500.0
    max_hole_um2: float = 500.0
    min_sharpness: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.leave_out_pen, bool):
            raise ValueError(f"tile.tissue.leave_out_pen is {self.leave_out_pen!r}: true or false")
        for name in ("min_speck_um2", "max_hole_um2", "min_sharpness"):
            value = getattr(self, name)
            if value is None and name == "min_sharpness":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < np.inf:
                raise ValueError(f"tile.tissue.{name} is {value!r}: give 0 or more")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """The settings from a configuration's dictionary; what it leaves out has its default."""
        unknown = sorted(set(parameters) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"tile.tissue has no parameter {', '.join(unknown)}: correct its name")
        return cls(**parameters)


_DEFAULT = TissueSettings()
#: Resolution at which the share of tissue is looked at, as tiles do by default.
_SHARE_UM_PER_PX = 8.0


def tissue_mask(
    image: Pixels, settings: TissueSettings = _DEFAULT, um_per_px: float = 8.0
) -> NDArray[np.bool_]:
    """Tissue as what is coloured: saturation above Otsu's threshold, without pen, specks and pinholes.

    Colours are relative to the slide's own glass where that is tinted, see
    :func:`~pathfm_kedro.slides.glass.beside_glass`.

    Parameters
    ----------
    image
        uint8 [height, width, 3].
    settings
        What counts as tissue.
    um_per_px
        Micrometres per px of the image, for the sizes in the settings.

    Returns
    -------
    ndarray
        bool [height, width].

    Examples
    --------
    >>> image = np.full((256, 256, 3), 240, np.uint8)
    >>> image[64:192, 64:192] = (200, 90, 160)
    >>> round(float(tissue_mask(image).mean()), 2)
    0.25
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    image = beside_glass(image)
    saturation = in_bands(saturation_of, image)
    # Black pixels are dirt or an unlit field of fluorescence: saturated by accident.
    lit = highest(image) > 40
    ink = pen_mask(image, um_per_px) if settings.leave_out_pen else np.zeros_like(lit)
    lit &= ~ink
    if not lit.any():
        return np.zeros_like(lit)
    otsu = float(threshold_otsu(saturation[lit]))  # type: ignore[no-untyped-call]
    threshold = float(np.clip(otsu, *SATURATION_BOUNDS))
    mask: NDArray[np.bool_] = lit & (saturation > threshold)
    if min(mask.shape) < 8:
        return mask
    cross = ndimage.generate_binary_structure(2, 1)
    opened = ndimage.binary_opening(mask, cross)
    closed = ndimage.binary_closing(np.pad(opened, 2, mode="edge"), cross)[2:-2, 2:-2]
    area = um_per_px**2
    filled = ~_without_small(~closed, settings.max_hole_um2 // area + 1)
    return _without_small(filled & ~ink, settings.min_speck_um2 / area)


def tissue_share(image: Pixels, um_per_px: float) -> float:
    """Share of a slide that is tissue, pen marks among it: before a person says what is stain.

    Parameters
    ----------
    image
        uint8 [height, width, 3], the whole slide at low magnification.
    um_per_px
        Micrometres per px of the image; a finer one is reduced first.
    """
    reduction = max(_SHARE_UM_PER_PX / um_per_px, 1.0)
    height, width = (max(1, round(size / reduction)) for size in image.shape[:2])
    small = reduce_by_area(image, width, height)
    coloured = tissue_mask(small, TissueSettings(leave_out_pen=False), um_per_px * reduction)
    return float(coloured.mean())


def pen_mask(image: Pixels, um_per_px: float) -> NDArray[np.bool_]:
    """Marks of green, blue, red and black pens with the rim around them; see the thresholds above.

    Parameters
    ----------
    image
        uint8 [height, width, 3], a slide at low magnification.
    um_per_px
        Micrometres per px.

    Returns
    -------
    ndarray
        bool [height, width].
    """
    ink = in_bands(_coloured_ink, image)
    # An unlit field has no glass: darkness there says nothing of ink.
    if np.median(highest(image)) > _BLACK_VALUE:
        ink |= in_bands(_black_ink, image)
    marks = _without_small(ink, _MIN_INK_UM2 / um_per_px**2)
    if not marks.any():
        return marks
    return _with_rim(marks, um_per_px)


def _coloured_ink(image: Pixels) -> NDArray[np.bool_]:
    high = highest(image)
    hue, saturation = hue_of(image), saturation_of(image)
    green = between(hue, *_GREEN_HUES) & (saturation > _GREEN_SATURATION)
    blue = between(hue, *_BLUE_HUES) & (saturation > _BLUE_SATURATION)
    red = between(hue, *_RED_HUES) & (saturation > _RED_SATURATION) & (high > _RED_VALUE)
    ink: NDArray[np.bool_] = green | blue | red
    return ink


def _black_ink(image: Pixels) -> NDArray[np.bool_]:
    black: NDArray[np.bool_] = (highest(image) < _BLACK_VALUE) & (
        saturation_of(image) < _BLACK_SATURATION
    )
    return black


def _with_rim(marks: NDArray[np.bool_], um_per_px: float) -> NDArray[np.bool_]:
    """Marks and what lies within the rim's width of them, by bands that overlap by that width."""
    from scipy import ndimage

    reach = int(_INK_RIM_UM / um_per_px) + 1
    height, width = marks.shape
    rows = max(1, COLOUR_BAND_PIXELS // width)
    wide = marks.copy()
    for top in range(0, height, rows):
        first, bottom = max(top - reach, 0), min(top + rows, height)
        around = marks[first : bottom + reach]
        if around.any():
            near = ndimage.distance_transform_edt(~around) * um_per_px <= _INK_RIM_UM
            wide[top:bottom] = near[top - first : bottom - first]
    return wide


def sharpness(tile: Pixels) -> float:
    """Variance of the Laplacian of brightness: low where a tile is out of focus.

    It depends on the tissue, the stain and the scanner too, so a threshold holds for one cohort's
    scanner at one resolution (Pech-Pacheco et al. 2000, ICPR, "Diatom autofocusing in brightfield
    microscopy").

    Parameters
    ----------
    tile
        uint8 [height, width, 3].

    Examples
    --------
    >>> sharpness(np.full((8, 8, 3), 200, np.uint8))
    0.0
    """
    from scipy import ndimage

    brightness = tile.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return float(ndimage.laplace(np.round(brightness, 6), mode="nearest").var())


def _without_small(mask: NDArray[np.bool_], min_pixels: float) -> NDArray[np.bool_]:
    """Connected parts of at least so many px; of a part at the image's edge counts what is seen."""
    from scipy import ndimage

    if min_pixels <= 1 or not mask.any():
        return mask
    parts, n_parts = ndimage.label(mask)
    sizes = np.zeros(n_parts + 1, np.int64)
    # Row by row: all at once, the px are copied as 64-bit numbers.
    for row in parts:
        np.add.at(sizes, *np.unique(row, return_counts=True))
    large = sizes >= min_pixels
    large[0] = False
    kept: NDArray[np.bool_] = large[parts]
    return kept


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one slide.

    Attributes
    ----------
    x, y
        int64 [n], upper left corners in level-0 px.
    side
        Side of a tile in level-0 px.
    tissue_fraction
        float64 [n], share of each tile that is tissue.
    mean_rgb
        float64 [n, 3], mean colour of each tile, 0 … 255.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    side: float
    tissue_fraction: NDArray[np.float64]
    mean_rgb: NDArray[np.float64]

    def where(self, keep: NDArray[np.bool_]) -> TileGrid:
        """The tiles for which `keep` holds."""
        return TileGrid(
            self.x[keep], self.y[keep], self.side, self.tissue_fraction[keep], self.mean_rgb[keep]
        )


def tile_grid(
    overview: Overview, mask: NDArray[np.bool_], width: int, height: int, side: float
) -> TileGrid:
    """Non-overlapping tiles that lie whole inside the slide, row by row from the upper left.

    Parameters
    ----------
    overview, mask
        The slide at low magnification and its tissue.
    width, height
        Level-0 px of the slide.
    side
        Side of a tile in level-0 px.
    """
    columns, rows = int(width / side + 1e-6), int(height / side + 1e-6)
    x = np.round(np.tile(np.arange(columns), rows) * side).astype(np.int64)
    y = np.round(np.repeat(np.arange(rows), columns) * side).astype(np.int64)
    means = _window_means(
        mask, overview.image, x / overview.scale, y / overview.scale, side / overview.scale
    )
    return TileGrid(x, y, side, means[:, 0], means[:, 1:])


def _window_means(
    mask: NDArray[np.bool_],
    image: Pixels,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    side: float,
) -> NDArray[np.float64]:
    """Mean of the mask and of each colour in square windows [n, 4].

    Windows between the same two pixel rows are summed together, so that no table of the whole image is
    needed; sums of whole numbers are exact in any order. Two rows of tiles may begin at one pixel row
    and end at different ones: a half is rounded to the even number.
    """
    height, width = mask.shape
    left = np.clip(np.round(x).astype(np.int64), 0, width - 1)
    top = np.clip(np.round(y).astype(np.int64), 0, height - 1)
    right = np.clip(np.round(x + side).astype(np.int64), left + 1, width)
    bottom = np.clip(np.round(y + side).astype(np.int64), top + 1, height)
    means = np.empty((len(x), 4))
    sums = np.zeros((width + 1, 4), np.int64)
    for first, last in np.unique(np.stack([top, bottom], axis=1), axis=0):
        row = np.flatnonzero((top == first) & (bottom == last))
        sums[1:, 0] = mask[first:last].sum(axis=0)
        sums[1:, 1:] = image[first:last].sum(axis=0)
        np.cumsum(sums[1:], axis=0, out=sums[1:])
        areas = (right[row] - left[row]) * (last - first)
        means[row] = (sums[right[row]] - sums[left[row]]) / areas[:, None]
    return means
