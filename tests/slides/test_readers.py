"""Fields of view: where asked, at the resolution asked, never invented."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathfm_kedro.slides.direct_tiff import DirectReader
from pathfm_kedro.slides.fields import TileFields
from pathfm_kedro.slides.files import SlideError, SlideFiles
from pathfm_kedro.slides.mosaic import choose_mosaic
from pathfm_kedro.slides.readers import file_fingerprint, on_white, open_slide, read_field
from pathfm_kedro.slides.tissue import read_overview, tissue_mask
from tests.conftest import write_tiff


@pytest.fixture
def checkered(tmp_path):
    """A plain image whose every pixel tells where it lies."""
    y, x = np.mgrid[:200, :300]
    pixels = np.stack([x % 256, y % 256, (x // 256) * 50], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


@settings(max_examples=30, deadline=None)
@given(x=st.integers(-50, 320), y=st.integers(-50, 220), w=st.integers(1, 80), h=st.integers(1, 80))
def test_a_plain_image_is_read_where_asked_and_white_outside(tmp_path_factory, x, y, w, h):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (200, 300, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(pixels).save(path)
    padded = np.full((400, 600, 3), 255, np.uint8)
    padded[100:300, 100:400] = pixels
    with open_slide(path) as reader:
        got = reader.read(x, y, 0, w, h)
    expected = padded[100 + y : 100 + y + h, 100 + x : 100 + x + w]
    np.testing.assert_array_equal(got[: expected.shape[0], : expected.shape[1]], expected)


def test_a_field_at_native_resolution_is_the_pixels_themselves(checkered):
    path, pixels = checkered
    with open_slide(path) as reader:
        np.testing.assert_array_equal(read_field(reader, 10, 20, 64, 64), pixels[20:84, 10:74])


def test_a_field_is_never_enlarged(checkered):
    with (
        open_slide(checkered[0]) as reader,
        pytest.raises(ValueError, match="fewer than the 128 px wanted"),
    ):
        read_field(reader, 0, 0, 64, 128)


def test_the_coarser_level_is_read_where_it_suffices(tmp_path, pink_slide):
    path = write_tiff(tmp_path / "a.tiff", pink_slide)
    asked = []
    with open_slide(path) as reader:
        read = reader.read
        reader.read = lambda x, y, level, w, h: asked.append(level) or read(x, y, level, w, h)
        field = read_field(reader, 256, 256, 512, 128)
        read_field(reader, 256, 256, 512, 512)
    assert asked == [1, 0]
    np.testing.assert_allclose(field.mean(axis=(0, 1)), [205, 120, 175], atol=3)


def test_a_wider_field_has_the_same_centre(checkered):
    path, pixels = checkered
    fields = TileFields(SlideFiles(path.parent), "a.png", (100,), (60,), 40, 40)
    wide = next(fields.widened(60).batches(1))[0][0]
    np.testing.assert_array_equal(wide[10:50, 10:50], pixels[60:100, 100:140])


def test_batches_cut_nothing_off(checkered):
    path, _ = checkered
    x, y = tuple(range(0, 100, 10)), (0,) * 10
    fields = TileFields(SlideFiles(path.parent), "a.png", x, y, 32, 32)
    whole = next(fields.batches(10))[0]
    parts = np.concatenate([tiles for tiles, _ in fields.batches(3)])
    np.testing.assert_array_equal(whole, parts)


def test_the_digest_knows_every_position(checkered):
    files = SlideFiles(checkered[0].parent)
    a = TileFields(files, "a.png", (1, 2), (3, 4), 32.0, 32)
    b = TileFields(files, "a.png", (1, 2), (3, 5), 32.0, 32)
    assert a.digest() != b.digest()


def test_a_fingerprint_changes_in_the_middle_of_a_large_file(tmp_path):
    path = tmp_path / "large"
    content = bytearray(8 << 20)
    path.write_bytes(content)
    before = file_fingerprint(path)
    content[len(content) // 2 + 100] = 1
    path.write_bytes(content)
    assert file_fingerprint(path) != before


@settings(deadline=None)
@given(st.text())
def test_no_path_of_a_manifest_leads_out(text):
    root = SlideFiles(__import__("pathlib").Path(__file__).parent)
    try:
        found = root.resolve(text)
    except (SlideError, OSError, ValueError):
        return
    assert found.resolve().is_relative_to(root.root.resolve())


def test_a_slide_full_of_tissue_is_not_split():
    generator = np.random.default_rng(0)
    full = (np.array([200, 110, 170]) + generator.normal(0, 15, (128, 128, 3))).clip(0, 255)
    assert tissue_mask(full.astype(np.uint8)).mean() > 0.95


def test_glass_is_not_tissue():
    generator = np.random.default_rng(0)
    glass = (np.array([243, 242, 244]) + generator.normal(0, 1.5, (128, 128, 3))).clip(0, 255)
    assert tissue_mask(glass.astype(np.uint8)).mean() < 0.01


def test_an_overview_in_bands_equals_one_in_one_piece(tmp_path, pink_slide, monkeypatch):
    path = write_tiff(tmp_path / "a.tiff", pink_slide)
    with open_slide(path) as reader:
        whole = read_overview(reader, 0.5, 8.0).image
        monkeypatch.setattr("pathfm_kedro.slides.tissue._BAND_PIXELS", 20_000)
        bands = read_overview(reader, 0.5, 8.0).image
    assert whole.shape == (64, 64, 3)
    assert np.abs(whole.astype(int) - bands.astype(int)).max() <= 1


@given(st.integers(1, 60), st.integers(1, 6), st.floats(0.01, 1.0), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_mosaic_takes_its_share_of_every_cluster(n, k, share, seed):
    generator = np.random.default_rng(seed)
    clusters = generator.integers(0, k, n)
    chosen = choose_mosaic(clusters, generator.integers(0, 99, (n, 2)), share, seed)
    for cluster in np.unique(clusters):
        size = int((clusters == cluster).sum())
        assert chosen[clusters == cluster].sum() == min(size, max(1, round(share * size)))


def smooth(height, width):
    """A picture without whole-tile symmetries, smooth so that JPEG has little to do."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / a) * np.cos(y / b) for a, b in ((17, 29), (23, 41), (31, 13))]
    return np.stack(waves, axis=2).astype(np.uint8)


def seen_by_openslide(path, x, y, level, width, height):
    import openslide

    with openslide.OpenSlide(path) as slide:
        return on_white(np.asarray(slide.read_region((x, y), level, (width, height))))


def damage(path, tile, change):
    """Change the stored bytes of one tile of level 0."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = change(bytes(content[offset : offset + count]))
    path.write_bytes(content)


@pytest.fixture(scope="module")
def jpeg_tiff(tmp_path_factory):
    return write_tiff(tmp_path_factory.mktemp("direct") / "a.tiff", smooth(700, 901))


@settings(max_examples=40, deadline=None)
@given(
    x=st.integers(-300, 1000),
    y=st.integers(-300, 800),
    w=st.integers(1, 400),
    h=st.integers(1, 400),
)
def test_tiles_decoded_directly_are_what_openslide_sees(jpeg_tiff, x, y, w, h):
    with open_slide(jpeg_tiff) as reader:
        assert isinstance(reader, DirectReader)
        got = reader.read(x, y, 0, w, h)
    np.testing.assert_array_equal(got, seen_by_openslide(jpeg_tiff, x, y, 0, w, h))


def test_a_level_of_a_broken_factor_is_read_from_the_nearest_whole_pixel(jpeg_tiff):
    """OpenSlide would blend neighbouring pixels by how far the corner lies from a whole one."""
    whole = seen_by_openslide(jpeg_tiff, 0, 0, 1, 451, 350)
    with open_slide(jpeg_tiff) as reader:
        factor = reader.description.downsamples[1]
        assert factor != round(factor)
        got = reader.read(601, 301, 1, 100, 100)
    x, y = round(601 / factor), round(301 / factor)
    np.testing.assert_array_equal(got, whole[y : y + 100, x : x + 100])


def test_the_description_is_openslides(jpeg_tiff):
    import openslide

    with open_slide(jpeg_tiff) as reader, openslide.OpenSlide(jpeg_tiff) as slide:
        assert reader.description.vendor == "generic-tiff"
        assert reader.description.downsamples == slide.level_downsamples
        assert reader.description.mpp == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda tile: tile[: len(tile) // 2] + bytes(len(tile) - len(tile) // 2),
        lambda tile: tile[: len(tile) // 2] + bytes(len(tile) - len(tile) // 2 - 2) + b"\xff\xd9",
        lambda tile: bytes(20) + tile[20:],
        lambda tile: tile[: len(tile) // 2] + b"\xff\xd9" + tile[len(tile) // 2 + 2 :],
    ],
    ids=["second half zero", "zero but for the end", "first bytes zero", "ends in the middle"],
)
def test_a_damaged_tile_is_refused_and_the_others_are_read(tmp_path, change):
    path = write_tiff(tmp_path / "a.tiff", smooth(700, 901))
    before = seen_by_openslide(path, 0, 0, 0, 256, 256)
    damage(path, 5, change)
    with open_slide(path) as reader:
        assert isinstance(reader, DirectReader)
        with pytest.raises(ValueError, match="x=300, y=300 cannot be decoded"):
            reader.read(300, 300, 0, 64, 64)
        np.testing.assert_array_equal(reader.read(0, 0, 0, 256, 256), before)


def test_a_tile_of_the_grey_that_damage_leaves_is_read_all_the_same(tmp_path):
    pixels = smooth(700, 901)
    pixels[256:512, 256:512] = 128
    path = write_tiff(tmp_path / "a.tiff", pixels)
    with open_slide(path) as reader:
        assert isinstance(reader, DirectReader)
        got = reader.read(200, 200, 0, 400, 400)
    np.testing.assert_array_equal(got, seen_by_openslide(path, 200, 200, 0, 400, 400))
    assert (got[60:300, 60:300] == 128).all()


def test_a_file_with_a_hole_is_left_to_openslide(tmp_path):
    path = tmp_path / "a.tiff"
    pixels = smooth(512, 512)
    tiles = [pixels[:256, :256], None, pixels[256:, :256], pixels[256:, 256:]]
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter(tiles),
            shape=pixels.shape,
            dtype=np.uint8,
            tile=(256, 256),
            compression="jpeg",
            photometric="rgb",
            metadata=None,
        )
    with tifffile.TiffFile(path) as file:
        assert 0 in file.pages.first.databytecounts
    with open_slide(path) as reader:
        assert not isinstance(reader, DirectReader)
        got = reader.read(0, 0, 0, 512, 512)
    np.testing.assert_array_equal(got, seen_by_openslide(path, 0, 0, 0, 512, 512))
    assert (got[:256, 256:] == 255).all()


def test_other_compressions_are_left_to_openslide(tmp_path):
    pixels = smooth(512, 512)
    tifffile.imwrite(
        tmp_path / "a.tiff", pixels, tile=(256, 256), compression="deflate", photometric="rgb"
    )
    with open_slide(tmp_path / "a.tiff") as reader:
        assert not isinstance(reader, DirectReader)
        np.testing.assert_array_equal(reader.read(0, 0, 0, 512, 512), pixels)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_every_pixel_of_every_level_of_a_real_slide_is_openslides(real_data, name):
    import openslide

    path = real_data / "slides" / name
    with open_slide(path) as reader, openslide.OpenSlide(path) as slide:
        assert isinstance(reader, DirectReader)
        for level, (width, height) in enumerate(slide.level_dimensions):
            expected = np.asarray(slide.read_region((0, 0), level, (width, height)).convert("RGB"))
            np.testing.assert_array_equal(reader.read(0, 0, level, width, height), expected)


@pytest.mark.parametrize("shift", [1, 16, 257])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_of_16_bits_is_refused(tmp_path, shift, channels):
    import imagecodecs

    pixels = np.full((40, 40, channels), 200, np.uint16) * shift
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    with pytest.raises(SlideError, match=r"more than 8 bits per channel .* export it with 8 bits"):
        SlideFiles(tmp_path).open("a.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("name", ["a.tif", "a.svs", "a.png"])
def test_a_plain_image_is_known_by_its_content(tmp_path, kind, name):
    path, pixels = tmp_path / name, smooth(60, 90)
    Image.fromarray(pixels).save(path, kind, lossless=True)
    with open_slide(path) as reader:
        assert reader.description.vendor == "image"
        got = reader.read(0, 0, 0, 90, 60)
    assert np.abs(got.astype(int) - np.asarray(Image.open(path))).max() == 0


def test_a_tiff_called_png_is_read_as_tiff(tmp_path):
    pixels = smooth(600, 700)
    path = write_tiff(tmp_path / "a.png", pixels)
    with open_slide(path) as reader:
        assert isinstance(reader, DirectReader)
        assert reader.description.mpp is not None
    planes = np.stack([pixels, pixels[::-1]])
    tifffile.imwrite(tmp_path / "b.png", planes, photometric="rgb")
    with pytest.raises(SlideError, match="2 planes of one image"):
        SlideFiles(tmp_path).open("b.png")


def test_an_aperio_file_of_other_pixels_is_refused(tmp_path):
    """OpenSlide would show 16 bits as white, and one channel as grey tissue."""
    words = "Aperio Image Library v12.0.0\n700x600 [0,0 700x600] (256x256)|AppMag = 20|MPP = 0.5"
    deep, grey = smooth(600, 700).astype(np.uint16) * 257, smooth(600, 700)[..., 0]
    for name, pixels, kind in (("deep.svs", deep, "rgb"), ("grey.svs", grey, "minisblack")):
        tifffile.imwrite(
            tmp_path / name,
            pixels,
            photometric=kind,
            tile=(256, 256),
            description=words,
            metadata=None,
        )
        with pytest.raises(SlideError, match="only brightfield slides of 8-bit RGB"):
            SlideFiles(tmp_path).open(name)


def test_an_animation_is_refused(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("pink", "purple")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(SlideError, match="2 frames of an animation"):
        SlideFiles(tmp_path).open("a.webp")


def test_of_a_palette_tiff_of_several_images_the_largest_is_read(tmp_path):
    images = [Image.fromarray(smooth(n, n)).quantize(8) for n in (20, 90, 40)]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
    with open_slide(tmp_path / "a.tif") as reader:
        assert (reader.description.width, reader.description.height) == (90, 90)
        got = reader.read(0, 0, 0, 90, 90)
    np.testing.assert_array_equal(got, np.asarray(images[1].convert("RGB")))


@pytest.mark.parametrize("times", [1.5, 2.5])
def test_the_limit_of_plain_images_is_the_documented_one(tmp_path, monkeypatch, times):
    """Pillow warns from its own limit on and refuses from twice that on."""
    pixels = smooth(100, 200)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(pixels.size / 3 / times))
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_slide(tmp_path / "a.png") as reader:
            np.testing.assert_array_equal(reader.read(0, 0, 0, 200, 100), pixels)
        monkeypatch.setattr("pathfm_kedro.slides.readers.MAX_PLAIN_PIXELS", 19_999)
        with pytest.raises(
            SlideError, match="200 x 100 px is too large to hold in memory: convert"
        ):
            SlideFiles(tmp_path).open("a.png")
    assert limit == Image.MAX_IMAGE_PIXELS
