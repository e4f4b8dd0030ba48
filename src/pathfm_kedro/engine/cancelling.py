"""Ending a long job early: a thread cannot be stopped from outside, so the job looks for itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")

_own = threading.local()


class CancelledJobError(RuntimeError):
    """The run ends, and nobody waits for this job any more."""


def listen_to(stop: threading.Event) -> None:
    """Let the jobs of this thread end once the event is set."""
    _own.stop = stop


def cancellable(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a long job, until the run is interrupted or has failed.

    Call it in the job's own thread; the batches may be taken in another. Outside a run's threads
    nothing is looked for.

    Raises
    ------
    CancelledJobError
        Between two batches, once nobody waits for the job any more.

    Examples
    --------
    >>> list(cancellable([1, 2]))
    [1, 2]
    """
    stop: threading.Event | None = getattr(_own, "stop", None)
    return iter(batches) if stop is None else _until(stop, batches)


def _until(stop: threading.Event, batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if stop.is_set():
            raise CancelledJobError("the run was interrupted")
        yield batch
