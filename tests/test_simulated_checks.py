"""The simulations behind docs/error_rates.md still run, and judge what the audit judges."""

import sys

import pytest

from tests.conftest import PROJECT, base_parameters


@pytest.fixture(scope="module")
def simulations():
    sys.path.insert(0, str(PROJECT / "benchmarks"))
    try:
        from simulated_checks import SIMULATIONS
    finally:
        sys.path.remove(str(PROJECT / "benchmarks"))
    return SIMULATIONS


@pytest.fixture(scope="module")
def rows(simulations):
    """Of one cohort of each simulation, seen by the encoder that is named last."""
    return {
        name: each.cohort(list(each.encoders)[-1], each.sizes[0], seed=0)
        for name, each in simulations.items()
    }


def test_every_simulation_measures_a_cohort(rows):
    empty = [name for name, found in rows.items() if not found["value"].is_not_null().any()]
    assert not empty


def test_every_criterion_of_the_configuration_is_simulated(rows):
    judged = {
        (row["experiment"], row["metric"].partition(", ")[0], row["threshold"])
        for found in rows.values()
        for row in found.drop_nulls("threshold").to_dicts()
    }
    blocks = [(name, block) for name, block in base_parameters().items() if isinstance(block, dict)]
    asked = {
        (name, c["metric"], c["above"] if "above" in c else c["below"])
        for name, block in blocks
        for c in block.get("criteria") or ()
    }
    assert asked - judged == set()
