"""A slide gives the same tiles whatever kind of TIFF holds it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from tests.conftest import manifest, manifest_row, write_tiff

ENGINE = {"workers": 2, "max_failed_share": 1.0}
PARAMETERS = {
    "pixels": 64,
    "mpp": 0.5,
    "min_tissue_fraction": 0.7,
    "max_tiles_per_slide": None,
    "overview_mpp": 4.0,
    "mosaic": {"colour_clusters": 9, "share": 0.05},
    "seed": 0,
}


def write_ome(path, pixels, **options):
    told = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pixels, subifds=1, photometric="rgb", metadata=told, **options)
        half = np.ascontiguousarray(pixels[::2, ::2])
        file.write(half, subfiletype=1, photometric="rgb", **options)


@pytest.fixture
def cohort(tmp_path, pink_slide):
    """The same pixels as OpenSlide reads them, in OME-TIFFs, and in strips; and fluorescence."""
    write_tiff(tmp_path / "pyramid.tiff", pink_slide)
    write_ome(tmp_path / "ome.tiff", pink_slide, tile=(128, 128), compression="jpeg")
    write_ome(tmp_path / "webp.tiff", pink_slide, tile=(128, 128), compression="webp")
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "strips.tiff", pink_slide, photometric="rgb", **scale)
    tifffile.imwrite(tmp_path / "dark.tiff", pink_slide[..., 0].astype(np.uint16), ome=True)
    rows = [manifest_row(name) for name in ("pyramid", "ome", "webp", "strips", "dark")]
    files = SlideFiles(tmp_path)
    listed = check_manifest(manifest(*rows))
    return describe_slides(listed, files, {"mpp_bounds": [0.05, 10]}, ENGINE), files


def test_the_tiles_are_the_same(cohort):
    slides, files = cohort
    tiles, tiling = cut_tiles(slides, files, PARAMETERS, ENGINE)
    found = {
        name: set(group.select("x", "y").iter_rows())
        for (name,), group in tiles.group_by("slide_id")
    }
    assert set(found) == {"pyramid", "ome", "webp", "strips"}
    assert all(corners == found["pyramid"] for corners in found.values())
    assert len(found["pyramid"]) == 64
    assert set(tiling["status"]) == {"tiled"}


def test_what_the_files_say_is_in_the_table(cohort):
    told = cohort[0].select("slide_id", "vendor", "levels", "mpp").rows()
    assert {row[0]: row[1:] for row in told} == {
        "pyramid": ("generic-tiff", 2, pytest.approx(0.5)),
        "ome": ("ome-tiff", 2, 0.5),
        "webp": ("ome-tiff", 2, 0.5),
        "strips": ("tiff", 1, 0.5),
        "dark": (None, None, None),
    }
    reason = cohort[0].filter(slide_id="dark")["reason"].item()
    assert "this is fluorescence or a single channel: only brightfield slides" in reason
