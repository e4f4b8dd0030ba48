"""Indexes of slides: what they miss, against a full sort."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.retrieve.families.barcode import barcode
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
from pathfm_kedro.pipelines.retrieve.index import describe_indices, index_slides
from pathfm_kedro.pipelines.retrieve.index_recall import (
    IndexRecall,
    neighbours_of_others,
    recall_figures,
    recall_statistics,
)
from pathfm_kedro.pipelines.retrieve.search_time import NOT_MEASURED, SearchTrial
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.named_index import (
    INDEX_TYPES,
    barcode_index,
    cell_index,
    cosine_index,
    graph_index,
)
from pathfm_kedro.wiring import Experiment

INDEXES = Experiment("index_recall", IndexRecall, recall_statistics, recall_figures, [])
PARAMETERS = {
    "k": [3, 5],
    "probed": 0.25,
    "links": 4,
    "built": 8,
    "searched": 8,
    "draws": 50,
    "seed": 0,
}
NO_TIME = SearchTrial(False, 1, {}, 0, {}).record()


def cohort(n=120, dimension=16, patients=40):
    generator = np.random.default_rng(3)
    vectors = generator.normal(size=(n, dimension)).astype(np.float32)
    names = [f"s{i:03}" for i in range(n)]
    slides = pl.DataFrame(
        {"slide_id": names, "patient_id": [f"p{i}" for i in generator.integers(0, patients, n)]}
    )
    pooled = pl.DataFrame(
        {"slide_id": names, "mean": vectors},
        schema={"slide_id": pl.String, "mean": pl.Array(pl.Float32, dimension)},
    )
    return slides, pooled, vectors


def recall_by_sorting(slides, vectors, order_of, k):
    """Mean share of the k nearest by cosine among the k first of an order, other patients only."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    patients = slides["patient_id"].to_list()
    shares = []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if patients[j] != patients[i]]
        exact = sorted(others, key=lambda j: -float(unit[i] @ unit[j]))[:k]
        found = [j for j in order_of(i) if j in others][:k]
        shares.append(len({*exact} & {*found}) / k)
    return float(np.mean(shares))


def test_recall_is_what_a_full_sort_gives_and_of_the_exact_index_one():
    slides, pooled, vectors = cohort()
    p = IndexRecall(**PARAMETERS)
    indexes = index_slides(pooled, p)
    statistics = INDEXES.statistics(slides, pooled, *indexes, PARAMETERS)
    table = INDEXES.measurements(statistics, NO_TIME, PARAMETERS, encoder="e")
    values = {
        (json.loads(r["setting"])["index"], json.loads(r["setting"])["k"]): r
        for r in table.filter(metric="recall").iter_rows(named=True)
    }
    # A list is longer by the most slides of a patient, whose own are taken out of it.
    most = 5 + int(slides["patient_id"].value_counts()["count"].max())
    for kind, index in zip(INDEX_TYPES, indexes, strict=True):
        lists = index.nearest(vectors, most)[1]
        expected = recall_by_sorting(slides, vectors, lambda i, lists=lists: lists[i], 5)
        assert values[kind, 5]["value"] == pytest.approx(expected)
    assert values["flat", 5]["value"] == 1
    assert values["flat", 5]["ci_low"] < 1  # so many patients exclude no less
    assert values["ivf", 5]["value"] < 1
    described = describe_indices(table)
    assert described["index"].unique(maintain_order=True).to_list() == list(INDEX_TYPES)
    assert described.filter(index="flat")["bytes_per_slide"][0] == pytest.approx(64, abs=1)
    assert described["recall"].null_count() == 0


def test_every_cell_looked_at_is_the_exact_search():
    _, _, vectors = cohort()
    names = [str(i) for i in range(len(vectors))]
    exact = cosine_index(vectors, names).search(vectors, 6)[1]
    assert cell_index(vectors, names, probed=1.0, seed=0).search(vectors, 6)[1] == exact
    whole = graph_index(vectors, names, links=60, built=240, searched=240)
    assert whole.search(vectors, 6)[1] == exact


def test_the_index_of_bits_orders_as_the_barcode_family_does():
    """Of one patch a slide the family's distance is the Hamming distance."""
    _, _, vectors = cohort()
    names = [str(i) for i in range(len(vectors))]
    one = Mosaic(pl.DataFrame({"slide_id": names}), vectors, np.arange(len(names)))
    distances = barcode(one, one, FamilySettings())
    similarity, rows = barcode_index(vectors, names).nearest(vectors, len(names))
    np.testing.assert_allclose(
        1 - similarity, np.take_along_axis(distances, rows, axis=1), atol=1e-6
    )
    assert (np.diff(similarity, axis=1) <= 0).all()


def test_an_index_is_the_same_however_often_it_is_built():
    _, pooled, _ = cohort()
    first, second = (
        [index.serialized() for index in index_slides(pooled, IndexRecall(**PARAMETERS))]
        for _ in range(2)
    )
    assert first == second


def test_own_patients_are_left_out_and_missing_ones_marked():
    vectors = np.eye(4, dtype=np.float32)
    index = cosine_index(vectors, list("abcd"))
    found = neighbours_of_others(index, vectors, np.array([0, 0, 0, 1]), 2)
    assert found[:3].tolist() == [[3, -1]] * 3
    assert sorted(found[3].tolist()) in ([0, 1], [0, 2], [1, 2])


def test_a_cohort_of_one_patient_has_no_recall_and_says_why():
    slides, pooled, _ = cohort(n=6, patients=1)
    indexes = index_slides(pooled, IndexRecall(**PARAMETERS))
    statistics = INDEXES.statistics(slides, pooled, *indexes, PARAMETERS)
    table = INDEXES.measurements(statistics, NO_TIME, PARAMETERS, encoder="e")
    reasons = table.filter(metric="recall")["reason"].unique().to_list()
    assert reasons == ["fewer than two patients have embedded slides, so that none finds another"]
    times = table.filter(metric="seconds_per_query")
    assert times["reason"].unique().to_list() == [NOT_MEASURED]
