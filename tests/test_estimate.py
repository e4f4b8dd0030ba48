"""The estimate counts what is then computed, says where its numbers come from, and what it lacks."""

from __future__ import annotations

import copy

import polars as pl
import pytest

from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS
from pathfm_kedro.estimate.estimate import (
    ARMS,
    entries_of,
    estimate,
    estimate_lines,
    networks_of_arms,
)
from pathfm_kedro.estimate.passes import passes_per_tile, tiles_of_same_tissue
from pathfm_kedro.estimate.sizes import CohortSize, cohort_size
from pathfm_kedro.estimate.speed import Speed, recorded_speed, tried_small_network, tried_speed
from pathfm_kedro.hooks import known_speeds
from pathfm_kedro.pipelines.inheritance.adaptation_fits import plan_adaptation
from pathfm_kedro.pipelines.inheritance.noise_arms import plan_noise_arms
from pathfm_kedro.pipelines.inheritance.pretext_tasks import plan_pretext_tasks
from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial
from pathfm_kedro.pipelines.robustness.pipeline import VIEWS
from pathfm_kedro.sizes import SizedConfigLoader
from pathfm_kedro.statistics.parameters import read_parameters
from tests.conftest import PROJECT
from tests.pipelines.inheritance import test_adaptation as adaptation
from tests.pipelines.inheritance import test_pretext_tasks as pretext
from tests.pipelines.inheritance import test_pretraining_noise as noise
from tests.pipelines.robustness.phantom_views import phantom_references


def size_of(slides: int, patients: int, centers: int, tiles: int, basis: str = "") -> CohortSize:
    """A cohort of which nothing but numbers is known, and so no arm is trained."""
    columns = ("slide_id", "patient_id", "center", "organ", "label", "status", "same_tissue_as")
    schema = dict.fromkeys(columns, pl.String()) | {"n_tiles": pl.Int64()}
    return CohortSize(slides, patients, centers, tiles, basis, pl.DataFrame(schema=schema))


@pytest.fixture(scope="module")
def parameters() -> dict:
    loader = SizedConfigLoader(str(PROJECT / "conf"), env="phantom", **CONFIG_LOADER_ARGS)
    return loader["parameters"]


def only(parameters: dict, **encoders: dict) -> dict:
    """The parameters of a cohort with these encoders, none of which is adapted."""
    given = copy.deepcopy(parameters) | {"encoders": encoders}
    given["adaptation"]["encoders"] = []
    return given


#: How many tiles these take is known once slides are registered.
OF_SOME_COHORTS = {"same_tissue"}


def test_passes_are_those_of_the_views_that_are_made(parameters):
    references = phantom_references()
    counted = passes_per_tile(parameters, centers=references.height)
    for views in VIEWS:
        if not views.with_encoder or views.name in ("fields", *OF_SOME_COHORTS):
            continue
        beside = [references] if views.beside else []
        center = references["center"][0]
        tiles = pl.DataFrame({"field": ["wide"], "center": [center]})
        work = views.work(tiles, 224, *beside, views.read(parameters[views.experiment]))
        assert counted[views.experiment] == len(work.settings), views.name


def test_every_experiment_on_pixels_is_estimated(parameters):
    estimated = set(passes_per_tile(parameters, 3))
    made = {views.experiment for views in VIEWS if views.with_encoder}
    assert estimated == made - OF_SOME_COHORTS


def test_attacks_cost_three_passes_a_step(parameters):
    size = size_of(10, 10, 2, 1000, "")
    given = only(parameters, e={"model": "timm:x"})
    given["adversarial"] |= {
        "universal": None,
        "max_tiles": 5,
        "epsilons": [2, 8],
        "pgd_steps": [10],
    }
    (own,) = [s for s in estimate(given, size, {}) if s.experiment == "adversarial"]
    p = read_parameters(Adversarial, "adversarial", given["adversarial"])
    images = len(p.noises) + len(p.white_box)
    assert own.passes == 5 * (images + 3 * 2 * 11)
    assert (own.hours, own.gigabytes) == (None, None)


def test_a_harmonised_variant_costs_the_attack_on_its_encoder_and_nothing_else(parameters):
    size = size_of(10, 10, 2, 1000, "")
    given = only(parameters, e={"model": "timm:x"}, v={"model": "harmonised:e"})
    given["adversarial"] |= {"universal": None, "harmonised": True}
    shares = estimate(given, size, {})
    own, base = (
        [s for s in shares if (s.encoder, s.experiment) == (name, "adversarial")] for name in "ve"
    )
    assert [s.experiment for s in shares if s.encoder == "v"] == ["adversarial"]
    # Beside its own it is shown the encoder's tiles.
    assert own[0].passes == base[0].passes + given["adversarial"]["max_tiles"]
    lines = estimate_lines(given, size, {}, by_experiment=False)
    assert [line.partition(":")[0] for line in lines[1:3]] == ["e", "v"]
    given["adversarial"]["harmonised"] = False
    assert not [s for s in estimate(given, size, {}) if s.encoder == "v"]


def test_hours_and_gigabytes_are_plain_arithmetic(parameters):
    size = size_of(100, 100, 4, 7200, "")
    given = only(parameters, e={"model": "timm:x"})
    given["engine"] = given["engine"] | {"workers": 4}
    speed = Speed(2.0, "cpu", "", 1000)
    embed = estimate(given, size, {"e": speed})[0]
    assert (embed.experiment, embed.passes) == ("embed", 7200)
    assert embed.hours == pytest.approx(7200 * 2 / 4 / 3600)
    assert embed.gigabytes == pytest.approx(7200 * 1000 * 4 / 1e9)
    on_gpu = estimate(given, size, {"e": Speed(2.0, "cuda", "", 1000)})[0]
    assert on_gpu.hours == pytest.approx(4)
    given["embed"] = {"dtype": "float16"}
    assert estimate(given, size, {"e": speed})[0].gigabytes == pytest.approx(0.0144)


def test_an_encoder_that_is_named_by_its_preset_alone_is_one_by_its_model(parameters):
    """Such entries have no `model` of their own: the run ended before its first slide."""
    short = only(parameters, a={"preset": "uni2_h"}, left_out=None)
    long = only(parameters, a=entries_of(short)["a"], left_out=None)
    size = size_of(10, 10, 2, 2560)
    assert estimate_lines(short, size, {}) == estimate_lines(long, size, {})
    with pytest.raises(ValueError, match=r"encoders\.a\.preset"):
        entries_of(only(parameters, a={"preset": "uni3"}))


def test_before_tiles_are_cut_typical_ones_are_assumed_and_told(parameters):
    listed = pl.DataFrame({"patient_id": ["p", "p", "q"], "center": ["A", "A", "B"]})
    found = cohort_size(parameters, listed)
    assert (found.slides, found.patients, found.centers, found.tiles) == (3, 2, 2, 3 * 256)
    assert "the manifest; tiles are not cut yet, 256 of each slide are assumed" in found.basis
    slides = listed.with_columns(status=pl.Series(["usable", "unusable", "usable"]))
    tiles = pl.DataFrame({"tile_id": range(9), "slide_id": "s"})
    cut = cohort_size(parameters, slides, tiles)
    assert (cut.slides, cut.tiles, cut.basis) == (2, 9, "tiles that were cut")
    drawn = cohort_size(parameters)
    assert (drawn.slides, drawn.patients, drawn.centers) == (48, 48, 3)


def test_the_most_telling_record_counts():
    cost = {"turns": [{"seconds": 8.0}, {"seconds": 12.0}], "tiles": 10, "device": "cpu"}
    runtime = {"runtime": "eager", "tiles_per_second": {"eager": 4.0}, "device": "cuda"}
    assert recorded_speed(cost, runtime, {"dimension": 5}).seconds == 1.0
    unmeasured = cost | {"turns": []}
    tried = recorded_speed(unmeasured, runtime, None)
    assert (tried.seconds, tried.device, tried.dimension) == (0.25, "cuda", None)
    given = recorded_speed(None, runtime | {"tiles_per_second": {}}, None)
    assert (given.seconds, "not timed" in given.basis) == (None, True)


def test_a_trial_now_knows_speed_and_dimension():
    entry = {"model": "control:stain_statistics", "role": "control"}
    found = tried_speed("stain", entry, Speed(), pixels=32)
    assert found.dimension == 12
    assert found.seconds > 0
    assert "now" in found.basis


def test_a_preset_is_all_that_is_written_and_its_dimension_is_known(parameters):
    from kedro.io import DataCatalog

    given = only(parameters, uni2_h={"preset": "uni2_h"})
    speeds = known_speeds(DataCatalog({}), given)
    assert speeds["uni2_h"].dimension == 1536
    lines = estimate_lines(given, size_of(48, 48, 3, 1091), speeds, by_experiment=False)
    assert "hours not known yet" in lines[1]
    assert "GB" in lines[1]


def test_lines_say_what_is_not_known_and_put_controls_apart(parameters):
    size = size_of(48, 48, 3, 1091, "tiles that were cut")
    lines = estimate_lines(
        parameters, size, {"efficientnet_lite0": Speed(0.01, "cpu", "here", 1280)}
    )
    assert lines[0].startswith("size quick: 48 slides of 48 patients, 1,091 tiles (tiles that")
    assert lines[1].startswith("efficientnet_lite0: ")
    assert lines[1].endswith("; here")
    assert "not known yet" not in lines[1]
    assert lines[-1].startswith("controls: ")
    assert lines[-1].endswith("not timed")
    short = estimate_lines(parameters, size, {}, by_experiment=False)
    assert len(short) == 4


def phantom_slides(parameters: dict, each: int = 20) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Slides as the phantom will have, and as many tiles of each."""
    slides = cohort_size(parameters).table.drop("n_tiles")
    tiles = slides.select("slide_id", tile_id=pl.lit([str(i) for i in range(each)])).explode(
        "tile_id"
    )
    return slides, tiles.with_columns(tile_id=pl.format("{}-{}", "slide_id", "tile_id"))


def test_arms_are_counted_as_their_jobs_train_them(parameters):
    given = copy.deepcopy(parameters)
    slides, tiles = phantom_slides(given)
    shares = {
        (s.encoder, s.experiment): s.passes
        for s in estimate(given, cohort_size(given, slides, tiles), {})
    }
    # One center of three is held out; of the other 32 patients half pretrain, half are downstream.
    each = given["arms"]["tiles_per_slide"]
    pretrain, downstream, held_out = (16 * each for _ in range(3))
    tasks, noise = given["pretext_tasks"], given["pretraining_noise"]
    views, clean = 7 * (downstream + held_out), tasks["epochs"] * pretrain
    # SimCLR learns from two views, regression from one, each three passes; random from none.
    assert shares[ARMS, "pretext_tasks"] == 3 * views + (6 + 3) * clean
    probed = 2 * (downstream + held_out) + 2 * noise["nmtune"]["views"] * downstream
    upstream = pretrain - 4 * each  # of each label one patient of four tells the upstream accuracy
    trained = 3 * noise["pretraining"]["epochs"] * upstream + pretrain
    assert shares[ARMS, "pretraining_noise"] == 3 * probed + 2 * trained
    # Batches of 24 steps, in whole passes over a quarter of the patients and all of them.
    trained = 4 * 24 * 16 + 24 * 16 + 2 * 32 * each
    assert shares[ARMS, "task_specific"] == 3 * trained + 2 * (2 * downstream + held_out)
    assert networks_of_arms(given, cohort_size(given, slides, tiles)) == ("trained:small_cnn",)


def test_patients_that_train_a_rival_are_not_embedded(parameters):
    entry = {"model": "trained:small_cnn", "training": {"folds": 4, "epochs": 3}}
    given = only(parameters, cnn=entry)
    slides, tiles = phantom_slides(given)
    size = cohort_size(given, slides, tiles)
    shares = {s.experiment: s.passes for s in estimate(given, size, {}) if s.encoder == "cnn"}
    assert shares["training"] == 3 * 3 * 36 * 20
    assert shares["embed"] == 12 * 20
    untrained = only(parameters, cnn=entry | {"training": {"folds": 4, "epochs": 0}})
    assert "training" not in {s.experiment for s in estimate(untrained, size, {})}


def counted_passes(job) -> int:
    """Tiles that a job shows its small network, three times where it learns from them."""
    import torch

    found = 0

    def count(module, inputs):
        nonlocal found
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            learns = torch.is_grad_enabled() and module.weight.requires_grad
            found += len(inputs[0]) * (3 if learns else 1)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        job.compute()
    finally:
        handle.remove()
    return found


def jobs_of_arms():
    for task in ("simclr", "dino", "masked"):
        yield pytest.param("pretext", task, id=task)
    yield pytest.param("noise", "symmetric", id="noise")
    yield pytest.param("adaptation", "small_cnn", id="adaptation")


@pytest.mark.parametrize(("experiment", "arm"), jobs_of_arms())
def test_a_job_says_how_many_passes_it_takes(experiment, arm):
    if experiment == "pretext":
        half = pretext.pool(patients=12, per=2).with_columns(
            role=pl.when(pl.col("slide_id") < "s06").then(pl.lit("pretrain")).otherwise("role")
        )
        p = pretext.parameters(tasks=(arm,), epochs=2)
        jobs = plan_pretext_tasks(half, pretext.tiles_of(half), {"workers": 1}, p).jobs
        (job,) = [job for job in jobs if job.task == arm]
        passes = job.passes
    elif experiment == "noise":
        own = noise.pool_of()
        p = noise.parameters()
        jobs = plan_noise_arms(own, noise.Pixels(own), {"workers": 1}, p).jobs
        job = next(job for job in jobs if job.arm.kind == arm)
        passes = job.passes
    else:
        own = adaptation.pool()
        p = adaptation.settings(arms=["linear", arm])
        planned = plan_adaptation(
            own, adaptation.Tiles(own), adaptation.TINY, {"workers": 1}, p, name="e"
        )
        job = next(job for job in planned.jobs if job.arm == arm)
        passes = job.passes(job.split())
    # Single tiles more, on which operations are counted and the size of a map is found.
    assert counted_passes(job) - passes in (0, 1, 2)


def test_same_tissue_takes_a_tile_for_each_place_on_each_slide(parameters):
    given = copy.deepcopy(parameters)
    given["phantom"] |= {"repeat_patients": 2, "repeat_changes": ["scanner", "stain"]}
    given["cohort"] |= {"same_tissue": True}
    given["same_tissue"]["max_places"] = 5
    size = cohort_size(given)
    assert size.slides == 48
    assert tiles_of_same_tissue(given, size.table) == 2 * 3 * 5
    shares = [s for s in estimate(given, size, {}) if s.experiment == "same_tissue"]
    assert {s.passes for s in shares} == {30}


def test_work_of_an_encoder_that_is_trained_goes_with_the_area_of_its_input(parameters):
    given = copy.deepcopy(parameters)
    slides, tiles = phantom_slides(given)
    given["engine"] = given["engine"] | {"workers": 1}
    size, speed = cohort_size(given, slides, tiles), Speed(0.01, "cpu", "", 1280)
    (own,) = [
        s
        for s in estimate(given, size, {"efficientnet_lite0": speed})
        if s.experiment == "adaptation"
    ]
    assert own.hours == pytest.approx(own.passes * 0.01 / 3600 * (48 / 224) ** 2)


def test_the_small_network_of_arms_is_timed():
    found = tried_small_network("small_cnn", 16)
    assert (found.dimension, found.seconds > 0) == (128, True)


def test_of_features_nothing_is_run_or_timed(parameters):
    uni, small = {"model": "features:f/uni"}, {"model": "timm:resnet18"}
    both = only(parameters, uni=uni, small=small)
    size = size_of(10, 10, 2, 1000, "")
    assert set(known_speeds({}, both)) == {"small"}
    lines = estimate_lines(both, size, {})
    assert "uni: vectors are read from files" in lines
    assert not [line for line in lines if line.startswith("uni: ") and "passes" in line]
    both["cohort"]["source"] = "features"
    assert known_speeds({}, both) == {}
    assert estimate_lines(both, size, {})[1:] == ["uni: vectors are read from files"]
