"""Per-slide jobs, what they leave behind, and how they are run."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.engine.cancelling import listen_to
from pathfm_kedro.engine.cluster import run_on_dask
from pathfm_kedro.engine.outcomes import Outcome, attempt
from pathfm_kedro.engine.progress import progress
from pathfm_kedro.engine.settings import EngineSettings
from pathfm_kedro.engine.slides_log import Note, log_slide, prepare_log, slide_of
from pathfm_kedro.engine.threads import one_thread

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Jobs handed out per worker before a result is awaited: enough that no worker waits, few enough
#: that memory does not grow with the cohort.
_IN_FLIGHT_PER_WORKER = 2


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


class FitCheckpoint(Protocol):
    """Where a fit leaves its state after each epoch."""

    def load(self) -> tuple[dict[str, NDArray[np.generic]], str] | None:
        """Tensors and text of the last save; None where there was none."""
        ...

    def save(self, tensors: dict[str, NDArray[np.generic]], text: str) -> None:
        """Replace what was saved before, whole or not at all."""
        ...


class FitJob(ABC):
    """A :class:`ShardJob` that fits a model for many epochs: an arm of an experiment, not a slide.

    ``slide_id`` is then the arm's name. The dataset that stores the shard calls :meth:`fit`, so that a
    killed run goes on from the arm's last epoch.
    """

    @abstractmethod
    def fit(self, checkpoint: FitCheckpoint) -> Mapping[str, NDArray[np.generic]]:
        """The tensors; a state that the checkpoint holds is gone on from."""

    def compute(self) -> Mapping[str, NDArray[np.generic]]:
        """The tensors, from the first epoch on."""
        return self.fit(_NoCheckpoint())


class _NoCheckpoint:
    """Nothing is kept."""

    def load(self) -> None:
        """Nothing."""

    def save(self, tensors: dict[str, NDArray[np.generic]], text: str) -> None:
        """Forget it."""


@dataclass(frozen=True)
class ShardPlan:
    """Deferred work of a node: the jobs of a cohort, run by the dataset that stores the shards.

    Tensors of 10,000 slides never pass through the process that hands out the jobs: whoever computes
    a result writes it into its own file.

    Attributes
    ----------
    jobs
        One per slide, or per arm of an experiment.
    engine
        Where they run.
    title
        What the progress bar says.
    prepare
        Called once before the first job, to load what all jobs share (a model), so that its absence is
        one error and not one per slide.
    left_out
        Slides that must not be worked on, with the reason; they count as neither done nor failed.
    """

    jobs: Sequence[ShardJob]
    engine: EngineSettings = field(default_factory=EngineSettings)
    title: str = "slides"
    prepare: Callable[[], object] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def no_tiles(_: object) -> Note:
    """The note of a job that is about no tiles."""
    return Note()


def run_each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    engine: EngineSettings,
    title: str,
    note: Callable[[Any], Note] = no_tiles,
) -> Generator[Outcome, None, None]:
    """Apply a function to every item, yielding outcomes as they come.

    An item whose function raises gives an outcome with the reason; the others go on. Every item leaves
    a line in the log of slides. A progress bar is shown where the output is a terminal. Ended early, by
    an error or by Ctrl-C, jobs that wait are given up.

    Parameters
    ----------
    function
        Must be safe to call from several threads; on Dask it is pickled, and the result too.
    items
        One per slide.
    engine
        Threads or Dask, and how many workers.
    title
        What the progress bar and the log call the stage.
    note
        From a result to its number of tiles and whether it was computed.

    Raises
    ------
    CannotWriteError
        If a job's results cannot be stored at all, as on a full disk.

    Examples
    --------
    >>> outcomes = run_each(lambda x: 1 / x, [1, 0], EngineSettings(workers=1), "numbers")
    >>> [(o.result, o.reason) for o in outcomes]
    [(1.0, None), (None, 'ZeroDivisionError: division by zero')]
    """
    yield from _noted(function, items, engine, title, note, slide_of)


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    engine: EngineSettings,
    title: str,
    note: Callable[[Any], Note] = no_tiles,
) -> list[Outcome]:
    """As :func:`run_each`, all at once, in the order of the items."""
    numbered = list(enumerate(items))
    outcomes = _noted(_OfSecond(function), numbered, engine, title, note, _slide_of_second)
    in_order = sorted(outcomes, key=lambda outcome: outcome.item[0])
    return [Outcome(o.item[1], o.result, o.reason, o.seconds) for o in in_order]


@dataclass(frozen=True)
class _OfSecond:
    """A function of the second of a pair; a class, since a closure is harder to send to a worker."""

    function: Callable[[Any], Any]

    def __call__(self, pair: tuple[int, Any]) -> Any:
        return self.function(pair[1])


def _slide_of_second(pair: tuple[int, Any]) -> str:
    return slide_of(pair[1])


def _noted(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    engine: EngineSettings,
    title: str,
    note: Callable[[Any], Note],
    name: Callable[[Any], str],
) -> Iterator[Outcome]:
    """Run the jobs, noting each that ends in the bar and the log."""
    prepare_log()
    with (
        progress(title, len(items)) as advance,
        # An error beside this generator ends the jobs too, without waiting for garbage collection.
        closing(_outcomes(function, items, engine)) as outcomes,
    ):
        for outcome in outcomes:
            noted = note(outcome.result) if outcome.reason is None else Note(reason=outcome.reason)
            log_slide(title, name(outcome.item), noted, outcome.seconds)
            advance(noted)
            yield outcome


def _outcomes(
    function: Callable[[Item], Result], items: Sequence[Item], engine: EngineSettings
) -> Generator[Outcome, None, None]:
    if engine.scheduler == "dask":
        yield from run_on_dask(function, items, engine)
        return
    with one_thread():
        if engine.n_workers == 1:
            yield from (attempt(function, item) for item in items)
        else:
            yield from _on_threads(function, items, engine.n_workers)


def _on_threads(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Outcome]:
    waiting = iter(items)
    pending: set[Future[Outcome]] = set()
    stop = threading.Event()
    with ThreadPoolExecutor(
        workers, thread_name_prefix="slide", initializer=listen_to, initargs=(stop,)
    ) as pool:
        try:
            for item in waiting:
                pending.add(pool.submit(attempt, function, item))
                if len(pending) >= workers * _IN_FLIGHT_PER_WORKER:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            stop.set()
            for future in pending:
                future.cancel()
