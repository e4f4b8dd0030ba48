"""The contact sheet shows every slide with its tissue and tiles, or why there are none."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.contact_sheet import draw_contact_sheet, wrapped
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
    "contact_sheet": {"max_slides": 6, "columns": 3, "cell_pixels": 200},
    "seed": 0,
}
BLUE, ORANGE, GREY = (0, 84, 200), (255, 170, 0), (214, 214, 214)


@pytest.fixture
def cohort(tmp_path, pink_slide):
    """Two slides with tissue, one of glass, one that is no slide."""
    write_tiff(tmp_path / "a.tiff", pink_slide)
    write_tiff(tmp_path / "b.tiff", pink_slide[:, :600])
    write_tiff(tmp_path / "glass.tiff", np.full((512, 512, 3), 245, np.uint8))
    (tmp_path / "broken.tiff").write_bytes(b"nothing")
    rows = [manifest_row(name) for name in ("a", "b", "glass", "broken")]
    listed, files = check_manifest(manifest(*rows)), SlideFiles(tmp_path)
    bounds = {"mpp_bounds": [0.05, 10], "cramers_v_warning": 1}
    slides = describe_slides(listed, files, bounds, ENGINE)
    tiles, tiling = cut_tiles(slides, files, PARAMETERS, ENGINE)
    return slides, tiles, tiling, files


def draw(cohort, slides=None, engine=ENGINE, **sheet):
    own, tiles, tiling, files = cohort
    parameters = PARAMETERS | {"contact_sheet": PARAMETERS["contact_sheet"] | sheet}
    return draw_contact_sheet(
        own if slides is None else slides, tiles, tiling, files, parameters, engine
    )


def cell(sheet, i, columns=3, size=200):
    left, top = 10 + (i % columns) * (size + 10), 36 + (i // columns) * (size + 46)
    return sheet[top : top + size, left : left + size]


def shares(picture, colour):
    return (picture == np.array(colour)).all(axis=2)


def test_tissue_is_outlined_where_it_lies_and_tiles_lie_on_it(cohort):
    shown = cell(draw(cohort), 0)
    black = shares(shown, (0, 0, 0))
    rows, columns = np.nonzero(black)
    assert (rows.min(), columns.min()) == pytest.approx((50, 50), abs=2)
    assert (rows.max(), columns.max()) == pytest.approx((149, 149), abs=2)
    assert not black[60:140, 60:140].any()
    tiles = shares(shown, BLUE) | shares(shown, ORANGE)
    assert tiles[50:150, 50:150].sum() == tiles.sum() > 0
    np.testing.assert_allclose(shown[2:40, 2:198].mean(axis=(0, 1)), 244, atol=2)


def test_the_mosaic_stands_out(cohort):
    slides, tiles, tiling, files = cohort
    without = tiles.with_columns(in_mosaic=pl.lit(False))
    shown = [
        cell(draw_contact_sheet(slides, table, tiling, files, PARAMETERS, ENGINE), 0)
        for table in (tiles, without)
    ]
    assert shares(shown[0], ORANGE).any()
    assert not shares(shown[1], ORANGE).any()
    assert shares(shown[1], BLUE).sum() > shares(shown[0], BLUE).sum()


def test_a_slide_keeps_its_shape(cohort):
    """600 x 1024 px in a square of 200: white at both sides."""
    shown = cell(draw(cohort), 1)
    assert (shown[1:-1, 1:40] == 255).all()
    assert (shown[1:-1, 160:199] == 255).all()
    assert (shown[:, 45:155] != 255).mean() > 0.9


def test_slides_without_use_are_grey_and_come_last(cohort):
    sheet = draw(cohort)
    grey = [shares(cell(sheet, i), GREY).mean() for i in range(4)]
    assert grey[0] < 0.1
    assert grey[1] < 0.1
    assert 0.7 < grey[2] < 1
    assert 0.7 < grey[3] < 1


def test_the_bytes_do_not_depend_on_threads_or_order(cohort):
    slides, tiles, tiling, files = cohort
    first = draw(cohort)
    shuffled = [table.sample(fraction=1, shuffle=True, seed=1) for table in (slides, tiles, tiling)]
    again = draw_contact_sheet(*shuffled, files, PARAMETERS, ENGINE | {"workers": 3})
    np.testing.assert_array_equal(first, again)


def test_of_a_large_cohort_every_label_is_shown_and_some_without_use(cohort, monkeypatch):
    slides = cohort[0]
    many = pl.concat(
        slides.filter(pl.col("slide_id") == source).with_columns(
            slide_id=pl.lit(f"{source}-{label}-{i:02}"), label=pl.lit(label)
        )
        for source in ("a", "broken")
        for label in "xyz"
        for i in range(10)
    )
    tiling = pl.DataFrame(
        {
            "slide_id": many["slide_id"],
            "reason": ["" if s[0] == "a" else "no" for s in many["slide_id"]],
        }
    )
    seen = []
    monkeypatch.setattr(
        "pathfm_kedro.pipelines.tile.contact_sheet._lay_out",
        lambda cells, header, *rest: seen.extend([header, *cells]) or np.zeros((1, 1, 3), np.uint8),
    )
    _, tiles, _, files = cohort
    parameters = PARAMETERS | {"contact_sheet": {"max_slides": 8, "columns": 4, "cell_pixels": 50}}
    draw_contact_sheet(many, tiles, tiling, files, parameters, ENGINE)
    header, *cells = seen
    assert header.startswith("8 of 60 slides")
    assert [c.title[0] for c in cells] == ["a"] * 6 + ["b"] * 2
    assert {c.title.split("-")[1] for c in cells[:6]} == set("xyz")


def test_a_slide_that_went_away_is_grey_with_its_reason(cohort):
    slides, _, _, files = cohort
    (files.root / "b.tiff").unlink()
    assert shares(cell(draw(cohort), 1), GREY).mean() > 0.7
    assert slides.height == 4


def test_a_cohort_without_slides_of_use_has_a_sheet(cohort):
    slides = cohort[0].filter(pl.col("slide_id") == "broken")
    assert draw(cohort, slides).shape[2] == 3
    assert draw(cohort, slides.clear()).shape[2] == 3


@pytest.mark.parametrize("text", ["", "one", "one two three four", "a" * 50, "ä ö ü 日本 ✓"])
@pytest.mark.parametrize("lines", [1, 2, 5])
def test_wrapped_text_fits(text, lines):
    found = wrapped(text, 12, lines, len)
    assert len(found) <= lines
    assert all(len(line) <= 12 for line in found)
    whole = "".join(found).replace(" ", "")
    stripped = text.replace(" ", "")
    assert whole == stripped or (whole.endswith("…") and stripped.startswith(whole[:-1]))
