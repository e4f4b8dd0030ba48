"""Threads and Dask: same outcomes, same bytes; a dead worker costs its slides only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from kedro.io.core import Version

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.engine import EngineSettings, ShardPlan, map_in_order, run_each
from pathfm_kedro.engine.cluster import cluster_class, cluster_of, installed_versions, work
from pathfm_kedro.engine.devices import visible_devices
from tests.conftest import PROJECT

DASK = EngineSettings(workers=2, scheduler="dask")


@pytest.fixture(scope="module")
def running() -> Iterator[EngineSettings]:
    """A cluster that runs already, for tests that leave its workers alive."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield EngineSettings(scheduler="dask", dask={"address": cluster.scheduler_address})


@dataclass(frozen=True)
class Slide:
    """A job that leaves a line per attempt, and dies with its worker as often as it is told."""

    slide_id: str
    diary: Path
    deaths: int = 0
    fails: bool = False
    seconds: float = 0

    def header(self):
        return {"slide": self.slide_id}

    def compute(self):
        with (self.diary / self.slide_id).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        if self.deaths and len(attempts(self.diary, self.slide_id)) <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails:
            raise ValueError("the slide is broken")
        seed = sum(self.slide_id.encode())
        return {"embedding": np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)}


def attempts(diary: Path, slide_id: str) -> list[int]:
    """Process of every attempt at a slide."""
    path = diary / slide_id
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def save(folder: Path, jobs, engine: EngineSettings) -> ShardedTensorDataset:
    data = ShardedTensorDataset(filepath=(folder / "uni").as_posix(), version=Version("v", "v"))
    data.save(ShardPlan(jobs, engine))
    return data


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "v" / "uni").iterdir()}


def process_of(_: object) -> int:
    return os.getpid()


def running_workers(engine: EngineSettings) -> list[int]:
    """Process of every worker of a cluster."""
    from distributed import Client

    with Client(engine.dask.address, set_as_default=False) as client:
        return list(client.run(os.getpid).values())


def torch_threads(_: object) -> int:
    import torch

    return torch.get_num_threads()


def variable(name: str) -> str | None:
    return os.environ.get(name)


def half(x: int) -> float:
    if x == 3:
        raise ValueError("three is refused")
    return x / 2


def test_threads_and_dask_write_the_same_bytes(tmp_path):
    jobs = [Slide(f"s{i}", tmp_path, fails=i == 4) for i in range(9)]
    save(tmp_path / "threads", jobs, EngineSettings(workers=2))
    before = dict(os.environ)
    save(tmp_path / "dask", jobs, DASK)
    # Dask asks libraries for one thread by variables, which would stay behind in this process.
    assert dict(os.environ) == before
    assert content(tmp_path / "threads") == content(tmp_path / "dask")
    assert len(content(tmp_path / "dask")) == 8 + 1


def test_shards_are_computed_by_the_workers_and_only_once(tmp_path, running):
    jobs = [Slide(f"s{i}", tmp_path) for i in range(6)]
    save(tmp_path, jobs, running)
    save(tmp_path, jobs, running)
    processes = [attempts(tmp_path, job.slide_id) for job in jobs]
    assert all(len(of_slide) == 1 for of_slide in processes)
    assert os.getpid() not in {p for of_slide in processes for p in of_slide}


def test_outcomes_come_in_the_order_of_the_items_with_the_same_reasons(running):
    here = map_in_order(half, range(8), EngineSettings(workers=2), "halves")
    there = map_in_order(half, range(8), running, "halves")
    assert here == there
    assert there[3].reason == "ValueError: three is refused"


def test_closures_over_parameters_can_be_sent(running):
    shift = {"by": 2}
    outcomes = map_in_order(lambda x: x + shift["by"], [1, 2], running, "shifts")
    assert [outcome.result for outcome in outcomes] == [3, 4]


def test_a_worker_killed_from_outside_costs_only_a_second_attempt_at_its_slide(tmp_path):
    jobs = [Slide(f"s{i}", tmp_path, seconds=0.4) for i in range(8)]
    running = run_each(_Compute(), jobs, DASK, "slides")
    finished = [next(running)]
    victim = _a_running_worker(tmp_path, jobs, finished)
    os.kill(victim, signal.SIGKILL)
    finished += running
    assert sorted(outcome.item.slide_id for outcome in finished) == [j.slide_id for j in jobs]
    assert [outcome.reason for outcome in finished] == [None] * len(jobs)
    again = [job.slide_id for job in jobs if len(attempts(tmp_path, job.slide_id)) > 1]
    # One thread a worker: one slide in flight on the one that died.
    assert len(again) == 1
    assert attempts(tmp_path, again[0])[0] == victim


def test_a_slide_that_kills_its_workers_is_recorded_and_the_rest_go_on(tmp_path):
    engine = EngineSettings(workers=2, scheduler="dask", dask={"retries": 1})
    deaths = {"a": 0, "deadly": 99, "unlucky": 1, "z": 0}
    jobs = [Slide(name, tmp_path, deaths=times) for name, times in deaths.items()]
    loaded = save(tmp_path, jobs, engine).load()
    assert loaded.slide_ids == ("a", "unlucky", "z")
    assert list(loaded.failures) == ["deadly"]
    # Neither a host nor a port: the index of a pinned version must not differ from run to run.
    assert loaded.failures["deadly"].startswith(
        "KilledWorker: the worker died at each of 2 attempts;"
    )
    assert "tcp" not in loaded.failures["deadly"]
    # Dask alone would blame a slide for the death of a worker on which it only waited.
    assert {name: len(attempts(tmp_path, name)) for name in ("deadly", "unlucky")} == {
        "deadly": 2,
        "unlucky": 2,
    }


def test_a_slide_is_not_blamed_for_another_that_kills_the_worker_of_both(tmp_path):
    """Two threads in one process: every death of the one is a death of the other, unless alone."""
    from distributed import LocalCluster

    jobs = [
        Slide("deadly", tmp_path, deaths=99, seconds=0.5),
        Slide("innocent", tmp_path, seconds=2),
    ]
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        scheduler_kwargs={"allowed_failures": 0},
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        address = cluster.scheduler_address
        # Two are handed out at once, also while the worker is being started anew.
        engine = EngineSettings(2, scheduler="dask", dask={"address": address, "retries": 1})
        loaded = save(tmp_path, jobs, engine).load()
    assert loaded.slide_ids == ("innocent",)
    assert list(loaded.failures) == ["deadly"]
    assert len(attempts(tmp_path, "innocent")) == 2


def test_a_job_computes_with_one_thread_whatever_the_worker_was_told():
    told = {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    engine = EngineSettings(workers=1, scheduler="dask", dask={"options": {"env": told}})
    assert [o.result for o in run_each(torch_threads, [0, 1], engine, "threads")] == [1, 1]


def test_a_cluster_is_started_by_the_name_of_its_class():
    """As SLURM's and Kubernetes' are: options to the class, then scaled."""
    options = {
        "n_workers": 0,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
        "env": {"PATHFM_MARK": "named"},
    }
    engine = EngineSettings(
        workers=1,
        scheduler="dask",
        dask={"cluster": "distributed.LocalCluster", "options": options},
    )
    outcomes = list(run_each(variable, ["PATHFM_MARK"], engine, "jobs"))
    assert [o.result for o in outcomes] == ["named"]


@pytest.mark.slow
def test_each_of_several_gpus_has_a_worker_that_sees_no_other(monkeypatch):
    from distributed import Client

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    engine = EngineSettings(workers=6, scheduler="dask")
    with cluster_of(engine) as cluster, Client(cluster, set_as_default=False) as client:
        seen = client.run(variable, "CUDA_VISIBLE_DEVICES")
        threads = client.nthreads()
    assert sorted(seen.values()) == ["5", "7"]
    assert list(threads.values()) == [3, 3]


@pytest.mark.parametrize(
    ("named", "count", "devices"),
    [(None, 2, ["0", "1"]), ("3", 1, ["3"]), ("", 0, []), (None, 0, [])],
)
def test_devices_are_those_that_torch_finds(monkeypatch, named, count, devices):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_devices() == devices


def test_a_cluster_that_was_not_started_here_is_not_ended_here(running):
    first, second = (
        {o.result for o in run_each(process_of, range(6), running, "jobs")} for _ in range(2)
    )
    assert first
    assert first | second <= set(running_workers(running))


def test_no_scheduler_at_the_address_is_said(monkeypatch):
    monkeypatch.setattr("pathfm_kedro.engine.cluster._CONNECT_SECONDS", 1)
    engine = EngineSettings(scheduler="dask", dask={"address": "tcp://127.0.0.1:9"})
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers.*dask scheduler"):
        list(run_each(process_of, [0], engine, "jobs"))


def test_nothing_to_do_starts_no_cluster():
    nowhere = EngineSettings(scheduler="dask", dask={"address": "tcp://127.0.0.1:9"})
    assert list(run_each(process_of, [], nowhere, "jobs")) == []


def test_a_worker_with_other_versions_refuses_the_job():
    other = installed_versions() | {"numpy": "1.0"}
    outcome = work(b"never read", other)
    assert outcome.result is None
    assert "numpy" in outcome.reason
    assert "for 1.0" in outcome.reason


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scheduler": "celery"}, "engine.scheduler is 'celery'"),
        ({"dask": {"cluster": "os.system"}}, "engine.dask.cluster is 'os.system'"),
        ({"dask": {"cluster": "daskevil.Cluster"}}, "give a class of one of the packages"),
        ({"dask": {"retries": -1}}, "engine.dask.retries is -1"),
        ({"dask": {"address": "tcp://a:1", "cluster": "dask.X"}}, "give either"),
        ({"dask": {"cluster": "dask_jobqueue.SLURMCluster"}}, "engine.workers is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        EngineSettings(**settings)


@pytest.mark.parametrize("path", ["dask.config.set", "distributed.Client", "distributed.Nothing"])
def test_only_clusters_are_started(path):
    with pytest.raises(ValueError, match=r"engine\.dask\.cluster"):
        cluster_class(path)


def test_listing_the_pipelines_does_not_load_dask():
    code = (
        "import sys; from pathfm_kedro.pipeline_registry import register_pipelines as r; r(); "
        "import pathfm_kedro.engine.cluster; "
        "sys.exit(any(name in sys.modules for name in ('dask', 'distributed')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """Killed without a word, it leaves nobody behind who would go on writing."""
    script = tmp_path / "long.py"
    script.write_text(
        "import os, pathlib, time\n"
        "from pathfm_kedro.engine import EngineSettings, run_each\n"
        "def wait(path):\n"
        "    pathlib.Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    engine = EngineSettings(workers=1, scheduler='dask')\n"
        f"    list(run_each(wait, ['{tmp_path}/pid'], engine, 'waiting'))\n"
    )
    with subprocess.Popen([sys.executable, script], cwd=PROJECT) as driver:
        try:
            _until((tmp_path / "pid").exists)
        finally:
            driver.kill()
    worker = int((tmp_path / "pid").read_text())
    _until(lambda: not psutil.pid_exists(worker) or _is_zombie(worker))


def _is_zombie(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _until(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < limit, "it did not happen within a minute"
        time.sleep(0.05)


@dataclass(frozen=True)
class _Compute:
    def __call__(self, job: Slide) -> int:
        return len(job.compute()["embedding"])


def _a_running_worker(diary: Path, jobs: list[Slide], finished: list) -> int:
    """Process of a slide that has begun and not ended."""
    over = {outcome.item.slide_id for outcome in finished}
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        begun = [attempts(diary, j.slide_id) for j in jobs if j.slide_id not in over]
        running = [processes[0] for processes in begun if processes]
        if running:
            return running[-1]
        time.sleep(0.01)
    pytest.fail("no slide was begun")
