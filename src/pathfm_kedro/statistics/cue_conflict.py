r"""Which of two cues neighbours follow: a tile's morphology, or another center's stain that it took.

A tile with label L from center A is seen in the stain of center B. Its k nearest neighbours are sought
among the clean tiles of other patients, and each is one of

- morphology: label L, from a center other than B (``any``) or from A itself (``origin``);
- stain: from center B, with another label;
- neither cue or both at once (label L from B), which tells nothing.

``follows_morphology = morphology / (morphology + stain)``, pooled over tiles, targets and the k
neighbours. If all candidates were equally likely it would be the ratio of the expected counts, its
null: (C − 1)/(C + L − 2) with C centers and L labels in equal numbers, as for the robustness index.
Pairs of tile and target count only where both kinds of neighbour exist. Patients are resampled as
queries and as neighbours (:mod:`~pathfm_kedro.statistics.pair_bootstrap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import patient_codes, percentile_interval
from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import candidate_counts, unit
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.parameters import ExperimentParameters
from pathfm_kedro.statistics.permutation import less_chance
from pathfm_kedro.statistics.perturbation import nearest_references
from pathfm_kedro.statistics.tables import to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: Seen in another center's stain, and as it is.
TRANSFERRED, CLEAN = "transferred", "clean"
VIEWS = (TRANSFERRED, CLEAN)
CUES = ("morphology_any", "morphology_origin", "stain")

#: Two kinds of rows, by view and k:
#:
#: - with neighbour_patient: how often patient_id's tiles met that patient's tiles as morphology (in
#:   each scope) and as stain;
#: - without: patient_id's queries (its tiles, once for each target) and the counts expected if
#:   every candidate were equally likely.
CUE_COUNTS: dict[str, pl.DataType] = {
    "view": pl.String(),
    "k": pl.Int64(),
    "patient_id": pl.String(),
    "neighbour_patient": pl.String(),
    "n_queries": pl.Int64(),
    **dict.fromkeys(CUES, pl.Float64()),
}


@dataclass(frozen=True)
class CueTiles:
    """Clean tiles [n] among which neighbours are sought.

    Attributes
    ----------
    vectors
        [n, d], rows of length 1.
    patients, labels, centers
        [n] codes.
    patient_names, center_names
        In the order of their codes.
    """

    vectors: Floats
    patients: Ints
    labels: Ints
    centers: Ints
    patient_names: list[str]
    center_names: list[str]

    @classmethod
    def of(cls, tiles: pl.DataFrame, vectors: NDArray[np.floating[Any]]) -> CueTiles:
        """Tiles with patient_id, label and center, none of them null, and vectors [n, d]."""
        centers, center_codes = np.unique(tiles["center"].to_numpy(), return_inverse=True)
        return cls(
            unit(vectors),
            patient_codes(tiles["patient_id"].to_numpy())[0],
            np.unique(tiles["label"].to_numpy(), return_inverse=True)[1].astype(np.int64),
            center_codes.astype(np.int64),
            tiles["patient_id"].unique().sort().to_list(),
            [str(name) for name in centers],
        )

    def counts(
        self,
        transferred: Iterable[tuple[Mapping[str, str], NDArray[np.floating[Any]]]],
        ks: Sequence[int],
    ) -> pl.DataFrame:
        """Count neighbours that share the morphology or the stain of a transferred tile.

        Parameters
        ----------
        transferred
            Of each transfer the center whose stain a center's tiles take, and their vectors [n, d]
            in it; tiles of a center that takes none are no queries.
        ks
            Neighbours that are looked at; more than a tile has candidates are left out.

        Returns
        -------
        DataFrame
            Columns :data:`CUE_COUNTS`.
        """
        fewest = int(candidate_counts(self.patients).min())
        supported = [k for k in ks if k <= fewest]
        depth = max(supported, default=1)
        clean = nearest_references(self.vectors, self.vectors, self.patients, depth)
        parts = []
        for targets, vectors in transferred:
            changed = nearest_references(unit(vectors), self.vectors, self.patients, depth)
            near = {TRANSFERRED: changed, CLEAN: clean}
            parts.append(_Queries.of(self, self._codes(targets), near))
        frames = [pl.DataFrame(schema=CUE_COUNTS)]
        for k, view in product(supported, VIEWS):
            for rows in (_met(self, parts, view, k), _expected(self, parts, k)):
                keyed = rows.with_columns(view=pl.lit(view), k=pl.lit(k))
                frames.append(to_schema(keyed, CUE_COUNTS))
        return pl.concat(frames)

    def _codes(self, targets: Mapping[str, str]) -> Ints:
        """[n] code of each tile's target; −1 where it has none among the tiles' centers."""
        places = {name: code for code, name in enumerate(self.center_names)}
        of_center = [places.get(targets.get(name, ""), -1) for name in self.center_names]
        return np.array(of_center)[self.centers]

    def cues(self, rows: Ints, targets: Ints) -> Flags:
        """[3, q, n] whether candidate j is morphology (any, origin) or stain for query and target."""
        same = self.labels[rows, None] == self.labels
        in_target = targets[:, None] == self.centers
        at_home = self.centers[rows, None] == self.centers
        other = self.patients[rows, None] != self.patients
        cues: Flags = np.stack([same & ~in_target, same & at_home, ~same & in_target]) & other
        return cues


@dataclass(frozen=True)
class _Queries:
    """Tiles with a conflict under one target: rows [q], cues [3, q, n], neighbours [q, k]."""

    rows: Ints
    cues: Flags
    neighbours: Mapping[str, NDArray[np.intp]]

    @classmethod
    def of(cls, tiles: CueTiles, targets: Ints, near: Mapping[str, NDArray[np.intp]]) -> _Queries:
        """Of the target [n] and the neighbours [n, k] of every tile, those of tiles with a conflict."""
        rows = np.flatnonzero(targets >= 0)
        cues = tiles.cues(rows, targets[rows])
        conflict = cues[0].any(axis=1) & cues[2].any(axis=1)
        rows, cues = rows[conflict], cues[:, conflict]
        return cls(rows, cues, {view: neighbours[rows] for view, neighbours in near.items()})

    def found(self, view: str, k: int) -> tuple[NDArray[np.intp], Flags]:
        """Neighbours [q, k] and whether each is morphology (any, origin) or stain [3, q, k]."""
        near = self.neighbours[view][:, :k]
        return near, np.take_along_axis(self.cues, np.stack([near] * len(self.cues)), axis=2)


def _met(tiles: CueTiles, parts: Sequence[_Queries], view: str, k: int) -> pl.DataFrame:
    """Cues met by pair of patients."""
    size = len(tiles.patient_names)
    counts = np.zeros((len(CUES), size * size))
    for part in parts:
        near, cues = part.found(view, k)
        pair = tiles.patients[part.rows, None] * size + tiles.patients[near]
        for cue, flags in enumerate(cues):
            counts[cue] += np.bincount(pair[flags], minlength=size * size)
    where = np.flatnonzero(counts.any(axis=0))
    names = pl.Series(tiles.patient_names, dtype=pl.String)
    return pl.DataFrame(
        {
            "patient_id": names[(where // size).tolist()],
            "neighbour_patient": names[(where % size).tolist()],
            "n_queries": np.zeros(len(where), np.int64),
            **dict(zip(CUES, counts[:, where], strict=True)),
        }
    )


def _expected(tiles: CueTiles, parts: Sequence[_Queries], k: int) -> pl.DataFrame:
    """Queries of each patient and the cues that equally likely candidates would give."""
    size = len(tiles.patient_names)
    queries, sums = np.zeros(size, np.int64), np.zeros((len(CUES), size))
    candidates = candidate_counts(tiles.patients)
    for part in parts:
        owners = tiles.patients[part.rows]
        queries += np.bincount(owners, minlength=size)
        share = part.cues.sum(axis=2) * k / candidates[part.rows]
        sums += np.stack([np.bincount(owners, weights=row, minlength=size) for row in share])
    expected = dict(zip(CUES, sums, strict=True))
    return pl.DataFrame({"patient_id": tiles.patient_names, "n_queries": queries, **expected})


@dataclass(frozen=True)
class CueCounts:
    """What the tiles met under one transfer and k.

    Attributes
    ----------
    table
        Rows of :data:`CUE_COUNTS` of one k.
    p
        The parameters.
    k
        Neighbours that were looked at.
    k_key, tiles_key
        What the parameters of the neighbours and of the number of tiles are called, for reasons.
    """

    table: pl.DataFrame
    p: ExperimentParameters
    k: int
    k_key: str
    tiles_key: str

    def queries(self, view: str = TRANSFERRED) -> pl.DataFrame:
        """The rows of queries, one per patient, sorted."""
        rows = self.table.filter(pl.col("neighbour_patient").is_null(), view=view)
        return rows.sort("patient_id")

    @property
    def n(self) -> int:
        """Queries."""
        return int(self.queries()["n_queries"].sum())

    @property
    def n_patients(self) -> int:
        """Patients with a tile that has a conflict; the others are candidates only."""
        return self.queries().filter(pl.col("n_queries") > 0).height

    def ratio(self, view: str, scope: str) -> CueRatio:
        """Morphology among all cues.

        Raises
        ------
        Undefined
            If no tile has a conflict, or no neighbour is a cue.
        """
        self._require_conflict()
        queries, names = self.queries(view), self.queries(view)["patient_id"].to_list()
        met = self.table.filter(pl.col("neighbour_patient").is_not_null(), view=view)
        rows, columns = (
            met[role].replace_strict(names, range(len(names)), return_dtype=pl.Int64).to_numpy()
            for role in ("patient_id", "neighbour_patient")
        )
        morphology, stain = np.zeros((2, len(names), len(names)))
        morphology[rows, columns] = met[f"morphology_{scope}"].to_numpy()
        stain[rows, columns] = met["stain"].to_numpy()
        if not (morphology + stain).sum():
            raise Undefined(
                f"no neighbour shares the morphology alone or the stain alone: raise {self.k_key}"
            )
        expected, other = float(queries[f"morphology_{scope}"].sum()), float(queries["stain"].sum())
        return CueRatio(
            morphology,
            morphology + stain,
            expected / (expected + other),
            self.p.weights(len(names)),
        )

    def _require_conflict(self) -> None:
        if self.table.is_empty():
            raise Undefined(
                "no tile could take another center's stain: the cohort needs two centers whose tiles "
                f"show haematoxylin and eosin, and at least {self.k} tiles of other patients for "
                f"every tile; add centers, raise {self.tiles_key} or lower {self.k_key}"
            )
        if not self.n:
            raise Undefined(
                "no tile meets both a tile of its label outside the target center and one of another "
                "label in it: add labels, or patients of each label at each center"
            )
        if self.table["patient_id"].n_unique() < 2:
            raise Undefined(
                "the pool holds one patient: an interval over patients needs two; add patients"
            )


@dataclass(frozen=True)
class CueRatio:
    """Morphology and all cues [P, P] by the patient that asks and the one met.

    Attributes
    ----------
    morphology, cues
        Counts.
    null
        The ratio if all candidates were equally likely.
    weights
        [draws, P] of the bootstrap.
    """

    morphology: Floats
    cues: Floats
    null: float
    weights: Floats

    @property
    def value(self) -> float:
        """Morphology / cues."""
        return float(self.morphology.sum() / self.cues.sum())

    def draws(self) -> Floats:
        """[2, draws] both sums in every bootstrap draw."""
        return np.stack([resampled_total(m, self.weights) for m in (self.morphology, self.cues)])


def follows_morphology(counts: CueCounts, view: str, scope: str) -> Value:
    """Morphology among the cues that neighbours share; null: equally likely candidates."""
    return _followed(counts, counts.ratio(view, scope))


def follows_morphology_minus_null(counts: CueCounts) -> Value:
    """The same in another center's stain, minus its null; null 0."""
    ratio = counts.ratio(TRANSFERRED, "any")
    return less_chance(_followed(counts, ratio), ratio.null)


def _followed(counts: CueCounts, ratio: CueRatio) -> Value:
    estimate = pair_ratio(
        ratio.morphology,
        ratio.cues,
        resampled_total(ratio.cues, ratio.weights),
        ratio.weights,
        counts.n,
        most=1.0,
    )
    return Value(replace(estimate, n_patients=counts.n_patients), Null(ratio.null, ratio.null))


def morphology_loss(counts: CueCounts) -> Value:
    """Morphology followed before the transfer minus after it, over the same draws; null 0."""
    before, after = (counts.ratio(view, "any") for view in (CLEAN, TRANSFERRED))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.divide(*before.draws()) - np.divide(*after.draws())
    interval = percentile_interval(draws)
    estimate = Estimate(before.value - after.value, *interval, counts.n, counts.n_patients, draws)
    return Value(estimate, Null(0.0, 0.0))
