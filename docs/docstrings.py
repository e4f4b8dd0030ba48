"""Read the markup of docstrings as Markdown where the site shows them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from griffe import Extension, Object

SOURCES = Path(__file__).resolve().parents[1] / "src"
_ROLE = re.compile(r":(?:mod|func|class|data|meth|attr):`~?([\w.]+)`")


class MarkdownDocstrings(Extension):
    """Roles become links to the reference, double backticks code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of every module, class and function that was read."""
        if obj.docstring is None:
            return

        def link(role: re.Match[str]) -> str:
            name = _absolute(role[1], obj.module.path)
            shown = f"`{role[1].rpartition('.')[2]}`"
            return f"[{shown}][{name}]" if _is_shown(name) else shown

        obj.docstring.value = _ROLE.sub(link, obj.docstring.value.replace("``", "`"))


def _absolute(name: str, module: str) -> str:
    """What a docstring of a module refers to, by its whole name."""
    if name.startswith("pathfm_kedro."):
        return name
    if name.startswith("."):
        return module.rpartition(".")[0] + name
    return f"{module}.{name}"


@cache
def _is_shown(name: str) -> bool:
    """Whether the reference has a heading for a module, or for a function or class of one."""
    module, _, what = name.rpartition(".")
    if what.startswith("_"):
        return False
    if _file(name).is_file():
        return True
    file = _file(module)
    defined = rf"^(?:def|class) {re.escape(what)}\b"
    return file.is_file() and bool(re.search(defined, file.read_text(encoding="utf-8"), re.M))


def _file(module: str) -> Path:
    return SOURCES / (module.replace(".", "/") + ".py")
