"""Vision towers of open_clip, saved in its layout, embedded as the whole model embeds images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 4, "vocab_size": 9, "width": 16, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TOWERS = {
    "vit": {"vision_cfg": VIT},
    "quick_gelu": {"vision_cfg": VIT, "quick_gelu": True},
    "timm": {
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_model_pretrained": True,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 160,
        }
    },
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}},
    "attention_pooling": {
        "vision_cfg": VIT
        | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    },
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    made = {}

    def of(case):
        if case not in made:
            torch.manual_seed(0)
            config = {"embed_dim": 24, "text_cfg": TEXT} | TOWERS[case]
            built = dict(config, vision_cfg=config["vision_cfg"] | {"timm_model_pretrained": False})
            model = open_clip.CustomTextCLIP(**built).eval()
            for name, parameter in model.named_parameters():
                if "ln" not in name and "norm" not in name and "bn" not in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            folder = tmp_path_factory.mktemp(case)
            stated = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
            (folder / "open_clip_config.json").write_text(json.dumps(stated))
            save_file(model.state_dict(), folder / "open_clip_model.safetensors")
            made[case] = model, folder
        return made[case]

    return of


@pytest.mark.parametrize("case", TOWERS)
def test_the_default_is_what_the_whole_model_makes_of_images(published, load, tiles, case):
    model, folder = published(case)
    encoder = load(f"open_clip:{folder}", runtime="eager")
    assert encoder.preprocessing["mean"] == PREPROCESS["mean"]
    assert (
        encoder.preprocessing["input_pixels"] == model.visual.image_size[0]
        if isinstance(model.visual.image_size, tuple)
        else model.visual.image_size
    )
    with torch.inference_mode():
        expected = model.encode_image(encoder.prepare(tiles)).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_those_that_open_clip_projects(published, load, tiles):
    model, folder = published("vit")
    by = {
        p: load(f"open_clip:{folder}", pooling=p, runtime="eager")
        for p in ("class_token", "patch_mean")
    }
    batch = by["class_token"].prepare(tiles)
    with torch.inference_mode():
        projected = by["class_token"].embed(tiles) @ model.visual.proj.numpy()
        np.testing.assert_allclose(projected, model.visual(batch).numpy(), atol=1e-4)
        model.visual.output_tokens = True
        patches = model.visual(batch)[1].mean(dim=1).numpy()
        model.visual.output_tokens = False
    np.testing.assert_allclose(by["patch_mean"].embed(tiles), patches, atol=1e-4)


def test_registers_and_class_token_of_a_network_of_timm(published, load, tiles):
    model, folder = published("timm")
    trunk = model.visual.trunk
    encoder = load(f"open_clip:{folder}", pooling="patch_mean", runtime="eager")
    with torch.inference_mode():
        tokens = trunk.forward_features(encoder.prepare(tiles))
    expected = tokens[:, trunk.num_prefix_tokens :].mean(dim=1).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-4)


@pytest.mark.parametrize("case", ["resnet", "attention_pooling"])
@pytest.mark.parametrize("pooling", ["class_token", "patch_mean"])
def test_tokens_of_a_tower_that_has_none_are_refused(published, refused, case, pooling):
    assert "pooling" in refused(f"open_clip:{published(case)[1]}", pooling=pooling)


def test_a_training_s_own_checkpoint_and_pickled_tensors_are_the_same(published, load, tmp_path):
    model, folder = published("vit")
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    inside = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": inside}, tmp_path / "open_clip_pytorch_model.bin")
    assert load(f"open_clip:{tmp_path}").fingerprint == load(f"open_clip:{folder}").fingerprint


def test_the_activation_is_part_of_the_fingerprint(published, load):
    first, second = (load(f"open_clip:{published(c)[1]}") for c in ("vit", "quick_gelu"))
    assert first.network.weights == second.network.weights
    assert first.fingerprint != second.fingerprint


def config_of(change):
    def changed(folder):
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return changed


REFUSED = {
    "unknown_tower": (
        config_of(lambda c: c["model_cfg"]["vision_cfg"].update(flux=3)),
        ("describes no vision tower",),
    ),
    "another_depth": (
        config_of(lambda c: c["model_cfg"]["vision_cfg"].update(layers=3)),
        ("they lack transformer.resblocks.2", "download both"),
    ),
    "no_tower": (config_of(lambda c: c.pop("model_cfg")), ("has no model_cfg",)),
    "text_only": (
        lambda f: save_file({"text.x": torch.ones(1)}, f / "open_clip_model.safetensors"),
        ("none of its tensors is called visual.",),
    ),
    "cut_short": (
        lambda f: (f / "open_clip_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{"),
        ("SafetensorError", "download both"),
    ),
    "no_config": (lambda f: (f / "open_clip_config.json").unlink(), ("no open_clip_config.json",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_not_whole_is_refused_with_its_mend(published, refused, tmp_path, case):
    change, stated = REFUSED[case]
    for path in published("vit")[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    text = refused(f"open_clip:{tmp_path}")
    assert all(words in text for words in stated), text
