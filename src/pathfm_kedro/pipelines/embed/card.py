"""What the report says of an encoder: which model, which weights, how it was run, which slides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.features.cohort import SAME_SIZE
from pathfm_kedro.encoders.presets import differs_from_training, find_preset
from pathfm_kedro.statistics.mosaic import PATCH_TOKENS, PATCH_TOKENS_LOSS
from pathfm_kedro.statistics.tables import Embeddings

#: What of the record the card repeats.
_OF_THE_RUNTIME = (
    "runtime",
    "precision",
    "device",
    "agreement",
    "tolerance",
    "tiles_per_second",
)


class EmbeddedCohort(Embeddings, Protocol):
    """Embeddings that also say how they came about."""

    @property
    def header(self) -> Mapping[str, str]:
        """What the shards say of themselves."""
        ...

    def slide_header(self, slide_id: str) -> Mapping[str, str]:
        """What one slide's shard says of itself."""
        ...

    @property
    def failures(self) -> Mapping[str, str]:
        """Reason of every slide that failed."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Reason of every slide that must not be measured."""
        ...


def describe_encoder(
    parameters: Mapping[str, Any],
    runtime: Mapping[str, Any],
    embeddings: EmbeddedCohort,
    tile_parameters: Mapping[str, Any],
    *,
    name: str,
    grid: str = "",
) -> dict[str, Any]:
    """The encoder's provenance.

    Parameters
    ----------
    parameters
        The entry of ``encoders``.
    runtime
        What runs it, as recorded.
    embeddings
        Its embeddings of the cohort.
    tile_parameters
        ``pixels`` and ``mpp`` of the cohort's tiles.
    name
        Its name.
    grid
        Of the tiles that it has vectors of; empty for the cohort's.

    Returns
    -------
    dict
        name, model, role, fingerprint, preprocessing, runtime, precision, device, agreement (with
        eager float32 PyTorch) and its tolerance, tiles_per_second (of one thread, where runtimes were
        timed), dtype, dimension, n_slides, n_failed, failures, n_left_out and why; grid where tiles are
        not the cohort's; ``preset``: of an entry with a preset its name, licence, commercial, gated,
        revision, trained_on, and differs: how the cohort's tiles are others than those it was trained
        on; ``patch_tokens``: where they are stored, tokens of a tile, width, dtype and the largest
        relative error of a token by it. The fingerprint of features is that of the content of all
        files; ``field_um`` is the least and the greatest width of their tiles, where sizes differ.
    """
    spec = EncoderSpec.from_parameters(name, parameters)
    header, done = embeddings.header, embeddings.slide_ids
    return {
        "name": name,
        "model": spec.model,
        "role": spec.role,
        "pooling": spec.pooling,
        "fingerprint": _content(embeddings) if spec.features else header.get("encoder", ""),
        "preprocessing": json.loads(header.get("preprocessing", "{}")),
        **{key: runtime[key] for key in _OF_THE_RUNTIME},
        "dtype": header.get("dtype", "float32"),
        "dimension": int(embeddings.stack(done[:1]).shape[1]) if done else 0,
        **_tokens(embeddings),
        "n_slides": len(done),
        "n_failed": len(embeddings.failures),
        "failures": dict(embeddings.failures),
        "n_left_out": len(embeddings.left_out),
        "left_out_because": "; ".join(sorted(set(embeddings.left_out.values()))),
        "preset": _published(parameters, tile_parameters),
        **({"grid": grid} if grid else {}),
        **(_sizes(embeddings) if spec.features else {}),
    }


def _tokens(embeddings: EmbeddedCohort) -> dict[str, Any]:
    """What is stored of patch tokens; empty where there are none."""
    done = embeddings.slide_ids
    if not done or PATCH_TOKENS not in embeddings.header:
        return {}
    _, tokens, width = embeddings.stack(done[:1], PATCH_TOKENS).shape
    loss = float(embeddings.stack(done, PATCH_TOKENS_LOSS).max())
    return {"patch_tokens": {"tokens": tokens, "width": width, "dtype": "float16", "loss": loss}}


def _published(parameters: Mapping[str, Any], tile: Mapping[str, Any]) -> dict[str, Any]:
    """What the registry knows of the encoder; empty where the entry names no preset."""
    if "preset" not in parameters:
        return {}
    preset = find_preset(parameters["preset"])
    return {
        "name": preset.name,
        "licence": preset.licence,
        "commercial": preset.commercial,
        "gated": preset.gated,
        "revision": preset.pinned,
        "trained_on": dict(preset.tile),
        "differs": differs_from_training(preset, int(tile["pixels"]), float(tile["mpp"])),
    }


def _sizes(embeddings: EmbeddedCohort) -> dict[str, list[float]]:
    """Least and greatest width of tiles in files, in micrometres; empty where they are of one size."""
    said = (json.loads(embeddings.slide_header(s)["preprocessing"]) for s in embeddings.slide_ids)
    known = [float(one["field_um"]) for one in said if one.get("field_um") is not None]
    several = known and max(known) > SAME_SIZE * min(known)
    return {"field_um": [min(known), max(known)]} if several else {}


def _content(embeddings: EmbeddedCohort) -> str:
    """SHA-256 of the content of every slide's file."""
    whole = hashlib.sha256()
    for slide in embeddings.slide_ids:
        whole.update(embeddings.slide_header(slide).get("file", "").encode())
    return whole.hexdigest()


def collect_cards(*cards: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Cards of all encoders by name."""
    return {card["name"]: dict(card) for card in cards}
