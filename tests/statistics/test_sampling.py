"""Sampling in turns against counting."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.statistics.sampling import balanced_over_cells, capped_tiles


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=60),
    wanted=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_cells_then_patients_have_equally_many_as_far_as_they_have_tiles(rows, wanted, seed):
    patient = np.array(rows)[:, 0]
    tiles = pl.DataFrame(
        {
            "tile_id": [f"t{i:02d}" for i in range(len(rows))],
            "patient_id": [f"p{i}" for i in patient],
            "slide_id": [f"p{i}s{j}" for i, j in rows],
            "label": [f"l{i % 2}" for i in patient],
            "center": "c",
        }
    )
    sample = balanced_over_cells(tiles, seed).head(wanted)
    assert len(sample) == min(wanted, len(rows))
    _balanced(sample, tiles, ["label", "center"], [])
    _balanced(sample, tiles, ["patient_id"], ["label", "center"])
    _balanced(sample, tiles, ["slide_id"], ["patient_id"])


def _balanced(sample, tiles, groups, within):
    """In a group of `within`, no group has two fewer than another unless it has no more tiles."""
    there = tiles.group_by(*groups, *within).len("there")
    counts = there.join(sample.group_by(groups).len("taken"), on=groups, how="left").fill_null(0)
    for _, mine in counts.group_by(within) if within else [((), counts)]:
        most = mine["taken"].max()
        assert mine.filter(pl.col("taken") < pl.min_horizontal("there", most - 1)).is_empty()


def test_a_cap_keeps_all_tiles_of_small_slides():
    tiles = pl.DataFrame({"slide_id": list("aaabbc"), "tile_id": list("uvwxyz")})
    found = tiles[capped_tiles(tiles, 2, seed=3)]
    assert found["slide_id"].to_list() == ["a", "a", "b", "b", "c"]
