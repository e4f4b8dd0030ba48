"""What an experiment is reduced to: a small table of sums per patient, read part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import ratio_estimate
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.parameters import ExperimentParameters

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PatientStatistics:
    """Rows of a statistics table that belong to one setting.

    Attributes
    ----------
    table
        One row per setting, patient and, where it matters, label or center: key columns,
        ``patient_id``, ``n_tiles`` and sums.
    parameters
        The experiment's: its bootstrap draws and seed.
    setting
        What the rows were measured at; the setting of figures made from them.
    stratum
        ``all``, or the label, center or organ that the rows are confined to.
    over
        Key column over whose values is averaged, such as the angle; empty for none.
    """

    table: pl.DataFrame
    parameters: ExperimentParameters
    setting: Mapping[str, Any] = field(default_factory=dict)
    stratum: str = "all"
    over: str = ""

    def at(self, **keys: Any) -> PatientStatistics:
        """Rows with these values of key columns, which join the setting; None is a missing value."""
        matches = [pl.col(name).eq_missing(pl.lit(value)) for name, value in keys.items()]
        shown = {name: value for name, value in keys.items() if value is not None}
        return replace(self, table=self.table.filter(*matches), setting={**self.setting, **shown})

    def where(self, *rows: pl.Expr) -> PatientStatistics:
        """Rows for which all expressions hold."""
        return replace(self, table=self.table.filter(*rows))

    def mean_over(self, column: str) -> PatientStatistics:
        """The same rows for a mean over the values of a key column: a tile counts once in `n`."""
        return replace(self, over=column)

    def with_setting(self, **setting: Any) -> PatientStatistics:
        """The same rows with another setting."""
        return replace(self, setting=setting)

    def within(self, column: str) -> list[PatientStatistics]:
        """The rows of each label or center alone, sorted by name."""
        names = self.table[column].drop_nulls().unique().sort().to_list()
        return [
            replace(self, table=self.table.filter(pl.col(column) == n), stratum=f"{column}={n}")
            for n in names
        ]

    @property
    def patients(self) -> list[str | None]:
        """Patients of these rows, sorted."""
        return self.table["patient_id"].unique().sort().to_list()

    @property
    def n_patients(self) -> int:
        """How many patients the rows belong to."""
        return self.table["patient_id"].n_unique()

    @property
    def n(self) -> int:
        """Tiles, each as often as it was counted; once in a mean over a column."""
        times = self.table[self.over].n_unique() if self.over else 1
        return int(self.table["n_tiles"].sum()) // max(times, 1)

    @property
    def weights(self) -> Floats:
        """[draws, patients] of the bootstrap; the same for every setting of the same patients."""
        return self.parameters.weights(self.n_patients)

    def sums(self, column: str) -> Floats:
        """[patients] sums of a column; NaN where a patient's rows lack the figure."""
        value = pl.col(column).cast(pl.Float64)
        whole = pl.when(pl.col(column).null_count() == 0).then(value.sum()).otherwise(float("nan"))
        return (
            self.table.group_by("patient_id")
            .agg(whole.alias("_sum"))
            .sort("patient_id")["_sum"]
            .to_numpy()
        )

    def matrix(self, column: str, of: str, where: str) -> Floats:
        """[patients, values of `of`] sums of a column over rows in which `where` is positive.

        Parameters
        ----------
        column
            What is summed.
        of
            Key column, such as the label; its values are sorted.
        where
            Count that says which values there are.
        """
        counted = self.table.filter(pl.col(where) > 0)
        patients, values = self.patients, counted[of].unique().sort().to_list()
        out = np.zeros((len(patients), len(values)))
        rows = counted["patient_id"].replace_strict(patients, range(len(patients)))
        columns = counted[of].replace_strict(values, range(len(values)))
        np.add.at(out, (rows.to_numpy(), columns.to_numpy()), counted[column].to_numpy())
        return out

    def require_interval(self) -> None:
        """Refuse what has no interval over patients.

        Raises
        ------
        Undefined
            If the rows belong to fewer than two patients.
        """
        if self.table.is_empty() and self.stratum == "all":
            raise Undefined("no usable slide of the pool has embedded views")
        if self.n_patients < 2:
            where = "the pool" if self.stratum == "all" else f"{self.stratum} in the pool"
            raise Undefined(
                f"{where} holds {self.n_patients} patient(s) with embedded views: an interval over "
                "patients needs two; add patients or raise tile_pool.max_tiles"
            )

    def ratio(self, numerators: Floats, denominators: Floats) -> Estimate:
        """Ratio of sums over patients with its bootstrap interval, resting on these tiles."""
        return ratio_estimate(numerators, denominators, self.weights, n=self.n)

    def figure(
        self,
        metric: str,
        estimator: Callable[[PatientStatistics], Value | Estimate],
        **setting: Any,
    ) -> Figure:
        """A figure of these rows; more entries of the setting may be given."""
        return Figure(
            metric,
            lambda: estimator(self),
            {**self.setting, **setting},
            self.stratum,
            self.n,
            self.n_patients,
        )
