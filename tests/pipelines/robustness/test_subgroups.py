"""Subgroups: against plain Python and every permutation, with planted gaps, with none, bad columns."""

import itertools
import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_statistics,
)
from pathfm_kedro.pipelines.robustness.subgroup_statistics import subgroup_statistics
from pathfm_kedro.pipelines.robustness.subgroups import Subgroups, subgroup_figures
from pathfm_kedro.statistics.group_gaps import (
    GroupGap,
    MeanRecall,
    PairShare,
    counterparts,
    permuted_groups,
)
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

SUBGROUPS = Experiment("subgroups", Subgroups, subgroup_statistics, subgroup_figures, [])
PARAMETERS = {
    "min_patients": 8,
    "k": 3,
    "probe": {"folds": 3, "C": 1.0, "max_iter": 200},
    "n_permutations": 200,
    "draws": 200,
}
INDEX = {
    "k_grid": [1, 5],
    "min_patients_per_cell": 1,
    "min_tiles_per_cell": 1,
    "max_tiles": 5000,
    "draws": 10,
    "n_permutations": 2,
}


def cohort(seed, worse=0.0, per_cell=8, tiles=3, d=12, strength=2.0, **columns):
    """Two labels at two centers. Of every second patient the label is hidden by `worse`."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(1)
    of_label, of_center = np.array([strength, 0.5])[:, None, None] * fixed.standard_normal(
        (2, 2, d)
    )
    rows, shards = [], {}
    cells = itertools.product(range(2), range(2), range(per_cell))
    for i, (label, center, number) in enumerate(cells):
        odd = number % 2
        signal = of_label[label] * (1 - worse * odd) + of_center[center]
        name = f"s{i:03d}"
        patient = rng.standard_normal(d)
        shards[name] = (signal + patient + rng.standard_normal((tiles, d))).astype(np.float32)
        own = {"sex": "MF"[odd], "site": f"x{center}", "batch": f"b{int(rng.integers(2))}"}
        row = {"slide_id": name, "patient_id": f"p{i:03d}", "center": f"C{center}", "organ": "o"}
        rows.append(row | {"label": f"L{label}"} | own | {k: f(i) for k, f in columns.items()})
    names = [f"{name}-{i}" for name in shards for i in range(tiles)]
    table = pl.DataFrame({"tile_id": names, "slide_id": np.repeat(list(shards), tiles)})
    return pl.DataFrame(rows), table.with_columns(in_mosaic=True), InMemory(shards)


def measured(slides, tiles, embeddings, columns, **changed):
    parameters = PARAMETERS | changed
    index = robustness_index_statistics(
        slides, tiles, embeddings, read_parameters(RobustnessIndex, "robustness_index", INDEX)
    )
    chosen = choose_k(INDEX, e=index)
    table = SUBGROUPS.statistics(slides, tiles, embeddings, columns, parameters)
    found = SUBGROUPS.measurements(table, index, chosen, columns, parameters, encoder="e")
    return found.with_columns(
        pl.col("setting").map_elements(lambda s: json.loads(s).get("column"), pl.String).alias("c"),
        pl.col("setting").map_elements(lambda s: json.loads(s).get("of"), pl.String).alias("of"),
    )


def p_value(row):
    return float(row["reason"].split("p = ")[1].split()[0].rstrip(";"))


def test_figures_of_a_subgroup_are_those_of_plain_python():
    slides, tiles, embeddings = cohort(3, per_cell=4)
    found = measured(slides, tiles, embeddings, ["sex"], min_patients=2)
    vectors = np.concatenate([embeddings.shards[s] for s in slides["slide_id"]]).astype(float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    owner = np.repeat(np.arange(slides.height), 3)
    label, center = (np.repeat(slides[name].to_numpy(), 3) for name in ("label", "center"))
    k = choose_k(
        INDEX,
        e=robustness_index_statistics(
            slides, tiles, embeddings, read_parameters(RobustnessIndex, "robustness_index", INDEX)
        ),
    )["k"]
    for sex in "MF":
        so = os = 0
        for q in np.flatnonzero(np.repeat(slides["sex"].to_numpy() == sex, 3)):
            near = np.argsort(np.where(owner == owner[q], -9, unit @ unit[q]))[::-1][:k]
            so += ((label[near] == label[q]) & (center[near] != center[q])).sum()
            os += ((label[near] != label[q]) & (center[near] == center[q])).sum()
        row = found.filter(metric="robustness_index", stratum=f"sex={sex}").row(0, named=True)
        assert row["value"] == pytest.approx(so / (so + os))
        assert (row["n"], row["n_patients"]) == (24, 8)
    means = np.stack([embeddings.shards[s].mean(axis=0) for s in slides["slide_id"]]).astype(float)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similarity = means @ means.T - 9 * np.eye(len(means))
    votes = [slides["label"].gather(np.argsort(row)[::-1][:3]).mode().item() for row in similarity]
    with_votes = slides.with_columns(correct=pl.Series(votes) == pl.col("label"))
    expected = with_votes.filter(sex="F").group_by("label").agg(pl.col("correct").mean())
    row = found.filter(metric="retrieval_accuracy", stratum="sex=F").row(0, named=True)
    assert row["value"] == pytest.approx(expected["correct"].mean())


def test_the_null_of_a_gap_is_that_of_all_exchanges_within_label_and_center():
    rng = np.random.default_rng(0)
    correct = rng.integers(0, 4, (8, 1)).astype(float)
    figure = MeanRecall(correct, np.full((8, 1), 3.0))
    group, strata = np.array([0, 0, 1, 1, 0, 1, 1, 1]), np.repeat([0, 1], 4)
    every = [
        np.ptp([figure.of(np.isin(np.arange(8), [*a, *b]) == side) for side in (True, False)])
        for a in itertools.combinations(range(4), 2)
        for b in itertools.combinations(range(4, 8), 1)
    ]
    gap = GroupGap(figure, group, permuted_groups(group, strata, 20000, 0), np.ones((2, 8)))
    expected = np.mean(np.array(every) >= gap.value - 1e-9)
    assert gap.p_value() == pytest.approx(expected, abs=0.015)
    assert gap.p_value(3) == pytest.approx(min(1, 3 * gap.p_value()))


def test_pairs_of_members_alone_count():
    rng = np.random.default_rng(1)
    so, os = rng.integers(0, 9, (2, 6, 6)).astype(float)
    figure, members = PairShare(so, so + os, np.full(6, 2)), np.arange(6) < 2
    assert figure.of(members) == pytest.approx(so[:2].sum() / (so + os)[:2].sum())
    draws = figure.resampled(members, rng.multinomial(6, np.full(6, 1 / 6), 400).astype(float))
    assert np.nanmean(draws) == pytest.approx(figure.of(members))
    assert np.nanstd(draws) > 0


def test_a_planted_gap_is_found_and_named_and_another_column_has_none():
    found = measured(*cohort(0, worse=1.0, per_cell=12), ["sex", "batch"])
    gaps = {(r["c"], r["of"]): r for r in found.filter(metric="largest_gap").iter_rows(named=True)}
    for of in ("robustness_index", "retrieval_accuracy", "probe_accuracy"):
        row = gaps["sex", of]
        assert "M above F, larger than" in row["reason"], row
        assert p_value(row) < 0.05
        assert row["value"] > row["null_high"]
        # The index is resampled as asked and as met, which widens its interval.
        assert row["ci_low"] > 0 or of == "robustness_index"
        assert p_value(gaps["batch", of]) > 0.05
        assert "allowing for 2 columns" in row["reason"]


@pytest.mark.slow
def test_a_gap_is_claimed_without_cause_in_one_audit_of_twenty():
    """Two columns without a gap: false alarms of either, and how often an interval excludes 0."""
    alarms = dict.fromkeys(("robustness_index", "retrieval_accuracy", "probe_accuracy"), 0)
    too_high, n = 0, 60
    for seed in range(n):
        found = measured(*cohort(seed, strength=0.6), ["sex", "batch"]).filter(metric="largest_gap")
        for of in alarms:
            rows = list(found.filter(of=of).iter_rows(named=True))
            alarms[of] += any(p_value(row) < 0.05 for row in rows)
            too_high += any((row["ci_low"] or 0) > 0 for row in rows)
    # Of 60 at 5%, 9 or more of a figure and 18 or more of all three are met in one run of a thousand.
    assert max(alarms.values()) < 9, alarms
    assert max(sum(alarms.values()), too_high) < 18, (alarms, too_high)


def test_a_subgroup_that_goes_with_the_center_is_named_and_no_gap_is_claimed():
    judge = [{"metric": "largest_gap", "at": {"of": "probe_accuracy"}, "below": 0.1}]
    found = measured(*cohort(0), ["site", "sex"], criteria=judge)
    row = found.filter(metric="largest_gap", c="site", of="probe_accuracy").row(0, named=True)
    assert row["verdict"] == "inconclusive"
    assert "'site' is confounded with center (Cramér's V 1.00)" in row["caveat"]
    assert "no patient can change places" in row["reason"]
    assert row["null_high"] is None
    strength = found.filter(metric="association", c="site")["value"].to_list()
    assert strength == pytest.approx([1.0, 0.0])
    assert not found.filter(metric="largest_gap", c="sex", of="probe_accuracy")["caveat"].item()


def test_small_subgroups_say_how_many_patients_there_are():
    slides, tiles, embeddings = cohort(
        0, age=lambda i: ["young", "old", "very old"][(i > 9) + (i > 28)]
    )
    found = measured(slides, tiles, embeddings, ["age"])
    row = found.filter(metric="probe_accuracy", stratum="age=very old").row(0, named=True)
    assert row["verdict"] == "not_applicable"
    assert row["reason"].startswith("3 patients, and a subgroup needs 8")
    alone = measured(slides, tiles, embeddings, ["age"], min_patients=12)
    row = alone.filter(metric="largest_gap", of="robustness_index").row(0, named=True)
    assert row["value"] is None
    assert "(old: 19, very old: 3, young: 10)" in row["reason"]


def test_columns_of_many_values_and_patients_of_several_are_told():
    slides, tiles, embeddings = cohort(0, years=lambda i: str(40 + i))
    first = pl.col("patient_id") == "p000"
    # The second slide of this patient was scanned elsewhere.
    slides = slides.with_columns(
        patient_id=pl.when(pl.col("slide_id") == "s002")
        .then(pl.lit("p000"))
        .otherwise("patient_id"),
        sex=pl.when(first).then(pl.lit("F")).otherwise("sex"),
    )
    found = measured(slides, tiles, embeddings, ["years", "sex"])
    reason = found.filter(metric="largest_gap", c="years")["reason"][0]
    assert "'years' has 30 values: write at most 12" in reason
    told = found.filter(metric="largest_gap", c="sex", of="retrieval_accuracy")["reason"].item()
    assert "without 1 patients whose slides are of several subgroups" in told


@pytest.mark.parametrize("name", ["mean", "n_tiles", "max", "mpp", "group", "n_slides", "tile_id"])
def test_a_column_of_any_name_is_the_same_column(name):
    """Also of a name that the tables use themselves, and of numbers, as resolutions are."""
    columns = {"plain": lambda i: ["0.25", "0.5"][i % 2], name: lambda i: [0.25, 0.5][i % 2]}
    slides, tiles, embeddings = cohort(0, per_cell=4, **columns)
    of = [
        measured(slides, tiles, embeddings, [each], min_patients=2)
        .select(
            "metric", "value", "ci_low", "verdict", pl.col("stratum").str.split("=").list.last()
        )
        .rows()
        for each in ("plain", name)
    ]
    assert of[0] == of[1]
    assert {"0.25", "0.5"} <= {row[-1] for row in of[0]}


def test_counterparts_are_patients_of_the_same_label_and_center():
    group, strata = np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1])
    assert counterparts(group, strata).tolist() == [True, True, False, False]


def test_a_cohort_without_labels_says_so():
    slides, tiles, embeddings = cohort(0, per_cell=2)
    blank = slides.with_columns(label=pl.lit(None, pl.String()))
    found = SUBGROUPS.statistics(blank, tiles, embeddings, ["sex"], PARAMETERS)
    assert found["n_slides"].null_count() == found.height
    assert found["reason"].str.contains("add patients").all()
