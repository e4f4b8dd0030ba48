"""Several splits of an encoder that is trained here: every patient once, counts pooled, no vectors."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.encoders.rivals import split_patients
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.pipelines.inheritance.linear_probe import (
    LINEAR_PROBE_SCHEMA,
    LinearProbe,
    pooled_probe_figures,
)
from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.pooled_splits import pooled_retrieval_figures
from pathfm_kedro.pipelines.retrieve.search import Retrieval
from pathfm_kedro.pipelines.robustness.pooled_splits import (
    pooled_index_figures,
    pooled_index_statistics,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    robustness_index_figures,
)
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.unit_neighbours import OS, SO, UnitNeighbours
from pathfm_kedro.variants import expand_variants
from pathfm_kedro.wiring import Experiment, pooled_nodes
from tests.encoders.test_rivals import cohort as patients_of_rivals
from tests.pipelines.retrieve import test_accuracy as retrieve
from tests.pipelines.robustness import test_robustness_index as index


def test_every_patient_is_audited_by_one_of_the_splits():
    written = {"cnn": {"model": "trained:small_cnn", "training": {"folds": 3}}}
    expanded = expand_variants(written)
    assert list(expanded) == ["cnn", "cnn__2", "cnn__3"]
    assert expand_variants(expanded) == expanded
    slides = patients_of_rivals()
    splits = [
        split_patients(slides, EncoderSpec.from_parameters(name, entry))
        for name, entry in expanded.items()
    ]
    audited = [patient for split in splits for patient in split.audited]
    assert sorted(audited) == sorted(slides["patient_id"])


@pytest.mark.parametrize("training", [{"repeats": 1}, {"audited_fold": 1}])
def test_one_split_where_it_is_asked_for(training):
    assert len(expand_variants({"cnn": {"model": "trained:small_cnn", "training": training}})) == 1


def test_more_splits_than_folds_are_refused():
    entry = {"model": "trained:small_cnn", "training": {"repeats": 3}}
    with pytest.raises(ValueError, match="would be audited twice; give at most 2"):
        split_patients(patients_of_rivals(), EncoderSpec.from_parameters("cnn", entry))


def probed(patients: list[str], correct: int, problem: str | None = None) -> pl.DataFrame:
    rows = [
        {"target": target, "value": value, "patient_id": patient, "n_tiles": 4, "problem": problem}
        for target in ("label", "center")
        for number, patient in enumerate(patients)
        for value in ["ab"[number % 2]]
    ]
    table = pl.DataFrame(rows).with_columns(n_correct=None if problem else correct)
    return table.select(pl.col(name).cast(kind) for name, kind in LINEAR_PROBE_SCHEMA.items())


def test_a_probe_of_two_splits_is_the_share_of_right_answers_in_both():
    p = LinearProbe(max_tiles_per_slide=4, probe={"folds": 3, "C": 1.0}, draws=50)
    first, second = ([f"{name}{i}" for i in range(6)] for name in "pq")
    pooled = partial(pooled_probe_figures, p=p)
    table = measure(pooled([probed(first, 4), probed(second, 1)]), "linear_probe", "cnn")
    row = table.filter(pl.col("setting").str.contains("label")).row(0, named=True)
    assert row["value"] == pytest.approx(5 / 8)
    assert (row["n"], row["n_patients"]) == (48, 12)
    half = measure(pooled([probed(first, 4), probed(second, 1, "too few")]), "linear_probe", "cnn")
    assert set(half["n_patients"]) == {6}
    assert set(half["value"]) == {1.0}


def renamed(statistics: pl.DataFrame, prefix: str) -> pl.DataFrame:
    return statistics.with_columns(patient_id=prefix + pl.col("patient_id"))


@pytest.mark.parametrize("design", ["all", "paired_2x2"])
def test_the_index_of_two_splits_counts_the_neighbours_of_both(design):
    p = read_parameters(
        RobustnessIndex, "robustness_index", index.PARAMETERS | {"designs": [design]}
    )
    splits = [
        renamed(
            index.statistics_of(
                *index.cohort(seed, labels=3, effects=(0.6, 0.6), patients=size), designs=[design]
            ),
            prefix,
        )
        for seed, prefix, size in ((0, "a", 3), (1, "b", 4))
    ]
    k = max(p.k_grid)
    of_splits = [UnitNeighbours.of(s.filter(pl.col("n").is_not_null()), design) for s in splits]
    so, os = (
        sum(float(counts[0].sum()) for each in of_splits for counts in each.by_band(kind))
        for kind in (SO, OS)
    )
    found = measure(pooled_index_figures(splits, {"k": k}, p), "robustness_index", "cnn")
    row = index.pick(found, "ri", design)
    assert row["value"] == pytest.approx(so / (so + os))
    assert row["n_patients"] == sum(each.n_patients for each in of_splits)
    assert row["n"] == sum(each.n for each in of_splits)
    one = measure(robustness_index_figures(splits[0], {"k": k}, p), "robustness_index", "cnn")
    alone = index.pick(one, "ri_design_null", design)["value"]
    both = index.pick(found, "ri_design_null", design)["value"]
    assert both == pytest.approx(alone, abs=0.05)


def test_pooled_splits_of_one_are_that_one():
    table = index.statistics_of(*index.cohort(0))
    found, sort = pooled_index_statistics([table]), ["design", "scope", "k", "unit"]
    assert found.sort(sort).equals(table.sort(sort))


def test_retrieval_of_two_splits_is_the_share_of_right_queries_in_both():
    p = read_parameters(Retrieval, "retrieval", retrieve.PARAMETERS | {"criteria": []})
    halves, matches = [], []
    for seed, prefix, separation in ((0, "a", 2.0), (1, "b", 0.0)):
        slides, vectors = retrieve.cohort(seed=seed, separation=separation)
        slides = slides.with_columns(
            slide_id=prefix + pl.col("slide_id"), patient_id=prefix + pl.col("patient_id")
        )
        halves.append(slides)
        matches.append(retrieve.search(slides, vectors))
    slides = pl.concat(halves)
    alone = [measure(retrieval_figures(m, slides, p), "retrieval", "cnn") for m in matches]
    found = measure(pooled_retrieval_figures(matches, slides, p), "retrieval", "cnn")
    at = {"family": "mean", "scope": "within_organ", "vote": "mv5"}
    rows = [retrieve.figure(t, "accuracy", **at) for t in (*alone, found)]
    first, second, both = ((row["value"] * row["n"], row["n_patients"]) for row in rows)
    assert both[0] == pytest.approx(first[0] + second[0])
    assert both[1] == first[1] + second[1]
    null = [row["null_high"] - row["null_low"] for row in rows]
    # As of twice as many patients: narrower than either.
    assert null[2] < min(null[:2])


def test_pooled_rows_say_over_how_many_splits_and_are_not_judged():
    experiment = Experiment(
        "linear_probe", LinearProbe, None, None, [], pooled=pooled_probe_figures
    )
    (node,) = pooled_nodes("inheritance", experiment, {"cnn": ["cnn", "cnn__2"]})
    assert node.outputs == ["measurements.inheritance.linear_probe.cnn__splits"]
    block = {
        "max_tiles_per_slide": 4,
        "probe": {"folds": 3, "C": 1.0},
        "draws": 50,
        "criteria": [{"metric": "balanced_accuracy", "above": 0.1}],
    }
    table = node.func(probed(["p0", "p1"], 4), probed(["q0", "q1"], 4), block)
    assert {json.loads(text)["pooled_splits"] for text in table["setting"]} == {2}
    assert set(table["encoder"]) == {"cnn"}
    assert table["threshold"].null_count() == table.height
    assert np.isfinite(table["value"].to_numpy()).all()
