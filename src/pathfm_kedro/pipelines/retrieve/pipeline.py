"""retrieve: does a slide find slides of the same diagnosis in other patients."""

from collections.abc import Callable, Mapping, Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.harmonised import plan_harmonised
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
from pathfm_kedro.pipelines.retrieve.index_recall import (
    IndexRecall,
    recall_figures,
    recall_statistics,
)
from pathfm_kedro.pipelines.retrieve.mosaic_field import (
    MosaicField,
    mosaic_field_figures,
    mosaic_field_matches,
)
from pathfm_kedro.pipelines.retrieve.mosaic_views import (
    choose_mosaic_places,
    view_of_mosaic_fields,
)
from pathfm_kedro.pipelines.retrieve.pooled_splits import pooled_retrieval_figures
from pathfm_kedro.pipelines.retrieve.sampling_density import (
    SamplingDensity,
    density_figures,
    density_matches,
)
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.retrieve.search_cost import cost_figures, cost_statistics
from pathfm_kedro.pipelines.retrieve.search_time import SearchCost, plan_search_times
from pathfm_kedro.pipelines.retrieve.tissue_limit import (
    TissueLimit,
    tissue_limit_figures,
    tissue_limit_statistics,
)
from pathfm_kedro.statistics.mosaic import pool_slides
from pathfm_kedro.statistics.named_index import INDEX_TYPES
from pathfm_kedro.views import plan_views
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    Views,
    collected,
    experiment_pipeline,
    grouped,
    in_grids,
    node,
    views_pipeline,
    with_parameters,
)
from pathfm_kedro.wiring_across import comparison_pipeline

VECTORS = ["slides", "tiles", "embeddings.{e}"]
SLIDES = ["slides"]
#: An index of each type, and what searches take.
INDEXES = [f"slide_index.{kind}.{{e}}" for kind in INDEX_TYPES]
TIMES = "search_times.{e}"

EXPERIMENTS = [
    Experiment(
        "retrieval",
        Retrieval,
        search_slides,
        retrieval_figures,
        VECTORS,
        SLIDES,
        pooled=pooled_retrieval_figures,
    ),
    Experiment(
        "sampling_density", SamplingDensity, density_matches, density_figures, VECTORS, SLIDES
    ),
    Experiment("index_bytes", IndexBytes, matches_by_bytes, bytes_figures, VECTORS, SLIDES),
    Experiment("tissue_limit", TissueLimit, tissue_limit_statistics, tissue_limit_figures, VECTORS),
    Experiment(
        "search_cost",
        SearchCost,
        cost_statistics,
        cost_figures,
        ["slides", "slide_vectors.{e}"],
        beside=[TIMES, "measurements.retrieve.retrieval.{e}"],
    ),
    Experiment(
        "index_recall",
        IndexRecall,
        recall_statistics,
        recall_figures,
        ["slides", "slide_vectors.{e}", *INDEXES],
        beside=[TIMES],
    ),
    Experiment(
        "mosaic_field",
        MosaicField,
        mosaic_field_matches,
        mosaic_field_figures,
        ["views.mosaic_fields.{e}", "mosaic_places"],
        SLIDES,
    ),
]
#: Fields around the places of mosaics.
FIELDS = Views(
    "mosaic_fields",
    "mosaic_field",
    MosaicField,
    view_of_mosaic_fields,
    "widening mosaics",
    pool="mosaic_places",
)
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
    beside=["slides", "params:tissue_limit.attributes"],
    subject="arm",
)


def create_pipeline(
    encoders: Sequence[str],
    controls: Sequence[str],
    grids: TileGrids,
    bases: Mapping[str, str],
    splits: Mapping[str, Sequence[str]] | None = None,
    mitigated: Mapping[str, tuple[str, str]] | None = None,
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders.

    Parameters
    ----------
    encoders
        All encoders of the cohort.
    controls
        Two of these are not compared.
    grids
        Which tiles each encoder has vectors of.
    bases
        Of each harmonised variant, the encoder whose vectors it takes.
    splits
        Of each encoder that is trained on several splits of the patients the encoders of all splits.
    mitigated
        Of each variant the encoder that it is held against, and what was done.
    """
    names = (*(x.name for x in (*EXPERIMENTS, BASELINES, CAPACITY)), "comparison")
    tables = [f"measurements.retrieve.{name}" for name in names]
    views = views_pipeline(FIELDS, encoders, bases, plan_views, plan_harmonised, grids)
    parts = [
        *in_grids(_places, encoders, grids),
        *(
            experiment_pipeline(
                "retrieve",
                x,
                encoders,
                *(views if x.name == FIELDS.experiment else []),
                grids=grids,
                splits=splits,
            )
            for x in EXPERIMENTS
        ),
    ]
    pixels = ["slides", "tiles", "slide_files", "params:tile", "params:engine"]
    without_slides = grids.without_slides
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
        describe_indices,
        "measurements.retrieve.index_recall",
        "slide_indices",
        name="describe_indices",
        tags="index",
    )
    own = [grouped(e, _index(e, grids)) for e in encoders]
    compared = comparison_pipeline("retrieve", EXPERIMENTS, encoders, controls, grids, mitigated)
    collect = collected(tables, "retrieve_measurements")
    return grouped("retrieve", [grouped("index", own), *parts, described, compared, collect])


def _places(named: Callable[[str], str]) -> Node:
    """The places of mosaics in one grid of tiles."""
    return node(
        choose_mosaic_places,
        ["slides", named("tiles"), f"params:{FIELDS.experiment}"],
        named(FIELDS.pool),
        name="choose_mosaic_places",
        tags=FIELDS.experiment,
    )


def _index(e: str, grids: TileGrids) -> list[Node]:
    """Indexes of slides that people can query, and the record of how long searches take."""
    tags = ["index", e]
    vectors = [grids.dataset(name, e) for name in VECTORS]
    indexes = [name.format(e=e) for name in INDEXES]
    return [
        node(pool_slides, vectors, f"slide_vectors.{e}", name="pool_slides", tags=tags),
        node(
            with_parameters(IndexRecall, "index_recall", index_slides),
            [f"slide_vectors.{e}", "params:index_recall"],
            indexes,
            name="index_slides",
            tags=tags,
        ),
        node(
            plan_search_times,
            [*vectors, *indexes, "params:search_cost", "params:cost_trial.measured"],
            TIMES.format(e=e),
            name="time_searches",
            tags=tags,
        ),
    ]
