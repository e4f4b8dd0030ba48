"""A slide that cannot be used has its reason, and the slide beside it is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

from pathfm_kedro.datasets import schemas
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from tests.conftest import manifest, manifest_row, write_tiff
from tests.slides.test_members import write_dicom

ENGINE = {"workers": 1, "max_failed_share": 0.5}
INGEST = {"mpp_bounds": [0.05, 10.0], "cramers_v_warning": 0.5}
TILE = {
    "pixels": 64,
    "mpp": 0.5,
    "min_tissue_fraction": 0.7,
    "max_tiles_per_slide": None,
    "overview_mpp": 4.0,
    "mosaic": {"colour_clusters": 9, "share": 0.05},
    "seed": 0,
}
TISSUE = np.array([205, 120, 175], np.uint8)


def tissue(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-20, 20, (height, width, 3))
    return (TISSUE + noise).clip(0, 255).astype(np.uint8)


def cut_short(path: Path, share: float = 0.3) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def truncated_tiff(folder: Path) -> str:
    cut_short(write_tiff(folder / "a.tiff", tissue(512, 512)))
    return "a.tiff"


def truncated_pixels(folder: Path) -> str:
    """The directory of a TIFF stands at its end here, so its pixels are what is lost."""
    path = write_tiff(folder / "a.tiff", tissue(512, 512))
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) * 3 // 4] = b"\0" * (len(content) // 2)
    path.write_bytes(content)
    return "a.tiff"


def text_called_svs(folder: Path) -> str:
    (folder / "a.svs").write_text("this is no slide")
    return "a.svs"


def empty_file(folder: Path) -> str:
    (folder / "a.svs").write_bytes(b"")
    return "a.svs"


def pointer_of_git_lfs(folder: Path) -> str:
    (folder / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return "a.png"


def damaged_png(folder: Path) -> str:
    Image.fromarray(tissue(256, 256)).save(folder / "a.png")
    content = bytearray((folder / "a.png").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "a.png").write_bytes(content)
    return "a.png"


def signed_tiff(folder: Path) -> str:
    tifffile.imwrite(folder / "a.tiff", tissue(256, 256).astype(np.int8), photometric="rgb")
    return "a.tiff"


def truncated_jpeg(folder: Path) -> str:
    Image.fromarray(tissue(256, 256)).save(folder / "a.jpg")
    cut_short(folder / "a.jpg")
    return "a.jpg"


def corrupt_jpeg(folder: Path) -> str:
    Image.fromarray(tissue(256, 256)).save(folder / "a.jpg")
    content = bytearray((folder / "a.jpg").read_bytes())
    content[2:60] = b"\0" * 58
    (folder / "a.jpg").write_bytes(content)
    return "a.jpg"


def png(name: str, image: Image.Image) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        image.save(folder / f"{name}.png")
        return f"{name}.png"

    return write


def folder_for_a_file(folder: Path) -> str:
    (folder / "a.svs").mkdir()
    return "a.svs"


def dangling_link(folder: Path) -> str:
    (folder / "a.svs").symlink_to(folder / "gone.svs")
    return "a.svs"


def circular_link(folder: Path) -> str:
    (folder / "a.svs").symlink_to("a.svs")
    return "a.svs"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "a.svs")
    return "a.svs"


def sixteen_bit_tiff(folder: Path) -> str:
    tifffile.imwrite(folder / "a.tiff", np.zeros((256, 256, 3), np.uint16), photometric="rgb")
    return "a.tiff"


def stack_in_a_tiff(folder: Path) -> str:
    tifffile.imwrite(folder / "a.tiff", np.stack([tissue(256, 256)] * 2), photometric="rgb")
    return "a.tiff"


def animation(folder: Path) -> str:
    frames = [Image.fromarray(tissue(64, 64)[::step]) for step in (1, -1)]
    frames[0].save(folder / "a.webp", save_all=True, append_images=frames[1:])
    return "a.webp"


def two_series(folder: Path) -> str:
    for name in "ab":
        write_dicom(folder / "series" / name, f"1.{len(name)}.{ord(name)}")
    return "series"


GREY = Image.fromarray(tissue(256, 256)[..., 0])
WORDS_OF_INGEST = {
    "missing": (lambda folder: "a.svs", "no file at 'a.svs' below the manifest's folder"),
    "empty_file": (empty_file, "the file is empty: restore it"),
    "truncated_tiff": (truncated_tiff, "cannot be decoded: the file is cut short"),
    "damaged_pixels": (truncated_pixels, "cannot be decoded"),
    "text_called_svs": (text_called_svs, "no reader knows this format"),
    "pointer_of_git_lfs": (pointer_of_git_lfs, "a pointer of Git LFS in place of the file"),
    "truncated_jpeg": (truncated_jpeg, "'a.jpg' cannot be opened: the file is cut short, damaged"),
    "corrupt_jpeg": (corrupt_jpeg, "'a.jpg' cannot be opened: the file is cut short, damaged"),
    "damaged_png": (damaged_png, "the file is cut short, damaged or no image: copy it again"),
    "signed_tiff": (signed_tiff, "the pixels have 8 bits per channel (int8)"),
    "grey_png": (png("grey", GREY), "the pixels are grey"),
    "grey_alpha_png": (png("la", GREY.convert("LA")), "the pixels are grey"),
    "grey_in_rgb_png": (png("rgb", GREY.convert("RGB")), "the pixels are grey"),
    "grey_in_a_palette_png": (png("p", GREY.convert("P")), "the pixels are grey"),
    "two_colours_png": (png("bits", GREY.convert("1")), "the pixels are grey"),
    "sixteen_bit_png": (
        png("deep", Image.fromarray(np.full((256, 256), 9000, np.uint16))),
        "the pixels have more than 8 bits per channel",
    ),
    "sixteen_bit_tiff": (sixteen_bit_tiff, "the pixels have 16 bits per channel"),
    "stack_in_a_tiff": (stack_in_a_tiff, "the file holds 2 planes of one image"),
    "animation": (animation, "the file holds 2 frames of an animation"),
    "two_series": (
        two_series,
        "the folder holds 2 DICOM series: give each slide a folder of its own",
    ),
    "folder_for_a_file": (folder_for_a_file, "a folder without DICOM files (*.dcm)"),
    "dangling_link": (dangling_link, "only a link to nothing at 'a.svs'"),
    "circular_link": (circular_link, "only a link to nothing at 'a.svs'"),
    "pipe": (pipe, "no file at 'a.svs'"),
}


def described(folder: Path, path: str, **changes: str) -> tuple[dict, pl.DataFrame]:
    """The slide at hand and the whole table, in which a good slide must be usable."""
    write_tiff(folder / "good.tiff", tissue(256, 256))
    listed = check_manifest(
        manifest(manifest_row("bad", path=path) | changes, manifest_row("good"))
    )
    table = describe_slides(listed, SlideFiles(folder), INGEST, ENGINE)
    schemas.slides.validate(table)
    bad, good = table.sort("slide_id").to_dicts()
    assert good["status"] == "usable"
    assert str(folder) not in bad["reason"]
    return bad, table


@pytest.mark.parametrize("case", WORDS_OF_INGEST)
def test_a_slide_that_cannot_be_opened_has_its_reason(tmp_path, case):
    make, message = WORDS_OF_INGEST[case]
    row, _ = described(tmp_path, make(tmp_path), mpp="0.5")
    assert row["status"] == "unusable"
    assert message in row["reason"]


WORDS_OF_TILE = {
    "one_pixel": (Image.fromarray(tissue(1, 1)), "0.5", "is larger than the slide"),
    "smaller_than_a_tile": (Image.fromarray(tissue(40, 300)), "0.5", "is larger than the slide"),
    "all_white": (Image.new("RGB", (256, 256), "white"), "0.5", "no tissue was found"),
    "all_pen": (
        Image.new("RGB", (512, 512), (40, 130, 70)),
        "0.5",
        "pen marks were left out, 100% of what is coloured",
    ),
    "all_black": (Image.new("RGB", (256, 256), "black"), "0.5", "no tissue was found"),
    "too_little_tissue": (
        Image.fromarray(
            np.pad(tissue(50, 50), ((40, 166), (40, 166), (0, 0)), constant_values=250)
        ),
        "0.5",
        "no tile is tissue to 70%, the most is",
    ),
    "coarser_than_the_tiles": (
        Image.fromarray(tissue(256, 256)),
        "1.0",
        "coarser than the tiles' 0.5: raise tile.mpp for this cohort or rescan",
    ),
}


@pytest.mark.parametrize("case", WORDS_OF_TILE)
def test_a_slide_without_a_tile_has_its_reason(tmp_path, case):
    image, mpp, message = WORDS_OF_TILE[case]
    image.save(tmp_path / "a.png")
    row, table = described(tmp_path, "a.png", mpp=mpp)
    assert row["status"] == "usable"
    tiles, tiling = cut_tiles(table, SlideFiles(tmp_path), TILE, ENGINE)
    reasons = dict(tiling.select("slide_id", "reason").iter_rows())
    assert message in reasons["bad"]
    assert reasons["good"] == ""
    assert set(tiles["slide_id"]) == {"good"}


OTHER_COLOURS = {
    "rgba": Image.fromarray(np.dstack([tissue(128, 128), np.full((128, 128), 255, np.uint8)])),
    "palette": Image.fromarray(tissue(128, 128)).quantize(64),
    "cmyk": Image.fromarray(tissue(128, 128)).convert("CMYK"),
}


@pytest.mark.parametrize("case", OTHER_COLOURS)
def test_colours_in_other_words_are_the_same_colours(tmp_path, case):
    path = tmp_path / ("a.jpg" if case == "cmyk" else "a.png")
    OTHER_COLOURS[case].save(path)
    row, _ = described(tmp_path, path.name, mpp="0.5")
    assert row["status"] == "usable"
    with SlideFiles(tmp_path).open(path.name) as reader:
        seen = reader.read(0, 0, 0, 128, 128).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(seen, TISSUE, atol=12)


def test_what_is_transparent_is_glass(tmp_path):
    alpha = np.full((128, 128), 255, np.uint8)
    alpha[:64] = 0
    Image.fromarray(np.dstack([tissue(128, 128), alpha])).save(tmp_path / "a.png")
    with SlideFiles(tmp_path).open("a.png") as reader:
        assert (reader.read(0, 0, 0, 128, 64) == 255).all()
        assert (reader.read(0, 64, 0, 128, 64) != 255).any()


def test_a_slide_that_may_not_be_read_says_so_without_its_place(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tiff", tissue(256, 256))
    real = SlideFiles.open.__globals__["open_slide"]

    def denied(path):
        if path.name == "a.tiff":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("pathfm_kedro.slides.files.open_slide", denied)
    row, _ = described(tmp_path, "a.tiff")
    assert row["reason"] == "'a.tiff' cannot be opened: Permission denied"


def test_a_link_out_of_the_folder_is_followed_and_a_path_through_it_may_not_climb(tmp_path):
    """Who owns the folder puts links there, as DVC does; a manifest's own paths may not leave it."""
    outside = tmp_path / "store"
    write_tiff(outside / "a.tiff", tissue(256, 256))
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    (cohort / "linked").symlink_to(outside, target_is_directory=True)
    (cohort / "a.tiff").symlink_to(outside / "a.tiff")
    assert described(cohort, "a.tiff")[0]["status"] == "usable"
    climbing, _ = described(cohort, "linked/../../secret.tiff")
    assert "leads out of the manifest's folder" in climbing["reason"]


def test_a_slide_that_lacks_part_of_a_pixel_for_one_tile_has_that_tile(tmp_path):
    Image.fromarray(tissue(64, 64)).save(tmp_path / "a.png")
    _, table = described(tmp_path, "a.png", mpp="0.4975")
    tiles, _ = cut_tiles(table, SlideFiles(tmp_path), TILE, ENGINE)
    assert tiles.filter(pl.col("slide_id") == "bad").select("x", "y").rows() == [(0, 0)]


def test_an_mpp_that_contradicts_the_file_is_warned_of(tmp_path):
    write_tiff(tmp_path / "a.tiff", tissue(256, 256), mpp=0.5)
    row, _ = described(tmp_path, "a.tiff", mpp="0.25")
    assert row["mpp"] == 0.25
    assert row["warning"] == (
        "the manifest says 0.25 micrometres per pixel and the file 0.5, 100% apart: the manifest's is "
        "used; correct it, or leave 'mpp' empty to take the file's"
    )


@pytest.mark.parametrize("own", [0.51, 352.78], ids=["rounding", "tag_of_72_dots_per_inch"])
def test_an_mpp_that_contradicts_nothing_is_not_warned_of(tmp_path, own):
    write_tiff(tmp_path / "a.tiff", tissue(256, 256), mpp=own)
    row, _ = described(tmp_path, "a.tiff", mpp="0.5")
    assert (row["status"], row["warning"]) == ("usable", "")


def write_stretched(path: Path, across: float, down: float, name: str = "a.tiff") -> str:
    """A tiled TIFF whose pixels are across by down micrometres."""
    tifffile.imwrite(
        path / name,
        tissue(256, 256),
        tile=(64, 64),
        photometric="rgb",
        resolution=(1e4 / across, 1e4 / down),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return name


@pytest.mark.parametrize("given", ["", "0.5"])
def test_pixels_that_are_not_square_are_warned_of(tmp_path, given):
    row, _ = described(tmp_path, write_stretched(tmp_path, 0.5, 0.52), mpp=given)
    assert "the pixels are not square, 0.5 by 0.52 micrometres, 4% apart" in row["warning"]
    assert row["mpp"] == pytest.approx(0.5 if given else 0.51)


def test_pixels_that_are_nearly_square_are_not_warned_of(tmp_path):
    row, _ = described(tmp_path, write_stretched(tmp_path, 0.5, 0.503))
    assert row["warning"] == ""


def test_an_ome_tiff_tells_its_stretched_pixels_too(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.ome.tiff",
        tissue(256, 256),
        photometric="rgb",
        tile=(64, 64),
        metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.4},
    )
    row, _ = described(tmp_path, "a.ome.tiff")
    assert "0.5 by 0.4 micrometres, 25% apart" in row["warning"]


def test_a_whole_slide_full_of_tissue_is_warned_of(tmp_path):
    Image.fromarray(tissue(300, 700)).save(tmp_path / "a.png")
    row, _ = described(tmp_path, "a.png", mpp="2")
    assert row["warning"].startswith("98% or more of the slide counts as tissue, so glass may have")


def test_pixels_that_the_objective_cannot_give_are_warned_of(tmp_path):
    path = tmp_path / "a.ome.tiff"
    told = {"axes": "YXS", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    tifffile.imwrite(path, tissue(256, 256), photometric="rgb", tile=(64, 64), metadata=told)
    with tifffile.TiffFile(path) as file:
        xml = file.ome_metadata
    objective = '<Instrument ID="Instrument:0"><Objective NominalMagnification="40"/></Instrument>'
    tifffile.tiffcomment(path, xml.replace("<Image ", f"{objective}<Image ", 1).encode())
    row, _ = described(tmp_path, path.name)
    assert row["warning"].startswith(
        "1 micrometres per pixel do not fit the objective of 40x that the file names (40x is about "
        "0.25): measure a scale bar or a nucleus, then correct the file's tag PhysicalSizeX"
    )


def test_a_size_of_nothing_is_no_size(tmp_path):
    """Some files write 0 for what they do not know; averaged, it would halve the other direction."""
    path = write_tiff(tmp_path / "a.tiff", tissue(256, 256))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["YResolution"].overwrite((0, 1))
        file.pages[0].tags["XResolution"].overwrite((0, 1))
    row, _ = described(tmp_path, "a.tiff")
    assert "the file does not say how many micrometres a pixel has" in row["reason"]
