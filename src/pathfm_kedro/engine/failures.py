"""How many slides a run may lose, and what ends a run at once."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pathfm_kedro.engine.settings import EngineSettings

_FULL = "free space there, or move the cohort's data to a larger disk ('root' in its globals.yml)"
_DENIED = "let the user who runs this write there"
_BROKEN = "look after the disk or the network it hangs on"
#: What strikes every slide alike, and the mend.
ENDS_RUN = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.EIO: _BROKEN,
    errno.ESTALE: _BROKEN,
}
#: Libraries written in Rust give the system's number in their text only.
_OS_ERROR = re.compile(r"os error (\d+)")


class TooManyFailedError(RuntimeError):
    """More slides failed than a run may lose."""


class CannotWriteError(RuntimeError):
    """Results cannot be stored: the next slide would fail in the same way, so the run ends."""


def refuse_too_many_failed(reasons: Mapping[str, str], total: int, engine: EngineSettings) -> None:
    """End the run where more slides failed than the engine's settings allow.

    Parameters
    ----------
    reasons
        Reason of every slide that failed.
    total
        Slides that were tried.
    engine
        ``max_failed_share``.

    Raises
    ------
    TooManyFailedError
        With the number and the first reasons.
    """
    if total and len(reasons) / total > engine.max_failed_share:
        first = "; ".join(f"{slide}: {reason}" for slide, reason in sorted(reasons.items())[:3])
        raise TooManyFailedError(
            f"{len(reasons)} of {total} slides failed, more than engine.max_failed_share = "
            f"{engine.max_failed_share:g} allows. {first}. Mend the cause and run again"
        )


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Tell a full disk or a missing right from what is wrong with one slide.

    Parameters
    ----------
    folder
        Where the block writes.

    Raises
    ------
    CannotWriteError
        In place of an error that every further slide would meet.

    Examples
    --------
    >>> with writing_to(Path("data")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    pathfm_kedro.engine.failures.CannotWriteError: data cannot be written: No space left on device. ...
    """
    try:
        yield
    except Exception as error:
        number = _system_number(error)
        mend = ENDS_RUN.get(number)
        if mend is None:
            raise
        raise CannotWriteError(
            f"{folder} cannot be written: {os.strerror(number)}. Mend: {mend}, and run again"
        ) from error


def _system_number(error: Exception) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    number = _OS_ERROR.search(str(error))
    return int(number[1]) if number else 0
