"""Vectors of files become shards like any other; what is wrong with a file is its slide's reason."""

from __future__ import annotations

import h5py
import numpy as np
import polars as pl
import pytest

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.encoders.features import FeatureFileError
from pathfm_kedro.encoders.features.cohort import tiles_of_features
from pathfm_kedro.pipelines.embed.card import describe_encoder
from pathfm_kedro.pipelines.embed.features import plan_features, plan_noise_of_ids
from pathfm_kedro.slides.mosaic import choose_mosaic
from tests.encoders.features import layouts

ENGINE = {"workers": 1, "max_failed_share": 0.9}
TILE = {"max_tiles_per_slide": None, "mosaic": {"share": 0.25}, "seed": 1}
STORED = {"dtype": "float32"}


def slides(*names, mpp=0.25, width=60_000, height=60_000):
    return pl.DataFrame(
        [
            {"slide_id": s, "status": "usable", "mpp": mpp, "width": width, "height": height,
             "fingerprint": None}
            for s in names
        ],
        schema_overrides={"mpp": pl.Float64(), "width": pl.Int64(), "height": pl.Int64(),
                          "fingerprint": pl.String()},
    )  # fmt: skip


def entry(folder, **keys):
    return {"model": f"features:{folder}", **keys}


def brought(table, encoder, **tile):
    return tiles_of_features(
        table, encoder, TILE | tile, ENGINE, name="uni", choose_mosaic=choose_mosaic
    )


def embedded(tmp_path, table, tiles, tiling, encoder, dtype="float32"):
    dataset = ShardedTensorDataset(filepath=str(tmp_path / "shards"))
    plan = plan_features(table, tiles, tiling, encoder, {"dtype": dtype}, ENGINE, name="uni")
    dataset.save(plan)
    return dataset.load()


def test_tiles_and_vectors_stand_in_the_order_of_the_file(tmp_path):
    layouts.trident(tmp_path / "f", "s")
    table, encoder = slides("s"), entry(tmp_path / "f")
    tiles, tiling = brought(table, encoder)
    assert tiles.select("x", "y").to_numpy().tolist() == layouts.CORNERS.tolist()
    assert tiles["tile_id"][0] == f"s@{layouts.CORNERS[0][0]}_{layouts.CORNERS[0][1]}"
    assert tiles["tissue_fraction"].null_count() == tiles.height
    assert tiles["in_mosaic"].any()
    assert tiling["layout"].to_list() == ["trident"]
    shards = embedded(tmp_path, table, tiles, tiling, encoder)
    assert np.array_equal(shards.load_slide("s"), layouts.VECTORS)


def test_a_sample_of_a_large_slide_takes_its_own_vectors(tmp_path):
    layouts.trident(tmp_path / "f", "s")
    table, encoder = slides("s"), entry(tmp_path / "f")
    tiles, tiling = brought(table, encoder, max_tiles_per_slide=3)
    assert tiles.height == 3
    row_of = {tuple(place): i for i, place in enumerate(layouts.CORNERS.tolist())}
    rows = [row_of[place] for place in tiles.select("x", "y").iter_rows()]
    shards = embedded(tmp_path, table, tiles, tiling, encoder)
    assert np.array_equal(shards.load_slide("s"), layouts.VECTORS[rows])


def broken_nan(folder, name):
    vectors = layouts.VECTORS.copy()
    vectors[1, 0] = np.nan
    layouts.trident(folder, name, vectors)


def broken_twice(folder, name):
    layouts.trident(folder, name)
    layouts.trident(folder, f"{name}_features")


def broken_dimension(folder, name):
    layouts.trident(folder, name, layouts.VECTORS[:, :-1])


def broken_encoder(folder, name):
    with h5py.File(layouts.trident(folder, name), "a") as file:
        file["features"].attrs["encoder"] = "virchow2"


def broken_places(folder, name):
    layouts.trident(folder, name, corners=layouts.CORNERS + 1_000_000)


def broken_level(folder, name):
    """As long as the others': CONCHv1.5, and TITAN that is made of it, both have 768 numbers."""
    layouts.trident_slide(folder, name)
    with h5py.File(folder / f"{name}.h5", "a") as file:
        file["features"].attrs["encoder"] = "uni_v1"


def missing(folder, name):
    pass


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (broken_nan, "NaN"),
        (broken_twice, "two files of features"),
        (broken_dimension, "f/c.h5: the vectors have 7 numbers, and those of most slides 8"),
        (broken_level, "one vector of the whole slide, and those of most slides vectors of tiles"),
        (broken_encoder, "virchow2"),
        (broken_places, "do not lie on the slide"),
        (missing, "is named after the slide"),
    ],
)
def test_a_fault_is_the_reason_of_its_slide_and_the_rest_goes_on(tmp_path, breaks, reason):
    folder = tmp_path / "f"
    for name in ("a", "b"):
        layouts.trident(folder, name)
    breaks(folder, "c")
    table, encoder = slides("a", "b", "c"), entry(folder)
    tiles, tiling = brought(table, encoder)
    assert set(tiles["slide_id"]) == {"a", "b"}
    assert reason in tiling.filter(slide_id="c")["reason"][0]
    shards = embedded(tmp_path, table, tiles, tiling, encoder)
    assert shards.slide_ids == ("a", "b")
    assert reason in shards.failures["c"]


def test_a_folder_without_a_slide_of_the_cohort_ends_the_run(tmp_path):
    layouts.trident(tmp_path / "f", "other")
    with pytest.raises(FeatureFileError, match="none of the 1 files"):
        brought(slides("s"), entry(tmp_path / "f"))


def test_a_vector_of_a_slide_is_one_tile_that_covers_it(tmp_path):
    layouts.trident_slide(tmp_path / "f", "s")
    table, encoder = (
        slides("s", mpp=0.5, width=3000, height=2000),
        entry(tmp_path / "f", encoder="titan"),
    )
    tiles, tiling = brought(table, encoder)
    assert tiles.select("x", "y", "field_um", "mpp", "in_mosaic").rows() == [
        (0, 0, 1500.0, 0.5, True)
    ]
    assert embedded(tmp_path, table, tiles, tiling, encoder).load_slide("s").shape[0] == 1


def test_places_in_micrometres_stay_so_where_the_resolution_is_not_known(tmp_path):
    layouts.stamp(tmp_path / "f", "s")
    table = slides("s", mpp=None, width=None, height=None)
    tiles, _ = brought(table, entry(tmp_path / "f"))
    expected = np.rint(layouts.CORNERS * layouts.SLIDE_MPP)
    assert tiles.select("x", "y").to_numpy().tolist() == expected.tolist()


def test_a_replaced_file_is_read_again_and_the_others_are_not(tmp_path):
    folder = tmp_path / "f"
    for name in ("a", "b"):
        layouts.trident(folder, name)
    table, encoder = slides("a", "b"), entry(folder)
    tiles, tiling = brought(table, encoder)
    first = embedded(tmp_path, table, tiles, tiling, encoder)
    before = {s: first.slide_header(s)["file"] for s in ("a", "b")}
    card = describe(encoder, first)
    layouts.trident(folder, "b", layouts.VECTORS + 1)
    second = embedded(tmp_path, table, tiles, tiling, encoder)
    assert second.slide_header("a")["file"] == before["a"]
    assert second.slide_header("b")["file"] != before["b"]
    assert np.array_equal(second.load_slide("b"), (layouts.VECTORS + 1).astype(np.float32))
    assert describe(encoder, second)["fingerprint"] != card["fingerprint"]


def describe(encoder, shards):
    runtime = dict.fromkeys(
        ("runtime", "precision", "device", "agreement", "tolerance", "tiles_per_second")
    )
    return describe_encoder(encoder, runtime, shards, {"pixels": 224, "mpp": 0.5}, name="uni")


@pytest.mark.parametrize(("side", "told"), [(1024, True), (560, False)])
def test_tiles_of_several_magnifications_are_told(side, told, tmp_path, caplog):
    folder = tmp_path / "f"
    layouts.trident(folder, "a")
    layouts.trident(folder, "b", patch_size_level0=side)
    table, encoder = slides("a", "b"), entry(folder)
    tiles, tiling = brought(table, encoder)
    assert tiling["status"].to_list() == ["tiled", "tiled"]
    assert ("tiles are 128 to 256 µm wide" in caplog.text) is told
    card = describe(encoder, embedded(tmp_path, table, tiles, tiling, encoder))
    assert card.get("field_um") == ([128.0, 256.0] if told else None)


def test_files_of_another_encoder_than_the_preset_end_the_run(tmp_path):
    layouts.trident(tmp_path / "f", "a")
    with pytest.raises(ValueError, match="8 numbers, and 1024 are published of the preset 'uni'"):
        brought(slides("a"), entry(tmp_path / "f", preset="uni"))


def test_noise_of_ids_is_the_same_always_and_another_for_every_tile(tmp_path):
    tiles = pl.DataFrame({"slide_id": ["s"] * 3, "tile_id": ["s@0_0", "s@1_0", "s@2_0"]})
    noise = {"model": "control:noise", "role": "control", "dimension": 16}
    jobs = [
        plan_noise_of_ids(tiles, noise, STORED, ENGINE, name="noise").jobs[0].compute()["embedding"]
        for _ in range(2)
    ]
    assert np.array_equal(*jobs)
    assert np.linalg.matrix_rank(jobs[0]) == 3


def test_a_control_that_needs_pixels_is_refused_without_them():
    stain = {"model": "control:stain_statistics", "role": "control"}
    with pytest.raises(ValueError, match="needs pixels, and this cohort has no slides"):
        plan_noise_of_ids(pl.DataFrame(), stain, STORED, ENGINE, name="stain")
