"""Bags pooled to vectors: by mean, maximum, or attention that never saw the asking patient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pathfm_kedro.encoders.architectures import AttentionClassifier
from pathfm_kedro.encoders.heads import AttentionModel, AttentionSettings, pool_bags
from pathfm_kedro.statistics.figures import Undefined

SETTINGS = AttentionSettings(
    folds=3, components=6, hidden=8, steps=40, learning_rate=0.05, weight_decay=0.001
)


def ragged_bags(n=24, d=6, seed=0, planted=True):
    """Bags of unequal length, of which one instance alone shows the label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    bags = []
    for label in labels:
        bag = rng.normal(size=(rng.integers(4, 9), d))
        if planted:
            bag[rng.integers(len(bag)), : d // 2] += 6 * (2 * label - 1)
        bags.append(bag.astype(np.float32))
    return bags, np.array(["x", "y"])[labels], np.array([f"p{i // 2}" for i in range(n)])


def test_mean_and_maximum_are_those_of_each_bag():
    bags, _, _ = ragged_bags()
    for kind, function in (("mean", np.mean), ("max", np.max)):
        ((asking, vectors),) = pool_bags(kind, bags).by_model()
        assert asking.tolist() == list(range(len(bags)))
        np.testing.assert_allclose(vectors, [function(bag, axis=0) for bag in bags], rtol=1e-5)


def attention_by_hand(weights, bag):
    """Ilse et al. 2018, equation 8, in plain loops."""
    scores = []
    for u in bag:
        units = [np.tanh(sum(v * x for v, x in zip(row, u, strict=True))) for row in weights["V"]]
        scores.append(sum(w * unit for w, unit in zip(weights["w"], units, strict=True)))
    exponents = [np.exp(score) for score in scores]
    return [value / sum(exponents) for value in exponents]


def test_attention_of_padded_bags_is_that_of_the_formula():
    bags, _, _ = ragged_bags(6)
    model = AttentionClassifier(6, 5, 2, seed=3)
    with torch.no_grad():
        model.score += torch.linspace(-1, 1, 5, dtype=torch.float64)
    padded, present = torch.zeros(6, 9, 6, dtype=torch.float64), torch.zeros(6, 9, dtype=torch.bool)
    for row, bag in enumerate(bags):
        padded[row, : len(bag)], present[row, : len(bag)] = torch.from_numpy(bag), True
    found = model.attention(padded, present).detach().numpy()
    weights = {"V": model.hidden.detach().numpy().T, "w": model.score.detach().numpy()}
    for row, bag in zip(found, bags, strict=True):
        np.testing.assert_allclose(row[: len(bag)], attention_by_hand(weights, bag), rtol=1e-9)
        assert not row[len(bag) :].any()


def test_padding_changes_nothing():
    """A bag's logits are those that it has alone."""
    bags, _, _ = ragged_bags(4)
    model = AttentionClassifier(6, 5, 3, seed=0)
    longest = max(map(len, bags))
    padded = torch.stack(
        [torch.from_numpy(np.pad(bag, ((0, longest - len(bag)), (0, 0)))) for bag in bags]
    ).double()
    present = torch.tensor([[i < len(bag) for i in range(longest)] for bag in bags])
    together = model(padded, present)
    for row, bag in zip(together, bags, strict=True):
        alone = torch.from_numpy(bag).double()[None]
        torch.testing.assert_close(model(alone, torch.ones(1, len(bag), dtype=bool))[0], row)


def test_attention_looks_where_the_label_shows():
    bags, labels, patients = ragged_bags(60)
    pooled = pool_bags("attention", bags, labels, patients, SETTINGS)
    for number, model in enumerate(pooled.models):
        held_out = np.flatnonzero(pooled.asked_by == number)
        planted = [int(np.abs(bags[row][:, :3].sum(axis=1)).argmax()) for row in held_out]
        weights = model.__self__.weights
        given = [weights[row][at] for row, at in zip(held_out, planted, strict=True)]
        equal = [1 / len(bags[row]) for row in held_out]
        # One label is known by its instance, the other by the lack of it.
        assert np.mean(given) > 2 * np.mean(equal)


def test_attention_of_no_steps_is_the_mean():
    bags, labels, patients = ragged_bags()
    ((_, mean),) = pool_bags("mean", bags).by_model()
    settings = replace(SETTINGS, steps=0)
    for _, vectors in pool_bags("attention", bags, labels, patients, settings).by_model():
        np.testing.assert_allclose(vectors, mean, rtol=1e-5, atol=1e-6)


def test_every_bag_asks_a_model_that_never_saw_its_patient():
    """Replacing the asking patients' bags and labels leaves their model as it is."""
    bags, labels, patients = ragged_bags()
    pooled = pool_bags("attention", bags, labels, patients, SETTINGS)
    asked = np.zeros(len(bags), int)
    for number, model in enumerate(pooled.models):
        own = model.__self__
        held_out = np.flatnonzero(pooled.asked_by == number)
        asked[held_out] += 1
        assert not set(patients[held_out]) & set(patients[own.train])
        changed = [bag * 3 if row in held_out else bag for row, bag in enumerate(bags)]
        targets = own.targets.copy()
        targets[held_out] = 1 - targets[held_out]
        other = AttentionModel(changed, targets, own.train, SETTINGS, 0)
        for row in own.train:
            np.testing.assert_array_equal(other.weights[row], own.weights[row])
    assert asked.tolist() == [1] * len(bags)


def test_a_fit_repeats_to_the_last_bit():
    bags, labels, patients = ragged_bags()
    first, second = (
        [v for _, v in pool_bags("attention", bags, labels, patients, SETTINGS).by_model()]
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_attention_lacks_is_named():
    bags, labels, patients = ragged_bags(4)
    with pytest.raises(Undefined, match=r"2 patients .*lower retrieval\.attention\.folds"):
        pool_bags("attention", bags, labels, patients, SETTINGS, where="retrieval.attention")
    with pytest.raises(ValueError, match="give labels, patients"):
        pool_bags("attention", bags)
