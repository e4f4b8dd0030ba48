"""What the configuration says of tissue reaches the tiles and the contact sheet."""

from __future__ import annotations

import pytest
from scipy import ndimage

from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.contact_sheet import draw_contact_sheet
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.tissue import TissueSettings
from tests.conftest import base_parameters, manifest, manifest_row, write_tiff

ENGINE = {"workers": 1, "max_failed_share": 1.0}
BASE = base_parameters()["tile"]
PARAMETERS = BASE | {"pixels": 64, "overview_mpp": 4.0, "max_tiles_per_slide": None}


@pytest.fixture
def cohort(tmp_path, pink_slide):
    """Tissue whose left half is out of focus and that a pen crosses, and a lone speck of 64 px."""
    pixels = pink_slide.copy()
    pixels[256:768, 256:512] = ndimage.gaussian_filter(pixels[256:768, 256:512], (3, 3, 0))
    pixels[384:576, 256:768] = (40, 130, 70)
    pixels[64:128, 64:128] = (205, 120, 175)
    write_tiff(tmp_path / "a.tiff", pixels)
    files = SlideFiles(tmp_path)
    listed = check_manifest(manifest(manifest_row("a")))
    return describe_slides(listed, files, {"mpp_bounds": [0.05, 10]}, ENGINE), files


def cut(cohort, **tissue):
    slides, files = cohort
    parameters = PARAMETERS | {"tissue": BASE["tissue"] | tissue}
    tiles, tiling = cut_tiles(slides, files, parameters, ENGINE)
    sheet = draw_contact_sheet(slides, tiles, tiling, files, parameters, ENGINE)
    return set(tiles.select("x", "y").iter_rows()), tiling, sheet


def test_the_configuration_says_what_the_code_takes_by_default():
    assert TissueSettings.from_parameters(BASE["tissue"]) == TissueSettings()


def test_a_pen_across_the_tissue_gives_no_tiles_unless_it_is_kept(cohort):
    left_out, _, sheet = cut(cohort)
    kept, _, other = cut(cohort, leave_out_pen=False)
    assert left_out < kept
    assert {y for _, y in kept - left_out} >= {384, 448, 512}
    assert {y for _, y in left_out} == {64, 256, 640, 704}
    assert (sheet != other).any()


def test_a_speck_gives_a_tile_only_where_it_is_large_enough(cohort):
    """64 px of half a micrometre: 1024 square micrometres."""
    assert cut(cohort)[0] - cut(cohort, min_speck_um2=1200)[0] == {(64, 64)}


def test_only_sharp_tiles_are_kept_where_that_is_asked(cohort):
    everything, sharp = cut(cohort)[0], cut(cohort, min_sharpness=100)[0]
    assert sharp == {(x, y) for x, y in everything if x >= 512}
    assert cut(cohort, min_sharpness=0)[0] == everything


def test_a_slide_without_a_sharp_tile_says_so(cohort):
    tiles, tiling, _ = cut(cohort, min_sharpness=1e9)
    assert not tiles
    assert "every tile is less sharp than 1e+09: scan the slide again" in tiling["reason"].item()
    assert tiling["tissue_mm2"].item() > 0


def test_a_name_that_is_no_parameter_is_refused(cohort):
    with pytest.raises(ValueError, match=r"tile\.tissue has no parameter min_speck"):
        cut(cohort, min_speck=1)


#: Stains that are as green, blue or red as ink.
STAINS = {
    "Giemsa": (85, 120, 205), "GMS": (110, 180, 150), "trichrome": (70, 100, 190),
    "light green": (120, 190, 130), "nuclear fast red": (205, 20, 30),
}  # fmt: skip


@pytest.mark.parametrize("stain", STAINS.values(), ids=STAINS)
def test_a_stain_that_is_taken_for_pen_is_said_to_be_and_can_be_kept(tmp_path, pink_slide, stain):
    pixels = pink_slide.copy()
    pixels[256:768, 256:768] = stain
    write_tiff(tmp_path / "a.tiff", pixels)
    files = SlideFiles(tmp_path)
    listed = check_manifest(manifest(manifest_row("a")))
    cohort = describe_slides(listed, files, {"mpp_bounds": [0.05, 10]}, ENGINE), files
    tiles, tiling, _ = cut(cohort)
    assert not tiles
    assert tiling["reason"].item().startswith("pen marks were left out, 100% of what is coloured")
    assert "set tile.tissue.leave_out_pen to false" in tiling["reason"].item()
    assert cut(cohort, leave_out_pen=False)[1]["reason"].item() == ""


def test_pen_beside_too_little_tissue_is_not_blamed(tmp_path, pink_slide):
    """Without the pen there is as little tissue as with it."""
    pixels = pink_slide.copy()
    pixels[256:768, 256:768] = 244
    pixels[300:340, 300:340] = (205, 120, 175)
    pixels[700:720, 300:800] = (40, 130, 70)
    write_tiff(tmp_path / "a.tiff", pixels)
    files = SlideFiles(tmp_path)
    listed = check_manifest(manifest(manifest_row("a")))
    tiling = cut((describe_slides(listed, files, {"mpp_bounds": [0.05, 10]}, ENGINE), files))[1]
    assert tiling["reason"].item().startswith("no tile is tissue to 70%")


def test_no_reason_of_a_tiling_names_the_patient_by_the_path(tmp_path, pink_slide):
    path = write_tiff(tmp_path / "MRN17" / "a.tiff", pink_slide)
    files = SlideFiles(tmp_path)
    listed = check_manifest(manifest(manifest_row("a", path="MRN17/a.tiff", patient_id="MRN17")))
    slides = describe_slides(listed, files, {"mpp_bounds": [0.05, 10]}, ENGINE)
    path.unlink()
    reason = cut_tiles(slides, files, PARAMETERS, ENGINE)[1]["reason"].item()
    assert reason.startswith("no file at '<patient_id>/a.tiff'")
