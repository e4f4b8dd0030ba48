"""A linear classifier with its weights, against scikit-learn's own pipeline."""

import numpy as np
import pytest

from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_is_scikit_learns_on_standardised_vectors(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    labels = np.array(list("abcd"))[np.arange(120) % classes]
    vectors = generator.normal(size=(120, 6)) * [1, 5, 1, 1, 0.1, 1] + 3
    vectors[:, 0] += labels == "a"
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, class_weight="balanced"))
    decision = model.fit(vectors, labels).decision_function(vectors)
    logits = np.stack([-decision / 2, decision / 2], axis=1) if classes == 2 else decision
    targets = np.unique(labels, return_inverse=True)[1]
    own = logits[np.arange(120), targets]
    others = np.where(np.arange(classes) == targets[:, None], -np.inf, logits).max(axis=1)
    probe = fit_linear_classifier(vectors, labels, 0.3, 100)
    np.testing.assert_allclose(probe.margins(vectors, targets), own - others, atol=1e-6)
