"""What the benchmarks measure of a piece of work: seconds by the clock and of processors, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Taken(NamedTuple):
    """Seconds by the clock, and of all processors together."""

    clock: float
    processors: float


def spent(work: Callable[[], object]) -> Taken:
    """What one call takes."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - start, time.process_time() - processor)


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Taken]]:
    """What each work takes in every round, so that a machine whose speed drifts treats all alike."""
    turns = [{name: spent(work) for name, work in works.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in works}


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
