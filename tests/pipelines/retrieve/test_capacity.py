"""Figures of the capacity of single vectors."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from pathfm_kedro.pipelines.retrieve.capacity import (
    CAPACITY_SCHEMA,
    PRECISIONS,
    Capacity,
    capacity_figures,
    capacity_statistics,
)
from pathfm_kedro.statistics.figures import measure

SMALL = Capacity(dimensions=(3,), starts=1, max_steps=500, encoder_dimensions=(64,), largest_n=64)
SLIDES = pl.DataFrame(
    {
        "status": ["usable"] * 6 + ["unusable"],
        "label": ["a", "a", "b", "b", "c", "c", "d"],
        "patient_id": [f"p{i}" for i in range(7)],
    }
)


def measured(statistics: pl.DataFrame, p: Capacity = SMALL, slides: pl.DataFrame = SLIDES):
    figures = capacity_figures(statistics, slides, 3, p)
    return measure(figures, "capacity", "free_vectors", (), "arm")


def values(rows: pl.DataFrame, metric: str, setting: str) -> list[float | None]:
    asked = pl.col("metric") == metric, pl.col("setting").str.contains(setting, literal=True)
    return rows.filter(*asked)["value"].to_list()


def table(**by_dimension: list[int]) -> pl.DataFrame:
    rows = [
        (int(name[1:]), seed, n, 0.0, 0.1, 0.2)
        for name, found in by_dimension.items()
        for seed, n in enumerate(found)
    ]
    return pl.DataFrame(rows, schema=CAPACITY_SCHEMA, orient="row")


def test_one_run_has_no_range_and_says_that_it_is_capped():
    rows = measured(capacity_statistics(SMALL))
    row = rows.row(
        by_predicate=(pl.col("metric") == "critical_n") & ~pl.col("setting").str.contains("fit"),
        named=True,
    )
    assert row["value"] >= 4
    assert row["ci_low"] is None
    assert "1 seed" in row["reason"]
    assert "at most 500 steps" in row["reason"]


def test_a_cubic_is_found_again_and_marked_far_beyond():
    p = Capacity(
        dimensions=(4, 5, 6, 7, 8),
        starts=3,
        max_steps=100_000,
        encoder_dimensions=(10, 1000),
        largest_n=64,
    )
    cubic = {f"d{d}": [d**3 + shift for shift in (0, 1, 2)] for d in p.dimensions}
    rows = measured(table(**cubic), p)
    fitted = rows.filter(pl.col("metric") == "critical_n", pl.col("setting").str.contains("fit"))
    assert fitted["value"].to_list() == pytest.approx([1001, 1_000_000_001], rel=1e-6)
    assert "a guess" not in fitted["reason"][0]
    assert "125 times beyond: a guess" in fitted["reason"][1]
    own = rows.filter(pl.col("metric") == "critical_n").row(0, named=True)
    assert (own["ci_low"], own["value"], own["ci_high"]) == (64, 65, 66)


def test_too_few_dimensions_give_no_cubic():
    rows = measured(table(d3=[5]))
    fitted = rows.filter(pl.col("metric") == "critical_n", pl.col("setting").str.contains("fit"))
    assert fitted["value"].to_list() == [None]
    assert "five dimensions" in fitted["reason"][0]


def test_labels_of_a_cohort_need_three_dimensions_at_most():
    rows = measured(table(d3=[5]))
    labels = rows.filter(pl.col("setting").str.contains("same_label"))
    lower, upper = labels["value"].to_list()
    assert 1 <= lower <= upper == 3
    assert labels["n"].to_list() == [6, 6]


def test_one_label_is_no_relevance():
    rows = measured(table(d3=[5]), slides=SLIDES.filter(pl.col("label") == "a"))
    labels = rows.filter(pl.col("setting").str.contains("same_label"))
    assert labels["value"].to_list() == [None, None]
    assert "fewer than two labels" in labels["reason"][0]


def test_margins_stand_in_every_precision_between_construction_and_ceiling():
    rows = measured(table(d4=[9, 9, 9]), replace(SMALL, dimensions=(4,)))
    margins = [values(rows, "margin", f'"precision": "{x}"')[0] for x in PRECISIONS]
    assert margins == [0, 0.1, 0.2]
    # A margin of 0 in float16 is a tie, which finds no document surely.
    assert values(rows, "solved_share", '"float16"') == [0]
    assert values(rows, "solved_share", '"float32"') == [1]
    curve, ceiling = values(rows, "margin", "moment_curve"), values(rows, "margin_ceiling", "4")
    assert 0 < curve[0] < 0.1 < ceiling[0]


def test_pairs_of_tissues_have_bounds_where_there_are_three_with_four_patients():
    many = pl.DataFrame(
        {
            "status": ["usable"] * 20,
            "label": [f"l{i % 5}" for i in range(20)],
            "patient_id": [f"p{i}" for i in range(20)],
        }
    )
    rows = measured(table(d3=[5]), slides=many)
    assert values(rows, "sign_rank_upper", '"tissue_pairs"') == [3]
    # Six of indicators and a threshold are fewer than seven of the moment curve.
    assert values(rows, "sign_rank_upper", '"tissue_pairs_of_more"') == [6]
    few = measured(table(d3=[5])).filter(pl.col("setting").str.contains("tissue_pairs"))
    assert few["value"].to_list() == [None] * 4
    assert "fewer than three labels have 4 patients" in few["reason"][0]
