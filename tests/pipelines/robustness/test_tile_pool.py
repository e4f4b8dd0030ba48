"""Which tiles the pool takes."""

import polars as pl

from pathfm_kedro.pipelines.robustness.tile_pool import POOL_COLUMNS, choose_pool
from pathfm_kedro.slides.views import wide_side

POOL = {"max_tiles": 72, "seed": 0}


def make_slides(n_patients=12, width=20_000) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "slide_id": [f"s{i:02d}" for i in range(n_patients)],
            "patient_id": [f"p{i:02d}" for i in range(n_patients)],
            "center": ["AB"[i % 2] for i in range(n_patients)],
            "organ": ["o"] * n_patients,
            "label": ["xyz"[i % 3] for i in range(n_patients)],
            "status": ["usable"] * n_patients,
            "width": [width] * n_patients,
            "height": [width] * n_patients,
            "mpp": [0.25] * n_patients,
        }
    )


def make_tiles(slides, each=10) -> pl.DataFrame:
    """Tiles of 224 px at 0.5 µm: 448 level-0 px at 0.25 µm; the wide field needs 104 more."""
    return pl.DataFrame(
        [
            {
                "tile_id": f"{slide}-{i}",
                "slide_id": slide,
                "x": 1000 + 448 * i,
                "y": 2000,
                "field_um": 112.0,
                "mpp": 0.5,
            }
            for slide in slides["slide_id"]
            for i in range(each)
        ]
    )


def test_the_pool_is_balanced_over_label_center_and_patient():
    slides = make_slides(36)
    tiles = make_tiles(slides)
    # One patient with many tiles and one class with few must not tip the balance.
    many = make_tiles(slides.head(1), 40)
    pool = choose_pool(slides, pl.concat([tiles.filter(pl.col("slide_id") != "s00"), many]), POOL)
    assert pool.columns == POOL_COLUMNS
    assert pool.height == 72
    assert set(pool.group_by("label", "center").len()["len"]) == {12}
    assert set(pool.group_by("patient_id").len()["len"]) == {2}


def test_a_cell_with_few_tiles_gives_all_and_the_others_share_the_rest():
    slides = make_slides(12)
    tiles = make_tiles(slides)
    few = tiles.filter(
        ~pl.col("slide_id").is_in(["s00", "s06"]) | tiles["tile_id"].str.ends_with("-0")
    )
    counts = choose_pool(slides, few, POOL).group_by("label", "center").len()["len"].sort()
    assert counts.to_list() == [2, 14, 14, 14, 14, 14]


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows():
    slides = make_slides(12)
    tiles = make_tiles(slides)
    pool = choose_pool(slides, tiles, POOL | {"max_tiles": 24})
    shuffled = choose_pool(
        slides.sample(fraction=1, shuffle=True, seed=1),
        tiles.sample(fraction=1, shuffle=True, seed=2),
        POOL | {"max_tiles": 24},
    )
    other = choose_pool(slides, tiles, POOL | {"max_tiles": 24, "seed": 1})
    assert set(pool["tile_id"]) == set(shuffled["tile_id"])
    assert set(pool["tile_id"]) != set(other["tile_id"])
    assert pool["slide_id"].is_sorted()
    numbers = pool["tile_id"].str.split("-").list.get(1).cast(int)
    assert (
        pool.select("slide_id")
        .with_columns(n=numbers)
        .equals(pool.select("slide_id").with_columns(n=numbers).sort("slide_id", "n"))
    )


def test_the_wide_field_must_lie_on_the_slide_to_the_pixel():
    margin = (wide_side(224) - 224) * 0.5 / 0.25 / 2
    side = 112 / 0.25
    slides = make_slides(1)
    inner = [margin, 20_000 - side - margin]
    tiles = pl.DataFrame(
        {
            "tile_id": ["in0", "in1", "left", "top", "right", "bottom"],
            "slide_id": ["s00"] * 6,
            "x": [inner[0], inner[1], inner[0] - 1, 5000.0, inner[1] + 1, 5000.0],
            "y": [inner[0], inner[1], 5000.0, inner[0] - 1, 5000.0, inner[1] + 1],
            "field_um": [112.0] * 6,
            "mpp": [0.5] * 6,
        }
    )
    pool = choose_pool(slides, tiles, POOL)
    assert pool.select("tile_id", "field").rows() == [("in0", "wide"), ("in1", "wide")]


def test_slides_without_room_give_inscribed_tiles():
    slides = make_slides(4).with_columns(
        width=pl.Series([448, 448, 20_000, 20_000]),
        height=pl.Series([448, 448, 20_000, 20_000]),
        mpp=pl.Series([0.25, None, 0.25, 0.25]),
    )
    tiles = make_tiles(slides, 2).with_columns(
        x=pl.when(pl.col("slide_id") < "s02").then(0).otherwise("x"),
        y=pl.when(pl.col("slide_id") < "s02").then(0).otherwise("y"),
    )
    pool = choose_pool(slides, tiles, POOL)
    fields = dict(pool.group_by("slide_id").agg(pl.col("field").unique()).iter_rows())
    assert fields == {"s00": ["inscribed"], "s01": ["inscribed"], "s02": ["wide"], "s03": ["wide"]}


def test_unusable_slides_take_no_part():
    slides = make_slides(6).with_columns(
        status=pl.when(pl.col("slide_id") == "s03").then(pl.lit("failed")).otherwise("status")
    )
    pool = choose_pool(slides, make_tiles(slides), POOL)
    assert "s03" not in pool["slide_id"]
    nobody = slides.with_columns(status=pl.lit("failed"))
    empty = choose_pool(nobody, make_tiles(slides), POOL)
    assert (empty.height, empty.columns) == (0, POOL_COLUMNS)
