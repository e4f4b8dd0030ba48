"""One run of a cohort at a time; a lock whose process is gone holds nobody up."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pathfm_kedro.engine.failures import CannotWriteError
from pathfm_kedro.run_lock import LOCK_NAME, CohortInUseError, cohort_lock


def write_lock(root: Path, **holder: object) -> Path:
    path = root / LOCK_NAME
    told = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": "2026-01-01T00:00:00+00:00",
    }
    path.write_text(json.dumps(told | holder))
    return path


@pytest.fixture
def ended() -> int:
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lock_is_there_while_the_run_is_and_gone_afterwards(tmp_path):
    root = tmp_path / "data" / "clinic"
    with cohort_lock(root, "clinic"):
        holder = json.loads((root / LOCK_NAME).read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    assert list(root.iterdir()) == []
    with pytest.raises(ZeroDivisionError), cohort_lock(root, "clinic"):
        raise ZeroDivisionError
    assert list(root.iterdir()) == []


def test_runs_one_after_another_and_of_other_cohorts_are_not_held_up(tmp_path):
    for _ in range(3):
        with cohort_lock(tmp_path / "one", "one"), cohort_lock(tmp_path / "two", "two"):
            pass


def test_a_second_run_is_refused_and_told_who_holds_the_lock(tmp_path):
    with (
        cohort_lock(tmp_path, "clinic"),
        pytest.raises(CohortInUseError, match=rf"process {os.getpid()} on .* wait until it has"),
        cohort_lock(tmp_path, "clinic"),
    ):
        pytest.fail("both hold it")


def test_a_lock_whose_process_has_ended_is_taken_over(tmp_path, ended):
    write_lock(tmp_path, pid=ended)
    with cohort_lock(tmp_path, "clinic"):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell starts")
def test_a_process_that_only_has_the_same_number_holds_no_lock(tmp_path):
    write_lock(tmp_path, process_started="1")
    with cohort_lock(tmp_path, "clinic"):
        pass


def test_the_lock_of_another_host_is_a_persons_to_remove(tmp_path, ended):
    path = write_lock(tmp_path, host="node17", pid=ended)
    with (
        pytest.raises(CohortInUseError, match=rf"on node17 since 2026-01-01.*remove {path}"),
        cohort_lock(tmp_path, "clinic"),
    ):
        pytest.fail("taken from another host")
    assert path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x"}', '{"pid": -1}'])
def test_a_lock_that_says_nothing_is_kept_and_named(tmp_path, text):
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(CohortInUseError, match="remove"), cohort_lock(tmp_path, "clinic"):
        pytest.fail("taken")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises((CannotWriteError, OSError)), cohort_lock(tmp_path / "data" / "x", "x"):
        pytest.fail("no folder")


def _count(root: Path, start: object, counter: Path) -> None:
    start.wait()  # type: ignore[attr-defined]
    try:
        with cohort_lock(root, "clinic"):
            held = int(counter.read_text())
            counter.write_text(str(held + 1))
            # Whoever else were in here would read the same number.
            assert int(counter.read_text()) == held + 1
    except CohortInUseError:
        pass


def test_of_many_that_find_a_stale_lock_no_two_hold_it_at_once(tmp_path, ended):
    context = multiprocessing.get_context("fork")
    counter = tmp_path / "counter"
    for _ in range(5):
        counter.write_text("0")
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        write_lock(root, pid=ended)
        start = context.Barrier(6)
        runs = [context.Process(target=_count, args=(root, start, counter)) for _ in range(6)]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert all(run.exitcode == 0 for run in runs)
        assert int(counter.read_text()) >= 1
        assert list(root.iterdir()) == []
