"""Tiles that show how a check fails, for the report to draw: their places, and no tile's pixels.

- ``rotation``: the tiles that lose most of their neighbours when all are rotated by 90°, the neighbours
  that they lose and those that take their place;
- ``robustness_index`` and ``robustness_margins``: the tiles whose nearest of another label in the same
  center is nearer than the nearest of the same label in another center by most (cosine similarity);
- ``adversarial``: the tiles that are classified correctly, also under noise, and whose margin falls
  most, to below 0, under the strongest attack of the size of the drop; what it adds is kept.

Neighbours are of other patients. Examples of one encoder are of different patients. They are the worst
cases and no sample: how often they occur is what the check measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    CLEAN,
    SIGN_NOISE,
    Adversarial,
    Variant,
    attacked_tiles,
    probe_of_fold,
)
from pathfm_kedro.pipelines.robustness.rotation import (
    QUARTER_TURN,
    ROTATED,
    Rotation,
    rotation_views,
)
from pathfm_kedro.statistics.bootstrap import patient_codes
from pathfm_kedro.statistics.mutual_knn import candidate_counts, nearest, shared, unit
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.tables import (
    Embeddings,
    chosen_vectors,
    stacked,
    tile_rows,
    to_schema,
    with_shards,
)
from pathfm_kedro.views import embedded_views

Ints = NDArray[np.int64]

#: One row per tile of an example. part: what it is in the example; angle: by which it is shown rotated;
#: similarity: cosine to the example's first tile, null where neighbours are ranked by another distance;
#: read_as: label that a probe gives; change: grey levels added, int8 [side, side, 3] row by row;
#: times: by what the change is multiplied where it is shown without the tile, else null.
EXAMPLES_SCHEMA: dict[str, pl.DataType] = {
    "experiment": pl.String(),
    "encoder": pl.String(),
    "example": pl.Int64(),
    "part": pl.String(),
    "tile_id": pl.String(),
    "slide_id": pl.String(),
    "x": pl.Int64(),
    "y": pl.Int64(),
    "field_um": pl.Float64(),
    "angle": pl.Int64(),
    "similarity": pl.Float64(),
    "read_as": pl.String(),
    "change": pl.Binary(),
    "times": pl.Int64(),
}
#: Examples of an encoder: more are not looked at.
N_EXAMPLES = 3
#: Neighbours shown of those lost, and of those in their place.
_SHOWN = 2
#: Tiles among which examples are looked for: every pair of them is compared.
_MOST_TILES = 2_000
#: Grey levels to either side of the middle: what a change is multiplied to fill.
_HALF_RANGE = 127


def rotation_examples(
    views: Embeddings, pool: pl.DataFrame, parameters: dict[str, Any], *, name: str
) -> pl.DataFrame:
    """Tiles that keep fewest neighbours when they are rotated by 90°.

    Parameters
    ----------
    views
        Vectors of the rotated tiles.
    pool
        The tiles.
    parameters
        Of the experiment ``rotation``.
    name
        The encoder.

    Returns
    -------
    DataFrame
        Columns :data:`EXAMPLES_SCHEMA`.
    """
    p = read_parameters(Rotation, "rotation", parameters)
    found = embedded_views(views, pool, rotation_views(p, 1).settings, "rotation")
    k, tiles = p.k[0], found.tiles
    patients, _ = patient_codes(tiles["patient_id"].to_numpy())
    if tiles.is_empty() or candidate_counts(patients).min() < k:
        return pl.DataFrame(schema=EXAMPLES_SCHEMA)
    before, after = (
        nearest(found.at(ROTATED, angle=angle), patients, k, p.distances[0])
        for angle in (0, QUARTER_TURN)
    )
    kept = shared(before, after)
    rows: list[dict[str, Any]] = []
    for number, tile in enumerate(_worst(-kept, patients, kept < 1), 1):
        lost = [i for i in before[tile] if i not in after[tile]][:_SHOWN]
        gained = [i for i in after[tile] if i not in before[tile]][:_SHOWN]
        parts = [("tile", tile, 0), ("turned", tile, QUARTER_TURN)]
        parts += [("lost", i, 0) for i in lost] + [("gained", i, QUARTER_TURN) for i in gained]
        rows += [
            {**_place(tiles, i), "example": number, "part": part, "angle": angle}
            for part, i, angle in parts
        ]
    return _table(rows, "rotation", name)


def center_examples(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    *,
    name: str,
    experiments: Sequence[str],
) -> list[pl.DataFrame]:
    """Tiles to which their own center is nearer than their label elsewhere.

    Parameters
    ----------
    slides, tiles, embeddings
        The tables, and vectors of all tiles.
    name
        The encoder.
    experiments
        Which checks they are shown with.

    Returns
    -------
    list of DataFrame
        The same for each experiment, columns :data:`EXAMPLES_SCHEMA`.
    """
    rows = tile_rows(slides, tiles, embeddings.slide_ids)
    n = min(rows.height, _MOST_TILES)
    chosen = np.unique(np.linspace(0, rows.height - 1, n).astype(np.int64)) if n else np.arange(0)
    vectors = unit(chosen_vectors(rows, chosen, embeddings))
    own = rows[chosen]
    codes = {
        name: patient_codes(own[name].fill_null("").to_numpy().astype(str))[0]
        for name in ("patient_id", "center", "label")
    }
    other, center, label = (
        codes["patient_id"][:, None] != codes["patient_id"],
        codes["center"][:, None] == codes["center"],
        codes["label"][:, None] == codes["label"],
    )
    similarity = vectors @ vectors.T
    beside = np.where(other & center & ~label, similarity, -np.inf)
    elsewhere = np.where(other & ~center & label, similarity, -np.inf)
    both = np.isfinite(beside).any(axis=1) & np.isfinite(elsewhere).any(axis=1)
    excess = np.full(len(own), -np.inf)
    excess[both] = beside[both].max(axis=1) - elsewhere[both].max(axis=1)
    shown: list[dict[str, Any]] = []
    for number, tile in enumerate(_worst(excess, codes["patient_id"], excess > 0), 1):
        shown.append({**_place(own, tile), "example": number, "part": "tile", "angle": 0})
        for part, near in (("same_center", beside), ("same_label", elsewhere)):
            i = int(near[tile].argmax())
            role = {"example": number, "part": part, "angle": 0, "similarity": near[tile, i]}
            shown.append({**_place(own, i), **role})
    return [_table(shown, experiment, name) for experiment in experiments]


def adversarial_examples(
    attacks: Embeddings,
    pool: pl.DataFrame,
    probes: pl.DataFrame,
    parameters: dict[str, Any],
    *,
    name: str,
) -> pl.DataFrame:
    """Tiles that noise leaves alone and an attack of the same size turns.

    Parameters
    ----------
    attacks, pool, probes
        As of :func:`~.adversarial.adversarial_statistics`.
    parameters
        Of the experiment ``adversarial``.
    name
        The encoder.

    Returns
    -------
    DataFrame
        Columns :data:`EXAMPLES_SCHEMA`: of each example the tile, the attacked tile and the change.
    """
    p = read_parameters(Adversarial, "adversarial", parameters)
    tiles = with_shards(attacked_tiles(pool, probes), attacks)
    if tiles.is_empty() or not (changes := stacked(tiles, attacks, "change")).shape[1]:
        return pl.DataFrame(schema=EXAMPLES_SCHEMA)
    variants, size = [*p.noises, *p.white_box], p.drop_epsilon
    asked = Variant(CLEAN, 0), Variant(SIGN_NOISE, size), Variant(p.strongest, size)
    places = [variants.index(variant) for variant in asked]
    clean, noisy, attacked = stacked(tiles, attacks, "margin")[:, places].T
    patients, _ = patient_codes(tiles["patient_id"].to_numpy())
    turned = (clean > 0) & (noisy > 0) & (attacked <= 0)
    vectors = stacked(tiles, attacks)[:, [places[0], places[-1]]]
    rows: list[dict[str, Any]] = []
    lost = np.where(turned, clean - attacked, -np.inf)
    for number, tile in enumerate(_worst(lost, patients, turned), 1):
        probe = probe_of_fold(probes, tiles["fold"][tile])
        before, after = (probe.labels[i] for i in probe.logits(vectors[tile]).argmax(axis=-1))
        change = {"change": changes[tile, 0].astype(np.int8).tobytes()}
        place = {**_place(tiles, tile), "example": number, "angle": 0}
        rows += [
            {**place, "part": "tile", "read_as": before},
            {**place, "part": "attacked", "read_as": after, **change},
            {**place, "part": "difference", "times": _HALF_RANGE // size, **change},
        ]
    return _table(rows, "adversarial", name)


def combine_examples(*tables: pl.DataFrame) -> pl.DataFrame:
    """Examples of all experiments and encoders, one below the other."""
    return pl.concat([pl.DataFrame(schema=EXAMPLES_SCHEMA), *tables])


def _worst(
    badness: NDArray[np.floating[Any]], patients: Ints, fails: NDArray[np.bool_]
) -> Iterator[int]:
    """The worst tiles that fail, of different patients; ties in the order of rows."""
    seen: set[int] = set()
    for i in np.argsort(-badness, kind="stable"):
        if len(seen) == N_EXAMPLES or not fails[i]:
            return
        if int(patients[i]) not in seen:
            seen.add(int(patients[i]))
            yield int(i)


def _place(tiles: pl.DataFrame, row: int) -> dict[str, Any]:
    return tiles.select("tile_id", "slide_id", "x", "y", "field_um").row(row, named=True)


def _table(rows: Sequence[dict[str, Any]], experiment: str, encoder: str) -> pl.DataFrame:
    of = {"experiment": experiment, "encoder": encoder}
    return to_schema([{**row, **of} for row in rows], EXAMPLES_SCHEMA)
