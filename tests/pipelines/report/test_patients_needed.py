"""So many patients as a card asks for decide a check in 80 of 100 cohorts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.report.cards import cards_of, patients_needed
from pathfm_kedro.pipelines.report.controls import CONTROL_SCHEMA
from pathfm_kedro.pipelines.report.findings import collect_findings, critical_distance
from pathfm_kedro.pipelines.report.verdicts import verdict_by_encoder
from pathfm_kedro.pipelines.report.words import Words
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    robustness_index_figures,
    robustness_index_statistics,
)
from pathfm_kedro.statistics.bootstrap import bootstrap_weights, ratio_estimate
from pathfm_kedro.statistics.figures import Criterion, Figure, Value, measure
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.parameters import read_parameters
from tests.in_memory import InMemory

#: Checks of an audit beside the one that is looked at, all of them open.
OTHERS = 19
PROVENANCE = {"encoders": {"e": {"role": "encoder", "model": "timm:x"}}}
CONTROLS = pl.DataFrame(schema=CONTROL_SCHEMA)
Drawn = Callable[[np.random.Generator, int], Estimate]


def mean_share(rng: np.random.Generator, n: int) -> Estimate:
    """A mean over patients whose shares pile up at 1, as of kept neighbours; it is 0.8."""
    shares = rng.beta(1.6, 0.4, n)
    return ratio_estimate(shares, np.ones(n), bootstrap_weights(n, 500, 0), n)


def index(rng: np.random.Generator, n: int) -> Estimate:
    """The robustness index minus its null of patients of two labels at two centers."""
    of_label, of_center = np.random.default_rng(3).standard_normal((2, 2, 8))
    rows, shards = [], {}
    for i in range(n):
        label, center = i % 2, i // 2 % 2
        signal = 0.5 * of_label[label] + 0.2 * of_center[center] + rng.standard_normal(8)
        shards[f"s{i:04d}"] = (signal + rng.standard_normal((2, 8))).astype(np.float32)
        own = {"slide_id": f"s{i:04d}", "patient_id": f"s{i:04d}", "organ": "o"}
        rows.append(own | {"label": f"L{label}", "center": f"C{center}"})
    names = [f"{name}-{i}" for name in shards for i in range(2)]
    tiles = pl.DataFrame({"tile_id": names, "slide_id": np.repeat(list(shards), 2)})
    block = {"k_grid": [5], "k": 5, "min_patients_per_cell": 2, "min_tiles_per_cell": 2}
    more = {"max_tiles": 5000, "draws": 200, "n_permutations": 2}
    p = read_parameters(RobustnessIndex, "robustness_index", block | more)
    statistics = robustness_index_statistics(pl.DataFrame(rows), tiles, InMemory(shards), p)
    figures = robustness_index_figures(statistics, {"k": 5}, p)
    value = next(f for f in figures if f.metric == "ri_minus_null").compute()
    assert isinstance(value, Value)
    return value.estimate


def findings_of(estimate: Estimate, threshold: float) -> pl.DataFrame:
    """Findings of an audit of many checks, of which only the first could be decided."""
    still = Estimate(0.5, 0.4, 0.6, 99, 20)
    figures = [Figure("x", lambda: estimate)] + [
        Figure("other", lambda: still, {"i": i}) for i in range(OTHERS)
    ]
    criteria = [Criterion("x", threshold, "above"), Criterion("other", 0.5, "above")]
    table = measure(figures, "looked_at", "e", criteria)
    return collect_findings(table, CONTROLS, PROVENANCE, {"alpha": 0.05}, {})


def share_decided(drawn: Drawn, n: int, threshold: float, cohorts: int) -> float:
    verdicts = [
        findings_of(drawn(np.random.default_rng(seed), n), threshold).filter(metric="x")["verdict"][
            0
        ]
        for seed in range(cohorts)
    ]
    return float(np.mean([verdict in ("pass", "fail") for verdict in verdicts]))


def asked_for(drawn: Drawn, n: int, threshold: float, cohorts: int) -> int:
    """Patients that the card asks for where the figure is what it is on average, and as uncertain."""
    found = [drawn(np.random.default_rng(1000 + seed), n) for seed in range(cohorts)]
    value, low, high = (
        float(np.mean([getattr(e, end) for e in found])) for end in ("value", "ci_low", "ci_high")
    )
    findings = findings_of(Estimate(value, low, high, n, n), threshold)
    row = findings.filter(metric="x").row(0, named=True)
    assert row["verdict"] == "inconclusive"
    return patients_needed(row, critical_distance(findings, 0.05))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drawn", "threshold", "n"),
    [(mean_share, 0.74, 24), (mean_share, 0.88, 24), (mean_share, 0.92, 12), (index, 0.0, 24)],
)
def test_so_many_patients_decide_a_check_in_80_of_100_cohorts(
    drawn: Drawn, threshold: float, n: int
) -> None:
    patients = asked_for(drawn, n, threshold, 30)
    assert patients > n
    cohorts = 100 if drawn is mean_share else 30
    # 0.8 less two standard errors of the simulation; and not several times too many.
    assert share_decided(drawn, patients, threshold, cohorts) >= 0.8 - 2 * (0.16 / cohorts) ** 0.5
    assert share_decided(drawn, patients // 3, threshold, cohorts // 2) < 0.8


def test_every_check_that_its_interval_leaves_open_says_how_many_patients_settle_it() -> None:
    """Whatever the experiment is called: cards know none by name."""
    findings = findings_of(Estimate(0.6, 0.45, 0.75, 99, 20), 0.5)
    words = Words.read({})
    verdicts = verdict_by_encoder(findings, CONTROLS, {}, PROVENANCE)
    (card,) = cards_of(findings, verdicts, CONTROLS, {"alpha": 0.05}, words)
    undecided = dict(card.lists)["Open"]
    assert len(undecided) == 1 + OTHERS
    told = ("patients would settle it", "too near to it for any cohort")
    assert all(any(words in line.figure for words in told) for line in undecided)
    assert "(20 now)" in undecided[-1].figure or "(20 now)" in undecided[0].figure
