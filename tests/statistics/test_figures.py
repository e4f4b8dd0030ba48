"""Figures become rows: computed once, judged by the criterion that asks for them, never dropped."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from pathfm_kedro.statistics.figures import (
    Criterion,
    Figure,
    Undefined,
    Value,
    measure,
    undefined,
)
from pathfm_kedro.statistics.measurements import MEASUREMENT_SCHEMA, Estimate, Null

CLEAR = Estimate(0.9, 0.85, 0.95, 64, 12)
RULE = Criterion("kept", 0.8, "above", {"angle": 90})


def figure(value=CLEAR, **changes) -> Figure:
    return Figure("kept", lambda: value, **({"setting": {"angle": 90}} | changes))


def row(*figures, criteria=(RULE,), **named) -> dict:
    (found,) = measure(figures, "rotation", "uni", criteria, **named).to_dicts()
    return found


def test_a_figure_becomes_a_row_of_the_schema():
    table = measure([figure(Value(CLEAR, Null(0.1, 0.2)))], "rotation", "uni", [RULE], "arm")
    assert dict(table.schema) == MEASUREMENT_SCHEMA
    found = table.row(0, named=True)
    assert (found["experiment"], found["encoder"], found["subject"]) == ("rotation", "uni", "arm")
    assert (found["value"], found["ci_low"], found["ci_high"]) == (0.9, 0.85, 0.95)
    assert (found["null_low"], found["null_high"]) == (0.1, 0.2)
    assert (found["n"], found["n_patients"]) == (64, 12)
    assert json.loads(found["setting"]) == {"angle": 90}
    assert (found["threshold"], found["direction"], found["verdict"]) == (0.8, "above", "pass")


def test_rows_stand_in_the_order_in_which_figures_are_given():
    angles = [270, 90, 180]
    table = measure([figure(setting={"angle": a}) for a in angles], "rotation", "uni")
    assert [json.loads(text)["angle"] for text in table["setting"]] == angles


def test_figures_do_not_depend_on_how_many_threads_sum_them():
    def threads() -> Estimate:
        blas = [each for each in threadpool_info() if each["user_api"] == "blas"]
        return Estimate(max(each["num_threads"] for each in blas), None, None, 64, 8)

    with threadpool_limits(4):
        assert measure([Figure("threads", threads)], "rotation", "uni")["value"].to_list() == [1]


def test_an_undefined_figure_keeps_its_row_and_says_why():
    reason = "the pool holds 1 patient: add patients"
    found = row(Figure("kept", undefined(reason), {"angle": 90}, n=7, n_patients=1))
    assert found["value"] is None
    assert (found["verdict"], found["reason"]) == ("not_applicable", reason)
    assert (found["n"], found["n_patients"]) == (7, 1)
    assert found["threshold"] == 0.8


def test_an_estimator_may_say_itself_how_much_there_was():
    def compute():
        raise Undefined("too few", n=3, n_patients=2)

    found = row(Figure("kept", compute, {"angle": 90}, n=70, n_patients=10))
    assert (found["n"], found["n_patients"]) == (3, 2)


def test_a_fault_of_the_code_is_no_reason():
    def compute():
        raise ValueError("shapes do not match")

    with pytest.raises(ValueError, match="shapes do not match"):
        measure([Figure("kept", compute)], "rotation", "uni")


@pytest.mark.parametrize("criteria", [(), (RULE,)])
def test_what_is_not_a_number_is_not_applicable_and_not_described(criteria):
    nan = float("nan")
    found = row(figure(Estimate(nan, nan, nan, 9, 9)), criteria=criteria)
    assert (found["value"], found["ci_low"], found["verdict"]) == (None, None, "not_applicable")
    assert found["reason"] == "the cohort does not support this figure"


def test_a_caveat_keeps_the_value_and_withholds_the_verdict():
    found = row(figure(Value(CLEAR, caveat="the attack is too weak")))
    assert (found["value"], found["verdict"]) == (0.9, "inconclusive")
    assert found["caveat"] == found["reason"] == "the attack is too weak"


@pytest.mark.parametrize(
    ("estimate", "null", "verdict", "told"),
    [
        (CLEAR, Null(0.1, 0.1), "pass", ""),
        (Estimate(0.2, 0.1, 0.3, 64, 12), Null(0.1, 0.1), "fail", ""),
        (Estimate(0.8, 0.7, 0.9, 64, 12), Null(0.1, 0.1), "inconclusive", "contains the threshold"),
        (Estimate(0.9, 0.85, 0.95, 64, 7), Null(0.1, 0.1), "undecidable", "rests on 7 patients"),
        (CLEAR, Null(0.81, 0.9), "undecidable", "chance alone is 0.81"),
    ],
)
def test_each_verdict_has_its_reason(estimate, null, verdict, told):
    found = row(figure(Value(estimate, null)))
    assert found["verdict"] == verdict
    assert told in found["reason"]
    assert bool(told) == bool(found["reason"])


def test_chance_above_a_threshold_from_below_decides_all_the_same():
    rule = Criterion("kept", 0.8, "below", {"angle": 90})
    low = Value(Estimate(0.2, 0.1, 0.3, 64, 12), Null(0.9, 0.9))
    assert row(figure(low), criteria=[rule])["verdict"] == "pass"


def test_a_figure_that_labels_do_not_explain_gets_no_verdict():
    above_chance = Value(CLEAR, Null(0.5, 0.5), label_null=Null(0.7, 0.93))
    found = row(figure(above_chance))
    assert found["verdict"] == "inconclusive"
    assert "permuted within centers the same vectors give 0.70 to 0.93" in found["caveat"]
    assert row(figure(Value(CLEAR, label_null=Null(0.1, 0.3))))["verdict"] == "pass"


def test_without_a_criterion_a_figure_is_described():
    found = row(figure(), criteria=())
    assert (found["verdict"], found["threshold"]) == ("not_applicable", None)
    assert "no threshold is set" in found["reason"]


def test_a_remark_stands_beside_the_reason():
    assert row(figure(Value(CLEAR, remark="of 3 cells")))["reason"] == "of 3 cells"
    assert row(figure(Value(CLEAR, remark="of 3 cells")), criteria=())["reason"] == "of 3 cells"
    unclear = Value(Estimate(0.8, 0.7, 0.9, 64, 12), remark="of 3 cells")
    assert row(figure(unclear))["reason"].endswith("; of 3 cells")


def test_a_criterion_judges_every_figure_that_has_its_setting_and_no_other():
    figures = [
        figure(setting={"angle": angle, "k": k}, stratum=stratum)
        for angle in (90, 180)
        for k in (5, 10)
        for stratum in ("all", "label=x")
    ]
    table = measure(figures, "rotation", "uni", [RULE])
    judged = table.filter(table["threshold"].is_not_null())
    assert judged["setting"].to_list() == ['{"angle": 90, "k": 5}', '{"angle": 90, "k": 10}']
    assert set(judged["stratum"]) == {"all"}
    of_label = Criterion("kept", 0.8, "above", stratum="label=x")
    judged = measure(figures, "rotation", "uni", [of_label]).drop_nulls("threshold")
    assert set(judged["stratum"]) == {"label=x"}
    assert judged.height == 4


@pytest.mark.parametrize(
    ("criterion", "told"),
    [
        (Criterion("kepd", 0.8, "above"), r"no figure kepd .* did you mean kept\? It gives kept"),
        (
            Criterion("kept", 0.8, "above", {"angle": 45}),
            r'rotation.criteria: no figure kept at {"angle": 45} .* measured at {"angle": 90}',
        ),
        (Criterion("kept", 0.8, "above", stratum="label=x"), r"\(stratum label=x\) is measured"),
    ],
)
def test_a_criterion_that_asks_for_nothing_is_refused_with_what_there_is(criterion, told):
    with pytest.raises(ValueError, match=told):
        measure([figure()], "rotation", "uni", [criterion])


def test_two_criteria_for_one_figure_are_refused():
    with pytest.raises(ValueError, match=r'two judge kept at {"angle": 90}'):
        measure([figure()], "rotation", "uni", [RULE, Criterion("kept", 0.5, "above")])


def test_a_figure_measured_twice_is_refused():
    with pytest.raises(ValueError, match="measured twice"):
        measure([figure(), figure()], "rotation", "uni")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"metric": "kept"}, "must read"),
        ({"metric": "kept", "above": None}, "must read"),
        ({"above": 0.8}, "must read"),
        ({"metric": "kept", "above": 0.8, "below": 0.9}, "must read"),
        ({"metric": "kept", "abvoe": 0.8}, "abvoe is not known"),
    ],
)
def test_a_criterion_that_cannot_be_read_is_refused(entry, told):
    with pytest.raises(ValueError, match=told):
        Criterion.parse(entry)


@given(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(-1, 1))
def test_above_and_below_are_mirror_images(value, low, high, threshold):
    """Negating figure and threshold and turning the direction round keeps the verdict."""
    up = Estimate(value, value - low, value + high, 64, 12)
    down = Estimate(-value, -value - high, -value + low, 64, 12)
    verdicts = {
        row(figure(estimate), criteria=[Criterion("kept", at, direction)])["verdict"]
        for estimate, at, direction in ((up, threshold, "above"), (down, -threshold, "below"))
    }
    assert len(verdicts) == 1
