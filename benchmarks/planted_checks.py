"""What knows the truth, a good encoder, and one with a fault, for every judged check; see power.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from simulated_changes import attacked
from simulated_checks import SIMULATIONS
from simulated_cohorts import Asked, Generator, read

from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial


def attacked_pool(patients: int, generator: Generator, **effects: float) -> list[Asked]:
    """Adversarial changes of as many patients as conf/base attacks."""
    return attacked(min(patients, read(Adversarial, "adversarial").max_tiles), generator, **effects)


@dataclass(frozen=True)
class Planted:
    """Encoders of one kind of cohort, of which it is known what they must get.

    Attributes
    ----------
    measured
        ``(patients, generator, **effects) -> figures``.
    truth, good, fault
        Effects: of what knows the truth as the phantom's control does, of a good encoder that does not,
        and of one with the fault that the checks are for.
    checks
        Metrics that the fault is planted for; all that are judged where not given.
    """

    measured: Callable[..., Sequence[Asked]]
    truth: Mapping[str, Any]
    good: Mapping[str, Any]
    fault: Mapping[str, Any]
    checks: tuple[str, ...] = ()

    @classmethod
    def of(cls, simulation: str, good: str, fault: str, *checks: str) -> Planted:
        """Encoders of :data:`SIMULATIONS`, by name."""
        known = SIMULATIONS[simulation]
        effects = [known.encoders[name].effects for name in ("perfect", good, fault)]
        return cls(known.measured, *effects, checks)

    def cohort(self, role: str, patients: int, seed: int) -> pl.DataFrame:
        """Judged rows of one cohort seen by one of the encoders."""
        generator = np.random.default_rng([seed, patients])
        found = self.measured(patients, generator, **getattr(self, role))
        rows = pl.concat(each.rows() for each in found).filter(stratum="all")
        judged = rows.drop_nulls("threshold")
        return judged.filter(pl.col("metric").is_in(self.checks)) if self.checks else judged


#: By the checks that they are for.
PLANTED = {
    "index and margins": Planted.of("index and margins", "knows the label", "follows the center"),
    "clusters": Planted.of("clusters", "knows the label", "follows the center"),
    "rotation": Planted.of("rotation", "invariant but for little", "keeps nothing"),
    "stain and scanner": Planted.of(
        "stain and scanner", "invariant but for little", "keeps nothing"
    ),
    "cue conflict": Planted.of("cue conflict", "knows the label", "follows the stain"),
    "field of view": Planted.of(
        "field of view", "knows the label in both", "sees the label in wide fields alone"
    ),
    "same tissue": Planted.of("same tissue", "moves a little", "keeps nothing"),
    "adversarial": replace(
        Planted.of("adversarial", "loses little", "loses all"), measured=attacked_pool
    ),
    "retrieval": Planted.of(
        "retrieval", "knows the label in both", "blind in one organ", "f1_range_over_organs"
    ),
    "several vectors": Planted.of(
        "several vectors", "knows the label in every tile", "label in one tile, not in the mean"
    ),
    "wider mosaics": Planted.of(
        "wider mosaics", "knows the label in both", "sees the label in wide fields alone"
    ),
    "features brought": Planted.of("features brought", "rounded", "of another encoder"),
}
