"""Fields of a slide know the versions of what decodes it, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathfm_kedro.engine import versions
from pathfm_kedro.slides.fields import TileFields
from pathfm_kedro.slides.files import SlideFiles

DECODED_BY = {
    "a.png": {"pillow"},
    "a.JPG": {"pillow"},
    "a.mrxs": {"pillow", "openslide-bin", "openslide-python"},
    "a.svs": {"pillow", "openslide-bin", "openslide-python", "tifffile", "imagecodecs"},
    "dicom/series": {"pillow", "openslide-bin", "openslide-python", "tifffile", "imagecodecs"},
}


@pytest.mark.parametrize("path", DECODED_BY)
def test_a_new_version_of_a_decoder_reads_the_slide_again(monkeypatch, path):
    fields = TileFields(SlideFiles(Path()), path, (0,), (0,), 224.0, 224)
    before, real = fields.digest(), versions.version
    changed = set()
    for package in (
        "pillow",
        "openslide-bin",
        "openslide-python",
        "tifffile",
        "imagecodecs",
        "torch",
    ):
        monkeypatch.setattr(
            versions, "version", lambda p, new=package: "9" if p == new else real(p)
        )
        if fields.digest() != before:
            changed.add(package)
    assert changed == DECODED_BY[path]
