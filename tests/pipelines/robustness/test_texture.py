"""What encoders make of tiles whose patches have changed places."""

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.mutual_knn import mknn_chance
from pathfm_kedro.pipelines.robustness.texture import (
    TEXTURE_SCHEMA,
    plan_texture_views,
    texture_maker,
    texture_measurements,
    texture_sums,
)
from tests.pipelines.robustness.phantom_views import (
    CONTROLS,
    embedded,
    make_pool,
    phantom_cohort,
    pick,
    refuses_nan,
    shards_of,
)

TOLD = {
    "grids": [2, 4, 8],
    "k": 10,
    "folds": 3,
    "C": 1.0,
    "max_iter": 500,
    "thresholds": {"excess_shift": None, "label_survival": None},
    "draws": 300,
    "seed": 0,
}


def measure(pool, views, **changes) -> pl.DataFrame:
    told = TOLD | changes
    sums = texture_sums(shards_of(pool, views=views), pool, told)
    assert dict(sums.schema) == TEXTURE_SCHEMA
    table = texture_measurements(sums, told, "e")
    refuses_nan(table)
    return table


def measure_control(control: str) -> pl.DataFrame:
    maker = texture_maker(TOLD)
    views = embedded(phantom_cohort(), lambda _: maker, CONTROLS[control])
    sums = texture_sums(views, phantom_cohort().pool, TOLD)
    table = texture_measurements(sums, TOLD, control)
    refuses_nan(table)
    return table


def labelled_pool(n_patients=24, each=3) -> pl.DataFrame:
    patient = np.repeat(np.arange(n_patients), each)
    return make_pool(
        [f"p{p:02d}" for p in patient], ["xyz"[p % 3] for p in patient], ["A"] * len(patient)
    )


def parts(pool, clean, shuffled, turned, noise=0.05, seed=0) -> np.ndarray:
    """Views that hold the label with given strength, in a space with some noise."""
    generator = np.random.default_rng(seed)
    own = np.eye(3)[["xyz".index(label) for label in pool["label"]]]
    strength = np.array([clean, *[shuffled] * 3, *[turned] * 3])
    views = generator.normal(0, noise, (pool.height, 7, 3)) + 1.0
    return (views + own[:, None] * strength[None, :, None]).astype(np.float32)


@pytest.mark.parametrize("control", ["stain_statistics", "phantom_truth"])
def test_who_does_not_see_arrangement_sees_nothing(control):
    table = measure_control(control)
    for metric in ("relative_shift", "excess_shift", "excess_drop"):
        found = table.filter(metric=metric)
        np.testing.assert_allclose(found["value"], 0.0, atol=1e-9)
    assert (table.filter(metric="kept_neighbours")["value"] == 1).all()


def test_truth_keeps_its_label():
    table = measure_control("phantom_truth")
    assert pick(table, "label_accuracy", view="clean")["value"] == 1
    assert table.filter(metric="label_survival")["value"].to_list() == [1.0] * 3


def test_knowing_nothing_sits_on_chance():
    table = measure_control("random_projection")
    chance = mknn_chance(phantom_cohort().pool["patient_id"].to_numpy(), 10).mean()
    kept = table.filter(metric="kept_neighbours")
    np.testing.assert_allclose(kept["value"], chance, atol=0.06)
    for metric in ("excess_shift", "excess_drop"):
        inside = table.filter(metric=metric).select(pl.lit(0.0).is_between("ci_low", "ci_high"))
        assert inside.to_series().sum() >= 2
    survival = table.filter(metric="label_survival")
    assert (survival["verdict"] == "not_applicable").all()
    assert survival["reason"].str.contains("better than chance").all()
    np.testing.assert_allclose(table.filter(metric="label_accuracy")["null_low"], 1 / 4)


def test_excess_is_what_the_control_leaves():
    pool = labelled_pool()
    table = measure(pool, parts(pool, 2.0, 0.0, 1.0))
    for grid in TOLD["grids"]:
        shift = [
            pick(table, "relative_shift", view=view, grid=grid)["value"]
            for view in ("shuffled", "turned_in_place")
        ]
        kept = [
            pick(table, "kept_neighbours", view=view, grid=grid)["value"]
            for view in ("shuffled", "turned_in_place")
        ]
        assert pick(table, "excess_shift", grid=grid)["value"] == pytest.approx(shift[0] - shift[1])
        assert pick(table, "excess_drop", grid=grid)["value"] == pytest.approx(kept[1] - kept[0])
        assert pick(table, "excess_shift", grid=grid)["ci_low"] > 0


def test_label_survives_in_texture_and_not_without():
    pool = labelled_pool()
    texture_only = measure(pool, parts(pool, 2.0, 2.0, 2.0))
    arranged = measure(pool, parts(pool, 2.0, 0.0, 2.0))
    for grid in TOLD["grids"]:
        assert pick(texture_only, "label_survival", grid=grid)["value"] == pytest.approx(
            1, abs=0.05
        )
        assert pick(arranged, "label_survival", grid=grid)["value"] < 0.4
        turned = pick(arranged, "label_accuracy", view="turned_in_place", grid=grid)
        assert turned["value"] > 0.95


def test_accuracy_is_that_of_models_without_the_patient():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pool = labelled_pool()
    views = parts(pool, 0.6, 0.2, 0.4, noise=0.5)
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    named = cross_val_predict(
        model, views[:, 0], pool["label"].to_numpy(), groups=pool["patient_id"].to_numpy(), cv=folds
    )
    row = pick(measure(pool, views), "label_accuracy", view="clean")
    expected = balanced_accuracy_score(pool["label"].to_numpy(), named)
    assert row["value"] == pytest.approx(expected)
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_thresholds_are_read_on_the_finest_grid():
    pool = labelled_pool()
    table = measure(
        pool, parts(pool, 2.0, 1.0, 1.5), thresholds={"excess_shift": 0.0, "label_survival": 0.5}
    )
    held = table.filter(pl.col("threshold").is_not_null())
    assert sorted(held["metric"]) == ["excess_shift", "label_survival"]
    assert held["setting"].str.contains('"grid": 8').all()


def test_labels_with_few_patients_are_left_out_of_the_probe():
    pool = labelled_pool(9).with_columns(
        label=pl.when(pl.col("patient_id") == "p00").then(pl.lit("rare")).otherwise("label")
    )
    views = parts(labelled_pool(9), 2.0, 1.0, 1.0)
    row = pick(measure(pool, views, folds=2), "label_accuracy", view="clean")
    assert row["n"] == 24
    assert row["null_low"] == pytest.approx(1 / 3)
    row = pick(measure(pool, views, folds=5), "label_accuracy", view="clean")
    assert "lower texture.folds" in row["reason"]


def test_nothing_embedded_and_one_patient_have_reasons():
    pool = labelled_pool()
    views = parts(pool, 2.0, 1.0, 1.0)
    table = texture_measurements(
        texture_sums(shards_of(pool[:0], views=views[:0]), pool, TOLD), TOLD, "e"
    )
    refuses_nan(table)
    assert table["reason"].str.contains("no tile was shuffled").all()
    table = measure(pool[:3], views[:3])
    assert (table["verdict"] == "not_applicable").all()


def test_the_maker_keeps_pixels_and_refuses_odd_grids():
    maker, field = texture_maker(TOLD), phantom_cohort().pixels[0]
    views = maker.make(field, seed=1)
    assert maker.names[0] == "clean"
    assert len(views) == len(maker.names) == 7
    expected = np.sort(field.reshape(-1))
    assert all((np.sort(view.reshape(-1)) == expected).all() for view in views)
    assert (maker.make(field, 2)[1] != views[1]).any()
    with pytest.raises(ValueError, match="2 or more"):
        texture_maker(TOLD | {"grids": [1]})
    with pytest.raises(ValueError, match="do not divide"):
        plan_texture_views(
            *[pl.DataFrame()] * 3,
            None,
            {"model": "control:stain_statistics"},
            {},
            {"pixels": 100},
            TOLD,
            {},
            name="e",
        )


def test_a_fold_that_leaves_one_label_to_train_on_is_said():
    """Patient 0 shows both labels, and its fold takes all but the tiles of one label."""
    cells = [("p0", "x", 7), ("p0", "y", 3), ("p1", "y", 4), ("p2", "x", 5)]
    rows = [(patient, label) for patient, label, n in cells for _ in range(n)]
    pool = make_pool([p for p, _ in rows], [label for _, label in rows], ["A"] * len(rows))
    table = measure(pool, parts(pool, 2.0, 1.0, 1.0), folds=2)
    told = table.filter(pl.col("metric").is_in(["label_accuracy", "label_survival"]))
    assert (told["verdict"] == "not_applicable").all()
    assert told["reason"].str.contains("learn one label").all()
