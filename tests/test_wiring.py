"""Experiments become nodes: what each reads and writes, where it stands, what kedro-viz shows."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.measurements import Estimate, combine_measurements
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.wiring import (
    Experiment,
    Views,
    experiment_pipeline,
    grouped,
    named_partial,
    node,
    views_pipeline,
    with_parameters,
)
from pathfm_kedro.wiring_across import calibration_node, comparison_pipeline
from tests.in_memory import InMemory


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Mean(ExperimentParameters):
    scale: float = 1.0


def mean_statistics(vectors: list[float], p: Mean) -> pl.DataFrame:
    """The documentation of the step that accumulates."""
    return pl.DataFrame({"value": [value * p.scale for value in vectors]})


def mean_figures(statistics: pl.DataFrame, *beside: float):
    """The documentation of the step that computes."""
    *added, p = beside
    value = statistics["value"].mean() + sum(added)
    yield Figure(
        "mean", lambda: Estimate(value, value - 0.1, value + 0.1, 9, 9), {"scale": p.scale}
    )


X = Experiment("mean", Mean, mean_statistics, mean_figures, ["vectors.{e}"])
BLOCK = {"criteria": [{"metric": "mean", "above": 0.0}]}


def inputs_of(pipeline) -> dict[str, list[str]]:
    return {n.name: list(n.inputs) for n in pipeline.nodes}


def test_an_experiment_has_two_nodes_for_each_encoder_and_one_that_collects():
    pipeline = experiment_pipeline("robustness", X, ["a", "b"])
    assert inputs_of(pipeline) == {
        "mean.a.statistics": ["vectors.a", "params:mean"],
        "mean.a.measurements": ["statistics.robustness.mean.a", "params:mean"],
        "mean.b.statistics": ["vectors.b", "params:mean"],
        "mean.b.measurements": ["statistics.robustness.mean.b", "params:mean"],
        "mean.collect": ["measurements.robustness.mean.a", "measurements.robustness.mean.b"],
    }
    assert pipeline.outputs() == {"measurements.robustness.mean"}


def test_every_node_has_the_tags_of_its_experiment_and_encoder():
    pipeline = experiment_pipeline("robustness", X, ["a", "b"])
    for name in ("a", "b"):
        own = pipeline.only_nodes_with_tags(name)
        assert {n.namespace for n in own.nodes} == {f"mean.{name}"}
    assert len(pipeline.only_nodes_with_tags("mean").nodes) == 5


def test_datasets_of_other_encoders_and_beside_are_filled_in():
    x = replace(X, beside=["params:encoders.{e}", "room"])
    inputs = inputs_of(experiment_pipeline("robustness", x, ["a"]))
    assert inputs["mean.a.measurements"][1:] == ["params:encoders.a", "room", "params:mean"]


def test_an_experiment_may_be_confined_to_some_encoders():
    pipeline = experiment_pipeline("robustness", replace(X, only=["b", "z"]), ["a", "b"])
    assert pipeline.inputs() == {"vectors.b", "params:mean"}


def test_nodes_compute_what_the_functions_compute():
    statistics = X.statistics([1.0, 3.0], BLOCK | {"scale": 2.0})
    assert statistics["value"].to_list() == [2.0, 6.0]
    beside = replace(X, beside=["shift"], subject="arm")
    row = beside.measurements(statistics, 1.0, BLOCK | {"scale": 2.0}, encoder="a").row(
        0, named=True
    )
    assert (row["experiment"], row["encoder"], row["subject"]) == ("mean", "a", "arm")
    assert (row["value"], row["setting"], row["verdict"]) == (5.0, '{"scale": 2.0}', "pass")


def test_parameters_are_checked_by_the_node_that_reads_them():
    with pytest.raises(ValueError, match=r"mean\.scael: no such parameter"):
        X.statistics([1.0], {"scael": 2.0})


def test_kedro_viz_shows_the_experiments_own_functions():
    pipeline = experiment_pipeline("robustness", X, ["a"])
    shown = {n.name: n.func for n in pipeline.nodes}
    statistics, measurements = shown["mean.a.statistics"], shown["mean.a.measurements"]
    assert (statistics.__name__, measurements.__name__) == ("mean_statistics", "mean_figures")
    assert "step that accumulates" in inspect.getdoc(statistics)
    assert inspect.unwrap(measurements) is mean_figures


def test_a_partial_keeps_name_text_and_open_arguments():
    def scaled(vectors: list[float], *, by: float, name: str = "") -> list[float]:
        """Scale them."""
        return [value * by for value in vectors]

    bound = named_partial(scaled, by=2.0)
    assert bound([1.0]) == [2.0]
    assert (bound.__name__, bound.__doc__) == ("scaled", "Scale them.")
    assert list(inspect.signature(bound).parameters) == ["vectors", "name"]


def test_a_function_may_take_a_block_of_another_experiment():
    run = with_parameters(Mean, "mean", lambda values, p, name: (name, values, p.scale))
    assert run([1.0], {"scale": 3.0}, name="a") == ("a", [1.0], 3.0)
    with pytest.raises(ValueError, match=r"mean\.scale is 'x'"):
        run([1.0], {"scale": "x"}, name="a")


def test_grouping_nests_namespaces_and_leaves_datasets_their_names():
    inner = grouped("a", [node(lambda x: x, "slides", "tiles", name="cut")])
    (only,) = grouped("tile", [inner]).nodes
    assert (only.namespace, only.inputs, only.outputs) == ("tile.a", ["slides"], ["tiles"])


VIEWS = Views("changed", "mean", Mean, lambda *_: None, "changing", beside=["references"])


def planned(*inputs, name, work, read, title):
    return name, title, read(inputs[-1]).scale


def test_views_are_planned_for_each_encoder_and_taken_from_the_base_for_variants():
    def harmonised(*inputs, name):
        return name

    nodes = views_pipeline(VIEWS, ["a", "a_centred"], {"a_centred": "a"}, planned, harmonised)
    inputs = inputs_of(grouped("views", nodes))
    pixels = ["slides", "tiles", "tile_pool", "slide_files", "params:tile", "params:engine"]
    told = ["params:encoders.a", "encoder_runtimes", "references", "params:mean"]
    assert inputs["views.a.changed_views"] == [*pixels, *told]
    of_variant = ["slides", "embeddings.a", "views.changed.a", "params:encoders.a_centred"]
    assert inputs["views.a_centred.changed_views"] == [*of_variant, "params:engine"]
    outputs = {name for part in nodes for name in part.outputs()}
    assert outputs == {"views.changed.a", "views.changed.a_centred"}


def test_views_of_pixels_alone_need_no_encoder():
    (only,) = views_pipeline(replace(VIEWS, with_encoder=False), ["a", "b"], {}, planned, planned)
    assert only.outputs == ["views.changed.pixels"]
    assert not any(name.startswith("params:encoders") for name in only.inputs)
    assert only.func(*[None] * 7, {"scale": 4.0}) == (None, "changing", 4.0)


def dosed(truth, nuisance, dose, p, inputs):
    of_truth, of_nuisance = (vectors.stack(["slide"]) for vectors in (truth, nuisance))
    return list((1 - dose) * of_truth - dose * of_nuisance)


def dose_response(measure_at, experiment, calibration, doses, encoder):
    return combine_measurements(*(measure_at(dose) for dose in doses))


def calibrated(x=X, block=None, encoders=("truth", "colour")):
    known = BLOCK | {
        "calibration": {"nuisance": "colour", "called": "colour", "set": {"scale": 2.0}}
    }
    told = known if block is None else block
    made = calibration_node("robustness", x, told, "truth", dosed, dose_response, encoders)
    return made, told


def test_a_calibration_mixes_truth_and_nuisance_under_changed_parameters():
    made, block = calibrated()
    assert list(made.inputs) == [
        "vectors.truth",
        "vectors.colour",
        "params:mean",
        "params:calibration",
    ]
    assert made.outputs == ["measurements.robustness.calibration_mean.truth"]
    assert made.tags == {"calibration", "mean"}
    values = {
        "vectors.truth": InMemory({"slide": np.array([1.0])}),
        "vectors.colour": InMemory({"slide": np.array([3.0])}),
        "params:mean": block,
        "params:calibration": {"doses": [0.0, 1.0]},
    }
    (table,) = made.run(values).values()
    assert table["value"].to_list() == [2.0, -6.0]
    assert table["verdict"].to_list() == ["pass", "fail"]


def test_a_calibration_keeps_what_is_not_of_an_encoder_and_what_stands_beside():
    x = replace(X, inputs=["slides", "vectors.{e}"], beside=["room.{e}"])
    made, _ = calibrated(x)
    assert list(made.inputs)[:4] == ["room.truth", "slides", "vectors.truth", "vectors.colour"]


def test_a_calibrations_rows_join_those_of_its_experiment():
    made, _ = calibrated()
    pipeline = experiment_pipeline("robustness", X, ["truth", "colour"], calibration=made)
    (collect,) = (n for n in pipeline.nodes if n.name == "mean.collect")
    assert list(collect.inputs)[-1] == "measurements.robustness.calibration_mean.truth"


@pytest.mark.parametrize(("block", "encoders"), [(BLOCK, ("truth", "colour")), (None, ("truth",))])
def test_without_a_calibration_or_its_control_there_is_no_node(block, encoders):
    assert calibrated(block=block, encoders=encoders)[0] is None


def test_encoders_are_compared_from_the_statistics_of_all_of_them():
    x = replace(X, beside=["params:encoders.{e}", "room"])
    pipeline = comparison_pipeline("robustness", [x], ["a", "b"])
    inputs = inputs_of(pipeline)
    assert inputs["comparison.compare_mean"] == [
        *("statistics.robustness.mean.a", "params:encoders.a", "room"),
        *("statistics.robustness.mean.b", "params:encoders.b", "room"),
        "params:mean",
    ]
    assert pipeline.outputs() == {"measurements.robustness.comparison"}


def test_the_comparison_holds_each_encoders_own_statistics_against_the_others():
    compare = next(n for n in comparison_pipeline("r", [X], ["a", "b"]).nodes if "mean" in n.tags)
    tables = {e: X.statistics(values, BLOCK) for e, values in (("a", [1.0, 3.0]), ("b", [1.0]))}
    told = {f"statistics.r.mean.{e}": table for e, table in tables.items()}
    (rows,) = compare.run(told | {"params:mean": BLOCK}).values()
    assert dict(zip(rows["encoder"], rows["value"], strict=True)) == {"a": 1.0, "b": -1.0}
    assert set(rows["experiment"]) == {"comparison"}


def test_arms_are_not_compared():
    (collect,) = comparison_pipeline("r", [replace(X, subject="arm")], ["a", "b"]).nodes
    assert collect.name == "comparison.collect"
