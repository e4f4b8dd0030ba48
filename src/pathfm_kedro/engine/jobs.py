"""Per-slide jobs, what they leave behind, and how they are run on this machine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Jobs handed out per worker before a result is awaited: enough that no worker waits, few enough
#: that memory does not grow with the cohort.
_IN_FLIGHT_PER_WORKER = 2


@dataclass(frozen=True)
class EngineSettings:
    """Where and how jobs run.

    Attributes
    ----------
    workers
        Threads; 0 takes every core this process may use. Each worker computes with one thread, so
        that results do not depend on the number of workers.
    max_failed_share
        A run in which more than this share of the slides fails ends with an error.
    """

    workers: int = 0
    max_failed_share: float = 0.5

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"engine.workers is {self.workers}: give 0 (all cores) or more")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(
                f"engine.max_failed_share is {self.max_failed_share}: give a share from 0 to 1"
            )

    @property
    def n_workers(self) -> int:
        """Number of threads that will run."""
        return self.workers or _available_cores()


class ShardJob(Protocol):
    """One slide's work: reads pixels, returns the tensors of one shard."""

    @property
    def slide_id(self) -> str:
        """The slide whose shard this is."""
        ...

    def header(self) -> Mapping[str, str]:
        """What the shard says of itself; equal headers mean equal content."""
        ...

    def compute(self) -> Mapping[str, NDArray[np.generic]]:
        """The tensors; each has one row per tile."""
        ...


@dataclass(frozen=True)
class ShardPlan:
    """Deferred work of a node: the jobs of a cohort, run by the dataset that stores the shards.

    Tensors of 10,000 slides never pass through the driver: a job's result goes straight into its
    own file.

    Attributes
    ----------
    jobs
        One per slide.
    engine
        Where they run.
    title
        What the progress bar says.
    prepare
        Called once before the first job, to load what all jobs share (a model).
    """

    jobs: Sequence[ShardJob]
    engine: EngineSettings = field(default_factory=EngineSettings)
    title: str = "slides"
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one item: a result or the reason why there is none."""

    item: Any
    result: Any = None
    reason: str | None = None


def run_each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    engine: EngineSettings,
    title: str,
) -> Iterator[Outcome]:
    """Apply a function to every item on threads, yielding outcomes as they come.

    An item whose function raises gives an outcome with the reason; the others go on. A progress bar
    is drawn where the output is a terminal.

    Parameters
    ----------
    function
        Must be safe to call from several threads.
    items
        One per slide.
    engine
        Number of workers.
    title
        What the progress bar says.

    Examples
    --------
    >>> outcomes = run_each(lambda x: 1 / x, [1, 0], EngineSettings(workers=1), "numbers")
    >>> [(o.result, o.reason) for o in outcomes]
    [(1.0, None), (None, 'ZeroDivisionError: division by zero')]
    """
    with _one_thread_each(), _progress(title, len(items)) as advance:
        if engine.n_workers == 1:
            outcomes: Iterator[Outcome] = (_attempt(function, item) for item in items)
        else:
            outcomes = _on_threads(function, items, engine.n_workers)
        for outcome in outcomes:
            advance()
            yield outcome


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    engine: EngineSettings,
    title: str,
) -> list[Outcome]:
    """As :func:`run_each`, all at once, in the order of the items."""
    numbered = list(enumerate(items))
    outcomes = run_each(lambda pair: function(pair[1]), numbered, engine, title)
    in_order = sorted(outcomes, key=lambda outcome: outcome.item[0])
    return [Outcome(o.item[1], o.result, o.reason) for o in in_order]


def too_many_failed(failed: int, total: int, engine: EngineSettings) -> bool:
    """Whether the share of failures is past what the engine's settings allow."""
    return total > 0 and failed / total > engine.max_failed_share


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome:
    try:
        return Outcome(item, function(item))
    except MemoryError:
        raise
    except Exception as error:
        logger.debug("job failed", exc_info=True)
        return Outcome(item, reason=f"{type(error).__name__}: {error}")


def _on_threads(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Outcome]:
    waiting = iter(items)
    pending: set[Future[Outcome]] = set()
    with ThreadPoolExecutor(workers, thread_name_prefix="slide") as pool:
        try:
            for item in waiting:
                pending.add(pool.submit(_attempt, function, item))
                if len(pending) >= workers * _IN_FLIGHT_PER_WORKER:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """One compute thread per worker: no oversubscription, and sums in the same order always."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty() or total == 0:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
