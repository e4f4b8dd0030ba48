"""NMTune's terms are its formulas, and the head learns what frozen vectors hold."""

import numpy as np
import torch
from torch.nn import functional

from pathfm_kedro.encoders.nmtune import (
    NMTuneSettings,
    nmtune_losses,
    predicted,
    strong_view,
    tuned_classifier,
)

RNG = np.random.default_rng(0)


def test_terms_are_the_formulas_of_the_source():
    tuned, weak = RNG.normal(size=(12, 7)), RNG.normal(size=(6, 7))
    own = nmtune_losses(torch.from_numpy(tuned), torch.from_numpy(weak))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (tuned[6:], weak)]
    np.testing.assert_allclose(own["consistency"], ((unit[0] - unit[1]) ** 2).mean())
    covariance = np.cov(tuned.T)
    off = covariance[~np.eye(7, dtype=bool)]
    np.testing.assert_allclose(own["covariance"], (off**2).sum() / 7)
    values = np.linalg.svd(tuned, compute_uv=False)
    np.testing.assert_allclose(own["dominance"], -(values / values.sum())[:5].mean())


def test_gradients_are_finite_on_vectors_of_low_rank():
    tuned = torch.ones(8, 5, requires_grad=True)
    sum(nmtune_losses(tuned, torch.ones(4, 5)).values()).backward()
    assert torch.isfinite(tuned.grad).all()


def test_the_head_learns_and_a_seed_gives_it_again():
    labels = np.arange(80) % 2
    vectors = (RNG.normal(size=(80, 2, 8)) + 2 * labels[:, None, None]).astype(np.float32)
    settings = NMTuneSettings(epochs=6, batch=16, views=2)
    heads = [tuned_classifier(vectors, vectors, labels, 2, settings, 3) for _ in range(2)]
    found = [predicted(head, vectors[:, 0]) for head in heads]
    assert (found[0] == labels).mean() > 0.9
    assert (found[0] == found[1]).all()
    logits = heads[0](torch.from_numpy(vectors[:, 0]))
    assert functional.cross_entropy(logits, torch.from_numpy(labels)) < np.log(2)


def test_a_strong_view_changes_color_and_erases_a_square():
    tiles = np.full((4, 20, 20, 3), 100, np.uint8)
    tiles[:, ::2] = 140
    made = strong_view(tiles, np.random.default_rng(0))
    assert made.shape == tiles.shape
    assert made.dtype == np.uint8
    assert len(np.unique(made.reshape(4, -1, 3).mean(axis=1), axis=0)) == 4


def test_networks_begin_alike_whatever_other_threads_draw():
    from concurrent.futures import ThreadPoolExecutor

    from pathfm_kedro.encoders.architectures import ResidualClassifier

    def weights(seed):
        if seed % 2:  # what trains meanwhile seeds, draws and restores
            vectors = np.zeros((8, 1, 4), np.float32)
            tuned_classifier(vectors, vectors, np.arange(8) % 2, 2, NMTuneSettings(epochs=2), 0)
        return ResidualClassifier(64, 4, 3, seed).mlp[0].weight.detach().numpy()

    alone = [weights(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(weights, range(8)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
