"""What a person sets of where jobs run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SCHEDULERS = ("threads", "dask")
#: Configuration names a class that is imported and called: only those that make Dask clusters.
_CLUSTER_PACKAGES = ("dask", "distributed", "dask_jobqueue", "dask_kubernetes")


@dataclass(frozen=True)
class DaskSettings:
    """Which Dask cluster.

    Attributes
    ----------
    address
        Of a scheduler that runs already, such as ``tcp://node:8786``.
    cluster
        Class that starts one, such as ``dask_jobqueue.SLURMCluster``. Without address and cluster,
        worker processes are started on this machine.
    options
        Given to that class.
    retries
        How often a slide is tried again whose worker died, the last time with no other slide on the
        cluster. A scheduler at an address tries by its own ``distributed.scheduler.allowed-failures``
        within each attempt.
    """

    address: str | None = None
    cluster: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 2

    def __post_init__(self) -> None:
        if self.address and (self.cluster or self.options):
            raise ValueError(
                "engine.dask.address names a cluster that runs; engine.dask.cluster and options start "
                "one: give either"
            )
        if self.cluster is not None and self.cluster.split(".")[0] not in _CLUSTER_PACKAGES:
            raise ValueError(
                f"engine.dask.cluster is '{self.cluster}': give a class of one of the packages "
                f"{', '.join(_CLUSTER_PACKAGES)}"
            )
        if self.retries < 0:
            raise ValueError(f"engine.dask.retries is {self.retries}: give 0 or more")


@dataclass(frozen=True)
class EngineSettings:
    """Where and how jobs run.

    Attributes
    ----------
    workers
        Threads, or worker processes of a Dask cluster; 0 takes every core this process may use. Each
        worker computes with one thread, so that results do not depend on the number of workers.
    max_failed_share
        A run in which more than this share of the slides fails ends with an error.
    scheduler
        ``threads`` of this process, or ``dask``.
    dask
        Which Dask cluster; a mapping is read as :class:`DaskSettings`.

    Examples
    --------
    >>> EngineSettings(scheduler="dask", dask={"address": "tcp://node:8786"}).dask.retries
    2
    """

    workers: int = 0
    max_failed_share: float = 0.5
    scheduler: str = "threads"
    dask: DaskSettings = field(default_factory=DaskSettings)

    def __post_init__(self) -> None:
        if not isinstance(self.dask, DaskSettings):
            object.__setattr__(self, "dask", DaskSettings(**self.dask))
        if not isinstance(self.workers, int) or self.workers < 0:
            raise ValueError(
                f"engine.workers is {self.workers!r}: give a whole number, 0 (all cores) or more"
            )
        is_number = isinstance(self.max_failed_share, int | float)
        if not is_number or not 0 <= self.max_failed_share <= 1:
            raise ValueError(
                f"engine.max_failed_share is {self.max_failed_share}: give a share from 0 to 1"
            )
        if self.scheduler not in _SCHEDULERS:
            raise ValueError(
                f"engine.scheduler is '{self.scheduler}': give one of {', '.join(_SCHEDULERS)}"
            )
        if self.dask.cluster and not self.workers:
            raise ValueError(
                "engine.workers is 0, all cores of this machine, which says nothing of "
                f"{self.dask.cluster}: give the number of workers to start"
            )

    @property
    def n_workers(self) -> int:
        """Number of threads or local worker processes that will run."""
        return self.workers or available_cores()


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
