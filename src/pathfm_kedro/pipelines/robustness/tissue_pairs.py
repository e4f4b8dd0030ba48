"""Which slides show the same tissue, how they lie on each other, and their tiles of the same places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from pathfm_kedro.engine import EngineSettings, Note, map_in_order
from pathfm_kedro.slides.fields import side_of_tiles
from pathfm_kedro.slides.files import SlideFiles, reason_for_table
from pathfm_kedro.slides.registration import (
    Fit,
    Map,
    Registration,
    density,
    measured_fit,
    register,
)
from pathfm_kedro.slides.tissue import read_overview
from pathfm_kedro.slides.views import wide_side
from pathfm_kedro.statistics.sampling import shuffled_turns
from pathfm_kedro.statistics.tables import to_schema

#: A slide that shows a reference slide's tissue again: the registration (level-0 px, see
#: :class:`~pathfm_kedro.slides.registration.Registration`), whether it was ``given`` in the manifest or
#: ``found``, how well it fits, and why it is ``unregistered``.
TISSUE_PAIRS_SCHEMA: dict[str, pl.DataType] = {
    "slide_id": pl.String(),
    "reference_id": pl.String(),
    "source": pl.String(),
    "offset_x": pl.Float64(),
    "offset_y": pl.Float64(),
    "rotation_deg": pl.Float64(),
    "flip": pl.Boolean(),
    "scale": pl.Float64(),
    "correlation": pl.Float64(),
    "residual_um": pl.Float64(),
    "um_per_px": pl.Float64(),
    "status": pl.String(),
    "reason": pl.String(),
}

#: Tiles of slides that show the same tissue: a tile of the tiles table with what its slide carries, the
#: tile of the reference slide whose place it shows, the part of the tissue, and how the slide is
#: turned.
PAIRED_TILES_SCHEMA: dict[str, pl.DataType] = {
    "tile_id": pl.String(),
    "slide_id": pl.String(),
    "patient_id": pl.String(),
    "center": pl.String(),
    "organ": pl.String(),
    "label": pl.String(),
    "scanner": pl.String(),
    "stain": pl.String(),
    "x": pl.Int64(),
    "y": pl.Int64(),
    "field_um": pl.Float64(),
    "mpp": pl.Float64(),
    "reference_id": pl.String(),
    "place": pl.String(),
    "region": pl.String(),
    "rotation_deg": pl.Float64(),
    "flip": pl.Boolean(),
}

#: Parts of a tissue, a side: 16 units for an interval where there is one patient.
_REGIONS = 4
#: Largest picture in which slides are registered: its spectra take 100 MB.
_MOST_SIDE = 2048
#: Turned by less, a corner of a tile of 224 px is off by a tenth of a px: it is read as it lies.
LEAST_DEGREES = 0.04
_CARRIED = ("patient_id", "center", "organ", "label", "scanner", "stain")


@dataclass(frozen=True)
class _Pair:
    repeat: Mapping[str, Any]
    reference: Mapping[str, Any]

    @property
    def slide_id(self) -> str:
        """For the log."""
        return str(self.repeat["slide_id"])


def register_repeats(
    slides: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> pl.DataFrame:
    """Find how each slide that shows tissue again lies on its reference slide, or take what is given.

    Parameters
    ----------
    slides
        The slides table; of those with status ``repeat`` ``same_tissue_as`` names the reference.
    files
        The cohort's folder.
    parameters
        ``same_tissue``: registration_mpp, min_correlation, max_residual_um.
    engine
        Where jobs run.

    Returns
    -------
    DataFrame
        Columns :data:`TISSUE_PAIRS_SCHEMA`, one row per repeat, sorted.
    """
    if "same_tissue_as" not in slides.columns:
        return pl.DataFrame(schema=TISSUE_PAIRS_SCHEMA)
    rows = {row["slide_id"]: row for row in slides.to_dicts()}
    pairs = [
        _Pair(row, rows[row["same_tissue_as"]])
        for row in slides.filter(status="repeat").sort("slide_id").to_dicts()
    ]
    outcomes = map_in_order(
        partial(_registered, files=files, parameters=parameters),
        pairs,
        EngineSettings(**engine),
        "registering slides",
        lambda found: Note(reason=found["reason"]),
    )
    found = []
    for outcome in outcomes:
        if outcome.reason is None:
            found.append(outcome.result)
            continue
        reason = reason_for_table(outcome.reason, outcome.item.repeat)
        found.append(_row(outcome.item, reason=reason))
    return to_schema(found, TISSUE_PAIRS_SCHEMA)


def _row(pair: _Pair, reason: str = "", **more: Any) -> dict[str, Any]:
    return {
        "slide_id": pair.slide_id,
        "reference_id": pair.reference["slide_id"],
        "status": "unregistered" if reason else "registered",
        "reason": reason,
        **more,
    }


def _registered(pair: _Pair, files: SlideFiles, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if pair.reference["status"] != "usable":
        return _row(pair, f"its reference slide cannot be used: {pair.reference['reason']}")
    if pair.reference["path"] == pair.repeat["path"]:
        return _row(
            pair, "it is the file of its reference slide: name the file of the other scan in 'path'"
        )
    longest = max(
        row["mpp"] * max(row["width"], row["height"]) for row in (pair.reference, pair.repeat)
    )
    pitch = max(
        float(parameters["registration_mpp"]),
        longest / _MOST_SIDE,
        pair.reference["mpp"],
        pair.repeat["mpp"],
    )
    reference, repeat = (_picture(row, files, pitch) for row in (pair.reference, pair.repeat))
    given = _given(pair)
    if given is None:
        fit = register(reference, repeat)
        registration = _in_pixels(fit.registration, pair, pitch)
    else:
        registration = given
        fit = measured_fit(reference, repeat, _in_pictures(given, pair, pitch))
    return _row(
        pair,
        _apart(fit) if given else _misfit(fit, pitch, parameters),
        source="given" if given else "found",
        offset_x=registration.offset_x,
        offset_y=registration.offset_y,
        rotation_deg=registration.rotation_deg,
        flip=registration.flip,
        scale=registration.scale,
        correlation=None if math.isnan(fit.correlation) else fit.correlation,
        residual_um=None if math.isnan(fit.residual_px) else fit.residual_px * pitch,
        um_per_px=pitch,
    )


def _apart(fit: Fit) -> str:
    """Why a registration that was given is of no use; empty where tissue lies on tissue."""
    if not math.isnan(fit.correlation):
        return ""
    return (
        "its registration puts no tissue of it onto tissue of the reference slide: correct offset_x "
        "and offset_y (level-0 px of the reference slide), rotation_deg, flip and scale, or leave them "
        "empty and it is looked for"
    )


def _misfit(fit: Fit, pitch: float, parameters: Mapping[str, Any]) -> str:
    """Why a registration that was found cannot be believed; empty where it can."""
    mend = (
        "check that both slides show the same tissue, or give offset_x, offset_y and rotation_deg in "
        "the manifest"
    )
    least, most = float(parameters["min_correlation"]), float(parameters["max_residual_um"])
    if not fit.correlation >= least:
        return (
            f"no rotation and shift brings its fine structure onto the reference slide's (correlation "
            f"{fit.correlation:.2f}, {least:g} is asked for): {mend}"
        )
    residual = fit.residual_px * pitch
    if residual > most:
        return (
            f"half of the tissue lies {residual:.0f} micrometres or more away from where the reference "
            f"slide has it ({most:g} are allowed): {mend}"
        )
    return ""


def _picture(row: Mapping[str, Any], files: SlideFiles, pitch: float) -> Map:
    """Optical density of a slide at exactly so many micrometres per px."""
    from PIL import Image

    with files.open(row["path"]) as reader:
        overview = read_overview(reader, row["mpp"], pitch)
    # The overview's sides are whole px of about this pitch.
    columns, rows = (max(1, round(row[side] * row["mpp"] / pitch)) for side in ("width", "height"))
    image = Image.fromarray(density(overview.image))
    if image.size == (columns, rows):
        return np.asarray(image, np.float32)
    return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR), np.float32)


def _given(pair: _Pair) -> Registration | None:
    """The registration that the manifest gives."""
    known = pair.repeat
    if known.get("offset_x") is None or known.get("offset_y") is None:
        return None
    scale = known.get("scale")
    return Registration(
        known["offset_x"],
        known["offset_y"],
        known.get("rotation_deg") or 0.0,
        bool(known.get("flip")),
        known["mpp"] / pair.reference["mpp"] if scale is None else scale,
    )


def _in_pixels(found: Registration, pair: _Pair, pitch: float) -> Registration:
    """A registration of two pictures of one pitch in level-0 px."""
    per_px = pitch / pair.reference["mpp"]
    return Registration(
        found.offset_x * per_px,
        found.offset_y * per_px,
        found.rotation_deg,
        found.flip,
        found.scale * pair.repeat["mpp"] / pair.reference["mpp"],
    )


def _in_pictures(given: Registration, pair: _Pair, pitch: float) -> Registration:
    per_px = pair.reference["mpp"] / pitch
    return Registration(
        given.offset_x * per_px,
        given.offset_y * per_px,
        given.rotation_deg,
        given.flip,
        given.scale * pair.reference["mpp"] / pair.repeat["mpp"],
    )


def choose_paired_tiles(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pairs: pl.DataFrame,
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Tiles of the reference slides, and of each registered repeat the tiles around the same places.

    Of each tissue ``max_places`` tiles are sampled, those first that most repeats have room for: a tile
    of a slide that is turned needs the field that a rotation takes, and only what lies on the slide is
    compared.

    Parameters
    ----------
    slides, tiles
        The tables.
    pairs
        From :func:`register_repeats`.
    parameters
        ``same_tissue``: max_places, seed.

    Returns
    -------
    DataFrame
        Columns :data:`PAIRED_TILES_SCHEMA`, slides in sorted order.
    """
    known = {row["slide_id"]: row for row in slides.to_dicts()}
    registered = pairs.filter(status="registered")
    of_references = dict(tiles.group_by("slide_id"))
    most, seed = int(parameters["max_places"]), int(parameters["seed"])
    pixels = side_of_tiles(tiles)
    found: list[pl.DataFrame] = []
    for (name,), repeats in registered.group_by("reference_id", maintain_order=True):
        places = of_references.get((name,))
        if places is None or pixels is None:
            continue
        shown = [
            _on_repeat(places, known[str(name)], known[row["slide_id"]], row, pixels)
            for row in repeats.to_dicts()
        ]
        counts = pl.concat(shown).group_by("place").len()
        in_turn = shuffled_turns(places.sort("tile_id"), [["slide_id"]], seed)
        chosen = (
            in_turn.join(
                counts, left_on="tile_id", right_on="place", how="inner", maintain_order="left"
            )
            .sort("len", descending=True, maintain_order=True)["tile_id"]
            .head(most)
            .to_list()
        )
        own = _as_placed(places, known[str(name)])
        found += [part.filter(pl.col("place").is_in(chosen)) for part in (own, *shown)]
    if not found:
        return pl.DataFrame(schema=PAIRED_TILES_SCHEMA)
    rows = pl.concat(found).unique("tile_id", keep="first", maintain_order=True)
    carried = [
        pl.col("slide_id").replace_strict(
            {slide: row.get(column) for slide, row in known.items()}, return_dtype=pl.String()
        ).alias(column)
        for column in _CARRIED
    ]  # fmt: skip
    return to_schema(rows.with_columns(carried).sort("slide_id", "place"), PAIRED_TILES_SCHEMA)


def _as_placed(places: pl.DataFrame, slide: Mapping[str, Any]) -> pl.DataFrame:
    """Tiles of the reference slide as the places of its tissue."""
    across, down = (
        ((pl.col(axis) * _REGIONS / (slide[side] or 1)).floor().clip(0, _REGIONS - 1)).cast(
            pl.Int64
        )
        for axis, side in (("x", "width"), ("y", "height"))
    )
    return places.select(
        "tile_id",
        "slide_id",
        "x",
        "y",
        "field_um",
        "mpp",
        reference_id="slide_id",
        place="tile_id",
        region=pl.format("{} {}-{}", "slide_id", across, down),
        rotation_deg=pl.lit(0.0),
        flip=pl.lit(False),
    )


def _on_repeat(
    places: pl.DataFrame,
    reference: Mapping[str, Any],
    repeat: Mapping[str, Any],
    pair: Mapping[str, Any],
    pixels: int,
) -> pl.DataFrame:
    """The same places on a slide that shows the tissue again, where it has room for them."""
    registration = Registration(
        pair["offset_x"], pair["offset_y"], pair["rotation_deg"], pair["flip"], pair["scale"]
    )
    field_um = places["field_um"].to_numpy()
    corners = places.select("x", "y").to_numpy().astype(np.float64)
    centres = registration.to_repeat(corners + field_um[:, None] / reference["mpp"] / 2)
    side = field_um / repeat["mpp"]
    turned = pair["flip"] or abs(pair["rotation_deg"]) >= LEAST_DEGREES
    reach = side * (wide_side(pixels) / pixels if turned else 1.0) / 2
    room = (
        (centres - reach[:, None] >= 0).all(axis=1)
        & (centres[:, 0] + reach <= repeat["width"])
        & (centres[:, 1] + reach <= repeat["height"])
    )
    x, y = np.rint(centres - side[:, None] / 2).astype(np.int64).T
    own = str(repeat["slide_id"])
    return (
        _as_placed(places, reference)
        .with_columns(
            tile_id=pl.Series([f"{own}@{a}_{b}" for a, b in zip(x, y, strict=True)]),
            slide_id=pl.lit(own),
            x=pl.Series(x),
            y=pl.Series(y),
            rotation_deg=pl.lit(float(pair["rotation_deg"])),
            flip=pl.lit(bool(pair["flip"])),
        )
        .filter(pl.Series(room))
    )
