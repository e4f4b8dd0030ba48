"""Draw the phantom cohort: its manifest and its slides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_kedro.engine import EngineSettings, FilePlan
from pathfm_kedro.slides.phantom import (
    PhantomDesign,
    draw_slide,
    phantom_manifest,
    write_pyramid,
)

#: Raised with any change of what is drawn from the same parameters.
_REVISION = "1"


@dataclass(frozen=True)
class DrawSlide:
    """One phantom slide to draw."""

    design: PhantomDesign
    slide_id: str
    path: str
    fingerprint: str

    def write(self, target: Path) -> None:
        """Draw and write the slide."""
        write_pyramid(target, draw_slide(self.design, self.slide_id))


def draw_phantom(
    parameters: Mapping[str, Any], engine: Mapping[str, Any]
) -> tuple[FilePlan, pl.DataFrame]:
    """The phantom's slides, to be drawn by the dataset that stores them, and its manifest.

    Parameters
    ----------
    parameters
        See :class:`~pathfm_kedro.slides.phantom.PhantomDesign`.
    engine
        Where slides are drawn.
    """
    design = PhantomDesign.from_parameters(parameters)
    manifest = phantom_manifest(design)
    described = json.dumps([_REVISION, dict(parameters)], sort_keys=True)
    jobs = [
        DrawSlide(
            design, slide_id, path, hashlib.sha256(f"{described}{slide_id}".encode()).hexdigest()
        )
        for slide_id, path in manifest.select("slide_id", "path").iter_rows()
    ]
    return FilePlan(jobs, EngineSettings(**engine), "drawing slides"), manifest
