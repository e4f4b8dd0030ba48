"""What changed between two tables of measurements: two runs, two versions, two cohorts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

#: What names a figure within a table.
KEY = ("experiment", "encoder", "metric", "stratum", "setting")
#: Numbers of a figure that are compared.
NUMBERS = ("value", "ci_low", "ci_high", "null_low", "null_high")


@dataclass(frozen=True)
class ChangedFigures:
    """Two tables of measurements, joined by figure.

    Attributes
    ----------
    before, after
        Figures of one table that the other has not: columns of :data:`KEY`.
    both
        Figures of both: the key, and each other column twice, the second with ``_after``.
    """

    before: pl.DataFrame
    after: pl.DataFrame
    both: pl.DataFrame

    @classmethod
    def between(cls, before: pl.DataFrame, after: pl.DataFrame) -> ChangedFigures:
        """Join two tables.

        Examples
        --------
        >>> row = {"experiment": "e", "encoder": "u", "metric": "m", "stratum": "", "setting": "{}",
        ...     "value": 1.0, "ci_low": 0.0, "ci_high": 2.0, "null_low": None, "null_high": None,
        ...     "verdict": "pass"}
        >>> old, new = pl.DataFrame([row]), pl.DataFrame([row | {"verdict": "fail", "value": 1.5}])
        >>> changed = ChangedFigures.between(old, new)
        >>> changed.verdicts["verdict_after"].to_list(), changed.largest_difference
        (['fail'], 0.5)
        """
        keys = list(KEY)
        numbers = pl.col(*NUMBERS).cast(pl.Float64)
        before, after = before.with_columns(numbers), after.with_columns(numbers)
        return cls(
            before.join(after, on=keys, how="anti").select(keys),
            after.join(before, on=keys, how="anti").select(keys),
            before.join(after, on=keys, how="inner", suffix="_after"),
        )

    @property
    def verdicts(self) -> pl.DataFrame:
        """Figures of both whose verdict differs, also where only one has any."""
        return self.both.filter(pl.col("verdict").ne_missing(pl.col("verdict_after")))

    @property
    def undefined(self) -> pl.DataFrame:
        """Figures of both of which one has a number and the other has none."""
        differs = [pl.col(name).is_null() != pl.col(f"{name}_after").is_null() for name in NUMBERS]
        return self.both.filter(pl.any_horizontal(differs))

    @property
    def differences(self) -> pl.DataFrame:
        """Figures of both with ``difference``: the largest of its numbers, largest first.

        Relative to the number where that is above 1, so that counts and shares go together.
        """
        each = [
            (
                (pl.col(name) - pl.col(f"{name}_after")).abs()
                / pl.max_horizontal(pl.lit(1.0), pl.col(name).abs())
            )
            for name in NUMBERS
        ]
        largest = pl.max_horizontal(each).fill_null(0.0)
        return self.both.with_columns(difference=largest).sort(
            "difference", *KEY, descending=[True, *[False] * len(KEY)]
        )

    @property
    def largest_difference(self) -> float:
        """Of any number of any figure; 0 where no figure is in both."""
        found = self.differences["difference"].max()
        return 0.0 if found is None else float(np.float64(found))  # type: ignore[arg-type]
