r"""What a pretext task passes on: one backbone, one budget, several tasks, and random frozen weights.

Each arm pretrains the same small network on the same tiles for the same epochs, is frozen, and is
measured on patients that it never saw (:mod:`~pathfm_kedro.pipelines.inheritance.arm_comparison`).
The tasks are those of :mod:`~pathfm_kedro.encoders.pretexts`: contrastive views, self-distillation,
masked patches, nuclear density and size and orientation from haematoxylin, the label itself, and
nothing.

A result counts only where an arm differs from random frozen weights with its whole interval, and
reads the label better than they do (in the training centers or on the one held out): a
network of random filters already tells textures apart.

Pitfalls
--------
- Equal epochs are not equal operations: a task with several views spends more; ``operations`` tells.
- A network this small on this few tiles shows what a task favours at this scale, not what it becomes at
  the scale of foundation models.
- The robustness index is counted over all test tiles as they are and not on balanced subsamples:
  compare arms, not with the index of the encoders.
- Stain jitter moves what colour augmentation of the contrastive arms moves too: that they stand it
  is what they were trained for.
- Intervals are over patients. With several seeds figures are their mean; with one seed nothing is
  known of another start's spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.inheritance.arm_comparison import Arm, arm_figures
from pathfm_kedro.pipelines.inheritance.arm_fit import PretrainedArm
from pathfm_kedro.pipelines.inheritance.arm_statistics import ArmParameters, arm_statistics
from pathfm_kedro.pipelines.inheritance.arm_tiles import (
    DOWNSTREAM,
    HELD_OUT,
    can_pretrain,
    embedded_vectors,
    readable_tiles,
)
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.parameters import STRICT

#: What all arms together are called where an encoder has its name.
ARMS = "pretrained_arms"
#: The arm that every other is compared with.
RANDOM = "random"

Task = Literal["simclr", "dino", "masked", "morphology", "orientation", "supervised", "random"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PretextTasks(ArmParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    backbone
        The network that all arms share.
    tasks
        The arms. ``random`` is always among them: without it nothing counts.
    """

    backbone: Literal["small_cnn", "small_vit"]
    tasks: Annotated[
        tuple[Task, ...],
        Field(min_length=1),
        AfterValidator(lambda tasks: tuple(dict.fromkeys((*tasks, RANDOM)))),
    ]


def plan_pretext_tasks(
    pool: pl.DataFrame, tiles: Shards, engine: Mapping[str, Any], p: PretextTasks
) -> ShardPlan:
    """One fit for each task and seed.

    Parameters
    ----------
    pool, tiles
        The arms' tiles and their pixels.
    engine
        Where jobs run.
    p
        The parameters.
    """
    jobs = [
        PretrainedArm(
            task, seed, task, p.backbone, 0 if task == RANDOM else p.epochs, pool, tiles, p
        )
        for task in p.tasks
        for seed in p.seeds
        if can_pretrain(pool, tiles)
    ]
    return ShardPlan(jobs, EngineSettings(**engine), "pretraining by pretext tasks")


def pretext_statistics(pool: pl.DataFrame, tiles: Shards, arms: Shards, *rest: Any) -> pl.DataFrame:
    """Sums per patient of every arm.

    Parameters
    ----------
    pool, tiles
        The arms' tiles and their pixels.
    arms
        Vectors of every arm.
    rest
        Where the morphology of the cohort's tiles was drawn, the tiles table and the vectors of what
        was drawn; then the parameters.
    """
    *drawn, p = rest
    tested = readable_tiles(pool, tiles, DOWNSTREAM, HELD_OUT)
    return arm_statistics(tested, arms, p.tasks, p, drawn_on(tested, *drawn) if drawn else None)


def drawn_on(
    tested: pl.DataFrame, tiles: pl.DataFrame, drawn: Shards
) -> NDArray[np.floating[Any]] | None:
    """[n, m] drawn morphology of tiles; None unless that of every slide is known.

    Parameters
    ----------
    tested
        Which tiles, slide by slide.
    tiles
        The cohort's, in the order of the vectors.
    drawn
        Vectors of what was drawn.
    """
    known, vectors = embedded_vectors(tested, tiles, drawn)
    return vectors if len(vectors) and known.all() else None


def pretext_figures(statistics: pl.DataFrame, p: PretextTasks) -> Iterator[Figure]:
    """Figures of each arm, and its differences from random frozen weights.

    Parameters
    ----------
    statistics
        From :func:`pretext_statistics`.
    p
        The parameters.
    """
    arms = [
        Arm(task, {"arm": task}, {} if task == RANDOM else {RANDOM: RANDOM}) for task in p.tasks
    ]
    yield from arm_figures(statistics, arms, p)
