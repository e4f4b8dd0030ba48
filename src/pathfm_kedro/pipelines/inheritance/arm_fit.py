"""The fit of one arm: a network pretrained on the arms' tiles, then frozen and shown the test tiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.fabric import fitted_on, training_device
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.operations import passes_of_task
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.training import AdamWSettings, History
from pathfm_kedro.engine import FitCheckpoint, FitJob
from pathfm_kedro.engine.versions import package_versions
from pathfm_kedro.pipelines.inheritance.arm_statistics import (
    CROP,
    ROTATIONS,
    STAIN,
    STAINED_AS,
    VECTORS,
    VIEWS,
    ArmParameters,
    arm_shard,
    centers_of,
)
from pathfm_kedro.pipelines.inheritance.arm_tiles import (
    DOWNSTREAM,
    HELD_OUT,
    PRETRAIN,
    ArmTiles,
    arm_data_digest,
    readable_tiles,
)
from pathfm_kedro.slides.center_stains import (
    TileStains,
    center_references,
    targets_at,
    usable_references,
)
from pathfm_kedro.slides.nuclear_morphology import (
    haematoxylin_orientation,
    nuclear_density_and_size,
)
from pathfm_kedro.slides.stain import (
    COMMON_BASIS,
    StainReference,
    jitter_draw,
    jittered,
    macenko_transfer,
)
from pathfm_kedro.slides.training_tiles import shrunk
from pathfm_kedro.statistics.cue_conflict import TRANSFERRED
from pathfm_kedro.statistics.sampling import shuffled_turns

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]

#: Raised with any change of what is computed from the same tiles.
_REVISION = "3"


@dataclass(frozen=True)
class PretrainedArm(FitJob):
    """A network, a task and a budget.

    Attributes
    ----------
    name, seed
        Of the arm.
    task
        One of :data:`pathfm_kedro.encoders.pretexts.TASKS`.
    network
        ``small_cnn`` or ``small_vit``, drawn from the seed, or the entry of an encoder, with its
        weights or with those that it is drawn with.
    epochs
        Of this arm.
    pool, tiles
        The arms' tiles and their pixels.
    parameters
        The experiment's.
    """

    name: str
    seed: int
    task: str
    network: str | EncoderSpec
    epochs: int
    pool: pl.DataFrame
    tiles: Shards
    parameters: ArmParameters

    @property
    def slide_id(self) -> str:
        """What the shard is called."""
        return arm_shard(self.name, self.seed)

    @property
    def stored(self) -> int:
        """Vectors that are kept."""
        return len(VIEWS) * readable_tiles(self.pool, self.tiles, DOWNSTREAM, HELD_OUT).height

    @property
    def passes(self) -> int:
        """Forward passes of a tile, one that is learnt from as three."""
        trained = readable_tiles(self.pool, self.tiles, PRETRAIN).height
        return self.epochs * passes_of_task(self.task) * trained + self.stored

    def header(self) -> dict[str, str]:
        """What the vectors depend on: data, settings, software."""
        p = self.parameters
        network = self.network if isinstance(self.network, str) else self.network.key()
        settings = [p.batch, p.learning_rate, p.weight_decay, p.stain_sigma, p.crop_share]
        settings += [p.reference_tiles, p.min_reference_tiles, p.seed]
        return {
            "arm": json.dumps([_REVISION, self.task, network, self.epochs, self.seed, *settings]),
            "data": arm_data_digest(self.pool, self.tiles),
            "packages": json.dumps(
                package_versions(["torch", "timm", "scikit-image", "torchstain"])
            ),
            **fitted_on(self.network),
            "units": "vectors of test tiles and of their views, tile x dimension",
        }

    def fit(self, checkpoint: FitCheckpoint) -> dict[str, NDArray[np.generic]]:
        """Vectors of the test tiles and of their views, and how training went.

        Raises
        ------
        ValueError
            If there are too few tiles to pretrain on.
        """
        from pathfm_kedro.encoders.pretexts import operations, pretrain

        p = self.parameters
        train = ArmTiles.read(self.pool, self.tiles, PRETRAIN)
        test = ArmTiles.read(self.pool, self.tiles, DOWNSTREAM, HELD_OUT)
        backbone = self._backbone(train.pixels.shape[1])
        targets, history = TARGETS.get(self.task, _no_target)(train), History()
        if self.epochs:
            settings = AdamWSettings(self.epochs, p.batch, p.learning_rate, p.weight_decay)
            history = pretrain(
                backbone, self.task, train.pixels, targets, settings, self.seed, checkpoint
            )
        n, side = train.pixels.shape[:2]
        spent = operations(backbone, self.task, side, n, len(history.losses))
        return {
            **self._vectors(backbone, test),
            "losses": np.array(history.losses, np.float64),
            "operations": np.array([spent], np.float64),
            "n_tiles": np.array([n], np.int64),
        }

    def _backbone(self, side: int) -> torch.nn.Module:
        network: torch.nn.Module
        if isinstance(self.network, str):
            from pathfm_kedro.encoders.architectures import rival

            network = rival(self.network, side, self.seed)
        else:
            from pathfm_kedro.encoders.weights import build_network

            network = build_network(self.network)
            # Encoders are frozen as they are loaded.
            network.requires_grad_(True)
        return network.to(training_device(self.network))

    def _vectors(self, backbone: torch.nn.Module, test: ArmTiles) -> dict[str, NDArray[np.generic]]:
        from pathfm_kedro.encoders.pretexts import frozen_vectors

        pixels, p = test.pixels, self.parameters
        views = {VECTORS: pixels}
        views |= {name: np.rot90(pixels, turn, axes=(1, 2)) for name, turn in ROTATIONS.items()}
        views[STAIN] = stained_otherwise(pixels, p.stain_sigma, p.seed)
        views[CROP] = small_crops(pixels, p.crop_share, p.seed)
        views[TRANSFERRED], targets = stained_as_next_center(test, p)
        found = {name: frozen_vectors(backbone, view) for name, view in views.items()}
        return {**found, STAINED_AS: targets}


def stained_otherwise(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    """Each tile with its own draw of the stain jitter.

    Parameters
    ----------
    pixels
        uint8 [n, side, side, 3].
    sigma
        Dose.
    seed
        Of the draws.
    """
    made = [
        jittered(tile, COMMON_BASIS, sigma, jitter_draw([seed, number]))
        for number, tile in enumerate(pixels)
    ]
    return np.stack(made) if made else pixels


def stained_as_next_center(tiles: ArmTiles, p: ArmParameters) -> tuple[Pixels, NDArray[np.int64]]:
    """Each tile in the stain of the center that comes next in the order of names (Macenko).

    Parameters
    ----------
    tiles
        The tiles, of which each center's stain is estimated, too.
    p
        The parameters.

    Returns
    -------
    tuple
        uint8 [n, side, side, 3], and of each center the place of the next one, sorted; -1 where its
        tiles stay as they are, since fewer than two centers have a stain, or it has none.
    """
    known, centers = _center_stains(tiles, p), centers_of(tiles.table)
    next_one = targets_at(list(known), 0, 1)
    made = tiles.pixels.copy()
    for row, center in enumerate(tiles.table["center"]):
        if center in next_one:
            made[row] = macenko_transfer(made[row], known[center], known[next_one[center]])
    places = [centers.index(next_one[c]) if c in next_one else -1 for c in centers]
    return made, np.array(places, np.int64)


def _center_stains(tiles: ArmTiles, p: ArmParameters) -> dict[str, StainReference]:
    rows = tiles.table.with_row_index("_row").drop_nulls("center").sort("tile_id")
    turns = shuffled_turns(rows, [["slide_id"]], p.seed)
    chosen = turns.filter(pl.int_range(pl.len()).over("center") < p.reference_tiles)
    if chosen.is_empty():
        return {}
    stains = TileStains.of(tiles.pixels[chosen["_row"].to_numpy()]).table(chosen)
    return usable_references(center_references(stains, p.min_reference_tiles))


def small_crops(pixels: Pixels, share: float, seed: int) -> Pixels:
    """One square crop of each tile, of that share of its area, at a random place, as large as the tile.

    Parameters
    ----------
    pixels
        uint8 [n, side, side, 3].
    share
        Of the area.
    seed
        Of the places.
    """
    side = pixels.shape[1]
    small = max(1, round(side * share**0.5))
    corners = np.random.default_rng(seed).integers(side - small + 1, size=(len(pixels), 2))
    crops = [
        tile[top : top + small, left : left + small]
        for tile, (top, left) in zip(pixels, corners, strict=True)
    ]
    return shrunk(np.stack(crops), side) if crops else pixels


def _no_target(train: ArmTiles) -> NDArray[np.float64]:
    return np.zeros((len(train.pixels), 0))


def _standardised(measured: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = measured.std(axis=0)
    scaled: NDArray[np.float64] = (measured - measured.mean(axis=0)) / np.where(
        spread > 0, spread, 1.0
    )
    return scaled


def _orientation(train: ArmTiles) -> NDArray[np.float64]:
    """Scaled and not centred: a quarter turn must change the sign and nothing else."""
    measured = haematoxylin_orientation(train.pixels)
    size = float(np.sqrt((measured**2).mean())) if measured.size else 0.0
    scaled: NDArray[np.float64] = measured / (size or 1.0)
    return scaled


def _labels(train: ArmTiles) -> NDArray[np.int64]:
    names = train.table["label"].unique().sort().to_list()
    if len(names) < 2:
        raise ValueError(
            f"the patients that pretrain carry {len(names)} label(s), and supervised training needs "
            "two: add patients, or leave the arm out"
        )
    return train.table["label"].replace_strict(names, range(len(names))).to_numpy().astype(np.int64)


#: What a task predicts, where it is measured on the tile or given with it.
TARGETS: Mapping[str, Callable[[ArmTiles], NDArray[Any]]] = {
    "morphology": lambda train: _standardised(nuclear_density_and_size(train.pixels)),
    "orientation": _orientation,
    "supervised": _labels,
}
