"""A claim is decided by a figure only where a verdict could rest on it."""

from __future__ import annotations

import pytest

from pathfm_kedro.pipelines.report.claims import ClaimCell, claims_of
from pathfm_kedro.pipelines.report.words import Words
from pathfm_kedro.statistics.measurements import Estimate, measurement, measurement_table
from tests.pipelines.report.conftest import WORDS

#: Probing beats fine-tuning by more than the claim says, with the whole interval.
ABOVE = {"value": 0.4, "ci_low": 0.2, "ci_high": 0.6, "n": 128}


def cell(n_patients: int = 16, caveat: str = "") -> ClaimCell:
    row = measurement(
        experiment="adaptation",
        encoder="alpha",
        metric="linear_minus_tuned",
        setting={"arm": "full", "tested": "in_domain"},
        estimate=Estimate(**ABOVE, n_patients=n_patients),
        caveat=caveat,
    )
    claims = claims_of(measurement_table([row]), {"alpha": "encoder"}, Words.read(WORDS))
    (claim,) = (c for _, own in claims for c in own if c.title.startswith("Linear probing beats"))
    return claim.rows[0].cells[0]


def test_a_figure_without_a_caveat_decides() -> None:
    assert cell().held == "held"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"caveat": "1 trial is no search"}, "1 trial is no search"),
        ({"n_patients": 7}, "7 patients"),
    ],
)
def test_what_no_verdict_may_rest_on_decides_no_claim(changes, why) -> None:
    found = cell(**changes)
    assert found.held == "undecided"
    assert why in found.why
