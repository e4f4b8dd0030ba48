"""Nuclei from haematoxylin: counts and sizes of drawn discs, whatever the strength of the stain."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.slides.nuclear_morphology import (
    haematoxylin_orientation,
    nuclear_density_and_size,
)
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest
from pathfm_kedro.slides.phantom_morphology import ARCHETYPES
from pathfm_kedro.slides.stain import COMMON_BASIS, stained


def drawn(places, radius, strength=1.0, side=60, eosin=0.3):
    rows, columns = np.mgrid[:side, :side]
    amounts = np.zeros((side, side, 3))
    amounts[..., 1] = eosin
    for row, column in places:
        amounts[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2, 0] = strength
    return stained(amounts, COMMON_BASIS)


GRID = [(r, c) for r in (10, 30, 50) for c in (10, 30, 50)]


def test_discs_are_counted_and_measured():
    tiles = np.stack([drawn(GRID, 4), drawn(GRID[:4], 4), drawn(GRID, 7)])
    (all_small, few, all_large) = nuclear_density_and_size(tiles)
    assert all_small[0] == pytest.approx(9 / 3.6)
    assert few[0] == pytest.approx(4 / 3.6)
    assert few[1] == pytest.approx(all_small[1])
    area = {
        radius: sum(r * r + c * c <= radius**2 for r in range(-9, 10) for c in range(-9, 10))
        for radius in (4, 7)
    }
    assert all_small[1] == pytest.approx(np.log(area[4]))
    assert all_large[1] == pytest.approx(np.log(area[7]))


def test_the_strength_of_either_stain_changes_nothing():
    tiles = np.stack([drawn(GRID, 5), drawn(GRID, 5, strength=0.6), drawn(GRID, 5, eosin=0.6)])
    found = nuclear_density_and_size(tiles)
    np.testing.assert_allclose(found, found[:1].repeat(3, axis=0))


def test_a_tile_without_tissue_has_no_nuclei():
    glass = np.full((1, 20, 20, 3), 240, np.uint8)
    assert nuclear_density_and_size(glass).tolist() == [[0.0, 0.0]]
    assert haematoxylin_orientation(glass).tolist() == [[0.0, 0.0]]


def test_orientation_turns_with_the_tile():
    tiles = np.random.default_rng(0).integers(40, 240, (3, 24, 24, 3), dtype=np.uint8)
    upright = haematoxylin_orientation(tiles)
    for quarter in range(4):
        turned = haematoxylin_orientation(np.rot90(tiles, quarter, axes=(1, 2)))
        np.testing.assert_allclose(turned, (-1) ** quarter * upright, atol=1e-12)
    mirrored = haematoxylin_orientation(tiles[:, :, ::-1])
    np.testing.assert_allclose(mirrored, upright * [1, -1], atol=1e-12)


def test_touching_nuclei_are_two():
    apart, touching = drawn([(30, 15), (30, 40)], 7), drawn([(30, 25), (30, 38)], 7)
    (two, also_two) = nuclear_density_and_size(np.stack([apart, touching]))
    assert also_two[0] == two[0] == pytest.approx(2 / 3.6)
    assert also_two[1] == pytest.approx(two[1], abs=0.05)


def test_drawn_tissues_rank_by_size_and_solid_ones_by_density():
    """The truth is the phantom's; openings and stroma hold no nuclei, so that others are less dense."""
    from scipy.stats import spearmanr

    design = PhantomDesign(
        labels=dict.fromkeys(ARCHETYPES, "o"), centers=("one",), patients_per_cell=1, size_px=1024
    )
    forms, found = [], []
    for slide in phantom_manifest(design)["slide_id"]:
        made = draw_slide(design, slide)
        forms.append(made.description["phantom"]["morphology"])
        corners = [(y, x) for y in (256, 512) for x in (256, 512)]
        tiles = np.stack([made.pixels[y : y + 256, x : x + 256] for y, x in corners])
        found.append(nuclear_density_and_size(tiles).mean(axis=0))
    density, size = np.transpose(found)
    assert spearmanr(size, [form["nuclear_um"] for form in forms]).statistic > 0.8
    expected = np.array([1000 * (design.mpp / form["spacing_um"]) ** 2 for form in forms])
    solid = np.array([form["opening"] < 0.1 for form in forms])
    assert solid.sum() == 3
    assert spearmanr(density[solid], expected[solid]).statistic == pytest.approx(1)
    assert (density[solid] / expected[solid] > 0.5).all()
    assert (density[solid] / expected[solid] < 1.3).all()
