"""Fields of view as shards: which pixels are embedded, at which size, read how often."""

from __future__ import annotations

import json
import pickle

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.pipelines.robustness.field_of_view import (
    COST,
    NATIVES,
    PARTS,
    PROBLEMS,
    FieldOfView,
)
from pathfm_kedro.pipelines.robustness.field_pool import choose_field_pool
from pathfm_kedro.pipelines.robustness.field_views import view_of_fields
from pathfm_kedro.slides import fields as slide_fields_module
from pathfm_kedro.slides import nested_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.nested_fields import Layout
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, tile_truth, write_pyramid
from pathfm_kedro.views import plan_views
from pathfm_kedro.wiring import Views

PARAMETERS = {
    "fields": [32, 72, [120, 96]],
    "k": 2,
    "max_tiles": 100,
    "equivalence_margin": 0.05,
    "attention": {
        "folds": 2,
        "components": 4,
        "hidden": 2,
        "steps": 5,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
    },
    "draws": 100,
    "n_permutations": 20,
    "seed": 0,
}
SIZES = ((32, 32), (72, 72), (120, 96))


def table(size, path, mpp=0.5, tile=32):
    slides = pl.DataFrame(
        {
            "slide_id": ["a"],
            "path": [path],
            "patient_id": ["p"],
            "center": ["A"],
            "organ": ["o"],
            "label": ["x"],
            "status": ["usable"],
            "width": [size],
            "height": [size],
            "mpp": [mpp],
            "fingerprint": ["f"],
        }
    )
    corners = [(x, y) for y in range(0, size - tile + 1, tile) for x in range(0, size, tile)]
    tiles = pl.DataFrame(
        [
            {"tile_id": f"a@{x}_{y}", "slide_id": "a", "x": x, "y": y, "field_um": 16.0, "mpp": 0.5}
            for x, y in corners
            if x + tile <= size
        ]
    )
    return slides, tiles


def plan(root, slides, tiles, encoder, **changes):
    parameters = PARAMETERS | changes
    pool, _ = choose_field_pool(slides, tiles, parameters)
    files, beside = SlideFiles(root), (encoder, {"e": RUNTIME}, parameters)
    how = {"name": "e", "work": view_of_fields, "read": VIEWS.read, "title": "fields of view"}
    made = plan_views(slides, tiles, pool, files, {"pixels": 32}, {}, *beside, **how)
    return pool, made


VIEWS = Views("field_of_view", "field_of_view", FieldOfView, view_of_fields, "", pool="field_pool")
RUNTIME = {"runtime": "eager", "precision": "float32", "device": "cpu"}
STAIN = {"model": "control:stain_statistics", "role": "control"}


@pytest.fixture
def noise(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path, pixels


def test_every_part_is_a_crop_of_the_slide(noise):
    root, image = noise
    slides, tiles = table(256, "a.png")
    pool, made = plan(root, slides, tiles, STAIN)
    [job] = made.jobs
    found = job.compute()
    layout = Layout.of(SIZES)
    assert found[PARTS].shape == (pool.height, len(layout.parts), 12)
    assert found[NATIVES].shape == (pool.height, 2, 12)
    encoder = load_encoder(EncoderSpec.from_parameters("e", STAIN))
    for at, (x, y) in enumerate(pool.select("x", "y").iter_rows()):
        left, top = x + 16 - 60, y + 16 - 48
        for i, part in enumerate(layout.parts):
            row, column = top + part.top, left + part.left
            crop = image[row : row + part.height, column : column + part.width]
            np.testing.assert_allclose(found[PARTS][at, i], encoder.embed(crop[None])[0])
        for i, size in enumerate(SIZES[1:]):
            x0, y0 = x + 16 - size[0] // 2, y + 16 - size[1] // 2
            crop = image[y0 : y0 + size[1], x0 : x0 + size[0]]
            np.testing.assert_allclose(found[NATIVES][at, i], encoder.embed(crop[None])[0])


def test_the_tile_is_that_of_the_audit_whatever_the_fields_say(noise):
    root, image = noise
    slides, tiles = table(256, "a.png")
    pool, made = plan(root, slides, tiles, STAIN, fields=[24, 72])
    [job] = made.jobs
    assert job.work.sizes == ((32, 32), (72, 72))
    encoder = load_encoder(EncoderSpec.from_parameters("e", STAIN))
    crops = np.stack([image[y : y + 32, x : x + 32] for x, y in pool.select("x", "y").iter_rows()])
    np.testing.assert_allclose(job.compute()[PARTS][:, 0], encoder.embed(crops))


def test_the_pixels_of_a_place_are_read_once(noise, monkeypatch):
    root, _ = noise
    slides, tiles = table(256, "a.png")
    pool, made = plan(root, slides, tiles, STAIN)
    asked = []
    read = slide_fields_module.read_field
    monkeypatch.setattr(
        slide_fields_module, "read_field", lambda *field: asked.append(field[1:3]) or read(*field)
    )
    made.jobs[0].compute()
    assert len(asked) == len(set(asked)) == pool.height


def test_batches_do_not_change_the_vectors(noise, monkeypatch):
    root, _ = noise
    slides, tiles = table(256, "a.png")
    _, made = plan(root, slides, tiles, STAIN)
    whole = made.jobs[0].compute()
    monkeypatch.setattr(nested_fields, "_BYTES_IN_MEMORY", 1)
    one_by_one = made.jobs[0].compute()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(one_by_one[name], tensor)


def test_cost_counts_passes_and_pixels(noise):
    root, _ = noise
    slides, tiles = table(256, "a.png")
    network = {"model": "timm:test_efficientnet", "pretrained": False, "seed": 0}
    _, made = plan(root, slides, tiles, network, max_tiles=2)
    found = made.jobs[0].compute()
    side = load_encoder(made.jobs[0].spec).preprocessing["input_pixels"]
    cost = found[COST][0]
    assert cost.dtype == np.int64
    np.testing.assert_array_equal(cost[0], [[1, side**2]] * 3)
    np.testing.assert_array_equal(cost[1], [[1, side**2], [9, 9 * side**2], [1, 72**2]])
    np.testing.assert_array_equal(cost[2], [[1, side**2], [12, 12 * side**2], [0, 0]])
    np.testing.assert_array_equal(found[PROBLEMS][0], [0, 3])
    assert not found[NATIVES][:, 1].any()


def test_the_header_knows_fields_and_job_travels(noise):
    root, _ = noise
    slides, tiles = table(256, "a.png")
    _, one = plan(root, slides, tiles, STAIN, fields=[32, 72])
    _, other = plan(root, slides, tiles, STAIN, fields=[32, 64])
    assert one.jobs[0].header()["view"] != other.jobs[0].header()["view"]
    job = pickle.loads(pickle.dumps(one.jobs[0]))
    assert job.header() == one.jobs[0].header()


def test_a_slide_without_room_gets_no_job(tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    pool, made = plan(tmp_path, *table(32, "a.png"), STAIN)
    assert pool.is_empty()
    assert not made.jobs


def test_what_was_drawn_is_the_same_in_every_field_of_a_centre(tmp_path):
    slide = draw_slide(PhantomDesign(size_px=512), "lung_adeno-north-001-01")
    write_pyramid(tmp_path / "a.tiff", slide)
    drawn = json.loads(json.dumps(slide.description))
    truth = {"model": "control:phantom_truth", "role": "control"}
    pool, made = plan(tmp_path, *table(512, "a.tiff"), truth, max_tiles=5)
    found = made.jobs[0].compute()
    layout = Layout.of(SIZES)
    at_tile = [tile_truth(drawn, x, y, 32) for x, y in pool.select("x", "y").iter_rows()]
    for whole in layout.wholes:
        np.testing.assert_array_equal(found[PARTS][:, whole], at_tile)
    np.testing.assert_array_equal(found[NATIVES][:, 0], at_tile)
    corner = layout.subs[1][0]
    expected = [tile_truth(drawn, x - 20, y - 20, 32) for x, y in pool.select("x", "y").iter_rows()]
    np.testing.assert_array_equal(found[PARTS][:, corner], expected)
