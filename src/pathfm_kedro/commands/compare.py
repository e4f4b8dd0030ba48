"""``kedro cohort compare | verify``: what changed between audits, and whether one was reproduced."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathfm_kedro.cohorts import refuse_unknown_cohort
from pathfm_kedro.dvc_stages import cohort_globals
from pathfm_kedro.project import project_root

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from pathfm_kedro.statistics.changed_figures import ChangedFigures
    from pathfm_kedro.statistics.drift import Drift

#: The version that `dvc repro` writes.
PINNED = "0-repro"
_MEASUREMENTS = "08_reporting/measurements.parquet"
#: Figures named on the screen; the file of --output has all.
_NAMED = 20


@dataclass(frozen=True)
class Audit:
    """One version of what was measured of a cohort.

    Attributes
    ----------
    cohort, version
        As shown; an empty version is the newest one.
    folder
        Of the cohort's data.
    """

    cohort: str
    version: str
    folder: Path

    @classmethod
    def parse(cls, text: str, root: Path) -> Audit:
        """Read ``COHORT`` or ``COHORT@VERSION``.

        Raises
        ------
        ClickException
            If there is no such audit, naming those there are.
        """
        cohort, _, version = text.partition("@")
        refuse_unknown_cohort(cohort, root / "conf")
        folder = root / cohort_globals(root, cohort)["root"]
        found = sorted(path.name for path in (folder / _MEASUREMENTS).glob("*") if path.is_dir())
        if not found:
            raise click.ClickException(
                f"cohort {cohort} was not audited yet: kedro run --env {cohort}"
            )
        if version and version not in found:
            raise click.ClickException(
                f"cohort {cohort} has no version '{version}': there are {', '.join(found)}"
            )
        return cls(cohort, version or found[-1], folder)

    def __str__(self) -> str:
        return f"{self.cohort}@{self.version}"

    def measurements(self) -> pl.DataFrame:
        """The table of all experiments."""
        import polars as pl

        return pl.read_parquet(self.folder / _MEASUREMENTS / self.version / "measurements.parquet")

    def vectors(
        self, encoder: str, most: int
    ) -> tuple[NDArray[np.float64], NDArray[np.str_]] | None:
        """[n, d] vectors and [n] patients of at most so many tiles, the patients' taking turns.

        Only what is sampled is read; None where there are no vectors of the encoder.
        """
        import numpy as np
        import polars as pl
        from kedro.io.core import Version

        from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
        from pathfm_kedro.statistics.sampling import shuffled_turns

        family = self.folder / "04_feature/embeddings"
        version = self._version_of(family, f"*/{encoder}/_index.json")
        slides = self.folder / "02_intermediate/slides.parquet"
        table = self._version_of(slides, "*/slides.parquet")
        if version is None or table is None:
            return None
        shards = ShardedTensorDataset(
            filepath=(family / encoder).as_posix(), version=Version(version, None)
        ).load()
        rows = pl.read_parquet(
            slides / table / "slides.parquet", columns=["slide_id", "patient_id"]
        )
        known = rows.filter(pl.col("slide_id").is_in(list(shards.slide_ids))).sort("slide_id")
        if known.is_empty():
            return None
        counts = [int(shards.index[slide]["rows"]) for slide in known["slide_id"]]
        rows = known[np.repeat(np.arange(len(counts)), counts)].select(
            "slide_id",
            pl.col("patient_id").cast(pl.String()),
            place=pl.int_range(pl.len()).over("slide_id"),
            _row=pl.int_range(pl.len()),
        )
        chosen = shuffled_turns(rows, [["patient_id"]], 0).head(most).sort("_row")
        parts = [
            shards.load_slide(str(slide))[own["place"].to_numpy()]
            for (slide,), own in chosen.group_by("slide_id", maintain_order=True)
        ]
        return np.concatenate(parts).astype(np.float64), chosen["patient_id"].to_numpy()

    def _version_of(self, folder: Path, pattern: str) -> str | None:
        """The audit's version of a dataset, or where it took an earlier one, the newest before it."""
        found = sorted(path.relative_to(folder).parts[0] for path in folder.glob(pattern))
        before = [version for version in found if version <= self.version]
        return before[-1] if before else None


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--encoder", "encoders", multiple=True, help="Only this encoder; may be repeated.")
@click.option(
    "--tiles",
    type=click.IntRange(2),
    default=4000,
    show_default=True,
    help="Tiles of each audit whose vectors are compared.",
)
@click.option(
    "--permutations", type=click.IntRange(20), default=1000, show_default=True, help="Of the drift."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all figures of both side by side, as CSV.",
)
def compare(
    first: str,
    second: str,
    encoders: tuple[str, ...],
    tiles: int,
    permutations: int,
    output: Path | None,
) -> None:
    """Say which findings changed between two audits, and whether the vectors drifted.

    A and B are cohorts, or versions of one as COHORT@VERSION; the newest where none is given. Encoders
    are those that both have under the same name.
    """
    import polars as pl

    from pathfm_kedro.pipelines.report.text import safe_cells
    from pathfm_kedro.statistics.changed_figures import ChangedFigures

    root = project_root()
    one, other = Audit.parse(first, root), Audit.parse(second, root)
    if (one.cohort, one.version) == (other.cohort, other.version):
        raise click.ClickException(f"both are {one}: give two versions, or two cohorts")
    tables = [audit.measurements() for audit in (one, other)]
    shared = sorted(set(tables[0]["encoder"]) & set(tables[1]["encoder"]))
    unknown = sorted(set(encoders) - set(shared))
    if unknown:
        raise click.ClickException(
            f"{', '.join(unknown)} is not in both audits: in both are {', '.join(shared)}"
        )
    chosen = list(encoders) or shared
    changed = ChangedFigures.between(*(t.filter(pl.col("encoder").is_in(chosen)) for t in tables))
    click.echo(f"{one} against {other}: {_counted(changed)}")
    for line in _verdict_lines(changed):
        click.echo(line)
    for encoder in chosen:
        drifted = _drift_line(encoder, one, other, tiles, permutations)
        if drifted:
            click.echo(drifted)
    if output is not None:
        safe_cells(changed.differences).write_csv(output)
        click.echo(f"{output} written")


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
    from pathfm_kedro.pipelines.report.text import number
    from pathfm_kedro.statistics.changed_figures import ChangedFigures

    root = project_root()
    audit = Audit.parse(f"{name}@{PINNED}", root)
    changed = ChangedFigures.between(recorded_measurements(audit, root, rev), audit.measurements())
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

    path = (audit.folder / _MEASUREMENTS / PINNED / "measurements.parquet").relative_to(root)
    try:
        content = read(path.as_posix(), repo=str(root), rev=rev, mode="rb")
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


def _verdict_lines(changed: ChangedFigures) -> Iterator[str]:
    """Verdicts that changed, each with its figures and the interval of their difference."""
    import polars as pl

    from pathfm_kedro.pipelines.report.text import number

    judged = changed.both.filter(pl.col("verdict").is_not_null())
    moved = changed.verdicts
    yield f"verdicts: {judged.height - moved.height:,} the same, {moved.height:,} changed"
    for row in moved.head(_NAMED).iter_rows(named=True):
        yield (
            f"  {_named(row)}: {row['verdict'] or 'none'} -> {row['verdict_after'] or 'none'}; "
            f"{number(row['value'])} -> {number(row['value_after'])}{_interval_of(row)}"
        )
    if moved.height > _NAMED:
        yield f"  … and {moved.height - _NAMED} more: --output writes all"


def _interval_of(row: dict[str, Any]) -> str:
    """The difference with its interval, the two figures taken as independent."""
    from pathfm_kedro.statistics.measurements import Estimate
    from pathfm_kedro.statistics.paired_comparison import simultaneous_differences

    estimates = []
    for after in ("_after", ""):
        value, low, high = (row[f"{name}{after}"] for name in ("value", "ci_low", "ci_high"))
        if low is None or high is None:
            return ""
        estimates.append(Estimate(value, low, high, 0, 0))
    (found,) = simultaneous_differences([(estimates[0], estimates[1])])
    return f" (difference {found.value:+.3f}, {found.low:+.3f} to {found.high:+.3f})"


def _drift_line(
    encoder: str, one: Audit, other: Audit, tiles: int, permutations: int
) -> str | None:
    from pathfm_kedro.statistics.drift import drift

    sampled = [audit.vectors(encoder, tiles) for audit in (one, other)]
    if sampled[0] is None or sampled[1] is None:
        return None
    (x, p), (y, q) = sampled[0], sampled[1]
    if x.shape[1] != y.shape[1]:
        return (
            f"{encoder}: vectors of {x.shape[1]} and {y.shape[1]} dimensions are no one encoder's"
        )
    try:
        found = drift(x, y, (p, q), permutations)
    except ValueError as error:
        return f"{encoder}: drift of vectors not measured: {error}"
    return f"{encoder}: {_drift_words(found)}"


def _drift_words(found: Drift) -> str:
    drifted = "the vectors differ" if found.p_value < 0.05 else "no drift of vectors shown"
    sets = (
        f"the same {found.n_patients[0]} patients twice"
        if found.paired
        else f"{found.n_patients[0]} and {found.n_patients[1]} patients"
    )
    return (
        f"{drifted}: MMD² {found.mmd2:.3g} (by chance up to {found.null_high:.3g}), "
        f"p = {found.p_value:.3g}, {sets}"
    )


def _named(row: dict[str, object]) -> str:
    setting = ", ".join(f"{k} {v}" for k, v in json.loads(str(row["setting"])).items())
    parts = (row["experiment"], row["encoder"], row["metric"], row["stratum"], setting)
    return " · ".join(str(part) for part in parts if part)
