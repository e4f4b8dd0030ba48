"""embed: from tiles to vectors, one namespace per encoder."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.embed.card import describe_encoder
from pathfm_kedro.pipelines.embed.embedding import plan_embedding, pool_slides
from pathfm_kedro.wiring import grouped, named_partial, node


def create_pipeline(encoders: Sequence[str]) -> Pipeline:
    """Wire the pipeline for the cohort's encoders."""
    return grouped("embed", [grouped(name, _one_encoder(name)) for name in encoders])


def _one_encoder(name: str) -> list[Node]:
    return [
        node(
            named_partial(plan_embedding, name=name),
            [
                "slides",
                "tiles",
                "slide_files",
                f"params:encoders.{name}",
                "params:tile",
                "params:embed",
                "params:engine",
            ],
            f"embeddings.{name}",
            name=f"embed_{name}",
            tags=name,
        ),
        node(
            pool_slides,
            ["slides", "tiles", f"embeddings.{name}"],
            f"slide_vectors.{name}",
            name=f"pool_{name}",
            tags=name,
        ),
        node(
            named_partial(describe_encoder, name=name),
            [f"params:encoders.{name}", f"embeddings.{name}"],
            f"encoder_card.{name}",
            name=f"describe_{name}",
            tags=name,
        ),
    ]
