"""Searches at equal bytes."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.retrieve.families.registry import FAMILIES
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
from pathfm_kedro.pipelines.retrieve.index_bytes import (
    STORED,
    IndexBytes,
    bytes_figures,
    matches_by_bytes,
)
from pathfm_kedro.pipelines.retrieve.stored_codes import (
    binary,
    compared,
    fitting,
    product_codes,
    rotated,
)
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory
from tests.pipelines.retrieve.planted import label_in_the_maximum, mosaic_of

BYTES = Experiment("index_bytes", IndexBytes, matches_by_bytes, bytes_figures, [])
PARAMETERS = {
    "families": [*STORED, "bovw", "bm25", "hybrid", "barcode"],
    "scopes": ["within_organ"],
    "votes": ["mv5"],
    "budgets": [4, 48],
    "codes": ["float32", "float16", "binary", "codes"],
    "exclude": "patient",
    "words": 8,
    "folds": 3,
    "tokens": 2,
    "k": 5,
    "min_patients": 2,
    "draws": 50,
    "n_permutations": 10,
    "seed": 0,
}


def measured():
    slides, patches = label_in_the_maximum(n=36)
    names = slides["slide_id"].to_list()
    tiles = pl.DataFrame(
        {
            "slide_id": np.repeat(names, patches.shape[1]),
            "tile_id": [f"{name}@{i}" for name in names for i in range(patches.shape[1])],
            "in_mosaic": [True] * (len(names) * patches.shape[1]),
        }
    )
    embeddings = InMemory(dict(zip(names, patches.astype(np.float32), strict=True)))
    matches = BYTES.statistics(slides, tiles, embeddings, PARAMETERS)
    return matches, BYTES.measurements(matches, slides, PARAMETERS, encoder="e")


def test_every_search_keeps_within_its_bytes_and_what_does_not_fit_has_a_reason():
    matches, table = measured()
    assert (matches["bytes_per_slide"] <= matches["budget"]).all()
    rows = {
        (r["metric"], json.loads(r["setting"])["family"], json.loads(r["setting"])["code"],
         json.loads(r["setting"])["budget"]): r
        for r in table.iter_rows(named=True)
    }  # fmt: skip
    # Six patches of one float32 number are 24 bytes.
    too_small = rows["macro_f1", "maxsim", "float32", 4]
    assert too_small["verdict"] == "not_applicable"
    assert "fits into 4 bytes" in too_small["reason"]
    assert rows["dimensions", "maxsim", "float32", 48]["value"] == 2
    assert rows["dimensions", "maxsim", "float16", 48]["value"] == 4
    assert rows["dimensions", "maxsim_pooled", "float32", 48]["value"] == 6
    assert rows["dimensions", "mean", "float32", 48]["value"] == 12
    assert rows["dimensions", "hybrid", "float32", 48]["value"] == (48 - 6) // 4
    assert rows["bytes_per_slide", "bm25", "binary", 48]["value"] == 6
    assert rows["gain_over_mean", "maxsim", "float16", 48]["value"] is not None
    assert rows["dimensions", "median_min_symmetric", "float16", 48]["value"] == 4
    # Twelve numbers are eleven bits: two bytes for each of six patches.
    assert rows["bytes_per_slide", "barcode", "binary", 48]["value"] == 12
    assert ("macro_f1", "barcode", "float16", 48) not in rows
    whole = rows["gain_over_mean", "maxsim", "binary", 48]
    assert "mean is whole at 2 bytes" in whole["reason"]


@pytest.mark.parametrize(
    ("code", "budget", "expected"),
    [
        ("float32", 100, (12, 96.0)),
        ("float16", 100, (25, 100.0)),
        ("binary", 10, (40, 10.0)),
        ("codes", 10, (40, 10.0)),
        ("binary", 1000, (64, 16.0)),
        ("binary", 1, None),
    ],
)
def test_what_fits(code, budget, expected):
    slides = pl.DataFrame({"slide_id": ["s", "t"]})
    mosaic = Mosaic(slides, np.zeros((4, 64), np.float32), np.array([0, 2]))
    assert fitting(mosaic, code, budget) == expected


def test_families_at_full_size_are_those_of_the_cohorts_search():
    """Where all bytes fit, nothing is cut: whole float32 vectors order slides as the family does."""
    slides, patches = label_in_the_maximum(n=12)
    mosaic = mosaic_of(slides, patches)
    p = FamilySettings()
    for family, (store, compare) in STORED.items():
        stored = store(mosaic, p)
        size = fitting(stored, "float32", 10_000)
        assert size == (patches.shape[2], stored.vectors.nbytes / len(stored.starts))
        found = compared(stored, [compare], "float32", size[0], p)[compare]
        np.testing.assert_allclose(found, FAMILIES[family](mosaic, mosaic, p), atol=1e-4)


def test_a_rotation_leaves_all_distances():
    from scipy.spatial.distance import cdist

    vectors = mosaic_of(*label_in_the_maximum(n=6)).vectors
    turned = rotated(vectors, 3)
    np.testing.assert_allclose(cdist(turned, turned), cdist(vectors, vectors), atol=1e-5)
    assert not np.allclose(turned, vectors, atol=0.1)


def test_a_code_is_the_nearest_centre_that_was_learned():
    """Each group of eight numbers becomes the nearest of the centres that were learned."""
    generator = np.random.default_rng(0)
    seen, asked = (generator.normal(size=(n, 20)).astype(np.float32) for n in (300, 40))
    coded, learned = product_codes(asked, seen, 0), product_codes(seen, seen, 0)
    for start in range(0, 20, 8):
        part = slice(start, start + 8)
        centres = np.unique(learned[:, part], axis=0)
        assert len(centres) <= 256
        distances = ((asked[:, None, part] - centres) ** 2).sum(axis=2)
        own = ((asked[:, part] - coded[:, part]) ** 2).sum(axis=1)
        np.testing.assert_allclose(own, distances.min(axis=1), rtol=1e-4)


def test_distance_of_signs_is_twice_the_share_that_differs():
    generator = np.random.default_rng(0)
    seen, asked = generator.normal(size=(50, 16)), generator.normal(size=(2, 16))
    a, b = binary(asked, seen, 0)
    share = float((a != b).mean())
    assert 1 - float(a @ b) / 16 == pytest.approx(2 * share)
