"""Open every slide and write down what it is, or why it cannot be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.engine import EngineSettings, Note, map_in_order
from pathfm_kedro.engine.failures import refuse_too_many_failed
from pathfm_kedro.pipelines.ingest.duplicates import digest_of_slide
from pathfm_kedro.slides.files import SlideError, SlideFiles
from pathfm_kedro.slides.readers import SlideDescription, file_fingerprint

_DESCRIBED: dict[str, pl.DataType] = {
    "vendor": pl.String(),
    "width": pl.Int64(),
    "height": pl.Int64(),
    "levels": pl.Int64(),
    "mpp": pl.Float64(),
    "fingerprint": pl.String(),
    "tissue_digest": pl.String(),
    "status": pl.String(),
    "reason": pl.String(),
    "warning": pl.String(),
}
#: Vendors round (0.2527 for 0.25); objectives of other magnifications differ by a factor of two.
_MPP_APART = 0.05
#: Line scanners differ by some tenths of a per cent between their directions; more is a mistake.
_SQUARE_WITHIN = 0.01


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
        :func:`~pathfm_kedro.pipelines.ingest.duplicates.tissue_digest`); status is "usable" or
        "unusable", with the reason. A slide that cannot be used stays. warning says what a person
        should look at on a slide that can be used.

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
        o.result if o.reason is None else _unusable(o.item, _plain(o.reason)) for o in outcomes
    ]
    reasons = {
        row["slide_id"]: found["reason"]
        for row, found in zip(rows, described, strict=True)
        if found["status"] == "unusable"
    }
    refuse_too_many_failed(reasons, len(rows), settings)
    kept = listed.drop("mpp", "status", "reason")
    return pl.concat([kept, pl.DataFrame(described, schema=_DESCRIBED)], how="horizontal")


def _describe(
    row: Mapping[str, Any], files: SlideFiles, bounds: tuple[float, float]
) -> dict[str, Any]:
    if row["status"] == "unusable":
        return _unusable(row, row["reason"])
    with files.open(row["path"]) as reader:
        description = reader.description
        # A scanner's file can open and still be cut short: the last pixels tell.
        reader.read(max(description.width - 8, 0), max(description.height - 8, 0), 0, 8, 8)
        digest = digest_of_slide(reader)
    own = _told(description.mpp)
    mpp = own if row["mpp"] is None else row["mpp"]
    found = {
        "vendor": description.vendor,
        "width": description.width,
        "height": description.height,
        "levels": len(description.downsamples),
        "mpp": mpp,
        "fingerprint": file_fingerprint(files.resolve(row["path"])),
        "tissue_digest": digest,
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
            "reason": f"{mpp:g} micrometres per pixel is not credible (outside {bounds[0]:g} to "
            f"{bounds[1]:g}): give the right 'mpp' in the manifest",
        }
    # What a TIFF's resolution tags hold by default (72 dots per inch) contradicts nobody.
    credible = own is not None and bounds[0] <= own <= bounds[1]
    warnings = [
        _contradiction(mpp, own) if own is not None and credible else "",
        _stretched(mpp, description),
    ]
    return found | {"warning": "; ".join(filter(None, warnings))}


def _told(mpp: float | None) -> float | None:
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


def _plain(reason: str) -> str:
    """Without the class of our own errors, which says nothing to a reader."""
    return reason.removeprefix(f"{SlideError.__name__}: ").removeprefix("ValueError: ")
