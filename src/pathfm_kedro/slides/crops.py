"""Random crops of a tile, of the sizes and shapes on which DINOv2 is trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.readers import Pixels, resize

Ints = NDArray[np.int64]

#: DINOv2's crops: share of the area, ratio of sides, side in px of a local crop.
GLOBAL_SCALE = (0.32, 1.0)
LOCAL_SCALE = (0.05, 0.32)
RATIO = (3 / 4, 4 / 3)
LOCAL_PIXELS = 96
#: Tries until a crop fits into the tile, as in torchvision; after that the whole tile.
_TRIES = 10


def crop_boxes(n: int, scale: tuple[float, float], side: int, rng: np.random.Generator) -> Ints:
    """Random crops of a square as torchvision's RandomResizedCrop samples them.

    Area is uniform in `scale`, the logarithm of width over height uniform in that of 3/4 … 4/3.

    Parameters
    ----------
    n
        How many.
    scale
        Smallest and largest share of the area.
    side
        Of the square, px.
    rng
        Source of random numbers.

    Returns
    -------
    ndarray
        [n, 4]: left, top, width, height in px.

    Examples
    --------
    >>> boxes = crop_boxes(5, (0.05, 0.32), 224, np.random.default_rng(0))
    >>> bool((boxes[:, :2] + boxes[:, 2:] <= 224).all())
    True
    """
    area = rng.uniform(*scale, (n, _TRIES)) * side**2
    ratio = np.exp(rng.uniform(np.log(RATIO[0]), np.log(RATIO[1]), (n, _TRIES)))
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width <= side) & (height <= side) & (width >= 1) & (height >= 1)
    first = np.argmax(fits, axis=1)[:, None]
    size = np.stack([np.take_along_axis(sides, first, axis=1)[:, 0] for sides in (width, height)])
    size = np.where(fits.any(axis=1), size, side).astype(np.int64)
    corner = np.floor(rng.random((2, n)) * (side - size + 1)).astype(np.int64)
    return np.concatenate([corner, size]).T


def global_and_local_crops(
    tile: Pixels, n_global: int, n_local: int, experiment_seed: int, seed: int
) -> Pixels:
    """Global crops of a tile, then local ones, all brought to the tile's side.

    A local crop first becomes 96 px, so that it holds what DINOv2's hold, and is then enlarged: views
    of one shard have one size, and an encoder would enlarge it itself.

    Parameters
    ----------
    tile
        uint8 [s, s, 3].
    n_global, n_local
        Crops of either size.
    experiment_seed, seed
        Of the crops, the same whenever they are asked for.

    Returns
    -------
    ndarray
        uint8 [n_global + n_local, s, s, 3].
    """
    side, rng = len(tile), np.random.default_rng([experiment_seed, seed])
    wide = crop_boxes(n_global, GLOBAL_SCALE, side, rng)
    narrow = crop_boxes(n_local, LOCAL_SCALE, side, rng)
    cut = [tile[y : y + h, x : x + w] for x, y, w, h in np.concatenate([wide, narrow])]
    small = [resize(crop, LOCAL_PIXELS, LOCAL_PIXELS) for crop in cut[n_global:]]
    return np.stack([resize(crop, side, side) for crop in (*cut[:n_global], *small)])
