"""Attacks on a linear encoder have closed forms; on any encoder they obey rules."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.encoders.attacks import (
    AdversarialImages,
    AttackLoss,
    ProbeObjective,
    add_perturbation,
    evaluate,
    fgsm,
    gaussian_noise,
    pgd,
    pgd_unrounded,
    project,
    quantise,
    sign_noise,
    strongest_up_to_epsilon,
    to_images,
    to_tiles,
    universal_perturbation,
)

SIDE = 6


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(n: int, seed: int = 3) -> torch.Tensor:
    return 2 * torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) - 1


def tiles(n: int = 4, low: int = 60, high: int = 200, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(low, high, (n, SIDE, SIDE, 3), dtype=np.uint8)


def linear(n: int, classes: int = 2, seed: int = 0) -> ProbeObjective:
    """A probe on the pixels themselves."""
    target = torch.arange(n) % classes
    return ProbeObjective(flat, normal(classes, 3 * SIDE**2, seed=seed), normal(classes), target)


def curved(n: int, seed: int = 0) -> ProbeObjective:
    """A probe on a small network that bends."""
    first = normal(24, 3 * SIDE**2, seed=seed).float()
    second = normal(8, 24, seed=seed + 1).float()

    def embed(images):
        return torch.tanh(torch.sin(4 * flat(images) @ first.T) @ second.T)

    return ProbeObjective(embed, normal(3, 8, seed=seed + 2), normal(3), torch.arange(n) % 3)


def size(levels: int) -> torch.Tensor:
    return torch.tensor(levels / 255)


@pytest.mark.parametrize("levels", [1, 4, 20])
def test_fgsm_on_a_linear_probe_costs_epsilon_times_the_one_norm(levels):
    images, objective = to_images(tiles()), linear(4)
    weight = objective.weight[objective.target] - objective.weight[1 - objective.target]
    cost = fgsm(objective, images, size(levels)).margin_loss - objective(images).margin_loss
    torch.testing.assert_close(cost, levels / 255 * weight.abs().sum(dim=1), rtol=1e-5, atol=1e-5)


def test_steps_below_a_grey_level_cost_a_linear_probe_epsilon_times_the_one_norm():
    images, objective = to_images(tiles()), linear(4)
    weight = objective.weight[objective.target] - objective.weight[1 - objective.target]
    found = pgd_unrounded(objective, images, 0.0015, 0.001, 5)
    cost = objective(found).margin_loss - objective(images).margin_loss
    torch.testing.assert_close(cost, 0.0015 * weight.abs().sum(dim=1), rtol=1e-4, atol=1e-5)
    # A file could not hold it.
    np.testing.assert_array_equal(to_tiles(found), tiles())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), levels=st.integers(1, 30))
def test_no_other_point_of_the_ball_harms_a_linear_probe_more(seed, levels):
    images, objective = to_images(tiles(seed=seed)), linear(4, seed=seed)
    best = fgsm(objective, images, size(levels)).margin_loss
    elsewhere = project(images + size(levels) * start(4, seed).sign(), images, size(levels))
    assert (objective(elsewhere).margin_loss <= best + 1e-6).all()


def test_pgd_on_a_linear_probe_finds_what_fgsm_finds():
    images, objective = to_images(tiles()), linear(4)
    one = fgsm(objective, images, size(5)).images
    many = pgd(objective, images, size(5), 10, start(4)).images
    np.testing.assert_array_equal(to_tiles(many), to_tiles(one))


def plain_pgd(pixels, weight, bias, target, levels, steps, begin):
    """The textbook's loop on softmax regression, gradients by hand, one image at a time."""
    epsilon = levels / 255
    best = []
    for image, own, first in zip(pixels / 255, target, begin, strict=True):
        logits = weight @ image + bias
        found = (max(np.delete(logits, own)) - logits[own], image)
        at = np.clip(image + epsilon * first, 0, 1)
        for step in range(steps + 1):
            file = np.round(at * 255) / 255
            logits = weight @ file + bias
            margin_loss = max(np.delete(logits, own)) - logits[own]
            found = (margin_loss, file) if margin_loss > found[0] else found
            if step < steps:
                share = np.exp(logits - logits.max())
                share /= share.sum()
                gradient = weight.T @ (share - np.eye(len(bias))[own])
                at = at + 2.5 * epsilon / steps * np.sign(gradient)
                at = np.clip(np.clip(at, image - epsilon, image + epsilon), 0, 1)
        best.append(found[1])
    return np.round(np.stack(best) * 255)


@pytest.mark.parametrize("steps", [1, 7])
def test_pgd_is_the_textbooks_loop(steps):
    pixels, objective, begin = tiles(6, 0, 256), linear(6, classes=4), start(6)
    expected = plain_pgd(
        pixels.transpose(0, 3, 1, 2).reshape(6, -1).astype(float),
        objective.weight.numpy(),
        objective.bias.numpy(),
        objective.target.numpy(),
        9,
        steps,
        begin.flatten(1).numpy(),
    )
    found = to_tiles(pgd(objective, to_images(pixels), size(9), steps, begin).images)
    found = found.transpose(0, 3, 1, 2).reshape(6, -1)
    assert (found == expected).mean() > 0.999


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), levels=st.integers(0, 40), steps=st.integers(1, 6))
def test_attacked_images_stay_in_the_ball_and_are_images(seed, levels, steps):
    pixels, objective = tiles(3, 0, 256, seed), curved(3, seed)
    pixels[0, :2] = 0
    pixels[1, :2] = 255
    images = to_images(pixels)
    for found in (
        fgsm(objective, images, size(levels)),
        pgd(objective, images, size(levels), steps, start(3, seed)),
    ):
        assert (found.images - images).abs().max() <= levels / 255 + 1e-6
        assert found.images.min() >= 0
        assert found.images.max() <= 1
        moved = np.abs(to_tiles(found.images).astype(int) - pixels)
        assert moved.max() <= levels


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_an_attack_of_no_size_returns_the_tile(seed):
    pixels, objective = tiles(3, 0, 256, seed), curved(3, seed)
    found = pgd(objective, to_images(pixels), size(0), 5, start(3, seed))
    np.testing.assert_array_equal(to_tiles(found.images), pixels)
    torch.testing.assert_close(found.margin_loss, objective(to_images(pixels)).margin_loss)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_more_steps_and_larger_balls_are_never_weaker(seed):
    images, objective = to_images(tiles(1, seed=seed)), curved(1, seed)
    images = images.expand(4, -1, -1, -1)
    objective = ProbeObjective(
        objective.embed, objective.weight, objective.bias, objective.target.expand(4)
    )
    sizes = torch.tensor([1, 2, 5, 12]).view(-1, 1, 1, 1) / 255
    few = strongest_up_to_epsilon(pgd(objective, images, sizes, 3, start(1, seed)[0]))
    many = strongest_up_to_epsilon(pgd(objective, images, sizes, 9, start(1, seed)[0], few))
    assert (few.margin_loss >= objective(images).margin_loss).all()
    assert (many.margin_loss >= few.margin_loss).all()
    assert (many.margin_loss.diff() >= 0).all()
    torch.testing.assert_close(many.margin_loss, evaluate(objective, many.images).margin_loss)


@dataclass
class Watched:
    """An objective that remembers what it was shown."""

    inner: ProbeObjective
    seen: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, images: torch.Tensor) -> AttackLoss:
        found = self.inner(images)
        self.seen.append(found.margin_loss.detach())
        return found


def test_the_most_harmful_image_met_is_kept():
    objective = Watched(curved(4))
    found = pgd(objective, to_images(tiles()), size(20), 12, start(4))
    assert len(objective.seen) == 14
    torch.testing.assert_close(found.margin_loss, torch.stack(objective.seen).amax(dim=0))


def test_the_better_of_two_attempts_is_taken_image_by_image():
    one = AdversarialImages(torch.zeros(2, 3, 1, 1), torch.tensor([1.0, 1.0]))
    other = AdversarialImages(torch.ones(2, 3, 1, 1), torch.tensor([2.0, 1.0]))
    both = one.stronger_of(other)
    assert both.margin_loss.tolist() == [2, 1]
    assert both.images[:, 0, 0, 0].tolist() == [1, 0]


def test_a_sure_probe_still_has_a_gradient():
    sure = linear(4)
    sure = ProbeObjective(flat, 40 * sure.weight, 40 * sure.bias, sure.target)
    images = to_images(tiles())
    weight = sure.weight[sure.target] - sure.weight[1 - sure.target]
    cost = fgsm(sure, images, size(4)).margin_loss - sure(images).margin_loss
    assert sure(images).margin_loss.min() < -100
    wrong = sure(images).margin_loss > 0
    assert (~wrong).any()
    expected = 4 / 255 * weight.abs().sum(dim=1)
    torch.testing.assert_close(cost[~wrong], expected[~wrong], rtol=1e-4, atol=1e-4)


def test_a_gradient_that_is_not_finite_is_refused():
    objective = linear(4)
    broken = ProbeObjective(
        lambda images: flat(images) / 0 * 0, objective.weight, objective.bias, objective.target
    )
    with pytest.raises(ValueError, match="gradient is NaN"):
        fgsm(broken, to_images(tiles()), size(1))


def test_margin_loss_is_the_largest_other_logit_minus_the_true_one():
    objective = linear(5, classes=3)
    images = to_images(tiles(5))
    logits = (flat(images).double() @ objective.weight.T + objective.bias).numpy()
    expected = [
        max(np.delete(row, own)) - row[own]
        for row, own in zip(logits, objective.target, strict=True)
    ]
    np.testing.assert_allclose(objective(images).margin_loss.numpy(), expected, atol=1e-12)


def test_rounding_is_exact_and_lets_gradients_pass():
    free = torch.linspace(0, 1, 1001).requires_grad_(True)
    rounded = quantise(free)
    torch.testing.assert_close(rounded * 255, (rounded * 255).round(), atol=2e-5, rtol=0)
    (gradient,) = torch.autograd.grad(rounded.sum(), free)
    assert (gradient == 1).all()
    pixels = tiles(2, 0, 256)
    np.testing.assert_array_equal(to_tiles(to_images(pixels)), pixels)
    torch.testing.assert_close(quantise(to_images(pixels)), to_images(pixels), atol=0, rtol=0)


def test_the_universal_perturbation_of_a_plane_is_known():
    """f(x) = (a·x, 1): the cosine falls fastest, and for all tiles alike, against a."""
    direction = normal(3 * SIDE**2).float()
    direction -= direction.mean()

    def embed(images):
        along = flat(images) @ direction
        return torch.stack([0.5 + along, torch.ones_like(along)], dim=1)

    gray = to_images(np.full((5, SIDE, SIDE, 3), 128, np.uint8))
    begin = -0.5 * direction.sign().view(3, SIDE, SIDE)
    found = universal_perturbation(embed, gray, 6 / 255, 8, begin, batch=2)
    expected = -6 * direction.sign().view(3, SIDE, SIDE).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_universal_perturbation_moves_embeddings_more_than_its_start(batch):
    first = normal(12, 3 * SIDE**2).float()

    def embed(images):
        return torch.sin(flat(images) @ first.T)

    images = to_images(tiles(7))
    found = universal_perturbation(embed, images, 8 / 255, 10, start(1)[0].sign(), batch)
    assert found.dtype == np.int8
    assert np.abs(found).max() <= 8
    moved = to_images(np.stack([add_perturbation(t, found) for t in tiles(7)]))
    noise = to_images(np.stack([sign_noise(t, 8, i) for i, t in enumerate(tiles(7))]))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(embed(moved), embed(images)).mean() < cosine(embed(noise), embed(images)).mean()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), levels=st.integers(1, 30))
def test_sign_noise_moves_every_value_by_epsilon_or_to_the_end(seed, levels):
    tile = tiles(1, 0, 256, seed)[0]
    noisy = sign_noise(tile, levels, seed)
    moved = np.abs(noisy.astype(int) - tile)
    assert ((moved == levels) | (noisy == 0) | (noisy == 255)).all()
    assert moved.max() <= levels
    np.testing.assert_array_equal(noisy, sign_noise(tile, levels, seed))


def test_gaussian_noise_has_the_energy_of_sign_noise():
    tile = np.full((200, 200, 3), 128, np.uint8)
    by_sign, by_gauss = (
        noise(tile, 6, 1).astype(float) - 128 for noise in (sign_noise, gaussian_noise)
    )
    assert np.sqrt((by_gauss**2).mean()) == pytest.approx(np.sqrt((by_sign**2).mean()), rel=0.01)
