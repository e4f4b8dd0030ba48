"""One entry of ``encoders`` that stands for several: poolings, sizes of tiles, splits of patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What the null of an encoder's architecture is called, after the encoder's name.
RANDOM_WEIGHTS = "random_weights"
#: Key of an entry: the encoder that a published, robustified one was made from.
ROBUSTIFIED_FROM = "robustified_from"
#: Models whose network can be built without its weights.
_BUILT = ("timm", "hf-hub", "local-dir")
#: Key of an entry that is also shown tiles of another side.
PATCH = "patch"
#: Micrometres per pixel of these tiles: 20x, as of Yottixel's.
_PATCH_MPP = 0.5
#: Keys of an entry that say nothing of its network without weights.
_NOT_OF_THE_NULL = frozenset(
    {PATCH, RANDOM_WEIGHTS, ROBUSTIFIED_FROM, "checkpoint", "seed", "sha256", "variants"}
)
#: Groups of patients of a rival where its entry gives none: as :class:`encoders.rivals.Training`.
_FOLDS = 2


def variant_name(encoder: str, pooling: str) -> str:
    """Name of the entry that ``variants`` makes of an encoder.

    Examples
    --------
    >>> variant_name("uni", "patch_mean")
    'uni__patch_mean'
    """
    return f"{encoder}__{pooling}"


def split_name(encoder: str, number: int) -> str:
    """Name of an encoder that is trained on the cohort, fitted to a further split of the patients.

    Examples
    --------
    >>> split_name("small_cnn", 0), split_name("small_cnn", 1)
    ('small_cnn', 'small_cnn__2')
    """
    return encoder if number == 0 else f"{encoder}__{number + 1}"


def splits_of_rivals(encoders: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of each encoder that is trained on several splits of the patients the encoders of all splits.

    Examples
    --------
    >>> splits_of_rivals({"cnn": {"model": "trained:small_cnn"}})
    {'cnn': ['cnn', 'cnn__2']}
    """
    numbers = {name: _n_splits(entry) for name, entry in encoders.items()}
    return {
        name: [split_name(name, number) for number in range(n)]
        for name, n in numbers.items()
        if n > 1
    }


def _n_splits(entry: Any) -> int:
    """Splits that a trained encoder is fitted to: each patient is audited unless its entry differs."""
    if not isinstance(entry, Mapping) or not str(entry.get("model", "")).startswith("trained:"):
        return 1
    training = entry.get("training") or {}
    if not isinstance(training, Mapping) or "audited_fold" in training:
        return 1
    folds = training.get("folds", _FOLDS)
    given = training.get("repeats", folds)
    # What is no number, or too many, is refused where the entry is read.
    numbers = isinstance(given, int) and isinstance(folds, int)
    return given if numbers and given <= folds else 1


def _expand_splits(encoders: Mapping[str, Any]) -> dict[str, Any]:
    expanded = dict(encoders)
    for name, splits in splits_of_rivals(encoders).items():
        for number, split in enumerate(splits[1:], start=1):
            training = {**(encoders[name].get("training") or {}), "audited_fold": number}
            expanded[split] = {**encoders[name], "training": training}
    return expanded


def expand_variants(encoders: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that stand for several replaced by these.

    ``variants`` gives one entry for each pooling, ``patch`` adds one of the same encoder on tiles of
    that side (:func:`with_patches`), a rival has one for each split of the patients. An entry that is
    written under the variant's own name adds to it.

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
    for name, entry in _expand_splits(encoders).items():
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
    kept = {k: v for k, v in entry.items() if k not in _NOT_OF_THE_NULL}
    kept |= {"role": "control"}
    seed = entry.get("seed") or 0
    if kind == "trained":
        training = {**(entry.get("training") or {}), "epochs": 0, "repeats": 1}
        return kept | {"seed": seed, "training": training}
    if model == "package:efficientnet_lite0":
        kept["model"] = "timm:tf_efficientnet_lite0"
    elif kind not in _BUILT and "preset" not in entry:
        raise ValueError(
            f"encoders.{name}.{RANDOM_WEIGHTS} is true, and '{model}' has no network that is built "
            f"without its weights: leave it out; it goes with {', '.join(f'{k}:' for k in _BUILT)}, "
            "package: and trained:"
        )
    return kept | {"pretrained": False, "seed": seed}
