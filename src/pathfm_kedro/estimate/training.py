"""Passes of networks that are trained on the cohort, counted on the jobs that will train them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.operations import LEARNT_PASS
from pathfm_kedro.encoders.rivals import Training, side_of, split_patients
from pathfm_kedro.engine import ShardPlan
from pathfm_kedro.pipelines.inheritance.adaptation_fits import (
    Adaptation,
    FitArm,
    plan_adaptation,
)
from pathfm_kedro.pipelines.inheritance.arm_tiles import choose_arm_pool
from pathfm_kedro.pipelines.inheritance.initialisation import Initialisation, plan_initialisation
from pathfm_kedro.pipelines.inheritance.noise_arms import (
    BACKBONE,
    PretrainingNoise,
    plan_noise_arms,
)
from pathfm_kedro.pipelines.inheritance.pretext_tasks import PretextTasks, plan_pretext_tasks
from pathfm_kedro.pipelines.inheritance.task_specific_fits import (
    NETWORK,
    TaskSpecific,
    plan_task_specific,
)
from pathfm_kedro.statistics.parameters import read_parameters

_RGB = 3


@dataclass(frozen=True)
class Trained:
    """What one experiment takes of one network that is trained or adapted on the cohort.

    Attributes
    ----------
    network
        An encoder's name, or ``trained:small_cnn`` or ``trained:small_vit``.
    experiment
        Whose.
    passes
        Of a tile, one that is learnt from as three; at most, where training may end early.
    vectors
        That are stored.
    side
        Of the network's input, px; None for what the encoder declares.
    """

    network: str
    experiment: str
    passes: int
    vectors: int
    side: int | None


@dataclass(frozen=True)
class _UnreadTiles:
    """Shards of tiles that are all there and of which nothing is read."""

    slide_ids: tuple[str, ...]

    def load_slide(self, slide_id: str, name: str = "embedding") -> Any:
        """Nothing is read for an estimate."""
        raise NotImplementedError(name)

    def tensor_names(self, slide_id: str) -> tuple[str, ...]:
        """None."""
        return ()

    def slide_header(self, slide_id: str) -> Mapping[str, str]:
        """Nothing is known of the pixels."""
        return {}


def arm_pool(slides: pl.DataFrame, arms: Mapping[str, Any]) -> pl.DataFrame:
    """As many tiles of each role as the arms will have.

    Parameters
    ----------
    slides
        Slides table with ``n_tiles``.
    arms
        The parameters of that name.
    """
    return choose_arm_pool(slides, _tiles(slides, int(arms["tiles_per_slide"])), arms)


def _tiles(slides: pl.DataFrame, most: int) -> pl.DataFrame:
    numbered = slides.select(
        "slide_id", tile_id=pl.int_ranges(pl.col("n_tiles").clip(0, most))
    ).explode("tile_id")
    return numbered.drop_nulls().with_columns(tile_id=pl.format("{}-{}", "slide_id", "tile_id"))


def work_of_arms(parameters: Mapping[str, Any], slides: pl.DataFrame) -> Iterator[Trained]:
    """What every training on the tiles of arms takes, experiment by experiment.

    Parameters
    ----------
    parameters
        All parameters.
    slides
        Slides table with ``n_tiles``.
    """
    arms = parameters["arms"]
    pool, side = arm_pool(slides, arms), int(arms["side"])
    tiles = _UnreadTiles(tuple(pool["slide_id"].unique().sort()))
    engine, encoders = parameters["engine"], parameters["encoders"]
    noise = read_parameters(PretrainingNoise, "pretraining_noise", parameters["pretraining_noise"])
    planned = plan_noise_arms(pool, tiles, engine, noise)
    yield _sum("pretraining_noise", f"trained:{BACKBONE}", planned.jobs, side)
    task = read_parameters(TaskSpecific, "task_specific", parameters["task_specific"])
    planned = plan_task_specific(pool, tiles, engine, task)
    yield _sum("task_specific", f"trained:{NETWORK}", planned.jobs, side)
    tasks = read_parameters(PretextTasks, "pretext_tasks", parameters["pretext_tasks"])
    planned = plan_pretext_tasks(pool, tiles, engine, tasks)
    yield _sum("pretext_tasks", f"trained:{tasks.backbone}", planned.jobs, side)
    starts = read_parameters(Initialisation, "initialisation", parameters["initialisation"])
    # A name that the cohort does not have is refused by the run.
    if starts.encoder in encoders:
        planned = plan_initialisation(pool, tiles, encoders, engine, starts)
        yield _sum("initialisation", str(starts.encoder), planned.jobs, side)
    adapted = read_parameters(Adaptation, "adaptation", parameters["adaptation"])
    for name in adapted.encoders:
        if encoders.get(name) is not None:
            planned = plan_adaptation(pool, tiles, encoders[name], engine, adapted, name=name)
            yield from _adapted(name, planned, side)


def _sum(experiment: str, network: str, jobs: Any, side: int) -> Trained:
    passes, vectors = (sum(getattr(job, n) for job in jobs) for n in ("passes", "stored"))
    return Trained(network, experiment, passes, vectors, side)


def _adapted(name: str, planned: ShardPlan, side: int) -> Iterator[Trained]:
    jobs = [job for job in planned.jobs if isinstance(job, FitArm)]
    splits = {fold: job.split() for fold, job in {job.fold: job for job in jobs}.items()}
    for network in dict.fromkeys(job.network for job in jobs):
        own = [job for job in jobs if job.network == network]
        passes, vectors = (
            sum(count(job, splits[job.fold]) for job in own)
            for count in (FitArm.passes, FitArm.stored)
        )
        seen = own[0].p.input_pixels if network == name else side
        yield Trained(network, "adaptation", passes, vectors, seen)


def pixels_of_arms(parameters: Mapping[str, Any], slides: pl.DataFrame) -> int:
    """Bytes of the tiles that arms are trained and tested on."""
    arms = parameters["arms"]
    return arm_pool(slides, arms).height * _RGB * int(arms["side"]) ** 2


@dataclass(frozen=True)
class RivalWork:
    """What an encoder that is trained on the cohort takes before it embeds anything.

    Attributes
    ----------
    passes
        Of its training, at most.
    pixel_bytes
        Of the tiles that train it.
    audited
        Share of the tiles that it is audited on.
    """

    passes: int
    pixel_bytes: int
    audited: float


def work_of_rival(slides: pl.DataFrame, spec: EncoderSpec) -> RivalWork:
    """Count the training of an encoder.

    Parameters
    ----------
    slides
        Slides table with ``n_tiles``.
    spec
        The encoder.
    """
    training, split = Training.of(spec), split_patients(slides, spec)
    rows = slides.with_columns(pl.col("patient_id").cast(pl.String()))
    labelled = rows.drop_nulls("label").with_columns(
        _trains=pl.col("n_tiles").clip(0, training.tiles_per_slide)
    )

    def tiles(patients: frozenset[str]) -> int:
        own = labelled.filter(pl.col("patient_id").is_in(sorted(patients)))
        return int(own["_trains"].sum())

    train, inner = tiles(split.train), tiles(split.validation)
    audited = rows.filter(pl.col("patient_id").is_in(sorted(split.audited)))
    return RivalWork(
        training.epochs * (LEARNT_PASS * train + inner),
        (train + inner) * _RGB * side_of(spec) ** 2,
        int(audited["n_tiles"].sum()) / max(int(rows["n_tiles"].sum()), 1),
    )
