"""Folders of features in a new cohort: held against its manifest, and written into its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathfm_kedro.encoders.presets import read_presets, refuse_other_dimension
from pathfm_kedro.project import path_from, resolve_path, write_yaml

if TYPE_CHECKING:
    from pathfm_kedro.encoders.features import SlideFeatures
    from pathfm_kedro.encoders.spec import EncoderSpec

#: Files of each folder of features that are read when a cohort is made; a run reads all.
_LOOKED_AT = 5
#: Problems that are listed before a run, which names all.
_LISTED = 5


@dataclass(frozen=True)
class Brought:
    """What a look at a folder of features gave.

    Attributes
    ----------
    text
        What a person reads.
    level
        ``tile`` or ``slide``; empty where no file could be read.
    """

    text: str
    level: str = ""


def feature_folders(given: Sequence[str], root: Path) -> dict[str, Path]:
    """Folder of each encoder as it was typed."""
    from pathfm_kedro.encoders.spec import EncoderSpec

    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        path = Path(folder).expanduser()
        if name in found:
            raise click.ClickException(
                f"--features '{text}': '{name}' is given twice: an encoder has one folder, so give the "
                "second a name of its own"
            )
        if not equals or not folder:
            raise click.ClickException(
                f"--features '{text}': write <encoder>=<folder>, such as uni=../job/features_uni, once "
                "for each encoder"
            )
        try:
            EncoderSpec(name, f"features:{folder}")
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        if not path.is_dir():
            what = (
                f"'{folder}' is a file: give the folder that holds it, with one file for each slide"
                if path.is_file()
                else f"there is no folder '{folder}': correct the path"
            )
            raise click.ClickException(f"--features '{text}': {what}")
        if "${" in path_from(path.resolve(), root):
            raise click.ClickException(
                f"--features '{text}': what stands in ${{…}} is read as a reference in YAML files: "
                "rename the folder"
            )
        found[name] = path
    return found


def without_paths(manifest: Path) -> bool:
    """Whether a manifest names no file of any slide."""
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    try:
        listed = read_manifest_file(manifest)
    except (OSError, ValueError):
        # What is wrong with it is said where the manifest is checked.
        return False
    return "path" not in listed.columns or not any(listed["path"].fill_null("").str.strip_chars())


def entries_of(brought: Mapping[str, Path], root: Path) -> dict[str, dict[str, Any]]:
    """What is written of each encoder into the cohort's parameters."""
    return {
        name: {"model": f"features:{path_from(path.resolve(), root)}"}
        for name, path in brought.items()
    }


def check_features(manifest: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Brought]:
    """Hold the folder of each entry against the manifest, and read a few of its files."""
    from pathfm_kedro.datasets.slide_files import read_manifest_file
    from pathfm_kedro.encoders.features.finding import list_feature_files
    from pathfm_kedro.encoders.spec import EncoderSpec
    from pathfm_kedro.pipelines.ingest.manifest import check_features_manifest

    if not entries:
        return {}
    listed = check_features_manifest(read_manifest_file(manifest))
    mpp = dict(listed.select("slide_id", "mpp").iter_rows())
    found = {}
    for name, entry in entries.items():
        try:
            spec = EncoderSpec.from_parameters(name, entry)
            folder = resolve_path(spec.features)
            files = list_feature_files(folder, list(mpp))
        except ValueError as error:
            raise click.ClickException(f"features of {name}: {error}") from error
        own = {slide: paths for slide, paths in files.items() if slide in mpp}
        if not own:
            raise click.ClickException(
                f"features of {name}: none of the {len(files)} files in {folder} is named after a slide"
                f" of the manifest: the first is about '{next(iter(files))}', the manifest's first "
                f"slide_id is '{next(iter(mpp))}'"
            )
        found[name] = _look_at(spec, entry, own, mpp, len(files) - len(own))
    return found


def _look_at(
    spec: EncoderSpec,
    entry: Mapping[str, Any],
    own: Mapping[str, Sequence[Path]],
    mpp: Mapping[str, float | None],
    others: int,
) -> Brought:
    """Counts of a folder, and what a few of its files say, evenly spaced."""
    from pathfm_kedro.encoders.features.cohort import FeatureFile
    from pathfm_kedro.encoders.features.finding import two_files

    text = f"{spec.name}: {len(own)} of {len(mpp)} slides have a file"
    text += f", {others} of the files are named after no slide of the manifest" if others else ""
    read: dict[str, SlideFeatures] = {}
    problems = {slide: two_files(slide, paths) for slide, paths in own.items() if len(paths) > 1}
    single = [slide for slide in own if slide not in problems]
    for slide in single[:: max(-(-len(single) // _LOOKED_AT), 1)]:
        try:
            features = FeatureFile(slide, (own[slide][0],), spec, mpp[slide]).read()
            refuse_other_dimension(spec.name, entry, features.dimension)
            read[slide] = features
        except (OSError, ValueError, ImportError) as error:
            problems[slide] = str(error)
    if read:
        layouts = ", ".join(dict.fromkeys(one.layout for one in read.values()))
        lengths = " or ".join(dict.fromkeys(str(one.dimension) for one in read.values()))
        levels = " or ".join(dict.fromkeys(one.level for one in read.values()))
        text += f"; layout {layouts}, {lengths} numbers a vector, one per {levels}"
        preset = read_presets().get(spec.name)
        if preset and preset.dimension and str(preset.dimension) != lengths:
            text += f"; published of {preset.name} are {preset.dimension} numbers"
    lines = [f"  {slide}: {problem}" for slide, problem in list(problems.items())[:_LISTED]]
    lines += [f"  and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return Brought("\n".join([text, *lines]), next(iter(read.values())).level if read else "")


def write_features(folder: Path, brought: Mapping[str, Path], looks: Mapping[str, Brought]) -> None:
    """Entries of the encoders, and where tiles lie: at the first that has vectors of tiles."""
    if not brought:
        return
    entries = entries_of(brought, folder.parents[1])
    write_yaml(
        folder / "parameters_encoders.yml",
        "Encoders of which there are vectors in files; docs/features.md.",
        {"encoders": entries},
    )
    of_tiles = [name for name, look in looks.items() if look.level != "slide"]
    if of_tiles:
        write_yaml(
            folder / "parameters_tile.yml",
            "Tiles lie where these files have vectors: controls are run at the same places.",
            {"tile": {"at": of_tiles[0]}},
        )
