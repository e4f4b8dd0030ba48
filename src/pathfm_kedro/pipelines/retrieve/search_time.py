"""Seconds of a search: measured once on this machine and recorded, or not at all.

Times are no part of what is computed: a record is made where ``cost_trial.measured`` allows it and
found again by later runs with the same vectors, settings, software and processor. Where it is false,
the record says so, and every figure made of it is not applicable.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass as parameters_dataclass

from pathfm_kedro.encoders.trial import processor_of
from pathfm_kedro.engine.versions import package_versions
from pathfm_kedro.pipelines.retrieve.families.registry import (
    FAMILIES,
    TOKEN_FAMILIES,
    known_families,
)
from pathfm_kedro.pipelines.retrieve.families.settings import Count, FamilySettings
from pathfm_kedro.pipelines.retrieve.search import ScopeName, Vote
from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.mosaic import read_mosaic
from pathfm_kedro.statistics.named_index import INDEX_TYPES, one_search_thread
from pathfm_kedro.statistics.parameters import STRICT, read_parameters
from pathfm_kedro.statistics.repeats import mean_of_repeats

SECONDS = "seconds_per_query"
NOT_MEASURED = (
    "time was not measured: cost_trial.measured is false for this cohort, so that no machine's speed "
    "stands in its results; set it to true in the cohort's parameters_embed.yml"
)
NO_SEARCH_ALONE = (
    "what it learns on other patients and what it looks up are one step here: the time of a search "
    "alone cannot be measured"
)
NO_SLIDES = "no slide was embedded, so that there is nothing to search"
#: Families that compare vectors and learn nothing.
TIMED = (
    "mean", "max", "median_min", "median_min_symmetric", "barcode", "maxsim", "maxsim_pooled",
    "chamfer",
)  # fmt: skip
#: Neighbours that a timed index is asked for, as many as vote.
_NEIGHBOURS = 5
#: Raised with any change of how times are measured.
_REVISION = "1"


def _of_tiles(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each once, none of which compares tokens, whose bytes are not counted here."""
    listed = known_families(names)
    for name in listed:
        if name in TOKEN_FAMILIES:
            raise ValueError(f"what '{name}' takes is not counted: leave it out")
    return listed


@parameters_dataclass(frozen=True, config=STRICT, kw_only=True)
class SearchCost(FamilySettings):
    """Parameters of the experiment; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    families
        As of ``retrieval``, whose macro-F1 is shown.
    scope, vote
        At which it is read.
    queries
        Slides that are searched in a turn.
    turns
        How often they are: intervals come from turns.
    """

    families: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_of_tiles)]
    scope: ScopeName
    vote: Vote
    queries: Count
    turns: Count


@dataclass(frozen=True)
class SearchTrial:
    """Times of the searches of one encoder, not measured yet.

    Attributes
    ----------
    measured
        Whether time is measured.
    turns
        How often each search is repeated.
    described
        What the times depend on.
    n_queries
        Of a turn.
    searches
        By name, each a whole turn.
    """

    measured: bool
    turns: int
    described: Mapping[str, str]
    n_queries: int
    searches: Mapping[str, Callable[[], object]]

    def key(self) -> dict[str, str]:
        """What the record depends on."""
        key = {"revision": _REVISION, "measured": str(self.measured)}
        return key | dict(self.described) if self.measured else key

    def record(self) -> dict[str, Any]:
        """Seconds per query of each turn, by search; or why there are none."""
        problem = NOT_MEASURED if not self.measured else "" if self.n_queries else NO_SLIDES
        if problem:
            return {"key": self.key(), "problem": problem, "seconds": {}}
        with one_search_thread():
            seconds = {name: self._turns(search) for name, search in self.searches.items()}
        return {
            "key": self.key(),
            "problem": "",
            "seconds": seconds,
            "processor": processor_of("cpu"),
        }

    def _turns(self, search: Callable[[], object]) -> list[float]:
        search()  # the first loads libraries
        found = []
        for _ in range(self.turns):
            start = time.perf_counter()
            search()
            found.append((time.perf_counter() - start) / self.n_queries)
        return found


def plan_search_times(*inputs: Any) -> SearchTrial:
    """The searches that are timed.

    Parameters
    ----------
    inputs
        Slides and tiles tables, embeddings; an index of each type; ``search_cost`` and
        ``cost_trial.measured`` of the parameters.
    """
    slides, tiles, embeddings, *indexes, parameters, measured = inputs
    p = read_parameters(SearchCost, "search_cost", parameters)
    if not measured:
        return SearchTrial(False, p.turns, {}, 0, {})
    mosaic = read_mosaic(slides, tiles, embeddings)
    n = len(mosaic.starts)
    rows = np.unique(np.linspace(0, n - 1, min(n, p.queries)).astype(np.int64))
    queries = mosaic.select(rows)
    searches: dict[str, Callable[[], object]] = {
        f"family {family}": partial(FAMILIES[family], queries, mosaic, p) for family in TIMED
    }
    means = queries.mean().astype(np.float32) if len(rows) else queries.vectors
    for kind, index in zip(INDEX_TYPES, indexes, strict=True):
        searches[f"index {kind}"] = partial(index.nearest, means, _NEIGHBOURS)
    described = {
        "vectors": hashlib.blake2b(mosaic.vectors.tobytes(), digest_size=16).hexdigest(),
        "sizes": hashlib.blake2b(mosaic.starts.tobytes(), digest_size=16).hexdigest(),
        "settings": repr(p),
        "packages": str(package_versions(("faiss-cpu", "numpy"))),
        "processor": processor_of("cpu"),
    }
    return SearchTrial(True, p.turns, described, len(rows), searches)


def seconds_of(record: Mapping[str, Any], name: str) -> Value:
    """Seconds per query of a search, with the interval over turns on this machine.

    Raises
    ------
    Undefined
        With the reason why they were not measured.
    """
    if record["problem"]:
        raise Undefined(record["problem"])
    if name not in record["seconds"]:
        raise Undefined(NO_SEARCH_ALONE)
    turns = record["seconds"][name]
    remark = f"one thread of {record['processor']}; the interval is over turns on this machine"
    return Value(Estimate(*mean_of_repeats(turns), len(turns), 0), remark=remark)
