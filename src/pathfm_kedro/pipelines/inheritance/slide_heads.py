"""Heads for slide labels: mean, maximum or attention (ABMIL) over frozen tiles.

A slide's tiles become one vector by a head (:mod:`~pathfm_kedro.encoders.heads`), of which a logistic
regression reads the slide's label. Heads differ in nothing else: attention that has taken no step is
the mean. Folds are nested and hold whole patients: the outer ones test (other patients of all centers,
``in_domain``, or each center by models of the others, ``held_out_center``), the inner ones choose the
regression's strength C for each head. Attention is fitted anew to the patients that train in each fold,
inner ones too.

- ``macro_f1`` of each head, over slides. Null: from the worst to the best of guessing evenly, by the
  labels' frequencies (the class prior), or always the most frequent one;
- ``difference`` between two heads, by the same resampled patients.

Intervals: bootstrap over tested patients, given the models, widened for cross-validation.

Pitfalls
--------
- C alone is chosen; attention's own settings are fixed, so that it may do better with a search.
- Attention begins from one seed. What another start would give is not in the interval.
- With few slides attention has little to learn from: that it does no better than the mean on so few
  says nothing of large cohorts.

References
----------
Ilse, Tomczak & Welling 2018, "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass as record
from functools import cache, partial
from itertools import combinations
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.heads import AttentionModel, AttentionTraining, Pooling, pool_bags
from pathfm_kedro.pipelines.inheritance.patient_budgets import ResampledSums, counted
from pathfm_kedro.statistics.cross_validation import (
    ProbeSettings,
    patient_folds,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.measurements import Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.probe_splits import (
    IN_DOMAIN,
    TESTED,
    ProbedTiles,
    Split,
    held_out_center_splits,
    in_domain_splits,
    probe_logits,
)
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.statistics.votes import macro_f1, macro_f1_of_guesses

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]
Strength = Annotated[float, Field(gt=0)]

#: One row per head, way of testing, tested patient and label: its slides (n_tiles: what is tested), how
#: many are correctly classified, how many are predicted as each label; and the strengths that the inner
#: folds chose. A row with a problem says why there is nothing.
SLIDE_HEADS_SCHEMA: dict[str, pl.DataType] = {
    "head": pl.String(),
    "tested": pl.String(),
    "repeat": pl.Int64(),
    "patient_id": pl.String(),
    "target": pl.Int64(),
    "n_tiles": pl.Int64(),
    "n_correct": pl.Int64(),
    "n_predicted": pl.List(pl.Float64()),
    "chosen": pl.List(pl.Float64()),
    "problem": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SlideHeads(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    heads
        Those that are compared; none leaves the experiment out.
    max_tiles_per_slide
        That a head sees.
    folds, inner_folds
        Outer and inner groups of patients; labels of fewer patients than outer folds are left out.
    C
        Strengths that are tried; one is taken as it is.
    max_iter
        Iterations of the solver at most.
    attention
        How attention is fitted.
    """

    heads: tuple[Pooling, ...]
    max_tiles_per_slide: Count
    folds: Annotated[int, Field(ge=3)]
    inner_folds: Annotated[int, Field(ge=2)]
    C: Annotated[tuple[Strength, ...], Field(min_length=1)]
    max_iter: Count
    attention: AttentionTraining


@record(frozen=True, eq=False)
class _Slides:
    """Slides as bags of vectors, with patient, center and code of the label of each."""

    bags: Sequence[Floats]
    tags: pl.DataFrame
    targets: Ints
    p: SlideHeads

    @classmethod
    def of(cls, own: ProbedTiles, p: SlideHeads) -> _Slides:
        starts = np.flatnonzero(own.tags["slide_id"].ne_missing(own.tags["slide_id"].shift(1)))
        bags = np.split(own.vectors, starts[1:])
        return cls(bags, own.tags[starts], own.targets[starts], p)

    @property
    def n_labels(self) -> int:
        return int(self.targets.max()) + 1

    def splits(self, tested: str) -> list[Split]:
        """Who trains and who tests; what other experiments keep aside trains too."""
        patients = self.tags["patient_id"].to_numpy()
        centers = self.tags["center"].fill_null("").to_numpy()
        split = in_domain_splits if tested == IN_DOMAIN else held_out_center_splits
        found = split(patients, self.targets, centers, self.p.folds, self.p.seed)
        return [each for each in found if not each.problem]

    def vectors(self, head: Pooling, train: Ints) -> Floats:
        """[n, d] of all slides; attention is fitted to those that train."""
        if head == "attention":
            settings, seed = self.p.attention, self.p.seed
            return AttentionModel(self.bags, self.targets, train, settings, seed).vectors()
        (plain,) = pool_bags(head, self.bags).models
        return plain()

    def logits(self, vectors: Floats, train: Ints, strength: float) -> Floats:
        """[n, labels] of all slides by a regression of those that train."""
        probe = ProbeSettings(folds=self.p.folds, C=strength, max_iter=self.p.max_iter)
        return probe_logits(vectors, self.targets, train, self.n_labels, probe)


def slide_heads_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: SlideHeads
) -> pl.DataFrame:
    """What each head says of the slides of patients that did not train it.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`SLIDE_HEADS_SCHEMA`.
    """
    if not p.heads:
        return to_schema([], SLIDE_HEADS_SCHEMA)
    most, name = p.max_tiles_per_slide, "slide_heads"
    try:
        own = ProbedTiles.of(slides, tiles, embeddings, most, p.folds, p.seed, name)
    except Undefined as problem:
        reason = str(problem).replace("slide_heads.probe.folds", "slide_heads.folds")
        return pl.concat([_problem(head, tested, reason) for head in p.heads for tested in TESTED])
    of = _Slides.of(own, p)
    return pl.concat([_tested(head, tested, of) for tested in TESTED for head in p.heads])


def _problem(head: str, tested: str, reason: str) -> pl.DataFrame:
    return to_schema([{"head": head, "tested": tested, "problem": reason}], SLIDE_HEADS_SCHEMA)


def _tested(head: Pooling, tested: str, of: _Slides) -> pl.DataFrame:
    try:
        splits = of.splits(tested)
        if not splits:
            raise Undefined("no center can be tested by models of the others")
        parts, chosen = [], []
        for split in splits:
            train = np.union1d(split.train, split.aside)
            chosen.append(chosen_strength(head, train, of))
            logits = of.logits(of.vectors(head, train), train, chosen[-1])
            rows = split.test
            parts.append(counted(logits[rows], of.targets[rows], of.tags[rows]))
    except Undefined as problem:
        return _problem(head, tested, str(problem))
    keys = {"head": pl.lit(head), "tested": pl.lit(tested), "repeat": pl.lit(0)}
    found = pl.concat(parts)
    found = found.with_columns(chosen=pl.Series([chosen] * found.height), **keys)
    return to_schema(found, SLIDE_HEADS_SCHEMA)


def chosen_strength(head: Pooling, train: Ints, of: _Slides) -> float:
    """The strength with the highest macro-F1 in inner folds of the patients that train.

    Of equals the smallest, which regularises most.

    Raises
    ------
    Undefined
        If an inner fold leaves one label to train on.
    """
    strengths = sorted(of.p.C)
    if len(strengths) == 1:
        return strengths[0]
    patients, targets = of.tags["patient_id"].to_numpy()[train], of.targets[train]
    # Another seed: were it the same, those who choose would stand together in the outer folds.
    fold = patient_folds(patients, of.p.inner_folds, of.p.seed + 1, targets)
    counts = np.zeros((len(strengths), 3, of.n_labels))
    for number in range(of.p.inner_folds):
        inner, test = train[fold != number], train[fold == number]
        if len(np.unique(of.targets[inner])) < 2:
            raise Undefined(
                "an inner fold leaves one label to train on: add patients or lower "
                "slide_heads.inner_folds"
            )
        vectors = of.vectors(head, inner)
        for row, strength in enumerate(strengths):
            predicted = of.logits(vectors, inner, strength)[test].argmax(axis=1)
            truth = of.targets[test]
            for part, codes in enumerate((truth[truth == predicted], truth, predicted)):
                counts[row, part] += np.bincount(codes, minlength=of.n_labels)
    return strengths[int(macro_f1(counts).argmax())]


def slide_heads_figures(statistics: pl.DataFrame, p: SlideHeads) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`slide_heads_statistics`.
    p
        The parameters.
    """
    if not p.heads:
        reason = "slide_heads.heads is empty: name heads, as mean, max and attention"
        yield Figure("macro_f1", undefined(reason), {"tested": IN_DOMAIN})
        return
    for tested in TESTED:
        of = PatientStatistics(statistics, p).at(tested=tested)
        sums = cache(partial(_sums, of))
        for head in p.heads:
            yield of.figure("macro_f1", partial(_macro_f1, sums, head), head=head)
        for against, head in combinations(p.heads, 2):
            pair = partial(_difference, sums, head, against)
            yield of.figure("difference", pair, head=head, against=against)


def _sums(of: PatientStatistics, head: str) -> ResampledSums:
    return ResampledSums.read(of.at(head=head))


def _macro_f1(sums_of: Callable[[str], ResampledSums], head: str, _: PatientStatistics) -> Value:
    """Of one head, beside what guessing reaches."""
    sums = sums_of(head)
    chosen = sorted(set(sums.of.table["chosen"][0]))
    remark = f"C {', '.join(f'{strength:g}' for strength in chosen)}"
    null = Null(*macro_f1_of_guesses(sums.tested[0, 0]))
    return Value(sums.estimate(sums.macro_f1), null, remark=remark)


def _difference(
    sums_of: Callable[[str], ResampledSums], head: str, against: str, _: PatientStatistics
) -> Value:
    """One head's macro-F1 minus another's, on the same slides."""
    one, other = sums_of(head), sums_of(against)
    return Value(one.estimate(one.macro_f1 - other.macro_f1, (-1.0, 1.0)), Null(0.0, 0.0))
