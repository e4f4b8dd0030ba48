"""Tiles lie on tissue, at the wanted resolution, and are the same on any number of threads."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.gallery import draw_gallery
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from tests.conftest import manifest, manifest_row, write_tiff

ENGINE = {"workers": 1, "max_failed_share": 1.0}
PARAMETERS = {
    "pixels": 64,
    "mpp": 0.5,
    "min_tissue_fraction": 0.7,
    "max_tiles_per_slide": None,
    "overview_mpp": 4.0,
    "mosaic": {"colour_clusters": 9, "share": 0.05},
    "gallery": {"cell_pixels": 32, "max_labels": 4, "max_centers": 4},
    "seed": 0,
}


def cut(folder, *rows, **changes):
    listed = check_manifest(manifest(*rows))
    files = SlideFiles(folder)
    slides = describe_slides(
        listed, files, {"mpp_bounds": [0.05, 10], "cramers_v_warning": 1}, ENGINE
    )
    return slides, files, *cut_tiles(slides, files, PARAMETERS | changes, ENGINE)


def test_exactly_the_tiles_of_the_tissue_square_are_cut(tmp_path, pink_slide):
    write_tiff(tmp_path / "a.tiff", pink_slide)
    _, _, tiles, tiling = cut(tmp_path, manifest_row("a"))
    expected = {(x, y) for x in range(256, 768, 64) for y in range(256, 768, 64)}
    assert set(tiles.select("x", "y").iter_rows()) == expected
    assert tiling["tissue_mm2"].item() == pytest.approx((512 * 0.5 / 1000) ** 2, rel=0.05)
    assert set(tiles["field_um"]) == {32.0}


def test_a_tile_is_given_in_micrometres_whatever_the_scanner(tmp_path, pink_slide):
    """The same tissue scanned twice as fine gives the same tiles, twice as wide in pixels."""
    write_tiff(tmp_path / "coarse.tiff", pink_slide, mpp=0.5)
    fine = pink_slide.repeat(2, axis=0).repeat(2, axis=1)
    write_tiff(tmp_path / "fine.tiff", fine, mpp=0.25)
    _, _, tiles, _ = cut(tmp_path, manifest_row("coarse"), manifest_row("fine"))
    coarse = tiles.filter(pl.col("slide_id") == "coarse").select("x", "y").to_numpy()
    doubled = tiles.filter(pl.col("slide_id") == "fine").select("x", "y").to_numpy()
    np.testing.assert_array_equal(coarse * 2, doubled)


def test_slides_without_use_get_a_reason_and_the_rest_go_on(tmp_path, pink_slide):
    write_tiff(tmp_path / "good.tiff", pink_slide)
    write_tiff(tmp_path / "white.tiff", np.full((512, 512, 3), 245, np.uint8))
    write_tiff(tmp_path / "coarse.tiff", pink_slide, mpp=2.0)
    write_tiff(tmp_path / "small.tiff", pink_slide[300:340, 300:340], mpp=0.5)
    rows = [manifest_row(name) for name in ("good", "white", "coarse", "small")]
    _, _, tiles, tiling = cut(tmp_path, *rows)
    reasons = dict(tiling.select("slide_id", "reason").iter_rows())
    assert reasons["good"] == ""
    assert "no tissue was found" in reasons["white"]
    assert "coarser than the tiles' 0.5" in reasons["coarse"]
    assert "larger than the slide" in reasons["small"]
    assert set(tiles["slide_id"]) == {"good"}


def test_tissue_too_small_for_a_tile_is_told_from_no_tissue(tmp_path):
    pixels = np.full((512, 512, 3), 245, np.uint8)
    pixels[100:140, 100:200] = (205, 120, 175)
    write_tiff(tmp_path / "a.tiff", pixels)
    _, _, tiles, tiling = cut(tmp_path, manifest_row("a"))
    assert tiles.is_empty()
    assert "no tile is tissue to 70%, the most is" in tiling["reason"].item()


def test_a_cap_is_a_seeded_sample(tmp_path, pink_slide):
    write_tiff(tmp_path / "a.tiff", pink_slide)
    full = cut(tmp_path, manifest_row("a"))[2]
    first, again, other = (
        cut(tmp_path, manifest_row("a"), max_tiles_per_slide=10, seed=seed)[2] for seed in (1, 1, 2)
    )
    assert first.height == 10
    assert first.equals(again)
    assert not first["tile_id"].equals(other["tile_id"])
    assert set(first["tile_id"]) < set(full["tile_id"])


def test_threads_do_not_change_the_tables(tmp_path, pink_slide):
    rows = [manifest_row(name) for name in "abc"]
    for name in "abc":
        write_tiff(tmp_path / f"{name}.tiff", pink_slide)
    slides, files, *one = cut(tmp_path, *rows)
    two = cut_tiles(slides, files, PARAMETERS, ENGINE | {"workers": 2})
    assert all(a.equals(b) for a, b in zip(one, two, strict=True))


def test_the_mosaic_has_a_tile_of_every_colour(tmp_path, pink_slide):
    write_tiff(tmp_path / "a.tiff", pink_slide)
    tiles = cut(tmp_path, manifest_row("a"))[2]
    chosen = tiles.filter("in_mosaic")
    assert set(chosen["colour_cluster"]) == set(tiles["colour_cluster"])
    assert 0 < chosen.height < tiles.height


def test_the_gallery_shows_what_there_is(tmp_path, pink_slide):
    write_tiff(tmp_path / "a.tiff", pink_slide)
    write_tiff(tmp_path / "b.tiff", pink_slide)
    rows = [manifest_row("a"), manifest_row("b", center="B", label="y")]
    slides, files, tiles, _ = cut(tmp_path, *rows)
    image = draw_gallery(slides, tiles, files, PARAMETERS)
    cell = image[4:36, 4:36].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(cell, [205, 120, 175], atol=8)
    assert (image[4:36, 40:72] == 255).all()
