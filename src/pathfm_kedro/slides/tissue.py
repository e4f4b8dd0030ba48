"""Where tissue lies on a slide, and the grid of tiles over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.readers import Pixels, SlideReader, reduce_by_area

#: Saturation below which stain is too faint to be tissue, and above which it always is: Otsu's
#: threshold is held between them, so that a slide full of tissue is not split in two. Glass stays
#: below 0.03 on real scans; pale tissue begins at 0.08, and must not be lost, since how pale it is
#: depends on the center.
SATURATION_BOUNDS = (0.04, 0.08)
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


def tissue_mask(image: Pixels) -> NDArray[np.bool_]:
    """Tissue as what is coloured: saturation above Otsu's threshold, specks and pinholes removed.

    Parameters
    ----------
    image
        uint8 [height, width, 3].

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

    high = image.max(axis=2).astype(np.float32)
    low = image.min(axis=2).astype(np.float32)
    saturation = (high - low) / np.maximum(high, 1.0)
    # Black pixels are pen, dirt or an unlit field of fluorescence: saturated by accident.
    lit = high > 40
    if not lit.any():
        return np.zeros_like(lit)
    otsu = float(threshold_otsu(saturation[lit]))  # type: ignore[no-untyped-call]
    threshold = float(np.clip(otsu, *SATURATION_BOUNDS))
    mask: NDArray[np.bool_] = lit & (saturation > threshold)
    if min(mask.shape) < 8:
        return mask
    cross = ndimage.generate_binary_structure(2, 1)
    opened = ndimage.binary_opening(mask, cross)
    closed: NDArray[np.bool_] = ndimage.binary_closing(np.pad(opened, 2, mode="edge"), cross)
    return closed[2:-2, 2:-2]


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
    planes = np.concatenate([mask[..., None], overview.image], axis=2).astype(np.float64)
    means = _window_means(planes, x / overview.scale, y / overview.scale, side / overview.scale)
    return TileGrid(x, y, side, means[:, 0], means[:, 1:])


def _window_means(
    planes: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    side: float,
) -> NDArray[np.float64]:
    """Mean of every plane in square windows, by summed-area tables: [n, planes]."""
    height, width, depth = planes.shape
    table = np.zeros((height + 1, width + 1, depth))
    np.cumsum(np.cumsum(planes, axis=0), axis=1, out=table[1:, 1:])
    left = np.clip(np.round(x).astype(np.int64), 0, width - 1)
    top = np.clip(np.round(y).astype(np.int64), 0, height - 1)
    right = np.clip(np.round(x + side).astype(np.int64), left + 1, width)
    bottom = np.clip(np.round(y + side).astype(np.int64), top + 1, height)
    sums = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    areas = ((right - left) * (bottom - top)).astype(np.float64)
    means: NDArray[np.float64] = sums / areas[:, None]
    return means
