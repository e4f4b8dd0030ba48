"""The same tissue of the phantom once more: moved on the glass, in another stain, by another scanner.

One drawing is moved by a known rotation and shift and rendered with the stain, the scanner, or both of
another center. A dose from 0 to 1 scales all of it: at 0 the pixels are those of the first slide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.phantom_stain import CenterProfile
from pathfm_kedro.slides.phantom_tissue import Tissue

#: What of the other center's look each change takes.
CHANGES: dict[str, tuple[str, ...]] = {
    "scanner": ("gamma", "blur_um", "noise", "jpeg_quality"),
    "stain": ("haematoxylin", "eosin", "haematoxylin_strength", "eosin_strength"),
}
CHANGES["both"] = CHANGES["stain"] + CHANGES["scanner"]
#: A slide lies a little askew in its holder, and the scanner starts elsewhere.
_MOST_DEGREES = 8.0
#: Share of the slide's side.
_MOST_SHIFT = 0.05


@dataclass(frozen=True)
class Placement:
    """Where tissue came to lie: ``moved = middle + shift + R(degrees) (place - middle)``.

    Attributes
    ----------
    degrees
        Counter-clockwise, as one looks at the slide.
    shift_x, shift_y
        Of the slide's middle, micrometres.
    middle
        Of the slide, micrometres from its upper left corner, in both directions.
    """

    degrees: float
    shift_x: float
    shift_y: float
    middle: float

    @classmethod
    def drawn(cls, side_um: float, dose: float, rng: np.random.Generator) -> Placement:
        """A placement of a dose; at dose 0 nothing moves."""
        degrees, right, down = dose * rng.uniform(-1, 1, 3)
        shift = _MOST_SHIFT * side_um
        return cls(
            float(_MOST_DEGREES * degrees), float(shift * right), float(shift * down), side_um / 2
        )

    def before(self, x: float, y: float) -> tuple[float, float]:
        """Where what lies at a place lay first, micrometres.

        Examples
        --------
        >>> Placement(0.0, 3.0, 4.0, 50.0).before(13.0, 14.0)
        (10.0, 10.0)
        """
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        right, down = x - self.middle - self.shift_x, y - self.middle - self.shift_y
        return self.middle + cos * right - sin * down, self.middle + sin * right + cos * down

    def as_description(self) -> dict[str, float]:
        """What tells a place of the moved slide from the same place of the first, ready for JSON."""
        names = ("degrees", "shift_x", "shift_y", "middle")
        return {name: round(getattr(self, name), 9) for name in names}


def placement_of(description: Mapping[str, Any]) -> Placement | None:
    """The placement in a phantom slide's description; None where nothing moved."""
    given = description.get("placement")
    return None if given is None else Placement(**given)


def moved(tissue: Tissue, place: Placement, mpp: float) -> Tissue:
    """The same tissue elsewhere on the glass; what leaves the slide is lost, bare glass comes in."""
    if place.degrees == place.shift_x == place.shift_y == 0:
        return tissue
    return Tissue(*(_moved(part, place, mpp) for part in (tissue.haematoxylin, tissue.eosin)))


def _moved(amounts: NDArray[np.float32], place: Placement, mpp: float) -> NDArray[np.float32]:
    from scipy.ndimage import affine_transform

    cos, sin = math.cos(math.radians(place.degrees)), math.sin(math.radians(place.degrees))
    # Rows before columns: y first.
    back = np.array([[cos, sin], [-sin, cos]])
    middle = np.full(2, place.middle / mpp - 0.5)
    shift = np.array([place.shift_y, place.shift_x]) / mpp
    offset = middle - back @ (middle + shift)
    found: NDArray[np.float32] = affine_transform(amounts, back, offset, order=1)
    return found


def towards(own: CenterProfile, other: CenterProfile, change: str, dose: float) -> CenterProfile:
    """A look that is a dose of the way to another center's, in what the change takes.

    Examples
    --------
    >>> from pathfm_kedro.slides.phantom_stain import center_profile
    >>> one, other = center_profile(0, 2, 1.0), center_profile(1, 2, 1.0)
    >>> towards(one, other, "both", 1.0) == other, towards(one, other, "both", 0.0) == one
    (True, True)
    """
    return replace(
        own,
        **{
            name: _between(getattr(own, name), getattr(other, name), dose)
            for name in CHANGES[change]
        },
    )


def _between(own: Any, other: Any, dose: float) -> Any:
    if isinstance(own, tuple):
        return tuple(_between(a, b, dose) for a, b in zip(own, other, strict=True))
    value = (1 - dose) * own + dose * other
    return round(value) if isinstance(own, int) else value
