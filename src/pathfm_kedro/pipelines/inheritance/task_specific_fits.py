"""Fits of the task-specific network: who trains it at each budget, and whom it is tested on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from math import ceil
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.fabric import fitted_on
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.operations import LEARNT_PASS
from pathfm_kedro.encoders.pretraining import Backbone
from pathfm_kedro.encoders.training import AdamWSettings
from pathfm_kedro.engine import EngineSettings, FitCheckpoint, FitJob, ShardPlan
from pathfm_kedro.pipelines.inheritance.arm_tiles import (
    DOWNSTREAM,
    PRETRAIN,
    ArmTiles,
    FoldedTiles,
    arm_data_digest,
)
from pathfm_kedro.pipelines.inheritance.patient_budgets import (
    refuse_less_than_a_patient,
    sampled_patients,
)
from pathfm_kedro.statistics.cross_validation import ProbeSettings
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.probe_splits import HELD_OUT_CENTER, IN_DOMAIN

Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]

#: The network; the name of its curve.
NETWORK = "small_cnn"
#: Raised with any change of what is fitted to the same tiles.
_REVISION = "1"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class NetworkTraining:
    """How the network is trained: AdamW, the rate falling to nothing along a cosine.

    Attributes
    ----------
    steps
        Batches of every fit at least, whatever the budget: few patients are seen more often.
    batch
        Tiles of a step.
    learning_rate, weight_decay
        Of AdamW.
    """

    steps: Count
    batch: Count
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]

    def on(self, n_tiles: int) -> AdamWSettings:
        """Whole passes over so many tiles.

        Examples
        --------
        >>> training = NetworkTraining(steps=10, batch=4, learning_rate=0.001, weight_decay=0.0)
        >>> training.on(8).epochs, training.on(12).epochs
        (5, 4)
        """
        epochs = ceil(self.steps / ceil(n_tiles / self.batch))
        return AdamWSettings(epochs, self.batch, self.learning_rate, self.weight_decay)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TaskSpecific(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    budgets
        Shares of the patients that can train; none leaves the experiment out.
    repeats
        Samples of patients of each budget, each with weights of its own.
    probe
        Of the label; labels of fewer patients than folds are left out.
    training
        Of the small network.
    """

    budgets: Annotated[tuple[Share, ...], AfterValidator(lambda given: tuple(sorted(set(given))))]
    repeats: Count
    probe: ProbeSettings
    training: NetworkTraining


@plain_dataclass(frozen=True, eq=False)
class BudgetSplit:
    """Tiles of one model of each curve.

    Attributes
    ----------
    tested
        Other patients of the same centers, or the center that is held out.
    fold, repeat
        Of the patients that are tested, and the sample of those that train.
    budget
        Share of the patients that can train.
    train, test
        Rows of the :class:`~.arm_tiles.FoldedTiles`.
    n_patients
        That train.
    """

    tested: str
    fold: int
    repeat: int
    budget: float
    train: Ints
    test: Ints
    n_patients: int

    @property
    def name(self) -> str:
        """Of the shard.

        Examples
        --------
        >>> none = np.zeros(0, np.int64)
        >>> BudgetSplit("in_domain", 2, 0, 0.05, none, none, 3).name
        'in_domain-fold2-budget0050-repeat0'
        """
        return (
            f"{self.tested}-fold{self.fold}-budget{round(1000 * self.budget):04d}"
            f"-repeat{self.repeat}"
        )


def folded(pool: pl.DataFrame, tiles: Shards, p: TaskSpecific) -> FoldedTiles:
    """All labelled tiles: nothing is pretrained here, so that both halves of the patients can train."""
    roles = [PRETRAIN, DOWNSTREAM]
    return FoldedTiles.of(pool, tiles, roles, p.probe.folds, p.seed, "task_specific")


def budget_splits(own: FoldedTiles, budget: float, p: TaskSpecific) -> Iterator[BudgetSplit]:
    """Models of one budget: for each fold of patients, then for the held-out center, each repeat.

    Raises
    ------
    Undefined
        If the budget is less than one patient of some label.
    """
    patients, labels = (own.table[name].to_numpy() for name in ("patient_id", "label"))
    codes = np.unique(patients, return_inverse=True)[1]
    splits = list(own.splits())
    for train, _ in splits:
        refuse_less_than_a_patient(patients[train], labels[train], budget, "task_specific")
    for fold, (train, test) in enumerate(splits):
        for repeat in range(p.repeats):
            seed = np.random.SeedSequence([p.seed, fold, repeat])
            chosen = sampled_patients(codes[train], own.targets[train], budget, seed)
            rows = train[np.isin(codes[train], chosen)]
            tested = IN_DOMAIN if own.fold[test[0]] >= 0 else HELD_OUT_CENTER
            yield BudgetSplit(tested, fold, repeat, budget, rows, test, len(chosen))


@plain_dataclass(frozen=True, eq=False)
class NetworkFit(FitJob):
    """Train one network from scratch on one budget, and keep what it says of the tested tiles.

    Attributes
    ----------
    split
        Who trains and who is tested.
    own
        The tiles' table.
    pool, tiles
        The arms' tiles and their pixels.
    digest
        Of both.
    p
        The experiment's parameters.
    """

    split: BudgetSplit
    own: FoldedTiles
    pool: pl.DataFrame
    tiles: Shards
    digest: str
    p: TaskSpecific

    @property
    def slide_id(self) -> str:
        """Name of the shard."""
        return self.split.name

    @property
    def stored(self) -> int:
        """Rows of logits that are kept."""
        return len(self.split.test)

    @property
    def passes(self) -> int:
        """Forward passes of a tile, one that is learnt from as three."""
        n_tiles = len(self.split.train)
        return LEARNT_PASS * self.p.training.on(n_tiles).epochs * n_tiles + self.stored

    def header(self) -> Mapping[str, str]:
        """What the shard depends on: tiles, software, settings."""
        import torch

        settings = [_REVISION, NETWORK, self.p.probe.folds, self.p.seed, asdict(self.p.training)]
        return {
            "fit": self.split.name,
            "settings": json.dumps(settings, sort_keys=True),
            "data": self.digest,
            "torch": torch.__version__.partition("+")[0],
            **fitted_on(NETWORK),
            "units": "logits, tested tile x label",
        }

    def fit(self, checkpoint: FitCheckpoint) -> Mapping[str, NDArray[np.generic]]:
        """``logits`` float32 [n, labels] of the tested tiles, ``losses`` of each epoch."""
        read = ArmTiles.read(self.pool, self.tiles)
        kept = read.table["tile_id"].is_in(self.own.table["tile_id"].to_list()).to_numpy()
        pixels, split = read.pixels[kept], self.split
        network = Backbone(NETWORK, pixels.shape[1], self.p.seed + split.repeat)
        model, history = network.pretrain(
            pixels[split.train],
            self.own.targets[split.train],
            len(self.own.labels),
            self.p.training.on(len(split.train)),
            checkpoint,
        )
        logits = network.logits(model, pixels[split.test])
        return {"logits": logits, "losses": np.array(history.losses)}


def plan_task_specific(
    pool: pl.DataFrame, tiles: Shards, engine: Mapping[str, Any], p: TaskSpecific
) -> ShardPlan:
    """One fit for each budget, fold and repeat; none where a budget is less than a patient.

    Parameters
    ----------
    pool, tiles
        The arms' tiles and their pixels.
    engine
        Where jobs run.
    p
        The parameters.
    """
    own = folded(pool, tiles, p)
    jobs: list[NetworkFit] = []
    if p.budgets and not own.problem:
        digest = arm_data_digest(pool, tiles)
        for budget in p.budgets:
            try:
                splits = list(budget_splits(own, budget, p))
            except Undefined:  # the statistics tell the reader why
                continue
            jobs += [NetworkFit(split, own, pool, tiles, digest, p) for split in splits]
    return ShardPlan(jobs, EngineSettings(**engine), "training networks for the task")
