"""Margins: against plain loops, their nulls, the coverage of their intervals, what they refuse."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from pathfm_kedro.pipelines.robustness.margin_statistics import index_and_margin_statistics
from pathfm_kedro.pipelines.robustness.margins import (
    ROBUSTNESS_MARGINS_SCHEMA,
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.robustness_index import choose_k
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.neighbours import (
    nearest_by_type,
    nearest_neighbours,
    nearest_of_types,
)
from pathfm_kedro.statistics.pair_bootstrap import jackknife_variance
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.resampled_tail import resampled_distribution, summaries
from pathfm_kedro.statistics.typed_distances import (
    margins_under,
    margins_under_both,
    margins_without,
    nearest_of_units,
    sampled_queries,
    split_by_center,
    tile_margins,
)
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
    "seed": 0,
}
MARGINS = {
    "m": [3, 1],
    "sampled_queries": 1000,
    "criteria": [{"metric": "croma_minus_null", "at": {"design": "all"}, "above": 0.0}],
    "draws": 200,
    "n_permutations": 50,
    "seed": 0,
}


def cohort(seed, labels=2, centers=2, patients=3, tiles=4, d=12, effects=(0.0, 0.0)):
    """One slide a patient; label and center means are the same for every seed."""
    fixed, generator = np.random.default_rng(0), np.random.default_rng(seed)
    of_label = effects[0] * fixed.standard_normal((labels, d))
    of_center = effects[1] * fixed.standard_normal((centers, d))
    rows, shards = [], {}
    for label in range(labels):
        for center in range(centers):
            for _ in range(patients):
                name = f"s{len(rows):03d}"
                rows.append((name, f"p{len(rows):03d}", f"C{center}", "organ", f"L{label}"))
                mean = of_label[label] + of_center[center] + 0.6 * generator.standard_normal(d)
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


def statistics_of(slides, tiles, embeddings, margins=MARGINS, **changes):
    """Statistics of the margins, and the chosen k."""
    parameters = PARAMETERS | {"n_permutations": 0} | changes
    counts, table = index_and_margin_statistics(slides, tiles, embeddings, parameters, margins)
    return table, choose_k(parameters, encoder=counts)


def judged(statistics, chosen, margins=MARGINS):
    p = read_parameters(RobustnessMargins, "robustness_margins", margins)
    figures = robustness_margins_figures(statistics, chosen, p)
    return measure(figures, "robustness_margins", "encoder", p.criteria)


def measured(slides, tiles, embeddings, margins=MARGINS, **changes):
    return judged(*statistics_of(slides, tiles, embeddings, margins, **changes), margins)


def pick(table, metric, design="all", **setting):
    wanted = {"design": design} | setting
    rows = [
        row
        for row in table.iter_rows(named=True)
        if row["metric"] == metric and wanted.items() <= json.loads(row["setting"]).items()
    ]
    assert len(rows) == 1
    return rows[0]


def arrays(labels=2, centers=2, patients=4, tiles=3, d=8, seed=0):
    """Vectors with codes of patients, labels and centers of each row."""
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(labels * centers * patients), tiles)
    label, center = patient % labels, patient // labels % centers
    vectors = generator.standard_normal((len(patient), d)).astype(np.float32)
    return vectors, patient, label, center


def looped(vectors, patient, label, center, m, without=None):
    """Margins by plain loops over every pair of tiles, NaN where one is undefined."""
    unit = vectors.astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    out = []
    for i in range(len(unit)):
        near, far = [], []
        for j in range(len(unit)):
            if patient[j] in (patient[i], without):
                continue
            distance = 1 - unit[i] @ unit[j]
            if label[i] == label[j] and center[i] != center[j]:
                near.append(distance)
            if label[i] != label[j] and center[i] == center[j]:
                far.append(distance)
        a, b = (np.mean(sorted(d)[:m]) if len(d) >= m else np.nan for d in (near, far))
        out.append((b - a) / (a + b))
    return np.array(out)


def test_figures_equal_plain_loops():
    slides, tiles, embeddings = cohort(0, 3, 2, effects=(0.4, 0.2))
    vectors = embeddings.stack(embeddings.slide_ids)
    patient = np.repeat(np.arange(slides.height), 4)
    codes = [
        np.unique(np.repeat(slides[name].to_numpy(), 4), return_inverse=True)[1]
        for name in ("label", "center")
    ]
    table = measured(slides, tiles, embeddings)
    for m in (3, 1):
        expected = looped(vectors, patient, *codes, m)
        assert pick(table, "croma", m=m)["value"] == pytest.approx(np.median(expected), abs=1e-12)
    expected = looped(vectors, patient, *codes, 3)
    low = expected[expected <= np.percentile(expected, 10)]
    by_patient = expected.reshape(-1, 4).mean(axis=1)
    worst = by_patient[by_patient <= np.percentile(by_patient, 10)]
    assert pick(table, "croma_lower_tail")["value"] == pytest.approx(low.mean(), abs=1e-12)
    assert pick(table, "worst_patients")["value"] == pytest.approx(worst.mean(), abs=1e-12)
    assert pick(table, "confounder_dominant")["value"] == pytest.approx((expected <= 0).mean())
    worst_cells = (pl.col("metric") == "worst_decile_share") & pl.col("setting").str.contains("all")
    shares = table.filter(worst_cells)
    assert shares["null_low"].to_list() == pytest.approx([1 / 6] * 4)
    assert shares["value"].is_sorted(descending=True)


@pytest.mark.parametrize("m", [1, 3, 11])
def test_margins_of_tiles_equal_plain_loops(m):
    vectors, patient, label, center = arrays(3, 2)
    found = tile_margins(vectors, patient, label, center, m)
    np.testing.assert_allclose(found, looped(vectors, patient, label, center, m), atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_typed_search_equals_searches_among_the_tiles_of_each_type(m):
    vectors, patient, label, center = arrays(3, 3, 2, seed=m)
    found = nearest_by_type(vectors, patient, label, center, 4, m)
    nearest = nearest_neighbours(vectors, patient, 4)
    np.testing.assert_array_equal(found.nearest.indices, nearest.indices)
    np.testing.assert_array_equal(found.nearest.similarity, nearest.similarity)
    alone = nearest_of_types(vectors, patient, label, center, m)
    for one, other in zip(alone, (found.same_label, found.same_center), strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.similarity, other.similarity)
    every = nearest_neighbours(vectors, patient, len(vectors)).indices
    for typed, same_label in ((found.same_label, True), (found.same_center, False)):
        for i, order in enumerate(every):
            kind = (label[order] == label[i]) == same_label
            kind &= (center[order] == center[i]) != same_label
            right = order[kind & (order >= 0)][:m].tolist()
            assert typed.indices[i].tolist() == right + [-1] * (m - len(right))


def test_copies_of_a_tile_with_other_labels_are_found():
    vectors = np.ones((12, 3), dtype=np.float32)
    patient, label, center = np.arange(12), np.arange(12) % 2, np.arange(12) // 2 % 2
    found = nearest_by_type(vectors, patient, label, center, 2, 2)
    same = label[found.same_label.indices] == label[:, None]
    assert (same & (center[found.same_label.indices] != center[:, None])).all()
    other = label[found.same_center.indices] != label[:, None]
    assert (other & (center[found.same_center.indices] == center[:, None])).all()
    assert found.same_label.indices[0].tolist() == [2, 6]


def sample_of(vectors, patient, label, center, m):
    queries = np.arange(len(vectors))
    entries = nearest_of_units(vectors, patient, patient, queries, m, "cosine")
    first = np.unique(patient, return_index=True)[1]
    return split_by_center(entries, patient, label[first], center[first], m), first


@pytest.mark.parametrize("m", [1, 3, 5])
def test_margins_under_other_labels_and_without_a_patient_equal_plain_loops(m):
    vectors, patient, label, center = arrays(2, 2, patients=5)
    sample, first = sample_of(vectors, patient, label, center, m)
    # Vectors rounded to whole numbers: right to about 10⁻³ of a margin.
    orders = np.stack([np.random.default_rng(seed).permutation(len(first)) for seed in range(3)])
    labels, centers = label[first][orders], center[first][orders]
    under_labels = margins_under(sample, labels.T, m)
    under_both = margins_under_both(sample, labels.T, centers.T, m)
    for i in range(len(orders)):
        expected = looped(vectors, patient, labels[i][patient], center, m)
        np.testing.assert_allclose(under_labels[i], expected, atol=2e-3)
        expected = looped(vectors, patient, labels[i][patient], centers[i][patient], m)
        np.testing.assert_allclose(under_both[i], expected, atol=2e-3)
    margins, met, left = margins_without(sample, label[first], np.arange(len(first)), m)
    np.testing.assert_allclose(margins, looped(vectors, patient, label, center, m), atol=2e-3)
    for out in range(len(first)):
        expected = looped(vectors, patient, label, center, m, without=out)
        # Where a patient is not met its absence changes nothing.
        there = (met == out).any(axis=1)
        ours = np.where(there, left[np.arange(len(left)), (met == out).argmax(axis=1)], margins)
        others = patient != out
        np.testing.assert_allclose(ours[others], expected[others], atol=2e-3)


def test_sampled_queries_are_even_over_units():
    units = np.repeat([0, 1, 2], [50, 5, 5])
    chosen = sampled_queries(units, 12, seed=0)
    assert np.bincount(units[chosen]).tolist() == [4, 4, 4]
    assert len(sampled_queries(units, 1000, seed=0)) == 60


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_resampled_distribution_equals_a_repeated_sample(seed, n):
    generator = np.random.default_rng(seed)
    # Rounded, so that values tie.
    values = generator.standard_normal(n).round(1)
    owners, cells = generator.integers(0, 5, n), generator.integers(0, 3, n)
    weights = generator.multinomial(5, np.full(5, 0.2), 8).astype(float)
    found = resampled_distribution(values, owners, weights, 0.1, cells, 3)
    for i, weight in enumerate(weights):
        times = weight[owners].astype(int)
        resampled, kinds = np.repeat(values, times), np.repeat(cells, times)
        if not len(resampled):
            assert np.isnan([found.median[i], found.mean[i], found.tail[i]]).all()
            continue
        low = resampled <= np.percentile(resampled, 10)
        tail, below = resampled[low].mean(), (resampled <= 0).mean()
        expected = [np.median(resampled), resampled.mean(), tail, below]
        ours = [found.median[i], found.mean[i], found.tail[i], found.below[i]]
        np.testing.assert_allclose(ours, expected, atol=1e-12)
        np.testing.assert_allclose(
            found.shares[i], np.bincount(kinds[low], minlength=3) / low.sum()
        )
        found_once = summaries(np.append(resampled, np.nan), 0.1)
        np.testing.assert_allclose([float(v) for v in found_once.values()], expected, atol=1e-12)


def test_jackknife_of_a_mean_is_its_variance():
    values = np.random.default_rng(0).standard_normal(30)
    change = (values.sum() - values) / 29 - values.mean()
    expected = values.var(ddof=1) / 30
    assert jackknife_variance(np.stack([change, change])) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("effects", [(0.0, 0.0), (0.5, 0.3)])
def test_intervals_cover(effects):
    quick = {"designs": ["all"], "subsamples": 1}
    unjudged = MARGINS | {"n_permutations": 0, "criteria": []}
    tables = [
        measured(*cohort(seed, patients=8, tiles=5, effects=effects), unjudged, **quick)
        for seed in range(60)
    ]
    for metric in ("croma", "croma_mean", "croma_lower_tail", "confounder_dominant"):
        rows = [pick(table, metric, m=3) for table in tables]
        truth = np.mean([row["value"] for row in rows])
        hit = np.mean([row["ci_low"] <= truth <= row["ci_high"] for row in rows])
        # 0.95 less three standard errors of 60 draws; a wide margin above would be useless too.
        assert hit >= 0.86
        width = np.mean([row["ci_high"] - row["ci_low"] for row in rows]) / 3.92
        assert width < 1.8 * np.std([row["value"] for row in rows])


def test_random_embeddings_sit_on_the_null():
    # With three labels and two centers a margin of nothing is not 0: impostors are more.
    quick = {"designs": ["all"], "subsamples": 1}
    tables = [measured(*cohort(seed, 3, 2, 5), **quick) for seed in range(12)]
    rows = [pick(table, "croma_minus_null") for table in tables]
    inside = [row["null_low"] <= row["value"] <= row["null_high"] for row in rows]
    assert np.mean(inside) >= 0.75
    assert sum(row["verdict"] != "inconclusive" for row in rows) <= 2
    few = MARGINS | {"n_permutations": 0}
    many = [measured(*cohort(seed, 6, 2, 4), few, **quick) for seed in range(4)]
    raw = [pick(table, "croma", m=3)["value"] for table in many]
    assert np.mean(raw) < -0.03


def test_known_encoders_are_judged():
    of_label = measured(*cohort(0, patients=6, effects=(1.5, 0.0)))
    of_center = measured(*cohort(0, patients=6, effects=(0.0, 1.5)))
    assert pick(of_label, "croma_minus_null")["verdict"] == "pass"
    assert pick(of_label, "croma", m=3)["value"] > 0.3
    assert pick(of_label, "mari_minus_null", role="cohort_k")["value"] > 0.2
    assert pick(of_center, "croma", m=3)["value"] < -0.3
    assert pick(of_center, "croma_minus_null")["verdict"] == "fail"
    assert pick(of_center, "croma_minus_null")["value"] < -0.3
    assert pick(of_center, "mari_minus_null", role="cohort_k")["ci_high"] < 0
    with_criterion = of_label.filter(pl.col("threshold").is_not_null())
    assert with_criterion["metric"].to_list() == ["croma_minus_null"]
    assert of_label.height <= 60


def test_who_follows_the_center_and_knows_a_little_of_the_label_does_not_pass():
    # Above what labels permuted within centers give, and yet nearer to the center for nearly all tiles.
    quick = {"designs": ["all"], "subsamples": 1}
    for seed in range(3):
        table = measured(*cohort(seed, 3, 3, 4, 6, effects=(0.5, 1.2)), **quick)
        assert pick(table, "confounder_dominant")["value"] > 0.9
        assert pick(table, "croma_minus_null")["verdict"] == "fail"


def centred(slides, embeddings):
    """Vectors without the mean of their center."""
    center = dict(slides.select("slide_id", "center").iter_rows())
    means = {
        name: np.concatenate([x for s, x in embeddings.shards.items() if center[s] == name]).mean(0)
        for name in set(center.values())
    }
    return InMemory({s: x - means[center[s]] for s, x in embeddings.shards.items()})


def test_a_harmonised_variant_passes_only_if_it_knows_the_label():
    quick = {"designs": ["all"], "subsamples": 1}
    verdicts = {0.0: [], 0.7: []}
    for effect, found in verdicts.items():
        for seed in range(6):
            slides, tiles, embeddings = cohort(seed, 4, 3, 3, 8, effects=(effect, 1.0))
            table = measured(slides, tiles, centred(slides, embeddings), **quick)
            found.append(pick(table, "croma_minus_null"))
    assert {row["verdict"] for row in verdicts[0.7]} == {"pass"}
    assert "pass" not in {row["verdict"] for row in verdicts[0.0]}
    beyond = [row for row in verdicts[0.0] if row["ci_low"] > 0]
    assert beyond
    for row in beyond:
        assert row["verdict"] == "inconclusive"
        assert "labels permuted within centers" in row["caveat"]


def test_exchanging_label_and_center_turns_the_sign():
    slides, tiles, embeddings = cohort(1, effects=(0.6, 0.2))
    swapped = slides.rename({"label": "center", "center": "label"})
    ours, mirrored = (measured(each, tiles, embeddings) for each in (slides, swapped))
    for m in (3, 1):
        value, other = (pick(table, "croma", m=m)["value"] for table in (ours, mirrored))
        assert value == pytest.approx(-other, abs=1e-12)
    value, other = (pick(t, "mari", k=5)["value"] for t in (ours, mirrored))
    # The temperature is that of the k which names the label, or the center, best.
    assert (value - 0.5) * (other - 0.5) < 0


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100), st.floats(0.1, 10))
def test_rotating_and_scaling_change_nothing(seed, scale):
    slides, tiles, embeddings = cohort(2, effects=(0.5, 0.3))
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((12, 12)))[0]
    shards = embeddings.shards.items()
    rotated = InMemory({name: (scale * each @ rotation).astype("f4") for name, each in shards})
    quick = MARGINS | {"n_permutations": 0, "draws": 20}
    for metric, setting in (("croma", {"m": 3}), ("mari", {"k": 5})):
        before, after = (
            pick(measured(slides, tiles, each, quick), metric, **setting)["value"]
            for each in (embeddings, rotated)
        )
        assert after == pytest.approx(before, abs=1e-5)


def test_threads_change_nothing():
    data = cohort(3, effects=(0.5, 0.5))
    with threadpool_limits(1):
        one = measured(*data)
    with threadpool_limits(2):
        two = measured(*data)
    assert one.equals(two)


def test_a_cohort_that_cannot_be_measured_says_why():
    slides, tiles, embeddings = cohort(0)
    table = measured(slides.with_columns(center=pl.lit("C0")), tiles, embeddings)
    assert table["verdict"].unique().to_list() == ["not_applicable"]
    assert table["reason"].str.contains("add slides from a second center").all()
    with_criterion = table.filter(pl.col("threshold").is_not_null())
    assert with_criterion["metric"].to_list() == ["croma_minus_null"]


def test_too_few_neighbours_of_a_type_leave_a_reason_and_no_number():
    margins = MARGINS | {"m": [50]}
    row = pick(measured(*cohort(0), margins=margins), "croma", m=50)
    assert row["value"] is None
    assert "take a smaller m" in row["reason"]


def test_no_permutations_no_comparison_with_the_null():
    row = pick(measured(*cohort(0), MARGINS | {"n_permutations": 0}), "croma_minus_null")
    assert row["value"] is None
    assert row["verdict"] == "not_applicable"
    assert "n_permutations" in row["reason"]


def test_margins_of_part_of_the_tiles_are_said_to_be():
    slides, tiles, embeddings = cohort(0, 3, 2)
    # L2 stands at C0 only: its tiles have no neighbour of their label elsewhere.
    keep = (pl.col("label") != "L2") | (pl.col("center") == "C0")
    row = pick(measured(slides.filter(keep), tiles, embeddings), "croma", m=3)
    assert "speaks of 80% of the tiles" in row["reason"]
    table = measured(slides.filter(keep), tiles, embeddings)
    assert pick(table, "margin_support")["value"] == pytest.approx(0.8)


def test_patients_without_a_margin_or_weighted_neighbours_do_not_count():
    slides, tiles, embeddings = cohort(1, patients=3, effects=(1.0, 0.0))
    table, chosen = statistics_of(slides, tiles, embeddings)
    assert dict(table.schema) == ROBUSTNESS_MARGINS_SCHEMA
    assert pick(measured(slides, tiles, embeddings), "croma_minus_null")["verdict"] == "pass"
    few = pl.col("patient_id").is_in([f"p{i:03d}" for i in (0, 3, 6, 9, 1)])
    silent = table.with_columns(
        pl.when(few | (pl.col("kind") != "margins"))
        .then("margins")
        .otherwise(pl.lit([], dtype=table.schema["margins"]))
        .alias("margins"),
        *(
            pl.when(few | (pl.col("kind") != "weighted_neighbours")).then(name).alias(name)
            for name in ("neighbours", "neighbour_unit")
        ),
    )
    of_mari = {"metric": "mari_minus_null", "at": {"design": "all"}, "above": 0.0}
    found = judged(silent, chosen, MARGINS | {"criteria": [*MARGINS["criteria"], of_mari]})
    settings = {"croma": {"m": 3}, "croma_minus_null": {"m": 3}, "croma_lower_tail": {"m": 3}}
    mari = {"role": "cohort_k"}
    for metric, setting in (settings | {"mari": mari, "mari_minus_null": mari}).items():
        row = pick(found, metric, **setting)
        assert row["n_patients"] == 5, metric
        if metric.endswith("minus_null"):
            assert row["verdict"] == "undecidable"
            assert row["reason"].startswith("rests on 5 patients")


def test_no_criterion_judges_nothing():
    slides, tiles, embeddings = cohort(1, effects=(1.0, 0.0))
    row = pick(measured(slides, tiles, embeddings, MARGINS | {"criteria": []}), "croma_minus_null")
    assert row["threshold"] is None
    assert row["value"] > 0
