"""Rows are paired with vectors only where both stand for the same tiles."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.statistics.tables import (
    OtherSlidesError,
    OtherTilesError,
    TracedEmbeddings,
    digest_of_tiles,
    digests_by_slide,
    refuse_other_slides,
    refuse_other_tiles,
    tile_rows,
)

TILES = pl.DataFrame({"slide_id": ["s", "t", "s"], "tile_id": ["s1", "t1", "s2"]})


class Vectors:
    def __init__(self, digests: dict[str, str]) -> None:
        self._digests = digests
        self.slide_ids = tuple(sorted(digests))

    def slide_header(self, slide_id: str) -> dict[str, str]:
        return {"tile_ids": self._digests[slide_id], "slide": f"file of {slide_id}"}


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
    with pytest.raises(
        OtherTilesError, match=r"of slide s were made .*run the embed pipeline again"
    ):
        refuse_other_tiles(changed, Vectors(digests_by_slide(TILES)))


PLACED = TILES.with_columns(x=pl.lit(0), y=pl.lit(224), field_um=pl.lit(112.0), mpp=pl.lit(0.5))


@pytest.mark.parametrize("column", ["x", "y", "field_um", "mpp"])
def test_the_same_ids_at_another_place_or_resolution_are_refused(column):
    vectors = Vectors(digests_by_slide(PLACED))
    refuse_other_tiles(PLACED, vectors)
    moved = PLACED.with_columns(pl.col(column) + (pl.col("tile_id") == "s2").cast(pl.Int64))
    with pytest.raises(OtherTilesError, match=r"views\.uni: .*'pool' holds .*resolution.: do this"):
        refuse_other_tiles({"pool": moved}, vectors, "views.uni", "do this")


def test_one_of_several_tables_must_be_the_vectors_own():
    vectors = Vectors(digests_by_slide(PLACED))
    pool = PLACED.filter(pl.col("tile_id") != "s2")
    refuse_other_tiles({"pool": pool, "tiles": PLACED}, vectors)
    with pytest.raises(OtherTilesError, match="'pool'"):
        refuse_other_tiles({"pool": pool}, vectors)
    marked = pl.concat([PLACED, PLACED.with_columns(tile_id=pl.col("tile_id") + "b")]).with_columns(
        attacked=~pl.col("tile_id").str.ends_with("b")
    )
    refuse_other_tiles({"pool": marked}, vectors)


def test_tables_of_other_slides_and_vectors_without_a_digest_are_passed_over():
    vectors = Vectors({"fold-0": "of many slides"})
    refuse_other_tiles({"tiles": TILES}, vectors)
    refuse_other_tiles({}, Vectors(digests_by_slide(TILES)))
    refuse_other_tiles({"tiles": TILES}, Vectors({"s": "", "t": ""}))


def test_vectors_of_a_replaced_file_are_refused():
    vectors = Vectors(digests_by_slide(TILES))
    slides = pl.DataFrame({"slide_id": ["s", "u"], "fingerprint": ["file of s", "x"]})
    refuse_other_slides(slides, vectors, "embeddings.uni", "do this")
    for other in ("another file", None):
        changed = slides.with_columns(fingerprint=pl.lit(other, dtype=pl.String()))
        with pytest.raises(OtherSlidesError, match=r"embeddings\.uni: .* slide s .*: do this"):
            refuse_other_slides(changed, vectors, "embeddings.uni", "do this")


@given(st.lists(st.text("abc", min_size=1), unique=True), st.lists(st.text("abc", min_size=1)))
def test_equal_digests_are_equal_tiles(first, second):
    assert (digest_of_tiles(first) == digest_of_tiles(second)) == (first == second)


def test_rows_follow_the_order_of_the_stack():
    slides = pl.DataFrame(
        {"slide_id": ["s", "t"], "patient_id": ["p", "q"], "center": ["A", "B"]}
        | {"organ": ["o", "o"], "label": ["x", "y"]}
    )
    assert tile_rows(slides, TILES, ["t", "s"])["tile_id"].to_list() == ["t1", "s1", "s2"]
