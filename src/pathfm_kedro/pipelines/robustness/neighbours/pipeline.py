"""Neighbours: the index and the margins rest on one search; tiles that show how they fail."""

from collections.abc import Mapping, Sequence
from functools import partial

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.robustness.attacks.pipeline import examples_of_attacks
from pathfm_kedro.pipelines.robustness.examples import (
    center_examples,
    combine_examples,
    rotation_examples,
)
from pathfm_kedro.pipelines.robustness.margin_statistics import (
    index_and_margin_statistics,
    robustness_margins_statistics,
)
from pathfm_kedro.pipelines.robustness.margins import (
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.pooled_splits import pooled_index_figures
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_figures,
    robustness_index_statistics,
)
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    collected_by_encoder,
    grouped,
    measurements_node,
    named_partial,
    node,
    pooled_nodes,
)

#: Vectors of all tiles, beside the tables that say whose they are.
VECTORS = ["slides", "tiles", "embeddings.{e}"]
#: The index and the margins rest on one search, and the index on the k of all encoders.
INDEX = Experiment(
    "robustness_index",
    RobustnessIndex,
    robustness_index_statistics,
    robustness_index_figures,
    VECTORS,
    beside=["robustness_k"],
    pooled=pooled_index_figures,
)
MARGINS = Experiment(
    "robustness_margins",
    RobustnessMargins,
    robustness_margins_statistics,
    robustness_margins_figures,
    [*VECTORS, "params:robustness_index"],
    beside=["robustness_k"],
)


def robustness_index_pipelines(
    encoders: Sequence[str],
    controls: Sequence[str],
    *calibrations: Node | None,
    grids: TileGrids | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
) -> list[Pipeline]:
    """Index and margins: one search, one k for all.

    Parameters
    ----------
    encoders, controls
        As in :func:`create_pipeline`.
    calibrations
        Of the index and of the margins; None where the truth is not known.
    grids, splits
        As in :func:`create_pipeline`.
    """
    grids = grids or TileGrids()
    blocks = ["params:robustness_index", "params:robustness_margins"]
    index, margins = INDEX.name, MARGINS.name
    counts, distances = (
        {e: f"statistics.robustness.{name}.{e}" for e in encoders} for name in (index, margins)
    )
    searches = [
        node(
            index_and_margin_statistics,
            [*(grids.dataset(name, e) for name in VECTORS), *blocks],
            [counts[e], distances[e]],
            name="statistics",
            tags=[index, margins, e],
        )
        for e in encoders
    ]
    common_k = node(
        named_partial(choose_k, controls=tuple(controls)),
        {"parameters": blocks[0], **counts},
        "robustness_k",
        name="choose_k",
        tags=[index, margins],
    )
    # A namespace of its own: the common k stands between the searches and what is measured on them.
    found = [grouped(e, [search]) for e, search in zip(encoders, searches, strict=True)]
    own = [grouped(e, [measurements_node("robustness", INDEX, e)]) for e in encoders]
    of_margins = [grouped(e, [measurements_node("robustness", MARGINS, e)]) for e in encoders]
    of_index, of_margin = ([] if node is None else [node] for node in calibrations)
    of_index += pooled_nodes("robustness", INDEX, splits or {}, grids)
    collect = partial(collected_by_encoder, "robustness")
    return [
        grouped("neighbours", [*found, common_k]),
        grouped(index, [*own, *of_index, collect(index, encoders, of_index)]),
        grouped(margins, [*of_margins, *of_margin, collect(margins, encoders, of_margin)]),
    ]


def examples_pipeline(
    encoders: Sequence[str], grids: TileGrids, rotation: Experiment, attacked: Sequence[str]
) -> Pipeline:
    """Tiles that show how checks fail.

    Parameters
    ----------
    encoders
        Those that are no controls.
    grids
        Which tiles each encoder has vectors of.
    rotation
        The experiment on rotated tiles.
    attacked
        Encoders whose tiles are attacked.
    """
    of_center, parts, tables = (INDEX.name, MARGINS.name), [], []
    for e in encoders:
        own = [
            node(
                named_partial(center_examples, name=e, experiments=of_center),
                [grids.dataset(name, e) for name in VECTORS],
                [f"examples.{x}.{e}" for x in of_center],
                name="center",
                tags=[*of_center, e],
            )
        ]
        if not grids.needs_pixels(rotation, e):
            inputs = [grids.dataset(name, e) for name in rotation.inputs]
            own.append(
                node(
                    named_partial(rotation_examples, name=e),
                    [*inputs, f"params:{rotation.name}"],
                    f"examples.{rotation.name}.{e}",
                    name=rotation.name,
                    tags=[rotation.name, e],
                )
            )
        tables += [output for part in own for output in part.outputs]
        # Made where the tiles to attack are chosen, so that layers run forward through the boxes.
        tables += [examples_of_attacks(e)] if e in attacked else []
        parts.append(grouped(e, own))
    collect = node(combine_examples, tables, "robustness_examples", name="collect")
    return grouped("examples", [*parts, collect])
