"""Pages from templates: one style and the same pieces on each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm_kedro.pipelines.report.text import without_folders
from pathfm_kedro.statistics.readable_numbers import number

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> Template:
    """A template of the package by its path in it; whatever is put into it is escaped."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("pathfm_kedro", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md3"] = number
    environment.filters["plain"] = lambda text: without_folders(str(text or ""))
    return environment.get_template(name)
