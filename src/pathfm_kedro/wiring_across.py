"""Nodes in which encoders meet: compared two by two, or mixed at a known dose of nuisance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kedro.pipeline import Node, Pipeline, node

from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.measurements import combine_measurements
from pathfm_kedro.statistics.mitigation import MITIGATION, compare_with_bases
from pathfm_kedro.statistics.paired_comparison import EXPERIMENT as COMPARISON
from pathfm_kedro.statistics.paired_comparison import compare_encoders
from pathfm_kedro.statistics.tables import KeptEmbeddings
from pathfm_kedro.wiring import Experiment, TileGrids, collected, grouped, shown_as


def comparison_pipeline(
    pipeline: str,
    experiments: Sequence[Experiment],
    encoders: Sequence[str],
    controls: Sequence[str] = (),
    grids: TileGrids | None = None,
    mitigated: Mapping[str, tuple[str, str]] | None = None,
) -> Pipeline:
    """Nodes that compare encoders two by two on the judged figures of each experiment.

    Parameters
    ----------
    pipeline
        Name of the pipeline that the experiments belong to.
    experiments
        What is measured; those of arms, or of some encoders only, are not compared.
    encoders, controls
        The cohort's, and those among them that are not compared with each other.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    mitigated
        Of each variant the encoder that it is held against, and what was done.
    """
    tiles = grids or TileGrids()
    compared = [x for x in experiments if x.subject == "encoder" and x.only is None]
    nodes = [
        _comparison_node(
            pipeline,
            x,
            [e for e in encoders if not tiles.needs_pixels(x, e)],
            controls,
            tiles,
            mitigated or {},
        )
        for x in compared
    ]
    tables = [output for each in nodes for output in each.outputs]
    name = f"measurements.{pipeline}.{COMPARISON}"
    return grouped(COMPARISON, [*nodes, collected(tables, name, tags=[COMPARISON])])


def _comparison_node(
    pipeline: str,
    x: Experiment,
    encoders: Sequence[str],
    controls: Sequence[str],
    grids: TileGrids,
    mitigated: Mapping[str, tuple[str, str]],
) -> Node:
    """A node that takes the statistics of all encoders and tables their differences."""
    beside = len(x.beside)

    def compare(*inputs: Any) -> Any:
        *data, parameters = inputs
        parts = [data[i : i + 1 + beside] for i in range(0, len(data), 1 + beside)]
        judged = {e: x.judged(*part, parameters) for e, part in zip(encoders, parts, strict=True)}
        tiles = {e: grids.grid(e) for e in encoders}
        return combine_measurements(
            compare_encoders(judged, x.name, controls, tiles),
            compare_with_bases(judged, x.name, mitigated, tiles),
        )

    data = [
        name
        for e in encoders
        for name in (
            f"statistics.{pipeline}.{x.name}.{e}",
            *(grids.dataset(name, e) for name in x.beside),
        )
    ]
    return node(
        shown_as(compare, compare_encoders),
        [*data, f"params:{x.name}"],
        f"measurements.{pipeline}.{COMPARISON}.{x.name}",
        name=f"compare_{x.name}",
        tags=[COMPARISON, x.name, *([MITIGATION] if mitigated else [])],
    )


def calibration_node(
    pipeline: str,
    x: Experiment,
    parameters: Mapping[str, Any],
    truth: str,
    mix: Callable[..., Any],
    dose_response: Callable[..., Any],
    encoders: Sequence[str],
    grids: TileGrids | None = None,
) -> Node | None:
    """A node that runs an experiment on encoders with a known dose of nuisance; None without one.

    Parameters
    ----------
    pipeline
        Name of the pipeline.
    x
        The experiment.
    parameters
        Its block of parameters: which control is mixed in decides the node's inputs.
    truth
        The control that knows the truth.
    mix, dose_response
        Functions that make the dosed vectors and table the checks.
    encoders
        The cohort's: without the control that is mixed in there is no calibration.
    grids
        Which tiles each encoder has vectors of: vectors of other tiles cannot be mixed.
    """
    grids = grids or TileGrids()
    calibration = x.read(parameters).calibration
    if calibration is None or (calibration.nuisance and calibration.nuisance not in encoders):
        return None
    nuisance = calibration.nuisance
    if nuisance and grids.grid(nuisance) != grids.grid(truth):
        return None
    data = [grids.dataset(name, truth) for name in x.inputs]
    others = [name.format(e=nuisance) for name in x.inputs if nuisance and "{e}" in name]
    beside = [grids.dataset(name, truth) for name in x.beside]

    def calibrate(*inputs: Any) -> Any:
        *found, parameters, settings = inputs
        p = x.read({**parameters, **calibration.set})
        rest = found[: len(beside)]
        own, mixed = found[len(beside) : len(beside) + len(data)], found[len(beside) + len(data) :]
        # Every dose reads the same vectors.
        mixed = [KeptEmbeddings(value) for value in mixed]
        own = [
            KeptEmbeddings(value) if "{e}" in name else value
            for name, value in zip(x.inputs, own, strict=True)
        ]

        def measure_at(dose: float) -> Any:
            partners = iter(mixed)
            vectors = [
                (x.dosed or mix)(value, next(partners, None), dose, p, own)
                if "{e}" in name
                else value
                for name, value in zip(x.inputs, own, strict=True)
            ]
            statistics = x.accumulate(*vectors, p)
            return measure(x.figures(statistics, *rest, p), x.name, truth, p.criteria, x.subject)

        return dose_response(measure_at, x.name, calibration, settings["doses"], truth)

    return node(
        calibrate,
        [*beside, *data, *others, f"params:{x.name}", "params:calibration"],
        f"measurements.{pipeline}.calibration_{x.name}.{truth}",
        name="calibrate",
        tags=["calibration", x.name],
    )
