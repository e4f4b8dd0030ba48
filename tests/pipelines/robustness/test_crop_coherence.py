"""Whether parts of a tile belong together, and by what."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.pipelines.robustness.crop_coherence import (
    CROP_SCHEMA,
    CropCoherence,
    composition_of_crops,
    crop_coherence_figures,
    crop_coherence_statistics,
    crop_views,
    own_and_other,
    view_of_crops,
)
from pathfm_kedro.slides.crops import GLOBAL_SCALE, LOCAL_SCALE, crop_boxes
from pathfm_kedro.slides.fields import TileFields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, write_pyramid
from pathfm_kedro.slides.stain import (
    COMMON_BASIS,
    jitter_draw,
    jittered,
    lab_statistics,
    tissue_composition,
)
from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.views import TileJob, tile_seed
from pathfm_kedro.wiring import Experiment
from tests.pipelines.robustness.phantom_views import (
    CONTROLS,
    embedded,
    make_pool,
    measured,
    phantom_cohort,
    pick,
    shards_of,
)

PARAMETERS = {
    "n_global": 2,
    "n_local": 3,
    "criteria": [{"metric": "coherence", "above": 0.0}],
    "draws": 300,
    "seed": 0,
}
CROP_COHERENCE = Experiment(
    "crop_coherence", CropCoherence, crop_coherence_statistics, crop_coherence_figures, []
)


def parameters_with(**changes) -> CropCoherence:
    return read_parameters(CropCoherence, "crop_coherence", PARAMETERS | changes)


def measure(pool, views, composition, colour) -> pl.DataFrame:
    shards = shards_of(pool, views=views)
    of_pixels = shards_of(pool, composition=composition, colour=colour)
    return measured(CROP_COHERENCE, PARAMETERS, shards, of_pixels, pool)


def some_pool(n_patients=12, each=3) -> pl.DataFrame:
    patient = [f"p{i:02d}" for i in range(n_patients) for _ in range(each)]
    return make_pool(patient, ["x"] * len(patient), ["A"] * len(patient))


def normal(n, seed=0, d=6):
    generator = np.random.default_rng(seed)
    shapes = ((n, 5, d), (n, 5, 2), (n, 5, 3))
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("scale", [GLOBAL_SCALE, LOCAL_SCALE])
def test_crops_are_sampled_as_by_torchvision(scale):
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    ours = crop_boxes(3000, scale, 224, np.random.default_rng(0)).astype(float)
    torch.manual_seed(0)
    blank = torch.zeros(3, 224, 224)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(1500)],
        float,
    )[:, [1, 0, 3, 2]]
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= 224).all()
    for quantity in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: np.log(box[:, 2] / box[:, 3]),
        lambda box: box[:, 0],
        lambda box: box[:, 1] + box[:, 3] / 2,
    ):
        assert ks_2samp(quantity(ours), quantity(theirs)).pvalue > 0.001


@given(st.integers(16, 300), st.integers(0, 1000))
def test_crops_lie_in_the_tile(side, seed):
    for scale in (GLOBAL_SCALE, LOCAL_SCALE):
        boxes = crop_boxes(4, scale, side, np.random.default_rng(seed))
        assert (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= side).all()


def test_crops_have_one_size_and_are_always_the_same():
    views, field = crop_views(parameters_with()), phantom_cohort().pixels[0]
    made = views.make(field, 5)
    assert made.shape == (5, *field.shape)
    assert [setting["crop"] for setting in views.settings] == ["global"] * 2 + ["local"] * 3
    np.testing.assert_array_equal(views.make(field, 5), made)
    assert (views.make(field, 6) != made).any()
    # A local crop is reduced to 96 px first, and enlarging adds no detail.
    steps = [np.abs(np.diff(view.astype(int), axis=0)).mean() for view in made]
    assert max(steps[2:]) < min(steps[:2])
    with pytest.raises(ValueError, match=r"crop_coherence\.n_local is 0: .* equal to 1"):
        parameters_with(n_local=0)


def test_own_and_other_are_those_of_brute_force():
    vectors = unit(np.random.default_rng(0).normal(size=(35, 4))).reshape(7, 5, 4)
    slides = np.array([0, 0, 0, 1, 1, 2, 2])
    own, other, alone = own_and_other(vectors, slides, 2)
    for i in range(7):
        pairs = [g @ v for g in vectors[i, :2] for v in vectors[i, 2:]]
        assert own[i] == pytest.approx(np.mean(pairs))
        rest = [j for j in range(7) if slides[j] == slides[i] and j != i]
        pairs = [g @ v for g in vectors[i, :2] for j in rest for v in vectors[j, 2:]]
        assert other[i] == pytest.approx(np.mean(pairs))
    assert not alone.any()
    assert own_and_other(vectors[:3], np.array([0, 0, 1]), 2)[2].tolist() == [False, False, True]


def test_correlations_are_those_of_ranks_with_the_third_taken_out():
    from scipy.stats import rankdata

    pool = some_pool()
    views, composition, colour = normal(pool.height)
    table = measure(pool, views, composition, colour)
    rows = unit(views.reshape(-1, 6)).reshape(views.shape)
    pairs = [(i, g, v) for i in range(pool.height) for g in (0, 1) for v in (2, 3, 4)]
    a = rankdata([rows[i, g] @ rows[i, v] for i, g, v in pairs])
    b, c = (
        rankdata([-np.linalg.norm(part[i, g] - part[i, v]) for i, g, v in pairs])
        for part in (composition, colour)
    )

    def without(values, other):
        slope, intercept = np.polyfit(other, values, 1)
        return values - slope * other - intercept

    for metric, of, given_rank in (("follows_composition", b, c), ("follows_colour", c, b)):
        expected = np.corrcoef(without(a, given_rank), without(of, given_rank))[0, 1]
        row = pick(table, metric)
        assert row["value"] == pytest.approx(expected, abs=1e-6)
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert row["n"] == len(pairs)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_what_agreement_follows_is_named(seed):
    pool = some_pool()
    _, composition, colour = normal(pool.height, seed)
    # The vector is the composition itself, as an angle.
    angle = composition[..., 0]
    views = np.stack([np.cos(angle / 3), np.sin(angle / 3)], axis=2)
    views += np.random.default_rng(seed).normal(0, 0.05, views.shape)
    composition = np.stack([angle, np.zeros_like(angle)], axis=2)
    table = measure(pool, views.astype(np.float32), composition, colour)
    assert pick(table, "follows_composition")["value"] > 0.9
    assert abs(pick(table, "follows_colour")["value"]) < 0.35


def measured_crops(cohort):
    work = composition_of_crops(cohort.pool, 112, parameters_with())
    found = work.compute(None, cohort.pixels, None, cohort.pool["tile_id"].to_list())
    return shards_of(cohort.pool, **found)


def test_controls_answer_as_they_must():
    cohort, of_pixels = phantom_cohort(), measured_crops(phantom_cohort())
    found = {}
    for control, encoder in CONTROLS.items():
        views = embedded(
            cohort, lambda tiles: view_of_crops(tiles, 112, parameters_with()), encoder
        )
        found[control] = measured(CROP_COHERENCE, PARAMETERS, views, of_pixels, cohort.pool)
    truth, colour, nothing = (
        found[name] for name in ("phantom_truth", "stain_statistics", "noise")
    )
    assert pick(truth, "own_cosine")["value"] == pytest.approx(1.0)
    assert pick(truth, "coherence")["verdict"] == "pass"
    assert "does not look" in pick(truth, "follows_composition")["reason"]
    assert pick(colour, "follows_colour")["ci_low"] > 0
    for metric in ("coherence", "follows_composition", "follows_colour"):
        row = pick(nothing, metric)
        assert abs(row["value"]) < 0.12
        assert row["verdict"] in ("inconclusive", "not_applicable", "fail")


def test_composition_does_not_follow_the_strength_of_stain():
    field = phantom_cohort().pixels[0]
    crops = crop_views(parameters_with()).make(field, 0)
    draw = np.array([[1.0, 0.0], [1.0, 0.0]])
    plain, strong = (
        tissue_composition(tile, views)
        for tile, views in (
            (field, crops),
            (
                jittered(field, COMMON_BASIS, 0.2, draw),
                jittered(crops, COMMON_BASIS, 0.2, draw),
            ),
        )
    )
    np.testing.assert_allclose(plain, strong, atol=0.05)
    assert tissue_composition(np.full((8, 8, 3), 200, np.uint8), crops).shape == (5, 2)
    assert jitter_draw(0).shape == draw.shape


def test_one_tile_a_slide_supports_no_coherence():
    pool = some_pool(12, 1)
    table = measure(pool, *normal(12))
    for metric in ("coherence", "own_cosine", "other_cosine"):
        assert "one tile in the pool" in pick(table, metric)["reason"]
    assert pick(table, "coherence")["threshold"] == 0
    assert pick(table, "follows_colour")["value"] is not None


def test_statistics_have_their_columns():
    pool = some_pool()
    views, composition, colour = normal(pool.height)
    statistics = crop_coherence_statistics(
        shards_of(pool, views=views),
        shards_of(pool, composition=composition, colour=colour),
        pool,
        parameters_with(),
    )
    assert dict(statistics.schema) == CROP_SCHEMA


def test_nothing_embedded_and_one_patient_have_reasons():
    pool = some_pool()
    table = measure(pool[:3], *normal(3))
    assert (table["verdict"] == "not_applicable").all()
    assert table["reason"].str.contains("add patients").all()
    nothing = shards_of(pool[:0], views=np.zeros((0, 5, 6)))
    table = measured(CROP_COHERENCE, PARAMETERS, nothing, nothing, pool)
    assert table["reason"].str.contains("no usable slide").all()


def test_the_job_measures_the_crops_that_are_embedded(tmp_path):
    slide = "lung_adeno-north-001-01"
    write_pyramid(tmp_path / "a.tiff", draw_slide(PhantomDesign(size_px=360), slide))
    fields = TileFields(SlideFiles(tmp_path), "a.tiff", (60, 180), (120, 120), 112.0, 112)

    def job(**changes) -> TileJob:
        work = composition_of_crops(pl.DataFrame(), 112, parameters_with(**changes))
        return TileJob("a", "f", fields, ("t0", "t1"), "d", work, None)

    found = job().compute()
    assert found["composition"].shape == (2, 5, 2)
    pixels = np.concatenate([batch for batch, _ in fields.batches(1)])
    crops = crop_views(parameters_with()).make(pixels[1], tile_seed("t1"))
    np.testing.assert_allclose(found["composition"][1], tissue_composition(pixels[1], crops))
    np.testing.assert_allclose(found["colour"][1, 4], lab_statistics(crops[4])[0])
    assert json.dumps(job().header()) != json.dumps(job(seed=1).header())
