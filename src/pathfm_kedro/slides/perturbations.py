"""What scanners and files do to a tile, tiles cut and rearranged, and how visible a change is."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Of the windows of structural similarity, px: 11 x 11 as published.
_SSIM_RADIUS = 5


def compressed(tile: Pixels, quality: int) -> Pixels:
    """A tile after JPEG compression with halved colour resolution (4:2:0), as scanners store it.

    Parameters
    ----------
    tile
        [h, w, 3] uint8.
    quality
        1 … 95.

    Examples
    --------
    >>> compressed(np.full((16, 16, 3), 128, np.uint8), 90).shape
    (16, 16, 3)
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile)).save(
        buffer, "JPEG", quality=quality, subsampling="4:2:0"
    )
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        return np.asarray(image)


def blurred(tile: Pixels, sigma: float) -> Pixels:
    """A tile out of focus: a Gaussian of `sigma` pixels, mirrored at the border.

    Parameters
    ----------
    tile
        [h, w, 3] uint8.
    sigma
        Standard deviation in pixels.

    Examples
    --------
    >>> int(np.ptp(blurred(np.full((8, 8, 3), 7, np.uint8), 1.0)))
    0
    """
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(tile.astype(np.float32), (sigma, sigma, 0), mode="mirror")
    pixels: Pixels = np.clip(np.rint(smooth), 0, 255).astype(np.uint8)
    return pixels


def with_gamma(tile: Pixels, exponent: float) -> Pixels:
    """255·(v / 255)^exponent: a scanner with another response; below 1 is brighter.

    Examples
    --------
    >>> with_gamma(np.array([0, 64, 255], np.uint8), 0.5).tolist()
    [0, 128, 255]
    """
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return np.asarray(table[tile])


def patch_sources(grid: int, seed: int | Sequence[int]) -> Ints:
    """Which patch each place of a grid receives: one random cycle, so that no patch stays.

    Parameters
    ----------
    grid
        Patches along a side.
    seed
        Of the draw.

    Returns
    -------
    ndarray
        [grid²] a permutation without fixed points (grid ≥ 2).

    Examples
    --------
    >>> sources = patch_sources(2, seed=0)
    >>> sorted(sources.tolist()), bool((sources == np.arange(4)).any())
    ([0, 1, 2, 3], False)
    """
    order = np.random.default_rng(seed).permutation(grid * grid)
    sources = np.empty_like(order)
    sources[order] = np.roll(order, 1)
    return sources


def shuffled(tile: Pixels, grid: int, sources: Ints) -> Pixels:
    """A tile cut into grid × grid patches that change places; every pixel is kept.

    Parameters
    ----------
    tile
        [s, s, 3] uint8.
    grid
        Patches along a side; must divide s.
    sources
        [grid²] from :func:`patch_sources`.

    Raises
    ------
    ValueError
        If the tile is no square or its side no multiple of the grid.

    Examples
    --------
    >>> tile = np.arange(4 * 4 * 3).astype(np.uint8).reshape(4, 4, 3)
    >>> moved = shuffled(tile, 2, patch_sources(2, seed=0))
    >>> sorted(moved.ravel()) == sorted(tile.ravel())
    True
    """
    return _joined(_patches(tile, grid)[sources], grid)


def rotated_in_place(tile: Pixels, grid: int) -> Pixels:
    """Every patch rotated by 180 degrees where it stands: the control for the seams of a shuffle.

    Cutting draws straight edges that tissue does not have, and an encoder may answer to these alone.
    A rotation by 180 degrees breaks every grid line as :func:`shuffled` does, since each patch then
    meets its neighbour with its opposite side: pixels that lay about a patch apart, in both views. The
    lines are the same, their steps as high, no other edge appears, every pixel is kept. What differs is
    the arrangement: here each patch stays in its place.

    It is 180 degrees because a mirrored row of patches still matches along one of its sides. It is
    not the shuffle's borders set around unmoved interiors: their inner edge makes thin frames, which
    an encoder answers to more than to the shuffle itself. Nor is it a shift by a pixel or two, whose
    seams are much weaker. The price is that tissue inside a patch is rotated, over distances up to a
    patch's diagonal. On the 2 x 2 grid that is as far as the shuffle moves it, and an encoder that
    is not rotation-invariant answers to the rotation: there the control asks too much. Trust 4 and 8.

    Parameters
    ----------
    tile
        [s, s, 3] uint8.
    grid
        Patches along a side; must divide s.

    Raises
    ------
    ValueError
        As :func:`shuffled`.

    Examples
    --------
    >>> tile = np.arange(4 * 4 * 3).astype(np.uint8).reshape(4, 4, 3)
    >>> rotated = rotated_in_place(tile, 2)
    >>> bool((rotated[0, 0] == tile[1, 1]).all()), bool((rotated[3, 0] == tile[2, 1]).all())
    (True, True)
    """
    return _joined(_patches(tile, grid)[:, ::-1, ::-1], grid)


def ssim_to_first(images: Pixels) -> NDArray[np.float64]:
    """Structural similarity (SSIM) of each image with the first.

    Parameters
    ----------
    images
        uint8 [n, height, width, 3].

    Returns
    -------
    ndarray
        [n], 1 for an equal image.

    Raises
    ------
    ValueError
        If an image is smaller than a window.

    References
    ----------
    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
    IEEE Transactions on Image Processing 13; windows and constants are theirs.

    Examples
    --------
    >>> ssim_to_first(np.zeros((2, 16, 16, 3), np.uint8)).tolist()
    [1.0, 1.0]
    """
    if min(images.shape[1:3]) <= 2 * _SSIM_RADIUS:
        raise ValueError(
            f"images of {list(images.shape[1:3])} px are smaller than SSIM's window of 11 px"
        )
    first, *others = np.moveaxis(images, -1, 1).astype(np.float64)
    mean, square = _windowed(first), _windowed(first * first)
    spread = square - mean * mean
    # An image equals itself, and what the first one's windows hold is the same for all.
    return np.array([1.0, *(_ssim(first, mean, spread, other) for other in others)])


def _ssim(first: Floats, mean: Floats, spread: Floats, other: Floats) -> float:
    """Similarity of two images [3, height, width], given mean and variance in windows of the first."""
    luminance, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    own = _windowed(other)
    own_spread = _windowed(other * other) - own * own
    shared = _windowed(first * other) - mean * own
    similar = (2 * mean * own + luminance) * (2 * shared + contrast)
    most = (mean**2 + own**2 + luminance) * (spread + own_spread + contrast)
    inside = (similar / most)[:, _SSIM_RADIUS:-_SSIM_RADIUS, _SSIM_RADIUS:-_SSIM_RADIUS]
    return float(np.mean([channel.mean() for channel in inside]))


def _windowed(planes: Floats) -> Floats:
    """Weighted mean of the window around each pixel of planes [3, height, width]."""
    from scipy.ndimage import gaussian_filter

    means: Floats = gaussian_filter(planes, (0, 1.5, 1.5), mode="reflect", radius=_SSIM_RADIUS)
    return means


def _patches(tile: Pixels, grid: int) -> Pixels:
    """[grid², p, p, 3], row by row."""
    side = tile.shape[0]
    if tile.ndim != 3 or tile.shape[1] != side or side % grid:
        raise ValueError(
            f"a tile of shape {list(tile.shape)} cannot be cut into {grid} x {grid} equal patches: "
            f"take tiles whose side is a multiple of {grid}"
        )
    p = side // grid
    return tile.reshape(grid, p, grid, p, -1).swapaxes(1, 2).reshape(grid * grid, p, p, -1)


def _joined(patches: Pixels, grid: int) -> Pixels:
    p = patches.shape[1]
    return patches.reshape(grid, grid, p, p, -1).swapaxes(1, 2).reshape(grid * p, grid * p, -1)
