"""Folders and files of weights as people have them: every weight is loaded, or the entry is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders import weights as weights_module
from pathfm_kedro.pipelines.embed.runtime import choose_runtime

ARCHITECTURE = "test_vit"
CONFIG = {
    "architecture": ARCHITECTURE,
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 160, 160],
        "fixed_input_size": True,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return timm.create_model(ARCHITECTURE, num_classes=0).state_dict()


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def publish(folder, config, weights=None, name="model.safetensors"):
    folder.mkdir(parents=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    if isinstance(weights, str):
        (folder / name).write_text(weights)
    elif weights is not None:
        save = save_file if name.endswith("safetensors") else torch.save
        save(weights, folder / name)


def load(model, **changes):
    return load_encoder(EncoderSpec.from_parameters("mine", {"model": model} | changes))


TRANSFORMERS = {"architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 768}
OPEN_CLIP = {"model_cfg": {"embed_dim": 512}, "preprocess_cfg": {"mean": [0.4] * 3}}

CONFIGS = {
    "transformers": (
        TRANSFORMERS,
        ("that of transformers", "give encoders.mine.model: transformers:"),
    ),
    "transformers_with_own_code": (
        {"auto_map": {"AutoModel": "m.M"}},
        ("that of transformers", "give encoders.mine.model: transformers:"),
    ),
    "open_clip": (OPEN_CLIP, ("of open_clip", "give encoders.mine.model: open_clip:")),
    "nothing_known": ({"layers": 3}, ("no architecture of timm", "encoders.mine.checkpoint")),
    "pointer": (POINTER, ("config.json is a pointer of Git LFS", "git lfs pull")),
    "empty": ("", ("no JSON", "download it again")),
    "broken": ('{"architecture": ', ("no JSON", "download it again")),
    "list": ("[]", ("holds no keys", "download it again")),
    "unknown_architecture": (
        CONFIG | {"architecture": "vit_9000"},
        ("'vit_9000'", "version of timm"),
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_of_another_kind_is_recognised(tmp_path, case):
    config, told = CONFIGS[case]
    publish(tmp_path / "m", config, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"encoders\.mine\.model is 'local-dir:") as refused:
        load(f"local-dir:{tmp_path}/m")
    assert all(words in str(refused.value) for words in told)


def test_a_folder_of_open_clip_without_config(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    with pytest.raises(ValueError, match=r"encoders\.mine\.model is .* open_clip"):
        load(f"local-dir:{tmp_path}")


WEIGHTS = {
    "missing": (None, "the folder holds no weights"),
    "pointer": (POINTER, "model.safetensors is a pointer of Git LFS"),
    "no_safetensors": ("hello", r"cut short or no safetensors"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_a_folder_that_cannot_be_read(tmp_path, case):
    weights, told = WEIGHTS[case]
    publish(tmp_path / "m", CONFIG, weights)
    with pytest.raises(ValueError, match=rf"encoders\.mine\.model.*{told}"):
        load(f"local-dir:{tmp_path}/m")


def test_weights_cut_short(tmp_path, state):
    publish(tmp_path / "m", CONFIG, state)
    path = tmp_path / "m/model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"encoders\.mine\.model.*cut short.*download it again"):
        load(f"local-dir:{tmp_path}/m")


def test_weights_of_another_encoder_than_the_preset_are_told_before_a_slide_is_read(
    tmp_path, state
):
    """Every key of a preset can be overridden, its weights by those of another network too."""
    publish(tmp_path / "m", CONFIG, state)
    entry = {"model": f"local-dir:{tmp_path}/m", "preset": "lunit_dino", "weights": None}
    entry |= {"sha256": None, "model_kwargs": {}, "input_pixels": None}
    with pytest.raises(ValueError, match=r"64 numbers, and 384 are published of the preset"):
        choose_runtime(entry, {"pixels": 160}, name="mine").record()
    own = {key: value for key, value in entry.items() if key != "preset"}
    assert choose_runtime(own, {"pixels": 160}, name="mine").record()["runtime"]


CHANGED = {
    "other_prefix": lambda key: f"tower.{key}",
    "one_left_out": lambda key: None if key == "norm.weight" else key,
    "one_renamed": lambda key: key.replace("cls_token", "class_embedding"),
    "a_block_too_many": lambda key: key,
}


@pytest.mark.parametrize("case", CHANGED)
def test_weights_that_would_stay_as_drawn_are_refused(tmp_path, state, case):
    """timm loads whatever fits where it drops a classifier, and only logs the rest."""
    weights = {CHANGED[case](key): value for key, value in state.items() if CHANGED[case](key)}
    if case == "a_block_too_many":
        weights |= {
            k.replace("blocks.0", "blocks.99"): v.clone()
            for k, v in state.items()
            if "blocks.0" in k
        }
    publish(tmp_path / "m", CONFIG, weights)
    with pytest.raises(ValueError, match=r"encoders\.mine\.model is .* do not fit"):
        load(f"local-dir:{tmp_path}/m")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"encoders\.mine: checkpoint .* does not fit"):
        load(f"timm:{ARCHITECTURE}", checkpoint=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_classifier_is_left_out_and_the_rest_is_loaded(tmp_path, state, tiles, name):
    head = {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    publish(tmp_path / "m", CONFIG, state | head, name)
    expected = timm.create_model(ARCHITECTURE, num_classes=0).eval()
    expected.load_state_dict(state)
    torch.save(state | head, tmp_path / "w.pth")
    for encoder in (
        load(f"local-dir:{tmp_path}/m/"),
        load(f"timm:{ARCHITECTURE}", checkpoint=str(tmp_path / "w.pth")),
    ):
        with torch.inference_mode():
            vectors = expected(encoder.prepare(tiles)).numpy()
        np.testing.assert_allclose(encoder.embed(tiles), vectors, atol=1e-5)


def test_weights_that_are_not_finite_are_named(tmp_path, state):
    broken = state | {"norm.weight": torch.full_like(state["norm.weight"], torch.nan)}
    publish(tmp_path / "m", CONFIG, broken)
    with pytest.raises(ValueError, match=r"encoders\.mine\.model is .*NaN.*norm\.weight"):
        load(f"local-dir:{tmp_path}/m")


def test_a_normalisation_of_255_that_the_folder_declares_is_refused(tmp_path, state):
    told = CONFIG["pretrained_cfg"] | {"mean": [123.675, 116.28, 103.53]}
    publish(tmp_path / "m", CONFIG | {"pretrained_cfg": told}, state)
    with pytest.raises(ValueError, match=r"encoders\.mine\.mean is .*what the model declares"):
        load(f"local-dir:{tmp_path}/m")
    load(f"local-dir:{tmp_path}/m", mean=[0.485, 0.456, 0.406])


def test_a_normalisation_that_is_no_numbers_names_the_key(tmp_path, state):
    told = CONFIG["pretrained_cfg"] | {"mean": "0.5"}
    publish(tmp_path / "m", CONFIG | {"pretrained_cfg": told}, state)
    with pytest.raises(ValueError, match=r"encoders\.mine\.mean is not given, .* declares '0.5'"):
        load(f"local-dir:{tmp_path}/m")


def test_of_several_files_of_weights_one_must_be_named(tmp_path, state):
    """timm would take the first by name."""
    publish(tmp_path / "m", CONFIG, state, "student.safetensors")
    save_file(state, tmp_path / "m/teacher.safetensors")
    with pytest.raises(
        ValueError, match=r"holds student\.safetensors, teacher\.safetensors: which"
    ):
        load(f"local-dir:{tmp_path}/m")
    save_file(state, tmp_path / "m/model.safetensors")
    load(f"local-dir:{tmp_path}/m")


def test_a_side_that_the_folder_declares_and_the_network_refuses(tmp_path, state):
    told = CONFIG["pretrained_cfg"] | {"input_size": [3, 224, 224], "fixed_input_size": False}
    fixed = {"pretrained_cfg": told, "model_args": {"dynamic_img_size": False, "img_size": 160}}
    publish(tmp_path / "m", CONFIG | fixed, state)
    message = r"encoders\.mine\.input_pixels is not given.*224.*input_pixels to 160"
    with pytest.raises(ValueError, match=message):
        load(f"local-dir:{tmp_path}/m")
    assert load(f"local-dir:{tmp_path}/m", input_pixels=160).preprocessing["input_pixels"] == 160


CHECKPOINTS = {
    "of_two_networks": ({"model": {}, "ema": {}}, "under 'model' and 'ema'"),
    "nothing_in_it": ({"state_dict": {}, "epoch": 3}, "they lack cls_token"),
    "arrays": ({"norm.weight": np.zeros(3)}, "other objects than tensors"),
    "list": ([torch.zeros(1)], "no tensors by name"),
    "numbers": ({"norm.weight": 3.0}, "no tensors: norm.weight"),
    "whole_model": (torch.nn.Linear(2, 2), "other objects than tensors"),
    "other_width": (
        {"cls_token": torch.zeros(1, 1, 3), "pos_embed": torch.zeros(1, 2, 3)},
        "of another shape are cls_token [1, 1, 3], in the network [1, 1, 64]",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_holds_something_else(tmp_path, case):
    saved, told = CHECKPOINTS[case]
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"encoders\.mine: checkpoint ") as refused:
        load(f"timm:{ARCHITECTURE}", checkpoint=str(tmp_path / "w.pth"))
    assert told in str(refused.value)
    assert "weights_only" not in str(refused.value)


def cut(path):
    torch.save({"norm.weight": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:-200])


UNREADABLE = {
    "cut_short": (cut, "w.pth", "cut short or no file of weights .*: download it again"),
    "cut_header": (lambda p: p.write_bytes(b"\x09" * 9), "w.safetensors", "cut short"),
    "program": (lambda p: torch.jit.script(torch.nn.ReLU()).save(p), "w.pt", "give torchscript:"),
    "page": (lambda p: p.write_text("<html>sign in</html>"), "w.pth", "download it again"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_checkpoint_that_cannot_be_read(tmp_path, case):
    make, name, stated = UNREADABLE[case]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"encoders\.mine: checkpoint .*{stated}") as refused:
        load(f"timm:{ARCHITECTURE}", checkpoint=str(tmp_path / name))
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_checkpoint_that_is_a_pointer(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=r"encoders\.mine\.checkpoint is .*Git LFS.*git lfs pull"):
        load(f"timm:{ARCHITECTURE}", checkpoint=str(tmp_path / name))


def test_a_hub_model_of_another_library(monkeypatch):
    def without_architecture(*_, **__):
        raise KeyError("architecture")

    monkeypatch.setattr(timm, "create_model", without_architecture)
    with pytest.raises(ValueError, match=r"encoders\.mine\.model is 'hf-hub:owkin/phikon'.*timm"):
        load("hf-hub:owkin/phikon")


@pytest.mark.parametrize(
    "error", [AssertionError("x"), AttributeError("x"), KeyError("x"), OSError()]
)
def test_whatever_loading_runs_into_names_the_entry(monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(timm, "create_model", broken)
    told = (
        rf"encoders\.mine\.model: 'timm:test_resnet' could not be loaded \({type(error).__name__}"
    )
    with pytest.raises(ValueError, match=told):
        weights_module.build_network(EncoderSpec("mine", "timm:test_resnet"))


@pytest.fixture
def project(tmp_path, state, monkeypatch):
    """A project with a folder of weights and a file of weights, seen from one of its subfolders."""
    (tmp_path / "pyproject.toml").write_text("[tool.kedro]\n")
    publish(tmp_path / "models/mine", CONFIG, state)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_relative_paths_start_from_the_projects_folder(project, tiles):
    folder = load("local-dir:models/mine").embed(tiles)
    by_file = load(
        f"timm:{ARCHITECTURE}",
        checkpoint="models/mine/model.safetensors",
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    np.testing.assert_array_equal(folder, by_file.embed(tiles))


def test_a_home_folder_is_expanded(project, monkeypatch, tiles):
    monkeypatch.setenv("HOME", str(project))
    np.testing.assert_array_equal(
        load("local-dir:~/models/mine").embed(tiles), load("local-dir:models/mine").embed(tiles)
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nowhere", "no such folder"),
        ("models/mine/model.safetensors", "which is a file: give the folder"),
        ("notebooks", "has no config.json"),
    ],
)
def test_a_path_that_is_no_published_folder(project, given, told):
    with pytest.raises(
        ValueError, match=re.escape(f"encoders.mine.model is 'local-dir:{given}'")
    ) as e:
        load(f"local-dir:{given}")
    assert told in str(e.value)
