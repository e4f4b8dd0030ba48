"""The training loop: the same bytes always, also after it was interrupted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pathfm_kedro.encoders.training import History, InMemory, Recipe, fit, weights_of


class KilledError(RuntimeError):
    pass


class KilledAfter(InMemory):
    """A checkpoint whose process dies after some epochs."""

    def __init__(self, epochs):
        super().__init__()
        self.left = epochs

    def save(self, tensors, text):
        if not self.left:
            raise KilledError
        self.left -= 1
        super().save(tensors, text)


def task(seed=0):
    """Points of two labels; a network with dropout, so that an epoch draws at random."""
    rng = np.random.default_rng(seed)
    truth = torch.from_numpy(rng.integers(2, size=64))
    points = torch.from_numpy(rng.normal(size=(64, 4)).astype(np.float32)) + 2 * truth[:, None]
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 2),
    )

    def batches(epoch):
        order = np.random.default_rng([seed, epoch]).permutation(64)
        return [(points[part], truth[part]) for part in np.split(order, 4)]

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def validate(model):
        assert not model.training
        return float((model(points).argmax(dim=1) == truth).float().mean())

    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    return SimpleNamespace(
        model=model, optimiser=optimiser, batches=batches, loss=loss, validate=validate
    )


def run(t, recipe, checkpoint=None, judged=False):
    validate = t.validate if judged else None
    history = fit(t.model, t.optimiser, t.batches, t.loss, recipe, validate, checkpoint)
    return weights_of(t.model), history


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_fit_repeats_to_the_last_bit_whatever_was_drawn_before():
    first, history = run(task(), Recipe(5, 1, "cosine"))
    torch.rand(7)
    second, again = run(task(), Recipe(5, 1, "cosine"))
    assert_equal(first, second)
    assert history == again
    assert history.losses[-1] < history.losses[0]


def test_another_seed_is_another_fit():
    first, _ = run(task(), Recipe(2, 1))
    second, _ = run(task(), Recipe(2, 2))
    assert any((first[name] != second[name]).any() for name in first)


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("done", [1, 4])
def test_a_fit_that_was_killed_ends_in_the_same_weights(done, judged):
    recipe = Recipe(6, 0, "cosine")
    whole, history = run(task(), recipe, judged=judged)
    checkpoint = KilledAfter(done)
    with pytest.raises(KilledError):
        run(task(), recipe, checkpoint, judged)
    checkpoint.left = 100
    epochs = []
    resumed = task()
    own = resumed.batches
    resumed.batches = lambda epoch: epochs.append(epoch) or own(epoch)
    weights, again = run(resumed, recipe, checkpoint, judged)
    assert epochs == list(range(done, 6))
    assert_equal(whole, weights)
    assert history == again


def test_the_weights_of_the_best_epoch_are_kept():
    scores = iter([0.1, 0.5, 0.5, 0.2, 0.1, 0.9])
    t, seen = task(), []

    def validate(model):
        seen.append(weights_of(model)["0.weight"].copy())
        return next(scores)

    t.validate = validate
    weights, history = run(t, Recipe(10, 0, patience=3), judged=True)
    assert history.best_epoch == 2
    assert len(history.losses) == 5
    np.testing.assert_array_equal(weights["0.weight"], seen[1])


def test_a_loss_that_is_not_finite_ends_the_fit():
    t = task()
    t.loss = lambda model, batch: model(batch[0]).sum() * float("nan")
    with pytest.raises(ValueError, match="the loss of epoch 1 is nan: lower the learning rate"):
        run(t, Recipe(2, 0))


def test_no_epoch_leaves_the_model_as_it_was():
    t = task()
    before = {name: value.copy() for name, value in weights_of(t.model).items()}
    weights, history = run(t, Recipe(0, 0))
    assert_equal(before, weights)
    assert history == History()


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="give constant or cosine"):
        Recipe(1, 0, "linear").rate(0)
