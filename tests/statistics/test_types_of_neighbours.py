"""Expected types of neighbours, by counting; vectors that are all the same; lost centers."""

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.statistics.balanced_designs import Subsampling, balanced_subsamples
from pathfm_kedro.statistics.mutual_knn import NO_SPREAD
from pathfm_kedro.statistics.probe_splits import held_out_center_splits
from pathfm_kedro.statistics.unit_neighbours import type_shares
from tests.in_memory import InMemory


def test_shares_of_types_are_those_of_counting():
    rng = np.random.default_rng(0)
    labels, centers, groups = (rng.integers(0, most, 40) for most in (3, 4, 6))
    shares, every = type_shares(labels, centers, groups)
    for i in range(40):
        met = groups != groups[i]
        same, here = labels[met] == labels[i], centers[met] == centers[i]
        counted = [(same & here), (same & ~here), (~same & here), (~same & ~here)]
        assert every[i] == met.sum()
        assert shares[i] == pytest.approx([kind.mean() for kind in counted])


@pytest.mark.parametrize("odd", [0.0, 1.0])
def test_vectors_that_are_all_the_same_have_no_neighbours(odd):
    names = [f"s{i}" for i in range(8)]
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": names,
            "center": list("aabbaabb"),
            "organ": "o",
            "label": list("xxxxyyyy"),
        }
    )
    tiles = pl.DataFrame({"slide_id": names, "tile_id": names})
    shards = {name: np.ones((1, 3), np.float32) for name in names}
    shards["s7"] = np.array([[1, 1, 1 + odd]], np.float32)
    asked = Subsampling(max_tiles=100, min_patients_per_cell=1, min_tiles_per_cell=1)
    found = balanced_subsamples(slides, tiles, InMemory(shards), asked, 0)
    assert bool(found.scopes) == bool(odd)
    assert odd or {row["reason"] for row in found.unused} == {NO_SPREAD}


def test_who_is_of_no_known_center_neither_trains_nor_tests_where_one_is_held_out():
    patients, centers = np.arange(12), np.array([*"aaaabbbb", "", "", "", ""])
    splits = list(held_out_center_splits(patients, patients % 2, centers, 2, 0))
    assert [split.center for split in splits] == ["a", "b"]
    for split in splits:
        assert max(*split.train, *split.aside, *split.test) < 8
