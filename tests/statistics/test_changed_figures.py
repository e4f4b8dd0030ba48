"""Two tables of measurements, joined by figure."""

import polars as pl

from pathfm_kedro.statistics.changed_figures import ChangedFigures
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA


def table(*rows):
    whole = [
        dict.fromkeys(MEASUREMENT_SCHEMA)
        | {"experiment": "rotation", "encoder": "uni", "stratum": "all", "setting": "{}"}
        | row
        for row in rows
    ]
    return pl.DataFrame(whole, schema=MEASUREMENT_SCHEMA)


def test_figures_that_only_one_table_has_are_listed():
    old = table({"metric": "a", "value": 1.0}, {"metric": "b", "value": 1.0})
    new = table({"metric": "b", "value": 1.0}, {"metric": "c", "value": 1.0})
    changed = ChangedFigures.between(old, new)
    assert changed.before["metric"].to_list() == ["a"]
    assert changed.after["metric"].to_list() == ["c"]
    assert changed.both["metric"].to_list() == ["b"]


def test_a_verdict_that_appears_has_changed_and_none_twice_has_not():
    old = table({"metric": "a", "verdict": None}, {"metric": "b", "verdict": None})
    new = table({"metric": "a", "verdict": "fail"}, {"metric": "b", "verdict": None})
    assert ChangedFigures.between(old, new).verdicts["metric"].to_list() == ["a"]


def test_the_largest_difference_is_of_any_number_and_relative_above_one():
    old = table({"metric": "a", "value": 0.5, "ci_low": 0.1}, {"metric": "n", "value": 200.0})
    new = table({"metric": "a", "value": 0.5, "ci_low": 0.4}, {"metric": "n", "value": 220.0})
    changed = ChangedFigures.between(old, new)
    assert changed.differences["metric"].to_list() == ["a", "n"]
    assert changed.differences["difference"].round(6).to_list() == [0.3, 0.1]


def test_a_number_that_is_gone_is_no_difference_of_zero():
    changed = ChangedFigures.between(
        table({"metric": "a", "value": 0.5}), table({"metric": "a", "value": None})
    )
    assert changed.undefined["metric"].to_list() == ["a"]
    assert changed.largest_difference == 0.0


def test_tables_without_a_common_figure_differ_by_nothing():
    assert ChangedFigures.between(table({"metric": "a"}), table()).largest_difference == 0.0
