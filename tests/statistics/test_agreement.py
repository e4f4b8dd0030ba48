"""Two sets of vectors of the same tiles: equal, nearly so, or made from wrongly prepared pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as photographs

from pathfm_kedro.statistics.agreement import agreement, explanation


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_equal_vectors_give_1_0_1():
    found = agreement(normal(60, 12), normal(60, 12))
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert (found.difference, found.neighbours, found.kind) == (0, 1, "equal")


def three_nearest(space, i):
    cosines = space @ space[i] / np.linalg.norm(space, axis=1)
    return set([j for j in np.argsort(-cosines).tolist() if j != i][:3])


def test_figures_of_plain_python():
    a, b = normal(30, 5), normal(30, 5, seed=1)
    found = agreement(a, b, k=3)
    cosines = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    differences = sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True))
    spread = sum(((y - b.mean(axis=0)) ** 2).sum() for y in b)
    kept = [len(three_nearest(a, i) & three_nearest(b, i)) / 3 for i in range(30)]
    assert found.cosine == pytest.approx(np.mean(cosines))
    assert found.difference == pytest.approx(np.sqrt(differences / spread))
    assert found.neighbours == pytest.approx(np.mean(kept))
    assert found.chance == 3 / 29


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100), st.floats(0.1, 50))
def test_a_turn_of_the_space_or_another_unit_changes_no_figure(seed, scale):
    a, b = normal(40, 6, seed=seed), normal(40, 6, seed=seed + 1)
    turn = np.linalg.qr(normal(6, 6, seed=seed + 2))[0]
    plain, turned = agreement(a, b), agreement(scale * a @ turn, scale * b @ turn)
    assert turned.cosine == pytest.approx(plain.cosine)
    assert turned.difference == pytest.approx(plain.difference)
    assert turned.neighbours == pytest.approx(plain.neighbours)


def test_float16_is_rounding():
    vectors = normal(80, 32) + 3
    found = agreement(vectors.astype(np.float16), vectors)
    assert found.kind == "equal"
    assert "but for rounding" in explanation(found)


def test_vectors_that_have_nothing_to_do_with_ours_lie_at_chance():
    found = agreement(normal(400, 16), normal(400, 16, seed=1))
    assert found.neighbours == pytest.approx(found.chance, abs=0.01)
    assert found.difference == pytest.approx(np.sqrt(2), abs=0.05)
    assert found.kind == "different"


def test_normalised_vectors_are_told_from_wrong_ones():
    ours = normal(50, 8) * np.linspace(1, 9, 50)[:, None]
    found = agreement(ours / np.linalg.norm(ours, axis=1, keepdims=True), ours)
    assert found.kind == "scaled"
    assert "normalised or scaled" in explanation(found)


def test_rows_in_another_order():
    ours = normal(50, 8)
    found = agreement(ours[np.random.default_rng(3).permutation(50)], ours)
    assert found.kind == "reordered"
    assert "in different orders" in explanation(found)


def test_other_dimensions_have_neighbours_only():
    ours = normal(60, 8)
    apart = np.linalg.qr(normal(12, 8))[0]
    found = agreement(ours @ apart.T, ours)
    assert (found.cosine, found.difference) == (None, None)
    assert found.neighbours == pytest.approx(1)
    assert "have 12 numbers where ours have 8" in explanation(found)


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_few_tiles_leave_neighbours_out(rows):
    ours = normal(rows, 4)
    found = agreement(ours, ours)
    assert found.neighbours is None
    assert "too few" in found.reason
    assert found.kind == ("undecided" if rows == 1 else "equal")


def test_vectors_without_spread():
    same = np.ones((30, 4))
    found = agreement(same, same)
    assert (found.difference, found.neighbours, found.kind) == (None, None, "undecided")
    assert "the same vector" in explanation(found)


def test_rows_that_do_not_match():
    with pytest.raises(ValueError, match=r"\[3, 2\] and ours \[4, 2\]"):
        agreement(normal(3, 2), normal(4, 2))


# --- a real encoder, wrongly fed


@pytest.fixture(scope="module")
def tiles():
    """Tiles of a stained section: [49, 64, 64, 3]."""
    section = photographs.immunohistochemistry()
    corners = [(y, x) for y in range(0, 448, 64) for x in range(0, 448, 64)]
    return np.stack([section[y : y + 64, x : x + 64] for y, x in corners])


@pytest.fixture(scope="module")
def embed():
    import timm
    import torch

    from pathfm_kedro.encoders.loaders.package import lite0_state_dict

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(lite0_state_dict(model.state_dict()))
    model.reset_classifier(0)

    model.eval()

    def vectors(pixels, mean=0.5, std=0.5):
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return model((batch - mean) / std).numpy()

    return vectors


def test_the_same_pixels_in_other_batches_are_equal(tiles, embed):
    apart = np.concatenate([embed(tiles[:10]), embed(tiles[10:])])
    assert agreement(apart, embed(tiles)).kind == "equal"


@pytest.mark.parametrize("fault", ["no mean and std", "BGR", "another mean and std", "turned"])
def test_wrong_preprocessing_is_found(fault, tiles, embed):
    wrong = {
        "no mean and std": lambda: embed(tiles, mean=0, std=1),
        "another mean and std": lambda: embed(tiles, mean=0.45, std=0.225),
        "BGR": lambda: embed(tiles[..., ::-1]),
        "turned": lambda: embed(np.rot90(tiles, axes=(1, 2))),
    }[fault]()
    found = agreement(wrong, embed(tiles))
    assert found.kind == "different"
    assert found.difference > 0.2
    assert "the preprocessing is (mean and std, order of colours" in explanation(found)
