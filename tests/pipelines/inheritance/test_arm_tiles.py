"""Who plays which part: no patient two of them, and nothing of the held-out center is trained on."""

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.inheritance.arm_tiles import (
    DOWNSTREAM,
    HELD_OUT,
    PRETRAIN,
    ArmTiles,
    arm_data_digest,
    choose_arm_pool,
)

PARAMETERS = {"tiles_per_slide": 3, "held_out_center": None, "seed": 0}


def cohort(n=24, centers=3):
    slides = pl.DataFrame(
        {
            "slide_id": [f"s{i:02}" for i in range(n)],
            "patient_id": [f"p{i // 2:02}" for i in range(n)],
            "center": [f"c{(i // 2) % centers}" for i in range(n)],
            "organ": ["o"] * n,
            "label": ["ab"[(i // 2 // centers) % 2] for i in range(n)],
            "status": ["usable"] * n,
        }
    )
    tiles = pl.DataFrame(
        [(f"{s}-{j}", s) for s in slides["slide_id"] for j in range(5)],
        schema=["tile_id", "slide_id"],
        orient="row",
    )
    return slides, tiles


class Shards:
    def __init__(self, slides):
        self.slide_ids = tuple(slides)

    def load_slide(self, slide_id, name="pixels"):
        return np.full((3, 2, 2, 3), int(slide_id[1:]), np.uint8)

    def slide_header(self, slide_id):
        return {"slide": slide_id}


def test_no_patient_has_two_roles_and_the_held_out_center_is_not_trained_on():
    pool = choose_arm_pool(*cohort(), PARAMETERS)
    assert pool.group_by("patient_id").agg(pl.col("role").n_unique())["role"].max() == 1
    held = pool.filter(pl.col("role") == HELD_OUT)
    assert held["center"].unique().to_list() == ["c0"]
    assert "c0" not in pool.filter(pl.col("role") != HELD_OUT)["center"].to_list()
    per_role = pool.group_by("role").agg(
        pl.col("patient_id").n_unique(), pl.col("label").n_unique()
    )
    assert dict(per_role.select("role", "patient_id").iter_rows()) == {
        PRETRAIN: 4,
        DOWNSTREAM: 4,
        HELD_OUT: 4,
    }
    assert per_role["label"].to_list() == [2, 2, 2]
    assert pool.group_by("slide_id").len()["len"].unique().to_list() == [3]


def test_the_choice_does_not_depend_on_the_order_of_slides():
    slides, tiles = cohort()
    again = choose_arm_pool(slides.sample(fraction=1, shuffle=True, seed=1), tiles, PARAMETERS)
    assert again.equals(choose_arm_pool(slides, tiles, PARAMETERS))


def test_a_patient_of_two_centers_is_held_out_whole():
    slides, tiles = cohort()
    slides = slides.with_columns(
        center=pl.when(pl.col("slide_id") == "s01").then(pl.lit("c1")).otherwise("center")
    )
    pool = choose_arm_pool(slides, tiles, PARAMETERS | {"held_out_center": "c0"})
    assert "s01" not in pool["slide_id"].to_list()
    assert "s00" in pool.filter(pl.col("role") == HELD_OUT)["slide_id"].to_list()


def test_one_center_leaves_nothing_held_out():
    pool = choose_arm_pool(*cohort(centers=1), PARAMETERS)
    assert HELD_OUT not in pool["role"].to_list()
    assert {PRETRAIN, DOWNSTREAM} == set(pool["role"])


def test_an_unknown_center_is_named():
    with pytest.raises(ValueError, match=r"arms\.held_out_center is 'x'.*c0, c1, c2"):
        choose_arm_pool(*cohort(), PARAMETERS | {"held_out_center": "x"})


def test_a_cohort_without_labels_has_no_pool():
    slides, tiles = cohort()
    none = slides.with_columns(label=pl.lit(None, pl.String))
    assert choose_arm_pool(none, tiles, PARAMETERS).is_empty()


def test_pixels_stand_beside_their_rows_and_what_could_not_be_read_is_left_out():
    slides, tiles = cohort()
    pool = choose_arm_pool(slides, tiles, PARAMETERS)
    read = ArmTiles.read(pool, Shards(slides["slide_id"][1:]), DOWNSTREAM)
    assert set(read.table["role"]) == {DOWNSTREAM}
    assert read.pixels[:, 0, 0, 0].tolist() == [int(s[1:]) for s in read.table["slide_id"]]
    assert "s00" not in read.table["slide_id"].to_list()


def test_the_digest_knows_labels_and_pixels():
    slides, tiles = cohort()
    pool, shards = choose_arm_pool(slides, tiles, PARAMETERS), Shards(slides["slide_id"])
    other = pool.with_columns(label=pl.lit("a"))
    digests = {
        arm_data_digest(pool, shards),
        arm_data_digest(other, shards),
        arm_data_digest(pool, Shards(slides["slide_id"][1:])),
    }
    assert len(digests) == 3
    assert arm_data_digest(pool, shards) in digests
