"""Checks are calibrated through pixels: what reads a cue fails where it is drawn, and only there.

Slides are drawn at dose 0 and 1 of one cue, their tiles changed as the experiment changes them, and
shown to what reads the cue and to what knows the truth.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.encoders.base import Encoder
from pathfm_kedro.encoders.controls import PhantomTruth, StainStatistics
from pathfm_kedro.encoders.cue_readers import CueReader
from pathfm_kedro.encoders.pattern_reader import PatternReader
from pathfm_kedro.pipelines.robustness.adversarial import (
    adversarial_figures,
    adversarial_statistics,
)
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    Adversarial,
    attacked_tiles,
    choose_adversarial_pool,
    fit_adversarial_probes,
)
from pathfm_kedro.pipelines.robustness.adversarial_views import AttackTiles
from pathfm_kedro.pipelines.robustness.appearance import view_of_appearance
from pathfm_kedro.pipelines.robustness.field_pool import ROOM_SCHEMA
from pathfm_kedro.pipelines.robustness.field_views import view_of_fields
from pathfm_kedro.pipelines.robustness.pipeline import EXPERIMENTS, INDEX
from pathfm_kedro.pipelines.robustness.probed_tiles import probed_tiles
from pathfm_kedro.pipelines.robustness.robustness_index import (
    choose_k,
    robustness_index_figures,
    robustness_index_statistics,
)
from pathfm_kedro.pipelines.robustness.rotation import view_of_rotation
from pathfm_kedro.pipelines.robustness.texture import view_of_texture
from pathfm_kedro.slides.center_stains import center_references
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest, tile_truth
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.views import VIEWS
from tests.conftest import base_parameters
from tests.pipelines.robustness.phantom_views import (
    Shards,
    make_pool,
    measured_stains,
    pick,
    shards_of,
)

pytestmark = pytest.mark.slow

#: Tiles of 112 micrometres and fields of 256, as the audit's, at a quarter of its pixels.
SIDE, WIDE, MPP = 112, 256, 1.0
#: Upper left corners of the tiles of a slide, px: with room for the largest field.
CORNERS = ((90, 120), (190, 110), (120, 190))
BLOCKS = base_parameters()
EXPERIMENT = {each.name: each for each in EXPERIMENTS}
VIEW_OF = {
    "rotation": view_of_rotation,
    "texture": view_of_texture,
    "appearance": view_of_appearance,
}
#: At its start attention is the mean, and quick.
NO_ATTENTION = {
    "folds": 2,
    "components": 2,
    "hidden": 2,
    "steps": 0,
    "learning_rate": 0.01,
    "weight_decay": 0.01,
}
QUICKER = {
    "rotation": {
        "angle_step": 90,
        "k": [10],
        "distances": ["euclidean"],
        "criteria": [
            {"metric": "mknn", "at": {"view": "rotated", "angle": 90, "k": 10}, "above": 0.8}
        ],
    },
    "texture": {"grids": [8]},
    "appearance": {"jitter": [0.1], "jpeg": [70], "blur": [1.0], "gamma": [0.8], "max_targets": 1},
    "field_of_view": {
        "fields": [SIDE, WIDE],
        "n_permutations": 100,
        "attention": NO_ATTENTION,
        "criteria": [
            {
                "metric": "macro_f1_gain",
                "at": {"field": str(WIDE), "arm": "whole", "over": "tile"},
                "below": 0.05,
                "min_patients": 72,
            }
        ],
    },
    "robustness_index": {"designs": ["all"], "n_permutations": 100},
    "adversarial": {
        "epsilons": [2],
        "transfer_epsilon": 2,
        "pgd_steps": [2],
        "universal": None,
        "published": None,
        "max_tiles": 24,
    },
}


def parameters_of(experiment: str) -> dict:
    """conf/base, with fewer draws and settings."""
    return BLOCKS[experiment] | {"draws": 400} | QUICKER[experiment]


@dataclass(frozen=True)
class Drawn:
    """Tiles of a cohort, with the wide fields around them and what was drawn there."""

    pool: pl.DataFrame
    fields: np.ndarray
    descriptions: list[dict]

    def cut(self, at: int, side: int) -> np.ndarray:
        """A field of a side around one tile."""
        start = (WIDE - side) // 2
        return self.fields[at, start : start + side, start : start + side]


@functools.cache
def drawn(patients_per_cell: int, tiles: int, site_bias: float = 0.3, **cues: float) -> Drawn:
    """Four labels at three centers."""
    design = PhantomDesign(
        size_px=400, mpp=MPP, patients_per_cell=patients_per_cell, site_bias=site_bias, cues=cues
    )
    rows, fields, descriptions = [], [], []
    before = (WIDE - SIDE) // 2
    for slide in phantom_manifest(design).iter_rows(named=True):
        image = draw_slide(design, slide["slide_id"])
        around = np.pad(image.pixels, ((before, before), (before, before), (0, 0)), "reflect")
        for x, y in CORNERS[:tiles]:
            rows.append(slide | {"x": x, "y": y})
            fields.append(around[y : y + WIDE, x : x + WIDE])
            descriptions.append(image.description)
    pool = make_pool(*([row[name] for row in rows] for name in ("patient_id", "label", "center")))
    pool = pool.with_columns(pl.Series(name, [row[name] for row in rows]) for name in ("x", "y"))
    return Drawn(pool.with_columns(mpp=pl.lit(MPP)), np.stack(fields), descriptions)


@functools.cache
def looks(cue: str, dose: float) -> pl.DataFrame:
    """The look of each center, as measured."""
    cohort = drawn(2, 3, **{cue: dose})
    tiles = np.stack([cohort.cut(i, SIDE) for i in range(cohort.pool.height)])
    return center_references(measured_stains(cohort.pool, tiles), 5)


def of_views(experiment: str, cue: str, dose: float, encoder) -> pl.DataFrame:
    """Measurements of an experiment on the changed tiles of a drawn cohort."""
    cohort, parameters = drawn(2, 3, **{cue: dose}), parameters_of(experiment)
    own = EXPERIMENT[experiment]
    p = own.read(parameters)
    beside = [looks(cue, dose)] if experiment == "appearance" else []
    vectors = []
    for i, description in enumerate(cohort.descriptions):
        tile = cohort.pool[i : i + 1]
        work = VIEW_OF[experiment](tile, SIDE, *beside, p)
        truth = tile_truth(description, tile["x"][0], tile["y"][0], SIDE)[None]
        field = cohort.cut(i, SIDE if work.side is None else work.side[0])[None]
        vectors.append(work.compute(encoder, field, truth, tile["tile_id"].to_list())[VIEWS])
    shards = shards_of(cohort.pool, views=np.concatenate(vectors))
    statistics = own.statistics(shards, cohort.pool, *beside, parameters)
    return own.measurements(statistics, parameters, encoder="e").filter(stratum="all")


def gained(dose: float) -> pl.DataFrame:
    """Measurements of the field of view: one place of each of 72 patients."""
    cohort, parameters = drawn(6, 1, field=dose), parameters_of("field_of_view")
    own = EXPERIMENT["field_of_view"]
    pool = cohort.pool.with_columns(field=pl.lit(str(WIDE)))
    work = view_of_fields(pool, SIDE, own.read(parameters))
    found = work.compute(CueReader("field"), cohort.fields, None, pool["tile_id"].to_list())
    shards = shards_of(pool, **found)
    room = pl.DataFrame([[str(WIDE), 72, 72, 72, 72, ""]], schema=ROOM_SCHEMA, orient="row")
    statistics = own.statistics(shards, pool, parameters)
    return own.measurements(statistics, room, parameters, encoder="e")


def indexed(control: Encoder) -> dict:
    """The judged row of the robustness index on 48 slides whose centers differ as far as they can."""
    cohort, parameters = drawn(4, 3, site_bias=1.0), parameters_of("robustness_index")
    places = zip(cohort.descriptions, cohort.pool.select("x", "y").iter_rows(), strict=True)
    truth = np.stack([tile_truth(description, *at, SIDE) for description, at in places])
    tiles = np.stack([cohort.cut(i, SIDE) for i in range(cohort.pool.height)])
    slides = cohort.pool.unique("slide_id", maintain_order=True).with_columns(
        status=pl.lit("usable")
    )
    shards = shards_of(cohort.pool, embedding=control.embed(tiles, truth))
    p = INDEX.read(parameters)
    counts = robustness_index_statistics(slides, cohort.pool, shards, p)
    figures = robustness_index_figures(counts, choose_k(parameters, control=counts), p)
    table = measure(figures, "robustness_index", "control", p.criteria)
    return table.drop_nulls("threshold").row(0, named=True)


@pytest.mark.parametrize(
    ("control", "verdict"), [(PhantomTruth(), "pass"), (StainStatistics(), "fail")]
)
def test_48_drawn_slides_decide_the_robustness_index_either_way(control, verdict):
    row = indexed(control)
    assert (row["metric"], row["n_patients"], row["verdict"]) == ("ri_minus_null", 48, verdict)


#: The cue, the experiment that sees it, and the figure with the setting that it is read at.
CASES = {
    "orientation": ("rotation", "mknn", {"view": "rotated", "angle": 90, "k": 10}),
    "arrangement": ("texture", "kept_neighbours", {"view": "shuffled", "grid": 8}),
    "fine_detail": ("appearance", "scanner_kept_neighbours", {}),
}


@pytest.mark.parametrize("cue", CASES)
def test_what_reads_a_cue_passes_without_it_and_fails_where_it_is_drawn(cue):
    experiment, metric, setting = CASES[cue]
    rows = {
        dose: pick(of_views(experiment, cue, dose, CueReader(cue)), metric, **setting)
        for dose in (0.0, 1.0)
    }
    assert rows[0.0]["ci_low"] > 0.8
    assert rows[1.0]["ci_high"] < 0.8
    # Texture is described and has no threshold.
    if experiment != "texture":
        assert [rows[dose]["verdict"] for dose in (0.0, 1.0)] == ["pass", "fail"]


@pytest.mark.parametrize("cue", CASES)
def test_what_knows_the_truth_passes_at_full_dose(cue):
    experiment, metric, setting = CASES[cue]
    assert pick(of_views(experiment, cue, 1.0, PhantomTruth()), metric, **setting)["value"] == 1.0


@pytest.mark.parametrize(("dose", "verdict"), [(0.0, "pass"), (1.0, "fail")])
def test_a_label_that_most_tiles_miss_needs_a_wider_field(dose, verdict):
    table = gained(dose)
    row = pick(table, "macro_f1_gain", arm="whole", over="tile")
    assert row["verdict"] == verdict
    # The label can be read at either dose, in wide fields at the least.
    wide = pick(table, "macro_f1", arm="whole")
    assert wide["ci_low"] > wide["null_high"]


@functools.cache
def attacked(dose: float) -> tuple[pl.DataFrame, Shards]:
    """Measurements of the attack on a tile of each of 24 patients, and what was made of the tiles."""
    cohort = drawn(2, 3, orientation=0.0)
    p, reader = (
        read_parameters(Adversarial, "adversarial", parameters_of("adversarial")),
        PatternReader(dose),
    )
    places = zip(cohort.descriptions, cohort.pool.select("x", "y").iter_rows(), strict=True)
    truth = np.stack([tile_truth(description, *at, SIDE) for description, at in places])
    pixels = np.stack([cohort.cut(i, SIDE) for i in range(cohort.pool.height)])
    slides = cohort.pool.unique("slide_id", maintain_order=True).with_columns(
        status=pl.lit("usable")
    )
    shards = shards_of(cohort.pool, embedding=reader.embed(pixels, truth))
    tiles = cohort.pool.drop("patient_id", "center", "organ", "label")
    pool = choose_adversarial_pool(slides, tiles, p)
    probes = fit_adversarial_probes(slides, tiles, shards, pool, p)
    row_of, found = {tile: i for i, tile in enumerate(cohort.pool["tile_id"])}, {}
    for (slide,), rows in attacked_tiles(pool, probes).group_by("slide_id", maintain_order=True):
        own = [row_of[tile] for tile in rows["tile_id"]]
        work = AttackTiles(probed_tiles(rows, probes), np.zeros((0, SIDE, SIDE, 3), np.int8), p)
        found[slide] = work.compute(reader, pixels[own], truth[own], rows["tile_id"].to_list())
    attacks = Shards(found)
    statistics = adversarial_statistics(attacks, Shards({}), pool, probes, p)
    return measure(adversarial_figures(statistics, {}, p), "adversarial", "e", p.criteria), attacks


def test_an_attack_takes_what_the_dose_of_its_reader_gives():
    drops = [pick(attacked(dose)[0], "accuracy_drop_beyond_noise") for dose in (0.0, 0.5, 1.0)]
    assert [drop["verdict"] for drop in drops][::2] == ["pass", "fail"]
    none, some, all_of_it = (drop["value"] for drop in drops)
    assert none == 0 < some < all_of_it == 1


def test_an_attack_moves_its_reader_by_no_more_than_the_dose_and_noise_by_next_to_nothing():
    vectors = attacked(1.0)[1].stack(attacked(1.0)[1].slide_ids).astype(float)
    moved = np.abs(vectors - vectors[:, :1]).max(axis=2)
    # Clean, sign noise, Gaussian noise, FGSM, PGD; three times two grey levels at most.
    assert moved[:, 1].max() < 0.1
    assert moved[:, 3:].min() > 0.6
    assert moved[:, 3:].max() < 6.0
