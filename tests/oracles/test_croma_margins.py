"""CRoMa, its lower tail and MaRI equal those of the package croma on the same arrays."""

import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from croma import CRoMa, MaRI

from pathfm_kedro.pipelines.robustness.margin_statistics import index_and_margin_statistics
from pathfm_kedro.pipelines.robustness.margins import (
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_statistics,
)
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from tests.oracles.cohorts import balanced_cohort

GRID = [1, 3, 5, 7, 9, 11, 21, 31]
M = [5, 1, 3]
PARAMETERS = {
    "k_grid": GRID,
    "designs": ["all", "paired_2x2"],
    "distance": "cosine",
    "exclude": "patient",
    "subsamples": 1,
    "max_tiles": 10_000,
    "max_tiles_per_pair": 10_000,
    "max_pairs": None,
    "min_patients_per_cell": 1,
    "min_tiles_per_cell": 1,
    "draws": 20,
    "n_permutations": 3,
    "seed": 0,
}
MARGINS = {"m": M, "sampled_queries": 100, "draws": 20, "n_permutations": 3, "seed": 0}


def ours(slides, tiles, embeddings, design):
    parameters = PARAMETERS | {"k_design": design}
    counts, margins = index_and_margin_statistics(slides, tiles, embeddings, parameters, MARGINS)
    chosen = choose_k(parameters, encoder=counts)
    p = read_parameters(RobustnessMargins, "robustness_margins", MARGINS)
    table = measure(robustness_margins_figures(margins, chosen, p), "robustness_margins", "encoder")
    found = {}
    for row in table.iter_rows(named=True):
        setting = json.loads(row["setting"])
        if setting["design"] == design and row["stratum"] == "all":
            key = setting.get("m", ("k", setting.get("k")))
            found[row["metric"], key] = row["value"]
    return chosen["per_encoder"]["encoder"], found


def as_manifest(slides, tiles, embeddings, design):
    """croma's inputs, in float64: it computes distances in the features' own type."""
    manifest = (
        tiles.join(slides, on="slide_id", maintain_order="left")
        .select(
            sample_id="tile_id",
            image_path="slide_id",
            label="label",
            group_id="patient_id",
            medical_center="center",
        )
        .to_pandas()
    )
    features = embeddings.stack(embeddings.slide_ids).astype(np.float64)
    if design == "all":
        return features, manifest
    parts = [
        manifest[manifest.label.isin(pair) & manifest.medical_center.isin(two)].assign(
            subset="-".join(pair + two)
        )
        for pair in itertools.combinations(sorted(manifest.label.unique()), 2)
        for two in itertools.combinations(sorted(manifest.medical_center.unique()), 2)
    ]
    manifest = pd.concat(parts)
    return features[manifest.index.to_numpy()], manifest.reset_index(drop=True)


@pytest.mark.parametrize("design", ["all", "paired_2x2"])
@pytest.mark.parametrize(("labels", "centers"), [(2, 2), (2, 3), (3, 3)])
def test_margins_and_mari_equal_croma(labels, centers, design):
    data = balanced_cohort(labels, centers)
    k, found = ours(*data, design)
    features, manifest = as_manifest(*data, design)
    shared = {"confounder_column": "medical_center", "evaluation_design": design}
    theirs = CRoMa.compute(features, manifest, m=M, **shared)
    for m in M:
        assert found["croma", m] == pytest.approx(theirs[m].value, abs=1e-9)
    assert found["croma_lower_tail", M[0]] == pytest.approx(theirs[M[0]].ltm_alpha, abs=1e-9)
    assert found["confounder_dominant", M[0]] == pytest.approx(theirs[M[0]].f0, abs=1e-12)
    mean = theirs[M[0]].sample_values.mean()
    assert found["croma_mean", M[0]] == pytest.approx(mean, abs=1e-9)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tau = MaRI.recommend_tau(features, manifest, k=k, **shared)
        curve = MaRI.compute_curve(features, manifest, k_values=GRID, tau=tau, **shared)
        result = MaRI.compute(features, manifest, k_candidates=GRID, **shared)
    assert found["mari_temperature", ("k", k)] == pytest.approx(tau, abs=1e-9)
    for each, value in curve.items():
        assert found["mari", ("k", each)] == pytest.approx(value, abs=1e-9)
    # With more than two labels votes can tie, which croma gives to the label met first in the
    # manifest and this project to the nearest neighbour's: then another k may be chosen.
    if labels == 2:
        assert result.k == k
        assert found["mari", ("k", k)] == pytest.approx(result.value, abs=1e-9)


def test_counts_are_those_of_the_search_without_margins():
    data = balanced_cohort(3, 2)
    parameters = PARAMETERS | {"k_design": "all"}
    counts, _ = index_and_margin_statistics(*data, parameters, MARGINS)
    p = read_parameters(RobustnessIndex, "robustness_index", parameters)
    assert counts.equals(robustness_index_statistics(*data, p))
