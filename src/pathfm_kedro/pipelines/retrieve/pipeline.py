"""retrieve: does a slide find slides of the same diagnosis in other patients."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.baselines import (
    NO_ENCODER,
    Baselines,
    baseline_figures,
    baseline_matches,
    colour_histograms,
    no_colours,
)
from pathfm_kedro.pipelines.retrieve.capacity import (
    ARM,
    Capacity,
    capacity_figures,
    capacity_statistics,
)
from pathfm_kedro.pipelines.retrieve.index import describe_indices, index_slides
from pathfm_kedro.pipelines.retrieve.index_bytes import (
    IndexBytes,
    bytes_figures,
    matches_by_bytes,
)
from pathfm_kedro.pipelines.retrieve.sampling_density import (
    SamplingDensity,
    density_figures,
    density_matches,
)
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.retrieve.tissue_limit import (
    TissueLimit,
    tissue_limit_figures,
    tissue_limit_statistics,
)
from pathfm_kedro.statistics.mosaic import pool_slides
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    collected,
    comparison_pipeline,
    experiment_pipeline,
    grouped,
    named_partial,
    node,
)

VECTORS = ["slides", "tiles", "embeddings.{e}"]
SLIDES = ["slides"]

EXPERIMENTS = [
    Experiment("retrieval", Retrieval, search_slides, retrieval_figures, VECTORS, SLIDES),
    Experiment(
        "sampling_density", SamplingDensity, density_matches, density_figures, VECTORS, SLIDES
    ),
    Experiment("index_bytes", IndexBytes, matches_by_bytes, bytes_figures, VECTORS, SLIDES),
    Experiment("tissue_limit", TissueLimit, tissue_limit_statistics, tissue_limit_figures, VECTORS),
]
#: What needs no encoder.
BASELINES = Experiment(
    "retrieval_baselines",
    Baselines,
    baseline_matches,
    baseline_figures,
    ["slides", "tiles", "slide_colours"],
    SLIDES,
    subject="cohort",
)

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


def create_pipeline(
    encoders: Sequence[str], controls: Sequence[str] = (), grids: TileGrids | None = None
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders; two controls are not compared."""
    names = (*(x.name for x in (*EXPERIMENTS, BASELINES, CAPACITY)), "comparison")
    tables = [f"measurements.retrieve.{name}" for name in names]
    parts = [experiment_pipeline("retrieve", x, encoders, grids=grids) for x in EXPERIMENTS]
    pixels = ["slides", "tiles", "slide_files", "params:tile", "params:engine"]
    without_slides = grids is not None and grids.without_slides
    colours = node(
        no_colours if without_slides else colour_histograms,
        "params:engine" if without_slides else pixels,
        "slide_colours",
        name="slide_colours",
        tags=[BASELINES.name],
    )
    parts.append(experiment_pipeline("retrieve", BASELINES, [NO_ENCODER], colours))
    parts.append(experiment_pipeline("retrieve", CAPACITY, [ARM]))
    described = node(
        named_partial(describe_indices, names=tuple(encoders)),
        [f"slide_index.{e}" for e in encoders],
        "slide_indices",
        name="describe_indices",
        tags="index",
    )
    own = [grouped(e, _index(e, grids or TileGrids())) for e in encoders]
    index = grouped("index", [*own, described])
    compared = comparison_pipeline("retrieve", EXPERIMENTS, encoders, controls, grids)
    collect = collected(tables, "retrieve_measurements")
    return grouped("retrieve", [index, *parts, compared, collect])


def _index(e: str, grids: TileGrids) -> list[Node]:
    """An index of slides that people can query."""
    tags = ["index", e]
    vectors = [grids.dataset(name, e) for name in VECTORS]
    return [
        node(pool_slides, vectors, f"slide_vectors.{e}", name="pool_slides", tags=tags),
        node(
            index_slides, f"slide_vectors.{e}", f"slide_index.{e}", name="index_slides", tags=tags
        ),
    ]
