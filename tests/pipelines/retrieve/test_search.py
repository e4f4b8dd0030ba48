"""Search among slides against brute force, and what must not change it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pathfm_kedro.pipelines.retrieve.families.median_min import median_min
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
from pathfm_kedro.pipelines.retrieve.search import (
    MATCHES_SCHEMA,
    SCOPES,
    Retrieval,
    search_slides,
)
from pathfm_kedro.statistics.mosaic import Mosaic, pool_slides
from pathfm_kedro.statistics.parameters import read_parameters
from tests.conftest import base_parameters
from tests.in_memory import InMemory

PARAMETERS = {
    "families": ["mean", "max", "median_min"],
    "scopes": list(SCOPES),
    "distance": "cosine",
    "exclude": "patient",
    "k": 5,
    "votes": ["top1", "mv5"],
    "min_patients": 2,
    "criteria": [{"metric": "f1_range_over_organs", "below": 0.3}],
    "draws": 200,
    "n_permutations": 50,
    "seed": 0,
}


def cohort(seed=0, n_slides=14, dimensions=6):
    """Slides of two organs and three centers, some patients with several slides, ragged mosaics."""
    generator = np.random.default_rng(seed)
    names = [f"s{i:02}" for i in range(n_slides)]
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": [f"p{i}" for i in generator.integers(0, 8, n_slides)],
            "center": [f"c{i}" for i in generator.integers(0, 3, n_slides)],
            "organ": [f"o{i}" for i in generator.integers(0, 2, n_slides)],
            "label": [f"l{i}" for i in generator.integers(0, 3, n_slides)],
        }
    )
    sizes = generator.integers(1, 7, n_slides)
    slide = np.repeat(names, sizes)
    inside = generator.random(len(slide)) < 0.7
    inside[np.cumsum(sizes) - 1] = True
    tiles = pl.DataFrame(
        {
            "slide_id": slide,
            "tile_id": [f"t{i:03}" for i in range(len(slide))],
            "in_mosaic": inside,
        }
    )
    shards = {
        name: generator.normal(size=(size, dimensions)).astype(np.float32)
        for name, size in zip(names, sizes, strict=True)
    }
    return slides, tiles, shards


def matches_of(slides, tiles, shards, **changes):
    p = read_parameters(Retrieval, "retrieval", PARAMETERS | changes)
    found = search_slides(slides, tiles, InMemory(shards), p)
    assert dict(found.schema) == MATCHES_SCHEMA
    return found


def mosaic_patches(tiles, shards):
    return {
        name: shards[name][tiles.filter(pl.col("slide_id") == name)["in_mosaic"].to_numpy()]
        for name in shards
    }


def brute_force_matches(slides, patches, distance, same_organ, k):
    from scipy.spatial.distance import cdist

    rows = {row["slide_id"]: row for row in slides.iter_rows(named=True)}
    found = {}
    for query in sorted(patches):
        candidates = [
            (np.median(cdist(patches[query], patches[other], distance).min(axis=1)), other)
            for other in sorted(patches)
            if rows[other]["patient_id"] != rows[query]["patient_id"]
            and (not same_organ or rows[other]["organ"] == rows[query]["organ"])
        ]
        found[query] = [name for _, name in sorted(candidates)[:k]]
    return found


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("scope", ["within_organ", "across_organs"])
def test_median_min_equals_brute_force(distance, scope):
    slides, tiles, shards = cohort()
    matches = matches_of(slides, tiles, shards, distance=distance)
    found = matches.filter(family="median_min", scope=scope)
    expected = brute_force_matches(
        slides, mosaic_patches(tiles, shards), distance, scope == "within_organ", k=5
    )
    by_query = {name: [] for name in expected}
    for row in found.sort("query_slide", "rank").iter_rows(named=True):
        by_query[row["query_slide"]].append(row["match_slide"])
    assert by_query == expected


def test_euclidean_is_exact_far_from_the_origin():
    from scipy.spatial.distance import cdist

    generator = np.random.default_rng(0)
    vectors = (1000 + generator.normal(size=(6, 3))).astype(np.float32)
    slides = pl.DataFrame({"slide_id": list("abcdef")})
    mosaic = Mosaic(slides, vectors, np.arange(6))
    found = median_min(mosaic, mosaic, FamilySettings(distance="euclidean"))
    expected = cdist(vectors.astype(float), vectors.astype(float))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_order_of_rows_changes_nothing(seed):
    slides, tiles, shards = cohort(seed)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(tiles))
    shuffled = tiles[order]
    stacked = np.concatenate([shards[name] for name in sorted(shards)])
    moved = {
        name: stacked[order[(shuffled["slide_id"] == name).to_numpy()]] for name in sorted(shards)
    }
    assert_frame_equal(
        matches_of(slides, tiles, shards),
        matches_of(slides[generator.permutation(len(slides))], shuffled, moved),
        check_exact=True,
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_matches_keep_to_their_scope_and_leave_the_patient_out(seed):
    matches = matches_of(*cohort(seed)[:2], cohort(seed)[2])
    assert (matches["query_patient"] != matches["match_patient"]).all()
    within = matches.filter(pl.col("scope").str.starts_with("within_organ"))
    assert (within["query_organ"] == within["match_organ"]).all()
    elsewhere = matches.filter(scope="within_organ_other_centers")
    assert (elsewhere["query_center"] != elsewhere["match_center"]).all()
    distances = matches.group_by("family", "scope", "query_slide", maintain_order=True)
    assert all(group["distance"].is_sorted() for _, group in distances)


def test_ties_go_to_the_lower_index():
    slides, tiles, shards = cohort()
    same = {name: np.full_like(shard, 0.1) for name, shard in shards.items()}
    found = matches_of(slides, tiles, same)
    matches = found.filter(scope="across_organs")
    for (_, query), group in matches.group_by("family", "query_slide"):
        patient = slides.filter(slide_id=query)["patient_id"][0]
        others = slides.filter(pl.col("patient_id") != patient)["slide_id"].sort().head(5)
        assert group.sort("rank")["match_slide"].to_list() == others.to_list()


def test_rotating_the_space_leaves_mean_and_median_min_alone():
    slides, tiles, shards = cohort()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    turned = {name: shard @ rotation for name, shard in shards.items()}
    invariant = ["mean", "median_min"]
    assert_frame_equal(
        matches_of(slides, tiles, shards, families=invariant),
        matches_of(slides, tiles, turned, families=invariant),
        abs_tol=1e-5,
    )


def test_slides_without_embeddings_or_mosaic_are_left_out():
    slides, tiles, shards = cohort()
    del shards["s00"]
    tiles = tiles.with_columns(in_mosaic=pl.col("in_mosaic") & (pl.col("slide_id") != "s01"))
    matches = matches_of(slides, tiles, shards)
    seen = set(matches["query_slide"]) | set(matches["match_slide"])
    assert seen == set(slides["slide_id"]) - {"s00", "s01"}


def test_no_embeddings_give_an_empty_table_of_the_same_columns():
    slides, tiles, shards = cohort()
    empty = matches_of(slides, tiles, {})
    assert empty.is_empty()
    assert empty.schema == matches_of(slides, tiles, shards).schema


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"families": ["bow"]},
            r"retrieval\.families is \['bow'\]: 'bow' is no family: did you mean bovw",
        ),
        ({"families": "mean"}, r"retrieval\.families is 'mean': Input should be a valid tuple"),
        ({"families": []}, r"retrieval\.families is \[\]: .* at least 1 item"),
        ({"scopes": ["organ"]}, r"retrieval\.scopes\.0 is 'organ': Input should be 'within_organ'"),
        ({"votes": ["mv7"]}, r"retrieval\.votes\.0 is 'mv7': Input should be 'top1'"),
        ({"distance": "cosin"}, r"retrieval\.distance is 'cosin': Input should be 'cosine' or"),
        ({"exclude": "patients"}, r"retrieval\.exclude is 'patients': Input should be 'patient'"),
        ({"k": 1}, r"retrieval\.k is 1: mv5 asks 5 matches: set k to 5, or leave mv5 out"),
        ({"thresholds": {"f1": 0.3}}, r"retrieval\.thresholds: no such parameter"),
    ],
)
def test_parameters_that_do_not_hold_together_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        read_parameters(Retrieval, "retrieval", PARAMETERS | changes)


def test_a_missing_parameter_is_named():
    fewer = {name: value for name, value in PARAMETERS.items() if name != "votes"}
    with pytest.raises(ValueError, match=r"retrieval\.votes is missing"):
        read_parameters(Retrieval, "retrieval", fewer)


def test_the_project_s_own_parameters_hold_together():
    p = read_parameters(Retrieval, "retrieval", base_parameters()["retrieval"])
    judged, *gains = p.criteria
    assert judged.at == {"family": "median_min", "vote": "mv5", "scope": "within_organ"}
    assert (judged.metric, judged.threshold, judged.direction) == (
        "f1_range_over_organs",
        0.3,
        "below",
    )
    assert {one.at["family"] for one in gains} == {"maxsim", "bm25", "hybrid"}
    assert {(one.metric, one.threshold, one.direction) for one in gains} == {
        ("gain_over_mean", 0.05, "below")
    }


def test_slide_vectors_are_those_of_the_mosaic():
    slides, tiles, shards = cohort()
    del shards["s00"]
    pooled = pool_slides(slides, tiles, InMemory(shards))
    patches = mosaic_patches(tiles, shards)
    assert pooled["slide_id"].to_list() == sorted(patches)
    for row in pooled.iter_rows(named=True):
        own = patches[row["slide_id"]]
        assert row["n_tiles"] == len(own)
        np.testing.assert_allclose(row["mean"], own.mean(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(row["max"], own.max(axis=0))
    assert pool_slides(slides, tiles, InMemory({})).is_empty()


def test_broken_vectors_and_unknown_names_are_refused():
    slides, tiles, shards = cohort()
    with pytest.raises(ValueError, match=r"families.*'bow' is no family"):
        matches_of(slides, tiles, shards, families=["bow"])
    shards["s03"][-1] = np.nan
    with pytest.raises(ValueError, match="s03"):
        matches_of(slides, tiles, shards)
