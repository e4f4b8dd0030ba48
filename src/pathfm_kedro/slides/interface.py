"""What every reader of slides offers: a description and regions of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SlideDescription:
    """What a slide's file says of itself.

    Attributes
    ----------
    vendor
        Format as OpenSlide names it, ``ome-tiff`` or ``tiff`` for the TIFF reader, or ``image`` for a
        plain image.
    width, height
        Level-0 pixels.
    downsamples
        Factor of every pyramid level, 1.0 first.
    mpp
        Micrometres per level-0 pixel; None where the file does not say.
    comment
        The file's free-text description.
    mpp_xy
        Micrometres across and down a level-0 pixel, where the file says both; `mpp` is their mean.
    magnification
        Of the objective, where the file says it.
    """

    vendor: str
    width: int
    height: int
    downsamples: tuple[float, ...]
    mpp: float | None
    comment: str = ""
    mpp_xy: tuple[float, float] | None = None
    magnification: float | None = None


class SlideReader(Protocol):
    """An open slide."""

    @property
    def description(self) -> SlideDescription:
        """What the file says of itself."""
        ...

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels uint8 [height, width, 3]; x, y in level-0 px, width and height in the level's px.

        Outside the slide, and where a scanner left a hole, pixels are white.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def on_white(rgba: NDArray[np.uint8]) -> Pixels:
    """Drop the alpha channel; transparent means nothing was scanned there, so white."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    blended = rgba[..., :3].astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    return (blended // 255).astype(np.uint8)
