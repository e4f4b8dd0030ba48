r"""Where a slide that shows another's tissue again has which place of it: rotation and shift.

Both slides are seen at low power as optical density, whose structure survives another stain or scanner.
The repeat is turned by every angle of a full circle; of each, phase correlation gives the shift and how
far the two agree: with F, G the spectra, the peak of the inverse transform of
``w · F·conj(G) / |F·conj(G)|``, w a Gaussian that leaves out what is finer than the blur of a scanner
(Kuglin & Hines 1975). The best angles are refined step by step, and the peak to a part of a pixel.

How well it fits is measured by what was not fitted: the correlation of the fine structure where the two
overlap, and how far the parts of the overlap would still move, each by a phase correlation of its own
(the median is the *residual*).

Pitfalls
--------
- Tissue that is stretched, torn or folded between two scans moves by another amount in each part: the
  residual shows it. The next section of a block is not the same tissue.
- A slide that was mirrored is not found: say ``flip`` in the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.interface import Pixels

Map = NDArray[np.float32]
Floats = NDArray[np.float64]

#: px of tissue on both pictures that a fit is measured on: a correlation needs two.
_LEAST_OVERLAP = 2
#: Longest side of the picture in which all angles are tried, and degrees between two of them: at half a
#: step off, the edge of this picture is 2.2 px off, within the reach of the low pass.
_COARSE_SIDE, _COARSE_STEP = 256, 2.0
#: In a smaller picture as many px are more degrees, up to this many.
_WIDEST_STEP = 5.0
#: How many of the coarse angles are refined.
_CANDIDATES = 3
#: Steps to either side by which an angle is refined in the whole picture, degrees: the last moves the
#: edge of a picture of 2,048 px by half a px.
_FINE_STEPS = (0.5, 0.25, 0.12, 0.06, 0.03)
#: Standard deviation of the Gaussian weight of frequencies, cycles per px.
_LOW_PASS = 0.12
#: Structure coarser than this, in px, is the outline and the stain's strength, and fits by chance.
_FINE_STRUCTURE = 6.0
#: Optical density from which a pixel is tissue, and the most that counts: ink and folds are darker.
_LEAST_DENSITY, _MOST_DENSITY = 0.04, 1.5
#: The overlap is cut in so many parts a side, and a part counts with this share of tissue.
_PARTS, _PART_TISSUE = 4, 0.3


@dataclass(frozen=True)
class Registration:
    """From level-0 px of a slide to those of the slide whose tissue it shows again.

    ``reference = offset + R(rotation) · mirrored(scale · repeat)``, both (x, y) in level-0 px from the
    upper left corner.

    Attributes
    ----------
    offset_x, offset_y
        Where the repeat's upper left corner lies on the reference slide, level-0 px of the latter.
    rotation_deg
        By how much the repeat must be turned counter-clockwise to lie as the reference does.
    flip
        Whether it must be mirrored left to right first.
    scale
        Level-0 px of the reference per level-0 px of the repeat.

    Examples
    --------
    >>> found = Registration(10.0, 20.0, rotation_deg=90.0)
    >>> found.to_reference(np.array([[3.0, 0.0]])).round(9).tolist()
    [[10.0, 17.0]]
    >>> (found.to_repeat(np.array([[10.0, 17.0]])).round(9) + 0.0).tolist()
    [[3.0, 0.0]]
    """

    offset_x: float
    offset_y: float
    rotation_deg: float = 0.0
    flip: bool = False
    scale: float = 1.0

    @property
    def _matrix(self) -> Floats:
        cos, sin = (f(math.radians(self.rotation_deg)) for f in (math.cos, math.sin))
        turned = np.array([[cos, sin], [-sin, cos]])
        return self.scale * turned @ np.diag([-1.0 if self.flip else 1.0, 1.0])

    def to_reference(self, places: Floats) -> Floats:
        """Places [n, 2] of the repeat on the reference."""
        found: Floats = places @ self._matrix.T + [self.offset_x, self.offset_y]
        return found

    def to_repeat(self, places: Floats) -> Floats:
        """Places [n, 2] of the reference on the repeat."""
        found: Floats = (places - [self.offset_x, self.offset_y]) @ np.linalg.inv(self._matrix).T
        return found


@dataclass(frozen=True)
class Fit:
    """A registration of two pictures of one resolution, and how well they fit.

    Attributes
    ----------
    registration
        In px of the pictures.
    correlation
        Pearson correlation of the fine structure where both have tissue; NaN without overlap.
    residual_px
        Median distance by which parts of the overlap would still move; NaN where none has tissue
        enough.
    """

    registration: Registration
    correlation: float
    residual_px: float


def density(image: Pixels) -> Map:
    """Optical density of the tissue, mean of the three colours; 0 on glass, float32 [h, w].

    Examples
    --------
    >>> density(np.full((4, 4, 3), 240, np.uint8)).max()
    np.float32(0.0)
    """
    light = np.maximum(image.astype(np.float32), 1.0)
    glass = np.percentile(light.reshape(-1, 3), 95, axis=0).astype(np.float32)
    found = -np.log10(np.minimum(light / np.maximum(glass, 1.0), 1.0)).mean(axis=2)
    found = np.where(found < _LEAST_DENSITY, 0.0, np.minimum(found, _MOST_DENSITY))
    return np.asarray(found, np.float32)


def register(reference: Map, repeat: Map) -> Fit:
    """Find rotation and shift that bring one picture onto another.

    Parameters
    ----------
    reference, repeat
        float32 [h, w] from :func:`density`, of one resolution; sizes may differ.

    Raises
    ------
    ValueError
        If one shows no tissue.
    """
    if not reference.any() or not repeat.any():
        which = "reference" if not reference.any() else "repeat"
        raise ValueError(f"the {which} slide shows no tissue at the registration's resolution")
    factor = max(1.0, max(*reference.shape, *repeat.shape) / _COARSE_SIDE)
    coarse = _Matcher.of(_reduced(reference, factor), _reduced(repeat, factor))
    longest = max(*coarse.reference.shape, *coarse.repeat.shape)
    step = min(_WIDEST_STEP, _COARSE_STEP * _COARSE_SIDE / longest)
    angles = np.arange(0.0, 360.0, step)
    peaks = np.array([coarse.peak(angle)[0] for angle in angles])
    candidates = angles[np.argsort(-peaks, kind="stable")[:_CANDIDATES]]
    rough = [step / 2**halved for halved in (1, 2, 3)]
    best = max(coarse.refined(float(angle), rough) for angle in candidates)
    fine = coarse if factor == 1 else _Matcher.of(reference, repeat)
    _, angle, down, right = fine.refined(best[1], _FINE_STEPS)
    return measured_fit(reference, repeat, fine.registration(angle, down, right))


def measured_fit(reference: Map, repeat: Map, registration: Registration) -> Fit:
    """How well two pictures fit under a registration in px of theirs; NaN where they do not overlap."""
    from scipy.ndimage import gaussian_filter

    aligned, inside = _aligned(reference, repeat, registration)
    both = inside & (reference > 0) & (aligned > 0)
    if both.sum() < _LEAST_OVERLAP:
        return Fit(registration, math.nan, math.nan)
    first, second = (part - gaussian_filter(part, _FINE_STRUCTURE) for part in (reference, aligned))
    a, b = first[both], second[both]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = float(np.corrcoef(a, b)[0, 1])
    return Fit(registration, correlation, _residual(reference, aligned, both))


@dataclass(frozen=True)
class _Matcher:
    """Phase correlation of one picture with another turned by any angle.

    Attributes
    ----------
    spectrum, weight
        Of the reference, and of frequencies.
    reference, repeat
        Pictures, tapered at their edges.
    side
        Of the square in which spectra are computed.
    """

    spectrum: NDArray[np.complex64]
    weight: Map
    reference: Map
    repeat: Map
    side: int

    @classmethod
    def of(cls, reference: Map, repeat: Map) -> _Matcher:
        from scipy.fft import next_fast_len, rfft2

        longest = max(math.hypot(*repeat.shape), *reference.shape)
        # A quarter of the side may lie outside before the picture meets its own other end.
        side = next_fast_len(math.ceil(1.25 * longest), real=True)
        first, second = _tapered(reference), _tapered(repeat)
        frequency = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None] ** 2
        weight = np.exp(-frequency / (2 * _LOW_PASS**2)).astype(np.float32)
        return cls(rfft2(first, (side, side), workers=1), weight, first, second, side)

    def peak(self, angle: float) -> tuple[float, float, float]:
        """Height of the peak, and by how much the turned picture must move down and right."""
        from scipy.fft import rfft2

        turned = _turned(self.repeat, angle)
        product = self.spectrum * np.conj(rfft2(turned, (self.side, self.side), workers=1))
        return _peak(product, self.weight, self.side)

    def refined(self, angle: float, steps: Sequence[float]) -> tuple[float, float, float, float]:
        """Peak height, angle, and shift down and right, by smaller and smaller steps of the angle."""
        height, down, right = self.peak(angle)
        best = (height, angle, down, right)
        for step in steps:
            for turn in (best[1] - step, best[1] + step):
                height, down, right = self.peak(turn)
                best = max(best, (height, turn, down, right))
        return best

    def registration(self, angle: float, down: float, right: float) -> Registration:
        """Of a turn about the middle of the repeat and a shift."""
        rows, columns = self.repeat.shape
        turned_rows, turned_columns = _turned_shape(self.repeat.shape, angle)
        plain = Registration(0.0, 0.0, angle)
        # Centres of pixels lie half a pixel inside their corners, in both pictures alike.
        middle = plain.to_reference(np.array([[columns / 2, rows / 2]]))[0]
        return Registration(
            right + turned_columns / 2 - middle[0],
            down + turned_rows / 2 - middle[1],
            (angle + 180.0) % 360.0 - 180.0,
        )


def _peak(product: NDArray[Any], weight: Map, side: int) -> tuple[float, float, float]:
    from scipy.fft import irfft2

    size = np.abs(product)
    # Frequencies without content have a phase of rounding errors.
    known = size > 1e-6 * size.max()
    surface = irfft2(np.where(known, weight * product / np.where(known, size, 1), 0), (side, side))
    row, column = np.unravel_index(int(np.argmax(surface)), surface.shape)
    down = row + _vertex(*(surface[(row + step) % side, column] for step in (-1, 0, 1)))
    right = column + _vertex(*(surface[row, (column + step) % side] for step in (-1, 0, 1)))
    height = float(surface[row, column] * side * side / max(_total(weight), 1e-12))
    return height, _signed(down, side), _signed(right, side)


def _total(weight: Map) -> float:
    """Sum over the whole spectrum, of which one half is kept."""
    return float(2 * weight.sum() - weight[:, 0].sum())


def _vertex(before: float, at: float, after: float) -> float:
    """Where a parabola through three heights has its top, from the middle one."""
    bend = before - 2 * at + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))


def _signed(shift: float, side: int) -> float:
    return float(shift - side if shift > side / 2 else shift)


def _turned_shape(shape: tuple[int, ...], angle: float) -> tuple[int, int]:
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    # The sine of a half turn is a rounding error, and no px more.
    down, right = shape[0] * cos + shape[1] * sin, shape[0] * sin + shape[1] * cos
    return math.ceil(down - 1e-6), math.ceil(right - 1e-6)


def _turned(picture: Map, angle: float) -> Map:
    """Turned counter-clockwise about its middle, on a canvas that holds all of it."""
    from scipy.ndimage import affine_transform

    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    back = np.array([[cos, sin], [-sin, cos]])
    shape = _turned_shape(picture.shape, angle)
    middles = [(np.array(size) - 1) / 2 for size in (picture.shape, shape)]
    found: Map = affine_transform(
        picture, back, middles[0] - back @ middles[1], output_shape=shape, order=1
    )
    return found


def _aligned(
    reference: Map, repeat: Map, registration: Registration
) -> tuple[Map, NDArray[np.bool_]]:
    """The repeat as it lies on the reference, and where it lies at all."""
    from scipy.ndimage import map_coordinates

    rows, columns = np.mgrid[: reference.shape[0], : reference.shape[1]]
    places = np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5
    x, y = registration.to_repeat(places).T - 0.5
    found = map_coordinates(repeat, [y, x], order=1).reshape(reference.shape)
    inside = (x >= 0) & (y >= 0) & (x <= repeat.shape[1] - 1) & (y <= repeat.shape[0] - 1)
    return found.astype(np.float32), inside.reshape(reference.shape)


def _residual(reference: Map, aligned: Map, both: NDArray[np.bool_]) -> float:
    """Median distance by which parts of the overlap would still move."""
    moves = []
    down, right = (np.flatnonzero(both.any(axis=axis)) for axis in (1, 0))
    for rows in np.array_split(np.arange(down[0], down[-1] + 1), _PARTS):
        for columns in np.array_split(np.arange(right[0], right[-1] + 1), _PARTS):
            if min(len(rows), len(columns)) < 2 * _FINE_STRUCTURE:
                continue
            part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            if both[part].mean() >= _PART_TISSUE:
                matcher = _Matcher.of(reference[part], aligned[part])
                moves.append(math.hypot(*matcher.peak(0.0)[1:]))
    return float(np.median(moves)) if moves else math.nan


def _tapered(picture: Map) -> Map:
    """Faded at the edges, where a picture that is cut through tissue would correlate with its frame."""
    from scipy.signal.windows import tukey

    rows, columns = (tukey(size, 0.1).astype(np.float32) for size in picture.shape)
    middle = picture - picture.mean()
    return np.asarray(middle * rows[:, None] * columns[None], np.float32)


def _reduced(picture: Map, factor: float) -> Map:
    from PIL import Image

    if factor == 1:
        return picture
    rows, columns = (max(1, round(size / factor)) for size in picture.shape)
    small = Image.fromarray(picture).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(small, np.float32)
