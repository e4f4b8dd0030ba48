"""Vision transformers of the library transformers, by its own classes: no code of a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pathfm_kedro.encoders.loaders.files import imported, one_line, read_json, some_of
from pathfm_kedro.encoders.loaders.hub import published_folder, weight_files
from pathfm_kedro.encoders.loaders.tower import Patches, Tokens, Tower, as_settings, declared
from pathfm_kedro.encoders.spec import EncoderSpec

#: Where the settings of a processor lie, by age.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: Parts of published models that an image encoder does not have.
_OTHER_PARTS = (
    "text_model.",
    "text_projection",
    "logit_",
    "classifier.",
    "decoder.",
    "visual_projection",
    "cls_classifier.",
    "distillation_classifier.",
)
#: Of a configuration what says nothing about vectors: names, versions, how weights are stored.
_NOT_OF_THE_VECTORS = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "torch_dtype",
    "transformers_version",
)


@dataclass(frozen=True)
class _Kind:
    """One architecture of the library.

    Attributes
    ----------
    model
        Its class.
    has_class_token
        Whether the first token is one.
    interpolates
        Whether positions must be asked to follow another input size.
    norm
        The layer that tokens go through after the last block, where the class leaves it to its pooler.
    """

    model: str
    has_class_token: bool = True
    interpolates: bool = True
    norm: str = ""


_CLIP = _Kind("CLIPVisionModel", norm="post_layernorm")
_SIGLIP = _Kind("SiglipVisionModel", has_class_token=False)
_KINDS = {
    "vit": _Kind("ViTModel"),
    "dinov2": _Kind("Dinov2Model", interpolates=False),
    "dinov2_with_registers": _Kind("Dinov2WithRegistersModel", interpolates=False),
    "dinov3_vit": _Kind("DINOv3ViTModel", interpolates=False),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}


class TransformersTower(Tower):
    """A model of transformers: its pooler's vector when called, its tokens normalised."""

    def __init__(self, *args: Any, kind: _Kind, image_size: int) -> None:
        super().__init__(*args)
        self.image_size = image_size
        self.interpolates = kind.interpolates
        self.norm = kind.norm

    def set_input_size(self, img_size: Any) -> None:
        """Nothing is to be done: positions follow the input at every pass."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """What the model declares: its projected vector, its pooler's, else the class token."""
        output = self._run(batch)
        for name in ("image_embeds", "pooler_output"):
            vectors: torch.Tensor | None = getattr(output, name, None)
            if vectors is not None:
                return vectors
        return self._normalised(output.last_hidden_state)[:, 0]

    def forward_features(self, batch: torch.Tensor) -> torch.Tensor:
        """Tokens [n, t, d] after the last norm: class token, registers, patches."""
        return self._normalised(self._run(batch).last_hidden_state)

    def _run(self, batch: torch.Tensor) -> Any:
        # Asked for only where it is needed: at the model's own size it would change last bits.
        other = self.interpolates and batch.shape[-1] != self.image_size
        return self.tower(batch, **({"interpolate_pos_encoding": True} if other else {}))

    def _normalised(self, tokens: torch.Tensor) -> torch.Tensor:
        if not self.norm:
            return tokens
        inner: Any = getattr(self.tower, "vision_model", self.tower)
        normalised: torch.Tensor = getattr(inner, self.norm)(tokens)
        return normalised


def load(spec: EncoderSpec) -> torch.nn.Module:
    """The vision model of ``transformers:<folder>`` or ``transformers:<owner>/<model>``.

    Raises
    ------
    ValueError
        If the model needs code of its own, is of an unknown architecture, or its weights are not
        whole; it names the entry and the mend.
    """
    where = f"encoders.{spec.name}.model is '{spec.model}'"
    library = imported("transformers", spec)
    folder = published_folder(spec, "config.json")
    config = read_json(folder / "config.json", where)
    kind = _kind_of(config, folder, where)
    names = _tensor_names(folder, where)
    model = _weights(library, kind, folder, names, where)
    own = model.config
    registers = int(getattr(own, "num_register_tokens", 0) or 0)
    image_size, patch = _side(own.image_size), _side(own.patch_size)
    return TransformersTower(
        model,
        Tokens(int(kind.has_class_token) + registers, kind.has_class_token),
        Patches(patch),
        _declared(folder, spec, image_size, where),
        as_settings({k: v for k, v in own.to_dict().items() if k not in _NOT_OF_THE_VECTORS}),
        kind=kind,
        image_size=image_size,
    )


def _kind_of(config: Mapping[str, Any], folder: Path, where: str) -> _Kind:
    if "auto_map" in config:
        raise ValueError(
            f"{where}, which needs remote code (auto_map in its config.json), and code of a model is "
            "never run here: take its timm or native version where its page has one, or bring features "
            "that were made with it"
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{where}, whose folder holds an adapter of weights (adapter_config.json): merge it into "
            "the model and save that"
        )
    if "architecture" in config and "model_type" not in config:
        raise ValueError(f"{where}, whose config.json is that of timm: give local-dir: or hf-hub:")
    named = config.get("model_type")
    if named not in _KINDS:
        raise ValueError(
            f"{where}, whose config.json names the model_type {named!r}: known are "
            f"{', '.join(_KINDS)}; export another architecture to ONNX and give onnx:<file>"
        )
    return _KINDS[named]


def _tensor_names(folder: Path, where: str) -> set[str]:
    """Names of all tensors in a folder, as they are stored."""
    from pathfm_kedro.encoders.loaders.files import read_tensors, refuse_pointer

    index = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    if index:
        return set(read_json(index[0], where).get("weight_map", {}))
    names: set[str] = set()
    for path in weight_files(folder):
        refuse_pointer(path, where)
        try:
            if path.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(path, framework="pt") as file:
                    names |= set(file.keys())
            else:
                names |= set(read_tensors(path))
        except Exception as error:
            # A file that is cut short, or another one, raises what its reader happens to run into.
            raise ValueError(
                f"{where}, and its {path.name} is cut short or no file of weights "
                f"({one_line(error)}): download it again"
            ) from error
    return names


def _weights(library: Any, kind: _Kind, folder: Path, names: set[str], where: str) -> Any:
    """The model with its weights, none of them left at random."""
    name, extra = kind.model, {}
    if name == "ViTModel":
        extra["add_pooling_layer"] = any("pooler.dense" in key for key in names)
    try:
        with _quiet(library):
            config = library.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            whole, config = config, getattr(config, "vision_config", config)
            if kind is _CLIP and any(key.endswith("visual_projection.weight") for key in names):
                name = "CLIPVisionModelWithProjection"
                # The part's own number is a default that files leave wrong.
                config.projection_dim = whole.projection_dim
            model, info = getattr(library, name).from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=weight_files(folder)[0].suffix == ".safetensors",
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                **extra,
            )
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{where}, and it could not be loaded ({one_line(error)}): check that config.json and "
            "weights belong together, or download the folder again"
        ) from error
    _refuse_misfit(info, where)
    for key, weight in model.named_parameters():
        # Stands for patches that are hidden in training; files may leave it out.
        if key.endswith("mask_token"):
            torch.nn.init.zeros_(weight)
    return model


def _refuse_misfit(info: Mapping[str, Any], where: str) -> None:
    lacks = sorted(
        k for k in info["missing_keys"] if not k.endswith(("mask_token", "position_ids"))
    )
    besides = sorted(
        key
        for key in info["unexpected_keys"]
        if not key.startswith(_OTHER_PARTS) and not key.endswith(("mask_token", "position_ids"))
    )
    wrong = sorted(str(entry[0]) for entry in info.get("mismatched_keys") or ())
    faults = [
        f"{verb} {some_of(keys)}"
        for verb, keys in (
            ("they lack", lacks),
            ("they hold besides", besides),
            ("of another shape are", wrong),
        )
        if keys
    ]
    if faults:
        raise ValueError(
            f"{where}, and its weights do not fit the network: {' and '.join(faults)}; the rest would "
            "stay random. Check that config.json and weights belong together, or download the folder "
            "again"
        )


def _declared(folder: Path, spec: EncoderSpec, image_size: int, where: str) -> dict[str, Any]:
    """Mean, standard deviation and input of the model's processor."""
    path = next((folder / name for name in _PROCESSORS if (folder / name).is_file()), None)
    if path is None:
        if spec.mean and spec.std:
            return declared(image_size, spec.mean, spec.std)
        raise ValueError(
            f"{where}, and the folder holds no preprocessor_config.json: download it too, or give "
            f"encoders.{spec.name}.mean and std"
        )
    processor = read_json(path, where)
    processor = processor.get("image_processor", processor)
    if not processor.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    else:
        mean, std = (
            processor.get(key) or getattr(spec, key[6:]) for key in ("image_mean", "image_std")
        )
    scale = processor.get("rescale_factor", 1 / 255)
    if not processor.get("do_rescale", True) or abs(255 * float(scale) - 1) > 0.01:
        raise ValueError(
            f"{where}, whose {path.name} scales pixels by {scale} (do_rescale "
            f"{processor.get('do_rescale', True)}), and pixels are scaled to 0 ... 1 here: export the "
            "model with that scaling inside to ONNX"
        )
    if not (mean and std):
        raise ValueError(
            f"{where}, whose {path.name} has no image_mean and image_std: give "
            f"encoders.{spec.name}.mean and std"
        )
    crops = processor.get("do_center_crop") and processor.get("crop_size")
    return declared(
        _side(processor["crop_size"] if crops else processor.get("size"), image_size), mean, std
    )


def _side(size: Any, otherwise: int = 0) -> int:
    """One side of what configurations write as a number, a pair or a mapping.

    Examples
    --------
    >>> _side({"height": 224, "width": 224}), _side({"shortest_edge": 256}), _side(None, 8)
    (224, 256, 8)
    """
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, list | tuple):
        size = size[0]
    return int(size) if size else otherwise


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the library's own report of loading: what is wrong becomes one error."""
    log = library.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()
    bars = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
