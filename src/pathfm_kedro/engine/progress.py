"""How far a stage is: one bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from pathfm_kedro.engine.slides_log import Note

if TYPE_CHECKING:
    from rich.console import Console


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
    _done: int = field(default=0, init=False)
    _worked: int = field(default=0, init=False)
    _tiles: int = field(default=0, init=False)
    _seconds: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def count(self, note: Note) -> None:
        """One more slide has ended."""
        now = self.clock()
        if note.status != "linked":
            self._worked += 1
            self._tiles += note.tiles
            self._seconds += now - self._last
        self._done += 1
        self._last = now

    def __str__(self) -> str:
        if not self._worked or self._seconds <= 0:
            return ""
        rates = [f"{_three_digits(self._worked / self._seconds)} slides/s"]
        if self._tiles:
            rates.append(f"{_three_digits(self._tiles / self._seconds)} tiles/s")
        ahead = (self.total - self._done) * self._seconds / self._worked
        left = max(ahead - (self.clock() - self._last), 0)
        return "  ".join([*rates, f"{timedelta(seconds=round(left))} left"])


def _three_digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


@contextmanager
def progress(
    title: str, total: int, console: Console | None = None
) -> Iterator[Callable[[Note], None]]:
    """A bar that is told of every slide that ends; nothing where the output is no terminal.

    Parameters
    ----------
    title
        What the stage does.
    total
        Number of slides.
    console
        Where to draw; the terminal if not given.
    """
    console = console or _terminal()
    if console is None or total == 0:
        yield lambda note: None
        return
    from rich.errors import LiveError
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        console=console,
        transient=True,
    )
    pace = Pace(total)
    task = bar.add_task(title, total=total, pace=pace)

    def advance(note: Note) -> None:
        pace.count(note)
        bar.advance(task)

    try:
        bar.start()
    except LiveError:
        # Another stage of this process draws its bar here already.
        yield lambda note: None
        return
    try:
        yield advance
    finally:
        bar.stop()


def _terminal() -> Console | None:
    """Where log messages are written too, so that they appear above the bar; else standard error."""
    if not sys.stderr.isatty():
        return None
    import rich
    from rich.console import Console

    shared = rich.get_console()
    return shared if shared.is_terminal else Console(stderr=True)
