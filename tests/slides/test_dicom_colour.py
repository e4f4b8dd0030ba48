"""Frames with reduced chroma are YCbCr whatever the header says."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pathfm_kedro.slides.dicom_colour import is_mislabelled_ycbcr, jpeg_sampling, ycbcr_to_rgb


@pytest.mark.parametrize(("subsampling", "differ"), [(0, False), (1, True), (2, True)])
def test_sampling_is_read_from_a_jpeg(subsampling, differ):
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG", subsampling=subsampling)
    found = jpeg_sampling(b"header" + content.getvalue())
    assert len(found) == 3
    assert (len(set(found)) > 1) == differ


def test_a_cut_jpeg_has_no_sampling():
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG")
    assert jpeg_sampling(content.getvalue()[:30]) == ()


def test_the_conversion_undoes_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stored = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    assert np.abs(ycbcr_to_rgb(stored).astype(int) - pixels).max() <= 3


def test_what_is_no_dicom_is_not_mislabelled(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(b"nothing")
    assert not is_mislabelled_ycbcr(path)


@pytest.mark.real_data
def test_real_files(real_data):
    folder = real_data / "slides"
    assert is_mislabelled_ycbcr(folder / "cmu-1-small-region-dicom" / "level-0-frames-0-30.dcm")
    assert not is_mislabelled_ycbcr(folder / "openslide-python-fixtures" / "boxes_0.dcm")
