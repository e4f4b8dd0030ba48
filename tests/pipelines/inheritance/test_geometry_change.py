"""Change between two versions of an encoder: none, a scaling, a planted collapse."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.pipelines.inheritance.geometry import MOMENTS, SHAPE
from pathfm_kedro.pipelines.inheritance.geometry_change import (
    GeometryChange,
    geometry_change_figures,
    geometry_change_statistics,
)
from pathfm_kedro.pipelines.inheritance.pipeline import create_pipeline, versions_before
from pathfm_kedro.wiring import Experiment, TileGrids
from tests.in_memory import InMemory
from tests.pipelines.inheritance import test_geometry as of_geometry

CHANGE = Experiment(
    "geometry_change", GeometryChange, geometry_change_statistics, geometry_change_figures, []
)
PARAMETERS = of_geometry.PARAMETERS | {"n_tiles": 180}


def statistics(slides, tiles, shards):
    return of_geometry.EXPERIMENT.statistics(slides, tiles, InMemory(shards), PARAMETERS)


def measure(after, before):
    own = {"draws": 200, "seed": 0}
    table = CHANGE.measurements(CHANGE.statistics(after, before, own), own, encoder="e")
    return {r["metric"].removesuffix("_change"): r for r in table.iter_rows(named=True)}


def test_a_scaled_version_is_the_same():
    slides, tiles, shards = of_geometry.cohort(n_slides=20)
    before = statistics(slides, tiles, shards)
    after = statistics(slides, tiles, {k: 4 * x for k, x in shards.items()})
    rows = measure(after, before)
    assert set(rows) == {*MOMENTS, *SHAPE}
    for metric, row in rows.items():
        assert row["value"] == pytest.approx(0, abs=1e-6), metric
        assert row["ci_low"] == pytest.approx(0, abs=1e-6), metric
        assert row["ci_high"] == pytest.approx(0, abs=1e-6), metric


def test_a_collapse_is_a_change_that_the_pairing_shows_with_its_whole_interval():
    slides, tiles, shards = of_geometry.cohort(n_slides=20, dimensions=12)
    generator = np.random.default_rng(0)
    direction = generator.normal(size=12).astype(np.float32)
    after = {
        k: x + 2 * generator.normal(size=(9, 1)).astype(np.float32) * direction
        for k, x in shards.items()
    }
    old, new = (statistics(slides, tiles, x) for x in (shards, after))
    rows = measure(new, old)
    assert rows["effective_rank"]["ci_high"] < 0
    assert rows["off_diagonal_correlation"]["ci_low"] > 0
    assert rows["variance_above_marchenko_pastur"]["ci_low"] > 0
    separate = [of_geometry.EXPERIMENT.measurements(x, PARAMETERS, encoder="e") for x in (new, old)]
    values = [of_geometry.values(table) for table in separate]
    for metric, row in rows.items():
        assert row["value"] == pytest.approx(values[0][metric] - values[1][metric]), metric
    mirrored = measure(old, new)["effective_rank"]
    assert mirrored["value"] == pytest.approx(-rows["effective_rank"]["value"])
    assert mirrored["ci_low"] == pytest.approx(-rows["effective_rank"]["ci_high"])


def test_other_slides_other_dimensions_and_no_shape_are_named():
    slides, tiles, shards = of_geometry.cohort(n_slides=20)
    before = statistics(slides, tiles, shards)
    fewer = {k: shards[k] for k in list(shards)[2:]}
    assert (
        "different slides"
        in measure(statistics(slides, tiles, fewer), before)["skewness"]["reason"]
    )
    narrow = statistics(slides, tiles, {k: x[:, :3] for k, x in shards.items()})
    assert "3 dimensions in place of 5" in measure(narrow, before)["effective_rank"]["reason"]
    alike = statistics(slides, tiles, {k: np.ones_like(x) for k, x in shards.items()})
    row = measure(alike, before)["skewness"]
    assert (row["verdict"], row["value"]) == ("not_applicable", None)
    assert "every dimension is constant" in row["reason"]


def test_versions_are_wired_where_there_are_any():
    without = create_pipeline(["a", "b"])
    assert not any("geometry_change" in name for name in without.all_outputs())
    asked = {"geometry_change": {"before": {"b": "a"}}}
    outputs = create_pipeline(["a", "b"], parameters=asked).all_outputs()
    assert "measurements.inheritance.geometry_change.b" in outputs
    assert "measurements.inheritance.geometry_change.a" not in outputs


@pytest.mark.parametrize(
    ("before", "grids", "message"),
    [
        ({"b": "c"}, TileGrids(), r"before\.b is 'c': give two different encoders.*\(a, b\)"),
        ({"b": "b"}, TileGrids(), "two different encoders"),
        ({"b": "a"}, TileGrids({"b": "512px"}), "vectors of different tiles"),
    ],
)
def test_versions_that_cannot_be_compared_are_refused(before, grids, message):
    with pytest.raises(ValueError, match=message):
        versions_before(["a", "b"], {}, {"geometry_change": {"before": before}}, grids)
