"""Documents of two tissues, found by one vector or by several."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import recall_score

from pathfm_kedro.pipelines.retrieve.tissue_limit import (
    TissueLimit,
    documents_of,
    recall_at_r,
    tissue_limit_figures,
    tissue_limit_statistics,
)
from pathfm_kedro.statistics.figures import measure
from tests.in_memory import InMemory

P = TissueLimit(
    patterns=("dense",),
    attributes=3,
    copies=3,
    tiles_per_attribute=4,
    tiles_per_slide=8,
    words=16,
    splits=5,
    resamples=20,
)
N_LABELS, N_PATIENTS, N_TILES, D = 5, 6, 8, 32


def cohort(vector_of, seed: int = 0):
    """Slides, tiles and vectors; `vector_of(label, tile, generator)` gives each tile's vector."""
    generator = np.random.default_rng(seed)
    slides, tiles, vectors = [], [], {}
    for label in range(N_LABELS):
        for patient in range(N_PATIENTS):
            name = f"l{label}p{patient}"
            slides.append((name, name, f"c{patient % 2}", "organ", f"label {label}"))
            tiles += [(f"{name}t{i}", name) for i in range(N_TILES)]
            vectors[name] = np.stack([vector_of(label, i, generator) for i in range(N_TILES)])
    columns = ["slide_id", "patient_id", "center", "organ", "label"]
    return (
        pl.DataFrame(slides, schema=columns, orient="row"),
        pl.DataFrame(tiles, schema=["tile_id", "slide_id"], orient="row"),
        InMemory({k: v.astype(np.float32) for k, v in vectors.items()}),
    )


def measured(vector_of, p: TissueLimit = P) -> pl.DataFrame:
    statistics = tissue_limit_statistics(*cohort(vector_of), p)
    return measure(tissue_limit_figures(statistics, p), "tissue_limit", "uni", p.criteria)


def at(rows: pl.DataFrame, metric: str, search: str) -> dict:
    asked = pl.col("metric") == metric, pl.col("setting").str.contains(f'"search": "{search}"')
    return rows.filter(*asked).row(0, named=True)


DIRECTIONS = np.linalg.qr(np.random.default_rng(9).standard_normal((D, D)))[0]


def label_in_one_tile_of_two(label: int, tile: int, generator: np.random.Generator):
    """Half the tiles show the label, small; the others large, alike in every label."""
    if tile % 2:
        return DIRECTIONS[label] + 0.02 * generator.standard_normal(D)
    return 40 * DIRECTIONS[10 + generator.integers(10)] * generator.standard_normal()


def label_in_the_mean(label: int, tile: int, generator: np.random.Generator):
    """Each tile shows the label a little, their mean clearly."""
    return 1.4 * DIRECTIONS[label] + 0.35 * generator.standard_normal(D)


def test_where_single_tiles_hold_the_label_several_vectors_win():
    rows = measured(label_in_one_tile_of_two)
    gain = at(rows, "recall_gain", "maxsim")
    assert gain["ci_low"] > 0.2


def test_where_the_mean_holds_the_label_they_do_not():
    rows = measured(label_in_the_mean)
    assert at(rows, "recall", "mean")["value"] > 0.7
    assert at(rows, "recall_gain", "maxsim")["ci_low"] < 0.05
    assert at(rows, "recall_gain", "maxsim_equal_bytes")["value"] < 0.05


def test_noise_lies_at_chance():
    rows = measured(lambda label, tile, generator: generator.standard_normal(D))
    for search in ("mean", "maxsim", "bm25", "hybrid"):
        row = at(rows, "recall", search)
        assert row["null_low"] == pytest.approx(3 / 30)
        assert row["ci_low"] < row["null_low"] < row["ci_high"]


def test_the_same_seed_gives_the_same_rows():
    first, second = (tissue_limit_statistics(*cohort(label_in_the_mean), P) for _ in range(2))
    assert first.equals(second)


def test_patterns_hold_the_documents_they_promise():
    generator = np.random.default_rng(0)
    assert documents_of("dense", 4, P, generator) == list(combinations(range(4), 2)) * 3
    assert sorted(set(documents_of("cycle", 4, P, generator))) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert {len(set(d)) for d in documents_of("random", 5, P, generator)} == {3}


def test_recall_is_that_of_scikit_learn_without_ties():
    generator = np.random.default_rng(2)
    distances = generator.random((6, 15))
    relevant = np.zeros((6, 15), bool)
    relevant[:, :4] = True
    found = distances <= np.sort(distances, axis=1)[:, [3]]
    expected = np.mean([recall_score(w, f) for w, f in zip(relevant, found, strict=True)])
    assert recall_at_r(distances, relevant) == pytest.approx(expected)


def test_equal_distances_are_a_random_order():
    relevant = np.array([[True, True, False, False, False]])
    assert recall_at_r(np.ones((1, 5)), relevant) == pytest.approx(2 / 5)


def test_two_labels_have_no_pairs_to_tell_apart():
    slides, tiles, vectors = cohort(label_in_the_mean)
    two = slides.filter(pl.col("label").is_in(["label 0", "label 1"]))
    kept = InMemory({k: vectors.shards[k] for k in two["slide_id"]})
    statistics = tissue_limit_statistics(two, tiles, kept, P)
    rows = measure(tissue_limit_figures(statistics, P), "tissue_limit", "uni", P.criteria)
    assert rows["value"].null_count() == rows.height
    assert "fewer than three labels" in rows["reason"][0]
