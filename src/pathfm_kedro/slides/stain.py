r"""Haematoxylin and eosin in optical density: measuring a stain, changing it, taking another's.

Light that passes stained tissue is I = L·exp(−Σ_s c_s v_s): with the optical density
D = −ln((I + 1) / L), L = 240, stains add up. A basis of three unit vectors (haematoxylin, eosin and
what is perpendicular to both, the residual) turns D into amounts c and back; with unchanged amounts
the pixels come back exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Triple = tuple[float, float, float]

#: Grey level of light through clear glass, and the density below which a pixel is glass: the values
#: of Macenko's published code, which torchstain takes over.
LIGHT = 240.0
GLASS_DENSITY = 0.15

#: Fewer stained pixels leave the tails of their hues, from which Macenko's vectors are read, to
#: chance: 1% of 1,000 is ten pixels.
MIN_STAINED_PIXELS = 1000
#: Vectors closer than this are one stain (or none), and amounts would be differences of two large
#: numbers. Published H and E vectors lie 20° to 40° apart.
MIN_ANGLE = 5.0
#: A stain absorbs in every channel; noise may push a component a little below zero.
_LEAST_ABSORPTION = -0.05

#: Why a tile has no stain of its own; the position is the code stored with a tile.
PROBLEMS = (
    "",
    f"fewer than {MIN_STAINED_PIXELS} stained pixels: too little tissue",
    f"stain vectors less than {MIN_ANGLE:g}° apart: the tile shows one stain only",
    "a stain vector with negative absorption, or no amount of a stain: not an H&E tile",
)


@dataclass(frozen=True)
class StainBasis:
    """Colours of the two stains.

    Attributes
    ----------
    haematoxylin, eosin
        Optical density in red, green, blue; any length.
    """

    haematoxylin: Triple
    eosin: Triple

    @property
    def matrix(self) -> Floats:
        """[3, 3], rows of length 1: haematoxylin, eosin, residual (perpendicular to both)."""
        rows = np.array([self.haematoxylin, self.eosin])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        residual = np.cross(rows[0], rows[1])
        return np.vstack([rows, residual / np.linalg.norm(residual)])

    @property
    def angle(self) -> float:
        """Degrees between the two stains."""
        rows = self.matrix
        return float(np.degrees(np.arccos(np.clip(rows[0] @ rows[1], -1, 1))))


#: Ruifrok and Johnston 2001, as in ``skimage.color.rgb_from_hed``: the basis where none was fitted.
COMMON_BASIS = StainBasis((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))


@dataclass(frozen=True)
class StainReference:
    """How a center's tiles look, as medians over them.

    Attributes
    ----------
    center
        Whose.
    basis
        Macenko's stain vectors.
    high
        99th percentile of the amounts of haematoxylin and eosin.
    lab_mean, lab_sd
        Mean and standard deviation in CIELAB.
    """

    center: str
    basis: StainBasis
    high: tuple[float, float]
    lab_mean: Triple
    lab_sd: Triple

    def describe(self) -> dict[str, Any]:
        """Everything as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MacenkoFit:
    """A tile's own stain, or why it has none.

    Attributes
    ----------
    problem
        Position in :data:`PROBLEMS`; 0 where there is none.
    basis
        Stain vectors; None with a problem.
    high
        99th percentile of the amounts of haematoxylin and eosin; None with a problem.
    """

    problem: int
    basis: StainBasis | None = None
    high: tuple[float, float] | None = None


@cache
def _density_of_grey() -> Floats:
    return -np.log((np.arange(256, dtype=np.float64) + 1) / LIGHT)


def optical_density(pixels: Pixels) -> Floats:
    """−ln((v + 1) / 240), of the shape of the pixels; slightly negative on bright glass.

    Examples
    --------
    >>> optical_density(np.array([239, 87], np.uint8)).round(2).tolist()
    [-0.0, 1.0]
    """
    return _density_of_grey()[pixels]


def from_density(density: Floats) -> Pixels:
    """Pixels of an optical density: the inverse of :func:`optical_density`, rounded and clipped.

    Examples
    --------
    >>> grey = np.arange(256).astype(np.uint8)
    >>> bool((from_density(optical_density(grey)) == grey).all())
    True
    """
    return np.clip(np.rint(LIGHT * np.exp(-density) - 1), 0, 255).astype(np.uint8)


def stain_amounts(pixels: Pixels, basis: StainBasis) -> Floats:
    """Amounts of haematoxylin, eosin and residual in each pixel.

    Parameters
    ----------
    pixels
        [..., 3] uint8 RGB.
    basis
        Colours of the stains.

    Returns
    -------
    ndarray
        [..., 3] natural optical density along each vector; below 0 where noise or glass is brighter.

    Examples
    --------
    >>> blue = from_density(0.8 * COMMON_BASIS.matrix[0])
    >>> stain_amounts(blue, COMMON_BASIS).round(1).tolist()
    [0.8, 0.0, 0.0]
    """
    return optical_density(pixels) @ np.linalg.inv(basis.matrix)


def stained(amounts: Floats, basis: StainBasis) -> Pixels:
    """Pixels [..., 3] of amounts of haematoxylin, eosin and residual [..., 3]."""
    return from_density(amounts @ basis.matrix)


def jitter_draw(seed: int | Sequence[int]) -> Floats:
    """[2, 2] uniform in −1 … 1: for haematoxylin and eosin (rows) a factor and a shift.

    One draw serves every σ, so that the dose alone differs between views of a tile.

    Examples
    --------
    >>> jitter_draw(1).shape, bool((jitter_draw(1) == jitter_draw(1)).all())
    ((2, 2), True)
    """
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (2, 2))


def jittered(pixels: Pixels, basis: StainBasis, sigma: float, draw: Floats) -> Pixels:
    """Haematoxylin and eosin made stronger or weaker: c' = c·(1 + σ u₁) + σ u₂ for each.

    With u uniform in −1 … 1 this is c·U[1±σ] + U[±σ] of Tellez et al. 2018 ("Whole-slide mitosis
    detection in H&E breast histology …", IEEE TMI); the residual is untouched. The shift tints clear
    glass too, as it does there.

    Parameters
    ----------
    pixels
        [..., 3] uint8.
    basis
        Colours of the stains.
    sigma
        Dose; 0 changes nothing.
    draw
        [2, 2] from :func:`jitter_draw`.

    Examples
    --------
    >>> tile = np.full((2, 2, 3), (180, 120, 160), np.uint8)
    >>> bool((jittered(tile, COMMON_BASIS, 0.0, jitter_draw(0)) == tile).all())
    True
    """
    amounts = stain_amounts(pixels, basis)
    amounts[..., :2] = amounts[..., :2] * (1 + sigma * draw[:, 0]) + sigma * draw[:, 1]
    return stained(amounts, basis)


def fit_macenko(pixels: Pixels) -> MacenkoFit:
    """Stain vectors and upper amounts of a tile after Macenko et al. 2009, by torchstain.

    torchstain gives NaN or an error on a tile without tissue and arbitrary vectors on one of a single
    colour; here such a tile gets a problem instead.

    Parameters
    ----------
    pixels
        [h, w, 3] uint8.

    Examples
    --------
    >>> PROBLEMS[fit_macenko(np.full((64, 64, 3), 244, np.uint8)).problem]
    'fewer than 1000 stained pixels: too little tissue'
    """
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    flat = pixels.reshape(-1, 3)
    seen = optical_density(flat)
    tissue = seen[(seen >= GLASS_DENSITY).all(axis=1)]
    if len(tissue) < MIN_STAINED_PIXELS:
        return MacenkoFit(1)
    if (np.ptp(tissue, axis=0) == 0).all():
        return MacenkoFit(2)
    fitted = NumpyMacenkoNormalizer()
    fitted.fit(flat.reshape(1, -1, 3), Io=LIGHT, beta=GLASS_DENSITY)
    vectors, high = fitted.HERef.T, fitted.maxCRef
    return _checked_fit(vectors, high)


def _checked_fit(vectors: Floats, high: Floats) -> MacenkoFit:
    """A fit whose numbers describe two stains, or its problem."""
    if not np.isfinite(vectors).all() or not np.isfinite(high).all():
        return MacenkoFit(3)
    # Noise alone may make a component slightly negative, which no dye is.
    if vectors.min() < _LEAST_ABSORPTION:
        return MacenkoFit(3)
    basis = StainBasis(_triple(vectors[0]), _triple(vectors[1]))
    if basis.angle < MIN_ANGLE:
        return MacenkoFit(2)
    if high.min() <= 0:
        return MacenkoFit(3)
    return MacenkoFit(0, basis, (float(high[0]), float(high[1])))


def lab_statistics(pixels: Pixels) -> tuple[Floats, Floats]:
    """Mean and standard deviation [3] in CIELAB over all pixels (Reinhard et al. 2001).

    Examples
    --------
    >>> mean, sd = lab_statistics(np.full((4, 4, 3), 255, np.uint8))
    >>> (mean.round() + 0.0).tolist(), sd.round(3).tolist()
    ([100.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    """
    lab = _lab(pixels).reshape(-1, 3)
    return lab.mean(axis=0, dtype=np.float64), lab.std(axis=0, dtype=np.float64)


def reinhard_transfer(pixels: Pixels, source: StainReference, target: StainReference) -> Pixels:
    """Move colours from one center's mean and spread in CIELAB to another's.

    x' = (x − μ_A) / σ_A · σ_B + μ_B per channel, μ and σ the medians over the centers' tiles. A tile's
    own statistics in place of A's, as usual in normalisation, would take away what the tissue adds
    to a tile's colour; so all tiles of a center move alike.

    Parameters
    ----------
    pixels
        [..., 3] uint8.
    source, target
        The centers A and B.
    """
    from torchstain.numpy.utils import lab2rgb

    factor = np.array(target.lab_sd) / np.array(source.lab_sd)
    moved = (_lab(pixels) - np.array(source.lab_mean)) * factor + np.array(target.lab_mean)
    # torchstain counts L in 0 … 255 and a, b from 128, as OpenCV does.
    light = lab2rgb(moved * (2.55, 1.0, 1.0) + (0.0, 128.0, 128.0))
    moved_pixels: Pixels = np.rint(light * 255).astype(np.uint8)
    return moved_pixels


def macenko_transfer(pixels: Pixels, source: StainReference, target: StainReference) -> Pixels:
    """Replace one center's stain vectors and strength by another's.

    Amounts in the basis of A are scaled by the ratio of the centers' 99th percentiles and put into
    the basis of B; the residual stays. As in :func:`reinhard_transfer` all tiles of a center move
    alike.

    Parameters
    ----------
    pixels
        [..., 3] uint8.
    source, target
        The centers A and B.
    """
    amounts = stain_amounts(pixels, source.basis)
    amounts[..., :2] *= np.array(target.high) / np.array(source.high)
    return stained(amounts, target.basis)


def stain_moments(pixels: Pixels) -> Floats:
    """Mean and standard deviation of the amounts of haematoxylin and eosin, in the common basis.

    One basis for all tiles, so that a tile's numbers do not depend on how well its own stain could
    be fitted.

    Returns
    -------
    ndarray
        [4]: haematoxylin mean and SD, eosin mean and SD.

    Examples
    --------
    >>> stain_moments(np.full((4, 4, 3), 239, np.uint8)).round(3).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    amounts = stain_amounts(pixels, COMMON_BASIS).reshape(-1, 3)[:, :2]
    return np.stack([amounts.mean(axis=0), amounts.std(axis=0)], axis=1).reshape(-1) + 0.0


def tissue_composition(tile: Pixels, crops: Pixels) -> Floats:
    """Share of each crop's pixels with much haematoxylin, and with much eosin.

    Much is above Otsu's threshold of the whole tile, so that a stronger stain changes neither.

    Parameters
    ----------
    tile
        uint8 [s, s, 3].
    crops
        uint8 [n, t, t, 3].

    Returns
    -------
    ndarray
        [n, 2] in 0 … 1.

    Examples
    --------
    >>> tile = np.zeros((8, 8, 3)) + 0.1 * COMMON_BASIS.matrix[1]
    >>> tile[:, :4] = COMMON_BASIS.matrix[0]
    >>> pixels = from_density(tile)
    >>> tissue_composition(pixels, pixels[None, :, :4])[0].tolist()
    [1.0, 0.0]
    """
    from skimage.filters import threshold_otsu

    amounts = stain_amounts(tile, COMMON_BASIS)[..., :2]
    # A tile of one colour has no threshold, and no pixel above its only value.
    otsu: Callable[[Floats], float] = threshold_otsu
    levels = [otsu(a) if np.ptp(a) > 0 else a.max() for a in np.moveaxis(amounts, -1, 0)]
    above = stain_amounts(crops, COMMON_BASIS)[..., :2] > np.array(levels)
    return cast(Floats, above.mean(axis=(1, 2)))


def _lab(pixels: Pixels) -> Floats:
    """CIELAB of RGB pixels, float64 [..., 3]: L in 0 … 100."""
    from torchstain.numpy.utils import rgb2lab

    scaled = rgb2lab(pixels.astype(np.float32) / np.float32(255)).astype(np.float64)
    return cast(Floats, (scaled - (0.0, 128.0, 128.0)) / (2.55, 1.0, 1.0))


def _triple(values: Sequence[float] | Floats) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
