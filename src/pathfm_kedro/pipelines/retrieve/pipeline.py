"""retrieve: does a slide find slides of the same diagnosis in other patients."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.capacity import (
    ARM,
    Capacity,
    capacity_figures,
    capacity_statistics,
)
from pathfm_kedro.pipelines.retrieve.index import describe_indices, index_slides
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.statistics.mosaic import pool_slides
from pathfm_kedro.wiring import (
    Experiment,
    collected,
    experiment_pipeline,
    grouped,
    named_partial,
    node,
)

VECTORS = ["slides", "tiles", "embeddings.{e}"]

EXPERIMENTS = [
    Experiment(
        "retrieval", Retrieval, search_slides, retrieval_figures, VECTORS, beside=["slides"]
    ),
]

#: Free vectors, which stand for every encoder.
CAPACITY = Experiment(
    "capacity",
    Capacity,
    capacity_statistics,
    capacity_figures,
    [],
    beside=["slides"],
    subject="arm",
)


def create_pipeline(encoders: Sequence[str]) -> Pipeline:
    """Wire the pipeline for the cohort's encoders."""
    tables = [f"measurements.retrieve.{x.name}" for x in [*EXPERIMENTS, CAPACITY]]
    parts = [experiment_pipeline("retrieve", x, encoders) for x in EXPERIMENTS]
    parts.append(experiment_pipeline("retrieve", CAPACITY, [ARM]))
    described = node(
        named_partial(describe_indices, names=tuple(encoders)),
        [f"slide_index.{e}" for e in encoders],
        "slide_indices",
        name="describe_indices",
        tags="index",
    )
    index = grouped("index", [*(grouped(e, _index(e)) for e in encoders), described])
    return grouped("retrieve", [index, *parts, collected(tables, "retrieve_measurements")])


def _index(e: str) -> list[Node]:
    """An index of slides that people can query."""
    tags = ["index", e]
    vectors = [name.format(e=e) for name in VECTORS]
    return [
        node(pool_slides, vectors, f"slide_vectors.{e}", name="pool_slides", tags=tags),
        node(
            index_slides, f"slide_vectors.{e}", f"slide_index.{e}", name="index_slides", tags=tags
        ),
    ]
