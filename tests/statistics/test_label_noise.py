"""A known share of labels is wrong, and no more; spans of clouds are compared whatever their axes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm_kedro.statistics.label_noise import flipped
from pathfm_kedro.statistics.subspaces import PrincipalAxes, principal_angles

RNG = np.random.default_rng(0)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 5),
    st.sampled_from([0.05, 0.1, 0.3, 0.45]),
    st.sampled_from(["symmetric", "center"]),
    st.integers(0, 9),
)
def test_the_share_is_exact_and_labels_stay_labels(n_labels, rate, kind, seed):
    labels = np.arange(400) % n_labels
    centers = np.arange(400) // 100
    given = flipped(labels, n_labels, centers, kind, rate, seed)
    wrong = given != labels
    assert abs(wrong.sum() - rate * 400) <= 2  # each of four centers rounds
    assert set(given) <= set(range(n_labels))


def test_what_is_wrong_at_a_rate_is_wrong_at_a_higher_one():
    labels, centers = RNG.integers(3, size=300), RNG.integers(4, size=300)
    for kind in ("symmetric", "center"):
        few, many = (flipped(labels, 3, centers, kind, rate, 1) for rate in (0.1, 0.3))
        own = few != labels
        assert (many[own] == few[own]).all()
        assert (many != labels).sum() > own.sum()


def test_centers_differ_in_how_much_and_err_in_one_way_each():
    labels, centers = np.arange(1200) % 3, np.arange(1200) // 3 % 4
    given = flipped(labels, 3, centers, "center", 0.2, 0)
    shares = sorted(float((given != labels)[centers == c].mean()) for c in range(4))
    np.testing.assert_allclose(shares, [0.08, 0.16, 0.24, 0.32], atol=0.005)
    for center in range(4):
        for label in range(3):
            rows = (centers == center) & (labels == label) & (given != labels)
            assert len(set(given[rows])) == 1


def test_one_label_cannot_be_wrong():
    with pytest.raises(ValueError, match="1 label"):
        flipped(np.zeros(4, np.int64), 1, np.zeros(4), "symmetric", 0.3, 0)


def test_angles_are_those_of_planes_and_no_axes_matter():
    """Columns of a rotation by a known angle span a plane at that angle."""
    basis = np.linalg.qr(RNG.normal(size=(40, 3)) - RNG.normal(size=(40, 3)).mean(axis=0))[0]
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]  # centred and orthonormal
    first = basis[:, :2] * [3.0, 2.0]
    turned = np.stack(
        [basis[:, 0], np.cos(0.5) * basis[:, 1] + np.sin(0.5) * basis[:, 2]], axis=1
    ) * [3.0, 2.0]
    np.testing.assert_allclose(
        principal_angles(first, turned, 2), np.degrees([0.0, 0.5]), atol=1e-4
    )
    axes = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    wide = np.pad(turned, ((0, 0), (0, 3))) @ axes + 7
    np.testing.assert_allclose(principal_angles(first, wide, 2), np.degrees([0.0, 0.5]), atol=1e-4)


def test_axes_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    seen, other = RNG.normal(size=(60, 6)) @ RNG.normal(size=(6, 6)), RNG.normal(size=(9, 6))
    pca = PCA(3, whiten=False).fit(seen)
    own = PrincipalAxes.fit(seen)
    np.testing.assert_allclose(np.abs(own.top(other, 3)), np.abs(pca.transform(other)), atol=1e-9)
    np.testing.assert_allclose(np.cov(own.whitened(seen).T, bias=True), np.eye(6), atol=1e-9)
