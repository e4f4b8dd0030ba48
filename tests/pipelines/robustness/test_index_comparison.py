"""Encoders compared two by two, on the same draws."""

import itertools
import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.index_comparison import compare_encoders
from pathfm_kedro.pipelines.robustness.margin_statistics import index_and_margin_statistics
from pathfm_kedro.pipelines.robustness.margins import (
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_figures,
)
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.paired_comparison import simultaneous_intervals
from pathfm_kedro.statistics.parameters import read_parameters
from tests.in_memory import InMemory

PARAMETERS = {
    "k_grid": [1, 3, 5],
    "designs": ["all"],
    "k_design": "all",
    "distance": "cosine",
    "exclude": "patient",
    "subsamples": 1,
    "max_tiles": 10_000,
    "max_tiles_per_pair": 2000,
    "max_pairs": None,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 2,
    "draws": 400,
    "n_permutations": 0,
    "seed": 0,
}
MARGINS = {"m": [3], "sampled_queries": 1000, "draws": 400, "n_permutations": 0, "seed": 0}


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


def tables_of(slides, tiles, embeddings):
    tables, counts_of = {}, {}
    for name, each in embeddings.items():
        counts, margins = index_and_margin_statistics(slides, tiles, each, PARAMETERS, MARGINS)
        tables |= {f"index_{name}": counts, f"margins_{name}": margins}
        counts_of[name] = counts
    return tables, choose_k(PARAMETERS, **counts_of)


def compared(slides, tiles, embeddings):
    tables, chosen = tables_of(slides, tiles, embeddings)
    return compare_encoders(chosen, PARAMETERS, MARGINS, encoders=list(embeddings), **tables)


def pick(table, metric, other):
    return next(
        row
        for row in table.iter_rows(named=True)
        if row["metric"] == metric and json.loads(row["setting"])["other"] == other
    )


def test_differences_are_those_of_the_figures():
    data = encoders(0, {"a": (0.5, 0.2), "b": (0.2, 0.5), "c": (0.0, 0.0)})
    tables, chosen = tables_of(*data)
    found = compare_encoders(chosen, PARAMETERS, MARGINS, encoders=["a", "b", "c"], **tables)
    own = {}
    for name in "abc":
        index = measure(
            robustness_index_figures(
                tables[f"index_{name}"],
                chosen,
                read_parameters(RobustnessIndex, "robustness_index", PARAMETERS),
            ),
            "robustness_index",
            name,
        )
        margin = measure(
            robustness_margins_figures(
                tables[f"margins_{name}"],
                chosen,
                read_parameters(RobustnessMargins, "robustness_margins", MARGINS),
            ),
            "robustness_margins",
            name,
        )
        cohort_k = pl.col("setting").str.contains("cohort_k")
        own[name] = (
            index.filter(cohort_k, metric="ri_minus_null")["value"][0],
            margin.filter(metric="croma")["value"][0],
        )
    for name, other in itertools.permutations("abc", 2):
        for i, metric in enumerate(("ri_difference", "croma_difference")):
            row = pick(found[name], metric, other)
            assert row["value"] == pytest.approx(own[name][i] - own[other][i], abs=1e-12)
            mirrored = pick(found[other], metric, name)
            assert row["ci_low"] == pytest.approx(-mirrored["ci_high"], abs=1e-12)
    assert found["a"].height == 4


def test_encoders_that_differ_are_told_apart():
    found = compared(*encoders(1, {"label": (0.8, 0.0), "center": (0.0, 0.8)}))
    for metric in ("ri_difference", "croma_difference"):
        row = pick(found["label"], metric, "center")
        assert row["ci_low"] > 0
        assert row["reason"].startswith("higher than center: p = ")
        assert pick(found["center"], metric, "label")["reason"].startswith("lower than label")


def test_like_encoders_are_seldom_told_apart_and_intervals_hold_together():
    # Three encoders alike: at most 5% of cohorts may tell any two of them apart.
    wrong = {"ri_difference": 0, "croma_difference": 0}
    for seed in range(40):
        found = compared(*encoders(seed, dict.fromkeys("abc", (0.4, 0.3))))
        for metric in wrong:
            rows = [pick(found[a], metric, b) for a, b in itertools.combinations("abc", 2)]
            wrong[metric] += any(row["ci_low"] > 0 or row["ci_high"] < 0 for row in rows)
    assert max(wrong.values()) <= 6


def test_the_same_encoder_twice_has_no_difference():
    slides, tiles, embeddings = encoders(0, {"a": (0.4, 0.3)})
    found = compared(slides, tiles, {"a": embeddings["a"], "b": embeddings["a"]})
    row = pick(found["a"], "ri_difference", "b")
    assert (row["value"], row["ci_low"]) == (0, None)
    assert "the same as b" in row["reason"]


def test_other_patients_cannot_be_compared():
    slides, tiles, embeddings = encoders(0, {"a": (0.4, 0.3), "b": (0.4, 0.3)})
    fewer = {name: s for name, s in embeddings["b"].shards.items() if name != "s000"}
    found = compared(slides, tiles, {"a": embeddings["a"], "b": InMemory(fewer)})
    row = pick(found["a"], "ri_difference", "b")
    assert row["value"] is None
    assert "embed the same slides" in row["reason"]


def test_a_single_encoder_has_an_empty_table():
    assert compared(*encoders(0, {"a": (0.4, 0.3)}))["a"].is_empty()


def test_simultaneous_intervals_hold_together():
    generator = np.random.default_rng(0)
    common = generator.standard_normal((400, 1))
    truth = np.array([0.0, 0.3, -0.2, 1.0])
    seen = truth + 0.7 * common + generator.standard_normal((400, 4))
    noise = generator.standard_normal((4, 3000)) + 0.7 * generator.standard_normal(3000)
    hits = []
    for values in seen:
        found = simultaneous_intervals(values, values[:, None] + noise)
        hits.append(((found.low <= truth) & (truth <= found.high)).all())
        assert ((found.p_value < 0.05) == ((found.low > 0) | (found.high < 0))).mean() >= 0.75
    assert 0.92 <= np.mean(hits) <= 0.98


def test_a_gain_that_any_labels_would_give_is_said_to_be_one():
    slides, tiles, embeddings = encoders(3, {"base": (0.0, 1.0)})
    center = dict(slides.select("slide_id", "center").iter_rows())
    shards = embeddings["base"].shards
    means = {
        c: np.concatenate([x for s, x in shards.items() if center[s] == c]).mean(0)
        for c in set(center.values())
    }
    embeddings["centred"] = InMemory({s: x - means[center[s]] for s, x in shards.items()})
    counts = {
        name: index_and_margin_statistics(
            slides, tiles, each, PARAMETERS | {"n_permutations": 60}, MARGINS
        )
        for name, each in embeddings.items()
    }
    tables = {f"index_{name}": both[0] for name, both in counts.items()}
    tables |= {f"margins_{name}": both[1] for name, both in counts.items()}
    found = compare_encoders(
        {"k": 3}, PARAMETERS | {"n_permutations": 60}, MARGINS, encoders=list(embeddings), **tables
    )
    row, mirrored = (
        pick(found["centred"], "ri_difference", "base"),
        pick(found["base"], "ri_difference", "centred"),
    )
    assert row["ci_low"] > 0
    assert row["null_low"] <= row["value"] <= row["null_high"]
    assert "higher than base" in row["reason"]
    assert "as large with labels permuted within centers" in row["reason"]
    assert mirrored["null_low"] == -row["null_high"]
