"""The screen holds what a person must see, the log holds all, and an error is its message."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kedro.config import OmegaConfigLoader
from kedro.io.core import AbstractDataset, DatasetError, Version
from kedro.logging import RichHandler
from omegaconf import OmegaConf

from pathfm_kedro.cohorts import read_cohort_plan
from pathfm_kedro.datasets.parquet import ParquetDataset
from pathfm_kedro.engine import EngineSettings
from pathfm_kedro.engine.failures import CannotWriteError, writing_to
from pathfm_kedro.screen import (
    RUN_LOG,
    TRACEBACK_VARIABLE,
    VERBOSE_VARIABLE,
    log_only,
    message_for_person,
    prepare_screen,
)
from tests.conftest import PROJECT

kedro_logger = logging.getLogger("kedro.test")
own_logger = logging.getLogger("pathfm_kedro.test")


@pytest.fixture
def screen(tmp_path, monkeypatch, capsys):
    """Logging as in a run that is not on a terminal."""
    monkeypatch.delenv(VERBOSE_VARIABLE, raising=False)
    monkeypatch.setattr("pathfm_kedro.engine.progress.terminal", lambda: None)
    root = logging.getLogger()
    before, levels = list(root.handlers), (kedro_logger.level, own_logger.level)
    root.handlers[:] = [RichHandler(level=logging.WARNING)]
    for named in (kedro_logger, own_logger, logging.getLogger("pathfm_kedro.screen")):
        named.setLevel(logging.INFO)
    put_back = prepare_screen(tmp_path)
    yield tmp_path
    put_back()
    assert isinstance(root.handlers[0], RichHandler)
    root.handlers[:] = before
    for named, level in zip((kedro_logger, own_logger), levels, strict=True):
        named.setLevel(level)


def test_warnings_are_one_line_each_and_information_goes_to_the_log(screen, capsys):
    kedro_logger.info("Completed node: %s", "embed.uni." * 20)
    own_logger.warning("slide %s: %s", "S-1", "no file at 'S-1.svs'" * 9)
    own_logger.warning("slide %s: %s", "S-1", "no file at 'S-1.svs'" * 9)
    logging.getLogger("py.warnings").warning("/x/y.py:3: UserWarning: take care\n  f(x)\n")
    log_only("beside the screen")
    shown = capsys.readouterr().out.splitlines()
    assert [line[:12] for line in shown] == ["Warning: sli", "Warning: tak"]
    assert shown[1] == "Warning: take care"
    kept = (screen / RUN_LOG).read_text()
    for line in ("Completed node: embed.uni.", "slide S-1", "take care", "beside the screen"):
        assert line in kept


def test_verbose_brings_everything_back(screen, capsys, monkeypatch):
    monkeypatch.setenv(VERBOSE_VARIABLE, "1")
    kedro_logger.info("Completed node: one")
    assert "INFO Completed node: one" in capsys.readouterr().out


def test_a_log_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "logs").touch()
    prepare_screen(tmp_path)()
    assert "no log of the run" in caplog.text


def caught(function, *arguments) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011
        function(*arguments)
    return info.value


class Broken(AbstractDataset):
    """A dataset that raises what it is told."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def load(self):
        raise self.error

    def save(self, data):
        raise self.error

    def _describe(self):
        return {}


def full_disk():
    with writing_to(Path("data")):
        raise OSError(errno.ENOSPC, "No space left on device")


def invalid_yaml(folder: Path):
    (folder / "base").mkdir()
    (folder / "base" / "parameters.yml").write_text("a: [\n")
    return OmegaConfigLoader(str(folder), base_env="base", default_run_env="base")["parameters"]


def test_errors_that_a_person_can_mend_have_a_message(tmp_path):
    missing = ParquetDataset(
        filepath=(tmp_path / "x.parquet").as_posix(), version=Version(None, None)
    )
    for error, words in [
        (caught(read_cohort_plan, "nowhere"), "there is no cohort 'nowhere'"),
        (caught(lambda: EngineSettings(workers=-1)), "engine.workers is -1"),
        (caught(full_disk), "data cannot be written: No space left"),
        (caught(missing.load), "Did not find any versions"),
        (caught(invalid_yaml, tmp_path), "Invalid YAML or JSON file"),
        (
            caught(lambda: OmegaConf.create({"a": "${b}"}).a),
            "the configuration cannot be read: Interpolation key 'b' not found",
        ),
        (OSError(errno.EACCES, "Permission denied", "data"), "let the user who runs this write"),
    ]:
        told = message_for_person(error)
        assert words in (told or ""), error


def test_what_a_dataset_wraps_is_judged_by_what_it_wraps():
    own = caught(read_cohort_plan, "nowhere")
    assert "nowhere" in message_for_person(caught(Broken(own).load))
    assert message_for_person(caught(Broken(TypeError("no")).load)) is None
    assert isinstance(own, ValueError)
    assert isinstance(caught(full_disk), CannotWriteError)


def wrong_index():
    return [1][2]


def wrong_number():
    return int("x")


def library_raises():
    return json.loads("{")


def foreign_raise():
    raise ValueError("raised by a test, which is neither the project nor Kedro")


@pytest.mark.parametrize("function", [wrong_index, wrong_number, library_raises, foreign_raise])
def test_errors_of_the_program_keep_their_traceback(function):
    assert message_for_person(caught(function)) is None


def test_a_number_that_the_projects_own_code_cannot_read_is_no_message():
    """ValueError, innermost in the project, but of an operation and not of a ``raise``."""
    from pathfm_kedro.project import path_from

    error = caught(path_from, 3, 4)
    assert message_for_person(error) is None
    assert not isinstance(error, DatasetError)


@pytest.mark.parametrize("variable", ["0", "1"])
def test_a_command_ends_with_the_message_alone_or_with_all(variable):
    code = (
        "import pathfm_kedro.cli; from pathfm_kedro.cohorts import read_cohort_plan as read;"
        "read('nowhere')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=os.environ | {TRACEBACK_VARIABLE: variable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no cohort 'nowhere'" in done.stderr
    assert ("Traceback" in done.stderr) == (variable == "1")
    assert (len(done.stderr.splitlines()) == 1) == (variable == "0")


def test_the_screen_is_configured_for_warnings():
    configured = yaml.safe_load((PROJECT / "conf" / "logging.yml").read_text())
    assert configured["handlers"]["console"]["level"] == "WARNING"
    assert RUN_LOG.parts[0] == Path(configured["handlers"]["slides"]["filename"]).parts[0]
