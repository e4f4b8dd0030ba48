"""The same weights with an input of another size: convolutions, interpolated positions, refusals."""

from __future__ import annotations

import numpy as np
import timm
import torch

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.input_size import native_encoder
from pathfm_kedro.encoders.mitigated import MitigatedEncoder, rotation_average


def neural(model, **kwargs):
    told = {"model": f"timm:{model}", "pretrained": False, "seed": 0, "model_kwargs": kwargs}
    return load_encoder(EncoderSpec.from_parameters("e", told))


def field(side, n=2):
    return np.random.default_rng(1).integers(0, 255, (n, side, side, 3), dtype=np.uint8)


def test_convolutions_take_a_field_at_its_own_size():
    encoder = neural("test_efficientnet")
    native, problem = native_encoder(encoder, (200, 200))
    pixels = field(200)
    mean, std = (
        torch.tensor(encoder.preprocessing[name]).view(1, 3, 1, 1) for name in ("mean", "std")
    )
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        expected = encoder.model(batch).numpy()
    assert problem == 0
    np.testing.assert_allclose(native.embed(pixels), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(native.embed(pixels) - encoder.embed(pixels)).max() > 1e-3


def test_position_embeddings_are_interpolated_in_a_copy_that_shares_the_weights():
    encoder = neural("test_vit")
    declared = encoder.preprocessing["input_pixels"]
    before = encoder.embed(field(declared))
    native, problem = native_encoder(encoder, (250, 250))
    assert problem == 0
    assert native.preprocessing["input_pixels"] == 240  # 15 patches of 16 px
    dynamic = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    dynamic.load_state_dict(encoder.model.state_dict())
    with torch.inference_mode():
        expected = dynamic(native.prepare(field(250))).numpy()
    np.testing.assert_allclose(native.embed(field(250)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(encoder.embed(field(declared)), before)
    shared = {p.data_ptr() for p in encoder.model.parameters()}
    own = [n for n, p in native.model.named_parameters() if p.data_ptr() not in shared]
    assert own == ["pos_embed"]


def test_at_its_usual_size_native_is_the_encoder():
    for name in ("test_vit", "test_efficientnet"):
        encoder = neural(name)
        side = encoder.preprocessing["input_pixels"]
        native, _ = native_encoder(encoder, (side, side))
        np.testing.assert_allclose(
            native.embed(field(side)), encoder.embed(field(side)), rtol=1e-5, atol=1e-6
        )


def test_an_encoder_of_one_size_has_no_native_field():
    encoder = neural("mixer_s32_224")
    assert native_encoder(encoder, (512, 512)) == (None, 1)


def test_a_control_looks_at_every_pixel_anyway():
    control = load_encoder(EncoderSpec("e", "control:stain_statistics"))
    assert native_encoder(control, (512, 384)) == (control, 0)


def test_large_inputs_go_in_smaller_batches():
    native, _ = native_encoder(neural("test_efficientnet"), (1024, 1024))
    assert native.batch_size == 1


def test_what_is_done_to_pixels_first_is_done_at_native_size_too():
    encoder = neural("test_efficientnet")
    native, problem = native_encoder(MitigatedEncoder(encoder, "rotation_average"), (200, 200))
    assert problem == 0
    expected = rotation_average(native_encoder(encoder, (200, 200))[0], field(200))
    np.testing.assert_array_equal(native.embed(field(200)), expected)
