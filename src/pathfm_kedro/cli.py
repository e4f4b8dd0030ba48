"""Project commands: ``kedro cohort manifest | new | list | estimate | compare | verify | sync``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.cli.utils import LazyGroup

from pathfm_kedro.cohorts import read_cohort_plan, refuse_unknown_cohort
from pathfm_kedro.commands.new_cohort import (
    checked_slides,
    copy_manifest,
    design_lines,
    shows_tissue_again,
    slides_root_of,
    write_conf,
    write_tiles,
)
from pathfm_kedro.commands.new_features import (
    check_features,
    entries_of,
    feature_folders,
    without_paths,
    write_features,
)
from pathfm_kedro.dvc_stages import RESERVED, cohort_names, sync_stages
from pathfm_kedro.manifests.layouts import LAYOUTS, layout_parameters, list_layout
from pathfm_kedro.project import path_from, project_root
from pathfm_kedro.screen import show_errors

if TYPE_CHECKING:
    from pathfm_kedro.estimate.sizes import CohortSize
    from pathfm_kedro.estimate.speed import Speed

#: A cohort names a folder, a Kedro environment and a DVC stage.
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@click.group(
    name="cohort",
    cls=LazyGroup,
    lazy_subcommands={
        "compare": "pathfm_kedro.commands.compare.compare",
        "verify": "pathfm_kedro.commands.compare.verify",
    },
)
def cohort() -> None:
    """Add and list the cohorts of this project: one per institution's audit."""


#: Loaded when called for: Kedro asks for this group whatever the command is.
@click.group(
    cls=LazyGroup,
    lazy_subcommands={
        "run": "pathfm_kedro.commands.kedro_commands.run",
        "package": "pathfm_kedro.commands.kedro_commands.package",
        "encoders": "pathfm_kedro.commands.encoders.encoders",
        "features": "pathfm_kedro.commands.features.features",
        "search": "pathfm_kedro.commands.search.search",
        "triplets": "pathfm_kedro.commands.triplets.triplets",
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
    "label; optional organ, scanner, stain, mpp, same_tissue_as; further columns are kept.",
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
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="As of kedro cohort manifest: takes what conf/scenarios holds for such cohorts.",
)
def new(
    name: str,
    manifest: Path | None,
    phantom: bool,
    features: tuple[str, ...],
    size: str | None,
    layout: str | None,
) -> None:
    """Add the cohort NAME: look at its manifest and slides, write conf/NAME/, add it to params.yaml."""
    root = project_root()
    folder = root / "conf" / name
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise click.ClickException(
            f"'{name}' cannot name a cohort: use lower-case letters, digits and '_', beginning with "
            f"a letter, and none of {', '.join(sorted(RESERVED))}"
        )
    if folder.exists():
        raise click.ClickException(f"conf/{name} exists: choose another name or remove it first")
    if (manifest is None) == (not phantom):
        raise click.ClickException("give either --manifest FILE or --phantom")
    if (features or layout) and manifest is None:
        option = "--features" if features else "--layout"
        raise click.ClickException(f"{option} goes with --manifest FILE, which names the slides")
    if manifest is None:
        summary = "a phantom, to be drawn from conf/base/parameters_ingest.yml"
        write_conf(folder, name, f"data/{name}/01_raw", "phantom", size or "quick")
        sync_stages(root)
    else:
        summary = _take_in(manifest, folder, features, size or "standard", layout)
    entries = f"conf/{name}/parameters_encoders.yml"
    first = "" if features else f" name your encoders in {entries} (see kedro encoders list), then"
    click.echo(
        f"conf/{name}/ written: {summary}\n"
        f"Next:{first}\n"
        f"  kedro run --env {name}\n"
        f"or reproducibly:\n"
        f"  kedro cohort sync && dvc repro report@{name}"
    )


def _take_in(
    manifest: Path, folder: Path, features: tuple[str, ...], size: str, layout: str | None
) -> str:
    """Write a cohort that an institution brings and say what it is; a line that sums it up."""
    from pathfm_kedro.commands.first_look import without_mpp

    root, name = folder.parents[1], folder.name
    brought = feature_folders(features, root)
    slides_root = slides_root_of(manifest)
    relative = path_from(slides_root, root)
    if "${" in relative:
        raise click.ClickException(
            f"the manifest lies in '{relative}', and what stands in ${{…}} is read as a "
            "reference in YAML files: rename the folder"
        )
    source = "features" if brought and without_paths(manifest) else "manifest"
    listed, sizes, summary = checked_slides(manifest, slides_root, source)
    looks = check_features(manifest, entries_of(brought, root))
    changes = layout_parameters(root / "conf", layout)
    if source == "manifest" and shows_tissue_again(manifest):
        changes["parameters.yml"] = {"cohort": {"same_tissue": True}}
    write_conf(folder, name, relative, source, size, changes)
    write_features(folder, brought, looks)
    copy_manifest(manifest, folder / "manifest.csv")
    for look in looks.values():
        click.echo(look.text)
    parameters = read_cohort_plan(name, str(root / "conf")).parameters
    # Where files of features say where tiles lie, slides have no say in it.
    tiles = "" if brought else write_tiles(folder, sizes, parameters["tile"])
    for line in filter(None, [without_mpp(sizes), tiles, *design_lines(parameters, listed)]):
        click.echo(line)
    sync_stages(root)
    click.echo(
        f"conf/{name}/manifest.csv is a copy of the manifest, patient ids included: keep this "
        "repository as private as the manifest is"
    )
    return summary


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
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default="folders",
    show_default=True,
    help="rescans: the same tissue lies under the same names in folders of scanner or stain, which "
    "--levels holds. Published cohorts, whatever the folders: plism, camelyon17, tcga, pathorob "
    "(docs/public_cohorts.md).",
)
def make_manifest(
    folder: Path, output: Path | None, levels: str, mpp: float | None, layout: str
) -> None:
    """Write a manifest of the slides or images in FOLDER from the names of its folders."""
    from pathfm_kedro.manifests.folders import FolderError

    target = output or folder / "slides.csv"
    if target.exists():
        raise click.ClickException(f"{target} exists: give another --output or remove it first")
    if not target.parent.is_dir():
        raise click.ClickException(f"{target.parent} does not exist: make the folder first")
    try:
        listing = list_layout(layout, folder, levels, target.parent, mpp)
    except FolderError as error:
        raise click.ClickException(str(error)) from error
    table = listing.manifest
    table.write_csv(target)
    for warning in listing.warnings:
        click.echo(f"Warning: {warning}", err=True)
    taken = "" if layout == "folders" else f" --layout {layout}"
    click.echo(
        f"{target} written: {table.height} slides, {table['patient_id'].n_unique()} patients, "
        f"{table['center'].n_unique()} centers, {table['label'].n_unique()} labels\n"
        f"Next: look at it, then\n"
        f"  kedro cohort new NAME --manifest {target}{taken}"
    )


@cohort.command("list")
def list_cohorts() -> None:
    """List the cohorts with their encoders."""
    root = project_root()
    for name in cohort_names(root):
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

    from pathfm_kedro.commands.supported_checks import too_small_checks
    from pathfm_kedro.estimate.estimate import (
        entries_of,
        estimate_lines,
        is_timed,
        networks_of_arms,
    )
    from pathfm_kedro.hooks import known_size, known_speeds

    root = project_root()
    given = {"audit": {"size": size}} if size else None
    refuse_unknown_cohort(name, root / "conf")
    session = KedroSession.create(root, env=name, runtime_params=given)
    with session:
        context = session.load_context()
        catalog, parameters = context.catalog, context.params
        found = known_size(catalog, parameters)
    if found is None:
        raise click.ClickException(
            f"the manifest of cohort {name} is not there: correct 'manifest' in "
            f"conf/{name}/globals.yml"
        )
    try:
        speeds = known_speeds(catalog, parameters)
        if trial:
            speeds = _tried(parameters, found, speeds)
        lines = estimate_lines(parameters, found, speeds)
        arms = () if trial else networks_of_arms(parameters, found)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"cohort {name}, " + "\n".join(lines))
    for line in too_small_checks(parameters, found.patients):
        click.echo(line)
    untimed = [encoder for encoder, speed in speeds.items() if speed.seconds is None]
    entries = entries_of(parameters)
    if arms or any(is_timed(entries[encoder]) for encoder in untimed):
        click.echo(f"Hours of what was never timed: kedro cohort estimate {name} --trial")


def _tried(
    parameters: Mapping[str, Any], size: CohortSize, speeds: Mapping[str, Speed]
) -> dict[str, Speed]:
    """Speeds with those of networks that have none yet, timed now."""
    from pathfm_kedro.estimate.estimate import entries_of, is_timed, networks_of_arms
    from pathfm_kedro.estimate.speed import tried_small_network, tried_speed

    pixels, side = int(parameters["tile"]["pixels"]), int(parameters["arms"]["side"])
    found, entries = dict(speeds), entries_of(parameters)
    for name, speed in speeds.items():
        entry = entries[name]
        if speed.seconds is None and is_timed(entry):
            found[name] = tried_speed(name, entry, speed, pixels)
    small = networks_of_arms(parameters, size)
    return found | {n: tried_small_network(n.partition(":")[2], side) for n in small}


@cohort.command("sync")
def sync() -> None:
    """Write the cohorts and encoders of conf/ to params.yaml, from which DVC makes its stages."""
    root = project_root()
    sync_stages(root)
    click.echo(f"params.yaml lists {', '.join(cohort_names(root))}")
