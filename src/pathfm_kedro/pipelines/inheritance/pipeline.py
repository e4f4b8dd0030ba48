"""inheritance: frozen vectors, what a probe reads from them, and what adapting the encoder gives."""

from collections.abc import Sequence
from dataclasses import replace

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.inheritance.adaptation import (
    adaptation_figures,
    adaptation_statistics,
)
from pathfm_kedro.pipelines.inheritance.adaptation_fits import (
    AdaptationSettings,
    plan_adaptation,
)
from pathfm_kedro.pipelines.inheritance.arm_tiles import choose_arm_pool, plan_arm_tiles
from pathfm_kedro.pipelines.inheritance.geometry import (
    Geometry,
    geometry_figures,
    geometry_statistics,
)
from pathfm_kedro.pipelines.inheritance.linear_probe import (
    LinearProbe,
    linear_probe_figures,
    linear_probe_statistics,
)
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    collected,
    comparison_pipeline,
    experiment_pipeline,
    grouped,
    named_partial,
    no_views,
    node,
    with_parameters,
)

VECTORS = ["slides", "tiles", "embeddings.{e}"]

EXPERIMENTS = [
    Experiment("geometry", Geometry, geometry_statistics, geometry_figures, VECTORS),
    Experiment("linear_probe", LinearProbe, linear_probe_statistics, linear_probe_figures, VECTORS),
]
#: Of the encoders that are adapted.
ADAPTATION = Experiment(
    "adaptation",
    AdaptationSettings,
    adaptation_statistics,
    adaptation_figures,
    ["arm_pool", "arm_tiles", "arms.adaptation.{e}", "params:encoders.{e}"],
)


def create_pipeline(
    encoders: Sequence[str],
    controls: Sequence[str] = (),
    grids: TileGrids | None = None,
    adapted: Sequence[str] = (),
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders; two controls are not compared.

    Parameters
    ----------
    encoders, controls
        The cohort's, and those among them that are not compared.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    adapted
        ``adaptation.encoders``.

    Raises
    ------
    ValueError
        If one that is to be adapted is none of the cohort's.
    """
    unknown = sorted(set(adapted) - set(encoders))
    if unknown:
        raise ValueError(
            f"adaptation.encoders names {', '.join(unknown)}, and the cohort has {', '.join(encoders)}"
        )
    of_arms = [replace(ADAPTATION, only=tuple(adapted))] if adapted else []
    tables = [
        f"measurements.inheritance.{name}"
        for name in (*(x.name for x in (*EXPERIMENTS, *of_arms)), "comparison")
    ]
    parts = [experiment_pipeline("inheritance", x, encoders, grids=grids) for x in EXPERIMENTS]
    parts += [
        experiment_pipeline("inheritance", x, encoders, *map(_adapted, adapted), grids=grids)
        for x in of_arms
    ]
    arms = grouped("arms", [*_arm_tiles(grids or TileGrids()), *([] if adapted else [_no_arms()])])
    compared = comparison_pipeline("inheritance", EXPERIMENTS, encoders, controls, grids)
    collect = collected(tables, "inheritance_measurements")
    return grouped("inheritance", [arms, *parts, compared, collect])


def _arm_tiles(grids: TileGrids) -> list[Node]:
    """The tiles that arms are trained and probed on, and their pixels."""
    pool = node(
        choose_arm_pool,
        ["slides", "tiles", "params:arms"],
        "arm_pool",
        name="choose_arm_pool",
        tags="arms",
    )
    if grids.without_slides:
        return [pool, node(no_views, "params:engine", "arm_tiles", name="arm_tiles", tags="arms")]
    inputs = ["slides", "tiles", "arm_pool", "slide_files"]
    inputs += ["params:arms", "params:tile", "params:engine"]
    return [pool, node(plan_arm_tiles, inputs, "arm_tiles", name="arm_tiles", tags="arms")]


def _no_arms() -> Node:
    """No fits where no encoder is adapted; the folder that a DVC stage names is there all the same."""
    return node(no_views, "params:engine", "arms.adaptation", name="no_arms", tags="arms")


def _adapted(e: str) -> Pipeline:
    """The fits of an encoder's arms."""
    fit = node(
        named_partial(
            with_parameters(AdaptationSettings, ADAPTATION.name, plan_adaptation), name=e
        ),
        ["arm_pool", "arm_tiles", f"params:encoders.{e}", "params:engine", "params:adaptation"],
        f"arms.adaptation.{e}",
        name="fit_arms",
        tags=[ADAPTATION.name, e],
    )
    return grouped(e, [fit])
