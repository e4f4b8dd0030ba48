"""One display for a run: bars on a terminal, a line per pipeline elsewhere."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from pathfm_kedro.engine import EngineSettings, Note, run_each
from pathfm_kedro.engine.run_display import RunDisplay, active_display, end_display, show


class Clock:
    """A clock that stands still until told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _no_display_left():
    yield
    end_display()


def step(display: RunDisplay, pipeline: str, clock: Clock, seconds: float) -> None:
    display.step_started(pipeline, "a step")
    clock.now += seconds
    display.step_done(pipeline)


def test_without_a_terminal_a_pipeline_is_two_lines_however_many_steps_take_turns(clock):
    lines: list[str] = []
    display = RunDisplay({"tile": 30, "embed": 50}, lines.append, None, clock)
    show(display)
    for _ in range(30):
        step(display, "tile", clock, 2)
        step(display, "embed", clock, 1)
    for _ in range(20):
        step(display, "embed", clock, 1)
    assert lines == [
        "tile: 30 steps",
        "embed: 50 steps",
        "tile: done in 0:01:00",
        "embed: done in 0:00:50",
    ]


def test_results_of_jobs_are_counted_for_the_pipeline_whose_step_made_them(clock):
    lines: list[str] = []
    display = RunDisplay({"tile": 1, "embed": 1}, lines.append, None, clock)
    show(display)
    display.step_started("embed", "embed_uni")
    notes = [Note(100), Note(100), Note(7, computed=False), Note(reason="broken")]

    def work(note: Note) -> Note:
        clock.now += 1
        return note

    list(run_each(work, notes, EngineSettings(workers=1), "embedding with uni", lambda n: n))
    display.step_done("embed")
    assert lines[-1] == (
        "embed: done in 0:00:04; results per slide: 2 computed, 1 reused, 1 failed; 66.7 tiles/s"
    )


def test_a_stage_that_takes_long_says_so_where_no_bar_shows_it(clock):
    lines: list[str] = []
    display = RunDisplay({"embed": 1}, lines.append, None, clock)
    display.step_started("embed", "embed_uni")
    with display.stage("embedding with uni", 2) as advance:
        for _ in range(2):
            clock.now += 45
            advance(Note(tiles=9))
    assert lines[1:] == ["  embedding with uni: 2 slides in 0:01:30"]


def test_steps_of_two_threads_do_not_take_each_others_jobs(clock):
    lines: list[str] = []
    display = RunDisplay({"tile": 1, "embed": 1}, lines.append, None, clock)
    both_run = threading.Barrier(2)

    def run(pipeline: str, slides: int) -> None:
        display.step_started(pipeline, "a step")
        both_run.wait()
        with display.stage(pipeline, slides) as advance:
            for _ in range(slides):
                advance(Note())
        both_run.wait()
        display.step_done(pipeline)

    threads = [threading.Thread(target=run, args=a) for a in (("tile", 3), ("embed", 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = sorted(line for line in lines if "done" in line)
    assert ended[0].endswith("5 computed")
    assert ended[1].endswith("3 computed")


def test_on_a_terminal_every_pipeline_has_a_bar_that_stays():
    console = Console(
        file=io.StringIO(), force_terminal=True, width=140, color_system=None, legacy_windows=False
    )
    lines: list[str] = []
    display = RunDisplay({"tile": 2, "embed": 3}, lines.append, console)
    show(display)
    assert active_display() is display
    for pipeline, steps in (("tile", 2), ("embed", 2)):
        for _ in range(steps):
            display.step_started(pipeline, "a step")
            display.step_done(pipeline)
    display.step_started("embed", "[uni]")
    with display.stage("embedding with [uni]", 4) as advance:
        for _ in range(3):
            advance(Note(tiles=10))
        assert display._bars is not None
        display._bars.refresh()
    end_display()
    drawn = console.file.getvalue()
    for shown in ("tile", "2/2", "embed", "2/3", "embedding with [uni]", "3/4 slides", "left"):
        assert shown in drawn
    assert active_display() is None
    assert lines == []


def test_steps_of_unknown_pipelines_and_jobs_outside_a_step_disturb_nothing():
    display = RunDisplay({}, pytest.fail)
    show(display)
    display.step_started("other", "a step")
    display.step_done("other")
    assert len(list(run_each(lambda n: n, [1, 2], EngineSettings(workers=1), "numbers"))) == 2
