"""robustness: does an encoder follow the tissue, whatever center, angle, stain, noise and field."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.harmonised import plan_harmonised
from pathfm_kedro.pipelines.robustness.adversarial import (
    adversarial_measurements,
    adversarial_sums,
    choose_adversarial_pool,
    fit_adversarial_probes,
    not_attacked,
)
from pathfm_kedro.pipelines.robustness.adversarial_views import (
    plan_adversarial_tiles,
    plan_adversarial_transfer,
    plan_universal_perturbation,
)
from pathfm_kedro.pipelines.robustness.appearance import (
    appearance_measurements,
    appearance_shifts,
)
from pathfm_kedro.pipelines.robustness.appearance_views import (
    center_references,
    plan_appearance_views,
    plan_tile_stains,
    tile_stains,
)
from pathfm_kedro.pipelines.robustness.calibration import (
    calibrate_appearance,
    calibrate_cue_conflict,
    calibrate_field_of_view,
    calibrate_robustness_index,
    calibrate_rotation,
    calibrate_texture,
)
from pathfm_kedro.pipelines.robustness.center_auc import center_auc, center_wins, no_center_wins
from pathfm_kedro.pipelines.robustness.clustering import cluster_tiles, clustering_score
from pathfm_kedro.pipelines.robustness.crop_coherence import (
    crop_agreements,
    crop_coherence_measurements,
    plan_crop_composition,
    plan_crop_views,
)
from pathfm_kedro.pipelines.robustness.cue_conflict import (
    cue_conflict_counts,
    cue_conflict_measurements,
)
from pathfm_kedro.pipelines.robustness.field_of_view import (
    choose_field_pool,
    field_of_view,
    field_votes,
)
from pathfm_kedro.pipelines.robustness.field_views import plan_field_views
from pathfm_kedro.pipelines.robustness.index_comparison import compare_encoders
from pathfm_kedro.pipelines.robustness.margins import (
    count_neighbours_and_margins,
    robustness_margins,
)
from pathfm_kedro.pipelines.robustness.performance_drop import (
    performance_drop,
    train_biased_probes,
)
from pathfm_kedro.pipelines.robustness.robustness_index import choose_k, robustness_index
from pathfm_kedro.pipelines.robustness.rotation import (
    rotation_measurements,
    rotation_overlaps,
)
from pathfm_kedro.pipelines.robustness.rotation_views import plan_rotation_views
from pathfm_kedro.pipelines.robustness.stain_probe import (
    stain_probe_measurements,
    stain_residuals,
)
from pathfm_kedro.pipelines.robustness.texture import (
    plan_texture_views,
    texture_measurements,
    texture_sums,
)
from pathfm_kedro.pipelines.robustness.tile_pool import choose_pool
from pathfm_kedro.wiring import grouped, named_partial, node

#: Experiments on the same views: stains and scanners changed.
_ON_STAIN = ["appearance", "cue_conflict", "stain_probe"]
#: Experiments on views of the tile pool, and the pool's node, which each of them can call for.
_ON_THE_POOL = ["rotation", "texture", "crop_coherence", *_ON_STAIN]
#: What the calibration mixes: what was drawn, colour, and one corner of a tile.
_TRUTH, _COLOUR, _CORNER = "phantom_truth", "stain_statistics", "tile_corner"


@dataclass(frozen=True)
class _Cohort:
    """Names of a cohort's encoders.

    Attributes
    ----------
    encoders
        All.
    controls
        Those whose answer is known in advance.
    bases
        Of each variant whose center was taken out of another encoder's vectors, that encoder.
    """

    encoders: Sequence[str]
    controls: Sequence[str] = ()
    bases: Mapping[str, str] = field(default_factory=dict)

    @property
    def attackable(self) -> list[str]:
        """Networks whose gradient an attack can follow, and the controls that show it cannot."""
        return [name for name in self.encoders if name not in self.bases]

    def sources(self, name: str) -> tuple[str, ...]:
        """Audited encoders whose adversarial tiles another one is shown."""
        audited = (n for n in self.attackable if n not in self.controls)
        return tuple(n for n in audited if n != name)


def create_pipeline(
    encoders: Sequence[str],
    controls: Sequence[str],
    bases: Mapping[str, str] | None = None,
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders.

    Parameters
    ----------
    encoders
        All encoders of the cohort.
    controls
        Those that have no say in the cohort's k and are not attacked to show others.
    bases
        Of each harmonised variant, the encoder whose vectors it takes.
    """
    cohort = _Cohort(encoders, controls, bases or {})
    experiments = (
        _robustness_index(cohort),
        _on_vectors(cohort, "clustering_score", cluster_tiles, "clusters", clustering_score),
        _on_vectors(
            cohort, "performance_drop", train_biased_probes, "probe_hits", performance_drop
        ),
        _center_auc(cohort),
        _rotation(cohort),
        _appearance(cohort),
        _cue_conflict(cohort),
        _stain_probe(cohort),
        _texture(cohort),
        _crop_coherence(cohort),
        _field_of_view(cohort),
        _adversarial(cohort),
        _calibration(cohort),
    )
    shared = [*_shared(), *(n for experiment in experiments for n in experiment.shared)]
    own = [
        grouped(name, [n for experiment in experiments for n in experiment.own.get(name, [])])
        for name in encoders
    ]
    # What needs several encoders stands outside the encoders' namespaces.
    across = [n for experiment in experiments for n in experiment.across]
    return grouped("robustness", [*shared, *own, *across])


@dataclass(frozen=True)
class _Experiment:
    """Nodes of an experiment: for all encoders at once, for each by itself, and across encoders."""

    shared: Sequence[Node] = ()
    own: Mapping[str, Sequence[Node]] = field(default_factory=dict)
    across: Sequence[Node] = ()


def _shared() -> list[Node]:
    return [
        node(
            choose_pool,
            ["slides", "tiles", "params:tile_pool"],
            "tile_pool",
            name="choose_pool",
            tags=_ON_THE_POOL,
        )
    ]


def _step(
    function: Callable[..., Any],
    inputs: Sequence[str],
    output: str,
    experiment: str,
    name_of: str,
    /,
    **bound: Any,
) -> Node:
    """A node of one encoder, named for what it does and tagged for experiment and encoder."""
    return node(
        named_partial(function, **bound) if bound else function,
        list(inputs),
        output,
        name=f"{function.__name__}_{name_of}",
        tags=[experiment, name_of],
    )


def _views(
    cohort: _Cohort,
    encoder: str,
    experiments: Sequence[str],
    plan: Callable[..., Any],
    output: str,
    before: Sequence[str],
    parameters: str,
) -> Node:
    """Vectors of views; those of a harmonised variant are its base's with the center taken out."""
    base = cohort.bases.get(encoder)
    if base is not None:
        inputs = ["slides", f"embeddings.{base}", f"{output}.{base}", *_entry(encoder)[:1]]
        return node(
            named_partial(plan_harmonised, name=encoder),
            [*inputs, "params:engine"],
            f"{output}.{encoder}",
            name=f"harmonise_{output}_{encoder}",
            tags=[*experiments, encoder],
        )
    return node(
        named_partial(plan, name=encoder),
        [*before, *_entry(encoder), "params:tile", parameters, "params:engine"],
        f"{output}.{encoder}",
        name=f"{plan.__name__}_{encoder}",
        tags=[*experiments, encoder],
    )


def _entry(encoder: str) -> list[str]:
    return [f"params:encoders.{encoder}", f"encoder_runtime.{encoder}"]


def _robustness_index(cohort: _Cohort) -> _Experiment:
    """Index, margins and the comparison of encoders, from one search for neighbours."""
    experiment = "robustness_index"
    told = ["params:robustness_index", "params:robustness_margins"]
    k = node(
        named_partial(choose_k, controls=tuple(cohort.controls)),
        {
            "parameters": "params:robustness_index",
            **{name: f"neighbour_counts.{name}" for name in cohort.encoders},
        },
        "robustness_k",
        name="choose_k",
        tags=experiment,
    )
    own = {
        name: [
            node(
                count_neighbours_and_margins,
                ["slides", "tiles", f"embeddings.{name}", *told],
                [f"neighbour_counts.{name}", f"neighbour_margins.{name}"],
                name=f"count_neighbours_{name}",
                tags=[experiment, name],
            )
        ]
        for name in cohort.encoders
    }
    across = [n for name in cohort.encoders for n in _indices(name, told)]
    return _Experiment([k], own, [*across, _comparison(cohort, told)])


def _indices(name: str, told: Sequence[str]) -> list[Node]:
    """An index needs the cohort's k, and k needs every encoder's counts."""
    experiment = "robustness_index"
    return [
        _step(
            robustness_index,
            [f"neighbour_counts.{name}", "robustness_k", told[0]],
            f"measurements.robustness.robustness_index.{name}",
            experiment,
            name,
            encoder=name,
        ),
        _step(
            robustness_margins,
            [f"neighbour_margins.{name}", "robustness_k", *told],
            f"measurements.robustness.robustness_margins.{name}",
            experiment,
            name,
            encoder=name,
        ),
    ]


def _comparison(cohort: _Cohort, told: Sequence[str]) -> Node:
    return node(
        named_partial(compare_encoders, encoders=tuple(cohort.encoders)),
        {
            "chosen_k": "robustness_k",
            "parameters": told[0],
            "margin_parameters": told[1],
            **{f"counts_{name}": f"neighbour_counts.{name}" for name in cohort.encoders},
            **{f"margins_{name}": f"neighbour_margins.{name}" for name in cohort.encoders},
        },
        {
            name: f"measurements.robustness.robustness_index_comparison.{name}"
            for name in cohort.encoders
        },
        name="compare_encoders",
        tags="robustness_index",
    )


def _on_vectors(
    cohort: _Cohort,
    experiment: str,
    reduce: Callable[..., Any],
    sums: str,
    measure: Callable[..., Any],
    beside: Sequence[str] = (),
) -> _Experiment:
    """An experiment that needs an encoder's vectors of the tiles and nothing else of it."""
    own = {
        name: _measured(
            experiment,
            name,
            reduce,
            ["slides", "tiles", f"embeddings.{name}", *beside, f"params:{experiment}"],
            sums,
            measure,
        )
        for name in cohort.encoders
    }
    return _Experiment(own=own)


def _center_auc(cohort: _Cohort) -> _Experiment:
    """Colour is what the control of that name knows; without it each encoder gets the reason."""
    experiment, sums = "center_auc", "center_wins"
    if _COLOUR in cohort.encoders:
        colours = [f"embeddings.{_COLOUR}"]
        return _on_vectors(cohort, experiment, center_wins, sums, center_auc, colours)
    told = [f"params:{experiment}"]
    own = {
        name: _measured(experiment, name, no_center_wins, told, sums, center_auc)
        for name in cohort.encoders
    }
    return _Experiment(own=own)


def _rotation(cohort: _Cohort) -> _Experiment:
    def own(name: str) -> list[Node]:
        return [
            _views(
                cohort,
                name,
                ["rotation"],
                plan_rotation_views,
                "rotation_views",
                ["slides", "tiles", "tile_pool", "slide_files"],
                "params:rotation",
            ),
            _step(
                rotation_overlaps,
                [f"rotation_views.{name}", "tile_pool", "params:rotation"],
                f"rotation_overlaps.{name}",
                "rotation",
                name,
            ),
            _step(
                rotation_measurements,
                [f"rotation_overlaps.{name}", "params:rotation"],
                f"measurements.robustness.rotation.{name}",
                "rotation",
                name,
                encoder=name,
            ),
        ]

    return _Experiment(own={name: own(name) for name in cohort.encoders})


def _measured(
    experiment: str,
    name: str,
    reduce: Callable[..., Any],
    inputs: Sequence[str],
    sums: str,
    measure: Callable[..., Any],
) -> list[Node]:
    """Views reduced to sums per patient, and the sums to measurements."""
    return [
        _step(reduce, inputs, f"{sums}.{name}", experiment, name),
        _step(
            measure,
            [f"{sums}.{name}", f"params:{experiment}"],
            f"measurements.robustness.{experiment}.{name}",
            experiment,
            name,
            encoder=name,
        ),
    ]


def _appearance(cohort: _Cohort) -> _Experiment:
    pixels = ["slides", "tiles", "tile_pool", "slide_files"]
    shared = [
        node(
            plan_tile_stains,
            [*pixels, "params:tile", "params:engine"],
            "tile_stain_shards",
            name="measure_tile_stains",
            tags=_ON_STAIN,
        ),
        node(
            tile_stains,
            ["tile_stain_shards", "tile_pool"],
            "tile_stains",
            name="tile_stains",
            tags=_ON_STAIN,
        ),
        node(
            center_references,
            ["tile_stains", "params:appearance"],
            "stain_references",
            name="center_references",
            tags=_ON_STAIN,
        ),
    ]

    def own(name: str) -> list[Node]:
        return [
            _views(
                cohort,
                name,
                _ON_STAIN,
                plan_appearance_views,
                "appearance_views",
                [*pixels, "stain_references"],
                "params:appearance",
            ),
            *_measured(
                "appearance",
                name,
                appearance_shifts,
                [f"appearance_views.{name}", "tile_pool", "stain_references", "params:appearance"],
                "appearance_shifts",
                appearance_measurements,
            ),
        ]

    return _Experiment(shared, {name: own(name) for name in cohort.encoders})


def _cue_conflict(cohort: _Cohort) -> _Experiment:
    told = ["tile_pool", "stain_references", "params:appearance", "params:cue_conflict"]
    own = {
        name: _measured(
            "cue_conflict",
            name,
            cue_conflict_counts,
            [f"appearance_views.{name}", *told],
            "cue_conflict_counts",
            cue_conflict_measurements,
        )
        for name in cohort.encoders
    }
    return _Experiment(own=own)


def _stain_probe(cohort: _Cohort) -> _Experiment:
    told = ["tile_pool", "stain_references", "tile_stains"]
    own = {
        name: _measured(
            "stain_probe",
            name,
            stain_residuals,
            [f"appearance_views.{name}", *told, "params:appearance", "params:stain_probe"],
            "stain_residuals",
            stain_probe_measurements,
        )
        for name in cohort.encoders
    }
    return _Experiment(own=own)


def _texture(cohort: _Cohort) -> _Experiment:
    def own(name: str) -> list[Node]:
        return [
            _views(
                cohort,
                name,
                ["texture"],
                plan_texture_views,
                "texture_views",
                ["slides", "tiles", "tile_pool", "slide_files"],
                "params:texture",
            ),
            *_measured(
                "texture",
                name,
                texture_sums,
                [f"texture_views.{name}", "tile_pool", "params:texture"],
                "texture_sums",
                texture_measurements,
            ),
        ]

    return _Experiment(own={name: own(name) for name in cohort.encoders})


def _crop_coherence(cohort: _Cohort) -> _Experiment:
    experiment, parameters = "crop_coherence", "params:crop_coherence"
    pixels = ["slides", "tiles", "tile_pool", "slide_files"]
    composition = node(
        plan_crop_composition,
        [*pixels, "params:tile", parameters, "params:engine"],
        "crop_composition",
        name="plan_crop_composition",
        tags=experiment,
    )

    def own(name: str) -> list[Node]:
        return [
            _views(cohort, name, [experiment], plan_crop_views, "crop_views", pixels, parameters),
            *_measured(
                experiment,
                name,
                crop_agreements,
                [f"crop_views.{name}", "crop_composition", "tile_pool", parameters],
                "crop_agreements",
                crop_coherence_measurements,
            ),
        ]

    return _Experiment([composition], {name: own(name) for name in cohort.encoders})


def _field_of_view(cohort: _Cohort) -> _Experiment:
    experiment, parameters = "field_of_view", "params:field_of_view"
    pool = node(
        choose_field_pool,
        ["slides", "tiles", parameters],
        ["field_pool", "field_room"],
        name="choose_field_pool",
        tags=experiment,
    )

    def own(name: str) -> list[Node]:
        return [
            _views(
                cohort,
                name,
                [experiment],
                plan_field_views,
                "field_views",
                ["slides", "tiles", "field_pool", "slide_files"],
                parameters,
            ),
            _step(
                field_votes,
                [f"field_views.{name}", "field_pool", parameters],
                f"field_votes.{name}",
                experiment,
                name,
            ),
            _step(
                field_of_view,
                [f"field_votes.{name}", "field_room", parameters],
                f"measurements.robustness.field_of_view.{name}",
                experiment,
                name,
                encoder=name,
            ),
        ]

    return _Experiment([pool], {name: own(name) for name in cohort.encoders})


def _adversarial(cohort: _Cohort) -> _Experiment:
    experiment, parameters = "adversarial", "params:adversarial"
    pool = node(
        choose_adversarial_pool,
        ["slides", "tiles", parameters],
        "adversarial_pool",
        name="choose_adversarial_pool",
        tags=experiment,
    )

    def own(name: str) -> list[Node]:
        told = ["slide_files", *_entry(name), "params:tile", parameters, "params:engine"]
        probes = ["slides", "tiles", f"embeddings.{name}", "adversarial_pool", parameters]
        attacked = [
            "slides",
            "adversarial_pool",
            f"adversarial_probe.{name}",
            f"adversarial_universal.{name}",
        ]
        return [
            _step(fit_adversarial_probes, probes, f"adversarial_probe.{name}", experiment, name),
            _step(
                plan_universal_perturbation,
                ["slides", "adversarial_pool", *told],
                f"adversarial_universal.{name}",
                experiment,
                name,
                name=name,
            ),
            _step(
                plan_adversarial_tiles,
                [*attacked, *told],
                f"adversarial_tiles.{name}",
                experiment,
                name,
                name=name,
            ),
        ]

    def across(name: str) -> list[Node]:
        sources = cohort.sources(name)
        shown = ["slides", "adversarial_pool", f"adversarial_probe.{name}", "slide_files"]
        shown += [*_entry(name), "params:tile", "params:engine"]
        return [
            _step(
                plan_adversarial_transfer,
                [*shown, *(f"adversarial_tiles.{source}" for source in sources)],
                f"adversarial_transfer.{name}",
                experiment,
                name,
                name=name,
                sources=sources,
            ),
            _step(
                adversarial_sums,
                [
                    f"adversarial_tiles.{name}",
                    f"adversarial_transfer.{name}",
                    "adversarial_pool",
                    f"adversarial_probe.{name}",
                    parameters,
                ],
                f"adversarial_sums.{name}",
                experiment,
                name,
                sources=sources,
            ),
            _step(
                adversarial_measurements,
                [f"adversarial_sums.{name}", parameters, *_entry(name)[:1]],
                f"measurements.robustness.adversarial.{name}",
                experiment,
                name,
                encoder=name,
            ),
        ]

    def unattacked(name: str) -> Node:
        output = f"measurements.robustness.adversarial.{name}"
        return _step(not_attacked, [parameters], output, experiment, name, encoder=name)

    return _Experiment(
        [pool],
        {name: own(name) for name in cohort.attackable},
        [
            *(n for name in cohort.attackable for n in across(name)),
            *(unattacked(name) for name in cohort.encoders if name in cohort.bases),
        ],
    )


def _calibration(cohort: _Cohort) -> _Experiment:
    """Only a cohort with drawn slides knows the truth that nuisance is mixed into."""
    if not {_TRUTH, _COLOUR, _CORNER} <= set(cohort.encoders):
        return _Experiment()

    def dosed(
        function: Callable[..., Any], experiment: str, inputs: Sequence[str], *told: str
    ) -> Node:
        return node(
            named_partial(function, encoder=_TRUTH),
            [*inputs, *(f"params:{name}" for name in (*told, experiment, "calibration"))],
            f"measurements.robustness.calibration_{experiment}.{_TRUTH}",
            name=function.__name__,
            tags=["calibration", experiment],
        )

    looks = [
        "tile_pool",
        "stain_references",
        f"appearance_views.{_TRUTH}",
        f"appearance_views.{_COLOUR}",
    ]
    turned, shuffled = (
        ["tile_pool", f"{views}.{_TRUTH}", f"{views}.{_CORNER}"]
        for views in ("rotation_views", "texture_views")
    )
    vectors = ["slides", "tiles", f"embeddings.{_TRUTH}", f"embeddings.{_COLOUR}", "robustness_k"]
    fields = ["field_pool", "field_room", f"field_views.{_TRUTH}"]
    return _Experiment(
        across=[
            dosed(calibrate_robustness_index, "robustness_index", vectors),
            dosed(calibrate_rotation, "rotation", turned),
            dosed(calibrate_appearance, "appearance", looks),
            dosed(calibrate_cue_conflict, "cue_conflict", looks, "appearance"),
            dosed(calibrate_texture, "texture", shuffled),
            dosed(calibrate_field_of_view, "field_of_view", fields),
        ]
    )
