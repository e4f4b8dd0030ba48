"""What a dose adds to the phantom's tissue for one check to see: drawn in pixels, not in vectors.

Each cue is a pattern of the section's thickness, so that it goes through stain, optics and compression
like tissue does. At dose 0 nothing is drawn.

- ``orientation``: chatter of the knife, bands across the whole slide in a direction of its own;
- ``arrangement``: blotches of a third of a tile;
- ``fine_detail``: grain of single pixels, here more, there less, which blur and compression take away;
- ``field``: bands whose direction tells the label. The dose says how much tissue has none: at 0 they
  are everywhere, at 1 on islands that most tiles miss and few fields of 256 micrometres do. Drawn only
  where it is named.

Nothing is drawn for the adversarial check, which makes its changes itself: there the dose is that of
the control which reads them (``control:pattern_reader``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pathfm_kedro.slides.phantom_fields import Map, noise, smoothstep
from pathfm_kedro.slides.phantom_tissue import Tissue

ORIENTATION, ARRANGEMENT, DETAIL, FIELD = "orientation", "arrangement", "fine_detail", "field"
CUES = (ORIENTATION, ARRANGEMENT, DETAIL, FIELD)
#: Period of chatter and of the label's bands, micrometres: some nine and sixteen on a tile of 112, so
#: that neither is the other's.
CHATTER_UM, LABEL_UM = 12.0, 7.0
#: Blotches: a third of a tile of 112 micrometres.
_BLOTCH_UM = 37.0
#: Stretches of more and of less grain: wider than a tile, so that a tile has its own.
_GRAIN_UM = 150.0
#: Islands: on a grid of this side; of a tile of 112 micrometres one in four sees one, of fields of 256
#: nearly all.
_ISLANDS_UM, _ISLAND_RADIUS_UM = 230.0, 24.0
#: Strength at dose 1: of the logarithm of thickness.
_STRENGTH = {ORIENTATION: 0.7, ARRANGEMENT: 1.0, DETAIL: 1.2, FIELD: 0.8}


def with_cues(
    tissue: Tissue, doses: Mapping[str, float], label: float, mpp: float, rng: np.random.Generator
) -> Tissue:
    """Tissue of a section whose thickness holds the cues.

    Parameters
    ----------
    tissue
        Amounts of stain [h, w].
    doses
        Of :data:`CUES`, 0 to 1.
    label
        Place of the slide's label among all, 0 to 1: the direction of its bands, in half turns.
    mpp
        Micrometres per pixel.
    rng
        What is drawn.
    """
    size = len(tissue.eosin)
    thickness = np.zeros((size, size), np.float32)
    for cue in sorted(doses):
        dose = doses[cue]
        if cue == FIELD:
            bands = _bands(size, LABEL_UM / mpp, np.pi * label)
            thickness += np.float32(_STRENGTH[cue]) * bands * _islands(size, dose, mpp, rng)
        elif dose > 0:
            thickness += np.float32(dose * _STRENGTH[cue]) * _pattern(cue, size, mpp, rng)
    factor = np.exp(thickness)
    return Tissue(tissue.haematoxylin * factor, tissue.eosin * factor)


def _pattern(cue: str, size: int, mpp: float, rng: np.random.Generator) -> Map:
    """A cue at full dose, about -1 to 1."""
    if cue == ORIENTATION:
        return _bands(size, CHATTER_UM / mpp, rng.uniform(0, np.pi))
    if cue == ARRANGEMENT:
        return np.clip(noise(size, _BLOTCH_UM / mpp, rng), -2, 2)
    amount = smoothstep(noise(size, _GRAIN_UM / mpp, rng), -1.0, 1.0)
    grain: Map = amount * rng.choice(np.array([-1, 1], np.float32), (size, size))
    return grain


def _bands(size: int, period: float, direction: float) -> Map:
    """Waves of a period in px along a direction, radians."""
    axis = np.arange(size, dtype=np.float32)
    along = np.cos(direction) * axis[None, :] + np.sin(direction) * axis[:, None]
    waves: Map = np.sin(2 * np.pi / period * along).astype(np.float32)
    return waves


def _islands(size: int, dose: float, mpp: float, rng: np.random.Generator) -> Map:
    """1 on islands around the points of a grid that is shifted at random, 1 - dose between them."""
    spacing = _ISLANDS_UM / mpp
    axis = np.arange(size, dtype=np.float32)
    shifts = rng.uniform(0, spacing, 2)
    row, column = ((axis + shift) % spacing - spacing / 2 for shift in shifts)
    far = np.hypot(row[:, None], column[None, :]) * mpp
    islands: Map = 1 - np.float32(dose) * smoothstep(far, _ISLAND_RADIUS_UM, _ISLAND_RADIUS_UM + 6)
    return islands
