"""How far a stage is: one bar on a terminal, nothing elsewhere; within a run, in the run's display."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pathfm_kedro.engine.pace import Pace
from pathfm_kedro.engine.run_display import active_display
from pathfm_kedro.engine.slides_log import Note

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def progress(
    title: str, total: int, console: Console | None = None
) -> Iterator[Callable[[Note], None]]:
    """A bar that is given every slide that ends; nothing where the output is no terminal.

    Within a run the stage appears in the row of its pipeline.

    Parameters
    ----------
    title
        What the stage does.
    total
        Number of slides.
    console
        Where to draw; the terminal if not given.
    """
    run = active_display()
    if console is None and run is not None:
        with run.stage(title, total) as tell:
            yield tell
        return
    console = console or terminal()
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


def terminal() -> Console | None:
    """Where log messages are written too, so that they appear above the bar; else standard error."""
    if not sys.stderr.isatty():
        return None
    import rich
    from rich.console import Console

    shared = rich.get_console()
    return shared if shared.is_terminal else Console(stderr=True)
