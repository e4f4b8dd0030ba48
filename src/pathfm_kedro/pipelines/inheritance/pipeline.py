"""inheritance: what the frozen vectors look like and what a linear probe reads from them."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.inheritance.geometry import embedding_geometry
from pathfm_kedro.pipelines.inheritance.linear_probe import linear_probe
from pathfm_kedro.wiring import grouped, named_partial, node


def create_pipeline(encoders: Sequence[str]) -> Pipeline:
    """Wire the pipeline for the cohort's encoders."""
    return grouped("inheritance", [grouped(name, _one(name)) for name in encoders])


def _one(name: str) -> list[Node]:
    return [
        node(
            named_partial(embedding_geometry, encoder=name),
            ["slides", "tiles", f"embeddings.{name}", "params:geometry"],
            f"measurements.inheritance.geometry.{name}",
            name=f"geometry_{name}",
            tags=["geometry", name],
        ),
        node(
            named_partial(linear_probe, encoder=name),
            ["slides", "tiles", f"embeddings.{name}", "params:linear_probe"],
            f"measurements.inheritance.linear_probe.{name}",
            name=f"linear_probe_{name}",
            tags=["linear_probe", name],
        ),
    ]
