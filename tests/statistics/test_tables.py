"""Rows are paired with vectors only where both stand for the same tiles."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.statistics.tables import (
    OtherTilesError,
    TracedEmbeddings,
    digest_of_tiles,
    digests_by_slide,
    refuse_other_tiles,
    tile_rows,
)

TILES = pl.DataFrame({"slide_id": ["s", "t", "s"], "tile_id": ["s1", "t1", "s2"]})


class Vectors:
    def __init__(self, digests: dict[str, str]) -> None:
        self._digests = digests
        self.slide_ids = tuple(sorted(digests))

    def tiles_digest(self, slide_id: str) -> str:
        return self._digests[slide_id]


def test_the_same_tiles_are_let_through():
    vectors = Vectors(digests_by_slide(TILES))
    assert isinstance(vectors, TracedEmbeddings)
    refuse_other_tiles(TILES, vectors)


@pytest.mark.parametrize(
    "changed",
    [
        TILES.with_columns(tile_id=pl.Series(["s1", "t1", "s3"])),
        TILES.with_columns(tile_id=pl.Series(["s2", "t1", "s1"])),
        TILES.filter(pl.col("tile_id") != "s2"),
        TILES.filter(pl.col("slide_id") == "t"),
    ],
)
def test_other_tiles_are_refused_by_name(changed):
    with pytest.raises(OtherTilesError, match=r"1 slides, s first.*run the embed pipeline again"):
        refuse_other_tiles(changed, Vectors(digests_by_slide(TILES)))


@given(st.lists(st.text("abc", min_size=1), unique=True), st.lists(st.text("abc", min_size=1)))
def test_equal_digests_are_equal_tiles(first, second):
    assert (digest_of_tiles(first) == digest_of_tiles(second)) == (first == second)


def test_rows_follow_the_order_of_the_stack():
    slides = pl.DataFrame(
        {"slide_id": ["s", "t"], "patient_id": ["p", "q"], "center": ["A", "B"]}
        | {"organ": ["o", "o"], "label": ["x", "y"]}
    )
    assert tile_rows(slides, TILES, ["t", "s"])["tile_id"].to_list() == ["t1", "s1", "s2"]
