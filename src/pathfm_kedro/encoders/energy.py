"""Energy of a piece of work: read from the machine's counters, what it takes idle subtracted.

Three sources, each figure names its own:

- ``rapl``: the processor's counters that Linux shows in ``/sys/class/powercap``: packages, and memory
  (``dram``) beside them. Cores lie within a package and ``psys`` holds packages: neither is added.
- ``nvml``: the counter of NVIDIA GPUs, all of the machine.
- ``tdp_model``: ``CPU seconds × watts per core``, where a person has given the processor's watts. A
  model, not a measurement; nothing is subtracted.

``joules = counted − idle watts × seconds``. Where nothing can be read there is a reason, and no figure.

Libraries that do this (codecarbon, zeus) bring some ten packages each, for what are a few files and
one call here, and the figures must name their source and less what the machine takes idle.

Pitfalls
--------
- Counters are the whole machine's: what others compute meanwhile is counted too.
- A counter that wraps around twice between two readings has lost a round: read at least once a minute.
- Fans, disks and losses of the power supply are in no counter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

RAPL, NVML, TDP = "rapl", "nvml", "tdp_model"
POWERCAP = Path("/sys/class/powercap")
#: Zones of the processor's counters, on AMD too; those of other drivers repeat a package. Parts stand
#: beside their package in /sys/class and within it in /sys/devices.
_ZONES = ("intel-rapl:*", "intel-rapl:*/intel-rapl:*:*")
_MICROJOULES, _MILLIJOULES = 1e-6, 1e-3

NO_COUNTER = (
    "{root} shows no energy counter of a processor: virtual machines and containers hide them. Measure "
    "on the machine itself, or hand the counters on (docker run -v "
    "/sys/devices/virtual/powercap/intel-rapl:/powercap:ro, cost_trial.powercap: /powercap), or set "
    "cost_trial.tdp_watts to the watts of the processor's data sheet"
)
NOT_ALLOWED = (
    "{path} may be read by root only: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj "
    "/sys/class/powercap/intel-rapl:*:*/energy_uj (until the machine starts anew; a udev rule keeps "
    "it), or set cost_trial.tdp_watts to the watts of the processor's data sheet"
)


class CounterError(Exception):
    """No energy can be read; the text says why, and the mend."""


class EnergyCounter(Protocol):
    """A counter that only rises."""

    @property
    def source(self) -> str:
        """``rapl`` or ``nvml``."""
        ...

    def joules(self) -> float:
        """Since the first reading.

        Raises
        ------
        CounterError
            If it cannot be read.
        """
        ...


@dataclass
class _Zone:
    """One counter file, and how often it has come round."""

    file: Path
    range_uj: int
    last_uj: int
    counted_uj: int = 0

    def advance(self) -> int:
        """Microjoules since the first reading."""
        now = _number(self.file)
        step = now - self.last_uj
        # The counter starts again at 0 where it has reached its range.
        self.counted_uj += step if step >= 0 else step + self.range_uj
        self.last_uj = now
        return self.counted_uj


class RaplCounter:
    """The processor's packages and memory, summed.

    Parameters
    ----------
    root
        The folder of zones; another one for tests and for containers.

    Raises
    ------
    CounterError
        If there is no zone that may be read.
    """

    source = RAPL

    def __init__(self, root: Path = POWERCAP) -> None:
        found = {zone.name: zone for pattern in _ZONES for zone in root.glob(pattern)}
        zones = [zone for _, zone in sorted(found.items()) if _is_counted(zone)]
        if not zones:
            raise CounterError(NO_COUNTER.format(root=root))
        self._zones = [
            _Zone(
                zone / "energy_uj",
                _number(zone / "max_energy_range_uj"),
                _number(zone / "energy_uj"),
            )
            for zone in zones
        ]

    def joules(self) -> float:
        """Since the first reading."""
        return sum(zone.advance() for zone in self._zones) * _MICROJOULES


def _is_counted(zone: Path) -> bool:
    try:
        name = (zone / "name").read_text(encoding="ascii").strip()
    except OSError:
        return False
    is_part = zone.name.count(":") > 1
    return name == "dram" if is_part else name.startswith(("package", "dram"))


def _number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except PermissionError as error:
        raise CounterError(NOT_ALLOWED.format(path=file)) from error
    except (OSError, ValueError) as error:
        raise CounterError(
            f"{file} cannot be read ({error}): see whether the kernel's module "
            "intel_rapl_msr is loaded (sudo modprobe intel_rapl_msr)"
        ) from error


class NvmlCounter:
    """All GPUs of the machine, summed.

    Parameters
    ----------
    nvml
        The module ``pynvml`` of the package nvidia-ml-py; another one for tests.

    Raises
    ------
    CounterError
        If there is no GPU, or none that counts.
    """

    source = NVML

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml = _pynvml() if nvml is None else nvml
        try:
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
            self._devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except nvml.NVMLError as error:
            raise CounterError(f"no GPU of NVIDIA can be read ({error})") from error
        if not self._devices:
            raise CounterError("this machine has no GPU of NVIDIA")
        self._first = 0.0
        self._first = self.joules()

    def joules(self) -> float:
        """Since the first reading."""
        read = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        try:
            millijoules = float(sum(read(device) for device in self._devices))
        except self._nvml.NVMLError as error:
            raise CounterError(
                f"the GPU counts no energy ({error}): GPUs count it from Volta (2017) on, and parts of "
                "a GPU (MIG) do not"
            ) from error
        return millijoules * _MILLIJOULES - self._first


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise CounterError("the GPU's counter needs: pip install nvidia-ml-py") from error
    return pynvml


@dataclass(frozen=True)
class Spent:
    """What a piece of work took.

    Attributes
    ----------
    seconds, cpu_seconds
        By the clock, and of all threads of this process.
    joules
        By source, what the machine takes idle subtracted, never below 0.
    """

    seconds: float
    cpu_seconds: float
    joules: Mapping[str, float] = field(default_factory=dict)


@dataclass
class EnergyMeter:
    """Measures pieces of work.

    Attributes
    ----------
    counters
        That can be read.
    problems
        Of each source that cannot, why, and the mend.
    watts_per_core
        For the model; None for none.
    idle_watts
        By source; from :meth:`rest`.
    clock, cpu_clock, sleep
        Seconds, for tests.
    """

    counters: tuple[EnergyCounter, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    watts_per_core: float | None = None
    idle_watts: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter
    cpu_clock: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep

    def rest(self, seconds: float) -> None:
        """Learn what the machine takes while this process does nothing."""
        before, start = self._joules(), self.clock()
        self.sleep(seconds)
        elapsed = self.clock() - start
        self.idle_watts = {name: (j - before[name]) / elapsed for name, j in self._joules().items()}

    def measure(self, work: Callable[[], object]) -> Spent:
        """Run a piece of work once."""
        before, start, cpu = self._joules(), self.clock(), self.cpu_clock()
        work()
        seconds, cpu_seconds = self.clock() - start, self.cpu_clock() - cpu
        found = {
            name: max(0.0, joules - before[name] - self.idle_watts.get(name, 0.0) * seconds)
            for name, joules in self._joules().items()
        }
        if self.watts_per_core is not None and RAPL not in found:
            found[TDP] = self.watts_per_core * cpu_seconds
        return Spent(seconds, cpu_seconds, found)

    def _joules(self) -> dict[str, float]:
        return {counter.source: counter.joules() for counter in self.counters}


def open_meter(
    *,
    gpu: bool,
    tdp_watts: float | None = None,
    cores: int = 1,
    root: Path = POWERCAP,
    nvml: Any = None,
) -> EnergyMeter:
    """A meter of every counter that this machine lets one read.

    Parameters
    ----------
    gpu
        Whether a GPU takes part: without one its counter is not asked for.
    tdp_watts, cores
        Of the processor by its data sheet, and its cores; None for no model.
    root, nvml
        Where counters are, for tests.
    """
    kinds: dict[str, Callable[[], EnergyCounter]] = {RAPL: lambda: RaplCounter(root)}
    if gpu:
        kinds[NVML] = lambda: NvmlCounter(nvml)
    counters, problems = [], {}
    for source, kind in kinds.items():
        try:
            counters.append(kind())
        except CounterError as error:
            problems[source] = str(error)
    watts = None if tdp_watts is None else tdp_watts / cores
    return EnergyMeter(tuple(counters), problems, watts)
