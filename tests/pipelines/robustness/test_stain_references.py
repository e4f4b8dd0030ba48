"""The stain of tiles and the looks of centers."""

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.robustness.appearance import Appearance, view_of_appearance
from pathfm_kedro.pipelines.robustness.tile_pool import choose_pool
from pathfm_kedro.pipelines.robustness.tile_stains import stain_of_tiles, tile_stains
from pathfm_kedro.slides.center_stains import (
    MOMENTS,
    REFERENCE_SCHEMA,
    TILE_STAIN_SCHEMA,
    center_references,
    target_centers,
    usable_references,
)
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest, write_pyramid
from pathfm_kedro.slides.stain import stain_moments
from pathfm_kedro.views import plan_views
from pathfm_kedro.wiring import Views
from tests.pipelines.robustness.phantom_views import (
    APPEARANCE,
    Shards,
    measured_stains,
    phantom_cohort,
    phantom_references,
    phantom_stains,
)

STAINS = Views(
    "tile_stains", "appearance", Appearance, stain_of_tiles, "measuring stain", with_encoder=False
)
APPEARANCES = Views(
    "appearance", "appearance", Appearance, view_of_appearance, "changing stain and scanner"
)


def test_references_are_medians_over_the_center_s_tiles():
    stains, references = phantom_stains(), phantom_references()
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
    table = center_references(stains, 5)
    row = table.row(by_predicate=pl.col("center") == "west", named=True)
    assert row["n_fitted"] == 0
    assert row["high"] is None
    assert "0 of 24 tiles" in row["reason"]
    assert sorted(usable_references(table)) == ["north", "south"]


def test_every_center_is_a_target_equally_often_and_never_its_own():
    centers = list("ABCDE")
    targets = [target for one in centers for target in target_centers(centers, one, 3)]
    assert {targets.count(center) for center in centers} == {3}
    assert all(one not in target_centers(centers, one, 9) for one in centers)
    assert target_centers(["A"], "A", 3) == []


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


def planned(views: Views, *inputs, name=None):
    """The plan of the node of these views."""
    return plan_views(
        *inputs, APPEARANCE, name=name, work=views.work, read=views.read, title=views.title
    )


def test_jobs_measure_and_change_the_pool_s_tiles(tmp_path):
    slides, tiles, pool, files = small_cohort(tmp_path)
    pixels = [slides, tiles, pool, files, {"pixels": 112}, {"workers": 1}]
    jobs = planned(STAINS, *pixels).jobs
    stains = tile_stains(Shards({job.slide_id: job.compute() for job in jobs}), pool)
    own = np.concatenate([batch for batch, _ in jobs[0].fields.batches(1)])
    first = stains.filter(slide_id=jobs[0].slide_id).select(MOMENTS).to_numpy()
    np.testing.assert_allclose(first, [stain_moments(tile) for tile in own])
    assert "encoder" not in jobs[0].header()

    references = center_references(stains, 1)
    encoder = {"model": "control:stain_statistics", "role": "control"}
    runtimes = {"stain_statistics": {}}
    views = planned(APPEARANCES, *pixels, encoder, runtimes, references, name="stain_statistics")
    assert [job.slide_id for job in views.jobs] == sorted(slides["slide_id"])
    settings = views.jobs[0].work.settings
    assert settings == views.jobs[1].work.settings
    assert views.jobs[0].header()["view"] != views.jobs[1].header()["view"]
    assert views.jobs[0].compute()["views"].shape == (2, len(settings), 12)
