"""The same jobs on a Dask cluster: workers do them and write their files, receipts come back."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from pathfm_kedro.engine.devices import one_worker_per_device, visible_devices
from pathfm_kedro.engine.failures import CannotWriteError
from pathfm_kedro.engine.outcomes import Outcome, attempt
from pathfm_kedro.engine.settings import EngineSettings

if TYPE_CHECKING:
    from distributed import Client, Future
    from distributed.deploy.cluster import Cluster

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Read by the numeric libraries when they are loaded.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: Packages that turn pixels into vectors: another version may give other bytes.
_DECISIVE_PACKAGES = (
    "pathfm-kedro",
    "numpy",
    "torch",
    "onnxruntime",
    "timm",
    "transformers",
    "open-clip-torch",
    "torchstain",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "pillow",
    "pydicom",
    "scikit-image",
)
#: How often workers that came since are given work.
_POLL = "2s"
_CONNECT_SECONDS = 30


def run_on_dask(
    function: Callable[[Item], Result], items: Sequence[Item], engine: EngineSettings
) -> Iterator[Outcome]:
    """Apply a function to every item on a Dask cluster, yielding outcomes as they come.

    Parameters
    ----------
    function, items
        Pickled with cloudpickle; modules that they refer to must be installed on the workers.
    engine
        Which cluster.

    Raises
    ------
    ConnectionError
        If there is no scheduler at the address, or it goes away.
    ValueError
        If Dask is not installed.
    """
    if find_spec("distributed") is None:
        raise ValueError(
            "engine.scheduler is dask, which is not installed: pip install -e '.[cluster]', or set it "
            "to threads"
        )
    left = items
    attempts = engine.dask.retries + 1
    if not left:
        return
    with _few_words(), _client(engine) as client:
        for attempt_number in range(1, attempts + 1):
            # A worker's death takes every job that waits on it along: only one that is alone on the
            # cluster at its last attempt is known to be the cause.
            alone = 1 < attempt_number == attempts
            lost = []
            for future, item in _ended(client, function, left, engine, alone):
                if _was_killed(future):
                    lost.append(item)
                else:
                    yield _outcome(future, item)
            left = lost
            if not left:
                return
    times = "once" if attempts == 1 else f"at each of {attempts} attempts"
    # Dask's own words name a host and a port, which would differ from run to run.
    reason = (
        f"KilledWorker: the worker died {times}; its log says why, often for want of memory: give "
        "workers more, or lower the encoder's batch_size"
    )
    yield from (Outcome(item, reason=reason) for item in left)


def work(payload: bytes, environment: Mapping[str, str]) -> Outcome:
    """Do one job on a worker: its small result, or the reason why there is none, without the item.

    Parameters
    ----------
    payload
        Function and item, pickled.
    environment
        Versions on the machine that hands out the jobs.
    """
    import cloudpickle

    here = installed_versions()
    other = [f"{name} {here[name]} for {v}" for name, v in environment.items() if here[name] != v]
    if other:
        reason = (
            f"EnvironmentError: the worker has {', '.join(other)}: install the same environment on all "
            "machines, so that all slides give the same vectors"
        )
        return Outcome(None, reason=reason)
    _use_one_thread()
    function, item = cloudpickle.loads(payload)
    return replace(attempt(function, item), item=None)


@cache
def installed_versions() -> dict[str, str]:
    """Version of Python and of every package that decides about vectors."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in _DECISIVE_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def cluster_class(path: str) -> type[Cluster]:
    """The class that starts a cluster, by its path.

    Raises
    ------
    ValueError
        If there is no such class or it is not a Dask cluster.
    """
    from distributed.deploy.cluster import Cluster

    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        package = path.split(".")[0].replace("_", "-")
        raise ValueError(
            f"engine.dask.cluster '{path}' cannot be imported ({error}): correct the name or "
            f"pip install {package}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Cluster)):
        raise ValueError(f"engine.dask.cluster '{path}' is not a class of Dask clusters")
    return found


def _ended(
    client: Client,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    engine: EngineSettings,
    alone: bool,
) -> Iterator[tuple[Future[Any], Item]]:
    """Hand out all items, as many at once as there is room for, and give back what has ended."""
    waiting = iter(items)
    pending: dict[Future[Any], Item] = {}
    try:
        while True:
            room = (1 if alone else _most_in_flight(client, engine)) - len(pending)
            for item in islice(waiting, max(room, 0)):
                pending[_submit(client, function, item)] = item
            if not pending:
                return
            for future in _finished(client, pending):
                yield future, pending.pop(future)
    finally:
        if pending and client.status == "running":
            client.cancel(list(pending))


def _submit(client: Client, function: Callable[[Item], Result], item: Item) -> Future[Any]:
    """Hand out one job, as bytes so that Dask looks at nothing in it."""
    import cloudpickle

    payload = cloudpickle.dumps((function, item))
    future: Future[Any] = client.submit(work, payload, installed_versions(), pure=False)
    return future


def _most_in_flight(client: Client, engine: EngineSettings) -> int:
    """One job per thread of the workers that are there.

    Few jobs then wait on a worker behind another one that kills it. Behind an address, workers may be
    added only once jobs wait for them: as many as `engine.workers` says are handed out at once.
    """
    wanted = engine.workers if engine.dask.address else 0
    threads: dict[str, int] = client.nthreads()
    return max(sum(threads.values()), wanted, 1)


def _finished(client: Client, pending: Mapping[Future[Any], object]) -> list[Future[Any]]:
    """Jobs that have ended; none when it is time to look for new workers."""
    from distributed import CancelledError, wait

    try:
        with client.as_current():
            ended = wait(list(pending), timeout=_POLL, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        return []
    except CancelledError as error:
        raise _gone() from error
    return [future for future in pending if future in ended]


def _was_killed(future: Future[Any]) -> bool:
    from distributed import KilledWorker

    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _outcome(future: Future[Any], item: object) -> Outcome:
    if future.status == "finished":
        outcome: Outcome = future.result()
        return replace(outcome, item=item)
    if future.status != "error":
        raise _gone()
    error = future.exception()
    if isinstance(error, CannotWriteError):
        raise error
    return Outcome(item, reason=f"{type(error).__name__}: {error}")


def _gone() -> ConnectionError:
    return ConnectionError(
        "the Dask scheduler went away or gave up jobs: look at its log and run again; what is finished "
        "is kept"
    )


@contextmanager
def _client(engine: EngineSettings) -> Iterator[Client]:
    """A client of the cluster; a cluster that was started for it ends with it."""
    from distributed import Client

    if engine.dask.address:
        address = engine.dask.address
        try:
            client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"no Dask scheduler answers at engine.dask.address '{address}' ({error}): start one "
                "with `dask scheduler`, or correct the address"
            ) from error
        with client:
            _say(client)
            yield client
        return
    with (
        _own_environment(),
        cluster_of(engine) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        _say(client)
        yield client


def _say(client: Client) -> None:
    threads = sum(client.nthreads().values())
    waits = "" if threads else ": jobs wait for the first"
    address = client.scheduler_info()["address"]
    logger.info("Dask scheduler at %s, %d threads%s", address, threads, waits)


@contextmanager
def cluster_of(engine: EngineSettings) -> Iterator[Cluster]:
    """A cluster that is started for a run and ends with it."""
    import dask

    options = dict(engine.dask.options)
    settings = {
        # Attempts are counted here, see run_on_dask.
        "distributed.scheduler.allowed-failures": 0,
        # Dask also sets MALLOC_TRIM_THRESHOLD_, with which glibc gives back and maps anew the memory of
        # every layer: embedding took half as long again.
        "distributed.nanny.pre-spawn-environ": ONE_THREAD,
    }
    with dask.config.set(settings):
        if engine.dask.cluster:
            cluster = cluster_class(engine.dask.cluster)(**options)
            cluster.scale(engine.workers)
        else:
            cluster = _on_this_machine(engine.n_workers, options)
        with cluster:
            yield cluster


def _on_this_machine(workers: int, options: dict[str, Any]) -> Cluster:
    """Worker processes: one for each of several GPUs, else one for each slide at work."""
    from distributed import LocalCluster

    # Dask's memory limit is an equal share of the machine for every core, too little for a large
    # encoder where there are fewer workers than cores.
    # Without a dashboard there still is a server of health checks: here alone, on a free port.
    options = {
        "processes": True,
        "memory_limit": 0,
        "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    } | options
    devices = visible_devices()
    if len(devices) > 1:
        return one_worker_per_device(devices, workers, options)
    return LocalCluster(**{"n_workers": workers, "threads_per_worker": 1} | options)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Take back what Dask writes into this process's environment for its local workers.

    It asks for one thread, which libraries that are loaded later here would obey.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _few_words() -> Iterator[None]:
    """Let Dask say what goes wrong, and not each connection."""
    # Its import sets the level, so it comes first.
    import distributed  # noqa: F401

    words = logging.getLogger("distributed")
    before = words.level
    words.setLevel(logging.WARNING)
    try:
        yield
    finally:
        words.setLevel(before)


def _use_one_thread() -> None:
    """As on local threads: no oversubscription, and sums in the same order always.

    Torch is first loaded by a job, so what it reads when loaded is set too.
    """
    os.environ.update(ONE_THREAD)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
