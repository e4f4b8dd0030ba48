"""Two starts under growing budgets: compared with each other, with random weights."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.pipelines.inheritance.arm_statistics import arm_shard
from pathfm_kedro.pipelines.inheritance.initialisation import (
    Initialisation,
    initialisation_figures,
    initialisation_statistics,
    plan_initialisation,
)
from pathfm_kedro.statistics.figures import measure
from tests.pipelines.inheritance.test_pretext_tasks import (
    ENGINE,
    SETTINGS,
    Shards,
    planted,
    pool,
    row,
    tiles_of,
)

INITIALISATION = Initialisation(
    **{**SETTINGS, "encoder": "e", "budgets": (0.5, 1.0), "n_seeds": 1, "epochs": 4}
)


def test_starts_and_budgets_are_compared_with_each_other_and_with_random_weights():
    table, p, rng = pool(), INITIALISATION, np.random.default_rng(0)
    own = planted(table, rng)
    knows, nothing = own[arm_shard("simclr", 0)], own[arm_shard("morphology", 0)]
    arms = {f"inherited-{share}.0": knows for share in ("0", "0.5", "1")}
    arms |= {"from_scratch-0.0": own[arm_shard("random", 0)], "from_scratch-0.5.0": nothing}
    arms |= {"from_scratch-1.0": knows}
    found = measure(
        initialisation_figures(initialisation_statistics(table, tiles_of(table), Shards(arms), p), p),
        "initialisation", "pretrained_arms", (), "arm",
    )  # fmt: skip

    def difference(start, budget, against):
        at = {"start": start, "budget": budget, "against": against, "of": "label"}
        return row(found, "difference", **at)

    assert difference("inherited", 0.0, "random_frozen")["ci_low"] > 0
    assert difference("inherited", 0.5, "from_scratch")["ci_low"] > 0
    assert difference("inherited", 1.0, "from_scratch")["value"] == 0
    assert difference("from_scratch", 1.0, "smallest_budget")["ci_low"] > 0


def test_two_starts_share_all_but_their_weights():
    block = {**SETTINGS, "encoder": "e", "budgets": [1.0], "n_seeds": 1, "seed": 3, "epochs": 2}
    entries = {"e": {"model": "package:efficientnet_lite0", "runtime": "eager"}}
    table = pool(role="pretrain")
    plan = plan_initialisation(table, tiles_of(table), entries, ENGINE, Initialisation(**block))
    assert [job.slide_id for job in plan.jobs] == [
        "inherited-0.3", "inherited-1.3", "from_scratch-0.3", "from_scratch-1.3",
    ]  # fmt: skip
    assert [job.epochs for job in plan.jobs] == [0, 2, 0, 2]
    scratch = plan.jobs[-1].network
    assert (scratch.pretrained, scratch.seed) == (False, 3)
    other = Initialisation(**{**block, "encoder": "x"})
    with pytest.raises(ValueError, match=r"initialisation\.encoder is 'x'.*it has e"):
        plan_initialisation(table, tiles_of(table), entries, ENGINE, other)


def test_too_few_tiles_to_train_on_are_said_and_end_no_run():
    p, table, entries = INITIALISATION, pool(), {"e": {"model": "package:efficientnet_lite0"}}
    tiles = tiles_of(table)
    assert not plan_initialisation(table, tiles, entries, ENGINE, p).jobs
    statistics = initialisation_statistics(table, tiles, Shards({}), p)
    found = measure(initialisation_figures(statistics, p), "i", "a", (), "arm")
    assert found["value"].null_count() == found.height
    assert found["reason"].str.contains("too few to pretrain on: add patients").all()


def test_no_encoder_leaves_the_initialisation_out():
    block = {**SETTINGS, "encoder": None, "budgets": [1.0]}
    p = Initialisation(**block)
    assert not plan_initialisation(pool(), tiles_of(pool()), {}, ENGINE, p).jobs
    none = initialisation_statistics(pool(), Shards({}), Shards({}), p)
    (figure,) = initialisation_figures(none, p)
    assert "initialisation.encoder is null" in measure([figure], "i", "a", (), "arm")["reason"][0]


def test_an_encoder_that_the_cohort_leaves_out_leaves_the_initialisation_out():
    """It is the default of conf/base, and its null in a cohort's entries is no mistake."""
    p, table = INITIALISATION, pool(role="pretrain")
    tiles = tiles_of(table)
    assert not plan_initialisation(table, tiles, {"e": None, "x": {}}, ENGINE, p).jobs
    none = initialisation_statistics(table, tiles, Shards({}), p)
    (figure,) = initialisation_figures(none, p)
    reason = measure([figure], "i", "a", (), "arm")["reason"][0]
    assert "initialisation.encoder is 'e', which the cohort leaves out: name" in reason
