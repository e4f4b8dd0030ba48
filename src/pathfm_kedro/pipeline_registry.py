"""The seven pipelines of the project, built for the cohort at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from kedro.pipeline import Pipeline

from pathfm_kedro.cohorts import harmonised_bases, read_cohort_plan
from pathfm_kedro.pipelines.embed.pipeline import create_pipeline as embed
from pathfm_kedro.pipelines.ingest.pipeline import create_pipeline as ingest
from pathfm_kedro.pipelines.inheritance.pipeline import create_pipeline as inheritance
from pathfm_kedro.pipelines.report.pipeline import create_pipeline as report
from pathfm_kedro.pipelines.retrieve.pipeline import create_pipeline as retrieve
from pathfm_kedro.pipelines.robustness.pipeline import create_pipeline as robustness
from pathfm_kedro.pipelines.tile.pipeline import create_pipeline as tile

#: measurements.<pipeline>.<experiment>
_PARTS_OF_AN_EXPERIMENT = 3

# Datasets are named <what>.<encoder> on purpose, and no dataset gets a namespace's prefix, so Kedro's
# advice against dots does not apply.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")


def register_pipelines() -> dict[str, Pipeline]:
    """Pipelines by name; ``__default__`` runs them all in the order of the data."""
    plan = read_cohort_plan()
    encoders = list(plan.encoders)
    controls = [name for name, entry in plan.encoders.items() if entry.get("role") == "control"]
    bases = harmonised_bases(plan.encoders)
    measured = {
        "retrieve": retrieve(encoders),
        "robustness": robustness(encoders, controls, bases, plan.parameters),
        "inheritance": inheritance(encoders),
    }
    named = {
        "ingest": ingest(plan.source),
        "tile": tile(),
        "embed": embed(encoders, bases),
        **measured,
        "report": report(_experiments(measured.values()), encoders),
    }
    return named | {"__default__": sum(named.values(), start=Pipeline([]))}


def _experiments(pipelines: Iterable[Pipeline]) -> list[str]:
    """Experiments that have a table of all encoders, and the calibration where there is one."""
    tables = [
        name.split(".")
        for pipeline in pipelines
        for name in sorted(pipeline.all_outputs())
        if name.startswith("measurements.")
    ]
    names = [parts[2] for parts in tables if len(parts) == _PARTS_OF_AN_EXPERIMENT]
    calibrated = any(parts[2].startswith("calibration_") for parts in tables)
    return names + (["calibration"] if calibrated else [])
