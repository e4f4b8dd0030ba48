"""The robustness index: its counts, its nulls, the coverage of its interval, what it refuses."""

import json
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from pathfm_kedro.encoders.harmonised import center_maps
from pathfm_kedro.pipelines.robustness.robustness_index import (
    ROBUSTNESS_INDEX_SCHEMA,
    RobustnessIndex,
    choose_k,
    counted,
    robustness_index_figures,
    robustness_index_statistics,
)
from pathfm_kedro.statistics import neighbour_votes, unit_neighbours
from pathfm_kedro.statistics.balanced_designs import balanced_subsamples, permuted_tags
from pathfm_kedro.statistics.neighbour_votes import permuted_accuracies
from pathfm_kedro.statistics.pair_bootstrap import pair_variance, resampled_total
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.permutation import permuted_within
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

PARAMETERS = {
    "k_grid": [1, 3, 5],
    "designs": ["all", "paired_2x2"],
    "k_design": "all",
    "distance": "cosine",
    "exclude": "patient",
    "subsamples": 3,
    "max_tiles": 10_000,
    "max_tiles_per_pair": 2000,
    "max_pairs": None,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 2,
    "draws": 200,
    "n_permutations": 50,
    "seed": 0,
    "criteria": [
        {"metric": "ri", "at": {"design": "all", "role": "cohort_k"}, "above": 0.5},
        {"metric": "ri_minus_null", "at": {"design": "all", "role": "cohort_k"}, "above": 0.0},
    ],
}
INDEX = Experiment(
    "robustness_index",
    RobustnessIndex,
    robustness_index_statistics,
    robustness_index_figures,
    ["slides", "tiles", "embeddings.{e}"],
    ["robustness_k"],
)


def cohort(
    seed, labels=2, centers=2, patients=3, tiles=4, d=12, effects=(0.0, 0.0), patient_effect=0.5,
    effects_seed=0,
):  # fmt: skip
    """One slide a patient; label and center means are the same for every seed."""
    fixed, generator = np.random.default_rng(effects_seed), np.random.default_rng(seed)
    of_label = effects[0] * fixed.standard_normal((labels, d))
    of_center = effects[1] * fixed.standard_normal((centers, d))
    rows, shards = [], {}
    for label in range(labels):
        for center in range(centers):
            for _ in range(patients):
                name = f"s{len(rows):03d}"
                rows.append((name, f"p{len(rows):03d}", f"C{center}", "organ", f"L{label}"))
                mean = of_label[label] + of_center[center]
                mean = mean + patient_effect * generator.standard_normal(d)
                shard = mean + generator.standard_normal((tiles, d))
                shards[name] = shard.astype(np.float32)
    columns = ["slide_id", "patient_id", "center", "organ", "label"]
    slides = pl.DataFrame(rows, schema=columns, orient="row")
    return slides, tiles_of(shards), InMemory(shards)


def tiles_of(shards):
    return pl.DataFrame(
        [(f"{slide}-{i}", slide) for slide, shard in shards.items() for i in range(len(shard))],
        schema=["tile_id", "slide_id"],
        orient="row",
    )


def statistics_of(slides, tiles, embeddings, **changes):
    p = read_parameters(RobustnessIndex, "robustness_index", PARAMETERS | changes)
    return robustness_index_statistics(slides, tiles, embeddings, p)


def measured(slides, tiles, embeddings, k=None, **changes):
    parameters = PARAMETERS | changes
    if parameters["designs"] == ["paired_2x2"]:
        parameters["criteria"] = []
    statistics = INDEX.statistics(slides, tiles, embeddings, parameters)
    chosen = choose_k(parameters, encoder=statistics) if k is None else {"k": k}
    return INDEX.measurements(statistics, chosen, parameters, encoder="encoder")


def pick(table, metric, design="all", k=None):
    """The row at k, or at the cohort's."""
    at = {"role": "cohort_k"} if k is None else {"k": k}
    wanted = {"design": design} | at
    rows = [
        row
        for row in table.iter_rows(named=True)
        if row["metric"] == metric and wanted.items() <= json.loads(row["setting"]).items()
    ]
    assert len(rows) == 1
    return rows[0]


def brute_force(slides, embeddings, k):
    """Counts of SS, SO, OS, OO and votes with plain loops over every tile."""
    tag = {row["slide_id"]: row for row in slides.iter_rows(named=True)}
    points = [
        (tag[slide], vector.astype(float) / np.linalg.norm(vector.astype(float)))
        for slide in embeddings.slide_ids
        for vector in embeddings.shards[slide]
    ]
    counts, supported, correct = Counter(), 0, defaultdict(list)
    for own, vector in points:
        others = [p for p in points if p[0]["patient_id"] != own["patient_id"]]
        nearest = sorted(others, key=lambda p: -float(p[1] @ vector))[:k]
        kinds = [
            ("s" if p["label"] == own["label"] else "o")
            + ("s" if p["center"] == own["center"] else "o")
            for p, _ in nearest
        ]
        counts.update(kinds)
        supported += any(kind in ("so", "os") for kind in kinds)
        votes = Counter(p["label"] for p, _ in nearest)
        top = [p["label"] for p, _ in nearest if votes[p["label"]] == max(votes.values())]
        correct[own["label"]].append(top[0] == own["label"])
    accuracy = np.mean([np.mean(each) for each in correct.values()])
    return counts, supported / len(points), accuracy


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_a_count_with_plain_loops(k):
    data = cohort(3, labels=3, centers=2, effects=(0.6, 0.6))
    counts, support, accuracy = brute_force(data[0], data[2], k)
    table = measured(*data)
    ri = counts["so"] / (counts["so"] + counts["os"])
    ratio = (counts["ss"] + counts["so"]) / (counts["ss"] + counts["os"])
    for metric, value in {
        "ri": ri, "ri_ratio": ratio, "support": support, "knn_accuracy_label": accuracy,
    }.items():  # fmt: skip
        assert pick(table, metric, k=k)["value"] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("labels", "centers"), [(2, 2), (3, 2), (2, 4), (6, 4)])
def test_design_null_of_a_balanced_cohort(labels, centers):
    table = measured(*cohort(0, labels, centers, patients=2, tiles=2), designs=["all"])
    closed_form = (centers - 1) / (labels + centers - 2)
    assert pick(table, "ri_design_null")["value"] == pytest.approx(closed_form)


def test_pairs_have_their_null_at_one_half():
    table = measured(*cohort(0, 3, 3, patients=2, tiles=3))
    assert pick(table, "ri_design_null", "paired_2x2")["value"] == pytest.approx(0.5)


def coverage(tables, truth=None):
    """Coverage of the truth (the mean over cohorts if not given), and spread claimed / true."""
    rows = [pick(table, "ri") for table in tables]
    values = np.array([row["value"] for row in rows])
    low, high = (np.array([row[name] for row in rows]) for name in ("ci_low", "ci_high"))
    truth = values.mean() if truth is None else truth
    claimed = np.sqrt(np.mean(((high - low) / 2 / 1.96) ** 2))
    return np.mean((low <= truth) & (truth <= high)), claimed / values.std()


QUICK = {"designs": ["all"], "k_grid": [11], "n_permutations": 2}


@pytest.mark.slow
def test_interval_covers_the_design_null_under_permutation():
    """Diagnoses and centers permuted over patients: the encoder knows neither."""
    slides, tiles, embeddings = cohort(5, 3, 3, patients=8, tiles=3)

    def permuted(seed):
        order = np.random.default_rng(seed).permutation(slides.height)
        tags = slides.select("label", "center")[order]
        return measured(slides.with_columns(tags), tiles, embeddings, **QUICK)

    covered, ratio = coverage([permuted(seed) for seed in range(200)], truth=0.5)
    assert 0.90 <= covered <= 0.99
    assert 0.85 < ratio < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("effects", [(0.5, 0.3), (0.3, 0.6), (1.0, 0.5)])
def test_interval_covers_where_the_encoder_knows_something(effects):
    tables = [
        measured(*cohort(seed, 3, 3, patients=6, tiles=4, effects=effects), **QUICK)
        for seed in range(80)
    ]
    covered, ratio = coverage(tables)
    assert covered >= 0.88
    assert 0.85 < ratio < 1.2


def test_resampling_queries_alone_would_be_too_narrow_and_both_ways_too_wide():
    generator = np.random.default_rng(0)
    so = generator.poisson(0.5, (60, 60)).astype(float)
    os = generator.poisson(0.5, (60, 60)).astype(float)
    np.fill_diagonal(so, 0)
    np.fill_diagonal(os, 0)
    # Independent pairs: the variance of the ratio is that of a sum over pairs.
    influence = (so - so.sum() / (so + os).sum() * (so + os)) / (so + os).sum()
    truth = ((influence + influence.T) ** 2).sum() / 2
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), 4000).astype(float)
    drawn_so, drawn_os = (resampled_total(m, weights) for m in (so, os))
    both_ways = np.var(drawn_so / (drawn_so + drawn_os))
    assert both_ways / truth == pytest.approx(3, rel=0.25)
    assert pair_variance(so, so + os) / truth == pytest.approx(1, rel=0.4)


def test_two_way_weights_equal_a_cohort_with_patients_repeated():
    generator = np.random.default_rng(2)
    matrix = generator.integers(0, 5, (7, 7)).astype(float)
    weights = generator.integers(0, 3, (4, 7)).astype(float)
    by_loops = [
        sum(matrix[p, q] * (w[p] if p == q else w[p] * w[q]) for p in range(7) for q in range(7))
        for w in weights
    ]
    np.testing.assert_allclose(resampled_total(matrix, weights), by_loops)


def test_random_embeddings_sit_on_the_null():
    table = measured(*cohort(1, 3, 3, patients=5, patient_effect=0.2), k=5)
    row = pick(table, "ri_minus_null")
    assert row["ci_low"] < 0 < row["ci_high"]
    assert row["null_low"] < 0 < row["null_high"]
    assert row["verdict"] == "inconclusive"


NULL_COLUMNS = ("value", "null_low", "null_high")


def votes_of_nothing(labels, centers, k, design, seeds, tiles=4):
    """[seeds, 2, 3] accuracy of label and center with both ends of its null, without knowledge."""
    changes = {"k_grid": [k], "designs": [design], "k_design": design, "draws": 2}
    return np.array(
        [
            [
                [pick(table, f"knn_accuracy_{of}", design)[name] for name in NULL_COLUMNS]
                for of in ("label", "center")
            ]
            for seed in range(seeds)
            for table in [measured(*cohort(seed, labels, centers, 4, tiles), k=k, **changes)]
        ]
    )


@pytest.mark.parametrize(
    ("labels", "centers", "k", "design"),
    [(4, 3, 1, "all"), (4, 3, 31, "all"), (2, 2, 31, "all"), (3, 2, 11, "paired_2x2")],
)
def test_votes_of_random_embeddings_lie_on_their_null(labels, centers, k, design):
    value, low, high = np.moveaxis(votes_of_nothing(labels, centers, k, design, seeds=40), 2, 0)
    away = value - (low + high) / 2
    error = away.std(axis=0) / np.sqrt(len(away))
    assert (np.abs(away.mean(axis=0)) < 3 * error).all()
    assert (((low <= value) & (value <= high)).mean(axis=0) >= 0.8).all()


def test_votes_of_many_neighbours_have_a_null_below_one_in_the_number_of_classes():
    of_four, of_three = votes_of_nothing(4, 3, 31, "all", seeds=5)[:, :, 1:].mean(axis=(0, 2))
    assert of_four < 0.22 < 1 / 4
    assert of_three < 0.30 < 1 / 3
    assert (votes_of_nothing(2, 2, 31, "all", seeds=5)[:, :, 1:].mean(axis=(0, 2)) < 0.42).all()


def test_null_of_a_single_neighbours_vote_has_a_closed_form():
    """Of the BCp − 1 other patients Cp − 1 have the query's label and Bp − 1 its center."""
    b, c, p = 4, 3, 4
    means = votes_of_nothing(b, c, 1, "all", seeds=20)[:, :, 1:].mean(axis=(0, 2))
    expected = [(c * p - 1) / (b * c * p - 1), (b * p - 1) / (b * c * p - 1)]
    np.testing.assert_allclose(means, expected, atol=0.01)


def test_permuted_votes_equal_plain_loops():
    generator = np.random.default_rng(0)
    units, tags = np.repeat(np.arange(6), 4), generator.integers(0, 3, (6, 5))
    found = generator.integers(-1, 24, (24, 6))
    found.sort(axis=1)
    found = found[:, ::-1]  # absent neighbours stand last
    grid = np.array([1, 2, 6])
    by_loops = np.zeros((3, 5))
    for i, k in enumerate(grid):
        for draw in range(5):
            correct = defaultdict(list)
            for query in range(24):
                met = [tags[units[row], draw] for row in found[query, :k] if row >= 0]
                most = max(Counter(met).values(), default=0)
                vote = next((m for m in met if Counter(met)[m] == most), None)
                own = tags[units[query], draw]
                correct[own].append(vote == own)
            by_loops[i, draw] = np.mean([np.mean(each) for each in correct.values()])
    np.testing.assert_allclose(permuted_accuracies(units, found, grid, tags), by_loops)


def test_chunks_of_queries_change_nothing(monkeypatch):
    data = cohort(0, 3, 2, effects=(0.5, 0.5))
    whole = measured(*data)
    monkeypatch.setattr(neighbour_votes, "_CLASSES_MET", 1)
    assert measured(*data).equals(whole)


def test_no_interval_says_why_and_what_to_do():
    """Two patients alone meet what counts: a resampled cohort may lack either."""
    slides, tiles, embeddings = cohort(0, 2, 2, patients=10, tiles=1, d=40, patient_effect=0)
    shards = {
        s: np.eye(40, dtype=np.float32)[[0 if i in (0, 10) else 1 + i // 10]]
        for i, s in enumerate(embeddings.slide_ids)
    }
    row = pick(measured(slides, tiles, InMemory(shards), k_grid=[1]), "ri")
    assert row["value"] is not None
    assert row["ci_low"] is None
    assert "more than 5% of the resampled cohorts" in row["reason"]
    assert "add patients" in row["reason"]


def test_known_encoders_are_judged():
    tissue = measured(*cohort(1, 2, 2, patients=6, effects=(2.0, 0.1)), k=5)
    stain = measured(*cohort(1, 2, 2, patients=6, effects=(0.1, 2.0)), k=5)
    for metric in ("ri", "ri_minus_null"):
        assert pick(tissue, metric)["verdict"] == "pass"
        assert pick(stain, metric)["verdict"] == "fail"
        assert pick(tissue, metric, "paired_2x2")["threshold"] is None
        assert pick(tissue, metric, k=1)["threshold"] is None


def test_exchanging_label_and_center_mirrors_the_index():
    slides, tiles, embeddings = cohort(4, 2, 3, effects=(0.5, 0.3))
    mirrored = slides.rename({"label": "center", "center": "label"})
    here = pick(measured(slides, tiles, embeddings, k=5), "ri")
    there = pick(measured(mirrored, tiles, embeddings, k=5), "ri")
    assert here["value"] == pytest.approx(1 - there["value"])
    assert here["ci_low"] == pytest.approx(1 - there["ci_high"])


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_rotating_scaling_and_reordering_change_nothing(seed, scale):
    slides, tiles, embeddings = cohort(seed, 2, 2, effects=(0.5, 0.5))
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(generator.standard_normal((12, 12)))[0]
    shards = {
        slide: (scale * shard.astype(float) @ rotation)[generator.permutation(len(shard))]
        for slide, shard in embeddings.shards.items()
    }
    turned = InMemory({slide: shard.astype(np.float32) for slide, shard in shards.items()})
    expected = measured(slides, tiles, embeddings)
    assert measured(slides, tiles, turned).equals(expected)
    assert measured(slides.reverse(), tiles.reverse(), embeddings).equals(expected)


def test_threads_change_nothing():
    data = cohort(0, 3, 3, effects=(0.5, 0.5))
    with threadpool_limits(1):
        one = measured(*data)
    with threadpool_limits(2):
        two = measured(*data)
    assert one.equals(two)


def test_many_patients_in_sparse_matrices_give_the_same_figures(monkeypatch):
    data = cohort(0, 2, 2, patients=5, effects=(0.5, 0.5))
    for exclude in ("patient", "none"):
        dense = measured(*data, exclude=exclude)
        with monkeypatch.context() as patch:
            patch.setattr(unit_neighbours, "_DENSE_PATIENTS", 0)
            sparse = measured(*data, exclude=exclude)
        for name in ("value", "ci_low", "ci_high", "null_low", "null_high"):
            np.testing.assert_allclose(
                sparse[name].to_numpy(), dense[name].to_numpy(), rtol=1e-9, equal_nan=True
            )


def test_subsample_is_equal_over_cells_and_even_over_patients():
    slides, _, embeddings = cohort(0, 2, 2, patients=4, tiles=10)
    big = {s: np.repeat(v, 3 if s < "s004" else 1, axis=0) for s, v in embeddings.shards.items()}
    counts = statistics_of(slides, tiles_of(big), InMemory(big))
    rows = counts.filter(pl.col("design") == "all", pl.col("k") == 1, pl.col("unit").is_not_null())
    assert rows["scope"].unique().sort().to_list() == [0, 1, 2]
    assert (rows.group_by("scope", "label", "center").agg(pl.col("n").sum())["n"] == 40).all()
    assert (rows["n"] == 10).all()


def test_counts_hold_every_neighbour_once():
    data = cohort(0, 2, 2, patients=3, tiles=4)
    counts = statistics_of(*data).filter(pl.col("design") == "all")
    assert dict(counts.schema) == ROBUSTNESS_INDEX_SCHEMA
    assert counts["neighbours"].list.sum().sum() == 48 * 5
    assert counts.select(pl.col("^expected_.*$").filter(pl.col("k") == 5).sum()).sum_horizontal()[
        0
    ] == pytest.approx(48 * 5)


def relabelled(**columns):
    slides, tiles, embeddings = cohort(0, 2, 2, patients=3)
    return slides.with_columns(**columns), tiles, embeddings


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"center": pl.lit("A")}, "one center"),
        ({"label": pl.lit("x")}, "one label"),
        ({"center": pl.col("label")}, "confounded"),
        ({"label": pl.lit(None, pl.String())}, "complete the manifest"),
        ({"patient_id": pl.col("label") + pl.col("center")}, "enough patients"),
    ],
)
def test_impossible_designs_say_why(columns, reason):
    table = measured(*relabelled(**columns))
    assert set(table["verdict"]) == {"not_applicable"}
    assert table["value"].null_count() == table.height
    assert table["reason"].str.contains(reason).all()
    assert pick(table, "ri_minus_null")["threshold"] == 0.0


def test_small_cells_are_left_out_by_name():
    slides, tiles, embeddings = cohort(0, 3, 3, patients=3)
    kept = slides.filter(~pl.col("slide_id").is_in(["s000", "s001"]))
    table = measured(kept, tiles.join(kept, on="slide_id", how="semi"), InMemory(
        {slide: embeddings.shards[slide] for slide in kept["slide_id"]}
    ))  # fmt: skip
    left_out = table.filter(pl.col("stratum") == "L0 × C0")
    assert left_out.height == 2
    assert left_out["reason"].str.contains("1 patients with 4 tiles").all()
    assert pick(table, "ri")["n"] == 8 * 12


def test_nothing_counted_is_undefined_not_zero():
    """At k = 1 every tile's neighbour is its twin with the same label and center."""
    slides, tiles, embeddings = cohort(0, 2, 2, patients=2, tiles=1, d=8, patient_effect=0)
    shards = {s: np.eye(8, dtype=np.float32)[[i // 2]] for i, s in enumerate(embeddings.slide_ids)}
    row = pick(measured(slides, tiles, InMemory(shards), k_grid=[1]), "ri")
    assert row["value"] is None
    assert "take a larger k" in row["reason"]


def test_a_patient_with_two_labels_is_two_units():
    slides, tiles, embeddings = cohort(0, 2, 2, patients=4)
    shared = slides.with_columns(
        patient_id=pl.when(pl.col("slide_id").is_in(["s000", "s008"]))
        .then(pl.lit("both"))
        .otherwise("patient_id")
    )
    counts = statistics_of(shared, tiles, embeddings)
    assert counts["unit"].drop_nulls().n_unique() == 16
    assert pick(measured(shared, tiles, embeddings), "ri")["n_patients"] == 15


def votes(n_correct, permuted=((0.2, 0.5), (0.4, 0.3), (0.4, 0.1))):
    """Counts of one class pair, so many of 10 correctly classified at k = 1, 3, 5.

    `permuted`: accuracy in each permutation, at each k.
    """
    return pl.DataFrame(
        {
            "design": "all", "scope": 0, "k": [1, 3, 5], "patient_id": "p", "label": "x", "n": 10,
            "n_correct_label": n_correct, "permuted_label": [list(each) for each in permuted],
        }
    )  # fmt: skip


def test_k_is_the_first_peak_and_the_lower_median_over_encoders():
    tables = {"a": votes([5, 8, 8]), "b": votes([9, 8, 8]), "control": votes([1, 1, 2])}
    chosen = choose_k(PARAMETERS, controls=("control",), **tables)
    assert chosen["k"] == 1
    assert chosen["per_encoder"] == {"a": 3, "b": 1, "control": 5}
    assert chosen["origin"].endswith("a (3), b (1)")
    assert choose_k(PARAMETERS, **tables)["k"] == 3
    assert choose_k(PARAMETERS, controls=("control",), control=tables["control"])["k"] == 5


def test_k_is_chosen_anew_in_each_permutation():
    tables = {"a": votes([5, 8, 8]), "b": votes([9, 8, 8], [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1)])}
    assert choose_k(PARAMETERS, **tables)["permuted_k"] == [3, 1]
    assert choose_k(PARAMETERS, a=tables["a"])["permuted_k"] == [3, 1]
    assert choose_k(PARAMETERS, b=tables["b"])["permuted_k"] == [5, 1]


def test_an_index_at_the_end_of_its_range_less_its_null_has_the_error_of_what_choosing_adds():
    """The upper end of a perfect encoder's index is the index; another cohort's null differs."""
    given, chosen = (
        measured(*cohort(2, 2, 2, 4, effects=(9.0, 0.0)), designs=["all"], **k)
        for k in ({"k": 1}, {})
    )
    at = [pick(table, "ri_minus_null") for table in (given, chosen)]
    assert at[0]["value"] == at[0]["ci_high"]
    assert at[1]["value"] < at[1]["ci_high"] < at[1]["value"] + 0.1


def test_a_k_chosen_in_fewer_permutations_than_are_judged_is_judged():
    statistics = INDEX.statistics(*cohort(2, 2, 2, 4), PARAMETERS)
    chosen = choose_k(PARAMETERS, encoder=statistics)
    fewer = chosen | {"permuted_k": chosen["permuted_k"][:20]}
    row = pick(
        INDEX.measurements(statistics, fewer, PARAMETERS, encoder="encoder"), "ri_minus_null"
    )
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_a_k_that_is_set_is_kept_when_an_encoder_joins():
    tables = {"a": votes([5, 8, 8]), "b": votes([9, 8, 8])}
    for some in ({"a": tables["a"]}, tables):
        chosen = choose_k(PARAMETERS | {"k": 5}, **some)
        assert chosen["k"] == 5
        assert chosen["origin"] == "set in robustness_index.k"
        assert chosen["permuted_k"] == []
    with pytest.raises(ValueError, match="k is 4: give one of k_grid, 1, 3, 5"):
        choose_k(PARAMETERS | {"k": 4}, **tables)


def test_the_permutations_of_votes_and_of_neighbours_are_the_same():
    # L2 stands at one center with one patient and is left out: codes of the others have gaps.
    slides, _, embeddings = cohort(3, 3, 2, patients=3)
    gone = slides.filter(label="L0")["slide_id"].to_list()[1:3]
    slides = slides.filter(~pl.col("slide_id").is_in(gone))
    shards = {s: x for s, x in embeddings.shards.items() if s not in gone}
    p = read_parameters(RobustnessIndex, "robustness_index", PARAMETERS | {"designs": ["all"]})
    sampled = balanced_subsamples(slides, tiles_of(shards), InMemory(shards), p, p.seed)
    tags = next(permuted_tags(sampled.cohort, sampled.scopes, 7, 5))
    rows = counted(statistics_of(slides, tiles_of(shards), InMemory(shards)), "all")
    found = unit_neighbours.UnitNeighbours.of(rows, "all")
    labels = permuted_within(found.label, found.center, 7, 5, found.unit)
    assert len(tags.units) < sampled.cohort.unit_table.height
    np.testing.assert_array_equal(
        np.unique(tags.label, return_inverse=True)[1].reshape(labels.shape), labels
    )


def test_choosing_k_on_the_judged_tiles_adds_nothing_to_an_encoder_that_knows_nothing():
    wide = {"designs": ["all"], "k_grid": [1, 3, 5, 9, 15], "draws": 20, "n_permutations": 60}
    chosen, given = [], []
    for seed in range(60):
        table = measured(*cohort(seed, 2, 2, 4, patient_effect=1.0), **wide)
        row, raw = pick(table, "ri_minus_null"), pick(table, "ri")
        chosen.append(row["value"])
        given.append(raw["value"] - pick(table, "ri_design_null")["value"])
    added = np.mean(given) - np.mean(chosen)
    assert added > 0.002
    error = np.std(chosen) / np.sqrt(len(chosen))
    assert abs(np.mean(chosen)) < 2.5 * error


def test_the_null_of_the_ratio_is_counted_without_the_querys_own_patient():
    table = measured(*cohort(0, 3, 2, patients=2, tiles=2), designs=["all"])
    # Of 22 tiles of other patients 2 share label and center, 4 the label alone, 8 the center alone.
    found = pick(table, "ri_ratio_design_null")["value"]
    assert found == pytest.approx((2 + 4) / (2 + 8))
    assert found < 2 / 3


def centred(slides, embeddings, method="centring"):
    """A harmonised variant, cross-fitted as the audit makes it."""

    class Slides(InMemory):
        def load_slide(self, slide, name="embedding"):
            return self.shards[slide]

    maps = center_maps(slides, Slides(embeddings.shards), method)
    return InMemory({s: maps[s](x) for s, x in embeddings.shards.items()})


@pytest.mark.parametrize("method", ["centring", "combat", "whitening"])
def test_a_harmonised_variant_passes_only_if_it_knows_the_label(method):
    quick = {"designs": ["all"], "criteria": PARAMETERS["criteria"][1:]}
    found = {0.0: [], 1.5: []}
    for effect, rows in found.items():
        for seed in range(4):
            data = cohort(seed, 4, 3, 3, 8, 32, effects=(effect, 0.0), patient_effect=1.0)
            slides, tiles, embeddings = data
            variant = centred(slides, embeddings, method)
            rows.append(pick(measured(slides, tiles, variant, **quick), "ri_minus_null"))
    assert [row["verdict"] for row in found[1.5]] == ["pass"] * 4
    assert not any(row["verdict"] == "pass" for row in found[0.0])
    # Its interval alone would say that it follows the tissue.
    beyond = [row for row in found[0.0] if row["ci_low"] > 0]
    assert beyond
    for row in beyond:
        assert row["verdict"] == "inconclusive"
        assert "labels permuted within centers" in row["caveat"]


def test_no_criterion_judges_nothing_and_one_of_no_figure_is_refused():
    table = measured(*relabelled(), criteria=PARAMETERS["criteria"][:1])
    assert pick(table, "ri_minus_null")["threshold"] is None
    assert pick(table, "ri")["threshold"] == 0.5
    with pytest.raises(ValueError, match=r"no figure ri at .*k.: 4"):
        measured(*relabelled(), criteria=[{"metric": "ri", "at": {"k": 4}, "above": 0.5}])


def test_a_figure_stands_once_and_the_encoders_own_k_beside_it():
    table = measured(*cohort(0, 2, 2, patients=4, effects=(0.6, 0.2)), k=3)
    ks = [json.loads(row)["k"] for row in table.filter(metric="ri")["setting"]]
    assert ks == [3, 1, 5] * 2
    accuracy = {k: pick(table, "knn_accuracy_label", k=k)["value"] for k in (1, 3, 5)}
    own = table.filter(metric="own_k")
    k = max(accuracy, key=accuracy.get)
    assert own["value"].to_list() == [k]
    there = table.filter(metric="ri_minus_null_at_own_k")["value"].item()
    expected = pick(table, "ri", k=k)["value"] - pick(table, "ri_design_null", k=k)["value"]
    assert there == pytest.approx(expected)


def test_a_cohort_whose_design_chooses_no_k_says_so():
    """Every two labels share one center: no 2 × 2 pair is complete, yet all cells are compared."""
    slides, tiles, embeddings = cohort(0, 3, 3, patients=3)
    kept = slides.filter(pl.concat_str("label", "center").is_in(
        ["L0C0", "L0C1", "L1C1", "L1C2", "L2C2", "L2C0"]
    ))  # fmt: skip
    shards = {slide: embeddings.shards[slide] for slide in kept["slide_id"]}
    table = measured(
        kept, tiles.join(kept, on="slide_id", how="semi"), InMemory(shards), k_design="paired_2x2"
    )
    row = pick(table, "ri_minus_null")
    assert row["threshold"] == 0.0
    assert "robustness_index.k_design" in row["reason"]
    assert pick(table, "ri", k=3)["value"] is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"designs": ["pairs"]}, "designs.0 is 'pairs'"),
        ({"exclude": "center"}, "exclude is 'center'"),
        ({"distance": "manhattan"}, "distance is 'manhattan'"),
        ({"k_grid": [0, 3]}, "k_grid.0 is 0"),
        ({"bootstrap_draws": 10}, "bootstrap_draws: no such parameter"),
    ],
)
def test_parameters_that_are_not_allowed_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        read_parameters(RobustnessIndex, "robustness_index", PARAMETERS | changes)


def with_a_small_cell(keep, labels=3, centers=3, patients=3, tiles=20):
    """L0 at C0 keeps so many tiles of two patients; the others have 60."""
    slides, _, embeddings = cohort(2, labels, centers, patients, tiles, effects=(0.6, 0.0))
    cell = slides.filter(label="L0", center="C0")["slide_id"].to_list()
    shards = {s: x for s, x in embeddings.shards.items() if s != cell[2]}
    for slide in cell[:2]:
        shards[slide] = shards[slide][: keep // 2]
    return slides.filter(pl.col("slide_id").is_in(list(shards))), tiles_of(shards), InMemory(shards)


@pytest.mark.parametrize("keep", [2, 4])
def test_a_nearly_empty_cell_is_left_out_by_name_and_shrinks_nothing(keep):
    table = measured(*with_a_small_cell(keep), designs=["all"])
    row = pick(table, "ri_minus_null")
    assert row["n"] == 8 * 60
    assert row["verdict"] == "pass"
    left_out = table.filter(stratum="L0 × C0").row(0, named=True)
    assert left_out["verdict"] == "not_applicable"
    assert (
        f"2 patients with {keep} tiles: fewer than 10% of the median cell's 60"
        in left_out["reason"]
    )


def test_a_cell_that_sets_the_size_of_all_is_named_beside_the_verdict():
    table = measured(*with_a_small_cell(12), designs=["all"])
    for metric in ("ri", "ri_minus_null"):
        row = pick(table, metric)
        assert row["n"] == 9 * 12
        assert "every cell gives 12 tiles, as many as the smallest, L0 × C0, has" in row["reason"]
    assert pick(table, "support")["reason"] == "descriptive: no threshold is set for this figure"
    even = measured(*cohort(2, 3, 3), designs=["all"])
    assert not even["reason"].str.contains("smallest").any()
    # A cohort that is cut to size is not cut by a cell.
    cut = measured(*with_a_small_cell(12), designs=["all"], max_tiles=45)
    assert pick(cut, "ri")["n"] == 45
    assert not cut["reason"].str.contains("smallest").any()


def test_a_design_that_lacks_one_cell_says_which():
    table = measured(*with_a_small_cell(2, 2, 2), criteria=[])
    row = pick(table, "ri", "paired_2x2")
    assert row["value"] is None
    assert "L0 × C0 (2 patients with 2 tiles: fewer than 10%" in row["reason"]
