"""One run of a cohort at a time: two would take each other's tables for their own."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pathfm_kedro.engine.failures import writing_to

LOCK_NAME = ".run.lock"
#: A lock that is being taken over changes hands at most once per try.
_TRIES = 5


class CohortInUseError(RuntimeError):
    """Another run works on the cohort."""


@contextmanager
def cohort_lock(root: Path, cohort: str) -> Iterator[None]:
    """Hold the lock of a cohort's data while the block runs.

    The lock is a file that says which process of which host took it, and when. A lock whose process has
    ended is taken over; of another host that cannot be known, so that a person decides.

    Parameters
    ----------
    root
        The cohort's folder in data/.
    cohort
        Its name.

    Raises
    ------
    CohortInUseError
        If another run holds the lock, saying which and how to remove it.
    CannotWriteError
        If the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> with cohort_lock(root, "clinic"), cohort_lock(root, "clinic"):
    ...     pass
    Traceback (most recent call last):
    ...
    pathfm_kedro.run_lock.CohortInUseError: cohort clinic is being run already, ...
    """
    path = root / LOCK_NAME
    mine = json.dumps(_this_process(), sort_keys=True)
    with writing_to(root):
        root.mkdir(parents=True, exist_ok=True)
    for _ in range(_TRIES):
        with writing_to(root):
            taken = _take(path, mine)
        if taken:
            break
        _remove_stale(path, cohort)
    else:
        raise CohortInUseError(f"cohort {cohort}: other runs start at the same time; try again")
    try:
        yield
    finally:
        if _text(path) == mine:
            path.unlink(missing_ok=True)


def _this_process() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        # A process id is given to another process some day.
        "process_started": _start_of(os.getpid()),
    }


def _start_of(pid: int) -> str:
    """When a process started, in the kernel's own count; empty where the system does not tell."""
    try:
        # The name of the program, in brackets, may hold blanks.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _take(path: Path, mine: str) -> bool:
    """Make the lock, whole or not at all; False where there is one."""
    own = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    own.write_text(mine, encoding="utf-8")
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here, as on some network disks.
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(mine)
            return True
        return False
    finally:
        own.unlink(missing_ok=True)
    return True


def _remove_stale(path: Path, cohort: str) -> None:
    """Remove a lock that nobody holds any more."""
    text = _text(path)
    if text is None:
        return
    holder = _read(text)
    if holder is None or not _has_ended(holder):
        raise CohortInUseError(_message(path, cohort, holder))
    with _alone_in(path.parent):
        # Somebody else may have removed it and taken the lock meanwhile.
        if _text(path) == text:
            path.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes of this host from removing a lock at the same time."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network disks know no such locks.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _has_ended(holder: Mapping[str, object]) -> bool:
    pid = holder.get("pid")
    if os.name == "nt":
        # There, asking for a process by a signal would end it.
        return False
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = holder.get("process_started")
    return bool(started) and _start_of(pid) != started


def _message(path: Path, cohort: str, holder: Mapping[str, object] | None) -> str:
    if holder is None:
        return (
            f"cohort {cohort}: {path} is a lock that cannot be read. If no run of the cohort is going "
            "on, remove the file and run again"
        )
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
    if holder.get("host") == socket.gethostname():
        return (
            f"cohort {cohort} is being run already, by {who}: wait until it has ended, or end it. Two "
            "runs of one cohort would mix their tables"
        )
    return (
        f"cohort {cohort} is being run already, by {who}: wait until it has ended. Whether it still "
        f"runs cannot be seen from {socket.gethostname()}: if it does not, remove {path}"
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _read(text: str) -> Mapping[str, object] | None:
    try:
        holder = json.loads(text)
    except ValueError:
        return None
    return holder if isinstance(holder, dict) else None
