"""Which tiles are attacked, by what, and under which probe of the label.

Patients are split into folds. A linear probe of each fold is trained on clean tiles of the other
folds' patients and attacked on its own fold's: no probe has seen the patient it is attacked on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AfterValidator, Field, PositiveInt, ValidationInfo
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.cross_validation import ProbeSettings, patient_folds
from pathfm_kedro.statistics.linear_classifier import LinearClassifier, fit_linear_classifier
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.sampling import shuffled_turns
from pathfm_kedro.statistics.tables import Embeddings, chosen_vectors, tile_rows

#: Attacks. PGD's name has its number of steps: :func:`pgd_name`.
CLEAN, FGSM, UNIVERSAL = "none", "fgsm", "universal"
SIGN_NOISE, GAUSSIAN_NOISE = "sign_noise", "gaussian_noise"
#: PGD as another benchmark has it, on images that are not rounded.
PUBLISHED = "published"

#: Largest size: the grey levels of an int8 perturbation.
_MAX_EPSILON = 127

#: One row per tile that trains probes (of the other folds), is attacked (under the probe of its own
#: fold), or both.
POOL_SCHEMA: dict[str, pl.DataType] = {
    "tile_id": pl.String(),
    "slide_id": pl.String(),
    "patient_id": pl.String(),
    "center": pl.String(),
    "organ": pl.String(),
    "label": pl.String(),
    "fold": pl.Int64(),
    "trains": pl.Boolean(),
    "attacked": pl.Boolean(),
    "x": pl.Int64(),
    "y": pl.Int64(),
    "field_um": pl.Float64(),
    "mpp": pl.Float64(),
}

#: One row per fold and label, weights in the space of raw vectors.
PROBE_SCHEMA: dict[str, pl.DataType] = {
    "fold": pl.Int64(),
    "label": pl.String(),
    "bias": pl.Float64(),
    "weight": pl.List(pl.Float64()),
}

_RISING = AfterValidator(lambda values: tuple(sorted(set(values))))
Epsilons = Annotated[
    tuple[Annotated[int, Field(ge=1, le=_MAX_EPSILON)], ...], Field(min_length=1), _RISING
]


@dataclass(frozen=True, config=STRICT)
class UniversalSettings:
    """How the one perturbation for all tiles is fitted.

    Attributes
    ----------
    epsilons
        Sizes in grey levels, some of the experiment's.
    tiles, steps
        On how many tiles, in how many steps.
    batch
        Tiles in memory with their gradients at once.
    """

    epsilons: Epsilons
    tiles: PositiveInt
    steps: PositiveInt
    batch: PositiveInt


@dataclass(frozen=True, config=STRICT)
class PublishedAttack:
    """Projected gradient descent as another benchmark has it, on images that are not rounded.

    Attributes
    ----------
    epsilon, step
        Radius of the ball and length of a step, on the scale 0 to 1.
    steps
        How many.
    """

    epsilon: Annotated[float, Field(gt=0, le=1)]
    step: Annotated[float, Field(gt=0, le=1)]
    steps: PositiveInt


def _measured(size: Any, info: ValidationInfo) -> Any:
    """Refuse a size that is not one of the experiment's."""
    known = info.data.get("epsilons")
    asked = size.epsilons if isinstance(size, UniversalSettings) else (size,)
    if known is not None and not set(asked) <= set(known):
        raise ValueError(f"give what is among adversarial.epsilons, {list(known)}")
    return size


@plain_dataclass(frozen=True)
class Variant:
    """One way in which every tile is changed: what is done to it, and by how many grey levels."""

    attack: str
    epsilon: int


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Adversarial(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    epsilons
        Sizes in grey levels of 255.
    pgd_steps
        Steps of projected gradient descent.
    universal
        Of the one perturbation for all tiles; None leaves it out.
    transfer_epsilon
        Size at which tiles made against one encoder are shown to the others.
    drop_epsilon
        Size at which the drop beyond noise is read.
    max_tiles
        Tiles that are attacked.
    probe_tiles_per_slide
        Tiles of a slide that train probes, at most.
    probe
        Of the label.
    tolerance
        Accuracy by which a rule of a sound attack may be broken.
    published
        An attack as another benchmark has it; None leaves it out.
    harmonised
        Whether harmonised variants are attacked, through the encoder whose vectors they take.

    Examples
    --------
    >>> p = Adversarial(epsilons=(2, 8), pgd_steps=(10,), transfer_epsilon=8, drop_epsilon=2,
    ...                 max_tiles=24, probe_tiles_per_slide=16, probe=ProbeSettings(4, 0.01))
    >>> [variant.attack for variant in p.white_box]
    ['fgsm', 'fgsm', 'pgd-10', 'pgd-10']
    """

    epsilons: Epsilons
    pgd_steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1), _RISING]
    universal: Annotated[UniversalSettings, AfterValidator(_measured)] | None = None
    transfer_epsilon: Annotated[int, AfterValidator(_measured)]
    drop_epsilon: Annotated[int, AfterValidator(_measured)]
    max_tiles: PositiveInt
    probe_tiles_per_slide: PositiveInt
    probe: ProbeSettings
    tolerance: Annotated[float, Field(ge=0)] = 0.05
    published: PublishedAttack | None = None
    harmonised: bool = True

    @property
    def strongest(self) -> str:
        """The attack that the drop and transfer are read on: PGD of most steps."""
        return pgd_name(self.pgd_steps[-1])

    @property
    def noises(self) -> tuple[Variant, ...]:
        """Variants that need no gradient, the tile itself first."""
        changed = (Variant(n, e) for n in (SIGN_NOISE, GAUSSIAN_NOISE) for e in self.epsilons)
        return (Variant(CLEAN, 0), *changed)

    @property
    def pgd(self) -> tuple[Variant, ...]:
        """PGD of ever more steps, each at every size."""
        return tuple(Variant(pgd_name(k), e) for k in self.pgd_steps for e in self.epsilons)

    @property
    def white_box(self) -> tuple[Variant, ...]:
        """Variants that need the encoder's gradient."""
        fgsm = (Variant(FGSM, e) for e in self.epsilons)
        sizes = () if self.universal is None else self.universal.epsilons
        return (*fgsm, *self.pgd, *(Variant(UNIVERSAL, e) for e in sizes))

    @property
    def unrounded(self) -> tuple[Variant, ...]:
        """Variants that are also, or only, read without being rounded to 8 bits."""
        published = () if self.published is None else (Variant(PUBLISHED, 0),)
        return (Variant(CLEAN, 0), *self.pgd, *published)


def pgd_name(steps: int) -> str:
    """How projected gradient descent of so many steps is called.

    Examples
    --------
    >>> pgd_name(10)
    'pgd-10'
    """
    return f"pgd-{steps}"


def choose_adversarial_pool(
    slides: pl.DataFrame, tiles: pl.DataFrame, p: Adversarial
) -> pl.DataFrame:
    """Sample the tiles that train probes and those that are attacked, and split patients into folds.

    A label takes part if as many patients carry it as there are folds. A slide gives at most
    ``probe_tiles_per_slide`` tiles to the probes. Attacked are ``max_tiles`` tiles: cells of label
    and center take turns, in each its patients. The sample is the same for every encoder.

    Parameters
    ----------
    slides
        Slides table; only ``usable`` slides take part.
    tiles
        Tiles table: tile_id, slide_id, x and y (level-0 px), field_um, mpp.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`POOL_SCHEMA`. Empty where fewer than two labels take part.
    """
    usable = slides.filter(pl.col("status") == "usable", pl.col("label").is_not_null())
    rows = tile_rows(usable, tiles, sorted(usable["slide_id"]))
    carried = rows.group_by("label").agg(pl.col("patient_id").n_unique())
    labels = carried.filter(pl.col("patient_id") >= p.probe.folds)["label"].to_list()
    if len(labels) < 2:
        return pl.DataFrame(schema=POOL_SCHEMA)
    rows = rows.filter(pl.col("label").is_in(labels)).with_row_index("_row").sort("tile_id")
    of_slides = shuffled_turns(rows, [["slide_id"]], p.seed)
    trains = of_slides.filter(pl.int_range(pl.len()).over("slide_id") < p.probe_tiles_per_slide)
    cells = [["label", "center", "patient_id"], ["label", "center"]]
    attacked = shuffled_turns(rows, cells, p.seed).head(p.max_tiles)
    return (
        rows.with_columns(
            fold=_folds(rows, p),
            trains=pl.col("tile_id").is_in(trains["tile_id"].to_list()),
            attacked=pl.col("tile_id").is_in(attacked["tile_id"].to_list()),
        )
        .filter(pl.col("trains") | pl.col("attacked"))
        .sort("_row")
        .select(pl.col(name).cast(kind) for name, kind in POOL_SCHEMA.items())
    )


def _folds(rows: pl.DataFrame, p: Adversarial) -> pl.Series:
    patients, labels = (rows[name].to_numpy() for name in ("patient_id", "label"))
    return pl.Series(patient_folds(patients, p.probe.folds, p.seed, labels))


def fit_adversarial_probes(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    pool: pl.DataFrame,
    p: Adversarial,
) -> pl.DataFrame:
    """One linear probe of the label per fold, trained on clean tiles of the other folds' patients.

    Parameters
    ----------
    slides, tiles
        The tables.
    embeddings
        Vectors of one encoder.
    pool
        From :func:`choose_adversarial_pool`.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`PROBE_SCHEMA`. A fold whose training tiles have fewer than two labels has none.
    """
    rows = tile_rows(slides, tiles, embeddings.slide_ids).with_row_index("_row")
    chosen = pool.filter("trains").select("tile_id", "fold", "label")
    training = rows.select("tile_id", "_row").join(chosen, on="tile_id", maintain_order="left")
    if training.is_empty():
        return pl.DataFrame(schema=PROBE_SCHEMA)
    vectors = chosen_vectors(rows, training["_row"].to_numpy().astype(np.int64), embeddings)
    folds, labels = training["fold"].to_numpy(), training["label"].to_numpy()
    found: list[dict[str, Any]] = []
    for fold in np.unique(folds).tolist():
        others = folds != fold
        if len(np.unique(labels[others])) >= 2:
            probe = fit_linear_classifier(
                vectors[others], labels[others], p.probe.C, p.probe.max_iter
            )
            found += _probe_rows(fold, probe)
    return pl.DataFrame(found, schema=PROBE_SCHEMA)


def no_adversarial_probes(p: Adversarial) -> pl.DataFrame:
    """The probes of an encoder that is not attacked: no rows."""
    return pl.DataFrame(schema=PROBE_SCHEMA)


def _probe_rows(fold: int, probe: LinearClassifier) -> Iterator[dict[str, Any]]:
    for label, bias, weight in zip(probe.labels, probe.bias, probe.weight, strict=True):
        yield {"fold": fold, "label": label, "bias": float(bias), "weight": weight.tolist()}


def probe_of_fold(probes: pl.DataFrame, fold: int) -> LinearClassifier:
    """The probe that saw no patient of the fold.

    Raises
    ------
    KeyError
        If none could be trained.
    """
    rows = probes.filter(pl.col("fold") == fold)
    if rows.is_empty():
        raise KeyError(f"fold {fold} has no probe")
    weight = np.array(rows["weight"].to_list(), dtype=np.float64)
    return LinearClassifier(tuple(rows["label"]), weight, rows["bias"].to_numpy())


def attacked_tiles(pool: pl.DataFrame, probes: pl.DataFrame) -> pl.DataFrame:
    """Attacked tiles whose label the probe of their fold has learned, in the pool's order."""
    return pool.filter("attacked").join(
        probes.select("fold", "label"), on=["fold", "label"], how="semi", maintain_order="left"
    )
