"""The seven pipelines of the project, built for the cohort at hand."""

from __future__ import annotations

import warnings

from kedro.pipeline import Pipeline

from pathfm_kedro.cohorts import harmonised_bases, read_cohort_plan
from pathfm_kedro.pipelines.embed.pipeline import create_pipeline as embed
from pathfm_kedro.pipelines.ingest.pipeline import create_pipeline as ingest
from pathfm_kedro.pipelines.inheritance.pipeline import create_pipeline as inheritance
from pathfm_kedro.pipelines.report.pipeline import create_pipeline as report
from pathfm_kedro.pipelines.retrieve.pipeline import create_pipeline as retrieve
from pathfm_kedro.pipelines.robustness.pipeline import create_pipeline as robustness
from pathfm_kedro.pipelines.tile.pipeline import create_pipeline as tile

# Datasets are named <what>.<encoder> on purpose, and no dataset gets a namespace's prefix, so Kedro's
# advice against dots does not apply.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")


def register_pipelines() -> dict[str, Pipeline]:
    """Pipelines by name; ``__default__`` runs them all in the order of the data."""
    plan = read_cohort_plan()
    controls = [name for name, entry in plan.encoders.items() if entry.get("role") == "control"]
    bases = harmonised_bases(plan.encoders)
    experiments = {
        "retrieve": retrieve(list(plan.encoders)),
        "robustness": robustness(list(plan.encoders), controls, bases),
        "inheritance": inheritance(list(plan.encoders)),
    }
    measured = sorted(
        name
        for pipeline in experiments.values()
        for name in pipeline.outputs()
        if name.startswith("measurements.")
    )
    named = {
        "ingest": ingest(plan.source),
        "tile": tile(),
        "embed": embed(list(plan.encoders), bases),
        **experiments,
        "report": report(list(plan.encoders), measured),
    }
    return named | {"__default__": sum(named.values(), start=Pipeline([]))}
