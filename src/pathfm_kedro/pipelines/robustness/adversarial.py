r"""Adversarial changes: how much accuracy a change that nobody sees takes from a probe of the label.

Each value of a pixel may change by ε of 255 grey levels, and everything is scored on images that a
file can hold (:func:`~pathfm_kedro.encoders.attacks.fgsm`, :func:`~pathfm_kedro.encoders.attacks.pgd`,
:func:`~pathfm_kedro.encoders.attacks.universal_perturbation`; noise of the same size:
:func:`~pathfm_kedro.encoders.attacks.sign_noise`,
:func:`~pathfm_kedro.encoders.attacks.gaussian_noise`). A linear
probe that saw no tile of the patient says which label a tile has
(:mod:`~pathfm_kedro.pipelines.robustness.adversarial_pool`).

- ``accuracy``: share of correctly classified tiles under each attack; ``attack`` none is the clean
  tile. Null: the share of the most frequent label. ``accuracy_unrounded``: before rounding to 8 bits;
- ``accuracy_drop_beyond_noise``: accuracy under sign noise − accuracy under PGD of most steps, of
  the same size on the same tiles. Null: 0, what noise takes;
- ``published_drop``: accuracy of clean tiles − accuracy under PGD as another benchmark has it
  (THUNDER: ε = 0.0015 of 1, steps of 0.001, 5 of them), on images that are not rounded, since no image
  of 8 bits holds half a grey level. Null: 0;
- ``embedding_cosine`` of clean and changed tile; null: of tiles of two patients;
- ``ssim``: structural similarity of clean and changed tile (Wang et al. 2004), how visible it is;
- ``transfer_accuracy``, ``transfer_cosine``: of tiles made against another encoder, which need no
  gradient of this one;
- ``attack_check``: by how much accuracy each rule is broken that a sound attack obeys
  (:func:`attack_checks`); 0 is right.

An encoder can look robust because its attack failed (Carlini et al. 2019, "On Evaluating Adversarial
Robustness", arXiv 1902.06705): where a rule is broken the drop is shown and not judged. Where
hardly a patient differs the bootstrap sees no spread, so the drop's interval is never narrower than
the exact binomial one (:func:`~pathfm_kedro.statistics.bootstrap.at_least_binomial`).

Pitfalls
--------
- A pass says that this attack found little, not that none would: few steps, one start, a linear probe,
  one size of change.
- Controls have no gradient (but for ``control:pattern_reader``), and through changed pixels none is
  followed: their drop is undefined. They are shown noise and tiles made against others.
- A harmonised variant is attacked through the network of the encoder whose vectors it takes
  (:mod:`~pathfm_kedro.pipelines.robustness.probed_tiles`) and by that encoder's universal perturbation.
- The gradient is PyTorch's; what embeds may run otherwise. The rule ``epsilon_zero_is_clean`` shows
  whether that matters.
- Few tiles; the interval does not hold the chance of the probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    CLEAN,
    FGSM,
    PUBLISHED,
    SIGN_NOISE,
    Adversarial,
    Variant,
    attacked_tiles,
    pgd_name,
)
from pathfm_kedro.statistics.bootstrap import at_least_binomial, patient_codes
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import cosine_distance_chance, cosine_distances
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.readable_numbers import number
from pathfm_kedro.statistics.tables import Embeddings, stacked, with_shards

Floats = NDArray[np.float64]

#: One row per attack, size, encoder that the tiles were made against (null: this one) and patient.
#:
#: - n_correct_unrounded, ssim_sum, cosine_between_sum: null where they were not read;
#: - cosine_between_sum: mean cosine of each clean tile to clean tiles of other patients;
#: - chance: share of the most frequent label.
ADVERSARIAL_SCHEMA: dict[str, pl.DataType] = {
    "attack": pl.String(),
    "epsilon": pl.Int64(),
    "made_against": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "n_correct_unrounded": pl.Int64(),
    "cosine_sum": pl.Float64(),
    "ssim_sum": pl.Float64(),
    "cosine_between_sum": pl.Float64(),
    "chance": pl.Float64(),
}
_KEYS = ["attack", "epsilon", "made_against", "patient_id"]
_SUMS = ["n_correct", "n_correct_unrounded", "cosine_sum", "ssim_sum", "cosine_between_sum"]


def adversarial_statistics(
    attacks: Embeddings,
    transfer: Embeddings,
    pool: pl.DataFrame,
    probes: pl.DataFrame,
    p: Adversarial,
    *,
    sources: Sequence[str] = (),
) -> pl.DataFrame:
    """Reduce the attacked tiles to sums per patient.

    Parameters
    ----------
    attacks
        Shards of :class:`~.adversarial_views.AttackTiles`.
    transfer
        Shards of :class:`~.adversarial_transfer.ShowAttacked`.
    pool, probes
        From :func:`~.adversarial_pool.choose_adversarial_pool` and
        :func:`~.adversarial_pool.fit_adversarial_probes`.
    p
        The parameters.
    sources
        Encoders whose adversarial tiles were shown to this one, in the order of the shards.

    Returns
    -------
    DataFrame
        Columns :data:`ADVERSARIAL_SCHEMA`.
    """
    tiles = with_shards(attacked_tiles(pool, probes), attacks)
    if tiles.is_empty():
        return no_adversarial_statistics(p)
    read = [*_own_variants(attacks, tiles, p)]
    shown = with_shards(tiles, transfer)
    if sources and not shown.is_empty():
        read += _transferred(transfer, shown, p, sources)
    whole = (pl.when(pl.col(n).null_count() == 0).then(pl.col(n).sum()).alias(n) for n in _SUMS)
    _, frequencies = np.unique(tiles["label"].to_numpy(), return_counts=True)
    return (
        pl.concat(read, how="diagonal_relaxed")
        .group_by(_KEYS, maintain_order=True)
        .agg(pl.len().alias("n_tiles"), *whole)
        .with_columns(chance=pl.lit(frequencies.max() / len(tiles)))
        .select(pl.col(name).cast(kind) for name, kind in ADVERSARIAL_SCHEMA.items())
    )


def no_adversarial_statistics(p: Adversarial) -> pl.DataFrame:
    """The statistics of an encoder of which no tile is attacked: no rows."""
    return pl.DataFrame(schema=ADVERSARIAL_SCHEMA)


def _own_variants(
    attacks: Embeddings, tiles: pl.DataFrame, p: Adversarial
) -> Iterator[pl.DataFrame]:
    """What was read of each tile, variant by variant."""
    names = ("embedding", "margin", "ssim", "margin_unrounded")
    vectors, margin, ssim, unrounded = (stacked(tiles, attacks, name) for name in names)
    clean = vectors[:, 0]
    codes, _ = patient_codes(tiles["patient_id"].to_numpy())
    between = 1 - cosine_distance_chance(clean, clean, codes)
    column_of = {variant: i for i, variant in enumerate(p.unrounded[: unrounded.shape[1]])}
    for i, variant in enumerate((*p.noises, *p.white_box)[: vectors.shape[1]]):
        column = column_of.get(variant)
        yield tiles.select(
            "patient_id",
            attack=pl.lit(variant.attack),
            epsilon=pl.lit(variant.epsilon),
            made_against=pl.lit(None, pl.String),
            n_correct=pl.Series(margin[:, i] > 0),
            n_correct_unrounded=None if column is None else pl.Series(unrounded[:, column] > 0),
            cosine_sum=pl.Series(1 - cosine_distances(clean, vectors[:, i])),
            ssim_sum=pl.Series(ssim[:, i]),
            cosine_between_sum=pl.Series(between),
        )
    published = column_of.get(Variant(PUBLISHED, 0))
    if published is not None:
        yield tiles.select(
            "patient_id",
            attack=pl.lit(PUBLISHED),
            epsilon=pl.lit(0),
            made_against=pl.lit(None, pl.String),
            n_correct_unrounded=pl.Series(unrounded[:, published] > 0),
        )


def _transferred(
    transfer: Embeddings, tiles: pl.DataFrame, p: Adversarial, sources: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """What was read of each tile that was made against another encoder."""
    margin, cosine = (stacked(tiles, transfer, name) for name in ("margin", "cosine"))
    for i, source in enumerate(sources):
        there = np.isfinite(margin[:, i])  # a source without gradient made none
        yield tiles.filter(pl.Series(there)).select(
            "patient_id",
            attack=pl.lit(p.strongest),
            epsilon=pl.lit(p.transfer_epsilon),
            made_against=pl.lit(source),
            n_correct=pl.Series(margin[there, i] > 0),
            cosine_sum=pl.Series(cosine[there, i].astype(np.float64)),
        )


def adversarial_figures(
    statistics: pl.DataFrame, entry: Mapping[str, Any], p: Adversarial
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`adversarial_statistics`, or :func:`no_adversarial_statistics`.
    entry
        Of ``encoders``: why there is no attack, where there is none.
    p
        The parameters.
    """
    of = PatientStatistics(statistics, p)
    own = of.at(made_against=None)
    clean = own.at(attack=CLEAN, epsilon=0)
    attacked = own.at(attack=p.strongest, epsilon=p.drop_epsilon)
    checks: dict[str, float] = {}
    if clean.n_patients >= 2:
        yield from _of_variants(own, clean, p)
        yield from _of_transfer(of, clean, p)
        yield from _of_published(own.at(attack=PUBLISHED), clean, p)
        checks = attack_checks(of, p) if attacked.n else {}
    for rule, broken in checks.items():
        yield clean.with_setting(rule=rule).figure("attack_check", partial(_exact, value=broken))
    yield clean.with_setting(**attacked.setting, noise=SIGN_NOISE).figure(
        "accuracy_drop_beyond_noise",
        partial(
            drop_beyond_noise,
            noise=own.at(attack=SIGN_NOISE, epsilon=p.drop_epsilon),
            attacked=attacked,
            checks=checks,
            entry=entry,
            p=p,
        ),
    )


def _of_variants(
    own: PatientStatistics, clean: PatientStatistics, p: Adversarial
) -> Iterator[Figure]:
    """Accuracy, cosine and structural similarity of every variant that was made."""
    chance, between = _chance(clean), mean(clean, "cosine_between_sum").estimate.value
    for variant in (*p.noises, *p.white_box):
        rows = own.at(attack=variant.attack, epsilon=variant.epsilon)
        if not rows.n:
            continue
        yield rows.figure("accuracy", partial(mean, of="n_correct", null=chance))
        if variant.attack == CLEAN:
            continue
        if not rows.table["n_correct_unrounded"].null_count():
            unrounded = partial(mean, of="n_correct_unrounded", null=chance)
            yield rows.figure("accuracy_unrounded", unrounded)
        null = Null(between, between)
        yield rows.figure("embedding_cosine", partial(mean, of="cosine_sum", null=null))
        yield rows.figure("ssim", partial(mean, of="ssim_sum"))


def _of_transfer(
    of: PatientStatistics, clean: PatientStatistics, p: Adversarial
) -> Iterator[Figure]:
    """Accuracy and cosine of tiles that were made against other encoders."""
    for source in _sources(of):
        rows = of.at(attack=p.strongest, epsilon=p.transfer_epsilon, made_against=source)
        accuracy = partial(mean, of="n_correct", null=_chance(clean))
        yield rows.figure("transfer_accuracy", accuracy)
        yield rows.figure("transfer_cosine", partial(mean, of="cosine_sum"))


def _of_published(
    attacked: PatientStatistics, clean: PatientStatistics, p: Adversarial
) -> Iterator[Figure]:
    """Accuracy lost to the attack of another benchmark, to be held against what it prints."""
    if p.published is not None and attacked.n:
        setting = {
            "epsilon_of_1": p.published.epsilon,
            "step_of_1": p.published.step,
            "steps": p.published.steps,
        }
        compute = partial(published_drop, attacked=attacked)
        yield clean.with_setting(**setting).figure("published_drop", compute)


def published_drop(clean: PatientStatistics, attacked: PatientStatistics) -> Value:
    """Accuracy of clean tiles minus accuracy under attack, neither rounded; null 0.

    Raises
    ------
    Undefined
        If the probe reads nothing from clean tiles that could be lost.
    """
    _require_something_to_lose(clean)
    lost = clean.sums("n_correct_unrounded") - attacked.sums("n_correct_unrounded")
    estimate = at_least_binomial(attacked.ratio(lost, attacked.sums("n_tiles")))
    return Value(estimate, Null(0.0, 0.0))


def mean(rows: PatientStatistics, of: str, null: Null | None = None) -> Value:
    """Mean over tiles of a column of sums."""
    return Value(rows.ratio(rows.sums(of), rows.sums("n_tiles")), null or Null())


def _exact(rows: PatientStatistics, value: float) -> Estimate:
    return Estimate(value, None, None, rows.n, rows.n_patients)


def _chance(clean: PatientStatistics) -> Null:
    chance = float(clean.table["chance"][0])
    return Null(chance, chance)


def _sources(of: PatientStatistics) -> list[str]:
    """Encoders whose adversarial tiles this one was shown."""
    return of.table["made_against"].drop_nulls().unique(maintain_order=True).to_list()


def drop_beyond_noise(
    clean: PatientStatistics,
    noise: PatientStatistics,
    attacked: PatientStatistics,
    checks: Mapping[str, float],
    entry: Mapping[str, Any],
    p: Adversarial,
) -> Value:
    """Accuracy under noise minus accuracy under attack, on the same tiles; null 0.

    Parameters
    ----------
    clean, noise, attacked
        The tiles as they are, with sign noise, and under the strongest attack.
    checks
        From :func:`attack_checks`; a rule broken by more than the tolerance is a caveat.
    entry
        Of ``encoders``.
    p
        The parameters.

    Raises
    ------
    Undefined
        If nothing was attacked, or the probe reads nothing from clean tiles that could be lost.
    """
    _require_attack(clean, attacked, entry, p)
    _require_something_to_lose(clean)
    lost = noise.sums("n_correct") - attacked.sums("n_correct")
    estimate = at_least_binomial(attacked.ratio(lost, attacked.sums("n_tiles")))
    broken = {rule: value for rule, value in sorted(checks.items()) if value > p.tolerance}
    return Value(estimate, Null(0.0, 0.0), caveat=_unsound(broken) if broken else "")


def _require_attack(
    clean: PatientStatistics, attacked: PatientStatistics, entry: Mapping[str, Any], p: Adversarial
) -> None:
    if not attacked.n and str(entry.get("model")).startswith("harmonised:"):
        raise Undefined(
            "a harmonised variant is attacked through the encoder whose vectors it takes, where "
            "adversarial.harmonised is true and that encoder itself can be attacked: see its figure"
        )
    if not clean.n:
        raise Undefined(
            "no tile was attacked: a probe of the label needs two labels with at least "
            f"{p.probe.folds} patients each and embedded slides; add patients or lower "
            "adversarial.probe.folds"
        )
    if clean.n_patients < 2:
        raise Undefined(
            "the attacked tiles come from one patient, and an interval over patients needs two; "
            "raise adversarial.max_tiles or add patients"
        )
    if not attacked.n and entry.get("mitigation"):
        raise Undefined(
            f"what is done to the pixels first, {entry['mitigation']}, has no gradient here: see the "
            "figure of the encoder without it"
        )
    if not attacked.n and str(entry.get("model")).startswith("onnx:"):
        raise Undefined(
            "the encoder is an ONNX file, which onnxruntime runs without gradients, so it cannot be "
            "attacked through its own weights; noise and tiles made against other encoders are measured"
        )
    if not attacked.n:
        raise Undefined(
            "the encoder is no neural network and has no gradient, so it cannot be attacked "
            "through its own weights; noise and tiles made against other encoders are measured"
        )


def _require_something_to_lose(clean: PatientStatistics) -> None:
    accuracy = mean(clean, "n_correct").estimate
    chance = float(clean.table["chance"][0])
    if accuracy.ci_low is None or accuracy.ci_low <= chance:
        raise Undefined(
            f"the probe reads the label of clean tiles no better than chance ({number(accuracy.value)} "
            f"against {number(chance)}), so an attack has nothing to take: raise adversarial.max_tiles "
            "or see linear_probe"
        )


def _unsound(broken: Mapping[str, float]) -> str:
    rules = ", ".join(f"{rule} by {number(value)}" for rule, value in broken.items())
    return (
        f"the attack breaks a rule that a sound attack obeys ({rules} of accuracy), so its strength "
        "is not known: raise adversarial.pgd_steps or adversarial.max_tiles"
    )


def attack_checks(of: PatientStatistics, p: Adversarial) -> dict[str, float]:
    """By how much accuracy each rule that a sound attack obeys is broken; 0 where it is kept.

    More steps are never weaker; a larger ε is never weaker; the white box is at least as strong as
    tiles made against another encoder, and as noise; at ε = 0 the path with gradients reads the
    same accuracy as the encoder itself.

    Parameters
    ----------
    of
        Statistics of one encoder that was attacked.
    p
        The parameters.
    """

    def accuracy(attack: str, epsilon: int, source: str | None = None) -> float:
        rows = of.at(attack=attack, epsilon=epsilon, made_against=source)
        return float(rows.sums("n_correct").sum() / rows.n)

    names = [FGSM, *map(pgd_name, p.pgd_steps)]
    table = np.array([[accuracy(name, e) for e in p.epsilons] for name in names])
    noise = np.array([accuracy(SIGN_NOISE, e) for e in p.epsilons])
    clean = np.full((len(p.pgd_steps), 1), accuracy(CLEAN, 0))
    shown = np.array([accuracy(p.strongest, p.transfer_epsilon, s) for s in _sources(of)])
    exact = of.at(attack=CLEAN, epsilon=0, made_against=None)
    differs = np.abs(exact.sums("n_correct_unrounded") - exact.sums("n_correct")).sum()
    by_epsilon = np.diff(np.concatenate([clean, table[1:]], axis=1), axis=1)
    return {
        "more_steps_never_weaker": _largest(np.diff(table, axis=0)),
        "larger_epsilon_never_weaker": _largest(by_epsilon),
        "attack_at_least_noise": _largest(table[-1] - noise),
        "white_box_at_least_transfer": _largest(accuracy(p.strongest, p.transfer_epsilon) - shown),
        "epsilon_zero_is_clean": float(differs / exact.n),
    }


def _largest(differences: Floats) -> float:
    return float(np.max(differences, initial=0.0))
