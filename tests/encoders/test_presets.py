"""Presets: every one can be used or says what it needs; facts hold against timm's architectures."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.loaders.timm import resolve_layers
from pathfm_kedro.encoders.presets import (
    Preset,
    differs_from_training,
    expanded,
    find_preset,
    read_presets,
)
from pathfm_kedro.encoders.runtimes import pooled

PRESETS = read_presets()
USABLE = [p.name for p in PRESETS.values() if p.entry]
BUILT = [
    name
    for name in USABLE
    if PRESETS[name].architecture or PRESETS[name].entry["model"].startswith("timm:")
]


def entry_of(preset: Preset) -> dict[str, str]:
    """What a person writes, with the file where one has to be downloaded."""
    return {"preset": preset.name} | ({"checkpoint": "w.pth"} if preset.download else {})


def test_there_are_the_encoders_of_the_field():
    assert sum(not p.slide_level for p in PRESETS.values()) >= 73
    assert sum(p.slide_level for p in PRESETS.values()) == 15
    assert len(USABLE) >= 35


@pytest.mark.parametrize("name", USABLE)
def test_every_preset_is_an_entry_by_itself(name):
    preset = PRESETS[name]
    spec = EncoderSpec.from_parameters("mine", entry_of(preset))
    assert spec.model == preset.entry["model"]
    assert (spec.mean is None) == (spec.std is None) == ("mean" not in preset.entry)
    if preset.pinned and preset.entry.get("checkpoint") is None:
        assert spec.model.endswith(f"@{preset.pinned}")
    if preset.entry["model"].startswith("timm:") and preset.repository:
        # The published weights of timm itself, or a checkpoint: never timm's in place of another's.
        assert spec.checkpoint or preset.repository == f"timm/{spec.model.removeprefix('timm:')}"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_says_where_it_comes_from_and_what_it_needs(preset):
    assert preset.sources
    assert bool(preset.entry) != bool(preset.needs)
    if preset.slide_level:
        assert not preset.entry
        assert preset.tile_encoder is None or preset.tile_encoder in PRESETS
    if not preset.entry:
        assert preset.requirement.startswith("bring its ")
        with pytest.raises(
            ValueError, match=r"nothing here loads.*needs.*model: features:<folder>"
        ):
            EncoderSpec.from_parameters("mine", {"preset": preset.name})
    digest = preset.sha256 or preset.entry.get("sha256") or "0" * 64
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert re.fullmatch(r"([0-9a-f]{40})?|IMAGENET1K_V2", preset.pinned)
    assert (preset.commercial, preset.gated) in {(a, b) for a in OPEN for b in OPEN}
    assert all("Taken: " in text for text in preset.conflicts)
    if preset.tile:
        assert set(preset.tile) >= {"pixels", "mpp"}
        assert ("stated" in preset.tile) == bool(preset.tile["mpp"])


OPEN = (True, False, None)


def count_of(stated: str) -> float:
    return float(stated[:-1]) * {"M": 1e6, "B": 1e9}[stated[-1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_the_architecture_has_the_parameters_and_gives_the_dimension_that_are_published(name):
    """Built without memory from what the preset says; the counts are the publishers', not ours."""
    preset = PRESETS[name]
    model, arguments = preset.entry["model"].partition(":")[2], dict(preset.architecture)
    architecture = arguments.pop("name", model)
    assert timm.is_model(architecture.partition(".")[0])
    kwargs = {"num_classes": 0} | arguments | dict(preset.entry.get("model_kwargs", {}))
    side = preset.entry.get("input_pixels", 224)
    with torch.device("meta"), torch.inference_mode():
        network = timm.create_model(architecture, pretrained=False, **resolve_layers(kwargs)).eval()
        tiles = torch.zeros(1, 3, side, side)
        vectors = pooled(network, preset.entry.get("pooling", "default"), tiles)
    assert tuple(vectors.shape) == (1, preset.dimension)
    counted = sum(weight.numel() for weight in network.parameters())
    # Some publishers round to two digits: 1.1B stands for 1.05 to 1.15.
    assert counted == pytest.approx(count_of(preset.parameters), rel=0.05)


def test_most_architectures_are_held_against_published_counts():
    assert len(BUILT) >= 30


def test_own_keys_win_and_arguments_are_merged():
    own = {"preset": "uni2_h", "model_kwargs": {"dynamic_img_size": False}, "batch_size": 4}
    spec = EncoderSpec.from_parameters("mine", own | {"mean": None, "std": None})
    assert (spec.model_kwargs["dynamic_img_size"], spec.model_kwargs["reg_tokens"]) == (False, 8)
    assert (spec.batch_size, spec.mean) == (4, None)
    assert spec.sha256 == PRESETS["uni2_h"].entry["sha256"]


def test_the_weights_may_lie_elsewhere():
    spec = EncoderSpec.from_parameters(
        "mine", {"preset": "uni2_h", "model": "local-dir:/models/uni2"}
    )
    assert (spec.model, spec.weights) == ("local-dir:/models/uni2", "pytorch_model.bin")
    assert spec.sha256 is not None
    own = {"preset": "gpfm", "checkpoint": "gpfm.pth"}
    spec = EncoderSpec.from_parameters("mine", own)
    assert (spec.checkpoint, spec.sha256) == ("gpfm.pth", PRESETS["gpfm"].entry["sha256"])


def test_features_take_nothing_of_the_network():
    own = {"preset": "conch", "model": "features:/data/conch"}
    assert expanded("mine", own) == {"model": "features:/data/conch"}


def test_the_null_of_a_published_architecture():
    own = {"preset": "gigapath_flash", "checkpoint": None, "pretrained": False, "seed": 0}
    spec = EncoderSpec.from_parameters("mine", own)
    assert (spec.pretrained, spec.sha256, spec.checkpoint) == (False, None, None)


@pytest.mark.parametrize(
    ("entry", "stated"),
    [
        (
            {"preset": "uni2h"},
            r"encoders.mine.preset: there is no preset 'uni2h': did you mean uni2_h",
        ),
        ({"preset": "Virchow-2"}, r"did you mean virchow2"),
        ({"preset": "zzzzzz"}, r"none is close"),
        ({"preset": ["uni"]}, r"there is no preset '\['uni'\]'"),
        ({"preset": "lunit_bt"}, r"download https://github.com.*encoders.mine.checkpoint the path"),
        ({"preset": "uni", "modle": "x"}, r"unknown keys \['modle'\]: known are .*'preset'"),
        ({"preset": "uni", "sha256": "abc"}, r"mine.sha256 is 'abc': give 64 hexadecimal digits"),
        (
            {"preset": "uni", "weights": "../w.bin"},
            r"mine.weights is '../w.bin': it names one file",
        ),
        ({"model": "timm:resnet18", "sha256": "0" * 64}, r"no single file: name the one"),
        ({"model": "timm:resnet18", "checkpoint": "hf-hub:x"}, r"give hf-hub:<owner>/<model>@"),
        ({"pooling": "default"}, r"has no 'model'.*'preset'"),
    ],
)
def test_what_is_wrong_with_an_entry_is_stated(entry, stated):
    with pytest.raises(ValueError, match=stated):
        EncoderSpec.from_parameters("mine", entry)


def test_tiles_other_than_those_of_training():
    assert differs_from_training(find_preset("virchow2"), 224, 1.0) == ""
    assert differs_from_training(find_preset("virchow"), 224, 0.52) == ""
    assert "0.5 µm per px (card), and the cohort's are 224 px at 1" in differs_from_training(
        find_preset("virchow"), 224, 1.0
    )
    assert "tiles of 512 px" in differs_from_training(find_preset("conch_v1_5"), 224, 0.5)
    assert differs_from_training(find_preset("resnet50"), 64, 4.0) == ""
