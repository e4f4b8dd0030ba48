"""What views are held against: distances to other patients, and neighbours among clean tiles."""

import numpy as np

from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.perturbation import between_patient_distance, nearest_references


def test_median_distance_needs_another_patient_of_the_label():
    rows = unit(np.random.default_rng(0).normal(size=(7, 3)))
    patients, labels = np.array([0, 0, 1, 1, 2, 3, 4]), np.array([0, 0, 0, 0, 0, 0, 1])
    found = between_patient_distance(rows, patients, labels)
    assert np.isnan(found[6])
    others = [
        [2, 3, 4, 5],
        [2, 3, 4, 5],
        [0, 1, 4, 5],
        [0, 1, 4, 5],
        [0, 1, 2, 3, 5],
        [0, 1, 2, 3, 4],
    ]
    expected = [np.median(1 - rows[i] @ rows[js].T) for i, js in enumerate(others)]
    np.testing.assert_allclose(found[:6], expected)


def test_nearest_reference_tiles_are_of_other_patients_and_ties_go_by_index():
    rows = np.ones((5, 2)) / np.sqrt(2)
    found = nearest_references(rows, rows, np.array([0, 0, 1, 1, 2]), 2)
    assert found.tolist() == [[2, 3], [2, 3], [0, 1], [0, 1], [0, 1]]
