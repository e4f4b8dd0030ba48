"""What encoders make of tiles whose patches have changed places."""

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.texture import (
    TEXTURE_SCHEMA,
    Texture,
    texture_figures,
    texture_statistics,
    texture_views,
    view_of_texture,
)
from pathfm_kedro.statistics.mutual_knn import mknn_chance
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.wiring import Experiment
from tests.pipelines.robustness.phantom_views import (
    CONTROLS,
    embedded,
    make_pool,
    measured,
    phantom_cohort,
    pick,
    shards_of,
)

PARAMETERS = {
    "grids": [2, 4, 8],
    "k": 10,
    "probe": {"folds": 3, "C": 1.0, "max_iter": 500},
    "draws": 300,
    "seed": 0,
}
TEXTURE = Experiment("texture", Texture, texture_statistics, texture_figures, [])


def parameters_with(**changes) -> Texture:
    return read_parameters(Texture, "texture", PARAMETERS | changes)


def probe_with(**changes) -> dict:
    return {"probe": PARAMETERS["probe"] | changes}


def measure(pool, views, **changes) -> pl.DataFrame:
    return measured(TEXTURE, PARAMETERS | changes, shards_of(pool, views=views), pool)


def measure_control(control: str) -> pl.DataFrame:
    views = embedded(
        phantom_cohort(), lambda _: texture_views(parameters_with()), CONTROLS[control]
    )
    return measured(TEXTURE, PARAMETERS, views, phantom_cohort().pool, encoder=control)


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
    table = measure_control("noise")
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
    for grid in PARAMETERS["grids"]:
        shift = [
            pick(table, "relative_shift", view=view, grid=grid)["value"]
            for view in ("shuffled", "rotated_in_place")
        ]
        kept = [
            pick(table, "kept_neighbours", view=view, grid=grid)["value"]
            for view in ("shuffled", "rotated_in_place")
        ]
        assert pick(table, "excess_shift", grid=grid)["value"] == pytest.approx(shift[0] - shift[1])
        assert pick(table, "excess_drop", grid=grid)["value"] == pytest.approx(kept[1] - kept[0])
        assert pick(table, "excess_shift", grid=grid)["ci_low"] > 0


def test_label_survives_in_texture_and_not_without():
    pool = labelled_pool()
    texture_only = measure(pool, parts(pool, 2.0, 2.0, 2.0))
    arranged = measure(pool, parts(pool, 2.0, 0.0, 2.0))
    for grid in PARAMETERS["grids"]:
        assert pick(texture_only, "label_survival", grid=grid)["value"] == pytest.approx(
            1, abs=0.05
        )
        assert pick(arranged, "label_survival", grid=grid)["value"] < 0.4
        turned = pick(arranged, "label_accuracy", view="rotated_in_place", grid=grid)
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


def test_statistics_have_their_columns():
    pool = labelled_pool()
    views = shards_of(pool, views=parts(pool, 2.0, 1.0, 1.0))
    assert dict(texture_statistics(views, pool, parameters_with()).schema) == TEXTURE_SCHEMA


def test_criteria_judge_the_figures_that_they_name():
    pool = labelled_pool()
    criteria = [
        {"metric": "excess_shift", "at": {"grid": 8}, "above": 0.0},
        {"metric": "label_survival", "at": {"grid": 4}, "below": 0.5},
    ]
    table = measure(pool, parts(pool, 2.0, 1.0, 1.5), criteria=criteria)
    judged = table.filter(pl.col("threshold").is_not_null()).sort("metric")
    assert judged["metric"].to_list() == ["excess_shift", "label_survival"]
    assert judged["setting"].to_list() == ['{"grid": 8}', '{"grid": 4}']
    assert judged["direction"].to_list() == ["above", "below"]


def test_labels_with_few_patients_are_left_out_of_the_probe():
    pool = labelled_pool(9).with_columns(
        label=pl.when(pl.col("patient_id") == "p00").then(pl.lit("rare")).otherwise("label")
    )
    views = parts(labelled_pool(9), 2.0, 1.0, 1.0)
    row = pick(measure(pool, views, **probe_with(folds=2)), "label_accuracy", view="clean")
    assert row["n"] == 24
    assert row["null_low"] == pytest.approx(1 / 3)
    row = pick(measure(pool, views, **probe_with(folds=5)), "label_accuracy", view="clean")
    assert "lower texture.probe.folds" in row["reason"]


def test_nothing_embedded_and_one_patient_have_reasons():
    pool = labelled_pool()
    views = parts(pool, 2.0, 1.0, 1.0)
    table = measured(TEXTURE, PARAMETERS, shards_of(pool[:0], views=views[:0]), pool)
    assert table["reason"].str.contains("no usable slide").all()
    table = measure(pool[:3], views[:3])
    assert (table["verdict"] == "not_applicable").all()


def test_views_keep_pixels_and_odd_grids_are_refused():
    views, field = texture_views(parameters_with()), phantom_cohort().pixels[0]
    made = views.make(field, seed=1)
    assert views.settings[0] == {"view": "clean"}
    assert len(made) == len(views.settings) == 7
    expected = np.sort(field.reshape(-1))
    assert all((np.sort(picture.reshape(-1)) == expected).all() for picture in made)
    assert (views.make(field, 2)[1] != made[1]).any()
    with pytest.raises(ValueError, match=r"texture.grids.0 is 1: .* greater than or equal to 2"):
        parameters_with(grids=[1])
    with pytest.raises(ValueError, match="do not divide"):
        view_of_texture(pl.DataFrame(), 100, parameters_with())


def test_a_fold_that_leaves_one_label_to_train_on_is_said():
    """Patient 0 shows both labels, and its fold takes all but the tiles of one label."""
    cells = [("p0", "x", 7), ("p0", "y", 3), ("p1", "y", 4), ("p2", "x", 5)]
    rows = [(patient, label) for patient, label, n in cells for _ in range(n)]
    pool = make_pool([p for p, _ in rows], [label for _, label in rows], ["A"] * len(rows))
    table = measure(pool, parts(pool, 2.0, 1.0, 1.0), **probe_with(folds=2))
    told = table.filter(pl.col("metric").is_in(["label_accuracy", "label_survival"]))
    assert (told["verdict"] == "not_applicable").all()
    assert told["reason"].str.contains("learn one class").all()
