"""robustness: does an encoder follow the tissue, whatever center, angle, stain, noise and field."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.encoders.harmonised import plan_harmonised
from pathfm_kedro.pipelines.robustness.appearance import (
    Appearance,
    appearance_figures,
    appearance_statistics,
    view_of_appearance,
)
from pathfm_kedro.pipelines.robustness.attacks.pipeline import (
    ATTACKED,
    adversarial_pipeline,
    attacked_encoders,
)
from pathfm_kedro.pipelines.robustness.calibration import dose_response, mix, noise_in_tiles
from pathfm_kedro.pipelines.robustness.center_auc import (
    CenterAuc,
    center_auc_figures,
    center_auc_statistics,
)
from pathfm_kedro.pipelines.robustness.clustering import (
    ClusteringScore,
    clustering_figures,
    clustering_statistics,
)
from pathfm_kedro.pipelines.robustness.crop_coherence import (
    CropCoherence,
    composition_of_crops,
    crop_coherence_figures,
    crop_coherence_statistics,
    view_of_crops,
)
from pathfm_kedro.pipelines.robustness.cue_conflict import (
    CueConflict,
    cue_conflict_figures,
    cue_conflict_statistics,
)
from pathfm_kedro.pipelines.robustness.encoder_similarity import measured_similarity
from pathfm_kedro.pipelines.robustness.feature_agreement import (
    FeatureAgreement,
    feature_agreement_figures,
    feature_agreement_statistics,
    no_agreement_statistics,
)
from pathfm_kedro.pipelines.robustness.field_of_view import (
    FieldOfView,
    field_of_view_figures,
    field_of_view_statistics,
)
from pathfm_kedro.pipelines.robustness.field_pool import choose_field_pool
from pathfm_kedro.pipelines.robustness.field_views import view_of_fields
from pathfm_kedro.pipelines.robustness.neighbours.pipeline import (
    INDEX,
    MARGINS,
    VECTORS,
    examples_pipeline,
    robustness_index_pipelines,
)
from pathfm_kedro.pipelines.robustness.performance_drop import (
    PerformanceDrop,
    performance_drop_figures,
    performance_drop_statistics,
)
from pathfm_kedro.pipelines.robustness.rotation import (
    Rotation,
    rotation_figures,
    rotation_statistics,
    view_of_rotation,
)
from pathfm_kedro.pipelines.robustness.same_tissue import (
    SameTissue,
    same_tissue_figures,
    same_tissue_statistics,
    view_of_same_tissue,
)
from pathfm_kedro.pipelines.robustness.slide_level import (
    SlideLevel,
    slide_level_figures,
    slide_level_statistics,
)
from pathfm_kedro.pipelines.robustness.stain_probe import (
    StainProbe,
    stain_probe_figures,
    stain_probe_statistics,
)
from pathfm_kedro.pipelines.robustness.subgroup_statistics import subgroup_statistics
from pathfm_kedro.pipelines.robustness.subgroups import Subgroups, subgroup_figures
from pathfm_kedro.pipelines.robustness.texture import (
    Texture,
    texture_figures,
    texture_statistics,
    view_of_texture,
)
from pathfm_kedro.pipelines.robustness.tile_pool import choose_pool
from pathfm_kedro.pipelines.robustness.tile_stains import stain_of_tiles, tile_stains
from pathfm_kedro.pipelines.robustness.tissue_pairs import (
    choose_paired_tiles,
    register_repeats,
)
from pathfm_kedro.slides.center_stains import center_references
from pathfm_kedro.views import plan_views
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    Views,
    collected,
    collected_by_encoder,
    encoder_nodes,
    experiment_pipeline,
    grouped,
    in_grids,
    named_partial,
    node,
    views_pipeline,
)
from pathfm_kedro.wiring_across import calibration_node, comparison_pipeline

#: Vectors of the pool's tiles as they are and in other stains, beside the looks of centers.
STAINED = ["views.appearance.{e}", "tile_pool", "stain_references"]
#: Experiments on the appearance views.
_ON_STAIN = ["appearance", "cue_conflict"]
#: Controls that know the drawn truth, and colour alone.
_TRUTH, _COLOUR = "phantom_truth", "stain_statistics"

#: Of its rotated tiles examples are shown too.
_ROTATION = Experiment(
    "rotation",
    Rotation,
    rotation_statistics,
    rotation_figures,
    ["views.rotation.{e}", "tile_pool"],
)

EXPERIMENTS = [
    Experiment(
        "clustering_score", ClusteringScore, clustering_statistics, clustering_figures, VECTORS
    ),
    Experiment(
        "performance_drop",
        PerformanceDrop,
        performance_drop_statistics,
        performance_drop_figures,
        VECTORS,
    ),
    Experiment("center_auc", CenterAuc, center_auc_statistics, center_auc_figures, VECTORS),
    Experiment(
        "slide_level",
        SlideLevel,
        slide_level_statistics,
        slide_level_figures,
        VECTORS,
        beside=[f"measurements.robustness.robustness_{x}.{{e}}" for x in ("index", "margins")],
    ),
    _ROTATION,
    Experiment("appearance", Appearance, appearance_statistics, appearance_figures, STAINED),
    Experiment(
        "cue_conflict",
        CueConflict,
        cue_conflict_statistics,
        cue_conflict_figures,
        [*STAINED, "params:appearance"],
    ),
    Experiment(
        "stain_probe",
        StainProbe,
        stain_probe_statistics,
        stain_probe_figures,
        [*VECTORS, "tile_stains"],
    ),
    Experiment(
        "texture",
        Texture,
        texture_statistics,
        texture_figures,
        ["views.texture.{e}", "tile_pool"],
    ),
    Experiment(
        "crop_coherence",
        CropCoherence,
        crop_coherence_statistics,
        crop_coherence_figures,
        ["views.crops.{e}", "views.crop_composition.pixels", "tile_pool"],
    ),
    Experiment(
        "field_of_view",
        FieldOfView,
        field_of_view_statistics,
        field_of_view_figures,
        ["views.fields.{e}", "field_pool"],
        beside=["field_room"],
        dosed=noise_in_tiles,
    ),
]

VIEWS = [
    Views(
        "tile_stains",
        "appearance",
        Appearance,
        stain_of_tiles,
        "measuring stain",
        tags=[*_ON_STAIN, "stain_probe"],
        with_encoder=False,
    ),
    Views(
        "appearance",
        "appearance",
        Appearance,
        view_of_appearance,
        "changing stain and scanner",
        beside=["stain_references"],
        tags=_ON_STAIN,
    ),
    Views("rotation", "rotation", Rotation, view_of_rotation, "rotating"),
    Views("texture", "texture", Texture, view_of_texture, "shuffling"),
    Views(
        "crop_composition",
        "crop_coherence",
        CropCoherence,
        composition_of_crops,
        "measuring crops",
        with_encoder=False,
    ),
    Views("crops", "crop_coherence", CropCoherence, view_of_crops, "cropping"),
    Views(
        "fields",
        "field_of_view",
        FieldOfView,
        view_of_fields,
        "widening fields",
        pool="field_pool",
    ),
    Views(
        "same_tissue",
        "same_tissue",
        SameTissue,
        view_of_same_tissue,
        "reading the same tissue",
        pool="paired_tiles",
        tiles="paired_tiles",
    ),
]

#: Only where the cohort says that tissue was scanned or stained again (cohort.same_tissue).
SAME_TISSUE = Experiment(
    "same_tissue",
    SameTissue,
    same_tissue_statistics,
    same_tissue_figures,
    ["views.same_tissue.{e}", "paired_tiles", *VECTORS],
    beside=["tissue_pairs"],
)

#: Only where the cohort names columns of its manifest (cohort.subgroups).
SUBGROUPS = Experiment(
    "subgroups",
    Subgroups,
    subgroup_statistics,
    subgroup_figures,
    [*VECTORS, "params:cohort.subgroups"],
    beside=[
        "statistics.robustness.robustness_index.{e}",
        "robustness_k",
        "params:cohort.subgroups",
    ],
)

#: Only where the cohort has features of an encoder, and the encoder.
AGREEMENT = Experiment(
    "feature_agreement",
    FeatureAgreement,
    feature_agreement_statistics,
    feature_agreement_figures,
    VECTORS,
)
#: Whatever a cohort may measure of every encoder.
EVERY = [INDEX, MARGINS, *EXPERIMENTS, SUBGROUPS, SAME_TISSUE, ATTACKED]
_NOTHING_THE_SAME = "its entry does not say that another gives the same vectors (same_as)"
#: Experiments that are wired by hand, since encoders meet in them.
WIRED = [
    "robustness_index",
    "robustness_margins",
    "adversarial",
    "comparison",
    "encoder_similarity",
]


def create_pipeline(
    encoders: Sequence[str],
    controls: Sequence[str],
    bases: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    experiments: Sequence[Experiment] | None = None,
    grids: TileGrids | None = None,
    same_as: Mapping[str, str] | None = None,
    same_tissue: bool = False,
    splits: Mapping[str, Sequence[str]] | None = None,
    subgroups: bool = False,
    mitigated: Mapping[str, tuple[str, str]] | None = None,
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
    parameters
        All parameters: they say how experiments are calibrated where the truth is known.
    experiments
        :data:`EXPERIMENTS` where not given.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    same_as
        Of features that were brought, the encoder that should give the same.
    same_tissue
        Whether the cohort has slides that show the tissue of others again.
    splits
        Of each encoder that is trained on several splits of the patients the encoders of all splits.
    subgroups
        Whether it names columns of subgroups.
    mitigated
        Of each variant the encoder that it is held against, and what was done.
    """
    known, values, grids = bases or {}, parameters or {}, grids or TileGrids()
    listed = [*(EXPERIMENTS if experiments is None else experiments)]
    listed += [SUBGROUPS] if subgroups else []
    again = [SAME_TISSUE] if same_tissue else []
    calibrations = (_calibrated(x, encoders, values, grids) for x in (INDEX, MARGINS))
    judged = [INDEX, MARGINS, *listed, *again, ATTACKED]
    attacked = attacked_encoders(encoders, known, values, grids)
    audited = [e for e in encoders if e not in controls]
    parts: list[Node | Pipeline] = [
        # No part of a box that vectors enter: pools come before them.
        *in_grids(_pool, encoders, grids),
        *in_grids(_field_pool, encoders, grids),
        _views(encoders, known, grids),
        *robustness_index_pipelines(encoders, controls, *calibrations, grids=grids, splits=splits),
        *(_experiment(x, encoders, known, values, grids) for x in listed),
        adversarial_pipeline(encoders, attacked, controls, known, grids),
        comparison_pipeline("robustness", judged, encoders, controls, grids, mitigated),
        similarity_pipeline(encoders, controls, grids),
        examples_pipeline(audited, grids, _ROTATION, attacked),
    ]
    names = [*WIRED, *(x.name for x in [*listed, *again])]
    if same_tissue:
        parts.append(same_tissue_pipeline(encoders, known, values, grids))
    if same_as:
        parts.append(agreement_pipeline(encoders, same_as, grids))
        names.append(AGREEMENT.name)
    tables = [f"measurements.robustness.{name}" for name in names]
    collect = collected(tables, "robustness_measurements")
    return grouped("robustness", [*parts, collect])


def _pool(named: Callable[[str], str]) -> Node:
    return node(
        choose_pool,
        ["slides", named("tiles"), "params:tile_pool"],
        named("tile_pool"),
        name="choose_pool",
        tags=sorted(
            {v.experiment for v in VIEWS if v.pool == "tile_pool"} | {"cue_conflict", "stain_probe"}
        ),
    )


def _stains(named: Callable[[str], str]) -> Node:
    return node(
        tile_stains,
        [named("views.tile_stains.pixels"), named("tile_pool")],
        named("tile_stains"),
        name="tile_stains",
        tags=[*_ON_STAIN, "stain_probe"],
    )


def _references(named: Callable[[str], str]) -> Node:
    return node(
        center_references,
        [named("tile_stains"), "params:appearance.min_reference_tiles"],
        named("stain_references"),
        name="center_references",
        tags=_ON_STAIN,
    )


def _field_pool(named: Callable[[str], str]) -> Node:
    x = "field_of_view"
    inputs, outputs = ["slides", "tiles", f"params:{x}"], ["field_pool", "field_room"]
    return node(
        choose_field_pool, [*map(named, inputs)], [*map(named, outputs)], name="pool", tags=x
    )


def _views(encoders: Sequence[str], bases: Mapping[str, str], grids: TileGrids) -> Pipeline:
    """What several experiments share: the looks of centers, tiles in other stains."""
    shared = [
        *in_grids(_stains, encoders, grids),
        *in_grids(_references, encoders, grids),
    ]
    for views in VIEWS:
        if views.tags:
            shared += views_pipeline(views, encoders, bases, plan_views, plan_harmonised, grids)
    return grouped("views", shared)


def _experiment(
    x: Experiment,
    encoders: Sequence[str],
    bases: Mapping[str, str],
    parameters: Mapping[str, Any],
    grids: TileGrids,
) -> Pipeline:
    """An experiment with the views that are its own."""
    own: list[Node | Pipeline] = []
    for views in VIEWS:
        if views.experiment == x.name and not views.tags:
            own += views_pipeline(views, encoders, bases, plan_views, plan_harmonised, grids)
    calibration = _calibrated(_with_colour(x, encoders, _TRUTH, grids), encoders, parameters, grids)
    return experiment_pipeline(
        "robustness",
        x,
        encoders,
        *own,
        calibration=calibration,
        grids=grids,
        of_encoder=partial(_with_colour, x, encoders, grids=grids),
    )


def _with_colour(
    x: Experiment, encoders: Sequence[str], encoder: str, grids: TileGrids
) -> Experiment:
    """The experiment with the colour of the encoder's own tiles, where it asks for it."""
    known = _COLOUR in encoders and grids.grid(_COLOUR) == grids.grid(encoder)
    if x.name != "center_auc" or not known:
        return x
    return replace(x, inputs=[*x.inputs, f"embeddings.{_COLOUR}"])


def _calibrated(
    x: Experiment, encoders: Sequence[str], parameters: Mapping[str, Any], grids: TileGrids
) -> Node | None:
    """Only a cohort with drawn slides knows the truth that nuisance is mixed into."""
    block = parameters.get(x.name)
    if _TRUTH not in encoders or not block:
        return None
    return calibration_node("robustness", x, block, _TRUTH, mix, dose_response, encoders, grids)


def similarity_pipeline(
    encoders: Sequence[str], controls: Sequence[str], grids: TileGrids
) -> Pipeline:
    """One node in which the vectors of all encoders meet.

    Parameters
    ----------
    encoders, controls, grids
        As in :func:`create_pipeline`.
    """
    x = "encoder_similarity"
    of_encoders = [grids.dataset(name, e) for e in encoders for name in ("tiles", "embeddings.{e}")]
    similarity = named_partial(
        measured_similarity,
        encoders=tuple(encoders),
        controls=tuple(controls),
        grids=tuple(map(grids.grid, encoders)),
    )
    inputs = ["slides", f"params:{x}", *of_encoders]
    output = f"measurements.robustness.{x}"
    return grouped(x, [node(similarity, inputs, output, name="measurements", tags=[x])])


def same_tissue_pipeline(
    encoders: Sequence[str],
    bases: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    grids: TileGrids | None = None,
) -> Pipeline:
    """Slides of one tissue laid on each other, and the experiment on their tiles of the same places.

    Parameters
    ----------
    encoders, bases, parameters, grids
        As in :func:`create_pipeline`.
    """
    x, tiles = SAME_TISSUE, grids or TileGrids()
    block = f"params:{x.name}"

    def tiles_in(named: Callable[[str], str]) -> Node:
        return node(
            choose_paired_tiles,
            ["slides", named("tiles"), "tissue_pairs", block],
            named("paired_tiles"),
            name="choose_paired_tiles",
            tags=x.name,
        )

    registered = node(
        register_repeats,
        ["slides", "slide_files", block, "params:engine"],
        "tissue_pairs",
        name="register_repeats",
        tags=x.name,
    )
    measured = _experiment(x, encoders, bases or {}, parameters or {}, tiles)
    return Pipeline([registered, *in_grids(tiles_in, encoders, tiles), measured])


def agreement_pipeline(
    encoders: Sequence[str], same_as: Mapping[str, str], grids: TileGrids | None = None
) -> Pipeline:
    """Features that were brought against the encoder that should give the same.

    Every encoder has rows, so that none is missed where others have them.
    """
    x, tiles = AGREEMENT, grids or TileGrids()

    def of_encoder(e: str) -> list[Node]:
        if e not in same_as:
            nothing = replace(x, accumulate=no_agreement_statistics, inputs=[])
            return encoder_nodes("robustness", nothing, e, tiles, _NOTHING_THE_SAME)
        other = [tiles.dataset(name, same_as[e]) for name in ("tiles", "embeddings.{e}")]
        own = [tiles.dataset(name, e) for name in VECTORS]
        return encoder_nodes("robustness", replace(x, inputs=[*own, *other]), e)

    own = [grouped(e, of_encoder(e)) for e in encoders]
    return grouped(x.name, [*own, collected_by_encoder("robustness", x.name, encoders)])
