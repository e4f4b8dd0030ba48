"""Project commands: ``kedro cohort manifest | new | list | estimate | sync``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.utils import LazyGroup

from pathfm_kedro.cohorts import (
    harmonised_bases,
    read_cohort_plan,
    refuse_unknown_cohort,
    seeds_of_rivals,
    tiles_of_cohort,
    weights_path,
)
from pathfm_kedro.project import project_root
from pathfm_kedro.screen import show_errors

#: What DVC watches where an entry names no weights of its own. A stage cannot leave a dependency out;
#: this one lies in a folder that the stage depends on anyway, so it changes nothing.
_NO_WEIGHTS = "src/pathfm_kedro/encoders/weights.py"
#: The same where no file says where the cohort's tiles lie.
_NO_PLACES = "src/pathfm_kedro/slides/mosaic.py"
#: A cohort names a folder, a Kedro environment and a DVC stage.
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = {"base", "local"}
#: Files of each folder of features that are read when a cohort is made; a run reads all.
_LOOKED_AT = 3

_PARAMETERS = """\
# What this cohort changes of conf/base/{name}; only what differs belongs here.
{body}"""

#: An example in files that are changed most.
_EXAMPLES = {
    "ingest": "# ingest:\n#   cramers_v_warning: 0.5\n",
    "tile": "# tile:\n#   mpp: 0.25\n",
    "embed": "# embed:\n#   dtype: float16\n",
    "encoders": (
        "# encoders:\n"
        "#   uni:                              # your own name for it\n"
        "#     model: hf-hub:MahmoodLab/UNI    # or local-dir:<folder>, timm:<name>\n"
        "#   efficientnet_lite0: null          # leaves an encoder of conf/base out\n"
    ),
    "retrieve": "# retrieval:\n#   n_permutations: 200\n",
    "robustness": "# robustness_index:\n#   n_permutations: 200\n",
    "inheritance": "# linear_probe:\n#   probe:\n#     folds: 5\n",
    "report": "# report:\n#   alpha: 0.05\n",
    "words_robustness": ("# words_robustness:\n#   rotation:\n#     title: 'Rotation: …'\n"),
}


@click.group(name="cohort")
def cohort() -> None:
    """Add and list the cohorts of this project: one per institution's audit."""


#: Loaded when called for: Kedro asks for this group whatever the command is.
@click.group(
    cls=LazyGroup,
    lazy_subcommands={
        "run": "pathfm_kedro.kedro_commands.run",
        "package": "pathfm_kedro.kedro_commands.package",
        "encoders": "pathfm_kedro.encoders_cli.encoders",
        "features": "pathfm_kedro.feature_commands.features",
        "search": "pathfm_kedro.search_command.search",
    },
)
def cli() -> None:
    """Commands of this project."""


cli.add_command(cohort)
show_errors()


@cohort.command("new")
@click.argument("name")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV or Parquet: slide_id, path (relative to the manifest's folder), patient_id, center, "
    "label; optional organ, scanner, mpp; further columns are kept.",
)
@click.option(
    "--phantom",
    is_flag=True,
    help="Draw a phantom cohort of its own instead of reading a manifest.",
)
@click.option(
    "--features",
    multiple=True,
    metavar="NAME=FOLDER",
    help="An encoder whose vectors lie in FOLDER, a file for each slide (TRIDENT, CLAM, STAMP, …); "
    "once for each encoder. The manifest's path may then be empty for every slide.",
)
@click.option(
    "--size",
    type=click.Choice(["quick", "standard", "full"]),
    help="How large the audit is, audit.size: standard by default, quick for a phantom.",
)
def new(
    name: str, manifest: Path | None, phantom: bool, features: tuple[str, ...], size: str | None
) -> None:
    """Add the cohort NAME: check its manifest, write conf/NAME/ and add it to params.yaml."""
    root = project_root()
    folder = root / "conf" / name
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise click.ClickException(
            f"'{name}' cannot name a cohort: use lower-case letters, digits and '_', beginning with "
            "a letter, and not 'base' or 'local'"
        )
    if folder.exists():
        raise click.ClickException(f"conf/{name} exists: choose another name or remove it first")
    if (manifest is None) == (not phantom):
        raise click.ClickException("give either --manifest FILE or --phantom")
    if features and manifest is None:
        raise click.ClickException("--features goes with --manifest FILE, which names the slides")
    brought = _feature_folders(features, root)
    if manifest is not None:
        slides_root = _slides_root(manifest)
        relative = _relative(slides_root, root)
        if "${" in relative:
            raise click.ClickException(
                f"the manifest lies in '{relative}', and what stands in ${{…}} is read as a "
                "reference in YAML files: rename the folder"
            )
        source = "features" if brought and _without_paths(manifest) else "manifest"
        summary = _check(manifest, slides_root, source)
        looks = _check_features(manifest, brought, source)
        _write_conf(folder, name, relative, source, size or "standard")
        _write_features(folder, brought, looks)
        _copy_manifest(manifest, folder / "manifest.csv")
        for line in looks.values():
            click.echo(line.text)
    else:
        summary = "a phantom, to be drawn from conf/base/parameters_ingest.yml"
        _write_conf(folder, name, f"data/{name}/01_raw", "phantom", size or "quick")
    sync_stages(root)
    if manifest is not None:
        click.echo(
            f"conf/{name}/manifest.csv is a copy of the manifest, patient ids included: keep this "
            "repository as private as the manifest is"
        )
    first = "" if brought else f" name your encoders in conf/{name}/parameters_encoders.yml, then"
    click.echo(
        f"conf/{name}/ written: {summary}\n"
        f"Next:{first}\n"
        f"  kedro run --env {name}\n"
        f"or reproducibly:\n"
        f"  kedro cohort sync && dvc repro report@{name}"
    )


@cohort.command("manifest")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The manifest, in FOLDER or above it; FOLDER/slides.csv by default.",
)
@click.option(
    "--levels",
    default="center/label/patient",
    show_default=True,
    help="What the folders stand for, from the outermost. Without patient every file is a patient of "
    "its own; other names become columns.",
)
@click.option(
    "--mpp", type=float, help="Micrometres per pixel of every file; needed by PNG and JPEG."
)
def make_manifest(folder: Path, output: Path | None, levels: str, mpp: float | None) -> None:
    """Write a manifest of the slides or images in FOLDER from the names of its folders."""
    from pathfm_kedro.folders import FolderError, list_folder, parse_levels

    target = output or folder / "slides.csv"
    if target.exists():
        raise click.ClickException(f"{target} exists: give another --output or remove it first")
    if not target.parent.is_dir():
        raise click.ClickException(f"{target.parent} does not exist: make the folder first")
    try:
        listing = list_folder(folder, parse_levels(levels), target.parent, mpp)
    except FolderError as error:
        raise click.ClickException(str(error)) from error
    table = listing.manifest
    table.write_csv(target)
    for warning in listing.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(
        f"{target} written: {table.height} slides, {table['patient_id'].n_unique()} patients, "
        f"{table['center'].n_unique()} centers, {table['label'].n_unique()} labels\n"
        f"Next: look at it, then\n"
        f"  kedro cohort new NAME --manifest {target}"
    )


@cohort.command("list")
def list_cohorts() -> None:
    """List the cohorts with their encoders."""
    root = project_root()
    for name in _cohorts(root):
        plan = read_cohort_plan(name, str(root / "conf"))
        click.echo(f"{name}: {plan.source}; {', '.join(plan.encoders)}")


@cohort.command("estimate")
@click.argument("name")
@click.option("--size", help="Another audit.size than the cohort's: quick, standard, full.")
@click.option(
    "--trial",
    is_flag=True,
    help="Load encoders whose speed is not recorded and time them on blank tiles, some seconds each.",
)
def estimate(name: str, size: str | None, trial: bool) -> None:
    """Say what an audit of the cohort NAME will take, and which checks cannot pass at its size."""
    from kedro.framework.session import KedroSession

    from pathfm_kedro.estimate import estimate_lines, is_timed, tried_speed
    from pathfm_kedro.hooks import known_size, known_speeds, too_small_checks

    root = project_root()
    given = {"audit": {"size": size}} if size else None
    refuse_unknown_cohort(name, root / "conf")
    session = KedroSession.create(root, env=name, runtime_params=given)
    with session:
        context = session.load_context()
        catalog, parameters = context.catalog, context.params
        found, speeds = known_size(catalog, parameters), known_speeds(catalog, parameters)
    if found is None:
        raise click.ClickException(
            f"the manifest of cohort {name} is not there: correct 'manifest' in "
            f"conf/{name}/globals.yml"
        )
    if trial:
        pixels = int(parameters["tile"]["pixels"])
        for encoder, speed in speeds.items():
            entry = parameters["encoders"][encoder]
            if speed.seconds is None and is_timed(entry):
                speeds[encoder] = tried_speed(encoder, entry, speed, pixels)
    click.echo(f"cohort {name}, " + "\n".join(estimate_lines(parameters, found, speeds)))
    for line in too_small_checks(parameters, found.patients):
        click.echo(line)
    untimed = [encoder for encoder, speed in speeds.items() if speed.seconds is None]
    if any(is_timed(parameters["encoders"][encoder]) for encoder in untimed):
        click.echo(f"Hours of what was never timed: kedro cohort estimate {name} --trial")


@cohort.command("sync")
def sync() -> None:
    """Write the cohorts and encoders of conf/ to params.yaml, from which DVC makes its stages."""
    root = project_root()
    sync_stages(root)
    click.echo(f"params.yaml lists {', '.join(_cohorts(root))}")


def dvc_parameters(root: Path) -> dict[str, Any]:
    """What params.yaml must hold for the cohorts in conf/.

    Parameters
    ----------
    root
        The project's folder.

    Returns
    -------
    dict
        ``cohorts`` (what DVC watches of each: the manifest, or what was drawn),
        ``phantoms`` (cohorts whose slides are drawn),
        ``embeddings`` (every pair of cohort and encoder, and the encoder's weights where its entry
        names a file or folder), ``features`` (those that are read from files, of tiles of their own),
        ``rivals`` (encoders that are trained on the cohort, with their seed)
        and ``variants`` (those whose vectors are another encoder's with the center taken out).
    """
    plans = {name: read_cohort_plan(name, str(root / "conf")) for name in _cohorts(root)}
    tiles = {name: tiles_of_cohort(plan) for name, plan in plans.items()}
    brought = {name: own.grids.keys() & set(own.features) for name, own in tiles.items()}
    return {
        "cohorts": {
            name: {
                "input": _globals(root, name)[_watched(plan.source)],
                "places": weights_path(plan.encoders.get(tiles[name].at, {})) or _NO_PLACES,
                "grids": ", ".join(sorted(tiles[name].sizes)),
            }
            for name, plan in plans.items()
        },
        "phantoms": {
            name: {"slides_root": _globals(root, name)["slides_root"]}
            for name, plan in plans.items()
            if plan.source == "phantom"
        },
        "embeddings": {
            f"{name}-{encoder}": {
                "cohort": name,
                "encoder": encoder,
                "weights": weights_path(entry) or _NO_WEIGHTS,
            }
            for name, plan in plans.items()
            for encoder, entry in plan.encoders.items()
            if encoder not in harmonised_bases(plan.encoders) | seeds_of_rivals(plan.encoders)
            and encoder not in brought[name]
        },
        "rivals": {
            f"{name}-{encoder}": {"cohort": name, "encoder": encoder, "seed": str(seed)}
            for name, plan in plans.items()
            for encoder, seed in seeds_of_rivals(plan.encoders).items()
        },
        "features": {
            f"{name}-{encoder}": {
                "cohort": name,
                "encoder": encoder,
                "folder": weights_path(plans[name].encoders[encoder]),
            }
            for name, encoders in brought.items()
            for encoder in sorted(encoders)
        },
        "variants": {
            f"{name}-{encoder}": {"cohort": name, "encoder": encoder, "base": base}
            for name, plan in plans.items()
            for encoder, base in harmonised_bases(plan.encoders).items()
        },
    }


def _watched(source: str) -> str:
    """A manifest stands for terabytes of pixels; a phantom's pixels are few and change with it."""
    return "slides_root" if source == "phantom" else "manifest"


def sync_stages(root: Path) -> None:
    """Write params.yaml, from which DVC makes its stages."""
    import yaml

    text = (
        "# The cohorts that `dvc repro` audits. Written by `kedro cohort new` and `kedro cohort sync`\n"
        "# from the folders in conf/; run the latter after adding an encoder to a cohort.\n"
    )
    listed = yaml.safe_dump(dvc_parameters(root), sort_keys=True, default_flow_style=False)
    (root / "params.yaml").write_text(text + listed, encoding="utf-8")


def _cohorts(root: Path) -> list[str]:
    found = {path.parent.name for path in (root / "conf").glob("*/globals.yml")} - _TAKEN
    for name in sorted(found):
        refuse_unknown_cohort(name, root / "conf")
    return sorted(found)


def _globals(root: Path, name: str) -> dict[str, str]:
    import yaml

    text = (root / "conf" / name / "globals.yml").read_text(encoding="utf-8")
    loaded: dict[str, str] = yaml.safe_load(text)
    return loaded


def _slides_root(manifest: Path) -> Path:
    """The folder that a manifest's paths start from; of a link the one where the slides lie.

    A link may stand beside the slides, as DVC keeps files, or lead to the manifest beside them.
    """
    beside_link, beside_file = manifest.parent.resolve(), manifest.resolve().parent
    if beside_link == beside_file:
        return beside_file
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    try:
        listed = read_manifest_file(manifest)
    except (OSError, ValueError):
        # What is wrong with it is said where the manifest is checked.
        return beside_link
    paths = listed["path"].drop_nulls().to_list() if "path" in listed.columns else []
    here, there = (
        sum((folder / path).exists() for path in paths) for folder in (beside_link, beside_file)
    )
    return beside_file if there > here else beside_link


def _check(manifest: Path, slides_root: Path, source: str) -> str:
    """Validate a manifest and every path in it; a line that sums it up."""
    import polars as pl

    from pathfm_kedro.datasets.slide_files import read_manifest_file
    from pathfm_kedro.pipelines.ingest.manifest import check_features_manifest, check_manifest
    from pathfm_kedro.slides.files import SlideError, SlideFiles

    check = check_features_manifest if source == "features" else check_manifest
    try:
        listed = check(read_manifest_file(manifest))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    files = SlideFiles(slides_root)
    reasons = []
    for slide_id, path, reason in listed.select("slide_id", "path", "reason").iter_rows():
        try:
            if not reason and source != "features":
                files.resolve(path)
        except SlideError as error:
            reason = str(error)
        if reason:
            reasons.append(f"  {slide_id}: {reason}")
    for line in reasons[:20]:
        click.echo(line, err=True)
    if len(reasons) > 20:
        click.echo(f"  … and {len(reasons) - 20} more", err=True)
    if len(reasons) == listed.height:
        raise click.ClickException("no slide of this manifest can be used")
    good = listed.filter(pl.col("status") == "listed")
    fine = "features, no slides" if source == "features" else "every file is there"
    problems = f"{len(reasons)} with problems, listed above" if reasons else fine
    return (
        f"{listed.height} slides ({problems}), "
        f"{good['patient_id'].n_unique()} patients, {good['center'].n_unique()} centers, "
        f"{good['label'].n_unique()} labels"
    )


@dataclass(frozen=True)
class _Brought:
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


def _feature_folders(given: Sequence[str], root: Path) -> dict[str, Path]:
    """Folder of each encoder as it was typed."""
    from pathfm_kedro.encoders.spec import EncoderSpec

    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        path = Path(folder).expanduser()
        if not equals or not folder or name in found:
            raise click.ClickException(
                f"--features '{text}': write <encoder>=<folder>, such as uni=../job/features_uni, once "
                "for each encoder"
            )
        try:
            EncoderSpec(name, f"features:{folder}")
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        if not path.is_dir():
            raise click.ClickException(f"--features '{text}': there is no folder '{folder}'")
        if "${" in _relative(path.resolve(), root):
            raise click.ClickException(
                f"--features '{text}': what stands in ${{…}} is read as a reference in YAML files: "
                "rename the folder"
            )
        found[name] = path
    return found


def _without_paths(manifest: Path) -> bool:
    """Whether a manifest names no file of any slide."""
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    try:
        listed = read_manifest_file(manifest)
    except (OSError, ValueError):
        # What is wrong with it is said where the manifest is checked.
        return False
    return "path" not in listed.columns or not any(listed["path"].fill_null("").str.strip_chars())


def _check_features(
    manifest: Path, brought: Mapping[str, Path], source: str
) -> dict[str, _Brought]:
    """Hold each folder against the manifest, and read a few of its files."""
    from pathfm_kedro.datasets.slide_files import read_manifest_file
    from pathfm_kedro.encoders.features import FeatureFileError
    from pathfm_kedro.encoders.features.finding import list_feature_files
    from pathfm_kedro.pipelines.ingest.manifest import check_features_manifest

    if not brought:
        return {}
    listed = check_features_manifest(read_manifest_file(manifest))
    mpp = dict(listed.select("slide_id", "mpp").iter_rows())
    found = {}
    for name, folder in brought.items():
        try:
            files = list_feature_files(folder, list(mpp))
        except FeatureFileError as error:
            raise click.ClickException(f"--features {name}: {error}") from error
        own = {slide: paths for slide, paths in files.items() if slide in mpp}
        if not own:
            raise click.ClickException(
                f"--features {name}: none of the {len(files)} files in {folder} is named after a slide "
                f"of the manifest: the first is about '{next(iter(files))}', the manifest's first "
                f"slide_id is '{next(iter(mpp))}'"
            )
        found[name] = _look_at(name, own, mpp, len(files) - len(own))
    return found


def _look_at(
    name: str, own: Mapping[str, Sequence[Path]], mpp: Mapping[str, float | None], others: int
) -> _Brought:
    """Counts of a folder, and what the first of its files say."""
    from pathfm_kedro.encoders.features import read_features, refuse_other_encoder

    text = f"{name}: {len(own)} of {len(mpp)} slides have a file"
    text += f", {others} files are of other slides" if others else ""
    read, problems = [], []
    for slide in list(own)[:_LOOKED_AT]:
        try:
            features = read_features(own[slide][0], slide_id=slide, slide_mpp=mpp[slide])
            refuse_other_encoder(features, name)
            read.append(features)
        except (OSError, ValueError, ImportError) as error:
            problems.append(f"  {slide}: {error}")
    if read:
        first = read[0]
        text += (
            f"; layout {first.layout}, {first.dimension} numbers a vector, one per {first.level}"
        )
    return _Brought("\n".join([text, *problems]), read[0].level if read else "")


def _write_features(
    folder: Path, brought: Mapping[str, Path], looks: Mapping[str, _Brought]
) -> None:
    """Entries of the encoders, and where tiles lie: at the first that has vectors of tiles."""
    if not brought:
        return
    root = folder.parents[1]
    entries = {
        name: {"model": f"features:{_relative(path.resolve(), root)}"}
        for name, path in brought.items()
    }
    _write_yaml(
        folder / "parameters_encoders.yml",
        "Encoders of which there are vectors in files; docs/features.md.",
        {"encoders": entries},
    )
    of_tiles = [name for name, look in looks.items() if look.level != "slide"]
    if of_tiles:
        _write_yaml(
            folder / "parameters_tile.yml",
            "Tiles lie where these files have vectors: controls are run at the same places.",
            {"tile": {"at": of_tiles[0]}},
        )


def _copy_manifest(source: Path, target: Path) -> None:
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    read_manifest_file(source).write_csv(target)


def _write_conf(folder: Path, name: str, slides_root: str, source: str, size: str) -> None:
    folder.mkdir(parents=True)
    manifest = f"{slides_root}/manifest.csv" if source == "phantom" else f"conf/{name}/manifest.csv"
    globals_ = {"root": f"data/{name}", "slides_root": slides_root, "manifest": manifest}
    _write_yaml(
        folder / "globals.yml",
        "Where this cohort's data lies; the manifest's paths start from slides_root.",
        globals_,
    )
    _write_yaml(
        folder / "parameters.yml",
        "What this cohort is, and how large its audit: quick, standard or full.",
        {"cohort": {"name": name, "source": source}, "audit": {"size": size}},
    )
    # One for each file of the defaults: `dvc repro` asks for all of them.
    for path in sorted((folder.parent / "base").glob("parameters_*.yml")):
        body = _EXAMPLES.get(path.stem.removeprefix("parameters_"), "")
        text = _PARAMETERS.format(name=path.name, body=body)
        (folder / path.name).write_text(text, encoding="utf-8")
    if source == "phantom":
        phantom = Path(folder.parent / "phantom" / "parameters_encoders.yml")
        (folder / "parameters_encoders.yml").write_text(
            phantom.read_text(encoding="utf-8"), encoding="utf-8"
        )


def _write_yaml(path: Path, comment: str, content: dict[str, Any]) -> None:
    import yaml

    path.write_text(f"# {comment}\n{yaml.safe_dump(content, sort_keys=False)}", encoding="utf-8")


def _relative(folder: Path, root: Path) -> str:
    """Relative to the project where the two share a disk, so that a checkout can be moved."""
    try:
        return Path(os.path.relpath(folder, root)).as_posix()
    except ValueError:
        return folder.as_posix()
