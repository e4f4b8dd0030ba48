"""Losses against their closed forms and those of lightly 1.6.0; what tasks learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from pathfm_kedro.encoders import pretexts
from pathfm_kedro.encoders.architectures import rival
from pathfm_kedro.encoders.training import AdamWSettings, InMemory, weights_of

BUDGET = AdamWSettings(epochs=2, batch=4, learning_rate=1e-3, weight_decay=0.05)


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def tiles(n=8, side=32):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_nt_xent_by_hand():
    first, second, tau = drawn(3, 5), drawn(3, 5, seed=1), 0.3
    both = functional.normalize(torch.cat([first, second])).numpy().astype(np.float64)
    each = []
    for i in range(6):
        partner = (i + 3) % 6
        others = [np.exp(both[i] @ both[j] / tau) for j in range(6) if j != i]
        each.append(-np.log(np.exp(both[i] @ both[partner] / tau) / sum(others)))
    assert float(pretexts.nt_xent(first, second, tau)) == pytest.approx(np.mean(each), rel=1e-5)


def test_losses_are_those_of_lightly():
    """Its NTXentLoss(temperature=0.5) and, with this center, DINOLoss(6, teacher_temp=0.04)."""
    first, second = drawn(4, 6), drawn(4, 6, seed=1)
    assert float(pretexts.nt_xent(first, second, 0.5)) == pytest.approx(2.2397916, rel=1e-5)

    taught, learnt, center = drawn(2, 4, 6), drawn(4, 4, 6, seed=1), drawn(6, seed=2) / 10
    value = pretexts.self_distillation(taught, learnt, center)
    assert float(value) == pytest.approx(8.0230017, rel=1e-4)
    moved = pretexts.moved_center(center, taught)
    theirs = [0.01829266, -0.01985695, -0.05332636, -0.21632828, 0.13181731, 0.15907344]
    torch.testing.assert_close(moved, torch.tensor(theirs))


def test_the_center_takes_away_what_all_tiles_share():
    # One prototype that wins everywhere: taken off, the teacher says nothing, and the loss is ln d.
    taught = torch.zeros(2, 3, 4)
    taught[..., 0] = 9.0
    same = torch.zeros(2, 3, 4)
    center = taught.mean(dim=(0, 1))
    value = pretexts.self_distillation(taught, same, center)
    assert float(value) == pytest.approx(np.log(4), rel=1e-5)


def test_only_hidden_patches_count():
    images, hidden = drawn(2, 3, 8, 8), torch.zeros(2, 2, 2, dtype=torch.bool)
    hidden[:, 0, 1] = True
    wrong_elsewhere = images + 100.0
    wrong_elsewhere[:, :, :4, 4:] = images[:, :, :4, 4:] + 2.0
    assert float(pretexts.masked_error(wrong_elsewhere, images, hidden)) == pytest.approx(
        4.0, rel=1e-4
    )


def test_views_are_of_their_tiles_and_stay_in_range():
    found = pretexts.views(tiles(), np.random.default_rng(0))
    assert found.shape == (8, 3, 32, 32)
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    again = pretexts.views(tiles(), np.random.default_rng(0))
    torch.testing.assert_close(found, again)
    # A whole crop of a tile of one colour, whatever the turn, keeps it one colour.
    plain = np.full((4, 16, 16, 3), 128, np.uint8)
    flat = pretexts.views(plain, np.random.default_rng(1))
    assert float((flat - flat.mean(dim=(2, 3), keepdim=True)).abs().max()) < 1e-5


@pytest.mark.parametrize("task", pretexts.TASKS)
def test_every_task_changes_the_backbone_and_random_does_not(task):
    targets = {"supervised": np.arange(8) % 2}.get(
        task, np.random.default_rng(0).normal(size=(8, 2))
    )
    network = rival("small_cnn", 32, 0)
    before = weights_of(rival("small_cnn", 32, 0))
    history = pretexts.pretrain(network, task, tiles(), targets, BUDGET, 0)
    after = weights_of(network)
    changed = any(not np.array_equal(after[name], before[name]) for name in before)
    assert changed == (task != "random")
    assert len(history.losses) == (0 if task == "random" else 2)
    assert not network.training
    assert pretexts.frozen_vectors(network, tiles()).shape == (8, 128)


def test_a_killed_self_distillation_goes_on_with_its_teacher_and_center():
    def weights(*epochs):
        network, kept = rival("small_cnn", 32, 0), InMemory()
        for stop in epochs:
            budget = AdamWSettings(2, 4, 1e-3, 0.05)
            if stop == 1:

                class Killed(InMemory):
                    def save(self, tensors, text):
                        kept.save(tensors, text)
                        raise KeyboardInterrupt

                with pytest.raises(KeyboardInterrupt):
                    pretexts.pretrain(
                        network, "dino", tiles(), np.zeros((8, 0)), budget, 0, Killed()
                    )
                network = rival("small_cnn", 32, 0)
            else:
                pretexts.pretrain(network, "dino", tiles(), np.zeros((8, 0)), budget, 0, kept)
        return weights_of(network)

    whole, resumed = weights(2), weights(1, 2)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)


def test_operations_follow_passes_tiles_and_epochs():
    network = rival("small_cnn", 32, 0)
    masked, simclr, dino, random = (
        pretexts.operations(network, task, 32, 10, 2)
        for task in ("masked", "simclr", "dino", "random")
    )
    # Two views learnt from; four learnt from, and two that the teacher sees.
    assert simclr == 2 * masked
    assert dino == pytest.approx(masked * 14 / 3)
    assert random == 0
    assert pretexts.operations(network, "masked", 32, 20, 1) == masked


def test_a_transformer_has_a_map_too():
    network = rival("small_vit", 32, 0)
    assert pretexts.feature_map(network, torch.zeros(2, 3, 32, 32)).shape == (2, 128, 8, 8)


def test_too_few_tiles_are_named():
    with pytest.raises(ValueError, match=r"1 tile\(s\) to pretrain on.*arms\.tiles_per_slide"):
        pretexts.pretrain(
            rival("small_cnn", 32, 0), "simclr", tiles(1), np.zeros((1, 0)), BUDGET, 0
        )
