"""Where work runs: one job per slide, on the threads of this machine."""

from pathfm_kedro.engine.files import FileJob, FilePlan
from pathfm_kedro.engine.jobs import (
    EngineSettings,
    Outcome,
    ShardJob,
    ShardPlan,
    map_in_order,
    run_each,
    too_many_failed,
)

__all__ = [
    "EngineSettings",
    "FileJob",
    "FilePlan",
    "Outcome",
    "ShardJob",
    "ShardPlan",
    "map_in_order",
    "run_each",
    "too_many_failed",
]
