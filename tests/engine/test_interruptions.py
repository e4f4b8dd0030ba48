"""What ends a run at once: a disk that is full, a folder that may not be written to, Ctrl-C."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets import sharded_tensors
from pathfm_kedro.datasets.shard_files import read_header
from pathfm_kedro.datasets.sharded_tensors import INDEX_NAME, ShardedTensorDataset
from pathfm_kedro.engine import EngineSettings, ShardPlan, cancellable, run_each
from pathfm_kedro.engine.failures import CannotWriteError, writing_to
from tests.conftest import PROJECT

THREADS = EngineSettings(workers=2, max_failed_share=1.0)
DASK = EngineSettings(workers=1, scheduler="dask", max_failed_share=1.0)
#: As the safetensors library words it, without an errno.
FULL_IN_RUST = "Error while serializing: I/O error: No space left on device (os error 28)"


@dataclass(frozen=True)
class Job:
    slide_id: str
    rows: int = 3
    begun: list = field(default_factory=list, compare=False)
    #: Stands for a worker whose disk is full: picklable, unlike a patched module.
    full: bool = False

    def header(self):
        return {"slide": self.slide_id, "rows": str(self.rows)}

    def compute(self):
        self.begun.append(self.slide_id)
        if self.full:
            with writing_to(Path("shards")):
                raise OSError(errno.ENOSPC, "No space left on device")
        return {"embedding": np.full((self.rows, 4), 1.5, np.float32)}


def dataset(folder: Path) -> ShardedTensorDataset:
    return ShardedTensorDataset(filepath=(folder / "uni").as_posix(), version=Version("1", "1"))


def full_after(monkeypatch, n_shards: int, error: Exception) -> None:
    """Writing works so many times, then the system refuses."""
    written = []
    real = sharded_tensors.write_shard

    def refuse(path, tensors, header):
        if len(written) >= n_shards:
            raise error
        real(path, tensors, header)
        written.append(path)

    monkeypatch.setattr(sharded_tensors, "write_shard", refuse)


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left.*free space"),
        (RuntimeError(FULL_IN_RUST), "No space left.*free space"),
        (OSError(errno.EDQUOT, "quota"), ".*quota exceeded.*free space"),
        (PermissionError(errno.EACCES, "denied"), "Permission denied.*write there"),
        (OSError(errno.EROFS, "read-only"), "Read-only file system.*write there"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_written_ends_the_run_at_once(
    tmp_path, monkeypatch, caplog, workers, error, mend
):
    full_after(monkeypatch, 2, error)
    begun: list[str] = []
    jobs = [Job(f"s{i:03d}", begun=begun) for i in range(200)]
    with pytest.raises(DatasetError, match=rf"{tmp_path}.*cannot be written: (?i:{mend}).*kept"):
        dataset(tmp_path).save(ShardPlan(jobs, EngineSettings(workers, max_failed_share=1.0)))
    # Those in flight and waiting, not the whole cohort.
    assert len(begun) <= 2 + 2 * workers
    assert not [message for message in caplog.messages if message.startswith("slide ")]


def test_after_a_full_disk_the_next_run_goes_on(tmp_path, monkeypatch):
    begun: list[str] = []
    jobs = [Job(f"s{i:03d}", begun=begun) for i in range(9)]
    with monkeypatch.context() as patched:
        full_after(patched, 4, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(DatasetError, match="Finished shards are kept"):
            dataset(tmp_path).save(ShardPlan(jobs, EngineSettings(workers=1)))
    assert not dataset(tmp_path).exists()
    kept = {path: path.stat().st_ino for path in (tmp_path / "1/uni").glob("*.safetensors")}
    assert len(kept) == 4
    assert all(read_header(path) for path in kept)
    begun.clear()
    dataset(tmp_path).save(ShardPlan(jobs, EngineSettings(workers=1)))
    assert begun == [job.slide_id for job in jobs[4:]]
    assert {path: path.stat().st_ino for path in kept} == kept


def test_what_is_wrong_with_one_slide_is_that_slides_reason(tmp_path, monkeypatch):
    """A shard too large for the file system says nothing of the next one."""
    real = sharded_tensors.write_shard

    def refuse_b(path, tensors, header):
        if header["slide"] == "b":
            raise OSError(errno.EFBIG, "File too large")
        real(path, tensors, header)

    monkeypatch.setattr(sharded_tensors, "write_shard", refuse_b)
    dataset(tmp_path).save(ShardPlan([Job("a"), Job("b"), Job("c")], THREADS))
    loaded = dataset(tmp_path).load()
    assert loaded.slide_ids == ("a", "c")
    assert "File too large" in loaded.failures["b"]


def test_a_full_disk_of_a_worker_ends_the_run(tmp_path):
    jobs = [Job("a"), Job("b", full=True), *[Job(f"z{i}") for i in range(50)]]
    with pytest.raises(DatasetError, match=r"shards cannot be written: No space left"):
        dataset(tmp_path).save(ShardPlan(jobs, DASK))
    written = list((tmp_path / "1/uni").glob("*.safetensors"))
    assert 1 <= len(written) < len(jobs) - 1
    assert all(read_header(path) for path in written)
    assert not dataset(tmp_path).exists()


def test_the_error_comes_back_from_a_worker_as_it_is():
    error = pickle.loads(pickle.dumps(CannotWriteError("data cannot be written")))
    assert isinstance(error, CannotWriteError)
    assert str(error) == "data cannot be written"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare for a disk of its own")
def test_a_disk_that_is_really_full(tmp_path):
    """A tmpfs of 1 MB in a mount namespace of its own, which ends with the process."""
    script = tmp_path / "fill.py"
    script.write_text(
        "from tests.engine.test_interruptions import *\n"
        f"folder = Path({str(tmp_path / 'small')!r})\n"
        "begun = []\n"
        "jobs = [Job(f's{i}', rows=15_000, begun=begun) for i in range(50)]\n"
        "try:\n"
        "    dataset(folder).save(ShardPlan(jobs, EngineSettings(workers=1)))\n"
        "except DatasetError as error:\n"
        "    print(error)\n"
        "found = sorted(path.name for path in (folder / '1/uni').iterdir())\n"
        "print(len(begun), found, all(read_header(folder / '1/uni' / name) for name in found))\n"
    )
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/small"
    command = f"{mount} || exit 99; exec {sys.executable} {script}"
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        if "Traceback" in ended.stderr:
            pytest.fail(ended.stderr)
        pytest.skip(f"no mount namespace here: {ended.stderr.strip()}")
    said, counted = ended.stdout.splitlines()[-2:]
    assert "cannot be written: No space left on device" in said
    # Four shards of 240 kB fit; of the fifth nothing is left.
    names = [f"s{i}.safetensors" for i in range(4)]
    assert counted == f"5 {names} True"


def test_what_killed_writers_left_behind_goes(tmp_path):
    folder = tmp_path / "1/uni"
    folder.mkdir(parents=True)
    for name in (".abc.part", ".tmpX1y2Z3"):
        (folder / name).write_bytes(b"half")
    dataset(tmp_path).save(ShardPlan([Job("a")], THREADS))
    assert sorted(path.name for path in folder.iterdir()) == [INDEX_NAME, "a.safetensors"]


def test_jobs_in_flight_end_at_their_next_batch_once_the_run_has_failed():
    """A slide of an hour must not keep a run that has failed from ending."""
    begun, batches = threading.Event(), []

    def work(name: str) -> None:
        if name == "fails":
            begun.wait(20)
            raise CannotWriteError("full")
        for batch in cancellable(range(1000)):
            begun.set()
            batches.append(batch)
            time.sleep(0.02)

    start = time.monotonic()
    with pytest.raises(CannotWriteError):
        list(run_each(work, ["long", "fails"], THREADS, "slides"))
    assert time.monotonic() - start < 10
    assert len(batches) < 500


def test_jobs_that_wait_are_given_up_when_nobody_takes_outcomes_any_more():
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)

    running = run_each(work, range(1000), THREADS, "slides")
    next(running)
    running.close()
    now = len(begun)
    time.sleep(0.2)
    assert len(begun) == now < 20


@pytest.mark.parametrize("scheduler", ["threads", "dask"])
def test_ctrl_c_ends_a_long_run_within_seconds(tmp_path, scheduler):
    script = tmp_path / "long.py"
    script.write_text(
        "import pathlib, time\n"
        "from pathfm_kedro.engine import EngineSettings, cancellable, run_each\n"
        "def work(number):\n"
        f"    pathlib.Path('{tmp_path}', f'begun-{{number}}').touch()\n"
        "    for _ in cancellable(range(200)):\n"
        "        time.sleep(0.1)\n"
        "if __name__ == '__main__':\n"
        f"    engine = EngineSettings(workers=2, scheduler='{scheduler}')\n"
        "    list(run_each(work, range(1000), engine, 'slides'))\n"
    )
    with subprocess.Popen([sys.executable, script], cwd=PROJECT, stderr=subprocess.PIPE) as process:
        limit = time.monotonic() + 60
        while not (tmp_path / "begun-1").exists():
            assert time.monotonic() < limit, "no job was begun"
            time.sleep(0.05)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
        said = process.stderr.read().decode()
    # A slide takes 20 seconds, the 1,000 of them hours.
    assert time.monotonic() - start < 15
    assert process.returncode != 0
    assert "KeyboardInterrupt" in said
    assert len(list(tmp_path.glob("begun-*"))) <= 4
