"""What became of one job, wherever it ran."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pathfm_kedro.engine.failures import CannotWriteError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """What became of one item: a result or the reason why there is none.

    Attributes
    ----------
    item
        What the job was about.
    result
        What its function gave.
    reason
        Why there is no result.
    seconds
        How long the job took where it ran; outcomes that differ in nothing else are equal.
    """

    item: Any
    result: Any = None
    reason: str | None = None
    seconds: float = field(default=0.0, compare=False)


def attempt(function: Callable[[Item], Result], item: Item) -> Outcome:
    """The function's result, or the reason why there is none.

    Raises
    ------
    CannotWriteError, MemoryError
        What the next item would meet as well.
    """
    start = time.perf_counter()
    try:
        result = function(item)
    except (CannotWriteError, MemoryError):
        raise
    except Exception as error:
        logger.debug("job failed", exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return Outcome(item, reason=reason, seconds=time.perf_counter() - start)
    return Outcome(item, result, seconds=time.perf_counter() - start)
