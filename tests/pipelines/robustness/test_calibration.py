"""Doses: what is mixed, and that every calibrated check goes from pass to fail."""

from __future__ import annotations

import functools
import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.encoders.controls import PhantomTruth
from pathfm_kedro.pipelines.robustness.appearance import Appearance, appearance_views
from pathfm_kedro.pipelines.robustness.calibration import (
    BlindTiles,
    DosedEmbeddings,
    dose_response,
    mix,
)
from pathfm_kedro.pipelines.robustness.field_of_view import FieldOfView
from pathfm_kedro.pipelines.robustness.field_pool import ROOM_SCHEMA
from pathfm_kedro.pipelines.robustness.field_views import EmbedFields
from pathfm_kedro.pipelines.robustness.pipeline import EXPERIMENTS, INDEX, MARGINS
from pathfm_kedro.pipelines.robustness.rotation import Rotation, rotation_views
from pathfm_kedro.pipelines.robustness.texture import Texture, texture_views
from pathfm_kedro.slides.phantom import tile_truth
from pathfm_kedro.slides.views import inscribed_size
from pathfm_kedro.statistics.measurements import Estimate, measurement, measurement_table
from pathfm_kedro.statistics.parameters import Calibration, read_parameters
from pathfm_kedro.wiring import Experiment
from pathfm_kedro.wiring_across import calibration_node
from tests.conftest import base_parameters
from tests.pipelines.robustness.phantom_views import (
    CONTROLS,
    SIDE,
    Shards,
    drawn_slide,
    embedded,
    phantom_cohort,
    phantom_references,
    shards_of,
)

PARAMETERS = base_parameters()
CALIBRATED = {
    x.name: x
    for x in [INDEX, MARGINS, *EXPERIMENTS]
    if PARAMETERS[x.name].get("calibration") is not None
}
TRUTH, STAIN, CORNER = "phantom_truth", "stain_statistics", "tile_corner"
#: A field in which three places of a small slide have room.
FIELD = 256


def block(name: str) -> dict:
    """An experiment's parameters with fewer draws, and with no more neighbours than there can be.

    A tile has three of its own label and center, in one other patient.
    """
    changed: dict = {"draws": 300}
    if name == "appearance":
        changed |= {"k": 3}
    if name == "cue_conflict":
        judged = PARAMETERS[name]["criteria"][0]
        changed |= {"criteria": [judged | {"at": judged["at"] | {"k": 3}}]}
        changed |= {"calibration": PARAMETERS[name]["calibration"] | {"set": {"k": [3]}}}
    if name == "robustness_margins":
        known = PARAMETERS[name]["calibration"]
        changed |= {"calibration": known | {"set": known["set"] | {"m": [1]}}}
    if name == "field_of_view":
        at = {"field": str(FIELD), "arm": "whole", "over": "tile"}
        judged = {"metric": "macro_f1_gain", "at": at, "below": 0.05}
        changed |= {"fields": [SIDE, FIELD], "n_permutations": 20, "criteria": [judged]}
    return PARAMETERS[name] | changed


def vectors_of(control: str) -> Shards:
    """Vectors of the phantom cohort's tiles."""
    cohort = phantom_cohort()
    return shards_of(cohort.pool, embedding=CONTROLS[control].embed(cohort.pixels, cohort.truth))


def rotated(control: str) -> Shards:
    p = read_parameters(Rotation, "rotation", block("rotation"))
    return embedded(
        phantom_cohort(), lambda _: rotation_views(p, inscribed_size(SIDE)), CONTROLS[control]
    )


def shuffled(control: str) -> Shards:
    p = read_parameters(Texture, "texture", block("texture"))
    return embedded(phantom_cohort(), lambda _: texture_views(p), CONTROLS[control])


def stained(control: str) -> Shards:
    p = read_parameters(Appearance, "appearance", block("appearance"))
    return embedded(
        phantom_cohort(),
        lambda tile: appearance_views(phantom_references(), tile["center"][0], p),
        CONTROLS[control],
    )


def fields_as_drawn() -> Shards:
    """Nested fields around three places of each slide, by what was drawn there."""
    work = EmbedFields(((SIDE, SIDE), (FIELD, FIELD)))
    pool = phantom_cohort().pool
    found: dict[str, dict[str, np.ndarray]] = {}
    for slide in pool["slide_id"].unique(maintain_order=True):
        drawn = drawn_slide(f"{slide}-01")
        pixels, truth = [], []
        for x, y in ((10, 10), (92, 10), (50, 92)):
            pixels.append(drawn.pixels[y : y + FIELD, x : x + FIELD])
            truth.append(
                [
                    tile_truth(drawn.description, x + part.left, y + part.top, part.width)
                    for part in work.parts
                ]
            )
        found[slide] = work.compute(PhantomTruth(), np.stack(pixels), np.array(truth), ["t"] * 3)
    return Shards(found)


@functools.cache
def data(name: str):
    """What the nodes of the robustness pipeline would find in the catalog."""
    pool = phantom_cohort().pool
    of_slides = ["slide_id", "patient_id", "center", "organ", "label"]
    made = {
        "slides": lambda: (
            pool.select(of_slides).unique(maintain_order=True).with_columns(status=pl.lit("usable"))
        ),
        "tiles": lambda: pool.select("tile_id", "slide_id"),
        "tile_pool": lambda: pool.with_columns(field_um=pl.lit(SIDE / 2)),
        "field_pool": lambda: data("tile_pool").with_columns(field=pl.lit(str(FIELD))),
        "field_room": lambda: pl.DataFrame(
            [[str(FIELD), 24, 24, pool.height, pool.height, ""]], ROOM_SCHEMA, orient="row"
        ),
        "stain_references": phantom_references,
        "robustness_k": lambda: {"k": 5, "per_encoder": {}},
        "views.fields.phantom_truth": fields_as_drawn,
        "params:appearance": lambda: block("appearance"),
        "params:robustness_index": lambda: block("robustness_index"),
        "params:calibration": lambda: {"doses": [1.0, 0.0]},
    }
    if name in made:
        return made[name]()
    kind, _, control = name.rpartition(".")
    views = {
        "embeddings": vectors_of,
        "views.rotation": rotated,
        "views.texture": shuffled,
        "views.appearance": stained,
    }
    return views[kind](control)


def calibrated(x: Experiment) -> pl.DataFrame:
    """The table of an experiment's calibration, by the node of the pipeline."""
    own = block(x.name)
    node = calibration_node("robustness", x, own, TRUTH, mix, dose_response, [TRUTH, STAIN, CORNER])
    assert node is not None
    inputs = {n: own if n == f"params:{x.name}" else data(n) for n in dict.fromkeys(node.inputs)}
    (table,) = node.run(inputs).values()
    return table


@functools.cache
def calibrated_by_name(name: str) -> pl.DataFrame:
    return calibrated(CALIBRATED[name])


def at_dose(table: pl.DataFrame, dose: float) -> pl.DataFrame:
    told = table["setting"].str.json_path_match("$.dose").cast(pl.Float64)
    return table.filter(told == dose)


def verdicts(table: pl.DataFrame) -> set[str]:
    return {json.loads(setting)["verdict"] for setting in table["setting"]}


@pytest.mark.parametrize("name", [x for x in CALIBRATED if PARAMETERS[x]["criteria"]])
def test_a_check_passes_what_knows_the_truth_and_fails_what_knows_the_nuisance(name):
    table = calibrated_by_name(name)
    assert verdicts(at_dose(table, 0.0)) == {"pass"}
    assert verdicts(at_dose(table, 1.0)) == {"fail"}
    # What a dosed encoder does is no finding about the cohort.
    assert table["threshold"].null_count() == table.height
    assert table["value"].null_count() == 0
    assert set(table["experiment"]) == {"calibration"}
    assert set(table["subject"]) == {"arm"}


@pytest.mark.parametrize("name", [x for x in CALIBRATED if not PARAMETERS[x]["criteria"]])
def test_a_figure_without_a_check_falls_as_nuisance_takes_over(name):
    table = calibrated_by_name(name)
    (asked,) = PARAMETERS[name]["calibration"]["reads"]
    assert set(table["metric"]) == {asked["metric"]}
    knows, follows = (at_dose(table, dose) for dose in (0.0, 1.0))
    assert (knows["value"] > 0.95).all()
    assert (follows["ci_high"] < 0.8).all()


def test_a_figure_that_is_not_measured_cannot_be_read():
    asked = {"metric": "kept_neighbours", "at": {"view": "shuffled", "grid": 16}}
    told = Calibration(called="a corner", nuisance=CORNER, reads=(asked,))
    row = measurement(
        experiment="texture",
        encoder=TRUTH,
        metric="kept_neighbours",
        setting={"view": "shuffled", "grid": 8},
        estimate=Estimate(0.9, 0.8, 1.0, 72, 24),
    )
    figures = measurement_table([row])
    with pytest.raises(ValueError, match=r"texture\.calibration\.reads: no figure .*'grid': 16"):
        dose_response(lambda dose: figures, "texture", told, [0.0], TRUTH)


def test_without_the_control_that_is_mixed_in_there_is_no_calibration():
    x = CALIBRATED["rotation"]
    asked = ("robustness", x, block(x.name), TRUTH, mix, dose_response)
    assert calibration_node(*asked, [TRUTH, STAIN]) is None
    switched_off = ("robustness", x, block(x.name) | {"calibration": None}, *asked[3:])
    assert calibration_node(*switched_off, [TRUTH, CORNER]) is None


@pytest.mark.parametrize("dose", [0.0, 0.3, 1.0])
def test_the_dose_is_the_share_of_the_squared_length(dose):
    random = np.random.default_rng(0)
    truth, nuisance = (
        Shards(
            {
                slide: {"embedding": random.normal(3.0, scale, (6, 8)).astype(np.float32)}
                for slide in "ab"
            }
        )
        for scale in (1.0, 1000.0)
    )
    mixed = DosedEmbeddings(truth, nuisance, dose).stack(truth.slide_ids)
    squares = (mixed**2).sum(axis=0)
    assert squares[8:].sum() / squares.sum() == pytest.approx(dose, abs=1e-5)


def test_views_are_scaled_as_the_clean_tile_is():
    random = np.random.default_rng(0)
    before = random.normal(size=(30, 3, 4)).astype(np.float32)
    source = Shards({"s": {"views": before}})
    views = DosedEmbeddings(source, source, 0.5).stack(["s"], "views")
    assert views.shape == (30, 3, 8)
    assert (views[:, 0] ** 2).sum(axis=1).mean() == pytest.approx(1, abs=1e-5)
    ratio = (views[:, 1, :4] - views[:, 0, :4]) / (before[:, 1] - before[:, 0])
    assert np.ptp(ratio) < 1e-3


def test_only_tiles_are_blinded():
    random = np.random.default_rng(0)
    parts = random.normal(size=(40, 5, 6)).astype(np.float32)
    truth = Shards({"s": {"parts": parts, "cost": np.ones((40, 2), np.float32)}})
    seeing, blind = (BlindTiles(truth, (1,), dose).stack(["s"], "parts") for dose in (0.0, 1.0))
    np.testing.assert_array_equal(seeing[:, 1], blind[:, 1])
    correlation = np.corrcoef(seeing[:, 0].ravel(), blind[:, 0].ravel())[0, 1]
    assert abs(correlation) < 0.2
    np.testing.assert_array_equal(BlindTiles(truth, (1,), 1.0).stack(["s"], "cost"), 1)


def test_the_fields_that_are_not_blinded_are_the_wide_ones():
    x = CALIBRATED["field_of_view"]
    p = read_parameters(FieldOfView, x.name, block(x.name))
    own = [data(name) if "{e}" not in name else None for name in x.inputs]
    blind = x.dosed(data("views.fields.phantom_truth"), None, 1.0, p, own)
    layout = EmbedFields(p.fields_around(SIDE)).layout
    assert blind.wide == (layout.wholes[1],)
