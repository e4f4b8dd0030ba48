"""A run killed in the middle of embed goes on where it was: same bytes, and nothing twice."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from pathfm_kedro.datasets.shard_files import read_header
from tests.journeys.conftest import (
    _environment,
    dvc,
    fresh_clone,
    kedro,
    read_table,
    write_parameters,
)

pytestmark = [pytest.mark.journey, pytest.mark.slow]

COHORT, ENCODER = "mini", "efficientnet_lite0"
KEDRO = (
    "kedro", "run", "--env", COHORT, "--pipelines", "embed", "--namespaces", f"embed.{ENCODER}",
)  # fmt: skip
DVC = ("dvc", "repro", f"embed@{COHORT}-{ENCODER}")
#: A run that has written no shard by then hangs.
_LIMIT_SECONDS = 120


@dataclass(frozen=True)
class Shard:
    """What tells whether a file was written again: another inode or another time."""

    inode: int
    written: int


def shards(folder: Path) -> dict[Path, Shard]:
    """Every whole shard of every version."""
    found = (folder / "data" / COHORT / "04_feature/embeddings").glob(f"*/{ENCODER}/*.safetensors")
    return {
        path: Shard(path.stat().st_ino, path.stat().st_mtime_ns)
        for path in found
        if read_header(path) is not None
    }


def slides_done(folder: Path) -> set[str]:
    return {path.name for path in shards(folder)}


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of the newest version: shards and index."""
    base = folder / "data" / COHORT / "04_feature"
    newest = sorted(base.glob(f"embeddings/*/{ENCODER}"))[-1]
    return {path.name: path.read_bytes() for path in newest.iterdir()}


def run_until_killed(folder: Path, command: tuple[str, ...], n_shards: int) -> set[str]:
    """Start the command, kill its process group once it has written so many shards.

    Returns the slides that are done. SIGKILL leaves no process a chance to tidy up.
    """
    before = slides_done(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=_environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + _LIMIT_SECONDS
    while len(slides_done(folder) - before) < n_shards:
        assert process.poll() is None, f"{command} ended before it was killed"
        assert time.monotonic() < limit, f"{command} has written no shard"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while alive_in_group(process.pid):
        assert time.monotonic() < limit, "a process outlived its group"
        time.sleep(0.05)
    return slides_done(folder)


def alive_in_group(group: int) -> list[int]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A clone with tiles of 16 slides; and a copy of it in which embed ran in peace."""
    folder = fresh_clone(tmp_path_factory)
    kedro(folder, "cohort", "new", COHORT, "--phantom")
    drawn = {"patients_per_cell": 2, "centers": ["north", "south"], "size_px": 1024}
    write_parameters(folder, COHORT, "ingest", phantom=drawn)
    dvc(folder, "repro", f"tile@{COHORT}")
    peaceful = folder.parent / "peaceful"
    shutil.copytree(folder, peaceful, symlinks=True)
    kedro(peaceful, *KEDRO[1:])
    return folder, content(peaceful)


@pytest.mark.parametrize(
    ("command", "killed", "last"),
    [
        (KEDRO, ("threads",) * 2, "threads"),
        (KEDRO, ("dask",), "dask"),
        # What one has begun the other goes on with.
        (DVC, ("threads", "dask"), "threads"),
    ],
    ids=["kedro-threads", "kedro-dask", "dvc-both"],
)
def test_killed_runs_end_in_the_same_bytes_and_repeat_only_what_was_in_flight(
    undisturbed, tmp_path, command, killed, last
):
    folder, expected = undisturbed
    own = tmp_path / "own"
    shutil.copytree(folder, own, symlinks=True)
    chance = random.Random(f"{command}{killed}")
    n_slides = read_table(own, COHORT, "03_primary/tiles.parquet")["slide_id"].n_unique()
    # So few that some are left for the last run, even if every kill comes late.
    most = n_slides // (len(killed) + 1) - 1
    finished: dict[Path, Shard] = {}
    for scheduler in killed:
        _say_in_the_cohort(own, engine={"scheduler": scheduler, "workers": 2})
        done = run_until_killed(own, command, chance.randint(1, most))
        now = shards(own)
        assert len(done) < n_slides, "the run ended before it was killed"
        assert {path: now[path] for path in finished} == finished
        finished = now
    _say_in_the_cohort(own, engine={"scheduler": last, "workers": 2})
    ended = (dvc if command is DVC else kedro)(own, *command[1:])
    now = shards(own)
    assert content(own) == expected
    # What was whole before a kill is that very file after it, in every later version.
    assert {path: now[path] for path in finished} == finished
    writings = {(path.name, shard) for path, shard in now.items()}
    assert len(writings) == n_slides
    assert computed_of(ended.stdout + ended.stderr) == (n_slides - len(done), n_slides)


def computed_of(log: str) -> tuple[int, int]:
    """What a run says: how many slides it computed, of how many."""
    found = re.search(r"embed: done in [\d:]+; results per slide: ([^;\n]*)", log)
    assert found, log[-3000:]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (computed|reused)", found[1])}
    return counts.get("computed", 0), sum(counts.values())


def _say_in_the_cohort(folder: Path, **entries: object) -> None:
    """Add to conf/<cohort>/parameters.yml, as a person does."""
    path = folder / "conf" / COHORT / "parameters.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))
