"""Tissue shown again: found again by what knows the tissue, not by what knows the colour."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.encoders.base import Encoder
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.robustness.pipeline import SAME_TISSUE
from pathfm_kedro.pipelines.robustness.same_tissue import (
    SAME_TISSUE_SCHEMA,
    SameTissue,
    view_of_same_tissue,
    weighted_medians,
)
from pathfm_kedro.pipelines.robustness.tissue_pairs import (
    TISSUE_PAIRS_SCHEMA,
    choose_paired_tiles,
    register_repeats,
)
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.fields import slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.phantom import PhantomDesign, draw_slide, phantom_manifest, write_pyramid
from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.views import VIEWS
from tests.pipelines.robustness.phantom_views import CONTROLS, Shards, pick, refuses_nan

PARAMETERS = {
    "registration_mpp": 4.0,
    "min_correlation": 0.3,
    "max_residual_um": 22.0,
    "max_places": 40,
    "k": [1, 5],
    "probe": {"folds": 2, "C": 1.0},
    "probe_tiles": 400,
    "criteria": [{"metric": "paired_top_k", "at": {"kind": "any", "k": 1}, "above": 0.5}],
    "draws": 300,
    "seed": 0,
}
TILE = {
    "pixels": 64, "mpp": 1.0, "min_tissue_fraction": 0.7, "max_tiles_per_slide": 60,
    "overview_mpp": 8.0, "mosaic": {"colour_clusters": 3, "share": 0.1}, "seed": 0,
}  # fmt: skip
ENGINE = {"workers": 1, "max_failed_share": 0.5}


@dataclass(frozen=True)
class Drawn:
    """A cohort of eight patients on disk, whose tissue was stained and scanned again."""

    slides: pl.DataFrame
    files: SlideFiles
    tiles: pl.DataFrame


def draw(folder, dose: float, n_patients: int) -> Drawn:
    design = PhantomDesign(
        size_px=416, mpp=1.0, labels={"kidney_clear": "kidney", "lung_adeno": "lung"},
        centers=("north", "south"), patients_per_cell=2, site_bias=0.7,
        repeat_patients=n_patients, repeat_changes=("both",), repeat_dose=dose,
    )  # fmt: skip
    manifest = phantom_manifest(design)
    if n_patients < 8:
        drawn = manifest.filter(pl.col("same_tissue_as") != "")["same_tissue_as"].to_list()
        manifest = manifest.filter(
            (pl.col("same_tissue_as") != "") | pl.col("slide_id").is_in(drawn)
        )
    for slide_id, path in manifest.select("slide_id", "path").iter_rows():
        write_pyramid(folder / path, draw_slide(design, slide_id))
    files = SlideFiles(folder)
    slides = describe_slides(check_manifest(manifest), files, {"mpp_bounds": [0.1, 10]}, ENGINE)
    return Drawn(slides, files, cut_tiles(slides, files, TILE, ENGINE)[0])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pairs"), 1.0, 8)


@pytest.fixture(scope="module")
def pairs(drawn):
    return register_repeats(drawn.slides, drawn.files, PARAMETERS, ENGINE)


def parameters(**changes) -> SameTissue:
    return read_parameters(SameTissue, "same_tissue", PARAMETERS | changes)


def paired_of(drawn: Drawn, pairs: pl.DataFrame) -> pl.DataFrame:
    return choose_paired_tiles(drawn.slides, drawn.tiles, pairs, PARAMETERS)


def embedded(drawn: Drawn, paired: pl.DataFrame, encoder: Encoder) -> Shards:
    """Views of the paired tiles as jobs would embed them."""
    shards = {}
    for slide, fields in slide_fields(drawn.slides, paired, drawn.files, TILE["pixels"]):
        rows = paired.filter(slide_id=slide["slide_id"])
        work = view_of_same_tissue(rows, TILE["pixels"], parameters())
        read = fields if work.side is None else fields.widened(*work.side)
        (pixels, truth), ids = next(read.batches(len(rows))), rows["tile_id"].to_list()
        shards[slide["slide_id"]] = work.compute(encoder, pixels, truth, ids)
    return Shards(shards)


def of_cohort(drawn: Drawn, encoder: Encoder) -> Shards:
    shards = {}
    for slide, fields in slide_fields(drawn.slides, drawn.tiles, drawn.files, TILE["pixels"]):
        pixels, truth = next(fields.batches(100))
        shards[slide["slide_id"]] = {"embedding": encoder.embed(pixels, truth)}
    return Shards(shards)


def measured(drawn, pairs, control: str):
    encoder = CONTROLS[control]
    paired = paired_of(drawn, pairs)
    vectors = [embedded(drawn, paired, encoder), paired, drawn.slides, drawn.tiles]
    statistics = SAME_TISSUE.statistics(*vectors, of_cohort(drawn, encoder), PARAMETERS)
    table = SAME_TISSUE.measurements(statistics, pairs, PARAMETERS, encoder=control)
    refuses_nan(table)
    return statistics, table


@pytest.fixture(scope="module")
def of(drawn, pairs):
    return functools.cache(lambda control: measured(drawn, pairs, control))


def test_pairs_register_and_tiles_of_other_experiments_are_of_references_alone(drawn, pairs):
    assert pairs["status"].to_list() == ["registered"] * 8
    assert pairs["correlation"].min() > 0.6
    assert pairs["residual_um"].max() < 4
    repeats = set(drawn.slides.filter(status="repeat")["slide_id"])
    assert len(repeats) == 8
    assert repeats.isdisjoint(drawn.tiles["slide_id"].to_list())
    paired = paired_of(drawn, pairs)
    assert set(paired["slide_id"]) == set(drawn.slides["slide_id"])
    counts = paired.group_by("reference_id").agg(pl.col("place").n_unique())
    assert counts["place"].max() <= PARAMETERS["max_places"]
    assert paired["tile_id"].n_unique() == paired.height


def test_truth_passes_colour_fails_and_noise_lies_at_chance(of):
    truth, colour = (pick(of(c)[1], "paired_top_k", kind="any", k=1) for c in
                     ("phantom_truth", "stain_statistics"))  # fmt: skip
    assert truth["verdict"] == "pass"
    assert truth["value"] > 0.9
    assert colour["verdict"] == "fail"
    noise = pick(of("noise")[1], "paired_top_k", kind="any", k=1)
    assert noise["null_low"] <= noise["null_high"] < 0.2
    assert abs(noise["value"] - noise["null_high"]) < 0.1
    assert "chance 1/n" in noise["reason"]
    assert "of " in noise["reason"]
    same = pick(of("phantom_truth")[1], "paired_top_k", kind="both", k=1)
    assert same["value"] == truth["value"]
    assert (
        "differs in the stain alone"
        in pick(of("noise")[1], "paired_cosine", kind="stain")["reason"]
    )


def test_cosine_alone_misleads(of):
    colour = of("stain_statistics")[1]
    assert pick(colour, "paired_cosine", kind="any")["value"] > 0.95
    assert pick(colour, "cosine_excess", kind="any")["value"] < 0.1
    assert pick(colour, "paired_top_k", kind="any", k=1)["value"] < 0.5


def test_a_probe_that_knows_the_tissue_agrees_and_is_calibrated_alike(of):
    table = of("phantom_truth")[1]
    agreement = pick(table, "probe_agreement", kind="any")
    assert agreement["value"] == 1.0
    assert agreement["n_patients"] == 8
    shift = pick(table, "calibration_shift", kind="any")
    assert abs(shift["value"]) < 0.02
    assert shift["null_low"] == 0
    assert pick(of("noise")[1], "probe_agreement", kind="any")["value"] < 0.9


def test_sums_are_those_of_a_loop_over_places(drawn, pairs, of):
    paired, p = paired_of(drawn, pairs), parameters()
    vectors = {
        (slide, place): vector
        for (slide,), rows in paired.group_by("slide_id")
        for place, vector in zip(
            rows["place"],
            unit(embedded(drawn, rows, CONTROLS["stain_statistics"]).stack([slide], VIEWS)[:, 0]),
            strict=True,
        )
    }
    statistics = of("stain_statistics")[0]
    first, second = statistics.row(0, named=True)["first"], statistics.row(0, named=True)["second"]
    own = statistics.filter(first=first, second=second)
    places = sorted({p for s, p in vectors if s == first} & {p for s, p in vectors if s == second})
    assert own["n_pool"].unique().to_list() == [len(places)]
    assert own["n_tiles"].sum() == len(places)
    cosine, hits = 0.0, np.zeros(len(p.k))
    for a, b in ((first, second), (second, first)):
        for place in places:
            near = [float(vectors[a, place] @ vectors[b, other]) for other in places]
            mine = float(vectors[a, place] @ vectors[b, place])
            cosine += mine / 2
            hits += [(sum(n > mine for n in near) < k) / 2 for k in p.k]
    assert own["cosine_sum"].sum() == pytest.approx(cosine)
    assert np.array(own["hits"].to_list()).sum(axis=0) == pytest.approx(hits)


def test_equal_vectors_find_their_place_as_often_as_chance():
    paired = synthetic(patients=2)
    views = {s: {VIEWS: np.ones((10, 1, 3), np.float32)} for s in paired["slide_id"].unique()}
    table = figures_of(paired, Shards(views))
    row = pick(table, "paired_top_k", kind="any", k=5)
    assert row["value"] == pytest.approx(0.5) == row["null_low"]
    assert pick(table, "cosine_excess", kind="any")["value"] == pytest.approx(0, abs=1e-12)


def synthetic(patients: int, slides_each: int = 3) -> pl.DataFrame:
    """Ten places of each patient's tissue on several slides."""
    rows = [
        {
            "tile_id": f"{p}{s}@{i}", "slide_id": f"{p}{s}", "patient_id": f"p{p}", "label": "x",
            "scanner": f"scanner{s}", "stain": "unspecified", "reference_id": f"{p}0",
            "place": f"{i:02d}", "region": f"{p} {i % 4}",
        }
        for p in range(patients)
        for s in range(slides_each)
        for i in range(10)
    ]  # fmt: skip
    return pl.DataFrame(rows).sort("slide_id", "place")


def figures_of(paired: pl.DataFrame, views: Shards, **changes) -> pl.DataFrame:
    nothing = pl.DataFrame(
        schema=dict.fromkeys(
            ("slide_id", "tile_id", "patient_id", "center", "organ", "label"), pl.String()
        )
    )
    settings = PARAMETERS | changes
    inputs = [views, paired, nothing, nothing.select("tile_id", "slide_id"), Shards({})]
    pairs = pl.DataFrame({"status": ["registered"], "reason": [""]})
    table = SAME_TISSUE.measurements(
        SAME_TISSUE.statistics(*inputs, settings), pairs, settings, encoder="e"
    )
    refuses_nan(table)
    return table


def test_one_patient_has_an_interval_over_regions_that_decides_nothing():
    paired, rng = synthetic(patients=1), np.random.default_rng(0)
    place = rng.standard_normal((10, 1, 8))
    views = {
        s: {VIEWS: (place + 0.5 * rng.standard_normal((10, 1, 8))).astype(np.float32)}
        for s in paired["slide_id"].unique().sort()
    }
    row = pick(figures_of(paired, Shards(views)), "paired_top_k", kind="any", k=1)
    assert row["ci_low"] < row["value"] <= row["ci_high"]
    assert row["n_patients"] == 1
    assert row["verdict"] == "undecidable"
    assert "4 regions of this tissue" in row["caveat"]


def test_a_figure_of_one_of_several_patients_is_said_to_be_one_patients():
    """The others show too few places for this k: their slides say nothing of it."""
    paired, rng = synthetic(patients=3), np.random.default_rng(0)
    paired = paired.filter((pl.col("patient_id") == "p0") | (pl.col("place") < "04"))
    views = {
        str(name): {VIEWS: rng.standard_normal((rows.height, 1, 8)).astype(np.float32)}
        for (name,), rows in paired.group_by("slide_id", maintain_order=True)
    }
    table = figures_of(paired, Shards(views))
    one, all_ = (pick(table, "paired_top_k", kind="any", k=k) for k in (5, 1))
    assert (one["n_patients"], all_["n_patients"]) == (1, 3)
    assert "one patient: the interval is over 4 regions" in one["caveat"]
    assert all_["caveat"] in (None, "")
    assert one["ci_low"] < one["value"] < one["ci_high"]


def test_all_pairs_of_a_tissue_count_and_unknown_changes_only_among_all():
    paired, rng = synthetic(patients=2), np.random.default_rng(0)
    views = {
        s: {VIEWS: rng.standard_normal((10, 1, 8)).astype(np.float32)}
        for s in paired["slide_id"].unique()
    }
    table = figures_of(paired, Shards(views))
    assert pick(table, "pool_size", kind="any")["n"] == 6  # three pairs of each patient's slides
    assert pick(table, "pool_size", kind="scanner")["n"] == 6
    without = figures_of(paired.with_columns(scanner=pl.lit("unspecified")), Shards(views))
    assert pick(without, "pool_size", kind="any")["n"] == 6
    assert pick(without, "pool_size", kind="scanner")["value"] is None
    few = figures_of(paired, Shards(views), k=[1, 10], criteria=[])
    assert "more than 10 places" in pick(few, "paired_top_k", kind="any", k=10)["reason"]


def test_a_cohort_without_pairs_says_what_to_fill_in():
    pairs = pl.DataFrame(schema=TISSUE_PAIRS_SCHEMA)
    statistics = pl.DataFrame(schema=SAME_TISSUE_SCHEMA)
    table = SAME_TISSUE.measurements(statistics, pairs, PARAMETERS, encoder="e")
    row = pick(table, "paired_top_k", kind="any", k=1)
    assert row["verdict"] == "not_applicable"
    assert "'same_tissue_as'" in row["reason"]


def test_what_does_not_register_is_listed_with_the_reason(drawn):
    slides = drawn.slides.filter(
        pl.col("patient_id").is_in(drawn.slides["patient_id"].unique().sort()[:3])
    )
    repeats = slides.filter(status="repeat").sort("slide_id")["slide_id"].to_list()
    references = slides.filter(status="usable").sort("slide_id")["slide_id"].to_list()
    changed = slides.with_columns(
        # Another patient's tissue, a reference without a file, and one that the manifest registers.
        same_tissue_as=pl.col("slide_id").replace_strict(
            dict(zip(repeats, [references[1], references[1], references[2]], strict=True)), default=None
        ),
        offset_x=pl.when(slide_id=repeats[2]).then(pl.lit(3.0)),
        offset_y=pl.when(slide_id=repeats[2]).then(pl.lit(-4.0)),
        path=pl.when(slide_id=repeats[1]).then(pl.lit("slides/nothing.tiff")).otherwise("path"),
    )  # fmt: skip
    found = register_repeats(changed, drawn.files, PARAMETERS, ENGINE)
    assert found["status"].to_list() == ["unregistered", "unregistered", "registered"]
    assert "check that both slides show the same tissue" in found["reason"][0]
    assert "nothing" in found["reason"][1] or "…" in found["reason"][1]
    given = found.row(2, named=True)
    assert (given["source"], given["offset_x"], given["offset_y"]) == ("given", 3.0, -4.0)
    table = SAME_TISSUE.measurements(
        pl.DataFrame(schema=SAME_TISSUE_SCHEMA), found, PARAMETERS, encoder="e"
    )
    lost = pick(table, "unregistered")
    assert lost["value"] == 2
    assert lost["n"] == 3
    assert "no rotation and shift" in lost["reason"]


@pytest.mark.parametrize(
    "given", [{"offset_x": 1e9}, {"offset_x": -1e9}, {"offset_y": 1e5}, {"scale": 1e-9}]
)
def test_a_given_registration_that_lays_tissue_beside_tissue_is_listed(drawn, given):
    first = drawn.slides.filter(status="repeat").sort("slide_id").row(0, named=True)
    known = {"offset_x": 0.0, "offset_y": 0.0, **given}
    pair = drawn.slides.filter(
        pl.col("slide_id").is_in([first["slide_id"], first["same_tissue_as"]])
    ).with_columns(pl.lit(value).alias(name) for name, value in known.items())
    found = register_repeats(pair, drawn.files, PARAMETERS, ENGINE).row(0, named=True)
    assert (found["status"], found["source"]) == ("unregistered", "given")
    assert "correct offset_x and offset_y" in found["reason"]


def test_weighted_medians_are_those_of_repeated_values():
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal(9), rng.integers(0, 4, (50, 9))
    weights[:, 0] += 1
    expected = [np.median(np.repeat(values, w)) for w in weights]
    assert weighted_medians(values, weights.astype(float)) == pytest.approx(expected)


@pytest.mark.slow
def test_at_a_dose_of_nothing_colour_finds_every_place(tmp_path):
    drawn = draw(tmp_path, 0.0, 2)
    pairs = register_repeats(drawn.slides, drawn.files, PARAMETERS, ENGINE)
    assert pairs["correlation"].min() > 0.999
    # The noise is made from a digest of the pixels: it finds a place only where all of them are equal.
    for control in ("noise", "stain_statistics", "phantom_truth"):
        row = pick(measured(drawn, pairs, control)[1], "paired_top_k", kind="any", k=1)
        assert row["value"] == 1.0
