"""``kedro cohort compare | verify``: what changed between audits, and whether one was reproduced."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathfm_kedro.commands.audits import PINNED, Audit
from pathfm_kedro.project import project_root

if TYPE_CHECKING:
    import polars as pl

    from pathfm_kedro.commands.paired_audits import FigureKey
    from pathfm_kedro.statistics.changed_figures import ChangedFigures
    from pathfm_kedro.statistics.drift import Drift
    from pathfm_kedro.statistics.paired_comparison import Difference

#: Figures named on the screen; the file of --output has all.
_NAMED = 20


@dataclass(frozen=True)
class DriftOf:
    """Drift of an encoder's vectors, with what it rests on, or why it was not measured."""

    encoder: str
    found: Drift | None
    reason: str = ""

    @property
    def words(self) -> str:
        """For the reader."""
        from pathfm_kedro.statistics.readable_numbers import number, p_value_text

        if self.found is None:
            return self.reason
        drifted = "the vectors differ" if self.found.is_shown else "no drift of vectors shown"
        if not self.found.can_be_shown:
            drifted = "too few patients for any drift of vectors to be shown"
        own, other = self.found.n_patients
        sets = (
            f"the same {own} patients twice" if self.found.paired else f"{own} and {other} patients"
        )
        return (
            f"{drifted}: MMD² {number(self.found.mmd2)} (by chance up to "
            f"{number(self.found.null_high)}), {p_value_text(self.found.p_value)}, {sets}"
            f"{', ' if self.reason else ''}{self.reason}"
        )


@dataclass(frozen=True)
class ComparedAudits:
    """Two audits side by side.

    Attributes
    ----------
    one, other
        The audits.
    encoders
        That are compared: of those that both have under the same name.
    changed
        Figures of both.
    paired
        Differences on the same resampled patients, of figures where that is possible.
    drifts
        Of each encoder that has vectors in both.
    """

    one: Audit
    other: Audit
    encoders: Sequence[str]
    changed: ChangedFigures
    paired: Mapping[FigureKey, Difference]
    drifts: Sequence[DriftOf]

    @classmethod
    def of(
        cls, one: Audit, other: Audit, encoders: Sequence[str], tiles: int, permutations: int
    ) -> ComparedAudits:
        """Join the tables, compute differences and measure drift."""
        import polars as pl

        from pathfm_kedro.commands.paired_audits import paired_differences
        from pathfm_kedro.statistics.changed_figures import ChangedFigures

        own = pl.col("encoder").is_in(list(encoders))
        changed = ChangedFigures.between(*(a.measurements.filter(own) for a in (one, other)))
        paired = paired_differences(one, other, encoders, changed.both)
        drifts = [_drift(encoder, one, other, tiles, permutations) for encoder in encoders]
        return cls(one, other, encoders, changed, paired, list(filter(None, drifts)))

    def difference(self, row: Mapping[str, Any]) -> tuple[Difference | None, bool]:
        """A figure's difference with its interval, and whether patients are paired in it."""
        from pathfm_kedro.statistics.measurements import Estimate
        from pathfm_kedro.statistics.paired_comparison import simultaneous_differences

        figure = row["experiment"], row["encoder"], row["metric"], row["stratum"], row["setting"]
        own = self.paired.get(figure)
        if own is not None:
            return own, True
        estimates = []
        for after in ("_after", ""):
            value, low, high = (row[f"{name}{after}"] for name in ("value", "ci_low", "ci_high"))
            if value is None or low is None or high is None:
                return None, False
            estimates.append(Estimate(value, low, high, 0, 0))
        return simultaneous_differences([(estimates[0], estimates[1])])[0], False


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--encoder", "encoders", multiple=True, help="Only this encoder; may be repeated.")
@click.option("--tiles", type=click.IntRange(2), default=4000, show_default=True,
              help="Tiles of each audit whose vectors are compared.")  # fmt: skip
@click.option("--permutations", type=click.IntRange(20), default=1000, show_default=True,
              help="Of the drift.")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a page of the findings of both side by side.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Write all figures of both side by side, as CSV.")  # fmt: skip
def compare(
    first: str,
    second: str,
    encoders: tuple[str, ...],
    tiles: int,
    permutations: int,
    html: Path | None,
    output: Path | None,
) -> None:
    """Say which findings changed between two audits, and whether the vectors drifted.

    A and B are cohorts, or versions of one as COHORT@VERSION; the newest where none is given. Encoders
    are those that both have under the same name. Where the slides are the same, differences are of the
    same resampled patients, and vectors are compared patient by patient.
    """
    root = project_root()
    one, other = Audit.parse(first, root), Audit.parse(second, root)
    if (one.cohort, one.version) == (other.cohort, other.version):
        raise click.ClickException(f"both are {one}: give two versions, or two cohorts")
    for path in filter(None, (html, output)):
        if not path.resolve().parent.is_dir():
            raise click.ClickException(f"{path.parent} does not exist: make the folder first")
    chosen = _shared_encoders(one, other, encoders)
    compared = ComparedAudits.of(one, other, chosen, tiles, permutations)
    click.echo(f"{one} against {other}: {_counted(compared.changed)}")
    for line in _verdict_lines(compared.changed, compared):
        click.echo(line)
    for drift in compared.drifts:
        click.echo(f"{drift.encoder}: {drift.words}")
    if output is not None:
        from pathfm_kedro.pipelines.report.text import safe_cells

        safe_cells(compared.changed.differences).write_csv(output)
        click.echo(f"{output} written")
    if html is not None:
        from pathfm_kedro.commands.comparison_page import render_comparison

        html.write_text(render_comparison(compared), encoding="utf-8")
        click.echo(f"{html} written")


def _shared_encoders(one: Audit, other: Audit, asked: Sequence[str]) -> list[str]:
    shared = sorted(set.intersection(*(set(a.measurements["encoder"]) for a in (one, other))))
    unknown = sorted(set(asked) - set(shared))
    if unknown:
        raise click.ClickException(
            f"{', '.join(unknown)} is not in both audits: in both are {', '.join(shared)}"
        )
    return list(asked) or shared


@click.command()
@click.argument("name")
@click.option("--rev", default="HEAD", show_default=True, help="The commit whose dvc.lock counts.")
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    help="How far a number may lie from the recorded one, relative to it where it is above 1.",
)
def verify(name: str, rev: str, tolerance: float) -> None:
    """Say whether `dvc repro` of the cohort NAME gave the figures that a commit recorded.

    On another type of processor vectors differ in their last bits, so that every hash differs: what
    counts are verdicts and numbers. Exits with 1 where a verdict or a number differs.
    """
    from pathfm_kedro.statistics.changed_figures import ChangedFigures
    from pathfm_kedro.statistics.readable_numbers import number

    root = project_root()
    audit = Audit.parse(f"{name}@{PINNED}", root)
    changed = ChangedFigures.between(recorded_measurements(audit, root, rev), audit.measurements)
    click.echo(f"{audit} against {rev}: {_counted(changed)}")
    for line in _verdict_lines(changed):
        click.echo(line)
    largest = changed.largest_difference
    problems = [
        f"{changed.verdicts.height} verdicts differ" * bool(changed.verdicts.height),
        f"{changed.before.height} figures are missing" * bool(changed.before.height),
        f"{changed.after.height} figures are new" * bool(changed.after.height),
        f"{changed.undefined.height} numbers are there in one only"
        * bool(changed.undefined.height),
        f"the largest difference is {largest:.2g}, above {tolerance:g}" * (largest > tolerance),
    ]
    found = [problem for problem in problems if problem]
    if found:
        for row in changed.differences.head(5).filter(difference=largest).iter_rows(named=True):
            click.echo(
                f"  most in {_named(row)}: {number(row['value'])}, {number(row['value_after'])}"
            )
        raise click.ClickException("not reproduced: " + "; ".join(found))
    click.echo(f"same verdicts, largest difference {largest:.2g}")


def recorded_measurements(audit: Audit, root: Path, rev: str) -> pl.DataFrame:
    """The table that a commit's dvc.lock names, from DVC's cache or remote.

    Raises
    ------
    ClickException
        If the commit has none, or the file lies in neither.
    """
    import polars as pl
    from dvc.api import read
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexError

    path = audit.table.relative_to(root).as_posix()
    try:
        content = read(path, repo=str(root), rev=rev, mode="rb")
    except (DvcException, DataIndexError, OSError) as error:
        raise click.ClickException(
            f"the figures of {rev} cannot be read ({error}): `dvc fetch report@{audit.cohort}` brings "
            "them from the remote, where somebody pushed them"
        ) from error
    return pl.read_parquet(io.BytesIO(content))


def _counted(changed: ChangedFigures) -> str:
    return (
        f"{changed.both.height:,} figures in both, {changed.before.height:,} only in the first, "
        f"{changed.after.height:,} only in the second"
    )


def _verdict_lines(
    changed: ChangedFigures, compared: ComparedAudits | None = None
) -> Iterator[str]:
    """Verdicts that changed with their figures; of two audits also the difference of these."""
    import polars as pl

    from pathfm_kedro.statistics.readable_numbers import number

    judged = changed.both.filter(pl.col("verdict").is_not_null())
    moved = changed.verdicts
    yield f"verdicts: {judged.height - moved.height:,} the same, {moved.height:,} changed"
    for row in moved.head(_NAMED).iter_rows(named=True):
        apart = f" ({difference_text(compared, row)})" if compared else ""
        yield (
            f"  {_named(row)}: {row['verdict'] or 'none'} -> {row['verdict_after'] or 'none'}; "
            f"{number(row['value'])} -> {number(row['value_after'])}{apart}"
        )
    if moved.height > _NAMED:
        yield f"  … and {moved.height - _NAMED} more: --output writes all"


def difference_text(compared: ComparedAudits, row: Mapping[str, Any]) -> str:
    """The difference of a figure of both, with its interval and what that rests on."""
    from pathfm_kedro.pipelines.report.text import interval_text

    found, paired = compared.difference(row)
    if found is None:
        return "no difference: a figure or an interval is missing"
    if found.value == 0 and found.low != found.low:
        return "the same in every resampled cohort"
    ends = {"value": found.value, "ci_low": found.low, "ci_high": found.high}
    return f"difference {interval_text(ends)}, {'same patients' if paired else 'as independent'}"


def _drift(encoder: str, one: Audit, other: Audit, tiles: int, permutations: int) -> DriftOf | None:
    """Drift of an encoder's vectors; None where either audit has none.

    Patients are the same where the slides are: names such as 1, 2, 3 mean others in another cohort.
    """
    import numpy as np

    from pathfm_kedro.commands.paired_audits import share_slides
    from pathfm_kedro.statistics.drift import drift

    sampled = [audit.vectors(encoder, tiles) for audit in (one, other)]
    if sampled[0] is None or sampled[1] is None:
        return None
    (x, p), (y, q) = sampled[0], sampled[1]
    if x.shape[1] != y.shape[1]:
        reason = f"vectors of {x.shape[1]} and {y.shape[1]} dimensions are no one encoder's"
        return DriftOf(encoder, None, reason)
    shared, note = np.intersect1d(p, q), ""
    if not share_slides(one, other):
        p, q = (np.array([f"{n}/{name}" for name in names]) for n, names in enumerate((p, q)))
        if len(shared):
            note = "those of one name taken as different ones, since the slides are not the same"
    elif 0 < len(shared) < len(np.union1d(p, q)):
        note = "those of either version alone left out"
        in_x, in_y = np.isin(p, shared), np.isin(q, shared)
        x, p, y, q = x[in_x], p[in_x], y[in_y], q[in_y]
    try:
        return DriftOf(encoder, drift(x, y, (p, q), permutations), note)
    except ValueError as error:
        return DriftOf(encoder, None, f"drift of vectors not measured: {error}")


def _named(row: dict[str, object]) -> str:
    setting = ", ".join(f"{k} {v}" for k, v in json.loads(str(row["setting"])).items())
    parts = (row["experiment"], row["encoder"], row["metric"], row["stratum"], setting)
    return " · ".join(str(part) for part in parts if part)
