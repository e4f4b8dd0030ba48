"""embed: from tiles to vectors, one namespace per encoder."""

from collections.abc import Mapping, Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.harmonised import plan_harmonised
from pathfm_kedro.pipelines.embed.card import describe_encoder
from pathfm_kedro.pipelines.embed.embedding import plan_embedding, pool_slides
from pathfm_kedro.pipelines.embed.runtime import choose_runtime
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
    return grouped("embed", parts)


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
        *_described(name, name),
    ]


def _described(name: str, run_by: str) -> list[Node]:
    """What every encoder gets: vectors of slides, and a card that says what ran the network."""
    return [
        node(
            pool_slides,
            ["slides", "tiles", f"embeddings.{name}"],
            f"slide_vectors.{name}",
            name=f"pool_{name}",
            tags=name,
        ),
        node(
            named_partial(describe_encoder, name=name),
            [f"params:encoders.{name}", f"encoder_runtime.{run_by}", f"embeddings.{name}"],
            f"encoder_card.{name}",
            name=f"describe_{name}",
            tags=name,
        ),
    ]
