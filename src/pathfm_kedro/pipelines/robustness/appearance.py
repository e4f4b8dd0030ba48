r"""Stain and scanner: how far a tile moves, and which neighbours it keeps, when its look changes.

Every tile of the pool is embedded as it is (clean) and after each change, per dose:

- ``jitter``: stain stronger or weaker (:func:`~pathfm_kedro.slides.stain.jittered`);
- ``reinhard``, ``macenko``: in the stain of another center, whose look is the median over its tiles
  (:func:`~pathfm_kedro.slides.stain.reinhard_transfer`,
  :func:`~pathfm_kedro.slides.stain.macenko_transfer`);
- ``jpeg``, ``blur``, ``gamma``: as a scanner or a file does
  (:func:`~pathfm_kedro.slides.perturbations.compressed`,
  :func:`~pathfm_kedro.slides.perturbations.blurred`,
  :func:`~pathfm_kedro.slides.perturbations.with_gamma`).

Of each change and dose,
``relative_shift`` and ``kept_neighbours`` (:mod:`~pathfm_kedro.statistics.perturbation`), and
``<name>_kept_neighbours``: the mean of kept_neighbours over the changes that ``appearance.combined``
lists under that name, such as those that stand for the scanner.

Criteria rest on kept_neighbours: for an encoder that sees nothing but colour the between-patient
distance is itself one of colour, so that its relative shift is small.

Pitfalls
--------
- The share kept depends on the size of the pool: compare encoders within one audit only.
- Transfers are models of staining; no second staining or scan of the same tissue was used. One center,
  or centers without measurable stain, leave them undefined.
- One random jitter per tile, made larger with σ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from pathfm_kedro.slides.center_stains import n_targets, target_centers, usable_references
from pathfm_kedro.slides.perturbations import blurred, compressed, with_gamma
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.slides.stain import (
    COMMON_BASIS,
    StainReference,
    jitter_draw,
    jittered,
    macenko_transfer,
    reinhard_transfer,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.perturbation import (
    PERTURBATION_SUMS,
    ReferenceTiles,
    kept_neighbours,
    relative_shift,
)
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.views import View, ViewSet, embedded_views, unchanged

Setting = Mapping[str, Any]

CLEAN, JITTER, REINHARD, MACENKO, JPEG, BLUR, GAMMA = (
    "clean",
    "jitter",
    "reinhard",
    "macenko",
    "jpeg",
    "blur",
    "gamma",
)
TRANSFERS = (REINHARD, MACENKO)

#: What the dose of a view is called in its setting; a transfer has none.
DOSES = {JITTER: "sigma", JPEG: "quality", BLUR: "sigma_px", GAMMA: "exponent"}

#: One row per change, dose, target (of a transfer, else null) and patient.
APPEARANCE_SCHEMA: dict[str, pl.DataType] = {
    "change": pl.String(),
    "dose": pl.Float64(),
    "target": pl.Int64(),
    "patient_id": pl.String(),
    **PERTURBATION_SUMS,
}

_NO_TRANSFER = (
    "fewer than two centers have a stain to take: the cohort has one center, or too few tiles of the "
    "others show haematoxylin and eosin (the table stain_references says which), or this encoder has "
    "no slide of those that have one; add centers or raise tile_pool.max_tiles"
)


def _sorted_doses(doses: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(int(dose) if float(dose).is_integer() else dose for dose in sorted(set(doses)))


Doses = Annotated[
    tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], AfterValidator(_sorted_doses)
]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Appearance(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    jitter, jpeg, blur, gamma
        Doses: σ in optical density; quality; σ in px; exponents.
    max_targets
        Other centers whose stain each tile takes.
    min_reference_tiles
        Tiles with a stain of their own that a center's look needs.
    k
        Neighbours that count.
    combined
        Settings of changes that are averaged under one name.
    """

    jitter: Doses
    jpeg: Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], AfterValidator(_sorted_doses)]
    blur: Doses
    gamma: Doses
    max_targets: Annotated[int, Field(ge=0)]
    min_reference_tiles: Annotated[int, Field(ge=1)]
    k: Annotated[int, Field(ge=1)]
    combined: Mapping[str, Annotated[tuple[Setting, ...], Field(min_length=1)]]

    @model_validator(mode="after")
    def _combined_are_measured(self) -> Appearance:
        measured = self.changes
        for name, settings in self.combined.items():
            for setting in settings:
                if dict(setting) not in measured:
                    raise ValueError(
                        f"combined.{name}: {dict(setting)} is not among the changes; add "
                        f"its dose to appearance.{setting.get('change')}, or choose of "
                        f"{'; '.join(map(str, measured))}"
                    )
        return self

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Settings of what is measured: every change and dose, in their order."""
        doses = {JITTER: self.jitter, JPEG: self.jpeg, BLUR: self.blur, GAMMA: self.gamma}
        return [
            {"change": change, **own}
            for change in (JITTER, *TRANSFERS, JPEG, BLUR, GAMMA)
            for own in (_settings(change, doses[change]) if change in doses else ({},))
        ]


def jittered_stain(
    tile: Pixels,
    source: StainReference | None,
    sigmas: Sequence[float],
    experiment_seed: int,
    seed: int,
) -> Pixels:
    """The tile with haematoxylin and eosin jittered at each σ: one draw, so that the dose differs."""
    basis = COMMON_BASIS if source is None else source.basis
    draw = jitter_draw([experiment_seed, seed])
    return np.stack([jittered(tile, basis, sigma, draw) for sigma in sigmas])


def reinhard_stained(
    tile: Pixels, source: StainReference, targets: Sequence[StainReference]
) -> Pixels:
    """The tile in the colours of each target center."""
    return np.stack([reinhard_transfer(tile, source, target) for target in targets])


def macenko_stained(
    tile: Pixels, source: StainReference, targets: Sequence[StainReference]
) -> Pixels:
    """The tile in the stain of each target center."""
    return np.stack([macenko_transfer(tile, source, target) for target in targets])


def repeated(tile: Pixels, times: int) -> Pixels:
    """The tile as it is, several times."""
    return np.stack([tile] * times)


def jpeg_compressed(tile: Pixels, qualities: Sequence[int]) -> Pixels:
    """The tile compressed at each quality."""
    return np.stack([compressed(tile, quality) for quality in qualities])


def gaussian_blurred(tile: Pixels, sigmas_px: Sequence[float]) -> Pixels:
    """The tile blurred by each σ."""
    return np.stack([blurred(tile, sigma) for sigma in sigmas_px])


def gamma_changed(tile: Pixels, exponents: Sequence[float]) -> Pixels:
    """The tile with each exponent."""
    return np.stack([with_gamma(tile, exponent) for exponent in exponents])


def appearance_views(references: pl.DataFrame, center: str | None, p: Appearance) -> ViewSet:
    """The views of one center's tiles, the clean tile first; their settings are those of all centers.

    Without a look of the center its own stain is jittered in the common basis, and transfers leave the
    tile as it is (they are not counted).

    Parameters
    ----------
    references
        From :func:`~pathfm_kedro.slides.center_stains.center_references`.
    center
        The tiles' center.
    p
        The parameters.
    """
    known = usable_references(references)
    source = known.get(center) if center is not None else None
    targets = tuple(known[one] for one in target_centers(list(known), center, p.max_targets))
    n = n_targets(list(known), p.max_targets)
    asked = {"source": source, "sigmas": p.jitter, "experiment_seed": p.seed}
    views = [
        View(CLEAN, unchanged),
        View(JITTER, jittered_stain, asked, _settings(JITTER, p.jitter), random=True),
        *(
            View(name, repeated, {"times": n}, tuple({"target": i} for i in range(n)))
            if source is None
            else View(
                name,
                transfer,
                {"source": source, "targets": targets},
                tuple({"target": i} for i in range(n)),
            )
            for name, transfer in ((REINHARD, reinhard_stained), (MACENKO, macenko_stained))
        ),
        View(JPEG, jpeg_compressed, {"qualities": p.jpeg}, _settings(JPEG, p.jpeg)),
        View(BLUR, gaussian_blurred, {"sigmas_px": p.blur}, _settings(BLUR, p.blur)),
        View(GAMMA, gamma_changed, {"exponents": p.gamma}, _settings(GAMMA, p.gamma)),
    ]
    return ViewSet(tuple(view for view in views if view.settings))


def _settings(view: str, doses: Sequence[float]) -> tuple[Setting, ...]:
    return tuple({DOSES[view]: dose} for dose in doses)


def view_of_appearance(
    tiles: pl.DataFrame, pixels: int, references: pl.DataFrame, p: Appearance
) -> ViewSet:
    """The views of one slide's tiles."""
    return appearance_views(references, tiles["center"][0], p)


def appearance_statistics(
    views: Embeddings, pool: pl.DataFrame, references: pl.DataFrame, p: Appearance
) -> pl.DataFrame:
    """Reduce the views' vectors to sums per change, dose, target and patient.

    Parameters
    ----------
    views
        Vectors of :func:`appearance_views`.
    pool
        The tiles; slides without a shard are left out.
    references
        From :func:`~pathfm_kedro.slides.center_stains.center_references`; transfers
        count tiles of centers that have one.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`APPEARANCE_SCHEMA`.
    """
    settings = appearance_views(references, None, p).settings
    found = embedded_views(views, pool, settings, "appearance")
    known = list(usable_references(references))
    stained = found.tiles["center"].is_in(known).fill_null(False).to_numpy()
    frames = [pl.DataFrame(schema=APPEARANCE_SCHEMA)]
    for part, kinds in ((found, DOSES), (found.part(stained), TRANSFERS)):
        if part.tiles.is_empty():
            continue
        clean = ReferenceTiles.of(part.at(CLEAN), part.tiles, p.k)
        for view in kinds:
            for setting, vectors in part.of(view):
                dose = setting.get(DOSES.get(view, ""))
                sums = clean.statistics(
                    vectors, change=view, dose=dose, target=setting.get("target")
                )
                frames.append(to_schema(sums, APPEARANCE_SCHEMA))
    return pl.concat(frames)


def appearance_figures(statistics: pl.DataFrame, p: Appearance) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`appearance_statistics`.
    p
        The parameters.
    """
    of = PatientStatistics(statistics, p)
    for setting in p.changes:
        view = _together(of, [setting]).with_setting(**setting)
        yield view.figure("relative_shift", _of_transfers(relative_shift, of, [setting]))
        yield view.figure("kept_neighbours", _of_transfers(kept_neighbours, of, [setting]), k=p.k)
    for name, settings in p.combined.items():
        names = [_name(setting) for setting in settings]
        yield (
            _together(of, settings)
            .with_setting(changes=names, k=p.k)
            .figure(f"{name}_kept_neighbours", _of_transfers(kept_neighbours, of, settings))
        )


def _name(setting: Setting) -> str:
    """Such as ``blur 1``."""
    return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in setting.values())


def _together(of: PatientStatistics, settings: Sequence[Setting]) -> PatientStatistics:
    """The rows of several changes."""
    asked = [(s["change"], s.get(DOSES.get(s["change"], ""))) for s in settings]
    matches = [
        pl.col("change").eq(change) & pl.col("dose").eq_missing(pl.lit(dose, pl.Float64))
        for change, dose in asked
    ]
    return of.where(pl.any_horizontal(matches))


def _of_transfers(
    estimator: Callable[[PatientStatistics], Value],
    of: PatientStatistics,
    settings: Sequence[Setting],
) -> Callable[[PatientStatistics], Value]:
    """The estimator, which says why where a transfer is asked for and none could be made."""

    def compute(view: PatientStatistics) -> Value:
        absent = [s for s in settings if _together(of, [s]).table.is_empty()]
        if absent and not of.table.is_empty():
            raise Undefined(_NO_TRANSFER)
        return estimator(view)

    return compute
