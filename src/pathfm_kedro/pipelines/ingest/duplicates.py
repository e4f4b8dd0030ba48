"""The same tissue under two slide ids, whatever file format, compression or colours hold it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.slides.readers import Pixels, SlideReader
from pathfm_kedro.slides.tissue import Overview, read_overview

#: Longest side of the picture that a digest is made from: 32 px per cell of the grid, so that a cell's
#: mean hardly depends on compression or on the level that was read.
THUMBNAIL_SIDE = 512
#: Cells per side. With 8 the digests of different slides come close by chance in a cohort of
#: thousands; with 32 a shift by 1% of the tissue already changes many bits.
_CELLS = 16
#: A step between two cells counts as a step from this share of the typical step on: glass beside
#: glass differs by noise alone and must give the same bits in every copy.
_FLAT = 0.1
#: Brightness below that of glass from which a pixel is tissue; JPEG's ringing stays below.
_DARKER_THAN_GLASS = 15
#: The tissue's frame leaves out so much of its darkness at each edge, so that dust does not move it.
_OUTSIDE_FRAME = 0.005
#: Fewer steps than this say too little to tell two slides apart: an empty slide, a plain colour.
_MIN_STEPS = 64
#: Two slides whose digests are no further apart show the same tissue. Measured: CMU-1-Small-Region as
#: SVS and as DICOM 0.10; copies by JPEG of quality 20, other stain vectors, half the resolution, added
#: margins, noise, or 1% cut from every edge at most 0.24; the nearest of 73,000 pairs of different real
#: or phantom images 0.60, and 0.51 where all are cut to the same circle as cores of a tissue microarray
#: are (mean 0.66, SD 0.04: the limit lies 7.7 SD below, so chance pairs are not expected among the
#: 50 million pairs of 10,000 slides either).
SAME_TISSUE = 0.35
#: Slides compared with all others at a time: 10,000 slides take 40 MB.
_BLOCK = 256

Evidence = Literal["path", "file", "tissue"]


@dataclass(frozen=True)
class DuplicateGroup:
    """Slides that show the same tissue.

    Attributes
    ----------
    slide_ids
        Two or more, sorted.
    evidence
        ``path``: they name one file; ``file``: their files are equal; ``tissue``: the pixels show the
        same in different files.
    n_patients, n_centers
        How many patients and centers they are listed under.
    """

    slide_ids: tuple[str, ...]
    evidence: Evidence
    n_patients: int
    n_centers: int


def digest_of_slide(reader: SlideReader) -> str | None:
    """Digest of what an open slide shows, from its smallest sufficient pyramid level."""
    return tissue_digest(read_thumbnail(reader).image)


def read_thumbnail(reader: SlideReader) -> Overview:
    """The whole slide at the size that a digest is made from."""
    description = reader.description
    reduction = max(description.width, description.height) / THUMBNAIL_SIDE
    # With one micrometre per px the wanted resolution is the reduction itself.
    return read_overview(reader, 1.0, reduction)


def tissue_digest(image: Pixels) -> str | None:
    """Difference hash of the tissue: where brightness rises and where it falls from cell to cell.

    The image is cut to its tissue and averaged over 16 x 16 cells. A step between neighbouring cells
    gives one bit if it rises and another if it falls, and none where it is flat. Steps keep their
    sign under other stain vectors, gamma and white balance; cutting to the tissue makes margins
    indifferent. A rotated or mirrored copy has another digest.

    Parameters
    ----------
    image
        uint8 [height, width, 3], the whole slide, small.

    Returns
    -------
    str or None
        1024 bits as 256 hexadecimal digits; None for an image with too little to see.

    References
    ----------
    Difference hash as by N. Krawetz ("Kind of like that", 2013), with flat steps apart.

    Examples
    --------
    >>> tissue_digest(np.full((64, 64, 3), 240, np.uint8)) is None
    True
    """
    grey = _grey(image)
    frame = _tissue_frame(grey)
    if frame is None:
        return None
    tissue = grey[frame]
    steps = np.concatenate(
        [
            np.diff(_cell_means(tissue, _CELLS, _CELLS + 1), axis=1).ravel(),
            np.diff(_cell_means(tissue, _CELLS + 1, _CELLS), axis=0).ravel(),
        ]
    )
    flat = _FLAT * float(np.sqrt(np.mean(steps**2)))
    bits = np.concatenate([steps > flat, steps < -flat])
    return np.packbits(bits).tobytes().hex() if bits.sum() >= _MIN_STEPS else None


def same_tissue(digests: Sequence[str], limit: float = SAME_TISSUE) -> NDArray[np.int64]:
    """Number every slide by the group of slides that show what it shows.

    The distance of two digests is the share of bits set in either that are not set in both,
    d = |a ⊕ b| / |a ∪ b|: agreement on glass counts for nothing. Every pair is compared, in blocks;
    groups are the connected components of the pairs with d ≤ limit.

    Parameters
    ----------
    digests
        [n] from :func:`tissue_digest`.
    limit
        Largest distance within a pair.

    Returns
    -------
    ndarray
        [n] numbers from 0; equal numbers are one group.

    Examples
    --------
    >>> same_tissue(["ff" * 128, "00" * 127 + "ff", "ff" * 128]).tolist()
    [0, 1, 0]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(digests)
    groups = np.arange(n, dtype=np.int64)
    for start, left, right in _close_pairs(_words(digests), limit):
        edges = (groups[left + start], groups[right + start])
        graph = coo_array((np.ones(len(left), np.int8), edges), shape=(n, n))
        # Groups are joined block by block, so that memory does not grow with the number of pairs.
        joined = connected_components(graph, directed=False)[1]
        groups = joined[groups].astype(np.int64)
    return groups


def find_duplicates(slides: pl.DataFrame) -> list[DuplicateGroup]:
    """Groups of slides with one path, equal files, or the same tissue.

    Parameters
    ----------
    slides
        slide_id, path, fingerprint, tissue_digest (null: not compared), patient_id, center.

    Returns
    -------
    list of DuplicateGroup
        In the order of their first slide.
    """
    digested = slides.filter(pl.col("tissue_digest").is_not_null())
    shown = digested.select(
        "slide_id",
        pl.Series("_tissue", same_tissue(digested["tissue_digest"].to_list()), pl.Int64),
    )
    # Equal files have equal digests; a file without a digest is known by its content alone.
    same = pl.coalesce(pl.format("tissue {}", "_tissue"), pl.format("file {}", "fingerprint"))
    groups = (
        slides.join(shown, on="slide_id", how="left")
        .with_columns(same.alias("_same"))
        .group_by("_same")
        .agg(
            pl.col("slide_id").sort(),
            *(pl.col(name).n_unique() for name in ("path", "fingerprint", "patient_id", "center")),
        )
        .filter(pl.col("slide_id").list.len() > 1)
        .sort(pl.col("slide_id").list.first())
    )
    return [
        DuplicateGroup(
            tuple(row["slide_id"]),
            "path" if row["path"] == 1 else "file" if row["fingerprint"] == 1 else "tissue",
            row["patient_id"],
            row["center"],
        )
        for row in groups.iter_rows(named=True)
    ]


def _close_pairs(
    words: NDArray[np.uint64], limit: float
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """First row of a block, then the pairs of it with any later row, both counted from that row."""
    sizes = np.bitwise_count(words).sum(axis=0, dtype=np.uint16)
    for start in range(0, words.shape[1], _BLOCK):
        rest = words[:, start:]
        differing = np.zeros((min(_BLOCK, rest.shape[1]), rest.shape[1]), np.uint16)
        for word in rest:
            differing += np.bitwise_count(word[:_BLOCK, None] ^ word)
        # |a ∪ b| = (|a| + |b| + |a ⊕ b|) / 2
        either = sizes[start : start + _BLOCK, None] + sizes[start:] + differing
        left, right = np.nonzero(differing <= np.float32(limit / 2) * either)
        later = left < right
        if later.any():
            yield start, left[later], right[later]


def _words(digests: Sequence[str]) -> NDArray[np.uint64]:
    """[words, n]: a word of all digests lies together in memory, three times faster to compare."""
    packed = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8)
    rows = packed.reshape(max(len(digests), 1), -1).view(np.uint64)
    return np.ascontiguousarray(rows.T) if digests else np.zeros((0, 0), np.uint64)


def _grey(image: Pixels) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))


def _tissue_frame(grey: NDArray[np.uint8]) -> tuple[slice, slice] | None:
    """Rows and columns that hold all but a little of what is darker than glass."""
    glass = float(np.percentile(grey, 99))
    darkness = glass - grey.astype(np.float64)
    darkness[darkness < _DARKER_THAN_GLASS] = 0
    if not darkness.any():
        return None
    return _middle(darkness.sum(axis=1)), _middle(darkness.sum(axis=0))


def _middle(profile: NDArray[np.float64]) -> slice:
    share = np.cumsum(profile) / profile.sum()
    first, last = np.searchsorted(share, (_OUTSIDE_FRAME, 1 - _OUTSIDE_FRAME))
    return slice(int(first), int(last) + 1)


def _cell_means(grey: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float64]:
    from PIL import Image

    image = Image.fromarray(grey.astype(np.float32))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BOX), np.float64)
