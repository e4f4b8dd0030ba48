"""Stain tools against closed forms, torchstain and scikit-image."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest
from pathfm_kedro.slides.stain import (
    COMMON_BASIS,
    PROBLEMS,
    StainBasis,
    StainReference,
    _checked_fit,
    fit_macenko,
    from_density,
    jitter_draw,
    jittered,
    lab_statistics,
    macenko_transfer,
    optical_density,
    reinhard_transfer,
    stain_amounts,
    stain_moments,
    stained,
)

DRAWN = StainBasis((0.6, 0.75, 0.28), (0.2, 0.9, 0.35))
any_tile = arrays(np.uint8, (6, 6, 3))


def two_stains(basis=DRAWN, size=96, seed=0, strength=(1.0, 0.8)) -> np.ndarray:
    """A tile that is a mixture of two stains and nothing else."""
    generator = np.random.default_rng(seed)
    # Most pixels hold one stain: that is what the method reads the vectors from.
    share = generator.beta(0.15, 0.15, (size, size))
    total = generator.uniform(0.4, 1.5, (size, size))
    amounts = [total * share * strength[0], total * (1 - share) * strength[1], 0 * share]
    return stained(np.stack(amounts, axis=2), basis)


def reference_of(tile: np.ndarray, center: str = "A") -> StainReference:
    fit, (mean, sd) = fit_macenko(tile), lab_statistics(tile)
    return StainReference(center, fit.basis, fit.high, tuple(mean), tuple(sd))


@pytest.fixture(scope="module")
def phantom_tiles() -> list[np.ndarray]:
    design = PhantomDesign(size_px=512, patients_per_cell=1, site_bias=1.0)
    ids = phantom_manifest(design)["slide_id"].to_list()[:3]
    return [draw_slide(design, slide).pixels[144:368, 144:368] for slide in ids]


def degrees_between(first, second) -> float:
    first, second = np.asarray(first), np.asarray(second)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    return float(np.degrees(np.arccos(min(cosine, 1.0))))


def test_macenko_finds_the_stains_that_were_mixed():
    fit = fit_macenko(two_stains())
    assert fit.problem == 0
    assert degrees_between(fit.basis.haematoxylin, DRAWN.haematoxylin) < 3
    assert degrees_between(fit.basis.eosin, DRAWN.eosin) < 3


def test_macenko_s_numbers_are_torchstain_s(phantom_tiles):
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    for tile in phantom_tiles:
        theirs = NumpyMacenkoNormalizer()
        theirs.fit(tile)
        ours = fit_macenko(tile)
        found = np.array([ours.basis.haematoxylin, ours.basis.eosin]).T
        np.testing.assert_allclose(found, theirs.HERef)
        np.testing.assert_allclose(ours.high, theirs.maxCRef)


def one_stain() -> np.ndarray:
    shades = np.random.default_rng(0).uniform(0.3, 1.5, (64, 64, 1))
    return from_density(shades * DRAWN.matrix[0])


@pytest.mark.parametrize(
    ("tile", "says"),
    [
        (np.full((64, 64, 3), 244, np.uint8), "too little tissue"),
        (np.zeros((0, 0, 3), np.uint8), "too little tissue"),
        (np.full((64, 64, 3), (150, 80, 140), np.uint8), "one stain only"),
        (one_stain(), "one stain only"),
    ],
    ids=["glass", "nothing", "one colour", "one stain"],
)
def test_a_tile_without_two_stains_has_a_reason_and_no_nan(tile, says):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_macenko(tile)
    assert says in PROBLEMS[fit.problem]
    assert fit.basis is None
    assert fit.high is None


@pytest.mark.parametrize(
    ("vectors", "high"),
    [
        ([[0.9, -0.4, 0.1], [0.2, 0.9, 0.3]], [1.0, 1.0]),
        ([[0.6, 0.7, np.nan], [0.2, 0.9, 0.3]], [1.0, 1.0]),
        ([[0.6, 0.75, 0.28], [0.2, 0.9, 0.35]], [1.0, 0.0]),
    ],
)
def test_vectors_that_are_no_stain_are_refused(vectors, high):
    assert "not an H&E tile" in PROBLEMS[_checked_fit(np.array(vectors), np.array(high)).problem]


def test_a_corner_of_tissue_is_too_little():
    tile = np.full((224, 224, 3), 244, np.uint8)
    tile[:30, :30] = two_stains(size=30)
    assert "too little tissue" in PROBLEMS[fit_macenko(tile).problem]
    tile[:60, :60] = two_stains(size=60)
    assert fit_macenko(tile).problem == 0


@given(any_tile)
def test_amounts_give_the_pixels_back(tile):
    np.testing.assert_array_equal(stained(stain_amounts(tile, DRAWN), DRAWN), tile)


def test_amounts_are_the_least_squares_of_the_mixture():
    tile = two_stains(size=8)
    density = optical_density(tile).reshape(-1, 3)
    expected = np.linalg.lstsq(DRAWN.matrix.T, density.T, rcond=None)[0].T
    np.testing.assert_allclose(stain_amounts(tile, DRAWN).reshape(-1, 3), expected)
    assert abs(expected[:, 2]).max() < 0.01


def test_common_basis_is_scikit_image_s():
    from skimage.color import rgb_from_hed

    theirs = rgb_from_hed[:2] / np.linalg.norm(rgb_from_hed[:2], axis=1, keepdims=True)
    np.testing.assert_allclose(COMMON_BASIS.matrix[:2], theirs)


@given(any_tile, st.integers(0, 2**32))
def test_no_jitter_changes_nothing(tile, seed):
    np.testing.assert_array_equal(jittered(tile, DRAWN, 0.0, jitter_draw(seed)), tile)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.05, 0.1, 0.2]))
def test_jitter_changes_haematoxylin_and_eosin_as_told_and_leaves_the_residual(seed, sigma):
    tile = two_stains(size=12, strength=(0.6, 0.5))
    draw = jitter_draw(seed)
    before, after = (
        stain_amounts(tile, DRAWN),
        stain_amounts(jittered(tile, DRAWN, sigma, draw), DRAWN),
    )
    expected = before[..., :2] * (1 + sigma * draw[:, 0]) + sigma * draw[:, 1]
    # Half a grey level of a pixel of 80 is 0.006 in density, and unmixing stretches it.
    bright = (expected > -0.05).all(axis=2)
    np.testing.assert_allclose(after[bright][:, :2], expected[bright], atol=0.06)
    np.testing.assert_allclose(after[bright][:, 2], before[bright][:, 2], atol=0.03)


def test_jitter_stays_within_its_range_and_grows_with_sigma():
    draws = np.stack([jitter_draw(seed) for seed in range(500)])
    assert draws.min() >= -1
    assert draws.max() <= 1
    assert abs(draws.mean()) < 0.05
    assert np.var(draws) == pytest.approx(1 / 3, rel=0.1)
    tile = two_stains(size=32).astype(int)
    moved = [
        np.abs(jittered(tile.astype(np.uint8), DRAWN, sigma, draws[3]) - tile).mean()
        for sigma in (0.02, 0.05, 0.1, 0.2)
    ]
    assert moved == sorted(moved)


def test_lab_statistics_are_scikit_image_s(phantom_tiles):
    from skimage.color import rgb2lab

    for tile in phantom_tiles:
        lab = rgb2lab(tile).reshape(-1, 3)
        mean, sd = lab_statistics(tile)
        np.testing.assert_allclose(mean, lab.mean(axis=0), atol=0.05)
        np.testing.assert_allclose(sd, lab.std(axis=0), atol=0.05)


def test_reinhard_with_a_tile_s_own_statistics_is_torchstain_s(phantom_tiles):
    from torchstain.numpy.normalizers import NumpyReinhardNormalizer

    tile, other = phantom_tiles[:2]
    theirs = NumpyReinhardNormalizer()
    theirs.fit(other)
    ours = reinhard_transfer(tile, reference_of(tile), reference_of(other))
    # torchstain cuts decimals off where we round.
    difference = ours.astype(int) - theirs.normalize(tile)
    assert difference.min() >= 0
    assert difference.max() <= 1


def test_macenko_with_a_tile_s_own_stain_is_torchstain_s():
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    tile = two_stains()
    other = two_stains(
        StainBasis((0.7, 0.65, 0.3), (0.25, 0.85, 0.45)), seed=1, strength=(0.8, 0.9)
    )
    theirs = NumpyMacenkoNormalizer()
    theirs.fit(other)
    ours = macenko_transfer(tile, reference_of(tile), reference_of(other))
    # torchstain leaves the +1 of the density in, cuts decimals off, and drops the residual.
    difference = ours.astype(int) - theirs.normalize(tile, stains=False)[0]
    assert np.abs(difference + 1).mean() < 1
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("transfer", [reinhard_transfer, macenko_transfer])
def test_a_center_s_own_stain_changes_nothing(transfer, phantom_tiles):
    for tile in phantom_tiles:
        own = reference_of(tile)
        assert np.abs(transfer(tile, own, own).astype(int) - tile).max() <= 1


@pytest.mark.parametrize("transfer", [reinhard_transfer, macenko_transfer])
def test_there_and_back_comes_home(transfer, phantom_tiles):
    one, other = (reference_of(tile) for tile in phantom_tiles[:2])
    tile = phantom_tiles[0]
    back = transfer(transfer(tile, one, other), other, one)
    assert np.abs(back.astype(int) - tile).mean() < 2


@pytest.mark.parametrize("transfer", [reinhard_transfer, macenko_transfer])
def test_a_transferred_tile_looks_like_its_target(transfer, phantom_tiles):
    one, other = phantom_tiles[:2]
    moved = transfer(one, reference_of(one), reference_of(other))
    target = reference_of(other)
    if transfer is reinhard_transfer:
        mean, sd = lab_statistics(moved)
        np.testing.assert_allclose(mean, target.lab_mean, atol=1.0)
        np.testing.assert_allclose(sd, target.lab_sd, atol=1.0)
    else:
        fit = fit_macenko(moved)
        assert degrees_between(fit.basis.haematoxylin, target.basis.haematoxylin) < 3
        assert degrees_between(fit.basis.eosin, target.basis.eosin) < 3
        np.testing.assert_allclose(fit.high, target.high, rtol=0.1)


def test_moments_are_those_of_the_amounts_drawn():
    amounts = np.random.default_rng(0).uniform(0.1, 1.0, (64, 64, 2))
    tile = stained(np.concatenate([amounts, np.zeros((64, 64, 1))], axis=2), COMMON_BASIS)
    expected = np.stack([amounts.mean(axis=(0, 1)), amounts.std(axis=(0, 1))], axis=1).ravel()
    np.testing.assert_allclose(stain_moments(tile), expected, atol=0.01)
