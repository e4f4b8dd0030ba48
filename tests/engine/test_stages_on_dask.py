"""The per-slide work of ingest and tile on a cluster: the same tables as on threads."""

from __future__ import annotations

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.contact_sheet import draw_contact_sheet
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from tests.conftest import base_parameters, manifest, manifest_row, write_tiff

THREADS = {"workers": 2}
DASK = {"workers": 2, "scheduler": "dask"}


def test_slides_are_described_and_tiled_alike(tmp_path, pink_slide):
    generator = np.random.default_rng(1)
    for name in "abc":
        noise = generator.integers(-9, 9, pink_slide.shape)
        write_tiff(tmp_path / f"{name}.tiff", (pink_slide + noise).clip(0, 255).astype(np.uint8))
    (tmp_path / "d.tiff").write_bytes(b"no slide")
    listed = check_manifest(manifest(*(manifest_row(name) for name in "abcd")))
    parameters, files = base_parameters(), SlideFiles(tmp_path)

    def run(engine: dict[str, object]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, bytes]:
        slides = describe_slides(listed, files, parameters["ingest"], engine)
        tiles, tiling = cut_tiles(slides, files, parameters["tile"], engine)
        sheet = draw_contact_sheet(slides, tiles, tiling, files, parameters["tile"], engine)
        return slides, tiles, tiling, sheet.tobytes()

    here, there = run(THREADS), run(DASK)
    for expected, found in zip(here[:3], there[:3], strict=True):
        assert_frame_equal(found, expected)
    assert here[3] == there[3]
    assert here[0]["status"].to_list() == ["usable"] * 3 + ["unusable"]
    assert here[1]["slide_id"].n_unique() == 3
