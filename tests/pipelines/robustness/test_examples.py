"""Examples of failed checks: planted failures are found, and neighbours are of other patients."""

from __future__ import annotations

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.robustness.examples import (
    EXAMPLES_SCHEMA,
    center_examples,
    combine_examples,
    rotation_examples,
)
from tests.in_memory import InMemory

ROTATION = {"angle_step": 90, "k": [1], "distances": ["cosine"], "draws": 10, "seed": 0}


def design(labels: str, centers: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A slide and tile for each letter, of a patient each."""
    n = len(labels)
    slides = pl.DataFrame(
        {"slide_id": [f"s{i}" for i in range(n)], "patient_id": [f"p{i}" for i in range(n)],
         "label": list(labels), "center": list(centers), "organ": ["o"] * n}
    )  # fmt: skip
    tiles = pl.DataFrame(
        {"tile_id": [f"s{i}-0" for i in range(n)], "slide_id": slides["slide_id"], "x": [0] * n,
         "y": [0] * n, "field_um": [112.0] * n}
    )  # fmt: skip
    return slides, tiles


def test_a_tile_nearer_to_its_center_than_to_its_label_is_shown():
    slides, tiles = design("xyxy", "AABB")
    # Centers lie at right angles; the last tile lies between its label's and its center's.
    vectors = {"s0": [[1.0, 0.0]], "s1": [[0.95, 0.05]], "s2": [[0.0, 1.0]], "s3": [[0.8, 0.6]]}
    (found,) = center_examples(
        slides, tiles, InMemory(vectors), name="e", experiments=["robustness_index"]
    )
    assert found.schema == EXAMPLES_SCHEMA
    by_part = found.filter(example=1).select("part", "tile_id").rows()
    assert by_part == [("tile", "s0-0"), ("same_center", "s1-0"), ("same_label", "s2-0")]
    # s3 is nearer to s1, of its label: no failure.
    assert "s3-0" not in found.filter(part="tile")["tile_id"].to_list()


def test_one_center_or_one_label_has_no_examples():
    slides, tiles = design("xy", "AA")
    vectors = InMemory({"s0": [[1.0, 0.0]], "s1": [[0.0, 1.0]]})
    (found,) = center_examples(slides, tiles, vectors, name="e", experiments=["robustness_index"])
    assert found.is_empty()
    assert combine_examples(found).schema == EXAMPLES_SCHEMA
    assert combine_examples().is_empty()


class Views(InMemory):
    """Stacks as they are: [tiles, views, d]."""

    def stack(self, slide_ids, name="embedding"):
        return np.concatenate([np.array(self.shards[s], np.float32) for s in slide_ids])


def test_what_a_rotated_tile_loses_and_gains():
    slides, tiles = design("xxxx", "AAAA")
    pool = tiles.join(slides, on="slide_id").with_columns(field=pl.lit("wide"), mpp=pl.lit(0.5))
    still, turned = [1.0, 0.0], [0.0, 1.0]
    # Views: rotated 0, 90, 180, 270, disc 0 and 90. Rotating sends s1 from s0 to the others.
    vectors = {
        "s0": [[still] * 6],
        "s1": [[[0.99, 0.01], turned, still, still, still, still]],
        "s2": [[[0.1, 0.9], [0.1, 0.9], turned, turned, turned, turned]],
        "s3": [[[0.3, 0.9], [0.3, 0.9], turned, turned, turned, turned]],
    }
    found = rotation_examples(Views(vectors), pool, ROTATION, name="e")
    number = found.filter(part="tile", tile_id="s1-0")["example"][0]
    one = found.filter(example=number).select("part", "tile_id", "angle").rows()
    assert one[:2] == [("tile", "s1-0", 0), ("turned", "s1-0", 90)]
    assert ("lost", "s0-0", 0) in one
    assert ("gained", "s2-0", 90) in one
