"""The project's commands without Kedro's, for where it is installed as a package and is no project.

``python -m pathfm_kedro run …`` is ``kedro run …``, in the working folder and with the configuration
that ``--conf-source`` names (``conf/`` there by default); so are ``cohort``, ``encoders``, ``features``
and ``search``.
"""

from __future__ import annotations

import sys
from typing import Any

import click
from kedro.framework.project import configure_project


def main(*arguments: str) -> Any:
    """Run a command; without its name, as Kedro's packages do, ``run``."""
    configure_project("pathfm_kedro")
    from pathfm_kedro.cli import cli

    given = list(arguments or sys.argv[1:])
    named = bool(given) and given[0] in {"--help", *cli.list_commands(click.Context(cli))}
    return cli.main(given if named else ["run", *given], prog_name="pathfm-kedro")


if __name__ == "__main__":
    main()
