"""Kedro's settings of this project."""

from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS as CONFIG_LOADER_ARGS
from pathfm_kedro.context import CohortContext, CohortSession
from pathfm_kedro.hooks import RunHooks, SizeHooks, VectorHooks, VersionHooks
from pathfm_kedro.sizes import SizedConfigLoader

CONTEXT_CLASS = CohortContext
SESSION_CLASS = CohortSession
CONFIG_LOADER_CLASS = SizedConfigLoader
HOOKS = (VectorHooks(), VersionHooks(), SizeHooks(), RunHooks())
#: Usage is not reported to anyone.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry",)
