"""One key gives an encoder patches of Yottixel's size beside the cohort's tiles."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.cohorts import CohortPlan, tiles_of_cohort, with_random_weights
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import read_field
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.variants import expand_variants
from pathfm_kedro.wiring import TileGrids
from tests.conftest import manifest, manifest_row, write_tiff
from tests.in_memory import InMemory
from tests.pipelines.retrieve.test_search import PARAMETERS as SEARCH
from tests.pipelines.tile.test_tiles import ENGINE
from tests.pipelines.tile.test_tiles import PARAMETERS as TILE

ENTRY = {"model": "timm:densenet121", "patch": 1000}


def test_the_entry_stands_for_two_that_differ_in_tiles_alone():
    found = expand_variants({"d": ENTRY | {"batch_size": 4}, "e": {"model": "timm:x"}})
    assert list(found) == ["d", "d_patch1000", "e"]
    assert found["d"] == {"model": "timm:densenet121", "batch_size": 4}
    assert found["d_patch1000"] == found["d"] | {"tile": {"pixels": 1000, "mpp": 0.5}}


def test_poolings_are_of_both_and_the_null_of_the_architecture_is_of_the_first():
    written = {"d": ENTRY | {"variants": ["class_token", "patch_mean"], "random_weights": True}}
    found = expand_variants(with_random_weights(written))
    poolings = ("class_token", "patch_mean")
    both = [f"{name}__{pooling}" for name in ("d", "d_patch1000") for pooling in poolings]
    assert sorted(found) == sorted([*both, "d_random_weights"])
    assert "patch" not in found["d_random_weights"]


def test_the_second_is_searched_on_its_own_grid():
    encoders = expand_variants({"d": ENTRY})
    tiles = tiles_of_cohort(
        CohortPlan("manifest", encoders, {"tile": {"pixels": 224, "mpp": 0.5, "at": None}})
    )
    (grid,) = tiles.sizes
    assert tiles.sizes[grid] == (1000, 0.5)
    grids = TileGrids(tiles.grids)
    assert grids.dataset("tiles", "d") == "tiles"
    assert grids.dataset("tiles", "d_patch1000") == f"tiles.{grid}"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"d": {"model": "timm:x", "patch": "large"}}, "encoders.d.patch is 'large'"),
        ({"d": {"model": "timm:x", "patch": True}}, "encoders.d.patch is True"),
        ({"d": ENTRY | {"tile": {"pixels": 512, "mpp": 0.5}}}, "has tile and patch"),
        ({"d": ENTRY, "d_patch1000": {"model": "timm:y"}}, "leave out one of them"),
        ({"d_patch1000": {"model": "timm:y"}, "d": ENTRY}, "leave out one of them"),
    ],
)
def test_what_cannot_be_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        expand_variants(entries)


def test_patches_of_1000_px_are_searched_as_yottixel_searches(tmp_path):
    """From files to the order of slides; the protocol is written out below without the project."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(4):
        # Coarse blocks of tissue colour: every patch of a slide has a colour of its own.
        blocks = generator.integers(60, 190, (8, 8, 3)).astype(np.uint8)
        image = blocks.repeat(250, axis=0).repeat(250, axis=1)
        write_tiff(tmp_path / f"s{i}.tiff", image)
        rows.append(manifest_row(f"s{i}", patient_id=f"p{i}"))
    files = SlideFiles(tmp_path)
    slides = describe_slides(
        check_manifest(manifest(*rows)),
        files,
        {"mpp_bounds": [0.05, 10], "cramers_v_warning": 1},
        ENGINE,
    )
    parameters = TILE | {"pixels": 1000, "min_tissue_fraction": 0.0}
    tiles, _ = cut_tiles(slides, files, parameters, ENGINE)
    assert set(tiles["field_um"]) == {500.0}
    assert tiles.group_by("slide_id").len()["len"].to_list() == [4] * 4
    shards = {name: _profiles(name, tiles, files) for name in slides["slide_id"]}
    p = read_parameters(Retrieval, "retrieval", SEARCH | {"families": ["barcode"]})
    found = search_slides(slides, tiles, InMemory(shards), p).filter(scope="across_organs")
    chosen = {
        name: shards[name][tiles.filter(slide_id=name)["in_mosaic"].to_numpy()] for name in shards
    }
    for name in shards:
        order = found.filter(query_slide=name).sort("rank")["match_slide"].to_list()
        assert order == _yottixel(name, chosen)


def _profiles(name, tiles, files):
    """A vector of each patch: grey along its rows and columns."""
    with files.open(f"{name}.tiff") as reader:
        fields = [
            read_field(reader, x, y, 1000, 64).astype(float).mean(axis=2)
            for x, y in tiles.filter(slide_id=name).select("x", "y").iter_rows()
        ]
    rows = [np.concatenate([field.mean(axis=0), field.mean(axis=1)]) for field in fields]
    return np.array(rows, np.float32)


def _yottixel(query, mosaics):
    """The other slides, nearest first, by the median of the smallest differing shares of bits."""
    bits = {name: np.diff(rows) < 0 for name, rows in mosaics.items()}
    distance = {
        name: np.median([min(np.mean(a != b) for b in bits[name]) for a in bits[query]])
        for name in mosaics
        if name != query
    }
    return sorted(sorted(distance), key=lambda name: round(distance[name], 7))


def test_a_slide_smaller_than_a_patch_says_so(tmp_path):
    write_tiff(tmp_path / "a.tiff", np.full((512, 512, 3), 120, np.uint8))
    files = SlideFiles(tmp_path)
    slides = describe_slides(
        check_manifest(manifest(manifest_row("a"))),
        files,
        {"mpp_bounds": [0.05, 10], "cramers_v_warning": 1},
        ENGINE,
    )
    tiles, tiling = cut_tiles(slides, files, TILE | {"pixels": 1000}, ENGINE)
    assert tiles.is_empty()
    assert "larger than the slide" in tiling["reason"].item()
    assert tiles.schema["x"] == pl.Int64
