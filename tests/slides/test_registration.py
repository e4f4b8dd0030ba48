"""Rotation and shift are found where they are known, and what is not the same tissue is told apart."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from pathfm_kedro.slides.phantom import PhantomDesign, PhantomSlide, draw_slide
from pathfm_kedro.slides.phantom_repeats import CHANGES, placement_of
from pathfm_kedro.slides.readers import reduce_by_area
from pathfm_kedro.slides.registration import Registration, density, measured_fit, register

#: Level-0 px per px of the picture that is registered.
REDUCED = 4
SLIDE = "lung_adeno-south-001-01"


@functools.cache
def drawn(slide_id: str, dose: float = 1.0) -> PhantomSlide:
    return draw_slide(
        PhantomDesign(size_px=512, mpp=1.0, repeat_patients=12, repeat_dose=dose), slide_id
    )


def picture(slide_id: str, dose: float = 1.0) -> np.ndarray:
    pixels = drawn(slide_id, dose).pixels
    return density(reduce_by_area(pixels, *(side // REDUCED for side in pixels.shape[:2])))


@pytest.mark.parametrize(
    ("slide", "change"),
    [*((SLIDE, change) for change in CHANGES), ("kidney_papillary-north-001-01", "both")],
)
def test_the_phantom_s_move_is_found_to_two_px(slide, change):
    fit = register(picture(slide), picture(f"{slide}-{change}"))
    place = placement_of(drawn(f"{slide}-{change}").description["phantom"])
    places = np.array([[x, y] for x in (20.0, 64.0, 108.0) for y in (20.0, 64.0, 108.0)])
    truth = np.array([place.before(*(REDUCED * each)) for each in places]) / REDUCED
    error = np.linalg.norm(fit.registration.to_reference(places) - truth, axis=1)
    assert error.max() < 2.0
    assert fit.correlation > 0.7
    assert fit.residual_px < 1.0


def test_a_dose_of_nothing_is_the_same_pixels():
    for change in CHANGES:
        again = drawn(f"{SLIDE}-{change}", 0.0)
        assert (again.pixels == drawn(SLIDE).pixels).all()
        assert again.jpeg_quality == drawn(SLIDE).jpeg_quality


def test_pixels_differ_more_with_the_dose_and_by_what_was_asked_for():
    first = drawn(SLIDE).pixels.astype(float)
    off = [
        np.abs(drawn(f"{SLIDE}-both", dose).pixels - first).mean() for dose in (0.0, 0.25, 0.5, 1.0)
    ]
    assert off == sorted(off)
    assert off[-1] > 5
    mean = {change: drawn(f"{SLIDE}-{change}").pixels.mean(axis=(0, 1)) for change in CHANGES}
    own = first.mean(axis=(0, 1))
    assert np.abs(mean["stain"] - own).max() > 2 * np.abs(mean["scanner"] - own).max()


@pytest.mark.parametrize("turns", [1, 2])
def test_quarter_turns_are_found(turns):
    reference = picture(SLIDE)
    fit = register(reference, np.ascontiguousarray(np.rot90(reference, -turns)))
    assert abs((fit.registration.rotation_deg - 90 * turns + 180) % 360 - 180) < 0.1
    assert fit.correlation > 0.99


def test_another_slide_does_not_fit():
    fit = register(picture(SLIDE), picture("kidney_clear-north-001-01"))
    assert fit.correlation < 0.25


def test_pictures_of_other_sizes_are_registered():
    reference = picture(SLIDE)
    fit = register(reference, np.ascontiguousarray(reference[10:, 6:110]))
    assert [fit.registration.offset_x, fit.registration.offset_y] == pytest.approx([6, 10], abs=0.5)


def test_a_given_registration_is_measured_and_not_changed():
    reference = picture(SLIDE)
    moved = np.roll(reference, 3, axis=0)
    right = measured_fit(reference, moved, Registration(0.0, -3.0))
    wrong = measured_fit(reference, moved, Registration(0.0, 0.0))
    assert right.correlation > 0.99 > wrong.correlation
    assert right.residual_px < 0.1
    assert wrong.residual_px == pytest.approx(3, abs=0.5)


def test_glass_is_refused():
    with pytest.raises(ValueError, match="repeat slide shows no tissue"):
        register(picture(SLIDE), np.zeros((64, 64), np.float32))


@pytest.mark.parametrize("flip", [False, True])
def test_places_go_there_and_back(flip):
    found = Registration(12.0, -7.0, rotation_deg=33.0, flip=flip, scale=1.7)
    places = np.random.default_rng(0).uniform(0, 1000, (20, 2))
    assert found.to_repeat(found.to_reference(places)) == pytest.approx(places)
    assert np.linalg.norm(np.diff(found.to_reference(places), axis=0), axis=1) == pytest.approx(
        1.7 * np.linalg.norm(np.diff(places, axis=0), axis=1)
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("overlap", [0, 1, 2, 5])
def test_a_fit_of_hardly_any_overlap_is_measured_without_a_warning(overlap):
    picture = np.random.default_rng(0).random((40, 40)).astype(np.float32) + 0.1
    only = np.zeros_like(picture)
    only[20, 20 : 20 + overlap] = picture[20, 20 : 20 + overlap]
    fit = measured_fit(picture, only, Registration(0.0, 0.0))
    assert np.isnan(fit.correlation) == (overlap < 2)
