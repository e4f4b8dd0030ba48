"""Kedro's session and context: the cohort known to all, versions pinned for reproduction."""

from __future__ import annotations

import inspect
import json
import os
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.io import DataCatalog
from kedro.io.catalog_config_resolver import DEFAULT_RUNTIME_PATTERN, CatalogConfigResolver
from kedro.pipeline import Pipeline
from kedro.runner import ParallelRunner

from pathfm_kedro.cohorts import CONF_VARIABLE, PIN_VARIABLE, RUNTIME_VARIABLE
from pathfm_kedro.configuration import refuse_unknown_keys
from pathfm_kedro.engine.run_display import end_display
from pathfm_kedro.screen import log_only, prepare_screen


class CohortSession(KedroSession):
    """A session that tells the pipeline registry which cohort it is about."""

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> KedroSession:
        """Create the session and export its environment.

        Kedro registers the pipelines before it makes a context, and the encoders' namespaces depend
        on the cohort, so the choice travels in the process's environment.
        """
        told = inspect.signature(KedroSession.create).bind(*args, **kwargs).arguments
        wanted = {
            "KEDRO_ENV": told.get("env"),
            CONF_VARIABLE: told.get("conf_source"),
            RUNTIME_VARIABLE: json.dumps(told.get("runtime_params") or {}, sort_keys=True),
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update({name: str(value) for name, value in wanted.items() if value})
        if before != {name: os.environ.get(name) for name in wanted}:
            pipelines.configure(pipelines._pipelines_module)
        session = super().create(*args, **kwargs)
        session._environment_before = before  # type: ignore[attr-defined]
        return session

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run pipelines: progress, warnings and verdicts on the screen, all else in the run's log."""
        told = inspect.signature(KedroSession.run).bind(self, *args, **kwargs).arguments
        put_back = prepare_screen(self._project_path)
        try:
            _refuse_processes(told.get("runner"))
            return super().run(*args, **kwargs)
        except Exception as error:
            log_only(f"the run ended: {error}", error)
            raise
        finally:
            end_display()
            put_back()

    def close(self) -> None:
        """Close the session and leave the process's environment as it was."""
        super().close()
        before: dict[str, str | None] = getattr(self, "_environment_before", {})
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refuse_processes(runner: object) -> None:
    if isinstance(runner, ParallelRunner):
        raise ValueError(
            "ParallelRunner cannot run this project: it sends steps to processes, and here each step "
            "hands out its own work per slide. Leave --runner out: engine.workers says how many cores "
            "are used (all by default), engine.scheduler whether on this machine or on a cluster"
        )


def every_pipeline() -> dict[str, Pipeline]:
    """All pipelines of the cohort by name, whichever were asked for."""
    requested = pipelines._requested_pipelines
    pipelines.set_requested(None)
    everything = dict(pipelines)
    pipelines.set_requested(requested)
    return everything


class CohortContext(KedroContext):
    """A context whose catalog can be pinned to one version.

    Where ``PATHFM_PIN_VERSION`` is set (`dvc repro` sets it), every versioned dataset is loaded from
    and saved to that version; otherwise Kedro's timestamps apply.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.config_loader, OmegaConfigLoader):
            refuse_unknown_keys(self.config_loader)

    def _get_catalog(
        self,
        catalog_class: type = DataCatalog,
        save_version: str | None = None,
        load_versions: dict[str, str] | None = None,
    ) -> Any:
        pinned = os.environ.get(PIN_VARIABLE)
        if pinned:
            save_version = pinned
            load_versions = dict.fromkeys(self._versioned_datasets(), pinned) | (
                load_versions or {}
            )
        return super()._get_catalog(catalog_class, save_version, load_versions)

    def _versioned_datasets(self) -> list[str]:
        """Names of all versioned datasets of all pipelines, those of factories included."""
        # The pattern of datasets held in memory is given, so that Kedro does not warn of its absence.
        resolver = CatalogConfigResolver(
            self.config_loader["catalog"], default_runtime_patterns=DEFAULT_RUNTIME_PATTERN
        )
        names = {name for pipeline in every_pipeline().values() for name in pipeline.datasets()}
        configured = {name: resolver.resolve_pattern(name) for name in sorted(names)}
        return [name for name, entry in configured.items() if entry and entry.get("versioned")]
