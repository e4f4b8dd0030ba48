"""Features that were brought against our own vectors."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.pipeline import AGREEMENT, agreement_pipeline
from pathfm_kedro.wiring import TileGrids
from tests.in_memory import InMemory

BLOCK = {
    "k": 5,
    "draws": 50,
    "seed": 0,
    "criteria": [
        {"metric": "difference", "below": 0.1},
        {"metric": "kept_neighbours", "above": 0.9},
    ],
}
SLIDES = [f"s{i}" for i in range(12)]
N, D = 40, 8


def slides():
    rows = [{"slide_id": s, "patient_id": f"p{i}"} for i, s in enumerate(SLIDES)]
    return pl.DataFrame(rows).with_columns(center=pl.lit("A"), organ=pl.lit("o"), label=pl.lit("x"))


def tiles(order=None, field_um=112.0):
    places = list(range(N)) if order is None else list(order)
    return pl.DataFrame(
        {
            "tile_id": [f"{s}@{i}_0" for s in SLIDES for i in places],
            "slide_id": [s for s in SLIDES for _ in places],
            "field_um": [field_um] * N * len(SLIDES),
            "mpp": [0.5] * N * len(SLIDES),
        },
        schema_overrides={"field_um": pl.Float64(), "mpp": pl.Float64()},
    )


@pytest.fixture
def ours():
    generator = np.random.default_rng(0)
    return {s: generator.normal(size=(N, D)).astype(np.float32) for s in SLIDES}


def rows_of(brought, brought_tiles, ours, parameters=BLOCK):
    table = AGREEMENT.statistics(
        slides(), brought_tiles, InMemory(brought), tiles(), InMemory(ours), parameters
    )
    rows = AGREEMENT.measurements(table, parameters, encoder="brought")
    return {row["metric"]: row for row in rows.to_dicts()}


def test_vectors_of_half_precision_pass_in_whatever_order_they_stand(ours):
    order = np.random.default_rng(1).permutation(N)
    half = {s: v[order].astype(np.float16).astype(np.float32) for s, v in ours.items()}
    rows = rows_of(half, tiles(order), ours)
    assert rows["difference"]["verdict"] == rows["kept_neighbours"]["verdict"] == "pass"
    errors = [half[s] - ours[s][order] for s in SLIDES]
    spread = [ours[s] - ours[s].mean(axis=0) for s in SLIDES]
    expected = [np.linalg.norm(e) / np.linalg.norm(v) for e, v in zip(errors, spread, strict=True)]
    assert rows["difference"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert (
        "12 of 12 slides the vectors brought are ours but for rounding"
        in rows["difference"]["reason"]
    )


def test_wrong_preprocessing_fails_and_says_where_to_look(ours):
    noise = np.random.default_rng(2)
    wrong = {s: (v + noise.normal(size=v.shape)).astype(np.float32) for s, v in ours.items()}
    rows = rows_of(wrong, tiles(), ours)
    assert rows["difference"]["verdict"] == rows["kept_neighbours"]["verdict"] == "fail"
    assert "preprocessing" in rows["difference"]["reason"]


def test_vectors_that_were_normalised_keep_their_neighbours(ours):
    unit = {s: v / np.linalg.norm(v, axis=1, keepdims=True) for s, v in ours.items()}
    rows = rows_of(unit, tiles(), ours)
    assert rows["kept_neighbours"]["verdict"] == "pass"
    assert rows["difference"]["verdict"] == "fail"
    assert "normalised or scaled" in rows["difference"]["reason"]


def test_other_dimensions_are_basis_neighbours_alone(ours):
    wide = {s: np.concatenate([v, v], axis=1) for s, v in ours.items()}
    rows = rows_of(wide, tiles(), ours)
    assert rows["difference"]["verdict"] == "not_applicable"
    assert f"the vectors have {2 * D} numbers" in rows["difference"]["reason"]
    assert rows["kept_neighbours"]["verdict"] == "pass"


def test_tiles_of_another_size_are_not_compared(ours):
    rows = rows_of(ours, tiles(field_um=256.0), ours)
    assert {row["verdict"] for row in rows.values()} == {"not_applicable"}
    assert "set tile.at" in rows["difference"]["reason"]


def test_every_encoder_has_rows_and_one_is_compared():
    grids = TileGrids({"brought": "features_brought"})
    pipeline = agreement_pipeline(["brought", "own", "noise"], {"brought": "own"}, grids)
    inputs = {n.name: n.inputs for n in pipeline.nodes}
    assert inputs["feature_agreement.brought.statistics"] == [
        "slides",
        "tiles.features_brought",
        "embeddings.brought",
        "tiles",
        "embeddings.own",
        "params:feature_agreement",
    ]
    (own,) = [n for n in pipeline.nodes if n.name == "feature_agreement.own.measurements"]
    nothing = AGREEMENT.read(BLOCK)
    table = own.func(AGREEMENT.accumulate.__globals__["no_agreement_statistics"](nothing), BLOCK)
    assert set(table["verdict"]) == {"not_applicable"}
