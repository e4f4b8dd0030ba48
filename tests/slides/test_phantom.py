"""The phantom is reproducible, opens like a scanner's file, and holds the truth it claims."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from pathfm_kedro.slides.phantom import (
    PhantomDesign,
    draw_slide,
    phantom_manifest,
    tile_truth,
    write_pyramid,
)
from pathfm_kedro.slides.phantom_fields import _on_map
from pathfm_kedro.slides.phantom_morphology import Morphology, assign_patterns

SLIDE = "lung_adeno-north-001-01"


def test_manifest_is_crossed_sorted_and_named_like_the_files():
    design = PhantomDesign(patients_per_cell=2, slides_per_patient=3)
    manifest = phantom_manifest(design)
    assert manifest.columns == [
        "slide_id", "path", "patient_id", "center", "organ", "label", "scanner", "sex",
    ]  # fmt: skip
    assert manifest["slide_id"].is_sorted()
    assert manifest["slide_id"].n_unique() == manifest.height == 4 * 3 * 2 * 3
    cells = manifest.group_by("label", "center").agg(patients=manifest["patient_id"].n_unique())
    assert cells.height == 12
    assert manifest.group_by("patient_id").len()["len"].to_list() == [3] * 24
    assert manifest.group_by("patient_id").n_unique().select("center", "label").max().row(0) == (
        1,
        1,
    )
    assert (manifest["path"] == "slides/" + manifest["slide_id"] + ".tiff").all()


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    design = PhantomDesign(size_px=512)
    write_pyramid(tmp_path / "here.tiff", draw_slide(design, SLIDE))
    script = (
        "import sys; from pathlib import Path; from pathfm_kedro.slides.phantom import *;"
        "write_pyramid(Path(sys.argv[1]), draw_slide(PhantomDesign(size_px=512), sys.argv[2]))"
    )
    there = tmp_path / "there.tiff"
    subprocess.run([sys.executable, "-c", script, str(there), SLIDE], check=True)
    digests = {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("here.tiff", "there.tiff")
    }
    assert len(digests) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["here.tiff", "there.tiff"]


def test_seed_slide_and_patient_each_change_the_pixels():
    drawn = [
        draw_slide(PhantomDesign(size_px=256, slides_per_patient=2, seed=seed), slide).pixels
        for seed, slide in (
            (7, SLIDE),
            (8, SLIDE),
            (7, "lung_adeno-north-001-02"),
            (7, "lung_adeno-north-002-01"),
        )
    ]
    assert len({pixels.tobytes() for pixels in drawn}) == 4


def test_a_slide_does_not_depend_on_the_rest_of_the_cohort():
    few = PhantomDesign(size_px=256, patients_per_cell=1)
    many = PhantomDesign(size_px=256, patients_per_cell=5, slides_per_patient=2)
    np.testing.assert_array_equal(draw_slide(few, SLIDE).pixels, draw_slide(many, SLIDE).pixels)


@pytest.mark.parametrize(("size_px", "mpp", "levels"), [(1100, 0.5, 4), (512, 0.25, 3)])
def test_openslide_reads_size_resolution_levels_and_description(tmp_path, size_px, mpp, levels):
    import openslide

    drawn = draw_slide(PhantomDesign(size_px=size_px, mpp=mpp), SLIDE)
    path = tmp_path / "slide.tiff"
    write_pyramid(path, drawn)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (size_px, size_px)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-4)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(mpp, rel=1e-4)
        assert slide.level_count == levels
        assert max(slide.level_dimensions[-1]) < 256
        np.testing.assert_allclose(slide.level_downsamples, 2.0 ** np.arange(levels), rtol=0.01)
        description = json.loads(slide.properties["tiff.ImageDescription"])
        read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    assert description == drawn.description
    np.testing.assert_array_equal(
        tile_truth(description, 64, 96, 224), tile_truth(drawn.description, 64, 96, 224)
    )
    assert np.abs(read.astype(float) - drawn.pixels).mean() < 4


def test_a_failed_write_leaves_nothing(tmp_path):
    drawn = draw_slide(PhantomDesign(size_px=256), SLIDE)
    drawn.description["phantom"]["seed"] = object()
    with pytest.raises(TypeError):
        write_pyramid(tmp_path / "slide.tiff", drawn)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", ["kidney_clear", "kidney_papillary", "lung_adeno"])
def test_tissue_covers_about_half_of_a_slide_with_a_clear_rim(label):
    pixels = draw_slide(PhantomDesign(size_px=1024), f"{label}-south-001-01").pixels
    # A box mean, as a tissue finder on a low level sees it, closes lumina.
    small = pixels.reshape(64, 16, 64, 16, 3).mean(axis=(1, 3))
    tissue = small.min(axis=2) < 225
    assert 0.42 < tissue.mean() < 0.68
    rim = np.concatenate([pixels[:4].ravel(), pixels[:, -4:].ravel()])
    assert 230 < rim.mean() < 253


def _truth(design: PhantomDesign, per_slide: int = 12):
    rng = np.random.default_rng(1)
    vectors, keys = [], []
    # The description does not depend on the slide's size: small slides are drawn for speed.
    for row in phantom_manifest(design).iter_rows(named=True):
        description = draw_slide(design, row["slide_id"]).description
        for x, y in rng.integers(0, 1300, (per_slide, 2)):
            vectors.append(tile_truth(description, int(x), int(y), 224))
            keys.append((row["label"], row["patient_id"], row["center"]))
    label, patient, center = np.array(keys).T
    return np.array(vectors), label, patient, center


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_truth_separates_all_classes_across_patients(metric):
    labels = dict.fromkeys("abcdef", "organ")
    design = PhantomDesign(labels=labels, size_px=256, patients_per_cell=3)
    vectors, label, patient, _ = _truth(design)
    assert len(np.unique(vectors, axis=0)) == len(vectors), "tied vectors"
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    same = label[:, None] == label[None]
    other_patient = patient[:, None] != patient[None]
    # Stronger than nearest neighbours: the farthest of the class is nearer than any other class.
    assert distance[same & other_patient].max() < 0.5 * distance[~same].min()


def test_truth_knows_neither_stain_nor_size_nor_the_bias():
    weak = draw_slide(PhantomDesign(size_px=256, site_bias=0.0), SLIDE)
    strong = draw_slide(PhantomDesign(size_px=512, site_bias=1.0), SLIDE)
    assert weak.description == strong.description
    names = json.dumps(weak.description)
    assert not any(center in names for center in PhantomDesign().centers)


def test_truth_does_not_predict_the_center():
    design = PhantomDesign(size_px=256, patients_per_cell=5)
    vectors, label, patient, center = _truth(design, per_slide=1)
    distance = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    distance[(patient[:, None] == patient[None]) | (label[:, None] != label[None])] = np.inf
    hits = np.mean(center[distance.argmin(axis=1)] == center)
    # Chance is 4 of 14 other patients; the bound is four standard errors of 60 draws.
    assert abs(hits - 4 / 14) < 4 * np.sqrt(0.29 * 0.71 / 60)


def test_truth_of_another_slide_says_what_to_do():
    with pytest.raises(ValueError, match="phantom_truth"):
        tile_truth({"vendor": "aperio"}, 0, 0, 224)


def test_description_is_small_and_complete():
    description = draw_slide(PhantomDesign(size_px=256), SLIDE).description
    assert len(json.dumps(description)) < 1000
    Morphology(**description["phantom"]["morphology"])


def test_patterns_follow_names_and_never_repeat():
    chosen = assign_patterns(["x_squamous", "adenocarcinoma", "clear_cell", "b", "a", "glandular"])
    assert chosen["x_squamous"] == "squamous"
    assert chosen["adenocarcinoma"] == "gland"
    assert len(set(chosen.values())) == 6
    assert assign_patterns(list(chosen)[::-1]) == chosen


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"site_bais": 0.5}, "site_bais.*known are.*site_bias"),
        ({"site_bias": 1.5}, "site_bias.*1.5.*0 to 1"),
        ({"site_bias": float("nan")}, "site_bias"),
        ({"site_bias": True}, "site_bias"),
        ({"centers": []}, "centers.*at least one"),
        ({"centers": "north"}, "centers.*list"),
        ({"centers": ["a", "a"]}, "centers.*twice"),
        ({"centers": ["a/b"]}, "centers.*'a/b'.*letters"),
        ({"labels": {}}, "labels.*organ"),
        ({"labels": ["a", "b"]}, "labels.*organ"),
        ({"labels": dict.fromkeys("abcdefg", "o")}, "7 labels.*at most 6"),
        ({"labels": {"a": "o o"}}, "organ.*'o o'"),
        ({"patients_per_cell": 0}, "patients_per_cell.*whole number"),
        ({"slides_per_patient": 1.5}, "slides_per_patient.*whole number"),
        ({"size_px": 100}, "size_px.*256"),
        ({"mpp": 0}, "mpp.*0.1 to 2"),
        ({"seed": -1}, "seed"),
    ],
)
def test_parameters_that_cannot_be_drawn_name_the_mend(parameters, message):
    with pytest.raises(ValueError, match=message):
        PhantomDesign.from_parameters(parameters)


@pytest.mark.parametrize(
    "slide_id", ["nobody", "lung_adeno-north-001-02", "lung_adeno-north-009-01"]
)
def test_a_slide_outside_the_design_is_refused(slide_id):
    with pytest.raises(KeyError, match=slide_id):
        draw_slide(PhantomDesign(size_px=256), slide_id)


def test_a_cue_is_drawn_at_its_dose_and_leaves_the_truth_alone():
    small = {"size_px": 256, "mpp": 1.0}
    plain = draw_slide(PhantomDesign(**small), SLIDE)
    none = draw_slide(PhantomDesign(**small, cues={"orientation": 0.0}), SLIDE)
    full = draw_slide(PhantomDesign(**small, cues={"orientation": 1.0}), SLIDE)
    np.testing.assert_array_equal(plain.pixels, none.pixels)
    assert (plain.pixels != full.pixels).mean() > 0.2
    assert plain.description == full.description


@pytest.mark.parametrize("cues", [{"smell": 1.0}, {"field": 1.5}, ["field"]])
def test_a_cue_that_cannot_be_drawn_is_refused(cues):
    with pytest.raises(ValueError, match="cues"):
        PhantomDesign(cues=cues)


def test_a_point_that_rounds_up_to_the_edge_is_not_on_the_map():
    # float64 just below 384 is 384 as float32: one in ten million points, met on a slide in a thousand.
    points = np.array([[np.nextafter(384.0, 0.0), 1.0], [383.5, 2.0]])
    assert _on_map(points, 384).tolist() == [[383.5, 2.0]]
