"""Fields of view wider than a tile: the pixels of the slide itself, never invented, never enlarged."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathfm_kedro.slides.fields import Box, TileFields, fields_on_slide, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, tile_truth, write_pyramid

SIDE, MPP = 1024, 0.25


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """A TIFF of three levels without loss, and the pixels of each."""
    levels = [np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)]
    for _ in range(2):
        fine = levels[-1].reshape(len(levels[-1]) // 2, 2, -1, 2, 3)
        levels.append(np.ascontiguousarray(fine.mean(axis=(1, 3)).astype(np.uint8)))
    root = tmp_path_factory.mktemp("pyramid")
    with tifffile.TiffWriter(root / "a.tiff") as file:
        for level, pixels in enumerate(levels):
            file.write(
                pixels,
                tile=(256, 256),
                compression="deflate",
                photometric="rgb",
                subfiletype=int(level > 0),
                resolution=(1e4 / MPP / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return SlideFiles(root), levels


def fields_at(files, x, y, side, pixels):
    return TileFields(files, "a.tiff", x, y, side, pixels)


@settings(max_examples=25, deadline=None)
@given(
    level=st.integers(0, 2),
    width=st.integers(8, 60).map(lambda n: 2 * n),
    height=st.integers(8, 60).map(lambda n: 2 * n),
    seed=st.integers(0, 99),
)
def test_a_field_is_a_crop_of_the_level_at_its_resolution(pyramid, level, width, height, seed):
    files, levels = pyramid
    scale, generator = 2**level, np.random.default_rng(seed)
    left = generator.integers(0, SIDE // scale - width, 3)
    top = generator.integers(0, SIDE // scale - height, 3)
    # Tiles of 16 px whose wider field begins at (left, top) of the level.
    tiles = fields_at(
        files,
        tuple(int(x) for x in (left + (width - 16) // 2) * scale),
        tuple(int(y) for y in (top + (height - 16) // 2) * scale),
        16.0 * scale,
        16,
    )
    wide = tiles.widened(width, height)
    wide.refuse_over_edge()
    (pixels, truth), *_ = list(wide.batches(3))
    assert truth is None
    expected = [
        levels[level][y : y + height, x : x + width] for y, x in zip(top, left, strict=True)
    ]
    np.testing.assert_array_equal(pixels, expected)


def test_between_levels_the_finer_one_is_read_and_reduced(pyramid):
    files, levels = pyramid
    wide = fields_at(files, (301,), (200,), 1.5 * 32, 32).widened(120, 64)
    (pixels, _), *_ = list(wide.batches(1))
    left, top = wide.x[0], wide.y[0]
    crop = Image.fromarray(levels[0][top : top + 96, left : left + 180])
    np.testing.assert_array_equal(pixels[0], np.asarray(crop.resize((120, 64), 2)))


def test_a_square_told_as_a_rectangle_is_the_same_field(pyramid):
    tiles = fields_at(pyramid[0], (300,), (200,), 32.0, 32)
    assert tiles.widened(96, 96) == tiles.widened(96)
    assert tiles.widened(96, 64).digest() != tiles.widened(96).digest()
    assert tiles.widened(96, 64).digest() != tiles.widened(96, 48).digest()


def test_widening_twice_is_widening_once(pyramid):
    tiles = fields_at(pyramid[0], (300, 401), (200, 333), 64.0, 32)
    assert tiles.widened(128, 96).widened(64, 48) == tiles.widened(64, 48)


@pytest.mark.parametrize(("x", "y"), [(10, 400), (400, 10), (980, 400), (400, 980)])
def test_a_field_over_the_edge_is_refused(pyramid, x, y):
    tiles = fields_at(pyramid[0], (400, x), (400, y), 32.0, 32)
    tiles.refuse_over_edge()
    with pytest.raises(ValueError, match=f"x={x - 32}, y={y - 32} reaches over the edge"):
        tiles.widened(96).refuse_over_edge()


def test_a_coarser_slide_is_never_enlarged(pyramid):
    with pytest.raises(ValueError, match="fewer than the 64 px wanted"):
        next(fields_at(pyramid[0], (300,), (200,), 32.0, 64).batches(1))


def tables(tiles, slides):
    return (
        pl.DataFrame(
            [
                {"tile_id": f"t{i}", "slide_id": s, "x": x, "y": y, "field_um": 16.0, "mpp": 0.5}
                for i, (s, x, y) in enumerate(tiles)
            ]
        ),
        pl.DataFrame(
            [{"slide_id": s, "width": w, "height": h, "mpp": m} for s, w, h, m in slides],
            schema_overrides={"mpp": pl.Float64},
        ),
    )


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 968),
    y=st.integers(0, 968),
    width=st.integers(16, 300).map(lambda n: 2 * n),
    height=st.integers(16, 300).map(lambda n: 2 * n),
)
def test_a_tile_has_room_where_its_field_can_be_read(pyramid, x, y, width, height):
    tiles, slides = tables([("a", x, y)], [("a", SIDE, SIDE, MPP)])
    found = fields_on_slide(tiles, slides, width, height)
    slide = slides.with_columns(path=pl.lit("a.tiff"))
    [(_, fields)] = slide_fields(slide, tiles, pyramid[0], 32)
    wide = fields.widened(width, height)
    inside = (
        min(wide.x[0], wide.y[0]) >= 0
        and wide.x[0] + 2 * width <= SIDE
        and wide.y[0] + 2 * height <= SIDE
    )
    assert found["has_room"][0] == inside
    assert (found["no_room"][0] == "") == inside


def test_the_reason_says_what_lacks():
    tiles, slides = tables(
        [("edge", 0, 500), ("edge", 500, 500), ("cut", 0, 0), ("coarse", 500, 500), ("mute", 9, 9)],
        [
            ("edge", 2000, 2000, 0.5),
            ("cut", 32, 32, 0.5),
            ("coarse", 9000, 9000, 1.0),
            ("mute", 9000, 9000, None),
        ],
    )
    found = fields_on_slide(tiles, slides, 256, 256)
    assert found["has_room"].to_list() == [False, True, False, False, False]
    for reason, said in zip(
        found["no_room"],
        ["over the edge", "", "cut beforehand", "coarser", "unknown: give mpp"],
        strict=True,
    ):
        assert said in reason
    with pytest.raises(ValueError, match="1 slides that the slides table lacks: mute"):
        fields_on_slide(tiles, slides.filter(pl.col("slide_id") != "mute"), 256, 256)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    slide = draw_slide(PhantomDesign(size_px=512), "lung_adeno-north-001-01")
    write_pyramid(root / "a.tiff", slide)
    return SlideFiles(root), json.loads(json.dumps(slide.description))


def test_truth_is_that_of_the_centre_whatever_the_width(phantom):
    tiles = fields_at(phantom[0], (200, 240), (180, 220), 64.0, 64)
    square, wider, rectangle = (
        next(fields.batches(2))[1] for fields in (tiles, tiles.widened(128), tiles.widened(192, 96))
    )
    np.testing.assert_array_equal(wider, square)
    np.testing.assert_array_equal(rectangle, square)
    assert (square[0] != square[1]).any()


def test_truth_of_a_part_is_that_of_a_tile_there(phantom):
    files, drawn = phantom
    wide = fields_at(files, (200, 240), (180, 220), 64.0, 64).widened(192, 128)
    parts = [Box(0, 0, 64, 64), Box(64, 32, 64, 64), Box(100, 40, 64, 64)]
    found = wide.truth_of_parts(parts)
    expected = [
        [tile_truth(drawn, x + part.left, y + part.top, 64) for part in parts]
        for x, y in zip(wide.x, wide.y, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)


def test_a_part_is_cut_from_every_field(pyramid):
    pixels = np.arange(2 * 20 * 30 * 3).reshape(2, 20, 30, 3).astype(np.uint8)
    np.testing.assert_array_equal(Box(4, 7, 10, 5).cut(pixels), pixels[:, 7:12, 4:14])


@pytest.mark.real_data
def test_wide_fields_of_a_real_slide_are_its_pixels(real_data):
    import openslide

    path = "slides/CMU-1-Small-Region.svs"
    with openslide.OpenSlide(real_data / path) as slide:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    tiles = TileFields(SlideFiles(real_data), path, (1000, 900), (1200, 1100), 224.0, 224)
    for width, height in ((224, 224), (512, 512), (1024, 1024), (1600, 1200)):
        wide = tiles.widened(width, height)
        for at, (pixels, _) in enumerate(wide.batches(1)):
            x, y = wide.x[at], wide.y[at]
            np.testing.assert_array_equal(pixels[0], whole[y : y + height, x : x + width])
