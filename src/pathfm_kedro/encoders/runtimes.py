"""What runs a network: PyTorch in two memory layouts, or onnxruntime."""

from __future__ import annotations

import copy
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

import numpy as np

from pathfm_kedro.encoders.entry_checks import AUTO
from pathfm_kedro.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession

#: Tiles that are read and prepared at a time for a CPU, which takes them one by one.
CPU_BATCH = 8
#: Batches in work on a GPU: while one is computed, the next is copied there and its kernels are queued.
CUDA_BATCHES = 2
#: A GPU's batches may take this share of the memory that is free before the first pass; the rest is for
#: others on the card and for what the allocator cannot use.
_CUDA_SHARE = 0.5
#: Beyond this a GPU gains nothing, and a batch of pixels takes long to read.
_CUDA_MOST = 512
#: How a GPU computes is a setting of the process, which a batch must not change under another.
_LAUNCHING = threading.Lock()


class Forward(Protocol):
    """From a batch as prepared to vectors."""

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors float32 [n, d] on the CPU of a batch float32 [n, 3, side, side]."""
        ...


def place(spec: EncoderSpec) -> tuple[str, str, str]:
    """Runtime, device and precision that a spec means here, without a trial.

    Where the runtime is ``auto`` it is channels_last, which is never much slower than eager PyTorch.

    Raises
    ------
    ValueError
        If the spec asks for a GPU and there is none.

    Examples
    --------
    >>> place(EncoderSpec("l", "timm:resnet18", runtime="onnxruntime"))
    ('onnxruntime', 'cpu', 'float32')
    """
    import torch

    runtime = "channels_last" if spec.runtime == AUTO else spec.runtime
    device = spec.device
    if runtime == "onnxruntime":
        device = "cpu"
    elif device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"encoders.{spec.name}.device is 'cuda', and PyTorch finds no GPU on this machine: give "
            "auto or cpu, or run where the GPU is"
        )
    precision = spec.precision
    if precision == AUTO:
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    return runtime, device, precision


def has_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 faster than in float32: GPUs of the last years do.

    Examples
    --------
    >>> has_bfloat16("cpu")
    False
    """
    import torch

    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class PoolingError(ValueError):
    """A network has no tokens to pool as asked."""


def has_class_token(model: Any) -> bool:
    """Whether the first of a network's tokens is a class token.

    Some networks have tokens for patches and registers only; their first token stands for a corner.
    """
    declared = getattr(model, "has_class_token", None)
    if isinstance(declared, bool):
        return declared
    parts = (model, getattr(model, "embeds", None))
    return any(hasattr(getattr(part, "cls_token", None), "shape") for part in parts)


def prefix_tokens(model: Any) -> int:
    """How many tokens come before those of patches: class tokens and registers."""
    declared = getattr(model, "num_prefix_tokens", None)
    if declared is not None:
        return int(declared)
    return int(model.cls_token.shape[1]) if has_class_token(model) else 0


def pooled(model: Any, pooling: str, batch: torch.Tensor) -> torch.Tensor:
    """One vector per tile.

    Parameters
    ----------
    model
        Of timm.
    pooling
        How tokens become one vector.
    batch
        [n, 3, side, side].

    Raises
    ------
    PoolingError
        If tokens are asked for of a network that has none.
    """
    if pooling == "default":
        vectors: torch.Tensor = model(batch)
        return vectors
    return pooled_tokens(model, pooling, model.forward_features(batch))


def pooled_tokens(model: Any, pooling: str, tokens: torch.Tensor) -> torch.Tensor:
    """One vector per tile from a network's tokens [n, t, d]; as :func:`pooled`."""
    import torch

    first_patch = prefix_tokens(model)
    if getattr(tokens, "ndim", 0) != 3 or tokens.shape[1] <= first_patch:
        raise PoolingError(
            "it needs a transformer's tokens; this model gives "
            f"{_shape_of(tokens)}: use pooling 'default'"
        )
    class_token, patch_mean = tokens[:, 0], tokens[:, first_patch:].mean(dim=1)
    if pooling == "class_token":
        return class_token
    if pooling == "patch_mean":
        return patch_mean
    return torch.cat([class_token, patch_mean], dim=1)


def _shape_of(output: Any) -> str:
    shape = getattr(output, "shape", None)
    return f"a {type(output).__name__}" if shape is None else f"a tensor of shape {tuple(shape)}"


@dataclass(frozen=True)
class TorchForward:
    """A network run by PyTorch: on a GPU a batch at once, on a CPU tile by tile.

    PyTorch's libraries for CPUs choose how to compute by the size of the batch, so that the last bits
    of a vector would depend on what else is in it; several tiles at once are hardly faster there.

    Attributes
    ----------
    model
        On its device and in its memory layout.
    pooling
        How tokens become one vector.
    layout
        ``eager`` (channels first) or ``channels_last``.
    device, precision
        As in the spec.
    """

    model: torch.nn.Module
    pooling: str
    layout: str
    device: str
    precision: str

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors float32 [n, d] on the CPU."""
        import torch

        given = batch.to(self.device, memory_format=_memory_format(self.layout))
        if self.device == "cuda":
            # Asked for one batch at a time, waited for by all: the GPU need not stand still meanwhile.
            with _LAUNCHING, torch.inference_mode(), _arithmetic(self.device, self.precision):
                vectors = pooled(self.model, self.pooling, given).float()
            return vectors.cpu()
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            rows = [pooled(self.model, self.pooling, tile[None]) for tile in given]
            return torch.cat(rows).float()


def torch_forward(
    model: torch.nn.Module, pooling: str, layout: str, device: str, precision: str
) -> TorchForward:
    """Move a network to its device and memory layout; arguments as in :class:`TorchForward`.

    The network is changed in place, so that there is one copy of its weights.
    """
    model.to(device).to(memory_format=_memory_format(layout))
    return TorchForward(model, pooling, layout, device, precision)


def _memory_format(layout: str) -> torch.memory_format:
    import torch

    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


@contextmanager
def _arithmetic(device: str, precision: str) -> Iterator[None]:
    """Reduced precision where it is asked for, and nowhere else."""
    import torch

    with exact_convolutions(device), ExitStack() as stack:
        if precision != "float32":
            stack.enter_context(torch.autocast(device, getattr(torch, precision)))
        yield


def exact_convolutions(device: str) -> AbstractContextManager[None]:
    """Convolutions of a GPU as those of a CPU: the same at every run.

    They otherwise round float32 to 10 bits, and choose their algorithm by a race.
    """
    import torch

    if device != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


@dataclass(frozen=True)
class OnnxForward:
    """A network run by onnxruntime, tile by tile.

    One tile is as fast as a batch on a single thread, its shapes are known in advance, which the
    graph's optimisation needs, and its vector cannot depend on what else is in the batch. One session
    serves any number of threads.

    Attributes
    ----------
    session
        The graph.
    tiles
        How many the graph takes at a time: one, unless it was exported for another number; what is
        missing to it is filled with zeros.
    """

    session: InferenceSession
    tiles: int = 1

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors float32 [n, d]."""
        import torch

        name = self.session.get_inputs()[0].name
        rows = []
        for start in range(0, len(batch), self.tiles):
            # Copied to channels first, the layout of the exported graph, while near the processor.
            part = np.ascontiguousarray(batch[start : start + self.tiles].numpy())
            if len(part) < self.tiles:
                missing = np.zeros((self.tiles - len(part), *part.shape[1:]), part.dtype)
                part = np.concatenate([part, missing])
            rows.append(self.session.run(None, {name: part})[0])
        return torch.from_numpy(np.concatenate(rows)[: len(batch)])


class ExportError(ValueError):
    """A network has an operation that ONNX or onnxruntime has not."""


def onnx_session(model: torch.nn.Module, pooling: str, side: int) -> InferenceSession:
    """Export a network, pooling included, and open it in onnxruntime with one thread.

    Parameters
    ----------
    model
        Of timm, on the CPU.
    pooling
        How tokens become one vector.
    side
        Of the network's input, px.

    Raises
    ------
    ExportError
        With the exporter's reason.
    """
    try:
        return open_session(_exported(model, pooling, side))
    except Exception as error:
        # The exporter and onnxruntime raise dozens of types, for one thing: not possible.
        raise ExportError(f"{type(error).__name__}: {first_line(error)}") from error


def open_session(graph: bytes | str) -> InferenceSession:
    """A graph, or the file that holds one, in onnxruntime with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Every worker computes with one thread: no oversubscription, sums in the same order always.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _exported(model: torch.nn.Module, pooling: str, side: int) -> bytes:
    """The network for one tile as an ONNX file's bytes."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _of_one_size(model, side)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return pooled(self.model, pooling, batch)

    file = io.BytesIO()
    with warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")
        # The newer exporter (dynamo=True) takes ten times as long for a graph that is no faster.
        torch.onnx.export(
            Whole().eval(),
            (torch.zeros(1, 3, side, side),),
            file,  # type: ignore[arg-type]
            dynamo=False,
            verbose=False,
        )
    return file.getvalue()


def _of_one_size(model: torch.nn.Module, side: int) -> Any:
    """A copy whose position embeddings are resized once: ONNX has no such resize."""
    alone: Any = copy.deepcopy(model)
    if getattr(alone, "dynamic_img_size", False) and hasattr(alone, "set_input_size"):
        alone.set_input_size(img_size=(side, side))
    return alone


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Where the exporter fails it prints the whole network to the terminal, whatever it is asked."""
    import torch

    with mock.patch.object(torch._C, "_jit_onnx_log", create=True):
        yield


def cuda_batch(memory_of: Callable[[int], int], free: int) -> int:
    """Tiles per pass on a GPU: doubled as long as batches of the next size stay within the share.

    Parameters
    ----------
    memory_of
        Bytes that a pass over so many tiles takes beyond the weights.
    free
        Bytes that are free before.

    Examples
    --------
    >>> cuda_batch(lambda tiles: tiles * 10, free=4000)
    64
    """
    size = CPU_BATCH
    while size < _CUDA_MOST and CUDA_BATCHES * 2 * memory_of(size) <= _CUDA_SHARE * free:
        size *= 2
    return size


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
