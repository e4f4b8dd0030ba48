"""Kedro's session and context: the cohort known to all, versions pinned for reproduction."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.config import AbstractConfigLoader, OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.catalog_config_resolver import DEFAULT_RUNTIME_PATTERN, CatalogConfigResolver
from kedro.pipeline import Pipeline
from kedro.runner import ParallelRunner

from pathfm_kedro.cohorts import (
    CONF_VARIABLE,
    DEFAULT_COHORT,
    PIN_VARIABLE,
    RUNTIME_VARIABLE,
    difference_from_stages,
    naming_references,
    read_cohort_plan,
    refuse_braces,
    refuse_unknown_cohort,
    with_random_weights,
)
from pathfm_kedro.configuration import refuse_unknown_keys
from pathfm_kedro.engine.run_display import end_display
from pathfm_kedro.run_lock import cohort_lock
from pathfm_kedro.screen import log_only, prepare_screen
from pathfm_kedro.variants import expand_variants

logger = logging.getLogger(__name__)

#: By which the registry learns what a context was made with.
_SETTINGS = ("KEDRO_ENV", CONF_VARIABLE, RUNTIME_VARIABLE)
_registered_for: list[tuple[str | None, ...]] = []


class CohortSession(KedroSession):
    """A session that shows its run, and leaves the process's environment as it found it."""

    _environment_before: Mapping[str, str | None] | None = None
    _prepared: KedroContext | None = None

    def load_context(self) -> KedroContext:
        """The context; the first one's making changes the environment, see :class:`CohortContext`."""
        if self._prepared is not None:
            context, self._prepared = self._prepared, None
            return context
        if self._environment_before is None:
            self._environment_before = {name: os.environ.get(name) for name in _SETTINGS}
        return super().load_context()

    def _get_config_loader(self) -> AbstractConfigLoader:
        cohort = self.store.get("env") or DEFAULT_COHORT
        refuse_unknown_cohort(cohort, Path(self._conf_source))
        with naming_references(cohort):
            return super()._get_config_loader()

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run pipelines: progress, warnings and verdicts on the screen, all else in the run's log."""
        arguments = inspect.signature(KedroSession.run).bind(self, *args, **kwargs).arguments
        put_back = prepare_screen(self._project_path)
        try:
            _refuse_processes(arguments.get("runner"))
            context = self._prepared = self.load_context()
            root = self._project_path / context.config_loader["globals"]["root"]
            with cohort_lock(root, context.env or DEFAULT_COHORT):
                _compare_with_stages(context)
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
        for name, value in (self._environment_before or {}).items():
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


def _compare_with_stages(context: KedroContext) -> None:
    """Encoders that `dvc repro` does not know would be missed by its later stages only."""
    if context._runtime_params:
        # Such encoders are meant for this run alone.
        return
    plan = read_cohort_plan(context.env, str(context.config_loader.conf_source))
    if plan.left_out:
        logger.warning(
            "left out, since they need pixels and this cohort has features and no slides: %s",
            ", ".join(plan.left_out),
        )
    difference = difference_from_stages(
        context.project_path, context.env or DEFAULT_COHORT, plan.encoders
    )
    if difference and os.environ.get(PIN_VARIABLE):
        raise ValueError(difference)
    if difference:
        logger.warning("%s", difference)


def every_pipeline() -> dict[str, Pipeline]:
    """All pipelines of the cohort by name, whichever were asked for."""
    requested = pipelines._requested_pipelines
    pipelines.set_requested(None)
    everything = dict(pipelines)
    pipelines.set_requested(requested)
    return everything


def _set_up_registry(settings: Mapping[str, str | None]) -> None:
    """Export what a context was made with, and let the pipelines be registered anew if that changed."""
    os.environ.update({name: value for name, value in settings.items() if value})
    effective = tuple(os.environ.get(name) for name in _SETTINGS)
    if _registered_for != [effective]:
        requested = pipelines._requested_pipelines
        pipelines.configure(pipelines._pipelines_module)
        pipelines.set_requested(requested)
        _registered_for[:] = [effective]


class CohortContext(KedroContext):
    """A context that gives the pipeline registry its cohort, and whose catalog can be pinned.

    Pipelines have a part for each encoder of the cohort, and the registry knows no context: the choice
    of cohort, configuration folder and parameters travels in the process's environment. Every session
    makes its context before it asks for pipelines, Kedro's own commands and kedro-viz's alike.

    Where ``PATHFM_PIN_VERSION`` is set (`dvc repro` sets it), every versioned dataset is loaded from
    and saved to that version; otherwise Kedro's timestamps apply.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        parameters = json.dumps(self._runtime_params or {}, sort_keys=True, default=str)
        source = str(self.config_loader.conf_source)
        _set_up_registry(dict(zip(_SETTINGS, (self.env, source, parameters), strict=True)))
        refuse_unknown_cohort(self.env or DEFAULT_COHORT, Path(source))
        refuse_braces(self.project_path, "the project's folder")
        refuse_braces(self.config_loader["globals"]["root"], "root in globals.yml")
        if isinstance(self.config_loader, OmegaConfigLoader):
            refuse_unknown_keys(self.config_loader)
            for kind in ("parameters", "catalog"):
                # Kept, since Kedro reads the files anew each time that it asks: some ten times a run.
                self.config_loader[kind] = self.config_loader[kind]
            given = self.config_loader["parameters"]
            if isinstance(given.get("encoders"), Mapping):
                given["encoders"] = expand_variants(with_random_weights(given["encoders"]))

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

    def _get_parameters(self) -> dict[str, Any]:
        """Parameters as datasets; of words the blocks alone, which nothing reads in parts."""
        # Kedro would look for the library of each value, of which there are thousands.
        return {
            name: MemoryDataset(value, copy_mode="deepcopy")
            for name, value in super()._get_parameters().items()
            if not (name.startswith("params:words_") and "." in name)
        }

    def _versioned_datasets(self) -> list[str]:
        """Names of all versioned datasets of all pipelines, those of factories included."""
        # The pattern of datasets in memory is given, so that Kedro does not warn of its absence.
        resolver = CatalogConfigResolver(
            self.config_loader["catalog"], default_runtime_patterns=DEFAULT_RUNTIME_PATTERN
        )
        names = {name for pipeline in every_pipeline().values() for name in pipeline.datasets()}
        configured = {name: resolver.resolve_pattern(name) for name in sorted(names)}
        return [name for name, entry in configured.items() if entry and entry.get("versioned")]
