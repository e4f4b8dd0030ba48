"""Make the pages in docs/ a site: ``make site``, or ``mkdocs serve`` while writing.

The pages stay as they are read in the repository. For the site, README becomes the first page, each
experiment gets a page of its own, and each module of the package one in the reference, from its
docstrings; links into the repository lead there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate import anchor

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pathfm_kedro"
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
#: Pages of the site that are made of files outside docs/.
_BESIDE = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/, and name them in the navigation."""
    for name, source in _BESIDE.items():
        _add(files, config, name, (ROOT / source).read_text(encoding="utf-8"))
    whole = files.get_file_from_path("experiments.md")
    if whole is None:
        raise FileNotFoundError("docs/experiments.md is missing: run `make docs`")
    files.remove(whole)
    experiments = dict(experiment_pages(whole.content_string))
    for name, text in experiments.items():
        _add(files, config, name, text)
    modules = {reference_page(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    for name, path in modules.items():
        _add(files, config, name, f"::: {module_name(path)}\n")
    config.nav = [*(config.nav or []), {"Experiments": list(experiments)}, _reference(modules)]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into links that hold on the site."""
    here = page.file.src_uri
    home = posixpath.dirname(_BESIDE.get(here, "docs/experiments.md"))
    home = home if here in _BESIDE else "docs"

    def linked(found: re.Match[str]) -> str:
        target = found["target"]
        if re.match(r"[a-z]+:", target):
            return found[0]
        path, _, heading = target.partition("#")
        there = site_path(posixpath.normpath(posixpath.join(home, path)) if path else "", heading)
        if there is None:
            return found["text"]
        uri, heading = there
        relative = posixpath.relpath(uri, posixpath.dirname(here)) if uri else ""
        return f"{found['image']}[{found['text']}]({relative}{'#' if heading else ''}{heading})"

    return _outside_fences(markdown, lambda text: _LINK.sub(linked, text))


def site_path(path: str, heading: str) -> tuple[str, str] | None:
    """Page and heading on the site of a path in the repository; None where it has none.

    Parameters
    ----------
    path
        Relative to the repository; empty for the page itself.
    heading
        Anchor of a heading there; may be empty.
    """
    if path in ("", "docs/experiments.md"):
        own = f"experiments/{heading}.md"
        if heading and own in dict(experiment_pages((ROOT / "docs/experiments.md").read_text())):
            return own, ""
        return ("experiments/index.md" if path else ""), heading
    for name, source in _BESIDE.items():
        if path == source:
            return name, heading
    if path.startswith("docs/"):
        return path.removeprefix("docs/"), heading
    if path.startswith("src/pathfm_kedro/") and path.endswith(".py"):
        return reference_page(ROOT / path), ""
    return None


def experiment_pages(text: str) -> Iterator[tuple[str, str]]:
    """Pages of the site that docs/experiments.md becomes: an index, then one a section."""
    head, *sections = _SECTION.split(text)
    yield "experiments/index.md", head
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        lifted = re.sub(r"^###", "##", body, flags=re.MULTILINE)
        yield f"experiments/{anchor(title)}.md", f"# {title}\n{lifted}"


def module_name(path: Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def reference_page(path: Path) -> str:
    """The page of the site that holds a module's reference."""
    relative = PurePosixPath(path.relative_to(PACKAGE.parent).as_posix())
    stem = "index" if relative.stem == "__init__" else relative.stem
    return f"reference/{relative.with_name(stem)}.md"


def _reference(modules: dict[str, Path]) -> dict[str, Any]:
    """The reference in the navigation: a section for each room of the package."""
    rooms: dict[str, list[str]] = {}
    for name, path in modules.items():
        rooms.setdefault(path.relative_to(PACKAGE.parent).parts[1], []).append(name)
    alone = [pages[0] for room, pages in rooms.items() if room.endswith(".py")]
    return {
        "Reference": [
            *alone,
            *({room: pages} for room, pages in rooms.items() if not room.endswith(".py")),
        ]
    }


def _add(files: Files, config: MkDocsConfig, name: str, text: str) -> None:
    files.append(File.generated(config, name, content=text))


def _outside_fences(text: str, change: Any) -> str:
    """A page of which all but the fenced blocks is changed."""
    fences = _FENCE.findall(text)
    rest = [change(part) for part in _FENCE.split(text)]
    return "".join(a + b for a, b in zip(rest, [*fences, ""], strict=True))
