"""One entry of ``encoders`` that stands for several: poolings of a model, or two sizes of its tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What the null of an encoder's architecture is called, after the encoder's name.
RANDOM_WEIGHTS = "random_weights"
#: Models whose network can be built without its weights.
_BUILT = ("timm", "hf-hub", "local-dir")
#: Key of an entry that is also shown tiles of another side.
PATCH = "patch"
#: Micrometres per pixel of these tiles: 20x, as of Yottixel's.
_PATCH_MPP = 0.5


def variant_name(encoder: str, pooling: str) -> str:
    """Name of the entry that ``variants`` makes of an encoder.

    Examples
    --------
    >>> variant_name("uni", "patch_mean")
    'uni__patch_mean'
    """
    return f"{encoder}__{pooling}"


def expand_variants(encoders: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with ``patch`` and ``variants`` replaced by the entries that they stand for.

    ``variants`` gives one entry for each pooling, ``patch`` adds one of the same encoder on tiles of
    that side (:func:`with_patches`). An entry that is written under the variant's own name adds to it.

    Parameters
    ----------
    encoders
        Of the parameters, as written.

    Raises
    ------
    ValueError
        If ``variants`` is no list of poolings or ``patch`` no side of a tile, naming the entry.

    Examples
    --------
    >>> list(expand_variants({"uni": {"model": "x", "variants": ["class_token", "patch_mean"]}}))
    ['uni__class_token', 'uni__patch_mean']
    """
    expanded: dict[str, Any] = {}
    encoders = with_patches(encoders)
    for name, entry in encoders.items():
        if not isinstance(entry, Mapping) or entry.get("variants") is None:
            if name not in expanded:
                expanded[name] = entry
            continue
        poolings = entry["variants"]
        if (
            not isinstance(poolings, Sequence)
            or not poolings
            or len(set(map(str, poolings))) < len(poolings)
            or isinstance(poolings, str)
        ):
            raise ValueError(
                f"encoders.{name}.variants is {poolings!r}: give a list of poolings, each once, as "
                "[class_token, class_token_and_patch_mean]"
            )
        if "pooling" in entry:
            raise ValueError(
                f"encoders.{name} has pooling and variants: write the pooling into the list"
            )
        shared = {key: value for key, value in entry.items() if key != "variants"}
        for pooling in poolings:
            variant = variant_name(name, str(pooling))
            own = encoders.get(variant) or {}
            expanded[variant] = {**shared, **own, "pooling": pooling}
    return expanded


def with_patches(encoders: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with ``<name>_patch<side>`` for each that says ``patch: <side>``.

    The added encoder is the same one on tiles of that side in px at 20x, with a grid, colour clusters
    and a mosaic of their own. With ``patch: 1000`` the search by ``barcode`` is Yottixel as published.

    Raises
    ------
    ValueError
        If it is no side of a tile, the entry has a ``tile`` too, or the name is taken.

    Examples
    --------
    >>> with_patches({"r": {"model": "timm:resnet18", "patch": 1000}})["r_patch1000"]
    {'model': 'timm:resnet18', 'tile': {'pixels': 1000, 'mpp': 0.5}}

    References
    ----------
    Kalra et al., Yottixel, Medical Image Analysis 65 (2020).
    """
    found: dict[str, Any] = {}
    for name, entry in encoders.items():
        if not isinstance(entry, Mapping) or PATCH not in entry:
            found.setdefault(name, entry)
            continue
        side = entry[PATCH]
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            raise ValueError(
                f"encoders.{name}.{PATCH} is {side!r}: give the side of a tile in px at 20x, as 1000"
            )
        if "tile" in entry:
            raise ValueError(
                f"encoders.{name} has tile and {PATCH}: write an entry for each size of tiles"
            )
        sibling = f"{name}_{PATCH}{side}"
        if sibling in encoders:
            raise ValueError(
                f"encoders.{sibling} is there already, and encoders.{name}.{PATCH} adds it: leave "
                "out one of them"
            )
        own = {key: value for key, value in entry.items() if key not in (PATCH, RANDOM_WEIGHTS)}
        found[name] = {key: value for key, value in entry.items() if key != PATCH}
        found[sibling] = own | {"tile": {"pixels": side, "mpp": _PATCH_MPP}}
    return found


def untrained_entry(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of an encoder's architecture with random weights.

    Parameters
    ----------
    name, entry
        Of the encoder.

    Raises
    ------
    ValueError
        If the entry has no network that can be built without weights.

    Examples
    --------
    >>> untrained_entry("r", {"model": "timm:resnet18", "checkpoint": "r.pth"})
    {'model': 'timm:resnet18', 'role': 'control', 'pretrained': False, 'seed': 0}
    """
    model = str(entry.get("model", ""))
    kind = model.partition(":")[0]
    kept = {
        k: v
        for k, v in entry.items()
        if k not in (PATCH, RANDOM_WEIGHTS, "checkpoint", "seed", "sha256", "variants")
    }
    kept |= {"role": "control"}
    seed = entry.get("seed") or 0
    if kind == "trained":
        return kept | {"seed": seed, "training": {**(entry.get("training") or {}), "epochs": 0}}
    if model == "package:efficientnet_lite0":
        kept["model"] = "timm:tf_efficientnet_lite0"
    elif kind not in _BUILT and "preset" not in entry:
        raise ValueError(
            f"encoders.{name}.{RANDOM_WEIGHTS} is true, and '{model}' has no network that is built "
            f"without its weights: leave it out; it goes with {', '.join(f'{k}:' for k in _BUILT)}, "
            "package: and trained:"
        )
    return kept | {"pretrained": False, "seed": seed}
