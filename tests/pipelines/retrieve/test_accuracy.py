"""Retrieval figures against scikit-learn; their intervals and nulls against chance."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.counted_queries import searchable_labels
from pathfm_kedro.pipelines.retrieve.search import VOTES, Retrieval, search_slides
from pathfm_kedro.statistics.bootstrap import bootstrap_weights
from pathfm_kedro.statistics.resampled_figure import (
    ResampledFigure,
    deviation_bounds,
    exact_interval,
    range_interval,
    widened,
)
from pathfm_kedro.statistics.votes import (
    LabelledQueries,
    label_counts,
    macro_f1,
    majority_vote,
    patient_votes,
)
from pathfm_kedro.wiring import Experiment

PRIMARY = {"family": "mean", "vote": "mv5", "scope": "within_organ"}
RETRIEVAL = Experiment("retrieval", Retrieval, search_slides, retrieval_figures, [])


def criteria(macro_f1=0.5, f1_range=0.3, at=PRIMARY):
    return [
        {"metric": metric, "at": at, end: threshold}
        for metric, end, threshold in (
            ("macro_f1", "above", macro_f1),
            ("f1_range_over_organs", "below", f1_range),
        )
        if threshold is not None
    ]


PARAMETERS = {
    "families": ["mean"],
    "scopes": ["within_organ", "across_organs"],
    "distance": "euclidean",
    "exclude": "patient",
    "k": 5,
    "votes": ["top1", "mv3", "mv5"],
    "min_patients": 2,
    "draws": 200,
    "n_permutations": 50,
    "seed": 0,
    "criteria": criteria(),
}


def measure(matches, slides, **changes):
    return RETRIEVAL.measurements(matches, slides, PARAMETERS | changes, encoder="e")


def search(slides, vectors, k=5, scopes=("within_organ", "across_organs")):
    """Matches by Euclidean distance, written down plainly."""
    rows = slides.rows(named=True)
    found = []
    for scope in scopes:
        for i, query in enumerate(rows):
            allowed = [
                j
                for j, other in enumerate(rows)
                if other["patient_id"] != query["patient_id"]
                and (scope == "across_organs" or other["organ"] == query["organ"])
            ]
            allowed.sort(key=lambda j: (np.linalg.norm(vectors[i] - vectors[j]), j))
            found += [
                ("mean", scope, query["slide_id"], rank, rows[j]["slide_id"])
                for rank, j in enumerate(allowed[:k], start=1)
            ]
    columns = ["family", "scope", "query_slide", "rank", "match_slide"]
    table = pl.DataFrame(found, schema=columns, orient="row")
    return table.with_columns(reason=pl.lit(None, pl.String()))


def cohort(seed=0, n=60, organs=2, labels=3, separation=0.0):
    generator = np.random.default_rng(seed)
    patient = np.sort(generator.integers(0, n // 2, n))
    organ = (patient % organs).astype(int)
    label = organ * labels + generator.integers(0, labels, n // 2)[patient]
    slides = pl.DataFrame(
        {
            "slide_id": [f"s{i:03}" for i in range(n)],
            "patient_id": [f"p{i:03}" for i in patient],
            "center": ["only"] * n,
            "organ": [f"o{i}" for i in organ],
            "label": [f"l{i}" for i in label],
        }
    )
    return slides, generator.normal(size=(n, 3)) + separation * np.eye(3)[label % 3]


def figure(table, metric, stratum="all", **setting):
    row = table.filter(metric=metric, stratum=stratum, setting=json.dumps(setting, sort_keys=True))
    return row.row(0, named=True)


def uninformed(
    seed, n_patients, shares, slides_per_patient, dimensions, organs=1, scope="within_organ"
):
    """Queries whose neighbours are real neighbours and whose labels mean nothing."""
    generator = np.random.default_rng(seed)
    patient = np.repeat(
        np.arange(n_patients), generator.integers(1, slides_per_patient + 1, n_patients)
    )
    own = generator.normal(size=(n_patients, dimensions))[patient]
    vectors = own + 0.5 * generator.normal(size=own.shape)
    label = generator.choice(len(shares), p=shares, size=n_patients)[patient]
    distances = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1)
    organ = patient % organs
    pool = organ if scope == "within_organ" else np.zeros_like(organ)
    distances[(patient[:, None] == patient) | (pool[:, None] != pool)] = np.inf
    queries = LabelledQueries(patient, label, pool, n_patients, len(shares))
    return queries, np.argsort(distances, axis=1)[:, :5]


@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize("scope", ["within_organ", "across_organs"])
def test_f1_equals_scikit_learn(vote, scope):
    from sklearn.metrics import accuracy_score, f1_score

    slides, vectors = cohort(separation=1.0)
    matches = search(slides, vectors)
    table = measure(matches, slides)
    label = dict(slides.select("slide_id", "label").iter_rows())
    truth, voted = [], []
    for (query,), group in matches.filter(scope=scope).group_by("query_slide"):
        near = [label[m] for m in group.sort("rank")["match_slide"]][: VOTES[vote]]
        truth.append(label[query])
        voted.append(max(near, key=lambda name: (near.count(name), -near.index(name))))
    setting = {"family": "mean", "vote": vote, "scope": scope}
    expected = f1_score(truth, voted, average="macro")
    assert figure(table, "macro_f1", **setting)["value"] == pytest.approx(expected, abs=1e-12)
    assert figure(table, "accuracy", **setting)["value"] == pytest.approx(
        accuracy_score(truth, voted)
    )
    per_label = f1_score(truth, voted, average=None, labels=["l1"])[0]
    assert figure(table, "f1", "label=l1", **setting)["value"] == pytest.approx(per_label)


def test_ineligible_labels_are_listed_and_only_disturb():
    from sklearn.metrics import f1_score

    slides, vectors = cohort(separation=1.0)
    rare = pl.when(pl.col("slide_id") == "s000").then(pl.lit("rare")).otherwise(pl.col("label"))
    slides = slides.with_columns(label=rare)
    matches = search(slides, vectors)
    table = measure(matches, slides)
    setting = {"family": "mean", "vote": "top1", "scope": "across_organs"}
    row = figure(table, "f1", "label=rare", **setting)
    assert row["verdict"] == "not_applicable"
    assert "1 patient(s)" in row["reason"]
    label = dict(slides.select("slide_id", "label").iter_rows())
    first = matches.filter(scope="across_organs", rank=1).filter(pl.col("query_slide") != "s000")
    truth = [label[slide] for slide in first["query_slide"]]
    voted = [label[slide] for slide in first["match_slide"]]
    expected = f1_score(truth, voted, average="macro", labels=sorted(set(truth)))
    assert figure(table, "macro_f1", **setting)["value"] == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(labels=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1))
def test_majority_vote_equals_counting(labels):
    expected = [max(row, key=lambda one: (row.count(one), -row.index(one))) for row in labels]
    assert majority_vote(np.array(labels)).tolist() == expected


@pytest.mark.parametrize(
    ("n_patients", "shares", "slides_per_patient", "dimensions", "vote", "organs", "scope"),
    [
        (80, [0.5, 0.5], 1, 2, 1, 1, "within_organ"),
        (80, [0.4, 0.3, 0.3], 2, 4, 5, 1, "within_organ"),
        (100, [0.7, 0.2, 0.1], 2, 2, 5, 1, "within_organ"),
        (60, [0.25, 0.25, 0.25, 0.25], 3, 8, 1, 1, "within_organ"),
        (90, [0.5, 0.5], 2, 4, 5, 3, "within_organ"),
        (90, [0.5, 0.5], 2, 4, 5, 3, "across_organs"),
        (80, [0.5, 0.3, 0.2], 1, 2, 1, 2, "across_organs"),
    ],
)
def test_interval_covers_chance_under_random_labels(
    n_patients, shares, slides_per_patient, dimensions, vote, organs, scope
):
    queries, matches = uninformed(
        0, n_patients, shares, slides_per_patient, dimensions, organs, scope
    )
    searchable = searchable_labels(queries, 2, within_organ=True)
    weights = bootstrap_weights(n_patients, 400, seed=3)
    known = queries.permuted(200, seed=1)
    counted = [
        patient_votes(
            replace(queries, label=labels), matches[:, :vote], searchable, known, weights
        ).macro_f1
        for labels in queries.permuted(200, seed=2)
    ]
    mean = np.mean([figure.value for figure in counted])
    bounds = np.array([figure.interval() for figure in counted])
    covered = ((bounds[:, 0] <= mean) & (mean <= bounds[:, 1])).mean()
    assert 0.90 <= covered <= 0.99


def test_interval_covers_the_expected_figure_where_there_is_signal():
    values, bounds = [], []
    for seed in range(100):
        queries, _ = uninformed(seed, 80, [0.4, 0.3, 0.3], 2, 4)
        generator = np.random.default_rng(seed)
        label = np.repeat(generator.integers(0, 3, 80), np.bincount(queries.patient))
        vectors = np.eye(3)[label] * 2 + generator.normal(size=(80, 3))[queries.patient]
        distances = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1)
        distances[queries.patient[:, None] == queries.patient] = np.inf
        queries = replace(queries, label=label)
        figure = patient_votes(
            queries,
            np.argsort(distances, axis=1)[:, :5],
            searchable_labels(queries, 2, within_organ=True),
            queries.permuted(100, seed=1),
            bootstrap_weights(80, 400, seed=3),
        ).macro_f1
        values.append(figure.value)
        bounds.append(figure.interval())
    low, high = np.array(bounds).T
    expected = np.mean(values)
    assert 0.6 < expected < 0.95
    assert 0.85 <= ((low <= expected) & (expected <= high)).mean() <= 0.99


def sampled(values, errors, seed):
    """Figures of organs that were measured with independent normal errors of known size."""
    generator = np.random.default_rng(seed)
    errors = np.broadcast_to(errors, len(values))
    found = generator.normal(values, errors)
    draws = generator.normal(found, errors, (300, len(values))).T
    return [
        ResampledFigure(value, widened(value, own, 1.0), np.zeros(0), 12)
        for value, own in zip(found, draws, strict=True)
    ]


@pytest.mark.parametrize(
    ("values", "errors"),
    [
        ([0.6, 0.3], [0.15, 0.15]),
        ([0.6, 0.2], [0.15, 0.15]),
        ([0.7, 0.4], [0.05, 0.2]),
        ([0.5, 0.5], [0.15, 0.15]),
        ([0.7, 0.7, 0.4], [0.1, 0.1, 0.1]),
        ([0.8, 0.5, 0.65, 0.7, 0.55], [0.15, 0.1, 0.1, 0.15, 0.05]),
        ([0.5] * 8, [0.1] * 8),
    ],
)
def test_interval_of_the_range_covers_the_true_range(values, errors):
    bounds = np.array([range_interval(sampled(values, errors, seed)) for seed in range(400)])
    true = max(values) - min(values)
    covered = (bounds[:, 0] <= true) & (true <= bounds[:, 1])
    assert covered.mean() >= 0.92
    assert true < 0.3 or (bounds[:, 1] < 0.3).mean() <= 0.05


def test_a_small_observed_range_bounds_the_true_one_only_as_well_as_the_patients_allow():
    errors = [0.15, 0.15]
    for seed in range(5):
        draws = np.random.default_rng(seed).normal([0.61, 0.59], errors, (4000, 2)).T
        low, high = range_interval([ResampledFigure(d.mean(), d, np.zeros(0), 12) for d in draws])
        assert low == 0.0
        assert high == pytest.approx(0.02 + 1.96 * np.hypot(*errors), abs=0.03)


@pytest.mark.parametrize("ranges", [1, 6])
def test_a_range_of_shares_is_never_above_1(ranges):
    for values in ([1.0, 0.2], [0.9, 0.1, 0.5], [0.5, 0.5]):
        low, high = range_interval(sampled(values, [0.3] * len(values), 1), ranges)
        assert 0.0 <= low <= high <= 1.0


@pytest.mark.parametrize("n", [6, 12, 24, 100])
@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_exact_interval_equals_scipy(n, right):
    from scipy.stats import binomtest

    expected = binomtest(int(right * n), n).proportion_ci(method="exact")
    assert exact_interval(right, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("seeds", "separations"), [(120, (3.5, 1.2)), (120, (6.0, 1.5))])
def test_interval_of_the_range_covers_where_organs_differ_by_about_the_threshold(
    seeds, separations
):
    # 24 patients an organ, one slide each; the second case has an organ that is always all correct.
    organ = np.repeat([0, 1], 24)
    label = 2 * organ + np.arange(48) % 2
    weights = bootstrap_weights(48, 300, seed=0)
    values, bounds = [], []
    for seed in range(seeds):
        vectors = np.random.default_rng(seed).normal(size=(48, 2))
        vectors[:, 0] += np.array(separations)[organ] * (label % 2)
        distances = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1)
        distances[(organ[:, None] != organ) | np.eye(48, dtype=bool)] = np.inf
        matches = np.argsort(distances, axis=1)[:, :5]
        queries = LabelledQueries(np.arange(48), label, organ, 48, 4)
        searchable = searchable_labels(queries, 2, within_organ=True)
        permuted = queries.permuted(40, seed=1)
        organs = [
            patient_votes(queries, matches, searchable, permuted, weights, organ == one).macro_f1
            for one in (0, 1)
        ]
        values.append([figure.value for figure in organs])
        bounds.append(range_interval(organs))
    true = np.ptp(np.mean(values, axis=0))
    low, high = np.array(bounds).T
    assert 0.25 < true < 0.35
    assert ((low <= true) & (true <= high)).mean() >= 0.9
    assert (high < true).mean() <= 0.05


@pytest.mark.parametrize(("patients", "verdict"), [(4, "inconclusive"), (6, "pass"), (12, "pass")])
def test_all_correct_in_every_organ_passes_only_with_enough_patients(patients, verdict):
    slides, _ = phantom_like(0, patients)  # two labels an organ
    vectors = 10 * slides["label"].str.slice(1).cast(pl.Float64).to_numpy()[:, None]
    primary = PRIMARY | {"vote": "mv3"}
    table = measure(search(slides, vectors), slides, criteria=criteria(at=primary))
    row = figure(table, "f1_range_over_organs", **primary)
    assert (row["value"], row["verdict"]) == (0.0, verdict)
    assert row["ci_high"] == pytest.approx(1 - 0.025 ** (1 / (2 * patients)))
    organ = figure(table, "macro_f1", "organ=o0", **primary)
    assert organ["ci_low"] == pytest.approx(0.025 ** (1 / (2 * patients)))
    label = figure(table, "f1", "label=l0", **primary)
    assert label["ci_low"] == pytest.approx(0.025 ** (1 / patients))
    assert {row["ci_high"] for row in (organ, label)} == {1.0}


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=9),
    below=st.floats(0, 0.5),
    above=st.floats(0, 0.5),
)
def test_bounds_of_the_deviation_hold_whatever_the_organs(values, below, above):
    spread = max(values) - min(values)
    low, high = deviation_bounds(max(0.0, spread - below), spread + above, len(values))
    assert low <= np.std(values, ddof=1) + 1e-9
    assert high >= min(1.0, np.std(values, ddof=1)) - 1e-9


def test_null_of_random_neighbours_is_near_the_closed_form():
    # Balanced labels and one vote: a neighbour carries the query's label with 39 of 79 patients.
    generator = np.random.default_rng(0)
    queries, matches = uninformed(0, 80, [0.5, 0.5], 1, 2)
    queries = replace(queries, label=generator.permutation(np.arange(80) % 2))
    searchable = searchable_labels(queries, 2, within_organ=True)
    permuted, weights = queries.permuted(2000, seed=0), bootstrap_weights(80, 50, seed=0)
    votes = patient_votes(queries, matches[:, :1], searchable, permuted, weights)
    assert votes.accuracy.permuted.mean() == pytest.approx(39 / 79, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scope=st.sampled_from(["within_organ", "across_organs"]))
def test_permutation_keeps_labels_where_they_are_searched_and_patients_whole(seed, scope):
    queries, _ = uninformed(seed, 20, [0.5, 0.3, 0.2], 3, 2, organs=3, scope=scope)
    first = np.unique(queries.patient, return_index=True)[1]
    parts = queries.pool
    for labels in queries.permuted(5, seed):
        assert (labels == labels[first][queries.patient]).all()
        for one in np.unique(parts):
            mine = first[parts[first] == one]
            assert sorted(labels[mine]) == sorted(queries.label[mine])


def test_across_organs_an_organ_with_one_label_does_not_fix_the_null():
    # Every organ has one label and its slides lie together: a label is found wherever the organ is.
    slides, _ = cohort(n=90, organs=3, labels=1)
    slides = slides.with_columns(patient_id=pl.col("slide_id"))
    vectors = 10 * np.eye(3)[slides["label"].str.slice(1).cast(pl.Int64).to_numpy()]
    generator = np.random.default_rng(0)
    matches = search(
        slides, vectors + generator.normal(size=vectors.shape), scopes=["across_organs"]
    )
    table = measure(matches, slides, n_permutations=400)
    setting = {"family": "mean", "vote": "top1", "scope": "across_organs"}
    row = figure(table, "accuracy", **setting)
    # The nearest slide carries a permuted label with Σ n(n − 1) / (N (N − 1)).
    sizes = slides["label"].value_counts()["count"].to_numpy()
    chance = (sizes * (sizes - 1)).sum() / (90 * 89)
    assert row["value"] == 1.0
    assert (row["null_low"] + row["null_high"]) / 2 == pytest.approx(chance, abs=0.03)
    for metric in ("accuracy", "macro_f1"):
        row = figure(table, metric, **setting)
        assert row["null_high"] < 0.6 < row["ci_low"]


def test_order_of_rows_changes_nothing():
    slides, vectors = cohort(separation=1.0)
    matches = search(slides, vectors)
    assert_frame_equal(
        measure(matches, slides),
        measure(
            pl.concat(
                matches.filter(scope=scope).sample(fraction=1, shuffle=True, seed=1)
                for scope in ("within_organ", "across_organs")
            ),
            slides.sample(fraction=1, shuffle=True, seed=2),
        ),
        check_exact=True,
    )


def test_perfect_search_passes_and_only_the_primary_setting_is_judged():
    slides, _ = cohort(n=200)  # five votes need three correct slides of other patients
    vectors = 10 * slides["label"].str.slice(1).cast(pl.Float64).to_numpy()[:, None]
    table = measure(search(slides, vectors), slides)
    primary = PRIMARY
    assert figure(table, "macro_f1", **primary)["value"] == pytest.approx(1.0)
    assert figure(table, "macro_f1", **primary)["verdict"] == "pass"
    assert figure(table, "f1_range_over_organs", **primary)["verdict"] == "pass"
    assert set(table.filter(pl.col("threshold").is_not_null())["setting"]) == {
        json.dumps(primary, sort_keys=True)
    }


def test_spread_between_a_solved_and_an_unsolved_organ_fails():
    slides, vectors = cohort(n=160)
    solved = 10.0 * slides["label"].str.slice(1).cast(pl.Float64).to_numpy()
    vectors[:, 0] = np.where(slides["organ"] == "o0", solved, vectors[:, 0])
    table = measure(search(slides, vectors), slides)
    row = figure(table, "f1_range_over_organs", **PRIMARY)
    organs = [
        figure(table, "macro_f1", f"organ={organ}", **PRIMARY)["value"] for organ in ("o0", "o1")
    ]
    assert row["value"] == pytest.approx(abs(organs[0] - organs[1]))
    assert row["verdict"] == "fail"


def phantom_like(seed, patients=6):
    """Two organs of two labels, one slide a patient, and vectors that know nothing."""
    n = 4 * patients
    label = np.arange(n) % 4
    slides = pl.DataFrame(
        {
            "slide_id": [f"s{i:03}" for i in range(n)],
            "patient_id": [f"p{i:03}" for i in range(n)],
            "center": ["only"] * n,
            "organ": [f"o{i // 2}" for i in label],
            "label": [f"l{i}" for i in label],
        }
    )
    return slides, np.random.default_rng(seed).normal(size=(n, 16))


@pytest.mark.parametrize("patients", [3, 6, 15])
@pytest.mark.parametrize("vote", VOTES)
def test_who_knows_nothing_passes_no_check(vote, patients):
    # A macro-F1 of 0.1 lies below chance: whoever set it asks for nothing.
    asked = criteria(0.1, 0.9, PRIMARY | {"vote": vote})
    for seed in range(6):
        slides, vectors = phantom_like(seed, patients)
        matches = search(slides, vectors, scopes=["within_organ"])
        table = measure(matches, slides, criteria=asked)
        judged = table.filter(pl.col("threshold").is_not_null())
        assert set(judged["metric"]) == {"macro_f1", "f1_range_over_organs"}
        assert "pass" not in set(judged["verdict"])
        assert (judged["reason"].str.len_chars() > 20).all()


def test_who_knows_all_passes_the_same_checks():
    slides, _ = phantom_like(0)
    vectors = 10 * slides["label"].str.slice(1).cast(pl.Float64).to_numpy()[:, None]
    table = measure(search(slides, vectors), slides)
    judged = table.filter(pl.col("threshold").is_not_null())
    assert dict(judged.select("metric", "verdict").rows()) == {
        "macro_f1": "pass",
        "f1_range_over_organs": "pass",
    }
    organs = table.filter(pl.col("stratum").str.starts_with("organ="), metric="macro_f1")
    assert set(organs.filter(setting=judged["setting"][0])["value"]) == {1.0}


def test_equally_bad_in_every_organ_is_no_pass():
    slides, vectors = phantom_like(1, patients=40)
    table = measure(search(slides, vectors), slides, criteria=criteria(macro_f1=None))
    row = figure(table, "f1_range_over_organs", **PRIMARY)
    assert row["ci_high"] < row["threshold"]
    assert row["verdict"] == "inconclusive"
    assert "organs may be equally bad" in row["reason"]
    elsewhere = figure(table, "f1_range_over_organs", **PRIMARY | {"vote": "top1"})
    assert elsewhere["reason"].startswith("descriptive")


def test_where_the_vote_is_always_the_commonest_label_nothing_is_judged():
    # Two patients carry the rarer label: at least three of the five nearest carry the other one.
    shares = {"o0": ("a", 7, "b", 2), "o1": ("c", 6, "d", 2)}
    rows = [
        (organ, label)
        for organ, (first, many, second, few) in shares.items()
        for label in [first] * many + [second] * few
    ]
    names = [f"s{i:03}" for i in range(len(rows))]
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": names,
            "center": ["only"] * len(rows),
            "organ": [organ for organ, _ in rows],
            "label": [label for _, label in rows],
        }
    )
    found = []
    for seed in range(3):
        vectors = np.random.default_rng(seed).normal(size=(len(rows), 4))
        table = measure(search(slides, vectors), slides)
        found.append(table.filter(setting=json.dumps(PRIMARY, sort_keys=True)))
        judged = found[-1].filter(pl.col("threshold").is_not_null())
        assert set(judged["metric"]) == {"macro_f1", "f1_range_over_organs"}
        assert set(judged["verdict"]) <= {"not_applicable", "inconclusive", "undecidable"}
        assert judged["reason"].str.contains("any encoder gives this figure here").all()
    assert_frame_equal(found[0].select("metric", "value"), found[1].select("metric", "value"))
    assert_frame_equal(found[0].select("metric", "value"), found[2].select("metric", "value"))


@pytest.mark.parametrize(
    ("columns", "stratum", "words"),
    [
        ({"label": "one"}, "all", "no organ holds two labels"),
        ({"organ": "one"}, "all", None),
        ({"label": "one"}, "organ=o0", "trivial"),
    ],
)
def test_cohorts_that_support_little_say_so(columns, stratum, words):
    slides, vectors = cohort()
    slides = slides.with_columns(**{name: pl.lit(value) for name, value in columns.items()})
    table = measure(search(slides, vectors), slides)
    row = figure(table, "macro_f1", stratum, **PRIMARY)
    assert (row["value"] is None) == (words is not None)
    assert words is None or words in row["reason"]
    spread = figure(table, "f1_range_over_organs", **PRIMARY)
    assert spread["verdict"] == "not_applicable"
    assert spread["threshold"] == 0.3


def test_one_patient_gives_a_reason_and_keeps_the_signatures():
    slides, vectors = cohort()
    slides = slides.with_columns(patient_id=pl.lit("only"))
    table = measure(search(slides, vectors), slides)
    assert set(table["verdict"]) == {"not_applicable"}
    assert table["reason"].str.contains("two patients").all()
    assert table["setting"].n_unique() == 8  # one family, two scopes: three votes, and the list
    signatures = table.filter(pl.col("threshold").is_not_null())
    thresholds = {"macro_f1": 0.5, "f1_range_over_organs": 0.3}
    assert dict(signatures.select("metric", "threshold").rows()) == thresholds


def test_a_scope_that_finds_nothing_keeps_the_signatures():
    slides, vectors = cohort()
    slides = slides.with_columns(organ=pl.col("patient_id"))
    table = measure(search(slides, vectors), slides)
    signatures = table.filter(pl.col("threshold").is_not_null())
    assert set(signatures["metric"]) == {"macro_f1", "f1_range_over_organs"}
    assert set(signatures["verdict"]) == {"not_applicable"}
    assert signatures["reason"].str.contains("two patients, of one organ").all()
    across = PRIMARY | {"scope": "across_organs"}
    assert figure(table, "macro_f1", **across)["value"] is not None


def test_a_criterion_of_a_search_that_is_not_measured_is_refused():
    slides, vectors = cohort()
    asked = criteria(at=PRIMARY | {"family": "median_min"})
    with pytest.raises(ValueError, match=r"retrieval\.criteria: no figure macro_f1 at"):
        measure(search(slides, vectors), slides, criteria=asked)


def test_a_query_that_found_nothing_is_a_miss():
    counts = label_counts(np.array([0, 0]), np.array([0, -1]), np.zeros(2, int), (1, 2))
    assert macro_f1(counts)[0] == pytest.approx(2 / 3)
