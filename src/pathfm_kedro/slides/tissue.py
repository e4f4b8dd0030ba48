"""Where tissue lies on a slide, and the grid of tiles over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.interface import Pixels, SlideReader
from pathfm_kedro.slides.readers import reduce_by_area

#: Saturation below which stain is too faint to be tissue, and above which it always is: Otsu's
#: threshold is kept between them, so that a slide full of tissue is not split in two. Glass stays
#: below 0.03 on real scans; pale tissue begins at 0.08, and must not be lost, since how pale it is
#: depends on the center.
SATURATION_BOUNDS = (0.04, 0.08)
#: Glass of at most this saturation is neutral. Above it, a yellowed mounting medium, a tinted slide or
#: a shifted white balance lifts all glass over the threshold, so colours are taken relative to it.
_NEUTRAL_SATURATION = 0.03
#: Glass that takes more than this from a colour is none, but a field of stain or ink.
_MOST_TINTED = 0.4
#: Glass is flat: no colour differs by more than this within a window of so many px, 40 micrometres at
#: the default resolution. Tissue is uneven there, but for a few lakes of mucin or colloid.
_FLAT_RANGE, _FLAT_WINDOW = 12, 5
#: Noise of eight grey levels differs by no more in means of so many px, tissue does.
_SMOOTHED_RANGE, _SMOOTHED_PX = 8, 4
#: Light only gets less on its way through tissue: apart from dust and edges nothing is brighter than
#: glass.
_BRIGHTER, _MOST_BRIGHTER = 8, 0.02
#: Share of what was scanned that must be glass to be known as such; more where a file also holds white
#: that was filled in, since pale tissue beside saturated glass would look the same.
_LEAST_GLASS, _LEAST_GLASS_BESIDE_FILL = 0.1, 0.25
#: Smaller images, in px of the overview, are cut from tissue, and their palest part may be tissue.
_MIN_SIDE_WITH_GLASS = 64
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
#: Colour is looked at in bands of at most this many overview px, each with a dozen bytes of
#: intermediate results per value: an overview of a large slide has 8 million px.
_COLOUR_BAND_PIXELS = 500_000


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

    Colours are relative to the slide's own glass where that is tinted, see :func:`glass_colour`.

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

    image = _beside_glass(image)
    saturation = _in_bands(_saturation, image)
    # Black pixels are dirt or an unlit field of fluorescence: saturated by accident.
    lit = _highest(image) > 40
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


def glass_colour(image: Pixels) -> tuple[int, int, int] | None:
    """Colour of a slide's bare glass: the brightest of what is flat, where there is enough of it.

    Where noise leaves nothing flat, the means of a few px are looked at.

    Parameters
    ----------
    image
        uint8 [height, width, 3], a slide at low magnification.

    Returns
    -------
    tuple of int or None
        Red, green, blue; None where no glass can be distinguished from tissue.

    Examples
    --------
    >>> image = np.full((128, 128, 3), (240, 230, 205), np.uint8)
    >>> image[32:96, 32:96] = (200, 90, 160)
    >>> glass_colour(image)
    (240, 230, 205)
    """
    if min(image.shape[:2]) < _MIN_SIDE_WITH_GLASS:
        return None
    found = _flat_colour(image, _FLAT_RANGE)
    return _flat_colour(_smoothed(image), _SMOOTHED_RANGE) if found is None else found


def _smoothed(image: Pixels) -> Pixels:
    """Means of a few px around each."""
    from scipy import ndimage

    means = [ndimage.uniform_filter(image[..., i], _SMOOTHED_PX) for i in range(3)]
    return np.stack(means, axis=2)


def _flat_colour(image: Pixels, flat_range: int) -> tuple[int, int, int] | None:
    """The brightest of what differs by no more than the range, where there is enough of it."""
    from scipy import ndimage

    spread = np.zeros(image.shape[:2], np.uint8)
    for channel in np.moveaxis(image, 2, 0):
        high = ndimage.maximum_filter(channel, _FLAT_WINDOW)
        high -= ndimage.minimum_filter(channel, _FLAT_WINDOW)
        np.maximum(spread, high, out=spread)
    # White of one value is what fills a file where nothing was scanned, up to the px that it shares
    # with what was: beside a small scan these are many, and brighter than its glass.
    filled = ndimage.maximum_filter((spread == 0) & (_lowest(image) >= 250), _FLAT_WINDOW + 2)
    scanned = ~filled & (_highest(image) > 40)
    flat = image[scanned & (spread <= flat_range)]
    if not len(flat):
        return None
    # Of 8-bit colours there are few sums and values: tables of these take the place of floating-point
    # numbers for each px, which would be ten times the image.
    sums = flat.sum(axis=1, dtype=np.uint16)
    brightness = np.arange(3 * 255 + 1) / 3
    # In parts: it takes 64-bit numbers.
    parts = np.array_split(sums, 1 + len(sums) // _COLOUR_BAND_PIXELS)
    counts = sum(np.bincount(part, minlength=len(brightness)) for part in parts)
    bright = _percentile(brightness, np.asarray(counts), 0.95)
    glass = np.median(flat[(np.abs(brightness - bright) <= _BRIGHTER)[sums]], axis=0)
    n_scanned = np.count_nonzero(scanned)
    alike = np.ones(len(flat), bool)
    for channel, value in enumerate(glass):
        alike &= (np.abs(np.arange(256) - value) <= _FLAT_RANGE)[flat[:, channel]]
    share = np.count_nonzero(alike) / n_scanned
    least = _LEAST_GLASS if filled.mean() < _LEAST_GLASS else _LEAST_GLASS_BESIDE_FILL
    brighter = _in_bands(lambda band: band.mean(axis=2) > glass.mean() + _BRIGHTER, image)
    if share < least or np.count_nonzero(brighter & scanned) > _MOST_BRIGHTER * n_scanned:
        return None
    red, green, blue = (int(value) for value in np.rint(glass))
    return red, green, blue


def _percentile(values: NDArray[np.float64], counts: NDArray[np.int64], share: float) -> float:
    """Percentile of rising values that occur so often each, as :func:`numpy.percentile` has it.

    Examples
    --------
    >>> _percentile(np.array([1.0, 4.0]), np.array([1, 3]), 0.25)
    3.25
    """
    place = (counts.sum() - 1) * share
    ends = np.searchsorted(np.cumsum(counts), [np.floor(place), np.ceil(place)], side="right")
    low, high = values[ends]
    return float(np.interp(place % 1, [0, 1], [low, high]))


def _beside_glass(image: Pixels) -> Pixels:
    """The image with its glass made neutral, where that is tinted; else the image itself."""
    glass = glass_colour(image)
    if glass is None:
        return image
    tint = 1 - min(glass) / max(glass)
    if not _NEUTRAL_SATURATION < tint <= _MOST_TINTED:
        return image
    balanced = np.empty_like(image)
    for channel, value in enumerate(glass):
        table = np.arange(256) * (max(glass) / value)
        balanced[..., channel] = np.minimum(np.rint(table), 255).astype(np.uint8)[
            image[..., channel]
        ]
    return balanced


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
    ink = _in_bands(_coloured_ink, image)
    # An unlit field has no glass: darkness there says nothing of ink.
    if np.median(_highest(image)) > _BLACK_VALUE:
        ink |= _in_bands(_black_ink, image)
    marks = _without_small(ink, _MIN_INK_UM2 / um_per_px**2)
    if not marks.any():
        return marks
    return _with_rim(marks, um_per_px)


def _coloured_ink(image: Pixels) -> NDArray[np.bool_]:
    high = _highest(image)
    hue, saturation = _hue(image), _saturation(image)
    green = _between(hue, *_GREEN_HUES) & (saturation > _GREEN_SATURATION)
    blue = _between(hue, *_BLUE_HUES) & (saturation > _BLUE_SATURATION)
    red = _between(hue, *_RED_HUES) & (saturation > _RED_SATURATION) & (high > _RED_VALUE)
    ink: NDArray[np.bool_] = green | blue | red
    return ink


def _black_ink(image: Pixels) -> NDArray[np.bool_]:
    black: NDArray[np.bool_] = (_highest(image) < _BLACK_VALUE) & (
        _saturation(image) < _BLACK_SATURATION
    )
    return black


def _with_rim(marks: NDArray[np.bool_], um_per_px: float) -> NDArray[np.bool_]:
    """Marks and what lies within the rim's width of them, by bands that overlap by that width."""
    from scipy import ndimage

    reach = int(_INK_RIM_UM / um_per_px) + 1
    height, width = marks.shape
    rows = max(1, _COLOUR_BAND_PIXELS // width)
    wide = marks.copy()
    for top in range(0, height, rows):
        first, bottom = max(top - reach, 0), min(top + rows, height)
        around = marks[first : bottom + reach]
        if around.any():
            near = ndimage.distance_transform_edt(~around) * um_per_px <= _INK_RIM_UM
            wide[top:bottom] = near[top - first : bottom - first]
    return wide


def _in_bands(
    function: Callable[[Pixels], NDArray[Any]],
    image: Pixels,
) -> NDArray[Any]:
    """A function of single pixels, applied to a few rows of the image at a time."""
    rows = max(1, _COLOUR_BAND_PIXELS // image.shape[1])
    tops = range(0, len(image), rows)
    return np.concatenate([function(image[top : top + rows]) for top in tops])


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


def _highest(image: Pixels) -> Pixels:
    """Largest of the three colours; ten times as fast as a maximum over an axis of three."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def _lowest(image: Pixels) -> Pixels:
    return np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])


def _saturation(image: Pixels) -> NDArray[np.float32]:
    high = _highest(image).astype(np.float32)
    low = _lowest(image).astype(np.float32)
    saturation: NDArray[np.float32] = np.divide(high - low, np.maximum(high, 1), dtype=np.float32)
    return saturation


def _hue(image: Pixels) -> NDArray[np.float32]:
    """Hue in degrees, 0 red, 120 green, 240 blue; 0 where there is no colour."""
    red, green, blue = np.moveaxis(image.astype(np.float32), 2, 0)
    high = _highest(image).astype(np.float32)
    chroma = np.maximum(high - _lowest(image), 1.0)
    sector = np.select(
        [high == red, high == green],
        [(green - blue) / chroma, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    hue: NDArray[np.float32] = sector * 60 % 360
    return hue


def _between(hue: NDArray[np.float32], low: float, high: float) -> NDArray[np.bool_]:
    """Hues from low up to high, through 0 where low is the larger."""
    return (hue - low) % 360 < (high - low) % 360


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
