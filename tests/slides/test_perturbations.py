"""Perturbations against scikit-image, and what shuffles must keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.encoders.controls import StainStatistics
from pathfm_kedro.slides.perturbations import (
    blurred,
    compressed,
    patch_sources,
    rotated_in_place,
    shuffled,
    ssim_to_first,
    with_gamma,
)
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide

GRIDS = (2, 4, 8)


@pytest.fixture(scope="module")
def tile() -> np.ndarray:
    slide = draw_slide(PhantomDesign(size_px=512), "lung_adeno-north-001-01")
    return slide.pixels[144:368, 144:368]


def counts(pixels: np.ndarray) -> np.ndarray:
    """How often each colour occurs."""
    code = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    return np.unique(code, return_counts=True)


def views(tile, grid, seed=0):
    return shuffled(tile, grid, patch_sources(grid, seed)), rotated_in_place(tile, grid)


def steps_over_seams(pixels: np.ndarray, grid: int) -> float:
    """Mean step of grey levels across the grid's lines, both ways."""
    at = np.arange(1, grid) * (len(pixels) // grid)
    grey = pixels.astype(float).mean(axis=2)
    across = np.abs(grey[:, at] - grey[:, at - 1]), np.abs(grey[at] - grey[at - 1])
    return float(np.mean([part.mean() for part in across]))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_colour_is_kept_exactly(tile, grid):
    for view in views(tile, grid):
        for found, expected in zip(counts(view), counts(tile), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_an_encoder_of_colour_alone_sees_no_difference(tile, grid):
    vectors = StainStatistics().embed(np.stack([tile, *views(tile, grid)]))
    np.testing.assert_array_equal(vectors[1:], vectors[[0, 0]])


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_no_patch_stays_and_each_is_used_once(grid, seed):
    sources = patch_sources(grid, seed)
    assert sorted(sources) == list(range(grid * grid))
    assert (sources != np.arange(grid * grid)).all()


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_the_inverse_permutation_undoes_a_shuffle(grid, seed):
    field = np.random.default_rng(0).integers(0, 256, (5 * grid, 5 * grid, 3), dtype=np.uint8)
    sources = patch_sources(grid, seed)
    moved = shuffled(field, grid, sources)
    np.testing.assert_array_equal(shuffled(moved, grid, np.argsort(sources)), field)


def test_a_shuffle_puts_the_named_patch_in_each_place():
    field = np.kron(np.arange(9).reshape(3, 3), np.ones((4, 4)))[..., None].repeat(3, axis=2)
    sources = patch_sources(3, seed=5)
    moved = shuffled(field.astype(np.uint8), 3, sources)
    np.testing.assert_array_equal(moved[::4, ::4, 0].ravel(), sources)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_control_keeps_each_patch_in_its_place(tile, grid):
    side = len(tile) // grid
    blocks = (grid, side, grid, side, 3)
    means = [
        view.reshape(blocks).mean(axis=(1, 3)) for view in (tile, rotated_in_place(tile, grid))
    ]
    np.testing.assert_allclose(*means)
    np.testing.assert_array_equal(rotated_in_place(rotated_in_place(tile, grid), grid), tile)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_control_s_seams_are_as_steep_as_the_shuffle_s(grid):
    slides = ("lung_adeno-north-001-01", "kidney_clear-west-001-01", "lung_squamous-south-002-01")
    drawn = [draw_slide(PhantomDesign(size_px=512), s).pixels[144:368, 144:368] for s in slides]
    clean = np.mean([steps_over_seams(t, grid) for t in drawn])
    moved, turned = np.mean(
        [
            [steps_over_seams(view, grid) for view in views(t, grid, seed)]
            for t in drawn
            for seed in range(5)
        ],
        axis=0,
    )
    assert moved > 2 * clean
    assert turned == pytest.approx(moved, rel=0.15)


def test_grids_that_do_not_divide_are_refused():
    field = np.zeros((10, 10, 3), np.uint8)
    with pytest.raises(ValueError, match="multiple of 4"):
        shuffled(field, 4, patch_sources(4, 0))
    with pytest.raises(ValueError, match="multiple of 2"):
        rotated_in_place(np.zeros((10, 8, 3), np.uint8), 2)


def test_lower_quality_is_further_from_the_tile(tile):
    errors = [
        np.abs(compressed(tile, quality).astype(int) - tile).mean()
        for quality in (95, 90, 70, 50, 30)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 5


def test_blur_is_scikit_image_s(tile):
    from skimage.filters import gaussian

    for sigma in (0.5, 1.0, 2.0):
        theirs = gaussian(
            tile.astype(float), sigma, mode="mirror", preserve_range=True, channel_axis=2
        )
        np.testing.assert_allclose(blurred(tile, sigma), theirs, atol=0.51)


def test_gamma_is_scikit_image_s(tile):
    from skimage.exposure import adjust_gamma

    for exponent in (0.8, 1.25):
        theirs = adjust_gamma(tile / 255.0, exponent) * 255
        np.testing.assert_allclose(with_gamma(tile, exponent), theirs, atol=0.51)


def test_no_change_is_the_tile_itself(tile):
    np.testing.assert_array_equal(with_gamma(tile, 1.0), tile)
    np.testing.assert_array_equal(blurred(tile, 0.0), tile)


def test_similarity_agrees_with_the_formula_on_flat_images():
    """Two flat images: SSIM = (2ab + C1) / (a² + b² + C1)."""
    flat = np.stack([np.full((24, 24, 3), v, np.uint8) for v in (100, 140)])
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 140 + c1) / (100**2 + 140**2 + c1)
    np.testing.assert_allclose(ssim_to_first(flat), [1, expected], rtol=1e-6)
