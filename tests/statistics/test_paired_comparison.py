"""Encoders compared two by two, on the same draws."""

import itertools
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from pathfm_kedro.pipelines.robustness.margin_statistics import index_and_margin_statistics
from pathfm_kedro.pipelines.robustness.pipeline import INDEX, MARGINS
from pathfm_kedro.pipelines.robustness.robustness_index import choose_k
from pathfm_kedro.statistics.bootstrap import bootstrap_weights, ratio_estimate
from pathfm_kedro.statistics.figures import Criterion, Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.paired_comparison import (
    Judged,
    compare_encoders,
    simultaneous_differences,
)
from tests.in_memory import InMemory

INDEX_BLOCK = {
    "k_grid": [1, 3, 5],
    "designs": ["all"],
    "subsamples": 1,
    "max_tiles": 10_000,
    "max_tiles_per_pair": 2000,
    "max_pairs": None,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 2,
    "draws": 400,
    "n_permutations": 20,
    "criteria": [
        {"metric": "ri_minus_null", "at": {"design": "all", "role": "cohort_k"}, "above": 0.0}
    ],
}
MARGINS_BLOCK = {
    "m": [3],
    "sampled_queries": 1000,
    "draws": 400,
    "n_permutations": 20,
    "criteria": [{"metric": "croma_minus_null", "at": {"design": "all"}, "above": 0.0}],
}
METRICS = ("ri_minus_null", "croma_minus_null")


def encoders(seed, effects, patients=7, tiles=4, d=12):
    """Encoders that see the same patients' deviations, with labels and centers of their own."""
    generator = np.random.default_rng(seed)
    fixed = np.random.default_rng(9).standard_normal((4, d))
    rows, shards = [], {name: {} for name in effects}
    for label, center, _ in itertools.product(range(2), range(2), range(patients)):
        slide = f"s{len(rows):03d}"
        rows.append((slide, slide, f"C{center}", "organ", f"L{label}"))
        shared = 0.6 * generator.standard_normal(d) + generator.standard_normal((tiles, d))
        for name, (of_label, of_center) in effects.items():
            mean = of_label * fixed[label] + of_center * fixed[2 + center]
            noise = 0.3 * generator.standard_normal((tiles, d))
            shards[name][slide] = (mean + shared + noise).astype(np.float32)
    columns = ["slide_id", "patient_id", "center", "organ", "label"]
    slides = pl.DataFrame(rows, schema=columns, orient="row")
    tile_ids = [f"{slide}-{i}" for slide in slides["slide_id"] for i in range(tiles)]
    table = pl.DataFrame({"tile_id": tile_ids, "slide_id": np.repeat(slides["slide_id"], tiles)})
    return slides, table, {name: InMemory(each) for name, each in shards.items()}


def judged_of(slides, tiles, embeddings, k=None):
    """Judged figures of index and margins."""
    tables = {
        name: index_and_margin_statistics(slides, tiles, each, INDEX_BLOCK, MARGINS_BLOCK)
        for name, each in embeddings.items()
    }
    chosen = choose_k(INDEX_BLOCK | {"k": k}, **{name: both[0] for name, both in tables.items()})
    return [
        {name: x.judged(both[i], chosen, block) for name, both in tables.items()}
        for i, (x, block) in enumerate(((INDEX, INDEX_BLOCK), (MARGINS, MARGINS_BLOCK)))
    ]


def compared(*data, k=None):
    both = zip(judged_of(*data, k=k), ("index", "margins"), strict=True)
    return pl.concat(compare_encoders(judged, name) for judged, name in both)


def pick(table, metric, name, other):
    """The row of one encoder, compared with another."""
    rows = table.filter(encoder=name, metric=f"{metric}_difference").iter_rows(named=True)
    return next(r for r in rows if json.loads(r["setting"])["compared_with"] == other)


@pytest.fixture(scope="module")
def three():
    data = encoders(0, {"a": (0.5, 0.2), "b": (0.2, 0.5), "c": (0.0, 0.0)})
    return judged_of(*data), compared(*data)


def test_differences_are_those_of_the_figures_in_both_directions(three):
    judged, found = three
    for metric, of in zip(METRICS, judged, strict=True):
        values = {name: next(iter(each.values.values())) for name, each in of.items()}
        for name, other in itertools.permutations("abc", 2):
            row, mirrored = pick(found, metric, name, other), pick(found, metric, other, name)
            expected = values[name].estimate.value - values[other].estimate.value
            assert row["value"] == pytest.approx(expected, abs=1e-12)
            assert row["ci_low"] == pytest.approx(-mirrored["ci_high"], abs=1e-12)
            assert row["null_low"] == pytest.approx(-mirrored["null_high"], abs=1e-12)
    assert found.height == 2 * 6


def test_only_figures_that_are_judged_are_computed_and_compared():
    def never():
        raise AssertionError

    figures = [Figure("asked", lambda: Estimate(1.0, 0.5, 1.5, 9, 9)), Figure("other", never)]
    criterion = [Criterion("asked", 0.0, "above")]
    judged = {e: Judged.of(figures, criterion, pl.DataFrame({"patient_id": ["p"]})) for e in "ab"}
    assert set(compare_encoders(judged, "x")["metric"]) == {"asked_difference"}


def test_encoders_that_differ_are_distinguished():
    found = compared(*encoders(1, {"label": (0.8, 0.0), "center": (0.0, 0.8)}))
    for metric in METRICS:
        row = pick(found, metric, "label", "center")
        assert row["ci_low"] > 0
        assert row["reason"].startswith("higher than center: p = ")
        assert pick(found, metric, "center", "label")["reason"].startswith("lower than label")
        assert row["verdict"] == "not_applicable"


def test_like_encoders_are_seldom_distinguished_and_intervals_hold_together():
    # Three encoders alike: at most 5% of cohorts may tell any two of them apart.
    wrong = dict.fromkeys(METRICS, 0)
    for seed in range(14):
        found = compared(*encoders(seed, dict.fromkeys("abc", (0.4, 0.3)), patients=4))
        for metric in METRICS:
            rows = [pick(found, metric, a, b) for a, b in itertools.combinations("abc", 2)]
            wrong[metric] += any(row["ci_low"] > 0 or row["ci_high"] < 0 for row in rows)
    assert max(wrong.values()) <= 3


def test_the_same_encoder_twice_has_no_difference():
    slides, tiles, embeddings = encoders(0, {"a": (0.4, 0.3)})
    found = compared(slides, tiles, {"a": embeddings["a"], "b": embeddings["a"]})
    for metric in METRICS:
        row = pick(found, metric, "a", "b")
        assert (row["value"], row["ci_low"]) == (0, None)
        assert "the same as b" in row["reason"]


def test_other_patients_cannot_be_compared():
    slides, tiles, embeddings = encoders(0, {"a": (0.4, 0.3), "b": (0.4, 0.3)})
    fewer = {name: s for name, s in embeddings["b"].shards.items() if name != "s000"}
    found = compared(slides, tiles, {"a": embeddings["a"], "b": InMemory(fewer)})
    row = pick(found, "ri_minus_null", "a", "b")
    assert row["value"] is None
    assert "embed the same slides" in row["reason"]


def test_what_an_encoder_lacks_is_said_and_the_others_are_compared():
    def refuse():
        raise Undefined("no gradient")

    criteria, table = [Criterion("drop", 0.1, "below")], pl.DataFrame({"patient_id": ["p"]})
    computed = {"a": lambda: Estimate(0.0, -1.0, 1.0, 9, 9), "b": refuse}
    computed["c"] = lambda: Value(Estimate(0.5, 0.4, 0.6, 9, 9), Null(0.0, 0.0))
    judged = {
        e: Judged.of([Figure("drop", compute)], criteria, table) for e, compute in computed.items()
    }
    found = compare_encoders(judged, "attacks")
    assert pick(found, "drop", "a", "c")["value"] == -0.5
    assert "b has no such figure" in pick(found, "drop", "a", "b")["reason"]


def test_two_controls_are_not_compared_and_a_control_has_no_rows(three):
    judged, _ = three
    found = compare_encoders(judged[0], "index", controls=["b", "c"])
    assert set(found["encoder"]) == {"a"}
    assert found.height == 2


def test_a_single_encoder_has_an_empty_table():
    assert compared(*encoders(0, {"a": (0.4, 0.3)})).is_empty()


def test_a_gain_that_any_labels_would_give_is_said_to_be_one():
    slides, tiles, embeddings = encoders(3, {"base": (0.0, 1.0)})
    center = dict(slides.select("slide_id", "center").iter_rows())
    shards = embeddings["base"].shards
    means = {
        c: np.concatenate([x for s, x in shards.items() if center[s] == c]).mean(0)
        for c in set(center.values())
    }
    embeddings["centred"] = InMemory({s: x - means[center[s]] for s, x in shards.items()})
    found = compared(slides, tiles, embeddings, k=3)
    row = pick(found, "ri_minus_null", "centred", "base")
    assert row["ci_low"] > 0
    assert row["null_low"] <= row["value"] <= row["null_high"]
    assert "higher than base" in row["reason"]
    assert "as large with labels permuted within centers" in row["reason"]


def paired_means(generator, n=24, draws=400, weights=None):
    """Means of two measures of n patients, of correlation .7, with bootstrap intervals."""
    common = np.sqrt(0.7) * generator.standard_normal(n)
    both = common + np.sqrt(0.3) * generator.standard_normal((2, n))
    found = [ratio_estimate(values, np.ones(n), weights) for values in both]
    return both, found


def test_the_interval_of_a_difference_of_means_is_that_of_the_paired_t_test():
    weights = bootstrap_weights(400, 4000, 0)
    both, pair = paired_means(np.random.default_rng(0), n=400, weights=weights)
    (found,) = simultaneous_differences([tuple(pair)])
    exact = stats.ttest_rel(*both).confidence_interval()
    assert found.low == pytest.approx(exact.low, abs=0.01)
    assert found.high == pytest.approx(exact.high, abs=0.01)


def test_intervals_of_like_figures_hold_no_difference_in_95_of_100_cohorts():
    weights, held = bootstrap_weights(24, 400, 0), 0
    for seed in range(400):
        _, pair = paired_means(np.random.default_rng(seed), weights=weights)
        (found,) = simultaneous_differences([tuple(pair)])
        held += found.low <= 0 <= found.high
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high) or (
            abs(found.p_value - 0.05) < 0.03
        )
    assert 0.915 <= held / 400 <= 0.975


def test_intervals_of_several_pairs_hold_together():
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((4, 600))
    hits = []
    for _ in range(300):
        values = generator.standard_normal(4)
        figures = [
            Estimate(v, v - 1.96, v + 1.96, 9, 9, d) for v, d in zip(values, draws, strict=True)
        ]
        found = simultaneous_differences(list(itertools.combinations(figures, 2)))
        hits.append(all(f.low <= 0 <= f.high for f in found))
    assert 0.92 <= np.mean(hits) <= 0.98


def test_without_draws_in_common_the_interval_is_that_of_independent_figures():
    # Newcombe 1998, method 10: 56/70 less 48/80 is 0.2, 0.0524 to 0.3339 (Wilson's intervals).
    wilson = [stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in ((56, 70), (48, 80))]
    first, second = (
        Estimate(value, ci.low, ci.high, n, n)
        for value, ci, n in zip((0.8, 0.6), wilson, (70, 80), strict=True)
    )
    (found,) = simultaneous_differences([(first, second)])
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_draws_need_not_have_the_spread_of_their_interval():
    weights = bootstrap_weights(24, 400, 0)
    _, pair = paired_means(np.random.default_rng(1), weights=weights)
    scaled = [replace(each, draws=3 * each.draws + 1) for each in pair]
    assert simultaneous_differences([tuple(pair)])[0].low == pytest.approx(
        simultaneous_differences([tuple(scaled)])[0].low
    )
