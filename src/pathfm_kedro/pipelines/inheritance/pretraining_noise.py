r"""Wrong labels in pretraining: what frozen vectors lose, whether it shows upstream, what undoes it.

A small network is pretrained from scratch on tiles, each with its slide's label, of which a share is
wrong: drawn tile by tile, from all tiles alike, or more from some centers than from others
(:func:`~pathfm_kedro.statistics.label_noise.flipped`). Each seed gives a network without wrong labels,
one for each kind and rate, and one with random weights; of one seed all begin with the same weights and
see the same tiles in the same order, so that they differ in labels alone. Frozen, they are compared on
patients that pretrained nothing:

- ``accuracy``: balanced accuracy of a logistic regression; ``in_domain`` in folds of patients,
  ``out_of_domain`` fitted on all of these and tested on a center that neither the network nor the probe
  has seen. Null: the network of random weights.
- ``gain_over_random``: clean minus random weights. Only where its whole interval lies above 0, over
  eight patients or more, does what follows count; else undecidable: what was not learnt cannot be lost.
- ``accuracy_loss``: clean minus noisy. ``upstream_accuracy``: on true labels, of a fifth of the
  pretraining patients that are kept out (``held_out``), and of the tiles trained on (``trained``).
- ``hidden_loss``: accuracy loss minus the loss of upstream accuracy (held out): above 0, who looks
  upstream sees less than what is lost.
- moments and spectra as in :mod:`~pathfm_kedro.pipelines.inheritance.geometry`, of the same downstream
  tiles for all; ``principal_angle``, the mean angle between what the leading components span on these
  tiles for the noisy network and for the clean one of its seed. Null: between clean ones of two seeds.
- ``trend``: mean over seeds of Spearman's correlation with the rate, which is Page's L on the scale −1
  to 1, ``12 L / (S R (R² − 1)) − 3 (R + 1)/(R − 1)`` for S seeds and R rates; ``trend_p``, two-sided.
- ``recovered_share``: (remedied − noisy) / (clean − noisy), for whitening, for a probe of the leading
  components (both fitted without the tested patients) and for NMTune
  (:mod:`~pathfm_kedro.encoders.nmtune`), where the loss lies above 0 with its whole interval;
  ``remaining_loss``: clean minus noisy, both remedied, since a remedy may help the clean one as much.

Intervals: every draw resamples patients, alike for all networks, and seeds, alike for all arms;
patients upstream are drawn by themselves. In domain they are widened for cross-validation. Those of
geometry join a jackknife over groups of patients and the spread over seeds. With one seed they are over
patients alone.

References: Chen et al., Understanding and mitigating the label noise in pre-training on downstream
tasks (ICLR 2024; TPAMI 2025), where slight noise helps in domain and always hurts out of domain.

Pitfalls
--------
- The network is small and sees few tiles: what noise does to a foundation model may differ.
- A tile has its slide's label, also where it shows healthy tissue: the clean arm has wrong labels too.
- The held-out center's interval is over its patients and says nothing of other centers.
- Page's test takes seeds as its units: it says what noise does on these patients.
- Five seeds resampled give four fifths of their variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.pipelines.inheritance.arm_tiles import FoldedTiles
from pathfm_kedro.pipelines.inheritance.geometry import (
    moments,
    power_sums,
    spectrum,
    varying_dimensions,
)
from pathfm_kedro.pipelines.inheritance.noise_arms import (
    CLEAN,
    RANDOM,
    Arm,
    PretrainingNoise,
    Upstream,
    downstream,
    noise_arms,
)
from pathfm_kedro.pipelines.inheritance.noise_results import (
    ANGLE,
    GEOMETRY,
    NMTUNE,
    NO_REMEDY,
    PROBES,
    REMEDIES,
    TRENDS,
    UPSTREAM,
    Results,
)
from pathfm_kedro.statistics.bootstrap import (
    patient_codes,
)
from pathfm_kedro.statistics.figures import Figure, Value
from pathfm_kedro.statistics.jackknife import patient_groups
from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier
from pathfm_kedro.statistics.subspaces import PrincipalAxes, principal_angles
from pathfm_kedro.statistics.tables import to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Of one network: tiles of each label and patient that are correctly classified, by what is tested and
#: the remedy; or a figure of its vectors, of all downstream tiles (no group) and without a group of
#: patients.
#: One row with a problem where there is no network.
NOISE_SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),
    "rate": pl.Float64(),
    "seed": pl.Int64(),
    "measure": pl.String(),
    "remedy": pl.String(),
    "label": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "group": pl.Int64(),
    "value": pl.Float64(),
    "problem": pl.String(),
}


def noise_statistics(
    pool: pl.DataFrame, tiles: Shards, arms: Shards, p: PretrainingNoise
) -> pl.DataFrame:
    """Correctly classified tiles and figures of the vectors, network by network.

    Parameters
    ----------
    pool, tiles
        Tiles that arms are trained and probed on, and their pixels.
    arms
        Shards of :class:`~pathfm_kedro.pipelines.inheritance.noise_arms.NoisyPretraining`.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`NOISE_SCHEMA`.
    """
    upstream, below = Upstream.of(pool, tiles, p), downstream(pool, tiles, p)
    trained = [arm for arm in noise_arms(p) if arm.name in set(arms.slide_ids)]
    problem = upstream.problem or below.problem
    if problem or not trained:
        text = problem or "no network could be trained: the log of slides has the reasons"
        return to_schema(pl.DataFrame({"problem": [text]}), NOISE_SCHEMA)
    parts = []
    for arm in trained:
        own = [
            *_probed(arms, arm, below, p),
            *_upstream(arms, arm, upstream),
            _shape(arms, arm, trained, below, p),
        ]
        named = {"kind": arm.kind, "rate": arm.rate, "seed": arm.seed}
        parts += [
            to_schema(
                table.with_columns(pl.lit(v).alias(k) for k, v in named.items()), NOISE_SCHEMA
            )
            for table in own
        ]
    return pl.concat(parts)


def _probed(
    arms: Shards, arm: Arm, below: FoldedTiles, p: PretrainingNoise
) -> Iterator[pl.DataFrame]:
    vectors = arms.load_slide(arm.name, "vectors").astype(np.float64)
    remedies: dict[str, Ints] = {
        remedy: probe_predictions(vectors, below, remedy, p)
        for remedy in (NO_REMEDY, "whitening", "top_components")
    }
    remedies[NMTUNE] = arms.load_slide(arm.name, "nmtune")
    for remedy, found in remedies.items():
        for measure, rows in zip(PROBES, (below.fold >= 0, below.fold < 0), strict=True):
            counted = _counted(below.table, found == below.targets, rows)
            yield counted.with_columns(measure=pl.lit(measure), remedy=pl.lit(remedy))


def probe_predictions(
    vectors: Floats, below: FoldedTiles, remedy: str, p: PretrainingNoise
) -> Ints:
    """The class that a probe without the tested patients gives each tile.

    Parameters
    ----------
    vectors
        [n, d] of the tiles of `below`.
    below
        The tiles, and who is tested by whom.
    remedy
        What is done to vectors before, fitted on the training tiles: ``none``, ``whitening`` or
        ``top_components``.
    p
        The parameters.
    """
    found = np.full(len(vectors), -1)
    for train, test in below.splits():
        seen, tested = vectors[train], vectors[test]
        if remedy != NO_REMEDY:
            axes = PrincipalAxes.fit(seen)
            if not len(axes.spread):  # all vectors are one: nothing to turn
                continue
            seen, tested = (
                axes.whitened(x) if remedy == "whitening" else axes.top(x, p.components)
                for x in (seen, tested)
            )
        targets = below.targets[train]
        probe = fit_linear_classifier(seen, targets, p.probe.C, p.probe.max_iter)
        classes = np.array([int(label) for label in probe.labels])
        found[test] = classes[probe.logits(tested).argmax(axis=1)]
    return found


def _upstream(arms: Shards, arm: Arm, upstream: Upstream) -> Iterator[pl.DataFrame]:
    if arm.kind == RANDOM:
        return
    found, known = arms.load_slide(arm.name, "upstream"), upstream.targets >= 0
    for measure, rows in zip(UPSTREAM.values(), (~upstream.trains, upstream.trains), strict=True):
        counted = _counted(upstream.table, found == upstream.targets, rows & known)
        yield counted.with_columns(measure=pl.lit(measure), remedy=pl.lit(NO_REMEDY))


def _counted(
    table: pl.DataFrame, correct: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> pl.DataFrame:
    return (
        table.with_columns(_correct=pl.Series(correct))
        .filter(pl.Series(rows, dtype=pl.Boolean))
        .group_by("label", "patient_id")
        .agg(n_tiles=pl.len(), n_correct=pl.col("_correct").sum())
        .sort("label", "patient_id")
    )


def _shape(
    arms: Shards, arm: Arm, trained: Sequence[Arm], below: FoldedTiles, p: PretrainingNoise
) -> pl.DataFrame:
    """Figures of the downstream tiles' vectors, of all and without each group of patients."""
    from threadpoolctl import threadpool_limits

    inside = below.fold >= 0
    codes, _ = patient_codes(below.table["patient_id"].to_numpy()[inside])
    groups = patient_groups(codes, p.n_groups)
    vectors = arms.load_slide(arm.name, "vectors").astype(np.float64)[inside]
    other = _held_against(arm, trained)
    clean = None if other is None else arms.load_slide(other.name, "vectors")[inside]
    rows = []
    with threadpool_limits(1):
        for group in (None, *range(int(groups.max()) + 1)):
            kept = np.ones(len(groups), np.bool_) if group is None else groups != group
            found = cloud_figures(vectors[kept])
            if clean is not None:
                angles = principal_angles(vectors[kept], clean[kept], p.components)
                found |= {ANGLE: float(angles.mean())} if len(angles) else {}
            rows += [{"measure": k, "group": group, "value": v} for k, v in found.items()]
    return pl.DataFrame(rows, schema={k: NOISE_SCHEMA[k] for k in ("measure", "group", "value")})


def _held_against(arm: Arm, trained: Sequence[Arm]) -> Arm | None:
    """The clean network of the same seed; of a clean one that of the next seed."""
    clean = [other for other in trained if other.kind == CLEAN]
    if arm.kind != CLEAN:
        return next((other for other in clean if other.seed == arm.seed), None)
    after = [other for other in clean if other.seed > arm.seed] or clean
    return after[0] if after[0] != arm else None


def cloud_figures(vectors: Floats) -> dict[str, float]:
    """Moments and spectrum of [m, d], as far as they are defined.

    Examples
    --------
    >>> round(cloud_figures(np.eye(4))["effective_rank"], 6)
    4.0
    """
    found = spectrum(vectors) if vectors.any() else {}
    varying = vectors[:, varying_dimensions(vectors)]
    if varying.shape[1]:
        found |= {k: float(v) for k, v in moments(power_sums(varying).sum(axis=0)).items()}
    return {name: found[name] for name in GEOMETRY if name in found}


def noise_figures(statistics: pl.DataFrame, p: PretrainingNoise) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`noise_statistics`.
    p
        The parameters.
    """
    of = Results(statistics, p)

    def figure(metric: str, compute: Callable[..., Value], *args: Any, **setting: Any) -> Figure:
        return Figure(metric, partial(compute, *args, *setting.values()), setting)

    for probe in PROBES:
        yield figure("gain_over_random", of.gain, probe=probe)
        yield figure("random_weights_accuracy", of.random_accuracy, probe=probe)
    for kind in p.kinds:
        for rate in p.rates:
            at: dict[str, Any] = {"kind": kind, "rate": rate}
            for probe in PROBES:
                for remedy in (NO_REMEDY, *REMEDIES):
                    yield figure("accuracy", of.accuracy, probe=probe, **at, remedy=remedy)
            for tiles in UPSTREAM:
                yield figure("upstream_accuracy", of.upstream_accuracy, tiles=tiles, **at)
            for measure in GEOMETRY:
                yield figure(measure, of.shape, measure, **at)
        for rate in p.rates[1:]:
            yield from _against_clean(of, figure, {"kind": kind, "rate": rate})
        for name in (*TRENDS, *GEOMETRY):
            yield Figure("trend", partial(of.trend, name, kind, False), {"of": name, "kind": kind})
            yield Figure("trend_p", partial(of.trend, name, kind, True), {"of": name, "kind": kind})


def _against_clean(
    of: Results, figure: Callable[..., Figure], at: Mapping[str, Any]
) -> Iterator[Figure]:
    yield figure(ANGLE, of.shape, ANGLE, **at)
    for probe in PROBES:
        yield figure("accuracy_loss", of.loss, probe=probe, **at)
        yield figure("hidden_loss", of.hidden_loss, probe=probe, **at)
        for remedy in REMEDIES:
            yield figure("recovered_share", of.recovered, probe=probe, remedy=remedy, **at)
            yield figure("remaining_loss", of.loss, probe=probe, **at, remedy=remedy)
