"""One display of a whole run: a bar per pipeline on a terminal, a line per pipeline elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from pathfm_kedro.engine.pace import Pace, three_digits
from pathfm_kedro.engine.slides_log import Note

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

#: A stage that takes longer leaves a line of its own where no bar is shown: about how long a person
#: waits before wondering whether a run still works.
_LONG_STAGE_SECONDS = 60.0


@dataclass
class Tally:
    """What is done of one pipeline.

    Attributes
    ----------
    total, done
        Steps (nodes).
    seconds
        Time of the steps that are done; pipelines take turns, so it is not the time since the first.
    computed, linked, failed
        Results per slide.
    tiles, tile_seconds
        Tiles that were computed, and the time of the stages that did.

    Examples
    --------
    >>> tally = Tally(total=4, done=4, seconds=12, computed=40, linked=8, tiles=400, tile_seconds=4)
    >>> str(tally)
    'results per slide: 40 computed, 8 reused; 100 tiles/s'
    """

    total: int
    done: int = 0
    seconds: float = 0.0
    computed: int = 0
    linked: int = 0
    failed: int = 0
    tiles: int = 0
    tile_seconds: float = 0.0

    def count(self, note: Note) -> None:
        """One more result of a slide."""
        setattr(self, note.status, getattr(self, note.status) + 1)

    def add_stage(self, pace: Pace) -> None:
        """A stage has ended."""
        if pace.tiles:
            self.tiles += pace.tiles
            self.tile_seconds += pace.seconds

    def left(self, running: float) -> str:
        """Time left if the remaining steps take as long as those that are done."""
        if not self.done:
            return ""
        ahead = (self.total - self.done) * self.seconds / self.done - running
        return f"about {_clock(max(ahead, 0))} left"

    def __str__(self) -> str:
        counts = {"computed": self.computed, "reused": self.linked, "failed": self.failed}
        results = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        parts = [f"results per slide: {results}"] if results else []
        if self.tile_seconds > 0:
            parts.append(f"{three_digits(self.tiles / self.tile_seconds)} tiles/s")
        return "; ".join(parts)


@dataclass
class _Row:
    """The text beside a pipeline's bar, made anew whenever it is shown."""

    tally: Tally
    clock: Callable[[], float]
    step: str = ""
    since: float = 0.0
    stage: str = ""
    pace: Pace | None = None

    def __str__(self) -> str:
        if self.tally.done == self.tally.total:
            return "  ".join(filter(None, (f"in {_clock(self.tally.seconds)}", str(self.tally))))
        if not self.step:
            return ""
        if self.pace is not None:
            count = f"{self.pace.done:,}/{self.pace.total:,} slides"
            return "  ".join(filter(None, (self.stage, count, str(self.pace))))
        left = self.tally.left(self.clock() - self.since)
        return "  ".join(filter(None, (self.step, left)))


@dataclass
class RunDisplay:
    """How far the pipelines of a run are.

    Steps of several pipelines may take turns, in one thread or in several. Stages of per-slide jobs
    appear in the row of the pipeline whose step started them.

    Attributes
    ----------
    steps
        Number of steps of every pipeline, in the order of the rows.
    say
        Prints one line where no bar is shown.
    console
        The terminal; None writes lines.
    clock
        Seconds, as they pass.
    """

    steps: Mapping[str, int]
    say: Callable[[str], object]
    console: Console | None = None
    clock: Callable[[], float] = time.monotonic
    _rows: dict[str, _Row] = field(default_factory=dict, init=False)
    _bars: Progress | None = field(default=None, init=False)
    _here: threading.local = field(default_factory=threading.local, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def __post_init__(self) -> None:
        self._rows = {name: _Row(Tally(total), self.clock) for name, total in self.steps.items()}

    def start(self) -> None:
        """Draw the bars."""
        if self.console is None or not self._rows:
            return
        from rich.errors import LiveError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(
                "{task.fields[row]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=self.console,
            expand=True,
        )
        for name, row in self._rows.items():
            bars.add_task(name, total=row.tally.total, row=row)
        try:
            bars.start()
        except LiveError:
            # Somebody else draws on this terminal: lines then, above theirs.
            return
        self._bars = bars

    def stop(self) -> None:
        """Leave the bars as they are."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def step_started(self, pipeline: str, step: str) -> None:
        """A step begins in this thread."""
        row = self._rows.get(pipeline)
        if row is None:
            return
        with self._lock:
            if not row.step and self._bars is None:
                self.say(
                    f"{pipeline}: {row.tally.total} {'step' if row.tally.total == 1 else 'steps'}"
                )
            row.step, row.since = step, self.clock()
        self._here.row, self._here.since = row, row.since

    def step_done(self, pipeline: str) -> None:
        """The step of this thread has ended."""
        row = self._rows.get(pipeline)
        if row is None:
            return
        with self._lock:
            row.tally.done += 1
            row.tally.seconds += self.clock() - getattr(self._here, "since", self.clock())
            ended = row.tally.done == row.tally.total
        self._here.row = None
        if self._bars is not None:
            self._bars.advance(self._bars.task_ids[list(self._rows).index(pipeline)])
        elif ended:
            took = "; ".join(filter(None, (_clock(row.tally.seconds), str(row.tally))))
            self.say(f"{pipeline}: done in {took}")

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[Note], None]]:
        """Per-slide jobs of this thread's step; gives what takes note of every slide that ends."""
        row: _Row = getattr(self._here, "row", None) or _Row(Tally(0), self.clock)
        pace = Pace(total, self.clock)
        row.stage, row.pace = title, pace

        def advance(note: Note) -> None:
            pace.count(note)
            row.tally.count(note)

        try:
            yield advance
        finally:
            row.pace = None
            row.tally.add_stage(pace)
            if self._bars is None and pace.seconds >= _LONG_STAGE_SECONDS:
                self.say(f"  {title}: {pace.done:,} slides in {_clock(pace.seconds)}")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


_active: list[RunDisplay] = []


def active_display() -> RunDisplay | None:
    """The display of the run that this process is in."""
    return _active[-1] if _active else None


def show(display: RunDisplay) -> None:
    """Draw a run's display; stages of jobs appear in it from now on."""
    _active.append(display)
    display.start()


def end_display() -> None:
    """Stop drawing, however the run ended."""
    while _active:
        _active.pop().stop()
