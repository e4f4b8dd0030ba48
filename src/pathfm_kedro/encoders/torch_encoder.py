"""Neural encoders: any network, with the preprocessing the model declares."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.base import Pixels, Vectors
from pathfm_kedro.encoders.batches import outputs
from pathfm_kedro.encoders.checks import refuse_senseless
from pathfm_kedro.encoders.entry_checks import AUTO
from pathfm_kedro.encoders.fingerprints import digest_of_architecture, digest_of_weights
from pathfm_kedro.encoders.published import at_hand
from pathfm_kedro.encoders.runtimes import (
    CPU_BATCH,
    CUDA_BATCHES,
    ExportError,
    Forward,
    OnnxForward,
    cuda_batch,
    onnx_session,
    place,
    torch_forward,
)
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.weights import build_network

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession

#: Raised with any change of what is computed from the same weights.
_REVISION = "3"
#: Sizes of a GPU's batches are multiples of this, or of the batch where that is smaller.
_CUDA_STEP = 64


@dataclass
class Network:
    """A frozen network with what it declares.

    Attributes
    ----------
    model
        In evaluation mode, on the CPU.
    pooling
        How tokens become one vector.
    preprocessing
        What is done to pixels before.
    weights
        SHA-256 of names, shapes and values of the weights.
    architecture
        SHA-256 of the modules and their settings.
    """

    model: torch.nn.Module
    pooling: str
    preprocessing: Mapping[str, Any]
    weights: str
    architecture: str = ""

    @property
    def side(self) -> int:
        """Of the network's input, px."""
        return int(self.preprocessing["input_pixels"])

    @cached_property
    def session(self) -> InferenceSession:
        """The network in onnxruntime, exported once.

        Raises
        ------
        ExportError
            If it cannot be.
        """
        own: InferenceSession | None = getattr(self.model, "session", None)
        return own or onnx_session(self.model.to("cpu"), self.pooling, self.side)

    def prepared(self, tiles: torch.Tensor) -> torch.Tensor:
        """float32 [n, 3, side, side] in channels-last memory, normalised, on the device of the tiles.

        Parameters
        ----------
        tiles
            uint8 [n, s, s, 3].
        """
        import torch

        batch = tiles.permute(0, 3, 1, 2).float().div_(255)
        if batch.shape[-2:] != (self.side, self.side):
            batch = torch.nn.functional.interpolate(
                batch, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False
            ).clamp_(0, 1)
        batch = batch.contiguous(memory_format=torch.channels_last)
        # Whole rows of pixels at a time: three numbers at a time cost a tenth of a small network.
        rows = batch.permute(0, 2, 3, 1).view(len(batch), self.side, -1)
        mean, std = (
            torch.tensor(self.preprocessing[name], device=batch.device).repeat(self.side)
            for name in ("mean", "std")
        )
        rows.sub_(mean).div_(std)
        return batch

    def vectors(self, tiles: Pixels, device: str) -> NDArray[np.float32]:
        """[n, d] of tiles uint8 [n, s, s, 3] by PyTorch, in evaluation mode; the model moves there."""
        import torch

        from pathfm_kedro.encoders.architectures import PooledNetwork

        def inputs(rows: slice) -> torch.Tensor:
            return self.prepared(torch.from_numpy(tiles[rows]).to(device))

        return outputs(PooledNetwork(self.model, self.pooling).to(device), inputs, len(tiles))

    def forward_by(self, runtime: str, device: str, precision: str) -> Forward:
        """The forward pass by one runtime; another one may have to be asked for again afterwards.

        Raises
        ------
        ExportError
            If onnxruntime is asked for and cannot have the network.
        """
        if runtime == "onnxruntime":
            return OnnxForward(self.session, getattr(self.model, "tiles", 1))
        return torch_forward(self.model, self.pooling, runtime, device, precision)


@dataclass(frozen=True)
class TorchEncoder:
    """A frozen network.

    A tile is resized as a whole to the model's input (no crop: an audit must see what the tile
    holds), scaled to 0 … 1 and normalised with the model's mean and standard deviation.

    Attributes
    ----------
    network
        The model and what it declares.
    run
        The forward pass.
    device
        Where PyTorch runs it.
    fingerprint
        Digest of weights, pooling, preprocessing, runtime and precision.
    batch_size
        Tiles per forward pass.
    """

    network: Network
    run: Forward
    device: str
    fingerprint: str
    batch_size: int
    #: A GPU's batches are computed by threads of its own: memory does not grow with the number of those
    #: that ask, and cuDNN, which plans a convolution anew in every thread, plans it a few times.
    gpu: Executor | None = field(default=None, repr=False, compare=False)

    @property
    def model(self) -> torch.nn.Module:
        """The network itself."""
        return self.network.model

    @property
    def pooling(self) -> str:
        """How tokens become one vector."""
        return self.network.pooling

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done to pixels before the forward pass."""
        return self.network.preprocessing

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, d] float32."""
        parts = [
            self.forward(self.stage(tiles[start : start + self.batch_size]))
            for start in range(0, len(tiles), self.batch_size)
        ]
        return np.concatenate(parts)

    def stage(self, tiles: Pixels) -> torch.Tensor:
        """What can be done ahead: all of the preprocessing, or for a GPU memory that it reads itself.

        A GPU prepares tiles faster than a CPU, and pixels are a quarter of the bytes.
        """
        if self.device == "cpu":
            return self.prepare(tiles)
        return _tensor(tiles).pin_memory()

    def forward(self, staged: torch.Tensor) -> Vectors:
        """[n, d] float32 of what :meth:`stage` gave."""
        if self.gpu is None:
            return self.run(staged).numpy()
        return self.gpu.submit(self._on_gpu, staged).result()

    def _on_gpu(self, staged: torch.Tensor) -> Vectors:
        """A batch, filled up so that there are few sizes for which a GPU must plan."""
        import torch

        missing = -len(staged) % min(self.batch_size, _CUDA_STEP)
        with torch.inference_mode():
            given = staged.to(self.device, non_blocking=True)
            full = torch.nn.functional.pad(given, (0, 0, 0, 0, 0, 0, 0, missing))
            return self.run(self.network.prepared(full))[: len(staged)].numpy()

    def prepare(self, tiles: Pixels) -> torch.Tensor:
        """float32 [n, 3, side, side] in channels-last memory, normalised, on the CPU."""
        import torch

        with torch.inference_mode():
            return self.network.prepared(_tensor(tiles))


def _tensor(tiles: Pixels) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(tiles))


def load_torch_encoder(spec: EncoderSpec) -> TorchEncoder:
    """Build a neural encoder from its spec.

    Raises
    ------
    ValueError
        If the model or its weights cannot be had, or its runtime cannot run it, saying which and what
        to do.
    """
    runtime, device, precision = place(spec)
    network = take_network(spec)
    try:
        run = network.forward_by(runtime, device, precision)
    except ExportError as error:
        raise ValueError(
            f"encoders.{spec.name}.runtime is 'onnxruntime', which cannot have this model ({error}): "
            "give auto or channels_last"
        ) from error
    fingerprint = fingerprint_of(network, spec, runtime, precision)
    encoder = TorchEncoder(network, run, device, fingerprint, CPU_BATCH, _threads_of(device))
    return replace(encoder, batch_size=_batch_size(spec, encoder))


def _threads_of(device: str) -> Executor | None:
    """Those of a GPU, each with a stream of its own; none for a CPU."""
    import torch

    if device == "cpu":
        return None
    # Weights came by another stream, which these do not wait for.
    torch.cuda.synchronize()
    return ThreadPoolExecutor(
        CUDA_BATCHES,
        thread_name_prefix="gpu",
        initializer=lambda: torch.cuda.set_stream(torch.cuda.Stream()),  # type: ignore[no-untyped-call]
    )


def fingerprint_of(network: Network, spec: EncoderSpec, runtime: str, precision: str) -> str:
    """SHA-256 of all that decides about vectors; device, batch and names do not.

    The same weights from a folder, the hub or a checkpoint have one fingerprint.
    """
    described = {
        "revision": _REVISION,
        "architecture": network.architecture,
        "pooling": network.pooling,
        "preprocessing": network.preprocessing,
        "precision": precision,
        "runtime": runtime,
        "weights": network.weights,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _batch_size(spec: EncoderSpec, encoder: TorchEncoder) -> int:
    if spec.batch_size != AUTO:
        return int(spec.batch_size)
    if encoder.device == "cpu":
        return CPU_BATCH
    import torch

    def memory_of(tiles: int) -> int:
        blank = np.zeros((tiles, encoder.network.side, encoder.network.side, 3), np.uint8)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        encoder.forward(encoder.stage(blank))
        return torch.cuda.max_memory_allocated() - before

    return cuda_batch(memory_of, torch.cuda.mem_get_info()[0])


#: At most one network that nobody uses: what a trial leaves, the encoder that it chose takes over.
_spare: dict[str, Network] = {}
_spare_lock = threading.Lock()


def take_network(spec: EncoderSpec) -> Network:
    """The network of a spec for the caller alone, who may change where and how its weights lie.

    Raises
    ------
    ValueError
        If the model or its weights cannot be had.
    """
    with _spare_lock:
        spare = _spare.pop(spec.network_key(), None)
    return spare or _load_network(spec)


def give_back(spec: EncoderSpec, network: Network) -> None:
    """Leave a network to the next who takes it."""
    with _spare_lock:
        _spare.clear()
        _spare[spec.network_key()] = network


def forget_networks() -> None:
    """Keep none for the next who takes it."""
    with _spare_lock:
        _spare.clear()


def _load_network(spec: EncoderSpec) -> Network:
    with at_hand(spec) as present:
        model = build_network(present)
    model.eval().requires_grad_(False)
    network = Network(
        model,
        spec.pooling,
        declared_preprocessing(model, spec),
        digest_of_weights(model),
        digest_of_architecture(model),
    )
    refuse_senseless(network, spec)
    return network


def _built_for(spec: EncoderSpec) -> int | None:
    """The side that ``model_kwargs`` builds the network for, whatever the model declares."""
    size = spec.model_kwargs.get("img_size")
    sides = (
        {size} if isinstance(size, int) else set(size) if isinstance(size, list | tuple) else set()
    )
    return int(sides.pop()) if len(sides) == 1 else None


def declared_preprocessing(model: torch.nn.Module, spec: EncoderSpec) -> dict[str, Any]:
    """What is done to pixels before a network, as it declares or as the entry overrides."""
    from timm.data.config import resolve_model_data_config

    declared: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return {
        "resize": "whole tile, bicubic with anti-aliasing",
        "input_pixels": spec.input_pixels or _built_for(spec) or int(declared["input_size"][-1]),
        "mean": _by_channel(spec, "mean", declared),
        "std": _by_channel(spec, "std", declared),
        "dtype": "float32",
    }


def _by_channel(spec: EncoderSpec, key: str, declared: Mapping[str, Any]) -> list[float]:
    """Numbers of the entry, or as the model declares them, which somebody has written by hand."""
    given = getattr(spec, key) or declared[key]
    try:
        if isinstance(given, str):
            raise TypeError("its letters are no numbers")
        return [float(x) for x in given]
    except (TypeError, ValueError):
        raise ValueError(
            f"encoders.{spec.name}.{key} is not given, and the model declares {given!r}: write three "
            "numbers into the entry, one for each channel"
        ) from None
