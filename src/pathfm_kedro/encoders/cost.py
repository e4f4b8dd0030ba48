"""What an encoder costs: measured once on this machine, recorded, not repeated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pathfm_kedro.encoders.base import Pixels, Vectors
from pathfm_kedro.encoders.energy import POWERCAP, CounterError, EnergyMeter, Spent, open_meter
from pathfm_kedro.encoders.operations import operations_per_tile
from pathfm_kedro.encoders.registry import load_encoder
from pathfm_kedro.encoders.runtimes import place
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.stream import StagedEncoder, embed_batches
from pathfm_kedro.encoders.trial import processor_of
from pathfm_kedro.engine.threads import one_thread

logger = logging.getLogger(__name__)

#: Raised with any change of how costs are measured.
_REVISION = "1"
#: Where Linux tells the most memory that a process has held, and lets it count anew.
_PROCESS = Path("/proc/self")
NO_NETWORK = "a control is no network: there is nothing to count or to measure"
NOT_HERE = "its vectors were read from files, and the encoder itself is not here to be measured"
NOT_MEASURED = (
    "time and energy were not measured: cost_trial.measured is false for this cohort, so that no "
    "machine's speed stands in its results; set it to true in the cohort's parameters_embed.yml"
)

#: Tiles of sampled slides as the embedding reads them: uint8 [n, s, s, 3] and what was drawn or None.
Batches = Iterable[tuple[Pixels, Vectors | None]]


@dataclass(frozen=True)
class CostSettings:
    """How costs are measured: ``cost_trial`` in the parameters.

    Attributes
    ----------
    measured
        Whether time, memory and energy are; operations are always counted.
    slides, tiles
        Slides that are read, and tiles of all of them.
    turns
        How often they are embedded: intervals come from turns.
    idle_seconds
        How long the machine is watched at rest.
    tdp_watts, cores
        Of the processor by its data sheet, for a model where no counter can be read; null for none.
    powercap
        Folder of the processor's counters.
    """

    measured: bool
    slides: int
    tiles: int
    turns: int
    idle_seconds: float
    tdp_watts: float | None = None
    cores: int | None = None
    powercap: str = str(POWERCAP)

    def __post_init__(self) -> None:
        for key in ("slides", "tiles", "turns"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"cost_trial.{key} is {value!r}: give a whole number from 1")
        for key in ("idle_seconds", "tdp_watts", "cores"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"cost_trial.{key} is {value!r}: give a number above 0")
        if (self.tdp_watts is None) != (self.cores is None):
            raise ValueError(
                "cost_trial.tdp_watts and cost_trial.cores belong together: give both, from the "
                "processor's data sheet, or neither"
            )

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> CostSettings:
        """Read the block.

        Raises
        ------
        ValueError
            If a key is unknown, missing or has a value out of range; it names the key.
        """
        try:
            return cls(**parameters)
        except TypeError as error:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"cost_trial: {error}; its keys are {known}") from error

    def meter(self, device: str) -> EnergyMeter:
        """A meter of what this machine can count."""
        return open_meter(
            gpu=device == "cuda",
            tdp_watts=self.tdp_watts,
            cores=self.cores or 1,
            root=Path(self.powercap),
        )


@dataclass(frozen=True)
class CostRecord:
    """What an encoder costs on this machine.

    Attributes
    ----------
    flops_per_tile
        Floating-point operations; None where they cannot be counted.
    device, processor
        What computes.
    tiles
        Of a turn.
    turns
        Each embedding of the tiles, reading included: seconds, cpu_seconds, gpu_seconds, joules.
    tiling
        Each search of a slide for tissue: seconds, cpu_seconds, joules.
    idle_watts
        What the machine takes at rest, by source.
    peak_bytes
        Most memory that the process held while it embedded, and the GPU's, by device.
    problems
        Why what is missing is missing, and the mend, by what: ``trial``, ``flops``, ``rapl``, ``nvml``,
        ``memory``.
    key
        What the record depends on.
    """

    flops_per_tile: int | None
    device: str = ""
    processor: str = ""
    tiles: int = 0
    turns: Sequence[Mapping[str, Any]] = ()
    tiling: Sequence[Mapping[str, Any]] = ()
    idle_watts: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    key: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)


@dataclass(frozen=True)
class CostTrial:
    """A measurement that has not been made yet; the dataset makes it unless it was made before.

    Attributes
    ----------
    spec
        The encoder with its recorded runtime.
    settings
        How it is measured.
    runtime_key
        What the runtime's record depends on: model, weights, software.
    pixels_key
        What is read: tiles of which slides.
    batches
        Gives the sampled tiles in batches of a size.
    tile_slides
        Searches one sampled slide for tissue, each.
    process
        Where the process tells of its memory.
    """

    spec: EncoderSpec
    settings: CostSettings
    runtime_key: Mapping[str, str]
    pixels_key: str
    batches: Callable[[int], Batches]
    tile_slides: Sequence[Callable[[], object]]
    process: Path = _PROCESS

    def key(self) -> dict[str, str]:
        """Model, weights, what runs it, and where time is measured the slides and the processor."""
        key = {f"runtime.{name}": value for name, value in self.runtime_key.items()}
        key |= {"model": self.spec.model, "mitigation": self.spec.mitigation or ""}
        key |= {"runtime": self.spec.runtime, "precision": self.spec.precision, "cost": _REVISION}
        if not self.spec.has_network or not self.settings.measured:
            return key
        settings = {k: str(v) for k, v in asdict(self.settings).items()}
        return (
            key | settings | {"slides": self.pixels_key, "processor": processor_of(self._device())}
        )

    def record(self) -> dict[str, Any]:
        """The record, measured now."""
        if not self.spec.has_network:
            why = NOT_HERE if self.spec.features else NO_NETWORK
            problems = {"flops": why, "trial": why}
            return CostRecord(None, problems=problems, key=self.key()).to_dict()
        problems, flops, more = {}, None, {}
        try:
            flops = operations_per_tile(self.spec)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            problems["flops"] = f"operations could not be counted ({str(error).splitlines()[0]})"
        device = self._device()
        if not self.settings.measured:
            problems["trial"] = NOT_MEASURED
        else:
            try:
                more = self._measured(self.settings.meter(device), problems)
            except (OSError, ValueError, CounterError) as error:
                problems["trial"] = f"time and energy could not be measured: {error}"
        record = CostRecord(flops, device, **more, problems=problems, key=self.key())
        return record.to_dict()

    def _device(self) -> str:
        return place(self.spec)[1]

    def _measured(self, meter: EnergyMeter, problems: dict[str, str]) -> dict[str, Any]:
        """Time, energy and memory of the sampled tiles; what cannot be read joins `problems`."""
        logger.info("encoders.%s: measuring time and energy", self.spec.name)
        encoder, device = load_encoder(self.spec), self._device()
        timed = Timed(encoder) if isinstance(encoder, StagedEncoder) else None
        run = timed or encoder
        problems |= meter.problems
        with one_thread():
            # The first time allocates, compiles and loads libraries.
            tiles = len(embed_batches(run, self.batches(encoder.batch_size)))
            for search in self.tile_slides[:1]:
                search()
            meter.rest(self.settings.idle_seconds)
            forget_peak(self.process, device)
            turns = []
            for _ in range(self.settings.turns):
                forward = timed.seconds if timed else 0.0
                spent = meter.measure(lambda: embed_batches(run, self.batches(encoder.batch_size)))
                own = timed.seconds - forward if timed and device == "cuda" else 0.0
                turns.append(_rounded(spent) | {"gpu_seconds": _digits(own)})
            peak = peak_bytes(self.process, device)
            tiling = [_rounded(meter.measure(search)) for search in self.tile_slides]
        if "cpu" not in peak:
            problems["memory"] = (
                "the most memory held is known to Linux only (/proc/self/clear_refs)"
            )
        return {
            "processor": processor_of(device),
            "tiles": tiles,
            "turns": turns,
            "tiling": tiling,
            "idle_watts": {name: _digits(watts) for name, watts in meter.idle_watts.items()},
            "peak_bytes": peak,
        }


class Timed:
    """An encoder that counts the seconds of its forward passes.

    Examples
    --------
    >>> class Doubles:
    ...     batch_size = 2
    ...     def stage(self, tiles): return tiles
    ...     def forward(self, staged): return 2 * staged
    >>> ticks = iter([1.0, 4.0])
    >>> timed = Timed(Doubles(), lambda: next(ticks))
    >>> timed.forward(timed.stage(3)), timed.seconds
    (6, 3.0)
    """

    def __init__(
        self, encoder: StagedEncoder, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._encoder, self._clock, self.seconds = encoder, clock, 0.0

    def stage(self, tiles: Pixels) -> Any:
        """The encoder's."""
        return self._encoder.stage(tiles)

    def forward(self, staged: Any) -> Vectors:
        """The encoder's, which ends when the vectors are in the processor's memory."""
        start = self._clock()
        vectors = self._encoder.forward(staged)
        self.seconds += self._clock() - start
        return vectors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


def forget_peak(process: Path, device: str) -> None:
    """Let the process, and PyTorch on a GPU, count the most memory held from now on."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    try:
        (process / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_bytes(process: Path, device: str) -> dict[str, int]:
    """Most memory held since :func:`forget_peak`, by device; without what cannot be read."""
    found = {}
    try:
        (process / "clear_refs").stat()
        lines = (process / "status").read_text(encoding="ascii").splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        found["cpu"] = int(peak.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    if device == "cuda":
        import torch

        found["cuda"] = int(torch.cuda.max_memory_allocated())
    return found


def _rounded(spent: Spent) -> dict[str, Any]:
    joules = {source: _digits(value) for source, value in spent.joules.items()}
    return {
        "seconds": _digits(spent.seconds),
        "cpu_seconds": _digits(spent.cpu_seconds),
        "joules": joules,
    }


def _digits(number: float) -> float:
    """Four significant digits: no clock and no counter knows more."""
    return float(f"{number:.4g}")
