"""retrieve: does a slide find slides of the same diagnosis in other patients."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_accuracy
from pathfm_kedro.pipelines.retrieve.index import index_slides
from pathfm_kedro.pipelines.retrieve.search import search_slides
from pathfm_kedro.wiring import grouped, named_partial, node


def create_pipeline(encoders: Sequence[str]) -> Pipeline:
    """Wire the pipeline for the cohort's encoders."""
    return grouped("retrieve", [grouped(name, _one(name)) for name in encoders])


def _one(name: str) -> list[Node]:
    return [
        node(
            index_slides,
            f"slide_vectors.{name}",
            f"slide_index.{name}",
            name=f"index_{name}",
            tags=["index", name],
        ),
        node(
            search_slides,
            ["slides", "tiles", f"embeddings.{name}", "params:retrieve"],
            f"matches.{name}",
            name=f"search_{name}",
            tags=["retrieval", name],
        ),
        node(
            named_partial(retrieval_accuracy, encoder=name),
            [f"matches.{name}", "slides", "params:retrieve"],
            f"measurements.retrieve.retrieval.{name}",
            name=f"retrieval_{name}",
            tags=["retrieval", name],
        ),
    ]
