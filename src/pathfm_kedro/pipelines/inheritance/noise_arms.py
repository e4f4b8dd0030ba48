"""Networks pretrained on labels of which a known share is wrong: what is trained, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.batches import turned
from pathfm_kedro.encoders.fabric import fitted_on
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.nmtune import NMTuneSettings, predicted, strong_view, tuned_classifier
from pathfm_kedro.encoders.operations import LEARNT_PASS
from pathfm_kedro.encoders.pretraining import Backbone
from pathfm_kedro.encoders.training import AdamWSettings
from pathfm_kedro.engine import EngineSettings, FitCheckpoint, FitJob, ShardPlan
from pathfm_kedro.pipelines.inheritance.arm_tiles import (
    DOWNSTREAM,
    HELD_OUT,
    PRETRAIN,
    ArmTiles,
    FoldedTiles,
    arm_data_digest,
    readable_tiles,
)
from pathfm_kedro.statistics.cross_validation import ProbeSettings, patient_folds
from pathfm_kedro.statistics.label_noise import Kind, flipped
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters

Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]

#: The network that is pretrained; the name that the rows stand under.
BACKBONE = "small_cnn"
#: Raised with any change of what is fitted to the same tiles.
_REVISION = "1"
#: Of the patients that pretrain one in so many is kept out, for the upstream accuracy.
_UPSTREAM_FOLDS = 5
#: Arms without wrong labels, and without any training.
CLEAN, RANDOM = "clean", "random"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PretrainingNoise(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    rates
        Shares of labels that are wrong; 0 must be among them, what the others are held against.
    kinds
        Of noise; see :func:`~pathfm_kedro.statistics.label_noise.flipped`.
    n_seeds
        Networks of each arm.
    pretraining
        Of networks, for all epochs: who pretrains on wrong labels has no right ones to stop by.
    probe, nmtune
        How probes and the published remedy are fitted.
    components
        Leading components: of the cheap remedy, and of the subspaces between which angles are taken.
    n_groups
        Groups of patients of the jackknife.
    """

    rates: tuple[Annotated[float, Field(ge=0, lt=0.5)], ...]
    kinds: tuple[Literal["symmetric", "center"], ...]
    n_seeds: Count
    pretraining: AdamWSettings
    probe: ProbeSettings
    nmtune: NMTuneSettings
    components: Count
    n_groups: Annotated[int, Field(ge=2)]

    @field_validator("rates")
    @classmethod
    def _has_clean(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if 0 not in rates or len(set(rates)) < 2:
            raise ValueError("give 0 and at least one other share of wrong labels")
        return tuple(sorted(set(rates)))


@plain_dataclass(frozen=True)
class Arm:
    """One network.

    Attributes
    ----------
    kind
        Of noise, :data:`CLEAN` or :data:`RANDOM`.
    rate
        Share of wrong labels.
    seed
        Of weights, order of tiles and wrong labels.
    """

    kind: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its shard."""
        return f"{self.kind}-{round(1000 * self.rate):03d}-{self.seed}"


def noise_arms(p: PretrainingNoise) -> Iterator[Arm]:
    """All arms; the clean one stands for the rate 0 of every kind."""
    for seed in range(p.seed, p.seed + p.n_seeds):
        yield Arm(RANDOM, 0.0, seed)
        yield Arm(CLEAN, 0.0, seed)
        for kind in p.kinds:
            yield from (Arm(kind, rate, seed) for rate in p.rates if rate > 0)


def downstream(pool: pl.DataFrame, shards: Shards, p: PretrainingNoise) -> FoldedTiles:
    """Tiles that frozen vectors are probed on, and who is tested by whom."""
    return FoldedTiles.of(pool, shards, [DOWNSTREAM], p.probe.folds, p.seed, "pretraining_noise")


@plain_dataclass(frozen=True)
class Upstream:
    """Tiles that networks are pretrained on.

    Attributes
    ----------
    table
        Rows of the pool.
    labels
        Their names, sorted.
    trains
        [n] tiles whose patients train; the others tell the upstream accuracy.
    problem
        Why nothing can be pretrained; empty where it can.
    """

    table: pl.DataFrame
    labels: tuple[str, ...]
    trains: NDArray[np.bool_]
    problem: str = ""

    @classmethod
    def of(cls, pool: pl.DataFrame, shards: Shards, p: PretrainingNoise) -> Upstream:
        """Tiles that could be read."""
        own = readable_tiles(pool, shards, PRETRAIN)
        patients, labels = own["patient_id"].to_numpy(), own["label"].to_numpy()
        fold = (
            patient_folds(patients, _UPSTREAM_FOLDS, p.seed, labels)
            if own.height
            else np.zeros(0, np.int64)
        )
        trains = fold > 0
        names = tuple(sorted(set(labels[trains])))
        problem = ""
        if len(names) < 2:
            problem = (
                f"the tiles to pretrain on carry {len(names)} label(s), two are needed: this needs "
                "slides with pixels, labels and several patients of each"
            )
        return cls(own, names, trains, problem)

    @property
    def targets(self) -> Ints:
        """[n] codes of the labels; -1 for one that no training tile carries."""
        known = {label: code for code, label in enumerate(self.labels)}
        return np.array([known.get(label, -1) for label in self.table["label"]], np.int64)


@plain_dataclass(frozen=True)
class NoisyPretraining(FitJob):
    """Pretrain one network and keep what is measured of it.

    Attributes
    ----------
    arm
        Which network.
    pool, tiles
        The tiles' table, and their pixels.
    digest
        Of both.
    parameters
        Of the experiment.
    """

    arm: Arm
    pool: pl.DataFrame
    tiles: Shards
    digest: str
    parameters: PretrainingNoise

    @property
    def slide_id(self) -> str:
        """The arm's name."""
        return self.arm.name

    @property
    def stored(self) -> int:
        """Vectors that are kept."""
        return len(downstream(self.pool, self.tiles, self.parameters).fold)

    @property
    def passes(self) -> int:
        """Forward passes of a tile, one that is learnt from as three."""
        p, below = self.parameters, downstream(self.pool, self.tiles, self.parameters)
        upstream = Upstream.of(self.pool, self.tiles, p)
        # Of the remedy: weak and strong views, and the tiles as they are once more.
        found = 2 * len(below.fold) + 2 * p.nmtune.views * int((below.fold >= 0).sum())
        if self.arm.kind != RANDOM:
            found += LEARNT_PASS * p.pretraining.epochs * int(upstream.trains.sum())
            found += len(upstream.trains)
        return found

    def header(self) -> Mapping[str, str]:
        """What the shard depends on: tiles, software, settings."""
        import torch

        p = self.parameters
        how = [asdict(each) for each in (p.pretraining, p.nmtune, p.probe)]
        return {
            "arm": json.dumps(asdict(self.arm)),
            "settings": json.dumps([_REVISION, BACKBONE, p.seed, *how], sort_keys=True),
            "data": self.digest,
            "torch": torch.__version__.partition("+")[0],
            **fitted_on(BACKBONE),
        }

    def fit(self, checkpoint: FitCheckpoint) -> Mapping[str, NDArray[np.generic]]:
        """Tensors of the arm.

        Returns
        -------
        dict
            ``vectors`` float32 [n, d] of the tiles of :func:`downstream`; ``nmtune`` [n] the class
            that the published remedy gives each; ``given`` and ``upstream`` [m] given and predicted
            class of each tile of :class:`Upstream` (-1 for random weights); ``losses`` of each epoch.
        """
        p, arm = self.parameters, self.arm
        upstream = Upstream.of(self.pool, self.tiles, p)
        below = downstream(self.pool, self.tiles, p)
        pixels = ArmTiles.read(self.pool, self.tiles, PRETRAIN).pixels
        backbone = Backbone(BACKBONE, pixels.shape[1], arm.seed)
        given = upstream.targets
        found, losses = np.full(len(given), -1), np.zeros(0)
        if arm.kind != RANDOM:
            rows = np.flatnonzero(upstream.trains)
            if arm.kind != CLEAN:
                given[rows] = self._flipped(given[rows], upstream)
            model, history = backbone.pretrain(
                pixels[rows], given[rows], len(upstream.labels), p.pretraining, checkpoint
            )
            found, losses = backbone.classified(model, pixels), np.array(history.losses)
        read = ArmTiles.read(self.pool, self.tiles, DOWNSTREAM, HELD_OUT)
        kept = read.table["tile_id"].is_in(below.table["tile_id"].to_list()).to_numpy()
        pixels = read.pixels[kept]
        return {
            "vectors": backbone.vectors(pixels),
            "nmtune": self._nmtuned(backbone, pixels, below),
            "given": given,
            "upstream": found,
            "losses": losses,
        }

    def _flipped(self, targets: Ints, upstream: Upstream) -> Ints:
        centers = upstream.table["center"].fill_null("").to_numpy()[upstream.trains]
        kind: Kind = "center" if self.arm.kind == "center" else "symmetric"
        return flipped(targets, len(upstream.labels), centers, kind, self.arm.rate, self.arm.seed)

    def _nmtuned(self, backbone: Backbone, pixels: NDArray[np.uint8], of: FoldedTiles) -> Ints:
        settings = self.parameters.nmtune
        found = np.full(len(pixels), -1)
        if of.problem:
            return found
        inside = np.flatnonzero(of.fold >= 0)
        weak, strong = (
            backbone.views(pixels[inside], view, settings.views) for view in (turned, strong_view)
        )
        vectors, place = backbone.vectors(pixels), np.full(len(pixels), -1)
        place[inside] = np.arange(len(inside))
        for train, test in of.splits():
            rows = place[train]
            head = tuned_classifier(
                weak[rows],
                strong[rows],
                of.targets[train],
                len(of.labels),
                settings,
                self.arm.seed,
            )
            found[test] = predicted(head, vectors[test])
        return found


def plan_noise_arms(
    pool: pl.DataFrame, tiles: Shards, engine: Mapping[str, Any], p: PretrainingNoise
) -> ShardPlan:
    """One job for each network; none where nothing can be pretrained or probed.

    Parameters
    ----------
    pool, tiles
        Tiles that arms are trained and probed on, and their pixels.
    engine
        Where jobs run.
    p
        The parameters.
    """
    upstream = Upstream.of(pool, tiles, p)
    jobs: list[NoisyPretraining] = []
    if not upstream.problem and not downstream(pool, tiles, p).problem:
        digest = arm_data_digest(pool, tiles)
        one_center = upstream.table.filter(pl.Series(upstream.trains))["center"].n_unique() < 2
        jobs = [
            NoisyPretraining(arm, pool, tiles, digest, p)
            for arm in noise_arms(p)
            if arm.kind != "center" or not one_center
        ]
    return ShardPlan(jobs, EngineSettings(**engine), "pretraining on wrong labels")
