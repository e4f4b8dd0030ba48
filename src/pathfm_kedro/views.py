"""Views of tiles (rotated, stained, shuffled …), embedded slide by slide and cached like any vectors.

A view is data: a kind, the settings of its pictures and the pixel function that makes them. Whatever
is computed from the pixels of chosen tiles, one job per slide does it (:class:`TileJob`), with one
header, and :func:`embedded_views` reads it back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.encoders.rivals import left_out
from pathfm_kedro.engine import EngineSettings, ShardPlan, cancellable
from pathfm_kedro.slides.fields import (
    Box,
    TileFields,
    kept_for_others,
    side_of_tiles,
    slide_fields,
)
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.kept_pixels import KEPT, Kept
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.tables import Embeddings, digests_by_slide, stacked, with_shards

#: Name of the tensor in a shard of views: [tiles, views, d].
VIEWS = "views"
#: Raised with any change of what views are made of the same pixels and arguments.
_REVISION = "2"
Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class View:
    """Pictures of one kind that are made of a tile.

    Attributes
    ----------
    kind
        Its name, such as ``rotated``.
    pixels
        Gives uint8 [pictures, s, s, 3] from a field uint8 [f, f, 3], the arguments and, where
        `random` is set, ``seed``, which comes from the tile's id. A function of a module, so that
        jobs can travel.
    arguments
        Of the function: with its name they decide the pixels, so they are part of the header.
    settings
        What tells one picture from another, such as ``({"angle": 0}, {"angle": 15})``; one for each.
    random
        Whether the function takes a seed.
    """

    kind: str
    pixels: Callable[..., Pixels]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[Mapping[str, Any], ...] = ({},)
    random: bool = False

    def make(self, tile: Pixels, seed: int) -> Pixels:
        """Pictures [len(settings), s, s, 3] of a field."""
        more = {"seed": seed} if self.random else {}
        return self.pixels(tile, **self.arguments, **more)

    def describe(self) -> list[Any]:
        """Everything that decides the pixels, as JSON."""
        return [self.kind, self.pixels.__name__, _plain(self.arguments), _plain(self.settings)]


class TileWork(Protocol):
    """What is computed from the pixels of a slide's tiles."""

    @property
    def side(self) -> tuple[int, int] | None:
        """Width and height of the field to read around each tile, px; None for the tile itself."""
        ...

    @property
    def batch(self) -> int:
        """Tiles in memory at once."""
        ...

    @property
    def units(self) -> str:
        """What the tensors hold."""
        ...

    def describe(self) -> Any:
        """Everything beside pixels and encoder that decides the result, as JSON."""
        ...

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """Tensors [n, …] of n tiles.

        Parameters
        ----------
        encoder
            None where only pixels are measured.
        pixels
            uint8 [n, h, w, 3].
        truth
            What was drawn on each tile of a phantom [n, m], else None.
        tile_ids
            Their ids.
        """
        ...


@runtime_checkable
class PartsWork(TileWork, Protocol):
    """Work on parts of a field: `compute` is given what was drawn at the centre of each [n, parts, m].

    Every field must lie on its slide.
    """

    @property
    def parts(self) -> Sequence[Box]:
        """Where the parts lie in the field."""
        ...


@runtime_checkable
class PicturesWork(TileWork, Protocol):
    """Work on pictures of each tile that the next encoder needs as they are."""

    @property
    def n_pictures(self) -> int:
        """Of a tile; none is larger than its field."""
        ...

    def keeping(self) -> PicturesWork:
        """The same work, whose pictures are kept for others."""
        ...


@dataclass(frozen=True)
class ViewSet:
    """Views that are made of each tile and embedded in one batch.

    Attributes
    ----------
    views
        In their order.
    side
        As of :class:`TileWork`.
    kept
        Whether the pictures are kept for others that want the same.
    """

    views: tuple[View, ...]
    side: tuple[int, int] | None = None
    batch: int = 1
    units: str = "tile x view x dimension, as the encoder gives it, not normalised"
    kept: bool = False

    @property
    def settings(self) -> tuple[Mapping[str, Any], ...]:
        """Of every picture: ``view`` and what its view says of it."""
        return tuple({"view": view.kind, **own} for view in self.views for own in view.settings)

    def describe(self) -> Any:
        """Everything that decides the views' pixels."""
        return [_REVISION, self.side, *(view.describe() for view in self.views)]

    @property
    def n_pictures(self) -> int:
        """Of a tile."""
        return len(self.settings)

    def keeping(self) -> ViewSet:
        """The same views, whose pictures are kept for others."""
        return replace(self, kept=True)

    @cached_property
    def _described(self) -> str:
        return json.dumps(self.describe(), sort_keys=True)

    def make(self, tile: Pixels, seed: int) -> Pixels:
        """All pictures [views, s, s, 3] of a field; kept ones are read-only."""

        def made() -> tuple[Pixels]:
            return (np.concatenate([view.make(tile, seed) for view in self.views]),)

        return (kept_pictures(tile, (self._described, seed), made) if self.kept else made())[0]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """``views`` [n, views, d].

        Raises
        ------
        ValueError
            If the encoder gives a number that is not finite.
        """
        assert encoder is not None
        rows = []
        for i, tile_id in enumerate(tile_ids):
            made = self.make(pixels[i], tile_seed(tile_id))
            truth_of_tile = None if truth is None else truth[i]
            rows.append(embed_tile(encoder, made, truth_of_tile, tile_id))
        return {VIEWS: np.stack(rows)}


def kept_pictures(tile: Pixels, what: Hashable, make: Callable[[], Kept]) -> Kept:
    """What is made of a field, kept by the field's content; read-only."""
    content = hashlib.blake2b(tile.tobytes(), digest_size=16).digest()
    return KEPT.get((content, tile.shape, what), make)


def unchanged(tile: Pixels) -> Pixels:
    """The tile as it is."""
    return tile[None]


def embed_tile(encoder: Encoder, pictures: Pixels, truth: Vectors | None, tile_id: str) -> Vectors:
    """Vectors [n, d] of n pictures of one tile; what was drawn on it, [m], is the same in each.

    Raises
    ------
    ValueError
        If the encoder gives a number that is not finite.
    """
    truth_of_tile = None if truth is None else np.repeat(truth[None], len(pictures), axis=0)
    # PyTorch warns of memory that may not be written to.
    own = pictures if pictures.flags.writeable else pictures.copy()
    vectors = encoder.embed(own, truth_of_tile)
    if not np.isfinite(vectors).all():
        raise ValueError(f"the encoder gives NaN or infinity on a view of tile {tile_id}")
    return vectors


def tile_seed(tile_id: str) -> int:
    """Seed of what is random in a tile's views: from its id, so that no order of work changes it.

    Examples
    --------
    >>> tile_seed("a") == tile_seed("a"), tile_seed("a") == tile_seed("b")
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(tile_id.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class TileJob:
    """What is computed from the tiles of one slide.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        Where the tiles lie.
    tile_ids
        Their ids, in the order of the fields.
    tiles_digest
        Digest of the ids.
    work
        What is computed.
    spec
        The encoder, or None.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tile_ids: tuple[str, ...]
    tiles_digest: str
    work: TileWork
    spec: EncoderSpec | None

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        header = {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "view": json.dumps(self.work.describe(), sort_keys=True),
            "units": self.work.units,
        }
        return header if self.spec is None else header | encoder_header(self.spec)

    def compute(self) -> Tensors:
        """The work's tensors of all tiles, one below the other."""
        encoder = None if self.spec is None else load_encoder(self.spec)
        found, start, of_parts = [], 0, None
        if isinstance(self.work, PartsWork):
            self.fields.refuse_over_edge()
            of_parts = self.fields.truth_of_parts(self.work.parts)
        for pixels, truth in cancellable(self.fields.batches(self.work.batch)):
            rows = slice(start, start + len(pixels))
            own = truth if of_parts is None else of_parts[rows]
            found.append(self.work.compute(encoder, pixels, own, self.tile_ids[rows]))
            start += len(pixels)
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def encoder_header(spec: EncoderSpec) -> dict[str, str]:
    """What a shard depends on of its encoder."""
    encoder = load_encoder(spec)
    preprocessing = json.dumps(dict(encoder.preprocessing), sort_keys=True)
    return {"encoder": encoder.fingerprint, "preprocessing": preprocessing}


def plan_tile_work(
    slides: pl.DataFrame,
    chosen: pl.DataFrame,
    files: SlideFiles,
    work_of: Callable[[pl.DataFrame], TileWork | None],
    spec: EncoderSpec | None,
    pixels: int,
    engine: Mapping[str, Any],
    title: str,
) -> ShardPlan:
    """One job per slide that has tiles among the chosen.

    Parameters
    ----------
    slides
        The slides table.
    chosen
        Tiles with tile_id, slide_id, x, y, field_um, mpp and whatever `work_of` looks at, in the
        order of the tiles table.
    files
        The cohort's folder.
    work_of
        Gives what is computed from the chosen tiles of one slide; None for nothing.
    spec
        The encoder, or None.
    pixels
        Side of a tile as read.
    engine
        Where jobs run.
    title
        What the progress bar says.
    """
    without = left_out(slides, spec)
    chosen = chosen.filter(~pl.col("slide_id").is_in(list(without)))
    digests = digests_by_slide(chosen)
    groups = {
        str(slide): rows for (slide,), rows in chosen.group_by("slide_id", maintain_order=True)
    }
    found = []
    for slide, fields in slide_fields(slides, chosen, files, pixels):
        work = work_of(groups[slide["slide_id"]])
        if work is not None:
            read = fields if work.side is None else fields.widened(*work.side)
            found.append((slide, read, work))
    kept = kept_for_others([(slide, fields) for slide, fields, _ in found])
    works = _sharing([(fields, work) for _, fields, work in found])
    jobs = []
    for (slide, fields), work in zip(kept, works, strict=True):
        name = slide["slide_id"]
        ids = tuple(groups[name]["tile_id"])
        jobs.append(TileJob(name, slide["fingerprint"], fields, ids, digests[name], work, spec))
    prepare = None if spec is None else partial(load_encoder, spec)
    return ShardPlan(jobs, EngineSettings(**engine), title, prepare, without)


def _sharing(works: Sequence[tuple[TileFields, TileWork]]) -> list[TileWork]:
    """Works that keep their pictures for other encoders, where those of all slides fit into memory."""
    n_bytes = sum(
        fields.nbytes * work.n_pictures for fields, work in works if isinstance(work, PicturesWork)
    )
    fits = KEPT.fits(n_bytes)
    return [
        work.keeping() if fits and isinstance(work, PicturesWork) else work for _, work in works
    ]


def plan_views(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *more: Any,
    name: str | None,
    work: Callable[..., TileWork | None],
    read: Callable[[Mapping[str, Any]], Any],
    title: str,
) -> ShardPlan:
    """One job per slide of the pool.

    Parameters
    ----------
    slides, tiles
        The tables.
    pool
        The tiles that are viewed, a part of `tiles`.
    files
        The cohort's folder.
    tile_parameters
        ``pixels``: side of a tile.
    engine
        Where jobs run.
    more
        The entry of ``encoders`` and the recorded runtimes (none where `name` is None), what `work`
        takes beside, and the experiment's parameters.
    name
        The encoder's; None where only pixels are measured.
    work
        ``(tiles of one slide, side of a tile in px, *beside, parameters) -> work``.
    read
        Reads and checks the parameters.
    title
        What the progress bar says.
    """
    spec = None
    if name is not None:
        entry, runtimes, *more = more  # type: ignore[assignment]
        spec = EncoderSpec.from_parameters(name, entry).with_runtime(runtimes[name])
    *beside, parameters = more
    pixels, p = side_of_tiles(tiles) or int(tile_parameters["pixels"]), read(parameters)
    return plan_tile_work(
        slides,
        pool_tiles(tiles, pool),
        files,
        lambda chosen: work(chosen, pixels, *beside, p),
        spec,
        pixels,
        engine,
        title if name is None else f"{title} with {name}",
    )


def pool_tiles(tiles: pl.DataFrame, pool: pl.DataFrame) -> pl.DataFrame:
    """Tiles of the pool with what the pool says of them, in the order of the tiles table."""
    more = [name for name in pool.columns if name not in tiles.columns]
    return tiles.join(
        pool.select("tile_id", *more), on="tile_id", how="inner", maintain_order="left"
    )


@dataclass(frozen=True)
class EmbeddedViews:
    """Vectors of tiles in every view.

    Attributes
    ----------
    tiles
        Rows of the pool whose slide was embedded.
    vectors
        [n, views, d], rows in the same order.
    settings
        Of every view, as :attr:`ViewSet.settings`.
    """

    tiles: pl.DataFrame
    vectors: NDArray[np.float32]
    settings: tuple[Mapping[str, Any], ...]

    def at(self, view: str, **setting: Any) -> NDArray[np.float32]:
        """Vectors [n, d] of one view.

        Raises
        ------
        KeyError
            If there is no such view, or more than one.
        """
        asked = {"view": view, **setting}
        places = [i for i, own in enumerate(self.settings) if asked.items() <= own.items()]
        if len(places) != 1:
            raise KeyError(f"{len(places)} views have the setting {asked}")
        return self.vectors[:, places[0]]

    def of(self, view: str) -> list[tuple[Mapping[str, Any], NDArray[np.float32]]]:
        """Setting without the view's name, and vectors [n, d], of each picture of a view."""
        return [
            ({k: v for k, v in own.items() if k != "view"}, self.vectors[:, i])
            for i, own in enumerate(self.settings)
            if own["view"] == view
        ]

    def part(self, keep: NDArray[np.bool_]) -> EmbeddedViews:
        """Some of the tiles."""
        return EmbeddedViews(self.tiles.filter(pl.Series(keep)), self.vectors[keep], self.settings)


def embedded_views(
    views: Embeddings, pool: pl.DataFrame, settings: Sequence[Mapping[str, Any]], experiment: str
) -> EmbeddedViews:
    """Read the vectors of a pool's views; tiles of slides without a shard are left out.

    Raises
    ------
    ValueError
        If the shards do not hold the expected tiles and views, or hold NaN or infinity.
    """
    present = with_shards(pool, views)
    if present.is_empty():
        return EmbeddedViews(present, np.zeros((0, len(settings), 0), np.float32), tuple(settings))
    stack = stacked(present, views, VIEWS)
    if stack.ndim != 3 or stack.shape[:2] != (present.height, len(settings)):
        raise ValueError(
            f"the views of {experiment} have shape {list(stack.shape)}, expected {present.height} "
            f"tiles and {len(settings)} views: embed the views again with these parameters"
        )
    finite = np.isfinite(stack).all(axis=(1, 2))
    if not finite.all():
        broken = present.filter(pl.Series(~finite))["tile_id"].head(3).to_list()
        raise ValueError(
            f"the views of {experiment} hold NaN or infinity for {int((~finite).sum())} tiles, such "
            f"as {broken}; check the encoder's precision and embed them again"
        )
    return EmbeddedViews(present, stack, tuple(settings))


def _plain(value: Any) -> Any:
    """Arguments as JSON: what describes itself does so."""
    if hasattr(value, "describe"):
        return value.describe()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
