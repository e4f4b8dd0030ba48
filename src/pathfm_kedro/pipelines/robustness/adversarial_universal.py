"""One perturbation for all tiles of an encoder, fitted without labels on other patients.

Folds of patients are halved: the perturbation that is used on one half is fitted on the other
(:func:`~pathfm_kedro.encoders.attacks.universal_perturbation`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.attacks import (
    MAX_GREY_LEVEL,
    random_start,
    to_images,
    universal_perturbation,
)
from pathfm_kedro.encoders.gradients import differentiable
from pathfm_kedro.encoders.rivals import left_out
from pathfm_kedro.engine import EngineSettings, ShardPlan, cancellable
from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial, UniversalSettings
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.sampling import shuffled_turns
from pathfm_kedro.statistics.tables import digest_of_tiles
from pathfm_kedro.views import Tensors, encoder_header

#: Raised with any change of what a fit makes of the same tiles.
_REVISION = "1"
#: It needs no probe, so two fits serve all folds.
_HALVES = 2


@dataclass(frozen=True, eq=False)
class FitUniversal:
    """The universal perturbation that is used on one half of the folds, fitted on the other.

    Attributes
    ----------
    slide_id
        ``half-0`` or ``half-1``: the half that it is used on.
    slide_fingerprints
        Content of the slides that it is fitted on.
    fields
        Where the tiles lie that it is fitted on, slide by slide.
    tile_ids
        Their ids.
    settings
        Sizes, steps and batch.
    spec
        The encoder.
    seed
        Of the start.
    """

    slide_id: str
    slide_fingerprints: tuple[str, ...]
    fields: tuple[TileFields, ...]
    tile_ids: tuple[str, ...]
    settings: UniversalSettings
    spec: EncoderSpec
    seed: int

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        fit = self.settings
        return encoder_header(self.spec) | {
            "slides": json.dumps(self.slide_fingerprints),
            "fields": json.dumps([fields.digest() for fields in self.fields]),
            "tile_ids": digest_of_tiles(self.tile_ids),
            "attack": json.dumps([_REVISION, fit.epsilons, fit.steps, fit.batch, self.seed]),
            "units": "size x height x width x channel, grey levels of 255",
        }

    def compute(self) -> Tensors:
        """``universal`` int8 [sizes, height, width, 3]; no sizes where there is no gradient."""
        gradients = differentiable(load_encoder(self.spec))
        pixels, fit = self.fields[0].pixels, self.settings
        if gradients is None:
            return {"universal": np.zeros((0, pixels, pixels, 3), np.int8)}
        parts = [tile for f in self.fields for tile, _ in cancellable(f.batches(1))]
        tiles, start = to_images(np.concatenate(parts)), random_start(pixels, self.seed)
        deltas = [
            universal_perturbation(
                gradients.embed, tiles, e / MAX_GREY_LEVEL, fit.steps, start, fit.batch
            )
            for e in fit.epsilons
        ]
        return {"universal": np.stack(deltas)}


def plan_universal_perturbation(
    slides: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    encoder: Mapping[str, Any],
    runtimes: Mapping[str, Mapping[str, Any]],
    p: Adversarial,
    *,
    name: str,
) -> ShardPlan:
    """Two jobs, one for each half of the folds; none where the parameters leave it out.

    Parameters
    ----------
    slides
        The slides table.
    pool
        From :func:`~.adversarial_pool.choose_adversarial_pool`.
    files
        The cohort's folder.
    tile_parameters
        ``pixels``: side of a tile.
    engine
        Where jobs run.
    encoder, runtimes
        The entry of ``encoders`` and the recorded runtimes.
    p
        The parameters.
    name
        The encoder's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtimes[name])
    pool = pool.filter(~pl.col("slide_id").is_in(list(left_out(slides, spec))))
    jobs: list[FitUniversal] = []
    if p.universal is not None:
        pixels = int(tile_parameters["pixels"])
        for half in range(_HALVES):
            tiles = _training_tiles(pool, half, p.universal.tiles, p.seed)
            found = slide_fields(slides, tiles, files, pixels)
            if found:
                jobs.append(_fit(half, found, tiles, p.universal, spec, p.seed))
    title = f"universal perturbation of {name}"
    return ShardPlan(jobs, EngineSettings(**engine), title, partial(load_encoder, spec))


def _fit(
    half: int,
    found: list[tuple[dict[str, Any], TileFields]],
    tiles: pl.DataFrame,
    settings: UniversalSettings,
    spec: EncoderSpec,
    seed: int,
) -> FitUniversal:
    slides, fields = zip(*found, strict=True)
    content = tuple(slide["fingerprint"] for slide in slides)
    return FitUniversal(
        name_of_half(half), content, fields, tuple(tiles["tile_id"]), settings, spec, seed
    )


def name_of_half(fold: int) -> str:
    """Name of the half that a fold is in."""
    return f"half-{fold % _HALVES}"


def _training_tiles(pool: pl.DataFrame, half: int, n: int, seed: int) -> pl.DataFrame:
    """Training tiles of patients in the other half of the folds: labels take turns, then slides."""
    others = pool.filter("trains", pl.col("fold") % _HALVES != half).with_row_index("_row")
    sampled = shuffled_turns(others, [["label", "slide_id"], ["label"]], seed).head(n)
    return sampled.sort("slide_id", "_row").select(pool.columns)
