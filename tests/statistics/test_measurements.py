"""What a verdict rests on, and in which order its reasons count."""

from pathfm_kedro.statistics.measurements import Estimate, judge


def test_too_few_patients_come_before_any_caveat():
    few = Estimate(0.9, 0.85, 0.95, 100, 3)
    verdict, reason = judge(few, 0.5, "above", caveat="neither search finds the label")
    assert verdict == "undecidable"
    assert reason.startswith("rests on 3 patients")


def test_a_caveat_of_enough_patients_leaves_a_figure_open():
    assert judge(Estimate(0.9, 0.85, 0.95, 100, 20), 0.5, "above", caveat="why") == (
        "inconclusive",
        "why",
    )
