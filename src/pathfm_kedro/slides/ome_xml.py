"""What OME-XML says of a slide: micrometres per pixel, magnification."""

from __future__ import annotations

import math
from xml.etree import ElementTree

#: The OME-XML of one slide has kilobytes. Without a bound a crafted file fills the memory.
MAX_OME_XML = 10_000_000
#: Micrometres per unit of OME's PhysicalSize; its default is the micrometre, which it writes with
#: the micro sign, others with the Greek letter.
_MICROMETRES = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "in": 25400.0,
    "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "\u00c5": 1e-4, "\u212b": 1e-4,
}  # fmt: skip


def ome_mpp(xml: str, width: int, height: int | None = None) -> float | None:
    """Micrometres per pixel in OME-XML, the mean of both directions; None where it is not given.

    Parameters
    ----------
    xml
        The file's OME-XML.
    width, height
        Level-0 px: of several images the one of this size counts.

    Raises
    ------
    ValueError
        If the text declares a document type or entities, is too long, or is no XML.

    Examples
    --------
    >>> pixels = '<Pixels SizeX="9" PhysicalSizeX="250" PhysicalSizeXUnit="nm"/>'
    >>> ome_mpp(f"<OME><Image>{pixels}</Image></OME>", 9)
    0.25
    """
    return mean_size(ome_sizes(xml, width, height))


def mean_size(sizes: list[float]) -> float | None:
    """Of the sizes that are given; None where none is."""
    return sum(sizes) / len(sizes) if sizes else None


def ome_sizes(xml: str, width: int, height: int | None) -> list[float]:
    """Micrometres across and down a pixel, those that are given."""
    images = _ome_elements(xml, "Pixels")
    fitting = [
        image
        for image in images
        if image.get("SizeX") == str(width) and image.get("SizeY") in (None, str(height or None))
    ] or [image for image in images if image.get("SizeX") == str(width)]
    # With several images of other sizes nobody knows whose size it is.
    if not fitting and len(images) == 1:
        fitting = images
    if not fitting:
        return []
    sizes = [_physical_size(fitting[0], axis) for axis in "XY"]
    return [size for size in sizes if size is not None]


def ome_magnification(xml: str) -> float | None:
    """That of the objectives named, where they agree; which image each took is seldom said."""
    powers = {
        objective.get("NominalMagnification", "") for objective in _ome_elements(xml, "Objective")
    }
    try:
        power = float(powers.pop()) if len(powers) == 1 else math.nan
    except ValueError:
        return None
    return power if 0 < power < math.inf else None


def _ome_elements(xml: str, name: str) -> list[ElementTree.Element]:
    refuse_hostile(xml)
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 - without document type and entities
    except ElementTree.ParseError as error:
        raise ValueError(f"the file's OME-XML is damaged: {error}") from error
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def _physical_size(pixels: ElementTree.Element, axis: str) -> float | None:
    factor = _MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "um"))
    try:
        size = float(pixels.get(f"PhysicalSize{axis}", ""))
    except ValueError:
        return None
    if factor is None or not (math.isfinite(size) and size > 0):
        return None
    return size * factor


def refuse_hostile(xml: str) -> None:
    """Before any parser sees it: tifffile parses the XML too."""
    if len(xml) > MAX_OME_XML:
        raise ValueError(f"the file's OME-XML has more than {MAX_OME_XML:,} characters")
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ValueError("the file's OME-XML declares a document type, which OME-XML never does")
