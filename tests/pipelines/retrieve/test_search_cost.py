"""What searches cost: bytes by counting what is stored, time by a record or not at all."""

from __future__ import annotations

import json

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.families.maxsim import pooled_patches
from pathfm_kedro.pipelines.retrieve.index import index_slides
from pathfm_kedro.pipelines.retrieve.index_recall import IndexRecall
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.retrieve.search_cost import cost_figures, cost_statistics
from pathfm_kedro.pipelines.retrieve.search_time import (
    NOT_MEASURED,
    TIMED,
    SearchCost,
    plan_search_times,
)
from pathfm_kedro.statistics.barcodes import barcodes
from pathfm_kedro.statistics.mosaic import pool_slides, read_mosaic
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory
from tests.pipelines.retrieve.planted import label_in_the_mean

COST = Experiment("search_cost", SearchCost, cost_statistics, cost_figures, [])
SEARCH = Experiment("retrieval", Retrieval, search_slides, retrieval_figures, [])
FAMILIES = ["mean", "median_min", "barcode", "maxsim", "maxsim_pooled", "bm25", "hybrid"]
PARAMETERS = {
    "families": FAMILIES,
    "scope": "within_organ",
    "vote": "mv5",
    "words": 8,
    "tokens": 2,
    "queries": 3,
    "turns": 2,
}
RETRIEVAL = {
    "families": ["mean", "maxsim"],
    "scopes": ["within_organ"],
    "votes": ["mv5"],
    "exclude": "patient",
    "k": 5,
    "min_patients": 2,
    "n_permutations": 10,
    "draws": 50,
}
INDEX = IndexRecall(k=(5,), probed=0.5, links=4, built=8, searched=8)


def cohort():
    slides, patches = label_in_the_mean(n=24)
    names = slides["slide_id"].to_list()
    tiles = pl.DataFrame(
        {
            "slide_id": np.repeat(names, patches.shape[1]),
            "tile_id": [f"{name}@{i}" for name in names for i in range(patches.shape[1])],
            "in_mosaic": [True] * (len(names) * patches.shape[1]),
        }
    )
    return slides, tiles, InMemory(dict(zip(names, patches.astype(np.float32), strict=True)))


def measured(allowed):
    data = cohort()
    retrieved = SEARCH.measurements(
        SEARCH.statistics(*data, RETRIEVAL), data[0], RETRIEVAL, encoder="e"
    )
    trial = plan_search_times(*data, *index_slides(pool_slides(*data), INDEX), PARAMETERS, allowed)
    statistics = COST.statistics(data[0], pool_slides(*data), PARAMETERS)
    record = trial.record()
    table = COST.measurements(statistics, record, retrieved, PARAMETERS, encoder="e")
    rows = {(r["metric"], json.loads(r["setting"])["family"]): r for r in table.to_dicts()}
    return rows, trial, record, retrieved


def test_bytes_are_those_of_what_is_stored():
    rows, *_ = measured(allowed=False)
    mosaic = read_mosaic(*cohort())
    vectors, n = mosaic.vectors, len(mosaic.starts)
    stored = {
        "mean": mosaic.mean().astype(np.float32).nbytes,
        "median_min": vectors.nbytes,
        "maxsim": vectors.nbytes,
        "barcode": barcodes(vectors).nbytes,
        "maxsim_pooled": pooled_patches(mosaic, 2).vectors.nbytes,
        "bm25": len(vectors),
        "hybrid": mosaic.mean().astype(np.float32).nbytes + len(vectors),
    }
    for family, total in stored.items():
        assert rows["bytes_per_slide", family]["value"] == total / n


def test_worth_is_as_retrieval_gave_it_and_what_it_did_not_search_has_a_reason():
    rows, _, _, retrieved = measured(allowed=False)
    for row in retrieved.filter(metric="macro_f1", stratum="all").to_dicts():
        own = rows["macro_f1", json.loads(row["setting"])["family"]]
        assert (own["value"], own["ci_low"], own["null_high"]) == (
            row["value"],
            row["ci_low"],
            row["null_high"],
        )
    assert "name its family" in rows["macro_f1", "barcode"]["reason"]


def test_no_machine_stands_in_results_that_are_pinned():
    rows, trial, record, _ = measured(allowed=False)
    assert record == {
        "key": {"revision": "1", "measured": "False"},
        "problem": NOT_MEASURED,
        "seconds": {},
    }
    assert trial.key() == record["key"]
    for family in FAMILIES:
        row = rows["seconds_per_query", family]
        assert row["value"] is None
        assert row["reason"] == NOT_MEASURED


def test_time_is_recorded_where_it_is_allowed():
    rows, trial, record, _ = measured(allowed=True)
    names = {f"family {family}" for family in TIMED} | {
        f"index {kind}" for kind in ("flat", "binary", "ivf", "hnsw")
    }
    assert {*record["seconds"]} == names
    assert record["key"] == trial.key()
    assert rows["seconds_per_query", "mean"]["value"] > 0
    assert "learns on other patients" in rows["seconds_per_query", "bm25"]["reason"]
