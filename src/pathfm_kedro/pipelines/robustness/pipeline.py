"""robustness: does an encoder follow the tissue, whatever the center and the angle."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.robustness.robustness_index import (
    choose_k,
    count_neighbours,
    robustness_index,
)
from pathfm_kedro.pipelines.robustness.rotation import (
    rotation_measurements,
    rotation_overlaps,
)
from pathfm_kedro.pipelines.robustness.rotation_views import plan_rotation_views
from pathfm_kedro.pipelines.robustness.tile_pool import choose_pool
from pathfm_kedro.wiring import grouped, named_partial, node


def create_pipeline(encoders: Sequence[str], controls: Sequence[str]) -> Pipeline:
    """Wire the pipeline for the cohort's encoders; k is not chosen by the controls."""
    shared = [
        node(
            named_partial(choose_k, controls=tuple(controls)),
            {
                "parameters": "params:robustness_index",
                **{name: f"neighbour_counts.{name}" for name in encoders},
            },
            "robustness_k",
            name="choose_k",
            tags="robustness_index",
        ),
        node(
            choose_pool,
            ["slides", "tiles", "params:tile_pool"],
            "tile_pool",
            name="choose_pool",
            tags="rotation",
        ),
    ]
    # An index needs the cohort's k, and k needs every encoder's counts, so it stands outside the
    # encoder's namespace.
    indices = [_index(name) for name in encoders]
    return grouped(
        "robustness", [*shared, *(grouped(name, _one(name)) for name in encoders), *indices]
    )


def _index(name: str) -> Node:
    return node(
        named_partial(robustness_index, encoder=name),
        [f"neighbour_counts.{name}", "robustness_k", "params:robustness_index"],
        f"measurements.robustness.robustness_index.{name}",
        name=f"robustness_index_{name}",
        tags=["robustness_index", name],
    )


def _one(name: str) -> list[Node]:
    return [
        node(
            count_neighbours,
            ["slides", "tiles", f"embeddings.{name}", "params:robustness_index"],
            f"neighbour_counts.{name}",
            name=f"count_neighbours_{name}",
            tags=["robustness_index", name],
        ),
        node(
            named_partial(plan_rotation_views, name=name),
            [
                "slides",
                "tiles",
                "tile_pool",
                "slide_files",
                f"params:encoders.{name}",
                "params:tile",
                "params:rotation",
                "params:engine",
            ],
            f"rotation_views.{name}",
            name=f"rotate_{name}",
            tags=["rotation", name],
        ),
        node(
            rotation_overlaps,
            [f"rotation_views.{name}", "tile_pool", "params:rotation"],
            f"rotation_overlaps.{name}",
            name=f"rotation_overlaps_{name}",
            tags=["rotation", name],
        ),
        node(
            named_partial(rotation_measurements, encoder=name),
            [f"rotation_overlaps.{name}", "params:rotation"],
            f"measurements.robustness.rotation.{name}",
            name=f"rotation_{name}",
            tags=["rotation", name],
        ),
    ]
