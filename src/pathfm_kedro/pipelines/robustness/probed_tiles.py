"""Under which probe the tiles of a slide are read and attacked, also through the map of a variant.

A harmonised variant maps the vectors of another encoder by an affine map per center, fitted on other
patients (:mod:`~pathfm_kedro.statistics.harmonisation`). A linear probe of mapped vectors is a linear
probe of the vectors before: whoever attacks the other encoder's network under it attacks the variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.encoders.harmonised import Shards, center_maps
from pathfm_kedro.engine import ShardPlan
from pathfm_kedro.pipelines.robustness.adversarial_pool import attacked_tiles, probe_of_fold
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.harmonisation import AffineMap
from pathfm_kedro.statistics.linear_classifier import Floats, LinearClassifier
from pathfm_kedro.views import TileWork, embed_tile, plan_tile_work


@dataclass(frozen=True, eq=False)
class ProbedTiles:
    """The probe of one slide's tiles.

    Attributes
    ----------
    probe
        Of the encoder's or the variant's vectors, trained on other patients.
    targets
        The probe's class of each tile, by its id.
    center_map
        Of a variant: what makes its vectors of the network's; None where they are the network's.
    """

    probe: LinearClassifier
    targets: Mapping[str, int]
    center_map: AffineMap | None = None

    def describe(self) -> list[Any]:
        """Everything that decides what is read of a tile."""
        mapped = [] if self.center_map is None else [self.center_map.digest()]
        return [self.probe.digest(), self.targets, *mapped]

    @cached_property
    def of_network(self) -> LinearClassifier:
        """The same probe as one of the network's vectors."""
        return self.probe if self.center_map is None else self.probe.after(self.center_map)

    def embed(
        self, encoder: Encoder, pictures: Pixels, truth: Vectors | None, tile_id: str
    ) -> Vectors:
        """Vectors [n, d] of n pictures of one tile."""
        vectors = embed_tile(encoder, pictures, truth, tile_id)
        return vectors if self.center_map is None else self.center_map(vectors)

    def margins(self, vectors: Vectors, tile_id: str) -> Floats:
        """Logit of the tile's label minus the best other, of vectors as :meth:`embed` gives them."""
        return self.probe.margins(vectors, np.full(len(vectors), self.targets[tile_id]))


#: What is computed of a slide's tiles under their probe; None for nothing.
ProbedWork = Callable[[pl.DataFrame, ProbedTiles], TileWork | None]


def probed_tiles(
    tiles: pl.DataFrame, probes: pl.DataFrame, maps: Mapping[str, AffineMap] | None = None
) -> ProbedTiles | None:
    """The probe of a slide's fold.

    Parameters
    ----------
    tiles
        Of one slide, some of :func:`~.adversarial_pool.attacked_tiles`.
    probes
        From :func:`~.adversarial_pool.fit_adversarial_probes`.
    maps
        Of a variant, by slide.

    Returns
    -------
    ProbedTiles
        None where a variant has no map of the slide.
    """
    slide, fold = tiles.select("slide_id", "fold").row(0)
    if maps is not None and slide not in maps:
        return None
    probe = probe_of_fold(probes, fold)
    targets = {
        tile: probe.labels.index(label) for tile, label in tiles["tile_id", "label"].iter_rows()
    }
    return ProbedTiles(probe, targets, None if maps is None else maps[slide])


def plan_probed(
    slides: pl.DataFrame,
    pool: pl.DataFrame,
    probes: pl.DataFrame,
    files: SlideFiles,
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    encoder: Mapping[str, Any],
    runtimes: Mapping[str, Mapping[str, Any]],
    *beside: Any,
    name: str,
    work: Callable[..., ProbedWork],
    title: str,
    maps: Mapping[str, AffineMap] | None = None,
) -> ShardPlan:
    """One job per slide of the attacked tiles.

    Parameters
    ----------
    slides, pool, files, tile_parameters, engine, encoder, runtimes, name
        As of :func:`~.adversarial_universal.plan_universal_perturbation`.
    probes
        From :func:`~.adversarial_pool.fit_adversarial_probes`.
    *beside
        What `work` takes.
    work
        Gives what is computed of a slide's tiles: :func:`~.adversarial_views.attack_work` or
        :func:`~.adversarial_transfer.transfer_work`.
    title
        What the progress bar says before the encoder's name.
    maps
        As of :func:`probed_tiles`.
    """
    of_tiles = work(*beside)

    def of_slide(tiles: pl.DataFrame) -> TileWork | None:
        probed = probed_tiles(tiles, probes, maps)
        return None if probed is None else of_tiles(tiles, probed)

    return plan_tile_work(
        slides,
        attacked_tiles(pool, probes),
        files,
        of_slide,
        EncoderSpec.from_parameters(name, encoder).with_runtime(runtimes[name]),
        int(tile_parameters["pixels"]),
        engine,
        f"{title} {name}",
    )


def plan_through_base(
    slides: pl.DataFrame,
    embeddings: Shards,
    variant: Mapping[str, Any],
    *inputs: Any,
    base: str,
    name: str,
    **bound: Any,
) -> ShardPlan:
    """Jobs of a harmonised variant: those of the encoder whose vectors it takes, through its maps.

    Parameters
    ----------
    slides
        The slides table.
    embeddings
        Vectors of that encoder: what the maps are fitted on.
    variant
        The variant's entry of ``encoders``; ``mitigation`` is the method.
    *inputs
        What :func:`plan_probed` takes after the slides: that encoder's entry of ``encoders`` and the
        probes of the variant's vectors among it.
    base, name
        Names of that encoder and of the variant.
    **bound
        What :func:`plan_probed` takes by name.
    """
    method = EncoderSpec.from_parameters(name, variant).mitigation
    maps = center_maps(slides, embeddings, str(method))
    found = plan_probed(slides, *inputs, name=base, maps=maps, **bound)
    return replace(found, title=f"{found.title} for {name}")
