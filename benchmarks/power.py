"""Power of the judged checks: how often an encoder passes or fails, by number of patients.

    python benchmarks/power.py
    python benchmarks/power.py --cohorts 40 --minutes 20

Cohorts gather in a folder, one file for each: a run that is interrupted goes on where it was. The table
and how to read it: docs/power.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from planted_checks import PLANTED

from pathfm_kedro.statistics.bootstrap import binomial_interval

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/power.md"
RESULTS = ROOT / "data/power"
#: Patients of the cohorts, and of the smallest institution that the defaults are made for.
SIZES, INSTITUTION = (24, 48, 100, 200, 400), 200
#: Share of cohorts in which a check should give the right verdict; the usual power of a study.
_ENOUGH = 0.8
#: The encoders, what is said of them, and the verdict that they should get.
ROLES = {
    "truth": ("knows the truth", "pass"),
    "good": ("good", "pass"),
    "fault": ("has the fault", "fail"),
}

_HEAD = """\
# Power: how many patients a check needs

Made by `make power` from simulated cohorts; do not edit.

Every judged check of `conf/base` sees three encoders on cohorts of 24 to 400 patients: one that
**knows the truth**, as the phantom's `phantom_truth` does, and must pass; a **good** one that is
not perfect and should pass; and one that **has the fault** which the check is for, and must fail.
Each cell gives the share of cohorts with that verdict and the lower end of its exact 95% interval.
What is not right is almost always open (`inconclusive` or `undecidable`); how often it is wrong:
[error_rates.md](error_rates.md).

Cohorts go through the experiments themselves, with the criteria of `conf/base`, 400 bootstrap draws
and 100 permutations: one slide a patient, 4 labels at 3 centers, vectors of 32 dimensions. What the
encoders are made of stands in [simulated_checks.py](../benchmarks/simulated_checks.py) and
[planted_checks.py](../benchmarks/planted_checks.py).

What the table cannot say: real faults may be weaker than planted ones, and then take more patients;
patients of one institution may differ more than simulated ones; with fewer centers or labels than
here, cells hold more patients each. Verdicts are those of the interval alone; the report then corrects
for the number of checks. The report itself says of every open check how many patients would settle it.
"""


def simulate(results: Path, seed: int, patients: int) -> Path:
    """Verdicts of all checks and encoders on cohorts of one seed; kept in a file."""
    file = results / f"{patients}_{seed}.parquet"
    if not file.exists():
        rows = pl.concat(
            planted.cohort(role, patients, seed)
            .select("verdict", check=pl.format("`{}`", "metric"))
            .with_columns(pl.lit(role).alias("role"), pl.lit(patients).alias("patients"))
            for planted in PLANTED.values()
            for role in ROLES
        )
        part = file.with_suffix(f".{os.getpid()}.part")
        rows.write_parquet(part)
        part.rename(file)
    return file


def rates(verdicts: pl.DataFrame) -> pl.DataFrame:
    """Cohorts with the right verdict, for each check, encoder and number of patients."""
    right = pl.col("role").replace_strict({role: verdict for role, (_, verdict) in ROLES.items()})
    return (
        verdicts.group_by("check", "role", "patients", maintain_order=True)
        .agg(pl.len().alias("n"), (pl.col("verdict") == right).sum().alias("n_right"))
        .with_columns(share=pl.col("n_right") / pl.col("n"))
    )


def page(verdicts: pl.DataFrame) -> str:
    """The page: what holds for an institution, and every cell."""
    found = rates(verdicts)
    cohorts = found.group_by("patients").agg(pl.col("n").max()).sort("patients").iter_rows()
    counts = ", ".join(f"{n} of {patients} patients" for patients, n in cohorts)
    parts = [_HEAD, f"Cohorts: {counts}.", _of_institution(found), "## Every check"]
    return "\n\n".join([*(part.strip() for part in parts), _table(found)]) + "\n"


def _of_institution(found: pl.DataFrame) -> str:
    """Whether every check can pass and fail at the size that the defaults are made for."""
    cells = found.filter(pl.col("patients") == INSTITUTION)
    ends = cells.filter(pl.col("role") != "good")
    can = (
        f"At {INSTITUTION} patients what knows the truth passes, and what has the fault fails, each of "
        f"the {cells['check'].n_unique()} checks in at least {ends['share'].min():.0%} of the cohorts."
    )
    weak = cells.filter(pl.col("share") < _ENOUGH)
    if weak.is_empty():
        return can
    lines = (
        f"- {row['check']}, {ROLES[row['role']][0]}: {_cell(row)}"
        for row in weak.iter_rows(named=True)
    )
    return "\n".join([can, "", f"Below {_ENOUGH:.0%} at {INSTITUTION} patients:", "", *lines])


def _table(found: pl.DataFrame) -> str:
    rows = list(_rows(found))
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows(found: pl.DataFrame) -> Iterator[dict[str, str]]:
    for _, part in found.group_by("check", "role", maintain_order=True):
        cells = {row["patients"]: row for row in part.iter_rows(named=True)}
        first = next(iter(cells.values()))
        encoder, right = ROLES[first["role"]]
        head = {"check": first["check"], "encoder": encoder, "verdict": right}
        yield head | {str(n): _cell(cells[n]) if n in cells else "" for n in SIZES}


def _cell(row: dict[str, Any]) -> str:
    return f"{row['share']:.2f} (≥ {binomial_interval(row['n_right'], row['n'])[0]:.2f})"


def main() -> None:
    """Simulate what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=20, help="of each number of patients")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder; delete it to start anew"
    )
    parser.add_argument("--table", type=Path, default=PAGE, help="page that is written")
    asked = parser.parse_args()
    asked.results.mkdir(parents=True, exist_ok=True)
    end, files = time.monotonic() + 60 * asked.minutes, []
    for seed in range(asked.cohorts):
        for patients in SIZES:
            known = (asked.results / f"{patients}_{seed}.parquet").exists()
            if known or time.monotonic() < end:
                files.append(simulate(asked.results, seed, patients))
    asked.table.write_text(page(pl.concat(map(pl.read_parquet, files))), encoding="utf-8")
    print(asked.table)


if __name__ == "__main__":
    main()
