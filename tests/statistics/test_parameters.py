"""Parameters are read once; what is wrong with them is told by key, value and mend."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.inheritance.pipeline import EXPERIMENTS as INHERITANCE
from pathfm_kedro.pipelines.retrieve.pipeline import EXPERIMENTS as RETRIEVE
from pathfm_kedro.pipelines.robustness.pipeline import EXPERIMENTS, INDEX, MARGINS
from pathfm_kedro.statistics.bootstrap import bootstrap_weights
from pathfm_kedro.statistics.cross_validation import ProbeSettings
from pathfm_kedro.statistics.figures import Criterion
from pathfm_kedro.statistics.parameters import (
    STRICT,
    Calibration,
    ExperimentParameters,
    read_parameters,
)
from tests.conftest import base_parameters


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Toy(ExperimentParameters):
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    probe: ProbeSettings
    share: float = 0.5


ALL = [INDEX, MARGINS, *EXPERIMENTS, *RETRIEVE, *INHERITANCE]
GOOD = {"k": [5, 10], "probe": {"folds": 3, "C": 1.0}, "draws": 100}


def read(**changes) -> Toy:
    return read_parameters(Toy, "toy", GOOD | changes)


def test_a_block_becomes_frozen_values():
    p = read(criteria=[{"metric": "kept", "at": {"k": 5}, "above": 0.8}])
    assert (p.k, p.probe.folds, p.draws, p.seed, p.share) == ((5, 10), 3, 100, 0, 0.5)
    assert p.criteria == (Criterion("kept", 0.8, "above", {"k": 5}),)
    assert p.calibration is None
    with pytest.raises(FrozenInstanceError):
        p.draws = 5


def test_weights_are_those_of_the_bootstrap():
    np.testing.assert_array_equal(read(seed=3).weights(12), bootstrap_weights(12, 100, 3))


def test_a_calibration_is_read_with_the_block():
    p = read(calibration={"called": "colour", "nuisance": "stain_statistics", "set": {"k": [5]}})
    assert p.calibration == Calibration(
        called="colour", nuisance="stain_statistics", set={"k": [5]}
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kk": 5}, r"toy\.kk: no such parameter \(5\); known are .*draws, k, probe"),
        ({"k": [5, 0]}, r"toy\.k\.1 is 0: .* greater than or equal to 1"),
        ({"k": []}, r"toy\.k is \[\]: .* at least 1"),
        ({"k": "ten"}, r"toy\.k is 'ten'"),
        ({"probe": {"C": 1.0}}, r"toy\.probe\.folds is missing: write it"),
        ({"probe": {"folds": 3, "C": 1.0, "fold": 2}}, r"toy\.probe\.fold: no such parameter"),
        ({"draws": 0}, r"toy\.draws is 0: .* greater than or equal to 1"),
        ({"draws": None}, r"toy\.draws is None"),
        ({"criteria": [{"metric": "kept"}]}, r"toy\.criteria\.0 is .* must read {metric"),
        ({"calibration": {"nuisance": "noise"}}, r"toy\.calibration\.called is missing"),
    ],
)
def test_what_cannot_be_is_told_with_its_place(changes, told):
    with pytest.raises(ValueError, match=told):
        read(**changes)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"toy\.draws is .*; toy\.k\.0 is 0.*; toy\.x: no such"):
        read(k=[0], draws="many", x=1)


@pytest.mark.parametrize(
    "x", [INDEX, MARGINS, *EXPERIMENTS, *RETRIEVE, *INHERITANCE], ids=lambda x: x.name
)
def test_the_defaults_of_every_experiment_can_be_read(x):
    block = base_parameters()[x.name]
    p = x.read(block)
    assert p.draws >= 1000
    for entry in block["criteria"]:
        assert Criterion.parse(entry) in p.criteria
