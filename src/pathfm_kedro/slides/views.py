"""Rotated views of one field of view, without invented corners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

#: Rotated as float32: Pillow cuts off decimals of uint8, which darkens every rotation by half a level.
Floats = NDArray[np.float32]

#: Pixels that two bicubic passes may need beyond √2·size: a pass reads up to 2 px along each axis
#: (2√2 on the diagonal), the passes add up, on both sides: 2·(4√2) − √2 = 9.9.
_MARGIN = 10

#: White is the background of a scanned slide: a disc on white looks like tissue on glass.
_WHITE = 255


def wide_side(size: int) -> int:
    """Side of the field to read so that a crop of ``size`` can be rotated by any angle.

    The smallest side of the same parity as ``size`` (the crop then starts on a whole pixel) with
    ``side >= √2 * size + 10``; the 10 px are the reach of a round trip (an angle and back) with bicubic
    interpolation.

    Parameters
    ----------
    size
        Side of the view, px.

    Returns
    -------
    int
        Side of the wide field, px, at the same µm per px.

    Raises
    ------
    ValueError
        If ``size`` is not positive.

    Examples
    --------
    >>> wide_side(224)
    328
    """
    if size < 1:
        raise ValueError(f"a view has a side of at least 1 px, got {size}")
    least = math.ceil(math.sqrt(2) * size + _MARGIN)
    return least + (least - size) % 2


def inscribed_size(side: int) -> int:
    """Side of the largest view that can be rotated inside a field of ``side`` px.

    For a field that cannot be read wider, such as a pre-cut image: the view is its inner square.

    Raises
    ------
    ValueError
        If no view fits.

    Examples
    --------
    >>> inscribed_size(328), inscribed_size(224)
    (224, 150)
    """
    size = int((side - _MARGIN) / math.sqrt(2))
    size -= (side - size) % 2
    if size < 1:
        raise ValueError(f"a field of {side} px is too small to be rotated; give at least 12 px")
    return size


def centre_crop(wide: Pixels, size: int) -> Pixels:
    """Cut the square of ``size`` px around the centre of a field.

    Raises
    ------
    ValueError
        If the field is not a uint8 square of RGB, is smaller than the crop or of other parity.

    Examples
    --------
    >>> centre_crop(np.zeros((6, 6, 3), np.uint8), 4).shape
    (4, 4, 3)
    """
    if wide.ndim != 3 or wide.shape[0] != wide.shape[1] or wide.shape[2] != 3:
        raise ValueError(f"a field is a square of RGB pixels [s, s, 3], got {list(wide.shape)}")
    if wide.dtype != np.uint8:
        raise ValueError(f"a field holds uint8 pixels, got {wide.dtype}; convert it to 0…255")
    spare = wide.shape[0] - size
    if spare < 0 or spare % 2:
        raise ValueError(
            f"a field of {wide.shape[0]} px has no centred crop of {size} px; "
            f"read wide_side({size}) = {wide_side(size)} px"
        )
    start = spare // 2
    return wide[start : start + size, start : start + size]


def rotated_views(wide: Pixels, size: int, angles: Sequence[float]) -> Pixels:
    """Rotate the centre of a field by each angle.

    Multiples of 90° move pixels without loss; other angles are bicubic. Angle 0 is the crop.

    Parameters
    ----------
    wide
        [s, s, 3] uint8 with s at least ``wide_side(size)``.
    size
        Side of the views, px.
    angles
        Degrees; positive rotates the picture counter-clockwise.

    Returns
    -------
    ndarray
        [len(angles), size, size, 3] uint8.

    Raises
    ------
    ValueError
        If the field is too small, of other parity than ``size``, or not uint8 RGB.

    Examples
    --------
    >>> wide = np.arange(24 * 24 * 3).astype(np.uint8).reshape(24, 24, 3)
    >>> views = rotated_views(wide, 8, [0, 90, 45])
    >>> views.shape, bool((views[1] == np.rot90(views[0])).all())
    ((3, 8, 8, 3), True)
    """
    crop, angles = _rotatable_crop(wide, size), [_within_circle(angle) for angle in angles]
    field = wide.astype(np.float32)
    # Angles that differ by quarter turns share one interpolation.
    within_quarter = {angle % 90 for angle in angles if not _is_lossless(angle)}
    rotated = {angle: _to_pixels(_rotated(field, angle, size)) for angle in within_quarter}
    views = [np.rot90(rotated.get(angle % 90, crop), _quarter_turns(angle)) for angle in angles]
    return _stacked(views, size)


def round_trip_views(wide: Pixels, size: int, angles: Sequence[float]) -> Pixels:
    """Rotate the centre of a field by each angle and back: the blur of interpolation alone.

    Content and orientation are those of the crop, only the two interpolations remain; for multiples
    of 90° the view is the crop itself. A control for :func:`rotated_views`.

    Parameters
    ----------
    wide, size, angles
        As in :func:`rotated_views`.

    Returns
    -------
    ndarray
        [len(angles), size, size, 3] uint8.

    Raises
    ------
    ValueError
        As :func:`rotated_views`.

    Examples
    --------
    >>> wide = np.full((24, 24, 3), 7, np.uint8)
    >>> int(np.ptp(round_trip_views(wide, 8, [30])))
    0
    """
    crop, angles = _rotatable_crop(wide, size), [_within_circle(angle) for angle in angles]
    field = wide.astype(np.float32)
    # A quarter turn more is taken back as well: the pixels are the same.
    within_quarter = {angle % 90 for angle in angles if not _is_lossless(angle)}
    returned = {
        angle: _to_pixels(_rotated(_rotated(field, angle, len(field)), -angle, size))
        for angle in within_quarter
    }
    return _stacked([returned.get(angle % 90, crop) for angle in angles], size)


def shifted_views(wide: Pixels, size: int, angles: Sequence[float]) -> Pixels:
    """Shift the view until it keeps as much of the tile as a rotation by each angle does.

    A square of side s rotated by θ shares s²·2/(1 + |sin θ| + |cos θ|) with itself unrotated; the view
    shifted sideways by s·(1 − that share), to the whole pixel, shares as much. Nothing is
    interpolated and nothing rotated: a control for what comes and goes at the corners.

    Parameters
    ----------
    wide, size, angles
        As in :func:`rotated_views`.

    Returns
    -------
    ndarray
        [len(angles), size, size, 3] uint8.

    Examples
    --------
    >>> wide = np.tile(np.arange(24, dtype=np.uint8)[:, None], (24, 1, 3))
    >>> shifted_views(wide, 8, [0, 45])[:, 0, 0, 0].tolist()
    [8, 9]
    """
    _rotatable_crop(wide, size)
    start = (len(wide) - size) // 2
    views = []
    for angle in angles:
        radians = math.radians(angle)
        kept = 2 / (1 + abs(math.sin(radians)) + abs(math.cos(radians)))
        left = start + round(size * (1 - kept))
        views.append(wide[start : start + size, left : left + size])
    return _stacked(views, size)


def disc_mask(size: int) -> NDArray[np.bool_]:
    """Pixels whose centre lies in the disc inscribed in a square of ``size`` px.

    Every rotated view holds the same tissue inside this disc, whereas two squares at angle θ
    share only 2 / (1 + |sin θ| + |cos θ|) of theirs.

    Returns
    -------
    ndarray
        [size, size] bool.

    Examples
    --------
    >>> disc_mask(4).sum(axis=1).tolist()
    [2, 4, 4, 2]
    """
    offset = np.arange(size) - (size - 1) / 2
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= (size / 2) ** 2


def apply_disc(views: Pixels, fill: int = _WHITE) -> Pixels:
    """Set everything outside the inscribed disc of each view to one grey.

    Parameters
    ----------
    views
        [..., size, size, 3] uint8.
    fill
        Grey outside the disc, 0…255.

    Returns
    -------
    ndarray
        A copy of the same shape.

    Examples
    --------
    >>> apply_disc(np.zeros((1, 4, 4, 3), np.uint8))[0, 0, :, 0].tolist()
    [255, 0, 0, 255]
    """
    inside = disc_mask(views.shape[-2])[..., None]
    return np.where(inside, views, np.uint8(fill))


def disc_views(wide: Pixels, size: int, angles: Sequence[float]) -> Pixels:
    """:func:`rotated_views` behind the inscribed disc, which holds the same tissue at any angle."""
    return apply_disc(rotated_views(wide, size, angles))


def _within_circle(angle: float) -> float:
    """The angle in 0 … 360, where its rest and its quarters agree.

    The rest of a tiny negative number is 90 itself, while its quarters are none.
    """
    return angle % 360


def _is_lossless(angle: float) -> bool:
    return angle % 90 == 0


def _quarter_turns(angle: float) -> int:
    return int(angle // 90) % 4


def _rotatable_crop(wide: Pixels, size: int) -> Pixels:
    crop = centre_crop(wide, size)
    if len(wide) < wide_side(size):
        raise ValueError(
            f"a field of {len(wide)} px is too small to rotate a view of {size} px without invented "
            f"corners; read wide_side({size}) = {wide_side(size)} px, or view its inner square of "
            "inscribed_size(side) px"
        )
    return crop


def _rotated(field: Floats, angle: float, size: int) -> Floats:
    """Rotate a field [s, s, 3] counter-clockwise about its centre; the middle [size, size, 3]."""
    from PIL import Image

    matrix = _affine(angle, len(field) / 2, size / 2)
    return np.stack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(channel)).transform(
                    (size, size),
                    Image.Transform.AFFINE,
                    matrix,
                    resample=Image.Resampling.BICUBIC,
                )
            )
            for channel in np.moveaxis(field, 2, 0)
        ],
        axis=2,
    )


def _to_pixels(field: Floats) -> Pixels:
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)


def _affine(angle: float, centre_in: float, centre_out: float) -> tuple[float, ...]:
    """Rows of the matrix from output to input positions, rows of the image counted downwards."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (
        cos,
        -sin,
        centre_in - (cos - sin) * centre_out,
        sin,
        cos,
        centre_in - (sin + cos) * centre_out,
    )


def _stacked(views: Sequence[Pixels], size: int) -> Pixels:
    if not views:
        return np.empty((0, size, size, 3), np.uint8)
    return np.stack(views)
