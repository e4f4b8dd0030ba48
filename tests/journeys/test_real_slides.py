"""Real files of real scanners: what opens gives tissue, what does not keeps its reason."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.slides.fields import TileFields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import open_slide, read_field
from tests.journeys.conftest import fresh_clone, kedro, newest, read_table, write_parameters

pytestmark = [pytest.mark.real_data, pytest.mark.journey]

FIXTURES = "slides/openslide-python-fixtures"
#: Slide, path, micrometres per pixel given in the manifest.
SCANS = [
    ("cmu_svs", "slides/CMU-1-Small-Region.svs", ""),
    ("cmu_dicom", "slides/cmu-1-small-region-dicom", ""),
    ("tcga", "slides/TCGA-CR-7395-01A-01-TS1.svs", ""),
    ("tcga_given", "slides/TCGA-CR-7395-01A-01-TS1.svs", "0.5"),
    ("fluorescence", "slides/test3-TRITC-2-560.ndpi", ""),
    ("boxes", f"{FIXTURES}/boxes.tiff", ""),
    ("tiny_dicom", f"{FIXTURES}/boxes_0.dcm", ""),
    ("tiny_svs", f"{FIXTURES}/small.svs", ""),
    ("unopenable", f"{FIXTURES}/unopenable.tiff", ""),
    ("unreadable", f"{FIXTURES}/unreadable.svs", ""),
    ("missing", "slides/no-such-slide.svs", ""),
    ("outside", "../index.csv", ""),
]
#: Why a slide gives no tiles, and at which step it was found out.
UNUSABLE = {
    "tcga": "how many micrometres a pixel has: give 'mpp' in the manifest",
    "boxes": "352.778 micrometres per pixel is not credible",
    "unopenable": "cannot be opened: Unsupported TIFF compression",
    "unreadable": "cannot be decoded",
    "missing": "no file at 'slides/no-such-slide.svs'",
    "outside": "leads out of the manifest's folder",
}
WITHOUT_TILES = {
    "fluorescence": "tissue",
    "tiny_dicom": "larger than the slide: lower tile.pixels",
    "tiny_svs": "larger than the slide: lower tile.pixels",
}
TILED = {"cmu_svs", "cmu_dicom", "tcga_given"}
MAX_TILES = 24
ENCODERS = {"efficientnet_lite0": 1280, "stain_statistics": 12, "noise": 64}


@pytest.fixture(scope="module")
def scans(real_data, tmp_path_factory):
    """A clone with the cohort of all real files, run up to the vectors."""
    folder = tmp_path_factory.mktemp("clinic")
    (folder / "slides").symlink_to(real_data / "slides", target_is_directory=True)
    rows = [
        {
            "slide_id": name,
            "path": path,
            "patient_id": name,
            "center": "c",
            "label": "l",
            "mpp": mpp,
        }
        for name, path, mpp in SCANS
    ]
    pl.DataFrame(rows).write_csv(folder / "scans.csv")
    clone = fresh_clone(tmp_path_factory)
    told = kedro(clone, "cohort", "new", "scans", "--manifest", folder / "scans.csv")
    write_parameters(clone, "scans", "tile", tile={"max_tiles_per_slide": MAX_TILES})
    kedro(clone, "run", "--env", "scans", "--pipelines", "ingest,tile,embed")
    return clone, told


def test_a_new_cohort_is_told_of_files_that_are_not_there(scans):
    _, told = scans
    assert "missing: no file at" in told.stderr
    assert "outside: path '../index.csv' leads out" in told.stderr
    assert "12 slides (4 with problems" in told.stdout


def test_every_slide_is_kept_and_what_cannot_be_used_says_why(scans):
    slides = read_table(scans[0], "scans", "02_intermediate/slides.parquet")
    assert set(slides["slide_id"]) == {name for name, _, _ in SCANS}
    reasons = dict(slides.filter(status="unusable").select("slide_id", "reason").iter_rows())
    assert set(reasons) == set(UNUSABLE)
    for name, part in UNUSABLE.items():
        assert part in reasons[name], name
    assert not any("Error" in reason for reason in reasons.values())


def test_what_the_scanners_wrote_of_themselves_is_read(scans):
    slides = read_table(scans[0], "scans", "02_intermediate/slides.parquet")
    usable = slides.filter(status="usable")
    told = {
        name: (vendor, levels, round(mpp, 3))
        for name, vendor, levels, mpp in usable.select("slide_id", "vendor", "levels", "mpp").rows()
    }
    assert told == {
        "cmu_svs": ("aperio", 1, 0.499),
        "cmu_dicom": ("dicom", 5, 0.499),
        "tcga_given": ("aperio", 2, 0.5),
        "fluorescence": ("hamamatsu", 7, 0.228),
        "tiny_dicom": ("dicom", 1, 0.499),
        "tiny_svs": ("aperio", 1, 0.499),
    }
    # The same file under two names has one fingerprint, also where only one of them is usable.
    tcga = slides.filter(pl.col("slide_id").str.starts_with("tcga"))
    assert tcga["fingerprint"].n_unique() == 1


def test_only_tissue_gives_tiles(scans):
    tiling = read_table(scans[0], "scans", "03_primary/tiling.parquet")
    reasons = dict(tiling.filter(status="unusable").select("slide_id", "reason").iter_rows())
    assert set(reasons) == set(WITHOUT_TILES)
    for name, part in WITHOUT_TILES.items():
        assert part in reasons[name], name
    assert set(tiling.filter(status="tiled")["slide_id"]) == TILED


def test_tiles_lie_on_tissue_as_openslide_shows_it(scans, real_data):
    """Coloured pixels counted by OpenSlide's own reading, not by the project's mask."""
    import openslide

    tiles = read_table(scans[0], "scans", "03_primary/tiles.parquet")
    counts = dict(tiles.group_by("slide_id").len().iter_rows())
    assert counts["tcga_given"] == MAX_TILES
    assert counts["cmu_svs"] > 10
    for name in ("cmu_svs", "tcga_given"):
        path = next(path for slide, path, _ in SCANS if slide == name)
        with openslide.OpenSlide(real_data / path) as slide:
            own = tiles.filter(slide_id=name)
            shares = [
                (np.asarray(slide.read_region(at, 0, (224, 224)))[..., :3].min(axis=2) < 225).mean()
                for at in own.select("x", "y").rows()
            ]
        assert np.mean(shares) > 0.8, name
        assert min(shares) > 0.5, name


@pytest.mark.parametrize(("encoder", "width"), ENCODERS.items())
def test_every_tile_has_a_vector_and_no_other_slide_a_shard(scans, encoder, width):
    tiles = read_table(scans[0], "scans", "03_primary/tiles.parquet")
    folder = newest(scans[0], "scans", f"04_feature/embeddings/*/{encoder}")
    index = json.loads((folder / "_index.json").read_text())["slides"]
    assert set(index) == TILED
    for name in TILED:
        vectors = load_file(folder / f"{name}.safetensors")["embedding"]
        assert vectors.shape == (tiles.filter(slide_id=name).height, width)
        assert np.isfinite(vectors).all()
        assert len(np.unique(vectors, axis=0)) == len(vectors)


@pytest.mark.parametrize(
    "path",
    [
        "slides/CMU-1-Small-Region.svs",
        "slides/TCGA-CR-7395-01A-01-TS1.svs",
        "slides/test3-TRITC-2-560.ndpi",
    ],
)
def test_a_field_at_native_resolution_is_what_openslide_reads(real_data, path):
    import openslide

    with openslide.OpenSlide(real_data / path) as slide, open_slide(real_data / path) as reader:
        for x, y in [(0, 0), (701, 1203), (1501, 333)]:
            expected = np.asarray(slide.read_region((x, y), 0, (224, 224)).convert("RGB"))
            np.testing.assert_array_equal(read_field(reader, x, y, 224, 224), expected)


@pytest.mark.parametrize(
    ("path", "side"),
    [("slides/TCGA-CR-7395-01A-01-TS1.svs", 448), ("slides/test3-TRITC-2-560.ndpi", 491)],
)
def test_a_field_from_a_coarser_level_lies_where_the_finest_shows_it(real_data, path, side):
    """Of finest-level fields reduced here, none fits better than the one at the same place."""
    import openslide
    from PIL import Image

    x, y = 1000, 800
    shifts = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
    with openslide.OpenSlide(real_data / path) as slide, open_slide(real_data / path) as reader:
        field = read_field(reader, x, y, side, 224).astype(int)
        fine = [
            slide.read_region((x + dx, y + dy), 0, (side, side)).convert("RGB") for dx, dy in shifts
        ]
    reduced = [np.asarray(image.resize((224, 224), Image.Resampling.BOX)) for image in fine]
    errors = [np.abs(field - image).mean() for image in reduced]
    assert errors[0] < min(errors[1:])
    assert np.abs((field - reduced[0]).mean(axis=(0, 1))).max() < 1.5


def test_outside_a_real_slide_is_white(real_data):
    with open_slide(real_data / "slides/CMU-1-Small-Region.svs") as reader:
        width = reader.description.width
        assert (read_field(reader, width + 5, 100, 64, 64) == 255).all()
        assert (read_field(reader, -64, 100, 64, 64) == 255).all()


CORNERS = ((768, 896), (896, 1792), (1120, 2240), (1344, 1120))


def _tiles(real_data, path):
    x, y = zip(*CORNERS, strict=True)
    fields = TileFields(SlideFiles(real_data), path, x, y, 224, 224)
    return next(fields.batches(len(CORNERS)))[0]


def _cosines(a, b):
    encoder = load_encoder(EncoderSpec("lite0", "package:efficientnet_lite0"))
    a, b = encoder.embed(a), encoder.embed(b)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_a_dicom_series_is_one_slide_whichever_file_or_folder_is_named(real_data):
    folder = "slides/cmu-1-small-region-dicom"
    whole = _tiles(real_data, folder)
    for level in ("level-0-frames-0-30.dcm", "level-3-frames-0-1.dcm"):
        np.testing.assert_array_equal(_tiles(real_data, f"{folder}/{level}"), whole)


def test_a_dicom_copy_of_a_slide_gives_the_same_vectors(real_data):
    """Read as stored the two have a cosine of .94 and more; another tile of the slide has .71."""
    svs = _tiles(real_data, "slides/CMU-1-Small-Region.svs")
    dicom = _tiles(real_data, "slides/cmu-1-small-region-dicom")
    colour = svs.mean(axis=(1, 2)) - dicom.mean(axis=(1, 2))
    assert np.abs(colour).max() < 6
    assert _cosines(svs, dicom).min() > 0.9
