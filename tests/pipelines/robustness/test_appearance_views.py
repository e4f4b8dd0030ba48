"""References of centers and the views made with them."""

import json
import pickle

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.appearance_views import (
    MOMENTS,
    REFERENCE_SCHEMA,
    TILE_STAIN_SCHEMA,
    MeasureStain,
    center_maker,
    center_references,
    plan_appearance_views,
    plan_tile_stains,
    target_centers,
    tile_stains,
    usable_references,
    view_changes,
)
from pathfm_kedro.pipelines.robustness.tile_pool import choose_pool
from pathfm_kedro.slides.fields import TileFields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest, write_pyramid
from pathfm_kedro.slides.stain import stain_moments
from tests.pipelines.robustness.phantom_views import (
    APPEARANCE,
    Shards,
    measured_stains,
    phantom_cohort,
    phantom_stains,
)


@pytest.fixture(scope="module")
def references() -> pl.DataFrame:
    return center_references(phantom_stains(), APPEARANCE)


def test_references_are_medians_over_the_center_s_tiles(references):
    stains = phantom_stains()
    assert dict(stains.schema) == TILE_STAIN_SCHEMA
    assert dict(references.schema) == REFERENCE_SCHEMA
    assert references["center"].to_list() == ["north", "south", "west"]
    for row in references.iter_rows(named=True):
        own = stains.filter(center=row["center"])
        for name in ("haematoxylin", "eosin", "high", "lab_mean", "lab_sd"):
            expected = np.median(np.array(own.filter(reason="")[name].to_list()), axis=0)
            np.testing.assert_allclose(row[name], expected, atol=1e-6)


def test_a_center_without_tissue_has_a_reason_and_is_no_target():
    cohort = phantom_cohort()
    west = (cohort.pool["center"] == "west").to_numpy()
    stains = measured_stains(
        cohort.pool, np.where(west[:, None, None, None], 244, cohort.pixels).astype(np.uint8)
    )
    blank = stains.filter(center="west")
    assert blank["high"].null_count() == blank.height
    assert blank["reason"].str.contains("too little tissue").all()
    table = center_references(stains, APPEARANCE)
    row = table.row(by_predicate=pl.col("center") == "west", named=True)
    assert row["n_fitted"] == 0
    assert row["high"] is None
    assert "0 of 24 tiles" in row["reason"]
    assert sorted(usable_references(table)) == ["north", "south"]
    maker = center_maker(table, "west", APPEARANCE)
    assert maker.names == center_maker(table, "north", APPEARANCE).names
    field = cohort.pixels[0]
    views = dict(zip(maker.names, maker.make(field, 1), strict=True))
    np.testing.assert_array_equal(views["macenko 0"], field)
    assert (views["jitter 0.1"] != field).any()


def test_every_center_is_a_target_equally_often_and_never_its_own():
    centers = list("ABCDE")
    targets = [target for one in centers for target in target_centers(centers, one, 3)]
    assert {targets.count(center) for center in centers} == {3}
    assert all(one not in target_centers(centers, one, 9) for one in centers)
    assert target_centers(["A"], "A", 3) == []


def test_views_are_few_and_the_clean_tile_comes_first(references):
    maker = center_maker(references, "north", APPEARANCE)
    field = phantom_cohort().pixels[0]
    views = maker.make(field, seed=3)
    assert len(maker.names) == len(set(maker.names)) == len(views) <= 24
    assert maker.names[0] == "clean"
    np.testing.assert_array_equal(views[0], field)
    assert all((view != field).any() for view in views[1:])
    assert len(view_changes(APPEARANCE, 3)) <= 24


def test_views_of_a_tile_are_always_the_same_and_follow_its_seed(references):
    maker = center_maker(references, "north", APPEARANCE)
    field = phantom_cohort().pixels[0]
    copy = pickle.loads(pickle.dumps(maker))
    np.testing.assert_array_equal(copy.make(field, 3), maker.make(field, 3))
    other = maker.make(field, 4) != maker.make(field, 3)
    jitter = np.array([name.startswith("jitter") for name in maker.names])
    np.testing.assert_array_equal(other.any(axis=(1, 2, 3)), jitter)


def test_what_decides_the_pixels_is_described(references):
    north, south = (center_maker(references, c, APPEARANCE).describe() for c in ("north", "south"))
    assert json.dumps(north) != json.dumps(south)
    assert json.dumps(north) != json.dumps(
        center_maker(references, "north", APPEARANCE | {"seed": 1}).describe()
    )


def small_cohort(tmp_path):
    """Two slides on disk with two tiles each."""
    design = PhantomDesign(size_px=512, patients_per_cell=1, centers=("north", "south"))
    ids = sorted(phantom_manifest(design)["slide_id"].to_list())[:2]
    for slide in ids:
        write_pyramid(tmp_path / f"{slide}.tiff", draw_slide(design, slide))
    slides = pl.DataFrame(
        {
            "slide_id": ids,
            "path": [f"{slide}.tiff" for slide in ids],
            "patient_id": ids,
            "center": ["north", "south"],
            "organ": ["o", "o"],
            "label": ["x", "x"],
            "status": ["usable"] * 2,
            "fingerprint": ids,
            "width": [512] * 2,
            "height": [512] * 2,
            "mpp": [0.5] * 2,
        }
    )
    tiles = pl.DataFrame(
        {
            "tile_id": [f"{slide}-{i}" for slide in ids for i in range(2)],
            "slide_id": [slide for slide in ids for _ in range(2)],
            "x": [140, 260] * 2,
            "y": [200] * 4,
            "field_um": [56.0] * 4,
            "mpp": [0.5] * 4,
        }
    )
    pool = choose_pool(slides, tiles, {"max_tiles": 4, "seed": 0})
    return slides, tiles, pool, SlideFiles(tmp_path)


def test_jobs_measure_and_change_the_pool_s_tiles(tmp_path):
    slides, tiles, pool, files = small_cohort(tmp_path)
    engine, told = {"workers": 1}, {"pixels": 112}
    plan = plan_tile_stains(slides, tiles, pool, files, told, engine)
    assert all(isinstance(job, MeasureStain) for job in plan.jobs)
    shards = {job.slide_id: job.compute() for job in plan.jobs}
    stains = tile_stains(Shards(shards), pool)
    pixels = np.concatenate([batch for batch, _ in plan.jobs[0].fields.batches(1)])
    first = stains.filter(slide_id=plan.jobs[0].slide_id).select(MOMENTS).to_numpy()
    np.testing.assert_allclose(first, [stain_moments(tile) for tile in pixels])

    few = APPEARANCE | {"min_reference_tiles": 1}
    references = center_references(stains, few)
    encoder = {"model": "control:stain_statistics", "role": "control"}
    views = plan_appearance_views(
        slides,
        tiles,
        pool,
        files,
        references,
        encoder,
        {},
        told,
        few,
        engine,
        name="stain_statistics",
    )
    assert [job.slide_id for job in views.jobs] == sorted(slides["slide_id"])
    names = views.jobs[0].maker.names
    assert names == views.jobs[1].maker.names
    assert views.jobs[0].header()["view"] != views.jobs[1].header()["view"]
    shard = views.jobs[0].compute()
    assert shard["views"].shape == (2, len(names), 12)


def test_measuring_depends_on_the_slide_and_its_fields(tmp_path):
    fields = TileFields(SlideFiles(tmp_path), "a.tiff", (0,), (0,), 112.0, 112)
    moved = TileFields(SlideFiles(tmp_path), "a.tiff", (1,), (0,), 112.0, 112)
    headers = [
        MeasureStain("a", fingerprint, where, "d").header()
        for fingerprint, where in (("f", fields), ("g", fields), ("f", moved))
    ]
    assert len({json.dumps(header) for header in headers}) == 3
