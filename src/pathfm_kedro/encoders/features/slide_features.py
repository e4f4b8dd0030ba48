"""Vectors of one slide as a file brings them, and the checks that every layout goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.loaders.files import some_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Unit = Literal["level-0 px", "um"]

#: Rows and keys named in an error.
_NAMED = 5
#: No slide has so many pixels or micrometres at a side.
_FARTHEST = 1e9
#: Rows that are widened to float64 at once, for slides of a hundred thousand tiles.
_BLOCK = 4096


class FeatureFileError(ValueError):
    """A file of features that cannot be used, where, and what to do."""


@dataclass(frozen=True)
class SlideFeatures:
    """Vectors of one slide with the places that they stand for.

    Attributes
    ----------
    slide_id
        The slide, by the name of the file.
    vectors
        [n, d] float32 or float16, as stored; of ``level`` ``slide`` [1, d].
    level
        ``tile`` or ``slide``: what one row stands for.
    x, y
        [n] upper left corners in level-0 pixels. None for ``slide``, and for a file in micrometres as
        long as the slide's mpp is not known: :meth:`on_slide` gives them then.
    x_um, y_um
        [n] the same in micrometres, where the file has them.
    field_px
        Side of a tile in level-0 pixels.
    field_um
        Side of a tile in micrometres.
    mpp
        Micrometres per pixel of the tiles as the encoder saw them.
    slide_mpp
        Micrometres per level-0 pixel of the slide, as the file says or as it was given.
    encoder
        What the file says made the vectors.
    layout
        ``trident``, ``clam``, ``stamp``, … as in :data:`~pathfm_kedro.encoders.features.LAYOUTS`.
    dtype
        The type of numbers in the file.
    loss
        Largest relative rounding error of a vector, 0 for float32: by what float64 lost on the way to
        float32 as measured; of float16 and bfloat16 the most that rounding to the numbers at hand can
        have moved a vector, half a step of each number over the vector's length.
    """

    slide_id: str
    vectors: NDArray[np.floating[Any]]
    level: Literal["tile", "slide"]
    layout: str
    x: Ints | None = None
    y: Ints | None = None
    x_um: Floats | None = None
    y_um: Floats | None = None
    field_px: float | None = None
    field_um: float | None = None
    mpp: float | None = None
    slide_mpp: float | None = None
    encoder: str | None = None
    dtype: str = "float32"
    loss: float = 0.0

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return int(self.vectors.shape[1])

    def on_slide(self, slide_mpp: float) -> SlideFeatures:
        """The same with the places in level-0 pixels and sides in both units.

        Parameters
        ----------
        slide_mpp
            Micrometres per level-0 pixel; places that are known in pixels already stay.

        Examples
        --------
        >>> um = np.array([0.0, 256.0])
        >>> brought = SlideFeatures("s", np.eye(2, dtype=np.float32), "tile", "stamp",
        ...                         x_um=um, y_um=um, field_um=256.0)
        >>> placed = brought.on_slide(0.25)
        >>> placed.x.tolist(), placed.field_px
        ([0, 1024], 1024.0)
        """
        known = replace(self, slide_mpp=slide_mpp)
        if self.x is None and self.x_um is not None and self.y_um is not None:
            known = replace(known, x=_pixels(self.x_um, slide_mpp), y=_pixels(self.y_um, slide_mpp))
        if self.field_px is None and self.field_um is not None:
            known = replace(known, field_px=self.field_um / slide_mpp)
        if self.field_um is None and self.field_px is not None:
            known = replace(known, field_um=self.field_px * slide_mpp)
        return known


def _pixels(um: Floats, mpp: float) -> Ints:
    return np.rint(um / mpp).astype(np.int64)


@dataclass(frozen=True)
class TileSize:
    """What a person says about tiles where files do not.

    Attributes
    ----------
    slide_mpp
        Micrometres per level-0 pixel.
    patch_size
        Side of a tile in pixels of ``patch_level``.
    patch_level
        The level that tiles were read from.
    downsamples
        Of each level of the slide; level 0 needs none.
    """

    slide_mpp: float | None = None
    patch_size: int | None = None
    patch_level: int | None = None
    downsamples: Sequence[float] | None = None

    def side(self, where: str) -> float:
        """Side of a tile in level-0 pixels.

        Raises
        ------
        FeatureFileError
            If something is not said.
        """
        if self.patch_size is None or self.patch_level is None:
            missing = "patch_size" if self.patch_size is None else "patch_level"
            raise FeatureFileError(
                f"{where}: the file does not say how large its tiles are, and {missing} is not "
                "given: give the encoder's entry patch_size (pixels) and patch_level (the level that "
                "tiles were read from, 0 for full resolution), as they were set when the tiles were cut"
            )
        if self.patch_size <= 0 or self.patch_level < 0:
            raise FeatureFileError(
                f"{where}: patch_size is {self.patch_size} and patch_level {self.patch_level}: "
                "give a side above 0 and a level from 0 on"
            )
        if self.patch_level == 0:
            return float(self.patch_size)
        levels = self.downsamples or ()
        if self.patch_level >= len(levels):
            known = f"of {len(levels)} levels" if levels else "of none"
            raise FeatureFileError(
                f"{where}: patch_level is {self.patch_level}, and downsamples are known {known}: "
                "give patch_level 0 with the side at full resolution as patch_size, that is "
                f"{self.patch_size} times the downsample of level {self.patch_level}, or CLAM's folder "
                "patches beside this one, which says it"
            )
        return float(self.patch_size) * float(levels[self.patch_level])


def place(path: Path) -> str:
    """A file as errors name it: with its folder, and not where that lies.

    Examples
    --------
    >>> place(Path("/disk/job/features_uni/S-1.h5"))
    'features_uni/S-1.h5'
    """
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def some(values: Sequence[Any]) -> str:
    """The first few of some values.

    Examples
    --------
    >>> some([1, 2]), some(range(9))
    ('1, 2', '0, 1, 2, 3, 4 and 4 more')
    """
    return some_of(values, _NAMED)


def slide_vector(
    slide_id: str,
    path: Path,
    layout: str,
    vector: NDArray[Any],
    *,
    key: str,
    encoder: str | None = None,
) -> SlideFeatures:
    """One vector for a slide, checked.

    Raises
    ------
    FeatureFileError
        If it is not one vector of finite numbers, not all 0.
    """
    where = f"{place(path)}, '{key}'"
    rows = vector.reshape(1, -1) if vector.ndim == 1 else _without_leading(vector)
    if rows.ndim != 2 or len(rows) != 1:
        raise FeatureFileError(
            f"{where}: shape {list(vector.shape)} is not one vector for the slide, and there are "
            "no coordinates that would make it tiles: give the file that holds both"
        )
    vectors, dtype, loss = _stored(rows, where)
    return SlideFeatures(
        slide_id, vectors, "slide", layout, encoder=encoder, dtype=dtype, loss=loss
    )


def tile_vectors(
    slide_id: str,
    path: Path,
    layout: str,
    vectors: NDArray[Any],
    coordinates: NDArray[Any],
    *,
    unit: Unit = "level-0 px",
    keys: tuple[str, str] = ("features", "coords"),
    said: TileSize,
    field_px: float | None = None,
    field_um: float | None = None,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    encoder: str | None = None,
    tile_pixels: float | None = None,
) -> SlideFeatures:
    """Vectors of a slide's tiles, checked, in level-0 pixels where that is possible.

    Parameters
    ----------
    slide_id, path, layout, encoder
        As in :class:`SlideFeatures`.
    vectors
        [n, d], or [1, n, d] as some tools write.
    coordinates
        [n, 2] x and y of the upper left corners.
    unit
        Of the coordinates.
    keys
        What vectors and coordinates are called in the file.
    said
        What a person says; asked for the side of a tile where the file says neither.
    field_px, field_um, mpp, slide_mpp
        What the file says.
    tile_pixels
        Side of a tile in the encoder's pixels, if known: gives mpp with the field.

    Raises
    ------
    FeatureFileError
        If there is no tile, vectors are not finite or all 0, coordinates are of another length, not
        whole pixels or there twice, or the side of a tile is unknown.
    """
    where = place(path)
    rows = _without_leading(vectors)
    corners = _without_leading(coordinates)
    _refuse_shapes(rows, corners, keys, where)
    stored, dtype, loss = _stored(rows, f"{where}, '{keys[0]}'")
    _refuse_no_places(corners, f"{where}, '{keys[1]}'")
    if field_px is None and field_um is None:
        field_px = said.side(where)
    made = SlideFeatures(
        slide_id,
        stored,
        "tile",
        layout,
        field_px=field_px,
        field_um=field_um,
        mpp=mpp,
        slide_mpp=slide_mpp,
        encoder=encoder,
        dtype=dtype,
        loss=loss,
    )
    if unit == "um":
        exact = corners.astype(np.float64)
        made = replace(made, x_um=exact[:, 0].copy(), y_um=exact[:, 1].copy())
    else:
        whole = _whole_pixels(corners, f"{where}, '{keys[1]}'")
        made = replace(made, x=whole[:, 0].copy(), y=whole[:, 1].copy())
    known_mpp = said.slide_mpp or slide_mpp
    if known_mpp:
        made = made.on_slide(known_mpp)
    if made.mpp is None and made.field_um is not None and tile_pixels:
        made = replace(made, mpp=made.field_um / tile_pixels)
    return made


def _without_leading(array: NDArray[Any]) -> NDArray[Any]:
    """Without the axis of a batch of one slide."""
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _refuse_shapes(
    vectors: NDArray[Any], coordinates: NDArray[Any], keys: tuple[str, str], where: str
) -> None:
    features, coords = keys
    if 0 in vectors.shape[:1] or 0 in coordinates.shape[:1]:
        raise FeatureFileError(
            f"{where}, '{features}': no tile (N = 0, shape {list(vectors.shape)}): tissue was not "
            "found when the tiles were cut; cut them again, or leave the slide out"
        )
    if vectors.ndim != 2:
        raise FeatureFileError(
            f"{where}, '{features}': shape {list(vectors.shape)} is not [tiles, dimension]: give "
            "one vector for each tile"
        )
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise FeatureFileError(
            f"{where}, '{coords}': shape {list(coordinates.shape)} is not [tiles, 2]: give x and "
            "y of each tile's upper left corner"
        )
    if len(vectors) != len(coordinates):
        raise FeatureFileError(
            f"{where}: '{features}' has {len(vectors)} rows and '{coords}' {len(coordinates)}, so "
            "that no vector has a sure place: extract this slide again"
        )


def _stored(vectors: NDArray[Any], where: str) -> tuple[NDArray[np.floating[Any]], str, float]:
    """Vectors as float32 or float16, the type in the file, and the loss."""
    dtype = vectors.dtype
    if dtype.kind != "f":
        raise FeatureFileError(
            f"{where}: numbers of type {dtype} are no features: give float32 or float16"
        )
    _refuse_not_finite(vectors, where)
    if dtype == np.float16:
        return vectors, "float16", rounding_bound(vectors)
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(vectors, dtype=np.float32)
    _refuse_not_finite(single, where)
    loss = 0.0 if dtype.itemsize <= 4 else measured_loss(vectors, single)
    return single, str(dtype.newbyteorder("=")), loss


def _refuse_not_finite(vectors: NDArray[Any], where: str) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        rows = np.flatnonzero(~finite).tolist()
        raise FeatureFileError(
            f"{where}: NaN or infinity in row {some(rows)}: extract this slide again, in float32 "
            "where float16 was too small for the numbers"
        )
    empty = np.flatnonzero(~vectors.any(axis=1)).tolist()
    if empty:
        raise FeatureFileError(
            f"{where}: a vector of zeros in row {some(empty)}: it has no direction, so no "
            "neighbours; extract this slide again, or remove these tiles from the file"
        )


def measured_loss(exact: NDArray[np.floating[Any]], stored: NDArray[np.floating[Any]]) -> float:
    """Largest relative error of a vector that was stored in another type.

    ``max_i ‖stored_i − exact_i‖ / ‖exact_i‖``

    Parameters
    ----------
    exact, stored
        [n, d].

    Examples
    --------
    >>> exact = np.array([[1.0, 1.0 / 3]])
    >>> 0 < measured_loss(exact, exact.astype(np.float32)) < 2**-24
    True
    """
    return max(
        _relative(stored[rows].astype(np.float64) - exact[rows], exact[rows])
        for rows in _blocks(len(exact))
    )


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, max(n, 1), _BLOCK)]


def _relative(moved: NDArray[Any], vectors: NDArray[Any]) -> float:
    """Largest length of a row over that of its vector."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return float(
        (np.linalg.norm(moved, axis=1) / np.where(lengths > 0, lengths, 1.0)).max(initial=0)
    )


def rounding_bound(stored: NDArray[np.floating[Any]], bits: int | None = None) -> float:
    """The most that rounding to the stored numbers can have moved a vector, relative to its length.

    ``max_i ‖(half a step at each number of vector i)‖ / ‖stored_i‖``

    Parameters
    ----------
    stored
        [n, d].
    bits
        Bits after the leading one, where the numbers are of a type that NumPy does not have and were
        widened to float32 (7 for bfloat16).

    Examples
    --------
    >>> rounding_bound(np.ones((1, 4), np.float16)) == 2**-11
    True
    """
    own = np.finfo(stored.dtype)
    kept = own.nmant if bits is None else bits
    least = float(own.smallest_subnormal) * 2.0 ** (own.nmant - kept)
    bounds = []
    for rows in _blocks(len(stored)):
        # x = m 2^e with m from 1/2 to 1: numbers of that size are 2^(e − 1 − bits) apart.
        _, exponents = np.frexp(stored[rows].astype(np.float64))
        steps = np.maximum(np.ldexp(1.0, exponents - 1 - kept), least)
        bounds.append(_relative(steps / 2, stored[rows]))
    return max(bounds)


def _whole_pixels(coordinates: NDArray[Any], where: str) -> Ints:
    exact = coordinates.astype(np.float64)
    whole = np.rint(exact)
    broken = np.flatnonzero(~(np.abs(exact - whole) < 1e-6).all(axis=1)).tolist()
    if broken:
        raise FeatureFileError(
            f"{where}: row {some(broken)} is no whole level-0 pixel ({exact[broken[0]].tolist()}): "
            "coordinates in micrometres need a layout that says so (STAMP); give level-0 pixels"
        )
    return whole.astype(np.int64)


def _refuse_no_places(coordinates: NDArray[Any], where: str) -> None:
    """Refuse what is no number, too large to be a place, or there twice."""
    if coordinates.dtype.kind not in "iuf":
        raise FeatureFileError(
            f"{where}: coordinates of type {coordinates.dtype} are no places: give numbers"
        )
    # A NaN is not smaller.
    lost = np.flatnonzero(
        ~(np.abs(coordinates.astype(np.float64)) < _FARTHEST).all(axis=1)
    ).tolist()
    if lost:
        raise FeatureFileError(
            f"{where}: row {some(lost)} is no place on a slide ({coordinates[lost[0]].tolist()}): "
            "extract this slide again"
        )
    _, first, counts = np.unique(coordinates, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        corner = coordinates[first[np.argmax(counts > 1)]]
        rows = np.flatnonzero((coordinates == corner).all(axis=1)).tolist()
        twice = int((counts - 1).sum())
        raise FeatureFileError(
            f"{where}: rows {some(rows)} stand for the same place x={corner[0]}, y={corner[1]} "
            f"({twice} rows too many in all): tiles that count twice pull every figure; remove "
            "them, or extract this slide again"
        )


def text_of(value: Any) -> str | None:
    """An attribute as text; None where there is none, or a tool wrote ``None``.

    Examples
    --------
    >>> text_of(b"uni_v1"), text_of("None"), text_of(None)
    ('uni_v1', None, None)
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "" if value is None else str(value)
    return None if text in ("", "None", "null") else text


def number_of(value: Any) -> float | None:
    """An attribute as a positive number; None where it is none.

    Of a pair, as some tools give width and height, the first if both are equal.

    Examples
    --------
    >>> number_of("256"), number_of((4.0, 4.0)), number_of("None"), number_of(-1)
    (256.0, 4.0, None, None)
    """
    try:
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64)).ravel()
    except (TypeError, ValueError):
        text = text_of(value)
        try:
            numbers = np.array([float(text)]) if text else np.zeros(0)
        except ValueError:
            return None
    positive = len(numbers) > 0 and np.isfinite(numbers).all() and (numbers > 0).all()
    if not positive or not np.allclose(numbers, numbers[0], rtol=1e-3):
        return None
    return float(numbers[0])


def first_number(source: Mapping[str, Any], *names: str) -> float | None:
    """The first of some keys that holds a positive number."""
    return next((n for n in (number_of(source.get(name)) for name in names) if n), None)


def declared_sizes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Sides and resolutions that keys beside the vectors declare, for :func:`tile_vectors`."""
    return {
        "field_px": first_number(notes, "field_px", "patch_size_level0"),
        "field_um": first_number(notes, "field_um"),
        "mpp": first_number(notes, "mpp"),
        "slide_mpp": first_number(notes, "slide_mpp"),
    }
