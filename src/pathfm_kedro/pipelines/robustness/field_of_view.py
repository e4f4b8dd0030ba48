"""Field of view: whether an encoder needs to see more than a tile to tell labels apart.

Three factors are held apart, with one vector per place for all (equal bytes of index):

- ``whole``: a wider field at one mpp, resized as a whole to the encoder's input (more tissue, less
  detail);
- ``mean`` and ``attention``: the same field as its sub-tiles of the tile's size, pooled (the same
  tissue, all detail, no view across sub-tiles);
- ``native``: the same field at its own size, with interpolated position embeddings.

``tile`` is the tile itself at the same centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.input_size import NATIVE_PROBLEMS
from pathfm_kedro.slides.fields import Box, fields_on_slide
from pathfm_kedro.statistics.bootstrap import (
    binomial_interval,
    bootstrap_weights,
    patient_codes,
    percentile_interval,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.permutation import permuted_within
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.statistics.votes import label_counts, macro_f1, majority_vote

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Size = tuple[int, int]

EXPERIMENT = "field_of_view"
TILE, WHOLE, MEAN, ATTENTION, NATIVE = "tile", "whole", "mean", "attention", "native"
ARMS = (TILE, WHOLE, MEAN, ATTENTION, NATIVE)
GAIN = "macro_f1_gain"
SAME_TISSUE = "macro_f1_gain_same_tissue"
SAME_FIELD = "macro_f1_gain_same_field"
EQUIVALENCE = "gain_equivalence_p"
#: What is compared with what: the metric, the arm and the arm it is held against. The first of each
#: of the two metrics with a threshold is the signature.
CONTRASTS = (
    (GAIN, WHOLE, TILE),
    (GAIN, MEAN, TILE),
    (GAIN, ATTENTION, TILE),
    (GAIN, NATIVE, TILE),
    (SAME_TISSUE, WHOLE, MEAN),
    (SAME_TISSUE, NATIVE, MEAN),
    (SAME_FIELD, NATIVE, WHOLE),
)
SIGNATURES = ((GAIN, WHOLE, TILE), (SAME_TISSUE, WHOLE, MEAN))
#: Tensors of a shard.
PARTS, NATIVES, PROBLEMS, COST = "parts", "native", "native_problem", "cost"
#: Arms whose cost a shard holds, in order; attention costs what the mean does.
COSTED = (WHOLE, MEAN, NATIVE)

ROOM_SCHEMA: dict[str, pl.DataType] = {
    "field": pl.String(),
    "n_slides": pl.Int64(),
    "n_slides_with_room": pl.Int64(),
    "n_tiles": pl.Int64(),
    "n_tiles_with_room": pl.Int64(),
    "reason": pl.String(),
}
VOTES_SCHEMA: dict[str, pl.DataType] = {
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
POOL_COLUMNS = [
    "tile_id",
    "slide_id",
    "patient_id",
    "center",
    "organ",
    "label",
    "field",
    "x",
    "y",
    "field_um",
    "mpp",
]
#: A label of one patient can never be found among other patients.
_MIN_PATIENTS_PER_LABEL = 2
_SAME = 1e-9


@dataclass(frozen=True)
class AttentionParameters:
    """Attention pooling (ABMIL) as it is fitted to training patients.

    Attributes
    ----------
    folds
        Groups of patients; each is pooled by attention fitted on the others.
    components
        Principal components of the sub-tiles' vectors that attention looks at.
    hidden
        Units of its one hidden layer.
    steps, learning_rate, weight_decay
        Of Adam, on all training bags at once.
    """

    folds: int
    components: int
    hidden: int
    steps: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class FieldParameters:
    """What the experiment is told; see ``parameters_robustness.yml`` for the reasons.

    Attributes
    ----------
    fields
        Width and height in px at the tiles' mpp, each inside the next; the first is the tile
        (:meth:`around`).
    """

    fields: tuple[Size, ...]
    signature_field: str
    k: int
    max_tiles: int
    thresholds: Mapping[str, float | None]
    margin: float
    attention: AttentionParameters
    draws: int
    n_permutations: int
    seed: int

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> FieldParameters:
        """Read and check the parameters.

        Raises
        ------
        ValueError
            If fields are fewer than two, do not lie inside one another or share no centre px, or the
            signature's field is not among them.
        """
        fields = tuple(_size(field) for field in parameters["fields"])
        if len(fields) < 2:
            raise ValueError(f"field_of_view.fields: {fields} needs the tile and one wider field")
        for small, large in pairwise(fields):
            if small == large or small[0] > large[0] or small[1] > large[1]:
                raise ValueError(
                    f"field_of_view.fields: {name_of(small)} does not lie inside {name_of(large)}; "
                    "list them from small to large"
                )
            if (large[0] - small[0]) % 2 or (large[1] - small[1]) % 2:
                raise ValueError(
                    f"field_of_view.fields: {name_of(small)} and {name_of(large)} have no common "
                    "centre px; make all sides even, or all odd"
                )
        signature = name_of(_size(parameters["signature_field"]))
        if signature not in [name_of(field) for field in fields[1:]]:
            raise ValueError(
                f"field_of_view.signature_field: {signature} is not among the wider fields; add it to "
                "field_of_view.fields"
            )
        return cls(
            fields=fields,
            signature_field=signature,
            k=int(parameters["k"]),
            max_tiles=int(parameters["max_tiles"]),
            thresholds=dict(parameters["thresholds"]),
            margin=float(parameters["equivalence_margin"]),
            attention=AttentionParameters(**parameters["attention"]),
            draws=int(parameters["draws"]),
            n_permutations=int(parameters["n_permutations"]),
            seed=int(parameters["seed"]),
        )

    def around(self, side: int | None) -> FieldParameters:
        """The same, with the tile that is audited as the first field.

        Fields that do not reach beyond it, or share no centre px with it, are left out.

        Parameters
        ----------
        side
            Of the tile, px; None where it is not known, which changes nothing.
        """
        if side is None:
            return self
        wider = (field for field in self.fields[1:] if _is_around(field, side))
        return replace(self, fields=((side, side), *wider))

    def up_to(self, field: str) -> tuple[Size, ...]:
        """The fields up to the named one, which holds all of them."""
        names = [name_of(size) for size in self.fields]
        return self.fields[: names.index(field) + 1]


def name_of(field: Size) -> str:
    """A field's name: one side of a square, else width x height.

    Examples
    --------
    >>> name_of((512, 512)), name_of((2048, 1536))
    ('512', '2048x1536')
    """
    return str(field[0]) if field[0] == field[1] else f"{field[0]}x{field[1]}"


def _size(field: Any) -> Size:
    sides = [field, field] if isinstance(field, int) else field
    known = isinstance(sides, list | tuple) and len(sides) == 2
    if not (known and all(isinstance(side, int) and side > 0 for side in sides)):
        raise ValueError(
            f"field_of_view.fields: {field!r} is neither a side in px nor [width, height]"
        )
    return sides[0], sides[1]


def _is_around(field: Size, side: int) -> bool:
    """Whether a field holds a tile of this side, more than it, and has its centre px."""
    beyond = [length - side for length in field]
    return min(beyond) >= 0 < max(beyond) and not any(length % 2 for length in beyond)


def side_of_tiles(tiles: pl.DataFrame) -> int | None:
    """Side in px of tiles as they are embedded: ``field_um`` / ``mpp``; None where no tile tells it.

    Examples
    --------
    >>> side_of_tiles(pl.DataFrame({"field_um": [112.0], "mpp": [0.5]}))
    224
    """
    known = tiles.select("field_um", "mpp").drop_nulls()
    return None if known.is_empty() else round(known["field_um"][0] / known["mpp"][0])


def sub_tiles(field: Size, tile: Size) -> list[Box]:
    """Fewest sub-tiles that cover a field, evenly spaced, row by row; they may overlap.

    Where a side takes an odd number of them, one lies in the middle.

    Examples
    --------
    >>> [(box.left, box.top) for box in sub_tiles((512, 224), (224, 224))]
    [(0, 0), (144, 0), (288, 0)]
    """

    def starts(whole: int, part: int) -> list[int]:
        steps = math.ceil(whole / part) - 1
        return [round(i * (whole - part) / max(steps, 1)) for i in range(steps + 1)]

    return [
        Box(left, top, *tile)
        for top in starts(field[1], tile[1])
        for left in starts(field[0], tile[0])
    ]


@dataclass(frozen=True)
class Layout:
    """The parts of the largest of nested fields that are embedded, each once.

    Parts of a smaller field come before those that a larger one adds, so that a part has the same
    index whatever the largest field is.

    Attributes
    ----------
    fields
        Width and height of the fields, small to large.
    parts
        Where they lie in the largest.
    wholes
        Per field, the index of the part that is the field itself.
    subs
        Per field, the indices of its sub-tiles.
    """

    fields: tuple[Size, ...]
    parts: tuple[Box, ...]
    wholes: tuple[int, ...]
    subs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, fields: Sequence[Size]) -> Layout:
        """Lay out nested fields; the first is the tile.

        Examples
        --------
        >>> layout = Layout.of([(224, 224), (512, 512)])
        >>> len(layout.parts), layout.wholes, len(layout.subs[1])
        (10, (0, 1), 9)
        """
        index: dict[Box, int] = {}
        wholes, subs = [], []
        for field in fields:
            left, top = ((fields[-1][axis] - field[axis]) // 2 for axis in (0, 1))
            whole = Box(left, top, *field)
            wholes.append(index.setdefault(whole, len(index)))
            boxes = [
                box._replace(left=box.left + left, top=box.top + top)
                for box in sub_tiles(field, fields[0])
            ]
            subs.append(tuple(index.setdefault(box, len(index)) for box in boxes))
        return cls(tuple(fields), tuple(index), tuple(wholes), tuple(subs))


def choose_field_pool(
    slides: pl.DataFrame, tiles: pl.DataFrame, parameters: Mapping[str, Any]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Draw the places where fields are compared, balanced over label x center x patient.

    A slide takes part with the tiles that have room for the largest field that any of its tiles has
    room for; a slide without room for a field wider than a tile does not take part.

    Parameters
    ----------
    slides
        slide_id, patient_id, center, organ, label, status, width, height (level-0 px), mpp. Only
        ``usable`` slides take part.
    tiles
        tile_id, slide_id, x, y (level-0 px), field_um, mpp.
    parameters
        The experiment's.

    Returns
    -------
    pool
        ``POOL_COLUMNS``; ``field`` names the slide's largest field. Slides in sorted order, tiles of
        a slide in the tiles' order. The draw does not depend on the order of either table's rows.
    room
        ``ROOM_SCHEMA``: per wider field, how many slides and tiles have room, and why the others
        have none.
    """
    asked, side = FieldParameters.parse(parameters), side_of_tiles(tiles)
    told = asked.around(side)
    usable = slides.filter(pl.col("status") == "usable")
    placed = tiles.with_row_index("_row").join(
        usable.select("slide_id", "patient_id", "center", "organ", "label"), on="slide_id"
    )
    rooms = [fields_on_slide(placed, usable, *field) for field in told.fields[1:]]
    found = dict(zip(told.fields[1:], rooms, strict=True))
    room = pl.DataFrame(
        [
            _room_row(name_of(field), found.get(field, _not_around(placed, side)))
            for field in asked.fields[1:]
        ],
        schema=ROOM_SCHEMA,
    )
    # Fields lie inside one another, so the number of fields with room names the largest.
    largest = sum((r["has_room"].cast(pl.Int64) for r in rooms), pl.zeros(len(placed), pl.Int64))
    names = {i: name_of(field) for i, field in enumerate(told.fields)}
    candidates = (
        placed.with_columns(_largest=largest)
        .filter(pl.col("_largest") > 0)
        .filter(pl.col("_largest") == pl.col("_largest").max().over("slide_id"))
        .with_columns(
            field=pl.col("_largest").replace_strict(names, return_dtype=pl.String()),
        )
        .sort("tile_id")
    )
    drawn = _balanced(candidates, told.seed).head(told.max_tiles)
    return drawn.sort("slide_id", "_row").select(POOL_COLUMNS), room


def _balanced(candidates: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Rows in an order in which cells, in each its patients, in each their slides take turns."""
    random = np.random.default_rng(seed).permutation(candidates.height)
    frame = candidates.with_columns(_random=pl.Series(random, dtype=pl.Int64), _turn=pl.lit(0))
    for group in (["patient_id", "slide_id"], ["patient_id"], []):
        frame = frame.sort("_turn", "_random").with_columns(
            _turn=pl.int_range(pl.len()).over(["label", "center", *group])
        )
    return frame.sort("_turn", "_random")


def _not_around(tiles: pl.DataFrame, side: int | None) -> pl.DataFrame:
    """Tiles without room for a field that does not lie around them."""
    why = (
        f"the field is no larger than the tile of {side} px or shares no centre px with it; add to "
        "field_of_view.fields a larger one, even where the tile's side is"
    )
    return tiles.with_columns(has_room=pl.lit(False), no_room=pl.lit(why))


def _room_row(field: str, room: pl.DataFrame) -> dict[str, Any]:
    by_slide = room.group_by("slide_id").agg(pl.col("has_room").any())
    without = room.filter(~pl.col("has_room"))["no_room"].value_counts(sort=True)
    why = "; ".join(
        f"{row['count']} tiles: {row['no_room']}"
        for row in without.sort(["count", "no_room"], descending=[True, False]).to_dicts()
    )
    return {
        "field": field,
        "n_slides": by_slide.height,
        "n_slides_with_room": int(by_slide["has_room"].sum()),
        "n_tiles": room.height,
        "n_tiles_with_room": int(room["has_room"].sum()),
        "reason": why,
    }


def field_votes(
    views: Embeddings, pool: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Each place's nearest places of other patients, per field and arm.

    Parameters
    ----------
    views
        Shards of the pool's slides with ``parts`` [n, parts, d] as :class:`Layout` orders them,
        ``native`` [n, wider fields, d], ``native_problem`` [n, wider fields] (0, or a key of
        :data:`~pathfm_kedro.encoders.input_size.NATIVE_PROBLEMS`) and ``cost``
        [n, fields, 3, 2]: forward passes and pixels forwarded of :data:`COSTED`.
    pool
        From :func:`choose_field_pool`. Slides without a shard are left out.
    parameters
        The experiment's.

    Returns
    -------
    DataFrame
        ``VOTES_SCHEMA``; ``neighbours`` are row numbers within the rows of the same field and arm,
        nearest first, −1 where there are too few; null, with a reason, where the arm is undefined.
    """
    told = FieldParameters.parse(parameters).around(side_of_tiles(pool))
    frames = [pl.DataFrame(schema=VOTES_SCHEMA)]
    for position in range(1, len(told.fields)):
        names = [name_of(field) for field in told.fields[position:]]
        rows = pool.filter(
            pl.col("field").is_in(names), pl.col("slide_id").is_in(list(views.slide_ids))
        )
        if rows.height:
            frames.append(_votes_at(views, rows, position, told))
    return pl.concat(frames)


def _votes_at(
    views: Embeddings, rows: pl.DataFrame, position: int, told: FieldParameters
) -> pl.DataFrame:
    """Votes of all arms at one field, over the places that have room for it."""
    field = told.fields[position]
    layout = Layout.of(told.fields[: position + 1])
    parts = _stacked(views, rows, PARTS, len(layout.parts))
    natives = _stacked(views, rows, NATIVES, position)[:, -1]
    problems = _stacked(views, rows, PROBLEMS, position)[:, -1]
    cost = _stacked(views, rows, COST, position + 1)
    patients = rows["patient_id"].to_numpy()
    subs = parts[:, list(layout.subs[position])]
    found: dict[str, Ints | str] = {
        TILE: nearest_indices(parts[:, layout.wholes[0]], patients, told.k),
        WHOLE: nearest_indices(parts[:, layout.wholes[position]], patients, told.k),
        MEAN: nearest_indices(subs.mean(axis=1, dtype=np.float64), patients, told.k),
        ATTENTION: attention_neighbours(subs, rows["label"].to_numpy(), patients, told),
        NATIVE: NATIVE_PROBLEMS[int(problems.max())]
        if problems.any()
        else nearest_indices(natives, patients, told.k),
    }
    return pl.concat(
        [
            _arm_rows(rows, field, arm, answer, *_cost_of(arm, cost), told.fields[0])
            for arm, answer in found.items()
        ]
    )


def _stacked(views: Embeddings, rows: pl.DataFrame, name: str, first: int) -> NDArray[np.float32]:
    """The first entries of a tensor of each place; slides of other largest fields hold more."""
    groups = []
    for (field,), group in rows.with_row_index("_at").group_by("field", maintain_order=True):
        slide_ids = group["slide_id"].unique(maintain_order=True).to_list()
        stack = views.stack(slide_ids, name)
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
    if arm == TILE:
        passes, pixels = cost[:, 0, COSTED.index(WHOLE)].mean(axis=0, dtype=np.float64)
    else:
        column = COSTED.index(MEAN if arm == ATTENTION else arm)
        passes, pixels = cost[:, -1, column].mean(axis=0, dtype=np.float64)
    return float(passes), float(pixels) / 1e6


def _arm_rows(
    rows: pl.DataFrame,
    field: Size,
    arm: str,
    answer: Ints | str,
    passes: float,
    pixels: float,
    tile: Size,
) -> pl.DataFrame:
    read = tile if arm == TILE else field
    undefined = isinstance(answer, str)
    neighbours = [None] * rows.height if isinstance(answer, str) else answer.tolist()
    return rows.select(
        pl.lit(name_of(field)).alias("field"),
        pl.lit(arm).alias("arm"),
        "tile_id",
        "slide_id",
        "patient_id",
        "label",
        pl.Series("neighbours", neighbours, pl.List(pl.Int64())),
        pl.lit(None if undefined else passes, pl.Float64()).alias("forward_passes"),
        pl.lit(None if undefined else pixels, pl.Float64()).alias("megapixels_forwarded"),
        pl.lit(read[0] * read[1] / 1e6).alias("megapixels_read"),
        pl.lit(answer if isinstance(answer, str) else "").alias("reason"),
    )


def attention_neighbours(
    subs: NDArray[np.float32],
    labels: NDArray[Any],
    patients: NDArray[Any],
    told: FieldParameters,
) -> Ints | str:
    """Neighbours of each place with its sub-tiles pooled by attention that never saw its patient.

    Attention-based pooling (ABMIL) over the sub-tiles s of a place,

        z = Σ_s a_s x_s,   a = softmax_s(w·tanh(V u_s)),

    u_s being the leading principal components of x_s. V and w are fitted with a linear classifier
    of the pooled u on the bags of the other folds' patients, starting from w = 0, which is the mean.
    Pooled and compared are the encoder's own vectors x, so that z has its dimension.

    Parameters
    ----------
    subs
        [n, S, d] vectors of the sub-tiles.
    labels, patients
        [n].
    told
        ``attention``, ``k`` and ``seed``.

    Returns
    -------
    ndarray or str
        [n, k] neighbours of other patients, each by the attention of the asking place's fold; or the
        reason why attention cannot be fitted.

    References
    ----------
    Ilse, Tomczak & Welling 2018, "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712.
    """
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    codes, n_patients = patient_codes(patients)
    targets = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    folds = told.attention.folds
    places = int(np.bincount(targets).max())
    if n_patients < folds or places < folds or targets.max() == 0:
        return (
            f"attention is fitted in {folds} folds of patients on two labels or more, one of them of "
            f"{folds} places or more; here are {n_patients} patients and {targets.max() + 1} label(s) "
            f"of {places} places at most: add patients or lower field_of_view.attention.folds"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=told.seed)
    neighbours = np.empty((len(subs), told.k), np.int64)
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for train, test in splitter.split(codes, targets, codes):
            weights = _attention(subs, targets, train, told)
            pooled = np.einsum("ns,nsd->nd", weights, subs)
            neighbours[test] = nearest_indices(pooled, patients, told.k, queries=test)
    return neighbours


def _attention(
    subs: NDArray[np.float32], targets: Ints, train: Ints, told: FieldParameters
) -> Floats:
    """[n, S] attention over each place's sub-tiles, fitted on the training places."""
    import torch
    from sklearn.decomposition import PCA

    bags, instances, d = subs.shape
    settings = told.attention
    seen = subs[train].reshape(-1, d)
    components = min(settings.components, len(seen), d)
    reduce = PCA(components, svd_solver="randomized", random_state=told.seed).fit(seen)
    scale = float(np.sqrt(reduce.explained_variance_.mean())) or 1.0
    reduced = torch.from_numpy(
        (reduce.transform(subs.reshape(-1, d)) / scale)
        .reshape(bags, instances, components)
        .astype(np.float64)
    )
    generator = torch.Generator().manual_seed(told.seed)

    def drawn(*shape: int) -> torch.Tensor:
        values: torch.Tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        values /= shape[0] ** 0.5
        values.requires_grad = True
        return values

    hidden, classifier = drawn(components, settings.hidden), drawn(components, targets.max() + 1)
    score = torch.zeros(settings.hidden, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(int(targets.max()) + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam(
        [hidden, score, classifier, bias],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    truth = torch.from_numpy(targets[train])
    for _ in range(settings.steps):
        attention = torch.softmax(torch.tanh(reduced[train] @ hidden) @ score, dim=1)
        pooled = (attention[..., None] * reduced[train]).sum(dim=1)
        loss = torch.nn.functional.cross_entropy(pooled @ classifier + bias, truth)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        fitted = torch.softmax(torch.tanh(reduced @ hidden) @ score, dim=1)
    return cast(Floats, fitted.numpy())


@dataclass(frozen=True)
class Ballot:
    """Labels of the places of one field, true and permuted, and who holds them.

    Attributes
    ----------
    label
        [n] codes; −1: a label of too few patients to be found, which is a neighbour and no query.
    all_label
        [n] codes before that.
    permuted
        [n_permutations, n] codes dealt out anew among patients.
    patients
        [n] codes.
    shape
        Number of patients, number of labels.
    weights
        [draws, n_patients] of the bootstrap.
    """

    label: Ints
    all_label: Ints
    permuted: Ints
    patients: Ints
    shape: tuple[int, int]
    weights: Floats

    @classmethod
    def of(cls, labels: NDArray[Any], patients: NDArray[Any], told: FieldParameters) -> Ballot:
        """Read labels and patients of the places of one field."""
        codes, n_patients = patient_codes(patients)
        names, label = np.unique(labels, return_inverse=True)
        units, unit = np.unique(np.stack([codes, label], axis=1), axis=0, return_inverse=True)
        support = np.bincount(units[:, 1], minlength=len(names))
        dealt = permuted_within(
            units[:, 1], np.zeros(len(units), np.int64), told.n_permutations, told.seed, units[:, 0]
        )
        label = label.astype(np.int64)
        return cls(
            label=np.where(support[label] >= _MIN_PATIENTS_PER_LABEL, label, -1),
            all_label=label,
            permuted=np.ascontiguousarray(dealt[unit.reshape(-1)].T),
            patients=codes,
            shape=(n_patients, len(names)),
            weights=bootstrap_weights(n_patients, told.draws, told.seed),
        )

    @property
    def n(self) -> int:
        """Places that count as queries."""
        return int((self.label >= 0).sum())

    @property
    def n_patients(self) -> int:
        """Patients of these."""
        return len(np.unique(self.patients[self.label >= 0]))

    @property
    def problem(self) -> str:
        """Why no macro-F1 can be told; empty where it can."""
        labels = len(np.unique(self.label[self.label >= 0]))
        if labels >= 2:
            return ""
        return (
            f"{labels} label(s) of {_MIN_PATIENTS_PER_LABEL} patients or more have room for this "
            "field, two are needed: add patients, or choose smaller fields"
        )

    def voted(self, neighbours: Ints, labels: Ints) -> Ints:
        """What the neighbours vote, for labels [..., n]."""
        there = np.where(neighbours >= 0, labels[..., neighbours], -1)
        return majority_vote(there)

    def counts(self, neighbours: Ints) -> Floats:
        """[n_patients, 3, n_labels] under the true labels."""
        predicted = self.voted(neighbours, self.all_label)
        return label_counts(self.label, predicted, self.patients, self.shape)

    def permuted_counts(self, neighbours: Ints) -> tuple[Floats, Floats]:
        """Counts [n_permutations, 3, n_labels] and influence [n_permutations, n] on macro-F1.

        The influence of a place on F = 2 r / D is (2 dr − F dD) / D, averaged over labels.
        """
        truth = np.where(self.label >= 0, self.permuted, -1)
        predicted = self.voted(neighbours, self.permuted)
        rows = np.arange(len(truth))[:, None]
        counts = label_counts(truth, predicted, rows, (len(truth), self.shape[1]))
        right, true, voted = np.moveaxis(counts, 1, 0)
        total = np.where(true > 0, true + voted, np.inf)
        f1, share = 2 * right / total, 1 / total / (true > 0).sum(axis=-1, keepdims=True)
        own = (2.0 * (truth == predicted) - f1[rows, truth]) * share[rows, truth]
        other = np.where(predicted >= 0, f1[rows, predicted] * share[rows, predicted], 0.0)
        return counts, cast(Floats, np.where(truth >= 0, own - other, 0.0))


@dataclass(frozen=True)
class Figure:
    """A figure with its interval, its null and what equivalence rests on.

    Attributes
    ----------
    estimate
        Value and interval.
    null
        95% of the figure's values under permuted labels.
    equivalence_p
        Of two one-sided tests that a gain lies within the margin; None for a score.
    """

    estimate: Estimate
    null: Null
    equivalence_p: float | None = None

    @property
    def above_null(self) -> bool:
        """Whether the figure is more than labels dealt out at random give."""
        return self.estimate.value is not None and (
            self.null.high is None or self.estimate.value > self.null.high
        )


def score(ballot: Ballot, neighbours: Ints) -> Figure:
    """Macro-F1 of the vote of each place's nearest places of other patients.

    Parameters
    ----------
    ballot
        The places' labels.
    neighbours
        [n, k] row numbers, nearest first; −1 where there are too few.
    """
    counts = ballot.counts(neighbours)
    null, influence = ballot.permuted_counts(neighbours)
    value = float(macro_f1(counts.sum(axis=0)))
    draws = _widened(
        ballot, value, macro_f1(np.tensordot(ballot.weights, counts, 1)), null, influence
    )
    low, high = percentile_interval(draws)
    if np.ptp(draws) < _SAME:
        # Where all draws agree the bootstrap sees no spread; the binomial over patients does.
        low, high = binomial_interval(value * ballot.n_patients, ballot.n_patients)
    if low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)
    estimate = Estimate(value, low, high, ballot.n, ballot.n_patients)
    return Figure(estimate, Null(*percentile_interval(macro_f1(null))))


def gain(ballot: Ballot, neighbours: Ints, over: Ints, margin: float) -> Figure:
    """How much macro-F1 one arm gains over another on the same places.

    ``gain = macro-F1(arm) − macro-F1(other)``. Patients are resampled as queries, the same for both
    arms; draws are centred on the gain and widened by the root of the design effect (how much more
    the gain varies under permuted labels than queries taken as independent say), since a patient is
    also others' neighbour.

    Where the arms give every place the same neighbours the gain is zero by construction. Else the
    interval is at least as wide as the exact binomial one of the patients who gain beyond those who
    lose (:func:`exact_reach`): resampling sees no spread where few patients differ.

    Parameters
    ----------
    ballot
        The places' labels.
    neighbours, over
        [n, k] of both arms.
    margin
        Gains within ± this count as none.

    Returns
    -------
    Figure
        The gain; ``equivalence_p`` from two one-sided tests at ± margin (:func:`tost_p`), never below
        the exact binomial one, that as few of P patients differ on balance where a share of the
        margin does.
    """
    from scipy.stats import binom

    support = (ballot.n, ballot.n_patients)
    null, influence = ballot.permuted_counts(neighbours)
    other_null, other_influence = ballot.permuted_counts(over)
    by_chance = Null(*percentile_interval(macro_f1(null) - macro_f1(other_null)))
    if np.array_equal(neighbours, over):
        return Figure(Estimate(0.0, 0.0, 0.0, *support), by_chance, 0.0)
    counts, others = ballot.counts(neighbours), ballot.counts(over)
    value = float(macro_f1(counts.sum(axis=0)) - macro_f1(others.sum(axis=0)))
    draws = _widened(
        ballot,
        value,
        macro_f1(np.tensordot(ballot.weights, counts, 1))
        - macro_f1(np.tensordot(ballot.weights, others, 1)),
        null,
        influence - other_influence,
        other_null,
    )
    more = (counts - others)[:, 0].sum(axis=-1)  # places named rightly, per patient
    net = int((more > 0).sum()) - int((more < 0).sum())
    p = max(
        tost_p(value, float(np.nanstd(draws, ddof=1)), ballot.n_patients - 1, margin),
        float(binom.cdf(abs(net), ballot.n_patients, margin)),
    )
    low, high = percentile_interval(draws)
    if low is not None and high is not None:
        least, most = exact_reach(net, ballot.n_patients)
        low, high = min(low, least), max(high, most)
    return Figure(Estimate(value, low, high, *support), by_chance, p)


def exact_reach(net: int, n_patients: int) -> tuple[float, float]:
    """Ends that an interval of a gain must reach, from the patients who gain less those who lose.

    The upper end is the exact binomial one of a share of net > 0 of P patients, and where none gain
    1 − 0.025^(1/P), however many lose: P patients can exclude no less, so that a loss never makes a
    pass easier. The lower end is that of the share: negative, unless more gain than lose.

    Examples
    --------
    >>> [[round(end, 3) for end in exact_reach(net, 24)] for net in (-1, 0, 1)]
    [[-0.211, 0.142], [-0.142, 0.142], [0.001, 0.211]]
    """
    _, high = binomial_interval(max(net, 0), n_patients)
    if net > 0:
        return binomial_interval(net, n_patients)[0], high
    return -binomial_interval(-net, n_patients)[1], high


def _widened(
    ballot: Ballot,
    value: float,
    draws: Floats,
    null: Floats,
    influence: Floats,
    other_null: Floats | None = None,
) -> Floats:
    """Draws centred on the figure and stretched by the root of the design effect, at least 1.

    The effect is Var over permutations of the figure / mean of Σ_patients (influence)².
    """
    figures = macro_f1(null) - (0.0 if other_null is None else macro_f1(other_null))
    own = sum_by_patient(influence.T, ballot.patients, ballot.shape[0])
    independent = float((own**2).sum(axis=0).mean())
    effect = float(np.nanvar(figures, ddof=1)) / independent if independent > 0 else 1.0
    return cast(Floats, value + np.sqrt(max(effect, 1.0)) * (draws - np.nanmean(draws)))


def tost_p(value: float, standard_error: float, freedom: int, margin: float) -> float:
    """Larger p of two one-sided t-tests that a figure lies outside ± margin (Schuirmann 1987).

    Examples
    --------
    >>> round(tost_p(0.0, 0.02, 30, 0.05), 3), tost_p(0.05, 0.02, 30, 0.05)
    (0.009, 0.5)
    """
    from scipy.stats import t

    if standard_error == 0:
        return float(abs(value) >= margin)
    below = t.sf((value + margin) / standard_error, freedom)
    above = t.cdf((value - margin) / standard_error, freedom)
    return float(max(below, above))


def field_of_view(
    votes: pl.DataFrame, room: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn neighbours into the field-of-view rows of the measurements table.

    Per wider field, over the places that have room for it:

    - ``macro_f1`` per arm: leave-one-patient-out vote of the k nearest places;
    - ``macro_f1_gain`` of each arm over the tile alone;
    - ``macro_f1_gain_same_tissue``: over the mean of the sub-tiles that cover the same field, so that
      tissue and bytes are equal and only the view across sub-tiles differs;
    - ``macro_f1_gain_same_field``: native size over the same field resized;
    - ``gain_equivalence_p``: two one-sided tests that the gain of the whole field lies within
      ± ``equivalence_margin``;
    - ``forward_passes``, ``megapixels_forwarded``, ``megapixels_read`` for one place.

    Signatures, at ``signature_field``: the gain of the whole field over the tile (as claimed), and
    over the mean of its sub-tiles (tissue held fixed). A trustworthy encoder lies below the threshold:
    it loses nothing for seeing a tile.

    Parameters
    ----------
    votes
        From :func:`field_votes`.
    room
        From :func:`choose_field_pool`.
    parameters
        The experiment's.
    encoder
        Name for the table.
    """
    rows = _Rows(FieldParameters.parse(parameters), encoder)
    return measurement_table(
        row
        for field in room["field"]
        for row in rows.of_field(
            field,
            votes.filter(pl.col("field") == field),
            room.row(by_predicate=pl.col("field") == field, named=True),
        )
    )


@dataclass(frozen=True)
class _Rows:
    """Builds the rows of the measurements table."""

    told: FieldParameters
    encoder: str

    def of_field(
        self, field: str, votes: pl.DataFrame, room: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        if votes.is_empty():
            yield from self.undefined(field, _no_room(field, room), 0, 0)
            return
        tile = votes.filter(pl.col("arm") == TILE)
        ballot = Ballot.of(tile["label"].to_numpy(), tile["patient_id"].to_numpy(), self.told)
        if ballot.problem:
            yield from self.undefined(field, ballot.problem, ballot.n, ballot.n_patients)
            return
        arms = {arm: votes.filter(pl.col("arm") == arm) for arm in ARMS}
        found = {
            arm: np.array(rows["neighbours"].to_list(), np.int64)
            for arm, rows in arms.items()
            if not rows["neighbours"].null_count()
        }
        scores = {arm: score(ballot, neighbours) for arm, neighbours in found.items()}
        for arm in ARMS:
            if arm in scores:
                yield self.row("macro_f1", field, {"arm": arm}, scores[arm])
        for contrast in CONTRASTS:
            yield from self.of_contrast(field, contrast, ballot, found, scores, arms)
        yield from self.costs(
            field, {arm: arms[arm] for arm in (WHOLE, MEAN, NATIVE) if arm in found}, ballot
        )

    def of_contrast(
        self,
        field: str,
        contrast: tuple[str, str, str],
        ballot: Ballot,
        found: Mapping[str, Ints],
        scores: Mapping[str, Figure],
        arms: Mapping[str, pl.DataFrame],
    ) -> Iterator[dict[str, Any]]:
        metric, arm, over = contrast
        setting = {"arm": arm, "over": over}
        missing = next((name for name in (arm, over) if name not in found), None)
        if missing:
            yield from self.undefined_row(
                metric, field, setting, arms[missing]["reason"][0], ballot.n, ballot.n_patients
            )
            return
        figure = gain(ballot, found[arm], found[over], self.told.margin)
        held = self.held(field, contrast)
        row = self.row(metric, field, setting, figure, held)
        if held and not (scores[arm].above_null or scores[over].above_null):
            row |= {"verdict": "not_applicable", "reason": _KNOWS_NOTHING}
        yield row
        if contrast in SIGNATURES:
            yield self.equivalence(field, setting, figure)

    def equivalence(self, field: str, setting: Mapping[str, Any], figure: Figure) -> dict[str, Any]:
        p, margin = figure.equivalence_p, self.told.margin
        shown = p is not None and p < 0.05
        claim = f"a gain within {margin:g} is {'shown' if shown else 'not shown'} at the 5% level"
        estimate = Estimate(p, None, None, figure.estimate.n, figure.estimate.n_patients)
        told = {"margin": margin, **setting}
        return self.row(EQUIVALENCE, field, told, Figure(estimate, Null())) | {"reason": claim}

    def costs(
        self, field: str, arms: Mapping[str, pl.DataFrame], ballot: Ballot
    ) -> Iterator[dict[str, Any]]:
        """Yield what one vector costs; counted, so its interval is itself."""
        for arm, rows in arms.items():
            for metric in ("forward_passes", "megapixels_forwarded"):
                yield self.counted(metric, field, {"arm": arm}, rows[metric][0], ballot)
        read = arms[WHOLE]["megapixels_read"][0]
        yield self.counted("megapixels_read", field, {}, read, ballot)

    def counted(
        self, metric: str, field: str, setting: Mapping[str, Any], value: float, ballot: Ballot
    ) -> dict[str, Any]:
        n, n_patients = len(ballot.label), ballot.shape[0]
        figure = Figure(Estimate(value, value, value, n, n_patients), Null())
        return self.row(metric, field, setting, figure)

    def held(self, field: str, contrast: tuple[str, str, str]) -> dict[str, Any]:
        """Threshold and direction of a signature; nothing for the other rows."""
        if field != self.told.signature_field or contrast not in SIGNATURES:
            return {}
        threshold = self.told.thresholds.get(contrast[0])
        return {} if threshold is None else {"threshold": threshold, "direction": "below"}

    def row(
        self,
        metric: str,
        field: str,
        setting: Mapping[str, Any],
        figure: Figure,
        held: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        votes = {"k": self.told.k} if metric.startswith("macro_f1") else {}
        return measurement(
            experiment=EXPERIMENT,
            encoder=self.encoder,
            metric=metric,
            estimate=figure.estimate,
            setting={"field": field, **setting, **votes},
            null=figure.null,
            **(held or {}),
        )

    def undefined(
        self, field: str, reason: str, n: int, n_patients: int
    ) -> Iterator[dict[str, Any]]:
        """List the contrasts at a field that the cohort has no room or labels for."""
        for metric, arm, over in SIGNATURES:
            setting = {"arm": arm, "over": over}
            yield from self.undefined_row(metric, field, setting, reason, n, n_patients)

    def undefined_row(
        self,
        metric: str,
        field: str,
        setting: Mapping[str, Any],
        reason: str,
        n: int,
        n_patients: int,
    ) -> list[dict[str, Any]]:
        return not_applicable(
            experiment=EXPERIMENT,
            encoder=self.encoder,
            metrics=[metric],
            setting={"field": field, **setting, "k": self.told.k},
            reason=reason,
            n=n,
            n_patients=n_patients,
            **self.held(field, (metric, setting["arm"], setting["over"])),
        )


_KNOWS_NOTHING = (
    "neither arm tells labels apart better than chance, so there is nothing to gain or to lose: "
    "add patients, or see whether the encoder knows these labels at all"
)


def _no_room(field: str, room: Mapping[str, Any]) -> str:
    if room["n_slides_with_room"]:
        return (
            f"{room['n_slides_with_room']} slides have room for a field of {field} px, but none of "
            "them has embedded fields: see why its slides failed"
        )
    return (
        f"none of {room['n_slides']} slides has room for a field of {field} px around a tile "
        f"({room['reason'] or 'no tiles'})"
    )
