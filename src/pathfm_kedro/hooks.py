"""Around a run: vectors are compared with their tables, progress and verdicts are shown."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, CatalogProtocol, MemoryDataset
from kedro.io.core import Version
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from pathfm_kedro.cohorts import DEFAULT_COHORT, PIN_VARIABLE
from pathfm_kedro.context import every_pipeline
from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.engine.progress import terminal
from pathfm_kedro.engine.run_display import RunDisplay, end_display, show
from pathfm_kedro.screen import RUN_LOG, log_only, say

if TYPE_CHECKING:
    import polars as pl

    from pathfm_kedro.estimate.sizes import CohortSize
    from pathfm_kedro.estimate.speed import Speed

#: In the order of the data.
PIPELINES = ("ingest", "tile", "embed", "retrieve", "robustness", "inheritance", "report")
#: Keys of an encoder's entry that decide nothing about its vectors.
_NOT_OF_THE_VECTORS = frozenset({"name", "role", "batch_size", "sha256", "same_as"})
_ENTRY = "params:encoders."


class VectorHooks:
    """Refuse vectors that were made from other tiles, slides or encoders than those at hand.

    A person may cut tiles anew, replace a slide's file or change an encoder's entry, and run an
    experiment without embedding again; rows would then be paired by position alone. Whatever the
    family, vectors are compared with every table of tiles that the node gets with them, against the
    slides table of the cohort, against the encoder's entry in the parameters, and against the
    encoder's own embeddings.
    """

    @hook_impl
    def before_node_run(self, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        """Let the shards that this node makes remember the encoder's entry."""
        entries = [name for name in node.inputs if name.startswith(_ENTRY)]
        if len(entries) != 1:
            return
        encoder = entries[0].removeprefix(_ENTRY)
        for name in node.outputs:
            dataset = catalog[name]
            if isinstance(dataset, ShardedTensorDataset):
                entry = _decisive(encoder, catalog.load(entries[0]))
                dataset.made_by = {"encoder": encoder, "entry": entry}

    @hook_impl(specname="before_node_run")
    def check_vectors(
        self, node: Node, catalog: CatalogProtocol[Any, Any], inputs: Mapping[str, Any]
    ) -> None:
        """Check all vectors that a node gets."""
        from pathfm_kedro.statistics.tables import (
            TracedEmbeddings,
            refuse_other_centers,
            refuse_other_slides,
            refuse_other_tiles,
        )

        vectors = {k: v for k, v in inputs.items() if isinstance(v, TracedEmbeddings)}
        if not vectors:
            return
        tables = {name: data for name, data in inputs.items() if _lists_tiles(data)}
        slides = inputs.get("slides")
        if slides is None and catalog["slides"].exists():
            slides = catalog.load("slides")
        for name, data in vectors.items():
            mend = _mend(name)
            refuse_other_tiles(tables, data, name, mend)
            if slides is not None:
                refuse_other_slides(slides, data, name, mend)
                refuse_other_centers(slides, data, name, mend)
            _refuse_other_encoder(name, data, catalog, mend)


def _lists_tiles(data: object) -> bool:
    columns = getattr(data, "columns", ())
    return isinstance(columns, list) and {"slide_id", "tile_id"} <= set(columns)


def _mend(name: str) -> str:
    """The command that makes a dataset again."""
    makers = [
        maker
        for maker, whole in every_pipeline().items()
        if maker != "__default__" and name in whole.all_outputs()
    ]
    cohort = os.environ.get("KEDRO_ENV") or DEFAULT_COHORT
    maker = makers[0] if makers else "embed"
    return f"run the {maker} pipeline again: kedro run --env {cohort} --pipelines {maker}"


def _decisive(encoder: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of an encoder's entry decides about its vectors, defaults written out."""
    from pathfm_kedro.encoders import EncoderSpec

    described: dict[str, Any] = json.loads(EncoderSpec.from_parameters(encoder, entry).key())
    return {key: value for key, value in described.items() if key not in _NOT_OF_THE_VECTORS}


def _refuse_other_encoder(
    name: str, vectors: Any, catalog: CatalogProtocol[Any, Any], mend: str
) -> None:
    """Hold vectors against the encoder's entry, and views against the encoder's embeddings."""
    from pathfm_kedro.statistics.tables import counted

    encoder = getattr(vectors, "made_by", {}).get("encoder")
    if encoder is None or f"{_ENTRY}{encoder}" not in catalog:
        return
    made = vectors.made_by["entry"]
    now = _decisive(encoder, catalog.load(f"{_ENTRY}{encoder}"))
    changed = [key for key in now if made.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{name}: the vectors were made with encoders.{encoder}.{key} = {made.get(key)!r}, and "
            f"it is {now[key]!r} now: {mend}"
        )
    own = f"embeddings.{encoder}"
    if name == own or not catalog[own].exists():
        return
    expected = catalog.load(own).header.get("encoder")
    # Tiles that train an encoder are made before it.
    made_from = {s: vectors.slide_header(s).get("encoder") for s in vectors.slide_ids}
    other = [s for s, encoder in made_from.items() if encoder and encoder != expected]
    if expected and other:
        raise ValueError(
            f"{name}: the vectors of {counted(other)} come from another state of encoder {encoder} "
            f"than {own} (weights, precision or runtime): {mend}"
        )


class VersionHooks:
    """Keep a run to one version of every dataset: what it saved, else what it loaded first.

    Kedro loads the newest version there is at the time, which may be another's who saved in between.
    """

    _catalog: CatalogProtocol[Any, Any] | None = None

    @hook_impl
    def before_pipeline_run(self, catalog: CatalogProtocol[Any, Any]) -> None:
        """Whose datasets are kept."""
        self._catalog = catalog

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """From now on this version is loaded."""
        dataset = self._unpinned(dataset_name)
        if dataset is not None:
            version = dataset.resolve_save_version()
            dataset._version = Version(version, version)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str) -> None:
        """From now on this version is loaded."""
        dataset = self._unpinned(dataset_name)
        if dataset is not None:
            dataset._version = Version(dataset.resolve_load_version(), dataset._version.save)

    def _unpinned(self, name: str) -> Any:
        dataset = None if self._catalog is None else self._catalog.get(name)
        if not isinstance(dataset, AbstractVersionedDataset) or not dataset._version:
            return None
        return None if dataset._version.load else dataset


def known_size(
    catalog: CatalogProtocol[Any, Any], parameters: Mapping[str, Any]
) -> CohortSize | None:
    """How much there is to audit, from what is there already; None where nothing tells."""
    from pathfm_kedro.estimate.sizes import cohort_size

    tables = {name: _there(catalog, name) for name in ("slides", "tiles")}
    listed = tables["slides"]
    if listed is None and parameters["cohort"]["source"] != "phantom":
        listed = _there(catalog, "manifest")
        if listed is None:
            return None
    return cohort_size(parameters, listed, tables["tiles"])


def known_speeds(
    catalog: CatalogProtocol[Any, Any], parameters: Mapping[str, Any]
) -> dict[str, Speed]:
    """What is recorded of the speed of each encoder that sees pixels."""
    from pathfm_kedro.encoders.presets import published_dimension
    from pathfm_kedro.estimate.estimate import encoders_run
    from pathfm_kedro.estimate.speed import recorded_speed

    kinds = ("encoder_cost", "encoder_runtime", "encoder_card")
    speeds = {}
    for name in encoders_run(parameters):
        found = recorded_speed(*(_there(catalog, f"{kind}.{name}") for kind in kinds))
        dimension = found.dimension or published_dimension(parameters["encoders"][name])
        speeds[name] = replace(found, dimension=dimension)
    return speeds


def _there(catalog: CatalogProtocol[Any, Any], name: str) -> Any:
    """What a dataset holds; None where it was not made yet."""
    dataset = catalog.get(name)
    if dataset is None or isinstance(dataset, MemoryDataset) or not dataset.exists():
        return None
    return catalog.load(name)


class SizeHooks:
    """Say before anything is computed what it takes, and which checks cannot pass at this size."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Remember the criteria; where the slides are known already, say at once what is too small."""
        self._blocks = {
            name.removeprefix("params:"): catalog.load(name)
            for name in sorted(pipeline.inputs())
            if name.startswith("params:") and "." not in name
        }
        self._blocks["cohort"] = catalog.load("parameters")["cohort"]
        if any((node.namespace or "").startswith("embed.") for node in pipeline.nodes):
            self._say_estimate(catalog)
        known = "slides" in pipeline.inputs() and catalog["slides"].exists()
        if known:
            self._say_too_small(catalog.load("slides"))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """The slides of this run tell how many patients there are."""
        if dataset_name == "slides":
            self._say_too_small(data)

    @staticmethod
    def _say_estimate(catalog: CatalogProtocol[Any, Any]) -> None:
        """One line for the cohort and one for each encoder."""
        from pathfm_kedro.estimate.estimate import estimate_lines

        parameters = catalog.load("parameters")
        size = known_size(catalog, parameters)
        if size is not None:
            speeds = known_speeds(catalog, parameters)
            for line in estimate_lines(parameters, size, speeds, by_experiment=False):
                _say(line)

    def _say_too_small(self, slides: pl.DataFrame) -> None:
        from pathfm_kedro.commands.supported_checks import too_small_checks

        patients = slides.filter(status="usable")["patient_id"].n_unique()
        for line in too_small_checks(self._blocks, patients):
            _say(line)


class RunHooks:
    """Show how far a run is, and at its end the verdicts and where the report lies."""

    def __init__(self) -> None:
        self._display: RunDisplay | None = None
        self._open: dict[str, set[str]] = {}
        self._saved: set[str] = set()

    @hook_impl
    def before_pipeline_run(
        self, run_params: Mapping[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        """Say what runs, and draw a bar for every pipeline."""
        steps = Counter(_pipeline_of(node) for node in pipeline.nodes)
        order = {name: place for place, name in enumerate(PIPELINES)}
        names = sorted(steps, key=lambda name: (order.get(name, len(order)), name))
        cohort = run_params.get("env") or DEFAULT_COHORT
        _refuse_wrong_parameters(pipeline, catalog)
        _refuse_missing_inputs(pipeline, catalog, cohort)
        _say(f"cohort {cohort}: {', '.join(names)}; details in {RUN_LOG}")
        self._open, self._saved = {}, set()
        self._display = RunDisplay({name: steps[name] for name in names}, _say, terminal())
        show(self._display)

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """A node begins with its first input."""
        self._begin(node)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """A node without inputs begins here."""
        self._begin(node)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """A node has ended once its last output is saved: saving does the work of per-slide jobs."""
        self._saved.add(dataset_name)
        waiting = self._open.get(node.name)
        if self._display is None or waiting is None:
            return
        waiting.discard(dataset_name)
        if not waiting:
            del self._open[node.name]
            self._display.step_done(_pipeline_of(node))

    @hook_impl
    def after_pipeline_run(self, catalog: CatalogProtocol[Any, Any]) -> None:
        """End the display; say what was found and where to read it."""
        end_display()
        if "verdicts" in self._saved:
            _say("Verdicts:")
            for line in verdict_lines(catalog.load("verdicts")):
                _say(f"  {line}")
        if "report" in self._saved:
            path = Path(catalog["report"]._get_load_path())
            if path.is_relative_to(Path.cwd()):
                path = path.relative_to(Path.cwd())
            _say(f"The report: {path}")
        if "verdicts" in self._saved and PIN_VARIABLE not in os.environ:
            _refuse_failures(catalog)

    def _begin(self, node: Node) -> None:
        if self._display is not None and node.name not in self._open:
            self._open[node.name] = set(node.outputs)
            self._display.step_started(_pipeline_of(node), _step_of(node))


def _pipeline_of(node: Node) -> str:
    return (node.namespace or "other").split(".")[0]


def _step_of(node: Node) -> str:
    """A node without its pipeline: experiment and encoder, where the namespaces say so."""
    parts = (node.namespace or "").split(".")[1:]
    return " ".join(parts) or node.name.rpartition(".")[2]


def _say(line: str) -> None:
    log_only(line)
    say(line)


def _refuse_failures(catalog: CatalogProtocol[Any, Any]) -> None:
    """End with an error where an encoder fails what ``report.fail_on`` names."""
    fail_on = catalog.load("params:report").get("fail_on") or []
    if not fail_on:
        return
    from pathfm_kedro.pipelines.report.verdicts import failures_asked_for

    failed = failures_asked_for(catalog.load("findings"), catalog.load("verdicts"), fail_on)
    if failed:
        raise ValueError(f"report.fail_on: {'; '.join(failed)}")


def _refuse_wrong_parameters(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
    """Read the parameters of every experiment that runs: a wrong one would end it hours later."""
    from pathfm_kedro.pipeline_registry import experiments

    wanted = pipeline.inputs()
    for _, experiment in experiments():
        name = f"params:{experiment.name}"
        if name in wanted:
            experiment.read(catalog.load(name))


def _refuse_missing_inputs(
    pipeline: Pipeline, catalog: CatalogProtocol[Any, Any], cohort: str
) -> None:
    """Say before the first step what other pipelines have to make first."""
    missing = [
        name
        for name in sorted(pipeline.inputs())
        if isinstance(found := catalog.get(name), AbstractVersionedDataset) and not found.exists()
    ]
    if not missing:
        return
    makers = {
        maker: None
        for maker, whole in every_pipeline().items()
        if maker != "__default__" and not whole.all_outputs().isdisjoint(missing)
    }
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    first = f"kedro run --env {cohort} --pipelines {','.join(makers)}"
    if os.environ.get(PIN_VARIABLE):
        first = f"dvc repro report@{cohort}"
    raise ValueError(f"{missing[0]}{more}: not made yet for cohort {cohort}. Run first: {first}")


def verdict_lines(verdicts: pl.DataFrame) -> list[str]:
    """One line per encoder: its verdict and how many checks came to which end.

    Parameters
    ----------
    verdicts
        encoder, role, verdict, and a column ``n_<verdict>`` for each verdict a check can have.

    Examples
    --------
    >>> import polars as pl
    >>> verdict_lines(pl.DataFrame({"encoder": ["uni"], "role": ["encoder"], "verdict": ["fail"],
    ...                             "n_fail": [1], "n_pass": [3], "n_inconclusive": [0]}))
    ['uni  fail  (1 fail, 3 pass)']
    """
    counted = [name for name in verdicts.columns if name.startswith("n_")]
    wide, high = (max(map(len, verdicts[c]), default=0) for c in ("encoder", "verdict"))
    lines = []
    for row in verdicts.iter_rows(named=True):
        counts = ", ".join(f"{row[c]} {c[2:].replace('_', ' ')}" for c in counted if row[c])
        role = "" if row["role"] == "encoder" else f"{row['role']}: "
        lines.append(
            f"{row['encoder']:<{wide}}  {row['verdict']:<{high}}  ({role}{counts or 'no check'})"
        )
    return lines
