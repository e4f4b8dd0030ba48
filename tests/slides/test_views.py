import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pathfm_kedro.slides.views import (
    apply_disc,
    centre_crop,
    disc_mask,
    inscribed_size,
    rotated_views,
    round_trip_views,
    shifted_views,
    wide_side,
)

ANGLES = list(range(0, 360, 15))
SIZES = [1, 2, 31, 32, 64]


def texture(side: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours: neighbouring pixels resemble each other as in tissue."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(side, side, 3))
    smooth = gaussian_filter(noise, (2, 2, 0))
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def radius(side: int) -> np.ndarray:
    offset = np.arange(side) - (side - 1) / 2
    return np.hypot(offset[:, None], offset[None, :])


@given(st.integers(1, 4096))
def test_wide_field_has_room_for_the_diagonal_and_a_whole_pixel_crop(size):
    side = wide_side(size)
    assert side >= np.sqrt(2) * size
    assert (side - size) % 2 == 0
    assert side - 2 < np.sqrt(2) * size + 10


@given(st.integers(14, 4096))
def test_inscribed_view_is_the_largest_that_fits(side):
    size = inscribed_size(side)
    assert (side - size) % 2 == 0
    assert wide_side(size) <= side < wide_side(size + 2)


@pytest.mark.parametrize("size", SIZES)
def test_quarter_turns_are_lossless_and_counter_clockwise(size):
    wide = texture(wide_side(size))
    crop = centre_crop(wide, size)
    views = rotated_views(wide, size, [0, 90, 180, 270, 360, -90])
    for view, turns in zip(views, [0, 1, 2, 3, 0, -1], strict=True):
        np.testing.assert_array_equal(view, np.rot90(crop, turns))


@pytest.mark.parametrize("turn", [rotated_views, round_trip_views])
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_field_stays_constant(turn, size):
    side = wide_side(size)
    wide = np.broadcast_to(np.array([200, 90, 160], np.uint8), (side, side, 3)).copy()
    assert (turn(wide, size, ANGLES) == wide[0, 0]).all()


@pytest.mark.parametrize("turn", [rotated_views, round_trip_views])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_outside_the_inscribed_circle_is_ever_seen(turn, size):
    side = wide_side(size)
    wide = texture(side)
    poisoned = wide.copy()
    poisoned[radius(side) > side / 2] = [0, 255, 0]
    np.testing.assert_array_equal(turn(wide, size, ANGLES), turn(poisoned, size, ANGLES))


def test_a_radially_symmetric_picture_does_not_change():
    size = 64
    rings = 128 + 100 * np.cos(radius(wide_side(size)) / 4)
    wide = np.repeat(rings[..., None], 3, axis=2).round().astype(np.uint8)
    views = rotated_views(wide, size, ANGLES).astype(int)
    change = np.abs(views - views[0])
    assert change.mean(axis=(1, 2, 3)).max() < 0.01 * np.ptp(wide)
    assert change.max() < 0.03 * np.ptp(wide)


def test_angles_near_a_quarter_turn_agree_with_it():
    wide = texture(wide_side(64))
    exact, near = rotated_views(wide, 64, [90, 89.999]).astype(int)
    assert np.abs(exact - near).max() <= 1


@settings(max_examples=25, deadline=None)
@given(st.floats(-360, 360))
@example(-5e-324)
@example(90 - 1e-14)
def test_agrees_with_pillows_own_rotation(angle):
    from PIL import Image

    wide = texture(wide_side(32))
    whole = Image.fromarray(wide).rotate(angle, Image.Resampling.BICUBIC)
    ours = rotated_views(wide, 32, [angle])[0].astype(int)
    assert np.abs(ours - centre_crop(np.asarray(whole), 32)).max() <= 1


@pytest.mark.parametrize("turn", [rotated_views, round_trip_views])
def test_turning_does_not_darken(turn):
    wide = texture(wide_side(128))
    views = apply_disc(turn(wide, 128, ANGLES), fill=0)
    brightness = views.mean(axis=(1, 2, 3))
    assert np.abs(brightness / brightness[0] - 1).max() < 5e-4


def test_a_spot_right_of_the_centre_moves_up():
    size = 65
    wide = np.zeros((wide_side(size),) * 2 + (3,), np.uint8)
    middle = len(wide) // 2
    wide[middle - 2 : middle + 3, middle + 18 : middle + 23] = 255
    view = rotated_views(wide, size, [45])[0, ..., 0].astype(float)
    rows, columns = np.indices(view.shape) - size // 2
    expected = 20 / np.sqrt(2)
    assert (view * rows).sum() / view.sum() == pytest.approx(-expected, abs=0.2)
    assert (view * columns).sum() / view.sum() == pytest.approx(expected, abs=0.2)


def test_there_and_back_keeps_orientation_and_only_blurs():
    size = 64
    wide = texture(wide_side(size))
    crop = centre_crop(wide, size).astype(float)
    back = round_trip_views(wide, size, ANGLES).astype(float)
    rotated = rotated_views(wide, size, ANGLES).astype(float)
    likeness = np.array([np.corrcoef(crop.ravel(), view.ravel())[0, 1] for view in back])
    unlikeness = np.array([np.corrcoef(crop.ravel(), view.ravel())[0, 1] for view in rotated])
    assert likeness.min() > 0.99
    assert unlikeness[1:].max() < 0.8
    for index in range(0, 360 // 15, 6):
        np.testing.assert_array_equal(back[index], crop)


def test_rotated_views_are_one_picture_inside_the_disc():
    mask = disc_mask(64)
    assert mask.mean() == pytest.approx(np.pi / 4, abs=0.005)
    np.testing.assert_array_equal(mask, np.rot90(mask))
    np.testing.assert_array_equal(mask, mask.T)


def test_disc_fills_outside_only_and_leaves_its_input_alone():
    views = np.stack([texture(32, seed) for seed in range(2)])
    before = views.copy()
    masked = apply_disc(views, fill=17)
    mask = disc_mask(32)
    assert (masked[:, ~mask] == 17).all()
    np.testing.assert_array_equal(masked[:, mask], before[:, mask])
    np.testing.assert_array_equal(views, before)
    assert (apply_disc(views)[:, ~mask] == 255).all()


def test_no_angles_give_no_views():
    assert rotated_views(texture(wide_side(8)), 8, []).shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (np.zeros((224, 224, 3), np.uint8), "too small to rotate"),
        (np.zeros((331, 331, 3), np.uint8), "no centred crop"),
        (np.zeros((100, 100, 3), np.uint8), "no centred crop"),
        (np.zeros((400, 328, 3), np.uint8), "square of RGB"),
        (np.zeros((328, 328, 3), np.float32), "uint8"),
    ],
)
def test_an_unfit_field_is_refused_with_the_mend(field, message):
    with pytest.raises(ValueError, match=message):
        rotated_views(field, 224, [15])


def test_sizes_without_a_view_are_refused():
    with pytest.raises(ValueError, match="at least 1 px"):
        wide_side(0)
    with pytest.raises(ValueError, match="too small to be rotated"):
        inscribed_size(8)


@pytest.mark.parametrize("angle", [0, 15, 30, 45, 60, 90])
def test_a_shift_keeps_the_area_that_a_turn_keeps(angle):
    """Area of a square and its rotated copy in common, counted on a fine grid."""
    size = 224
    wide = np.zeros((wide_side(size), wide_side(size), 3), np.uint8)
    wide[..., 0] = np.arange(len(wide)) // 2
    shift = int(shifted_views(wide, size, [angle])[0, 0, 0, 0]) * 2 - int(
        (len(wide) - size) // 2 // 2 * 2
    )
    points = (np.arange(1000) + 0.5) / 1000 - 0.5
    x, y = np.meshgrid(points, points)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    inside = (np.abs(cos * x + sin * y) <= 0.5) & (np.abs(cos * y - sin * x) <= 0.5)
    assert 1 - shift / size == pytest.approx(inside.mean(), abs=0.01)
