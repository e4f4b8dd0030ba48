"""Layouts of folders that a manifest can be made of, and what cohorts of them change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathfm_kedro.manifests.folders import FolderListing

#: Names on the command line.
LAYOUTS = ("folders", "rescans", "plism", "camelyon17", "tcga", "pathorob")
#: Folder of conf/ with what a cohort of a layout changes of the defaults, a folder for each.
SCENARIOS = "scenarios"


def list_layout(
    layout: str, folder: Path, levels: str, start: Path, mpp: float | None
) -> FolderListing:
    """The manifest of a folder.

    Parameters
    ----------
    layout
        One of :data:`LAYOUTS`.
    folder, start, mpp
        As of :func:`~pathfm_kedro.manifests.folders.list_folder`.
    levels
        What the folders stand for, as typed; layouts of published cohorts know it themselves.

    Raises
    ------
    FolderError
        If no manifest can be made.
    """
    from pathfm_kedro.manifests.folders import list_folder, parse_levels
    from pathfm_kedro.manifests.public_cohorts import list_camelyon17, list_tcga
    from pathfm_kedro.manifests.rescans import list_plism, list_rescans
    from pathfm_kedro.manifests.tile_sets import list_pathorob

    if layout in ("folders", "rescans"):
        read = list_rescans if layout == "rescans" else list_folder
        return read(folder, parse_levels(levels), start, mpp)
    published = {
        "plism": list_plism,
        "camelyon17": list_camelyon17,
        "tcga": list_tcga,
        "pathorob": list_pathorob,
    }
    return published[layout](folder, start, mpp)


def layout_parameters(conf: Path, layout: str | None) -> dict[str, Mapping[str, Any]]:
    """What cohorts of a layout change of the defaults, by file of parameters.

    Parameters
    ----------
    conf
        The configuration.
    layout
        One of :data:`LAYOUTS`; None, and one that changes nothing, give nothing.
    """
    import yaml

    folder = conf / SCENARIOS / layout if layout else None
    paths = sorted(folder.glob("parameters*.yml")) if folder else []
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in paths}
