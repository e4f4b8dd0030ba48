"""Error rates of the judged checks on simulated cohorts whose truth is known.

    python benchmarks/error_rates.py
    python benchmarks/error_rates.py --cohorts 20 --simulations rotation

Results gather in a folder, batch by batch over all cells: a run that is interrupted goes on where it
was, and the table can be made at any time. The table and how to read it: docs/error_rates.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
from simulated_checks import SIMULATIONS
from simulated_cohorts import Simulated

from pathfm_kedro.statistics.bootstrap import binomial_interval
from pathfm_kedro.statistics.paired_comparison import SUFFIX

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/error_rates.md"
RESULTS = ROOT / "data/error_rates"
#: Cohorts of a cell that are simulated at once.
_BATCH = 50
#: Share of wrong verdicts that a check may have.
_ALLOWED = 0.05
#: Cohorts simulated before k was kept lack it.
_NO_K = pl.DataFrame(schema={"k": pl.String})
#: An interval narrower than this speaks of a figure at the end of its range.
_NO_WIDTH = 1e-6
#: Its truth is the range of the organs' expected figures: the range of figures that vary is larger.
_RANGE, _OF_ORGAN = "f1_range_over_organs", "macro_f1"

_HEAD = """\
# Error rates of the judged checks

Made by `make calibrate` from simulated cohorts; do not edit. A part of it is simulated by
`python benchmarks/error_rates.py --simulations rotation --cohorts 50`.

Vectors are sums of effects of label, center and patient and of each tile's own noise, in 32
dimensions; of changed tiles also of how far a change moves them. Every cohort goes through the
experiments themselves, with the criteria of `conf/base`, 400 bootstrap draws and 100 permutations.
What each encoder is made of stands in [simulated_checks.py](../benchmarks/simulated_checks.py) and the
files beside it.
Patients are those of the whole cohort: 4 labels at 3 centers, equally many in each cell.

- **wrong**: share of cohorts with a verdict that must not be (a pass of an encoder that knows nothing
  or follows the center, a fail of one that knows the label), and the upper end of its exact 95%
  interval. Near a threshold it is the verdict that the mean over cohorts belies.
- **right**: share with the verdict that should be: the power. What is neither wrong nor right is open
  (`inconclusive`, `undecidable`, or without a figure).
- **coverage**: how often the 95% interval holds the figure's mean over cohorts: those that read it at
  the same number of neighbours, where each cohort chooses its own (of the range over organs: the range
  of the organs' mean figures). "No width": at the end of its range the figure is the
  same in all resampled cohorts.
- **difference**: how often the interval of the difference holds 0 where two such encoders, alike but
  for noise of their own, see the same patients. Where both figures move alike in every resampled cohort
  the difference is 0 and has no interval: it counts as held. The number of cohorts that both see
  stands beside it.

Resampled patients choose the number of clusters of the clustering score anew, as another cohort would:
given the clusters alone, its interval held the mean score in 0.75 to 0.87 of 60 cohorts of an encoder
that knows the label, and in 0.97 and more so. Where two numbers of clusters fit about as well, the
interval is 1.5 to 1.9 times as wide.

Verdicts are those of the interval alone. The report then corrects for the number of checks, which
makes passes and fails rarer, wrong ones too.
"""


@dataclass(frozen=True)
class Cell:
    """Cohorts of one kind, seen by one encoder, or two that are alike, of one size."""

    simulation: str
    encoder: str
    patients: int
    paired: bool = False

    @property
    def simulated(self) -> Simulated:
        """The encoder."""
        return SIMULATIONS[self.simulation].encoders[self.encoder]

    def file(self, results: Path, first: int) -> Path:
        """Where the batch of cohorts from `first` on is kept."""
        kind = "pairs" if self.paired else "cohorts"
        name = f"{self.simulation}, {self.encoder}, {self.patients}, {kind}, {first}.parquet"
        return results / name.replace(" ", "_").replace(",", "")

    def simulate(self, first: int, n: int) -> pl.DataFrame:
        """Rows of n cohorts."""
        simulation = SIMULATIONS[self.simulation]
        kept = ["metric", "stratum", "value", "ci_low", "ci_high", "threshold", "direction"]
        rows_of = simulation.pair if self.paired else simulation.cohort
        return pl.concat(
            rows_of(self.encoder, self.patients, seed)
            .select(*kept, "verdict", k=pl.col("setting").str.json_path_match("$.k"))
            .with_columns(seed=pl.lit(seed))
            for seed in range(first, first + n)
        )


def batch(task: tuple[Cell, Path, int, int]) -> str:
    """Simulate cohorts and keep their rows; nothing where they are there."""
    cell, results, first, n = task
    file = cell.file(results, first)
    if not file.exists():
        rows = cell.simulate(first, n)
        part = file.with_suffix(f".{os.getpid()}.part")
        rows.write_parquet(part)
        part.rename(file)
    return file.name


def read_cell(cell: Cell, results: Path, cohorts: int) -> pl.DataFrame | None:
    """Rows of a cell that are there."""
    files = [cell.file(results, first) for first in range(0, cohorts, _BATCH)]
    found = [pl.read_parquet(file) for file in files if file.exists()]
    return pl.concat([_NO_K, *found], how="diagonal_relaxed") if found else None


def rates(cell: Cell, rows: pl.DataFrame, pairs: pl.DataFrame | None) -> Iterator[dict[str, Any]]:
    """What a cell says of each of its figures, and what its pairs say of differences."""
    n = rows["seed"].n_unique()
    whole = rows.filter(stratum="all")
    judged = set(whole.drop_nulls("threshold")["metric"])
    for (metric,), part in whole.group_by("metric", maintain_order=True):
        if metric == _OF_ORGAN:
            continue
        found = part.drop_nulls(["value", "ci_low", "ci_high"])
        mean = found["value"].mean()
        wrong, right = _verdicts(cell.simulated, part, mean) if metric in judged else ("", "")
        verdicts = part["verdict"].to_list()
        yield {
            "figure": metric,
            "encoder": cell.encoder,
            "patients": cell.patients,
            "cohorts": n,
            "mean": mean,
            "wrong": wrong,
            "n_wrong": verdicts.count(wrong) if wrong else None,
            "right": right,
            "n_right": verdicts.count(right) if right else None,
            "coverage": _coverage(found, _truth(metric, rows)),
            "difference": _of_difference(metric, pairs),
            "pairs": 0 if pairs is None else pairs["seed"].n_unique(),
        }


def _verdicts(encoder: Simulated, rows: pl.DataFrame, mean: Any) -> tuple[str, str]:
    """The verdict that must not be, and the one that should."""
    if encoder.wrong or mean is None:
        return encoder.wrong or "pass", encoder.right
    above = mean > rows["threshold"][0]
    right = "pass" if above == (rows["direction"][0] == "above") else "fail"
    return ("fail" if right == "pass" else "pass"), right


def _truth(metric: Any, rows: pl.DataFrame) -> pl.Expr:
    """What the intervals should hold: the mean of cohorts whose figure was read at the same k."""
    if metric != _RANGE:
        return pl.col("value").mean().over("k")
    organs = rows.filter(pl.col("stratum").str.starts_with("organ="), metric=_OF_ORGAN)
    means = organs.group_by("stratum").agg(pl.col("value").mean())["value"]
    ends = (means.max(), means.min()) if len(means) else (None, None)
    return pl.lit(ends[0], pl.Float64) - pl.lit(ends[1], pl.Float64)


def _of_difference(metric: Any, pairs: pl.DataFrame | None) -> float | None:
    """Share of intervals of the difference of two like encoders that hold 0."""
    if pairs is None:
        return None
    rows = pairs.filter(stratum="all", metric=f"{metric}{SUFFIX}").drop_nulls("value")
    if rows["ci_low"].is_null().all():
        return None
    low, high = (pl.col(end).fill_null(pl.col("value")) for end in ("ci_low", "ci_high"))
    held = rows.select(pl.lit(0.0).is_between(low - _NO_WIDTH, high + _NO_WIDTH))
    return held.to_series().mean()  # type: ignore[return-value]


def _coverage(rows: pl.DataFrame, truth: pl.Expr) -> float | None:
    """Share of intervals that hold the truth; None where intervals have no width."""
    wide = rows.filter(pl.col("ci_high") - pl.col("ci_low") > _NO_WIDTH).height
    if not rows.height or wide <= rows.height / 2:
        return None
    low, high = pl.col("ci_low") - _NO_WIDTH, pl.col("ci_high") + _NO_WIDTH
    held = rows.select(truth.is_between(low, high))
    return held.to_series().mean()  # type: ignore[return-value]


def page(found: Sequence[dict[str, Any]]) -> str:
    """The page: what stands out, worst rates per check, and every cell."""
    table = pl.DataFrame(found, infer_schema_length=None)
    parts = [_HEAD, "## Every check at its worst", _summary(table), _beyond(table)]
    parts.append("## Every cell")
    for (figure,), rows in table.group_by("figure", maintain_order=True):
        parts += [f"### {figure}", _cells(rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _summary(table: pl.DataFrame) -> str:
    rows = []
    for (figure,), part in table.group_by("figure", maintain_order=True):
        rows.append(
            {
                "figure": figure,
                "cohorts of a cell": _span(part["cohorts"]),
                "false pass": _worst(part.filter(wrong="pass")),
                "false fail": _worst(part.filter(wrong="fail")),
                "coverage": _ends(part["coverage"]),
                "difference": _ends(part["difference"]),
            }
        )
    return _markdown(rows)


def _ends(values: pl.Series) -> str:
    """Least and largest share."""
    known = values.cast(pl.Float64).drop_nulls()
    return f"{known.min():.2f} to {known.max():.2f}" if len(known) else ""


def _span(values: pl.Series) -> str:
    low, high = values.min(), values.max()
    return str(low) if low == high else f"{low} to {high}"


def _worst(rows: pl.DataFrame) -> str:
    """The largest share of wrong verdicts, and where."""
    if rows.is_empty():
        return ""
    shares = rows.with_columns(share=pl.col("n_wrong") / pl.col("cohorts"))
    row = shares.sort("share", descending=True, maintain_order=True).row(0, named=True)
    place = f": {row['encoder']}, {row['patients']}" if row["n_wrong"] else ""
    return f"{_share(row['n_wrong'], row['cohorts'])}{place}"


def _beyond(table: pl.DataFrame) -> str:
    """Cells of whose wrong verdicts more than 5% are shown to be."""
    beyond = [
        row
        for row in table.drop_nulls("n_wrong").iter_rows(named=True)
        if row["n_wrong"] / row["cohorts"] > _ALLOWED
    ]
    if not beyond:
        none = (
            f"No check has a wrong verdict in more than {_ALLOWED:.0%} of the cohorts of any cell."
        )
        return f"{none} {_not_shown(table)}".strip()
    lines = (
        f"- `{row['figure']}`, {row['encoder']}, {row['patients']} patients: {row['wrong']} in "
        f"{_share(row['n_wrong'], row['cohorts'])}"
        for row in beyond
    )
    return "\n".join([f"**More than {_ALLOWED:.0%} wrong verdicts:**", "", *lines])


def _not_shown(table: pl.DataFrame) -> str:
    """How many cells have too few cohorts to show that; empty for none."""
    judged = table.drop_nulls("n_wrong").select("n_wrong", "cohorts").iter_rows()
    ends = [binomial_interval(hits, n)[1] for hits, n in judged]
    few = sum(end > _ALLOWED for end in ends)
    if not few:
        return ""
    return (
        f"In {few} of {len(ends)} cells the upper end still lies above {_ALLOWED:.0%}: with so few "
        "cohorts it is not shown there; `make calibrate` simulates more."
    )


def _share(hits: int, n: int) -> str:
    return f"{hits / n:.3f} (≤ {binomial_interval(hits, n)[1]:.3f})"


def _cells(rows: pl.DataFrame) -> str:
    return _markdown(
        [
            {
                "encoder": row["encoder"],
                "patients": row["patients"],
                "cohorts": row["cohorts"],
                "mean": "" if row["mean"] is None else f"{row['mean']:+.3f}",
                "wrong": f"{row['wrong']} {_share(row['n_wrong'], row['cohorts'])}"
                if row["wrong"]
                else "not judged",
                "right": f"{row['right']} {row['n_right'] / row['cohorts']:.2f}"
                if row["right"]
                else "",
                "coverage": "no width" if row["coverage"] is None else f"{row['coverage']:.2f}",
                "difference": ""
                if row["difference"] is None
                else f"{row['difference']:.2f} of {row['pairs']}",
            }
            for row in rows.iter_rows(named=True)
        ]
    )


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Simulate what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=400, help=f"of a cell, in steps of {_BATCH}")
    parser.add_argument("--pairs", type=int, default=400, help="cohorts that two encoders see")
    parser.add_argument("--simulations", nargs="+", default=list(SIMULATIONS), choices=SIMULATIONS)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder; delete it to start anew"
    )
    parser.add_argument("--table", type=Path, default=PAGE, help="page that is written")
    parser.add_argument(
        "--only-table", action="store_true", help="of what is there; simulate nothing"
    )
    asked = parser.parse_args()
    cells = [
        Cell(name, encoder, patients)
        for name in asked.simulations
        for encoder in SIMULATIONS[name].encoders
        for patients in SIMULATIONS[name].sizes
    ]
    asked.results.mkdir(parents=True, exist_ok=True)
    if not asked.only_table:
        alone = _tasks(cells, asked.cohorts, asked.results)
        paired = _tasks([replace(c, paired=True) for c in cells], asked.pairs, asked.results)
        _run(batch, [*alone, *paired], asked.workers)
    found = []
    for cell in cells:
        rows = read_cell(cell, asked.results, asked.cohorts)
        pairs = read_cell(replace(cell, paired=True), asked.results, asked.pairs)
        found += [] if rows is None else rates(cell, rows, pairs)
    asked.table.write_text(page(found), encoding="utf-8")
    print(asked.table)


def _tasks(cells: Sequence[Cell], cohorts: int, results: Path) -> list[Any]:
    """Batches of all cells in turn, so that any part of the run makes a table."""
    return [
        (cell, results, first, min(_BATCH, cohorts - first))
        for first in range(0, cohorts, _BATCH)
        for cell in cells
    ]


def _run(function: Callable[[Any], str], tasks: Sequence[Any], workers: int) -> None:
    """All tasks, in order, on so many processes."""
    if workers == 1:
        for task in tasks:
            function(task)
        return
    # One process, one thread; a new process reads these before it imports anything.
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(threads, "1")
    # A forked process would share the thread pool of Polars.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(function, tasks):
            pass


if __name__ == "__main__":
    main()
