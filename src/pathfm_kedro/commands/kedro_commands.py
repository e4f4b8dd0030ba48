"""Kedro's own commands with what this project adds to them."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import call
from kedro.framework.startup import ProjectMetadata

from pathfm_kedro.screen import TRACEBACK_VARIABLE, VERBOSE_VARIABLE


def _run(verbose: bool, traceback: bool, **options: Any) -> Any:
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
    if traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"
    assert kedro_run.callback is not None
    return kedro_run.callback(**options)


run = click.Command(
    name="run",
    help=kedro_run.help,
    callback=_run,
    params=[
        *kedro_run.params,
        click.Option(
            ["--verbose"], is_flag=True, help="Show every message of Kedro and of the project."
        ),
        click.Option(
            ["--traceback"], is_flag=True, help="Show where in the code an error was raised."
        ),
    ],
)

#: What a configuration consists of. Manifests lie in conf/ too, as CSV or Parquet, with patients' ids.
_PACKED = frozenset({".yml", ".yaml", ".json", ".md"})


@click.command()
@click.pass_obj
def package(metadata: ProjectMetadata) -> None:
    """Package the project as a wheel, and conf/ as an archive without manifests and credentials."""
    # Kedro's own command would pack the whole of conf/ first.
    call(
        [sys.executable, "-m", "build", "--wheel", "--outdir", "dist"],
        cwd=str(metadata.project_path),
    )
    archive = metadata.project_path / "dist" / f"conf-{metadata.package_name}.tar.gz"
    left_out = pack_configuration(metadata.project_path / "conf", archive)
    if left_out:
        click.echo(
            f"Left out of {archive.name}, since patients' ids or secrets may stand in them: "
            f"{', '.join(path.as_posix() for path in left_out)}"
        )


def pack_configuration(folder: Path, archive: Path) -> list[Path]:
    """Pack YAML, JSON and Markdown of a configuration, without conf/local, credentials and tables.

    Parameters
    ----------
    folder
        conf/.
    archive
        The ``tar.gz`` to write, in place of any that is there.

    Returns
    -------
    list of Path
        Files that were left out beside those of conf/local, relative to the folder's parent.
    """
    left_out = []
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as packed:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder.parent)
            if name.parts[1] == "local" or path.name.startswith("."):
                continue
            if path.suffix.lower() in _PACKED and not path.name.startswith("credentials"):
                packed.add(path, name.as_posix(), recursive=False)
            else:
                left_out.append(name)
    return left_out
