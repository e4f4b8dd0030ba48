"""The same tissue is found whatever holds it, and different tissue is not taken for the same."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.duplicates import (
    SAME_TISSUE,
    digest_of_slide,
    find_duplicates,
    same_tissue,
    tissue_digest,
)
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest
from pathfm_kedro.slides.readers import open_slide
from tests.conftest import manifest, manifest_row, write_tiff


def bits(digest: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(digest), np.uint8)).astype(bool)


def distance(one: str, other: str) -> float:
    """As told in the docstring, bit by bit."""
    a, b = bits(one), bits(other)
    return float((a ^ b).sum() / max((a | b).sum(), 1))


def nearest(digests: list[str]) -> float:
    """Smallest distance of any two."""
    return min(distance(a, b) for i, a in enumerate(digests) for b in digests[:i])


def tissue(seed: int, side: int = 400) -> np.ndarray:
    """A blob of tissue on glass with coarse and fine structure."""
    from scipy import ndimage

    generator = np.random.default_rng(seed)
    coarse, fine = (
        ndimage.gaussian_filter(generator.normal(size=(side, side)), sigma)
        for sigma in (side / 16, side / 100)
    )
    y, x = np.mgrid[:side, :side] / side - 0.5
    inside = np.hypot(x, y) + coarse / np.abs(coarse).max() * 0.12 < 0.4
    shade = 0.5 + 0.25 * coarse / coarse.std() + 0.15 * fine / fine.std()
    density = np.clip(shade, 0.1, 2)[..., None] * np.array([0.45, 0.9, 0.4])
    return np.where(inside[..., None], 255 * np.exp(-density), 244).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def stained_otherwise(image: np.ndarray) -> np.ndarray:
    mixing = np.array([[0.9, 0.1, 0.05], [0.1, 1.1, 0.0], [0.0, 0.1, 0.8]])
    density = -np.log(np.maximum(image, 1) / 255) @ mixing * [1.2, 0.8, 1.0]
    return (255 * np.exp(-density) ** 1.2).clip(0, 255).astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).reduce(2))


def with_margins(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((50, 10), (0, 90), (0, 0)), constant_values=244)


def noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


COPIES = {
    "jpeg_of_poor_quality": lambda image: jpeg(image, 20),
    "other_stain_and_gamma": stained_otherwise,
    "half_the_resolution": halved,
    "other_margins": with_margins,
    "noise": noisy,
    "all_of_it": lambda image: jpeg(with_margins(noisy(halved(stained_otherwise(image)))), 40),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_known_with_room_to_spare(copy):
    for seed in range(4):
        image = tissue(seed)
        there, here = tissue_digest(image), tissue_digest(COPIES[copy](image))
        assert distance(there, here) < SAME_TISSUE - 0.1


def test_different_tissue_is_distinguished_with_room_to_spare():
    digests = [tissue_digest(tissue(seed)) for seed in range(40)]
    assert nearest(digests) > SAME_TISSUE + 0.1
    assert len(set(same_tissue(digests))) == 40


def test_different_tissue_of_one_outline_is_distinguished():
    """As cores of a tissue microarray have it."""
    y, x = np.mgrid[:400, :400] - 200
    glass = (np.hypot(x, y) > 130)[..., None]
    digests = [
        tissue_digest(np.where(glass, 244, tissue(seed)).astype(np.uint8)) for seed in range(30)
    ]
    assert nearest(digests) > SAME_TISSUE + 0.05


def test_real_slides_in_two_formats_are_one_and_the_others_are_not(real_data):
    folder = real_data / "slides"
    listed = pl.read_csv(real_data / "slides.csv", infer_schema=False)
    digests = {}
    for slide_id, path in listed.select("slide_id", "path").iter_rows():
        with open_slide(folder.parent / path) as reader:
            digests[slide_id] = digest_of_slide(reader)
    svs, dicom = digests["cmu-1-small"], digests["cmu-1-small-dicom"]
    assert distance(svs, dicom) < 0.12
    others = [digest for name, digest in digests.items() if name != "cmu-1-small-dicom"]
    assert nearest(others) > 0.6


def test_distinct_real_images_are_not_taken_for_one(real_data):
    digests = []
    for path in sorted((real_data / "tiles").glob("*/*")):
        with open_slide(path) as reader:
            digests.append(digest_of_slide(reader))
    assert len(digests) > 300
    assert len(set(same_tissue(digests, 0.5))) == len(digests)


def test_distinct_phantom_slides_are_not_taken_for_one():
    design = PhantomDesign(patients_per_cell=1, size_px=512)
    names = phantom_manifest(design)["slide_id"].to_list()
    digests = [tissue_digest(draw_slide(design, name).pixels) for name in names]
    assert len(names) == 12
    assert nearest(digests) > SAME_TISSUE + 0.15


@pytest.mark.parametrize(
    "image",
    [
        np.full((300, 300, 3), 255, np.uint8),
        np.zeros((300, 300, 3), np.uint8),
        np.full((1, 1, 3), 9, np.uint8),
        np.random.default_rng(0).integers(240, 248, (300, 300, 3)).astype(np.uint8),
    ],
    ids=["white", "black", "one_pixel", "noise_of_glass"],
)
def test_where_nothing_is_to_be_seen_nothing_is_compared(image):
    assert tissue_digest(image) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.floats(0, 0.9))
def test_groups_are_those_of_every_pair_compared_one_by_one(seed, n, limit):
    from scipy.sparse.csgraph import connected_components

    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, (max(n // 3, 1), 128), dtype=np.uint8)
    chosen = base[generator.integers(0, len(base), n)]
    flipped = chosen ^ (np.uint8(1) << generator.integers(0, 8, chosen.shape, dtype=np.uint8)) * (
        generator.random(chosen.shape) < generator.random((n, 1))
    )
    digests = [row.tobytes().hex() for row in flipped.astype(np.uint8)]
    close = np.array([[distance(a, b) <= limit for b in digests] for a in digests]).reshape(n, n)
    expected = connected_components(close, directed=False)[1] if n else np.zeros(0)
    got = same_tissue(digests, limit)
    np.testing.assert_array_equal(got[:, None] == got, expected[:, None] == expected)


@pytest.mark.parametrize("kind", ["all_different", "all_equal"])
def test_memory_does_not_grow_with_the_number_of_pairs(kind):
    n = 3000
    rows = np.random.default_rng(0).integers(0, 256, (n, 128), dtype=np.uint8)
    digests = [
        row.tobytes().hex() for row in (rows if kind == "all_different" else rows[:1].repeat(n, 0))
    ]
    tracemalloc.start()
    groups = same_tissue(digests)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(groups)) == (n if kind == "all_different" else 1)
    assert peak < n**2 * 8


def test_the_same_tissue_in_two_formats_is_warned_of_as_leakage(tmp_path):
    whole = Image.fromarray(tissue(1)).resize((1024, 1024))
    write_tiff(tmp_path / "scan.tiff", np.asarray(whole))
    whole.save(tmp_path / "copy.jpg", quality=60)
    write_tiff(tmp_path / "other.tiff", np.asarray(Image.fromarray(tissue(2)).resize((1024, 1024))))
    rows = [
        manifest_row("scan"),
        manifest_row("copy", path="copy.jpg", mpp="0.5", center="B"),
        manifest_row("other", label="y"),
    ]
    listed = check_manifest(manifest(*rows))
    engine = {"workers": 1, "max_failed_share": 0.0}
    table = describe_slides(listed, SlideFiles(tmp_path), {"mpp_bounds": [0.05, 10]}, engine)
    summary = summarise_design(table, {"cramers_v_warning": 0.5})[1]
    assert summary["duplicates"] == [["copy", "scan"]]
    assert (
        "1 group(s) of slides of different patients, 2 slides, show the same tissue in different "
        "files: leakage, the same tissue would be its own neighbour; keep one of each, see "
        "'duplicates' in the design summary"
    ) in summary["warnings"]


def slides(*rows: tuple[str, str, str, str, str | None]) -> pl.DataFrame:
    names = ["slide_id", "path", "fingerprint", "patient_id", "tissue_digest"]
    return pl.DataFrame(
        list(rows), schema=dict.fromkeys(names, pl.String()), orient="row"
    ).with_columns(center=pl.lit("A"))


def test_the_strongest_evidence_is_named():
    same = "0f" * 128
    table = slides(
        ("a", "1", "f", "p", same),
        ("b", "1", "f", "p", same),
        ("c", "3", "g", "p", None),
        ("d", "4", "g", "q", None),
        ("e", "5", "h", "q", None),
    )
    first, second = find_duplicates(table)
    assert (first.slide_ids, first.evidence, first.n_patients) == (("a", "b"), "path", 1)
    assert (second.slide_ids, second.evidence, second.n_patients) == (("c", "d"), "file", 2)
    assert find_duplicates(table.clear()) == []
