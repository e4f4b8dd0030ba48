"""Faults that a file alone does not show: against slide, entry and the other files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from pathfm_kedro.encoders.features.slide_features import (
    FeatureFileError,
    SlideFeatures,
    some,
)
from pathfm_kedro.encoders.presets import read_presets

#: What tools write around the name of an encoder.
_VENDORS = (
    "mahmoodlab",
    "mahmood",
    "paigeai",
    "paige",
    "bioptimus",
    "owkin",
    "kaikoai",
    "histai",
    "tile",
)
#: Encoders by their name without signs, with the other ways in which tools write it; presets are known
#: beside them.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "uni": ("univ1", "uni1"),
    "uni2h": ("uni2", "univ2"),
    "conch": ("conchv1", "conch1"),
    "conchv15": ("conch15",),
    "virchow": ("virchow1",),
    "virchow2": ("virchowv2",),
    "gigapath": ("provgigapath",),
    "hoptimus0": (),
    "hoptimus1": (),
    "h0mini": ("hoptimus0mini",),
    "phikon": ("phikonv1",),
    "phikonv2": ("phikon2",),
    "ctranspath": (),
    "chiefctranspath": (),
    "hiboub": (),
    "hiboul": (),
    "musk": (),
    "plip": (),
    "keep": (),
    "gpfm": (),
    "mstar": (),
    "midnight12k": ("midnight", "midnight12"),
    "resnet50": (),
    "lunitvits8": ("lunitvits", "lunitdino8"),
    "kaikovitl": ("kaikovitl14",),
    "titan": (),
    "prism": (),
    "prism2": (),
    "madeleine": (),
    "threads": (),
    "feather": (),
}


def encoder_agrees(stated: str | None, declared: str) -> bool | None:
    """Whether what a file says made it is what the cohort calls it.

    Parameters
    ----------
    stated
        What the file says.
    declared
        The name of the cohort's entry.

    Returns
    -------
    bool or None
        None where nothing can be said: the file is silent, or one of the names is a person's own.

    Examples
    --------
    >>> encoder_agrees("mahmood-uni", "uni"), encoder_agrees("uni_v1", "uni2_h")
    (True, False)
    >>> encoder_agrees("uni_v1", "ours") is None
    True
    """
    if stated is None:
        return None
    first, second = (_canonical(name) for name in (stated, declared))
    if first == second:
        return True
    if first in _NAMES and second in _NAMES:
        return False
    # "dinov2" may stand for any of its sizes.
    related = first.startswith(second) or second.startswith(first)
    return None if related or not {first, second} <= _tile_encoders() else False


@lru_cache(maxsize=1)
def _tile_encoders() -> frozenset[str]:
    """Names without signs. An encoder of slides is often called as its encoder of tiles."""
    presets = read_presets().values()
    return frozenset(_NAMES) | {_canonical(one.name) for one in presets if not one.slide_level}


def _canonical(name: str) -> str:
    bare = re.sub(r"[^a-z0-9]", "", name.lower())
    known = {alias: key for key, aliases in _NAMES.items() for alias in (key, *aliases)}
    if bare in known:
        return known[bare]
    for vendor in _VENDORS:
        bare = bare.removeprefix(vendor)
        if bare in known:
            return known[bare]
    return bare


def refuse_other_encoder(features: SlideFeatures, declared: str) -> None:
    """Check that a file was made by the encoder that the entry is named after.

    Raises
    ------
    FeatureFileError
        If both are known encoders, and not the same.
    """
    if encoder_agrees(features.encoder, declared) is False:
        raise FeatureFileError(
            f"slide '{features.slide_id}': the file says that '{features.encoder}' made it, and "
            f"the entry is called '{declared}': name the folder that '{declared}' made, or rename "
            "the entry"
        )


def refuse_off_slide(
    features: SlideFeatures, width: int, height: int, where: str | None = None
) -> None:
    """Check that every tile begins on the slide; tiles may reach over its right and lower edge.

    Parameters
    ----------
    features
        With places in level-0 pixels; passed over where there are none.
    width, height
        Of the slide at level 0.
    where
        How an error names the file; by its slide if not given.

    Raises
    ------
    FeatureFileError
        If tiles lie off the slide, naming the first rows.
    """
    if features.x is None or features.y is None:
        return
    off = (features.x < 0) | (features.y < 0) | (features.x >= width) | (features.y >= height)
    rows = np.flatnonzero(off)
    if len(rows):
        x, y = int(features.x[rows[0]]), int(features.y[rows[0]])
        raise FeatureFileError(
            f"{where or _of(features)}: {len(rows)} of {len(features)} tiles do not lie on the "
            f"slide of {width} x {height} px (row {some(rows.tolist())}; the first at x={x}, "
            f"y={y}): the features are of another slide, or their coordinates of another level or "
            "unit than full resolution"
        )


def _of(features: SlideFeatures) -> str:
    return f"slide '{features.slide_id}'"


def unlike_most(files: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Slides whose file is of another kind than those of most slides, and why it cannot be used.

    Parameters
    ----------
    files
        ``tile`` or ``slide``, and the length of a vector, by slide.

    Examples
    --------
    >>> unlike_most({"a": ("tile", 8), "b": ("tile", 8), "c": ("tile", 4)})["c"].partition(",")[0]
    'the vectors have 4 numbers'
    """
    if not files:
        return {}
    (level, dimension), _ = Counter(sorted(files.values())).most_common(1)[0]
    return {
        slide: _other_level(level) if own[0] != level else _other_length(own[1], dimension)
        for slide, own in files.items()
        if own != (level, dimension)
    }


def _other_level(usual: str) -> str:
    kinds = ("vectors of tiles", "one vector of the whole slide")
    own, others = kinds if usual == "slide" else kinds[::-1]
    return (
        f"the file holds {own}, and those of most slides {others}: give each kind a folder and an "
        "entry of its own"
    )


def _other_length(own: int, usual: int) -> str:
    return (
        f"the vectors have {own} numbers, and those of most slides {usual}: they are of another "
        "encoder or another pooling; extract them again"
    )
