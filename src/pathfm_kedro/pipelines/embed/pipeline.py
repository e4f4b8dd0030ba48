"""embed: from tiles to vectors, one namespace per encoder."""

from collections.abc import Mapping, Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.harmonised import plan_harmonised
from pathfm_kedro.pipelines.embed.card import collect_cards, describe_encoder
from pathfm_kedro.pipelines.embed.cost import collect_costs, plan_cost
from pathfm_kedro.pipelines.embed.embedding import plan_embedding
from pathfm_kedro.pipelines.embed.runtime import choose_runtime, collect_runtimes
from pathfm_kedro.wiring import grouped, named_partial, node


def create_pipeline(encoders: Sequence[str], bases: Mapping[str, str] | None = None) -> Pipeline:
    """Wire the pipeline for the cohort's encoders.

    Parameters
    ----------
    encoders
        All encoders of the cohort.
    bases
        Of each harmonised variant, the encoder whose vectors it takes.
    """
    known = bases or {}
    parts = [
        grouped(name, _one_variant(name, known[name]) if name in known else _one_encoder(name))
        for name in encoders
    ]
    cards = [f"encoder_card.{name}" for name in encoders]
    ran = [name for name in encoders if name not in known]
    runtimes = [f"encoder_runtime.{name}" for name in ran]
    collect = [
        node(collect_cards, cards, "encoder_cards", name="collect_cards", tags="collect"),
        node(
            named_partial(collect_runtimes, names=tuple(ran)),
            runtimes,
            "encoder_runtimes",
            name="collect_runtimes",
            tags="collect",
        ),
        node(
            named_partial(collect_costs, names=tuple(ran)),
            [f"encoder_cost.{name}" for name in ran],
            "encoder_costs",
            name="collect_costs",
            tags="collect",
        ),
    ]
    return grouped("embed", [*parts, *collect])


def _one_variant(name: str, base: str) -> list[Node]:
    """Vectors of the base with the center taken out."""
    return [
        node(
            named_partial(plan_harmonised, name=name),
            [
                "slides",
                f"embeddings.{base}",
                f"embeddings.{base}",
                f"params:encoders.{name}",
                "params:engine",
            ],
            f"embeddings.{name}",
            name=f"harmonise_{name}",
            tags=name,
        ),
        *_described(name, base),
    ]


def _one_encoder(name: str) -> list[Node]:
    return [
        node(
            named_partial(choose_runtime, name=name),
            [f"params:encoders.{name}", "params:tile"],
            f"encoder_runtime.{name}",
            name=f"choose_runtime_{name}",
            tags=name,
        ),
        node(
            named_partial(plan_embedding, name=name),
            [
                "slides",
                "tiles",
                "slide_files",
                f"params:encoders.{name}",
                f"encoder_runtime.{name}",
                "params:tile",
                "params:embed",
                "params:engine",
            ],
            f"embeddings.{name}",
            name=f"embed_{name}",
            tags=name,
        ),
        node(
            named_partial(plan_cost, name=name),
            [
                "slides",
                "tiles",
                "slide_files",
                f"params:encoders.{name}",
                f"encoder_runtime.{name}",
                "params:tile",
                "params:cost_trial",
            ],
            f"encoder_cost.{name}",
            name=f"measure_cost_{name}",
            tags=name,
        ),
        *_described(name, name),
    ]


def _described(name: str, run_by: str) -> list[Node]:
    """A card for every encoder, which says what ran the network."""
    return [
        node(
            named_partial(describe_encoder, name=name),
            [
                f"params:encoders.{name}",
                f"encoder_runtime.{run_by}",
                f"embeddings.{name}",
                "params:tile",
            ],
            f"encoder_card.{name}",
            name=f"describe_{name}",
            tags=name,
        ),
    ]
