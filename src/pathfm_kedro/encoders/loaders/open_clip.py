"""Vision towers of open_clip: the text tower is neither built nor loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pathfm_kedro.encoders.loaders.files import (
    imported,
    misfit,
    one_line,
    place_weights,
    read_json,
    read_tensors,
    refuse_pointer,
)
from pathfm_kedro.encoders.loaders.hub import published_folder, weight_files
from pathfm_kedro.encoders.loaders.tower import (
    NO_TOKENS,
    Patches,
    Tokens,
    Tower,
    as_settings,
    declared,
)
from pathfm_kedro.encoders.runtimes import has_class_token, prefix_tokens
from pathfm_kedro.encoders.spec import EncoderSpec

_CONFIG = "open_clip_config.json"
#: A folder may also hold the weights for transformers.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
#: Around the names of weights in a training's own checkpoint.
_WRAPPER = "module."
_VISUAL = "visual."


class OpenClipTransformer(Tower):
    """open_clip's own vision transformer: its projected vector when called."""

    def forward_features(self, batch: torch.Tensor) -> torch.Tensor:
        """Tokens [n, t, d] after the last norm, before the projection into the space of texts."""
        tower: Any = self.tower
        tokens: torch.Tensor = tower.ln_post(tower.transformer(tower._embeds(batch)))
        return tokens


class OpenClipTimm(Tower):
    """A network of timm inside open_clip: its projected vector when called."""

    def forward_features(self, batch: torch.Tensor) -> torch.Tensor:
        """Tokens [n, t, d] as the network of timm gives them, before the projection."""
        trunk: Any = self.tower.trunk
        tokens: torch.Tensor = trunk.forward_features(batch)
        return tokens


def load(spec: EncoderSpec) -> torch.nn.Module:
    """The vision tower of ``open_clip:<folder>`` or ``open_clip:<owner>/<model>``.

    Raises
    ------
    ValueError
        If it cannot be had or its weights do not fit, naming the entry and the mend.
    """
    where = f"encoders.{spec.name}.model is '{spec.model}'"
    library = imported("open_clip", spec)
    folder = published_folder(spec, _CONFIG)
    config = read_json(folder / _CONFIG, where)
    model_config = config.get("model_cfg")
    if not isinstance(model_config, Mapping) or not isinstance(
        model_config.get("vision_cfg"), Mapping
    ):
        raise ValueError(
            f"{where}, whose {_CONFIG} has no model_cfg with a vision_cfg: download it again"
        )
    vision = {**model_config["vision_cfg"], "timm_model_pretrained": False}
    quick = bool(model_config.get("quick_gelu", False))
    try:
        visual: Any = library.model._build_vision_tower(
            int(model_config["embed_dim"]), vision, quick_gelu=quick
        )
    except Exception as error:
        # An architecture that the installed version does not know raises what it happens to run into.
        raise ValueError(
            f"{where}, whose {_CONFIG} describes no vision tower that open_clip {library.__version__} "
            f"can build ({one_line(error)}): correct it, or install the version that has it"
        ) from error
    _load_weights(visual, folder, where)
    side = _side(visual.image_size)
    settings = as_settings({"quick_gelu": quick, "vision_cfg": vision})
    preprocessing = config.get("preprocess_cfg") or {}
    mean = preprocessing.get("mean") or library.OPENAI_DATASET_MEAN
    std = preprocessing.get("std") or library.OPENAI_DATASET_STD
    described = declared(_side(preprocessing.get("size") or side), mean, std)
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        tokens = Tokens(prefix_tokens(trunk), has_class_token(trunk))
        patch = _side(getattr(getattr(trunk, "patch_embed", None), "patch_size", 1))
        return OpenClipTimm(visual, tokens, Patches(patch, side), described, settings)
    if getattr(visual, "attn_pool", True) is None:
        patches = Patches(_side(visual.patch_size), side)
        return OpenClipTransformer(visual, Tokens(1, True), patches, described, settings)
    return Tower(visual, NO_TOKENS, Patches(1, side), described, settings)


def _load_weights(visual: torch.nn.Module, folder: Path, where: str) -> None:
    """Weights of the vision tower, every one of them placed; those of the text tower are left."""
    named = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    path = (named or weight_files(folder))[0]
    refuse_pointer(path, where)
    problem = f"{where}, and the weights in {path.name} do not fit the vision tower of {_CONFIG}"
    with misfit(lambda cause: f"{problem} ({cause}): download both again"):
        place_weights(visual, _visual_part(read_tensors(path)))


def _visual_part(loaded: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    inner = loaded.get("state_dict")
    tensors = inner if isinstance(inner, Mapping) else loaded
    named = {str(name).removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    found = {k.removeprefix(_VISUAL): v.float() for k, v in named.items() if k.startswith(_VISUAL)}
    if not found:
        raise ValueError(f"none of its tensors is called {_VISUAL}*")
    return found


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)
