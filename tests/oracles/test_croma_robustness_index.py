"""The robustness index equals that of the package croma on the same arrays."""

import itertools
import json

import pandas as pd
import polars as pl
import pytest
from croma import RI

from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    best_k,
    robustness_index_figures,
    robustness_index_statistics,
)
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from tests.oracles.cohorts import balanced_cohort

PARAMETERS = {
    "k_grid": [1, 3, 5, 7, 9, 11, 21, 31],
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
    "n_permutations": 5,
    "seed": 0,
}


def ours(slides, tiles, embeddings, design):
    asked = PARAMETERS | {"k_design": design}
    p = read_parameters(RobustnessIndex, "robustness_index", asked)
    statistics = robustness_index_statistics(slides, tiles, embeddings, p)
    k = best_k(statistics, design)
    figures = robustness_index_figures(statistics, {"k": k}, p)
    table = measure(figures, "robustness_index", "encoder")
    rows = [
        (json.loads(row["setting"]), row["value"])
        for row in table.filter(pl.col("metric") == "ri").iter_rows(named=True)
    ]
    return k, {setting["k"]: v for setting, v in rows if setting["design"] == design}


def theirs(slides, tiles, embeddings, design):
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
    features = embeddings.stack(embeddings.slide_ids)
    if design == "paired_2x2":
        parts = [
            manifest[manifest.label.isin(pair) & manifest.medical_center.isin(two)].assign(
                subset="-".join(pair + two)
            )
            for pair in itertools.combinations(sorted(manifest.label.unique()), 2)
            for two in itertools.combinations(sorted(manifest.medical_center.unique()), 2)
        ]
        manifest = pd.concat(parts)
        features = features[manifest.index.to_numpy()]
        manifest = manifest.reset_index(drop=True)
    shared = {"confounder_column": "medical_center", "evaluation_design": design}
    result = RI.compute(features, manifest, k_candidates=PARAMETERS["k_grid"], **shared)
    curve = RI.compute_curve(features, manifest, k_values=PARAMETERS["k_grid"], **shared)
    assert curve[result.k] == pytest.approx(result.value, abs=1e-12)
    return result.k, curve


@pytest.mark.parametrize("design", ["all", "paired_2x2"])
@pytest.mark.parametrize(("labels", "centers"), [(2, 2), (2, 3), (3, 3)])
def test_curve_and_chosen_k_equal_croma(labels, centers, design):
    data = balanced_cohort(labels, centers)
    k, curve = ours(*data, design)
    expected_k, expected = theirs(*data, design)
    assert curve.keys() == expected.keys()
    for each in curve:
        assert curve[each] == pytest.approx(expected[each], abs=1e-9)
    # With more than two labels votes can tie, which croma gives to the label met first in the
    # manifest and this project to the nearest neighbour's.
    if labels == 2 or design == "paired_2x2":
        assert k == expected_k
