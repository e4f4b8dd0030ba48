"""Examples of failed checks: planted failures are found, and neighbours are of other patients."""

from __future__ import annotations

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.robustness.examples import (
    EXAMPLES_SCHEMA,
    adversarial_examples,
    center_examples,
    combine_examples,
    rotation_examples,
)
from tests.in_memory import InMemory
from tests.pipelines.robustness.phantom_views import Shards

ADVERSARIAL = {
    "epsilons": [2], "pgd_steps": [1], "transfer_epsilon": 2, "drop_epsilon": 2, "max_tiles": 4,
    "probe_tiles_per_slide": 1, "probe": {"folds": 2, "C": 1.0, "max_iter": 10}, "draws": 10, "seed": 0,
}  # fmt: skip
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


def test_a_tile_that_an_attack_turns_and_noise_does_not_is_shown():
    _, tiles = design("xxx", "ABA")
    pool = tiles.with_columns(
        label=pl.lit("x"), fold=pl.lit(0, pl.Int64), attacked=True, patient_id=pl.col("slide_id")
    )
    probes = pl.DataFrame(
        {
            "fold": [0, 0],
            "label": ["x", "y"],
            "bias": [0.0, 0.0],
            "weight": [[1.0, 0.0], [0.0, 1.0]],
        }
    )
    change = np.arange(12, dtype=np.int8).reshape(1, 1, 2, 2, 3) - 6

    def tile(*margins: int) -> dict[str, np.ndarray]:
        """Variants: clean, sign noise, Gaussian noise, FGSM, PGD; vectors with these margins."""
        margin = np.array([margins], float)
        vectors = np.stack([margin, np.zeros_like(margin)], axis=-1)
        return {"embedding": vectors, "margin": margin, "change": change}

    shards = {"s0": tile(1, 1, 1, -3, -1), "s1": tile(1, -1, 1, -3, -9), "s2": tile(1, 1, 1, 1, 1)}
    found = adversarial_examples(Shards(shards), pool, probes, ADVERSARIAL, name="e")
    assert found.schema == EXAMPLES_SCHEMA
    assert found["slide_id"].to_list() == ["s0"] * 3
    shown = found.select("part", "read_as", "times").rows()
    assert shown == [("tile", "x", None), ("attacked", "y", None), ("difference", None, 63)]
    assert [row is None for row in found["change"]] == [True, False, False]
    np.testing.assert_array_equal(
        np.frombuffer(found["change"][1], np.int8).reshape(2, 2, 3), change[0, 0]
    )


def test_an_encoder_without_gradient_has_no_attacked_tiles_to_show():
    _, tiles = design("x", "A")
    pool = tiles.with_columns(
        label=pl.lit("x"), fold=pl.lit(0, pl.Int64), attacked=True, patient_id=pl.col("slide_id")
    )
    probes = pl.DataFrame({"fold": [0], "label": ["x"], "bias": [0.0], "weight": [[1.0]]})
    nothing = {"change": np.zeros((1, 0, 2, 2, 3), np.int8)}
    for shards in (Shards({"s0": nothing}), Shards({})):
        assert adversarial_examples(shards, pool, probes, ADVERSARIAL, name="e").is_empty()
