"""Who is whose neighbour how often, between units of a cohort, by label × center.

Neighbours of single tiles become lists per unit and band of ranks (:func:`neighbour_lists`), which a
table can hold, and the lists become patient × patient counts (:class:`UnitNeighbours`), which can be
resampled over patients and compared under permuted labels without a vector being read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.balanced_designs import Cohort, Scope, codes_of
from pathfm_kedro.statistics.blocked_search import share_out
from pathfm_kedro.statistics.pair_bootstrap import resampled_total
from pathfm_kedro.statistics.permutation import permuted_together, permuted_within

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Types of a neighbour, in the order of the arrays below: label first, then center.
TYPES = ("ss", "so", "os", "oo")
SS, SO, OS, OO = range(4)

#: Beyond this many patients a dense patient × patient matrix costs more than it saves.
_DENSE_PATIENTS = 2000

#: Pairs of units compared at once under all permutations: they stay in the processor's cache.
_PERMUTED_PAIRS = 256


def expected_types(cohort: Cohort, scope: Scope, grid: Ints) -> Floats:
    """[n, grid, type] neighbours of each type if every eligible tile were equally likely."""
    labels, centers = cohort.labels[scope.rows], cohort.centers[scope.rows]
    shares, every = type_shares(labels, centers, cohort.groups[scope.rows])
    met = np.minimum(grid, every[:, None])
    return cast(Floats, met[:, :, None] * shares[:, None, :])


def type_shares(labels: Ints, centers: Ints, groups: Ints) -> tuple[Floats, Ints]:
    """Of the rows that each may meet, which are those of other groups, the share of each type.

    Parameters
    ----------
    labels, centers, groups
        [n] codes.

    Returns
    -------
    tuple
        [n, type] shares, 0 where a row may meet none, and [n] how many it may meet.

    Examples
    --------
    >>> shares, every = type_shares(*np.array([[0, 0, 1], [0, 1, 0], [0, 1, 2]]))
    >>> shares[0].tolist(), every.tolist()  # one SO, one OS
    ([0.0, 0.5, 0.5, 0.0], [2, 2, 2])
    """
    own = np.unique(groups, return_inverse=True)[1]
    cells = labels * (int(centers.max(initial=0)) + 1) + centers
    label, center, both, every = (
        _eligible(own, key) for key in (labels, centers, cells, 0 * labels)
    )
    shares = np.stack([both, label - both, center - both, every - label - center + both], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(shares / every[:, None]), every


def _eligible(groups: Ints, key: Ints) -> Ints:
    """Rows with the query's key that are not of its group."""
    _, own, size = np.unique(
        groups * (int(key.max()) + 1) + key, return_inverse=True, return_counts=True
    )
    return cast(Ints, np.bincount(key)[key] - size[own])


def neighbour_lists(
    units: Ints, found: Ints, grid: Ints, weights: Floats | None = None
) -> pl.DataFrame:
    """Units met by each unit in each band of ranks, as lists.

    Parameters
    ----------
    units
        [n] unit of each tile.
    found
        [n, k] neighbours as positions; −1 where there is none.
    grid
        Last rank of each band, ascending.
    weights
        [n, k] what each neighbour counts; 1 if not given.

    Returns
    -------
    DataFrame
        Columns k, unit, n (the unit's tiles), neighbour_unit, neighbours (the sums of weights); one
        row for every unit and band.
    """
    band = np.searchsorted(grid, np.arange(1, found.shape[1] + 1))
    base = int(units.max()) + 1
    there = found >= 0
    key = (band * base + units[:, None]) * base + units[found]
    if weights is None:
        codes, sums = np.unique(key[there], return_counts=True)
    else:
        codes, where = np.unique(key[there], return_inverse=True)
        sums = np.bincount(where, weights[there])
    rest, neighbour = np.divmod(codes, base)
    which, query = np.divmod(rest, base)
    lists = (
        pl.DataFrame(
            {"k": grid[which], "unit": query, "neighbour_unit": neighbour, "neighbours": sums}
        )
        .with_columns(pl.col("neighbour_unit").cast(pl.Int32))
        .group_by("k", "unit", maintain_order=True)
        .agg("neighbour_unit", "neighbours")
    )
    present, counts = np.unique(units, return_counts=True)
    every = {
        "k": np.repeat(grid, len(present)),
        "unit": np.tile(present, len(grid)),
        "n": np.tile(counts, len(grid)),
    }
    return pl.DataFrame(every).join(lists, on=["k", "unit"], how="left", maintain_order="left")


@dataclass(frozen=True)
class UnitNeighbours:
    """Neighbours of one design, read back from :func:`neighbour_lists`.

    A *node* is a unit in one scope within which labels may be exchanged: a unit, and in
    ``paired_2x2`` a unit in one pair.

    Attributes
    ----------
    rows
        The table's rows: scope, k, unit, patient_id, label, center, n, neighbour_unit, neighbours.
    k_grid
        Last rank of each band.
    n, n_patients
        Queries (of one subsample, where there are several) and patients.
    unit, scope, patient, label, center
        [nodes] codes.
    band, query, neighbour, count
        [pairs] band of ranks, nodes, and how often.
    """

    rows: pl.DataFrame
    k_grid: tuple[int, ...]
    n: int
    n_patients: int
    unit: Ints
    scope: Ints
    patient: Ints
    label: Ints
    center: Ints
    band: Ints
    query: Ints
    neighbour: Ints
    count: Floats

    @classmethod
    def of(cls, rows: pl.DataFrame, design: str) -> UnitNeighbours:
        """Read one design's rows; subsamples of design ``all`` are pooled."""
        scope = pl.col("scope") if design == "paired_2x2" else pl.lit(0, pl.Int32())
        scoped = rows.with_columns(scope=scope)
        nodes = (
            scoped.select("scope", "unit", "patient_id", "label", "center")
            .unique()
            .sort("scope", "unit")
        )
        k_grid = tuple(rows["k"].unique().sort())
        queries = int(rows.filter(pl.col("k") == k_grid[0])["n"].sum())
        band, query, neighbour, count = _pooled_pairs(scoped, nodes, k_grid)
        return cls(
            rows=rows,
            k_grid=k_grid,
            n=queries // rows["scope"].n_unique() if design == "all" else queries,
            n_patients=rows["patient_id"].n_unique(),
            unit=codes_of(nodes["unit"]),
            scope=codes_of(nodes["scope"]),
            patient=codes_of(nodes["patient_id"]),
            label=codes_of(nodes["label"]),
            center=codes_of(nodes["center"]),
            band=band,
            query=query,
            neighbour=neighbour,
            count=count,
        )

    @cached_property
    def kind(self) -> Ints:
        """[pairs] type of the neighbour, as in :data:`TYPES`."""
        return 2 * ~self._same_label + ~self._same_center

    @cached_property
    def _same_label(self) -> NDArray[np.bool_]:
        return np.asarray(self.label[self.query] == self.label[self.neighbour])

    @cached_property
    def _same_center(self) -> NDArray[np.bool_]:
        return np.asarray(self.center[self.query] == self.center[self.neighbour])

    @cached_property
    def _bands(self) -> list[slice]:
        """Where the pairs of each band stand, which are sorted by band."""
        edges = np.searchsorted(self.band, np.arange(len(self.k_grid) + 1))
        return [slice(*edge) for edge in itertools.pairwise(edges.tolist())]

    def matrix(self, chosen: NDArray[Any]) -> Any:
        """[P, P] counts of the chosen pairs by the patient that asks and the one met."""
        return self._matrix(chosen, self.patient, self.n_patients)

    def _matrix(self, chosen: NDArray[Any], patient: Ints, size: int) -> Any:
        """Patient × patient counts; sparse for many patients."""
        rows, columns = patient[self.query[chosen]], patient[self.neighbour[chosen]]
        if size > _DENSE_PATIENTS:
            from scipy.sparse import csr_array

            return csr_array((self.count[chosen], (rows, columns)), shape=(size, size))
        cells = np.bincount(rows * size + columns, self.count[chosen], minlength=size * size)
        return cells.reshape(size, size).astype(np.float64, copy=False)

    def by_band(self, *kinds: int) -> Iterator[list[Any]]:
        """In each band of ranks, [P, P] counts of each of these types."""
        for band in self._bands:
            yield [self.matrix(_where(self.kind[band] == kind, band)) for kind in kinds]

    def resampled(self, weights: Floats) -> Floats:
        """[k, 3, draws] SS, SO and OS among the k neighbours in each bootstrap draw.

        Neighbours with the same label are counted within each label, and so on: small matrices of the
        patients concerned take less time than three of all patients.
        """
        cell = self.label * (int(self.center.max()) + 1) + self.center
        small = weights.astype(np.float32)
        label, center, both = (
            self._resampled_within(key, small) for key in (self.label, self.center, cell)
        )
        # Sums of integers: the differences are exact.
        return np.stack([both, label - both, center - both], axis=1).cumsum(axis=0)

    def _resampled_within(self, key: Ints, weights: NDArray[np.float32]) -> Floats:
        """[bands, draws] resampled number of neighbours with the query's key."""
        total = np.zeros((len(self.k_grid), len(weights)))
        met = np.where(key[self.query] == key[self.neighbour], key[self.query], -1)
        lock = Lock()

        def add(codes: Iterator[int]) -> None:
            for code in codes:
                members = np.unique(self.patient[key == code])
                place = np.searchsorted(members, self.patient)
                here = np.ascontiguousarray(weights[:, members])
                for i, band in enumerate(self._bands):
                    matrix = self._matrix(_where(met[band] == code, band), place, len(members))
                    more = resampled_total(matrix, here)
                    with lock:
                        total[i] += more

        share_out(add, np.unique(key).tolist())
        return total

    def permuted_labels(self, n_permutations: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
        """SO / (SO + OS) and (SS + SO) / (SS + OS) at each k with labels permuted within centers.

        Parameters
        ----------
        n_permutations, seed
            Of labels over units, within the centers of a scope.

        Yields
        ------
        tuple
            [permutations] of both.
        """
        strata = self.scope * (int(self.center.max()) + 1) + self.center
        labels = permuted_within(self.label, strata, n_permutations, seed, self.unit)
        ss, so, near = np.zeros(n_permutations), np.zeros(n_permutations), 0.0
        for band in self._bands:
            at_home = _where(self._same_center[band], band)
            ss = ss + self._agreeing(at_home, labels)
            so = so + self._agreeing(_where(~self._same_center[band], band), labels)
            near += float(self.count[at_home].sum())
            with np.errstate(invalid="ignore", divide="ignore"):
                yield so / (so + near - ss), (ss + so) / near

    def permuted_together(self, n_permutations: int, seed: int) -> Iterator[Floats]:
        """SO / (SO + OS) at each k with labels and centers permuted together.

        Parameters
        ----------
        n_permutations, seed
            Of (label, center) over units, patients as blocks, within a scope.

        Yields
        ------
        ndarray
            [permutations].
        """
        rows = permuted_together(self.patient, n_permutations, seed, self.scope)
        labels, centers = (
            tags[rows].astype(np.min_scalar_type(int(tags.max(initial=0))))
            for tags in (self.label, self.center)
        )
        so, os = np.zeros((2, n_permutations))
        for band in self._bands:
            for start in range(band.start, band.stop, _PERMUTED_PAIRS):
                part = slice(start, min(start + _PERMUTED_PAIRS, band.stop))
                query, neighbour = self.query[part], self.neighbour[part]
                same_label = labels[query] == labels[neighbour]
                same_center = centers[query] == centers[neighbour]
                count = self.count[part].astype(np.float32)
                so += count @ (same_label & ~same_center).astype(np.float32)
                os += count @ (~same_label & same_center).astype(np.float32)
            with np.errstate(invalid="ignore", divide="ignore"):
                yield so / (so + os)

    def _agreeing(self, chosen: Ints, labels: Ints) -> Floats:
        """[permutations] how many of the chosen neighbours have the query's label in each."""
        few = labels.astype(np.min_scalar_type(int(labels.max(initial=0))))
        total = np.zeros(labels.shape[1])
        for start in range(0, len(chosen), _PERMUTED_PAIRS):
            part = chosen[start : start + _PERMUTED_PAIRS]
            agree = few[self.query[part]] == few[self.neighbour[part]]
            total += self.count[part].astype(np.float32) @ agree.astype(np.float32)
        return total


def _where(chosen: NDArray[np.bool_], band: slice) -> Ints:
    """Places of the chosen pairs of a band."""
    return cast(Ints, band.start + np.flatnonzero(chosen))


def _pooled_pairs(
    rows: pl.DataFrame, nodes: pl.DataFrame, k_grid: Sequence[int]
) -> tuple[Ints, Ints, Ints, Floats]:
    """Pairs of nodes in each band of ranks, summed over the subsamples of a scope; sorted."""
    met = rows.filter(pl.col("neighbours").is_not_null())
    sizes = met["neighbours"].list.len().to_numpy()
    unit = nodes["unit"].to_numpy()
    base = int(unit.max(initial=0)) + 1
    keys = nodes["scope"].cast(pl.Int64).to_numpy() * base + unit
    scope = met["scope"].cast(pl.Int64).to_numpy() * base
    query = np.searchsorted(keys, scope + met["unit"].to_numpy())
    neighbour = np.searchsorted(
        keys, np.repeat(scope, sizes) + met["neighbour_unit"].explode().to_numpy()
    )
    band = np.searchsorted(k_grid, met["k"].to_numpy())
    code = np.repeat((band * len(keys) + query) * len(keys), sizes) + neighbour
    codes, where = np.unique(code, return_inverse=True)
    rest, neighbour = np.divmod(codes, len(keys))
    band, query = np.divmod(rest, len(keys))
    count = np.bincount(where, met["neighbours"].explode().to_numpy()).astype(np.float64)
    return band, query, neighbour, count
