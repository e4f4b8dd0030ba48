r"""Subgroups: whether an encoder serves women and men, young and old, each scanner and batch alike.

The cohort names columns of its manifest (``cohort.subgroups: [sex, age_band, scanner]``). Of every
subgroup of a column:

- ``robustness_index``: SO / (SO + OS) over the queries of its patients at the cohort's k, on the
  neighbours of the experiment robustness_index: they are sought in the whole cohort;
- ``retrieval_accuracy``: balanced accuracy of the majority of the k nearest slides of other patients,
  slides being the mean of their mosaic;
- ``probe_accuracy``: balanced accuracy of a linear probe of the same vectors, tested on patients that
  it never saw.

Accuracies are means over the labels that all subgroups have, so that another mix of labels is no gap.

``largest_gap`` is the largest difference between two subgroups of a column
(:mod:`~pathfm_kedro.statistics.group_gaps`). A gap is never below 0: its null is the gap with subgroups
permuted over patients of the same label and center, and its p-value and interval allow for the number
of columns. The null of a subgroup's own figure is where it lies under the same permutations: where so
many other patients of these labels and centers would lie.

``association`` is Cramér's V over patients, of subgroup and center, and of subgroup and label. Where
fewer than half of the patients share label and center with a patient of another subgroup, the two are
confounded: a gap is shown and not judged.

Patients whose slides differ in a column belong to none of its subgroups. Subgroups with too few
patients are not applicable, and say how many there are.

Pitfalls
--------
- That no gap is found says little where subgroups are small: read the upper end of its interval.
- A gap between subgroups of one center is not that of another.
- One vector per slide: what single tiles show is averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass as record
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.robustness.robustness_index import counted, design_problem
from pathfm_kedro.statistics.association import cramers_v
from pathfm_kedro.statistics.balanced_designs import codes_of
from pathfm_kedro.statistics.cross_validation import CROSS_VALIDATION_EFFECT, ProbeSettings
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.group_gaps import (
    GroupGap,
    MeanRecall,
    PairShare,
    PatientFigure,
    counterparts,
    permuted_groups,
)
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.permutation import null_range
from pathfm_kedro.statistics.readable_numbers import p_value_text
from pathfm_kedro.statistics.unit_neighbours import OS, SO, UnitNeighbours

Ints = NDArray[np.int64]

INDEX, RETRIEVAL, PROBE = "robustness_index", "retrieval_accuracy", "probe_accuracy"
#: A column of more values is no column of subgroups: ages, dates, names.
_MOST_GROUPS = 12
#: With fewer patients who have a counterpart, a gap is read off patients who have none.
_LEAST_COUNTERPARTS = 0.5
#: From here a subgroup goes with center or label more than it does not.
_CONFOUNDED = 0.5
#: A gap is called larger than chance below this p-value.
_ALPHA = 0.05
#: Of a label in a subgroup: one patient's recall is that patient's.
_PATIENTS_PER_LABEL = 2

#: Three kinds of rows:
#:
#: - with column: the subgroup that a patient belongs to, null where its slides differ; label and center
#:   are the patient's first;
#: - with measure: slides of a label and patient, and how many of them are correctly classified;
#: - with measure and reason: why there are none.
SUBGROUPS_SCHEMA: dict[str, pl.DataType] = {
    "column": pl.String(),
    "group": pl.String(),
    "measure": pl.String(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "n_slides": pl.Int64(),
    "n_correct": pl.Int64(),
    "reason": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Subgroups(ExperimentParameters):
    """Parameters of the experiment; the columns are those of ``cohort.subgroups``.

    Attributes
    ----------
    min_patients
        Of a subgroup.
    k
        Nearest slides whose labels vote.
    probe
        Of the label, by slide.
    n_permutations
        Of subgroups over patients of the same label and center.
    """

    min_patients: Annotated[int, Field(ge=2)]
    k: Annotated[int, Field(ge=1)]
    probe: ProbeSettings
    n_permutations: Annotated[int, Field(ge=1)] = 1000


def subgroup_figures(
    statistics: pl.DataFrame,
    index: pl.DataFrame,
    chosen_k: Mapping[str, Any],
    columns: Sequence[str],
    p: Subgroups,
) -> Iterator[Figure]:
    """Of every column the largest gaps, each subgroup's figures, and what it goes with.

    Parameters
    ----------
    statistics
        From :func:`subgroup_statistics`.
    index, chosen_k
        Statistics of the robustness index, and the cohort's k.
    columns
        Of subgroups.
    p
        The parameters.
    """
    sources = _sources(statistics, index, chosen_k)
    for column in columns:
        found = [Compared(statistics, column, len(columns), s, p) for s in sources]
        for each in found:
            at = {"column": column, "of": each.source.measure}
            yield Figure("largest_gap", partial(largest_gap, each), at)
        for each in found:
            yield from _of_subgroups(each)
        for tag in ("center", "label"):
            compute = partial(association, found[0], tag)
            yield Figure("association", compute, {"column": column, "with": tag})


@record(frozen=True)
class Source:
    """Where a figure of patients comes from: the patients in its order, or why there is none."""

    measure: str
    patients: tuple[str, ...] = ()
    figure: PatientFigure | None = None
    reason: str = ""


def _sources(
    statistics: pl.DataFrame, index: pl.DataFrame, chosen_k: Mapping[str, Any]
) -> list[Source]:
    return [
        _index_source(index, chosen_k),
        _accuracy_source(statistics, RETRIEVAL, 1.0),
        _accuracy_source(statistics, PROBE, CROSS_VALIDATION_EFFECT),
    ]


def _index_source(index: pl.DataFrame, chosen_k: Mapping[str, Any]) -> Source:
    """Neighbours of the index's design ``all`` at the cohort's k."""
    rows, k = counted(index, "all"), chosen_k["k"]
    problem = design_problem(index, "all") or ("" if k is not None else str(chosen_k["origin"]))
    if rows.is_empty() or problem:
        reason = problem or "robustness_index.designs lacks 'all', whose neighbours are read"
        return Source(INDEX, reason=reason)
    found = UnitNeighbours.of(rows, "all")
    near = found.band <= found.k_grid.index(k)
    so, os = (found.matrix(near & (found.kind == kind)) for kind in (SO, OS))
    # A tile of several subsamples is one query.
    queries = pl.col("n").sum() // rows["scope"].n_unique()
    n = rows.filter(k=k).group_by("patient_id").agg(queries).sort("patient_id")
    return Source(INDEX, tuple(n["patient_id"]), PairShare(so, so + os, n["n"].to_numpy()))


def _accuracy_source(statistics: pl.DataFrame, measure: str, effect: float) -> Source:
    rows = statistics.filter(measure=measure)
    reasons = rows["reason"].drop_nulls()
    if len(reasons) or rows.is_empty():
        return Source(measure, reason=reasons[0] if len(reasons) else "no slide has vectors")
    shape = rows["patient_id"].n_unique(), rows["label"].n_unique()
    place = codes_of(rows["patient_id"]), codes_of(rows["label"])
    correct, tested = np.zeros(shape), np.zeros(shape)
    np.add.at(correct, place, rows["n_correct"].to_numpy())
    np.add.at(tested, place, rows["n_slides"].to_numpy())
    patients = tuple(rows["patient_id"].unique().sort())
    return Source(measure, patients, MeanRecall(correct, tested, effect))


@record(frozen=True)
class Compared:
    """A figure in the subgroups of one column."""

    statistics: pl.DataFrame
    column: str
    n_columns: int
    source: Source
    p: Subgroups

    @cached_property
    def members(self) -> pl.DataFrame:
        """Patients that the figure is measured on, with their subgroup, label and center."""
        rows = self.statistics.filter(column=self.column)
        return rows.filter(pl.col("patient_id").is_in(self.source.patients))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Patients of each subgroup, by name."""
        named = self.members.drop_nulls("group").group_by("group").len().sort("group")
        return dict(named.iter_rows())

    @property
    def names(self) -> list[str]:
        """Subgroups that are large enough."""
        return [name for name, size in self.sizes.items() if size >= self.p.min_patients]

    @property
    def obstacle(self) -> str:
        """Why no subgroups can be compared, with the mend; empty if they can."""
        if self.source.reason:
            return self.source.reason
        if len(self.sizes) > _MOST_GROUPS:
            return (
                f"the column '{self.column}' has {len(self.sizes)} values: write at most "
                f"{_MOST_GROUPS}, such as bands of age"
            )
        if len(self.names) >= 2:
            return ""
        sizes = ", ".join(f"{name}: {size}" for name, size in self.sizes.items()) or "none"
        mixed = self.members["group"].null_count()
        several = f"; {mixed} patients have slides of several" if mixed else ""
        return (
            f"a gap needs two subgroups of {self.p.min_patients} patients, and there are ({sizes})"
            f"{several}: add patients, or join subgroups"
        )

    @cached_property
    def tags(self) -> tuple[Ints, Ints]:
        """[P] code of each patient's subgroup, −1 for none; and of its label and center."""
        order = pl.DataFrame({"patient_id": self.source.patients})
        rows = order.join(self.members, on="patient_id", how="left", maintain_order="left")
        codes = {name: code for code, name in enumerate(self.names)}
        group = rows["group"].replace_strict(codes, default=-1, return_dtype=pl.Int64).fill_null(-1)
        cell = pl.concat_str("label", "center", separator="\t")
        # Who is of no subgroup takes part in no exchange.
        strata = rows.select(pl.when(group >= 0).then(cell).otherwise(pl.lit("")))
        return group.to_numpy(), codes_of(strata.to_series())

    @cached_property
    def gap(self) -> GroupGap:
        """The gap between the subgroups that are large enough.

        Raises
        ------
        Undefined
            If no subgroups can be compared.
        """
        if self.obstacle:
            raise Undefined(self.obstacle)
        group, strata = self.tags
        figure = self._figure(group)
        permuted = permuted_groups(group, strata, self.p.n_permutations, self.p.seed)
        weights = self.p.weights(len(group))
        return GroupGap(figure, group, permuted, weights)

    def _figure(self, group: Ints) -> PatientFigure:
        figure = self.source.figure
        assert figure is not None
        if not isinstance(figure, MeanRecall):
            return figure
        members = group == np.arange(len(self.names))[:, None]
        shared = figure.shared_labels(members, _PATIENTS_PER_LABEL)
        if shared.sum() < 2:
            raise Undefined(
                f"'{self.column}' and label are confounded: {int(shared.sum())} label(s) have "
                f"{_PATIENTS_PER_LABEL} patients in every subgroup, and accuracies over other labels "
                "do not compare: add patients"
            )
        return figure.with_labels(shared)

    @property
    def n_patients(self) -> int:
        """Patients of the subgroups that are compared."""
        return int((self.tags[0] >= 0).sum())

    @cached_property
    def confounded(self) -> str:
        """Why a gap cannot be distinguished from one between centers or labels; empty if it can."""
        group, strata = self.tags
        known = group >= 0
        share = float(counterparts(group[known], strata[known]).mean())
        if share >= _LEAST_COUNTERPARTS:
            return ""
        strength = {tag: cross_association(self.members, tag) or 0.0 for tag in ("center", "label")}
        tag = max(strength, key=lambda name: strength[name])
        few = f"{share:.0%} of the patients share label and center with one of another subgroup"
        if strength[tag] < _CONFOUNDED:
            return f"{few}, too few to tell a gap from one between centers or labels: add patients"
        return (
            f"'{self.column}' is confounded with {tag} (Cramér's V {strength[tag]:.2f}): {few}, so "
            f"that a gap cannot be distinguished from one between {tag}s"
        )


def largest_gap(compared: Compared) -> Value:
    """The largest gap between subgroups; null: subgroups permuted within label and center."""
    gap = compared.gap
    values = [figure.value for figure in gap.figures]
    if not np.isfinite(values).all():
        name = compared.names[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise Undefined(f"{compared.column} {name} has no such figure: see its own row")
    mixed = compared.members["group"].null_count()
    reasons = [
        compared.confounded,
        f"{gap.named(compared.names)}{_against_chance(gap, compared.n_columns)}",
        f"without {mixed} patients whose slides are of several subgroups" if mixed else "",
    ]
    interval = gap.interval(compared.n_columns)
    n = int(gap.figure.n[gap.group >= 0].sum())
    return Value(
        Estimate(gap.value, *interval, n, compared.n_patients),
        null_range(gap.permuted_gaps) if gap.is_exchangeable else Null(),
        caveat=compared.confounded,
        reason="; ".join(filter(None, reasons)),
    )


def _against_chance(gap: GroupGap, n_columns: int) -> str:
    """How the gap compares with permuted subgroups."""
    if not gap.is_exchangeable:
        return ", and no patient can change places with one of another subgroup"
    p_value = gap.p_value(n_columns)
    among = f" allowing for {n_columns} columns" if n_columns > 1 else ""
    larger = "larger than" if p_value < _ALPHA else "no larger than"
    return f", {larger} with subgroups permuted: {p_value_text(p_value)}{among}"


def _of_subgroups(compared: Compared) -> Iterator[Figure]:
    """A subgroup's figure, or why it has none."""
    measure, column = compared.source.measure, compared.column
    sizes = {} if len(compared.sizes) > _MOST_GROUPS else compared.sizes
    for name, size in sizes.items():
        stratum = f"{column}={name}"
        compute: Callable[[], Value] = partial(of_subgroup, compared, name)
        if size < compared.p.min_patients:
            compute = undefined(
                f"{size} patients, and a subgroup needs {compared.p.min_patients}: add patients, or "
                "join subgroups"
            )
        yield Figure(measure, compute, stratum=stratum, n_patients=size)


def of_subgroup(compared: Compared, name: str) -> Value:
    """The figure of one subgroup; null: of so many patients of its labels and centers."""
    gap, code = compared.gap, compared.names.index(name)
    estimate, figure = gap.estimate_of(code), gap.figures[code]
    if not np.isfinite(figure.value):
        raise Undefined(
            "nothing of this subgroup's patients counts towards the figure: add patients"
        )
    permuted = figure.permuted[np.isfinite(figure.permuted)]
    return Value(estimate, null_range(permuted) if gap.is_exchangeable else Null())


def association(compared: Compared, tag: str) -> Value:
    """Cramér's V of subgroup and center, or label, over patients."""
    members = compared.members.drop_nulls("group")
    strength = cross_association(members, tag)
    if strength is None:
        raise Undefined(f"one subgroup or one {tag}: nothing to go together with")
    return Value(Estimate(strength, None, None, members.height, members.height))


def cross_association(members: pl.DataFrame, tag: str) -> float | None:
    """Cramér's V of the columns `group` and `tag`."""
    known = members.drop_nulls(["group", tag])
    if known.is_empty():
        return None
    counts = np.zeros((known["group"].n_unique(), known[tag].n_unique()), np.int64)
    np.add.at(counts, (codes_of(known["group"]), codes_of(known[tag])), 1)
    return cramers_v(counts)
