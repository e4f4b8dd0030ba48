"""Vectors that others made, stored like our own: one shard a slide, in the order of its tiles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.controls import Noise
from pathfm_kedro.encoders.features import FeatureFileError
from pathfm_kedro.encoders.features.cohort import FeatureFile, corners, files_of_slides
from pathfm_kedro.encoders.registry import load_encoder
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.embed.embedding import read_dtype, stored
from pathfm_kedro.statistics.tables import digests_by_slide

#: Raised with any change of what is made of the same file.
_REVISION = "1"
_UNITS = "one row per tile, as the file has it, not normalised"
#: What of the tiling says how a file was made.
_OF_THE_FILE = ("layout", "made_by", "dtype", "loss", "field_um")


@dataclass(frozen=True)
class ReadFeatures:
    """The vectors of one slide's tiles from its file.

    Attributes
    ----------
    file
        Where they are.
    slide_fingerprint
        Content of the slide, empty where there is none.
    x, y
        Places of the tiles in the table's order.
    tiles_digest
        Digest of their ids.
    dtype
        How vectors are stored.
    about
        What the file says of itself.
    reason
        Why the file cannot be used; empty where it can.
    """

    file: FeatureFile
    slide_fingerprint: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    tiles_digest: str
    dtype: str
    about: Mapping[str, Any]
    reason: str = ""

    @property
    def slide_id(self) -> str:
        """The slide whose shard this is."""
        return self.file.slide_id

    def header(self) -> dict[str, str]:
        """What the shard depends on: the file's content, the tiles.

        Raises
        ------
        FeatureFileError
            If the file cannot be used.
        """
        if self.reason:
            raise FeatureFileError(self.reason)
        spec = self.file.spec
        made = f"features:{spec.encoder or spec.name}:{_REVISION}"
        return {
            "slide": self.slide_fingerprint,
            "file": self.file.digest(),
            "tile_ids": self.tiles_digest,
            "encoder": hashlib.sha256(made.encode()).hexdigest(),
            "preprocessing": json.dumps(
                {"input": "a file of features", **self.about}, sort_keys=True
            ),
            "dtype": self.dtype,
            "units": _UNITS,
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``embedding`` [n_tiles, d].

        Raises
        ------
        FeatureFileError
            If the file has no vector of a tile any more.
        ValueError
            If ``dtype`` cannot hold the vectors.
        """
        found = self.file.read()
        row_of = {tuple(place): row for row, place in enumerate(corners(found).tolist())}
        missing = [place for place in zip(self.x, self.y, strict=True) if place not in row_of]
        if missing:
            raise FeatureFileError(
                f"the file has no vector at x={missing[0][0]}, y={missing[0][1]} ({len(missing)} tiles "
                "in all): it was replaced since its tiles were listed; run again from the tile pipeline"
            )
        rows = [row_of[place] for place in zip(self.x, self.y, strict=True)]
        vectors = found.vectors[rows].astype(np.float32)
        where = f"encoder {self.file.spec.name} on slide {self.slide_id}"
        return {"embedding": stored(vectors, self.dtype, where)}


def plan_features(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    tiling: pl.DataFrame,
    encoder: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per usable slide; one whose file cannot be used fails with the reason.

    Parameters
    ----------
    slides
        The slides table.
    tiles, tiling
        From :func:`~pathfm_kedro.encoders.features.cohort.tiles_of_features`.
    encoder
        The entry of ``encoders`` in the parameters.
    parameters
        ``dtype``: how vectors are stored.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder)
    dtype = read_dtype(parameters)
    digests = digests_by_slide(tiles)
    places = tiles.group_by("slide_id").agg("x", "y")
    corners_of = {slide: (tuple(x), tuple(y)) for slide, x, y in places.iter_rows()}
    about = {row["slide_id"]: row for row in tiling.to_dicts()}
    content = dict(slides.select("slide_id", "fingerprint").iter_rows())
    jobs = []
    for file in files_of_slides(slides, spec):
        said = about.get(file.slide_id, {})
        x, y = corners_of.get(file.slide_id, ((), ()))
        reason = said.get("reason") or ("" if x else "the file's tiles were not listed: run again")
        jobs.append(
            ReadFeatures(
                file,
                content.get(file.slide_id) or "",
                x,
                y,
                digests.get(file.slide_id, ""),
                dtype,
                {key: said.get(key) for key in _OF_THE_FILE if said.get(key) is not None},
                reason,
            )
        )
    return ShardPlan(jobs, EngineSettings(**engine), f"reading vectors of {name}")


@dataclass(frozen=True)
class NoiseOfIds:
    """The control that knows nothing, where there are no pixels: numbers by the digest of a tile's id.

    Attributes
    ----------
    slide_id
        The slide.
    tile_ids
        Its tiles in the table's order.
    tiles_digest
        Digest of their ids.
    control
        What dimension and seed there are.
    dtype
        How vectors are stored.
    """

    slide_id: str
    tile_ids: tuple[str, ...]
    tiles_digest: str
    control: Noise
    dtype: str

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        said = {**self.control.preprocessing, "input": "BLAKE2b digest of the tile's id"}
        made = f"{self.control.fingerprint}:ids:{_REVISION}"
        return {
            "slide": "",
            "tile_ids": self.tiles_digest,
            "encoder": hashlib.sha256(made.encode()).hexdigest(),
            "preprocessing": json.dumps(said, sort_keys=True),
            "dtype": self.dtype,
            "units": _UNITS,
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``embedding`` [n_tiles, d]."""
        ids = [np.frombuffer(tile.encode(), np.uint8) for tile in self.tile_ids]
        rows = [self.control.embed(one[None]) for one in ids]
        return {"embedding": stored(np.concatenate(rows), self.dtype, self.slide_id)}


def plan_noise_of_ids(
    tiles: pl.DataFrame,
    encoder: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide that has tiles, where ``control:noise`` has no pixels to look at.

    Parameters
    ----------
    tiles
        The tiles table.
    encoder, parameters, engine, name
        As of :func:`plan_features`.
    """
    control = load_encoder(EncoderSpec.from_parameters(name, encoder))
    if not isinstance(control, Noise):
        raise ValueError(
            f"encoders.{name} needs pixels, and this cohort has no slides: leave it out of the cohort"
        )
    dtype, digests = read_dtype(parameters), digests_by_slide(tiles)
    jobs = [
        NoiseOfIds(str(slide), tuple(rows["tile_id"]), digests[str(slide)], control, dtype)
        for (slide,), rows in tiles.group_by("slide_id", maintain_order=True)
    ]
    return ShardPlan(jobs, EngineSettings(**engine), f"sampling {name}")
