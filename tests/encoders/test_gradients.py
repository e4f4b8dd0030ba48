"""The encoder with gradients gives the encoder's own values, and gradients that are slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.controls import CONTROLS
from pathfm_kedro.encoders.gradients import DifferentiableEncoder, differentiable
from pathfm_kedro.encoders.runtimes import pooled
from pathfm_kedro.encoders.torch_encoder import TorchEncoder, load_torch_encoder

TINY = {"img_size": 32, "patch_size": 8, "depth": 2}
POOLINGS = ("default", "class_token", "patch_mean", "class_token_and_patch_mean")


def tiny(pooling: str = "default") -> TorchEncoder:
    spec = EncoderSpec(
        "tiny",
        "timm:vit_tiny_patch16_224",
        pretrained=False,
        seed=0,
        model_kwargs=TINY,
        input_pixels=32,
        pooling=pooling,
        mean=(0.7, 0.6, 0.7),
        std=(0.2, 0.25, 0.2),
    )
    return load_torch_encoder(spec)


def tiles(side: int, n: int = 3) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [32, 50, 21, 224])
def test_preprocessing_is_that_of_the_encoder(side):
    encoder = tiny()
    pixels = tiles(side)
    found = differentiable(encoder).prepare(as_images(pixels))
    np.testing.assert_allclose(found.numpy(), encoder.prepare(pixels).numpy(), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_the_encoder(pooling):
    encoder = tiny(pooling)
    pixels = tiles(40)
    found = differentiable(encoder).embed(as_images(pixels))
    np.testing.assert_allclose(found.numpy(), encoder.embed(pixels), atol=1e-5)


def test_lite0_vectors_are_those_of_the_encoder():
    encoder = load_torch_encoder(EncoderSpec("lite0", "package:efficientnet_lite0"))
    pixels = tiles(224, 2)
    found = differentiable(encoder).embed(as_images(pixels))
    np.testing.assert_allclose(found.numpy(), encoder.embed(pixels), atol=2e-4)


def test_a_gradient_is_the_slope_along_any_direction():
    encoder = differentiable(tiny())
    exact = DifferentiableEncoder(encoder.model.double(), "default", 32, encoder.mean, encoder.std)
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.4 * torch.rand(1, 3, 45, 45, generator=generator, dtype=torch.float64)
    direction, weight = (torch.randn(*s, generator=generator) for s in (image.shape, (192,)))

    def value(at):
        return (pooled(exact.model, exact.pooling, exact.prepare(at)) * weight).sum()

    free = image.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(free), free)
    step = 1e-5
    slope = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_the_network_keeps_its_weights_and_gets_no_gradient():
    encoder = tiny()
    free = as_images(tiles(32)).requires_grad_(True)
    vectors = differentiable(encoder).embed(free)
    vectors.sum().backward()
    assert free.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in encoder.model.parameters())


@pytest.mark.parametrize("name", sorted(set(CONTROLS) - {"pattern_reader"}))
def test_controls_have_no_gradient(name):
    assert differentiable(CONTROLS[name]()) is None
