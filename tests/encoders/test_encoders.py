"""Encoders: real weights load and see, controls know what they should, bad specs say what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import stats
from skimage import data as photographs
from skimage.transform import resize

from pathfm_kedro.encoders import EncoderSpec, load_encoder, read_encoders, registry
from pathfm_kedro.encoders.loaders.package import lite0_state_dict
from pathfm_kedro.encoders.loaders.timm import resolve_layers
from pathfm_kedro.encoders.torch_encoder import load_torch_encoder


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_lite0_sees_a_cat_on_a_photograph_of_a_cat():
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(lite0_state_dict(model.state_dict()))
    photograph = resize(photographs.chelsea()[:, 75:375], (224, 224))
    batch = torch.from_numpy((photograph.astype(np.float32) - 0.5) / 0.5).permute(2, 0, 1)[None]
    with torch.inference_mode():
        top = model.eval()(batch)[0].topk(5).indices.tolist()
    # 281 tabby, 282 tiger cat, 285 Egyptian cat in ImageNet's order.
    assert {281, 282, 285} <= set(top)


def test_lite0_embeds_as_a_plain_forward_pass_does(tiles):
    encoder = load_encoder(EncoderSpec("lite0", "package:efficientnet_lite0", batch_size=2))
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(lite0_state_dict(model.state_dict()))
    model.reset_classifier(0)
    batch = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    batch = torch.nn.functional.interpolate(batch, (224, 224), mode="bicubic", antialias=True)
    with torch.inference_mode():
        expected = model.eval()((batch.clamp(0, 1) - 0.5) / 0.5).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=2e-4)


@pytest.fixture(scope="module")
def local_model(tmp_path_factory):
    """A model in the form in which hubs publish it: config.json and model.safetensors."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "num_features": 192,
        "model_args": {"img_size": 32, "patch_size": 8},
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.7, 0.6, 0.7],
            "std": [0.2, 0.25, 0.2],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model.eval()


def test_a_local_folder_loads_with_the_preprocessing_it_declares(local_model, tiles):
    folder, model = local_model
    encoder = load_encoder(EncoderSpec("mine", f"local-dir:{folder}"))
    assert encoder.preprocessing["mean"] == [0.7, 0.6, 0.7]
    assert encoder.preprocessing["input_pixels"] == 32
    batch = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    batch = torch.nn.functional.interpolate(batch, (32, 32), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ([0.7, 0.6, 0.7], [0.2, 0.25, 0.2]))
    with torch.inference_mode():
        expected = model((batch.clamp(0, 1) - mean) / std).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-4)


def test_pooling_of_tokens(local_model, tiles):
    folder, _ = local_model
    by = {
        pooling: load_encoder(EncoderSpec("m", f"local-dir:{folder}", pooling=pooling)).embed(tiles)
        for pooling in ("class_token", "patch_mean", "class_token_and_patch_mean")
    }
    joined = np.concatenate([by["class_token"], by["patch_mean"]], axis=1)
    np.testing.assert_array_equal(by["class_token_and_patch_mean"], joined)


def test_a_checkpoint_must_fit_key_by_key(local_model, tmp_path):
    folder, model = local_model
    kwargs = {"img_size": 32, "patch_size": 8}
    good = EncoderSpec(
        "m",
        "timm:vit_tiny_patch16_224",
        checkpoint=str(folder / "model.safetensors"),
        model_kwargs=kwargs,
    )
    assert len(load_encoder(good).fingerprint) == 64
    weights = model.state_dict()
    weights.pop("norm.bias")
    save_file(weights, tmp_path / "cut.safetensors")
    bad = EncoderSpec(
        "m",
        "timm:vit_tiny_patch16_224",
        checkpoint=str(tmp_path / "cut.safetensors"),
        model_kwargs=kwargs,
    )
    with pytest.raises(ValueError, match=r"encoders\.m: checkpoint .* does not fit"):
        load_encoder(bad)


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    spec = EncoderSpec("m", "timm:resnet18", checkpoint=str(tmp_path / "evil.pth"))
    with pytest.raises(ValueError, match=r"holds other objects than tensors"):
        load_encoder(spec)
    assert "code ran" not in capsys.readouterr().out


def test_the_fingerprint_knows_weights_and_preprocessing(local_model):
    folder, _ = local_model
    specs = [
        EncoderSpec("a", f"local-dir:{folder}"),
        EncoderSpec("b", f"local-dir:{folder}"),
        EncoderSpec("c", f"local-dir:{folder}", mean=(0.5, 0.5, 0.5)),
        EncoderSpec("d", f"local-dir:{folder}", pooling="patch_mean"),
    ]
    prints = [load_encoder(spec).fingerprint for spec in specs]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_batch_size_and_threads_change_nothing_that_matters(tiles):
    one = load_encoder(EncoderSpec("l", "package:efficientnet_lite0", batch_size=1)).embed(tiles)
    three = load_encoder(EncoderSpec("l", "package:efficientnet_lite0", batch_size=3)).embed(tiles)
    np.testing.assert_allclose(one, three, atol=1e-4)


def test_stain_statistics_does_not_see_shape(tiles):
    encoder = load_encoder(EncoderSpec("stain", "control:stain_statistics"))
    generator = np.random.default_rng(1)
    shuffled = tiles.reshape(3, -1, 3)[:, generator.permutation(64 * 64)].reshape(tiles.shape)
    np.testing.assert_array_equal(encoder.embed(tiles), encoder.embed(shuffled))


def test_stain_statistics_are_moments_of_optical_density(tiles):
    vectors = load_encoder(EncoderSpec("stain", "control:stain_statistics")).embed(tiles)
    density = -np.log10((tiles.reshape(3, -1, 3).astype(float) + 1) / 256)
    np.testing.assert_allclose(vectors[:, :3], density.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(vectors[:, 3:6], density.std(axis=1), rtol=1e-5)


def test_random_projection_knows_colour_and_coarse_structure():
    generator = np.random.default_rng(0)
    left = np.zeros((32, 32, 3), np.uint8)
    left[:, :16] = 200
    near = np.clip(left + generator.integers(0, 9, left.shape), 0, 255).astype(np.uint8)
    encoder = load_encoder(EncoderSpec("random", "control:random_projection"))
    a, b, mirrored = encoder.embed(np.stack([left, near, left[:, ::-1]]))
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a - mirrored)
    # Cell means are those of the pixels, whatever the side.
    odd = generator.integers(0, 255, (1, 37, 29, 3)).astype(np.uint8)
    assert encoder.embed(np.repeat(odd, 2, axis=1).repeat(2, axis=2)).shape == (1, 64)


def test_noise_is_a_function_of_the_pixels_and_of_nothing_near(tiles):
    encoder = load_encoder(EncoderSpec("noise", "control:noise"))
    nearly = tiles.copy()
    nearly[0, 0, 0, 0] ^= 1
    a, b = encoder.embed(tiles), encoder.embed(nearly)
    np.testing.assert_array_equal(a[1:], b[1:])
    assert abs(np.corrcoef(a[0], b[0])[0, 1]) < 0.5


def test_phantom_truth_needs_a_phantom(tiles):
    encoder = load_encoder(EncoderSpec("truth", "control:phantom_truth"))
    with pytest.raises(ValueError, match=r"not drawn by the phantom: set encoders.phantom_truth"):
        encoder.embed(tiles)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "has no 'model'"),
        ({"model": "resnet18"}, "begin it with one of"),
        ({"model": "timm:resnet18", "pool": "x"}, r"unknown keys \['pool'\]"),
        ({"model": "timm:resnet18", "pooling": "max"}, "pooling is 'max'"),
        ({"model": "timm:resnet18", "role": "boss"}, "give 'encoder' or 'control'"),
        ({"model": "timm:resnet18", "batch_size": 0}, "batch_size is 0"),
        ({"model": "hf-hub:a/b", "checkpoint": "x"}, "checkpoint goes with a timm: architecture"),
        ({"model": "timm:resnet18", "mean": [0.5]}, "three numbers"),
    ],
)
def test_a_bad_spec_names_the_key_and_the_mend(entry, message):
    with pytest.raises(ValueError, match=message):
        EncoderSpec.from_parameters("mine", entry)


def test_a_name_that_is_no_file_name_is_refused():
    with pytest.raises(ValueError, match=r"letters, digits"):
        EncoderSpec("../x", "timm:resnet18")


def test_an_entry_set_to_null_is_left_out():
    assert list(read_encoders({"a": None, "b": {"model": "timm:resnet18"}})) == ["b"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("control:wishes", "'control:wishes', which there is not: give control: with one of arr"),
        ("package:resnet", "'package:resnet', which there is not: .* efficientnet_lite0"),
        ("timm:no_such_model", "could not be loaded"),
        ("local-dir:/nowhere", "has no config.json"),
    ],
)
def test_a_model_that_cannot_be_had_says_so(model, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(EncoderSpec("m", model))


def test_drawn_weights_are_the_same_in_every_process(tiles):
    spec = EncoderSpec("r", "timm:resnet18", pretrained=False, seed=0, input_pixels=64)
    torch.manual_seed(1)
    first = load_torch_encoder(spec)
    torch.manual_seed(2)
    second = load_torch_encoder(spec)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.embed(tiles), second.embed(tiles))


def test_layers_are_named_in_yaml():
    """Model cards of large pathology encoders pass layer classes; YAML holds their names."""
    kwargs = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "depth": 1, "img_size": 32}
    spec = EncoderSpec(
        "u", "timm:vit_tiny_patch16_224", pretrained=False, seed=0, model_kwargs=kwargs
    )
    block = load_torch_encoder(spec).model.blocks[0]
    assert type(block.mlp).__name__ == "GluMlp"
    assert type(block.mlp.act).__name__ == "SiLU"


def test_a_layer_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"model_kwargs.mlp_layer is 'os.system'"):
        resolve_layers({"mlp_layer": "os.system"})


def noise(**declared):
    return load_encoder(EncoderSpec.from_parameters("n", {"model": "control:noise"} | declared))


def test_noise_is_standard_normal_and_independent_from_tile_to_tile():
    """Held against the normal distribution and the null of the correlation, not against the code."""
    tiles = np.random.default_rng(3).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    vectors = noise(dimension=400).embed(tiles).astype(np.float64)
    assert stats.kstest(vectors.ravel(), "norm").pvalue > 0.001
    for between in (np.corrcoef(vectors), np.corrcoef(vectors.T)):
        n = vectors.size / len(between)
        pairs = between[np.triu_indices(len(between), 1)] * np.sqrt(n)
        assert np.abs(pairs).max() < 6
        assert pairs.std() == pytest.approx(1, abs=0.05)


def test_noise_of_a_tile_is_the_same_wherever_it_lies_and_another_once_it_changes(tiles):
    encoder = noise()
    alone = np.concatenate([encoder.embed(tiles[[i]]) for i in (2, 0, 1)])
    np.testing.assert_array_equal(encoder.embed(tiles[[2, 0, 1]]), alone)
    np.testing.assert_array_equal(encoder.embed(tiles[:, ::-1][:, ::-1]), encoder.embed(tiles))
    turned = encoder.embed(np.rot90(tiles, axes=(1, 2)))
    assert abs(np.corrcoef(turned.ravel(), encoder.embed(tiles).ravel())[0, 1]) < 0.3


def test_noise_has_the_dimension_and_seed_that_are_declared(tiles):
    first, second = noise(dimension=7, seed=1), noise(dimension=7, seed=2)
    assert first.embed(tiles).shape == (3, 7)
    assert abs(np.corrcoef(first.embed(tiles).ravel(), second.embed(tiles).ravel())[0, 1]) < 0.7
    assert len({first.fingerprint, second.fingerprint, noise(dimension=8, seed=1).fingerprint}) == 3


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"dimension": 1}, "dimension is 1: give a whole number from 2"),
        ({"dimension": 64.0}, r"dimension is 64\.0"),
        ({"seed": -1}, "seed is -1: give a whole number from 0"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_noise_refuses_what_it_cannot_draw(declared, told):
    with pytest.raises(ValueError, match=rf"encoders\.n\.{told}"):
        noise(**declared)


def test_controls_do_not_push_a_network_out_of_memory(monkeypatch):
    loaded = []
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(registry, "_networks", [])
    monkeypatch.setattr(registry, "_load", lambda spec: loaded.append(spec.name))
    networks = [EncoderSpec(name, f"hf-hub:timm/{name}") for name in "abc"]
    controls = [
        EncoderSpec(name, f"control:{name}")
        for name in ("noise", "stain_statistics", "random_projection")
    ]
    for spec in (*networks[:2], *controls, *networks[:2]):
        load_encoder(spec)
    assert loaded == ["a", "b", *(spec.name for spec in controls)]
    # A third takes the place of the first.
    for spec in (networks[2], networks[1], networks[0]):
        load_encoder(spec)
    assert loaded[5:] == ["c", "a"]
