"""TIFFs that OpenSlide does not know: the pixels that tifffile reads whole, where asked."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathfm_kedro.slides import ome_tiff, ome_xml
from pathfm_kedro.slides.files import SlideError, SlideFiles
from pathfm_kedro.slides.ome_tiff import TiffReader, is_ome_tiff
from pathfm_kedro.slides.ome_xml import ome_mpp
from pathfm_kedro.slides.readers import open_slide, read_field
from pathfm_kedro.slides.tissue import read_overview
from tests.conftest import write_tiff

HEIGHT, WIDTH = 311, 437
#: How a file is cut and compressed, and whether its colours lie in planes of their own.
KINDS = {
    "tiles": {"tile": (64, 96)},
    "jpeg": {"tile": (64, 96), "compression": "jpeg"},
    "webp": {"tile": (64, 96), "compression": "webp"},
    "planes": {"tile": (64, 96), "planarconfig": "separate"},
    "planes_zstd": {"tile": (64, 96), "planarconfig": "separate", "compression": "zstd"},
    "strips": {"rowsperstrip": 50},
    "strip": {"rowsperstrip": HEIGHT, "compression": "deflate", "predictor": True},
    "strips_planes": {"rowsperstrip": 7, "planarconfig": "separate"},
}


def drawn(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 250, (height, width, 3), dtype=np.uint8)


def write_ome(path, pixels, levels=3, size=(0.25, "µm"), metadata=None, **options):
    """An OME-TIFF with its pyramid in SubIFDs, as Bio-Formats and QuPath write it."""
    separate = options.get("planarconfig") == "separate"
    told = {
        "axes": "CYX" if separate else "YXS",
        "PhysicalSizeX": size[0],
        "PhysicalSizeXUnit": size[1],
        "PhysicalSizeY": size[0],
        "PhysicalSizeYUnit": size[1],
    }
    with tifffile.TiffWriter(path, ome=True) as file:
        for level in range(levels):
            part = pixels[:: 2**level, :: 2**level]
            part = np.ascontiguousarray(part.transpose(2, 0, 1) if separate else part)
            place = {"subifds": levels - 1, "metadata": told} if level == 0 else {"subfiletype": 1}
            file.write(part, photometric="rgb", **place, **options)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ome")
    return {
        kind: write_ome(folder / f"{kind}.ome.tif", drawn(), **options)
        for kind, options in KINDS.items()
    }


def whole(path, level):
    """The level as tifffile reads it in one piece: [height, width, 3]."""
    with tifffile.TiffFile(path) as file:
        pixels = file.series[0].levels[level].asarray()
    return pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    x=st.integers(-90, WIDTH + 40),
    y=st.integers(-90, HEIGHT + 40),
    w=st.integers(1, 200),
    h=st.integers(1, 200),
    level=st.integers(0, 2),
)
def test_a_region_is_the_crop_of_the_whole_and_white_outside(files, kind, x, y, w, h, level):
    expected = whole(files[kind], level)
    padded = np.pad(expected, ((700, 700), (700, 700), (0, 0)), constant_values=255)
    with open_slide(files[kind]) as reader:
        factor = reader.description.downsamples[level]
        got = reader.read(x, y, level, w, h)
    left, top = round(x / factor) + 700, round(y / factor) + 700
    np.testing.assert_array_equal(got, padded[top : top + h, left : left + w])


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_says_its_pyramid_and_size(files, kind):
    with open_slide(files[kind]) as reader:
        described = reader.description
    assert described.vendor == "ome-tiff"
    assert (described.width, described.height, described.mpp) == (WIDTH, HEIGHT, 0.25)
    np.testing.assert_allclose(described.downsamples, (1, 2, 4), rtol=0.02)
    assert is_ome_tiff(files[kind])


def test_only_the_tiles_touched_are_decoded(files, monkeypatch):
    asked = []
    decode = TiffReader._decode
    monkeypatch.setattr(
        TiffReader, "_decode", lambda self, page, i: asked.append(i) or decode(self, page, i)
    )
    with open_slide(files["tiles"]) as reader:
        asked.clear()
        reader.read(100, 70, 0, 90, 50)
        reader.read(110, 75, 0, 20, 20)
    # Five tiles of 96 px across, so the second row begins with 5; the second read finds 6 decoded.
    assert asked == [6]


def test_few_tiles_are_kept_and_the_pixels_do_not_depend_on_it(files, monkeypatch):
    monkeypatch.setattr(ome_tiff, "_CACHE_BYTES", 40_000)
    with open_slide(files["planes"]) as reader:
        pixels = reader.read(0, 0, 0, WIDTH, HEIGHT)
        assert sum(kept.nbytes for kept in reader._decoded.values()) <= 40_000
    np.testing.assert_array_equal(pixels, drawn())


def test_threads_may_share_a_reader(files):
    pixels = whole(files["jpeg"], 0)
    corners = [(x, y) for x in range(0, 390, 13) for y in range(0, 260, 17)]
    with open_slide(files["jpeg"]) as reader, ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda at: reader.read(*at, 0, 40, 40), corners))
    assert all(
        (got == pixels[y : y + 40, x : x + 40]).all()
        for got, (x, y) in zip(read, corners, strict=True)
    )


def test_fields_and_overviews_come_from_the_pyramid(files):
    with open_slide(files["tiles"]) as reader:
        field = read_field(reader, 40, 40, 128, 64)
        overview = read_overview(reader, 0.25, 1.0)
    np.testing.assert_array_equal(field, drawn()[40:168:2, 40:168:2])
    assert overview.image.shape == (HEIGHT // 4, WIDTH // 4, 3)


@pytest.mark.parametrize(
    ("size", "mpp"),
    [
        ((0.25, "µm"), 0.25),
        ((250, "nm"), 0.25),
        ((0.0005, "mm"), 0.5),
        ((1 / 50800, "in"), 0.5),
        ((2.0, "pixel"), None),
        ((2.0, "reference frame"), None),
    ],
)
def test_physical_sizes_are_brought_to_micrometres(tmp_path, size, mpp):
    path = write_ome(tmp_path / "a.ome.tif", drawn(), size=size, levels=1, tile=(64, 96))
    with open_slide(path) as reader:
        assert reader.description.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-6))


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "much"])
def test_a_size_that_is_none_is_not_given(value):
    assert ome_mpp(f'<OME><Pixels SizeX="9" PhysicalSizeX="{value}"/></OME>', 9) is None


def test_the_image_that_is_as_wide_as_the_slide_gives_its_size():
    images = "".join(f'<Pixels SizeX="{n}" PhysicalSizeX="{n}"/>' for n in (5, 7, 9))
    assert ome_mpp(f'<OME xmlns="http://x">{images}</OME>', 7) == 7


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]><OME>&a;</OME>', "declares a document type"),
        ("<OME>" + " " * ome_xml.MAX_OME_XML + "</OME>", "more than 10,000,000 characters"),
        ("<OME><Pixels></OME>", "OME-XML is damaged"),
    ],
)
def test_hostile_xml_is_refused(xml, reason):
    with pytest.raises(ValueError, match=reason):
        ome_mpp(xml, 9)


def test_hostile_xml_in_a_file_reaches_no_parser(tmp_path, monkeypatch):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><OME>&a;</OME>'
    tifffile.imwrite(
        tmp_path / "a.tif",
        drawn(),
        tile=(64, 96),
        photometric="rgb",
        description=bomb,
        metadata=None,
    )
    monkeypatch.setattr("xml.etree.ElementTree.fromstring", lambda text: pytest.fail("parsed"))
    with pytest.raises(SlideError, match="declares a document type"):
        SlideFiles(tmp_path).open("a.tif")


def test_no_companion_file_is_followed(tmp_path):
    """A file's XML must not make the reader open another file."""
    path = write_ome(tmp_path / "a.ome.tif", drawn(), levels=1, tile=(64, 96))
    with tifffile.TiffFile(path) as file:
        xml = file.ome_metadata
    elsewhere = xml.replace(
        "<TiffData",
        '<TiffData><UUID FileName="../b.ome.tif">urn:uuid:1</UUID></TiffData><TiffData',
        1,
    )
    tifffile.tiffcomment(path, elsewhere.encode())
    write_ome(tmp_path.parent / "b.ome.tif", drawn()[::-1], levels=1, tile=(64, 96))
    with open_slide(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 0, WIDTH, HEIGHT), drawn())


def _write(path, pixels, **options):
    tifffile.imwrite(path, pixels, metadata=None, **options)


@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (drawn().astype(np.uint16), {"photometric": "rgb"}, "16 bits per channel"),
        (drawn()[..., 0], {"photometric": "minisblack"}, "no RGB colours"),
        (
            drawn()[..., 0].astype(np.uint16),
            {"photometric": "minisblack", "tile": (64, 96), "ome": True},
            "no RGB colours, so this is fluorescence",
        ),
        (
            np.stack([drawn()[..., 0]] * 3),
            {"photometric": "minisblack", "tile": (64, 96), "ome": True},
            "3 planes of one image",
        ),
        (np.stack([drawn()] * 2), {"photometric": "rgb", "ome": True}, "2 planes of one image"),
    ],
)
def test_other_pixels_than_rgb_are_refused_by_name(tmp_path, pixels, options, reason):
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(SlideError, match=reason):
        SlideFiles(tmp_path).open("a.tif")


def test_a_tiff_in_strips_without_ome_is_read_with_its_resolution(tmp_path):
    _write(
        tmp_path / "a.tif", drawn(), photometric="rgb", rowsperstrip=16,
        resolution=(20000, 20000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    with open_slide(tmp_path / "a.tif") as reader:
        assert (reader.description.vendor, reader.description.mpp) == ("tiff", 0.5)
        np.testing.assert_array_equal(reader.read(9, 8, 0, 50, 40), drawn()[8:48, 9:59])


def test_a_palette_image_is_read_whole(tmp_path):
    image = Image.fromarray(drawn()).quantize(16)
    image.save(tmp_path / "a.tif")
    with open_slide(tmp_path / "a.tif") as reader:
        assert reader.description.vendor == "image"
        got = reader.read(0, 0, 0, WIDTH, HEIGHT)
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_a_palette_image_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    Image.fromarray(drawn()).quantize(16).save(tmp_path / "a.tif")
    monkeypatch.setattr("pathfm_kedro.slides.readers.MAX_PLAIN_PIXELS", 1000)
    with pytest.raises(SlideError, match="too large to hold in memory"):
        SlideFiles(tmp_path).open("a.tif")


def test_a_strip_too_large_for_memory_is_refused(files, monkeypatch):
    monkeypatch.setattr(ome_tiff, "MAX_SEGMENT_PIXELS", HEIGHT * WIDTH - 1)
    monkeypatch.setattr("pathfm_kedro.slides.readers.MAX_PLAIN_PIXELS", 1000)
    with pytest.raises(ValueError, match=f"strips or tiles of {WIDTH} x {HEIGHT} px"):
        open_slide(files["strip"])


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_what_was_not_scanned_is_white(tmp_path, alpha):
    pixels = np.dstack([drawn(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    pixels[:100] = 0
    _write(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[alpha], rowsperstrip=16)
    with TiffReader(tmp_path / "a.tif") as reader:
        got = reader.read(0, 0, 0, WIDTH, HEIGHT)
    assert (got[:100] == 255).all()
    np.testing.assert_array_equal(got[100:], drawn()[100:])


def test_a_tile_that_was_never_written_is_white(tmp_path):
    def tiles():
        for i in range(25):
            yield None if i == 6 else np.full((64, 96, 3), 40, np.uint8)

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(
            tiles(), shape=(HEIGHT, WIDTH, 3), dtype=np.uint8, tile=(64, 96), photometric="rgb",
            compression="deflate", metadata=None,
        )  # fmt: skip
    with TiffReader(tmp_path / "a.tif") as reader:
        got = reader.read(0, 0, 0, WIDTH, HEIGHT)
    hole = np.zeros((HEIGHT, WIDTH), bool)
    hole[64:128, 96:192] = True
    assert (got[hole] == 255).all()
    assert (got[~hole] == 40).all()


@pytest.mark.parametrize("kind", ["jpeg", "strips", "planes"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_damage_gives_no_error_without_a_reason(files, tmp_path_factory, kind, seed):
    generator = np.random.default_rng(seed)
    content = bytearray(files[kind].read_bytes())
    for at in generator.integers(4, 2500, 6):
        content[at] = generator.integers(0, 256)
    path = tmp_path_factory.mktemp("damaged") / "a.tif"
    path.write_bytes(content[: generator.integers(1000, len(content))])
    with contextlib.suppress(ValueError, OSError), TiffReader(path) as reader:
        reader.read(0, 0, 0, 200, 200)


SCALE = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
TILED = {"tile": (64, 96), "compression": "deflate"}


def write_images(path, *images, ome=False):
    """Several images in one TIFF: pixels and the options of each."""
    with tifffile.TiffWriter(path, ome=ome) as file:
        for pixels, options in images:
            colours = "rgb" if pixels.ndim == 3 else "minisblack"
            file.write(pixels, photometric=colours, **({} if ome else {"metadata": None}) | options)
    return path


def image_of_ome(name, mpp=None, **options):
    size = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    return options | {"metadata": {"axes": "YXS", "Name": name, **size}}


def small(height, width):
    return np.ascontiguousarray(drawn()[:height, :width][::-1])


BESIDE = {
    "macro": (small(60, 120), image_of_ome("macro", 16.4)),
    "macro_without_a_size": (small(60, 120), image_of_ome("macro image")),
    "label": (small(70, 70), image_of_ome("Label")),
    "label_larger_than_the_slide": (drawn(900, 800), image_of_ome("label_image", 9.0, **TILED)),
    "tiled_thumbnail": (small(128, 192), image_of_ome("", 2.0, **TILED)),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("beside", BESIDE)
def test_of_several_images_of_an_ome_tiff_the_slide_is_read(tmp_path, beside, first):
    images = [BESIDE[beside], (drawn(), image_of_ome("full", 0.25, **TILED))]
    path = write_images(tmp_path / "a.ome.tif", *(images if first else images[::-1]), ome=True)
    with open_slide(path) as reader:
        described = reader.description
        assert (described.width, described.height, described.mpp) == (WIDTH, HEIGHT, 0.25)
        np.testing.assert_array_equal(reader.read(0, 0, 0, WIDTH, HEIGHT), drawn())


def test_two_slides_in_one_file_are_refused(tmp_path):
    images = [(drawn()[::step], image_of_ome(f"scan {step}", 0.25, **TILED)) for step in (1, -1)]
    path = write_images(tmp_path / "a.ome.tif", *images, ome=True)
    with pytest.raises(ValueError, match=r"2 images of .* px \(scan 1, scan -1\), any of which"):
        open_slide(path)


PLAIN_BESIDE = {
    "thumbnail_in_strips": (small(60, 120), {}),
    "thumbnail_in_tiles": (small(128, 192), TILED),
    "grey_mask": (small(128, 192)[..., 0], TILED),
    "deep_thumbnail": (small(60, 120).astype(np.uint16), {}),
}


@pytest.mark.parametrize("slide", [TILED, {"rowsperstrip": 16}], ids=["tiles", "strips"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("beside", PLAIN_BESIDE)
def test_of_several_images_of_a_tiff_the_largest_in_colour_is_read(tmp_path, beside, first, slide):
    images = [PLAIN_BESIDE[beside], (drawn(), SCALE | slide)]
    path = write_images(tmp_path / "a.tif", *(images if first else images[::-1]))
    with open_slide(path) as reader:
        described = reader.description
        assert (described.width, described.height, described.mpp) == (WIDTH, HEIGHT, 0.5)
        np.testing.assert_array_equal(reader.read(0, 0, 0, WIDTH, HEIGHT), drawn())


def test_a_pyramid_with_its_smallest_level_first_is_read_from_its_largest(tmp_path):
    reduced = {"subfiletype": 1} | TILED
    levels = [(np.ascontiguousarray(drawn()[::f, ::f]), reduced) for f in (6, 3)]
    path = write_images(tmp_path / "a.tif", *levels, (drawn(), SCALE | TILED))
    with open_slide(path) as reader:
        np.testing.assert_allclose(reader.description.downsamples, (1, 3, 6), rtol=0.02)
        np.testing.assert_array_equal(reader.read(0, 0, 0, WIDTH, HEIGHT), drawn())
        np.testing.assert_array_equal(reader.read(0, 0, 1, 50, 40), drawn()[::3, ::3][:40, :50])


def test_a_reduced_image_of_another_shape_is_no_level(tmp_path):
    macro = (small(100, 99), {"subfiletype": 1} | TILED)
    path = write_images(tmp_path / "a.tif", macro, (drawn(), SCALE | TILED))
    with open_slide(path) as reader:
        assert reader.description.downsamples == (1.0,)


@pytest.mark.parametrize(
    ("large", "reason"),
    [
        (drawn(900, 1000)[..., 0], "no RGB colours"),
        (drawn(900, 1000).astype(np.uint16), "16 bits per channel"),
    ],
)
@pytest.mark.parametrize("tiled", [TILED, {}], ids=["tiles", "strips"])
def test_the_macro_image_of_a_slide_of_other_pixels_is_no_slide(tmp_path, large, reason, tiled):
    path = write_images(tmp_path / "a.tif", (small(128, 192), tiled), (large, tiled))
    with pytest.raises(SlideError, match=reason):
        SlideFiles(tmp_path).open(path.name)


def test_of_several_images_without_a_size_of_its_own_none_is_guessed():
    images = "".join(f'<Pixels SizeX="{n}" PhysicalSizeX="{n}"/>' for n in (5, 7))
    assert ome_mpp(f"<OME>{images}</OME>", 9) is None
    assert ome_mpp('<OME><Pixels SizeX="5" PhysicalSizeX="5"/></OME>', 9) == 5
    alike = "".join(f'<Pixels SizeX="9" SizeY="{n}" PhysicalSizeX="{n}"/>' for n in (5, 7))
    assert ome_mpp(f"<OME>{alike}</OME>", 9, 7) == 7


#: What a viewer shows of stored pixels, by the tag's number (TIFF 6.0, page 36).
TURNED = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("kind", ["tiles", "strips", "jpeg_tiles", "exif"])
@pytest.mark.parametrize("orientation", TURNED)
def test_a_slide_is_reoriented_as_its_tag_says(tmp_path, orientation, kind):
    if kind == "exif":
        tag = Image.Exif()
        tag[274] = orientation
        path = tmp_path / "a.png"
        Image.fromarray(drawn()).save(path, exif=tag)
    else:
        cut = {
            "tiles": TILED, "strips": {"rowsperstrip": 16},
            "jpeg_tiles": {"tile": (64, 96), "compression": "jpeg"},
        }[kind]  # fmt: skip
        path = tmp_path / "a.tif"
        tag = [(274, "H", 1, orientation, True)]
        _write(path, drawn(), photometric="rgb", extratags=tag, **cut)
    stored = whole(path, 0) if kind == "jpeg_tiles" else drawn()
    expected = TURNED[orientation](stored)
    with open_slide(path) as reader:
        described = reader.description
        assert (described.height, described.width) == expected.shape[:2]
        got = reader.read(0, 0, 0, described.width, described.height)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(reader.read(31, 17, 0, 120, 90), expected[17:107, 31:151])
        assert (reader.read(-9, -7, 0, 9, 7) == 255).all()


@pytest.mark.parametrize("cut", [TILED, {"rowsperstrip": 16}], ids=["tiles", "strips"])
@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (drawn()[..., 0], "scan or export it in colour"),
        (drawn()[..., 0].astype(np.uint16), "scan or export it in colour"),
        (drawn().astype(np.uint16) * 16, "16 bits per channel.*export it with 8 bits"),
        (drawn().astype(np.uint16) * 257, "16 bits per channel.*export it with 8 bits"),
        (drawn().astype(np.float32), "32 bits per channel.*export it with 8 bits"),
    ],
    ids=["grey", "deep grey", "12 of 16 bits", "16 bits", "float"],
)
def test_grey_and_deep_pixels_are_refused_however_they_are_cut(tmp_path, pixels, reason, cut):
    write_images(tmp_path / "a.tif", (pixels, cut))
    with pytest.raises(SlideError, match=reason):
        SlideFiles(tmp_path).open("a.tif")


def test_a_plain_pyramid_is_still_read_as_openslide_reads_it(tmp_path):
    with open_slide(write_tiff(tmp_path / "a.tiff", drawn())) as reader:
        assert reader.description.vendor == "generic-tiff"
        assert len(reader.description.downsamples) == 2
