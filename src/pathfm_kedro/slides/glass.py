"""What a slide's bare glass is like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.colour import COLOUR_BAND_PIXELS, highest, in_bands, lowest
from pathfm_kedro.slides.interface import Pixels

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
#: Another piece of glass in the file, or glass under other light, is at least so bright beside the
#: brightest, takes no more than this from a colour, which is less than pale ink and flat stain take,
#: and is as flat as the brightest, but for so many grey levels, in a window in which tissue that is out
#: of focus is not. It needs no tenth of the slide, since it is recognised by its place too.
_DIMMEST, _MOST_TINTED_BESIDE, _LEAST_BESIDE = 0.75, 0.26, 0.05
_LESS_FLAT, _WIDE_WINDOW = 4, 11
#: Smaller images, in px of the overview, are cut from tissue, and their palest part may be tissue.
_MIN_SIDE_WITH_GLASS = 64


@dataclass(frozen=True)
class _Glass:
    """Bare glass of a slide.

    Attributes
    ----------
    colour
        Red, green, blue of the brightest.
    image
        The px that were looked at, or means of a few of them, uint8 [height, width, 3].
    flat, scanned
        What differs little enough, and what is no filled-in white, bool [height, width].
    """

    colour: tuple[int, int, int]
    image: Pixels
    flat: NDArray[np.bool_]
    scanned: NDArray[np.bool_]


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
    glass = _brightest_glass(image)
    return None if glass is None else glass.colour


def _brightest_glass(image: Pixels) -> _Glass | None:
    if min(image.shape[:2]) < _MIN_SIDE_WITH_GLASS:
        return None
    found = _brightest_flat(image, _FLAT_RANGE)
    return _brightest_flat(_smoothed(image), _SMOOTHED_RANGE) if found is None else found


def _smoothed(image: Pixels) -> Pixels:
    """Means of a few px around each."""
    from scipy import ndimage

    means = [ndimage.uniform_filter(image[..., i], _SMOOTHED_PX) for i in range(3)]
    return np.stack(means, axis=2)


def _brightest_flat(image: Pixels, flat_range: int) -> _Glass | None:
    """The brightest of what differs by no more than the range, where there is enough of it."""
    from scipy import ndimage

    spread = _spread(image, _FLAT_WINDOW)
    # White of one value is what fills a file where nothing was scanned, up to the px that it shares
    # with what was: beside a small scan these are many, and brighter than its glass.
    filled = ndimage.maximum_filter((spread == 0) & (lowest(image) >= 250), _FLAT_WINDOW + 2)
    scanned = ~filled & (highest(image) > 40)
    is_flat = scanned & (spread <= flat_range)
    flat = image[is_flat]
    if not len(flat):
        return None
    # Of 8-bit colours there are few sums and values: tables of these take the place of floating-point
    # numbers for each px, which would be ten times the image.
    sums = flat.sum(axis=1, dtype=np.uint16)
    brightness = np.arange(3 * 255 + 1) / 3
    # In parts: it takes 64-bit numbers.
    parts = np.array_split(sums, 1 + len(sums) // COLOUR_BAND_PIXELS)
    counts = sum(np.bincount(part, minlength=len(brightness)) for part in parts)
    bright = _percentile(brightness, np.asarray(counts), 0.95)
    glass = np.median(flat[(np.abs(brightness - bright) <= _BRIGHTER)[sums]], axis=0)
    n_scanned = np.count_nonzero(scanned)
    alike = np.ones(len(flat), bool)
    for channel, value in enumerate(glass):
        alike &= (np.abs(np.arange(256) - value) <= _FLAT_RANGE)[flat[:, channel]]
    share = np.count_nonzero(alike) / n_scanned
    least = _LEAST_GLASS if filled.mean() < _LEAST_GLASS else _LEAST_GLASS_BESIDE_FILL
    brighter = in_bands(lambda band: band.mean(axis=2) > glass.mean() + _BRIGHTER, image)
    if share < least or np.count_nonzero(brighter & scanned) > _MOST_BRIGHTER * n_scanned:
        return None
    red, green, blue = (int(value) for value in np.rint(glass))
    return _Glass((red, green, blue), image, is_flat, scanned)


def _spread(image: Pixels, window: int) -> NDArray[np.uint8]:
    """Largest difference of a colour in a window around each px, [height, width]."""
    from scipy import ndimage

    spread = np.zeros(image.shape[:2], np.uint8)
    for channel in np.moveaxis(image, 2, 0):
        high = ndimage.maximum_filter(channel, window)
        high -= ndimage.minimum_filter(channel, window)
        np.maximum(spread, high, out=spread)
    return spread


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


def beside_glass(image: Pixels) -> Pixels:
    """The image with its glass made neutral, where that is tinted; else the image itself.

    Where glass of other tints reaches the edge of what was scanned (two pieces in one file, uneven
    light), each px is relative to the nearest glass; else all to the brightest.

    Parameters
    ----------
    image
        uint8 [height, width, 3], a slide at low magnification.
    """
    glass = _brightest_glass(image)
    if glass is None:
        return image
    colour = glass.colour
    tint = 1 - min(colour) / max(colour)
    if tint > _MOST_TINTED:
        return image
    smoothed = _smoothed(glass.image)
    bare = _glass_of_several_tints(glass, smoothed)
    if bare is not None:
        return _beside_nearest(image, smoothed, bare)
    if tint <= _NEUTRAL_SATURATION:
        return image
    balanced = np.empty_like(image)
    for channel, value in enumerate(colour):
        table = np.arange(256) * (max(colour) / value)
        balanced[..., channel] = np.minimum(np.rint(table), 255).astype(np.uint8)[
            image[..., channel]
        ]
    return balanced


def _glass_of_several_tints(glass: _Glass, smoothed: Pixels) -> NDArray[np.bool_] | None:
    """All bare glass of a slide, where enough of it has another tint than the brightest.

    Tints are those of the means of a few px: noise has colours.
    """
    brightest = np.array(glass.colour, np.float32)

    def tint(band: Pixels) -> NDArray[np.float32]:
        relative = band / brightest
        high = highest(relative)
        taken: NDArray[np.float32] = 1 - lowest(relative) / np.maximum(high, _DIMMEST)
        return taken

    tints = in_bands(tint, smoothed)
    bare = glass.flat & (tints <= _MOST_TINTED_BESIDE)
    least = _LEAST_BESIDE * np.count_nonzero(glass.scanned)
    if np.count_nonzero(bare & (tints > _NEUTRAL_SATURATION)) < least:
        return None
    # A lake of mucin has tissue around it.
    bare = _reaching_edge(bare, glass.scanned)
    other = bare & (tints > _NEUTRAL_SATURATION)
    if np.count_nonzero(other) < least:
        return None
    spread = _spread(smoothed, _WIDE_WINDOW)
    brightest_spread = np.median(spread[glass.flat & (tints <= _NEUTRAL_SATURATION)])
    return bare if np.median(spread[other]) <= brightest_spread + _LESS_FLAT else None


def _reaching_edge(mask: NDArray[np.bool_], scanned: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Connected parts of the mask that reach the edge of what was scanned."""
    from scipy import ndimage

    parts, n_parts = ndimage.label(mask)
    inner = ndimage.binary_erosion(scanned, np.ones((3, 3), bool))
    reach = np.zeros(n_parts + 1, bool)
    reach[parts[~inner]] = True
    reach[0] = False
    reaching: NDArray[np.bool_] = reach[parts]
    return reaching


def _beside_nearest(image: Pixels, glass: Pixels, bare: NDArray[np.bool_]) -> Pixels:
    """The image with each px relative to the glass that is nearest to it."""
    from scipy import ndimage

    rows, columns = ndimage.distance_transform_edt(
        ~bare, return_distances=False, return_indices=True
    )
    balanced = np.empty_like(image)
    height = max(1, COLOUR_BAND_PIXELS // image.shape[1])
    for top in range(0, len(image), height):
        band = np.s_[top : top + height]
        nearest = glass[rows[band], columns[band]].astype(np.float32)
        relative = image[band] * (highest(nearest)[..., None] / nearest)
        balanced[band] = np.minimum(np.rint(relative), 255).astype(np.uint8)
    return balanced
