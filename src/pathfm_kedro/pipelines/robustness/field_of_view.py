"""Field of view: whether an encoder needs to see more than a tile to tell labels apart.

Three factors are separated, with one vector per place for all (equal bytes of index):

- ``whole``: a wider field at one mpp, resized as a whole to the encoder's input (more tissue, less
  detail);
- ``mean`` and ``attention`` (:mod:`~pathfm_kedro.encoders.heads`): the same
  field as its sub-tiles of the tile's size, pooled (the same tissue, all detail, no view across
  sub-tiles);
- ``native``: the same field at its own size, with interpolated position embeddings.

``tile`` is the tile itself at the same centre. Per wider field, over the places that have room for it:

- ``macro_f1`` per arm: vote of the k nearest places of other patients
  (:mod:`~pathfm_kedro.statistics.votes`);
- ``macro_f1_gain`` of each arm over the tile alone
  (:func:`~pathfm_kedro.statistics.vote_gain.macro_f1_gain`);
- ``macro_f1_gain_same_tissue``: over the mean of the sub-tiles that cover the same field, so that
  tissue and bytes are equal and only the view across sub-tiles differs;
- ``macro_f1_gain_same_field``: native size over the same field resized;
- ``gain_equivalence_p``: two one-sided tests that the gain of the whole field lies within
  ± ``equivalence_margin``;
- ``forward_passes``, ``megapixels_forwarded``, ``megapixels_read`` for one place.

A trustworthy encoder gains nothing: it loses nothing for seeing a tile. Where neither arm tells labels
apart better than chance there is nothing to gain, and no verdict.

Pitfalls
--------
- The judged gain needs some 72 patients to pass at 0.05, even where both arms answer alike.
- ``whole`` changes field and scale together, as the claim does; ``mean`` and ``native`` hold them
  apart.
- Slides without room take no part, which may be the small specimens; images cut beforehand have no
  wider field. Few encoders take other input sizes.
- The coverage of these intervals is not among the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass
from threadpoolctl import threadpool_limits

from pathfm_kedro.encoders.heads import AttentionSettings, pool_bags
from pathfm_kedro.encoders.input_size import NATIVE_PROBLEMS
from pathfm_kedro.slides.fields import side_of_tiles
from pathfm_kedro.slides.nested_fields import (
    Layout,
    Size,
    fields_around,
    name_of,
    places_with_room,
    require_nested,
    size_of,
)
from pathfm_kedro.statistics.bootstrap import patient_codes
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.tables import Embeddings, stacked
from pathfm_kedro.statistics.vote_gain import macro_f1_gain
from pathfm_kedro.statistics.votes import LabelledQueries, PatientVotes, patient_votes

Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]

TILE, WHOLE, MEAN, ATTENTION, NATIVE = "tile", "whole", "mean", "attention", "native"
ARMS = (TILE, WHOLE, MEAN, ATTENTION, NATIVE)
GAIN = "macro_f1_gain"
SAME_TISSUE = "macro_f1_gain_same_tissue"
SAME_FIELD = "macro_f1_gain_same_field"
EQUIVALENCE = "gain_equivalence_p"
#: Contrasts: the metric, the arm and the arm it is compared with.
CONTRASTS = (
    (GAIN, WHOLE, TILE),
    (GAIN, MEAN, TILE),
    (GAIN, ATTENTION, TILE),
    (GAIN, NATIVE, TILE),
    (SAME_TISSUE, WHOLE, MEAN),
    (SAME_TISSUE, NATIVE, MEAN),
    (SAME_FIELD, NATIVE, WHOLE),
)
#: Contrasts that are tested for equivalence.
TESTED = ((GAIN, WHOLE, TILE), (SAME_TISSUE, WHOLE, MEAN))
#: Tensors of a shard.
PARTS, NATIVES, PROBLEMS, COST = "parts", "native", "native_problem", "cost"
#: Arms whose cost a shard holds, in order; attention costs what the mean does.
COSTED = (WHOLE, MEAN, NATIVE)

#: One row per wider field, arm and place. ``neighbours`` are row numbers within the rows of the same
#: field and arm, nearest first, −1 where there are too few; null, with a reason, where the arm is
#: undefined.
FIELD_OF_VIEW_SCHEMA: dict[str, pl.DataType] = {
    "field": pl.String(),
    "arm": pl.String(),
    "tile_id": pl.String(),
    "slide_id": pl.String(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "neighbours": pl.List(pl.Int64()),
    "forward_passes": pl.Float64(),
    "megapixels_forwarded": pl.Float64(),
    "megapixels_read": pl.Float64(),
    "reason": pl.String(),
}
#: A label of one patient can never be found among other patients.
_MIN_PATIENTS_PER_LABEL = 2


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FieldOfView(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    fields
        Width and height in px at the tiles' mpp, each inside the next; the first is the tile
        (:meth:`fields_around`).
    k
        Places of other patients that vote on a place's label.
    max_tiles
        Places that are looked at.
    equivalence_margin
        Gains within this, either way, count as none.
    attention
        How sub-tiles are pooled by attention.
    n_permutations
        Of labels among patients, for the null.
    """

    fields: Annotated[
        tuple[Annotated[Size, BeforeValidator(size_of)], ...], AfterValidator(require_nested)
    ]
    k: Count
    max_tiles: Count
    equivalence_margin: Annotated[float, Field(gt=0)]
    attention: AttentionSettings
    n_permutations: Count

    def fields_around(self, side: int | None) -> tuple[Size, ...]:
        """The fields, with the tile that is audited as the first.

        Fields that do not reach beyond it, or share no centre px with it, are left out.

        Parameters
        ----------
        side
            Of the tile, px; None where it is not known, which changes nothing.
        """
        return fields_around(self.fields, side)


def field_of_view_statistics(views: Embeddings, pool: pl.DataFrame, p: FieldOfView) -> pl.DataFrame:
    """Each place's nearest places of other patients, per field and arm.

    Parameters
    ----------
    views
        Shards of the pool's slides with ``parts`` [n, parts, d] as
        :class:`~pathfm_kedro.slides.nested_fields.Layout` orders them, ``native`` [n, wider fields, d],
        ``native_problem`` [n, wider fields] (0, or a key of
        :data:`~pathfm_kedro.encoders.input_size.NATIVE_PROBLEMS`) and ``cost`` [n, fields, 3, 2]:
        forward passes and pixels forwarded of :data:`COSTED`.
    pool
        From :func:`~pathfm_kedro.pipelines.robustness.field_pool.choose_field_pool`. Slides without a
        shard are left out.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`FIELD_OF_VIEW_SCHEMA`.
    """
    fields = p.fields_around(side_of_tiles(pool))
    frames = [pl.DataFrame(schema=FIELD_OF_VIEW_SCHEMA)]
    for nested, rows in places_with_room(fields, pool, views.slide_ids):
        frames += _at_field(views, rows, nested, p)
    return pl.concat(frames)


def _at_field(
    views: Embeddings, rows: pl.DataFrame, fields: tuple[Size, ...], p: FieldOfView
) -> Iterator[pl.DataFrame]:
    """Neighbours in every arm at the last of the fields, over the places that have room for it."""
    layout, wider = Layout.of(fields), len(fields) - 1
    parts = _stacked(views, rows, PARTS, len(layout.parts))
    natives, problems = (_stacked(views, rows, name, wider)[:, -1] for name in (NATIVES, PROBLEMS))
    cost = _stacked(views, rows, COST, len(fields))
    labels, patients = rows["label"].to_numpy(), rows["patient_id"].to_numpy()
    subs = parts[:, list(layout.subs[-1])]

    def neighbours(arm: str) -> Ints:
        if arm == ATTENTION:
            return attention_neighbours(subs, labels, patients, p.k, p.attention, p.seed)
        if arm == NATIVE and problems.any():
            raise Undefined(NATIVE_PROBLEMS[int(problems.max())])
        vectors: dict[str, NDArray[Any]] = {
            TILE: parts[:, layout.wholes[0]],
            WHOLE: parts[:, layout.wholes[-1]],
            MEAN: subs.mean(axis=1, dtype=np.float64),
            NATIVE: natives,
        }
        return nearest_indices(vectors[arm], patients, p.k)

    for arm in ARMS:
        found, reason = None, ""
        try:
            found = neighbours(arm).tolist()
        except Undefined as problem:
            reason = str(problem)
        passes, pixels = (None, None) if found is None else _cost_of(arm, cost)
        width, height = fields[0] if arm == TILE else fields[-1]
        yield rows.select(
            pl.lit(name_of(fields[-1])).alias("field"),
            pl.lit(arm).alias("arm"),
            "tile_id",
            "slide_id",
            "patient_id",
            "label",
            pl.Series("neighbours", found or [None] * rows.height, pl.List(pl.Int64())),
            pl.lit(passes, pl.Float64()).alias("forward_passes"),
            pl.lit(pixels, pl.Float64()).alias("megapixels_forwarded"),
            pl.lit(width * height / 1e6).alias("megapixels_read"),
            pl.lit(reason).alias("reason"),
        )


def attention_neighbours(
    subs: NDArray[np.float32],
    labels: NDArray[Any],
    patients: NDArray[Any],
    k: int,
    settings: AttentionSettings,
    seed: int,
) -> Ints:
    """Neighbours of each place with its sub-tiles pooled by attention that never saw its patient.

    Parameters
    ----------
    subs
        [n, S, d] vectors of the sub-tiles.
    labels, patients
        [n].
    k
        Neighbours of each place.
    settings
        How attention is fitted.
    seed
        Of folds and of the fit.

    Returns
    -------
    ndarray
        [n, k] neighbours of other patients, each by the attention of the asking place's fold.

    Raises
    ------
    Undefined
        If there are too few patients, labels or places to fit attention.
    """
    where = "field_of_view.attention"
    pooled = pool_bags("attention", subs, labels, patients, settings, seed, where)
    neighbours = np.empty((len(subs), k), np.int64)
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for asking, vectors in pooled.by_model():
            neighbours[asking] = nearest_indices(vectors, patients, k, queries=asking)
    return neighbours


def _stacked(views: Embeddings, rows: pl.DataFrame, name: str, first: int) -> NDArray[np.float32]:
    """The first entries of a tensor of each place; slides of other largest fields hold more."""
    groups = []
    for (field,), group in rows.with_row_index("_at").group_by("field", maintain_order=True):
        stack = stacked(group, views, name)
        if len(stack) != group.height or stack.shape[1] < first:
            raise ValueError(
                f"shards hold {name!r} of shape {list(stack.shape)}, expected {group.height} places "
                f"and at least {first} entries at field {field}; embed the fields again with these "
                "parameters"
            )
        groups.append((group["_at"].to_numpy(), stack[:, :first]))
    whole = np.empty((rows.height, *groups[0][1].shape[1:]), np.float32)
    for at, stack in groups:
        whole[at] = stack
    return whole


def _cost_of(arm: str, cost: NDArray[np.float32]) -> tuple[float, float]:
    """Forward passes and megapixels forwarded for one place."""
    field, of = (0, WHOLE) if arm == TILE else (-1, MEAN if arm == ATTENTION else arm)
    passes, pixels = cost[:, field, COSTED.index(of)].mean(axis=0, dtype=np.float64)
    return float(passes), float(pixels) / 1e6


def field_of_view_figures(
    statistics: pl.DataFrame, room: pl.DataFrame, p: FieldOfView
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`field_of_view_statistics`.
    room
        From :func:`~pathfm_kedro.pipelines.robustness.field_pool.choose_field_pool`.
    p
        The parameters.
    """
    margin = p.equivalence_margin
    for row in room.iter_rows(named=True):
        field = row["field"]
        at = Places.of(statistics.filter(field=field), row, p)

        def figure(metric: str, compute: Any, /, at: Places = at, **setting: Any) -> Figure:
            return Figure(metric, compute, setting, n=at.n, n_patients=at.n_patients)

        for arm in ARMS:
            yield figure("macro_f1", partial(score, at, arm), field=field, arm=arm, k=p.k)
        for metric, arm, over in CONTRASTS:
            setting = {"field": field, "arm": arm, "over": over}
            yield figure(metric, partial(gain, at, arm, over, margin), k=p.k, **setting)
            if (metric, arm, over) in TESTED:
                test = partial(equivalence, at, arm, over, margin)
                yield figure(EQUIVALENCE, test, margin=margin, **setting)
        for arm in COSTED:
            for metric in ("forward_passes", "megapixels_forwarded"):
                yield figure(metric, partial(at.cost, arm, metric), field=field, arm=arm)
        yield figure("megapixels_read", partial(at.cost, WHOLE, "megapixels_read"), field=field)


@plain_dataclass(frozen=True)
class Places:
    """The places that have room for a field, and their votes in every arm.

    Attributes
    ----------
    rows
        Statistics of the field.
    votes
        Of each arm that is defined.
    problem
        Why no arm is; empty where some are.
    n, n_patients
        Places that are queries, and their patients.
    """

    rows: pl.DataFrame
    votes: Mapping[str, PatientVotes]
    problem: str
    n: int
    n_patients: int

    @classmethod
    def of(cls, rows: pl.DataFrame, room: Mapping[str, Any], p: FieldOfView) -> Places:
        """Read the statistics of one field."""
        if rows.is_empty():
            return cls(rows, {}, _no_room(room), 0, 0)
        tile = rows.filter(arm=TILE)
        patient, n_patients = patient_codes(tile["patient_id"].to_numpy())
        names, label = np.unique(tile["label"].to_numpy(), return_inverse=True)
        queries = LabelledQueries(
            patient, label.astype(np.int64), np.zeros_like(patient), n_patients, len(names)
        )
        searchable = queries.support >= _MIN_PATIENTS_PER_LABEL
        counted = searchable[0, queries.label]
        n, n_counted = int(counted.sum()), len(np.unique(patient[counted]))
        if searchable.sum() < 2:
            problem = (
                f"{int(searchable.sum())} label(s) of {_MIN_PATIENTS_PER_LABEL} patients or more "
                "have room for this field, two are needed: add patients, or choose smaller fields"
            )
            return cls(rows, {}, problem, n, n_counted)
        permuted = queries.permuted(p.n_permutations, p.seed)
        weights = p.weights(n_patients)
        votes = {}
        for arm in ARMS:
            found = rows.filter(arm=arm)["neighbours"]
            if not found.null_count():
                matches = np.array(found.to_list(), np.int64)
                votes[arm] = patient_votes(queries, matches, searchable, permuted, weights)
        return cls(rows, votes, "", n, n_counted)

    def arm(self, arm: str) -> PatientVotes:
        """Votes of an arm.

        Raises
        ------
        Undefined
            With the reason why it has none.
        """
        if arm in self.votes:
            return self.votes[arm]
        raise Undefined(self.problem or str(self.rows.filter(arm=arm)["reason"][0]))

    def cost(self, arm: str, metric: str) -> Estimate:
        """What one vector costs; counted, so its interval is itself."""
        self.arm(arm)
        value, places = self.rows.filter(arm=arm)[metric][0], self.rows.filter(arm=TILE)
        return Estimate(value, value, value, places.height, places["patient_id"].n_unique())


def _no_room(room: Mapping[str, Any]) -> str:
    if room["n_slides_with_room"]:
        return (
            f"{room['n_slides_with_room']} slides have room for a field of {room['field']} px, but "
            "none of them has embedded fields: see why its slides failed"
        )
    return (
        f"none of {room['n_slides']} slides has room for a field of {room['field']} px around a tile "
        f"({room['reason'] or 'no tiles'})"
    )


def score(places: Places, arm: str) -> Value:
    """Macro-F1 of the vote of each place's nearest places of other patients."""
    votes = places.arm(arm)
    figure = votes.macro_f1
    interval = figure.interval()
    estimate = Estimate(figure.value, *interval, votes.n, votes.n_patients, figure.draws)
    return Value(estimate, figure.null)


def gain(places: Places, arm: str, over: str, margin: float) -> Value:
    """How much macro-F1 one arm gains over another on the same places."""
    found = macro_f1_gain(places.arm(arm), places.arm(over), margin)
    return Value(found.estimate, found.null, caveat="" if found.informed else _KNOWS_NOTHING)


def equivalence(places: Places, arm: str, over: str, margin: float) -> Estimate:
    """P of two one-sided tests that the gain lies within ± margin; below 0.05 it is shown."""
    found = macro_f1_gain(places.arm(arm), places.arm(over), margin)
    return Estimate(found.equivalence_p, None, None, found.estimate.n, found.estimate.n_patients)


_KNOWS_NOTHING = (
    "neither arm tells labels apart better than chance, so there is nothing to gain or to lose: "
    "add patients, or see whether the encoder knows these labels at all"
)
