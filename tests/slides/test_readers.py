"""Fields of view: where asked, at the resolution asked, never invented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathfm_kedro.slides.fields import TileFields
from pathfm_kedro.slides.files import SlideError, SlideFiles
from pathfm_kedro.slides.mosaic import choose_mosaic
from pathfm_kedro.slides.readers import file_fingerprint, open_slide, read_field
from pathfm_kedro.slides.tissue import read_overview, tissue_mask
from tests.conftest import write_tiff


@pytest.fixture
def checkered(tmp_path):
    """A plain image whose every pixel tells where it lies."""
    y, x = np.mgrid[:200, :300]
    pixels = np.stack([x % 256, y % 256, (x // 256) * 50], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


@settings(max_examples=30, deadline=None)
@given(x=st.integers(-50, 320), y=st.integers(-50, 220), w=st.integers(1, 80), h=st.integers(1, 80))
def test_a_plain_image_is_read_where_asked_and_white_outside(tmp_path_factory, x, y, w, h):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (200, 300, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(pixels).save(path)
    padded = np.full((400, 600, 3), 255, np.uint8)
    padded[100:300, 100:400] = pixels
    with open_slide(path) as reader:
        got = reader.read(x, y, 0, w, h)
    expected = padded[100 + y : 100 + y + h, 100 + x : 100 + x + w]
    np.testing.assert_array_equal(got[: expected.shape[0], : expected.shape[1]], expected)


def test_a_field_at_native_resolution_is_the_pixels_themselves(checkered):
    path, pixels = checkered
    with open_slide(path) as reader:
        np.testing.assert_array_equal(read_field(reader, 10, 20, 64, 64), pixels[20:84, 10:74])


def test_a_field_is_never_enlarged(checkered):
    with (
        open_slide(checkered[0]) as reader,
        pytest.raises(ValueError, match="fewer than the 128 px wanted"),
    ):
        read_field(reader, 0, 0, 64, 128)


def test_the_coarser_level_is_read_where_it_suffices(tmp_path, pink_slide):
    path = write_tiff(tmp_path / "a.tiff", pink_slide)
    asked = []
    with open_slide(path) as reader:
        read = reader.read
        reader.read = lambda x, y, level, w, h: asked.append(level) or read(x, y, level, w, h)
        field = read_field(reader, 256, 256, 512, 128)
        read_field(reader, 256, 256, 512, 512)
    assert asked == [1, 0]
    np.testing.assert_allclose(field.mean(axis=(0, 1)), [205, 120, 175], atol=3)


def test_a_wider_field_has_the_same_centre(checkered):
    path, pixels = checkered
    fields = TileFields(SlideFiles(path.parent), "a.png", (100,), (60,), 40, 40)
    wide = next(fields.widened(60).batches(1))[0][0]
    np.testing.assert_array_equal(wide[10:50, 10:50], pixels[60:100, 100:140])


def test_batches_cut_nothing_off(checkered):
    path, _ = checkered
    x, y = tuple(range(0, 100, 10)), (0,) * 10
    fields = TileFields(SlideFiles(path.parent), "a.png", x, y, 32, 32)
    whole = next(fields.batches(10))[0]
    parts = np.concatenate([tiles for tiles, _ in fields.batches(3)])
    np.testing.assert_array_equal(whole, parts)


def test_the_digest_knows_every_position(checkered):
    files = SlideFiles(checkered[0].parent)
    a = TileFields(files, "a.png", (1, 2), (3, 4), 32.0, 32)
    b = TileFields(files, "a.png", (1, 2), (3, 5), 32.0, 32)
    assert a.digest() != b.digest()


def test_a_fingerprint_changes_in_the_middle_of_a_large_file(tmp_path):
    path = tmp_path / "large"
    content = bytearray(8 << 20)
    path.write_bytes(content)
    before = file_fingerprint(path)
    content[len(content) // 2 + 100] = 1
    path.write_bytes(content)
    assert file_fingerprint(path) != before


@settings(deadline=None)
@given(st.text())
def test_no_path_of_a_manifest_leads_out(text):
    root = SlideFiles(__import__("pathlib").Path(__file__).parent)
    try:
        found = root.resolve(text)
    except (SlideError, OSError, ValueError):
        return
    assert found.resolve().is_relative_to(root.root.resolve())


def test_a_slide_full_of_tissue_is_not_split():
    generator = np.random.default_rng(0)
    full = (np.array([200, 110, 170]) + generator.normal(0, 15, (128, 128, 3))).clip(0, 255)
    assert tissue_mask(full.astype(np.uint8)).mean() > 0.95


def test_glass_is_not_tissue():
    generator = np.random.default_rng(0)
    glass = (np.array([243, 242, 244]) + generator.normal(0, 1.5, (128, 128, 3))).clip(0, 255)
    assert tissue_mask(glass.astype(np.uint8)).mean() < 0.01


def test_an_overview_in_bands_equals_one_in_one_piece(tmp_path, pink_slide, monkeypatch):
    path = write_tiff(tmp_path / "a.tiff", pink_slide)
    with open_slide(path) as reader:
        whole = read_overview(reader, 0.5, 8.0).image
        monkeypatch.setattr("pathfm_kedro.slides.tissue._BAND_PIXELS", 20_000)
        bands = read_overview(reader, 0.5, 8.0).image
    assert whole.shape == (64, 64, 3)
    assert np.abs(whole.astype(int) - bands.astype(int)).max() <= 1


@given(st.integers(1, 60), st.integers(1, 6), st.floats(0.01, 1.0), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_mosaic_takes_its_share_of_every_cluster(n, k, share, seed):
    generator = np.random.default_rng(seed)
    clusters = generator.integers(0, k, n)
    chosen = choose_mosaic(clusters, generator.integers(0, 99, (n, 2)), share, seed)
    for cluster in np.unique(clusters):
        size = int((clusters == cluster).sum())
        assert chosen[clusters == cluster].sum() == min(size, max(1, round(share * size)))
