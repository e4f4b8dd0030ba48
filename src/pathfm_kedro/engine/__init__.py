"""Where work runs: one job per slide, on threads of this machine or on a Dask cluster."""

from pathfm_kedro.engine.cancelling import cancellable
from pathfm_kedro.engine.files import FileJob, FilePlan
from pathfm_kedro.engine.jobs import (
    FitCheckpoint,
    FitJob,
    ShardJob,
    ShardPlan,
    map_in_order,
    run_each,
)
from pathfm_kedro.engine.outcomes import Outcome
from pathfm_kedro.engine.settings import DaskSettings, EngineSettings
from pathfm_kedro.engine.slides_log import Note

__all__ = [
    "DaskSettings",
    "EngineSettings",
    "FileJob",
    "FilePlan",
    "FitCheckpoint",
    "FitJob",
    "Note",
    "Outcome",
    "ShardJob",
    "ShardPlan",
    "cancellable",
    "map_in_order",
    "run_each",
]
