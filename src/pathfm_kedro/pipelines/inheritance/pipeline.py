"""inheritance: frozen vectors, what a probe reads from them, and what adapting the encoder gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.inheritance.adaptation import adaptation_figures
from pathfm_kedro.pipelines.inheritance.adaptation_fits import (
    Adaptation,
    plan_adaptation,
)
from pathfm_kedro.pipelines.inheritance.adaptation_statistics import adaptation_statistics
from pathfm_kedro.pipelines.inheritance.arm_tiles import choose_arm_pool, plan_arm_tiles
from pathfm_kedro.pipelines.inheritance.geometry import (
    Geometry,
    geometry_figures,
    geometry_statistics,
)
from pathfm_kedro.pipelines.inheritance.geometry_change import (
    GeometryChange,
    geometry_change_figures,
    geometry_change_statistics,
)
from pathfm_kedro.pipelines.inheritance.initialisation import (
    Initialisation,
    initialisation_figures,
    initialisation_statistics,
    plan_initialisation,
)
from pathfm_kedro.pipelines.inheritance.label_budget import (
    LabelBudget,
    label_budget_figures,
    label_budget_statistics,
)
from pathfm_kedro.pipelines.inheritance.linear_probe import (
    LinearProbe,
    linear_probe_figures,
    linear_probe_statistics,
    pooled_probe_figures,
)
from pathfm_kedro.pipelines.inheritance.noise_arms import (
    BACKBONE,
    PretrainingNoise,
    plan_noise_arms,
)
from pathfm_kedro.pipelines.inheritance.pretext_tasks import (
    ARMS,
    PretextTasks,
    plan_pretext_tasks,
    pretext_figures,
    pretext_statistics,
)
from pathfm_kedro.pipelines.inheritance.pretraining_noise import noise_figures, noise_statistics
from pathfm_kedro.pipelines.inheritance.probe_calibration import (
    ProbeCalibration,
    probe_calibration_figures,
    probe_calibration_statistics,
)
from pathfm_kedro.pipelines.inheritance.slide_heads import (
    SlideHeads,
    slide_heads_figures,
    slide_heads_statistics,
)
from pathfm_kedro.pipelines.inheritance.task_specific import (
    task_specific_figures,
    task_specific_statistics,
)
from pathfm_kedro.pipelines.inheritance.task_specific_fits import TaskSpecific, plan_task_specific
from pathfm_kedro.wiring import (
    Experiment,
    TileGrids,
    collected,
    experiment_pipeline,
    grouped,
    named_partial,
    no_views,
    node,
    with_parameters,
)
from pathfm_kedro.wiring_across import comparison_pipeline

VECTORS = ["slides", "tiles", "embeddings.{e}"]
ARM_DATA = ["arm_pool", "arm_tiles"]

EXPERIMENTS = [
    Experiment("geometry", Geometry, geometry_statistics, geometry_figures, VECTORS),
    Experiment(
        "linear_probe",
        LinearProbe,
        linear_probe_statistics,
        linear_probe_figures,
        VECTORS,
        pooled=pooled_probe_figures,
    ),
    Experiment(
        "probe_calibration",
        ProbeCalibration,
        probe_calibration_statistics,
        probe_calibration_figures,
        VECTORS,
    ),
    Experiment("label_budget", LabelBudget, label_budget_statistics, label_budget_figures, VECTORS),
    Experiment("slide_heads", SlideHeads, slide_heads_statistics, slide_heads_figures, VECTORS),
]
#: Of each encoder, against networks that are trained once for all of them.
TASK_SPECIFIC = Experiment(
    "task_specific",
    TaskSpecific,
    task_specific_statistics,
    task_specific_figures,
    ["tiles", "embeddings.{e}", *ARM_DATA, "arms.task_specific"],
)
#: Of the encoders that are adapted.
ADAPTATION = Experiment(
    "adaptation",
    Adaptation,
    adaptation_statistics,
    adaptation_figures,
    [*ARM_DATA, "arms.adaptation.{e}", "params:encoders.{e}"],
)

#: Of encoders that are a later version of another; see :func:`change_pipeline`.
CHANGE = Experiment(
    "geometry_change",
    GeometryChange,
    geometry_change_statistics,
    geometry_change_figures,
    ["statistics.inheritance.geometry.{e}"],
)

#: A network of the cohort's own, pretrained on wrong labels.
NOISE = Experiment(
    "pretraining_noise",
    PretrainingNoise,
    noise_statistics,
    noise_figures,
    [*ARM_DATA, "arms.pretraining_noise"],
    subject="arm",
)
#: Networks of the arms' own, which stand for no encoder.
PRETEXT_TASKS = Experiment(
    "pretext_tasks",
    PretextTasks,
    pretext_statistics,
    pretext_figures,
    [*ARM_DATA, "arms.pretext_tasks"],
    subject="arm",
)
INITIALISATION = Experiment(
    "initialisation",
    Initialisation,
    initialisation_statistics,
    initialisation_figures,
    [*ARM_DATA, "arms.initialisation"],
    subject="arm",
)
#: The control that knows what was drawn on a phantom's tiles.
_DRAWN = "phantom_truth"


def create_pipeline(
    encoders: Sequence[str],
    controls: Sequence[str] = (),
    grids: TileGrids | None = None,
    bases: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    adapted: Sequence[str] = (),
    splits: Mapping[str, Sequence[str]] | None = None,
    mitigated: Mapping[str, tuple[str, str]] | None = None,
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders; two controls are not compared.

    Parameters
    ----------
    encoders, controls
        The cohort's, and those among them that are not compared with each other.
    grids
        Which tiles each encoder has vectors of; one grid for all where not given.
    bases
        Of each harmonised variant its base.
    parameters
        The cohort's: which encoders are versions of one decides what is wired.
    adapted
        ``adaptation.encoders``.
    splits
        Of each encoder that is trained on several splits of the patients the encoders of all splits.
    mitigated
        Of each variant the encoder that it is held against, and what was done.

    Raises
    ------
    ValueError
        If one that is to be adapted is none of the cohort's.
    """
    unknown = sorted(set(adapted) - set(encoders))
    if unknown:
        raise ValueError(
            f"adaptation.encoders names {', '.join(unknown)}, and the cohort has {', '.join(encoders)}"
        )
    of_arms = [replace(ADAPTATION, only=tuple(adapted))] if adapted else []
    before = versions_before(encoders, bases or {}, parameters or {}, grids or TileGrids())
    of_all = [*EXPERIMENTS, TASK_SPECIFIC]
    names = [x.name for x in (*of_all, NOISE, PRETEXT_TASKS, INITIALISATION, *of_arms)]
    names += [*([CHANGE.name] if before else []), "comparison"]
    tables = [f"measurements.inheritance.{name}" for name in names]
    parts = [
        experiment_pipeline("inheritance", x, encoders, grids=grids, splits=splits)
        for x in EXPERIMENTS
    ]
    tasks = PRETEXT_TASKS
    if _DRAWN in encoders and not (grids and grids.grid(_DRAWN)):
        tasks = replace(tasks, inputs=[*tasks.inputs, "tiles", f"embeddings.{_DRAWN}"])
    parts += [
        _trained(TASK_SPECIFIC, encoders, plan_task_specific, grids=grids),
        _trained(NOISE, [BACKBONE], plan_noise_arms, grids=grids),
        _trained(tasks, [ARMS], plan_pretext_tasks, grids=grids),
        _trained(INITIALISATION, [ARMS], plan_initialisation, "params:encoders", grids=grids),
    ]
    parts += [
        experiment_pipeline("inheritance", x, encoders, *map(_adapted, adapted), grids=grids)
        for x in of_arms
    ]
    if before:
        parts.append(change_pipeline(encoders, before))
    arms = grouped("arms", _arm_tiles(grids or TileGrids()))
    compared = comparison_pipeline("inheritance", of_all, encoders, controls, grids, mitigated)
    collect = collected(tables, "inheritance_measurements")
    return grouped("inheritance", [arms, *parts, compared, collect])


def versions_before(
    encoders: Sequence[str],
    bases: Mapping[str, str],
    parameters: Mapping[str, Any],
    grids: TileGrids,
) -> dict[str, str]:
    """Of each encoder that is a later version of another the version before.

    Raises
    ------
    ValueError
        If ``geometry_change.before`` names what is no encoder of the cohort, or has other tiles.

    Examples
    --------
    >>> versions_before(["uni", "uni_combat"], {"uni_combat": "uni"}, {}, TileGrids())
    {'uni_combat': 'uni'}
    """
    asked = (parameters.get(CHANGE.name) or {}).get("before") or {}
    for name, other in asked.items():
        where = f"{CHANGE.name}.before.{name} is {other!r}"
        if name == other or not {name, other} <= set(encoders):
            raise ValueError(
                f"{where}: give two different encoders of the cohort ({', '.join(sorted(encoders))})"
            )
        if grids.grid(name) != grids.grid(other):
            raise ValueError(
                f"{where}: the two have vectors of different tiles, so that nothing can be said of the "
                "change; leave it out or embed both at the same tiles"
            )
    return {**bases, **asked}


def change_pipeline(encoders: Sequence[str], before: Mapping[str, str]) -> Pipeline:
    """Later versions of an encoder, each held against the version before."""

    def of_encoder(e: str) -> Experiment:
        return replace(CHANGE, inputs=[*CHANGE.inputs, CHANGE.inputs[0].format(e=before[e])])

    only = replace(CHANGE, only=list(before))
    return experiment_pipeline("inheritance", only, encoders, of_encoder=of_encoder)


def _arm_tiles(grids: TileGrids) -> list[Node]:
    """The tiles that arms are trained and probed on, and their pixels."""
    pool = node(
        choose_arm_pool,
        ["slides", "tiles", "params:arms"],
        "arm_pool",
        name="choose_arm_pool",
        tags="arms",
    )
    if grids.without_slides:
        return [pool, node(no_views, "params:engine", "arm_tiles", name="arm_tiles", tags="arms")]
    inputs = ["slides", "tiles", "arm_pool", "slide_files"]
    inputs += ["params:arms", "params:tile", "params:engine"]
    return [pool, node(plan_arm_tiles, inputs, "arm_tiles", name="arm_tiles", tags="arms")]


def _adapted(e: str) -> Pipeline:
    """The fits of an encoder's arms."""
    fit = node(
        named_partial(with_parameters(Adaptation, ADAPTATION.name, plan_adaptation), name=e),
        [*ARM_DATA, f"params:encoders.{e}", "params:engine", "params:adaptation"],
        f"arms.adaptation.{e}",
        name="fit_arms",
        tags=[ADAPTATION.name, e],
    )
    return grouped(e, [fit])


def _trained(
    x: Experiment,
    of: Sequence[str],
    plan: Callable[..., Any],
    *beside: str,
    grids: TileGrids | None = None,
) -> Pipeline:
    """An experiment on networks of its own, which it trains; `beside` is what their plan takes more."""
    fit = node(
        with_parameters(x.parameters, x.name, plan),
        [*ARM_DATA, *beside, "params:engine", f"params:{x.name}"],
        f"arms.{x.name}",
        name="train",
        tags=[x.name, "arms"],
    )
    return experiment_pipeline("inheritance", x, of, fit, grids=grids)
