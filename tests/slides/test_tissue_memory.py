"""Looking for tissue in bands changes nothing, and takes little memory beyond the overview."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pathfm_kedro.slides import colour, glass, tissue
from pathfm_kedro.slides.tissue import Overview, pen_mask, tile_grid, tissue_mask


def overview(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Glass with tissue, pen marks of several colours and specks."""
    generator = np.random.default_rng(seed)
    image = generator.normal(240, 2, (height, width, 3))
    image[height // 4 : height // 2, width // 5 : width // 2] = (205, 120, 175)
    for ink in ((20, 140, 60), (30, 60, 200), (250, 20, 30), (25, 25, 25)):
        y, x = (int(generator.integers(0, size - size // 6)) for size in (height, width))
        image[y : y + height // 9, x : x + width // 8] = ink
    image += generator.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("band", [1, 700, 5_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bands_of_any_height_give_the_same_mask(monkeypatch, band, seed):
    image = overview(180, 150, seed)
    whole = tissue_mask(image), pen_mask(image, 8.0)
    assert whole[1].any()
    for module in (colour, glass, tissue):
        monkeypatch.setattr(module, "COLOUR_BAND_PIXELS", band)
    banded = tissue_mask(image), pen_mask(image, 8.0)
    for expected, found in zip(whole, banded, strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(8, 60), st.integers(8, 60), st.floats(1.0, 40.0), st.floats(0.4, 30.0),
    st.integers(0, 99),
)  # fmt: skip
@example(8, 8, 2.0, 1.125, 0)
@example(60, 9, 2.0, 1.25, 1)
@example(9, 60, 4.0, 0.6, 2)
def test_window_means_are_those_of_the_pixels(height, width, scale, side_px, seed):
    """Brute force: cut every window out and average it."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = generator.random((height, width)) < 0.5
    full = int(width * scale), int(height * scale)
    side = min(side_px * scale, *full)
    grid = tile_grid(Overview(image, scale), mask, *full, side)
    for i, (x, y) in enumerate(zip(grid.x, grid.y, strict=True)):
        left, top = min(round(x / scale), width - 1), min(round(y / scale), height - 1)
        right = min(max(round((x + side) / scale), left + 1), width)
        bottom = min(max(round((y + side) / scale), top + 1), height)
        window = np.s_[top:bottom, left:right]
        assert grid.tissue_fraction[i] == pytest.approx(mask[window].mean(), abs=1e-12)
        np.testing.assert_allclose(grid.mean_rgb[i], image[window].mean(axis=(0, 1)), atol=1e-9)


def test_tissue_of_a_large_slide_takes_few_bytes_a_pixel():
    """An overview of 100,000 x 80,000 px at 8 micrometres has 8 million px; this one a quarter."""
    image = overview(1250, 1562)
    tissue_mask(image[:64, :64])
    tracemalloc.start()
    try:
        mask = tissue_mask(image)
        tile_grid(Overview(image, 32.0), mask, 1562 * 32, 1250 * 32, 448)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    pixels = mask.size
    # Float saturation, labels of 32 bits and a few masks; beside them one band of colours.
    assert peak < 20 * pixels + 30 * colour.COLOUR_BAND_PIXELS
