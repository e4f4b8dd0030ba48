"""An entry that gives no sensible vector is refused before anything is embedded, with the mend."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial, load_encoder
from pathfm_kedro.encoders.entry_checks import refuse_other_scale
from pathfm_kedro.encoders.runtimes import has_class_token, pooled, prefix_tokens

DRAWN = {"pretrained": False, "seed": 0}
VIT = {"model": "timm:test_vit"} | DRAWN
RESNET = {"model": "timm:test_resnet", "input_pixels": 64} | DRAWN
WITHOUT_CLASS_TOKEN = {"class_token": False, "global_pool": "avg"}
IMAGENET = [123.675, 116.28, 103.53]

REFUSED = {
    "mean_of_255": (RESNET | {"mean": IMAGENET}, ".mean is [123.675", "[0.485, 0.456, 0.406]"),
    "std_of_255": (RESNET | {"std": [58.4, 57.1, 57.4]}, ".std is [58.4", "[0.229, 0.2239"),
    "negative_mean": (RESNET | {"mean": [-0.5] * 3}, ".mean is [-0.5, -0.5, -0.5]", "0 to 1"),
    "text_as_mean": (RESNET | {"mean": "123"}, ".mean is '123'", "three numbers"),
    "class_logits": (
        RESNET | {"model_kwargs": {"num_classes": 1000}},
        ".model_kwargs.num_classes is 1000",
        "leave it out",
    ),
    "classes_of_the_model": (
        RESNET | {"model_kwargs": {"num_classes": None}},
        ".model_kwargs.num_classes is None",
        "leave it out",
    ),
    "maps_of_all_stages": (
        RESNET | {"model_kwargs": {"features_only": True}},
        ".model_kwargs.features_only is True",
        "leave it out",
    ),
    "map_not_pooled": (
        RESNET | {"model_kwargs": {"global_pool": ""}},
        ".model_kwargs.global_pool",
        "avg",
    ),
    "tokens_not_pooled": (
        VIT | {"model_kwargs": {"global_pool": ""}},
        ".pooling is 'default'",
        "class_token, patch_mean or",
    ),
    "grey": (RESNET | {"model_kwargs": {"in_chans": 1}}, ".model_kwargs.in_chans is 1", "leave"),
    "no_class_token": (
        VIT | {"model_kwargs": WITHOUT_CLASS_TOKEN, "pooling": "class_token"},
        ".pooling is 'class_token'",
        "give default",
    ),
    "no_class_token_but_registers": (
        VIT
        | {
            "model_kwargs": WITHOUT_CLASS_TOKEN | {"reg_tokens": 4},
            "pooling": "class_token_and_patch_mean",
        },
        ".pooling is 'class_token_and_patch_mean'",
        "give default",
    ),
    "class_token_of_a_mixer": (
        {"model": "timm:mixer_s32_224", "pooling": "class_token"} | DRAWN,
        ".pooling is 'class_token'",
        "give default",
    ),
    "class_token_of_convolutions": (
        RESNET | {"pooling": "class_token"},
        ".pooling is 'class_token'",
        "give default",
    ),
    "tokens_of_convolutions": (
        RESNET | {"pooling": "patch_mean"},
        ".pooling is 'patch_mean'",
        "use pooling 'default'",
    ),
    "other_side": (
        VIT | {"input_pixels": 96, "model_kwargs": {"dynamic_img_size": False}},
        ".input_pixels is 96",
        "input_pixels to 160",
    ),
    "no_multiple_of_the_patch": (
        VIT | {"input_pixels": 100, "model_kwargs": {"dynamic_img_size": True}},
        ".input_pixels is 100",
        "as 96 or 112",
    ),
    "no_side": (VIT | {"input_pixels": 0}, ".input_pixels is 0", "whole number from 1"),
    "drawn_weights": (
        {"model": "timm:test_vit", "pretrained": False},
        ".pretrained is False",
        "encoders.mine.seed",
    ),
    "drawn_weights_of_the_hub": (
        {"model": "hf-hub:MahmoodLab/UNI", "pretrained": False},
        ".pretrained is False",
        "encoders.mine.seed",
    ),
    "empty_pretrained": (
        {"model": "timm:test_vit", "pretrained": None},
        ".pretrained is None",
        "true or false",
    ),
    "pretrained_in_words": (
        {"model": "timm:test_vit", "pretrained": "false"},
        ".pretrained is 'false'",
        "true or false",
    ),
    "pretrained_of_a_package": (
        {"model": "package:efficientnet_lite0", "pretrained": False},
        ".pretrained is False",
        "leave it out",
    ),
    "pretrained_among_the_kwargs": (
        {"model": "timm:test_vit", "model_kwargs": {"pretrained": False}},
        ".model_kwargs.pretrained is False",
        "leave it out",
    ),
    "weights_that_need_not_fit": (
        {"model": "timm:test_vit", "model_kwargs": {"pretrained_strict": False}},
        ".model_kwargs.pretrained_strict is False",
        "leave it out",
    ),
    "checkpoint_among_the_kwargs": (
        VIT | {"model_kwargs": {"checkpoint_path": "w.pth"}},
        ".model_kwargs.checkpoint_path is 'w.pth'",
        "encoders.mine.checkpoint",
    ),
    "seed_of_nothing": ({"model": "timm:test_vit", "seed": 1}, ".seed is 1", "leave it out"),
    "dimension_of_a_network": (VIT | {"dimension": 8}, ".dimension is 8", "leave it out"),
    "empty_kwargs": (VIT | {"model_kwargs": None}, ".model_kwargs is None", "leave it out"),
    "kwargs_in_words": (VIT | {"model_kwargs": "img_size"}, ".model_kwargs is 'img_size'", "leave"),
    "empty_model": ({"model": None}, " has no 'model'", "encoders.mine.model"),
    "nothing_after_the_colon": ({"model": "timm:"}, ".model is 'timm:'", "name the model"),
    "link_to_the_hub": (
        {"model": "hf-hub:https://huggingface.co/MahmoodLab/UNI"},
        ".model is 'hf-hub:https",
        "hf-hub:<owner>/<model>",
    ),
    "hub_without_owner": ({"model": "hf-hub:UNI"}, ".model is 'hf-hub:UNI'", "<owner>/<model>"),
    "unknown_argument": (
        VIT | {"model_kwargs": {"dynamic_image_size": True}},
        ".model_kwargs",
        "check the name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_entry_without_sensible_vectors_is_refused(case):
    """At the trial, which comes before the first tile is read."""
    entry, named, mend = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(f"encoders.mine{named}")) as refused:
        RuntimeTrial(EncoderSpec.from_parameters("mine", entry)).key()
    assert mend in str(refused.value)


@pytest.mark.parametrize("case", ["map_not_pooled", "no_class_token", "other_side"])
def test_what_a_trial_refuses_is_not_loaded_either(case):
    entry, named, _ = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(f"encoders.mine{named}")):
        load_encoder(EncoderSpec.from_parameters("mine", entry))


ACCEPTED = {
    "class_token": VIT | {"pooling": "class_token"},
    "patches_without_class_token": VIT
    | {"model_kwargs": WITHOUT_CLASS_TOKEN, "pooling": "patch_mean"},
    "tokens_pooled_here": VIT | {"model_kwargs": {"global_pool": ""}, "pooling": "patch_mean"},
    "identity_normalisation": RESNET | {"mean": [0, 0, 0], "std": [1, 1, 1]},
    "patches_of_a_mixer": {"model": "timm:mixer_s32_224", "pooling": "patch_mean"} | DRAWN,
    "img_size": VIT | {"model_kwargs": {"img_size": 96, "dynamic_img_size": False}},
    "img_size_of_two": VIT | {"model_kwargs": {"img_size": [96, 96], "dynamic_img_size": False}},
    "any_multiple_of_the_patch": VIT
    | {"input_pixels": 112, "model_kwargs": {"dynamic_img_size": True}},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_gives_one_vector_per_tile_is_taken(case):
    encoder = load_encoder(EncoderSpec.from_parameters("mine", ACCEPTED[case]))
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    vectors = encoder.embed(tiles)
    assert vectors.ndim == 2
    assert np.isfinite(vectors).all()
    assert (vectors[0] != vectors[1]).any()


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
)
def test_a_normalisation_of_the_unit_scale_is_taken_and_of_255_is_not(mean, std):
    refuse_other_scale("e.mean", mean)
    refuse_other_scale("e.std", std)
    for key, numbers in (("mean", mean), ("std", std)):
        larger = [255 * number for number in numbers]
        if max(larger) > 1:
            with pytest.raises(ValueError, match=rf"e\.{key} is .* of 0 \.\.\. 255"):
                refuse_other_scale(f"e.{key}", larger)


def test_every_published_model_of_timm_has_a_normalisation_that_is_taken():
    for name in timm.list_models(pretrained=True):
        declared = timm.get_pretrained_cfg(name)
        refuse_other_scale("e.mean", declared.mean)
        refuse_other_scale("e.std", declared.std)


@pytest.mark.parametrize(
    ("model", "kwargs", "class_token", "before"),
    [
        ("test_vit", {}, True, 1),
        ("test_vit", {"reg_tokens": 3}, True, 4),
        ("test_vit", WITHOUT_CLASS_TOKEN, False, 0),
        ("test_vit", WITHOUT_CLASS_TOKEN | {"reg_tokens": 2}, False, 2),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, True, 2),
        ("mixer_s32_224", {}, False, 0),
        ("test_resnet", {}, False, 0),
    ],
)
def test_tokens_before_the_patches(model, kwargs, class_token, before):
    network = timm.create_model(model, num_classes=0, **kwargs)
    assert has_class_token(network) is class_token
    assert prefix_tokens(network) == before


def test_all_patches_of_a_network_without_class_token_are_averaged():
    network = timm.create_model("mixer_s32_224", num_classes=0).eval()
    batch = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = network.forward_features(batch)
        torch.testing.assert_close(pooled(network, "patch_mean", batch), tokens.mean(dim=1))


def test_the_seed_draws_the_null_of_an_architecture():
    prints = [
        load_encoder(EncoderSpec.from_parameters("null", RESNET | {"seed": seed})).fingerprint
        for seed in (0, 1, 0)
    ]
    assert prints[0] == prints[2] != prints[1]
