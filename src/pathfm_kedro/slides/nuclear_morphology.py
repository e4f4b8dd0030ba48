r"""Nuclei of a tile from its haematoxylin alone: how many, how large, and which way they lie.

Haematoxylin is unmixed in one common basis (:func:`~pathfm_kedro.slides.stain.stain_amounts`) and
cut at the tile's own Otsu threshold, so that a stronger stain changes none of the figures. Touching
nuclei are separated by the peaks of the distance to their outline.

On drawn slides of 0.5 µm per pixel (``tests/slides/test_nuclear_morphology.py``) sizes rank as drawn,
too small where nuclei differ much among themselves. Counts rank as drawn in solid tissues and are up
to two fifths too low where nuclei crowd. In smaller tiles of the same field more of them merge.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.stain import COMMON_BASIS, stain_amounts

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Spots smaller than this are noise of the scanner, not nuclei, px.
_LEAST_AREA = 4
#: Blur of the distance to the outline, whose raggedness would make peaks, and least distance of two
#: peaks, px: nuclei are some 10 px wide or more.
_BLUR, _APART = 1.0, 3


def nuclear_density_and_size(tiles: Pixels) -> Floats:
    """Nuclei per 1,000 pixels, and the logarithm of their mean area in pixels.

    Parameters
    ----------
    tiles
        uint8 [n, s, s, 3].

    Returns
    -------
    ndarray
        [n, 2]; (0, 0) for a tile without nuclei.

    Examples
    --------
    >>> from pathfm_kedro.slides.stain import from_density
    >>> amount = np.zeros((1, 20, 20, 1))
    >>> amount[0, 2:6, 2:6] = amount[0, 10:14, 10:14] = 1.0
    >>> tile = from_density(amount * COMMON_BASIS.matrix[0])
    >>> nuclear_density_and_size(tile).round(3).tolist()  # two in 400 px, ln 16
    [[5.0, 2.773]]
    """
    found = np.zeros((len(tiles), 2))
    for row, tile in zip(found, tiles, strict=True):
        nuclear = _without_specks(_nuclear(tile))
        if nuclear.any():
            count = _count(nuclear)
            row[:] = 1000 * count / nuclear.size, np.log(nuclear.sum() / count)
    return found


def _without_specks(nuclear: Bools) -> Bools:
    from scipy import ndimage

    spots, _ = ndimage.label(nuclear)
    large = np.bincount(spots.ravel()) >= _LEAST_AREA
    large[0] = False
    return np.asarray(large[spots])


def _count(nuclear: Bools) -> int:
    """Peaks of the distance to the outline."""
    from scipy import ndimage
    from skimage.feature import peak_local_max

    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(nuclear), _BLUR)
    peaks = peak_local_max(  # type: ignore[no-untyped-call]
        distance, min_distance=_APART, exclude_border=False, labels=nuclear.astype(np.int64)
    )
    return max(len(peaks), 1)


def haematoxylin_orientation(tiles: Pixels) -> Floats:
    r"""Coherence and direction of what haematoxylin shows, as a vector that turns with the tile.

    With the gradients g of the amount of haematoxylin the mean structure tensor has

    ``(⟨g_x² − g_y²⟩, 2⟨g_x g_y⟩) / ⟨g_x² + g_y²⟩ = coherence · (cos 2θ, sin 2θ)``.

    A quarter turn of the tile changes the sign of both.

    Parameters
    ----------
    tiles
        uint8 [n, s, s, 3].

    Returns
    -------
    ndarray
        [n, 2] in the unit disc; (0, 0) for a tile of one colour.

    Examples
    --------
    >>> stripes = np.full((1, 8, 8, 3), 230, np.uint8)
    >>> stripes[:, :, ::4] = 60
    >>> haematoxylin_orientation(stripes).round(1).tolist()
    [[1.0, 0.0]]
    >>> haematoxylin_orientation(np.rot90(stripes, 1, (1, 2))).round(1).tolist()
    [[-1.0, 0.0]]
    """
    amounts = stain_amounts(tiles, COMMON_BASIS)[..., 0]
    down, right = np.gradient(amounts, axis=(1, 2))
    parts = np.stack([right**2 - down**2, 2 * right * down, right**2 + down**2]).mean(axis=(2, 3))
    whole = np.where(parts[2] > 0, parts[2], 1.0)
    return np.asarray((parts[:2] / whole).T + 0.0)


def _nuclear(tile: Pixels) -> Bools:
    """Pixels with much haematoxylin; none in a tile of one colour."""
    from skimage.filters import threshold_otsu

    amount = stain_amounts(tile, COMMON_BASIS)[..., 0]
    otsu: Callable[[Floats], float] = threshold_otsu
    return np.asarray(amount > (otsu(amount) if np.ptp(amount) > 0 else amount.max()))
