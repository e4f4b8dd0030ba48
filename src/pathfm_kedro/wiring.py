"""How experiments become nodes: one namespace per pipeline, experiment and encoder.

An experiment is two pure functions. `accumulate` reduces vectors to a small table of sums per patient
(its *statistics*); `figures` turns that table into figures, which one node judges by the criteria in
the parameters and tables as *measurements*. Nothing else of an experiment is wiring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

from kedro.pipeline import Node, Pipeline, node

from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.statistics.figures import Figure, Subject, measure, undefined
from pathfm_kedro.statistics.measurements import combine_measurements
from pathfm_kedro.statistics.paired_comparison import Judged
from pathfm_kedro.statistics.parameters import ExperimentParameters, read_parameters

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
#: What is measured or trained on pixels whatever the encoder, and what an encoder makes of pixels.
_FROM_SLIDES = frozenset({"tile_stains", "arm_tiles"})
_BY_ENCODER = ("views.", "arms.")
#: Why an experiment on pixels has no figure of a cohort.
NO_SLIDES = "needs pixels: this cohort has features and no slides"


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
        if self.without_slides and not _FROM_SLIDES.isdisjoint(inputs):
            return NO_SLIDES
        if any(name.startswith(_BY_ENCODER) and "{e}" in name for name in inputs):
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
        From :func:`~pathfm_kedro.wiring_across.calibration_node`; its rows join the experiment's table.
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
    beside = [] if calibration is None else [calibration]
    beside += pooled_nodes(pipeline, experiment, splits or {}, grids)
    collect = collected_by_encoder(pipeline, experiment.name, names, beside)
    return grouped(experiment.name, [*more, *own, *beside, collect])


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

        def of_pixels(named: Callable[[str], str]) -> Node:
            output = named(f"views.{views.name}.pixels")
            if grids.without_slides:
                return node(no_views, "params:engine", output, name=called, tags=tags)
            plain = named_partial(plan, name=None, **bound)
            inputs = [named(name) for name in [*pixels, *beside]]
            return node(plain, inputs, output, name=called, tags=tags)

        return in_grids(of_pixels, encoders, grids)
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
        shown_as(x.statistics, x.accumulate),
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
        named_partial(shown_as(x.measurements, x.figures), **bound),
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
                shown_as(x.pooled_measurements, x.pooled), encoder=e, n_splits=len(names)
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


def collected(tables: Sequence[str], output: str, tags: Sequence[str] = ()) -> Node:
    """A node that puts measurements tables one below the other."""
    return node(combine_measurements, list(tables), output, name="collect", tags=list(tags))


def collected_by_encoder(
    pipeline: str, experiment: str, encoders: Sequence[str], beside: Sequence[Node] = ()
) -> Node:
    """A node that collects an experiment's tables of all encoders, and what other nodes table of it."""
    tables = [f"measurements.{pipeline}.{experiment}.{e}" for e in encoders]
    tables += [output for each in beside for output in each.outputs]
    return collected(tables, f"measurements.{pipeline}.{experiment}", tags=[experiment])


def in_grids(
    make: Callable[[Callable[[str], str]], Node], encoders: Iterable[str], grids: TileGrids
) -> list[Node | Pipeline]:
    """A node for each grid of tiles, made from what names a dataset in it."""
    found: list[Node | Pipeline] = []
    for grid in grids.among(encoders):
        own = make(partial(grids.in_grid, grid=grid))
        found.append(grouped(grid, [own]) if grid else own)
    return found


def grouped(namespace: str, nodes: Sequence[Node | Pipeline]) -> Pipeline:
    """Nodes as one collapsible box of kedro-viz; datasets keep their names."""
    flat = [n for each in nodes for n in (each.nodes if isinstance(each, Pipeline) else [each])]
    # Kedro's own way makes every pipeline twice.
    return Pipeline([_within(namespace, each) for each in flat])


def _within(namespace: str, each: Node) -> Node:
    return each._copy(namespace=".".join(filter(None, [namespace, each.namespace])))


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

    return shown_as(run, function)


def shown_as(run: Callable[..., Any], shown: Callable[..., Any]) -> Callable[..., Any]:
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
    "collected",
    "collected_by_encoder",
    "encoder_nodes",
    "experiment_pipeline",
    "grouped",
    "in_grids",
    "measurements_node",
    "named_partial",
    "node",
    "pooled_nodes",
    "shown_as",
    "views_pipeline",
    "with_parameters",
]
