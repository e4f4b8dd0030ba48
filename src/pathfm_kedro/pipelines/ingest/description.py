"""Open every slide and write down what it is, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pathfm_kedro.engine import EngineSettings, map_in_order
from pathfm_kedro.engine.failures import refuse_too_many_failed
from pathfm_kedro.slides.files import SlideError, SlideFiles
from pathfm_kedro.slides.readers import file_fingerprint

_DESCRIBED: dict[str, pl.DataType] = {
    "vendor": pl.String(),
    "width": pl.Int64(),
    "height": pl.Int64(),
    "levels": pl.Int64(),
    "mpp": pl.Float64(),
    "fingerprint": pl.String(),
    "status": pl.String(),
    "reason": pl.String(),
}


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
        The listed columns and vendor, width, height, levels, mpp, fingerprint; status is "usable" or
        "unusable", with the reason. A slide that cannot be used stays.

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
    mpp = row["mpp"] if row["mpp"] is not None else description.mpp
    found = {
        "vendor": description.vendor,
        "width": description.width,
        "height": description.height,
        "levels": len(description.downsamples),
        "mpp": mpp,
        "fingerprint": file_fingerprint(files.resolve(row["path"])),
        "status": "usable",
        "reason": "",
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
    return found


def _unusable(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("vendor", "width", "height", "levels", "fingerprint"))
    return nothing | {"mpp": row["mpp"], "status": "unusable", "reason": reason}


def _plain(reason: str) -> str:
    """Without the class of our own errors, which says nothing to a reader."""
    return reason.removeprefix(f"{SlideError.__name__}: ").removeprefix("ValueError: ")
