"""Open every slide and write down what it is, or why it cannot be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.engine import EngineSettings, Note, map_in_order
from pathfm_kedro.engine.failures import refuse_too_many_failed
from pathfm_kedro.pipelines.ingest.duplicates import read_thumbnail, tissue_digest
from pathfm_kedro.pipelines.ingest.repeats import marked_repeats
from pathfm_kedro.slides.files import SlideError, SlideFiles, reason_for_table
from pathfm_kedro.slides.interface import Pixels, SlideDescription
from pathfm_kedro.slides.readers import GREY_REASON, file_fingerprint
from pathfm_kedro.slides.tissue import tissue_share

_DESCRIBED: dict[str, pl.DataType] = {
    "vendor": pl.String(),
    "width": pl.Int64(),
    "height": pl.Int64(),
    "levels": pl.Int64(),
    "mpp": pl.Float64(),
    "fingerprint": pl.String(),
    "tissue_digest": pl.String(),
    "tissue_share": pl.Float64(),
    "status": pl.String(),
    "reason": pl.String(),
    "warning": pl.String(),
}
#: Vendors round (0.2527 for 0.25); objectives of other magnifications differ by a factor of two.
_MPP_APART = 0.05
#: Line scanners differ by some tenths of a per cent between their directions; more is a mistake.
_SQUARE_WITHIN = 0.01
#: Micrometres per pixel times the objective's magnification: about 10, as 0.25 at 40x. An adapter
#: before the camera enlarges up to twofold (0.23 at 20x), and nothing reduces.
_MPP_TIMES_POWER, _CREDIBLE_PRODUCT = 10.0, (4.0, 16.0)
#: From this share on a slide shows no glass, so glass may have been taken for tissue.
FULL_OF_TISSUE = 0.98
#: Images cut from tissue are smaller than this, in micrometres, and full of it by intent.
_LEAST_SLIDE_UM = 1000.0
#: Colours of one pixel that differ by no more are grey as JPEG keeps it.
_GREY_WITHIN = 3
#: A picture has more greys than this and some between black and white; glass beside a black or white
#: filling has not.
_GREYS_OF_A_PICTURE, _BETWEEN, _SHARE_BETWEEN = 30, (60, 225), 0.01
#: Where a format keeps the size of a pixel.
_MPP_TAGS = {
    "aperio": "MPP in ImageDescription", "dicom": "PixelSpacing",
    "generic-tiff": "XResolution and ResolutionUnit", "hamamatsu": "XResolution and ResolutionUnit",
    "leica": "sizeX of the collection", "mirax": "MICROMETER_PER_PIXEL_X in Slidedat.ini",
    "ome-tiff": "PhysicalSizeX and PhysicalSizeXUnit", "philips-tiff": "DICOM_PIXEL_SPACING",
    "tiff": "XResolution and ResolutionUnit", "ventana": "ScanRes in the iScan element",
}  # fmt: skip


def describe_slides(
    listed: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> pl.DataFrame:
    """The slides table: what the manifest says and what the files say.

    Parameters
    ----------
    listed
        From :func:`~pathfm_kedro.pipelines.ingest.manifest.check_manifest`.
    files
        The cohort's folder.
    parameters
        ``mpp_bounds``: smallest and largest credible micrometres per pixel.
    engine
        Where jobs run.

    Returns
    -------
    DataFrame
        The listed columns and vendor, width, height, levels, mpp, fingerprint, tissue_digest (see
        :func:`~pathfm_kedro.pipelines.ingest.duplicates.tissue_digest`), tissue_share (of the whole
        image); status is "usable", "repeat" (it shows the tissue of another slide again) or
        "unusable", with the reason, in which no path names a patient. A slide that cannot be used
        stays. warning says what a person should look at on a slide that can be used.

    Raises
    ------
    TooManyFailedError
        If more slides are unusable than ``engine.max_failed_share`` allows.
    """
    low, high = parameters["mpp_bounds"]
    rows = listed.to_dicts()
    settings = EngineSettings(**engine)
    outcomes = map_in_order(
        lambda row: _describe(row, files, (float(low), float(high))),
        rows,
        settings,
        "opening slides",
        lambda found: Note(reason=found["reason"]),
    )
    described = [
        o.result if o.reason is None else _unusable(o.item, reason_for_table(o.reason, o.item))
        for o in outcomes
    ]
    reasons = {
        row["slide_id"]: found["reason"]
        for row, found in zip(rows, described, strict=True)
        if found["status"] == "unusable"
    }
    refuse_too_many_failed(reasons, len(rows), settings)
    kept = listed.drop("mpp", "status", "reason")
    slides = pl.concat([kept, pl.DataFrame(described, schema=_DESCRIBED)], how="horizontal")
    return marked_repeats(slides)


def list_slides(listed: pl.DataFrame) -> pl.DataFrame:
    """The slides table of a cohort that has features and no slides: what the manifest says.

    Parameters
    ----------
    listed
        From :func:`~pathfm_kedro.pipelines.ingest.manifest.check_features_manifest`.

    Returns
    -------
    DataFrame
        As of :func:`describe_slides`, with nothing that a file would say.
    """
    nothing = dict.fromkeys(_DESCRIBED)
    rows = [
        nothing
        | {
            "mpp": row["mpp"],
            "status": "usable" if row["status"] == "listed" else "unusable",
            "reason": row["reason"],
            "warning": "",
        }
        for row in listed.to_dicts()
    ]
    kept = listed.drop("mpp", "status", "reason")
    slides = pl.concat([kept, pl.DataFrame(rows, schema=_DESCRIBED)], how="horizontal")
    return marked_repeats(slides)


def _describe(
    row: Mapping[str, Any], files: SlideFiles, bounds: tuple[float, float]
) -> dict[str, Any]:
    if row["status"] == "unusable":
        return _unusable(row, row["reason"])
    with files.open(row["path"]) as reader:
        description = reader.description
        # A scanner's file can open and still be cut short: the last pixels tell.
        reader.read(max(description.width - 8, 0), max(description.height - 8, 0), 0, 8, 8)
        thumbnail = read_thumbnail(reader)
    if _is_grey_picture(thumbnail.image):
        raise SlideError(GREY_REASON)
    own = _declared(description.mpp)
    mpp = own if row["mpp"] is None else row["mpp"]
    found = {
        "vendor": description.vendor,
        "width": description.width,
        "height": description.height,
        "levels": len(description.downsamples),
        "mpp": mpp,
        "fingerprint": file_fingerprint(files.resolve(row["path"])),
        "tissue_digest": tissue_digest(thumbnail.image),
        "tissue_share": None,
        "status": "usable",
        "reason": "",
        "warning": "",
    }
    if mpp is None:
        return found | {
            "status": "unusable",
            "reason": "the file does not say how many micrometres a pixel has: give 'mpp' in the "
            "manifest",
        }
    if not bounds[0] <= mpp <= bounds[1]:
        return found | {
            "status": "unusable",
            "reason": _not_credible(mpp, bounds, row["mpp"] is None, description),
        }
    share = tissue_share(thumbnail.image, thumbnail.scale * mpp)
    # What a TIFF's resolution tags hold by default (72 dots per inch) contradicts nobody.
    credible = own is not None and bounds[0] <= own <= bounds[1]
    warnings = [
        _contradiction(mpp, own) if own is not None and credible else "",
        _other_magnification(mpp, row["mpp"] is None, description),
        _stretched(mpp, description),
        _without_glass(share, max(description.width, description.height) * mpp),
    ]
    return found | {"tissue_share": share, "warning": "; ".join(filter(None, warnings))}


def _is_grey_picture(image: Pixels) -> bool:
    """Whether colours are stored and all of them are grey, and there is something to see."""
    if int(np.ptp(image)) <= _GREYS_OF_A_PICTURE:
        return False
    between = (image[..., 0] >= _BETWEEN[0]) & (image[..., 0] <= _BETWEEN[1])
    is_grey = bool((np.ptp(image, axis=2) <= _GREY_WITHIN).all())
    return is_grey and float(between.mean()) >= _SHARE_BETWEEN


def _not_credible(
    mpp: float, bounds: tuple[float, float], from_file: bool, description: SlideDescription
) -> str:
    said = f"{mpp:g} micrometres per pixel is not credible (outside {bounds[0]:g} to {bounds[1]:g})"
    if not from_file:
        return f"{said}: give the right 'mpp' in the manifest"
    return (
        f"{said}: correct the file's {_mpp_tag(description)}, or give the right 'mpp' in the manifest"
        f"{_usual(description)}"
    )


def _usual(description: SlideDescription) -> str:
    power = description.magnification
    return "" if power is None else f" ({power:g}x is about {_MPP_TIMES_POWER / power:.2g})"


def _mpp_tag(description: SlideDescription) -> str:
    return f"tag {_MPP_TAGS.get(description.vendor, 'of the size of a pixel')}"


def _other_magnification(used: float, from_file: bool, description: SlideDescription) -> str:
    """Where the size of a pixel cannot come from the objective that the file names."""
    power = description.magnification
    if power is None or _CREDIBLE_PRODUCT[0] <= used * power <= _CREDIBLE_PRODUCT[1]:
        return ""
    where = f"the file's {_mpp_tag(description)}" if from_file else "'mpp' in the manifest"
    return (
        f"{used:g} micrometres per pixel do not fit the objective of {power:g}x that the file "
        f"names{_usual(description)}: measure a scale bar or a nucleus, then correct {where}, "
        "or ignore the tag of the magnification"
    )


def _without_glass(share: float, longest_um: float) -> str:
    if share < FULL_OF_TISSUE or longest_um < _LEAST_SLIDE_UM:
        return ""
    return (
        f"{FULL_OF_TISSUE:.0%} or more of the slide counts as tissue, so glass may have been taken for "
        "it: look at the contact sheet; where the image was cut from tissue it is as it should be"
    )


def _declared(mpp: float | None) -> float | None:
    """The file's micrometres per pixel, where it is a size at all."""
    return mpp if mpp is not None and math.isfinite(mpp) and mpp > 0 else None


def _contradiction(used: float, own: float) -> str:
    apart = max(used / own, own / used) - 1
    if apart <= _MPP_APART:
        return ""
    return (
        f"the manifest says {used:g} micrometres per pixel and the file {own:g}, {apart:.0%} apart: "
        "the manifest's is used; correct it, or leave 'mpp' empty to take the file's"
    )


def _stretched(used: float, description: SlideDescription) -> str:
    if description.mpp_xy is None:
        return ""
    across, down = description.mpp_xy
    apart = max(across / down, down / across) - 1
    if apart <= _SQUARE_WITHIN:
        return ""
    return (
        f"the pixels are not square, {across:g} by {down:g} micrometres, {apart:.0%} apart: {used:g} "
        "is used for both, so tissue looks stretched; export the slide with square pixels"
    )


def _unusable(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(_DESCRIBED)
    return nothing | {"mpp": row["mpp"], "status": "unusable", "reason": reason, "warning": ""}
