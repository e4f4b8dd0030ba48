"""What a person sees while jobs run, and what the log of slides holds afterwards."""

from __future__ import annotations

import io
import logging
import logging.config
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pathfm_kedro.engine import EngineSettings, Note, map_in_order, run_each
from pathfm_kedro.engine import jobs as jobs_module
from pathfm_kedro.engine.progress import Pace, progress
from pathfm_kedro.engine.slides_log import COLUMNS, escaped, line_of, slide_of, slides_logger
from tests.conftest import PROJECT

DASK = EngineSettings(workers=1, scheduler="dask")
THREADS = EngineSettings(workers=2)


@dataclass(frozen=True)
class Slide:
    slide_id: str
    tiles: int = 0
    linked: bool = False
    fails: str = ""


def work(slide: Slide) -> Note:
    if slide.fails:
        raise ValueError(slide.fails)
    return Note(slide.tiles, computed=not slide.linked)


def same(note: Note) -> Note:
    return note


@pytest.fixture
def log(tmp_path) -> Iterator[Path]:
    """The log of slides as conf/logging.yml makes it, in a folder of its own that is not there yet."""
    configured = yaml.safe_load((PROJECT / "conf" / "logging.yml").read_text())
    told = configured["handlers"]["slides"]
    path = tmp_path / told["filename"]
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=told["maxBytes"], encoding=told["encoding"], delay=told["delay"]
    )
    handler.setFormatter(logging.Formatter(configured["formatters"]["slide"]["format"]))
    slides_logger.addHandler(handler)
    before = slides_logger.level, slides_logger.propagate
    slides_logger.setLevel(configured["loggers"]["pathfm_kedro.slides_log"]["level"])
    slides_logger.propagate = configured["loggers"]["pathfm_kedro.slides_log"]["propagate"]
    yield path
    slides_logger.removeHandler(handler)
    handler.close()
    slides_logger.level, slides_logger.propagate = before


def read_log(path: Path) -> pl.DataFrame:
    """As a user would read it."""
    return pl.read_csv(
        path, separator="\t", quote_char=None, has_header=False, new_columns=["time", *COLUMNS]
    ).fill_null("")


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)


@pytest.mark.parametrize("engine", [THREADS, DASK], ids=["threads", "dask"])
def test_every_slide_leaves_one_line_with_what_became_of_it(log, engine):
    slides = [
        Slide("a", tiles=256),
        Slide("b", tiles=12, linked=True),
        Slide("c", fails="the slide is broken"),
    ]
    list(run_each(work, slides, engine, "embedding with uni", same))
    found = read_log(log).sort("slide")
    assert found["stage"].unique().to_list() == ["embedding with uni"]
    assert found.select("slide", "status", "tiles", "reason").rows() == [
        ("a", "computed", 256, ""),
        ("b", "linked", 12, ""),
        ("c", "failed", 0, "ValueError: the slide is broken"),
    ]
    assert found["time"].str.to_datetime("%Y-%m-%d %H:%M:%S,%3f").null_count() == 0
    assert (found["seconds"] >= 0).all()


def test_a_line_holds_the_time_that_the_job_took_where_it_ran(log):
    import time

    list(run_each(lambda _: time.sleep(0.2), [Slide("a")], DASK, "sleeping"))
    assert 0.2 <= read_log(log)["seconds"][0] < 5


def test_lines_of_map_in_order_name_the_slide_and_not_its_number(log):
    rows = [{"slide_id": "x"}, {"slide_id": "y"}]
    map_in_order(lambda row: row["slide_id"], rows, THREADS, "opening slides")
    assert sorted(read_log(log)["slide"]) == ["x", "y"]


def test_a_slide_that_is_found_to_be_useless_is_logged_as_failed(log):
    list(run_each(lambda _: "no tissue", [Slide("a")], THREADS, "tiling", lambda r: Note(reason=r)))
    assert read_log(log).select("status", "reason").rows() == [("failed", "no tissue")]


@given(st.text(), st.text(), st.text())
def test_no_text_makes_a_second_line_or_column(stage, slide, reason):
    line = line_of(stage, slide, Note(reason=reason), 1.0)
    assert len(line.splitlines()) <= 1
    assert line.count("\t") == len(COLUMNS) - 1
    assert line.isprintable() or set(filter(lambda c: not c.isprintable(), line)) == {"\t"}
    line.encode("utf-8")


@given(st.text())
def test_what_is_escaped_can_be_read_back(text):
    shown = escaped(text)
    plain = shown.encode("latin-1", "backslashreplace").decode("unicode_escape")
    assert plain == text


def test_a_slide_id_cannot_forge_a_line(log):
    forged = "S-1\n2026-01-01 00:00:00,000\tembedding\tS-2\tcomputed\t256\t1.00\t\x1b[31m"
    list(run_each(work, [Slide(forged)], THREADS, "embedding"))
    assert read_log(log).height == 1
    assert "\x1b" not in log.read_text()


def test_a_log_that_cannot_be_written_is_said_once_and_the_run_goes_on(tmp_path, caplog, capsys):
    (tmp_path / "file").touch()
    handler = logging.FileHandler(tmp_path / "file" / "slides.log", delay=True)
    slides_logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO):
            outcomes = list(run_each(work, [Slide(str(i)) for i in range(9)], THREADS, "embedding"))
    finally:
        slides_logger.removeHandler(handler)
    assert len(outcomes) == 9
    assert sum("no log of slides" in message for message in caplog.messages) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (Slide("a"), "a"),
        ({"slide_id": "b"}, "b"),
        (({"slide_id": "c"}, "tiles"), "c"),
        (Path("d"), "d"),
    ],
)
def test_items_of_every_kind_have_a_name(item, name):
    assert slide_of(item) == name


class Clock:
    """A clock that stands still until told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_linked_slides_count_neither_in_the_rate_nor_in_the_time_left():
    """A run that was killed at slide 900 of 1,000 has linked those in a second."""
    clock = Clock()
    pace = Pace(1000, clock)
    for _ in range(900):
        clock.now += 0.001
        pace.count(Note(tiles=256, computed=False))
    assert str(pace) == ""
    for _ in range(50):
        clock.now += 4
        pace.count(Note(tiles=256))
    assert str(pace) == "0.25 slides/s  64 tiles/s  0:03:20 left"
    clock.now += 20
    assert str(pace).endswith("0:03:00 left")
    clock.now += 9999
    assert str(pace).endswith("0:00:00 left")


def test_a_stage_without_tiles_shows_no_rate_of_tiles():
    clock = Clock()
    pace = Pace(4, clock)
    clock.now = 2
    pace.count(Note())
    assert str(pace) == "0.5 slides/s  0:00:06 left"


def test_the_bar_shows_slides_rates_and_time_left_and_goes_when_done():
    console = terminal()
    with progress("embedding with [uni]", 3, console) as advance:
        for _ in range(2):
            advance(Note(tiles=100))
        console.print("above the bar")
    drawn = console.file.getvalue()
    for shown in ("embedding with [uni]", "2/3", "slides/s", "tiles/s", "left", "above the bar"):
        assert shown in drawn
    # Transient: the line is erased at the end.
    assert drawn.rstrip().endswith("\x1b[2K")


def test_two_stages_at_once_share_a_terminal():
    console = terminal()
    with progress("first", 2, console) as first, progress("second", 2, console) as second:
        first(Note())
        second(Note())


def test_nothing_is_drawn_where_there_is_no_terminal(capsys):
    list(run_each(work, [Slide("a", tiles=3)], THREADS, "embedding", same))
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


@pytest.mark.parametrize("engine", [THREADS, DASK], ids=["threads", "dask"])
def test_threads_and_dask_draw_the_same_bar(monkeypatch, engine):
    console = terminal()
    monkeypatch.setattr(
        jobs_module, "progress", lambda title, total: progress(title, total, console)
    )
    with_tiles = [Slide(str(i), tiles=10) for i in range(4)]
    for _ in run_each(work, with_tiles, engine, "embedding", same):
        console.print("a line of another's")
    drawn = console.file.getvalue()
    assert "4/4" in drawn
    assert "tiles/s" in drawn


def test_the_log_lies_where_neither_git_nor_dvc_keeps_it():
    configured = yaml.safe_load((PROJECT / "conf" / "logging.yml").read_text())
    folder = Path(configured["handlers"]["slides"]["filename"]).parts[0]
    assert f"/{folder}/" in (PROJECT / ".gitignore").read_text().splitlines()
    assert folder != "data"
