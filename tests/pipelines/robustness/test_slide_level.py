"""Slides as one vector: against plain Python, attention by model, tiles beside, few patients."""

import itertools

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.slide_level import (
    SlideLevel,
    slide_level_figures,
    slide_level_statistics,
)
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.measurements import Estimate, measurement, measurement_table
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

SLIDE_LEVEL = Experiment("slide_level", SlideLevel, slide_level_statistics, slide_level_figures, [])
PARAMETERS = {
    "attention": {
        "folds": 2, "components": 4, "hidden": 4, "steps": 3, "learning_rate": 0.01,
        "weight_decay": 0.01,
    },
    "k_grid": [1, 3],
    "k": 3,
    "m": 2,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 2,
    "max_tiles": 1000,
    "draws": 100,
    "n_permutations": 20,
}  # fmt: skip
NOTHING = measurement_table([])


def cohort(seed=0, label=1.0, center=0.7, per_cell=4, slides_each=2, tiles=3, d=6):
    """Tiles vary much, so that what their mean keeps is not what each shows."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(5)
    of_label, of_center = fixed.standard_normal((2, 2, d))
    rows, shards = [], {}
    for lab, cen, number in itertools.product(range(2), range(2), range(per_cell)):
        patient = 0.5 * rng.standard_normal(d)
        for i in range(slides_each):
            name = f"L{lab}-C{cen}-{number}-{i}"
            where = patient + label * of_label[lab] + center * of_center[cen]
            shards[name] = (where + rng.standard_normal((tiles, d))).astype(np.float32)
            own = {"slide_id": name, "patient_id": name[:-2], "center": f"C{cen}", "organ": "o"}
            rows.append(own | {"label": f"L{lab}"})
    names = [f"{name}-{i}" for name in shards for i in range(tiles)]
    table = pl.DataFrame({"tile_id": names, "slide_id": np.repeat(list(shards), tiles)})
    return pl.DataFrame(rows), table.with_columns(in_mosaic=True), InMemory(shards)


def measured(slides, tiles, embeddings, index=NOTHING, margins=NOTHING, **changed):
    parameters = PARAMETERS | changed
    table = SLIDE_LEVEL.statistics(slides, tiles, embeddings, parameters)
    return SLIDE_LEVEL.measurements(table, index, margins, parameters, encoder="e")


def of_slides(table, metric, pooling="mean"):
    setting = pl.col("setting").str
    rows = table.filter(
        setting.json_path_match("$.level") == "slide",
        setting.json_path_match("$.pooling") == pooling,
        metric=metric,
    )
    return rows.row(0, named=True)


def test_index_and_margin_of_mean_vectors_are_those_of_plain_python():
    slides, tiles, embeddings = cohort()
    found = measured(slides, tiles, embeddings)
    means = np.stack([embeddings.shards[s].mean(axis=0) for s in slides["slide_id"]]).astype(float)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    label, center, patient = (slides[c].to_numpy() for c in ("label", "center", "patient_id"))
    so = os = 0
    margins = []
    for q in range(len(unit)):
        distance = np.where(patient == patient[q], np.inf, 1 - unit @ unit[q])
        near = np.argsort(distance)[:3]
        is_so = (label == label[q]) & (center != center[q])
        is_os = (label != label[q]) & (center == center[q])
        so, os = so + is_so[near].sum(), os + is_os[near].sum()
        d_so, d_os = (np.sort(distance[kind])[:2].mean() for kind in (is_so, is_os))
        margins.append((d_os - d_so) / (d_os + d_so))
    row = of_slides(found, "ri")
    assert row["value"] == pytest.approx(so / (so + os))
    assert (row["n"], row["n_patients"]) == (32, 16)
    assert of_slides(found, "croma")["value"] == pytest.approx(np.median(margins), abs=1e-6)
    assert of_slides(found, "mari")["value"] is not None


def test_vectors_that_were_brought_one_per_slide_are_taken_as_they_are():
    slides, tiles, embeddings = cohort()
    means = {s: v.mean(axis=0, keepdims=True) for s, v in embeddings.shards.items()}
    own = tiles.unique("slide_id", keep="first", maintain_order=True)
    whole, brought = measured(slides, tiles, embeddings), measured(slides, own, InMemory(means))
    for metric in ("ri", "croma", "mari"):
        expected = of_slides(whole, metric)["value"]
        assert of_slides(brought, metric)["value"] == pytest.approx(expected)


def test_attention_without_steps_is_the_mean_and_its_margins_say_why_there_are_none():
    slides, tiles, embeddings = cohort()
    still = PARAMETERS["attention"] | {"steps": 0}
    found = measured(slides, tiles, embeddings, poolings=["mean", "attention"], attention=still)
    for metric in ("ri", "knn_accuracy_center"):
        expected = of_slides(found, metric)["value"]
        assert of_slides(found, metric, "attention")["value"] == pytest.approx(expected)
    assert "no common distance" in of_slides(found, "croma", "attention")["reason"]
    fitted = measured(slides, tiles, embeddings, poolings=["attention"])
    assert of_slides(fitted, "ri", "attention")["value"] is not None


def test_figures_of_tiles_stand_beside_as_they_were_measured():
    common = {"experiment": "robustness_index", "encoder": "e"}
    at = {"design": "all", "k": 9, "role": "cohort_k"}
    rows = [
        measurement(**common, metric="ri", estimate=Estimate(0.2, 0.1, 0.3, 5, 4), setting=s)
        for s in ({**at, "k": 3, "role": "other"}, {**at, "design": "paired_2x2"})
    ]
    rows.append(
        measurement(**common, metric="ri", estimate=Estimate(0.7, 0.6, 0.8, 90, 9), setting=at)
    )
    found = measured(*cohort(), index=measurement_table(rows))
    row = found.filter(metric="ri", setting='{"level": "tile"}').row(0, named=True)
    assert [row[c] for c in ("value", "ci_low", "ci_high", "n")] == [0.7, 0.6, 0.8, 90]
    absent = found.filter(metric="croma", setting='{"level": "tile"}').row(0, named=True)
    assert absent["verdict"] == "not_applicable"
    assert "not measured of tiles" in absent["reason"]


def test_too_few_patients_in_a_cell_leave_nothing_and_say_so():
    found = measured(*cohort(), min_patients_per_cell=5)
    row = of_slides(found, "ri")
    assert row["value"] is None
    assert "no label × center cell has enough patients" in row["reason"]
    assert "4 patients with 8 tiles: a cell needs 5 patients" in row["reason"]


def test_an_encoder_of_centers_fails_where_it_is_judged():
    judge = [{"metric": "ri_minus_null", "at": {"level": "slide", "pooling": "mean"}, "above": 0.0}]
    verdicts = [
        of_slides(measured(*cohort(1, *of, per_cell=10), criteria=judge), "ri_minus_null")[
            "verdict"
        ]
        for of in ((0.2, 3.0), (3.0, 0.0))
    ]
    assert verdicts == ["fail", "pass"]


def test_another_design_or_no_k_is_refused():
    with pytest.raises(ValueError, match="give k, one of k_grid"):
        SLIDE_LEVEL.read(PARAMETERS | {"k": None})
    assert measure([], "slide_level", "e").is_empty()
