import json
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.pipelines.robustness import mutual_knn
from pathfm_kedro.pipelines.robustness.mutual_knn import (
    candidate_effects,
    cosine_distance_chance,
    cosine_distances,
    mknn,
    mknn_chance,
    nearest,
)
from pathfm_kedro.pipelines.robustness.rotation import (
    OVERLAP_SCHEMA,
    RotationParameters,
    rotation_measurements,
    rotation_overlaps,
)
from pathfm_kedro.pipelines.robustness.tile_pool import POOL_COLUMNS, choose_pool
from pathfm_kedro.slides.views import wide_side

METRICS = ["euclidean", "cosine"]

PARAMETERS = {
    "angle_step": 45,
    "k": [3, 10],
    "metrics": METRICS,
    "signature_k": 10,
    "signature_metric": "euclidean",
    "thresholds": {"mknn": 0.8, "mknn_variance": 0.1},
    "draws": 500,
    "seed": 0,
}
POOL = {"max_tiles": 72, "seed": 0}
TOLD = RotationParameters.parse(PARAMETERS)
A, B = len(TOLD.rotated_angles), len(TOLD.rotated_back_angles)


@dataclass(frozen=True)
class Views:
    """Stored views of a pool: one shard a slide."""

    shards: dict[str, dict[str, np.ndarray]]

    @property
    def slide_ids(self):
        return tuple(sorted(self.shards))

    def stack(self, slide_ids, name="embedding"):
        return np.concatenate([self.shards[slide][name] for slide in slide_ids])


def make_pool(n_patients=24, tiles_each=3) -> pl.DataFrame:
    n = n_patients * tiles_each
    patient = np.repeat(np.arange(n_patients), tiles_each)
    return pl.DataFrame(
        {
            "tile_id": [f"t{i:04d}" for i in range(n)],
            "slide_id": [f"s{p:03d}" for p in patient],
            "patient_id": [f"p{p:03d}" for p in patient],
            "center": ["AB"[p % 2] for p in patient],
            "organ": ["o"] * n,
            "label": ["xyz"[p % 3] for p in patient],
            "field": ["wide"] * n,
        }
    )


def make_views(pool, rotated, back, told=TOLD, **stacks) -> Views:
    """Views whose shifts and discs change as the turned views do, where not given."""
    slides = pool["slide_id"].to_numpy()
    stacks = {
        "rotated": rotated,
        "rotated_back": back,
        "shifted": rotated[:, [a // told.angle_step for a in told.shifted_angles]],
        "disc": rotated[:, [a // told.angle_step for a in told.disc_angles]],
    } | stacks
    return Views(
        {
            slide: {name: stack[slides == slide] for name, stack in stacks.items()}
            for slide in np.unique(slides)
        }
    )


def measure(pool, rotated, back, stacks=None, **changed) -> pl.DataFrame:
    told = PARAMETERS | changed
    views = make_views(pool, rotated, back, RotationParameters.parse(told), **(stacks or {}))
    return rotation_measurements(rotation_overlaps(views, pool, told), told, "encoder")


def pick(table, figure, stratum="all", /, **setting) -> dict:
    rows = [
        row
        for row in table.filter(pl.col("metric") == figure, pl.col("stratum") == stratum).iter_rows(
            named=True
        )
        if setting.items() <= json.loads(row["setting"]).items()
    ]
    assert len(rows) == 1, (figure, stratum, setting, len(rows))
    return rows[0]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drifting(n, d, share, seed=0):
    """Views that keep `share` of their tile and are noise otherwise; angle 0 is the tile."""
    tile, noise = normal(n, 1, d, seed=seed), normal(n, A, d, seed=seed + 1)
    views = np.sqrt(share) * tile + np.sqrt(1 - share) * noise
    views[:, 0] = tile[:, 0]
    return views


def brute_force(reference, view, patients, k, metric):
    """Set intersections, one tile at a time."""

    def far(a, b):
        if metric == "euclidean":
            return np.linalg.norm(a - b)
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def nearest(space, i):
        others = [j for j in range(len(space)) if patients[j] != patients[i]]
        return set(sorted(others, key=lambda j: (far(space[i], space[j]), j))[:k])

    return [len(nearest(reference, i) & nearest(view, i)) / k for i in range(len(reference))]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_mknn_equals_set_intersection(metric, k):
    patients = np.random.default_rng(1).choice(list("abcdef"), size=40)
    reference, view = normal(40, 6) + 3, normal(40, 6, seed=2) * 0.5 + normal(40, 6) + 3
    found = mknn(reference, view, patients, k, metric)
    np.testing.assert_allclose(found, brute_force(reference, view, patients, k, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lower_index(metric):
    reference = np.repeat(normal(4, 300), 12, axis=0)
    view = np.repeat(normal(3, 300, seed=3), 16, axis=0)
    patients = np.arange(48)
    # Whole-number coordinates, where brute force is exact too.
    reference, view = np.sign(reference), np.sign(view)
    found = mknn(reference, view, patients, 5, metric)
    np.testing.assert_array_equal(found, brute_force(reference, view, patients, 5, "euclidean"))


@pytest.mark.parametrize("metric", METRICS)
def test_searching_in_blocks_changes_nothing(metric, monkeypatch):
    monkeypatch.setattr(mutual_knn, "_BLOCK", 7)
    reference, view, patients = normal(40, 6), normal(40, 6, seed=2), np.arange(40) // 2
    found = mknn(reference, view, patients, 5, metric)
    np.testing.assert_allclose(found, brute_force(reference, view, patients, 5, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_identical_views_keep_every_neighbour(metric):
    tiles = normal(60, 5)
    assert (mknn(tiles, tiles, np.arange(60) // 3, 10, metric) == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(METRICS), st.floats(0.01, 1000))
def test_turning_or_scaling_the_embedding_space_changes_nothing(seed, metric, scale):
    tiles = np.random.default_rng(seed).normal(size=(40, 6))
    turn, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(6, 6)))
    patients = np.arange(40) // 2
    assert (mknn(tiles, scale * tiles @ turn, patients, 7, metric) == 1).all()
    np.testing.assert_allclose(cosine_distances(tiles, tiles), 0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(METRICS))
def test_permuting_tiles_permutes_their_overlaps(seed, metric):
    generator = np.random.default_rng(seed)
    reference, view = generator.normal(size=(2, 40, 6))
    patients = generator.integers(0, 12, 40)
    order = generator.permutation(40)
    found = mknn(reference, view, patients, 7, metric)
    permuted = mknn(reference[order], view[order], patients[order], 7, metric)
    np.testing.assert_array_equal(permuted, found[order])


@pytest.mark.parametrize("metric", METRICS)
def test_chance_is_the_mean_over_independent_views(metric):
    patients = np.array([0] * 20 + list(range(1, 21)))
    draws = [
        mknn(normal(40, 10, seed=s), normal(40, 10, seed=s + 5000), patients, 5, metric)
        for s in range(400)
    ]
    chance = mknn_chance(patients, 5)
    np.testing.assert_allclose(chance, [5 / 20] * 20 + [5 / 39] * 20)
    standard_error = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert (np.abs(np.mean(draws, axis=0) - chance) < 4.5 * standard_error).all()


def test_cosine_distance_chance_is_the_mean_over_other_patients():
    reference, view, codes = normal(12, 4), normal(12, 4, seed=1), np.arange(12) // 3
    expected = [
        np.mean(
            [cosine_distances(reference[[i]], view[[j]]) for j in range(12) if j // 3 != i // 3]
        )
        for i in range(12)
    ]
    np.testing.assert_allclose(cosine_distance_chance(reference, view, codes), expected)


def test_unfit_arrays_are_refused_with_the_mend():
    tiles = normal(6, 3)
    with pytest.raises(ValueError, match="same rows"):
        mknn(tiles, tiles[:5], np.arange(6), 2, "cosine")
    with pytest.raises(ValueError, match="only 3 tiles of other patients; add patients"):
        mknn(tiles, tiles, np.arange(6) // 3, 4, "cosine")
    with pytest.raises(ValueError, match="unknown metric 'manhattan'"):
        mknn(tiles, tiles, np.arange(6), 2, "manhattan")


def test_overlaps_hold_the_sums_of_each_patient():
    pool = make_pool(8, 3)
    rotated, back = drifting(24, 6, 0.8), normal(24, B, 6, seed=9)
    overlaps = rotation_overlaps(make_views(pool, rotated, back), pool, PARAMETERS)
    assert dict(overlaps.schema) == OVERLAP_SCHEMA
    patients = pool["patient_id"].to_numpy()
    for name, stack, angles in (
        ("rotated", rotated, TOLD.rotated_angles),
        ("rotated_back", back, TOLD.rotated_back_angles),
    ):
        view = stack[:, angles.index(45)]
        found = overlaps.filter(view=name, angle=45, k=3, metric="cosine").sort("patient_id")
        expected = mknn(rotated[:, 0], view, patients, 3, "cosine").reshape(8, 3).sum(axis=1)
        np.testing.assert_allclose(found["overlap_sum"].to_numpy(), expected)
        assert found["n_tiles"].to_list() == [3] * 8


def test_angle_zero_is_the_reference_and_not_a_figure():
    pool = make_pool()
    table = measure(pool, drifting(72, 6, 0.8), normal(72, B, 6))
    angles = {json.loads(s).get("angle") for s in table["setting"].to_list()}
    assert angles == {None, 45, 90, 135, 180, 225, 270, 315}


def test_identical_views_pass_with_no_drop_and_no_variance():
    tile = normal(72, 1, 6)
    table = measure(make_pool(), tile.repeat(A, axis=1), tile.repeat(B, axis=1))
    signature = pick(table, "mknn", angle=90, k=10, metric="euclidean", view="rotated")
    assert (signature["value"], signature["verdict"], signature["n"]) == (1.0, "pass", 72)
    variance = pick(table, "mknn_variance", k=10, metric="euclidean")
    assert (variance["value"], variance["verdict"]) == (0.0, "pass")
    assert pick(table, "mknn_mean", k=3, metric="cosine", view="rotated")["value"] == 1.0
    distance = pick(table, "cosine_distance", angle=90, view="rotated")
    assert distance["value"] == pytest.approx(0, abs=1e-6)
    assert distance["null_low"] == pytest.approx(1, abs=0.05)


def test_independent_views_fail_at_chance():
    table = measure(make_pool(), normal(72, A, 6), normal(72, B, 6, seed=1))
    signature = pick(table, "mknn", angle=90, k=10, metric="euclidean", view="rotated")
    assert signature["verdict"] == "fail"
    assert signature["null_low"] == signature["null_high"] == pytest.approx(10 / 69)
    assert signature["ci_low"] < signature["null_low"] < signature["ci_high"]


def test_drop_that_the_blur_control_explains_leaves_no_excess():
    pool, rotated = make_pool(), drifting(72, 6, 0.7)
    quarter = list(TOLD.rotated_angles).index(90)
    for turn in range(1, 4):
        rotated[:, turn * quarter + 1 : (turn + 1) * quarter] = rotated[:, 1:quarter]
    table = measure(pool, rotated, rotated[:, 1:quarter])
    excess = pick(table, "mknn_excess_drop", k=10, metric="cosine", control="rotated_back")
    assert (excess["value"], excess["ci_low"], excess["ci_high"]) == (0.0, 0.0, 0.0)


def test_excess_is_the_difference_of_the_two_means_over_interpolated_angles():
    pool, rotated = make_pool(), drifting(72, 6, 0.5)
    back = drifting(72, 6, 0.95)[:, np.isin(TOLD.rotated_angles, TOLD.rotated_back_angles)]
    table = measure(pool, rotated, back)
    excess = pick(table, "mknn_excess_drop", k=10, metric="cosine", control="rotated_back")
    at = {"k": 10, "metric": "cosine"}
    expected = np.mean(
        [
            pick(table, "mknn", angle=angle % 90, view="rotated_back", **at)["value"]
            - pick(table, "mknn", angle=angle, view="rotated", **at)["value"]
            for angle in TOLD.rotated_angles
            if angle % 90
        ]
    )
    assert excess["value"] == pytest.approx(expected)
    assert 0.1 < excess["ci_low"] < excess["value"] < excess["ci_high"]


def test_mean_and_variance_are_those_of_the_angles():
    rotated = drifting(72, 6, np.linspace(0.2, 0.9, A)[None, :, None])
    table = measure(make_pool(), rotated, normal(72, B, 6))
    at = {"k": 10, "metric": "euclidean", "view": "rotated"}
    values = [pick(table, "mknn", angle=a, **at)["value"] for a in TOLD.rotated_angles[1:]]
    assert pick(table, "mknn_mean", **at)["value"] == pytest.approx(np.mean(values))
    variance = pick(table, "mknn_variance", k=10, metric="euclidean")
    assert variance["value"] == pytest.approx(np.var(values))
    assert variance["ci_low"] < variance["value"] < variance["ci_high"]


def test_a_variance_near_none_lies_in_its_interval():
    table = measure(make_pool(), normal(72, A, 6), normal(72, B, 6))
    variance = pick(table, "mknn_variance", k=10, metric="euclidean")
    assert 0 <= variance["ci_low"] <= variance["value"] <= variance["ci_high"]


def test_strata_add_up_to_the_whole():
    table = measure(make_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    at = {"angle": 90, "k": 10, "metric": "euclidean", "view": "rotated"}
    whole = pick(table, "mknn", **at)
    for names in (["label=x", "label=y", "label=z"], ["center=A", "center=B"]):
        parts = [pick(table, "mknn", name, **at) for name in names]
        assert sum(part["n"] for part in parts) == whole["n"]
        total = sum(part["n"] * part["value"] for part in parts)
        assert total / whole["n"] == pytest.approx(whole["value"])
        assert all(part["ci_low"] < part["value"] < part["ci_high"] for part in parts)


def test_only_the_signatures_carry_a_threshold():
    table = measure(make_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    held = table.filter(pl.col("threshold").is_not_null())
    assert held.select("metric", "threshold", "direction").sort("metric").rows() == [
        ("mknn", 0.8, "above"),
        ("mknn_variance", 0.1, "below"),
    ]
    assert (
        table.select(pl.col("value", "null_low", "null_high").is_nan().any()).row(0) == (False,) * 3
    )


def test_permuting_slides_changes_no_measurement():
    pool, rotated, back = make_pool(), drifting(72, 6, 0.7), normal(72, B, 6)
    slides = np.random.default_rng(0).permutation(24)
    order = (slides[:, None] * 3 + np.arange(3)).ravel()
    permuted = measure(pool[order.tolist()], rotated[order], back[order])
    table = measure(pool, rotated, back)
    key = ["metric", "stratum", "setting"]
    for column in ("value", "ci_low", "ci_high", "null_low"):
        np.testing.assert_allclose(
            permuted.sort(key)[column].to_numpy(), table.sort(key)[column].to_numpy(), atol=1e-9
        )


@pytest.mark.parametrize(("d", "share"), [(4, 0.0), (64, 0.0), (4, 0.8)])
def test_the_interval_covers_as_often_as_it_says(d, share):
    # Resampling patients as queries only covers 70 to 90%: see candidate_effects.
    pool = make_pool(24, 3)
    told = PARAMETERS | {"angle_step": 90, "k": [10], "metrics": ["euclidean"], "draws": 300}
    frames = []
    for seed in range(70):
        rotated = drifting(72, d, share, seed=7 * seed)[:, :4]
        views = make_views(pool, rotated, np.zeros((72, 0, d)), RotationParameters.parse(told))
        table = rotation_measurements(rotation_overlaps(views, pool, told), told, "encoder")
        turned = pl.col("setting").str.contains('"view": "rotated"')
        frames.append(table.filter(turned, pl.col("metric") == "mknn", pl.col("stratum") == "all"))
    rows = pl.concat(frames)
    assert rows.height == 210
    truth = 10 / 69 if share == 0 else rows["value"].mean()
    covered = rows.select((pl.col("ci_low") <= truth) & (pl.col("ci_high") >= truth))
    assert 0.90 <= covered.to_series().mean() <= 0.99


@pytest.mark.parametrize("metric", METRICS)
def test_candidate_effects_foretell_what_removing_a_tile_changes(metric):
    n, k = 40, 4
    patients = np.arange(n)
    foretold, measured = [], []
    for seed in range(4):
        reference = normal(n, 5, seed=seed)
        view = reference + 0.7 * normal(n, 5, seed=seed + 100)
        lists = [nearest(space, patients, k + 1, metric) for space in (reference, view)]
        foretold += candidate_effects(*lists, k).tolist()
        whole = mknn(reference, view, patients, k, metric)
        for j in range(n):
            rest = patients != j
            without = mknn(reference[rest], view[rest], patients[rest], k, metric)
            measured.append((whole[rest] - without).sum())
    slope, intercept = np.polyfit(foretold, measured, 1)
    assert slope == pytest.approx(1, abs=0.15)
    assert intercept == pytest.approx(0, abs=0.05)
    assert np.corrcoef(foretold, measured)[0, 1] > 0.5


def test_k_beyond_the_candidates_is_not_applicable_with_the_mend():
    pool = make_pool(4, 3)
    table = measure(pool, drifting(12, 6, 0.7), normal(12, B, 6))
    row = pick(table, "mknn", angle=90, k=10, metric="euclidean")
    assert (row["value"], row["verdict"], row["threshold"]) == (None, "not_applicable", 0.8)
    assert "only 9 tiles of other patients; add patients" in row["reason"]
    assert pick(table, "mknn_variance", k=10, metric="euclidean")["threshold"] == 0.1
    assert pick(table, "mknn", angle=90, k=3, metric="euclidean", view="rotated")["value"] > 0
    assert (row["n"], row["n_patients"]) == (12, 4)


def test_a_pool_where_chance_passes_is_not_applicable():
    pool = make_pool(5, 3)
    tile = normal(15, 1, 6)
    table = measure(pool, tile.repeat(A, axis=1), tile.repeat(B, axis=1))
    row = pick(table, "mknn", angle=90, k=10, metric="euclidean", view="rotated")
    assert (row["value"], row["verdict"]) == (1.0, "not_applicable")
    assert "chance alone is 0.833" in row["reason"]


def test_one_patient_or_no_views_are_not_applicable():
    pool = make_pool(1, 12)
    one = measure(pool, drifting(12, 6, 0.7), normal(12, B, 6))
    none = rotation_measurements(
        rotation_overlaps(Views({}), pool, PARAMETERS), PARAMETERS, "encoder"
    )
    for table, reason in ((one, "only 0 tiles"), (none, "no tile was turned")):
        assert set(table["verdict"]) == {"not_applicable"}
        assert table["value"].null_count() == table.height
        row = pick(table, "mknn", angle=90, k=10, metric="euclidean")
        assert row["threshold"] == 0.8
        assert reason in row["reason"]
        assert pick(table, "cosine_distance", angle=90, view="rotated")["value"] is None


def test_a_stratum_of_one_patient_has_no_interval():
    pool = make_pool().with_columns(
        label=pl.when(pl.col("patient_id") == "p000").then(pl.lit("rare")).otherwise("label")
    )
    table = measure(pool, drifting(72, 6, 0.7), normal(72, B, 6))
    row = pick(table, "mknn", "label=rare", angle=90, k=10, metric="euclidean")
    assert (row["verdict"], row["value"]) == ("not_applicable", None)
    assert "label=rare in the pool holds 1 patient" in row["reason"]


def test_quarter_turns_alone_have_no_blur_to_exceed():
    table = measure(make_pool(), drifting(72, 6, 0.7)[:, :4], np.zeros((72, 0, 6)), angle_step=90)
    row = pick(table, "mknn_excess_drop", k=10, metric="cosine", control="rotated_back")
    assert row["verdict"] == "not_applicable"
    assert "angle_step" in row["reason"]


def test_a_loss_that_a_shift_has_too_leaves_no_excess_over_it():
    """The view at 45° and the shift with the same loss of content are the same here."""
    table = measure(make_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    turned = pick(table, "mknn", angle=45, k=10, metric="cosine", view="rotated")
    shifted = pick(table, "mknn", angle=45, k=10, metric="cosine", view="shifted")
    assert turned["value"] == shifted["value"]
    tile = drifting(72, 6, 0.7)[:, :1]
    kept = measure(make_pool(), drifting(72, 6, 0.7), normal(72, B, 6), {"shifted": tile})
    excess = pick(kept, "mknn_excess_drop", k=10, metric="cosine", control="shifted")
    values = [
        pick(kept, "mknn", angle=a, k=10, metric="cosine", view="rotated")["value"]
        for a in (45, 135, 225, 315)
    ]
    assert excess["value"] == pytest.approx(1 - np.mean(values))


def test_a_disc_is_held_against_the_disc_that_is_not_turned():
    disc = np.repeat(normal(72, 1, 6, seed=9), len(TOLD.disc_angles), axis=1)
    table = measure(make_pool(), drifting(72, 6, 0.2), normal(72, B, 6), {"disc": disc})
    row = pick(table, "mknn", angle=90, k=10, metric="cosine", view="disc")
    assert row["value"] == pytest.approx(1)


def test_quarter_turns_are_averaged_by_themselves():
    table = measure(make_pool(), drifting(72, 6, 0.7), normal(72, B, 6))
    at = {"k": 10, "metric": "cosine", "view": "rotated"}
    values = [pick(table, "mknn", angle=a, **at)["value"] for a in (90, 180, 270)]
    assert pick(table, "mknn_quarter_turns", **at)["value"] == pytest.approx(np.mean(values))


def test_a_slide_without_views_is_left_out():
    pool, rotated, back = make_pool(), drifting(72, 6, 0.7), normal(72, B, 6)
    views = make_views(pool, rotated, back)
    del views.shards["s005"]
    overlaps = rotation_overlaps(views, pool, PARAMETERS)
    rest = pool.filter(pl.col("slide_id") != "s005")
    assert overlaps.equals(rotation_overlaps(views, rest, PARAMETERS))
    assert "p005" not in overlaps["patient_id"]


def test_views_that_do_not_fit_are_refused_with_the_mend():
    pool = make_pool()
    with pytest.raises(ValueError, match=r"expected \[72 tiles, 8 angles, d\].*embed the views"):
        rotation_overlaps(make_views(pool, normal(72, 5, 6), normal(72, B, 6)), pool, PARAMETERS)
    broken = drifting(72, 6, 0.7)
    broken[7, 2, 1] = np.nan
    with pytest.raises(ValueError, match="t0007"):
        rotation_overlaps(make_views(pool, broken, normal(72, B, 6)), pool, PARAMETERS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"angle_step": 20}, "divides 90"),
        ({"angle_step": 0}, "divides 90"),
        ({"metrics": ["euclidean", "dot"]}, "unknown"),
        ({"signature_k": 7}, "k = 7"),
        ({"metrics": ["cosine"]}, "euclidean"),
    ],
)
def test_wrong_parameters_are_refused_with_the_mend(changed, message):
    with pytest.raises(ValueError, match=message):
        RotationParameters.parse(PARAMETERS | changed)


def test_fifteen_degree_steps():
    told = RotationParameters.parse(PARAMETERS | {"angle_step": 15})
    assert told.rotated_angles == tuple(range(0, 360, 15))
    assert told.rotated_back_angles == (15, 30, 45, 60, 75)


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


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_the_same_vector_for_every_tile_has_no_neighbours_to_keep(rounding):
    pool = make_pool()
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
    signature = pick(table, "mknn", k=10, metric="euclidean", angle=90)
    assert signature["threshold"] == 0.8


def test_vectors_of_one_direction_differ_by_euclidean_distance_alone():
    pool = make_pool()
    lengths = 1 + np.arange(pool.height)[:, None, None]
    views = [(lengths * np.ones((1, angles, 16))).astype(np.float32) for angles in (A, B)]
    table = measure(pool, *views)
    assert pick(table, "mknn", k=10, metric="euclidean", angle=90, view="rotated")["value"] == 1
    assert pick(table, "mknn", k=10, metric="cosine", angle=90, view="rotated")["value"] is None
