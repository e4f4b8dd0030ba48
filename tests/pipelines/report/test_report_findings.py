"""Findings: corrected for many checks, and vouched for by the controls."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.pipelines.report import controls as report_controls
from pathfm_kedro.pipelines.report import findings as report_findings
from pathfm_kedro.pipelines.report import verdicts as report_verdicts
from pathfm_kedro.pipelines.report.controls import CONTROL_SCHEMA
from pathfm_kedro.pipelines.report.findings import FINDING_SCHEMA
from pathfm_kedro.pipelines.report.verdicts import failures_asked_for
from pathfm_kedro.statistics.measurements import (
    MEASUREMENT_SCHEMA,
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from tests.pipelines.report.conftest import WORDS

PRIMARY = {"family": "median_min", "vote": "mv5"}
CONTROLS = ("phantom_truth", "noise", "stain_statistics", "tile_corner")
NO_CONTROLS: dict[str, Any] = {
    "encoders": {name: {"role": "control"} for name in CONTROLS},
    "is_phantom": False,
}


def check_controls(
    measurements: pl.DataFrame, provenance: dict[str, Any], parameters: dict[str, Any]
) -> pl.DataFrame:
    return report_controls.check_controls(measurements, provenance, parameters, WORDS)


def collect_findings(
    measurements: pl.DataFrame, provenance: dict[str, Any], parameters: dict[str, Any]
) -> pl.DataFrame:
    controls = check_controls(measurements, provenance, parameters)
    return report_findings.collect_findings(measurements, controls, provenance, parameters, WORDS)


def verdict_by_encoder(
    findings: pl.DataFrame, controls: pl.DataFrame, words: dict[str, Any] = WORDS
) -> pl.DataFrame:
    return report_verdicts.verdict_by_encoder(findings, controls, words)


def words_with_core(*core: tuple[str, str]) -> dict[str, Any]:
    """The project's words with these core checks and no core group."""
    words = copy.deepcopy(WORDS)
    words["report"]["groups"] = {}
    for x, experiment in words["experiments"].items():
        for metric, told in experiment.get("metrics", {}).items():
            told["core"] = (x, metric) in core
    return words


def check(encoder: str, value: float, low: float, high: float, metric: str = "m") -> dict[str, Any]:
    return measurement(
        experiment="other",
        encoder=encoder,
        metric=metric,
        estimate=Estimate(value, low, high, 50, 10),
        threshold=0.0,
        direction="above",
    )


def control(table: pl.DataFrame, name: str, experiment: str) -> dict[str, Any]:
    return table.filter(control=name, experiment=experiment).row(0, named=True)


def changed(
    measurements: pl.DataFrame, value: float, half: float, encoder: str, metric: str, **setting: Any
) -> pl.DataFrame:
    """The table with one figure of one encoder put elsewhere and judged again."""
    rows = measurements.to_dicts()
    for i, row in enumerate(rows):
        entry = json.loads(row["setting"])
        same = all(entry.get(key) == wanted for key, wanted in setting.items())
        if row["encoder"] == encoder and row["metric"] == metric and same:
            fresh = measurement(
                experiment=row["experiment"],
                encoder=encoder,
                metric=metric,
                estimate=Estimate(value, value - half, value + half, row["n"], row["n_patients"]),
                threshold=row["threshold"],
                direction=row["direction"],
            )
            keep = ("stratum", "setting", "null_low", "null_high")
            rows[i] = {**fresh, **{key: row[key] for key in keep}}
    return pl.DataFrame(rows, schema=MEASUREMENT_SCHEMA)


def brute_force_q(p_values: list[float]) -> list[float]:
    """Benjamini and Hochberg 1995, read off their definition: min over j ≥ i of m·p_(j)/j."""
    m = len(p_values)
    ranked = sorted(p_values)
    return [
        min(1.0, min(m * ranked[j] / (j + 1) for j in range(m) if ranked[j] >= p)) for p in p_values
    ]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(0.01, 0.5), st.floats(0.01, 0.5)),
        min_size=1,
        max_size=8,
    )
)
def test_q_values_follow_the_definition_and_never_make_a_verdict(
    drawn: list[tuple[float, float, float]],
) -> None:
    rows = [
        check(f"e{i}", value, value - below, value + above)
        for i, (value, below, above) in enumerate(drawn)
    ]
    findings = collect_findings(measurement_table(rows), NO_CONTROLS, {})
    np.testing.assert_allclose(findings["q_value"], brute_force_q(findings["p_value"].to_list()))
    for row in findings.iter_rows(named=True):
        excludes = row["ci_low"] > 0 or row["ci_high"] < 0
        assert row["p_value"] < 0.05 + 1e-6 if excludes else row["p_value"] > 0.05 - 1e-6
        if row["verdict"] in ("pass", "fail"):
            assert row["verdict"] == row["measured_verdict"]
            assert row["q_value"] < 0.05
        else:
            assert row["reason"]


def test_p_value_of_a_symmetric_interval_is_the_normal_one() -> None:
    rows = [check("e", 3.0, 3.0 - 1.959964, 3.0 + 1.959964)]
    findings = collect_findings(measurement_table(rows), NO_CONTROLS, {})
    # Two-sided tail beyond three standard deviations, from printed tables.
    assert findings["p_value"][0] == pytest.approx(0.0026998, rel=1e-4)


def test_one_barely_significant_check_among_many_is_inconclusive() -> None:
    rows = [check("a", 0.1, 0.001, 0.2)]
    rows += [check("a", 0.01, -0.1, 0.12, metric=f"m{i}") for i in range(9)]
    findings = collect_findings(measurement_table(rows), NO_CONTROLS, {})
    row = findings.filter(metric="m").row(0, named=True)
    assert (row["measured_verdict"], row["verdict"]) == ("pass", "inconclusive")
    assert "among 10 checks" in row["reason"]


def test_controls_do_not_enter_the_family_of_checks() -> None:
    alone = [check("a", 0.1, 0.001, 0.2)]
    crowd = [check("stain_statistics", 0.0, -0.1, 0.1, metric=f"m{i}") for i in range(20)]
    first = collect_findings(measurement_table(alone), NO_CONTROLS, {})
    second = collect_findings(measurement_table(alone + crowd), NO_CONTROLS, {})
    assert first["q_value"][0] == second.filter(encoder="a")["q_value"][0]
    assert second.filter(role="control")["q_value"].null_count() == 20


def test_findings_keep_the_schema_and_no_input_order(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    findings = collect_findings(measurements, provenance, {})
    shuffled = measurements.sample(fraction=1, shuffle=True, seed=5)
    assert collect_findings(shuffled, provenance, {}).equals(findings)
    assert dict(findings.schema) == FINDING_SCHEMA
    assert findings["threshold"].null_count() == 0


def test_every_control_of_a_sound_audit_behaves(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    table = check_controls(measurements, provenance, {})
    assert dict(table.schema) == CONTROL_SCHEMA
    assert table["behaves"].drop_nulls().all()
    assert not table["blocks"].any()
    findings = collect_findings(measurements, provenance, {})
    verdicts = verdict_by_encoder(findings, table)
    assert dict(verdicts.select("encoder", "verdict").rows()) == {
        "alpha": "inconclusive",
        "beta": "fail",
        "phantom_truth": "pass",
        "noise": "fail",
        "stain_statistics": "fail",
    }


@pytest.mark.parametrize(
    ("encoder", "metric", "setting", "value", "experiment"),
    [
        ("phantom_truth", "f1_range_over_organs", {}, 0.5, "retrieval"),
        ("noise", "ri", {"role": "cohort_k"}, 0.7, "robustness_index"),
        ("noise", "mknn", {"angle": 90, "view": "rotated"}, 0.9, "rotation"),
        ("stain_statistics", "ri_minus_null", {}, 0.4, "robustness_index"),
        ("phantom_truth", "mknn", {"angle": 90, "view": "rotated"}, 0.5, "rotation"),
        ("noise", "macro_f1", PRIMARY, 0.6, "retrieval"),
        ("noise", "macro_f1", PRIMARY, 0.01, "retrieval"),
    ],
)
def test_a_misbehaving_control_takes_back_its_experiments_verdicts_only(
    measurements: pl.DataFrame,
    provenance: dict[str, Any],
    encoder: str,
    metric: str,
    setting: dict[str, Any],
    value: float,
    experiment: str,
) -> None:
    broken = changed(measurements, value, 0.02, encoder, metric, **setting)
    row = control(check_controls(broken, provenance, {}), encoder, experiment)
    assert row["behaves"] is False
    before = collect_findings(measurements, provenance, {}).filter(role="encoder")
    after = collect_findings(broken, provenance, {}).filter(role="encoder")
    touched = after.filter(experiment=experiment)
    assert set(touched["verdict"]) == {"inconclusive"}
    assert touched["reason"].str.contains(encoder).all()
    keep = pl.col("experiment") != experiment
    assert after.filter(keep).equals(before.filter(keep))


def test_a_pass_of_retrieval_needs_a_control_at_chance(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    even = changed(measurements, 0.1, 0.05, "alpha", "f1_range_over_organs")
    elsewhere = changed(even, 0.6, 0.02, "noise", "macro_f1", family="mean")
    broken = changed(even, 0.6, 0.02, "noise", "macro_f1", **PRIMARY)
    verdicts = [
        collect_findings(table, provenance, {})
        .filter(experiment="retrieval", encoder="alpha")["verdict"]
        .item()
        for table in (even, elsewhere, broken)
    ]
    assert verdicts == ["pass", "pass", "inconclusive"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"value": None, "reason": "no organ holds two labels"}, "no organ holds two labels"),
        ({"value": 0.2, "null_low": 0.2, "null_high": 0.2}, "any encoder gives this"),
        ({"threshold": None}, "no figure of this experiment has a criterion"),
    ],
)
def test_where_retrieval_says_nothing_its_control_is_not_asked(
    measurements: pl.DataFrame,
    provenance: dict[str, Any],
    columns: dict[str, Any],
    words: str,
) -> None:
    mine = (pl.col("experiment") == "retrieval") & (
        (pl.col("metric") == "macro_f1") | pl.lit("threshold" in columns)
    )
    blank = measurements.with_columns(
        pl.when(mine).then(pl.lit(value)).otherwise(name).alias(name)
        for name, value in columns.items()
    )
    row = control(check_controls(blank, provenance, {}), "noise", "retrieval")
    assert row["behaves"] is None
    assert not row["blocks"]
    assert words in row["reason"]


def test_a_verdict_that_an_experiment_withheld_is_none_of_the_family() -> None:
    rows = [check("a", 0.1, 0.001, 0.2), *(check("a", 0.1, -0.1, 0.3, f"m{i}") for i in range(3))]
    withheld = check("a", 9.0, 8.9, 9.1, metric="withheld") | {
        "verdict": "inconclusive",
        "reason": "the figure says nothing here",
    }
    alone = collect_findings(measurement_table(rows), NO_CONTROLS, {})
    beside = collect_findings(measurement_table([*rows, withheld]), NO_CONTROLS, {})
    assert beside.filter(metric="withheld").select("p_value", "q_value").row(0) == (None, None)
    assert beside.filter(pl.col("metric") != "withheld").equals(alone)


@pytest.mark.parametrize(
    ("absent", "experiment"),
    [
        ("noise", "robustness_index"),
        ("noise", "retrieval"),
        ("stain_statistics", "robustness_index"),
        ("phantom_truth", "rotation"),
    ],
)
def test_an_absent_control_blocks_what_needs_it(
    measurements: pl.DataFrame,
    provenance: dict[str, Any],
    absent: str,
    experiment: str,
) -> None:
    fewer = measurements.filter(pl.col("encoder") != absent)
    row = control(check_controls(fewer, provenance, {}), absent, experiment)
    assert row["behaves"] is None
    assert row["blocks"]
    findings = collect_findings(fewer, provenance, {}).filter(role="encoder")
    assert set(findings.filter(experiment=experiment)["verdict"]) == {"inconclusive"}


def test_where_centers_share_their_stain_the_stain_control_does_not_apply(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    alike = changed(measurements, 0.35, 0.05, "stain_statistics", "knn_accuracy_center")
    row = control(check_controls(alike, provenance, {}), "stain_statistics", "robustness_index")
    assert row["behaves"] is None
    assert not row["blocks"]
    assert "do not differ in stain" in row["reason"]


def with_null(
    measurements: pl.DataFrame, metric: str, low: float | None, high: float | None
) -> pl.DataFrame:
    """The table with another null of one figure."""
    ends = pl.Series("ends", [low, high], dtype=pl.Float64)
    return measurements.with_columns(
        pl.when(pl.col("metric") == metric).then(pl.lit(end)).otherwise(name).alias(name)
        for name, end in zip(("null_low", "null_high"), ends, strict=True)
    )


def test_chance_of_the_votes_is_the_middle_of_their_own_nulls(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    table = check_controls(measurements, provenance, {})
    row = control(table, "stain_statistics", "robustness_index")
    # Label 0.35 with null 0.08 to 0.14, center 0.99 with null 0.22 to 0.32.
    label, center = (0.35 - 0.11) / (1 - 0.11), (0.99 - 0.27) / (1 - 0.27)
    assert f"center {center:.2f} [" in row["observed"]
    assert f"label {label:.2f} [" in row["observed"]


@pytest.mark.parametrize("ends", [(None, None), (0.1, None), (1.0, 1.0)])
@pytest.mark.parametrize("metric", ["knn_accuracy_label", "knn_accuracy_center"])
def test_without_a_null_of_the_vote_the_stain_control_shows_nothing(
    measurements: pl.DataFrame,
    provenance: dict[str, Any],
    metric: str,
    ends: tuple[float | None, float | None],
) -> None:
    bare = with_null(measurements, metric, *ends)
    row = control(check_controls(bare, provenance, {}), "stain_statistics", "robustness_index")
    assert (row["behaves"], row["blocks"]) == (None, True)
    assert row["reason"] == "no null of the vote was measured"


def test_colour_that_neither_passes_nor_fails_takes_back_passes_alone(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    undecided = changed(measurements, -0.2, 0.21, "stain_statistics", "ri_minus_null")
    table = check_controls(undecided, provenance, {})
    row = control(table, "stain_statistics", "robustness_index")
    assert (row["behaves"], row["blocks"], row["blocks_pass"]) == (None, False, True)
    before = collect_findings(measurements, provenance, {}).filter(role="encoder")
    after = collect_findings(undecided, provenance, {}).filter(role="encoder")
    index = pl.col("metric") == "ri_minus_null"
    assert after.filter(~index).equals(before.filter(~index))
    told = [dict(t.filter(index).select("encoder", "verdict").rows()) for t in (before, after)]
    assert told[0] == {"alpha": "pass", "beta": "fail"}
    assert told[1] == {"alpha": "inconclusive", "beta": "fail"}
    sentence = verdict_by_encoder(after, table).filter(encoder="alpha")["sentence"][0]
    assert "nothing shows that this check can fail here" in sentence


@given(value=st.floats(0.0, 1.0), low=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=30)
def test_a_wide_interval_does_not_excuse_neighbours_kept(value: float, low: float) -> None:
    row = measurement(
        experiment="rotation",
        encoder="noise",
        metric="mknn",
        setting={"angle": 90, "k": 10, "view": "rotated"},
        estimate=Estimate(value, min(low, value), 1.0, 50, 10),
        threshold=0.8,
        direction="above",
    )
    table = check_controls(measurement_table([row]), NO_CONTROLS, {"chance_margin": 0.2})
    assert control(table, "noise", "rotation")["behaves"] is (value <= 0.2)


def test_the_truth_is_only_asked_on_the_phantom(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    real = {**provenance, "is_phantom": False}
    assert "phantom_truth" not in set(check_controls(measurements, real, {})["control"])


@pytest.mark.parametrize(
    ("target", "direction", "words"),
    [("label", "above", "label read too poorly"), ("center", "below", "center read too well")],
)
def test_a_probe_that_fails_says_which_way(target: str, direction: str, words: str) -> None:
    far = 0.2 if direction == "above" else 0.9
    row = measurement(
        experiment="linear_probe",
        encoder="a",
        metric="balanced_accuracy",
        setting={"target": target},
        estimate=Estimate(far, far - 0.05, far + 0.05, 50, 10),
        threshold=0.5,
        direction="above" if direction == "above" else "below",
    )
    table = measurement_table([row])
    verdicts = verdict_by_encoder(
        collect_findings(table, NO_CONTROLS, {}), pl.DataFrame(schema=CONTROL_SCHEMA)
    )
    # The probe's control is absent, so the finding would be open: judge the interval alone.
    alone = collect_findings(table, NO_CONTROLS, {}).with_columns(verdict="measured_verdict")
    judged = verdict_by_encoder(alone, pl.DataFrame(schema=CONTROL_SCHEMA))
    assert verdicts["verdict"].to_list() == ["inconclusive"]
    assert words in judged["sentence"][0]


def test_undefined_signatures_stay_listed_and_are_not_judged() -> None:
    rows = not_applicable(
        experiment="other",
        encoder="a",
        metrics=["m"],
        reason="one center; add slides of a second one",
        threshold=0.0,
        direction="above",
    )
    findings = collect_findings(measurement_table(rows), NO_CONTROLS, {})
    assert findings["verdict"].to_list() == ["not_applicable"]
    assert findings["reason"].to_list() == ["one center; add slides of a second one"]
    verdicts = verdict_by_encoder(findings, check_controls(measurement_table(rows), {}, {}))
    assert verdicts["verdict"].to_list() == ["not_applicable"]
    assert "None of the checks" in verdicts["sentence"][0]


def unjudged(encoder: str, metric: str, experiment: str = "other") -> list[dict[str, Any]]:
    return not_applicable(
        experiment=experiment,
        encoder=encoder,
        metrics=[metric],
        reason="one center; add slides of a second one",
        threshold=0.0,
        direction="above",
    )


def judged_alone(rows: list[dict[str, Any]], *core: tuple[str, str]) -> dict[str, dict[str, Any]]:
    findings = collect_findings(measurement_table(rows), NO_CONTROLS, {})
    words = words_with_core(*core)
    verdicts = verdict_by_encoder(findings, pl.DataFrame(schema=CONTROL_SCHEMA), words)
    return {row["encoder"]: row for row in verdicts.iter_rows(named=True)}


def test_passing_what_is_left_is_no_pass() -> None:
    rows = [check("a", 1.0, 0.9, 1.1), check("b", 1.0, 0.9, 1.1)]
    core = check("b", 1.0, 0.9, 1.1, "mknn") | {"experiment": "rotation"}
    table = measurement_table([*rows, *unjudged("a", "mknn", "rotation"), core])
    # Without controls, whose absence would leave the core check open for both.
    findings = collect_findings(table, NO_CONTROLS, {}).with_columns(verdict="measured_verdict")
    words = words_with_core(("rotation", "mknn"))
    judged = verdict_by_encoder(findings, pl.DataFrame(schema=CONTROL_SCHEMA), words)
    verdicts = {row["encoder"]: row for row in judged.iter_rows(named=True)}
    assert verdicts["a"]["verdict"] == "inconclusive"
    assert verdicts["a"]["sentence"].startswith("Passes 1 of 2 checks; 1 could not be judged: ")
    assert verdicts["b"]["verdict"] == "pass"


def test_a_core_check_that_is_switched_off_is_no_pass() -> None:
    """No row of the check at all, as where its criterion was taken out."""
    verdict = judged_alone([check("a", 1.0, 0.9, 1.1)], ("robustness_index", "ri_minus_null"))["a"]
    assert verdict["verdict"] == "inconclusive"
    assert verdict["sentence"].endswith("No pass without a verdict on robustness index.")


def test_a_pass_needs_every_core_group() -> None:
    rows = [check("a", 1.0, 0.9, 1.1, "ri_minus_null") | {"experiment": "robustness_index"}]
    rows += [check("a", 1.0, 0.9, 1.1, "mknn") | {"experiment": "rotation"}]
    retrieval = check("a", 1.0, 0.9, 1.1, "macro_f1") | {"experiment": "retrieval"}
    verdicts = []
    for table in (rows, [*rows, retrieval]):
        findings = collect_findings(measurement_table(table), NO_CONTROLS, {})
        findings = findings.with_columns(verdict="measured_verdict")
        judged = verdict_by_encoder(findings, pl.DataFrame(schema=CONTROL_SCHEMA))
        verdicts.append(judged.row(0, named=True))
    assert [row["verdict"] for row in verdicts] == ["inconclusive", "pass"]
    assert "No pass without a verdict on finds its diagnosis." in verdicts[0]["sentence"]


def test_a_variant_inherits_what_cannot_be_measured_on_it() -> None:
    failed = check("uni", -1.0, -1.1, -0.9, "noise")
    cards = {
        "uni": {"role": "encoder", "model": "timm:x"},
        "uni_centred": {"role": "encoder", "model": "harmonised:uni"},
    }
    table = measurement_table([failed, *unjudged("uni_centred", "noise")])
    findings = collect_findings(table, {"encoders": cards, "is_phantom": False}, {})
    row = findings.filter(encoder="uni_centred").row(0, named=True)
    assert row["verdict"] == "fail"
    assert row["reason"].startswith("as for uni, whose vectors it takes")


def probe_row(encoder: str, value: float) -> dict[str, Any]:
    return measurement(
        experiment="linear_probe",
        encoder=encoder,
        metric="balanced_accuracy",
        setting={"target": "label"},
        estimate=Estimate(value, value - 0.05, value + 0.05, 90, 30),
        null=Null(0.5, 0.5),
    )


@pytest.mark.parametrize(
    ("accuracies", "verdict"), [((0.52, 0.51), "inconclusive"), ((0.52, 0.9), "fail")]
)
def test_where_nobody_reads_the_label_its_checks_favour_nobody(
    accuracies: tuple[float, float], verdict: str
) -> None:
    index = check("a", -1.0, -1.1, -0.9, "clustering_score_minus_null")
    rows = [index | {"experiment": "clustering_score"}]
    rows += [probe_row(name, value) for name, value in zip("ab", accuracies, strict=True)]
    cards = {name: {"role": "encoder"} for name in "ab"}
    told = {"encoders": cards, "is_phantom": False}
    row = collect_findings(measurement_table(rows), told, {}).row(0, named=True)
    assert row["verdict"] == verdict
    assert ("cannot be read" in (row["reason"] or "")) is (verdict == "inconclusive")


def test_the_detectable_effect_is_that_after_correction() -> None:
    """Power at the effect that is told, among nine null checks, is 80% and not 45%."""
    generator = np.random.default_rng(0)
    error, m = 0.1, 10
    rows = [check("a", 0.05, 0.05 - 1.96 * error, 0.05 + 1.96 * error, f"m{i}") for i in range(m)]
    findings = collect_findings(measurement_table(rows), NO_CONTROLS, {})
    told = float(findings["reason"][0].split("difference of ")[1].split()[0])
    found = 0
    for _ in range(300):
        values = generator.normal([told, *[0.0] * (m - 1)], error)
        table = measurement_table(
            check("a", v, v - 1.96 * error, v + 1.96 * error, f"m{i}") for i, v in enumerate(values)
        )
        row = collect_findings(table, NO_CONTROLS, {}).filter(metric="m0").row(0, named=True)
        found += row["verdict"] == "pass"
    assert found / 300 > 0.75


def test_what_does_not_exist_in_a_cohort_takes_nothing_back() -> None:
    """One organ has no spread over organs, and that is no doubt about the encoder."""
    rows = [check("a", 1.0, 0.9, 1.1), *unjudged("a", "f1_range_over_organs")]
    assert judged_alone(rows)["a"]["verdict"] == "pass"


def test_an_experiment_without_the_encoder_is_no_pass() -> None:
    elsewhere = [check("b", 1.0, 0.9, 1.1, metric=f"m{i}") for i in range(2)]
    elsewhere = [{**row, "experiment": "colour_swap"} for row in elsewhere]
    verdicts = judged_alone([check("a", 1.0, 0.9, 1.1), check("b", 1.0, 0.9, 1.1), *elsewhere])
    assert verdicts["a"]["verdict"] == "inconclusive"
    assert verdicts["a"]["sentence"] == (
        "Passes 1 of 3 checks; 2 could not be judged: colour swap (not measured)."
    )
    assert verdicts["b"]["verdict"] == "pass"


def test_a_fail_stays_a_fail_beside_what_could_not_be_judged() -> None:
    verdicts = judged_alone([check("a", -1.0, -1.1, -0.9), *unjudged("a", "second")])
    assert verdicts["a"]["verdict"] == "fail"
    assert "1 could not be judged: " in verdicts["a"]["sentence"]


def test_nothing_measured_gives_empty_tables() -> None:
    empty = pl.DataFrame(schema=MEASUREMENT_SCHEMA)
    findings = collect_findings(empty, NO_CONTROLS, {})
    controls = check_controls(empty, NO_CONTROLS, {})
    assert verdict_by_encoder(findings, controls).height == 0


def test_the_sentence_counts_and_names(
    measurements: pl.DataFrame, provenance: dict[str, Any]
) -> None:
    findings = collect_findings(measurements, provenance, {})
    verdicts = verdict_by_encoder(findings, check_controls(measurements, provenance, {}))
    sentence = verdicts.filter(encoder="beta")["sentence"][0]
    assert sentence == (
        "Fails 2 of 4 checks: follows the center more than an encoder that knows nothing would "
        "(−0.17, must be above 0); keeps too few of a tile's neighbours when it is rotated by 90° "
        "(0.62, must be above 0.8). Undecided in 1 of 4: spread of F1 over organs (0.28 [0.15, "
        "0.41], must be below 0.3). Passes: variance over the angles (can hardly fail)."
    )
    counts = verdicts.select(pl.col("^n_.*$"))
    assert counts.sum_horizontal().sum() == findings.height


def stain_check(encoder: str, value: float) -> dict[str, Any]:
    return measurement(
        experiment="appearance",
        encoder=encoder,
        metric="stain_kept_neighbours",
        estimate=Estimate(value, value - 0.02, value + 0.02, 72, 24),
        threshold=0.5,
        direction="above",
    )


@pytest.mark.parametrize(
    ("of_control", "of_encoder", "behaves", "verdict"),
    [
        (0.1, 0.9, True, "pass"),
        (0.1, 0.2, True, "fail"),
        # Nothing shows that the check can fail: a pass is taken back, a fail is its own proof.
        (0.9, 0.9, None, "inconclusive"),
        (0.5, 0.9, None, "inconclusive"),
        (0.9, 0.2, None, "fail"),
    ],
)
def test_a_check_that_its_control_does_not_fail_lets_nobody_pass(
    of_control: float, of_encoder: float, behaves: bool | None, verdict: str
) -> None:
    rows = [stain_check("stain_statistics", of_control), stain_check("uni", of_encoder)]
    measured = measurement_table(rows)
    assert (
        control(check_controls(measured, NO_CONTROLS, {}), "stain_statistics", "appearance")[
            "behaves"
        ]
        is behaves
    )
    findings = collect_findings(measured, NO_CONTROLS, {}).filter(encoder="uni")
    assert findings["verdict"].to_list() == [verdict]


def test_a_cohort_without_the_control_is_not_asked() -> None:
    measured = measurement_table([stain_check("uni", 0.9)])
    assert check_controls(measured, NO_CONTROLS, {}).is_empty()
    assert collect_findings(measured, NO_CONTROLS, {})["verdict"].to_list() == ["pass"]


def test_a_control_without_a_figure_vouches_for_nobody() -> None:
    from pathfm_kedro.statistics.measurements import not_applicable

    nothing = not_applicable(
        experiment="appearance",
        encoder="stain_statistics",
        metrics=["stain_kept_neighbours"],
        reason="too few tiles",
        threshold=0.5,
        direction="above",
    )
    measured = measurement_table([*nothing, stain_check("uni", 0.9)])
    findings = collect_findings(measured, NO_CONTROLS, {}).filter(encoder="uni")
    assert findings["verdict"].to_list() == ["inconclusive"]


@pytest.mark.parametrize(
    ("fail_on", "found"),
    [
        (["any"], ["uni fails rotation.mknn"]),
        (["rotation"], ["uni fails rotation.mknn"]),
        (["rotation.mknn"], ["uni fails rotation.mknn"]),
        (["robustness_index"], []),
        ([], []),
    ],
)
def test_a_run_ends_badly_with_the_failures_that_were_asked_for(fail_on, found) -> None:
    findings = pl.DataFrame(
        [
            ("uni", "rotation", "mknn", "fail"),
            ("uni", "rotation", "mknn", "fail"),
            ("uni", "robustness_index", "ri", "pass"),
            ("noise", "robustness_index", "ri", "fail"),
        ],
        schema=["encoder", "experiment", "metric", "verdict"],
        orient="row",
    )
    verdicts = pl.DataFrame({"encoder": ["uni", "noise"], "role": ["encoder", "control"]})
    assert failures_asked_for(findings, verdicts, fail_on) == found
    with pytest.raises(ValueError, match=r"fail_on names rotatoin, .* judged are any, rob"):
        failures_asked_for(findings, verdicts, ["rotatoin"])
