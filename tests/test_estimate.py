"""The estimate counts what is then computed, says where its numbers come from, and what it lacks."""

from __future__ import annotations

import copy

import polars as pl
import pytest

from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS
from pathfm_kedro.estimate import (
    CohortSize,
    Speed,
    cohort_size,
    estimate,
    estimate_lines,
    passes_per_tile,
    recorded_speed,
    tried_speed,
)
from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial
from pathfm_kedro.pipelines.robustness.pipeline import VIEWS
from pathfm_kedro.sizes import SizedConfigLoader
from pathfm_kedro.statistics.parameters import read_parameters
from tests.conftest import PROJECT
from tests.pipelines.robustness.phantom_views import phantom_references


@pytest.fixture(scope="module")
def parameters() -> dict:
    loader = SizedConfigLoader(str(PROJECT / "conf"), env="phantom", **CONFIG_LOADER_ARGS)
    return loader["parameters"]


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
    size = CohortSize(10, 10, 2, 1000, "")
    given = copy.deepcopy(parameters) | {"encoders": {"e": {"model": "timm:x"}}}
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


def test_hours_and_gigabytes_are_plain_arithmetic(parameters):
    size = CohortSize(100, 100, 4, 7200, "")
    given = copy.deepcopy(parameters) | {"encoders": {"e": {"model": "timm:x"}}}
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


def test_before_tiles_are_cut_typical_ones_are_assumed_and_told(parameters):
    listed = pl.DataFrame({"patient_id": ["p", "p", "q"], "center": ["A", "A", "B"]})
    found = cohort_size(parameters, listed)
    assert (found.slides, found.patients, found.centers, found.tiles) == (3, 2, 2, 3 * 256)
    assert "the manifest; tiles are not cut yet, 256 of each slide are assumed" in found.basis
    slides = listed.with_columns(status=pl.Series(["usable", "unusable", "usable"]))
    cut = cohort_size(parameters, slides, pl.DataFrame({"tile_id": range(9)}))
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


def test_lines_say_what_is_not_known_and_put_controls_apart(parameters):
    size = CohortSize(48, 48, 3, 1091, "tiles that were cut")
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
    assert len(short) == 3
