"""Maximum mean discrepancy against brute force, and how often its null is left."""

import itertools

import numpy as np
import pytest

from pathfm_kedro.statistics.drift import drift, patient_kernel, smallest_p_value


def names(n, each, first):
    return np.repeat([f"{first}{i}" for i in range(n)], each)


def test_the_kernel_of_patients_is_the_mean_over_their_pairs_of_tiles():
    rng = np.random.default_rng(0)
    vectors, patients = rng.normal(size=(9, 4)), np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    found = patient_kernel(vectors, patients)
    squared = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
    own = np.random.default_rng(0)
    a, b = own.integers(9, size=(2, 20_000))
    width = np.median(squared[a, b][patients[a] != patients[b]])
    kernel = np.exp(-squared / (2 * width))
    expected = [
        [kernel[np.ix_(patients == p, patients == q)].mean() for q in range(3)] for p in range(3)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_patients_count_the_same_whatever_their_tiles():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 12, 3))
    once = drift(x, y, (names(12, 1, "p"), names(12, 1, "q")), 50)
    twice = drift(np.repeat(x, 3, axis=0), y, (names(12, 3, "p"), names(12, 1, "q")), 50)
    # The width is read from a sample of pairs, and is the only thing that may differ.
    assert twice.mmd2 == pytest.approx(once.mmd2, rel=0.1)


def test_a_shift_of_all_patients_is_found_and_chance_is_left_in_one_of_twenty():
    rng = np.random.default_rng(2)
    own, other = names(10, 4, "p"), names(10, 4, "q")
    left = 0
    for _ in range(200):
        levels = np.repeat(rng.normal(size=(20, 3)), 4, axis=0)
        vectors = levels + rng.normal(size=(80, 3))
        left += drift(vectors[:40], vectors[40:], (own, other), 99).p_value <= 0.05
    assert left <= 20  # 10 expected; more than 20 in one of 1,000 such tests
    shifted = vectors[40:] + 3
    assert drift(vectors[:40], shifted, (own, other), 199).p_value < 0.02


def test_the_same_patients_twice_are_compared_with_themselves():
    rng = np.random.default_rng(3)
    patients = names(12, 3, "p")
    x = np.repeat(rng.normal(size=(12, 4)) * 5, 3, axis=0) + rng.normal(size=(36, 4)) * 0.1
    paired = drift(x, x + 0.5, (patients, patients), 500)
    assert paired.paired
    assert paired.p_value < 0.01
    # Read as other patients, the difference between patients hides the shift.
    assert drift(x, x + 0.5, (patients, np.char.add("q", patients)), 500).p_value > 0.05
    assert drift(x, x, (patients, patients), 100).p_value == 1.0


def test_the_discrepancy_is_that_of_an_independent_kernel():
    """One tile a patient: the V-statistic of scikit-learn's kernel."""
    from sklearn.metrics.pairwise import rbf_kernel

    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(15, 4)), rng.normal(1, 1, size=(11, 4))
    found = drift(x, y, (names(15, 1, "p"), names(11, 1, "q")), 20).mmd2
    # The width is a median over a sample of pairs: read it off the same sample.
    every = np.concatenate([x, y])
    a, b = np.random.default_rng(0).integers(26, size=(2, 20_000))
    width = np.median(((every[a] - every[b]) ** 2).sum(axis=1)[a != b])
    xx, yy, xy = (rbf_kernel(*pair, 1 / (2 * width)) for pair in ((x, x), (y, y), (x, y)))
    assert found == pytest.approx(xx.mean() + yy.mean() - 2 * xy.mean())


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (2, 4), (3, 4), (4, 4)])
def test_the_smallest_p_value_is_that_of_all_splits(n, m):
    rng = np.random.default_rng(5)
    apart = np.concatenate([rng.normal(size=(n, 2)), rng.normal(40, 1, size=(m, 2))])
    kernel = patient_kernel(apart, np.arange(n + m))
    values = []
    for chosen in itertools.combinations(range(n + m), n):
        own = np.isin(np.arange(n + m), chosen)
        weights = np.where(own, 1 / n, -1 / m)
        values.append(weights @ kernel @ weights)
    reached = np.mean(np.array(values) >= values[0] - 1e-12)
    assert smallest_p_value(n, m, paired=False) == pytest.approx(reached)


def test_few_patients_show_nothing_and_say_so():
    patients = names(5, 3, "p")
    x = np.random.default_rng(6).normal(size=(15, 3))
    few = drift(x, x + 100, (patients, patients), 99)
    assert not few.can_be_shown
    assert not few.is_shown
    assert few.smallest_p == 2 / 2**5
    enough = drift(x, x + 100, (names(5, 3, "p"), names(5, 3, "q")), 999)
    assert enough.is_shown


def test_vectors_in_another_order_have_no_discrepancy():
    rng = np.random.default_rng(7)
    x, patients = rng.normal(size=(60, 200)), names(12, 5, "p")
    order = rng.permutation(60)
    found = drift(x, x[order], (patients, patients[order]), 50)
    assert (found.mmd2, found.p_value) == (0.0, 1.0)


def test_patients_partly_shared_are_refused():
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="1 of 2 and 2 patients are in both"):
        drift(x, x, (np.array(list("aabb")), np.array(list("bbcc"))))
    with pytest.raises(ValueError, match="fewer than two patients"):
        drift(x, x, (np.array(list("aaaa")), np.array(list("bbcc"))))
