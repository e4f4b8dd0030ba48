"""Mosaics of wider fields: planted cohorts where it is known which mosaic must find more."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.retrieve.mosaic_field import (
    MosaicField,
    mosaic_field_figures,
    mosaic_field_matches,
)
from pathfm_kedro.pipelines.retrieve.mosaic_views import (
    PLACES_SCHEMA,
    choose_mosaic_places,
    view_of_mosaic_fields,
)
from pathfm_kedro.slides.nested_fields import Layout
from pathfm_kedro.wiring import Experiment
from tests.pipelines.retrieve.planted import slides_of

FIELD = Experiment("mosaic_field", MosaicField, mosaic_field_matches, mosaic_field_figures, [])
PLACES, DIMENSION = 3, 6
PARAMETERS = {
    "families": ["median_min", "mean"],
    "scopes": ["within_organ"],
    "votes": ["mv5"],
    "fields": [32, 64, 128],
    "same_tissue": [64],
    "places": PLACES,
    "exclude": "patient",
    "k": 5,
    "min_patients": 2,
    "n_permutations": 40,
    "draws": 200,
    "seed": 0,
    "criteria": [
        {
            "metric": "gain_at_equal_compute",
            "at": {"field": "64", "family": "median_min"},
            "below": 0.05,
            "min_patients": 72,
        }
    ],
}
#: Of 64 px around a tile of 32: the tile, the field, the four tiles that cover it; then 128 px.
TILE, WIDE, COVERING, WIDEST = 0, 1, [2, 3, 4, 5], 6


class Shards(dict):
    """Tensor ``parts`` of each slide."""

    @property
    def slide_ids(self):
        return list(self)

    def stack(self, slide_ids, name):
        assert name == "parts"
        return np.concatenate([self[slide] for slide in slide_ids])


def planted(knowing, n=90, widest=True):
    """Slides whose vectors know the label in some parts alone; every third has no room for 128 px."""
    generator = np.random.default_rng(1)
    label = np.arange(n) % 3
    slides = slides_of(label)
    shards, rows = Shards(), []
    for i, row in enumerate(slides.iter_rows(named=True)):
        large = widest and i % 2 == 0
        parts = generator.normal(size=(PLACES, 7 if large else 6, DIMENSION)).astype(np.float32)
        parts[:, [part for part in knowing if part < parts.shape[1]], label[i]] += 4
        shards[row["slide_id"]] = parts
        carried = {k: row[k] for k in ("slide_id", "patient_id", "center", "organ", "label")}
        rows += [
            carried
            | {"tile_id": f"{row['slide_id']}@{j}", "field_um": 16.0, "mpp": 0.5}
            | {"field": "128" if large else "64"}
            for j in range(PLACES)
        ]
    return slides, shards, pl.DataFrame(rows, schema=PLACES_SCHEMA)


def measured(knowing, **changes):
    parameters = PARAMETERS | changes
    slides, shards, places = planted(knowing)
    statistics = FIELD.statistics(shards, places, parameters)
    table = FIELD.measurements(statistics, slides, parameters, encoder="e")
    return table.with_columns(
        *(
            pl.Series(key, [json.loads(s).get(key) for s in table["setting"]], pl.String())
            for key in ("field", "family", "mosaic")
        )
    )


@functools.cache
def of(*knowing: int):
    """What is measured where these parts know the label."""
    return measured(knowing)


def one(table, **at):
    return table.filter(**at).row(0, named=True)


@pytest.mark.parametrize("family", ["median_min", "mean"])
def test_what_wide_patches_alone_know_is_gained_and_what_tiles_know_too_is_not(family):
    wide = of(WIDE)
    gain = one(wide, metric="gain_at_equal_compute", field="64", family=family)
    assert gain["ci_low"] > 0.05
    assert one(wide, metric="gain_at_equal_tissue", field="64", family=family)["ci_low"] > 0.05
    judged = one(wide, metric="gain_at_equal_compute", field="64", family="median_min")
    assert judged["verdict"] == "fail"
    covering = of(WIDE, *COVERING)
    row = one(covering, metric="gain_at_equal_tissue", field="64", family=family)
    assert abs(row["value"]) < 0.05
    every = of(TILE, WIDE, *COVERING)
    row = one(every, metric="gain_at_equal_compute", field="64", family="median_min")
    assert row["verdict"] != "fail"


def test_where_no_mosaic_knows_the_label_there_is_no_verdict():
    row = one(of(), metric="gain_at_equal_compute", field="64", family="median_min")
    assert row["verdict"] not in ("pass", "fail")


def test_passes_and_tissue_are_counted():
    table = of(WIDE)
    passes = {"tile": PLACES, "wide": PLACES, "covering": 4 * PLACES}
    area = {"tile": 32**2, "wide": 64**2, "covering": 64**2}
    for mosaic in passes:
        at = {"field": "64", "mosaic": mosaic}
        assert one(table, metric="passes_per_slide", **at)["value"] == passes[mosaic]
        tissue = one(table, metric="megapixels_per_slide", **at)
        assert tissue["value"] == pytest.approx(PLACES * area[mosaic] / 1e6)
        assert tissue["n_patients"] == 90
    assert one(table, metric="passes_per_slide", field="128", mosaic="wide")["n_patients"] == 45


def test_what_is_not_there_has_its_reason():
    table = measured([WIDE], fields=[32, 64, 128, 256])
    none = one(table, metric="gain_at_equal_compute", field="256")
    assert "room for a field of 256 px" in none["reason"]
    uncovered = one(table, metric="gain_at_equal_tissue", field="128")
    assert "mosaic_field.same_tissue" in uncovered["reason"]
    slides, _, places = planted([WIDE], n=6)
    off = PARAMETERS | {"places": 0}
    statistics = FIELD.statistics(Shards(), places.clear(), off)
    rows = FIELD.measurements(statistics, slides, off, encoder="e")
    assert rows["value"].null_count() == rows.height
    assert rows["reason"].str.contains("set mosaic_field.places").all()


def cohort_of_tiles():
    """A slide of 400 px with two tiles in the middle, one at the edge; and one without room."""
    carried = {"status": "usable", "mpp": 0.5, "organ": "o", "label": "l", "center": "c"}
    slides = pl.DataFrame(
        [
            carried | {"slide_id": "s", "patient_id": "p", "width": 400, "height": 400},
            carried | {"slide_id": "t", "patient_id": "q", "width": 40, "height": 40},
        ]
    )
    common = {"field_um": 16.0, "mpp": 0.5, "in_mosaic": True}
    corners = [
        ("s", 180, 180, 0),
        ("s", 200, 180, 0),
        ("s", 190, 190, 1),
        ("s", 0, 0, 2),
        ("t", 4, 4, 0),
    ]
    tiles = pl.DataFrame(
        [
            common
            | {"slide_id": slide, "tile_id": f"{slide}@{i}", "x": x, "y": y, "colour_cluster": c}
            for i, (slide, x, y, c) in enumerate(corners)
        ]
    )
    return slides, tiles


def test_places_have_room_and_colour_clusters_take_turns():
    slides, tiles = cohort_of_tiles()
    places = choose_mosaic_places(slides, tiles, PARAMETERS)
    # Neither the tile at the edge nor the small slide has room for a wider field.
    assert places["tile_id"].to_list() == ["s@0", "s@1", "s@2"]
    assert places["field"].unique().to_list() == ["128"]
    two = choose_mosaic_places(slides, tiles.reverse(), PARAMETERS | {"places": 2})
    assert two["tile_id"].to_list() == ["s@0", "s@2"]
    assert choose_mosaic_places(slides, tiles, PARAMETERS | {"places": 0}).is_empty()


def test_parts_are_crops_around_one_centre():
    """An encoder that gives a picture's corners and mean says which pixels it was shown."""
    work = view_of_mosaic_fields(pl.DataFrame({"field": ["128"]}), 32, MosaicField(**PARAMETERS))
    assert work.side == (128, 128)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)

    def embed(pictures, truth):
        assert truth is None
        flat = pictures.reshape(len(pictures), -1).astype(np.float32)
        return np.stack([flat[:, 0], flat[:, -1], flat.mean(axis=1)], axis=1)

    found = work.compute(SimpleNamespace(embed=embed), pixels, None, ["a", "b"])["parts"]
    corner = {TILE: 48, WIDE: 32, WIDEST: 0}
    for part, start in corner.items():
        crop = pixels[1, start : 128 - start, start : 128 - start].astype(float)
        expected = [crop[0, 0, 0], crop[-1, -1, -1], crop.mean()]
        np.testing.assert_allclose(found[1, part], expected, rtol=1e-5)
    # The covering tiles show the field, each of its pixels once.
    np.testing.assert_allclose(found[:, COVERING, 2].mean(axis=1), found[:, WIDE, 2], rtol=1e-5)


#: Of 128 px around a tile of 32, covered: the 16 tiles, and four of 64 px.
COVERED = {
    "same_tissue": [128],
    "coarser": 2,
    "fields": [32, 128],
    "families": ["attention"],
    "attention": {
        "folds": 2, "components": 6, "hidden": 4, "steps": 10,
        "learning_rate": 0.05, "weight_decay": 0.01,
    },
}  # fmt: skip


def covered(knowing):
    """Two organs; parts as Layout orders them, of which some know the label in one organ alone."""
    layout = Layout.of([(32, 32), (128, 128)], None, 2)
    generator = np.random.default_rng(3)
    label = np.arange(64) % 4
    slides = slides_of(label, organ=label // 2)
    shards, rows = Shards(), []
    for one_label, row in zip(label, slides.iter_rows(named=True), strict=True):
        parts = generator.normal(size=(PLACES, len(layout.parts), DIMENSION)).astype(np.float32)
        if one_label < 2:
            parts[:, knowing(layout), one_label] += 3
        shards[row["slide_id"]] = parts
        carried = {k: row[k] for k in ("slide_id", "patient_id", "center", "organ", "label")}
        common = {"field": "128", "field_um": 16.0, "mpp": 0.5}
        rows += [carried | common | {"tile_id": f"{row['slide_id']}@{j}"} for j in range(PLACES)]
    parameters = PARAMETERS | COVERED | {"criteria": []}
    places = pl.DataFrame(rows).select(pl.col(n).cast(t) for n, t in PLACES_SCHEMA.items())
    table = FIELD.measurements(
        FIELD.statistics(shards, places, parameters), slides, parameters, encoder="e"
    )
    settings = [json.loads(s) for s in table["setting"]]
    return table.with_columns(
        mosaic=pl.Series([s.get("mosaic") for s in settings], dtype=pl.String)
    )


def test_attention_over_two_scales_finds_what_wide_patches_know_in_the_organ_where_they_know_it():
    table = covered(lambda layout: [layout.wholes[1]])
    gain = {"metric": "gain_over_tile", "mosaic": "two_scales"}
    assert one(table, stratum="organ=o0", **gain)["ci_low"] > 0.1
    blind = one(table, stratum="organ=o1", **gain)
    assert blind["ci_low"] < 0 < blind["ci_high"]
    none = one(table, metric="gain_over_tile", mosaic="covering", stratum="all")
    assert none["ci_low"] < 0 < none["ci_high"]


def test_coarser_tiles_are_a_mosaic_of_their_own_and_cost_grows_with_the_square():
    table = covered(lambda layout: list(layout.coarse[1]))
    at = {"metric": "gain_over_tile", "stratum": "organ=o0"}
    assert one(table, mosaic="covering_coarser", **at)["ci_low"] > 0.1
    assert one(table, mosaic="two_scales", **at)["ci_low"] < 0.1
    passes = {"covering": 16, "covering_coarser": 4, "two_scales": 2}
    for mosaic, of_place in passes.items():
        row = one(table, metric="passes_per_slide", mosaic=mosaic)
        assert row["value"] == of_place * PLACES
    exponent = one(table, metric="cost_exponent")
    assert exponent["value"] == pytest.approx(2.0)


def test_without_a_coarser_resolution_the_reason_names_the_parameter():
    row = one(of(WIDE), metric="gain_over_tile", field="64", mosaic="covering_coarser")
    assert "mosaic_field.coarser" in row["reason"]
