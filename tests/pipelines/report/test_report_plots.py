"""Figures: the same encoder looks the same everywhere, and labels cannot carry markup."""

from __future__ import annotations

from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.pipelines.report.figure_parts import COLOURS, encoder_styles, short_names
from pathfm_kedro.pipelines.report.plot_kinds import curve_table
from pathfm_kedro.pipelines.report.plots import (
    experiment_plots,
    plot_design,
    plot_experiment,
    plot_findings,
    plotted_curves,
    styles_of,
)
from pathfm_kedro.pipelines.report.words import Words
from pathfm_kedro.statistics.measurements import (
    MEASUREMENT_SCHEMA,
    Estimate,
    measurement,
    measurement_table,
)
from tests.pipelines.report.conftest import WORDS, judged

READ = Words.read(WORDS)


def plotted(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> dict[str, Any]:
    """Every figure of the report; those of an experiment numbered."""
    findings = judged(measurements, provenance)[0]
    styles = styles_of(measurements, provenance)
    found = {
        f"{x}:{i}": figure
        for x in READ.order(measurements["experiment"].to_list())
        for i, (_, figure) in enumerate(experiment_plots(measurements, x, styles, READ))
    }
    found["findings"] = plot_findings(findings, provenance, WORDS)
    return found | {"design": plot_design(design)}


def test_every_experiment_has_a_figure(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    told = {name.split(":")[0] for name in plotted(measurements, provenance, design)}
    assert set(measurements["experiment"]) <= told
    assert {"findings", "design"} <= told


def test_figures_do_not_depend_on_row_order(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    first = plotted(measurements, provenance, design)
    shuffled = measurements.sample(fraction=1, shuffle=True, seed=1)
    second = plotted(shuffled, provenance, design.reverse())
    assert {k: v.to_json() for k, v in first.items()} == {k: v.to_json() for k, v in second.items()}


def test_named_traces_of_an_encoder_share_its_colour(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    styles = encoder_styles(measurements["encoder"].unique().to_list(), provenance)
    for figure in plotted(measurements, provenance, design).values():
        for trace in figure.data:
            if trace.name in styles:
                is_line = getattr(trace, "mode", None) == "lines+markers"
                colour = trace.line.color if is_line else trace.marker.color
                assert colour == styles[trace.name].colour


def test_styles_tell_encoders_apart_and_controls_from_encoders() -> None:
    known = ["noise", "stain_statistics"]
    names = [f"e{i}" for i in range(7)] + known
    styles = encoder_styles(names, {"encoders": {name: {"role": "control"} for name in known}})
    assert len({(s.colour, s.symbol, s.dash) for s in styles.values()}) == len(names)
    controls = [style for style in styles.values() if style.is_control]
    assert len(controls) == 2
    assert all(style.dash != "solid" and style.colour not in COLOURS for style in controls)


def test_many_encoders_still_differ_by_colour_and_symbol_together() -> None:
    styles = encoder_styles([f"e{i:02d}" for i in range(30)], {})
    assert len({(s.colour, s.symbol) for s in styles.values()}) == 30


def test_curves_hold_every_point_once(measurements: pl.DataFrame) -> None:
    encoders = measurements["encoder"].n_unique()
    assert curve_table(measurements, "robustness_index", READ).height == 8 * encoders
    assert curve_table(measurements, "rotation", READ).height == 23 * encoders
    curves = plotted_curves(measurements, WORDS)
    assert set(curves) == {"robustness_index", "rotation"}
    assert {tuple(table.columns) for table in curves.values()} == {
        ("encoder", "x", "value", "ci_low", "ci_high", "null_low", "null_high")
    }


def test_the_threshold_of_rotation_is_a_mark_at_90_degrees(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    figure = plotted(measurements, provenance, design)["rotation:0"]
    marks = [trace for trace in figure.data if "threshold" in (trace.name or "")]
    assert len(marks) == 1
    assert set(marks[0].y) == {0.8}
    assert [angle for angle in range(0, 361, 15) if marks[0].x[0] <= angle <= marks[0].x[1]] == [90]
    assert not figure.layout.shapes
    assert sum(trace.name == "rotated and rotated back" for trace in figure.data) == 1


def test_the_null_of_retrieval_spans_each_group_at_the_largest(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    figure = plotted(measurements, provenance, design)["retrieval:0"]
    lines = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(lines) == 1
    ends = [x for x in lines[0].x if x is not None]
    assert len(ends) == 2 * 3
    assert all(right - left > 0.5 for left, right in zip(ends[::2], ends[1::2], strict=True))
    assert {y for y in lines[0].y if y is not None} == {0.20}


def test_the_usual_setting_is_that_of_the_check(measurements: pl.DataFrame) -> None:
    usual = {"family": "median_min", "scope": "within_organ", "vote": "mv5"}
    assert READ.usual(measurements, "retrieval") == usual
    assert READ.usual(measurements, "rotation") == {
        "view": "rotated",
        "k": 10,
        "distance": "cosine",
    }


def test_no_title_of_a_panel_is_cut(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    for figure in plotted(measurements, provenance, design).values():
        for note in figure.layout.annotations:
            assert "…" not in note.text
            lines = note.text.replace("<b>", "").replace("</b>", "").split("<br>")
            assert max(map(len, lines)) <= 50


def test_macro_f1_of_every_organ_has_one_scale(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    figure = plotted(measurements, provenance, design)["retrieval:1"]
    axes = [figure.layout[key] for key in figure.layout if key.startswith("xaxis")]
    assert len(axes) == 2
    assert {tuple(axis.range) for axis in axes} == {(-0.02, 1.02)}


def test_labels_cannot_carry_markup() -> None:
    design = pl.DataFrame(
        {"label": ["<b>x</b>"], "center": ["<a>"], "n_patients": [1], "n_slides": [2]}
    )
    figure = plot_design(design)
    assert figure is not None
    assert figure.data[0].y[0] == "&lt;b&gt;x&lt;/b&gt;"
    assert figure.data[0].x[0] == "&lt;a&gt;"


LONG = ("university hospital of the north", "university hospital of the south")


def test_long_names_that_begin_alike_keep_their_own_cells() -> None:
    design = pl.DataFrame({"label": LONG, "center": LONG, "n_patients": [1, 2], "n_slides": [3, 4]})
    figure = plot_design(design)
    assert figure is not None
    grid = figure.data[0]
    for axis, places in ((figure.layout.xaxis, grid.x), (figure.layout.yaxis, grid.y)):
        assert set(places) == set(LONG)
        assert sorted(axis.tickvals) == sorted(LONG)
        assert len(set(axis.ticktext)) == 2
        assert max(len(line) for text in axis.ticktext for line in text.split("<br>")) <= 20


def test_encoders_whose_names_begin_alike_keep_their_own_rows(
    measurements: pl.DataFrame, provenance: dict[str, Any], design: pl.DataFrame
) -> None:
    names = dict(zip(("alpha", "beta"), LONG, strict=True))
    renamed = measurements.with_columns(pl.col("encoder").replace(names))
    told = plotted(renamed, provenance, design)
    rows = {y for trace in told["findings"].data for y in trace.y}
    assert set(LONG) <= rows
    for name in ("robustness_index:0", "linear_probe:0", "retrieval:0"):
        legend = [t.name for t in told[name].data if t.showlegend is not False]
        assert len(set(legend)) == len(legend)


@given(st.lists(st.text("ab…1", max_size=9), unique=True, max_size=12))
def test_names_in_lines_never_collide_and_are_whole_where_they_fit(names: list[str]) -> None:
    short = short_names(names, 2)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    for name, text in short.items():
        lines = text.split("<br>")
        assert len(lines) <= 3
        assert all(len(line) <= 2 for line in lines)
        assert len(name) > 6 or "".join(lines) == name


def test_a_cell_without_slides_is_drawn_as_zero() -> None:
    design = pl.DataFrame(
        {"label": ["x", "y"], "center": ["A", "B"], "n_patients": [1, 2], "n_slides": [3, 4]}
    )
    figure = plot_design(design)
    assert figure is not None
    assert [list(line) for line in figure.data[0].z] == [[0, 4], [3, 0]]


def test_a_label_found_in_two_organs_is_counted_in_both() -> None:
    design = pl.DataFrame(
        {
            "organ": ["kidney", "lung"],
            "label": ["x", "x"],
            "center": ["A", "A"],
            "n_patients": [1, 2],
            "n_slides": [3, 4],
        }
    )
    figure = plot_design(design)
    assert figure is not None
    assert [list(line) for line in figure.data[0].z] == [[7]]


def test_no_data_gives_a_figure_that_says_so(provenance: dict[str, Any]) -> None:
    empty = pl.DataFrame(schema=MEASUREMENT_SCHEMA)
    figure = plot_experiment(empty, provenance, WORDS, experiment="rotation")
    assert figure.layout.title.text == "not measured in this cohort"
    assert plotted_curves(empty, WORDS) == {}


def test_the_calibration_has_a_panel_for_each_check_and_a_sign_for_each_verdict() -> None:
    from pathfm_kedro.pipelines.report.calibration_plot import plot_calibration
    from pathfm_kedro.pipelines.report.words import PlotWords
    from pathfm_kedro.statistics.measurements import Estimate, measurement, measurement_table

    rows = [
        measurement(
            experiment="calibration",
            encoder="phantom_truth",
            metric=metric,
            estimate=Estimate(1 - dose, 0.9 - dose, 1.1 - dose, 72, 24),
            setting={
                "of": "rotation",
                "nuisance": "corner",
                "dose": dose,
                "threshold": 0.8,
                "verdict": verdict,
            },
        )
        for metric in ("mknn", "mknn_mean")
        for dose, verdict in ((0.0, "pass"), (0.5, "inconclusive"), (1.0, "fail"))
    ]
    plot = PlotWords("calibration")
    figure = plot_calibration(measurement_table(rows), plot, READ)
    assert figure is not None
    shown = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(shown) == 6
    assert len({(trace.marker.symbol, trace.marker.color) for trace in shown}) == 3
    assert sum(trace.showlegend for trace in shown) == 3
    assert plot_calibration(measurement_table([]), plot, READ) is None


def test_a_curve_lies_at_the_patients_of_each_budget_and_its_crossing_is_marked() -> None:
    rows = []
    for budget, patients, probe, network in ((0.25, 4.0, 0.6, 0.3), (1.0, 16.0, 0.7, 0.9)):
        for metric, value, more in (
            ("macro_f1", probe, {"model": "probe"}),
            ("macro_f1", network, {"model": "small_cnn"}),
            ("training_patients", patients, {}),
        ):
            setting = {"tested": "in_domain", "budget": budget, **more}
            rows.append((metric, value, setting))
    rows.append(("crossing_patients", 9.0, {"tested": "in_domain"}))
    table = measurement_table(
        measurement(
            experiment="task_specific",
            encoder="e",
            metric=metric,
            estimate=Estimate(value, value, value, 9, 9),
            setting=setting,
        )
        for metric, value, setting in rows
    )
    ((_, figure),) = experiment_plots(table, "task_specific", encoder_styles(["e"], {}), READ)
    assert figure.layout.xaxis.type == "log"
    traces = {trace.name: trace for trace in figure.data}
    assert (tuple(traces["e"].x), tuple(traces["e"].y)) == ((4.0, 16.0), (0.6, 0.7))
    dashed = next(t for t in figure.data if t.line.dash == "dash" and t.y and t.y[0] is not None)
    assert (tuple(dashed.x), tuple(dashed.y)) == ((4.0, 16.0), (0.3, 0.9))
    assert set(traces["the network overtakes: e"].x) == {9.0}
