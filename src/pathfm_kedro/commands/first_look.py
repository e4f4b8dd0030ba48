"""What the slides of a new cohort are, before anything is computed, and which tiles fit them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl

#: Slides that are opened: enough to know a cohort, few enough to wait for. A run opens all.
MOST_OPENED = 1000
#: Tiles are made for so many of the slides; some odd ones are left out with a reason.
_MOST_SLIDES = 0.9
#: Rounding in vendors' figures, as when tiles are cut.
_COARSER = 1.02
#: Experiments that shuffle patches divide a tile into so many.
_PATCHES = 8
#: Micrometres are written to so many digits.
_DIGITS = 4
#: Slides whose resolutions lie further apart are no one kind: no tile fits them all.
_FARTHEST_APART = 4.0
_AS_THEY_ARE = (
    "tiles stay as they are, and slides that do not fit them are left out with the reason"
)


@dataclass(frozen=True)
class SlideSize:
    """What a look at one slide's file gave.

    Attributes
    ----------
    width, height
        Level-0 pixels.
    mpp
        Micrometres per pixel, the manifest's or the file's; None where neither says.
    """

    width: int
    height: int
    mpp: float | None


@dataclass(frozen=True)
class TileProposal:
    """Tiles that fit slides which the defaults do not fit.

    Attributes
    ----------
    parameters
        What differs of ``tile``.
    reason
        What the slides are like, for the person who reads the file.
    """

    parameters: Mapping[str, Any]
    reason: str


def opened_slides(listed: pl.DataFrame, root: Path) -> tuple[list[SlideSize], dict[str, str]]:
    """Sizes of slides that can be opened, and why others cannot.

    Of a large cohort :data:`MOST_OPENED` slides at even distances are opened.

    Parameters
    ----------
    listed
        From ``check_manifest``; rows whose status is "listed" are opened.
    root
        The folder that paths start from.
    """
    import polars as pl

    from pathfm_kedro.engine import EngineSettings, map_in_order
    from pathfm_kedro.slides.files import SlideFiles

    files = SlideFiles(root)
    good = listed.filter(pl.col("status") == "listed")
    rows = np.unique(np.linspace(0, good.height - 1, min(good.height, MOST_OPENED)).astype(int))
    outcomes = map_in_order(
        lambda row: _size(row, files), good[rows].to_dicts(), EngineSettings(), "opening slides"
    )
    sizes = [o.result for o in outcomes if o.reason is None]
    reasons = {o.item["slide_id"]: _plain(o.reason) for o in outcomes if o.reason is not None}
    return sizes, reasons


def _plain(reason: str) -> str:
    return reason.removeprefix("SlideError: ").removeprefix("ValueError: ")


def _size(row: Mapping[str, Any], files: Any) -> SlideSize:
    with files.open(row["path"]) as reader:
        found = reader.description
        # A file can open and still be cut short: the last pixels tell.
        reader.read(max(found.width - 8, 0), max(found.height - 8, 0), 0, 8, 8)
    return SlideSize(found.width, found.height, row["mpp"] or found.mpp)


def propose_tiles(sizes: Sequence[SlideSize], tile: Mapping[str, Any]) -> TileProposal | None:
    """Tiles for images that were cut beforehand, or slides coarser than the tiles of `tile`.

    An image shorter than two tiles becomes one tile at its own resolution; a slide that is coarser than
    the tiles gives tiles of its own resolution. None where the defaults fit.

    Parameters
    ----------
    sizes
        Of the slides that could be opened.
    tile
        The parameters: ``pixels`` and ``mpp``.

    Examples
    --------
    >>> tile = {"pixels": 224, "mpp": 0.5}
    >>> dict(propose_tiles([SlideSize(128, 128, 0.25)] * 9, tile).parameters)
    {'pixels': 128, 'mpp': 0.25, 'min_tissue_fraction': 0.0}
    >>> dict(propose_tiles([SlideSize(20000, 30000, 1.01)] * 9, tile).parameters)
    {'mpp': 1.01}
    >>> propose_tiles([SlideSize(80000, 90000, 0.25)] * 9, tile) is None
    True
    >>> mixed = [SlideSize(900, 900, 0.25), SlideSize(16, 16, 300.0)]
    >>> propose_tiles(mixed, tile).reason  # doctest: +ELLIPSIS
    'slides of 0.25 to 300 µm per pixel are of no one kind: tiles stay ... the reason'
    """
    known = [(min(s.width, s.height), s.mpp) for s in sizes if s.mpp is not None and s.mpp > 0]
    if not known:
        return None
    shortest = np.array([pixels for pixels, _ in known], float)
    mpps = np.array([mpp for _, mpp in known], float)
    coarsest = float(np.quantile(mpps, _MOST_SLIDES, method="higher"))
    # Rounded up, so that the slides it comes from are not coarser.
    coarsest = math.ceil(coarsest * 10**_DIGITS - 1e-6) / 10**_DIGITS
    side_um = float(np.quantile(shortest * mpps, 1 - _MOST_SLIDES, method="lower"))
    field_um = float(tile["pixels"]) * float(tile["mpp"])
    fit = side_um >= 2 * field_um and coarsest <= float(tile["mpp"]) * _COARSER
    if not fit and mpps.max() > _FARTHEST_APART * mpps.min():
        reason = f"slides of {_range(mpps)} µm per pixel are of no one kind: {_AS_THEY_ARE}"
        return TileProposal({}, reason)
    if side_um < 2 * field_um:
        pixels = int(side_um / coarsest + 1e-6)
        pixels -= pixels % _PATCHES if pixels > _PATCHES else 0
        reason = f"images of {_range(shortest)} px at {_range(mpps)} µm per pixel: each is one tile"
        return TileProposal({"pixels": pixels, "mpp": coarsest, "min_tissue_fraction": 0.0}, reason)
    if coarsest > float(tile["mpp"]) * _COARSER:
        reason = f"slides of {_range(mpps)} µm per pixel, coarser than {tile['mpp']:g}"
        return TileProposal({"mpp": coarsest}, reason)
    return None


def without_mpp(sizes: Sequence[SlideSize]) -> str:
    """What to do about slides that do not say how large a pixel is; empty where all do."""
    n = sum(size.mpp is None for size in sizes)
    if not n:
        return ""
    return (
        f"{n} of {len(sizes)} slides do not say how many micrometres a pixel has: fill in the column "
        "'mpp' of the manifest (kedro cohort manifest FOLDER --mpp 0.5 does so for all), or they are "
        "left out"
    )


def _range(numbers: np.ndarray[Any, Any]) -> str:
    low, high = float(numbers.min()), float(numbers.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
