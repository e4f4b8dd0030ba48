"""What encoders make of rotated tiles."""

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.rotation import (
    ROTATION_SCHEMA,
    Rotation,
    rotation_figures,
    rotation_statistics,
    rotation_views,
    view_of_rotation,
)
from pathfm_kedro.slides.views import apply_disc, inscribed_size, rotated_views, wide_side
from pathfm_kedro.statistics.mutual_knn import mknn
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.wiring import Experiment
from tests.pipelines.robustness.phantom_views import make_pool, measured, shards_of
from tests.pipelines.robustness.phantom_views import pick as pick_any

PARAMETERS = {
    "angle_step": 45,
    "k": [3, 10],
    "distances": ["euclidean", "cosine"],
    "criteria": [
        {
            "metric": "mknn",
            "at": {"view": "rotated", "angle": 90, "k": 10, "distance": "euclidean"},
            "above": 0.8,
        },
        {"metric": "mknn_variance", "at": {"k": 10, "distance": "euclidean"}, "below": 0.1},
    ],
    "draws": 500,
    "seed": 0,
}
ROTATION = Experiment("rotation", Rotation, rotation_statistics, rotation_figures, [])


def parameters_with(**changes) -> Rotation:
    return read_parameters(Rotation, "rotation", PARAMETERS | changes)


P = parameters_with()
A, B = len(P.angles["rotated"]), len(P.angles["round_trip"])


def patients_pool(n_patients=24, tiles_each=3) -> pl.DataFrame:
    patient = np.repeat(np.arange(n_patients), tiles_each)
    return make_pool(
        [f"p{p:03d}" for p in patient],
        ["xyz"[p % 3] for p in patient],
        ["AB"[p % 2] for p in patient],
        [f"s{p:03d}" for p in patient],
    )


def stacked(rotated, back, p=P, **given) -> np.ndarray:
    """Views whose shifts and discs change as the rotated views do, where not given."""
    parts = {
        "rotated": rotated,
        "round_trip": back,
        "shifted": rotated[:, [a // p.angle_step for a in p.angles["shifted"]]],
        "disc": rotated[:, [a // p.angle_step for a in p.angles["disc"]]],
    } | given
    return np.concatenate(list(parts.values()), axis=1)


def measure(pool, rotated, back, given=None, **changes) -> pl.DataFrame:
    views = stacked(rotated, back, parameters_with(**changes), **(given or {}))
    shards = shards_of(pool, views=views)
    return measured(ROTATION, PARAMETERS | changes, shards, pool, most=400)


def pick(table, metric, stratum="all", /, **setting) -> dict:
    return pick_any(table.filter(stratum=stratum), metric, **setting)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drifting(n, d, share, seed=0):
    """Views that keep `share` of their tile and are noise otherwise; angle 0 is the tile."""
    tile, noise = normal(n, 1, d, seed=seed), normal(n, A, d, seed=seed + 1)
    views = np.sqrt(share) * tile + np.sqrt(1 - share) * noise
    views[:, 0] = tile[:, 0]
    return views


def test_statistics_hold_the_sums_of_each_patient():
    pool = patients_pool(8, 3)
    rotated, back = drifting(24, 6, 0.8), normal(24, B, 6, seed=9)
    statistics = rotation_statistics(shards_of(pool, views=stacked(rotated, back)), pool, P)
    assert dict(statistics.schema) == ROTATION_SCHEMA
    patients = pool["patient_id"].to_numpy()
    for name, stack in (("rotated", rotated), ("round_trip", back)):
        view = stack[:, P.angles[name].index(45)]
        found = statistics.filter(view=name, angle=45, k=3, distance="cosine").sort("patient_id")
        expected = mknn(rotated[:, 0], view, patients, 3, "cosine").reshape(8, 3).sum(axis=1)
        np.testing.assert_allclose(found["kept_sum"].to_numpy(), expected)
        assert found["n_tiles"].to_list() == [3] * 8


def test_angle_zero_is_the_reference_and_not_a_figure():
    pool = patients_pool()
    table = measure(pool, drifting(72, 6, 0.8), normal(72, B, 6))
    angles = {json.loads(s).get("angle") for s in table["setting"].to_list()}
    assert angles == {None, 45, 90, 135, 180, 225, 270, 315}


def test_identical_views_pass_with_no_drop_and_no_variance():
    tile = normal(72, 1, 6)
    table = measure(patients_pool(), tile.repeat(A, axis=1), tile.repeat(B, axis=1))
    row = pick(table, "mknn", angle=90, k=10, distance="euclidean", view="rotated")
    assert (row["value"], row["verdict"], row["n"]) == (1.0, "pass", 72)
    variance = pick(table, "mknn_variance", k=10, distance="euclidean")
    assert (variance["value"], variance["verdict"]) == (0.0, "pass")
    assert pick(table, "mknn_mean", k=3, distance="cosine", view="rotated")["value"] == 1.0
    distance = pick(table, "cosine_distance", angle=90, view="rotated")
    assert distance["value"] == pytest.approx(0, abs=1e-6)
    assert distance["null_low"] == pytest.approx(1, abs=0.05)


def test_independent_views_fail_at_chance():
    table = measure(patients_pool(), normal(72, A, 6), normal(72, B, 6, seed=1))
    row = pick(table, "mknn", angle=90, k=10, distance="euclidean", view="rotated")
    assert row["verdict"] == "fail"
    assert row["null_low"] == row["null_high"] == pytest.approx(10 / 69)
    assert row["ci_low"] < row["null_low"] < row["ci_high"]


def test_drop_that_the_blur_control_explains_leaves_no_excess():
    pool, rotated = patients_pool(), drifting(72, 6, 0.7)
    quarter = list(P.angles["rotated"]).index(90)
    for turn in range(1, 4):
        rotated[:, turn * quarter + 1 : (turn + 1) * quarter] = rotated[:, 1:quarter]
    table = measure(pool, rotated, rotated[:, 1:quarter])
    excess = pick(table, "mknn_excess_drop", k=10, distance="cosine", control="round_trip")
    assert (excess["value"], excess["ci_low"], excess["ci_high"]) == (0.0, 0.0, 0.0)


def test_excess_is_the_difference_of_the_two_means_over_interpolated_angles():
    pool, rotated = patients_pool(), drifting(72, 6, 0.5)
    back = drifting(72, 6, 0.95)[:, np.isin(P.angles["rotated"], P.angles["round_trip"])]
    table = measure(pool, rotated, back)
    excess = pick(table, "mknn_excess_drop", k=10, distance="cosine", control="round_trip")
    at = {"k": 10, "distance": "cosine"}
    expected = np.mean(
        [
            pick(table, "mknn", angle=angle % 90, view="round_trip", **at)["value"]
            - pick(table, "mknn", angle=angle, view="rotated", **at)["value"]
            for angle in P.angles["rotated"]
            if angle % 90
        ]
    )
    assert excess["value"] == pytest.approx(expected)
    assert 0.1 < excess["ci_low"] < excess["value"] < excess["ci_high"]


def test_mean_and_variance_are_those_of_the_angles():
    rotated = drifting(72, 6, np.linspace(0.2, 0.9, A)[None, :, None])
    table = measure(patients_pool(), rotated, normal(72, B, 6))
    at = {"k": 10, "distance": "euclidean", "view": "rotated"}
    values = [pick(table, "mknn", angle=a, **at)["value"] for a in P.angles["rotated"][1:]]
    assert pick(table, "mknn_mean", **at)["value"] == pytest.approx(np.mean(values))
    variance = pick(table, "mknn_variance", k=10, distance="euclidean")
    assert variance["value"] == pytest.approx(np.var(values))
    assert variance["ci_low"] < variance["value"] < variance["ci_high"]


def test_a_variance_near_none_lies_in_its_interval():
    table = measure(patients_pool(), normal(72, A, 6), normal(72, B, 6))
    variance = pick(table, "mknn_variance", k=10, distance="euclidean")
    assert 0 <= variance["ci_low"] <= variance["value"] <= variance["ci_high"]


def test_strata_add_up_to_the_whole():
    table = measure(patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    at = {"angle": 90, "k": 10, "distance": "euclidean", "view": "rotated"}
    whole = pick(table, "mknn", **at)
    for names in (["label=x", "label=y", "label=z"], ["center=A", "center=B"]):
        parts = [pick(table, "mknn", name, **at) for name in names]
        assert sum(part["n"] for part in parts) == whole["n"]
        total = sum(part["n"] * part["value"] for part in parts)
        assert total / whole["n"] == pytest.approx(whole["value"])
        assert all(part["ci_low"] < part["value"] < part["ci_high"] for part in parts)


def test_only_what_criteria_name_carries_a_threshold():
    table = measure(patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    judged = table.filter(pl.col("threshold").is_not_null())
    assert judged.select("metric", "threshold", "direction").sort("metric").rows() == [
        ("mknn", 0.8, "above"),
        ("mknn_variance", 0.1, "below"),
    ]
    assert (
        table.select(pl.col("value", "null_low", "null_high").is_nan().any()).row(0) == (False,) * 3
    )


def test_permuting_slides_changes_no_measurement():
    pool, rotated, back = patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6)
    slides = np.random.default_rng(0).permutation(24)
    order = (slides[:, None] * 3 + np.arange(3)).ravel()
    permuted = measure(pool[order.tolist()], rotated[order], back[order])
    table = measure(pool, rotated, back)
    key = ["metric", "stratum", "setting"]
    for column in ("value", "ci_low", "ci_high", "null_low"):
        np.testing.assert_allclose(
            permuted.sort(key)[column].to_numpy(), table.sort(key)[column].to_numpy(), atol=1e-9
        )


@pytest.mark.slow
@pytest.mark.parametrize(("d", "share"), [(4, 0.0), (64, 0.0), (4, 0.8)])
def test_the_interval_covers_as_often_as_it_says(d, share):
    # Resampling patients as queries only covers 70 to 90%: see candidate_effects.
    pool = patients_pool(24, 3)
    changes = {"angle_step": 90, "k": [10], "distances": ["euclidean"], "draws": 300}
    frames = []
    for seed in range(70):
        rotated = drifting(72, d, share, seed=7 * seed)[:, :4]
        table = measure(pool, rotated, np.zeros((72, 0, d)), criteria=[], **changes)
        rotations = pl.col("setting").str.contains('"view": "rotated"')
        frames.append(table.filter(rotations, metric="mknn", stratum="all"))
    rows = pl.concat(frames)
    assert rows.height == 210
    truth = 10 / 69 if share == 0 else rows["value"].mean()
    covered = rows.select((pl.col("ci_low") <= truth) & (pl.col("ci_high") >= truth))
    assert 0.90 <= covered.to_series().mean() <= 0.99


def test_k_beyond_the_candidates_is_not_applicable_with_the_mend():
    pool = patients_pool(4, 3)
    table = measure(pool, drifting(12, 6, 0.7), normal(12, B, 6))
    row = pick(table, "mknn", angle=90, k=10, distance="euclidean", view="rotated")
    assert (row["value"], row["verdict"], row["threshold"]) == (None, "not_applicable", 0.8)
    assert "only 9 tiles of other patients; add patients" in row["reason"]
    variance = pick(table, "mknn_variance", k=10, distance="euclidean")
    assert variance["threshold"] == 0.1
    assert pick(table, "mknn", angle=90, k=3, distance="euclidean", view="rotated")["value"] > 0
    for found in (row, variance):
        assert (found["n"], found["n_patients"]) == (12, 4)


def test_a_pool_where_chance_passes_is_undecidable():
    pool = patients_pool(5, 3)
    tile = normal(15, 1, 6)
    table = measure(pool, tile.repeat(A, axis=1), tile.repeat(B, axis=1))
    row = pick(table, "mknn", angle=90, k=10, distance="euclidean", view="rotated")
    assert (row["value"], row["verdict"]) == (1.0, "undecidable")
    assert "chance alone is 0.83" in row["reason"]


def test_one_patient_or_no_views_are_not_applicable():
    pool = patients_pool(1, 12)
    one = measure(pool, drifting(12, 6, 0.7), normal(12, B, 6))
    none = measured(ROTATION, PARAMETERS, shards_of(pool[:0], views=np.zeros(0)), pool, most=400)
    for table, reason in ((one, "only 0 tiles"), (none, "no usable slide of the pool")):
        assert set(table["verdict"]) == {"not_applicable"}
        assert table["value"].null_count() == table.height
        row = pick(table, "mknn", angle=90, k=10, distance="euclidean", view="rotated")
        assert row["threshold"] == 0.8
        assert reason in row["reason"]
        assert pick(table, "cosine_distance", angle=90, view="rotated")["value"] is None


def test_a_stratum_of_one_patient_has_no_interval():
    pool = patients_pool().with_columns(
        label=pl.when(pl.col("patient_id") == "p000").then(pl.lit("rare")).otherwise("label")
    )
    table = measure(pool, drifting(72, 6, 0.7), normal(72, B, 6))
    row = pick(table, "mknn", "label=rare", angle=90, k=10, distance="euclidean")
    assert (row["verdict"], row["value"]) == ("not_applicable", None)
    assert "label=rare in the pool holds 1 patient" in row["reason"]


def test_quarter_turns_alone_have_no_blur_to_exceed():
    table = measure(
        patients_pool(), drifting(72, 6, 0.7)[:, :4], np.zeros((72, 0, 6)), angle_step=90
    )
    row = pick(table, "mknn_excess_drop", k=10, distance="cosine", control="round_trip")
    assert row["verdict"] == "not_applicable"
    assert "angle_step" in row["reason"]


def test_a_loss_that_a_shift_has_too_leaves_no_excess_over_it():
    """The view at 45° and the shift with the same loss of content are the same here."""
    table = measure(patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    rotated = pick(table, "mknn", angle=45, k=10, distance="cosine", view="rotated")
    shifted = pick(table, "mknn", angle=45, k=10, distance="cosine", view="shifted")
    assert rotated["value"] == shifted["value"]
    tile = drifting(72, 6, 0.7)[:, :1]
    kept = measure(patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6), {"shifted": tile})
    excess = pick(kept, "mknn_excess_drop", k=10, distance="cosine", control="shifted")
    values = [
        pick(kept, "mknn", angle=a, k=10, distance="cosine", view="rotated")["value"]
        for a in (45, 135, 225, 315)
    ]
    assert excess["value"] == pytest.approx(1 - np.mean(values))


def test_a_disc_is_held_against_the_disc_that_is_not_rotated():
    disc = np.repeat(normal(72, 1, 6, seed=9), len(P.angles["disc"]), axis=1)
    table = measure(patients_pool(), drifting(72, 6, 0.2), normal(72, B, 6), {"disc": disc})
    row = pick(table, "mknn", angle=90, k=10, distance="cosine", view="disc")
    assert row["value"] == pytest.approx(1)


def test_quarter_turns_are_averaged_by_themselves():
    table = measure(patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    at = {"k": 10, "distance": "cosine", "view": "rotated"}
    values = [pick(table, "mknn", angle=a, **at)["value"] for a in (90, 180, 270)]
    assert pick(table, "mknn_quarter_turns", **at)["value"] == pytest.approx(np.mean(values))


def test_a_slide_without_views_is_left_out():
    pool, rotated, back = patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6)
    rest = pool.filter(pl.col("slide_id") != "s005")
    views = stacked(rotated, back)[(pool["slide_id"] != "s005").to_numpy()]
    statistics = rotation_statistics(shards_of(rest, views=views), pool, P)
    assert statistics.equals(rotation_statistics(shards_of(rest, views=views), rest, P))
    assert "p005" not in statistics["patient_id"]


def test_views_that_do_not_fit_are_refused_with_the_mend():
    pool = patients_pool()
    with pytest.raises(ValueError, match="expected 72 tiles and 13 views: embed the views"):
        rotation_statistics(shards_of(pool, views=normal(72, 9, 6)), pool, P)
    broken = stacked(drifting(72, 6, 0.7), normal(72, B, 6))
    broken[7, 2, 1] = np.nan
    with pytest.raises(ValueError, match="t0007"):
        rotation_statistics(shards_of(pool, views=broken), pool, P)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angle_step": 20}, "rotation.angle_step is 20: give a step that divides 90"),
        ({"angle_step": 0}, "rotation.angle_step is 0"),
        ({"distances": ["euclidean", "dot"]}, "rotation.distances.1 is 'dot'"),
        ({"k": []}, "rotation.k"),
        ({"metrics": ["cosine"]}, "rotation.metrics: no such parameter"),
    ],
)
def test_wrong_parameters_are_refused_with_the_mend(changes, message):
    with pytest.raises(ValueError, match=message):
        parameters_with(**changes)


def test_a_criterion_of_what_is_not_measured_is_refused():
    criterion = {"metric": "mknn", "at": {"view": "rotated", "angle": 90, "k": 7}, "above": 0.8}
    with pytest.raises(ValueError, match=r"rotation.criteria: no figure mknn"):
        measure(patients_pool(), drifting(72, 6, 0.7), normal(72, B, 6), criteria=[criterion])


def test_fifteen_degree_steps():
    angles = parameters_with(angle_step=15).angles
    assert angles["rotated"] == tuple(range(0, 360, 15))
    assert angles["round_trip"] == (15, 30, 45, 60, 75)


def test_views_are_of_the_tile_or_of_its_inner_square():
    wide, inner = (
        view_of_rotation(pl.DataFrame({"field": [field]}), 64, P) for field in ("wide", "inscribed")
    )
    assert (wide.side, inner.side) == ((wide_side(64), wide_side(64)), None)
    assert wide.settings == inner.settings == rotation_views(P, 1).settings
    field = np.random.default_rng(0).integers(0, 256, (wide_side(64),) * 2 + (3,)).astype(np.uint8)
    made = dict(zip(map(json.dumps, wide.settings), wide.make(field, 0), strict=True))
    for angle in P.angles["disc"]:
        rotated = made[json.dumps({"view": "rotated", "angle": angle})]
        np.testing.assert_array_equal(rotated, rotated_views(field, 64, [angle])[0])
        disc = made[json.dumps({"view": "disc", "angle": angle})]
        np.testing.assert_array_equal(disc, apply_disc(rotated))
    assert inner.make(field[:64, :64], 0).shape[1] == inscribed_size(64)


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_the_same_vector_for_every_tile_has_no_neighbours_to_keep(rounding):
    pool = patients_pool()
    vector = np.arange(1.0, 17.0)
    rotated, back = (
        (vector * (1 + rounding * normal(pool.height, angles, 16, seed=angles))).astype(np.float32)
        for angles in (A, B)
    )
    table = measure(pool, rotated, back)
    figures = table.filter(pl.col("metric").str.starts_with("mknn"))
    assert (figures["verdict"] == "not_applicable").all()
    assert figures["value"].null_count() == figures.height
    assert figures["reason"].str.contains("same vector for every tile").all()
    row = pick(table, "mknn", k=10, distance="euclidean", angle=90, view="rotated")
    assert row["threshold"] == 0.8


def test_vectors_of_one_direction_differ_by_euclidean_distance_alone():
    pool = patients_pool()
    lengths = 1 + np.arange(pool.height)[:, None, None]
    views = [(lengths * np.ones((1, angles, 16))).astype(np.float32) for angles in (A, B)]
    table = measure(pool, *views)
    assert pick(table, "mknn", k=10, distance="euclidean", angle=90, view="rotated")["value"] == 1
    assert pick(table, "mknn", k=10, distance="cosine", angle=90, view="rotated")["value"] is None
