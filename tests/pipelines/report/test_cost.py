"""Costs are tabled with what they rest on; ratios hold where accuracy is matched."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest
from scipy.stats import ttest_ind

from pathfm_kedro.pipelines.report.cost import Cost, cost_figures, cost_statistics
from pathfm_kedro.pipelines.report.figure_parts import encoder_styles
from pathfm_kedro.pipelines.report.plot_kinds import pareto, pareto_front
from pathfm_kedro.pipelines.report.words import PlotWords, Words
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.measurements import Estimate, measurement, measurement_table
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.repeats import mean_of_repeats, ratio_of_repeats

PARAMETERS = {
    "accuracy": {"experiment": "retrieval", "metric": "macro_f1", "at": {"vote": "mv5"}},
    "robustness": {"experiment": "robustness_index", "metric": "ri_minus_null"},
    "accuracy_margin": 0.05,
    "draws": 300,
    "seed": 0,
}
P = read_parameters(Cost, "cost", PARAMETERS)
SLIDES = pl.DataFrame({"slide_id": ["a", "b", "c"], "patient_id": ["p", "p", "q"]})
TILES = pl.DataFrame({"slide_id": ["a"] * 10 + ["b"] * 20 + ["c"] * 30})


def record(seconds, joules=None, flops=1000, **problems) -> dict:
    turns = [
        {
            "seconds": s,
            "cpu_seconds": 2 * s,
            "gpu_seconds": 0.0,
            "joules": joules(s) if joules else {},
        }
        for s in seconds
    ]
    tiling = [{"seconds": 1, "cpu_seconds": 1, "joules": joules(0.5) if joules else {}}]
    return {
        "flops_per_tile": flops,
        "device": "cpu",
        "processor": "a processor",
        "tiles": 4,
        "turns": turns,
        "tiling": tiling,
        "peak_bytes": {"cpu": 5_000_000},
        "problems": problems,
    }


def by_watts(watts):
    return lambda seconds: {"rapl": watts * seconds}


COSTS = {
    "large": record([8.0, 8.8, 7.2], by_watts(100), flops=35_000),
    "rival": record([0.8, 0.8, 0.88], by_watts(50)),
    "knows": record([], flops=None, flops_=""),
}
CARDS = {
    "large": {"model": "hf-hub:x/y", "dimension": 1024, "dtype": "float16"},
    "centred": {"model": "harmonised:large", "dimension": 1024},
    "rival": {"model": "trained:small_cnn", "dimension": 64},
}


def scores(**macro_f1) -> pl.DataFrame:
    rows = [
        measurement(
            experiment="retrieval",
            encoder=name,
            metric="macro_f1",
            setting={"vote": "mv5"},
            estimate=Estimate(value, value - 0.1, value + 0.1, 30, 10),
        )
        for name, value in macro_f1.items()
    ]
    return measurement_table(rows)


def table(name, costs=COSTS, cards=CARDS, retrieved=None) -> pl.DataFrame:
    accuracies = scores(large=0.8, centred=0.8, rival=0.78) if retrieved is None else retrieved
    statistics = cost_statistics(
        costs, cards, SLIDES, TILES, accuracies, measurement_table([]), P, name=name
    )
    return measure(cost_figures(statistics, P), "cost", name)


def value(rows: pl.DataFrame, metric: str, setting: str | None = None) -> dict:
    found = rows.filter(metric=metric)
    if setting is not None:
        found = found.filter(pl.col("setting").str.contains(setting, literal=True))
    assert found.height == 1, found
    return found.row(0, named=True)


def test_figures_of_a_tile_and_a_slide_are_those_of_plain_arithmetic():
    rows = table("large")
    assert value(rows, "flops_per_tile")["value"] == 35_000
    per_tile = value(rows, "joules_per_tile")
    assert per_tile["value"] == pytest.approx(100 * math.prod([8.0, 8.8, 7.2]) ** (1 / 3) / 4)
    assert per_tile["setting"] == '{"source": "rapl"}'
    assert "a processor, cpu, 3 turns of 4 tiles" in per_tile["reason"]
    per_slide = value(rows, "joules_per_slide")
    assert per_slide["value"] == pytest.approx(50 + 20 * 100 * 8.0 / 4)
    assert per_slide["ci_low"] < per_slide["value"] < per_slide["ci_high"]
    assert (per_slide["n"], per_slide["n_patients"]) == (3, 2)
    assert value(rows, "index_bytes_per_slide", "tiles")["value"] == 20 * 1024 * 2
    assert value(rows, "index_bytes_per_slide", '"slide"')["value"] == 1024 * 4
    assert value(rows, "macro_f1")["value"] == 0.8
    assert rows.filter(metric="gpu_seconds_per_tile").is_empty()


def test_a_variant_costs_what_its_base_does():
    assert value(table("centred"), "joules_per_tile")["value"] == pytest.approx(
        value(table("large"), "joules_per_tile")["value"]
    )


def test_the_ratio_at_matched_accuracy_is_welch_s_on_logarithms():
    rows = table("large")
    assert value(rows, "cost_ratio", '"flops"')["value"] == 35
    row = value(rows, "cost_ratio", "joules, rapl")
    a, b = (np.log([s * w for s in t]) for t, w in (([8.0, 8.8, 7.2], 100), ([0.8, 0.8, 0.88], 50)))
    ends = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert row["value"] == pytest.approx(np.exp(a.mean() - b.mean()))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((np.exp(ends.low), np.exp(ends.high)))
    assert "accuracy 0.80 against 0.78" in row["reason"]


def test_a_rival_that_falls_short_is_no_measure():
    row = value(table("large", retrieved=scores(large=0.8, rival=0.6)), "cost_ratio", '"flops"')
    assert row["value"] is None
    assert "accuracy is not matched: rival reaches 0.60 where large reaches 0.80" in row["reason"]


def test_without_a_rival_there_is_no_ratio_and_the_mend():
    cards = {name: card for name, card in CARDS.items() if name != "rival"}
    row = value(table("large", cards=cards), "cost_ratio", '"flops"')
    assert (row["value"], row["verdict"]) == (None, "not_applicable")
    assert "trained:small_cnn" in row["reason"]
    # The rival itself is held against nobody.
    assert value(table("rival"), "cost_ratio", '"flops"')["value"] is None


def test_what_was_not_measured_says_why():
    costs = COSTS | {"large": record([], rapl="may be read by root only: sudo chmod a+r")}
    costs["large"]["problems"]["trial"] = "not measured"
    row = value(table("large", costs=costs), "joules_per_tile")
    assert row["value"] is None
    assert "sudo chmod a+r" in row["reason"]
    assert value(table("large", costs=costs), "flops_per_tile")["value"] == 1000
    quiet = COSTS | {"large": record([8.0, 8.0], by_watts(0))}
    assert "at rest" in value(table("large", costs=quiet), "joules_per_tile")["reason"]
    nothing = table("large", costs={})
    assert nothing.filter(metric="flops_per_tile")["reason"][0].endswith("run embed again")


def test_a_control_has_no_time_and_no_ratio():
    cards = CARDS | {"knows": {"model": "control:noise", "dimension": 64, "runtime": "none"}}
    rows = table("knows", cards=cards)
    assert set(rows["metric"]) == {
        "flops_per_tile", "index_bytes_per_slide", "macro_f1", "ri_minus_null",
    }  # fmt: skip


def test_repeats_cover_their_mean():
    """95% intervals of a log-normal mean hold it in about 95% of experiments, and of ratios too."""
    generator = np.random.default_rng(0)
    hits = np.zeros(2)
    for _ in range(600):
        a, b = np.exp(generator.normal(0, 0.1, 5)), np.exp(generator.normal(0.3, 0.05, 5))
        _, low, high = mean_of_repeats(a)
        hits[0] += low <= 1 <= high
        _, low, high = ratio_of_repeats(b, a)
        hits[1] += low <= np.exp(0.3) <= high
    assert (abs(hits / 600 - 0.95) < 0.03).all()


def test_nobody_on_the_front_is_beaten_at_less_cost():
    generator = np.random.default_rng(1)
    rows = pl.DataFrame({"value_cost": generator.random(40), "value": generator.random(40)})
    front = set(pareto_front(rows).rows())
    points = rows.rows()
    beaten = {p for p in points if any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
    assert front == set(points) - beaten


FLOATS, BITS = ({"family": "mean", "code": code} for code in ("float16", "binary"))


def test_an_encoder_has_a_point_for_all_that_some_entries_come_in():
    rows = [
        {"experiment": "x", "encoder": e, "metric": metric, "setting": json.dumps(setting)}
        | {"stratum": "all", "value": value, "ci_low": None, "ci_high": None}
        for e, setting, metric, value in [
            ("uni", FLOATS, "bytes", 10.0), ("uni", FLOATS, "f1", 0.5),
            ("uni", BITS, "bytes", 80.0), ("uni", BITS, "f1", 0.6),
            ("noise", FLOATS, "bytes", 5.0), ("noise", FLOATS, "f1", 0.1),
            ("noise", BITS, "f1", 0.2),
        ]
    ]  # fmt: skip
    measurements = measurement_table(rows)
    plot = PlotWords("pareto", x={"metric": "bytes"}, y=[{"metric": "f1"}], each=("family", "code"))
    styles = encoder_styles(["uni", "noise"], {})
    figure = pareto(measurements, "x", plot, styles, Words.read({"experiments": {}}))
    points = {t.name: sorted(zip(t.x, t.y, strict=True)) for t in figure.data if t.name}
    assert points == {"uni": [(10.0, 0.5), (80.0, 0.6)], "noise": [(5.0, 0.1)]}
    (front,) = [t for t in figure.data if t.mode == "lines"]
    assert list(front.x) == [5.0, 10.0, 80.0]
