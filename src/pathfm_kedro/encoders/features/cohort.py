"""Features of a cohort: the places that files bring, as tables of tiles, slide by slide."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.features.faults import (
    refuse_off_slide,
    refuse_other_encoder,
    unlike_most,
)
from pathfm_kedro.encoders.features.finding import list_feature_files, two_files
from pathfm_kedro.encoders.features.reading import read_features
from pathfm_kedro.encoders.features.slide_features import FeatureFileError, SlideFeatures, place
from pathfm_kedro.encoders.presets import refuse_other_dimension
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.engine import EngineSettings, Note, Outcome, map_in_order
from pathfm_kedro.engine.failures import refuse_too_many_failed
from pathfm_kedro.project import resolve_path
from pathfm_kedro.statistics.sampling import tiles_of_slide
from pathfm_kedro.statistics.tables import TILES_SCHEMA

logger = logging.getLogger(__name__)

#: As the tile pipeline makes it, and what the file is.
TILING_SCHEMA: dict[str, pl.DataType] = {
    "slide_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_mosaic": pl.Int64(),
    "tissue_mm2": pl.Float64(),
    "status": pl.String(),
    "reason": pl.String(),
    "level": pl.String(),
    "layout": pl.String(),
    "made_by": pl.String(),
    "dtype": pl.String(),
    "loss": pl.Float64(),
    "dimension": pl.Int64(),
    "field_px": pl.Float64(),
    "field_um": pl.Float64(),
}
#: Magnifications in whole numbers give tiles that differ by a tenth: from here they differ on purpose
#: or by mistake.
SAME_SIZE = 1.25
#: Without micrometres per level-0 pixel, places of a file in micrometres stay what they are.
_ONE_UM = 1.0
#: ``(colour clusters [n], positions [n, 2], share, seed) -> bool [n]``.
ChooseMosaic = Callable[[NDArray[np.int64], NDArray[np.int64], float, int], NDArray[np.bool_]]


@dataclass(frozen=True)
class FeatureFile:
    """The file of one slide, and how it is read.

    Attributes
    ----------
    slide_id
        The slide.
    paths
        Its files; there should be one.
    spec
        The entry.
    slide_mpp, width, height
        Of the slide, where known: micrometres per level-0 pixel, and level-0 pixels.
    """

    slide_id: str
    paths: tuple[Path, ...]
    spec: EncoderSpec
    slide_mpp: float | None = None
    width: int | None = None
    height: int | None = None

    @property
    def path(self) -> Path:
        """The one file.

        Raises
        ------
        FeatureFileError
            If there is none, or there are two.
        """
        if not self.paths:
            raise FeatureFileError(
                f"no file of features in '{Path(self.spec.features).name}' is named after the slide: "
                "add it, or leave the slide without this encoder"
            )
        if len(self.paths) > 1:
            raise FeatureFileError(two_files(self.slide_id, self.paths))
        return self.paths[0]

    def read(self) -> SlideFeatures:
        """Vectors and places, checked against entry and slide.

        Raises
        ------
        FeatureFileError
            If the file cannot be used.
        """
        found = read_features(
            self.path,
            slide_id=self.slide_id,
            slide_mpp=self.slide_mpp,
            patch_size=self.spec.patch_size,
            patch_level=self.spec.patch_level,
            model=self.spec.encoder,
        )
        refuse_other_encoder(found, self.spec.encoder or self.spec.name)
        if found.level == "tile" and found.x is None:
            # The slide's resolution stays unknown.
            found = replace(found.on_slide(_ONE_UM), slide_mpp=None)
        if self.width and self.height:
            refuse_off_slide(found, self.width, self.height, place(self.path))
        elif found.x is not None and found.y is not None and min(found.x.min(), found.y.min()) < 0:
            raise FeatureFileError(
                f"{place(self.path)}: tiles lie at negative places: coordinates must be upper left "
                "corners from the slide's own"
            )
        return found

    def digest(self) -> str:
        """SHA-256 of the file's content, or of all files of a folder."""
        path = self.path
        parts = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        whole = hashlib.sha256()
        for part in parts:
            whole.update(part.relative_to(path.parent).as_posix().encode())
            with part.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


def files_of_slides(slides: pl.DataFrame, spec: EncoderSpec) -> list[FeatureFile]:
    """The file of every usable slide, those without one too, sorted by slide.

    Parameters
    ----------
    slides
        The slides table.
    spec
        The entry.

    Raises
    ------
    FeatureFileError
        If the folder is missing or holds no features, or none of a slide of the cohort.
    """
    folder = resolve_path(spec.features)
    usable = slides.filter(pl.col("status") == "usable").sort("slide_id")
    listed = list_feature_files(folder, usable["slide_id"].to_list())
    if listed and listed.keys().isdisjoint(usable["slide_id"].to_list()):
        raise FeatureFileError(
            f"encoders.{spec.name}: none of the {len(listed)} files in '{folder.name}' is named after "
            f"a slide of the cohort: the first is about '{next(iter(listed))}', the manifest's first "
            f"slide_id is '{next(iter(usable['slide_id']), '')}'; name slides as the files are named"
        )
    return [
        FeatureFile(
            row["slide_id"],
            listed.get(row["slide_id"], ()),
            spec,
            row["mpp"],
            row["width"],
            row["height"],
        )
        for row in usable.to_dicts()
    ]


def tiles_of_features(
    slides: pl.DataFrame,
    encoder: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
    choose_mosaic: ChooseMosaic,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables of the tiles that an encoder's files have vectors of.

    Tiles stand in the order of the file. A slide with more than ``max_tiles_per_slide`` gives a sample,
    and the mosaic is chosen by place alone, since colours are not known. A vector of a whole slide is
    one tile at its corner.

    Parameters
    ----------
    slides
        The slides table.
    encoder
        The entry of ``encoders`` in the parameters.
    parameters
        ``tile``: max_tiles_per_slide, mosaic and seed.
    engine
        Where files are read.
    name
        The encoder's name.
    choose_mosaic
        Chooses the few tiles that stand for a slide.

    Returns
    -------
    tiles, tiling
        Columns :data:`~pathfm_kedro.statistics.tables.TILES_SCHEMA` and :data:`TILING_SCHEMA`; x and y
        in level-0 pixels, or in micrometres where files are in micrometres and the resolution of the
        slide is not known; tiling has a reason for every slide whose file cannot be used.

    Raises
    ------
    FeatureFileError
        If the folder holds no features of the cohort.
    ValueError
        If the entry names a preset whose vectors are of another length.
    TooManyFailedError
        If more files cannot be used than ``engine.max_failed_share`` allows.
    """
    from threadpoolctl import threadpool_limits

    spec = EncoderSpec.from_parameters(name, encoder)
    files = files_of_slides(slides, spec)
    settings = EngineSettings(**engine)

    def describe(file: FeatureFile) -> _Described:
        return _Described.of(file, file.read(), parameters, choose_mosaic)

    with threadpool_limits(1):
        outcomes = map_in_order(
            describe,
            files,
            settings,
            f"reading features of {name}",
            lambda found: Note(found.table.height),
        )
    reasons = _reasons(outcomes)
    refuse_too_many_failed({s: r for s, r in reasons.items() if r}, len(files), settings)
    good = [o.result for o in outcomes if not reasons[o.item.slide_id]]
    if good:
        refuse_other_dimension(name, encoder, good[0].about["dimension"])
    _warn_of_sizes(name, good)
    tiling = [_tiling_row(o.item.slide_id, o.result, reasons[o.item.slide_id]) for o in outcomes]
    tiles = pl.concat([pl.DataFrame(schema=TILES_SCHEMA), *(found.table for found in good)])
    return tiles, pl.DataFrame(tiling, schema=TILING_SCHEMA)


@dataclass(frozen=True)
class _Described:
    """What a file brings: its tiles, and what the tiling says of it."""

    table: pl.DataFrame
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        file: FeatureFile,
        found: SlideFeatures,
        parameters: Mapping[str, Any],
        choose_mosaic: ChooseMosaic,
    ) -> _Described:
        about = {
            "level": found.level,
            "layout": found.layout,
            "made_by": found.encoder,
            "dtype": found.dtype,
            "loss": found.loss,
            "dimension": found.dimension,
            # Without the slide's mpp it is all that is known of a tile's size.
            "field_px": found.field_px,
            "field_um": found.field_um,
        }
        return cls(_table(file, found, parameters, choose_mosaic), about)


def corners(found: SlideFeatures) -> NDArray[np.int64]:
    """[n, 2] upper left corners of a file's rows; of a whole slide its own."""
    if found.level == "slide" or found.x is None or found.y is None:
        return np.zeros((1, 2), np.int64)
    return np.stack([found.x, found.y], axis=1)


def _table(
    file: FeatureFile,
    found: SlideFeatures,
    parameters: Mapping[str, Any],
    choose_mosaic: ChooseMosaic,
) -> pl.DataFrame:
    places = corners(found)
    seed = int(parameters["seed"])
    limit = parameters["max_tiles_per_slide"]
    places = places[tiles_of_slide(len(places), limit, file.slide_id, seed)]
    field_um, mpp = found.field_um, found.mpp or found.slide_mpp or file.slide_mpp
    if found.level == "slide" and file.slide_mpp and file.width and file.height:
        field_um = max(file.width, file.height) * file.slide_mpp
    clusters = np.zeros(len(places), np.int64)
    share = float(parameters["mosaic"]["share"])
    return pl.DataFrame(
        {
            "tile_id": [f"{file.slide_id}@{x}_{y}" for x, y in places.tolist()],
            "slide_id": [file.slide_id] * len(places),
            "x": places[:, 0],
            "y": places[:, 1],
            "field_um": [field_um] * len(places),
            "mpp": [mpp] * len(places),
            "tissue_fraction": [None] * len(places),
            "in_mosaic": choose_mosaic(clusters, places, share, seed),
            "colour_cluster": clusters,
        },
        schema=TILES_SCHEMA,
    )


def _reasons(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Why a slide's file cannot be used, empty where it can; those unlike the others among them."""
    read = {o.item.slide_id: o.result.about for o in outcomes if o.reason is None}
    unlike = unlike_most({s: (about["level"], about["dimension"]) for s, about in read.items()})
    return {
        o.item.slide_id: f"{place(o.item.path)}: {unlike[o.item.slide_id]}"
        if o.item.slide_id in unlike
        else plain_reason(o.reason or "")
        for o in outcomes
    }


def _warn_of_sizes(name: str, found: Sequence[_Described]) -> None:
    """Tiles of several sizes are of several magnifications, which an encoder follows."""
    sizes = [size for each in found if (size := each.about["field_um"]) is not None]
    if sizes and max(sizes) > SAME_SIZE * min(sizes):
        logger.warning(
            "encoders.%s: tiles are %.4g to %.4g µm wide, so that slides were shown at several "
            "magnifications: cut tiles of one size in µm, unless this is what you ask about",
            name,
            min(sizes),
            max(sizes),
        )


def plain_reason(reason: str) -> str:
    """Without the class of our own errors, which says nothing to a reader."""
    return reason.removeprefix(f"{FeatureFileError.__name__}: ").removeprefix("ValueError: ")


def _tiling_row(slide_id: str, found: _Described | None, reason: str) -> dict[str, Any]:
    used = None if found is None or reason else found.table
    return {
        "slide_id": slide_id,
        "n_tiles": 0 if used is None else used.height,
        "n_mosaic": 0 if used is None else int(used["in_mosaic"].sum()),
        "status": "unusable" if reason else "tiled",
        "reason": reason,
        **({} if found is None else found.about),
    }
