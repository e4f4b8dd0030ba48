r"""From scratch against inherited weights, under one budget that grows.

The same architecture is trained on the labels of the arms' tiles from two starts: the weights that
the cohort's encoder is published with (for the encoder of ``conf/base``: ImageNet), and weights
drawn anew. Each share of the budget is a training of its own, with its own schedule; a share of 0
is the frozen start. The vectors are then measured on patients that neither saw
(:mod:`~pathfm_kedro.pipelines.inheritance.arm_comparison`).

Differences: inherited less from scratch at every share (does inheritance help, and does it stop
helping as training goes on); each less random frozen weights; the largest share less the smallest
one trained, within a start (growth).

Pitfalls
--------
- One architecture and one budget of tiles: where the curves would cross with more data is not shown.
- The published weights were made from data of their own: equal budgets here are not equal budgets
  in all.
- As in :mod:`~pathfm_kedro.pipelines.inheritance.pretext_tasks` the robustness index compares arms
  only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import polars as pl
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.inheritance.arm_comparison import Arm, arm_figures
from pathfm_kedro.pipelines.inheritance.arm_fit import PretrainedArm
from pathfm_kedro.pipelines.inheritance.arm_statistics import ArmParameters, arm_statistics
from pathfm_kedro.pipelines.inheritance.arm_tiles import (
    DOWNSTREAM,
    HELD_OUT,
    can_pretrain,
    readable_tiles,
)
from pathfm_kedro.statistics.figures import Figure, undefined
from pathfm_kedro.statistics.parameters import STRICT

INHERITED, SCRATCH = "inherited", "from_scratch"
STARTS = (INHERITED, SCRATCH)
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Initialisation(ArmParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    encoder
        Entry of the cohort whose architecture and weights are taken; null leaves the experiment out.
    budgets
        Shares of the epochs; 0, the frozen start, is always among them.
    """

    encoder: str | None
    budgets: Annotated[
        tuple[Share, ...], AfterValidator(lambda shares: tuple(sorted({0.0, *shares})))
    ]

    def epochs_of(self, share: float) -> int:
        """Epochs of a share of the budget, at least one of any that is not 0."""
        return max(1, round(share * self.epochs)) if share else 0


def arm_name(start: str, share: float) -> str:
    """What an arm is called.

    Examples
    --------
    >>> arm_name("inherited", 0.25)
    'inherited-0.25'
    """
    return f"{start}-{share:g}"


def plan_initialisation(
    pool: pl.DataFrame,
    tiles: Shards,
    encoders: Mapping[str, Any],
    engine: Mapping[str, Any],
    p: Initialisation,
) -> ShardPlan:
    """One fit for each start, share of the budget and seed.

    Parameters
    ----------
    pool, tiles
        The arms' tiles and their pixels.
    encoders
        The cohort's entries.
    engine
        Where jobs run.
    p
        The parameters.

    Raises
    ------
    ValueError
        If the encoder is not in the cohort, or its weights cannot be drawn anew.
    """
    jobs: list[PretrainedArm] = []
    # A cohort leaves an encoder out by null.
    left_out = p.encoder is None or encoders.get(p.encoder, {}) is None
    if not left_out and can_pretrain(pool, tiles):
        starts = _starts(str(p.encoder), encoders)
        jobs = [
            PretrainedArm(
                arm_name(start, share),
                seed,
                "supervised",
                spec if start == INHERITED else replace(spec, seed=seed),
                p.epochs_of(share),
                pool,
                tiles,
                p,
            )
            for start, spec in starts.items()
            for share in p.budgets
            for seed in p.seeds
        ]
    return ShardPlan(jobs, EngineSettings(**engine), "training from two starts")


def _starts(name: str, encoders: Mapping[str, Any]) -> dict[str, EncoderSpec]:
    from pathfm_kedro.cohorts import with_random_weights

    entry = encoders.get(name)
    if not isinstance(entry, Mapping) or str(entry.get("role", "encoder")) != "encoder":
        known = sorted(n for n, e in encoders.items() if isinstance(e, Mapping))
        raise ValueError(
            f"initialisation.encoder is '{name}', which is no encoder of the cohort (it has "
            f"{', '.join(known)}): name one with a network, or null"
        )
    drawn = with_random_weights({name: {**entry, "random_weights": True}})
    return {
        INHERITED: EncoderSpec.from_parameters(name, entry),
        SCRATCH: EncoderSpec.from_parameters(name, drawn[f"{name}_random_weights"] or {}),
    }


def initialisation_statistics(
    pool: pl.DataFrame, tiles: Shards, arms: Shards, p: Initialisation
) -> pl.DataFrame:
    """Sums per patient of every arm.

    Parameters
    ----------
    pool, tiles
        The arms' tiles and their pixels.
    arms
        Vectors of every arm.
    p
        The parameters.
    """
    names = [arm_name(start, share) for start in STARTS for share in p.budgets]
    planned = bool(arms.slide_ids or getattr(arms, "failures", {}) or not can_pretrain(pool, tiles))
    return arm_statistics(
        readable_tiles(pool, tiles, DOWNSTREAM, HELD_OUT),
        arms,
        names if p.encoder and planned else [],
        p,
    )


def initialisation_figures(statistics: pl.DataFrame, p: Initialisation) -> Iterator[Figure]:
    """Figures of each start and budget, and their differences.

    Parameters
    ----------
    statistics
        From :func:`initialisation_statistics`.
    p
        The parameters.
    """
    if p.encoder is None or statistics.is_empty():
        lacks = (
            "null, as it is where audit.size is quick"
            if p.encoder is None
            else f"'{p.encoder}', which the cohort leaves out"
        )
        reason = (
            f"initialisation.encoder is {lacks}: name an encoder of the cohort with a network that can "
            "be trained"
        )
        yield Figure("balanced_accuracy", undefined(reason), {"target": "label"})
        return
    frozen = arm_name(SCRATCH, 0)
    trained = [share for share in p.budgets if share]
    arms = []
    for start in STARTS:
        for share in p.budgets:
            name = arm_name(start, share)
            against = {} if name == frozen else {"random_frozen": frozen}
            if start == INHERITED and share:
                against[SCRATCH] = arm_name(SCRATCH, share)
            if trained and share == trained[-1] != trained[0]:
                against["smallest_budget"] = arm_name(start, trained[0])
            arms.append(Arm(name, {"start": start, "budget": share}, against))
    yield from arm_figures(statistics, arms, p)
