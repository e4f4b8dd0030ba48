"""What a center does to the phantom's tissue: stain, optics, sensor, compression."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.phantom_tissue import Tissue

#: Optical density per unit of haematoxylin and eosin in red, green, blue (Ruifrok and Johnston
#: 2001; eosin with the blue absorption that scanners show).
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.10, 0.92, 0.38])

#: Transmission of clear glass in red, green, blue: a scanner's white is not 255.
_GLASS = (0.955, 0.952, 0.958)

#: At site_bias 1, how far a center lies from the common stain. Large beside the jitter between
#: patients, so that colour predicts the center.
_HUE_SHIFT = 0.21
_STRENGTH_SHIFT = 0.16
_GAMMA_SHIFT = 0.10
_BLUR_SHIFT_UM = 0.22
_NOISE_SHIFT = 2.0
_QUALITY_SHIFT = 12.0

#: Log-normal jitter of stain strength between patients and between slides: the same at every
#: center, larger than what is left of the classes in colour.
_PATIENT_JITTER = 0.18
_SLIDE_JITTER = 0.08
#: Section thickness varies this much over a slide.
_THICKNESS = 0.10


@dataclass(frozen=True)
class CenterProfile:
    """One center's stain and scanner.

    Attributes
    ----------
    haematoxylin, eosin
        Optical density in red, green, blue per unit of stain.
    haematoxylin_strength, eosin_strength
        Factors on the amounts of stain.
    gamma
        Exponent on intensity.
    blur_um, noise
        Optical blur (Gaussian sigma, micrometres) and sensor noise (SD, grey levels).
    jpeg_quality
        Quality of the scanner's compression.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    haematoxylin_strength: float
    eosin_strength: float
    gamma: float
    blur_um: float
    noise: float
    jpeg_quality: int


def center_profile(index: int, n_centers: int, site_bias: float) -> CenterProfile:
    """The stain and scanner of one of several centers.

    Centers lie evenly on a circle around the common stain, so that no two are alike, and
    `site_bias` is the circle's radius.

    Parameters
    ----------
    index, n_centers
        Which center, of how many.
    site_bias
        In [0, 1]; at 0 all profiles are equal.

    Examples
    --------
    >>> center_profile(0, 3, 0.0) == center_profile(2, 3, 0.0)
    True
    >>> center_profile(0, 3, 1.0) == center_profile(2, 3, 1.0)
    False
    """
    angle = 2 * np.pi * index / n_centers
    cos, sin = site_bias * np.cos(angle), site_bias * np.sin(angle)
    # Shifted in phase, so that centers that share one property differ in the next.
    late = site_bias * np.cos(angle + 2.0)
    return CenterProfile(
        haematoxylin=_tilt(_HAEMATOXYLIN, _HUE_SHIFT * cos, _HUE_SHIFT * sin),
        eosin=_tilt(_EOSIN, _HUE_SHIFT * sin, -_HUE_SHIFT * cos),
        haematoxylin_strength=float(np.exp(_STRENGTH_SHIFT * sin)),
        eosin_strength=float(np.exp(_STRENGTH_SHIFT * late)),
        gamma=float(np.exp(_GAMMA_SHIFT * cos)),
        blur_um=float(0.42 + _BLUR_SHIFT_UM * late),
        noise=float(3.0 + _NOISE_SHIFT * sin),
        jpeg_quality=int(np.rint(84 + _QUALITY_SHIFT * cos)),
    )


def patient_stain(profile: CenterProfile, rng: np.random.Generator) -> CenterProfile:
    """A patient's block: stain strength drawn around the center's."""
    return _jitter(profile, _PATIENT_JITTER, rng)


def slide_stain(profile: CenterProfile, rng: np.random.Generator) -> CenterProfile:
    """One slide of a block: stain strength drawn around the block's."""
    return _jitter(profile, _SLIDE_JITTER, rng)


def render(
    tissue: Tissue, profile: CenterProfile, mpp: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Light through stained tissue, as a scanner records it.

    Beer-Lambert per channel, ``I = 255 (w exp(-(c_H v_H + c_E v_E)))^gamma`` with the glass's
    transmission w, then optical blur and sensor noise.

    Parameters
    ----------
    tissue
        Amounts of stain [h, w].
    profile
        The slide's stain and scanner.
    mpp
        Micrometres per pixel.
    rng
        For the thickness of the section and the noise.

    Returns
    -------
    ndarray
        uint8 [h, w, 3], RGB.
    """
    from scipy.ndimage import gaussian_filter

    thickness = _thickness(tissue.haematoxylin.shape, rng)
    amounts = (
        tissue.haematoxylin * np.float32(profile.haematoxylin_strength) * thickness,
        tissue.eosin * np.float32(profile.eosin_strength) * thickness,
    )
    noise = _noise((3, *tissue.eosin.shape), profile.noise, rng)
    pixels = np.empty((*tissue.eosin.shape, 3), dtype=np.uint8)
    for channel, glass in enumerate(_GLASS):
        # Gamma on intensity is a factor on optical density.
        light = np.float32(-profile.gamma * profile.haematoxylin[channel]) * amounts[0]
        light += np.float32(-profile.gamma * profile.eosin[channel]) * amounts[1]
        np.exp(light, out=light)
        gaussian_filter(light, profile.blur_um / mpp, truncate=2.5, output=light)
        light *= np.float32(255 * glass**profile.gamma)
        light += noise[channel]
        pixels[..., channel] = np.clip(light, 0, 255, out=light)
    return pixels


def _tilt(vector: NDArray[np.float64], to_blue: float, to_red: float) -> tuple[float, float, float]:
    """Move a stain vector along two colour axes at constant total density."""
    moved = vector + to_blue * np.array([0.5, -0.5, 0.0]) + to_red * np.array([-0.3, -0.3, 0.6])
    moved = np.maximum(moved, 0.02)
    red, green, blue = moved * vector.sum() / moved.sum()
    return float(red), float(green), float(blue)


def _jitter(profile: CenterProfile, spread: float, rng: np.random.Generator) -> CenterProfile:
    h, e = np.exp(spread * np.clip(rng.standard_normal(2), -2, 2))
    return replace(
        profile,
        haematoxylin_strength=float(profile.haematoxylin_strength * h),
        eosin_strength=float(profile.eosin_strength * e),
    )


def _thickness(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    height, width = shape
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves = rng.uniform(1.0, 2.0, 2)
    row = np.sin(2 * np.pi * waves[0] * np.arange(height) / height + phase[0])
    column = np.sin(2 * np.pi * waves[1] * np.arange(width) / width + phase[1])
    factor: NDArray[np.float32] = (1 + _THICKNESS * row[:, None] * column).astype(np.float32)
    return factor


def _noise(shape: tuple[int, ...], spread: float, rng: np.random.Generator) -> NDArray[np.float32]:
    # Uniform noise of the same SD: a tenth of the time of a normal draw, and blur-free either way.
    drawn = rng.integers(0, 256, shape, dtype=np.uint8).astype(np.float32)
    drawn *= np.float32(spread / 73.9)
    # The half turns the later cut to whole numbers into rounding.
    drawn -= np.float32(127.5 * spread / 73.9 - 0.5)
    return drawn
