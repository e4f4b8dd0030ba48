"""Models of transformers, saved in the library's layout, embedded as the library itself embeds them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
PROCESSOR = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.6, 0.7],
    "image_std": [0.2, 0.3, 0.4],
    "size": {"height": 32, "width": 32},
}
CLIP = {
    "text_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 9,
        "max_position_embeddings": 4,
    }
}


def clip(kind="CLIP"):
    config = getattr(transformers, f"{kind}Config")(
        vision_config=SMALL, **CLIP, **({"projection_dim": 12} if kind == "CLIP" else {})
    )
    return getattr(transformers, f"{kind}Model")(config)


MODELS = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)),
    "vit_without_pooler": lambda: transformers.ViTModel(
        transformers.ViTConfig(**SMALL), add_pooling_layer=False
    ),
    "vit_classifier": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**SMALL)
    ),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3)
    ),
    "dinov3": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=3)
    ),
    "clip": clip,
    "clip_vision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL)),
    "siglip": lambda: clip("Siglip"),
    "siglip_vision": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SMALL)
    ),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Each model once, its weights far from their small initial values, and its folder."""
    made = {}

    def of(case):
        if case not in made:
            torch.manual_seed(0)
            model = MODELS[case]().eval()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            folder = tmp_path_factory.mktemp(case)
            model.save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
            made[case] = model, folder
        return made[case]

    return of


def expected(case, model, batch, pooling):
    """The vector by the library's own outputs."""
    if case == "vit_classifier":
        model = model.vit
    if case in ("clip", "siglip"):
        if pooling == "default" and case == "clip":
            output = model.get_image_features(pixel_values=batch)
            return getattr(output, "pooler_output", output)
        model = model.vision_model
    output = model(batch)
    if pooling == "default" and output.pooler_output is not None:
        return output.pooler_output
    tokens = output.last_hidden_state
    if case.startswith("clip"):
        tokens = model.post_layernorm(tokens)
    registers = 3 if case in ("dinov2_with_registers", "dinov3") else 0
    class_token = tokens[:, 0]
    patch_mean = tokens[:, (0 if case.startswith("siglip") else 1) + registers :].mean(dim=1)
    joined = torch.cat([class_token, patch_mean], dim=1)
    return {
        "default": class_token,
        "class_token": class_token,
        "patch_mean": patch_mean,
        "class_token_and_patch_mean": joined,
    }[pooling]


CASES = [(case, "default") for case in MODELS] + [
    (case, "patch_mean" if case.startswith("siglip") else "class_token_and_patch_mean")
    for case in MODELS
]


@pytest.mark.parametrize(("case", "pooling"), CASES)
def test_vectors_are_those_of_the_library(published, load, tiles, case, pooling):
    model, folder = published(case)
    encoder = load(f"transformers:{folder}", pooling=pooling, runtime="eager")
    assert encoder.preprocessing["mean"] == PROCESSOR["image_mean"]
    assert encoder.preprocessing["std"] == PROCESSOR["image_std"]
    scaled = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(PROCESSOR[k]).view(1, 3, 1, 1) for k in ("image_mean", "image_std"))
    with torch.inference_mode():
        vectors = expected(case, model, (scaled - mean) / std, pooling).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), vectors, rtol=1e-4, atol=1e-4)


def test_a_class_token_that_is_not_there_is_refused(published, refused):
    text = refused(f"transformers:{published('siglip')[1]}", pooling="class_token")
    assert "has no class token" in text


@pytest.mark.parametrize("case", ["vit", "dinov2", "dinov3", "clip"])
def test_another_input_size_moves_positions_along(published, load, tiles, case):
    encoder = load(f"transformers:{published(case)[1]}", input_pixels=48)
    assert np.isfinite(encoder.embed(tiles)).all()


SIDES = {
    "crop": ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}, 32),
    "no_crop": ({"size": {"shortest_edge": 40}, "do_center_crop": False, "crop_size": 32}, 40),
    "number": ({"size": 40}, 40),
    "nothing": ({"size": None}, 32),
}


@pytest.mark.parametrize("case", SIDES)
def test_the_side_of_the_input_is_what_the_processor_leaves(published, load, tmp_path, case):
    stated, side = SIDES[case]
    folder = shutil.copytree(published("dinov2")[1], tmp_path / "m")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | stated))
    assert load(f"transformers:{folder}").preprocessing["input_pixels"] == side


def test_pickled_tensors_and_shards_are_the_same_encoder(published, load, tmp_path):
    model, folder = published("dinov2")
    whole = load(f"transformers:{folder}").fingerprint
    binary = shutil.copytree(folder, tmp_path / "bin")
    torch.save(load_file(binary / "model.safetensors"), binary / "pytorch_model.bin")
    (binary / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load(f"transformers:{binary}").fingerprint == whole
    assert load(f"transformers:{tmp_path / 'shards'}").fingerprint == whole


def changed_config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def changed_weights(change):
    def changed(folder):
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", {"format": "pt"})

    return changed


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def pickled_code(folder):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without(name):
    return lambda folder: (folder / name).unlink()


REFUSED = {
    "remote_code": (
        changed_config(auto_map={"AutoModel": "m.M"}),
        ("needs remote code", "features"),
    ),
    "unknown_architecture": (changed_config(model_type="hibou"), ("'hibou'", "onnx:<file>")),
    "cut_short": (cut_short, ("cut short", "download it again")),
    "another_depth": (changed_config(num_hidden_layers=3), ("they lack", "layer.2")),
    "another_width": (changed_config(hidden_size=64), ("config.json and weights belong together",)),
    "a_tensor_too_many": (
        changed_weights(lambda w: w | {"adapter.weight": torch.ones(2)}),
        ("hold besides adapter.weight",),
    ),
    "a_tensor_missing": (
        changed_weights(lambda w: {k: v for k, v in w.items() if k != "layernorm.weight"}),
        ("they lack layernorm.weight", "stay random"),
    ),
    "pickled_code": (pickled_code, ("no file of weights",)),
    "no_config": (without("config.json"), ("holds no config.json",)),
    "no_weights": (without("model.safetensors"), ("holds no weights", "download")),
    "no_processor": (
        without("preprocessor_config.json"),
        ("preprocessor_config.json", "mean and std"),
    ),
    "an_adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), ("adapter", "merge")),
    "scale_of_pixels": (
        lambda f: (f / "preprocessor_config.json").write_text(
            json.dumps(PROCESSOR | {"rescale_factor": 1 / 127.5})
        ),
        ("scales pixels by",),
    ),
    "pointer": (
        lambda f: (f / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        ),
        ("pointer of Git LFS", "git lfs pull"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_not_whole_is_refused_with_its_mend(
    published, refused, tmp_path, capsys, case
):
    change, stated = REFUSED[case]
    folder = shutil.copytree(published("dinov2")[1], tmp_path / "m")
    change(folder)
    text = refused(f"transformers:{folder}")
    assert all(words in text for words in stated), text
    assert "code ran" not in capsys.readouterr().out


def test_a_folder_without_processor_takes_what_the_entry_says(published, load, tmp_path):
    folder = shutil.copytree(published("dinov2")[1], tmp_path / "m")
    (folder / "preprocessor_config.json").unlink()
    encoder = load(f"transformers:{folder}", mean=[0.5] * 3, std=[0.5] * 3)
    assert encoder.preprocessing["input_pixels"] == 32


def test_two_loads_under_different_seeds_are_one_encoder(published, load, tmp_path):
    """Weights left at random would differ; the token of hidden patches decides about nothing."""
    folder = shutil.copytree(published("dinov2")[1], tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights.pop("embeddings.mask_token")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    prints = set()
    for seed, other in ((1, folder), (2, published("dinov2")[1])):
        torch.manual_seed(seed)
        prints.add(load(f"transformers:{other}", batch_size=seed).fingerprint)
    assert len(prints) == 1


def test_the_number_of_heads_is_part_of_the_fingerprint(published, load, tmp_path):
    """No weight tells it, and vectors change with it."""
    folder = shutil.copytree(published("dinov2")[1], tmp_path / "m")
    changed_config(num_attention_heads=4)(folder)
    two, four = (load(f"transformers:{f}") for f in (published("dinov2")[1], folder))
    assert two.network.weights == four.network.weights
    assert two.fingerprint != four.fingerprint
