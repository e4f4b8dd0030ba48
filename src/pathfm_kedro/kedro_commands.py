"""Kedro's own commands with what this project adds to them."""

from __future__ import annotations

import os
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

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
