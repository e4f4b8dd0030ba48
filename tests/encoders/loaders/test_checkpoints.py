"""Checkpoints as DINO, iBOT and DINOv2 publish them, held against transformers' own DINOv2."""

from __future__ import annotations

import argparse
import logging

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
PLAIN = "timm:vit_tiny_patch16_224"
HEADS = {
    "dino_head.mlp.0.weight": torch.ones(4, 32),
    "dino_head.last_layer.weight_g": torch.ones(4),
    "ibot_head.mlp.0.weight": torch.ones(4, 32),
}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL).state_dict()


@pytest.fixture(scope="module")
def reference(state, tmp_path_factory, load, tiles):
    path = tmp_path_factory.mktemp("plain") / "w.safetensors"
    save_file(state, path)
    encoder = load(PLAIN, checkpoint=str(path), model_kwargs=SMALL)
    return encoder.fingerprint, encoder.embed(tiles)


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def chunked(state):
    """DINOv2's chunks of two blocks: the number of the block stays, that of its chunk comes before."""
    names = {n: n.split(".") for n in state}
    return {
        n if p[0] != "blocks" else ".".join(["blocks", str(int(p[1]) // 2), *p[1:]]): state[n]
        for n, p in names.items()
    }


PUBLISHED = {
    "dino": lambda s: {
        "student": {
            **prefixed({k: v + 1 for k, v in s.items()}, "module.backbone."),
            **prefixed(HEADS, "module."),
        },
        "teacher": {**prefixed(s, "backbone."), **HEADS},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
        "epoch": 7,
    },
    "ibot": lambda s: {"state_dict": s | {"masked_embed": torch.zeros(1, 32)}},
    "dinov2": lambda s: {
        "teacher": {
            **prefixed(chunked(s), "backbone."),
            "backbone.mask_token": torch.zeros(1, 32),
            **HEADS,
        }
    },
    "lightning": lambda s: {
        "state_dict": {**prefixed(s, "teacher.backbone."), **prefixed(s, "student.backbone.")},
        "pytorch-lightning_version": "2",
    },
    "compiled": lambda s: {"model": prefixed(s, "_orig_mod.module.encoder.")},
    "classifier": lambda s: s | {"head.weight": torch.zeros(9, 32), "head.bias": torch.zeros(9)},
    "half": lambda s: {k: v.double() for k, v in s.items()},
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_forms_of_the_same_weights_are_the_same_encoder(
    tmp_path, state, reference, load, tiles, case
):
    torch.save(PUBLISHED[case](state), tmp_path / "w.pth")
    encoder = load(PLAIN, checkpoint=str(tmp_path / "w.pth"), model_kwargs=SMALL)
    np.testing.assert_array_equal(encoder.embed(tiles), reference[1])
    assert encoder.fingerprint == reference[0]


def test_heads_that_are_left_out_are_named(tmp_path, state, load, caplog):
    torch.save({"teacher": {**prefixed(state, "backbone."), **HEADS}}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        load(PLAIN, checkpoint=str(tmp_path / "w.pth"), model_kwargs=SMALL)
    (stated,) = (r.getMessage() for r in caplog.records if "left out" in r.getMessage())
    assert "3 tensors" in stated
    assert "dino_head.last_layer.weight_g" in stated


MISFITS = {
    "a_part_that_nobody_knows": ({"blocks.0.adapter.weight": torch.ones(2)}, "hold besides blocks"),
    "beside_the_network": ({"adapter.weight": torch.ones(2)}, "hold besides adapter.weight"),
    "positions_of_another_grid": ({"pos_embed": torch.ones(1, 10, 32)}, "img_size: 24"),
}


@pytest.mark.parametrize("case", MISFITS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_what_is_left_over_is_refused_by_name(tmp_path, state, refused, case, prefix):
    more, stated = MISFITS[case]
    save_file(prefixed(state | more, prefix), tmp_path / "w.safetensors")
    text = refused(PLAIN, checkpoint=str(tmp_path / "w.safetensors"), model_kwargs=SMALL)
    assert stated in text
    assert "does not fit" in text


def facebook_names(state):
    """Keys of transformers' DINOv2 under the names of Meta's code, by hand from both sources."""
    named = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "mask_token": state["embeddings.mask_token"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    if "embeddings.register_tokens" in state:
        named["register_tokens"] = state["embeddings.register_tokens"]
    simple = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.output.dense": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.weights_in": "mlp.w12",
        "mlp.weights_out": "mlp.w3",
    }
    for kind in ("weight", "bias"):
        named[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        for i in range(2):
            layer, block = f"encoder.layer.{i}.", f"blocks.{i}."
            for own, theirs in simple.items():
                if f"{layer}{own}.{kind}" in state:
                    named[f"{block}{theirs}.{kind}"] = state[f"{layer}{own}.{kind}"]
            parts = (
                state[f"{layer}attention.attention.{p}.{kind}"] for p in ("query", "key", "value")
            )
            named[f"{block}attn.qkv.{kind}"] = torch.cat(list(parts))
    for i in range(2):
        for j in (1, 2):
            named[f"blocks.{i}.ls{j}.gamma"] = state[f"encoder.layer.{i}.layer_scale{j}.lambda1"]
    return named


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2_of_meta_embeds_as_that_of_transformers(tmp_path, load, tiles, registers, swiglu):
    """Two libraries' code of one network: names, layer scale, SwiGLU, registers must all be right."""
    transformers = pytest.importorskip("transformers")
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    more = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        use_swiglu_ffn=swiglu,
        layerscale_value=0.3,
        **more,
    )
    torch.manual_seed(2)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {"teacher": prefixed(chunked(facebook_names(old_names(model))), "backbone.")}
    torch.save(weights, tmp_path / "w.pth")
    hidden = int(weights["teacher"]["backbone.blocks.0.0.norm1.weight"].shape[0])
    kwargs = {"img_size": 56, "embed_dim": hidden, "depth": 2, "num_heads": 2, "init_values": 1e-5}
    if swiglu:
        inner = weights["teacher"]["backbone.blocks.0.0.mlp.w12.weight"].shape[0]
        kwargs |= {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": inner / hidden}
    architecture = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    for pooling, expected in (
        ("class_token", lambda tokens: tokens[:, 0]),
        ("patch_mean", lambda tokens: tokens[:, 1 + registers :].mean(dim=1)),
    ):
        encoder = load(
            f"timm:{architecture}",
            checkpoint=str(tmp_path / "w.pth"),
            model_kwargs=kwargs,
            pooling=pooling,
            runtime="eager",
        )
        with torch.inference_mode():
            tokens = model(encoder.prepare(tiles)).last_hidden_state
        np.testing.assert_allclose(encoder.embed(tiles), expected(tokens).numpy(), atol=2e-4)


def old_names(model):
    """Keys as files on the hub have them, whatever names this version of transformers uses inside."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")
