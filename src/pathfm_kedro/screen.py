"""What a person sees of a run, what goes to its log, and what an error looks like."""

from __future__ import annotations

import dis
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import click
import kedro
from kedro.logging import RichHandler

logger = logging.getLogger(__name__)

#: Environment variables that stand for the options of `kedro run`, for commands that have none.
VERBOSE_VARIABLE = "PATHFM_VERBOSE"
TRACEBACK_VARIABLE = "PATHFM_TRACEBACK"
#: All that Kedro and the project say, relative to the project; it lies beside the data, like the log of
#: slides, since it holds times.
RUN_LOG = Path("logs/kedro.log")
#: About 100,000 lines a file, and five files before the oldest goes.
_LOG_BYTES, _LOG_FILES = 10_000_000, 5
#: What Kedro says of a step that failed is said once more by the error itself; which steps are left to
#: run may be hundreds of names; kedro-viz says at each partial run what it does not draw of it.
_IN_LOG_ONLY = ("kedro.pipeline.node", "kedro.runner", "kedro_viz")
#: Modules of Kedro whose own errors are about configuration, names and files, and not about code.
_PACKAGES = {"pathfm_kedro": Path(__file__).parent, "kedro": Path(kedro.__file__).parent}
_KEDRO_ABOUT_INPUT = (
    "kedro/config/",
    "kedro/framework/",
    "kedro/io/",
    "kedro/pipeline/pipeline.py",
)


def is_set(variable: str) -> bool:
    """Whether an environment variable switches something on."""
    return os.environ.get(variable, "").lower() not in {"", "0", "false", "no"}


class _Screen(logging.Filter):
    """Lets warnings through, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "log_only", False):
            return False
        if is_set(VERBOSE_VARIABLE):
            return True
        if record.levelno < logging.WARNING or record.name.startswith(_IN_LOG_ONLY):
            return False
        message = record.getMessage()
        if message in self._said:
            return False
        self._said.add(message)
        return True


class _Lines(logging.Handler):
    """Messages as lines of the standard output, whatever that is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def say(line: str) -> None:
    """Print a line; a reader that went away, as ``| head`` does, ends no audit."""
    with suppress(BrokenPipeError):
        click.echo(line)


class _PlainFormatter(logging.Formatter):
    """One line a message: the level in words, no columns to be broken."""

    def format(self, record: logging.LogRecord) -> str:
        if is_set(VERBOSE_VARIABLE):
            return logging.Formatter("%(asctime)s %(levelname)s %(message)s").format(record)
        return f"{record.levelname.capitalize()}: {_one_line(record)}"


def _one_line(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.name != "py.warnings":
        return message
    # "<file>:<line>: <category>: <words>", and the line of code below it.
    first = message.strip().splitlines()[0]
    return first.split(": ", 2)[-1]


def prepare_screen(project: Path) -> Callable[[], None]:
    """Keep the screen for what a person must see; the whole goes to the run's log.

    Parameters
    ----------
    project
        The project's folder, in which the log lies.

    Returns
    -------
    callable
        Puts the logging back as it was.
    """
    from pathfm_kedro.engine.progress import terminal

    root = logging.getLogger()
    before = list(root.handlers)
    screens = [h for h in before if isinstance(h, RichHandler)]
    levels = [screen.level for screen in screens]
    shown: list[logging.Handler] = [*screens]
    if terminal() is None:
        # Lines that no table of 80 columns breaks.
        shown = [_Lines()] if screens else []
        for handler in shown:
            handler.setFormatter(_PlainFormatter())
    only_what_matters = _Screen()
    for handler in shown:
        handler.setLevel(logging.NOTSET)
        handler.addFilter(only_what_matters)
    log = _open_log(project / RUN_LOG)
    others = [h for h in before if h not in screens]
    root.handlers[:] = [*others, *shown, *([log] if log else [])]

    def put_back() -> None:
        root.handlers[:] = before
        for screen, level in zip(screens, levels, strict=True):
            screen.setLevel(level)
            screen.removeFilter(only_what_matters)
        if log is not None:
            log.close()

    return put_back


def log_only(line: str, error: Exception | None = None) -> None:
    """Write to the run's log and to nothing else."""
    logger.info("%s", line, exc_info=error, extra={"log_only": True})


def _open_log(path: Path) -> logging.Handler | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8"
        )
    except OSError as error:
        logger.warning("no log of the run: %s cannot be written (%s)", path, error.strerror)
        return None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def message_for_person(error: BaseException) -> str | None:
    """The message of an error that a person can mend; None where the program is at fault.

    An error is a person's to mend where this project, or what Kedro has for configuration, names and
    files, raised it on purpose: the last place of its traceback is a ``raise`` there. Errors that come
    out of a library, or out of an operation that was not expected to fail, keep their traceback.

    Parameters
    ----------
    error
        As it was caught, with its traceback.

    Examples
    --------
    >>> from pathfm_kedro.cohorts import read_cohort_plan
    >>> try:
    ...     read_cohort_plan("nowhere")
    ... except ValueError as error:
    ...     message = message_for_person(error)
    >>> message.startswith("there is no cohort 'nowhere'")
    True
    >>> try:
    ...     1 / 0
    ... except ZeroDivisionError as error:
    ...     message_for_person(error) is None
    True
    """
    from kedro.io.core import DatasetError
    from omegaconf.errors import OmegaConfBaseException

    from pathfm_kedro.engine.failures import ENDS_RUN

    if isinstance(error, DatasetError) and error.__cause__ is not None and not _is_own(error):
        # Kedro wraps whatever a dataset raises.
        return message_for_person(error.__cause__)
    if isinstance(error, OmegaConfBaseException):
        return f"the configuration cannot be read: {error}"
    if isinstance(error, OSError) and error.errno in ENDS_RUN:
        return f"{error}. Mend: {ENDS_RUN[error.errno]}, and run again"
    if isinstance(error, NotImplementedError | AssertionError | KeyError):
        return None
    return str(error) if _is_own(error) or _is_of_kedros_input(error) else None


def _is_own(error: BaseException) -> bool:
    return _raised_in(error).startswith("pathfm_kedro/")


def _is_of_kedros_input(error: BaseException) -> bool:
    return _raised_in(error).startswith(_KEDRO_ABOUT_INPUT)


def _raised_in(error: BaseException) -> str:
    """File of the ``raise`` that an error comes from, below its package; empty where it is none."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return ""
    code = place.tb_frame.f_code
    if code.co_code[place.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return ""
    file = Path(code.co_filename)
    for package, folder in _PACKAGES.items():
        if file.is_relative_to(folder):
            return f"{package}/{file.relative_to(folder).as_posix()}"
    return ""


def show_errors() -> None:
    """Let errors that a person can mend end a command with their message alone.

    With ``PATHFM_TRACEBACK=1``, and for all other errors, the traceback is shown as before.
    """
    shown_before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
        message = None if is_set(TRACEBACK_VARIABLE) else message_for_person(error)
        if message is None:
            shown_before(kind, error, place)
        else:
            click.echo(f"{click.style('Error:', fg='red')} {message}", err=True)

    sys.excepthook = show
