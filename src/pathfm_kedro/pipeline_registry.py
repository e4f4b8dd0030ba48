"""The seven pipelines of the project, built for the cohort at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from kedro.pipeline import Pipeline

from pathfm_kedro.cohorts import (
    CohortPlan,
    CohortTiles,
    harmonised_bases,
    read_cohort_plan,
    seeds_of_rivals,
    shows_same_tissue,
    subgroups_of,
    tiles_of_cohort,
)
from pathfm_kedro.mitigations import mitigated_from
from pathfm_kedro.pipelines.embed.pipeline import create_pipeline as embed
from pathfm_kedro.pipelines.ingest.pipeline import create_pipeline as ingest
from pathfm_kedro.pipelines.inheritance.pipeline import EXPERIMENTS as INHERITANCE
from pathfm_kedro.pipelines.inheritance.pipeline import create_pipeline as inheritance
from pathfm_kedro.pipelines.report.pipeline import create_pipeline as report
from pathfm_kedro.pipelines.retrieve.pipeline import EXPERIMENTS as RETRIEVE
from pathfm_kedro.pipelines.retrieve.pipeline import create_pipeline as retrieve
from pathfm_kedro.pipelines.robustness.pipeline import EVERY as ROBUSTNESS
from pathfm_kedro.pipelines.robustness.pipeline import create_pipeline as robustness
from pathfm_kedro.pipelines.tile.pipeline import create_pipeline as tile
from pathfm_kedro.variants import splits_of_rivals
from pathfm_kedro.wiring import NO_SLIDES, Experiment, TileGrids

#: Why an experiment on pixels has no figure of an encoder.
_NO_ENCODER = "needs pixels: of this encoder there are vectors in files, and not the encoder itself"
#: measurements.<pipeline>.<experiment>
_PARTS_OF_AN_EXPERIMENT = 3

# Datasets are named <what>.<encoder> on purpose, and no dataset gets a namespace's prefix, so Kedro's
# advice against dots does not apply.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")


def register_pipelines() -> dict[str, Pipeline]:
    """Pipelines by name; ``__default__`` runs them all in the order of the data."""
    return dict(_pipelines_of(read_cohort_plan()))


# Kedro asks for them several times in a run, and the plan is the same as long as no file changes.
@lru_cache(maxsize=2)
def _pipelines_of(plan: CohortPlan) -> Mapping[str, Pipeline]:
    encoders = list(plan.encoders)
    controls = [name for name, entry in plan.encoders.items() if entry.get("role") == "control"]
    bases, seeds = harmonised_bases(plan.encoders), seeds_of_rivals(plan.encoders)
    # Rivals are audited on some of the patients only: they have no say in what holds for all.
    aside = [*controls, *(name for name in seeds if name not in controls)]
    splits = splits_of_rivals(plan.encoders)
    tiles = tiles_of_cohort(plan)
    grids = _grids(plan, tiles, bases)
    mitigated = mitigated_from(plan.encoders)
    measured = {
        "retrieve": retrieve(encoders, aside, grids, bases, splits, mitigated),
        "robustness": robustness(
            encoders,
            aside,
            bases,
            plan.parameters,
            grids=grids,
            same_as=tiles.same_as,
            same_tissue=shows_same_tissue(plan),
            splits=splits,
            subgroups=bool(subgroups_of(plan)),
            mitigated=mitigated,
        ),
        "inheritance": inheritance(
            encoders,
            aside,
            grids,
            bases,
            plan.parameters,
            plan.parameters["adaptation"]["encoders"],
            splits,
            mitigated,
        ),
    }
    named = {
        "ingest": ingest(plan.source),
        "tile": tile(tiles.at, tiles.sizes, grids),
        "embed": embed(encoders, bases, seeds, tiles.features, grids),
        **measured,
        "report": report(
            _experiments(measured.values()), encoders, without_slides=grids.without_slides
        ),
    }
    return named | {"__default__": Pipeline(list(named.values()))}


def _grids(plan: CohortPlan, tiles: CohortTiles, bases: Mapping[str, str]) -> TileGrids:
    """Which tiles each encoder has vectors of, and why some cannot be shown pixels."""
    without_slides = plan.source == "features"
    reasons = {
        name: NO_SLIDES if without_slides else _NO_ENCODER
        for name in plan.encoders
        if without_slides or name in tiles.features or bases.get(name) in tiles.features
    }
    return TileGrids(tiles.grids, reasons, without_slides)


def experiments() -> Iterator[tuple[str, Experiment]]:
    """Pipeline and line of contents of every experiment of encoders with statistics of its own."""
    by_pipeline = {"retrieve": RETRIEVE, "robustness": ROBUSTNESS, "inheritance": INHERITANCE}
    return ((name, x) for name, listed in by_pipeline.items() for x in listed)


def _experiments(pipelines: Iterable[Pipeline]) -> list[str]:
    """Experiments that have a table of all encoders, and the calibration where there is one."""
    tables = [
        name.split(".")
        for pipeline in pipelines
        for name in sorted(pipeline.all_outputs())
        if name.startswith("measurements.")
    ]
    # Each pipeline compares encoders: one section.
    names = list(dict.fromkeys(p[2] for p in tables if len(p) == _PARTS_OF_AN_EXPERIMENT))
    calibrated = any(parts[2].startswith("calibration_") for parts in tables)
    return names + (["calibration"] if calibrated else [])
