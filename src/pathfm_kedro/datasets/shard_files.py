"""Safetensors files with one header of ours: their names, and how they are written whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.datasets.paths import atomic_path

#: The one metadata entry of a shard; a single entry keeps the file's bytes independent of map order.
HEADER_KEY = "pathfm"
#: File systems take 255 bytes; a digest, the suffix and the name of a temporary file need theirs.
_LONGEST_NAME = 120


def shard_name(slide_id: str) -> str:
    """File name of a slide's shard: readable, and safe whatever the slide is called.

    Examples
    --------
    >>> shard_name("S-01")
    'S-01.safetensors'
    >>> shard_name("../a b")
    '%2E%2E%2Fa%20b.safetensors'
    """
    from urllib.parse import quote

    safe = quote(slide_id, safe="")
    if safe.startswith("."):
        safe = safe.replace(".", "%2E")
    if len(safe) > _LONGEST_NAME:
        safe = f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(slide_id.encode()).hexdigest()}"
    return f"{safe}.safetensors"


def read_header(path: Path) -> dict[str, str] | None:
    """Header of a shard, or None where the file is not a whole shard."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= size - 8:
                return None
            described = json.loads(file.read(length))
        metadata = described.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in described.values()), default=0)
        if size != 8 + length + end:
            return None
        header = json.loads(metadata.get(HEADER_KEY, "null"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return header if isinstance(header, dict) else None


def write_shard(
    path: Path, tensors: Mapping[str, NDArray[np.generic]], header: Mapping[str, str]
) -> None:
    """Write one shard atomically; the same content gives the same bytes."""
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, {HEADER_KEY: json.dumps(dict(header), sort_keys=True)})


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it, else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
