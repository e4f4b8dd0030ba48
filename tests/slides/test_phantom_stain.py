"""Centers own the colour, classes do not, and site_bias says how much."""

import functools

import numpy as np
import pytest

from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest
from pathfm_kedro.slides.phantom_stain import center_profile

TILE = 224
DENSITY_OF_GREY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


@functools.cache
def _colour(site_bias: float):
    """Mean and SD of optical density of every tissue tile, with its label, center and patient."""
    design = PhantomDesign(size_px=900, patients_per_cell=3, site_bias=site_bias)
    features, keys = [], []
    for row in phantom_manifest(design).iter_rows(named=True):
        pixels = draw_slide(design, row["slide_id"]).pixels[: 4 * TILE, : 4 * TILE]
        density = DENSITY_OF_GREY[pixels]
        tiles = density.reshape(4, TILE, 4, TILE, 3).swapaxes(1, 2).reshape(16, TILE * TILE, 3)
        tissue = (tiles.mean(axis=2) > 0.12).mean(axis=1) >= 0.7
        features.append(np.concatenate([tiles.mean(axis=1), tiles.std(axis=1)], axis=1)[tissue])
        keys += [(row["label"], row["center"], row["patient_id"])] * int(tissue.sum())
    label, center, patient = np.array(keys).T
    return np.concatenate(features), label, center, patient


def _neighbours(site_bias: float, k: int = 7):
    features, label, center, patient = _colour(site_bias)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    distance = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    distance[patient[:, None] == patient[None]] = np.inf
    near = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return label[near] == label[:, None], center[near] == center[:, None]


def _robustness_index(site_bias: float) -> float:
    same_label, same_center = _neighbours(site_bias)
    so = (same_label & ~same_center).sum()
    os = (~same_label & same_center).sum()
    return so / (so + os)


@pytest.mark.slow
def test_colour_predicts_the_center_at_bias_one():
    _, same_center = _neighbours(1.0)
    assert (same_center.sum(axis=1) > 3).mean() > 0.95


@pytest.mark.slow
def test_colour_does_not_predict_the_center_without_bias():
    _, same_center = _neighbours(0.0)
    # Of the 35 other patients 11 are of the query's center; tiles of a patient move together, so
    # the effective number of draws is the 36 patients.
    chance = 11 / 35
    assert abs(same_center.mean() - chance) < 3 * np.sqrt(chance * (1 - chance) / 36)


def test_colour_carries_little_of_the_class():
    same_label, _ = _neighbours(0.0)
    assert same_label.mean() < 0.5


@pytest.mark.slow
def test_robustness_index_of_colour_falls_with_the_bias():
    none, half, full = (_robustness_index(bias) for bias in (0.0, 0.5, 1.0))
    design_null = (3 - 1) / (4 + 3 - 2)
    assert none > half > full
    assert none > design_null - 0.05
    assert full < 0.2 * design_null


def test_mean_stain_is_alike_in_all_classes():
    features, label, *_ = _colour(0.0)
    density = features[:, :3].mean(axis=1)
    of_class = np.array([density[label == one].mean() for one in np.unique(label)])
    assert np.ptp(of_class) < 1.5 * density.std()


@pytest.mark.parametrize("n_centers", [1, 2, 3, 5])
def test_without_bias_every_center_is_the_same(n_centers):
    profiles = {center_profile(index, n_centers, 0.0) for index in range(n_centers)}
    assert len(profiles) == 1


@pytest.mark.parametrize("n_centers", [2, 3, 5])
def test_with_bias_no_two_centers_are_alike(n_centers):
    vectors = np.array(
        [
            [*profile.haematoxylin, *profile.eosin]
            for profile in (center_profile(index, n_centers, 1.0) for index in range(n_centers))
        ]
    )
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert apart[~np.eye(n_centers, dtype=bool)].min() > 0.15
    assert (vectors > 0).all()


def test_the_center_s_name_is_the_only_difference_without_bias():
    # The first center of two cohorts whose names differ: the same stain, other random draws.
    one = PhantomDesign(centers=("north",), size_px=512, site_bias=0.0, patients_per_cell=6)
    other = PhantomDesign(centers=("west",), size_px=512, site_bias=0.0, patients_per_cell=6)

    def mean_colours(design: PhantomDesign) -> np.ndarray:
        ids = phantom_manifest(design)["slide_id"]
        slides = [draw_slide(design, one_id) for one_id in ids]
        assert {slide.jpeg_quality for slide in slides} == {84}
        return np.array([slide.pixels.mean(axis=(0, 1)) for slide in slides])

    first, second = mean_colours(one), mean_colours(other)
    standard_error = np.sqrt(first.var(axis=0) / 24 + second.var(axis=0) / 24)
    assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) < 3.5 * standard_error).all()


def test_jpeg_quality_and_blur_follow_the_bias():
    quality = [center_profile(index, 3, 1.0).jpeg_quality for index in range(3)]
    blur = [center_profile(index, 3, 1.0).blur_um for index in range(3)]
    assert len(set(quality)) > 1
    assert min(quality) >= 60
    assert max(quality) <= 98
    assert max(blur) > 1.5 * min(blur)
