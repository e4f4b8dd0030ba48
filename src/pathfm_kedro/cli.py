"""Project commands: ``kedro cohort manifest | new | list | estimate | compare | verify | sync``."""

from __future__ import annotations

import re
from pathlib import Path

import click
from kedro.framework.cli.utils import LazyGroup

from pathfm_kedro.cohorts import read_cohort_plan, refuse_unknown_cohort
from pathfm_kedro.dvc_stages import RESERVED, cohort_names, sync_stages
from pathfm_kedro.new_features import (
    check_features,
    feature_folders,
    without_paths,
    write_features,
)
from pathfm_kedro.project import path_from, project_root, write_yaml
from pathfm_kedro.screen import show_errors

#: A cohort names a folder, a Kedro environment and a DVC stage.
_NAME = re.compile(r"[a-z][a-z0-9_]*")
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


@click.group(
    name="cohort",
    cls=LazyGroup,
    lazy_subcommands={
        "compare": "pathfm_kedro.compare_commands.compare",
        "verify": "pathfm_kedro.compare_commands.verify",
    },
)
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
        "triplets": "pathfm_kedro.triplet_commands.triplets",
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
def new(
    name: str, manifest: Path | None, phantom: bool, features: tuple[str, ...], size: str | None
) -> None:
    """Add the cohort NAME: check its manifest, write conf/NAME/ and add it to params.yaml."""
    root = project_root()
    folder = root / "conf" / name
    if not _NAME.fullmatch(name) or name in RESERVED:
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
    brought = feature_folders(features, root)
    if manifest is not None:
        slides_root = _slides_root(manifest)
        relative = path_from(slides_root, root)
        if "${" in relative:
            raise click.ClickException(
                f"the manifest lies in '{relative}', and what stands in ${{…}} is read as a "
                "reference in YAML files: rename the folder"
            )
        source = "features" if brought and without_paths(manifest) else "manifest"
        summary = _check(manifest, slides_root, source)
        looks = check_features(manifest, brought, source)
        again = source == "manifest" and _shows_tissue_again(manifest)
        _write_conf(folder, name, relative, source, size or "standard", again)
        write_features(folder, brought, looks)
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
@click.option(
    "--layout",
    type=click.Choice(["folders", "rescans", "plism"]),
    default="folders",
    show_default=True,
    help="rescans: the same tissue lies under the same names in folders of scanner or stain, which "
    "--levels holds. plism: files named <stain>_<scanner>_to_<stain>_<scanner>, whatever the folders.",
)
def make_manifest(
    folder: Path, output: Path | None, levels: str, mpp: float | None, layout: str
) -> None:
    """Write a manifest of the slides or images in FOLDER from the names of its folders."""
    from pathfm_kedro.folders import FolderError, list_folder, parse_levels
    from pathfm_kedro.rescans import list_plism, list_rescans

    target = output or folder / "slides.csv"
    if target.exists():
        raise click.ClickException(f"{target} exists: give another --output or remove it first")
    if not target.parent.is_dir():
        raise click.ClickException(f"{target.parent} does not exist: make the folder first")
    try:
        if layout == "plism":
            listing = list_plism(folder, target.parent, mpp)
        else:
            read = list_rescans if layout == "rescans" else list_folder
            listing = read(folder, parse_levels(levels), target.parent, mpp)
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
    click.echo(f"params.yaml lists {', '.join(cohort_names(root))}")


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


def _copy_manifest(source: Path, target: Path) -> None:
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    read_manifest_file(source).write_csv(target)


def _shows_tissue_again(manifest: Path) -> bool:
    """Whether some slide names another whose tissue it shows."""
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    table = read_manifest_file(manifest)
    return "same_tissue_as" in table.columns and bool((table["same_tissue_as"] != "").any())


def _write_conf(
    folder: Path, name: str, slides_root: str, source: str, size: str, same_tissue: bool = False
) -> None:
    folder.mkdir(parents=True)
    manifest = f"{slides_root}/manifest.csv" if source == "phantom" else f"conf/{name}/manifest.csv"
    globals_ = {"root": f"data/{name}", "slides_root": slides_root, "manifest": manifest}
    write_yaml(
        folder / "globals.yml",
        "Where this cohort's data lies; the manifest's paths start from slides_root.",
        globals_,
    )
    write_yaml(
        folder / "parameters.yml",
        "What this cohort is, and how large its audit: quick, standard or full.",
        {
            "cohort": {"name": name, "source": source}
            | ({"same_tissue": True} if same_tissue else {}),
            "audit": {"size": size},
        },
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
