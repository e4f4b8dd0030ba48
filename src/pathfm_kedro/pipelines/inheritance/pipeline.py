"""inheritance: what the frozen vectors look like and what a linear probe reads from them."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

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
    no_views,
    node,
)

VECTORS = ["slides", "tiles", "embeddings.{e}"]

EXPERIMENTS = [
    Experiment("geometry", Geometry, geometry_statistics, geometry_figures, VECTORS),
    Experiment("linear_probe", LinearProbe, linear_probe_statistics, linear_probe_figures, VECTORS),
]


def create_pipeline(
    encoders: Sequence[str], controls: Sequence[str] = (), grids: TileGrids | None = None
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders; two controls are not compared."""
    tables = [
        f"measurements.inheritance.{name}"
        for name in (*(x.name for x in EXPERIMENTS), "comparison")
    ]
    parts = [experiment_pipeline("inheritance", x, encoders, grids=grids) for x in EXPERIMENTS]
    arms = grouped("arms", _arm_tiles(grids or TileGrids()))
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
