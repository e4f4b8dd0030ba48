"""Rates and time left of a stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from pathfm_kedro.engine.slides_log import Note


@dataclass
class Pace:
    """Rates and time left of a stage.

    Slides that are linked take no time: a run that goes on where another was killed would promise to be
    done at once if they counted. Rates are means over the whole stage, since slides can take minutes.

    Attributes
    ----------
    total
        Slides of the stage.
    clock
        Seconds, as they pass.
    done
        Slides that have ended.
    tiles, seconds
        Tiles of the slides that were not linked, and the time they took.

    Examples
    --------
    >>> now = iter([0.0, 1.0, 5.0, 5.0])
    >>> pace = Pace(10, lambda: next(now))
    >>> pace.count(Note(tiles=100, computed=False))
    >>> pace.count(Note(tiles=200))
    >>> str(pace)
    '0.25 slides/s  50 tiles/s  0:00:32 left'
    """

    total: int
    clock: Callable[[], float] = time.monotonic
    done: int = field(default=0, init=False)
    tiles: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    _worked: int = field(default=0, init=False)
    _last: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def count(self, note: Note) -> None:
        """One more slide has ended."""
        now = self.clock()
        if note.status != "linked":
            self._worked += 1
            self.tiles += note.tiles
            self.seconds += now - self._last
        self.done += 1
        self._last = now

    def __str__(self) -> str:
        if not self._worked or self.seconds <= 0:
            return ""
        rates = [f"{three_digits(self._worked / self.seconds)} slides/s"]
        if self.tiles:
            rates.append(f"{three_digits(self.tiles / self.seconds)} tiles/s")
        ahead = (self.total - self.done) * self.seconds / self._worked
        left = max(ahead - (self.clock() - self._last), 0)
        return "  ".join([*rates, f"{timedelta(seconds=round(left))} left"])


def three_digits(rate: float) -> str:
    """A rate as a person reads it.

    Examples
    --------
    >>> three_digits(1234.5), three_digits(0.2504)
    ('1,234', '0.25')
    """
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
