"""Fits of the adaptation experiment: who trains, who selects, who is tested, and the jobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.adaptation import ArmTrials, Fitted, starting_network
from pathfm_kedro.encoders.adaptation_arms import ARMS, Arm, Search, Task
from pathfm_kedro.encoders.energy import CounterError, open_meter
from pathfm_kedro.encoders.fabric import fitted_on, training_device
from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.lora import merge_lora
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.engine import EngineSettings, FitCheckpoint, FitJob, ShardPlan
from pathfm_kedro.pipelines.inheritance.arm_tiles import (
    DOWNSTREAM,
    HELD_OUT,
    ArmTiles,
    arm_data_digest,
    readable_tiles,
)
from pathfm_kedro.statistics.cross_validation import ProbeSettings, patient_folds
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.variants import untrained_entry

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]

#: Raised with any change of what an arm gives from the same tiles.
_REVISION = "2"
#: The arm that others are held against, and the null.
LINEAR, RANDOM = "linear", "random_frozen"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Adaptation(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    encoders
        That are adapted.
    arms
        Names among :data:`~pathfm_kedro.encoders.adaptation_arms.ARMS`, the linear probe among them.
    n_seeds
        Of weights and batches.
    folds
        Outer groups of patients, each tested once; a label of fewer downstream patients is left out.
    inner_folds
        Of the training patients one in so many selects.
    input_pixels
        Side of the encoder's input; None for what it declares.
    search
        The budget of every arm.
    forgetting_tiles
        Tiles at most, of each outer fold, that vectors before and after are compared on.
    k
        Neighbours of the mutual k-NN.
    groups
        Of patients, for the jackknife of CKA.
    probe
        Of organ and center.
    signature
        A linear probe that is better by more is said to be the printed sign.
    measured
        Whether seconds and joules are kept; they differ from run to run.
    """

    encoders: tuple[str, ...] = ()
    arms: tuple[str, ...]
    n_seeds: Count
    folds: Annotated[int, Field(ge=2)]
    inner_folds: Annotated[int, Field(ge=2)]
    input_pixels: Count | None = None
    search: Search
    forgetting_tiles: Annotated[int, Field(ge=4)]
    k: Count
    groups: Annotated[int, Field(ge=2)]
    probe: ProbeSettings
    signature: float
    measured: bool

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [arm for arm in arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no arm: there are {', '.join(ARMS)}")
        if LINEAR not in arms or len(set(arms)) < len(arms):
            raise ValueError(
                "name each arm once, and linear among them: others are held against it"
            )
        return arms


def not_adaptable(spec: EncoderSpec) -> str:
    """Why an encoder is not adapted; empty where it is."""
    kind = spec.model.partition(":")[0]
    if not spec.has_network or kind in ("onnx", "torchscript") or spec.mitigation is not None:
        return "needs a network that PyTorch trains: leave the encoder out of adaptation.encoders"
    if spec.is_trained:
        return (
            "was trained on patients of this cohort already: leave it out of adaptation.encoders; "
            "the arms scratch and small_cnn stand for such networks"
        )
    return ""


def learnt_labels(pool: pl.DataFrame, p: Adaptation) -> list[str]:
    """Labels with as many downstream patients as there are outer folds, and two at least in training.

    Raises
    ------
    Undefined
        If there are fewer than two.
    """
    own = pool.filter(pl.col("role") == DOWNSTREAM)
    counted = own.group_by("label").agg(pl.col("patient_id").n_unique())
    least = max(p.folds, 3)
    enough = counted.filter(pl.col("patient_id") >= least)["label"].sort().to_list()
    if len(enough) < 2:
        raise Undefined(
            f"{len(enough)} label(s) have {least} downstream patients, two are needed: add patients or "
            "lower adaptation.folds",
            n_patients=own["patient_id"].n_unique(),
        )
    return enough


@plain_dataclass(frozen=True)
class Split:
    """Rows of the tiles that train, select and test one outer fold; no patient is in two of them."""

    train: Ints
    inner: Ints
    tested: Ints

    @classmethod
    def of(cls, table: pl.DataFrame, fold: int, p: Adaptation) -> Split:
        """The split of a table of downstream and held-out tiles.

        The inner fold has no label's last training patient.
        """
        own = (table["role"] == DOWNSTREAM).to_numpy()
        patients, labels = table["patient_id"].to_numpy(), table["label"].to_numpy()
        outer = np.full(len(table), -1, np.int64)
        outer[own] = patient_folds(patients[own], p.folds, p.seed, labels[own])
        left = np.flatnonzero(own & (outer != fold))
        # Another seed: were it the same, those who select would stand together in the outer folds.
        within = patient_folds(patients[left], p.inner_folds, p.seed + 1, labels[left]) == 0
        for label in np.unique(labels[left]):
            of_label = labels[left] == label
            if within[of_label].all():
                within &= ~np.isin(patients[left], patients[left][of_label])
        tested = np.flatnonzero((outer == fold) | ~own)
        return cls(left[~within], left[within], tested)

    @property
    def n_tiles(self) -> int:
        """Of all of them."""
        return len(self.train) + len(self.inner) + len(self.tested)


def adapted_tiles(
    pool: pl.DataFrame, tiles: Shards, p: Adaptation
) -> tuple[pl.DataFrame, list[str]]:
    """Rows of the pool whose pixels were read and whose label is learnt, and these labels.

    Raises
    ------
    Undefined
        If too few labels have patients enough.
    """
    read = readable_tiles(pool, tiles)
    if read.is_empty():
        raise Undefined("no pixels of labelled tiles could be read: see why in the log of slides")
    labels = learnt_labels(read, p)
    return read.filter(pl.col("label").is_in(labels)), labels


def plan_adaptation(
    pool: pl.DataFrame,
    shards: Shards,
    encoder: Mapping[str, Any],
    engine: Mapping[str, Any],
    p: Adaptation,
    *,
    name: str,
) -> ShardPlan:
    """One fit for each arm, seed and outer fold.

    Parameters
    ----------
    pool, shards
        From :func:`~.arm_tiles.choose_arm_pool` and :func:`~.arm_tiles.plan_arm_tiles`.
    encoder
        The entry of ``encoders``.
    engine
        Where fits run.
    p
        The parameters.
    name
        The encoder's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder)
    title = f"adapting {name}"
    try:
        if not_adaptable(spec):
            raise Undefined(not_adaptable(spec))
        chosen, labels = adapted_tiles(pool, shards, p)
    except Undefined:  # the statistics tell the reader why
        return ShardPlan([], EngineSettings(**engine), title)
    untrained = spec
    if any(ARMS[arm].start == "random" for arm in p.arms):
        untrained = EncoderSpec.from_parameters(name, untrained_entry(name, encoder))
    data = arm_data_digest(chosen, shards)
    where = EngineSettings(**engine)
    alone = where.scheduler != "dask" and where.n_workers == 1
    jobs = [
        FitArm(arm, seed, fold, spec, untrained, chosen, shards, data, tuple(labels), p, alone)
        for fold in range(p.folds)
        for seed in range(p.n_seeds)
        for arm in p.arms
    ]
    return ShardPlan(jobs, where, title)


def name_of_fit(arm: str, seed: int, fold: int) -> str:
    """What the shard of a fit is called.

    Examples
    --------
    >>> name_of_fit("linear", 0, 1)
    'linear-seed0-fold1'
    """
    return f"{arm}-seed{seed}-fold{fold}"


@plain_dataclass(frozen=True, eq=False)
class FitArm(FitJob):
    """One arm, one seed, one outer fold.

    Attributes
    ----------
    arm, seed, fold
        Which.
    spec, untrained
        The encoder, and the same with weights to be drawn.
    pool, shards
        Tiles with learnt labels, and their pixels.
    data
        Digest of both.
    labels
        That are learnt, sorted.
    p
        The experiment's parameters.
    alone
        Whether no other fit runs meanwhile, whose energy the machine's counters would count too.
    """

    arm: str
    seed: int
    fold: int
    spec: EncoderSpec
    untrained: EncoderSpec
    pool: pl.DataFrame
    shards: Shards
    data: str
    labels: tuple[str, ...]
    p: Adaptation
    alone: bool = True

    @property
    def slide_id(self) -> str:
        """Name of the shard."""
        return name_of_fit(self.arm, self.seed, self.fold)

    @property
    def network(self) -> str:
        """Name of what is trained: the encoder, or the small network beside it."""
        start = ARMS[self.arm].start
        return f"trained:{start}" if start == "small_cnn" else self.spec.name

    def split(self) -> Split:
        """Who trains, selects and is tested in the fold, the same for every arm and seed."""
        table = readable_tiles(self.pool, self.shards, DOWNSTREAM, HELD_OUT)
        return Split.of(table, self.fold, self.p)

    def stored(self, split: Split) -> int:
        """Vectors that are kept, of the fold's split."""
        kept = self.arm == LINEAR or ARMS[self.arm].changes_encoder
        return min(self.p.forgetting_tiles, len(split.tested)) if kept else 0

    def passes(self, split: Split) -> int:
        """Forward passes of a tile, of the fold's split: at most, since patience may end a trial."""
        arm, search = ARMS[self.arm], self.p.search
        found = split.n_tiles
        if arm.trains != "head":
            each = arm.passes_of_step * len(split.train) + len(split.inner)
            found += search.trials * (search.epochs * each + len(split.inner)) + len(split.tested)
        return found + (self.stored(split) if arm.changes_encoder else 0)

    def header(self) -> dict[str, str]:
        """What the fit depends on: tiles, network, settings, software."""
        import torch

        p = self.p
        settings = [p.folds, p.inner_folds, p.input_pixels, p.forgetting_tiles, p.seed, p.measured]
        return {
            "arm": json.dumps([_REVISION, self.arm, asdict(ARMS[self.arm]), self.seed, self.fold]),
            "network": self.spec.network_key(),
            "settings": json.dumps([settings, asdict(p.search)], sort_keys=True),
            "data": self.data,
            "torch": torch.__version__.partition("+")[0],
            **fitted_on(self.spec),
        }

    def fit(self, checkpoint: FitCheckpoint) -> dict[str, NDArray[np.generic]]:
        """What the fitted arm says of the tested tiles, and how its trials went.

        - ``rows`` int64 [n] of the pool's tiles, ``logits`` float32 [n, labels];
        - ``vector_rows`` int64 [m], ``vectors`` float32 [m, d] after adaptation, where the arm changes
          the encoder or is the linear probe, whose are the encoder's own;
        - ``trials`` float64 [trials, 4]: learning rate that the arm's name stands for, inner accuracy
          and score (NaN where the trial diverged), epochs;
        - ``cost`` float64 [3]: operations, seconds (NaN where time is not kept), and joules (NaN where
          they could not be read).
        """
        arm, p = ARMS[self.arm], self.p
        tiles = ArmTiles.read(self.pool, self.shards, DOWNSTREAM, HELD_OUT)
        split = Split.of(tiles.table, self.fold, p)
        side = tiles.pixels.shape[1]
        network = starting_network(
            arm, self.spec, self.untrained, self.seed, p.input_pixels, small=side
        )
        device = training_device(self.spec)
        targets = tiles.table["label"].replace_strict(
            list(self.labels), range(len(self.labels)), return_dtype=pl.Int64
        )
        task = Task(tiles.pixels, targets.to_numpy(), split.train, split.inner, len(self.labels))
        vectors = network.vectors(tiles.pixels, device)
        operations = _operations(network)
        points = p.search.points(p.seed)
        trials = ArmTrials(arm, task, p.search, network, vectors, self.seed, points, device)
        # What an earlier process spent on this fit is in no counter of this one.
        counted = p.measured and self.alone and checkpoint.load() is None
        fitted, joules = _with_joules(partial(trials.fit, checkpoint), device, counted)
        found: dict[str, NDArray[np.generic]] = {
            "rows": split.tested,
            "logits": fitted.logits(split.tested),
            "trials": _trials(arm, fitted),
            "cost": np.array(
                [operations * fitted.passes, fitted.seconds if p.measured else np.nan, joules]
            ),
        }
        some = _some(split.tested, p.forgetting_tiles, [p.seed, self.fold])
        if self.arm == LINEAR:
            found |= {"vector_rows": some, "vectors": vectors[some]}
        if arm.changes_encoder:
            if arm.trains == "lora":
                merge_lora(fitted.network.model)
            after = fitted.network.vectors(tiles.pixels[some], device)
            found |= {"vector_rows": some, "vectors": after}
        return found


def _with_joules(work: Callable[[], Fitted], device: str, counted: bool) -> tuple[Fitted, float]:
    """A fit, and the energy of the machine meanwhile; NaN unless every counter can be read."""
    meter = open_meter(gpu=device != "cpu")
    if not counted or meter.problems:
        return work(), np.nan
    done: list[Fitted] = []
    try:
        spent = meter.measure(lambda: done.append(work()))
    except CounterError:
        return (done[0] if done else work()), np.nan
    return done[0], sum(spent.joules.values())


def _operations(network: Any) -> float:
    import torch

    from pathfm_kedro.encoders.architectures import PooledNetwork
    from pathfm_kedro.encoders.operations import count_operations

    model = PooledNetwork(network.model.to("cpu"), network.pooling)
    return float(count_operations(model, torch.zeros(1, 3, network.side, network.side)))


def _trials(arm: Arm, fitted: Fitted) -> Floats:
    rows = [
        (
            t.head_rate if arm.trains == "head" else t.rate,
            np.nan if t.accuracy is None else t.accuracy,
            np.nan if t.score is None else t.score,
            t.epochs,
        )
        for t in fitted.trials
    ]
    return np.array(rows, np.float64)


def _some(rows: Ints, most: int, seed: Sequence[int]) -> Ints:
    """At most so many of the rows, in their order, the same for every arm."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:most]
    return np.asarray(rows[np.sort(chosen)])
