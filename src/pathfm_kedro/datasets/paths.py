"""Where versions lie on disk, and writing that is whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside the target that takes its place once the block ends without error.

    A reader sees the old file or the new one, never half of one, whenever the writer is killed.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "x.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [path.name for path in folder.iterdir()]
    ['x.txt']
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def shared_version_path(filepath: PurePosixPath, version: str) -> PurePosixPath:
    """Path of a version in the layout ``<folder>/<version>/<name>``.

    Datasets of one family (embeddings of all encoders, measurements of all experiments) then share
    one folder per version, so that a DVC stage can depend on the family however many encoders a
    cohort has. Kedro's own layout is ``<folder>/<name>/<version>/<name>``.

    Examples
    --------
    >>> str(shared_version_path(PurePosixPath("data/04/uni"), "0-repro"))
    'data/04/0-repro/uni'
    """
    return filepath.parent / version / filepath.name


def shared_versions(filepath: PurePosixPath) -> list[Path]:
    """What lies in that layout under any version, newest version first."""
    return sorted(Path(filepath.parent).glob(f"*/{filepath.name}"), reverse=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
