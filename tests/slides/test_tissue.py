"""Pen is left out and stain is not; specks and gaps by their size in micrometres."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pathfm_kedro.slides import glass
from pathfm_kedro.slides.glass import glass_colour
from pathfm_kedro.slides.tissue import (
    TissueSettings,
    pen_mask,
    sharpness,
    tissue_mask,
)

#: Optical density per channel (red, green, blue) of stains: Ruifrok and Johnston 2001.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
DAB = np.array([0.27, 0.57, 0.78])
#: Colours of markers as scanners show them.
PENS = {
    "green": (40, 130, 70),
    "pale green": (150, 205, 165),
    "cyan": (40, 160, 180),
    "blue": (40, 70, 170),
    "royal blue": (30, 90, 200),
    "black": (35, 35, 40),
    "red": (205, 20, 30),
}
#: Colours of tissue that a rule for ink could take for one.
TISSUE = {
    "eosin": (230, 130, 170),
    "strong eosin": (215, 70, 140),
    "haematoxylin": (90, 60, 140),
    "dark nuclei": (50, 35, 90),
    "bluish counterstain": (150, 165, 205),
    "blood": (165, 40, 50),
    "pale blood": (215, 90, 95),
    "dab": (110, 65, 40),
    "melanin": (75, 50, 40),
    "bile": (150, 130, 50),
}


def shade(stains, amounts):
    """Colour behind stain of the given optical densities (Lambert and Beer)."""
    density = sum(stain * amount for stain, amount in zip(stains, amounts, strict=True))
    return np.round(245 * 10.0**-density).astype(np.uint8)


def slide(*patches, size=200, noise=2.0):
    """Glass with squares of colour: (top, left, side, colour)."""
    image = np.full((size, size, 3), 243.0)
    for top, left, side, colour in patches:
        image[top : top + side, left : left + side] = colour
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", PENS.values(), ids=PENS)
def test_a_pen_mark_beside_tissue_is_left_out_and_the_tissue_is_not(colour):
    image = slide((20, 20, 80, TISSUE["eosin"]), (130, 130, 40, colour))
    mask = tissue_mask(image)
    assert mask[22:98, 22:98].mean() > 0.99
    assert not mask[120:180, 120:180].any()
    assert tissue_mask(image, TissueSettings(leave_out_pen=False))[135:165, 135:165].any() or (
        np.ptp(colour) < 10
    )


@pytest.mark.parametrize("colour", ["green", "blue", "black", "red"])
def test_a_pen_mark_across_tissue_takes_its_rim_and_nothing_further(colour):
    image = slide((20, 20, 160, TISSUE["eosin"]))
    image[90:100] = PENS[colour]
    mask = tissue_mask(image)
    assert not mask[88:102].any()
    assert mask[22:82, 22:178].all()
    assert mask[108:178, 22:178].all()


@pytest.mark.parametrize("colour", TISSUE.values(), ids=TISSUE)
def test_no_tissue_is_taken_for_ink(colour):
    image = slide((20, 20, 120, colour))
    assert not pen_mask(image, 8.0).any()
    assert tissue_mask(image)[22:138, 22:138].mean() > 0.99


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2))
def test_no_mixture_of_haematoxylin_and_eosin_is_ink(h, e):
    assert not pen_mask(slide((20, 20, 120, shade((HAEMATOXYLIN, EOSIN), (h, e)))), 8.0).any()


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2))
def test_no_mixture_of_haematoxylin_and_dab_is_ink(h, d):
    assert not pen_mask(slide((20, 20, 120, shade((HAEMATOXYLIN, DAB), (h, d)))), 8.0).any()


def test_a_spot_of_pigment_is_no_mark():
    image = slide((20, 20, 160, TISSUE["eosin"]), (80, 80, 10, PENS["black"]))
    assert not pen_mask(image, 8.0).any()
    assert pen_mask(image, 16.0).any()


def test_darkness_on_an_unlit_field_is_no_mark():
    assert not pen_mask(np.full((200, 200, 3), 45, np.uint8), 8.0).any()


@pytest.mark.parametrize("um_per_px", [2.0, 4.0, 8.0])
def test_specks_and_gaps_are_judged_by_their_area_in_micrometres(um_per_px):
    """Squares around the bounds of 2000 and 500 square micrometres, at any resolution."""
    px = 1 / um_per_px
    small, large = round(36 * px), round(56 * px)
    gap, lumen = round(16 * px), round(40 * px)
    tissue = TISSUE["eosin"]
    image = slide(
        (10, 10, small, tissue), (10, 110, large, tissue), (90, 90, 100, tissue),
        (100, 100, gap, (243,) * 3), (130, 130, lumen, (243,) * 3), noise=0,
    )  # fmt: skip
    mask = tissue_mask(image, TissueSettings(min_speck_um2=2000, max_hole_um2=500), um_per_px)
    assert not mask[:50, :50].any()
    assert mask[11 : 9 + large, 111 : 109 + large].all()
    assert mask[95:125, 95:125].all()
    assert not mask[132 : 128 + lumen, 132 : 128 + lumen].any()


def test_sizes_of_nothing_change_nothing():
    generator = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(generator.normal(size=(200, 200)), 1.5) > 0.05
    image = np.where(noise[..., None], TISSUE["eosin"], 243).astype(np.uint8)
    off = TissueSettings(min_speck_um2=0, max_hole_um2=0)
    np.testing.assert_array_equal(tissue_mask(image, off, 1.0), tissue_mask(image, off, 64.0))
    default = tissue_mask(image)
    assert (default != tissue_mask(image, off)).any()


def test_blur_lowers_sharpness():
    tile = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    blurred = [ndimage.gaussian_filter(tile, (sigma, sigma, 0)) for sigma in (0.7, 1.5, 3)]
    values = [sharpness(image) for image in (tile, *blurred)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] / 100


@settings(deadline=None)
@given(st.integers(-3, 3))
def test_sharpness_is_that_of_the_laplacian_of_a_grey_tile(shift):
    """Of a parabola of brightness the Laplacian is the same everywhere but at the edge."""
    x = np.arange(11)
    row = (100 + shift + x**2).astype(np.uint8)
    grey = np.repeat(np.tile(row, (11, 1))[..., None], 3, axis=2)
    second = np.pad(row.astype(float), 1, mode="edge")
    expected = (second[2:] - 2 * second[1:-1] + second[:-2]).var()
    assert sharpness(grey) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_speck": 1}, "tile.tissue has no parameter min_speck"),
        ({"min_speck_um2": -1}, "tile.tissue.min_speck_um2 is -1"),
        ({"max_hole_um2": None}, "tile.tissue.max_hole_um2 is None"),
        ({"min_sharpness": float("nan")}, "tile.tissue.min_sharpness is nan"),
        ({"leave_out_pen": "yes"}, "tile.tissue.leave_out_pen is 'yes'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TissueSettings.from_parameters(given)


#: Light that is left of each colour: mounting media, lamps, and white balances set for other glass.
TINTS = {
    "yellowed": (1, 0.96, 0.85), "warm": (1, 0.9, 0.75), "cold": (0.87, 0.92, 1),
    "green": (0.88, 1, 0.9), "magenta": (1, 0.88, 1), "pink": (1, 0.93, 0.96),
    "grey": (0.8, 0.8, 0.8), "dim and yellow": (0.8, 0.77, 0.68), "slight": (1, 0.98, 0.955),
}  # fmt: skip


def uneven(side, colour, seed=1):
    """Tissue: one colour, lighter and darker from place to place as cells and fibres make it."""
    coarse = np.random.default_rng(seed).normal(0, 18, (side // 4, side // 4, 1))
    return np.array(colour, float) + coarse.repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize("colour", ["eosin", "haematoxylin", "bluish counterstain", "dab"])
@pytest.mark.parametrize("tint", TINTS.values(), ids=TINTS)
def test_tinted_glass_is_no_tissue_and_the_tissue_stays(tint, colour):
    clear = slide((40, 40, 120, uneven(120, TISSUE[colour])))
    tinted = np.rint(clear * np.array(tint)).astype(np.uint8)
    expected, found = tissue_mask(clear), tissue_mask(tinted)
    assert expected.mean() == pytest.approx(0.36, abs=0.02)
    assert (expected != found).mean() < 0.01


LIGHT = {
    "two halves": np.arange(200) >= 100,
    "a third beside": np.arange(200) >= 140,
    "from side to side": np.linspace(0, 1, 200),
}


@pytest.mark.parametrize("light", LIGHT.values(), ids=LIGHT)
@pytest.mark.parametrize("tint", TINTS.values(), ids=TINTS)
def test_glass_of_two_tints_in_one_file_is_no_tissue(tint, light):
    clear = slide(
        (20, 20, 70, uneven(72, TISSUE["eosin"])[:70, :70]),
        (110, 110, 60, uneven(60, TISSUE["haematoxylin"])),
    )
    tinted = np.rint(clear * (1 + light[None, :, None] * (np.array(tint) - 1))).astype(np.uint8)
    assert (tissue_mask(clear) != tissue_mask(tinted)).mean() < 0.005


def test_flat_stain_and_blurred_tissue_at_the_edge_are_no_other_glass():
    blurred = ndimage.gaussian_filter(uneven(200, (225, 195, 215)), (3, 3, 0))
    for colour in (np.full((200, 200, 3), TISSUE["bluish counterstain"], float), blurred):
        assert tissue_mask(slide((0, 100, 200, colour[:, :100])))[:, 102:].mean() > 0.97


@pytest.mark.parametrize("tint", TINTS.values(), ids=TINTS)
def test_a_pen_mark_on_tinted_glass_is_left_out(tint):
    clear = slide((20, 20, 80, uneven(80, TISSUE["eosin"])), (130, 130, 40, PENS["green"]))
    mask = tissue_mask(np.rint(clear * np.array(tint)).astype(np.uint8))
    assert mask[24:96, 24:96].mean() > 0.97
    assert not mask[120:180, 120:180].any()


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("tint", [(1, 0.9, 0.75), (0.87, 0.92, 1)])
def test_white_that_fills_a_file_beside_tinted_glass_is_none_of_it(tint, around):
    clear = slide((40, 40, 90, uneven(92, TISSUE["eosin"])[:90, :90]))
    tinted = np.rint(clear * np.array(tint)).astype(np.uint8)
    if around:
        # Of a small scan, at low magnification: a px at its edge is half white.
        inner = tinted[15:-15, 15:-15].copy()
        tinted[14:-14, 14:-14] = tinted[14:-14, 14:-14] // 2 + 128
        tinted[15:-15, 15:-15] = inner
        tinted[:14] = tinted[-14:] = tinted[:, :14] = tinted[:, -14:] = 255
    else:
        tinted[:, 150:] = 255
    mask = tissue_mask(tinted)
    assert mask[44:126, 44:126].mean() > 0.97
    assert mask.sum() < 1.05 * 90 * 90


@pytest.mark.parametrize("pen", ["green", "blue", "red"])
@pytest.mark.parametrize("tint", [(1, 0.96, 0.84), (0.87, 0.92, 1), (1, 0.88, 0.72), (1, 1, 1)])
@pytest.mark.parametrize("grey", [True, False], ids=["grey noise", "coloured noise"])
def test_noise_on_tinted_glass_is_no_tissue(grey, tint, pen):
    """Of the cameras of old scanners: up to eight grey levels."""
    clear = slide((40, 40, 100, uneven(100, TISSUE["eosin"])), (150, 20, 30, PENS[pen]), noise=0)
    for sigma in (3, 5, 8):
        noise = np.random.default_rng(1).normal(0, sigma, (200, 200, 1 if grey else 3))
        noisy = (clear * np.array(tint) + noise).clip(0, 255).astype(np.uint8)
        assert tissue_mask(noisy).mean() == pytest.approx(0.25, abs=0.006)


def test_neutral_glass_changes_nothing():
    """What glass is like counts only from the saturation on at which it could be taken for tissue."""
    image = slide((40, 40, 120, uneven(120, TISSUE["eosin"])))
    for bare in ((243, 243, 243), (243, 240, 238), (205, 204, 206)):
        image[:30] = bare
        assert glass_colour(image) is not None
    red, green, blue = glass_colour(slide())
    assert max(red, green, blue) - min(red, green, blue) <= 1


FULL = {
    "tissue": uneven(200, TISSUE["eosin"]),
    "pale tissue": uneven(200, (225, 195, 215)),
    "flat ink": np.full((200, 200, 3), PENS["green"], float),
    "flat stain": np.full((200, 200, 3), TISSUE["eosin"], float),
    "darkness": np.full((200, 200, 3), 30.0),
}


@pytest.mark.parametrize("case", FULL)
def test_an_image_without_glass_has_none(case):
    image = slide((0, 0, 200, FULL[case]))
    glass = glass_colour(image)
    assert glass is None or 1 - min(glass) / max(glass) > 0.4
    if "tissue" in case or "stain" in case:
        assert tissue_mask(image).mean() > 0.95


def test_a_lake_of_mucin_beside_clear_glass_is_tissue():
    image = slide((20, 20, 160, uneven(160, TISSUE["eosin"])), (60, 60, 80, (205, 208, 235)))
    assert tissue_mask(image)[64:136, 64:136].all()
    assert max(glass_colour(image)) - min(glass_colour(image)) <= 2


def test_a_small_image_is_cut_from_tissue():
    assert glass_colour(np.full((63, 400, 3), (240, 225, 200), np.uint8)) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_colour_of_glass_is_the_median_of_what_is_about_as_bright_as_the_brightest(seed):
    """The definition, with a number for each pixel."""
    generator = np.random.default_rng(seed)
    image = np.full((96, 80, 3), generator.integers(200, 250, 3), np.uint8)
    image += generator.integers(0, 3, image.shape, dtype=np.uint8)
    image[:24] -= generator.integers(0, 40, 3, dtype=np.uint8)
    image[30:60, 20:60] = generator.integers(0, 256, (30, 40, 3))
    spread = np.max(
        [
            ndimage.maximum_filter(plane, glass._FLAT_WINDOW).astype(int)
            - ndimage.minimum_filter(plane, glass._FLAT_WINDOW)
            for plane in np.moveaxis(image, 2, 0)
        ],
        axis=0,
    )
    flat = image[spread <= glass._FLAT_RANGE].astype(float)
    brightness = flat.mean(axis=1)
    bright = np.percentile(brightness, 95)
    expected = np.median(flat[np.abs(brightness - bright) <= glass._BRIGHTER], axis=0)
    assert glass_colour(image) == tuple(np.rint(expected))
