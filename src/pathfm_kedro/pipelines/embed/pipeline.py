"""embed: from tiles to vectors, one namespace per encoder."""

from collections.abc import Mapping, Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.features.cohort import tiles_of_features
from pathfm_kedro.encoders.harmonised import plan_harmonised
from pathfm_kedro.pipelines.embed.card import collect_cards, describe_encoder
from pathfm_kedro.pipelines.embed.cost import plan_cost, plan_no_cost
from pathfm_kedro.pipelines.embed.embedding import plan_embedding
from pathfm_kedro.pipelines.embed.features import plan_features, plan_noise_of_ids
from pathfm_kedro.pipelines.embed.rival import fit_rival, plan_training_tiles
from pathfm_kedro.pipelines.embed.runtime import choose_runtime, collect_records
from pathfm_kedro.slides.mosaic import choose_mosaic
from pathfm_kedro.wiring import TileGrids, grouped, named_partial, node


def create_pipeline(
    encoders: Sequence[str],
    bases: Mapping[str, str] | None = None,
    seeds: Mapping[str, int] | None = None,
    features: Sequence[str] = (),
    grids: TileGrids | None = None,
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders.

    Parameters
    ----------
    encoders
        All encoders of the cohort.
    bases
        Of each harmonised variant, the encoder whose vectors it takes.
    seeds
        Of each encoder that is trained on the cohort, its seed.
    features
        Encoders whose vectors are read from files.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    """
    known, trained, grids = bases or {}, seeds or {}, grids or TileGrids()

    def made(name: str) -> list[Node]:
        if name in known:
            return _one_variant(name, known[name], grids.grid(name))
        if name in trained:
            fitted = _fitted(name, trained[name], grids)
            return [*fitted, *_embedded(name, grids), *_described(name, name, grids.grid(name))]
        embedded = _read if name in features else _sampled if grids.without_slides else _embedded
        return [_runtime(name), *embedded(name, grids), *_described(name, name, grids.grid(name))]

    parts = [grouped(name, made(name)) for name in encoders]
    cards = [f"encoder_card.{name}" for name in encoders]
    ran = [name for name in encoders if name not in known]
    runtimes = [f"encoder_runtime.{name}" for name in ran]
    collect = [
        node(collect_cards, cards, "encoder_cards", name="collect_cards", tags="collect"),
        node(
            named_partial(collect_records, names=tuple(ran)),
            runtimes,
            "encoder_runtimes",
            name="collect_runtimes",
            tags="collect",
        ),
        node(
            named_partial(collect_records, names=tuple(ran)),
            [f"encoder_cost.{name}" for name in ran],
            "encoder_costs",
            name="collect_costs",
            tags="collect",
        ),
    ]
    return grouped("embed", [*parts, *collect])


def _one_variant(name: str, base: str, grid: str) -> list[Node]:
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
        *_described(name, base, grid),
    ]


def _runtime(name: str, *fitted: str) -> Node:
    return node(
        named_partial(choose_runtime, name=name),
        [f"params:encoders.{name}", "params:tile", *fitted],
        f"encoder_runtime.{name}",
        name=f"choose_runtime_{name}",
        tags=name,
    )


def _read(name: str, grids: TileGrids) -> list[Node]:
    """Vectors from files, and the tiles that they are of where these are not the cohort's."""
    tables = [grids.dataset(table, name) for table in ("tiles", "tiling")]
    entry = f"params:encoders.{name}"
    read = node(
        named_partial(plan_features, name=name),
        ["slides", *tables, entry, "params:embed", "params:engine"],
        f"embeddings.{name}",
        name=f"read_{name}",
        tags=name,
    )
    if not grids.grid(name):
        return [read, _no_cost(name)]
    brought = node(
        named_partial(tiles_of_features, name=name, choose_mosaic=choose_mosaic),
        ["slides", entry, "params:tile", "params:engine"],
        tables,
        name=f"tiles_of_{name}",
        tags=name,
    )
    return [brought, read, _no_cost(name)]


def _no_cost(name: str) -> Node:
    return node(
        named_partial(plan_no_cost, name=name),
        [f"params:encoders.{name}", f"encoder_runtime.{name}", "params:cost_trial"],
        f"encoder_cost.{name}",
        name=f"measure_cost_{name}",
        tags=name,
    )


def _sampled(name: str, grids: TileGrids) -> list[Node]:
    """The control that knows nothing, where there are no pixels."""
    return [
        node(
            named_partial(plan_noise_of_ids, name=name),
            ["tiles", f"params:encoders.{name}", "params:embed", "params:engine"],
            f"embeddings.{name}",
            name=f"sample_{name}",
            tags=name,
        ),
        _no_cost(name),
    ]


def _fitted(name: str, seed: int, grids: TileGrids) -> list[Node]:
    """The fit of an encoder that is trained on the cohort, and its runtime."""
    pixels, weights, entry = (
        f"training_tiles.{name}",
        f"models.{name}.{seed}",
        f"params:encoders.{name}",
    )
    tiles = grids.dataset("tiles", name)
    return [
        node(
            named_partial(plan_training_tiles, name=name),
            ["slides", tiles, "slide_files", entry, "params:tile", "params:engine"],
            pixels,
            name=f"read_training_tiles_{name}",
            tags=name,
        ),
        node(
            named_partial(fit_rival, name=name),
            ["slides", pixels, entry],
            weights,
            name=f"fit_{name}",
            tags=name,
        ),
        _runtime(name, weights),
    ]


def _embedded(name: str, grids: TileGrids) -> list[Node]:
    """Vectors of an encoder whose runtime is recorded."""
    return [
        node(
            named_partial(plan_embedding, name=name),
            [
                "slides",
                grids.dataset("tiles", name),
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
                grids.dataset("tiles", name),
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
    ]


def _described(name: str, run_by: str, grid: str) -> list[Node]:
    """A card for every encoder, which says what ran the network."""
    return [
        node(
            named_partial(describe_encoder, name=name, **({"grid": grid} if grid else {})),
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
