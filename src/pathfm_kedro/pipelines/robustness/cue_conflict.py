r"""Cue conflict: with one center's morphology in another's stain, which do neighbours follow.

A tile with label L from center A takes the stain of center B (the transfers of the appearance
experiment). Its k nearest neighbours are sought among the clean tiles of other patients, and each is
one of

- morphology: label L, from a center other than B (``any``) or from A itself (``origin``);
- stain: from center B, with another label;
- neither cue or both at once (label L from B), which tells nothing.

``follows_morphology = morphology / (morphology + stain)``, pooled over tiles, targets and the k
neighbours. If all candidates were equally likely it would be the ratio of the expected counts, its
null: (C − 1)/(C + L − 2) with C centers and L labels in equal numbers, as for the robustness index.
``follows_morphology_minus_null`` is what criteria rest on. ``morphology_loss`` is the same figure of
the tile before the transfer (view ``clean``) minus this one: how much the stain pulled. Before, both
cues point home, so that the clean figure is high for whoever knows either. Pairs of tile and target
count only where both kinds of neighbour exist. Patients are resampled as queries and as neighbours
(:mod:`~pathfm_kedro.statistics.pair_bootstrap`).

Pitfalls
--------
- Above 0 is a low bar: more tissue than chance, not more tissue than stain.
- It needs two centers with measurable stain and several labels.
- The coverage of these intervals was simulated only for vectors that know nothing, on one pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.robustness.appearance import (
    CLEAN,
    TRANSFERS,
    Appearance,
    appearance_views,
)
from pathfm_kedro.pipelines.robustness.stain_references import target_centers, usable_references
from pathfm_kedro.statistics.bootstrap import patient_codes, percentile_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import candidate_counts, unit
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters, read_parameters
from pathfm_kedro.statistics.permutation import less_chance
from pathfm_kedro.statistics.perturbation import nearest_references
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.views import EmbeddedViews, embedded_views

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: Seen in another center's stain, and as it is.
TRANSFERRED = "transferred"
VIEWS = (TRANSFERRED, CLEAN)
#: Whose morphology counts: any center's but the target's, or the tile's own center's.
SCOPES = ("any", "origin")
CUES = ("morphology_any", "morphology_origin", "stain")

#: Two kinds of rows, by change (the transfer), view and k:
#:
#: - with neighbour_patient: how often patient_id's tiles met that patient's tiles as morphology (in
#:   each scope) and as stain;
#: - without: patient_id's queries (its tiles, once for each target) and the counts expected if
#:   every candidate were equally likely.
CUE_CONFLICT_SCHEMA: dict[str, pl.DataType] = {
    "change": pl.String(),
    "view": pl.String(),
    "k": pl.Int64(),
    "patient_id": pl.String(),
    "neighbour_patient": pl.String(),
    "n_queries": pl.Int64(),
    **dict.fromkeys(CUES, pl.Float64()),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CueConflict(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    k
        Neighbours that are looked at.
    """

    k: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1),
        AfterValidator(lambda ks: tuple(sorted(set(ks)))),
    ]


def cue_conflict_statistics(
    views: Embeddings,
    pool: pl.DataFrame,
    references: pl.DataFrame,
    appearance: Mapping[str, Any],
    p: CueConflict,
) -> pl.DataFrame:
    """Count neighbours that share the morphology or the stain of a transferred tile.

    Parameters
    ----------
    views
        Vectors of the appearance views.
    pool
        The tiles; those without label or center are left out.
    references
        From :func:`~pathfm_kedro.pipelines.robustness.stain_references.center_references`.
    appearance
        Block of parameters of the views.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`CUE_CONFLICT_SCHEMA`; empty where no tile of the pool has a conflict.
    """
    seen = read_parameters(Appearance, "appearance", appearance)
    settings = appearance_views(references, None, seen).settings
    found = embedded_views(views, pool, settings, "cue_conflict")
    complete = pl.all_horizontal(pl.col("label", "center").is_not_null())
    found = found.part(found.tiles.select(complete).to_series().to_numpy().astype(np.bool_))
    known = list(usable_references(references))
    if found.tiles.is_empty() or len(known) < 2:
        return pl.DataFrame(schema=CUE_CONFLICT_SCHEMA)
    candidates = _Candidates.of(found)
    fewest = int(candidate_counts(candidates.patients).min())
    supported = [k for k in p.k if k <= fewest]
    frames = [pl.DataFrame(schema=CUE_CONFLICT_SCHEMA)]
    for transfer in TRANSFERS:
        parts = [
            _Queries.of(
                candidates,
                candidates.codes_of_targets(known, setting["target"], seen.max_targets),
                unit(vectors),
                max(supported, default=1),
            )
            for setting, vectors in found.of(transfer)
        ]
        for k, view in product(supported, VIEWS):
            for rows in (_met(candidates, parts, view, k), _expected(candidates, parts, k)):
                keys = {"change": transfer, "view": view, "k": k}
                named = rows.with_columns(pl.lit(v).alias(name) for name, v in keys.items())
                frames.append(to_schema(named, CUE_CONFLICT_SCHEMA))
    return pl.concat(frames)


@plain_dataclass(frozen=True)
class _Candidates:
    """Clean tiles [n], as codes; names of patients and of centers in the order of their codes."""

    vectors: Floats
    patients: Ints
    labels: Ints
    centers: Ints
    patient_names: list[str]
    center_names: list[str]

    @classmethod
    def of(cls, found: EmbeddedViews) -> _Candidates:
        tiles = found.tiles
        centers, center_codes = np.unique(tiles["center"].to_numpy(), return_inverse=True)
        return cls(
            unit(found.at(CLEAN)),
            patient_codes(tiles["patient_id"].to_numpy())[0],
            np.unique(tiles["label"].to_numpy(), return_inverse=True)[1].astype(np.int64),
            center_codes.astype(np.int64),
            tiles["patient_id"].unique().sort().to_list(),
            [str(name) for name in centers],
        )

    def codes_of_targets(self, known: Sequence[str], place: int, most: int) -> Ints:
        """[n] code of each tile's target at that place; −1 where it has none among them."""
        of_center = []
        for center in self.center_names:
            targets = target_centers(known, center, most)
            target = targets[place] if place < len(targets) else None
            of_center.append(self.center_names.index(target) if target in self.center_names else -1)
        return np.array(of_center)[self.centers]

    def cues(self, rows: Ints, targets: Ints) -> Flags:
        """[3, q, n] whether candidate j is morphology (any, origin) or stain for query and target."""
        same = self.labels[rows, None] == self.labels
        in_target = targets[:, None] == self.centers
        at_home = self.centers[rows, None] == self.centers
        other = self.patients[rows, None] != self.patients
        cues: Flags = np.stack([same & ~in_target, same & at_home, ~same & in_target]) & other
        return cues


@plain_dataclass(frozen=True)
class _Queries:
    """Tiles with a conflict under one target: rows [q], cues [3, q, n], neighbours [q, k]."""

    rows: Ints
    cues: Flags
    neighbours: Mapping[str, NDArray[np.intp]]

    @classmethod
    def of(cls, tiles: _Candidates, targets: Ints, view: Floats, depth: int) -> _Queries:
        rows = np.flatnonzero(targets >= 0)
        cues = tiles.cues(rows, targets[rows])
        conflict = cues[0].any(axis=1) & cues[2].any(axis=1)
        rows, cues = rows[conflict], cues[:, conflict]
        near = {
            name: nearest_references(vectors, tiles.vectors, tiles.patients, depth)[rows]
            for name, vectors in ((TRANSFERRED, view), (CLEAN, tiles.vectors))
        }
        return cls(rows, cues, near)

    def found(self, view: str, k: int) -> tuple[NDArray[np.intp], Flags]:
        """Neighbours [q, k] and whether each is morphology (any, origin) or stain [3, q, k]."""
        near = self.neighbours[view][:, :k]
        return near, np.take_along_axis(self.cues, np.stack([near] * len(self.cues)), axis=2)


def _met(tiles: _Candidates, parts: Sequence[_Queries], view: str, k: int) -> pl.DataFrame:
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


def _expected(tiles: _Candidates, parts: Sequence[_Queries], k: int) -> pl.DataFrame:
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


def cue_conflict_figures(statistics: pl.DataFrame, p: CueConflict) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`cue_conflict_statistics`.
    p
        The parameters.
    """
    for transfer, k in product(TRANSFERS, p.k):
        counts = CueCounts(statistics.filter(change=transfer, k=k), p, k)
        setting = {"change": transfer, "k": k}
        figure = partial(Figure, n=counts.n, n_patients=counts.n_patients)
        for view, scope in product(VIEWS, SCOPES):
            follows = partial(follows_morphology, counts, view, scope)
            at = {**setting, "view": view, "scope": scope}
            yield figure("follows_morphology", follows, at)
        minus_null = partial(follows_morphology_minus_null, counts)
        yield figure("follows_morphology_minus_null", minus_null, setting)
        yield figure("morphology_loss", partial(morphology_loss, counts), setting)


@plain_dataclass(frozen=True)
class CueCounts:
    """What the tiles met under one transfer and k.

    Attributes
    ----------
    table
        Rows of :data:`CUE_CONFLICT_SCHEMA`.
    p
        The parameters.
    k
        Neighbours that were looked at.
    """

    table: pl.DataFrame
    p: CueConflict
    k: int

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
                "no neighbour shares the morphology alone or the stain alone: raise cue_conflict.k"
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
                "every tile; add centers, raise tile_pool.max_tiles or lower cue_conflict.k"
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


@plain_dataclass(frozen=True)
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
    ratio = counts.ratio(view, scope)
    estimate = pair_ratio(ratio.morphology, ratio.cues, ratio.draws(), counts.n, most=1.0)
    return Value(replace(estimate, n_patients=counts.n_patients), Null(ratio.null, ratio.null))


def follows_morphology_minus_null(counts: CueCounts) -> Value:
    """The same in another center's stain, minus its null; null 0."""
    found = follows_morphology(counts, TRANSFERRED, "any")
    return less_chance(found, counts.ratio(TRANSFERRED, "any").null)


def morphology_loss(counts: CueCounts) -> Value:
    """Morphology followed before the transfer minus after it, over the same draws; null 0."""
    before, after = (counts.ratio(view, "any") for view in (CLEAN, TRANSFERRED))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.divide(*before.draws()) - np.divide(*after.draws())
    interval = percentile_interval(draws)
    estimate = Estimate(before.value - after.value, *interval, counts.n, counts.n_patients, draws)
    return Value(estimate, Null(0.0, 0.0))
