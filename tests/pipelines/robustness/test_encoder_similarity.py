"""Similarity of encoders equals what is computed pair by pair, and knows what is the same."""

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.encoder_similarity import measured_similarity
from pathfm_kedro.statistics.kernel_alignment import debiased_cka
from pathfm_kedro.statistics.mutual_knn import mknn
from tests.in_memory import InMemory

PATIENTS, TILES, D = 16, 3, 12
PARAMETERS = {
    "k_tiles": 4,
    "k_slides": 3,
    "max_tiles": 1000,
    "groups": 5,
    "draws": 200,
    "seed": 0,
}


def tables():
    names = [f"s{i:02d}" for i in range(PATIENTS)]
    slides = pl.DataFrame({"slide_id": names, "patient_id": [f"p-{n}" for n in names]})
    slides = slides.with_columns(center=pl.lit("A"), label=pl.lit("x"), organ=pl.lit("o"))
    ids = [(name, f"{name}-{j}") for name in names for j in range(TILES)]
    tiles = pl.DataFrame(ids, schema=["slide_id", "tile_id"], orient="row")
    return slides, tiles.with_columns(in_mosaic=pl.lit(True))


def embedded(vectors):
    names = [f"s{i:02d}" for i in range(PATIENTS)]
    shards = vectors.astype(np.float32).reshape(PATIENTS, TILES, -1)
    return InMemory(dict(zip(names, shards, strict=True)))


def drawn(seed, d=D):
    generator = np.random.default_rng(seed)
    of_slides = np.repeat(generator.standard_normal((PATIENTS, d)), TILES, axis=0)
    return of_slides + generator.standard_normal((PATIENTS * TILES, d))


def measured(vectors, parameters=PARAMETERS, **options):
    slides, tiles = tables()
    data = [part for each in vectors.values() for part in (tiles, embedded(each))]
    table = measured_similarity(slides, parameters, *data, encoders=list(vectors), **options)
    rows = {}
    for row in table.iter_rows(named=True):
        setting = json.loads(row["setting"])
        key = row["encoder"], setting["compared_with"], setting["level"], row["metric"]
        rows[key] = row
    return rows


def test_figures_equal_those_of_single_pairs():
    vectors = {"a": drawn(0), "b": drawn(1, d=20)}
    rows = measured(vectors)
    patients = np.repeat(np.arange(PATIENTS), TILES)
    means = {e: v.reshape(PATIENTS, TILES, -1).mean(axis=1) for e, v in vectors.items()}
    for level, pair, codes, k in (
        ("tile", vectors, patients, 4),
        ("slide", means, np.arange(PATIENTS), 3),
    ):
        kept = mknn(pair["a"], pair["b"], codes, k, "cosine").mean()
        assert rows["a", "b", level, "mknn"]["value"] == pytest.approx(kept)
        cka = debiased_cka(pair["a"], pair["b"])
        assert rows["a", "b", level, "cka"]["value"] == pytest.approx(cka, abs=1e-5)
        assert rows["a", "b", level, "mknn"]["null_low"] == pytest.approx(
            k / (len(codes) - len(codes) / PATIENTS)
        )


def test_the_same_turned_is_alike_and_the_unrelated_is_not():
    first = drawn(0)
    turned = first @ np.linalg.qr(np.random.default_rng(5).standard_normal((D, D)))[0]
    rows = measured({"a": first, "b": turned, "c": drawn(2)})
    for level in ("tile", "slide"):
        for metric in ("mknn", "cka"):
            same, other = rows["a", "b", level, metric], rows["a", "c", level, metric]
            assert same["value"] == pytest.approx(1.0, abs=1e-4)
            assert other["ci_low"] <= other["null_high"] <= other["ci_high"] + 0.1
            assert other["value"] < 0.5


def test_tiles_of_other_grids_are_not_compared_and_their_slides_are():
    rows = measured({"a": drawn(0), "b": drawn(0)}, grids=["", "512px"])
    assert rows["a", "b", "slide", "mknn"]["value"] == pytest.approx(1.0)
    assert rows["a", "b", "tile", "mknn"]["value"] is None
    assert "different tiles" in rows["a", "b", "tile", "cka"]["reason"]


def test_two_controls_are_not_compared():
    rows = measured({"a": drawn(0), "b": drawn(1), "c": drawn(2)}, controls=["b", "c"])
    assert {key[:2] for key in rows} == {("a", "b"), ("a", "c")}


def test_vectors_without_spread_and_few_candidates_are_said():
    rows = measured({"a": drawn(0), "b": np.ones((PATIENTS * TILES, D))})
    for level in ("tile", "slide"):
        assert "same vector for every tile" in rows["a", "b", level, "mknn"]["reason"]
        assert "do not vary" in rows["a", "b", level, "cka"]["reason"]
    few = measured({"a": drawn(0), "b": drawn(1)}, PARAMETERS | {"k_slides": 15})
    assert "15 neighbours need more" in few["a", "b", "slide", "mknn"]["reason"]
