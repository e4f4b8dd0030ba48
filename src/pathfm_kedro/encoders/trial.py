"""Which runtime an encoder is run by: measured once, recorded, not repeated."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm_kedro.encoders.base import Pixels, Vectors
from pathfm_kedro.encoders.entry_checks import AUTO, RUNTIMES
from pathfm_kedro.encoders.presets import refuse_other_dimension
from pathfm_kedro.encoders.runtimes import ExportError, Forward, place
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.engine import Note
from pathfm_kedro.engine.progress import progress
from pathfm_kedro.engine.threads import one_thread
from pathfm_kedro.engine.versions import package_versions

if TYPE_CHECKING:
    from pathfm_kedro.encoders.torch_encoder import Network

logger = logging.getLogger(__name__)

#: Raised with any change of how runtimes are tried.
_REVISION = "1"
#: No runtime is worth a change of vectors that hardly makes it faster, and timings of the same work
#: differ by some percent.
_MARGIN = 1.1
#: Runtimes are timed in turns, so that a machine whose speed drifts treats them alike; the best turn
#: counts, since what disturbs only slows down.
_TURNS = 3
_SECONDS_A_TURN = 0.5
#: Tiles of a timed pass: a CPU's batch; on a GPU enough to fill it.
_TILES = {"cpu": 8, "cuda": 64}
#: Tiles that are enlarged by more cost several times the pixels that they hold, mostly unnoticed.
_ENLARGED = 1.5
#: Of a tile, where nobody says.
_SIDE = 224
#: One step of a trial has ended. It is no slide, so it counts for no rate of slides.
_STEP = Note(computed=False)
#: No smaller difference is recorded, since last bits differ between processors and the record
#: should not.
_LEAST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """How far vectors are from those of eager float32 PyTorch.

    Attributes
    ----------
    cosine
        The smallest over the tiles, 6 decimals.
    difference
        The largest distance between two vectors of a tile, over the root mean square distance of the
        tiles from their mean: how far the runtime moves a tile, where 1 is how far tiles differ.
        Rounded up to one digit, and at least .0001.
    """

    cosine: float
    difference: float

    def within(self, tolerance: Agreement) -> bool:
        """Whether it is at least as good; not a number never is."""
        return self.cosine >= tolerance.cosine and self.difference <= tolerance.difference


#: How far a runtime may be from eager float32. The same arithmetic in another order moves a tile by a
#: hundred-thousandth of what tiles differ by. bfloat16 keeps 8 bits of a number and float16 11: most
#: networks then move a tile by a twentieth and a hundredth; one that bfloat16 moves by more than a
#: fifth would be audited for its rounding. The cosine alone would not see that, since a large mean
#: that all vectors share keeps it near 1.
TOLERANCE = {
    "float32": Agreement(0.9999, 0.001),
    "float16": Agreement(0.999, 0.05),
    "bfloat16": Agreement(0.99, 0.2),
}


@dataclass(frozen=True)
class RuntimeRecord:
    """The runtime of an encoder and why it is that one.

    Attributes
    ----------
    runtime, precision, device
        What runs it; ``none`` where there is no network, as in a control.
    agreement, tolerance
        How far its vectors are from those of eager float32 PyTorch, and how far they may be; empty for
        a control.
    tiles_per_second
        Of each runtime that was timed, one thread, forward pass alone; empty where the runtime was
        given and not chosen.
    refused
        Why a runtime in a precision was not eligible.
    key
        What the record depends on.
    """

    runtime: str
    precision: str
    device: str
    agreement: Mapping[str, float] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    tiles_per_second: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    key: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)


@dataclass(frozen=True)
class RuntimeTrial:
    """A trial that has not been made yet; the dataset makes it unless it was made before.

    Attributes
    ----------
    spec
        The encoder.
    tile_pixels
        Side of the cohort's tiles; where it is given, a much larger input is warned of.
    entry
        The entry of ``encoders``, whose preset says how long vectors are.
    """

    spec: EncoderSpec
    tile_pixels: int | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> dict[str, str]:
        """Model, weights, what was asked for, software, and the processor where speed decides.

        Raises
        ------
        ValueError
            If the entry gives no sensible vector.
        """
        if not self.spec.has_network:
            return {"model": self.spec.model, "trial": _REVISION}
        from pathfm_kedro.encoders.torch_encoder import give_back, take_network

        logger.info("encoders.%s: loading %s", self.spec.name, self.spec.model)
        network = take_network(self.spec)
        give_back(self.spec, network)
        if self.tile_pixels is not None:
            warn_if_enlarged(self.spec.name, self.tile_pixels, network.side)
        return trial_key(self.spec, network)

    def record(self) -> dict[str, Any]:
        """The record, measured now.

        Raises
        ------
        ValueError
            If the entry names a preset whose vectors are of another length.
        """
        record = try_runtimes(self.spec).to_dict()
        if "preset" in self.entry:
            from pathfm_kedro.encoders.registry import load_encoder

            encoder = load_encoder(self.spec.with_runtime(record))
            found = encoder.embed(synthetic_tiles(1, self.tile_pixels or _SIDE)).shape[1]
            refuse_other_dimension(self.spec.name, self.entry, found)
        return record


def trial_key(spec: EncoderSpec, network: Network) -> dict[str, str]:
    """What a record of a spec depends on."""
    _, device, precision = place(spec)
    key = {
        "model": spec.model,
        "weights": network.weights,
        "pooling": network.pooling,
        "input_pixels": str(network.side),
        "runtime": spec.runtime,
        "precision": f"{spec.precision}: {precision}" if spec.precision == AUTO else precision,
        "device": device,
        **package_versions(["torch", "onnxruntime"]),
        "trial": _REVISION,
    }
    if spec.is_trained:
        # The record is how everybody who embeds finds the weights.
        key["checkpoint"] = str(spec.checkpoint)
    if spec.runtime == AUTO:
        key["processor"] = processor_of(device)
    return key


def warn_if_enlarged(name: str, tile_pixels: int, input_pixels: int) -> None:
    """Log a warning where tiles are enlarged by more than half to an encoder's input.

    Parameters
    ----------
    name
        The encoder.
    tile_pixels, input_pixels
        Side of a tile and of the network's input.
    """
    times = input_pixels / tile_pixels
    if times > _ENLARGED:
        logger.warning(
            "encoders.%s: tiles of %d px are enlarged %.1f times to its input of %d px, so each costs "
            "%.0f times its own pixels and shows nothing more: raise tile.pixels, or set "
            "encoders.%s.input_pixels where the network takes another",
            name,
            tile_pixels,
            times,
            input_pixels,
            times**2,
            name,
        )


def try_runtimes(
    spec: EncoderSpec, timer: Callable[[], float] = time.perf_counter
) -> RuntimeRecord:
    """Choose the runtime of an encoder, or check the one that is given.

    Runtimes whose vectors of a few synthetic tiles agree with eager float32 PyTorch are eligible. The
    fastest is chosen, if it is a tenth faster than channels_last. A runtime that is given is not timed.
    Input size and expected time are logged, and on a terminal a bar shows how far the trial is.

    Parameters
    ----------
    spec
        The encoder.
    timer
        Seconds, for tests.

    Raises
    ------
    ValueError
        If the runtime or precision that is given does not agree, or cannot run the network.
    """
    if not spec.has_network:
        return RuntimeRecord("none", "none", "cpu", key=RuntimeTrial(spec).key())
    from pathfm_kedro.encoders.torch_encoder import give_back, take_network

    _, device, precision = place(spec)
    network = take_network(spec)
    runtimes = _candidates(spec, device, precision)
    title = f"runtimes of {spec.name} at {network.side} px"
    try:
        _announce(spec, network, device, runtimes)
        with one_thread(), progress(title, _steps(spec, runtimes)) as advance:
            bench = _Bench(network, device, lambda: advance(_STEP))
            _estimate(spec, bench, len(runtimes))
            return _tried(spec, bench, precision, timer)
    finally:
        give_back(spec, network)


def _tried(
    spec: EncoderSpec, bench: _Bench, precision: str, timer: Callable[[], float]
) -> RuntimeRecord:
    # Where the precision is not given and the reduced one strays, the full one is left.
    precisions = dict.fromkeys([precision, *(["float32"] if spec.precision == AUTO else [])])
    refused: dict[str, str] = {}
    for each in precisions:
        agreed, reasons = bench.eligible(_candidates(spec, bench.device, each), each)
        refused |= reasons
        if not agreed:
            continue
        speeds = bench.speeds(list(agreed), each, timer) if spec.runtime == AUTO else {}
        runtime = fastest(speeds) if speeds else next(iter(agreed))
        return RuntimeRecord(
            runtime,
            each,
            bench.device,
            agreement=asdict(agreed[runtime]),
            tolerance=asdict(TOLERANCE[each]),
            tiles_per_second=speeds,
            refused=refused,
            key=trial_key(spec, bench.network),
        )
    raise ValueError(
        f"encoders.{spec.name} cannot be run as asked: "
        + "; ".join(f"{what} {why}" for what, why in refused.items())
        + f". Set encoders.{spec.name}.runtime and precision to auto"
    )


def fastest(tiles_per_second: Mapping[str, float]) -> str:
    """The fastest runtime, or channels_last where it is nearly as fast.

    Examples
    --------
    >>> fastest({"eager": 10.5, "channels_last": 10.0})
    'channels_last'
    >>> fastest({"eager": 7.0, "channels_last": 10.0, "onnxruntime": 30.0})
    'onnxruntime'
    """
    best = max(tiles_per_second, key=lambda runtime: tiles_per_second[runtime])
    usual = tiles_per_second.get("channels_last", 0.0)
    return best if tiles_per_second[best] >= _MARGIN * usual else "channels_last"


def agreement(vectors: Vectors, reference: Vectors) -> Agreement:
    """How far vectors are from those of the reference, row by row.

    Parameters
    ----------
    vectors, reference
        float32 [n, d].

    Examples
    --------
    >>> reference = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> agreement(reference, reference)
    Agreement(cosine=1.0, difference=0.0001)
    >>> agreement(reference[::-1], reference)
    Agreement(cosine=0.0, difference=2.0)
    """
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(float).tiny)
    spread = float(np.sqrt(((b - b.mean(axis=0)) ** 2).sum(axis=1).mean()))
    moved = float(np.linalg.norm(a - b, axis=1).max())
    difference = max(moved / spread if spread > 0 else 0.0, _LEAST_DIFFERENCE)
    return Agreement(round(float(cosines.min()), 6), _rounded_up(difference))


def _rounded_up(number: float) -> float:
    """One significant digit.

    Examples
    --------
    >>> _rounded_up(0.0123), _rounded_up(0.0001), _rounded_up(0.95)
    (0.02, 0.0001, 1.0)
    """
    exponent = int(np.floor(np.log10(number)))
    # Written out, since 10.0 ** -4 is not quite 0.0001.
    digit = int(np.ceil(round(number / float(f"1e{exponent}"), 6)))
    return float(f"{digit}e{exponent}")


def synthetic_tiles(n: int, side: int) -> Pixels:
    """Tiles that look from afar like tissue stained with haematoxylin and eosin, always the same.

    Blobs of purple on a pink ground whose amounts differ from tile to tile: networks are tried in the
    range of colours that they will see.

    Parameters
    ----------
    n
        Number of tiles.
    side
        px.

    Returns
    -------
    ndarray
        uint8 [n, side, side, 3].

    Examples
    --------
    >>> synthetic_tiles(2, 32).shape
    (2, 32, 32, 3)
    """
    generator = np.random.default_rng(0)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
    nuclei = np.clip(_smooth(generator, n, side, 8) - 0.6, 0, None) * 4
    ground = _smooth(generator, n, side, 32)
    amounts = generator.uniform(0.3, 1.2, (2, n, 1, 1)).astype(np.float32)
    density = np.stack([nuclei * amounts[0], ground * amounts[1]], axis=-1) @ stains
    return (255 * np.exp(-density)).round().astype(np.uint8)


def _smooth(generator: np.random.Generator, n: int, side: int, grain: int) -> np.ndarray:
    """Random fields [n, side, side] in 0 … 1 whose values change over `grain` px."""
    coarse = generator.random((n, side // grain + 2, side // grain + 2), np.float32)
    at = np.arange(side) / grain
    low = at.astype(int)
    share = (at - low).astype(np.float32)
    rows = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
    field_of_view: np.ndarray = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    return field_of_view


def _announce(spec: EncoderSpec, network: Network, device: str, runtimes: list[str]) -> None:
    logger.info(
        "encoders.%s: no earlier record fits, so %s is %s on %d tiles of %d px (%s)",
        spec.name,
        ", ".join(runtimes),
        "tried" if spec.runtime == AUTO else "checked",
        _TILES[device],
        network.side,
        device,
    )


def _estimate(spec: EncoderSpec, bench: _Bench, runtimes: int) -> None:
    """Log how long the rest will take, from the pass by eager PyTorch."""
    each = bench.seconds
    turns = _TURNS * max(each, _SECONDS_A_TURN) if spec.runtime == AUTO else 0
    logger.info("encoders.%s: that takes about %.0f s", spec.name, 1 + runtimes * (each + turns))


def _steps(spec: EncoderSpec, runtimes: list[str]) -> int:
    """The reference, each runtime's vectors, and each runtime's turns."""
    return 1 + len(runtimes) * (1 + (_TURNS if spec.runtime == AUTO else 0))


def _candidates(spec: EncoderSpec, device: str, precision: str) -> list[str]:
    if spec.runtime != AUTO:
        return [spec.runtime]
    onnx = device == "cpu" and precision == "float32"
    return [runtime for runtime in RUNTIMES if onnx or runtime != "onnxruntime"]


class _DisagreementError(ValueError):
    """Vectors are too far from those of eager float32 PyTorch."""


class _Bench:
    """A network on the bench: the tiles, and what eager float32 PyTorch makes of them."""

    def __init__(self, network: Network, device: str, advance: Callable[[], None]) -> None:
        import torch

        self.network = network
        self.device = device
        self.advance = advance
        tiles = torch.from_numpy(synthetic_tiles(_TILES[device], network.side))
        with torch.inference_mode():
            self.batch = network.prepared(tiles)
        start = time.perf_counter()
        self.reference = self._vectors(network.forward_by("eager", device, "float32"))
        self.seconds = time.perf_counter() - start
        advance()

    def eligible(
        self, runtimes: list[str], precision: str
    ) -> tuple[dict[str, Agreement], dict[str, str]]:
        """Agreement of those that agree, and why the others are refused."""
        agreed: dict[str, Agreement] = {}
        refused: dict[str, str] = {}
        for runtime in runtimes:
            try:
                agreed[runtime] = self._agreement(runtime, precision)
            except ExportError as error:
                refused[f"{runtime}, {precision}"] = f"cannot have this model ({error})"
            except _DisagreementError as error:
                refused[f"{runtime}, {precision}"] = str(error)
            self.advance()
        return agreed, refused

    def _agreement(self, runtime: str, precision: str) -> Agreement:
        vectors = self._vectors(self.network.forward_by(runtime, self.device, precision))
        if not np.isfinite(vectors).all():
            raise _DisagreementError("gives NaN or infinity")
        found, wanted = agreement(vectors, self.reference), TOLERANCE[precision]
        if not found.within(wanted):
            raise _DisagreementError(
                f"moves tiles by {found.difference:g} of their spread from eager float32 (at most "
                f"{wanted.difference:g} is allowed), smallest cosine {found.cosine:g} (at least "
                f"{wanted.cosine:g})"
            )
        return found

    def speeds(
        self, runtimes: list[str], precision: str, timer: Callable[[], float]
    ) -> dict[str, float]:
        """Tiles per second of each runtime, 3 digits."""
        best = dict.fromkeys(runtimes, 0.0)
        for _ in range(_TURNS):
            for runtime in runtimes:
                run = self.network.forward_by(runtime, self.device, precision)
                best[runtime] = max(best[runtime], self._speed(run, timer))
                self.advance()
        return {runtime: float(f"{speed:.3g}") for runtime, speed in best.items()}

    def _speed(self, run: Forward, timer: Callable[[], float]) -> float:
        start, tiles = timer(), 0
        while tiles == 0 or timer() - start < _SECONDS_A_TURN:
            run(self.batch)
            tiles += len(self.batch)
        return tiles / (timer() - start)

    def _vectors(self, run: Forward) -> Vectors:
        return run(self.batch).numpy()


def processor_of(device: str) -> str:
    """What computes: the GPU's name, or the processor's."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
