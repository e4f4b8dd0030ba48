"""How experiments become nodes: one namespace per pipeline, experiment and encoder.

An experiment is two pure functions. `accumulate` reduces vectors to a small table of sums per patient
(its *statistics*); `figures` turns that table into figures, which one node judges by the criteria in
the parameters and tables as *measurements*. Nothing else of an experiment is wiring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

from kedro.pipeline import Node, Pipeline, node

from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.statistics.figures import Figure, Subject, measure, undefined
from pathfm_kedro.statistics.measurements import combine_measurements
from pathfm_kedro.statistics.mitigation import MITIGATION, compare_with_bases
from pathfm_kedro.statistics.paired_comparison import EXPERIMENT as COMPARISON
from pathfm_kedro.statistics.paired_comparison import Judged, compare_encoders
from pathfm_kedro.statistics.parameters import ExperimentParameters, read_parameters
from pathfm_kedro.statistics.tables import KeptEmbeddings

#: Entry of the setting of a figure that is pooled over splits of the patients: over how many.
SPLITS = "pooled_splits"
#: What is made of tiles alone: of each of these there is one for every grid of tiles.
_OF_TILES = frozenset(
    {
        "slide_tiles",
        "tiles",
        "tiling",
        "tile_pool",
        "tile_stains",
        "stain_references",
        "field_pool",
        "field_room",
        "mosaic_places",
        "adversarial_pool",
        "paired_tiles",
    }
)


@dataclass(frozen=True)
class TileGrids:
    """Which tiles each encoder has vectors of, and which encoders cannot be shown changed pixels.

    Attributes
    ----------
    of
        Grid of each encoder; one that is not named has the default grid, whose datasets have no
        grid in their names.
    without_pixels
        Why an encoder cannot be run on pixels, by its name.
    without_slides
        Whether the cohort has no pixels at all.

    Examples
    --------
    >>> grids = TileGrids({"titan": "512px"})
    >>> grids.dataset("tiles", "uni"), grids.dataset("tiles", "titan")
    ('tiles', 'tiles.512px')
    >>> grids.dataset("embeddings.{e}", "titan")
    'embeddings.titan'
    """

    of: Mapping[str, str] = field(default_factory=dict)
    without_pixels: Mapping[str, str] = field(default_factory=dict)
    without_slides: bool = False

    def grid(self, encoder: str) -> str:
        """The encoder's grid; empty for the default."""
        return self.of.get(encoder, "")

    def dataset(self, name: str, encoder: str) -> str:
        """A dataset of an experiment's inputs, where ``{e}`` stands for the encoder."""
        return self.in_grid(name, self.grid(encoder)).format(e=encoder)

    def in_grid(self, name: str, grid: str) -> str:
        """A dataset as it is called in a grid."""
        of_pixels = name.startswith("views.") and name.endswith(".pixels")
        return f"{name}.{grid}" if grid and (name in _OF_TILES or of_pixels) else name

    def among(self, encoders: Iterable[str]) -> list[str]:
        """Grids of some encoders, the default first."""
        return sorted({"", *(self.grid(e) for e in encoders)})

    def needs_pixels(self, experiment: Experiment, encoder: str) -> str:
        """Why an experiment has no figure of an encoder; empty where it has."""
        inputs = experiment.inputs
        if any(name.startswith("views.") and "{e}" in name for name in inputs):
            return self.without_pixels.get(encoder, "")
        if self.without_slides and "tile_stains" in inputs:
            return self.without_pixels.get(encoder, "")
        return ""


@dataclass(frozen=True)
class Experiment:
    """A line in a pipeline's table of contents.

    Attributes
    ----------
    name
        Of the experiment: its block of parameters, its tag, its namespace.
    parameters
        The dataclass that its parameters are read into.
    accumulate
        ``(*inputs, parameters) -> statistics``.
    figures
        ``(statistics, *beside, parameters) -> figures``, in reading order.
    inputs
        Datasets that `accumulate` takes; ``{e}`` stands for the encoder.
    beside
        Datasets that `figures` takes beside the statistics.
    only
        Encoders that are measured; None for all.
    subject
        What `{e}` names in the measurements.
    dosed
        ``(truth, nuisance or None, dose, parameters, inputs) -> vectors`` of the calibration, where it
        is not the usual mix of two controls.
    pooled
        ``(statistics of each split, *beside, parameters) -> figures`` of an encoder that is trained on
        several splits of the patients, counts pooled over them; None where they are not.
    """

    name: str
    parameters: type[ExperimentParameters]
    accumulate: Callable[..., Any]
    figures: Callable[..., Iterable[Figure]]
    inputs: Sequence[str]
    beside: Sequence[str] = ()
    only: Sequence[str] | None = None
    subject: Subject = "encoder"
    dosed: Callable[..., Any] | None = None
    pooled: Callable[..., Iterable[Figure]] | None = None

    def read(self, parameters: Mapping[str, Any]) -> Any:
        """The experiment's parameters, checked."""
        return read_parameters(self.parameters, self.name, parameters)

    def statistics(self, *inputs: Any) -> Any:
        """Run `accumulate`; the last input is the block of parameters."""
        *data, parameters = inputs
        return self.accumulate(*data, self.read(parameters))

    def measurements(
        self, statistics: Any, *inputs: Any, encoder: str, undefined_for: str = ""
    ) -> Any:
        """Compute and judge the figures; the last input is the block of parameters.

        `undefined_for` says why none of them is defined, where that is known beforehand.
        """
        *beside, parameters = inputs
        p = self.read(parameters)
        figures = self.figures(statistics, *beside, p)
        if undefined_for:
            figures = (replace(figure, compute=undefined(undefined_for)) for figure in figures)
        return measure(figures, self.name, encoder, p.criteria, self.subject)

    def pooled_measurements(self, *inputs: Any, encoder: str, n_splits: int) -> Any:
        """Compute the figures of all splits together, which are not judged."""
        *data, parameters = inputs
        assert self.pooled is not None
        figures = self.pooled(data[:n_splits], *data[n_splits:], self.read(parameters))
        marked = (replace(f, setting={**f.setting, SPLITS: n_splits}) for f in figures)
        return measure(marked, self.name, encoder, (), self.subject)

    def judged(self, statistics: Any, *inputs: Any) -> Judged:
        """Compute the judged figures alone, to compare encoders; inputs as in :meth:`measurements`."""
        *beside, parameters = inputs
        p = self.read(parameters)
        # Where nothing is judged not even the figures are listed, which some compute at once.
        figures = self.figures(statistics, *beside, p) if p.criteria else ()
        return Judged.of(figures, p.criteria, statistics)


def experiment_pipeline(
    pipeline: str,
    experiment: Experiment,
    encoders: Sequence[str],
    *more: Node | Pipeline,
    calibration: Node | None = None,
    grids: TileGrids | None = None,
    of_encoder: Callable[[str], Experiment] | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
) -> Pipeline:
    """Nodes of one experiment: two for each encoder, and one that collects its table.

    Parameters
    ----------
    pipeline
        Name of the pipeline that the experiment belongs to.
    experiment
        What is measured.
    encoders
        The cohort's; `experiment.only` may confine them.
    more
        Nodes that stand in the experiment's namespace beside these, such as its views.
    calibration
        From :func:`calibration_node`; its rows join the experiment's table.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    of_encoder
        The experiment as it is for one encoder, where its inputs are not the same for all.
    splits
        Of each encoder that is trained on several splits of the patients the encoders of all splits.
    """
    names = [e for e in encoders if experiment.only is None or e in experiment.only]
    own: list[Node | Pipeline] = [
        grouped(
            e,
            encoder_nodes(pipeline, experiment if of_encoder is None else of_encoder(e), e, grids),
        )
        for e in names
    ]
    tables = [f"measurements.{pipeline}.{experiment.name}.{e}" for e in names]
    if calibration is not None:
        own.append(calibration)
        tables += calibration.outputs
    pooled = pooled_nodes(pipeline, experiment, splits or {}, grids)
    own += pooled
    tables += [output for each in pooled for output in each.outputs]
    output = f"measurements.{pipeline}.{experiment.name}"
    collect = collected(tables, output, tags=[experiment.name])
    return grouped(experiment.name, [*more, *own, collect])


@dataclass(frozen=True)
class Views:
    """Vectors of changed tiles, or figures of their pixels, that experiments are made from.

    Attributes
    ----------
    name
        Of the set: ``views.<name>.<encoder>``, or ``views.<name>.pixels`` without an encoder.
    experiment
        Whose parameters decide the views.
    parameters
        The dataclass that these are read into.
    work
        ``(tiles of one slide, side of a tile in px, *beside, parameters) -> work``.
    title
        What is being done, for the progress bar.
    pool
        Dataset of the tiles that are viewed.
    tiles
        Dataset of the tiles that the pool is part of.
    beside
        Datasets that `work` takes beside.
    tags
        Experiments that read them.
    with_encoder
        False where only pixels are measured.
    """

    name: str
    experiment: str
    parameters: type[ExperimentParameters]
    work: Callable[..., Any]
    title: str
    pool: str = "tile_pool"
    tiles: str = "tiles"
    beside: Sequence[str] = ()
    tags: Sequence[str] = ()
    with_encoder: bool = True

    def read(self, parameters: Mapping[str, Any]) -> Any:
        """The experiment's parameters, checked."""
        return read_parameters(self.parameters, self.experiment, parameters)


def views_pipeline(
    views: Views,
    encoders: Sequence[str],
    bases: Mapping[str, str],
    plan: Callable[..., Any],
    harmonise: Callable[..., Any],
    grids: TileGrids | None = None,
) -> list[Node | Pipeline]:
    """A node for each encoder that embeds the views of the pool's tiles.

    Parameters
    ----------
    views
        Which.
    encoders
        The cohort's.
    bases
        Of each harmonised variant its base: the variant's views are the base's, harmonised.
    plan, harmonise
        Functions that give the jobs of an encoder and of a variant.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    """
    grids = grids or TileGrids()
    tags = list(views.tags or [views.experiment])
    bound: dict[str, Any] = {"work": views.work, "read": views.read, "title": views.title}
    pixels = ["slides", views.tiles, views.pool, "slide_files", "params:tile", "params:engine"]
    beside = [*views.beside, f"params:{views.experiment}"]
    called = f"{views.name}_views"
    found: list[Node | Pipeline] = []
    if not views.with_encoder:
        plain = named_partial(plan, name=None, **bound)
        for grid in grids.among(encoders):
            inputs = [grids.in_grid(name, grid) for name in [*pixels, *beside]]
            output = grids.in_grid(f"views.{views.name}.pixels", grid)
            if grids.without_slides:
                own = node(no_views, "params:engine", output, name=called, tags=tags)
            else:
                own = node(plain, inputs, output, name=called, tags=tags)
            found.append(grouped(grid, [own]) if grid else own)
        return found
    for e in encoders:
        output = f"views.{views.name}.{e}"
        if e in grids.without_pixels:
            own = node(no_views, "params:engine", output, name=called, tags=[*tags, e])
            found.append(grouped(e, [own]))
            continue
        if e in bases:
            inputs = ["slides", f"embeddings.{bases[e]}", f"views.{views.name}.{bases[e]}"]
            inputs += [f"params:encoders.{e}", "params:engine"]
            function = named_partial(harmonise, name=e)
        else:
            entry = [f"params:encoders.{e}", "encoder_runtimes"]
            inputs = [grids.dataset(name, e) for name in pixels] + entry
            inputs += [grids.dataset(name, e) for name in beside]
            function = named_partial(plan, name=e, **bound)
        own = node(function, inputs, output, name=called, tags=[*tags, e])
        found.append(grouped(e, [own]))
    return found


def no_views(engine: Mapping[str, Any]) -> ShardPlan:
    """No job: an encoder that is not here, or a cohort without pixels."""
    return ShardPlan([], EngineSettings(**engine), "no views")


def encoder_nodes(
    pipeline: str,
    x: Experiment,
    encoder: str,
    grids: TileGrids | None = None,
    undefined_for: str = "",
) -> list[Node]:
    """The two nodes of an experiment for one encoder: its statistics, and its measurements."""
    grids = grids or TileGrids()
    accumulate = node(
        _shown_as(x.statistics, x.accumulate),
        [*(grids.dataset(name, encoder) for name in x.inputs), f"params:{x.name}"],
        f"statistics.{pipeline}.{x.name}.{encoder}",
        name="statistics",
        tags=[x.name, encoder],
    )
    return [accumulate, measurements_node(pipeline, x, encoder, grids, undefined_for)]


def measurements_node(
    pipeline: str,
    x: Experiment,
    encoder: str,
    grids: TileGrids | None = None,
    undefined_for: str = "",
) -> Node:
    """A node that turns an encoder's statistics into judged figures; or says why there are none."""
    grids = grids or TileGrids()
    missing = undefined_for or grids.needs_pixels(x, encoder)
    bound = {"encoder": encoder} | ({"undefined_for": missing} if missing else {})
    return node(
        named_partial(_shown_as(x.measurements, x.figures), **bound),
        [
            f"statistics.{pipeline}.{x.name}.{encoder}",
            *(grids.dataset(name, encoder) for name in x.beside),
            f"params:{x.name}",
        ],
        f"measurements.{pipeline}.{x.name}.{encoder}",
        name="measurements",
        tags=[x.name, encoder],
    )


def pooled_nodes(
    pipeline: str,
    x: Experiment,
    splits: Mapping[str, Sequence[str]],
    grids: TileGrids | None = None,
) -> list[Node]:
    """A node for each encoder of several splits that pools their counts; none where `x` does not."""
    tiles = grids or TileGrids()
    if x.pooled is None:
        return []
    return [
        node(
            named_partial(
                _shown_as(x.pooled_measurements, x.pooled), encoder=e, n_splits=len(names)
            ),
            [
                *(f"statistics.{pipeline}.{x.name}.{name}" for name in names),
                *(tiles.dataset(name, e) for name in x.beside),
                f"params:{x.name}",
            ],
            f"measurements.{pipeline}.{x.name}.{e}__splits",
            name=f"pool_splits_of_{e}",
            tags=[x.name, e],
        )
        for e, names in splits.items()
    ]


def comparison_pipeline(
    pipeline: str,
    experiments: Sequence[Experiment],
    encoders: Sequence[str],
    controls: Sequence[str] = (),
    grids: TileGrids | None = None,
    mitigated: Mapping[str, tuple[str, str]] | None = None,
) -> Pipeline:
    """Nodes that compare encoders two by two on the judged figures of each experiment.

    Parameters
    ----------
    pipeline
        Name of the pipeline that the experiments belong to.
    experiments
        What is measured; those of arms, or of some encoders only, are not compared.
    encoders, controls
        The cohort's, and those among them that are not compared with each other.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    mitigated
        Of each variant the encoder that it is held against, and what was done.
    """
    tiles = grids or TileGrids()
    compared = [x for x in experiments if x.subject == "encoder" and x.only is None]
    nodes = [
        _comparison_node(
            pipeline,
            x,
            [e for e in encoders if not tiles.needs_pixels(x, e)],
            controls,
            tiles,
            mitigated or {},
        )
        for x in compared
    ]
    tables = [output for each in nodes for output in each.outputs]
    name = f"measurements.{pipeline}.{COMPARISON}"
    return grouped(COMPARISON, [*nodes, collected(tables, name, tags=[COMPARISON])])


def _comparison_node(
    pipeline: str,
    x: Experiment,
    encoders: Sequence[str],
    controls: Sequence[str],
    grids: TileGrids,
    mitigated: Mapping[str, tuple[str, str]],
) -> Node:
    """A node that takes the statistics of all encoders and tables their differences."""
    beside = len(x.beside)

    def compare(*inputs: Any) -> Any:
        *data, parameters = inputs
        parts = [data[i : i + 1 + beside] for i in range(0, len(data), 1 + beside)]
        judged = {e: x.judged(*part, parameters) for e, part in zip(encoders, parts, strict=True)}
        tiles = {e: grids.grid(e) for e in encoders}
        return combine_measurements(
            compare_encoders(judged, x.name, controls, tiles),
            compare_with_bases(judged, x.name, mitigated, tiles),
        )

    data = [
        name
        for e in encoders
        for name in (
            f"statistics.{pipeline}.{x.name}.{e}",
            *(grids.dataset(name, e) for name in x.beside),
        )
    ]
    return node(
        _shown_as(compare, compare_encoders),
        [*data, f"params:{x.name}"],
        f"measurements.{pipeline}.{COMPARISON}.{x.name}",
        name=f"compare_{x.name}",
        tags=[COMPARISON, x.name, *([MITIGATION] if mitigated else [])],
    )


def calibration_node(
    pipeline: str,
    x: Experiment,
    parameters: Mapping[str, Any],
    truth: str,
    mix: Callable[..., Any],
    dose_response: Callable[..., Any],
    encoders: Sequence[str],
    grids: TileGrids | None = None,
) -> Node | None:
    """A node that runs an experiment on encoders with a known dose of nuisance; None without one.

    Parameters
    ----------
    pipeline
        Name of the pipeline.
    x
        The experiment.
    parameters
        Its block of parameters: which control is mixed in decides the node's inputs.
    truth
        The control that knows the truth.
    mix, dose_response
        Functions that make the dosed vectors and table the checks.
    encoders
        The cohort's: without the control that is mixed in there is no calibration.
    grids
        Which tiles each encoder has vectors of: vectors of other tiles cannot be mixed.
    """
    grids = grids or TileGrids()
    calibration = x.read(parameters).calibration
    if calibration is None or (calibration.nuisance and calibration.nuisance not in encoders):
        return None
    nuisance = calibration.nuisance
    if nuisance and grids.grid(nuisance) != grids.grid(truth):
        return None
    data = [grids.dataset(name, truth) for name in x.inputs]
    others = [name.format(e=nuisance) for name in x.inputs if nuisance and "{e}" in name]
    beside = [grids.dataset(name, truth) for name in x.beside]

    def calibrate(*inputs: Any) -> Any:
        *found, parameters, settings = inputs
        p = x.read({**parameters, **calibration.set})
        rest = found[: len(beside)]
        own, mixed = found[len(beside) : len(beside) + len(data)], found[len(beside) + len(data) :]
        # Every dose reads the same vectors.
        mixed = [KeptEmbeddings(value) for value in mixed]
        own = [
            KeptEmbeddings(value) if "{e}" in name else value
            for name, value in zip(x.inputs, own, strict=True)
        ]

        def measure_at(dose: float) -> Any:
            partners = iter(mixed)
            vectors = [
                (x.dosed or mix)(value, next(partners, None), dose, p, own)
                if "{e}" in name
                else value
                for name, value in zip(x.inputs, own, strict=True)
            ]
            statistics = x.accumulate(*vectors, p)
            return measure(x.figures(statistics, *rest, p), x.name, truth, p.criteria, x.subject)

        return dose_response(measure_at, x.name, calibration, settings["doses"], truth)

    return node(
        calibrate,
        [*beside, *data, *others, f"params:{x.name}", "params:calibration"],
        f"measurements.{pipeline}.calibration_{x.name}.{truth}",
        name="calibrate",
        tags=["calibration", x.name],
    )


def collected(tables: Sequence[str], output: str, tags: Sequence[str] = ()) -> Node:
    """A node that puts measurements tables one below the other."""
    return node(combine_measurements, list(tables), output, name="collect", tags=list(tags))


def grouped(namespace: str, nodes: Sequence[Node | Pipeline]) -> Pipeline:
    """Nodes as one collapsible box of kedro-viz; datasets keep their names."""
    return Pipeline(nodes, namespace=namespace, prefix_datasets_with_namespace=False)


def named_partial(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """A partial that Kedro and kedro-viz show with the function's own name, text and types.

    Examples
    --------
    >>> def add(a: int, *, b: int) -> int:
    ...     return a + b
    >>> bound = named_partial(add, b=2)
    >>> bound(1), bound.__name__, list(inspect.signature(bound).parameters)
    (3, 'add', ['a'])
    """

    @wraps(function)
    def bound(*positional: Any, **named: Any) -> Any:
        return function(*positional, **arguments, **named)

    signature = inspect.signature(function)
    open_parameters = [p for name, p in signature.parameters.items() if name not in arguments]
    bound.__signature__ = signature.replace(parameters=open_parameters)  # type: ignore[attr-defined]
    return bound


def with_parameters(
    kind: type[ExperimentParameters], name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function whose last input, the block of parameters of that name, is read into `kind`."""

    def run(*inputs: Any, **named: Any) -> Any:
        *data, parameters = inputs
        return function(*data, read_parameters(kind, name, parameters), **named)

    return _shown_as(run, function)


def _shown_as(run: Callable[..., Any], shown: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kedro-viz shows with the text of the experiment's own."""

    def bound(*positional: Any, **named: Any) -> Any:
        return run(*positional, **named)

    bound.__name__ = shown.__name__
    bound.__doc__ = shown.__doc__
    # Kedro would look for their names among those of the module of `shown`.
    bound.__annotations__ = {}
    bound.__wrapped__ = shown  # type: ignore[attr-defined]
    bound.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
    return bound


__all__ = [
    "Experiment",
    "TileGrids",
    "Views",
    "calibration_node",
    "collected",
    "comparison_pipeline",
    "encoder_nodes",
    "experiment_pipeline",
    "grouped",
    "measurements_node",
    "named_partial",
    "node",
    "pooled_nodes",
    "views_pipeline",
    "with_parameters",
]
