"""Whether an encoder gives one sensible vector per tile: seen before anything is embedded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pathfm_kedro.encoders.entry_checks import refuse_other_scale
from pathfm_kedro.encoders.input_size import patch_side
from pathfm_kedro.encoders.loaders.files import one_line, some_of
from pathfm_kedro.encoders.runtimes import PoolingError, has_class_token, pooled
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.trial import synthetic_tiles

if TYPE_CHECKING:
    import torch

    from pathfm_kedro.encoders.torch_encoder import Network

#: Two tiles are enough to see whether vectors differ.
_TILES = 2
#: Sums of softmax in single precision differ by less from 1.
_SUM = 1e-4


def refuse_senseless(network: Network, spec: EncoderSpec) -> None:
    """Refuse a network that, as it is set up, gives no vector of features.

    Parameters
    ----------
    network
        On the CPU.
    spec
        The entry that it was built from.

    Raises
    ------
    ValueError
        If it gives logits or probabilities of classes, a token that it does not have, tokens or maps
        that are not pooled, the same or no finite vector for every tile, if its normalisation is of
        another scale, or if it cannot take its input. The error names the key, the value and the mend.
    """
    where = f"encoders.{spec.name}"
    for key in ("mean", "std"):
        _refuse_scale(f"{where}.{key}", network.preprocessing[key], getattr(spec, key) is None)
    _refuse_not_finite(network.model, spec)
    _refuse_logits(network.model, where)
    if "class_token" in spec.pooling and not has_class_token(network.model):
        raise ValueError(
            f"{where}.pooling is '{spec.pooling}', and '{spec.model}' has no class token: give "
            "default, or patch_mean where it has tokens of patches"
        )
    _refuse_vectors(_vectors(network, spec), spec)


def _refuse_scale(where: str, numbers: list[float], declared: bool) -> None:
    try:
        refuse_other_scale(where, numbers)
    except ValueError as error:
        whose = (
            "; it is what the model declares, so write the key into the entry" if declared else ""
        )
        raise ValueError(f"{error}{whose}") from None


def _refuse_not_finite(model: torch.nn.Module, spec: EncoderSpec) -> None:
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        key = "model" if spec.checkpoint is None else "checkpoint"
        raise ValueError(
            f"encoders.{spec.name}.{key} is '{getattr(spec, key)}', whose weights hold NaN or infinity "
            f"(in {some_of(broken)}): download or save them again"
        )


def _refuse_logits(model: torch.nn.Module, where: str) -> None:
    classes = getattr(model, "num_classes", 0)
    if isinstance(classes, int) and classes > 0:
        raise ValueError(
            f"{where}.model_kwargs.num_classes is not 0, and the network gives the logits of {classes} "
            f"classes, which are no features: set {where}.model_kwargs.num_classes to 0"
        )


def _vectors(network: Network, spec: EncoderSpec) -> Any:
    """What the network makes of two tiles, whatever it is."""
    import torch

    tiles = torch.from_numpy(synthetic_tiles(_TILES, network.side))
    try:
        with torch.inference_mode():
            return pooled(network.model, network.pooling, network.prepared(tiles))
    except MemoryError:
        raise
    except PoolingError as error:
        raise ValueError(
            f"encoders.{spec.name}.pooling is '{spec.pooling}', and {error}"
        ) from error
    except Exception as error:
        # A network that is given what it cannot take raises what it happens to run into.
        raise ValueError(_why_it_fails(network, spec, error)) from error


def _why_it_fails(network: Network, spec: EncoderSpec, error: Exception) -> str:
    where, side = f"encoders.{spec.name}", network.side
    own, patch = _input_size(network.model), patch_side(network.model)
    given = f"is {side}" if spec.input_pixels else f"is not given, and the model declares {side}"
    problem = (
        f"{where}.input_pixels {given}; the network fails on tiles of that side ({one_line(error)})"
    )
    if own and own != side:
        return (
            f"{problem}: set {where}.input_pixels to {own}, or write img_size: {side} or "
            f"dynamic_img_size: true into {where}.model_kwargs where the architecture knows it"
        )
    if side % patch:
        low = side // patch * patch
        return f"{problem}: give a multiple of {patch} px, as {low or patch} or {low + patch}"
    return f"{problem}: correct {where}.input_pixels or {where}.model_kwargs"


def _input_size(model: Any) -> int | None:
    """The one side that a network takes; None where it takes many or does not say."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    if not size or getattr(model, "dynamic_img_size", False):
        return None
    return int(size if isinstance(size, int) else size[0])


def _refuse_vectors(vectors: Any, spec: EncoderSpec) -> None:
    import torch

    where = f"encoders.{spec.name}"
    if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2 or vectors.shape[0] != _TILES:
        raise ValueError(f"{where}.pooling is '{spec.pooling}', and {_unpooled(vectors, spec)}")
    _refuse_scores(vectors, spec)
    if not vectors.isfinite().all():
        raise ValueError(
            f"{where}.model is '{spec.model}', and its vectors hold NaN or infinity: check its "
            f"weights, {where}.mean and {where}.std"
        )
    if (vectors == vectors[:1]).all():
        raise ValueError(
            f"{where}.model is '{spec.model}', and its vectors of two different tiles are equal: check "
            f"its weights, {where}.pooling, {where}.mean and {where}.std"
        )


def _refuse_scores(vectors: torch.Tensor, spec: EncoderSpec) -> None:
    """What a file of a network gives is known by its numbers alone."""
    n = vectors.shape[1]
    sums_to_one = bool(
        (vectors >= 0).all() and (vectors.double().sum(dim=1) - 1).abs().max() < _SUM
    )
    if n > 1 and not sums_to_one:
        return
    gives = (
        f"the probabilities of {n} classes" if sums_to_one and n > 1 else "one number for a tile"
    )
    raise ValueError(
        f"encoders.{spec.name}.model is '{spec.model}', and it gives {gives}, which is no vector of "
        "features: take the network without its classifier"
    )


def _unpooled(output: Any, spec: EncoderSpec) -> str:
    """What a network gives instead of one vector per tile, and the mend."""
    kwargs = f"encoders.{spec.name}.model_kwargs"
    asked = spec.model_kwargs.get("global_pool", "not given")
    shape = getattr(output, "shape", None)
    if shape is None:
        return f"the network gives a {type(output).__name__}, no vector: correct {kwargs}"
    if len(shape) == 3:
        return (
            f"the network gives {shape[1]} tokens of {shape[2]} numbers for a tile, not one vector: "
            f"give class_token, patch_mean or class_token_and_patch_mean, or leave "
            f"{kwargs}.global_pool (is {asked!r}) out"
        )
    return (
        f"the network gives an array of shape {tuple(shape[1:])} for a tile, not one vector: set "
        f"{kwargs}.global_pool to avg (it is {asked!r})"
    )
