"""A new cohort: its manifest and slides are looked at, its folder in conf/ is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathfm_kedro.project import write_yaml

if TYPE_CHECKING:
    import polars as pl

    from pathfm_kedro.commands.first_look import SlideSize

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
#: Slides with problems that are named one by one.
_NAMED = 20


def slides_root_of(manifest: Path) -> Path:
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


def checked_slides(
    manifest: Path, slides_root: Path, source: str
) -> tuple[pl.DataFrame, list[SlideSize], str]:
    """Check a manifest and open its slides; those with problems are shown, the rest goes on.

    Parameters
    ----------
    manifest, slides_root
        The file, and the folder that its paths start from.
    source
        ``manifest``, or ``features`` where there are no slides.

    Returns
    -------
    listed
        As of ``check_manifest``; a slide that cannot be opened is "unusable" with the reason.
    sizes
        Of the slides that were opened.
    summary
        A line that sums it up.
    """
    import polars as pl

    from pathfm_kedro.commands.first_look import opened_slides
    from pathfm_kedro.datasets.slide_files import read_manifest_file
    from pathfm_kedro.pipelines.ingest.manifest import check_features_manifest, check_manifest

    check = check_features_manifest if source == "features" else check_manifest
    try:
        listed = check(read_manifest_file(manifest))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    sizes: list[SlideSize] = []
    if source != "features":
        sizes, closed = opened_slides(listed, slides_root)
        found = pl.col("slide_id").replace_strict(closed, default="", return_dtype=pl.String())
        listed = listed.with_columns(
            reason=pl.when(found != "").then(found).otherwise("reason"),
            status=pl.when(found != "").then(pl.lit("unusable")).otherwise("status"),
        )
    bad = listed.filter(pl.col("reason") != "").select("slide_id", "reason").rows()
    for slide_id, reason in bad[:_NAMED]:
        click.echo(f"  {slide_id}: {reason}", err=True)
    if len(bad) > _NAMED:
        click.echo(f"  … and {len(bad) - _NAMED} more", err=True)
    if len(bad) == listed.height:
        raise click.ClickException("no slide of this manifest can be used")
    good = listed.filter(pl.col("status") == "listed")
    fine = "features, no slides" if source == "features" else "every file is there"
    problems = f"{len(bad)} with problems, listed above" if bad else fine
    summary = (
        f"{listed.height} slides ({problems}), "
        f"{good['patient_id'].n_unique()} patients, {good['center'].n_unique()} centers, "
        f"{good['label'].n_unique()} labels"
    )
    return listed, sizes, summary


def copy_manifest(source: Path, target: Path) -> None:
    """Write a manifest as CSV."""
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    read_manifest_file(source).write_csv(target)


def shows_tissue_again(manifest: Path) -> bool:
    """Whether some slide names another whose tissue it shows."""
    from pathfm_kedro.datasets.slide_files import read_manifest_file

    table = read_manifest_file(manifest)
    return "same_tissue_as" in table.columns and bool((table["same_tissue_as"] != "").any())


def write_conf(
    folder: Path,
    name: str,
    slides_root: str,
    source: str,
    size: str,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a cohort's folder of configuration.

    Parameters
    ----------
    folder
        ``conf/<name>``, which is made.
    name, slides_root, source, size
        Of the cohort, as its files say them.
    changes
        What it changes of the defaults, by file; other files hold an example.
    """
    folder.mkdir(parents=True)
    manifest = f"{slides_root}/manifest.csv" if source == "phantom" else f"conf/{name}/manifest.csv"
    globals_ = {"root": f"data/{name}", "slides_root": slides_root, "manifest": manifest}
    write_yaml(
        folder / "globals.yml",
        "Where this cohort's data lies; the manifest's paths start from slides_root.",
        globals_,
    )
    own = dict(changes or {})
    cohort = {"name": name, "source": source} | own.pop("parameters.yml", {}).get("cohort", {})
    write_yaml(
        folder / "parameters.yml",
        "What this cohort is, and how large its audit: quick, standard or full.",
        {"cohort": cohort, "audit": {"size": size}},
    )
    # One for each file of the defaults: `dvc repro` asks for all of them.
    for path in sorted((folder.parent / "base").glob("parameters_*.yml")):
        body = _EXAMPLES.get(path.stem.removeprefix("parameters_"), "")
        text = _PARAMETERS.format(name=path.name, body=body)
        (folder / path.name).write_text(text, encoding="utf-8")
    for file, content in own.items():
        write_yaml(folder / file, _PARAMETERS.format(name=file, body="").strip("# \n"), content)
    if source == "phantom":
        phantom = Path(folder.parent / "phantom" / "parameters_encoders.yml")
        (folder / "parameters_encoders.yml").write_text(
            phantom.read_text(encoding="utf-8"), encoding="utf-8"
        )


def write_tiles(folder: Path, sizes: list[SlideSize], tile: Mapping[str, Any]) -> str:
    """Write the tiles that fit the slides, where the defaults do not; a line that says so, or nothing.

    Parameters
    ----------
    folder
        ``conf/<name>``.
    sizes
        Of the slides.
    tile
        ``tile`` of the parameters as they are.
    """
    import yaml

    from pathfm_kedro.commands.first_look import propose_tiles

    proposal = propose_tiles(sizes, tile)
    if proposal is None:
        return ""
    if not proposal.parameters:
        return proposal.reason
    path = folder / "parameters_tile.yml"
    before = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("tile", {})
    comment = f"Proposed by kedro cohort new: {proposal.reason}."
    write_yaml(path, comment, {"tile": before | dict(proposal.parameters)})
    shown = ", ".join(f"tile.{key} {value:g}" for key, value in proposal.parameters.items())
    return f"{proposal.reason}\n  written to conf/{folder.name}/{path.name}: {shown}"


def design_lines(parameters: Mapping[str, Any], listed: pl.DataFrame) -> list[str]:
    """What the cohort is made of, and which checks it supports, for a reader.

    Parameters
    ----------
    parameters
        All parameters of the cohort.
    listed
        As of :func:`checked_slides`.
    """
    import polars as pl

    from pathfm_kedro.commands.supported_checks import patients_by_cell, support_lines
    from pathfm_kedro.pipelines.ingest.description import list_slides
    from pathfm_kedro.pipelines.ingest.design import summarise_design

    slides = list_slides(listed).with_columns(fingerprint=pl.coalesce("path", "slide_id"))
    design, summary = summarise_design(slides, parameters["ingest"])
    usable = slides.filter(pl.col("status") == "usable")
    return [
        "Patients of each label at each center:",
        *patients_by_cell(design),
        *(f"Warning: {warning}" for warning in summary["warnings"]),
        "What this design supports, before anything is computed:",
        *support_lines(parameters, usable),
    ]
