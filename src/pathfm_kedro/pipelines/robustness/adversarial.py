"""Adversarial changes: how much accuracy a change that nobody sees takes from a probe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import (
    binomial_interval,
    bootstrap_weights,
    patient_codes,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.harmonisation import patient_folds
from pathfm_kedro.statistics.measurements import (
    Direction,
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings, tile_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "adversarial"
SIGNATURE = "accuracy_drop_beyond_noise"
DIRECTION: Direction = "below"

CLEAN, FGSM, UNIVERSAL, TRANSFER = "none", "fgsm", "universal", "transfer"
SIGN_NOISE, GAUSSIAN_NOISE = "sign_noise", "gaussian_noise"

#: Grey levels of an int8 perturbation.
_MOST_LEVELS = 127

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

PROBE_SCHEMA: dict[str, pl.DataType] = {
    "fold": pl.Int64(),
    "label": pl.String(),
    "bias": pl.Float64(),
    "weight": pl.List(pl.Float64()),
}

SUMS_SCHEMA: dict[str, pl.DataType] = {
    "attack": pl.String(),
    "epsilon": pl.Int64(),
    "source": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "correct_sum": pl.Float64(),
    "correct_unrounded_sum": pl.Float64(),
    "cosine_sum": pl.Float64(),
    "ssim_sum": pl.Float64(),
    "cosine_chance_sum": pl.Float64(),
    "chance": pl.Float64(),
}


@dataclass(frozen=True)
class Variant:
    """One way in which every tile is changed.

    Attributes
    ----------
    attack
        What is done to the tile.
    epsilon
        By how many grey levels of 255.
    """

    attack: str
    epsilon: int


@dataclass(frozen=True)
class UniversalParameters:
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

    epsilons: tuple[int, ...]
    tiles: int
    steps: int
    batch: int

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> UniversalParameters:
        """Read the parameters."""
        sizes = tuple(sorted(set(parameters["epsilons"])))
        return cls(sizes, parameters["tiles"], parameters["steps"], parameters["batch"])


@dataclass(frozen=True)
class AdversarialParameters:
    """What the experiment is told; see ``parameters_robustness.yml`` for the reasons.

    Examples
    --------
    >>> told = {"epsilons": [2, 8], "pgd_steps": [10], "universal": None, "transfer_epsilon": 8,
    ...         "signature_epsilon": 2, "max_tiles": 24, "folds": 4, "probe_tiles_per_slide": 16,
    ...         "C": 0.01, "max_iter": 300, "thresholds": {"accuracy_drop_beyond_noise": 0.15},
    ...         "tolerance": 0.05, "draws": 2000, "seed": 0}
    >>> [v.attack for v in AdversarialParameters.parse(told).white_box]
    ['fgsm', 'fgsm', 'pgd-10', 'pgd-10']
    """

    epsilons: tuple[int, ...]
    pgd_steps: tuple[int, ...]
    universal: UniversalParameters | None
    transfer_epsilon: int
    signature_epsilon: int
    max_tiles: int
    folds: int
    probe_tiles_per_slide: int
    C: float
    max_iter: int
    threshold: float | None
    tolerance: float
    draws: int
    seed: int

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> AdversarialParameters:
        """Read and check the parameters.

        Raises
        ------
        ValueError
            If an ε is no whole number of grey levels, a reading is taken at an ε that is not
            measured, or there are fewer than two folds; it names the key.
        """
        universal = parameters["universal"]
        told = cls(
            epsilons=tuple(sorted(set(parameters["epsilons"]))),
            pgd_steps=tuple(sorted(set(parameters["pgd_steps"]))),
            universal=None if universal is None else UniversalParameters.parse(universal),
            transfer_epsilon=parameters["transfer_epsilon"],
            signature_epsilon=parameters["signature_epsilon"],
            max_tiles=parameters["max_tiles"],
            folds=parameters["folds"],
            probe_tiles_per_slide=parameters["probe_tiles_per_slide"],
            C=parameters["C"],
            max_iter=parameters["max_iter"],
            threshold=parameters["thresholds"][SIGNATURE],
            tolerance=parameters["tolerance"],
            draws=parameters["draws"],
            seed=parameters["seed"],
        )
        told._check()
        return told

    def _check(self) -> None:
        for level in self.epsilons:
            if not isinstance(level, int) or not 1 <= level <= _MOST_LEVELS:
                raise ValueError(
                    f"adversarial.epsilons holds {level!r}: give whole grey levels of 255 from 1 to "
                    f"{_MOST_LEVELS}, such as 2 for 2/255"
                )
        for key in ("transfer_epsilon", "signature_epsilon"):
            if getattr(self, key) not in self.epsilons:
                raise ValueError(
                    f"adversarial.{key} is {getattr(self, key)}: give one of adversarial.epsilons, "
                    f"{list(self.epsilons)}"
                )
        if self.universal is not None and not set(self.universal.epsilons) <= set(self.epsilons):
            raise ValueError(
                f"adversarial.universal.epsilons is {list(self.universal.epsilons)}: give some of "
                f"adversarial.epsilons, {list(self.epsilons)}, or set adversarial.universal to null"
            )
        if not self.pgd_steps or min(self.pgd_steps) < 1:
            raise ValueError(
                f"adversarial.pgd_steps is {list(self.pgd_steps)}: give at least one number of "
                "steps, 1 or more, such as [10]"
            )
        if self.folds < 2:
            raise ValueError(
                f"adversarial.folds is {self.folds}: give 2 or more, so that no probe has seen the "
                "patient it is attacked on"
            )

    @property
    def strongest(self) -> str:
        """Name of the attack that the signature and transfer are read on: PGD of most steps."""
        return pgd_name(self.pgd_steps[-1])

    @property
    def noises(self) -> tuple[Variant, ...]:
        """Variants that need no gradient, the tile itself first."""
        changed = [Variant(n, e) for n in (SIGN_NOISE, GAUSSIAN_NOISE) for e in self.epsilons]
        return (Variant(CLEAN, 0), *changed)

    @property
    def white_box(self) -> tuple[Variant, ...]:
        """Variants that need the encoder's gradient."""
        names = [FGSM, *map(pgd_name, self.pgd_steps)]
        attacks = [Variant(name, e) for name in names for e in self.epsilons]
        sizes = () if self.universal is None else self.universal.epsilons
        return (*attacks, *(Variant(UNIVERSAL, e) for e in sizes))

    @property
    def unrounded(self) -> tuple[Variant, ...]:
        """Variants that are also read before they are rounded to 8 bits."""
        pgd = [Variant(pgd_name(k), e) for k in self.pgd_steps for e in self.epsilons]
        return (Variant(CLEAN, 0), *pgd)


def pgd_name(steps: int) -> str:
    """How projected gradient ascent of so many steps is called.

    Examples
    --------
    >>> pgd_name(10)
    'pgd-10'
    """
    return f"pgd-{steps}"


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of raw vectors: logit_c = weight_c · f(x) + bias_c.

    Attributes
    ----------
    labels
        The classes.
    weight, bias
        float64 [classes, d] and [classes]; standardisation is part of them.

    Examples
    --------
    >>> probe = Probe(("a", "b"), np.array([[0.0], [2.0]]), np.array([0.0, -1.0]))
    >>> probe.margins(np.array([[1.0], [0.0]]), np.array([1, 1])).tolist()
    [1.0, -1.0]
    """

    labels: tuple[str, ...]
    weight: Floats
    bias: Floats

    def margins(self, vectors: NDArray[np.floating[Any]], targets: Ints) -> Floats:
        """Logit of the target minus the best other logit: right where above 0.

        Parameters
        ----------
        vectors
            [..., d].
        targets
            [...] classes.
        """
        logits = vectors.astype(np.float64) @ self.weight.T + self.bias
        own = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        others: Floats = np.where(
            np.arange(len(self.labels)) == targets[..., None], -np.inf, logits
        )
        margins: Floats = own - others.max(axis=-1)
        return margins

    def digest(self) -> str:
        """SHA-256 of classes and weights."""
        told = hashlib.sha256(json.dumps(self.labels).encode())
        told.update(np.ascontiguousarray(self.weight).tobytes())
        told.update(np.ascontiguousarray(self.bias).tobytes())
        return told.hexdigest()


def choose_adversarial_pool(
    slides: pl.DataFrame, tiles: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Draw the tiles that train probes and those that are attacked, and deal patients into folds.

    A label takes part if as many patients carry it as there are folds. A slide gives at most
    ``probe_tiles_per_slide`` tiles to the probes. Attacked are ``max_tiles`` tiles: cells of label
    and center take turns, in each its patients. The draw is the same for every encoder.

    Parameters
    ----------
    slides
        Slides table; only ``usable`` slides take part.
    tiles
        Tiles table: tile_id, slide_id, x and y (level-0 px), field_um, mpp.
    parameters
        Of the experiment.

    Returns
    -------
    DataFrame
        Columns ``POOL_SCHEMA``: ``fold`` of the tile's patient, ``trains`` (the probes of the other
        folds), ``attacked`` (under the probe of its own fold). Empty where fewer than two labels
        take part.
    """
    told = AdversarialParameters.parse(parameters)
    usable = slides.filter(pl.col("status") == "usable", pl.col("label").is_not_null())
    rows = tile_rows(usable, tiles, sorted(usable["slide_id"]))
    carried = rows.group_by("label").agg(pl.col("patient_id").n_unique())
    labels = carried.filter(pl.col("patient_id") >= told.folds)["label"].to_list()
    if len(labels) < 2:
        return pl.DataFrame(schema=POOL_SCHEMA)
    rows = rows.filter(pl.col("label").is_in(labels)).with_row_index("_row").sort("tile_id")
    order = np.random.default_rng(told.seed).permutation(len(rows))
    rows = rows.with_columns(_random=pl.Series(order), fold=_folds(rows, told))
    rows = rows.with_columns(trains=_turn(rows, "slide_id") < told.probe_tiles_per_slide)
    attacked = _in_turns(rows).head(told.max_tiles)["tile_id"]
    return (
        rows.with_columns(attacked=pl.col("tile_id").is_in(attacked.to_list()))
        .filter(pl.col("trains") | pl.col("attacked"))
        .sort("_row")
        .select(pl.col(name).cast(kind) for name, kind in POOL_SCHEMA.items())
    )


def _folds(rows: pl.DataFrame, told: AdversarialParameters) -> pl.Series:
    patients = rows.select("patient_id", "label").unique().sort("patient_id", "label")
    fold_of = patient_folds(
        patients["patient_id"].to_list(), patients["label"].to_list(), told.folds, told.seed
    )
    return rows["patient_id"].replace_strict(fold_of, return_dtype=pl.Int64)


def _turn(rows: pl.DataFrame, group: str) -> pl.Series:
    """In which place of its group, at random, a row comes."""
    return rows.select(pl.col("_random").rank("ordinal").over(group) - 1).to_series()


def _in_turns(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows in the order in which cells of label and center, and in each its patients, take turns."""
    rows = rows.with_columns(_turn=pl.lit(0, pl.Int64))
    for group in (["label", "center", "patient_id"], ["label", "center"]):
        rows = rows.sort("_turn", "_random").with_columns(_turn=pl.int_range(pl.len()).over(group))
    return rows.sort("_turn", "_random")


def fit_adversarial_probes(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    pool: pl.DataFrame,
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """One linear probe of the label per fold, trained on clean tiles of the other folds' patients.

    Multinomial logistic regression on standardised vectors, classes weighted equally.

    Parameters
    ----------
    slides, tiles
        The tables.
    embeddings
        Vectors of one encoder.
    pool
        From :func:`choose_adversarial_pool`.
    parameters
        ``C``, ``max_iter``, with the experiment's others.

    Returns
    -------
    DataFrame
        Columns ``PROBE_SCHEMA``: one row per fold and label, in raw-vector space. A fold whose
        training tiles have fewer than two labels has none.
    """
    told = AdversarialParameters.parse(parameters)
    training = _training_rows(slides, tiles, embeddings, pool)
    if training.is_empty():
        return pl.DataFrame(schema=PROBE_SCHEMA)
    vectors = _vectors_of(training, embeddings)
    folds, labels = training["fold"].to_numpy(), training["label"].to_numpy()
    rows: list[dict[str, Any]] = []
    for fold in np.unique(folds).tolist():
        others = folds != fold
        if len(np.unique(labels[others])) >= 2:
            probe = fit_probe(vectors[others], labels[others], told.C, told.max_iter)
            rows += _probe_rows(fold, probe)
    return pl.DataFrame(rows, schema=PROBE_SCHEMA)


def fit_probe(vectors: Floats, labels: NDArray[Any], C: float, max_iter: int) -> Probe:
    """Logistic regression on standardised vectors, written in terms of raw ones.

    Parameters
    ----------
    vectors
        [n, d].
    labels
        [n], at least two different.
    C
        Inverse strength of the L2 penalty.
    max_iter
        Iterations of the solver at most.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        scaler = StandardScaler().fit(vectors)
        model = LogisticRegression(C=C, max_iter=max_iter, class_weight="balanced")
        model.fit(scaler.transform(vectors), labels)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scaler.scale_
    return Probe(tuple(map(str, model.classes_)), weight, bias - weight @ scaler.mean_)


def _probe_rows(fold: int, probe: Probe) -> Iterator[dict[str, Any]]:
    for label, bias, weight in zip(probe.labels, probe.bias, probe.weight, strict=True):
        yield {"fold": fold, "label": label, "bias": float(bias), "weight": weight.tolist()}


def _training_rows(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, pool: pl.DataFrame
) -> pl.DataFrame:
    """Training tiles of embedded slides, each with its row in its slide's shard."""
    rows = tile_rows(slides, tiles, embeddings.slide_ids).select("tile_id", "slide_id")
    rows = rows.with_columns(_at=pl.int_range(pl.len()).over("slide_id"))
    chosen = pool.filter("trains").select("tile_id", "fold", "label")
    return rows.join(chosen, on="tile_id", how="inner", maintain_order="left")


def _vectors_of(rows: pl.DataFrame, embeddings: Embeddings) -> Floats:
    parts = [
        embeddings.stack([str(slide)])[group["_at"].to_numpy()]
        for (slide,), group in rows.group_by("slide_id", maintain_order=True)
    ]
    return np.concatenate(parts).astype(np.float64)


def probe_of_fold(probes: pl.DataFrame, fold: int) -> Probe | None:
    """The probe that saw no patient of the fold; None where none could be trained."""
    rows = probes.filter(pl.col("fold") == fold)
    if rows.is_empty():
        return None
    weight = np.array(rows["weight"].to_list(), dtype=np.float64)
    return Probe(tuple(rows["label"]), weight, rows["bias"].to_numpy())


def attacked_rows(pool: pl.DataFrame, probes: pl.DataFrame) -> pl.DataFrame:
    """Attacked tiles whose label the probe of their fold has learned, in the pool's order."""
    return pool.filter("attacked").join(
        probes.select("fold", "label"), on=["fold", "label"], how="semi", maintain_order="left"
    )


def adversarial_sums(
    attacks: Embeddings,
    transfer: Embeddings,
    pool: pl.DataFrame,
    probes: pl.DataFrame,
    parameters: Mapping[str, Any],
    *,
    sources: Sequence[str] = (),
) -> pl.DataFrame:
    """Reduce the attacked tiles to sums per patient.

    Parameters
    ----------
    attacks
        Shards of :func:`~.adversarial_views.plan_adversarial_tiles`.
    transfer
        Shards of :func:`~.adversarial_views.plan_adversarial_transfer`.
    pool, probes
        From :func:`choose_adversarial_pool` and :func:`fit_adversarial_probes`.
    parameters
        Of the experiment.
    sources
        Encoders whose adversarial tiles were shown to this one, in the order of the shards.

    Returns
    -------
    DataFrame
        Columns ``SUMS_SCHEMA``, one row per variant and patient; ``source`` is empty except for
        transferred tiles, ``correct_unrounded_sum`` null where it was not read.
    """
    told = AdversarialParameters.parse(parameters)
    present = _present(attacked_rows(pool, probes), attacks)
    if present.is_empty():
        return pl.DataFrame(schema=SUMS_SCHEMA)
    tables = [*_own_sums(attacks, present, told)]
    given = _present(present, transfer)
    if sources and not given.is_empty():
        tables += _transfer_sums(transfer, given, told, sources)
    _, frequencies = np.unique(present["label"].to_numpy(), return_counts=True)
    chance = float(frequencies.max() / len(present))
    return pl.concat(tables).with_columns(chance=pl.lit(chance)).select(list(SUMS_SCHEMA))


def _present(rows: pl.DataFrame, shards: Embeddings) -> pl.DataFrame:
    return rows.filter(pl.col("slide_id").is_in(list(shards.slide_ids)))


def _own_sums(
    attacks: Embeddings, present: pl.DataFrame, told: AdversarialParameters
) -> Iterator[pl.DataFrame]:
    slides = present["slide_id"].unique(maintain_order=True).to_list()
    vectors = attacks.stack(slides, "embedding").astype(np.float64)
    margin, ssim, unrounded = (
        attacks.stack(slides, name) for name in ("margin", "ssim", "margin_unrounded")
    )
    variants = (*told.noises, *told.white_box)[: vectors.shape[1]]
    cosine = cosines(vectors, vectors[:, :1])
    chance = cosine_chance(vectors[:, 0], present["patient_id"].to_numpy())
    column_of = {variant: i for i, variant in enumerate(told.unrounded[: unrounded.shape[1]])}
    for i, variant in enumerate(variants):
        column = column_of.get(variant)
        yield _sums(
            present["patient_id"],
            variant,
            {
                "correct": margin[:, i] > 0,
                "correct_unrounded": None if column is None else unrounded[:, column] > 0,
                "cosine": cosine[:, i],
                "ssim": ssim[:, i],
                "cosine_chance": chance,
            },
        )


def _transfer_sums(
    transfer: Embeddings,
    present: pl.DataFrame,
    told: AdversarialParameters,
    sources: Sequence[str],
) -> Iterator[pl.DataFrame]:
    slides = present["slide_id"].unique(maintain_order=True).to_list()
    margin, cosine = transfer.stack(slides, "margin"), transfer.stack(slides, "cosine")
    for i, source in enumerate(sources):
        there = np.isfinite(margin[:, i])
        if not there.any():  # a source without gradient made none
            continue
        yield _sums(
            present.filter(pl.Series(there))["patient_id"],
            Variant(TRANSFER, told.transfer_epsilon),
            {"correct": margin[there, i] > 0, "cosine": cosine[there, i]},
            source,
        )


def _sums(
    patients: pl.Series,
    variant: Variant,
    values: Mapping[str, NDArray[Any] | None],
    source: str = "",
) -> pl.DataFrame:
    """Sums per patient of one variant; what was not read is null."""
    codes, n = patient_codes(patients.to_numpy())
    names = [name.removesuffix("_sum") for name in SUMS_SCHEMA if name.endswith("_sum")]
    sums = {
        f"{name}_sum": None
        if (read := values.get(name)) is None
        else sum_by_patient(read, codes, n)
        for name in names
    }
    table = pl.DataFrame(
        {
            "patient_id": np.unique(patients.to_numpy()),
            "n_tiles": np.bincount(codes, minlength=n),
            **{name: read for name, read in sums.items() if read is not None},
        }
    ).with_columns(
        attack=pl.lit(variant.attack),
        epsilon=pl.lit(variant.epsilon),
        source=pl.lit(source),
        **{name: pl.lit(None) for name, read in sums.items() if read is None},
    )
    wanted = {name: kind for name, kind in SUMS_SCHEMA.items() if name != "chance"}
    return table.select(pl.col(name).cast(kind) for name, kind in wanted.items())


def cosines(vectors: Floats, others: Floats) -> Floats:
    """Cosine of vectors [..., d] with others, row by row; 0 where one of them is zero.

    Examples
    --------
    >>> cosines(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    product = (vectors * others).sum(axis=-1)
    length = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(others, axis=-1)
    result: Floats = product / np.where(length > 0, length, 1.0)
    return result


def cosine_chance(vectors: Floats, patients: NDArray[Any]) -> Floats:
    """Mean cosine of each tile with the tiles of other patients: how alike unrelated tiles are.

    Parameters
    ----------
    vectors
        [n, d].
    patients
        [n].

    Returns
    -------
    ndarray
        [n]; 0 where there is no other patient.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0, length, 1.0)
    other = patients[:, None] != patients[None]
    found: Floats = (unit @ unit.T * other).sum(axis=1) / np.maximum(other.sum(axis=1), 1)
    return found


def adversarial_measurements(
    sums: pl.DataFrame,
    parameters: Mapping[str, Any],
    entry: Mapping[str, Any] | None = None,
    *,
    encoder: str,
) -> pl.DataFrame:
    """Accuracy, cosine and likeness under attack, and the drop beyond that of noise.

    - ``accuracy`` of the probe per attack and ε, on images as a file holds them; ``attack`` none is
      the clean accuracy. Null: the share of the most frequent label.
    - ``accuracy_unrounded``: the same before rounding to 8 bits, for PGD.
    - ``embedding_cosine`` between clean and changed tile; null: between tiles of two patients.
    - ``ssim`` between clean and changed tile.
    - ``transfer_accuracy`` and ``transfer_cosine``: of tiles made against another encoder.
    - ``accuracy_drop_beyond_noise`` (signature): accuracy under sign noise − under PGD of most steps
      at ``signature_epsilon``, on the same tiles.
    - ``attack_check``: by how much each rule that a sound attack obeys is broken; 0 is right.

    Intervals resample patients, with the same draws throughout.

    Parameters
    ----------
    sums
        From :func:`adversarial_sums`.
    parameters
        Of the experiment.
    entry
        Of ``encoders``; ``mitigation``, if there, is what is done to the pixels first.
    encoder
        Name for the table.
    """
    mitigation = str((entry or {}).get("mitigation") or "")
    rows = _Rows(AdversarialParameters.parse(parameters), encoder, mitigation)
    return measurement_table(rows.all(VariantSums(sums)))


def not_attacked(parameters: Mapping[str, Any], *, encoder: str) -> pl.DataFrame:
    """The signature of a harmonised variant: not applicable, with the reason.

    Parameters
    ----------
    parameters
        Of the experiment.
    encoder
        Name for the table.
    """
    rows = _Rows(AdversarialParameters.parse(parameters), encoder)
    nothing = VariantSums(pl.DataFrame(schema=SUMS_SCHEMA))
    return measurement_table(
        rows.undefined(
            "the map that takes the center out is fitted anew without each group of patients, so that "
            "there is no one network to attack: see the figure of the encoder whose vectors these are",
            nothing,
        )
    )


@dataclass(frozen=True)
class VariantSums:
    """The sums of every variant, over the same patients in the same order."""

    table: pl.DataFrame

    @property
    def patients(self) -> list[str]:
        """Patients with attacked tiles, sorted."""
        return sorted(self.table["patient_id"].unique())

    def has(self, attack: str) -> bool:
        """Whether the attack was made."""
        return attack in self.table["attack"]

    def of(self, attack: str, epsilon: int, source: str = "") -> pl.DataFrame:
        """One row per patient; zeros where a patient has no tile of this variant."""
        rows = self.table.filter(
            pl.col("attack") == attack, pl.col("epsilon") == epsilon, pl.col("source") == source
        )
        order = pl.DataFrame({"patient_id": self.patients}, schema={"patient_id": pl.String()})
        return order.join(rows, on="patient_id", how="left", maintain_order="left").with_columns(
            pl.col("n_tiles").fill_null(0)
        )

    def accuracy(self, attack: str, epsilon: int, source: str = "") -> float:
        """Share of right tiles."""
        rows = self.of(attack, epsilon, source)
        return float(rows["correct_sum"].sum()) / max(int(rows["n_tiles"].sum()), 1)

    @property
    def sources(self) -> list[str]:
        """Encoders whose adversarial tiles this one was shown."""
        found = self.table.filter(pl.col("attack") == TRANSFER)
        return found["source"].unique(maintain_order=True).to_list()

    def constant(self, column: str) -> Null:
        """A column that is the same in every row, as a null."""
        value = float(self.table[column][0])
        return Null(value, value)


@dataclass(frozen=True)
class _Rows:
    """Rows of the measurements table for one encoder."""

    told: AdversarialParameters
    encoder: str
    mitigation: str = ""

    def all(self, sums: VariantSums) -> Iterable[dict[str, Any]]:
        if sums.table.is_empty():
            return self.undefined(
                "no tile was attacked: a probe of the label needs two labels with at least "
                f"{self.told.folds} patients each and embedded slides; add patients or lower "
                "adversarial.folds",
                sums,
            )
        if len(sums.patients) < 2:
            return self.undefined(
                "the attacked tiles come from one patient, and an interval over patients needs two; "
                "raise adversarial.max_tiles or add patients",
                sums,
            )
        return self.defined(sums)

    def defined(self, sums: VariantSums) -> Iterator[dict[str, Any]]:
        weights = bootstrap_weights(len(sums.patients), self.told.draws, self.told.seed)
        yield from self.own(sums, weights)
        yield from self.transferred(sums, weights)
        if not sums.has(self.told.strongest):
            yield from self.undefined(self._why_no_gradient(), sums)
            return
        checks = dict(attack_checks(sums, self.told))
        yield from self.checked(checks, sums)
        yield self.signature(sums, weights, checks)

    def _why_no_gradient(self) -> str:
        if self.mitigation:
            return (
                f"what is done to the pixels first, {self.mitigation}, has no gradient here: see the "
                "figure of the encoder without it"
            )
        return (
            "the encoder is no neural network and has no gradient, so it cannot be attacked "
            "through its own weights; noise and tiles made against other encoders are measured"
        )

    def own(self, sums: VariantSums, weights: Floats) -> Iterator[dict[str, Any]]:
        """Accuracy, cosine and SSIM of every variant that was made."""
        chance = sums.constant("chance")
        alike = sums.of(CLEAN, 0)
        between = float(alike["cosine_chance_sum"].sum()) / int(alike["n_tiles"].sum())
        for variant in (*self.told.noises, *self.told.white_box):
            if not sums.has(variant.attack):
                continue
            rows = sums.of(variant.attack, variant.epsilon)
            setting = {"attack": variant.attack, "epsilon": variant.epsilon}
            yield self.row("accuracy", setting, rows, "correct_sum", weights, chance)
            if variant.attack == CLEAN:
                continue
            if not rows["correct_unrounded_sum"].null_count():
                column = "correct_unrounded_sum"
                yield self.row("accuracy_unrounded", setting, rows, column, weights, chance)
            null = Null(between, between)
            yield self.row("embedding_cosine", setting, rows, "cosine_sum", weights, null)
            yield self.row("ssim", setting, rows, "ssim_sum", weights, None)

    def transferred(self, sums: VariantSums, weights: Floats) -> Iterator[dict[str, Any]]:
        epsilon = self.told.transfer_epsilon
        for source in sums.sources:
            rows = sums.of(TRANSFER, epsilon, source)
            setting = {"attack": self.told.strongest, "epsilon": epsilon, "made_against": source}
            chance = sums.constant("chance")
            yield self.row("transfer_accuracy", setting, rows, "correct_sum", weights, chance)
            yield self.row("transfer_cosine", setting, rows, "cosine_sum", weights, None)

    def row(
        self,
        metric: str,
        setting: Mapping[str, Any],
        rows: pl.DataFrame,
        column: str,
        weights: Floats,
        null: Null | None,
    ) -> dict[str, Any]:
        """Mean over tiles of a column of sums, without a threshold."""
        sums = rows[column].fill_null(0).to_numpy().astype(np.float64)
        tiles = rows["n_tiles"].to_numpy().astype(np.float64)
        return measurement(
            experiment=EXPERIMENT,
            encoder=self.encoder,
            metric=metric,
            setting=setting,
            estimate=ratio_estimate(sums, tiles, weights),
            null=null,
        )

    def checked(self, checks: Mapping[str, float], sums: VariantSums) -> Iterator[dict[str, Any]]:
        for rule, broken in checks.items():
            yield measurement(
                experiment=EXPERIMENT,
                encoder=self.encoder,
                metric="attack_check",
                setting={"rule": rule},
                estimate=Estimate(broken, None, None, self._n(sums), len(sums.patients)),
                reason="a rule that a sound attack obeys: by how much accuracy it is broken",
            )

    def signature(
        self, sums: VariantSums, weights: Floats, checks: Mapping[str, float]
    ) -> dict[str, Any]:
        """Drop beyond noise, judged unless the attack or the probe cannot be trusted."""
        epsilon = self.told.signature_epsilon
        noise, attacked = sums.of(SIGN_NOISE, epsilon), sums.of(self.told.strongest, epsilon)
        lost = (noise["correct_sum"] - attacked["correct_sum"]).to_numpy()
        tiles = attacked["n_tiles"].to_numpy().astype(np.float64)
        row = measurement(
            experiment=EXPERIMENT,
            encoder=self.encoder,
            metric=SIGNATURE,
            estimate=never_certain(ratio_estimate(lost, tiles, weights)),
            null=Null(0.0, 0.0),
            **self._held(),
        )
        broken = {rule: value for rule, value in checks.items() if value > self.told.tolerance}
        if broken:
            return row | {"verdict": "inconclusive", "reason": _unsound(broken)}
        unread = self._unread(sums, weights)
        return row if unread is None else row | {"verdict": "not_applicable", "reason": unread}

    def _unread(self, sums: VariantSums, weights: Floats) -> str | None:
        """Why the clean probe has nothing to lose; None where it has."""
        clean = sums.of(CLEAN, 0)
        estimate = ratio_estimate(
            clean["correct_sum"].to_numpy(), clean["n_tiles"].to_numpy().astype(float), weights
        )
        chance = sums.constant("chance").high or 0.0
        if estimate.ci_low is not None and estimate.ci_low > chance:
            return None
        return (
            f"the probe reads the label of clean tiles no better than chance ({estimate.value:.2g} "
            f"against {chance:.2g}), so an attack has nothing to take: raise adversarial.max_tiles "
            "or see linear_probe"
        )

    def _held(self) -> dict[str, Any]:
        told = self.told
        setting = {"attack": told.strongest, "epsilon": told.signature_epsilon, "noise": SIGN_NOISE}
        if told.threshold is None:
            return {"setting": setting}
        return {"setting": setting, "threshold": told.threshold, "direction": DIRECTION}

    def undefined(self, reason: str, sums: VariantSums) -> list[dict[str, Any]]:
        return not_applicable(
            experiment=EXPERIMENT,
            encoder=self.encoder,
            metrics=[SIGNATURE],
            reason=reason,
            n=self._n(sums),
            n_patients=len(sums.patients),
            **self._held(),
        )

    @staticmethod
    def _n(sums: VariantSums) -> int:
        return int(sums.table.filter(pl.col("attack") == CLEAN)["n_tiles"].sum())


def attack_checks(sums: VariantSums, told: AdversarialParameters) -> Iterator[tuple[str, float]]:
    """By how much accuracy each rule that a sound attack obeys is broken; 0 where it is kept.

    More steps are never weaker; a larger ε is never weaker; the white box is at least as strong as
    tiles made against another encoder, and as noise; at ε = 0 the path with gradients reads the
    same accuracy as the encoder itself.

    Parameters
    ----------
    sums
        Of one encoder.
    told
        The parameters.
    """
    names = [FGSM, *map(pgd_name, told.pgd_steps)]
    table = np.array([[sums.accuracy(name, e) for e in told.epsilons] for name in names])
    clean = sums.accuracy(CLEAN, 0)
    pgd = np.concatenate([np.full((len(told.pgd_steps), 1), clean), table[1:]], axis=1)
    yield "more_steps_never_weaker", _largest(np.diff(table, axis=0))
    yield "larger_epsilon_never_weaker", _largest(np.diff(pgd, axis=1))
    noise = [sums.accuracy(SIGN_NOISE, e) for e in told.epsilons]
    yield "attack_at_least_noise", _largest(table[-1] - noise)
    own = sums.accuracy(told.strongest, told.transfer_epsilon)
    others = [sums.accuracy(TRANSFER, told.transfer_epsilon, source) for source in sums.sources]
    yield "white_box_at_least_transfer", _largest(own - np.array(others))
    exact = sums.of(CLEAN, 0)
    differs = (exact["correct_unrounded_sum"] - exact["correct_sum"]).to_numpy()
    yield "epsilon_zero_is_clean", float(np.abs(differs).sum() / exact["n_tiles"].sum())


def _largest(differences: Floats) -> float:
    return float(np.max(differences, initial=0.0))


def _unsound(broken: Mapping[str, float]) -> str:
    told = ", ".join(f"{rule} by {value:.2g}" for rule, value in sorted(broken.items()))
    return (
        f"the attack breaks a rule that a sound attack obeys ({told} of accuracy), so its strength "
        "is not known: raise adversarial.pgd_steps or adversarial.max_tiles"
    )


def never_certain(estimate: Estimate) -> Estimate:
    """Widen an interval to what so few patients can exclude: at least the exact binomial one.

    Where hardly a patient differs resampling gives too little width, and where none does none. The
    binomial's units are patients. Of a value below 0 the upper end is at least that of 0.

    Examples
    --------
    >>> round(never_certain(Estimate(0.0, 0.0, 0.0, 24, 24)).ci_high, 3)
    0.142
    """
    value, low, high, n = estimate.value, estimate.ci_low, estimate.ci_high, estimate.n_patients
    if value is None or low is None or high is None or n < 1:
        return estimate
    least, most = binomial_interval(min(max(value, 0.0), 1.0) * n, n)
    if value < 0:
        least = -binomial_interval(min(-value, 1.0) * n, n)[1]
    return replace(estimate, ci_low=min(low, least), ci_high=max(high, most))
